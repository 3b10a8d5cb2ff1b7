"""asyncpg: its pool (which resets with several statements in one query), statements cached by itself, listeners, a queue of
jobs by advisory locks."""
import asyncio
import os

import asyncpg

DSN = os.environ["DSN"]


async def worker(pool, name):
    done = 0
    while True:
        async with pool.acquire() as connection:
            row = await connection.fetchrow(
                "SELECT id FROM jobs WHERE done_by IS NULL AND pg_try_advisory_lock(77, id) ORDER BY id LIMIT 1"
            )
            if row is None:
                if await connection.fetchval("SELECT count(*) FROM jobs WHERE done_by IS NULL") == 0:
                    return done
                await asyncio.sleep(0.01)
                continue
            state = await connection.execute("UPDATE jobs SET done_by = $1 WHERE id = $2 AND done_by IS NULL", name, row["id"])
            done += state == "UPDATE 1"
            await connection.execute("SELECT pg_advisory_unlock_all()")


async def main():
    pool = await asyncpg.create_pool(DSN, min_size=8, max_size=8)
    async with pool.acquire() as connection:
        await connection.execute("TRUNCATE jobs; INSERT INTO jobs SELECT generate_series(1, 60)")
    done = await asyncio.gather(*(worker(pool, f"worker {n}") for n in range(8)))
    assert sum(done) == 60, done

    async def settings(number):
        connection = await asyncpg.connect(DSN, server_settings={"search_path": f"tenant_{number}", "application_name": f"a{number}"})
        for _ in range(20):
            assert await connection.fetchval("SELECT tenant FROM items WHERE id = $1", 2) == number
            async with connection.transaction():
                await connection.execute(f"SET LOCAL work_mem = '{number + 1}MB'")
                assert await connection.fetchval("SHOW work_mem") == f"{number + 1}MB"
            assert await connection.fetchval("SHOW application_name") == f"a{number}"
        statement = await connection.prepare("SELECT $1::int + tenant FROM items WHERE id = 1")
        await connection.reset()
        assert await statement.fetchval(1) == number + 1
        await connection.close()

    await asyncio.gather(*(settings(number) for number in range(10)))

    heard = asyncio.Queue()
    ear = await asyncpg.connect(DSN)
    await ear.add_listener("jobs", lambda connection, pid, channel, payload: heard.put_nowait((pid, payload)))
    async with pool.acquire() as connection:
        async with connection.transaction():
            await connection.execute("NOTIFY jobs, 'one'")
            assert heard.empty()
    assert (await asyncio.wait_for(heard.get(), 10))[1] == "one"
    await ear.execute("NOTIFY jobs, 'own'")
    assert await asyncio.wait_for(heard.get(), 10) == (ear.get_server_pid(), "own")
    await ear.close()
    async with pool.acquire() as connection:
        async with connection.transaction():
            assert len([row async for row in connection.cursor("SELECT generate_series(1, 500)", prefetch=50)]) == 500
    await pool.close()


asyncio.run(main())

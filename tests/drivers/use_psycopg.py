"""psycopg 3: pipeline mode, prepared statements, server-side cursors, LISTEN, tenants by search_path and by row security."""
import os
import threading

import psycopg

DSN = os.environ["DSN"]


def tenant(number):
    with psycopg.connect(DSN, autocommit=True, prepare_threshold=2) as connection:
        connection.execute(f"SET search_path TO tenant_{number}")
        for _ in range(20):
            rows = connection.execute("SELECT tenant, id FROM items WHERE id <= %s ORDER BY id", (3,)).fetchall()
            assert rows == [(number, 1), (number, 2), (number, 3)], rows
        connection.execute("SET app.tenant = %d" % number)
        connection.execute("SET ROLE application")
        for _ in range(5):
            count = connection.execute("SELECT count(*), min(tenant), max(tenant) FROM public.docs").fetchone()
            assert count == (10, number, number), count
        connection.execute("RESET ROLE")
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int + tenant FROM items LIMIT 1", (n,)) for n in range(30)]
        assert [cursor.fetchone()[0] for cursor in cursors] == [n + number for n in range(30)]
        try:
            with connection.pipeline():
                connection.execute("SELECT 1")
                connection.execute("SELECT 1/0")
                connection.execute("SELECT 2")
            raise SystemExit("the error is lost")
        except psycopg.errors.DivisionByZero:
            pass
        assert connection.execute("SHOW search_path").fetchone() == (f"tenant_{number}",)
        with connection.transaction(), connection.cursor("mine") as cursor:
            cursor.execute("SELECT generate_series(1, 1000)")
            assert [row[0] for row in cursor.fetchmany(10)] == list(range(1, 11))
            assert len(cursor.fetchall()) == 990
        with connection.cursor() as cursor:
            with cursor.copy("COPY (SELECT generate_series(1, 5)) TO STDOUT") as copy:
                assert list(copy.rows()) == [(str(n),) for n in range(1, 6)]


def all_at_once(function, count):
    failures = []

    def run(number):
        try:
            function(number)
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures, failures


all_at_once(tenant, 10)

ears = [psycopg.connect(DSN, autocommit=True) for _ in range(10)]
for ear in ears:
    ear.execute("LISTEN news")
with psycopg.connect(DSN, autocommit=True) as mouth:
    mouth.execute("SELECT pg_notify('news', 'hello')")
for ear in ears:
    heard = list(ear.notifies(timeout=10, stop_after=1))
    assert [notify.payload for notify in heard] == ["hello"], heard
own = ears[0].execute("NOTIFY news, 'mine'")
heard = list(ears[0].notifies(timeout=10, stop_after=1))
assert heard[0].payload == "mine" and heard[0].pid == ears[0].info.backend_pid, heard

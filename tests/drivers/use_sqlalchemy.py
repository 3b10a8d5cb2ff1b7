"""SQLAlchemy over psycopg: a pool of sessions, schema_translate and SET in events, savepoints."""
import os
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

engine = sa.create_engine(os.environ["DSN"].replace("postgresql://", "postgresql+psycopg://"), pool_size=8, isolation_level="REPEATABLE READ")


@sa.event.listens_for(engine, "connect")
def begin(connection, record):
    connection.autocommit = True
    connection.execute("SET statement_timeout = '1h'")
    connection.autocommit = False


def tenant(number):
    for _ in range(10):
        with engine.begin() as connection:
            connection.execute(sa.text(f"SET LOCAL search_path TO tenant_{number}"))
            assert connection.execute(sa.text("SELECT DISTINCT tenant FROM items")).scalars().all() == [number]
            assert connection.execute(sa.text("SHOW statement_timeout")).scalar() == "1h"
            assert connection.execute(sa.text("SHOW transaction_isolation")).scalar() == "repeatable read"
            try:
                with connection.begin_nested():
                    connection.execute(sa.text("SELECT 1/0"))
            except sa.exc.DBAPIError:
                pass
            assert connection.execute(sa.text("SELECT max(id) FROM items")).scalar() == 3
        with engine.connect() as connection:
            rows = connection.execution_options(stream_results=True).execute(sa.text("SELECT generate_series(1, 300)"))
            assert sum(rows.scalars()) == 45150


with ThreadPoolExecutor(8) as threads:
    list(threads.map(tenant, range(10)))

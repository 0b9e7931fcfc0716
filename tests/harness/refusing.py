"""A database that refuses each result, as one does whose limits or constraints it breaks."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from worker.ground.db import Database

REASON = "refuses_results"
_ABORT = f"SELECT RAISE(ABORT, 'violates check constraint {REASON}')"
_SQLITE = (
    f"CREATE TRIGGER {REASON} BEFORE UPDATE OF result ON jobs BEGIN {_ABORT}; END",
    f"DROP TRIGGER {REASON}",
)
_POSTGRES = (
    f"ALTER TABLE jobs ADD CONSTRAINT {REASON} CHECK (result IS NULL) NOT VALID",
    f"ALTER TABLE jobs DROP CONSTRAINT {REASON}",
)


@contextmanager
def refusing_results(db: Database) -> Iterator[None]:
    begin, end = _POSTGRES if db.is_postgres else _SQLITE
    with db.transaction() as connection:
        connection.execute(text(begin))
    try:
        yield
    finally:
        with db.transaction() as connection:
            connection.execute(text(end))

"""Engine and transactions for the job table, on SQLite and PostgreSQL alike."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection as SQLiteConnection
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InterfaceError, InvalidatePoolError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

READ_ONLY = "extend_video_read_only"
BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000
# A machine that is gone says nothing, not even that: the kernel asks it, and tells within 30 s.
PEER_CHECKS = {
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
REST_SECONDS = 2.0
RESTS_SINCE = "rests_since"
_ALONE = {"isolation_level": "AUTOCOMMIT"}


# What is raised by a database that is away, locked, or breaks a deadlock: it may be well soon.
AWAY = (OperationalError, InterfaceError, PoolTimeoutError)


class Database:
    """Short transactions on one engine. Make one per process, after forking."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        # An error's text would quote the values of its statement: prompts and signed URLs.
        options = _engine_options(url, pool_size)
        self.engine = create_engine(url, hide_parameters=True, **options)
        self.is_postgres = self.engine.dialect.name == "postgresql"
        self._reading: dict[str, Any] = _ALONE
        if not self.is_postgres:
            self._reading = {READ_ONLY: True}
            _prepare_sqlite(self.engine)
        else:
            _check_rested(self.engine)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commit at the end of the block, roll back on any exception."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """One statement that commits itself, without the round trips of BEGIN and COMMIT.

        On SQLite, where those cost nothing, as `transaction`.
        """
        if not self.is_postgres:
            with self.transaction() as connection:
                yield connection
            return
        with self.engine.connect().execution_options(**_ALONE) as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Read without holding up writers; on PostgreSQL each statement sees its own moment."""
        with self.engine.connect().execution_options(**self._reading) as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()


def describe_database_error(error: SQLAlchemyError) -> str:
    """The first line of what the database said: the next ones may quote a row."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def name_sqlite(path: Path) -> str:
    """The URL of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def _engine_options(url: str, pool_size: int) -> dict[str, Any]:
    if make_url(url).get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_TIMEOUT_MS / 1000}}
    options = f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC"
    return {
        "pool_size": pool_size,
        "pool_timeout": CONNECT_TIMEOUT_S,
        "connect_args": {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": options,
            **PEER_CHECKS,
        },
    }


def _check_rested(engine: Engine) -> None:
    """Ask a connection that has rested whether it still lives, and not before each transaction.

    As SQLAlchemy's own `pool_pre_ping` does, which asks each time.
    """

    @event.listens_for(engine, "checkin")
    def _note_rest(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info[RESTS_SINCE] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _ask(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
        since = record.info.get(RESTS_SINCE)
        if since is None or time.monotonic() - since < REST_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise InvalidatePoolError from error


def _prepare_sqlite(engine: Engine) -> None:
    """Make SQLite durable, concurrent, and honest about when a transaction begins.

    A write transaction starts with BEGIN IMMEDIATE: it waits for the one writer at its start, where
    the busy timeout applies, instead of failing half way when it turns from reading to writing.
    """

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: SQLiteConnection, _record: object) -> None:
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

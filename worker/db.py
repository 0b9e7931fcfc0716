"""Engine and transactions for the job table, on SQLite and PostgreSQL alike."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection as SQLiteConnection
from typing import Any

import psycopg
from psycopg.errors import ProgramLimitExceeded, ReadOnlySqlTransaction, UniqueViolation
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import (
    IntegrityError,
    InterfaceError,
    InternalError,
    InvalidatePoolError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from worker.errors import ExtendVideoError, UnsuitableDatabaseError

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


# What is raised by a database that is away, locked, read-only after a failover, or breaks a
# deadlock: the same statement may succeed soon.
AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)
# What is raised for a value that cannot be written: by the database, or while it is encoded.
REFUSED = (SQLAlchemyError, ValueError, OverflowError)


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
            _check_encoding(self.engine)
            _check_rested(self.engine)
            _leave_read_only(self.engine)

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

    def check_encoding(self) -> None:
        """Raise UnsuitableDatabaseError for a database that cannot store every text."""
        if self.is_postgres:
            self.engine.connect().close()

    def close(self) -> None:
        self.engine.dispose()


def describe_database_error(error: Exception) -> str:
    """The first line of what the database said: the next ones may quote a row."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def will_repeat(error: Exception) -> bool:
    """Whether the same write fails however often it is tried: the database refuses its values.

    A unique index is no such refusal: of two that adopt one request at once, the loser sees at its
    next try that it is. Nor is a missing table, or a permission: somebody puts them right.
    """
    orig = getattr(error, "orig", None)
    if isinstance(error, IntegrityError):
        return not isinstance(orig, UniqueViolation) and "UNIQUE" not in str(orig)
    if isinstance(orig, ProgramLimitExceeded):
        return True
    return not isinstance(error, (*AWAY, ProgrammingError, ExtendVideoError))


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
            # Whatever PGCLIENTENCODING says.
            "client_encoding": "utf8",
            "options": options,
            **PEER_CHECKS,
        },
    }


def _check_encoding(engine: Engine) -> None:
    """Use no database that cannot store every text: some paid result would never be recorded.

    The server states its encoding at each connection, so that it costs no statement.
    """

    @event.listens_for(engine, "connect", insert=True)
    def _refuse(connection: psycopg.Connection, _record: object) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding in {"UTF8", None}:
            return
        name = connection.info.dbname
        connection.close()
        raise UnsuitableDatabaseError(
            f"the encoding of database {name} is {encoding}, which cannot store every text: create "
            f"another one with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )


def _leave_read_only(engine: Engine) -> None:
    """Connect anew after a write that a read-only server refused: the primary is elsewhere now."""

    @event.listens_for(engine, "handle_error")
    def _disconnect(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, ReadOnlySqlTransaction):
            context.is_disconnect = True


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

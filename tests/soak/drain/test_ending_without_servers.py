"""Every daemon is told to end while the database and the broker are gone, in the middle of work."""

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic
from uuid import UUID

import pytest

from tests.harness.processes import TWO_WORKERS, Part, WorkerPlan
from tests.harness.servers import Broker, Postgres, run_broker, run_postgres
from tests.harness.waiting import wait_until
from tests.system.conftest import YARDS
from tests.system.relay import Point
from tests.system.scene import Scene, run_scene
from worker.cli.daemons import MARGIN

DRAIN_SECONDS = 4
PATIENCE = DRAIN_SECONDS + MARGIN.total_seconds()
"""What supervisors give. That the defaults fit into their 30 s is tested with the deployment."""
FORKING: WorkerPlan = {"worker": ("-c", "4")}
SCALED_DOWN = {
    "LEASE_SECONDS": "12",
    "DRAIN_SECONDS": str(DRAIN_SECONDS),
    # A claim that was committed while its worker never heard so is unknown, which ends by time.
    "POLL_SECONDS": "5",
    "START_TIMEOUT_SECONDS": "30",
    "UNKNOWN_SECONDS": "40",
}


@dataclass(frozen=True)
class Servers:
    postgres: Postgres
    broker: Broker

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Nobody listens any more: every connection is refused."""
        self.broker.end(signal.SIGKILL)
        self.postgres.stop()
        try:
            yield
        finally:
            self.postgres.start()
            self.broker.start()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Connections stand, and new ones are taken, but nothing is ever answered."""
        with self.broker.standing_still(), self.postgres.standing_still():
            yield


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with run_postgres(survives_kill=True) as postgres, run_broker() as broker:
        yield Servers(postgres, broker)


Away = Callable[[Servers], AbstractContextManager[None]]


@contextmanager
def working(tmp_path, request, servers, clip, workers: WorkerPlan) -> Iterator[Scene]:
    url = servers.postgres.url_of(servers.postgres.create_database())
    broker = servers.broker.url
    with run_scene(tmp_path, url, clip, workers, broker_url=broker, changes=SCALED_DOWN) as scene:
        request.node.stash.setdefault(YARDS, []).append(scene.deployment.yard)
        yield scene


def end_all(parts: list[Part]) -> dict[str, float]:
    """Tell all of them at once; each one's exit code is that of a good end.

    A worker that Celery has ended before, for its broker is gone, is its supervisor's business.
    """
    began, took = monotonic(), dict[str, float]()
    told = [part for part in parts if part.process.poll() is None]
    for part in told:
        part.process.send_signal(signal.SIGTERM)
    for part in told:
        assert part.wait(PATIENCE - (monotonic() - began)) == 0, part.read_log()
        took[part.name] = monotonic() - began
    return took


def assert_paid_and_archived_once(scene: Scene, job_id: UUID) -> None:
    job = scene.table.wait_for_end(job_id, seconds=150)
    assert len(scene.list_submissions(job)) == 1
    [archived] = scene.list_archived(job_id)
    assert hashlib.sha256(archived.read_bytes()).hexdigest() == job["archive_sha256"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("away", [Servers.killed, Servers.silent])
@pytest.mark.parametrize("workers", [TWO_WORKERS, FORKING], ids=["threads", "processes"])
def test_daemons_end_in_time_and_nothing_is_lost(
    tmp_path, request, servers, clip, workers: WorkerPlan, away: Away
) -> None:
    """One download and one POST hang, ten more jobs wait, and then the servers are gone."""
    with working(tmp_path, request, servers, clip, workers) as scene, ExitStack() as holds:
        parts = scene.deployment.yard.parts
        downloading = holds.enter_context(scene.relay.holding(Point.MID_DOWNLOAD))
        jobs = [scene.enqueue()]
        downloading.wait_until_reached()
        posting = holds.enter_context(scene.relay.holding(Point.BEFORE_REPLY))
        jobs.append(scene.enqueue())
        posting.wait_until_reached()
        jobs += [scene.enqueue() for _ in range(10)]
        wait_until(lambda: len(scene.table.select("SELECT 1 FROM jobs")) == len(jobs))
        with away(servers):
            end_all([parts[name] for name in ("receiver", "beat", *workers)])
        holds.close()
        scene.table.engine.dispose()
        scene.deployment.start_missing()

        for job_id in jobs:
            assert_paid_and_archived_once(scene, job_id)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("away", [Servers.killed, Servers.silent])
def test_daemons_without_work_end_in_time(tmp_path, request, servers, clip, away: Away) -> None:
    with working(tmp_path, request, servers, clip, TWO_WORKERS) as scene:
        scene.table.wait_for_end(scene.enqueue())
        parts = scene.deployment.yard.parts
        with away(servers):
            end_all([parts[name] for name in ("receiver", "beat", *TWO_WORKERS)])
        scene.table.engine.dispose()

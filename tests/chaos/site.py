"""Where an experiment takes place: a whole deployment, and whatever can be done to it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from celery import Celery

from tests.chaos.supervisor import Supervisor
from tests.emulator.processes import Emulator
from tests.harness.processes import (
    BIN,
    THREADS,
    Deployment,
    Part,
    WorkerPlan,
    Yard,
    run_deployment,
    run_emulator,
    run_yard,
)
from tests.harness.servers import Broker, Postgres, run_broker
from tests.system.rows import JobTable, open_table

SUBMITTER, ARCHIVER, RECEIVER, BEAT = DAEMONS = ("submitter", "archiver", "receiver", "beat")
SUBMITTING = "extend_video,extend_video.submit,extend_video.sweep"
RECONCILING = "extend_video.reconcile,extend_video.cancel"
WORKERS: WorkerPlan = {
    SUBMITTER: (*THREADS, "-Q", f"{SUBMITTING},{RECONCILING}"),
    ARCHIVER: (*THREADS, "-Q", "extend_video.archive"),
}
SETTINGS = {
    "LEASE_SECONDS": "3",
    "SWEEP_SECONDS": "1",
    "POLL_SECONDS": "3",
    "START_TIMEOUT_SECONDS": "10",
    "UNKNOWN_SECONDS": "30",
    "PROBE_SECONDS": "2",
    "RETRY_SECONDS": "3600",
    "MAX_ATTEMPTS": "100",
    "MAX_IN_FLIGHT": "20",
}
EMULATOR = ("--render", "fake", "--webhook-retry-seconds", "0.2", "--concurrency", "1000")
ENDLESS = 10**9
PATIENCE_SECONDS = 120
"""For what takes moments on an idle machine."""
PRODUCER = Path(__file__).parent / "producer_script.py"
JOB_ID = re.compile(r"^[0-9a-f]{8}-[0-9a-f-]{27}$", re.MULTILINE)


@dataclass
class Site:
    """`job_requests` are the ids that were sent by Celery; the producers' own are in their logs.

    `told` are the problems that have been reported already.
    """

    database: str
    database_url: str
    deployment: Deployment
    emulator: Emulator
    table: JobTable
    broker: Broker
    postgres: Postgres | None
    supervisor: Supervisor
    celery: Celery
    job_requests: list[UUID] = field(default_factory=list)
    producers: list[Part] = field(default_factory=list)
    wishes_sent_again: int = 0
    told: set[str] = field(default_factory=set)

    @property
    def yard(self) -> Yard:
        return self.deployment.yard

    def start_producer(self, pace: float, count: int = ENDLESS, most_live: int = 0) -> Part:
        """Another service that commits jobs: so many in a second, in all, and at most under way."""
        numbers = [str(number) for number in (pace, count, most_live)]
        command = [str(BIN / "python"), "-I", str(PRODUCER), *numbers]
        name = f"producer {len(self.producers) + 1}"
        self.producers.append(self.yard.start(name, command, self.deployment.settings))
        return self.producers[-1]

    def enqueue_all(self, count: int) -> list[UUID]:
        """Commit so many jobs as fast as it goes; their ids."""
        producer = self.start_producer(ENDLESS, count)
        assert producer.wait(300) == 0, producer.read_log()
        return read_ids(producer)

    def end_producers(self) -> None:
        for producer in self.producers:
            if producer.is_running:
                assert producer.end() == 0, producer.read_log()

    def send_wish(self) -> None:
        """By Celery alone, with an id of the driver's own."""
        self.job_requests.append(uuid4())
        self._send(self.job_requests[-1])

    def send_lost_wishes_again(self) -> None:
        """As the README tells producers: a wish without a row is sent again under its job id."""
        for job_id in self.job_requests:
            if self.table.find_job(job_id) is None:
                self.wishes_sent_again += 1
                self._send(job_id)

    def _send(self, job_id: UUID) -> None:
        job_request = {
            "job_id": str(job_id),
            "prompt": f"chaos {job_id}",
            "video_url": "http://127.0.0.1/never-fetched.mp4",
            "num_frames": 9,
            "num_context_frames": 5,
        }
        self.celery.send_task("extend_video.enqueue", kwargs=job_request, queue="extend_video")

    def list_expected(self) -> list[UUID]:
        """Every job that was promised to somebody."""
        committed = [job_id for producer in self.producers for job_id in read_ids(producer)]
        return [*committed, *self.job_requests]

    def count_jobs(self) -> int:
        return self._count("SELECT count(*) AS n FROM jobs")

    def count_archived(self) -> int:
        return self._count("SELECT count(*) AS n FROM jobs WHERE state = 'archived'")

    def count_ended(self) -> int:
        return self._count("SELECT count(*) AS n FROM jobs WHERE due_at IS NULL")

    def count_live(self) -> int:
        return self._count("SELECT count(*) AS n FROM jobs WHERE due_at IS NOT NULL")

    def count_held(self) -> int:
        """Jobs of which nobody knows whether fal has them, and nothing proves it."""
        return self._count("SELECT count(*) AS n FROM jobs WHERE blocked_by = 'hold'")

    def count_events(self, to_state: str) -> int:
        return self._count("SELECT count(*) AS n FROM events WHERE to_state = :s", s=to_state)

    def _count(self, statement: str, **parameters: object) -> int:
        return int(self.table.select(statement, **parameters)[0]["n"])

    def wait_for_ready(self) -> None:
        """Until both workers take messages."""
        for name in (SUBMITTER, ARCHIVER):
            self.yard.parts[name].wait_for_log(" ready.", PATIENCE_SECONDS)


def read_ids(producer: Part) -> list[UUID]:
    return [UUID(found) for found in JOB_ID.findall(producer.read_log())]


@contextmanager
def run_site(
    directory: Path,
    postgres: Postgres | None,
    *,
    changes: Mapping[str, str] | None = None,
    emulator_options: tuple[str, ...] = (),
) -> Iterator[Site]:
    """On PostgreSQL if there is one, else on SQLite."""
    directory.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{directory / 'jobs.db'}"
    if postgres is not None:
        url = postgres.url_of(postgres.create_database())
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker())
        yard = stack.enter_context(run_yard(directory))
        emulator = stack.enter_context(run_emulator(yard, *EMULATOR, *emulator_options))
        deployment = stack.enter_context(
            run_deployment(
                yard,
                emulator=emulator,
                fal_url=emulator.url,
                database_url=url,
                broker_url=broker.url,
                workers=WORKERS,
                changes={**SETTINGS, **(changes or {})},
            )
        )
        table = stack.enter_context(open_table(url))
        celery = stack.enter_context(Celery("chaos", broker=broker.url, set_as_current=False))
        supervisor = stack.enter_context(Supervisor(deployment))
        name = "SQLite" if postgres is None else "PostgreSQL"
        site = Site(name, url, deployment, emulator, table, broker, postgres, supervisor, celery)
        site.wait_for_ready()
        yield site

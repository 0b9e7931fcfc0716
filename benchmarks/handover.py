"""From a webhook's commit to the start of its archive task, by PostgreSQL's own commit times.

The end is when the step reads its clock, before it claims the job; so both ends of the reference,
publishing and the first line of its task, are read from the same clock. Each side has a worker of
its own, of the same pool, on one broker; at this rate neither is ever busy with more than one.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from celery import Celery
from sqlalchemy import text

from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.load import find_quantile, run_load
from benchmarks.harness.report import REPOSITORY
from benchmarks.harness.run import run_alone
from benchmarks.harness.webhooks import Served, WaitingJobs, run_receiver
from tests.harness.archiving import make_video, state_video
from tests.harness.processes import BIN, Yard, run_yard
from tests.harness.servers import Postgres, run_broker, run_postgres
from tests.harness.waiting import wait_until
from tests.harness.web import run_server, send_body
from worker.jobs.states import JobState

RATE = 8
POOL = ("-P", "threads", "-c", "4", "--without-gossip", "--without-mingle")
TIMEOUT_SECONDS = 60
QUANTILES = {"p50": 0.5, "p99": 0.99}
HANDOVERS = text(
    """SELECT extract(epoch FROM claimed.at - pg_xact_commit_timestamp(completed.xmin))
    FROM events AS completed JOIN events AS claimed USING (job_id)
    WHERE completed.reason = 'result_arrived' AND claimed.reason = 'archive_claimed'
    ORDER BY claimed.id"""
)
Measure = Callable[[int], list[float]]


def measure(plan: Plan) -> list[Figure]:
    with run_both(plan.directory) as (ours, reference):
        for hand_over in (ours, reference):
            hand_over(plan.pick(20, 2))
        sides = {"ours": ours, "celery": reference}
        amount = plan.pick(40, 4)
        found = plan.alternate(
            {name: partial(measure_one, hand_over, amount) for name, hand_over in sides.items()}
        )
    ours_found, celery = found["ours"], found["celery"]
    goals: dict[str, Goal | None] = {"p50": Goal("<=", 2), "p99": None}
    return [
        Figure(f"{name} to start", "ms", ours_found[name], celery[name], "publish to start", goal)
        for name, goal in goals.items()
    ]


def measure_one(hand_over: Measure, amount: int) -> dict[str, float]:
    seconds = hand_over(amount)
    return {name: 1000 * find_quantile(seconds, part) for name, part in QUANTILES.items()}


@contextmanager
def run_both(directory: Path) -> Iterator[tuple[Measure, Measure]]:
    with (
        run_postgres(is_durable=True) as postgres,
        run_broker() as broker,
        run_yard(directory) as yard,
        run_server(send_body(make_video(), content_type="video/mp4")) as media,
        Celery("producer", broker=broker.url, set_as_current=False) as app,
    ):
        note_commit_times(postgres)
        settings = {
            "FAL_KEY": "emulator-key",
            "FAL_MEDIA_HOSTS": media.place,
            "ARCHIVE_URL": f"file:{directory / 'archive'}",
        }
        with run_receiver(yard, postgres, broker, settings) as (jobs, served):
            ours = Ours(jobs, served, state_video(f"{media.url}/clip.mp4"), directory)
            starts = directory / "starts"
            start_worker(yard, "archiver", "worker", served.settings)
            reference_settings = {"BROKER_URL": broker.url, "STARTS": str(starts)}
            start_worker(yard, "reference", "benchmarks.reference.celery_start", reference_settings)
            yield ours.hand_over, partial(publish_tasks, app, starts)


def note_commit_times(postgres: Postgres) -> None:
    postgres.execute("ALTER SYSTEM SET track_commit_timestamp = on")
    postgres.stop()
    postgres.start()


def start_worker(yard: Yard, name: str, application: str, settings: Mapping[str, str]) -> None:
    """Both of the same pool."""
    command = [str(BIN / "celery"), "-A", application, "worker", "-n", f"{name}@%h", *POOL]
    known = {**settings, "PYTHONPATH": str(REPOSITORY)}
    part = yard.start(name, [*command, "--loglevel", "INFO"], known)
    part.wait_for_log(" ready.", TIMEOUT_SECONDS)


@dataclass(frozen=True)
class Ours:
    jobs: WaitingJobs
    served: Served
    result: Mapping[str, object]
    directory: Path

    def hand_over(self, amount: int) -> list[float]:
        """Seconds of each; ends when all are archived."""
        before = len(self.list_handovers())
        webhooks = self.jobs.sign(amount, self.result)
        answers = run_load(self.served.build_load(webhooks, RATE), self.directory)
        answers.check()
        expected = before + amount
        wait_until(lambda: self.jobs.count(JobState.ARCHIVED) == expected, TIMEOUT_SECONDS)
        return self.list_handovers()[before:]

    def list_handovers(self) -> list[float]:
        with self.jobs.db.reading() as connection:
            return [float(seconds) for seconds in connection.execute(HANDOVERS).scalars()]


def publish_tasks(app: Celery, starts: Path, amount: int) -> list[float]:
    """Seconds of each, published at the same pace as the webhooks come."""
    before = len(read_starts(starts))
    for _ in range(amount):
        app.send_task("reference.start", args=[time.time()])
        time.sleep(1 / RATE)
    wait_until(lambda: len(read_starts(starts)) == before + amount, TIMEOUT_SECONDS)
    return read_starts(starts)[before:]


def read_starts(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


HANDOVER = Question(
    "handover", "how soon after its webhook's commit does a job's archiving start?", measure
)

if __name__ == "__main__":
    sys.exit(run_alone(HANDOVER))

"""A backlog of 100,000 jobs at an account of ten at once: `python -m benchmarks.admission`.

The workers are split as in docker-compose.yml. fal takes half a second for each POST. Looked at are
the pace of submissions, sweeps, messages, memory, and how long an admission takes, beside one with
100 jobs queued. `ADMISSION_SECONDS=600` watches for ten minutes; it ends by itself.
"""

import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.harness.admissions import read_seconds
from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.load import find_quantile
from benchmarks.harness.meter import measure_rss
from benchmarks.harness.report import REPOSITORY
from benchmarks.harness.run import run_alone
from tests.emulator.processes import Emulator
from tests.harness.many_rows import insert_jobs, make_id, split
from tests.harness.processes import (
    BIN,
    Deployment,
    Part,
    WorkerPlan,
    run_deployment,
    run_emulator,
    run_yard,
)
from tests.harness.servers import Broker, run_broker, run_postgres
from tests.harness.waiting import PAUSE, wait_until
from tests.soak.admission.crowd import build_request
from worker.fal.model import complete_input
from worker.ground.db import Database

AT_ONCE, RUN_SECONDS = 10, 3.0
PACE = 60 * AT_ONCE / RUN_SECONDS
"""Submissions a minute, if each run began at the moment in which another ends."""
SLOW_POST = {"point": "submit", "kind": "late", "seconds": 0.5}
# As in docker-compose.yml.
SUBMITTER = (
    *("worker", "-n", "submit@%h", "-P", "threads", "-c", "8"),
    *("-Q", "extend_video,extend_video.submit,extend_video.reconcile,extend_video.cancel"),
)
OTHERS: WorkerPlan = {
    "sweeper": ("-P", "threads", "-c", "1", "-Q", "extend_video.sweep"),
    "archiver": ("-P", "threads", "-c", "4", "-Q", "extend_video.archive"),
}
SETTINGS = {
    "MAX_IN_FLIGHT": str(AT_ONCE),
    "START_TIMEOUT_SECONDS": "3600",
    "LEASE_SECONDS": "60",
    # More often than usual, so that there are enough to find the slowest of a hundred.
    "SWEEP_SECONDS": "1",
    "DRAIN_SECONDS": "3",
}
FEW = 100
TENANTS = ("large", "medium", "regular")
SMALL, SMALL_JOBS = "small", 5
READY_SECONDS = 120.0
LOOK_SECONDS = 0.25
MINUTE = 60.0
INPUT = {"video_url": "http://127.0.0.1/never-fetched.mp4", "num_frames": 9}
SWEPT = "SELECT counted_at, seconds FROM tallies WHERE name = 'sweep'"


@dataclass
class Seen:
    """What was looked at again and again while jobs were bought."""

    messages: list[int] = field(default_factory=list)
    sweeps: dict[str, float] = field(default_factory=dict)
    """Seconds of each, by the time of its end."""
    rss: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Desk:
    deployment: Deployment
    emulator: Emulator
    db: Database
    broker: Broker
    submitter: Part
    bought: Path

    def fill(self, count: int) -> None:
        """Queue so many jobs, by SQL alone: no message tells of them."""
        dice = random.Random(count)  # noqa: S311 - prompts and seeds
        now = datetime.now(UTC) - timedelta(hours=1)
        rows = (make_job(dice, number, now) for number in range(count))
        for chunk in split(rows, 5_000):
            with self.db.transaction() as connection:
                insert_jobs(connection, chunk)
        with self.db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")

    def list_posts(self) -> list[dict[str, Any]]:
        read = self.emulator.client.get("/_emulator/ledger", timeout=60)
        return list(read.json()["posts"])

    def count_most_at_once(self) -> int:
        read = self.emulator.client.get("/_emulator/ledger", timeout=60)
        return int(read.json()["most_at_once"])

    def watch(self, seconds: float) -> Seen:
        seen, deadline = Seen(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            seen.messages.append(self._count_messages())
            seen.rss.append(measure_rss(self.submitter.process.pid))
            with self.db.reading() as connection:
                for ended, took in connection.exec_driver_sql(SWEPT):
                    seen.sweeps[str(ended)] = float(took)
            PAUSE.wait(LOOK_SECONDS)
        return seen

    def enqueue_small(self) -> None:
        """Another service's, while the backlog waits."""
        fields = build_request(SMALL, num_context_frames=5)
        words = ["enqueue", "--video", str(fields["video_url"]), "--tenant", SMALL]
        for number in range(SMALL_JOBS):
            said = f"tenant={SMALL} {number} of {time.monotonic_ns()}"
            ended = self.deployment.run(*words, "--priority", "100", "--prompt", said)
            if ended.returncode != 0:
                raise RuntimeError(ended.stderr)

    def _count_messages(self) -> int:
        with self.broker.connect() as redis:
            queues = [name for name in redis.keys("extend_video*") if redis.type(name) == b"list"]
            return sum(int(redis.llen(name)) for name in queues) + int(redis.hlen("unacked"))


def make_job(dice: random.Random, number: int, enqueued_at: datetime) -> dict[str, Any]:
    """As `enqueue` would have written it."""
    tenant = TENANTS[number % len(TENANTS)]
    given = complete_input({**INPUT, "prompt": f"tenant={tenant} {number} {dice.random()}"})
    return {
        "id": make_id(dice, enqueued_at),
        "state": "queued",
        "tenant": tenant,
        "labels": {},
        "endpoint": "fal-ai/ltx-2.3-22b/extend-video",
        "input": {**given.to_json(), "seed": dice.randrange(2**31)},
        "options": {},
        "fence": 0,
        "priority": 0,
        "due_at": enqueued_at,
        "enqueued_at": enqueued_at,
    }


def measure(plan: Plan) -> list[Figure]:
    """Once: its length is in seconds, not in rounds."""
    seconds = float(os.environ.get("ADMISSION_SECONDS", plan.pick(60, 8)))
    count = plan.pick(100_000, 2_000)
    figures = []
    with run_postgres(is_durable=True) as postgres:
        url = postgres.url_of(postgres.create_database())
        with open_desk(plan.directory / "postgresql", url) as desk:
            figures += measure_desk("postgresql", desk, count, seconds)
    url = f"sqlite:///{plan.directory / 'jobs.db'}"
    with open_desk(plan.directory / "sqlite", url) as desk:
        figures += measure_desk("sqlite", desk, count, min(seconds, MINUTE))
    return figures


@contextmanager
def open_desk(directory: Path, url: str) -> Iterator[Desk]:
    directory.mkdir()
    bought = directory / "bought"
    options = ("--render", "fake", "--concurrency", str(AT_ONCE), "--run-seconds", str(RUN_SECONDS))
    with ExitStack() as stack:
        broker = stack.enter_context(run_broker())
        yard = stack.enter_context(run_yard(directory))
        emulator = stack.enter_context(run_emulator(yard, *options))
        emulator.order(SLOW_POST)
        deployment = stack.enter_context(
            run_deployment(
                yard,
                emulator=emulator,
                fal_url=emulator.url,
                database_url=url,
                broker_url=broker.url,
                workers=OTHERS,
                changes=SETTINGS,
            )
        )
        command = [str(BIN / "python"), "-m", "benchmarks.harness.admissions", str(bought)]
        settings = {**deployment.settings, "PYTHONPATH": str(REPOSITORY)}
        submitter = yard.start("submitter", [*command, *SUBMITTER], settings)
        for name in ("submitter", *OTHERS):
            yard.parts[name].wait_for_log(" ready.", READY_SECONDS)
        db = stack.enter_context(closing(Database(url)))
        yield Desk(deployment, emulator, db, broker, submitter, bought)


def measure_desk(name: str, desk: Desk, count: int, seconds: float) -> list[Figure]:
    """First with few queued, then with the backlog."""
    desk.fill(FEW)
    wait_until(lambda: len(read_seconds(desk.bought)) >= FEW // 2, READY_SECONDS)
    few = read_seconds(desk.bought)
    desk.fill(count)
    skipped, began = len(read_seconds(desk.bought)), datetime.now(UTC)
    before = desk.watch(seconds / 2)
    desk.enqueue_small()
    after = desk.watch(seconds / 2)
    took = (datetime.now(UTC) - began).total_seconds()
    many = read_seconds(desk.bought, skipped)
    posts = [one for one in desk.list_posts() if datetime.fromisoformat(one["at"]) >= began]
    sweeps = list({**before.sweeps, **after.sweeps}.values())
    if not (few and many and posts and sweeps):
        raise RuntimeError(f"{name}: nothing was bought, or nobody swept")
    return [
        tell_pace(name, [datetime.fromisoformat(one["at"]) for one in posts], began, took),
        Figure(
            f"{name}: admission p50",
            "ms",
            (1000 * statistics.median(many),),
            (1000 * statistics.median(few),),
            f"{FEW} queued",
            Goal("<=", 1.5),
        ),
        Figure(
            f"{name}: sweep p99",
            "ms",
            (1000 * find_quantile(sweeps, 0.99),),
            goal=Goal("<", 200),
            remark=f"of {len(sweeps)}",
        ),
        Figure(
            f"{name}: most messages in the broker",
            "",
            (float(max(before.messages + after.messages)),),
            goal=Goal("<=", 300),
        ),
        Figure(
            f"{name}: most at fal at once",
            "",
            (float(desk.count_most_at_once()),),
            goal=Goal("<=", AT_ONCE),
        ),
        Figure(
            f"{name}: submitter's memory at the end",
            "MiB",
            (statistics.median(after.rss),),
            (statistics.median(before.rss),),
            "in the first half",
            Goal("<=", 1.2),
        ),
        tell_small(name, desk),
    ]


def tell_pace(name: str, times: Sequence[datetime], began: datetime, took: float) -> Figure:
    """Of the slowest whole minute; of all the time, if that was shorter."""
    length = min(took, MINUTE)
    starts = [began + timedelta(seconds=length * place) for place in range(int(took // length))]
    counts = [
        sum(start <= at < start + timedelta(seconds=length) for at in times) for start in starts
    ]
    return Figure(
        f"{name}: submissions a minute",
        "",
        (min(counts) * MINUTE / length,),
        (PACE,),
        "the account's pace",
        Goal(">=", 0.8),
        remark=f"in the slowest of {len(counts)}",
    )


def tell_small(name: str, desk: Desk) -> Figure:
    """How long the last of them waited for its POST, in lengths of a run."""
    deadline = time.monotonic() + 4 * RUN_SECONDS
    waits = list_small_waits(desk)
    while max(waits) == math.inf and time.monotonic() < deadline:
        PAUSE.wait(LOOK_SECONDS)
        waits = list_small_waits(desk)
    return Figure(
        f"{name}: a small tenant's job with priority waits",
        "runs",
        (max(waits) / RUN_SECONDS,),
        goal=Goal("<=", 2),
        remark=f"the last of {len(waits)}",
    )


def list_small_waits(desk: Desk) -> list[float]:
    select = f"SELECT enqueued_at, submitted_at FROM jobs WHERE tenant = '{SMALL}'"  # noqa: S608 - ours
    with desk.db.reading() as connection:
        return [read_wait(*row) for row in connection.exec_driver_sql(select)]


def read_wait(enqueued_at: object, submitted_at: object) -> float:
    """Seconds; one that was not submitted at all has waited for ever."""
    if submitted_at is None:
        return math.inf
    ends = [datetime.fromisoformat(str(at)) for at in (enqueued_at, submitted_at)]
    return (ends[1] - ends[0]).total_seconds()


ADMISSION = Question(
    "admission",
    "100,000 queued jobs at an account of ten at once",
    measure,
    sizes=("ADMISSION_SECONDS",),
)

if __name__ == "__main__":
    sys.exit(run_alone(ADMISSION))

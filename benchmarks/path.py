"""What our orchestration costs, from enqueue to archived: `make bench NAME=path`.

Ours and the reference each have a worker and a receiver of their own, of the same kind and size, on
the same PostgreSQL (which flushes), Redis and emulator, whose video is tiny and ready at once.
Rounds alternate; while one side works the other is idle.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
from celery import Celery

from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.meter import measure_cpu
from benchmarks.harness.report import REPOSITORY
from benchmarks.harness.run import run_alone
from tests.emulator.processes import Emulator
from tests.harness.processes import (
    BIN,
    Part,
    Yard,
    bind_listener,
    run_deployment,
    run_emulator,
    run_yard,
)
from tests.harness.servers import Postgres, run_broker, run_postgres
from tests.harness.waiting import wait_until

POOL = ("-P", "threads", "-c", "8", "--without-gossip", "--without-mingle")
EMULATOR = ("--render", "fake", "--concurrency", "1000")
PRODUCER = REPOSITORY / "tests" / "chaos" / "producer_script.py"
ENDLESS = "1000000000"
TIMEOUT_SECONDS = 180
JOB_REQUEST = {
    "prompt": "on it goes",
    "video_url": "http://127.0.0.1/never-fetched.mp4",
    "num_frames": 9,
    "num_context_frames": 5,
}
BARE_TABLES = (
    "CREATE TABLE requests (id uuid PRIMARY KEY, input jsonb NOT NULL, fal_request_id text)",
    "CREATE TABLE webhooks (job_id uuid NOT NULL, body bytea NOT NULL)",
    "CREATE TABLE videos (job_id uuid PRIMARY KEY, url text NOT NULL, path text)",
)


@dataclass(frozen=True)
class Side:
    """One of the two: how its jobs are sent, how many are done, and what works for it."""

    send: Callable[[int], None]
    count_done: Callable[[], int]
    daemons: tuple[Part, ...]

    def run(self, jobs: int) -> dict[str, float]:
        """Send so many jobs, and wait until their videos are there."""
        pids = [part.process.pid for part in self.daemons]
        expected = self.count_done() + jobs
        cpu, began = measure_cpu(*pids), time.monotonic()
        self.send(jobs)
        wait_until(lambda: self.count_done() >= expected, TIMEOUT_SECONDS)
        seconds = time.monotonic() - began
        return {"rate": jobs / seconds, "cpu": 1000 * (measure_cpu(*pids) - cpu) / jobs}


def measure(plan: Plan) -> list[Figure]:
    jobs = plan.pick(60, 4)
    with run_sides(plan.directory) as sides:
        for side in sides.values():
            side.run(plan.pick(20, 1))
        rounds = plan.alternate({name: partial(side.run, jobs) for name, side in sides.items()})
    ours, bare = rounds["ours"], rounds["bare"]
    return [
        Figure(
            "CPU a job, worker + receiver", "ms", ours["cpu"], bare["cpu"], "bare", Goal("<=", 1.5)
        ),
        Figure("jobs a second", "1/s", ours["rate"], bare["rate"], "bare", Goal(">=", 0.6)),
    ]


@contextmanager
def run_sides(directory: Path) -> Iterator[dict[str, Side]]:
    """Both whole, and idle."""
    with ExitStack() as stack:
        postgres = stack.enter_context(run_postgres(is_durable=True))
        yard = stack.enter_context(run_yard(directory))
        emulator = stack.enter_context(run_emulator(yard, *EMULATOR))
        ours = stack.enter_context(run_ours(yard, postgres, emulator))
        bare = stack.enter_context(run_bare(yard, postgres, emulator))
        for side in (ours, bare):
            side.daemons[0].wait_for_log(" ready.")
        yield {"ours": ours, "bare": bare}


@contextmanager
def run_ours(yard: Yard, postgres: Postgres, emulator: Emulator) -> Iterator[Side]:
    name = postgres.create_database()
    with (
        run_broker() as broker,
        run_deployment(
            yard,
            emulator=emulator,
            fal_url=emulator.url,
            database_url=postgres.url_of(name),
            broker_url=broker.url,
            workers={"worker": POOL},
            changes={"LEASE_SECONDS": "60", "SWEEP_SECONDS": "5"},
        ) as deployment,
        connect(postgres.url_of(name)) as count,
    ):

        def send(jobs: int) -> None:
            command = [str(BIN / "python"), "-I", str(PRODUCER), ENDLESS, str(jobs), "0"]
            yard.run(command, deployment.settings, TIMEOUT_SECONDS).check_returncode()

        daemons = (yard.parts["worker"], yard.parts["receiver"])
        yield Side(
            send, partial(count, "SELECT count(*) FROM jobs WHERE state = 'archived'"), daemons
        )


@contextmanager
def run_bare(yard: Yard, postgres: Postgres, emulator: Emulator) -> Iterator[Side]:
    url = postgres.url_of(postgres.create_database())
    (yard.directory / "bare").mkdir()
    with run_broker() as broker, bind_listener() as listener, connect(url) as count:
        host, port = listener.getsockname()
        settings = {
            "DATABASE_URL": url,
            "BROKER_URL": broker.url,
            "FAL_KEY": "emulator-key",
            "FAL_QUEUE_URL": emulator.url,
            "WEBHOOK_BASE_URL": f"http://{host}:{port}",
            "ARCHIVE": str(yard.directory / "bare"),
            "PYTHONPATH": str(REPOSITORY),
        }
        celery = [str(BIN / "celery"), "-A", "benchmarks.reference.bare", "worker"]
        celery += ["--loglevel", "INFO", *POOL]
        gunicorn = [str(BIN / "gunicorn"), "--bind", f"fd://{listener.fileno()}", "--threads", "4"]
        gunicorn += ["--no-control-socket", "benchmarks.reference.bare:create_app()"]
        daemons = (
            yard.start("bare worker", celery, settings),
            yard.start("bare receiver", gunicorn, settings, [listener.fileno()]),
        )
        with Celery("producer", broker=broker.url, set_as_current=False) as app:

            def send(jobs: int) -> None:
                for _ in range(jobs):
                    app.send_task("bare.submit", args=[str(uuid4()), JOB_REQUEST])

            yield Side(send, partial(count, "SELECT count(path) FROM videos"), daemons)


@contextmanager
def connect(url: str) -> Iterator[Callable[[str], int]]:
    """Counts with one connection; makes the bare tables where there are none."""
    address = url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(address, autocommit=True) as connection:

        def count(statement: str) -> int:
            found = connection.execute(statement.encode()).fetchone()
            return 0 if found is None else int(found[0])

        if not count("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"):
            for statement in BARE_TABLES:
                connection.execute(statement.encode())
        yield count


PATH = Question(
    "path",
    "what does our orchestration cost, from enqueue to archived, beside a bare chain?",
    measure,
)

if __name__ == "__main__":
    sys.exit(run_alone(PATH))

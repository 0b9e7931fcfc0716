"""Webhooks into the table: how many a second, and how long each takes at a steady rate.

Every webhook is signed, the first of a job that waits for it, and is on disk before it is answered.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.load import Answers, Load, find_quantile, run_load
from benchmarks.harness.run import run_alone
from benchmarks.harness.webhooks import Served, run_gunicorn, run_receiver
from tests.harness.processes import Yard, run_yard
from tests.harness.servers import Postgres, run_broker, run_postgres
from worker.jobs.states import JobState

STEADY_RATE = 200
Send = Callable[[int, float | None], Answers]


def measure(plan: Plan) -> list[Figure]:
    with run_both(plan.directory) as (ours, reference):
        for send in (ours, reference):
            send(plan.pick(300, 100), None)
        found = plan.alternate(
            {
                "ours": partial(measure_one, plan, ours),
                "flask": partial(measure_one, plan, reference),
            }
        )
    ours_found, flask = found["ours"], found["flask"]
    return [
        Figure(
            "as fast as they are answered",
            "requests/s",
            ours_found["rate"],
            flask["rate"],
            goal=Goal(">=", 0.7),
        ),
        Figure("p99 at 200/s", "ms", ours_found["p99"], goal=Goal("<", 50)),
        *(
            Figure(f"{name} at 200/s, beside", "ms", ours_found[name], flask[name])
            for name in ("p50", "p99")
        ),
    ]


def measure_one(plan: Plan, send: Send) -> dict[str, float]:
    fast = send(plan.pick(600, 100), None)
    steady = send(plan.pick(4 * STEADY_RATE, 100), STEADY_RATE)
    return {
        "rate": fast.rate,
        "p50": 1000 * find_quantile(steady.latencies, 0.5),
        "p99": 1000 * find_quantile(steady.latencies, 0.99),
    }


@contextmanager
def run_both(directory: Path) -> Iterator[tuple[Send, Send]]:
    """Ours and the reference on one PostgreSQL; the one that gets no requests is idle."""
    with (
        run_postgres(is_durable=True) as postgres,
        run_broker() as broker,
        run_yard(directory) as yard,
        run_receiver(yard, postgres, broker) as (jobs, ours),
        run_reference(yard, postgres) as reference,
    ):

        def send_ours(amount: int, rate: float | None) -> Answers:
            completed = jobs.count(JobState.COMPLETED)
            answers = send_all(ours.build_load(jobs.sign(amount), rate), directory)
            if jobs.count(JobState.COMPLETED) != completed + amount:
                raise RuntimeError("webhooks that were answered with 200 are not in the table")
            return answers

        def send_reference(amount: int, rate: float | None) -> Answers:
            return send_all(reference.build_load(jobs.sign(amount), rate), directory)

        yield send_ours, send_reference


@contextmanager
def run_reference(yard: Yard, postgres: Postgres) -> Iterator[Served]:
    settings = {"DATABASE_URL": postgres.url_of(postgres.create_database())}
    application = "benchmarks.reference.flask_insert:create_app()"
    with run_gunicorn(yard, "reference", application, settings) as served:
        yield served


def send_all(load: Load, directory: Path) -> Answers:
    answers = run_load(load, directory)
    answers.check()
    return answers


RECEIVE = Question(
    "receive", "how fast is a webhook received and committed, beside bare Flask?", measure
)

if __name__ == "__main__":
    sys.exit(run_alone(RECEIVE))

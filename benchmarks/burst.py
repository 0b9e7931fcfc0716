"""A burst of webhooks, sent at fixed times whether or not the earlier ones are answered.

Afterwards every job must be completed in the table: what was answered with 200 is there.
"""

import sys

from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.load import find_quantile, run_load
from benchmarks.harness.run import run_alone
from benchmarks.harness.webhooks import Served, WaitingJobs, run_receiver
from tests.harness.processes import run_yard
from tests.harness.servers import run_broker, run_postgres
from worker.jobs.states import JobState

SECONDS = 10


def measure(plan: Plan) -> list[Figure]:
    with (
        run_postgres(is_durable=True) as postgres,
        run_broker() as broker,
        run_yard(plan.directory) as yard,
        run_receiver(yard, postgres, broker) as (jobs, ours),
    ):
        run_load(ours.build_load(jobs.sign(plan.pick(300, 100))), plan.directory)
        # Once: where they are answered slowly, it takes more than a minute.
        found = measure_one(plan, jobs, ours)
    names = {
        "lost": ("", Goal("<=", 0)),
        "refused": ("", Goal("<=", 0)),
        "p99": ("s", Goal("<", 2)),
    }
    figures = [
        Figure(name, unit, (found[name],), goal=goal) for name, (unit, goal) in names.items()
    ]
    answered = Figure("answered", "requests/s", (found["rate"],))
    return [*figures, answered]


def measure_one(plan: Plan, jobs: WaitingJobs, ours: Served) -> dict[str, float]:
    amount = plan.pick(10_000, 100)
    completed = jobs.count(JobState.COMPLETED)
    rate = plan.pick(10_000 // SECONDS, 100)
    answers = run_load(ours.build_load(jobs.sign(amount), rate), plan.directory)
    return {
        "lost": amount - (jobs.count(JobState.COMPLETED) - completed),
        "refused": amount - answers.statuses.get("200", 0),
        "p99": find_quantile(answers.latencies, 0.99),
        "rate": answers.rate,
    }


BURST = Question("burst", "do 10,000 webhooks in 10 s all arrive, and how late?", measure)

if __name__ == "__main__":
    sys.exit(run_alone(BURST))

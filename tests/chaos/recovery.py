"""Experiment 5: everything is killed with a crowd of jobs in flight, and started again."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from time import monotonic

from tests.chaos.plan import Plan
from tests.chaos.report import Finding
from tests.chaos.rounds import Round
from tests.chaos.site import SUBMITTER, Site
from tests.harness.waiting import wait_until

LIMIT = 300
GRACE = timedelta(seconds=10)
ARCHIVED_BEFORE_KILL = 0.1
"""The kill comes when this part of the jobs is archived: the others are in every state then."""


def recover_crowd(site: Site, plan: Plan) -> Iterator[Finding]:
    """Time counts from the moment that the daemons, started again, are ready."""
    crowd = Round(site, f"everything killed with {plan.crowd:,} jobs in flight")
    lease = timedelta(seconds=float(site.deployment.settings["LEASE_SECONDS"]))
    with site.supervisor.holding_down(SUBMITTER):
        site.enqueue_all(plan.crowd)
    wanted = plan.crowd * ARCHIVED_BEFORE_KILL
    wait_until(lambda: site.count_archived() >= wanted, LIMIT)
    with site.supervisor.power_cut():
        crowd.remarks.append(describe_states(count_states(site)))
    restarted, began = datetime.now(UTC), monotonic()
    site.wait_for_ready()
    ready = monotonic()
    wait_until(lambda: not list_unmoved(site, restarted), LIMIT)
    moving = monotonic() - ready
    crowd.remarks.append(
        f"daemons ready again after {ready - began:.1f} s, every job moving {moving:.1f} s later "
        f"with a lease of {lease.seconds} s"
    )
    if moving > (lease + GRACE).total_seconds():
        crowd.problems.append(f"it took {moving:.1f} s until every job moved")
    yield crowd.finish()


def count_states(site: Site) -> dict[str, int]:
    rows = site.table.select(
        "SELECT state, count(*) AS n FROM jobs WHERE due_at IS NOT NULL GROUP BY state"
    )
    return {row["state"]: int(row["n"]) for row in rows}


def describe_states(states: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def list_unmoved(site: Site, since: datetime) -> list[object]:
    """Jobs that have not ended, and to which nothing has happened since."""
    offset = "" if site.postgres is None else "+00"
    when = f"'{since:%Y-%m-%d %H:%M:%S.%f}{offset}'"
    return [
        row["id"]
        for row in site.table.select(
            f"SELECT id FROM jobs WHERE due_at IS NOT NULL AND NOT EXISTS ("
            f"SELECT 1 FROM events WHERE events.job_id = jobs.id AND events.at >= {when})"
        )
    ]

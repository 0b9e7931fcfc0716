"""Experiment 3: the database goes away under load, and comes back."""

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import httpx

from tests.chaos.plan import Plan
from tests.chaos.report import Finding
from tests.chaos.rounds import Round
from tests.chaos.site import Site
from tests.harness.servers import Postgres
from tests.harness.waiting import PAUSE

CALM_SECONDS = 4.0
RECOVERY = timedelta(seconds=10)
WINDOW = timedelta(seconds=1)
STEP = timedelta(seconds=0.1)
KILL_PAUSE = 0.5
UNAVAILABLE = 503


def interrupt_database(site: Site, plan: Plan) -> Iterator[Finding]:
    if site.postgres is None:
        yield lock_sqlite(site, plan)
        return
    yield stop_postgres(site, site.postgres, plan)
    yield kill_backends(site, site.postgres, plan)


def stop_postgres(site: Site, postgres: Postgres, plan: Plan) -> Finding:
    stopped = Round(site, f"PostgreSQL crashed, away {plan.outage_seconds:g} s")
    with stopped.loaded(plan.pace):
        PAUSE.wait(CALM_SECONDS)
        hold_webhooks(site)
        began = datetime.now(UTC)
        postgres.stop()
        let_webhooks_go(site)
        if (answer := ask_ready(site)) != UNAVAILABLE:
            stopped.problems.append(f"/readyz answered {answer} while it was away")
        PAUSE.wait(plan.outage_seconds)
        postgres.start()
        finish_outage(stopped, began)
    return conclude(stopped)


def kill_backends(site: Site, postgres: Postgres, plan: Plan) -> Finding:
    killed = Round(site, f"PostgreSQL's backends killed for {plan.outage_seconds:g} s")
    with killed.loaded(plan.pace):
        PAUSE.wait(CALM_SECONDS)
        began = datetime.now(UTC)
        for _ in range(int(plan.outage_seconds / KILL_PAUSE)):
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            PAUSE.wait(KILL_PAUSE)
        finish_outage(killed, began)
    return conclude(killed)


def lock_sqlite(site: Site, plan: Plan) -> Finding:
    locked = Round(site, f"SQLite locked by a writer for {plan.lock_seconds:g} s")
    with locked.loaded(plan.pace):
        PAUSE.wait(CALM_SECONDS)
        began = datetime.now(UTC)
        path = site.database_url.removeprefix("sqlite:///")
        with sqlite3.connect(path, isolation_level=None) as writer:
            hold_webhooks(site)
            writer.execute("BEGIN IMMEDIATE")
            let_webhooks_go(site)
            PAUSE.wait(plan.lock_seconds)
            writer.rollback()
        writer.close()
        finish_outage(locked, began)
    return conclude(locked)


def hold_webhooks(site: Site) -> None:
    """Some stand before the receiver's door when the database goes away."""
    site.emulator.arm({"point": "webhook_sending"})
    assert site.emulator.wait_for_held()


def let_webhooks_go(site: Site) -> None:
    site.emulator.client.delete("/_emulator/hooks").raise_for_status()


def finish_outage(harmed: Round, began: datetime) -> None:
    """Load goes on for as long as throughput may take to return."""
    harmed.outage = (began, datetime.now(UTC))
    harmed.site.table.engine.dispose()
    PAUSE.wait((RECOVERY + WINDOW).total_seconds())


def conclude(harmed: Round) -> Finding:
    assert harmed.outage is not None
    began, ended = harmed.outage
    rows = harmed.site.table.select("SELECT archived_at FROM jobs WHERE archived_at IS NOT NULL")
    recovery = measure_recovery(sorted(row["archived_at"] for row in rows), began, ended)
    if recovery is None:
        harmed.problems.append(f"throughput did not return within {RECOVERY.seconds} s")
    else:
        harmed.remarks.append(f"throughput back after {recovery.total_seconds():.1f} s")
    answers = read_answers(harmed.site, began)
    harmed.remarks.append(f"{answers.count(UNAVAILABLE)} webhooks answered 503")
    return harmed.finish()


def measure_recovery(
    archived: Sequence[datetime], began: datetime, ended: datetime
) -> timedelta | None:
    """When, after the end, a second has had half as many archived jobs as one before the outage."""
    calm = timedelta(seconds=CALM_SECONDS)
    before = sum(began - calm <= at < began for at in archived) / CALM_SECONDS
    waited = timedelta()
    while waited <= RECOVERY:
        until = ended + waited
        if sum(max(ended, until - WINDOW) < at <= until for at in archived) >= before / 2 > 0:
            return waited
        waited += STEP
    return None


def ask_ready(site: Site) -> int:
    url = site.deployment.settings["WEBHOOK_BASE_URL"]
    return httpx.get(f"{url}/readyz", timeout=20, trust_env=False).status_code


def read_answers(site: Site, since: datetime) -> list[int | None]:
    """What the receiver has said to every webhook POST."""
    deliveries = [one for request in site.emulator.list_requests() for one in request["deliveries"]]
    return [one["status_code"] for one in deliveries if datetime.fromisoformat(one["at"]) >= since]

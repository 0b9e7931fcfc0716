"""Experiment 4: webhooks are lost, repeated, too early, too late, out of order, or not genuine."""

from collections.abc import Iterator, Mapping

from sqlalchemy import DateTime, MetaData, text

from tests.chaos.plan import Plan
from tests.chaos.report import Finding
from tests.chaos.rounds import Round
from tests.chaos.site import PATIENCE_SECONDS, SUBMITTER, Site
from tests.harness.waiting import wait_until

HOURS_LATE = 2
HOLD_SECONDS = 600
EARLIER = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', {}, '-{} hours')",
    "postgresql": "{} - interval '{} hours'",
}
FAULTS: Mapping[str, Mapping[str, object]] = {
    "all webhooks lost": {"kind": "lost"},
    "webhooks sent five times at once": {"kind": "repeat", "count": 5},
    "webhooks before the reply": {"kind": "early"},
    "webhooks out of order": {"kind": "reorder", "seconds": 2},
    "webhooks signed too long ago": {"kind": "stale"},
    "forged webhooks before the genuine": {"kind": "forged", "also": True},
}


def disturb_webhooks(site: Site, plan: Plan) -> Iterator[Finding]:
    for name, fault in FAULTS.items():
        disturbed = Round(site, name)
        site.emulator.order({"point": "webhook", **fault})
        site.enqueue_all(plan.jobs)
        yield disturbed.finish()
    site.emulator.order()
    yield delay_webhooks(site, plan)
    yield delay_webhooks_after_poll(site, plan)


def delay_webhooks(site: Site, plan: Plan) -> Finding:
    """Two hours pass without the worker that asks fal; and the queue API has forgotten all."""
    late = Round(site, f"webhooks {HOURS_LATE} h late, and fal not asked before")
    hold_webhooks(site)
    site.emulator.order({"point": "status", "kind": "stuck"})
    submitted = site.count_events("submitted")
    site.enqueue_all(plan.jobs)
    wait_until(lambda: site.count_events("submitted") >= submitted + plan.jobs, PATIENCE_SECONDS)
    with site.supervisor.holding_down(SUBMITTER):
        site.emulator.order()
        waiting = site.count_live()
        make_older(site, HOURS_LATE)
        forget_results(site)
        completed = site.count_events("completed")
        let_webhooks_go(site)
        wait_until(lambda: site.count_events("completed") >= completed + waiting, PATIENCE_SECONDS)
    late.remarks.append(f"{waiting} jobs were waiting for theirs")
    return late.finish()


def delay_webhooks_after_poll(site: Site, plan: Plan) -> Finding:
    """The jobs have ended by asking fal; then the webhooks come."""
    late = Round(site, f"webhooks {HOURS_LATE} h late, long after fal was asked")
    hold_webhooks(site)
    archived = site.count_archived()
    site.enqueue_all(plan.jobs)
    wait_until(lambda: site.count_archived() >= archived + plan.jobs, PATIENCE_SECONDS)
    make_older(site, HOURS_LATE)
    before = count_deliveries(site)
    let_webhooks_go(site)
    wait_until(lambda: count_deliveries(site) >= before + plan.jobs, PATIENCE_SECONDS)
    return late.finish()


def hold_webhooks(site: Site) -> None:
    site.emulator.arm({"point": "webhook_sending", "hold_seconds": HOLD_SECONDS})


def let_webhooks_go(site: Site) -> None:
    site.emulator.client.delete("/_emulator/hooks").raise_for_status()


def count_deliveries(site: Site) -> int:
    return int(site.table.select("SELECT count(*) AS n FROM deliveries")[0]["n"])


def forget_results(site: Site) -> None:
    """As fal does an hour after the end: the queue API knows none of the requests any more."""
    for request in site.emulator.list_requests():
        path = f"/_emulator/requests/{request['request_id']}/erase"
        site.emulator.client.post(path).raise_for_status()


def make_older(site: Site, hours: int) -> None:
    """Instead of waiting: every time in the job table becomes so much earlier."""
    schema = MetaData()
    schema.reflect(site.table.engine)
    earlier = EARLIER[site.table.engine.dialect.name]
    with site.table.engine.begin() as connection:
        for table in schema.sorted_tables:
            names = [one.name for one in table.columns if isinstance(one.type, DateTime)]
            changes = ", ".join(f"{name} = {earlier.format(name, hours)}" for name in names)
            if changes:
                connection.execute(text(f"UPDATE {table.name} SET {changes}"))

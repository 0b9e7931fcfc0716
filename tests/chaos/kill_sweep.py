"""Experiment 1: every daemon is killed, again and again, at every point of the path."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tests.chaos.aims import AT_RANDOM
from tests.chaos.hunting import Pack
from tests.chaos.plan import Plan
from tests.chaos.report import Finding
from tests.chaos.rounds import MOST_LIVE, Round
from tests.chaos.site import Site
from tests.harness.waiting import PAUSE

WISH_PAUSE = 0.5
LOST_WEBHOOKS = {"point": "webhook", "kind": "lost", "rate": 0.2}
"""So that fal is asked for a result, too, and workers can be killed while they ask."""


def sweep_kills(site: Site, plan: Plan) -> Iterator[Finding]:
    """Producers commit jobs at a steady pace; some wishes come by Celery alone."""
    site.emulator.order(LOST_WEBHOOKS)
    pack = Pack(site, plan.seed, plan.kills)
    sweep = Round(site, "kill sweep")
    with sweep.loaded(plan.pace), ThreadPoolExecutor(1) as thread:
        hunt = thread.submit(pack.hunt)
        try:
            while not hunt.done():
                if site.count_live() < MOST_LIVE:
                    site.send_wish()
                PAUSE.wait(WISH_PAUSE)
        finally:
            # Whoever interrupts the sweep does not wait for all its kills.
            pack.enough.set()
        hunt.result()
    strikes = met_moments(pack)
    sweep.remarks.append(f"{sum(strikes)} strikes at {len(strikes)} moments, the others at random")
    details = [f"{times} times {moment}" for moment, times in sorted(pack.tally.items())]
    yield replace(sweep.finish(), details=details)


def met_moments(pack: Pack) -> list[int]:
    """How often each moment that is not mere chance was met."""
    return [times for moment, times in pack.tally.items() if not moment.endswith(AT_RANDOM)]

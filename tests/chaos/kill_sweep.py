"""Experiment 1: every daemon is killed, again and again, at every point of the path."""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle
from math import inf
from time import monotonic

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
LATE_GATEWAY = {
    "point": "submit",
    "kind": "execute_then_ingress",
    "code": 504,
    "seconds": 0.5,
    "rate": 0.03,
}
LOST_POST = {"point": "submit", "kind": "drop", "times": 1}
"""To the worker as unclear as the late gateway, but it was not queued and has to be sent again."""
LAG = {"point": "listing", "kind": "lag", "seconds": 5}
"""Shorter than the wait for any verdict: no listing that is further behind can be seen through."""
UNREADABLE = (
    {"point": "listing", "kind": "status", "code": 401},
    {"point": "listing", "kind": "omit_payloads"},
    {"point": "listing", "kind": "cut", "form": "no_cursor", "items": 10},
)
SPELL_SECONDS = 10


@dataclass
class Listing:
    """fal's, by turns behind and of no use; each time the first POST is lost on its way to fal."""

    site: Site
    fired: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault was met."""
    _spells: Iterator[Mapping[str, object]] = field(
        default_factory=lambda: cycle(one for fault in UNREADABLE for one in (LAG, fault))
    )
    _ends: float = -inf

    def turn(self) -> None:
        """The next spell, once the present one is over."""
        if monotonic() >= self._ends:
            self.change(next(self._spells), LOST_POST)
            self._ends = monotonic() + SPELL_SECONDS

    def change(self, *faults: Mapping[str, object]) -> None:
        """Each list of faults counts anew."""
        for fault in self.site.emulator.client.get("/_emulator/faults").json():
            self.fired[fault["kind"]] += fault["fired"]
        self.site.emulator.order(LOST_WEBHOOKS, LATE_GATEWAY, *faults)

    def describe(self) -> str:
        late, lost = self.fired["execute_then_ingress"], self.fired["drop"]
        spoilt = sum(self.fired[str(fault["kind"])] for fault in UNREADABLE)
        return (
            f"{late} POSTs answered 504 late and {lost} lost, {spoilt} pages of the listing of no "
            f"use, {self.site.count_held()} jobs held when that ended"
        )


def sweep_kills(site: Site, plan: Plan) -> Iterator[Finding]:
    """Producers commit jobs at a steady pace; some wishes come by Celery alone."""
    listing = Listing(site)
    listing.turn()
    pack = Pack(site, plan.seed, plan.kills)
    sweep = Round(site, "kill sweep")
    with sweep.loaded(plan.pace), ThreadPoolExecutor(1) as thread:
        hunt = thread.submit(pack.hunt)
        try:
            while not hunt.done():
                listing.turn()
                if site.count_live() < MOST_LIVE:
                    site.send_wish()
                PAUSE.wait(WISH_PAUSE)
        finally:
            # Whoever interrupts the sweep does not wait for all its kills.
            pack.enough.set()
        hunt.result()
    # Jobs that are held for want of a listing are resolved once there is one.
    listing.change()
    strikes = met_moments(pack)
    sweep.remarks.append(f"{sum(strikes)} strikes at {len(strikes)} moments, the others at random")
    sweep.remarks.append(listing.describe())
    details = [f"{times} times {moment}" for moment, times in sorted(pack.cached_count.items())]
    yield replace(sweep.finish(), details=details)


def met_moments(pack: Pack) -> list[int]:
    """How often each moment that is not mere chance was met."""
    return [times for moment, times in pack.cached_count.items() if not moment.endswith(AT_RANDOM)]

"""Experiment 6: a gateway gives up waiting for fal after it has passed each submission on."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from tests.chaos.plan import Plan
from tests.chaos.report import Finding
from tests.chaos.rounds import Round
from tests.chaos.site import Site

JOBS = 5
LATE_GATEWAY = {"point": "submit", "kind": "execute_then_ingress", "code": 504, "seconds": 1}
NO_WEBHOOK = {"point": "webhook", "kind": "lost"}
ROUNDS: Mapping[str, tuple[Mapping[str, object], ...]] = {
    "504 after each POST was passed on": (LATE_GATEWAY,),
    "the same, and all webhooks lost": (LATE_GATEWAY, NO_WEBHOOK),
}


def answer_late(site: Site, _plan: Plan) -> Iterator[Finding]:
    """No reply ever says that a job was accepted: a webhook does, or fal's listing alone."""
    for name, faults in ROUNDS.items():
        late = Round(site, name)
        site.emulator.order(*faults)
        before = count_charges(site)
        site.enqueue_all(JOBS)
        finding = late.finish()
        charges = count_charges(site) - before
        wrong = [f"{charges} charges for {JOBS} jobs"] if charges != JOBS else []
        yield replace(finding, problems=[*finding.problems, *wrong])


def count_charges(site: Site) -> int:
    return int(site.emulator.client.get("/_emulator/ledger").json()["charges"])

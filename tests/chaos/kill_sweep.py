"""Experiment 1: every daemon is killed, again and again, at every point of the path."""

from dataclasses import dataclass
from time import monotonic

from tests.chaos.hunting import Pack
from tests.chaos.judge import judge_site
from tests.chaos.report import Finding
from tests.chaos.site import Site, drain

WISH_EVERY = 2


@dataclass(frozen=True)
class KillSweep:
    kills: int
    pace: float
    seed: int = 7
    drain_limit: float = 90

    def run(self, site: Site) -> tuple[Finding, Pack]:
        pack = Pack(site, self.seed, self.kills)
        site.start_producer(self.pace)
        pack.hunt()
        site.end_producers()
        began = monotonic()
        drain(site, self.drain_limit)
        seconds = monotonic() - began
        judgement = judge_site(site)
        return Finding(
            "kill sweep",
            site.database,
            judgement.jobs,
            site.supervisor.kills.total(),
            len(judgement.lost),
            len(judgement.paid_twice),
            seconds,
            "",
            judgement.problems,
        ), pack

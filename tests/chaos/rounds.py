"""One row of the table: some jobs, one kind of harm, and what became of the jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from uuid import UUID

from tests.chaos.judge import judge_site
from tests.chaos.report import Finding
from tests.chaos.site import PATIENCE_SECONDS, Site
from tests.harness.waiting import PAUSE, wait_until

STALL_SECONDS = 90
"""For so long nothing ends: twice UNKNOWN_SECONDS, and then some."""
LOOK_SECONDS = 0.1
MOST_LIVE = 80
"""A slow machine gets fewer jobs, not a backlog."""


@dataclass
class Round:
    """Begins with its making. Jobs of earlier rounds on the same site are not its own."""

    site: Site
    experiment: str
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    outage: tuple[datetime, datetime] | None = None
    _known: set[UUID] = field(default_factory=set)
    _kills: int = 0

    def __post_init__(self) -> None:
        self._known = set(self.site.list_expected())
        self._kills = self.site.supervisor.kills.total()

    @contextmanager
    def loaded(self, pace: float, most_live: int = MOST_LIVE) -> Iterator[None]:
        """A producer commits so many jobs a second until the block is left."""
        self.site.start_producer(pace, most_live=most_live)
        before = self.site.count_archived()
        wait_until(lambda: self.site.count_archived() > before + pace, PATIENCE_SECONDS)
        yield
        self.site.end_producers()

    def finish(self) -> Finding:
        """Wait until every job has ended, and judge."""
        began = monotonic()
        drain(self.site)
        seconds = monotonic() - began
        judgement = judge_site(self.site)
        fresh = [one for one in judgement.problems if one not in self.site.told]
        self.site.told.update(fresh)
        return Finding(
            self.experiment,
            self.site.database,
            jobs=len(set(self.site.list_expected()) - self._known),
            kills=self.site.supervisor.kills.total() - self._kills,
            lost=len(set(judgement.lost) - self._known),
            paid_twice=len(set(judgement.paid_twice) - self._known),
            drain_seconds=seconds,
            remarks="; ".join(self.remarks),
            problems=[*self.problems, *fresh],
        )


def drain(site: Site) -> None:
    """Wait until every promised job has ended, or nothing moves: the judge says what is lost."""
    site.send_lost_wishes_again()
    expected = len(site.list_expected())
    moved, last_move = -1, monotonic()
    while site.count_jobs() < expected or site.count_live():
        if (now_moved := site.count_ended()) != moved:
            moved, last_move = now_moved, monotonic()
        if monotonic() - last_move > STALL_SECONDS:
            return
        PAUSE.wait(LOOK_SECONDS)

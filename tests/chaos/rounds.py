"""One row of the table: some jobs, one kind of harm, and what became of the jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from uuid import UUID

from tests.chaos.judge import judge_site
from tests.chaos.report import Finding
from tests.chaos.site import Site
from tests.harness.waiting import wait_until

DRAIN_SECONDS = 90


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
    def loaded(self, pace: float) -> Iterator[None]:
        """A producer commits so many jobs a second until the block is left."""
        self.site.start_producer(pace)
        before = self.site.count_archived()
        wait_until(lambda: self.site.count_archived() > before + pace)
        yield
        self.site.end_producers()

    def finish(self, drain_limit: float = DRAIN_SECONDS) -> Finding:
        """Wait until every job has ended, and judge."""
        began = monotonic()
        drain(self.site, drain_limit)
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


def drain(site: Site, seconds: float) -> None:
    """Wait until every promised job has ended; gives up silently: the judge says what is lost."""
    site.send_lost_wishes_again()
    expected = len(site.list_expected())
    try:
        wait_until(lambda: site.count_jobs() >= expected and site.count_live() == 0, seconds)
    except AssertionError:
        return

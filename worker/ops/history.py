"""What `events` add up to: transitions by reason, phases as histograms, bytes archived; pure.

Events are added once each, in the order of their ids, so the sums only grow. A transaction may
commit an id after a higher one: ids that are missing are looked for again for a while.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

from worker.jobs.states import JobState
from worker.jobs.stats import CountedEvent

# Seconds; the last bucket holds whatever took longer.
BOUNDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600, 86400)
SUBMIT, RUN, ARCHIVE, WHOLE = "submit", "run", "archive", "whole"
PHASES = (SUBMIT, RUN, ARCHIVE, WHOLE)
# From here the webhook overtakes the reply, or stands for a lost one: `submitted` is passed over.
PASSED_OVER = frozenset({JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN})
# No transaction is open for so long.
GAP_PATIENCE = timedelta(minutes=5)
MOST_GAPS = 500


@dataclass
class Distribution:
    """How many took how long: one count for each bound, and one for what is beyond."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


@dataclass
class History:
    """The sums up to the event `cursor`; `gaps` are lower ids that may still come, until when."""

    cursor: int = 0
    gaps: dict[int, float] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    phases: dict[str, Distribution] = field(
        default_factory=lambda: {name: Distribution() for name in PHASES}
    )
    archive_bytes: int = 0

    @classmethod
    def load(cls, value: dict[str, Any]) -> Self:
        phases = {
            name: Distribution(list(one["counts"]), one["seconds"])
            for name, one in value["phases"].items()
        }
        gaps = {int(missing): until for missing, until in value["gaps"].items()}
        sums = (dict(value["reasons"]), phases, value["archive_bytes"])
        return cls(value["cursor"], gaps, *sums)

    def dump(self) -> dict[str, Any]:
        return {
            "cursor": self.cursor,
            "gaps": {str(missing): until for missing, until in self.gaps.items()},
            "reasons": self.reasons,
            "phases": {
                name: {"counts": one.counts, "seconds": one.seconds}
                for name, one in self.phases.items()
            },
            "archive_bytes": self.archive_bytes,
        }

    def add(self, events: Sequence[CountedEvent], now: datetime) -> None:
        """Add events that were found after the cursor or in the gaps."""
        for event in events:
            self._add_event(event)
        self._note_gaps([event for event in events if event.id > self.cursor], now)
        found = {event.id for event in events}
        self.gaps = {
            missing: until
            for missing, until in self.gaps.items()
            if missing not in found and until > now.timestamp()
        }
        self.cursor = max([self.cursor, *found])

    def _note_gaps(self, later: Iterable[CountedEvent], now: datetime) -> None:
        """Only among recent events: what is missing among old ones was rolled back or removed."""
        before = self.cursor
        for event in later:
            room = MOST_GAPS - len(self.gaps)
            if now - event.at < GAP_PATIENCE and room > 0:
                until = (now + GAP_PATIENCE).timestamp()
                missing = range(before + 1, event.id)
                self.gaps |= dict.fromkeys(missing[-room:], until)
            before = event.id

    def _add_event(self, event: CountedEvent) -> None:
        self.reasons[event.reason] = self.reasons.get(event.reason, 0) + 1
        for phase, seconds in measure_phases(event):
            self.phases[phase].add(seconds)
        if event.to_state is JobState.ARCHIVED:
            self.archive_bytes += event.archive_bytes or 0


def measure_phases(event: CountedEvent) -> list[tuple[str, float]]:
    """The phases that ended with this event, and how many seconds they took.

    Only at a job's first visit of a state, when its time is written: later ones are restarts.
    """
    spans: list[tuple[str, datetime | None, datetime | None]] = []
    match event.to_state:
        case JobState.SUBMITTED if event.at == event.submitted_at:
            spans = [(SUBMIT, event.enqueued_at, event.submitted_at)]
        case JobState.COMPLETED if event.at == event.completed_at:
            spans = [(RUN, event.submitted_at, event.completed_at)]
            if event.from_state in PASSED_OVER:
                spans.append((SUBMIT, event.enqueued_at, event.submitted_at))
        case JobState.ARCHIVED if event.at == event.archived_at:
            spans = [
                (ARCHIVE, event.completed_at, event.archived_at),
                (WHOLE, event.enqueued_at, event.archived_at),
            ]
        case _:
            pass
    return [
        (phase, max(0.0, (end - start).total_seconds()))
        for phase, start, end in spans
        if start is not None and end is not None
    ]

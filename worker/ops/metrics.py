"""What there is to say of the whole table, at a price that does not grow with it.

What takes long to count is kept in `tallies`, and counted again only once that is a hundred times
as long ago as it took: counting costs about a hundredth of one connection's time, however large the
table. What is counted in a moment is always new. Only the sweep writes what was counted: whoever
asks for numbers reads, and gets them from a database that takes no writes too.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.jobs import stats
from worker.jobs.job_requests import CODES, Door, count_refused
from worker.jobs.limits import list_shut_gates
from worker.jobs.states import ENDED, JobState
from worker.jobs.stats import CountedEvent, Tally
from worker.jobs.values import Gate, Outcome, Verdict
from worker.jobs.workers import UNSEEN_AFTER, SeenWorker, list_workers

# ------------------------------------------------------------------ history


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


# ------------------------------------------------------------------ measures


LIVE, ENDS, OUTCOMES, VERDICTS, REFUSED = "live", "ended", "outcomes", "verdicts", "refused"
HISTORY, SWEEP = "history", "sweep"
COUNTS: Mapping[str, Callable[[Connection], dict[str, Any]]] = {
    LIVE: stats.count_live,
    ENDS: stats.count_ended,
    OUTCOMES: stats.count_outcomes,
    VERDICTS: stats.count_verdicts,
    REFUSED: count_refused,
}
SHARE = 100
# A count that fails or takes very long must not be the last one.
LONGEST_REST = timedelta(minutes=15)
# Below this it is not worth a write.
WORTH_KEEPING_SECONDS = 0.05
SCRAPE_BATCH, SWEEP_BATCH = 500, 2000
SWEEP_BUDGET = timedelta(milliseconds=250)
OPEN = "open"


@dataclass(frozen=True, slots=True)
class Measures:
    """The table in numbers, with a zero for whatever there is none of."""

    now: datetime
    jobs: dict[JobState, int]
    ages: dict[JobState, float]
    attempts: dict[str, int]
    deliveries: dict[str, int]
    refused: dict[tuple[str, str], int]
    """Requests that became no job, by door and code."""
    extra_charges: int
    held: int
    sweep_lag: timedelta
    swept_at: datetime | None
    pauses: list[Gate]
    workers: list[SeenWorker]
    history: History
    events_behind: int
    counted_at: datetime


@dataclass(frozen=True, slots=True)
class StateCount:
    """How many jobs are in a state; of a live one since when the oldest is, if there is any."""

    state: JobState
    count: int
    oldest_at: datetime | None


def count_states(*, db: Database, clock: Clock = read_clock) -> list[StateCount]:
    """Every state, in the order of a job's life; the same numbers as in `read_measures`."""
    kept, new = _count_due([LIVE, ENDS], db=db, clock=clock)
    counted = {**kept, **new}
    live = counted[LIVE].value
    oldest = {state: datetime.fromtimestamp(known["oldest"], UTC) for state, known in live.items()}
    return [
        StateCount(state, count, oldest.get(state))
        for state, count in _sum_jobs(live, counted[ENDS].value).items()
    ]


def read_measures(*, db: Database, clock: Clock = read_clock) -> Measures:
    """The numbers as they are, or were when they were last counted."""
    kept, new = _count_due(COUNTS, db=db, clock=clock)
    counted = {**kept, **new}
    live = counted[LIVE].value
    now = clock()
    with db.reading() as connection:
        earliest = stats.find_earliest_due(connection)
        _, history, _ = _read_history(connection, SCRAPE_BATCH, now)
        swept = stats.find_tally(connection, SWEEP)
        return Measures(
            now=now,
            jobs=_sum_jobs(live, counted[ENDS].value),
            ages=_find_ages(live, now),
            attempts=_fill([OPEN, *Outcome], counted[OUTCOMES].value),
            deliveries=_fill(_KEPT_VERDICTS, counted[VERDICTS].value),
            refused=_fill_refused(counted[REFUSED].value),
            extra_charges=stats.count_extra_charges(connection),
            held=stats.count_held(connection),
            sweep_lag=max(timedelta(), now - earliest) if earliest else timedelta(),
            swept_at=swept.counted_at if swept else None,
            pauses=list_shut_gates(connection),
            workers=list_workers(connection),
            history=history,
            events_behind=max(0, stats.find_last_event(connection) - history.cursor),
            counted_at=min(tally.counted_at for tally in counted.values()),
        )


def refresh_measures(
    *,
    db: Database,
    batch: int = SWEEP_BATCH,
    budget: timedelta = SWEEP_BUDGET,
    clock: Clock = read_clock,
) -> None:
    """Count again what is due for it, and add new events for as long as the budget lasts.

    What took long to count is kept.
    """
    _, new = _count_due(COUNTS, db=db, clock=clock)
    if costly := [tally for tally in new.values() if tally.seconds >= WORTH_KEEPING_SECONDS]:
        with db.transaction() as connection:
            for tally in costly:
                stats.keep_tally(connection, tally)
    add_events(db=db, batch=batch, budget=budget, clock=clock)


def _count_due(
    names: Iterable[str], *, db: Database, clock: Clock
) -> tuple[dict[str, Tally], dict[str, Tally]]:
    """All kept tallies, and those of the names that were due and are counted again; only reads."""
    with db.reading() as connection:
        kept = {tally.name: tally for tally in stats.list_tallies(connection)}
    new = {
        name: _count(db, name, kept.get(name), clock)
        for name in names
        if is_due(kept.get(name), clock())
    }
    return kept, new


def is_due(tally: Tally | None, now: datetime) -> bool:
    """Whether the count is so old, for the time it took, that it may be made again."""
    if tally is None:
        return True
    rest = min(timedelta(seconds=tally.seconds * SHARE), LONGEST_REST)
    return now - tally.counted_at >= rest or now < tally.counted_at


def add_events(*, db: Database, batch: int, budget: timedelta, clock: Clock = read_clock) -> None:
    """Add what has happened since to the history; of two who do so at once, one has its say."""
    deadline = time.monotonic() + budget.total_seconds()
    while _add_batch(db, batch, clock) and time.monotonic() < deadline:
        pass


def note_sweep(overdue: int, seconds: float, *, db: Database, clock: Clock = read_clock) -> None:
    """Tell whoever looks that a sweep has been here."""
    with db.transaction() as connection:
        swept = Tally(SWEEP, 1, clock(), seconds, {"overdue": overdue})
        stats.note_tally(connection, swept)


def load_history(kept: Tally | None) -> History:
    return History() if kept is None else History.load(kept.value)


def _add_batch(db: Database, batch: int, clock: Clock) -> bool:
    """Whether there may be more."""
    began = time.monotonic()
    with db.reading() as connection:
        kept, history, added = _read_history(connection, batch, clock())
    if not added:
        return False
    version = 1 if kept is None else kept.version + 1
    took = time.monotonic() - began
    with db.transaction() as connection:
        # `is_behind` is read by an earlier release that runs beside this one.
        value = {**history.dump(), "is_behind": added == batch}
        tally = Tally(HISTORY, version, clock(), took, value)
        is_kept = stats.keep_tally(connection, tally)
    return is_kept and added == batch


def _read_history(
    connection: Connection, batch: int, now: datetime
) -> tuple[Tally | None, History, int]:
    """What was kept; the history with the next events added to it; how many of these there were."""
    kept = stats.find_tally(connection, HISTORY)
    history = load_history(kept)
    if history.cursor > stats.find_last_event(connection):
        # The table was emptied, and its numbers begin anew; the sums go on.
        history.cursor = 0
    gaps = sorted(history.gaps)
    events = stats.list_events_after(connection, history.cursor, gaps, batch)
    if events:
        history.add(events, now)
    return kept, history, len(events)


def _count(db: Database, name: str, kept: Tally | None, clock: Clock) -> Tally:
    counted_at, began = clock(), time.monotonic()
    try:
        with db.reading() as connection:
            value = COUNTS[name](connection)
    except OperationalError:
        # It takes longer than a statement may: what is known stays, and is tried again later.
        value = {} if kept is None else kept.value
    version = 1 if kept is None else kept.version + 1
    return Tally(name, version, counted_at, time.monotonic() - began, value)


_KEPT_VERDICTS = (Verdict.RECORDED, Verdict.KEPT, Verdict.HINT)


def _value_of(kept: Mapping[str, Tally], name: str) -> dict[str, Any]:
    return kept[name].value if name in kept else {}


def _sum_jobs(live: Mapping[str, Any], ended: Mapping[str, Any]) -> dict[JobState, int]:
    return {
        state: int(ended.get(state, 0) if state in ENDED else live.get(state, {}).get("jobs", 0))
        for state in JobState
    }


def _find_ages(live: Mapping[str, Any], now: datetime) -> dict[JobState, float]:
    """Seconds since the oldest of each live state is in it; 0 where there is none."""
    return {
        state: max(0.0, now.timestamp() - live[state]["oldest"]) if state in live else 0.0
        for state in JobState
        if state not in ENDED
    }


def _fill(names: Iterable[str], counted: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(counted.get(name, 0)) for name in names}


def _fill_refused(counted: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    none = {(door.value, code): 0 for door in Door for code in CODES}
    found = {(door, code): n for door, codes in counted.items() for code, n in codes.items()}
    return {**none, **found}


def list_seen(workers: Iterable[SeenWorker], now: datetime) -> list[SeenWorker]:
    """Those that have been heard of lately enough to count as there; pure."""
    return [worker for worker in workers if now - worker.last_seen_at <= UNSEEN_AFTER]

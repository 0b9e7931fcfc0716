"""Counts over the whole table, at a cost that does not grow with the table.

A slow count is cached in `tallies`, and repeated only after a hundred times as long as it took:
counting costs about a hundredth of one connection's time, however large the table. A fast count is
made at each read. Only the sweep writes: reading the numbers needs no writes.

What only grows comes from `events`. SQL sums them up by ranges of ids: a cached sum up to one id,
and at each read the sum of what came after it.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.jobs import event_sums, stats
from worker.jobs.admission import Pause, list_pauses, read_time
from worker.jobs.job_requests import CODES, Door, count_refused
from worker.jobs.states import ENDED, JobState
from worker.jobs.stats import CachedCount
from worker.jobs.values import Outcome, Verdict
from worker.jobs.workers import UNSEEN_AFTER, SeenWorker, list_workers
from worker.ops.waiting import HOLDS, OVER_BUDGET, ScopeState, count_queued, list_scopes

LIVE, ENDS, OUTCOMES, VERDICTS, REFUSED = "live", "ended", "outcomes", "verdicts", "refused"
QUEUED = "queued"
HISTORY, SWEEP = "history", "sweep"
COUNTS: Mapping[str, Callable[[Connection], dict[str, Any]]] = {
    LIVE: stats.count_live,
    ENDS: stats.count_ended,
    OUTCOMES: stats.count_outcomes,
    VERDICTS: stats.count_verdicts,
    REFUSED: count_refused,
    QUEUED: lambda connection: count_queued(connection, read_time(connection)),
}
SHARE = 100
# A count that fails or takes very long must not be the last one.
LONGEST_REST = timedelta(minutes=15)
# A faster count is not worth a write.
WORTH_KEEPING_SECONDS = 0.05
OPEN = "open"
KEPT_DISPOSITIONS = (Verdict.RECORDED, Verdict.KEPT, Verdict.HINT)
# Seconds; the last bucket holds what took longer.
BOUNDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600, 86400)
PHASES = ("submit", "run", "archive", "whole")
# A transaction may commit an id after a higher one, but none is open for so long: older events are
# complete, and may go into the cached sum.
COMPLETE_AFTER = timedelta(minutes=5)
SCRAPE_EVENTS, SWEEP_EVENTS = 20_000, 5_000
SWEEP_BUDGET = timedelta(milliseconds=250)


@dataclass
class PhaseTimes:
    """How many took how long: one count for each of BOUNDS, and one for what is beyond."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0


@dataclass
class History:
    """The sums of all events up to the id `cursor`."""

    cursor: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    phases: dict[str, PhaseTimes] = field(
        default_factory=lambda: {name: PhaseTimes() for name in PHASES}
    )
    archive_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Measures:
    """The table in numbers, with a zero where there is none."""

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
    pauses: list[Pause]
    scopes: list[ScopeState]
    """The account, and the tenants that have limits, pauses or something in flight."""
    queued: dict[str, int]
    """Queued jobs by what holds them."""
    over_budget: int
    """Jobs which alone exceed a whole day's budget."""
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
    return _list_states(_count_due([LIVE, ENDS], db=db, clock=clock)[0])


def _list_states(counted: Mapping[str, CachedCount]) -> list[StateCount]:
    states = []
    for state in JobState:
        count, oldest_at = counted[ENDS].value.get(state, 0) if state in ENDED else 0, None
        if state not in ENDED and (known := counted[LIVE].value.get(state)):
            count, oldest_at = known["jobs"], datetime.fromtimestamp(known["oldest"], UTC)
        states.append(StateCount(state, count, oldest_at))
    return states


def read_measures(*, db: Database, clock: Clock = read_clock) -> Measures:
    """The numbers as they are, or as they were when they were last counted."""
    counted, _ = _count_due(COUNTS, db=db, clock=clock)
    states = _list_states(counted)
    outcomes, verdicts = counted[OUTCOMES].value, counted[VERDICTS].value
    waiting = counted[QUEUED].value
    refused = {(door.value, code): 0 for door in Door for code in CODES}
    for door, codes in counted[REFUSED].value.items():
        refused |= {(door, code): number for code, number in codes.items()}
    now = clock()
    with db.reading() as connection:
        earliest = stats.find_earliest_due(connection)
        _, history = _load_history(connection)
        _add_events(connection, history, SCRAPE_EVENTS)
        swept = stats.find_cached_count(connection, SWEEP)
        return Measures(
            now=now,
            jobs={one.state: one.count for one in states},
            ages={
                one.state: max(0.0, (now - (one.oldest_at or now)).total_seconds())
                for one in states
                if one.state not in ENDED
            },
            attempts={str(name): outcomes.get(name, 0) for name in (OPEN, *Outcome)},
            deliveries={str(name): verdicts.get(name, 0) for name in KEPT_DISPOSITIONS},
            refused=refused,
            extra_charges=stats.count_extra_charges(connection),
            held=stats.count_held(connection),
            sweep_lag=max(timedelta(), now - earliest) if earliest else timedelta(),
            swept_at=swept.counted_at if swept else None,
            pauses=list_pauses(connection),
            scopes=list_scopes(connection, now),
            queued={name: waiting.get(name, 0) for name in HOLDS},
            over_budget=waiting.get(OVER_BUDGET, 0),
            workers=list_workers(connection),
            history=history,
            events_behind=max(0, stats.find_last_event(connection) - history.cursor),
            counted_at=min(one.counted_at for one in counted.values()),
        )


def refresh_measures(
    *,
    db: Database,
    batch: int = SWEEP_EVENTS,
    budget: timedelta = SWEEP_BUDGET,
    clock: Clock = read_clock,
) -> None:
    """Make the counts that are due, cache the slow ones, and add events for as long as `budget`."""
    _, new = _count_due(COUNTS, db=db, clock=clock)
    if slow := [one for one in new if one.seconds >= WORTH_KEEPING_SECONDS]:
        with db.transaction() as connection:
            for one in slow:
                stats.keep_cached_count(connection, one)
    add_events(db=db, batch=batch, budget=budget, clock=clock)


def add_events(*, db: Database, batch: int, budget: timedelta, clock: Clock = read_clock) -> None:
    """Move the cached sum on, once at least; of two who do so at once, one is kept."""
    deadline = time.monotonic() + budget.total_seconds()
    while True:
        now, began = clock(), time.monotonic()
        with db.reading() as connection:
            kept, history = _load_history(connection)
            if not _add_events(connection, history, batch, before=now - COMPLETE_AFTER):
                return
        # An earlier release that runs beside this one reads `gaps` and `is_behind`.
        value = {**asdict(history), "gaps": {}, "is_behind": False}
        version = 1 if kept is None else kept.version + 1
        new = CachedCount(HISTORY, version, now, time.monotonic() - began, value)
        with db.transaction() as connection:
            is_kept = stats.keep_cached_count(connection, new)
        if not is_kept or time.monotonic() >= deadline:
            return


def note_sweep(overdue: int, seconds: float, *, db: Database, clock: Clock = read_clock) -> None:
    """Record that a sweep has ended just now."""
    with db.transaction() as connection:
        swept = CachedCount(SWEEP, 1, clock(), seconds, {"overdue": overdue})
        stats.note_cached_count(connection, swept)


def list_seen(workers: Iterable[SeenWorker], now: datetime) -> list[SeenWorker]:
    """Those that have reported recently enough to count as running; pure."""
    return [worker for worker in workers if now - worker.last_seen_at <= UNSEEN_AFTER]


def is_due(cached_count: CachedCount | None, now: datetime) -> bool:
    """Whether the count is so old, for the time it took, that it may be made again."""
    if cached_count is None:
        return True
    rest = min(timedelta(seconds=cached_count.seconds * SHARE), LONGEST_REST)
    return now - cached_count.counted_at >= rest or now < cached_count.counted_at


def _load_history(connection: Connection) -> tuple[CachedCount | None, History]:
    kept = stats.find_cached_count(connection, HISTORY)
    history = History()
    if kept is not None:
        value = kept.value
        history = History(value["cursor"], dict(value["reasons"]))
        history.archive_bytes = value["archive_bytes"]
        for name, known in value["phases"].items():
            # Sums that were made for other bounds begin anew.
            if len(known["counts"]) == len(BOUNDS) + 1:
                history.phases[name] = PhaseTimes(list(known["counts"]), known["seconds"])
    if kept is not None and history.cursor > stats.find_last_event(connection):
        # The newest events were pruned, and their ids may be used again. What was old enough when
        # the sums were cached is in them.
        complete = kept.counted_at - COMPLETE_AFTER
        history.cursor = event_sums.find_last_before(connection, complete)
    return kept, history


def _add_events(
    connection: Connection, history: History, batch: int, before: datetime | None = None
) -> bool:
    """Add the next events to the sums; whether there were any."""
    last = event_sums.find_last_of_batch(connection, history.cursor, batch, before)
    if last == history.cursor:
        return False
    sums = event_sums.sum_events(connection, history.cursor, last, BOUNDS)
    for reason, number in sums.reasons.items():
        history.reasons[reason] = history.reasons.get(reason, 0) + number
    for phase, bucket, number, seconds in sums.phases:
        history.phases[phase].counts[bucket] += number
        history.phases[phase].seconds += seconds
    history.archive_bytes += sums.archive_bytes
    history.cursor = last
    return True


def _count_due(
    names: Iterable[str], *, db: Database, clock: Clock
) -> tuple[dict[str, CachedCount], list[CachedCount]]:
    """All counts, and those of the names that were due and are made again; only reads."""
    with db.reading() as connection:
        counted = {one.name: one for one in stats.list_cached_counts(connection)}
    new = []
    for name in names:
        known = counted.get(name)
        if not is_due(known, clock()):
            continue
        counted_at, began = clock(), time.monotonic()
        try:
            with db.reading() as connection:
                value = COUNTS[name](connection)
        except OperationalError:
            # It takes longer than a statement may: keep the cached count; retry later.
            value = {} if known is None else known.value
        version = 1 if known is None else known.version + 1
        counted[name] = CachedCount(name, version, counted_at, time.monotonic() - began, value)
        new.append(counted[name])
    return counted, new

"""The numbers above the list, a few seconds old: however many read them, the table is read once.

An hour that is over does not change, and is read once in the life of the process.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from worker.ground.clock import Clock, format_duration
from worker.ground.db import Database
from worker.jobs import stats
from worker.jobs.admission import Caps
from worker.jobs.stats import Measure
from worker.ops.metrics import StateCount, count_states
from worker.ops.waiting import ScopeState, list_scopes
from worker.stages.admit import choose_time

FRESH_FOR = timedelta(seconds=5)
HOURS = 24
HOUR = timedelta(hours=1)
# A job that ends at the end of an hour is committed a moment later.
SETTLED_AFTER = HOUR + timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Hour:
    """What ended in one hour of the clock."""

    start: datetime
    measure: Measure

    @property
    def median(self) -> float | None:
        return pick_quantile(self.measure.latencies, 0.5)

    @property
    def slow(self) -> float | None:
        """Nine in ten were faster."""
        return pick_quantile(self.measure.latencies, 0.9)


@dataclass(frozen=True, slots=True)
class Board:
    """The numbers as of one moment."""

    at: datetime
    states: tuple[StateCount, ...]
    hours: tuple[Hour, ...]
    scopes: tuple[ScopeState, ...]

    @property
    def account(self) -> ScopeState:
        return self.scopes[0]

    @property
    def paused_tenants(self) -> int:
        return sum(bool(one.pauses) for one in self.scopes[1:])


class BoardReader:
    """Reads the board for one process."""

    def __init__(self, db: Database, clock: Clock, caps: Caps | None = None) -> None:
        """`caps` are the account's where no worker has noted any."""
        self._db = db
        self._caps = caps
        self._clock = clock
        self._board: Board | None = None
        self._settled: dict[datetime, Hour] = {}
        self._lock = threading.Lock()

    def read(self) -> Board:
        """The board; while somebody else reads it anew, the old one."""
        board = self._board
        is_old = board is None or self._clock() - board.at >= FRESH_FOR
        if is_old and self._lock.acquire(blocking=board is None):
            try:
                board = self._board = self._read_anew(self._clock())
            finally:
                self._lock.release()
        assert board is not None  # noqa: S101 - or it would have waited
        return board

    def _read_anew(self, now: datetime) -> Board:
        last = now.replace(minute=0, second=0, microsecond=0)
        states = tuple(count_states(db=self._db, clock=self._clock))
        hours: list[Hour] = []
        with self._db.reading() as connection:
            for number in reversed(range(HOURS)):
                start = last - number * HOUR
                known = self._settled.get(start)
                hours.append(
                    known or Hour(start, stats.measure_span(connection, start, start + HOUR))
                )
            scopes = list_scopes(connection, choose_time(connection, self._clock), self._caps)
        self._settled = {one.start: one for one in hours if now >= one.start + SETTLED_AFTER}
        return Board(now, states, tuple(hours), tuple(scopes))


def pick_quantile(ordered: tuple[float, ...], share: float) -> float | None:
    """The nearest of the values; None if there are none."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


# ------------------------------------------------------------------ plots


WIDTH, HEIGHT, TOP = 480.0, 96.0, 6.0


class Bar(NamedTuple):
    """One hour's column; failures stand on top of what was archived."""

    title: str
    x: float
    width: float
    archived_y: float
    archived_height: float
    failed_y: float
    failed_height: float


class Line(NamedTuple):
    """A curve, broken where there is no value, and its points: x, y and title."""

    name: str
    path: str
    points: list[tuple[float, float, str]]


class Plot(NamedTuple):
    """What a plot shows; `summary` says it in words."""

    top: str
    summary: str
    bars: list[Bar]
    lines: list[Line]


def plot_throughput(hours: Sequence[Hour]) -> Plot:
    most = max((one.measure.archived + one.measure.failed for one in hours), default=0)
    step, scale = WIDTH / max(len(hours), 1), (HEIGHT - TOP) / max(most, 1)
    bars = []
    for place, (start, measure) in enumerate((one.start, one.measure) for one in hours):
        archived, failed = measure.archived * scale, measure.failed * scale
        sizes = (HEIGHT - archived, archived, HEIGHT - archived - failed, failed)
        counts = f"{measure.archived:,} archived, {measure.failed:,} failed"
        title = f"{start:%H}:00 UTC: {counts}"
        left, width = (place + 0.12) * step, 0.76 * step
        bars.append(Bar(title, *(round(size, 2) for size in (left, width, *sizes))))
    archived = sum(one.measure.archived for one in hours)
    failed = sum(one.measure.failed for one in hours)
    summary = f"{archived:,} archived and {failed:,} failed in {len(hours)} hours"
    return Plot(f"{most:,}", summary, bars, [])


def plot_latency(hours: Sequence[Hour]) -> Plot:
    """Median, and what nine in ten stay below."""
    known = [one for one in hours if one.median is not None and one.slow is not None]
    most = max((max(one.median or 0, one.slow or 0) for one in known), default=0.0)
    step, lines = WIDTH / max(len(hours), 1), []
    for name in ("median", "slow"):
        line = Line(name, "", [])
        for place, hour in enumerate(hours):
            if (value := getattr(hour, name)) is None:
                continue
            x = round((place + 0.5) * step, 2)
            y = round(HEIGHT - (HEIGHT - TOP) * value / (most or 1), 2)
            goes_on = place > 0 and getattr(hours[place - 1], name) is not None
            line.points.append((x, y, f"{hour.start:%H}:00 UTC: {_describe(hour)}"))
            line = line._replace(path=f"{line.path}{'L' if goes_on else 'M'}{x} {y} ")
        lines.append(line)
    summary = _describe(known[-1]) if known else "nothing archived"
    return Plot(_format_seconds(most) if known else "", summary, [], lines)


def _describe(hour: Hour) -> str:
    median, slow = (_format_seconds(one or 0) for one in (hour.median, hour.slow))
    return f"median {median}, nine in ten within {slow}"


def _format_seconds(seconds: float) -> str:
    return format_duration(timedelta(seconds=seconds))

"""The numbers over the list, a few seconds old: however many look, the table is asked once.

An hour that is over does not change, and is asked for once in the life of the process.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.ground.clock import Clock, format_duration
from worker.ground.db import Database
from worker.jobs import stats
from worker.jobs.stats import Measure
from worker.ops.metrics import StateCount, count_states

FRESH_FOR = timedelta(seconds=5)
HOURS = 24
HOUR = timedelta(hours=1)
# A job that ends at the end of an hour is committed a moment later.
SETTLED_AFTER = timedelta(minutes=1)


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
    """As of one moment."""

    at: datetime
    states: tuple[StateCount, ...]
    hours: tuple[Hour, ...]


class BoardReader:
    """Reads the board for one process."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._board: Board | None = None
        self._settled: dict[datetime, Hour] = {}
        self._lock = threading.Lock()

    def read(self) -> Board:
        """The board; while somebody else reads it anew, the old one."""
        board, now = self._board, self._clock()
        if board is not None and now - board.at < FRESH_FOR:
            return board
        if not self._lock.acquire(blocking=board is None):
            assert board is not None  # noqa: S101 - or it would have waited
            return board
        try:
            self._board = self._read_anew(self._clock())
            return self._board
        finally:
            self._lock.release()

    def _read_anew(self, now: datetime) -> Board:
        last = now.replace(minute=0, second=0, microsecond=0)
        starts = [last - number * HOUR for number in reversed(range(HOURS))]
        states = tuple(count_states(db=self._db, clock=self._clock))
        with self._db.reading() as connection:
            hours = tuple(
                self._settled.get(start)
                or Hour(start, stats.measure_span(connection, start, start + HOUR))
                for start in starts
            )
        self._settled = {hour.start: hour for hour in hours if _is_settled(hour.start, now)}
        return Board(now, states, hours)


def pick_quantile(ordered: tuple[float, ...], share: float) -> float | None:
    """The nearest of the values; None if there are none."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


def _is_settled(start: datetime, now: datetime) -> bool:
    return now >= start + HOUR + SETTLED_AFTER


# ------------------------------------------------------------------ plots


WIDTH, HEIGHT, TOP = 480.0, 96.0, 6.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One hour's column; failures stand on top of what was archived."""

    x: float
    width: float
    archived_y: float
    archived_height: float
    failed_y: float
    failed_height: float
    title: str


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """A curve, broken where there is no value."""

    name: str
    paths: tuple[str, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """What a plot shows, and in words for who cannot see it."""

    top: str
    summary: str
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()


def plot_throughput(hours: Sequence[Hour]) -> Plot:
    most = max((hour.measure.archived + hour.measure.failed for hour in hours), default=0)
    step = WIDTH / max(len(hours), 1)
    archived = sum(hour.measure.archived for hour in hours)
    failed = sum(hour.measure.failed for hour in hours)
    return Plot(
        top=f"{most:,}",
        summary=f"{archived:,} archived and {failed:,} failed in {len(hours)} hours",
        bars=tuple(
            _stand(hour, place * step, step, (HEIGHT - TOP) / max(most, 1))
            for place, hour in enumerate(hours)
        ),
    )


def plot_latency(hours: Sequence[Hour]) -> Plot:
    """Median, and what nine in ten stay below."""
    values = [value for hour in hours for value in (hour.median, hour.slow) if value is not None]
    most = max(values, default=0.0)
    newest = next((hour for hour in reversed(hours) if hour.median is not None), None)
    told = "nothing archived" if newest is None else _tell(newest)
    curves = {"median": [hour.median for hour in hours], "slow": [hour.slow for hour in hours]}
    return Plot(
        top=_format_seconds(most) if values else "",
        summary=told,
        lines=tuple(_draw(name, hours, line, most) for name, line in curves.items()),
    )


def _stand(hour: Hour, x: float, step: float, scale: float) -> Bar:
    archived, failed = hour.measure.archived * scale, hour.measure.failed * scale
    counts = f"{hour.measure.archived:,} archived, {hour.measure.failed:,} failed"
    return Bar(
        x=round(x + step * 0.12, 2),
        width=round(step * 0.76, 2),
        archived_y=round(HEIGHT - archived, 2),
        archived_height=round(archived, 2),
        failed_y=round(HEIGHT - archived - failed, 2),
        failed_height=round(failed, 2),
        title=f"{hour.start:%H}:00 UTC: {counts}",
    )


def _draw(name: str, hours: Sequence[Hour], values: Sequence[float | None], most: float) -> Line:
    step = WIDTH / max(len(hours), 1)
    points: list[Point] = []
    runs: list[list[Point]] = [[]]
    for place, (hour, value) in enumerate(zip(hours, values, strict=True)):
        if value is None:
            runs.append([])
            continue
        y = HEIGHT - (HEIGHT - TOP) * value / (most or 1)
        title = f"{hour.start:%H}:00 UTC: {_tell(hour)}"
        points.append(Point(round((place + 0.5) * step, 2), round(y, 2), title))
        runs[-1].append(points[-1])
    return Line(name, tuple(_join(run) for run in runs if len(run) > 1), tuple(points))


def _join(points: Iterable[Point]) -> str:
    return "M" + " L".join(f"{point.x} {point.y}" for point in points)


def _tell(hour: Hour) -> str:
    median, slow = (_format_seconds(one or 0) for one in (hour.median, hour.slow))
    return f"median {median}, nine in ten within {slow}"


def _format_seconds(seconds: float) -> str:
    return format_duration(timedelta(seconds=seconds))

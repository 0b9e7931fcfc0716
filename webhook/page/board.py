"""The numbers over the list, a few seconds old: however many look, the table is asked once.

An hour that is over does not change, and is asked for once in the life of the process.
"""

import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.ground.clock import Clock
from worker.ground.db import Database
from worker.jobs import stats
from worker.jobs.stats import Measure
from worker.ops.measures import StateCount, count_states

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

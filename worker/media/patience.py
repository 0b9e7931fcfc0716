"""How often a download tries again by itself, and after how long; then its row waits instead."""

import random
from collections import Counter
from datetime import timedelta

from worker.ground.clock import Backoff, Draw
from worker.media.wire import BrokenError, BusyError, ThrottledError

SECOND = timedelta(seconds=1)
RESUMPTIONS = 5
REPETITIONS = 2
WAITS: dict[type[BrokenError], tuple[int, Backoff]] = {
    BrokenError: (RESUMPTIONS, Backoff(SECOND / 5, 5 * SECOND)),
    BusyError: (REPETITIONS, Backoff(SECOND / 2, 5 * SECOND)),
    ThrottledError: (REPETITIONS, Backoff(SECOND, 5 * SECOND)),
}
LONGEST_RETRY_AFTER = 10 * SECOND
# So many new bytes and nothing has failed yet: the total limit alone bounds what makes progress.
PROGRESS_BYTES = 1024 * 1024


class Patience:
    """Counts the failures of one download, each class apart, since it last made progress."""

    def __init__(self, draw: Draw = random.random) -> None:
        self._draw = draw
        self._failures: Counter[type[BrokenError]] = Counter()
        self._reached = 0

    def choose_wait(self, error: BrokenError, received: int) -> timedelta:
        """How long to wait before going on; raises the error if it has happened too often."""
        if received >= self._reached + PROGRESS_BYTES:
            self._reached = received
            self._failures.clear()
        kind = type(error)
        tries, backoff = WAITS[kind]
        self._failures[kind] += 1
        if self._failures[kind] > tries or error.retry_after > LONGEST_RETRY_AFTER:
            raise error
        return error.retry_after + backoff.draw(self._failures[kind], self._draw)

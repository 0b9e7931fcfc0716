"""When a worker has stopped to consume, though there is something to consume; pure.

A worker is not judged while the broker does not answer: that is not its fault, nor mended by a
restart. One that is busy may leave messages waiting as long as its steps may take.
"""

from dataclasses import dataclass
from datetime import timedelta

# Longer than any step may take: a pool that works in the main thread stops the loop for as long.
LONGEST_STEP = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of a worker, in seconds of a clock that never goes back.

    `waiting` are messages in the queues that it consumes, None if the broker did not answer in
    time; `is_full` if it has as many messages in hand as it can work on.
    """

    at: float
    looped_at: float
    received_at: float
    waiting: int | None
    is_busy: bool
    is_full: bool


@dataclass
class Watchdog:
    """Judges one worker, look by look."""

    limit: timedelta
    _answering_since: float | None = None
    _deaf_since: float | None = None

    def judge(self, look: Look) -> str | None:
        """Why the worker should end, in words; None while it should not."""
        if look.waiting is None:
            self._answering_since = self._deaf_since = None
            return None
        if self._answering_since is None:
            self._answering_since = look.at
        return self._judge_loop(look, self._answering_since) or self._judge_ears(look)

    def _judge_loop(self, look: Look, answering_since: float) -> str | None:
        """Its loop stands still: it waits for something that does not come."""
        silent = look.at - max(look.looped_at, answering_since)
        limit = max(LONGEST_STEP, self.limit) if look.is_busy else self.limit
        if silent <= limit.total_seconds():
            return None
        return f"its loop has stood still for {silent:.0f} s, while the broker answers"

    def _judge_ears(self, look: Look) -> str | None:
        """Its loop turns, and it takes none of the messages that it has hands for."""
        if not look.waiting or look.is_full:
            self._deaf_since = None
            return None
        since = look.at if self._deaf_since is None else self._deaf_since
        self._deaf_since = max(since, look.received_at)
        deaf = look.at - self._deaf_since
        if deaf <= self.limit.total_seconds():
            return None
        return f"{look.waiting} messages wait, and it has taken none for {deaf:.0f} s"

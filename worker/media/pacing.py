"""A bound on bytes per second, shared by all downloads of a process."""

import time
from collections.abc import Callable
from threading import Lock

LARGEST_CHUNK = 256 * 1024
CHUNKS_PER_SECOND = 8


class Pace:
    """A bucket that fills at `rate` and holds a second of it; what it lacks has to be waited for.

    Whoever takes more than there is goes into debt and waits until it is paid, so those who come
    at the same time wait one after the other.
    """

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._left = 0.0
        self._at = clock()
        self._lock = Lock()

    @property
    def chunk_bytes(self) -> int:
        """The most to read at once, so that no wait is long."""
        return max(1, min(LARGEST_CHUNK, self._rate // CHUNKS_PER_SECOND))

    def take(self, size: int) -> None:
        """Return when so many bytes may have come."""
        wait = self._charge(size)
        if wait > 0:
            self._sleep(wait)

    def _charge(self, size: int) -> float:
        with self._lock:
            now = self._clock()
            filled = self._left + (now - self._at) * self._rate
            self._left, self._at = min(filled, self._rate) - size, now
            return -self._left / self._rate

"""How long to wait before the next try, with jitter: who waited together does not return so."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

Draw = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Backoff:
    """The bound doubles with each try, from `first` up to `longest`; the wait is drawn below it."""

    first: timedelta
    longest: timedelta

    def bound(self, tries: int) -> timedelta:
        """The longest wait after so many tries; one is the first."""
        doublings = min(max(tries - 1, 0), 30)
        return min(self.first * (1 << doublings), self.longest)

    def draw(self, tries: int, draw: Draw = random.random) -> timedelta:
        """Anything from zero up to the bound."""
        return self.bound(tries) * draw()


def spread(wait: timedelta, draw: Draw = random.random) -> timedelta:
    """The wait, a fifth shorter or longer: jobs that began together do not stay together."""
    return wait * (0.8 + 0.4 * draw())


# fal surely keeps a usual result so long: whoever waits for one looks several times within it.
RETENTION = timedelta(hours=1)
LONGEST_POLL = timedelta(minutes=15)
# Of a result that is kept for less: a look may fail, or the network be away for a moment.
SHORT_LOOKS = 8


def choose_poll_delay(
    poll_after: timedelta,
    waited: timedelta = timedelta(),
    draw: Draw = random.random,
    *,
    retention: timedelta = RETENTION,
) -> timedelta:
    """How long to leave a request of fal's alone: longer the longer it has been waited for.

    `retention` is how long its result will be kept; one kept for minutes is looked for each minute.
    """
    longest = LONGEST_POLL if retention >= RETENTION else retention / SHORT_LOOKS
    return spread(min(max(poll_after, waited / 4), longest), draw)

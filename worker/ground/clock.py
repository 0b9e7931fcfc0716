"""Time: the current time, bounded calls, waits before a retry, and durations as text."""

import random
import re
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import TypeVar

Clock = Callable[[], datetime]
"""Handed to stages, so that tests move the clock instead of sleeping."""
Draw = Callable[[], float]
"""A random number from 0 to 1."""
V = TypeVar("V")


def read_clock() -> datetime:
    """Now, as an aware UTC time."""
    return datetime.now(UTC)


def call_within(limit: timedelta, function: Callable[[], V]) -> V:
    """The function's result, or its exception; TimeoutError once `limit` has passed.

    Socket timeouts bound single reads, and name look-ups have none. The call goes on in its thread
    after the limit, so it needs bounds of its own to end at all.
    """
    outcome: Future[V] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            outcome.set_exception(error)

    Thread(target=run, name="call_within", daemon=True).start()
    return outcome.result(limit.total_seconds())


# ------------------------------------------------------------------ waits before a retry


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter: the bound doubles from `first` up to `longest`."""

    first: timedelta
    longest: timedelta

    def bound(self, tries: int) -> timedelta:
        """The longest wait after so many tries; one is the first."""
        doublings = min(max(tries - 1, 0), 30)
        return min(self.first * (1 << doublings), self.longest)

    def draw(self, tries: int, draw: Draw = random.random) -> timedelta:
        """A wait between zero and the bound."""
        return self.bound(tries) * draw()


def spread(wait: timedelta, draw: Draw = random.random) -> timedelta:
    """The wait, up to a fifth shorter or longer: jobs that began together drift apart."""
    return wait * (0.8 + 0.4 * draw())


# fal keeps a usual result at least so long: several polls fit within it.
RETENTION = timedelta(hours=1)
LONGEST_POLL = timedelta(minutes=15)
# Polls within the retention of a result that is kept for less: one of them may fail.
SHORT_LOOKS = 8


def choose_poll_delay(
    poll_after: timedelta,
    waited: timedelta = timedelta(),
    draw: Draw = random.random,
    *,
    retention: timedelta = RETENTION,
) -> timedelta:
    """How long until a request of fal's is polled next: longer the longer it has run.

    `retention` is how long its result will be kept; one kept for minutes is polled each minute.
    """
    longest = LONGEST_POLL if retention >= RETENTION else retention / SHORT_LOOKS
    return spread(min(max(poll_after, waited / 4), longest), draw)


# ------------------------------------------------------------------ times as text

ALLOWED = "a time such as 2026-11-24 or 2026-11-24T18:30 (UTC), or an age such as 90s, 15m, 2h, 7d"
MINUTE = 60
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SIZES = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def read_moment(text: str, now: datetime) -> datetime:
    """The time meant; without an offset it is UTC. Raises ValueError with what is allowed."""
    age = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip())
    try:
        if age is not None:
            return now - timedelta(**{UNITS[age[2]]: int(age[1])})
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(ALLOWED) from None


def format_briefly(duration: timedelta) -> str:
    """In its largest unit: `8 s`, `3 min`, `2 h`, `5 d`."""
    seconds = max(int(duration.total_seconds()), 0)
    name, size = next((one for one in _SIZES if seconds >= one[1]), _SIZES[-1])
    return f"{seconds // size} {name}"


def format_duration(duration: timedelta) -> str:
    """In the two largest units that matter: `850 ms`, `12.4 s`, `3 min 5 s`, `2 h 10 min`."""
    seconds = max(duration.total_seconds(), 0.0)
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < MINUTE:
        return f"{round(seconds, 1):g} s"
    whole = round(seconds)
    index = next(place for place, (_, size) in enumerate(_SIZES) if whole >= size)
    (large, size), (small, part) = _SIZES[index], _SIZES[index + 1]
    rest = whole % size // part
    return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")

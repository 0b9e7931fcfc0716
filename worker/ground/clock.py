"""The one source of time, handed to stages so that tests move the clock instead of sleeping."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def read_clock() -> datetime:
    """Now, as an aware UTC time."""
    return datetime.now(UTC)

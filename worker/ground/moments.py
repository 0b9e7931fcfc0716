"""Times as people write them: a moment, or how long ago."""

import re
from datetime import UTC, datetime, timedelta

ALLOWED = "a time such as 2026-11-24 or 2026-11-24T18:30 (UTC), or an age such as 90s, 15m, 2h, 7d"
MINUTE = 60
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def read_moment(text: str, now: datetime) -> datetime:
    """The moment meant; without an offset it is UTC. Raises ValueError with what is allowed."""
    age = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip())
    try:
        if age is not None:
            return now - timedelta(**{UNITS[age[2]]: int(age[1])})
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(ALLOWED) from None


def tell_briefly(duration: timedelta) -> str:
    """In its largest unit: `8 s`, `3 min`, `2 h`, `5 d`."""
    seconds = max(int(duration.total_seconds()), 0)
    units = (("d", 86400), ("h", 3600), ("min", 60))
    name, size = next((one for one in units if seconds >= one[1]), ("s", 1))
    return f"{seconds // size} {name}"


def format_duration(duration: timedelta) -> str:
    """In the two largest units that matter: `850 ms`, `12.4 s`, `3 min 5 s`, `2 h 10 min`."""
    seconds = max(duration.total_seconds(), 0.0)
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < MINUTE:
        return f"{round(seconds, 1):g} s"
    whole = round(seconds)
    units = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))
    large, size, small, part = next(one for one in units if whole >= one[1])
    rest = whole % size // part
    return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")

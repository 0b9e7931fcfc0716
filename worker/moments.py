"""Times as people write them: a moment, or how long ago."""

import re
from datetime import UTC, datetime, timedelta

ALLOWED = "a time such as 2026-11-24 or 2026-11-24T18:30 (UTC), or an age such as 90s, 15m, 2h, 7d"
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


def tell_duration(duration: timedelta) -> str:
    """In the two largest units that matter: `850 ms`, `12.4 s`, `3 min 5 s`, `2 h 10 min`."""
    seconds = max(duration.total_seconds(), 0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, large, lower, small in (("min", 60, "s", 1), ("h", 3600, "min", 60)):
        if whole < large * 60 or (unit == "h" and whole < 48 * 3600):
            rest = whole % large // small
            return f"{whole // large} {unit}" + (f" {rest} {lower}" if rest else "")
    hours = whole % 86400 // 3600
    return f"{whole // 86400} d" + (f" {hours} h" if hours else "")

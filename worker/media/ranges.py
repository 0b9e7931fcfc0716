"""What headers say of a part of a video, and of its version (RFC 9110, 8.8, 13.1.5 and 14.4)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

# Clocks of one host may differ; below this a file may have changed twice under one date.
STRONG_AGE = timedelta(seconds=60)

_DIGITS = r"[0-9]{1,18}"
_CONTENT_RANGE = re.compile(rf"(?i:bytes) +({_DIGITS})-({_DIGITS})/({_DIGITS})")
_STRONG_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')

FindHeader = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Bytes `first` to `last`, both included, of `total`."""

    first: int
    last: int
    total: int


def parse_content_range(text: str | None) -> ContentRange | None:
    """None for whatever names no part of a file of known size."""
    match = None if text is None else _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        return None
    part = ContentRange(*map(int, match.groups()))
    return part if part.first <= part.last < part.total else None


def parse_length(text: str) -> int | None:
    """A Content-Length, which may be said twice, but not differently; None for nonsense."""
    said = {one.strip() for one in text.split(",")}
    length = said.pop()
    return int(length) if not said and re.fullmatch(_DIGITS, length) else None


def choose_version(find_header: FindHeader) -> str | None:
    """What `If-Range` may name this version by; None if nothing tells it for sure.

    A strong ETag, or without any ETag a date of change that was past when the answer was made.
    """
    tag = find_header("etag")
    if tag is not None:
        return tag if _STRONG_TAG.fullmatch(tag) else None
    changed = find_header("last-modified")
    changed_at, answered_at = parse_date(changed), parse_date(find_header("date"))
    if changed_at is None or answered_at is None or answered_at - changed_at < STRONG_AGE:
        return None
    return changed


def parse_date(text: str | None) -> datetime | None:
    """An HTTP date; None for nonsense."""
    try:
        at = None if text is None else parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return at if at is None or at.tzinfo is not None else at.replace(tzinfo=UTC)


def parse_retry_after(text: str | None, now: datetime) -> timedelta:
    """How long `Retry-After` asks to wait; nothing if it says nothing of use."""
    if text is not None and re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return timedelta(seconds=int(text))
    at = parse_date(text)
    return timedelta(0) if at is None else max(at - now, timedelta(0))

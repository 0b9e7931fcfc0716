"""Headers that tell of parts and versions: what they say, and that no nonsense says anything."""

from datetime import UTC, datetime
from email.utils import format_datetime

from hypothesis import given
from hypothesis import strategies as st

from worker.media.download import (
    parse_content_range,
)

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
sizes = st.integers(0, 10**18 - 1)


def name_time(at: datetime) -> str:
    return format_datetime(at, usegmt=True)


@given(sizes, sizes, sizes)
def test_parse_content_range_gives_what_was_written_if_it_can_be(first, last, total):
    read = parse_content_range(f"bytes {first}-{last}/{total}")
    assert read == ((first, last, total) if first <= last < total else None)


def test_parse_content_range_is_lenient_in_form_only():
    assert parse_content_range(" Bytes  1-2/3 ") == (1, 2, 3)
    assert parse_content_range(None) is None
    for text in (
        *("", "bytes", "bytes */5", "bytes 1-2/*", "bytes 1-/3", "bytes 2-1/3"),
        *("bytes 1-3/3", "bytes 1-2/3, bytes 1-2/3", "bytes +1-2/3", "bytes 1-2/3_0"),
        *("bytes \u0661-2/3", f"bytes 1-2/{'9' * 5000}", "bytes=1-2/3", "items 1-2/3"),
    ):
        assert parse_content_range(text) is None


@given(st.text() | st.text("0123456789 :GMTFrideca,-/*", max_size=40))
def test_parsing_any_text_never_raises(text):
    part = parse_content_range(text)
    assert part is None or 0 <= part[0] <= part[1] < part[2]

"""Headers that tell of parts and versions: what they say, and that no nonsense says anything."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.media.ranges import (
    ContentRange,
    choose_version,
    parse_content_range,
    parse_date,
    parse_length,
    parse_retry_after,
)

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
sizes = st.integers(0, 10**18 - 1)


def name_time(at: datetime) -> str:
    return format_datetime(at, usegmt=True)


@given(sizes, sizes, sizes)
def test_parse_content_range_gives_what_was_written_if_it_can_be(first, last, total):
    read = parse_content_range(f"bytes {first}-{last}/{total}")
    assert read == (ContentRange(first, last, total) if first <= last < total else None)


@pytest.mark.parametrize("text", ["bytes 1-2/3", "Bytes 1-2/3", " bytes  1-2/3 "])
def test_parse_content_range_is_lenient_in_form(text):
    assert parse_content_range(text) == ContentRange(1, 2, 3)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "bytes",
        "bytes */5",
        "bytes 1-2/*",
        "bytes 1-2",
        "bytes 1-/3",
        "bytes -2/3",
        "bytes 2-1/3",
        "bytes 1-3/3",
        "bytes 1-2/3, bytes 1-2/3",
        "bytes 1-2/3x",
        "bytes +1-2/3",
        "bytes 1-2/3_0",
        "bytes \u0661-2/3",
        f"bytes 1-2/{'9' * 19}",
        f"bytes 1-2/{'9' * 5000}",
        "bytes=1-2/3",
        "items 1-2/3",
    ],
)
def test_parse_content_range_of_nonsense_is_none(text):
    assert parse_content_range(text) is None


@given(st.text() | st.from_regex(r"bytes [0-9*]{0,25}-[0-9*]{0,25}/[0-9*]{0,25}"))
def test_parse_content_range_of_any_text_is_a_part_or_none(text):
    part = parse_content_range(text)
    assert part is None or 0 <= part.first <= part.last < part.total


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("0", 0),
        ("42", 42),
        ("42, 42", 42),
        ("42,42 ,42", 42),
        ("4, 5", None),
        ("-1", None),
        ("+1", None),
        ("1_0", None),
        ("", None),
        ("1.5", None),
        ("\u0661", None),
        ("9" * 5000, None),
    ],
)
def test_parse_length_reads_one_number_only(text, length):
    assert parse_length(text) == length


@given(st.text())
def test_parse_length_of_any_text_is_a_size_or_none(text):
    length = parse_length(text)
    assert length is None or length >= 0


@pytest.mark.parametrize("tag", ['"1"', '""', '"a-b/c"', '"\xe4"'])
def test_choose_version_takes_a_strong_tag(tag):
    assert choose_version({"etag": tag}.get) == tag


@pytest.mark.parametrize(
    "tag", ['W/"1"', "1", '"', '"a"b"', '"1", "2"', '"a b"', '"a\r\nX: y"', "'1'", '"\u20ac"']
)
def test_choose_version_takes_no_other_tag_nor_then_a_date(tag):
    dated = {"last-modified": name_time(NOW - timedelta(days=1)), "date": name_time(NOW)}
    assert choose_version({"etag": tag, **dated}.get) is None


@pytest.mark.parametrize(
    ("age", "is_sure"), [(0, False), (-5, False), (59, False), (60, True), (86_400, True)]
)
def test_choose_version_takes_a_date_only_if_it_was_past_then(age, is_sure):
    changed = name_time(NOW - timedelta(seconds=age))
    version = choose_version({"last-modified": changed, "date": name_time(NOW)}.get)
    assert version == (changed if is_sure else None)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"last-modified": name_time(NOW)},
        {"date": name_time(NOW)},
        {"last-modified": "nonsense", "date": name_time(NOW)},
        {"last-modified": name_time(NOW), "date": "nonsense"},
    ],
)
def test_choose_version_without_tag_or_both_dates_is_none(headers):
    assert choose_version(headers.get) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        (" 7 ", 7),
        ("0", 0),
        ("-7", 0),
        ("7.5", 0),
        ("soon", 0),
        (name_time(NOW + timedelta(seconds=9)), 9),
        (name_time(NOW - timedelta(seconds=9)), 0),
    ],
)
def test_parse_retry_after_gives_seconds_or_nothing(text, seconds):
    assert parse_retry_after(text, NOW) == timedelta(seconds=seconds)


@given(st.text() | st.text("0123456789 :GMTFrideca,-", max_size=40))
def test_parse_date_and_retry_after_of_any_text_never_raise(text):
    assert parse_date(text) is None or parse_retry_after(text, NOW) >= timedelta(0)

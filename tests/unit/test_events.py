"""Server-sent events, whatever the chunks they come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.fal import events
from worker.fal.events import EventParser


def feed(*chunks: bytes) -> list[str]:
    parser = EventParser()
    return [text for chunk in chunks for text in parser.feed(chunk)]


def test_feed_gives_data_of_each_whole_event() -> None:
    for stream, given_back in [
        (b"data: a\ndata: b\n\ndata:c\r\n\r\n", ["a\nb", "c"]),
        (b": keep-alive\nevent: status\nid: 7\ndata: a\n\n", ["a"]),
        (b"data\n\ndatum: a\n\ndata: a\n", [""]),
        (b"\xef\xbb\xbfdata: \xff\n\n", ["\N{REPLACEMENT CHARACTER}"]),
    ]:
        assert feed(stream) == given_back


def test_feed_of_endless_event_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        feed(b"data: " + b"x" * 80 + b"\n", b"data: " + b"x" * 80)


@given(st.data(), st.lists(st.sampled_from(["a", "", " ü\u2028"]), max_size=5))
def test_feed_gives_back_what_was_written_however_it_is_cut(data, written) -> None:
    end = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    stream = b"".join(b"data: " + text.encode() + end + end for text in written)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert feed(*chunks) == written

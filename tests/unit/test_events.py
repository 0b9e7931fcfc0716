"""Server-sent events, whatever the chunks they come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.fal import events
from worker.fal.events import EventParser


def feed(*chunks: bytes) -> list[str]:
    parser = EventParser()
    return [text for chunk in chunks for text in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (b"", []),
        (b"data: a\n\n", ["a"]),
        (b"data: a\r\n\r\n", ["a"]),
        (b"data: a\r\r", ["a"]),
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data:a\n\n", ["a"]),
        (b"data:  a\n\n", [" a"]),
        (b"data\n\n", [""]),
        (b": keep-alive\n\n", []),
        (b": keep-alive\ndata: a\n\n", ["a"]),
        (b"event: status\nid: 7\nretry: 5\ndata: a\n\n", ["a"]),
        (b"\n\n\ndata: a\n\n\n\n", ["a"]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"datum: a\n\n", []),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        ("data: ü\u2028\x0b\x85\n\n".encode(), ["ü\u2028\x0b\x85"]),
        (b"data: \xff\n\n", ["\N{REPLACEMENT CHARACTER}"]),
    ],
)
def test_feed_gives_data_of_each_whole_event(stream, told) -> None:
    assert feed(stream) == told


def test_feed_gives_event_before_the_next_chunk_comes() -> None:
    parser = EventParser()
    assert list(parser.feed(b"data: a\r\n\r")) == ["a"]
    assert list(parser.feed(b"\ndata: b\n\n")) == ["b"]


def test_feed_of_endless_event_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 100)
    parser = EventParser()
    assert list(parser.feed(b"data: " + b"x" * 80 + b"\n")) == []
    with pytest.raises(ValueError, match="more than 100 bytes"):
        list(parser.feed(b"data: " + b"x" * 80))


ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
values = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=9)
comments = values.map(lambda text: b":" + text.encode())


@given(st.data(), st.lists(st.lists(values, min_size=1, max_size=3), max_size=4))
def test_feed_gives_back_what_was_written_however_it_is_cut(data, written) -> None:
    lines: list[bytes] = []
    for texts in written:
        lines += [data.draw(comments)] if data.draw(st.booleans()) else []
        lines += [b"data: " + text.encode() for text in texts]
        lines.append(b"")
    end = data.draw(ends)
    stream = b"".join(line + end for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert feed(*chunks) == ["\n".join(texts) for texts in written]

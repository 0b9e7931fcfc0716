"""A video out of a data URI: the very bytes, in little memory, or a reason."""

import base64
import hashlib
import tracemalloc
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.sinks import HashSink, MemorySink
from worker.ground.data_uri import CHUNK_CHARACTERS, is_data_uri
from worker.ground.errors import MediaRefusedError
from worker.media.download import Download, DownloadLimits
from worker.media.layout import HEAD_BYTES
from worker.media.unpack import make_marker, unpack_video

MIB = 1024 * 1024
LIMITS = DownloadLimits(timedelta(seconds=30), 64 * MIB)
SHA256 = "5f" * 32


def encode(content: bytes, head: str = "data:video/mp4;base64,") -> str:
    return head + base64.b64encode(content).decode()


def unpack(url: str, limits: DownloadLimits = LIMITS) -> tuple[bytes, Download]:
    sink = MemorySink()
    download = unpack_video(url, sink, limits=limits)
    return bytes(sink.content), download


def insert_breaks(text: str, every: int, mark: str) -> str:
    return mark.join(text[start : start + every] for start in range(0, len(text), every))


@given(st.binary(min_size=1, max_size=2000), st.sampled_from([0, 1, 2, 3, 64, 76]))
def test_unpack_gives_the_very_bytes_and_their_facts(content, every) -> None:
    head, _, text = encode(content).partition(",")
    broken = insert_breaks(text, every, "\r\n") if every else text
    unpacked, download = unpack(f"{head},{broken}")
    assert unpacked == content
    assert download == Download(
        len(content), hashlib.sha256(content).hexdigest(), "video/mp4", content[:HEAD_BYTES]
    )


@pytest.mark.parametrize("surplus", [-2, -1, 0, 1, 2])
def test_unpack_at_edges_of_slices_gives_the_very_bytes(surplus) -> None:
    content = bytes(range(256)) * (CHUNK_CHARACTERS // 256)
    content = content[: CHUNK_CHARACTERS // 4 * 3 + surplus]
    url = encode(content)
    assert unpack(url)[0] == content
    assert unpack(url.rstrip("="))[0] == content, "without padding"


@pytest.mark.parametrize(
    ("head", "content_type"),
    [
        ("data:video/webm;base64,", "video/webm"),
        ("DATA:Video/WebM;BASE64,", "video/webm"),
        ("data:video/mp4; codecs=avc1; base64,", "video/mp4"),
        ("data:;base64,", "text/plain"),
    ],
)
def test_unpack_reads_the_content_type(head, content_type) -> None:
    assert unpack(encode(b"GIF89a", head))[1].content_type == content_type


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:video/mp4,abcd", "not encoded as base64"),
        ("data:video/mp4;base64", "no data URI"),
        ("data:" + "x" * 300 + ";base64,AAAA", "no data URI"),
        ("https://v3.fal.media/a,b", "no data URI"),
        ("data:video/mp4;base64,", "is empty"),
        ("data:video/mp4;base64,AAAAA", "is spoiled"),
        ("data:video/mp4;base64,AA-_", "is spoiled"),
        ("data:video/mp4;base64,AAAÄ", "is spoiled"),
        ("data:video/mp4;base64,AA==AAAA", "is spoiled"),
        ("data:video/mp4;base64,=", "is spoiled"),
        ("data:video/mp4;base64," + "A" * (CHUNK_CHARACTERS - 1) + "=" + "AAAA", "after its end"),
        (make_marker("data:video/mp4;base64,AAAA", SHA256, 3), "not encoded as base64"),
    ],
)
def test_unpack_of_what_is_no_video_is_refused_with_the_reason(url, reason) -> None:
    with pytest.raises(MediaRefusedError, match=reason) as caught:
        unpack(url)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("surplus", "is_taken"), [(-1, True), (0, True), (1, False)])
def test_unpack_at_edge_of_largest_size(surplus, is_taken) -> None:
    content, most = b"x" * 100_000, 100_000 - surplus
    limits = DownloadLimits(timedelta(seconds=30), most)
    if is_taken:
        assert unpack(encode(content), limits)[0] == content
        return
    with pytest.raises(MediaRefusedError, match=f"larger than {most} bytes"):
        unpack(encode(content), limits)


def test_unpack_that_a_sink_or_onlooker_ends_passes_its_error_through() -> None:
    seen = []

    def look(received: int) -> None:
        seen.append(received)
        raise LookupError("taken over")

    with pytest.raises(LookupError, match="taken over"):
        unpack_video(encode(b"x" * MIB), MemorySink(), limits=LIMITS, on_progress=look)
    assert seen == [CHUNK_CHARACTERS // 4 * 3]


def test_unpack_of_many_megabytes_takes_little_memory() -> None:
    content = bytes(range(256)) * (32 * MIB // 256)
    url = encode(content)
    sink = HashSink()
    tracemalloc.start()
    try:
        download = unpack_video(url, sink, limits=LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (download.bytes, download.sha256) == (len(content), sink.sha256())
    assert sink.sha256() == hashlib.sha256(content).hexdigest()
    assert peak < 2 * MIB


def test_marker_is_short_and_inline_and_tells_what_was_there() -> None:
    marker = make_marker(encode(b"x" * MIB), SHA256, MIB)
    assert marker == f"data:video/mp4;archived;sha256={SHA256};bytes={MIB},"
    assert is_data_uri(marker)

"""A download that broke off goes on where it was, or begins anew, and ends with the very bytes."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.sinks import CallSink, MemorySink
from tests.media.conftest import Answer, MediaHandler
from worker.ground.errors import MediaGoneError, MediaRefusedError, MediaUnavailableError
from worker.media.download import PROGRESS_BYTES, DownloadLimits, download_video
from worker.media.pinned import REPETITIONS, RESUMPTIONS, MediaClient

VIDEO = bytes(range(256)) * 4096
HALF = len(VIDEO) // 2
LIMITS = DownloadLimits(timedelta(seconds=30), 100 * 1024 * 1024)
LONG_AGO = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)


@dataclass(frozen=True)
class File:
    """A host's answer, right unless told otherwise; `cut` is where it breaks off."""

    content: bytes = VIDEO
    tag: str | None = '"1"'
    changed: str | None = None
    cut: int | None = None
    has_ranges: bool = True
    has_length: bool = True
    content_range: str | None = None
    part_tag: str | None = None

    def __call__(self, handler: MediaHandler) -> None:
        start = self._choose_start(handler)
        body, headers = self.content[start:], self._compose_headers(start)
        if self.has_length:
            headers["Content_Length"] = str(len(body))
        handler.answer(200 if start == 0 else 206, **headers)
        handler.wfile.write(body if self.cut is None else body[: self.cut])

    def _choose_start(self, handler: MediaHandler) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        condition = handler.headers.get("If-Range")
        is_same = condition in {self.tag, self.changed} or self.part_tag is not None
        if asked is None or not self.has_ranges or not is_same:
            return 0
        return int(asked[1])

    def _compose_headers(self, start: int) -> dict[str, str]:
        tag = self.part_tag if start > 0 and self.part_tag is not None else self.tag
        said = {"ETag": tag, "Last_Modified": self.changed, "Content_Type": "video/mp4"}
        if start > 0:
            whole = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
            said["Content_Range"] = whole if self.content_range is None else self.content_range
        return {name: value for name, value in said.items() if value}


def fail_with(status: int, **headers: str) -> Answer:
    return lambda handler: handler.answer(status, Content_Length="0", **headers)


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def download(server, waits):
    """Let the host give these answers in turn, the last one for ever."""

    def run(*answers: Answer, sink: MemorySink | None = None, limits: DownloadLimits = LIMITS):
        left = list(answers)

        def answer_in_turn(handler: MediaHandler) -> None:
            answer = left.pop(0) if left[1:] else left[0]
            answer(handler)

        url = server.serve("/v", answer_in_turn)
        client = MediaClient(sleep=waits.append, draw=lambda: 0.5)
        kept = MemorySink() if sink is None else sink
        told = download_video(url, kept, client=client, hosts=server.hosts, limits=limits)
        assert (told.bytes, told.sha256) == (len(kept.content), kept.sha256())
        return told, kept

    return run


@pytest.fixture
def ranges(server) -> Callable[[], list[tuple[str | None, str | None]]]:
    return lambda: [(one["Range"], one["If-Range"]) for one in server.received]


def test_download_that_broke_off_goes_on_where_it_was(download, ranges, waits):
    told, sink = download(File(cut=HALF), File())
    assert (sink.content, sink.restarts) == (VIDEO, 0)
    assert ranges() == [(None, None), (f"bytes={HALF}-", '"1"')]
    assert (told.announced, told.content_type) == (len(VIDEO), "video/mp4")
    assert told.sha256 == hashlib.sha256(VIDEO).hexdigest()
    assert len(waits) == 1


def test_download_that_breaks_off_again_and_again_goes_on_each_time(download, ranges):
    cuts = [File(cut=1000 * number) for number in range(1, RESUMPTIONS + 1)]
    _, sink = download(*cuts, File())
    assert (sink.content, sink.restarts) == (VIDEO, 0)
    starts = [int(str(asked).strip("bytes=-")) for asked, _ in ranges()[1:]]
    assert starts == [1000, 3000, 6000, 10000, 15000]


def test_download_that_makes_no_progress_ends_after_its_tries(download, server):
    with pytest.raises(MediaUnavailableError, match="broke off"):
        download(File(cut=1000))
    assert len(server.received) == 1 + RESUMPTIONS


def test_download_that_makes_progress_may_break_off_more_often(download, server):
    content = bytes(PROGRESS_BYTES * (RESUMPTIONS + 5))
    _, sink = download(File(content=content, cut=PROGRESS_BYTES))
    assert (sink.content, sink.restarts) == (content, 0)
    assert len(server.received) == RESUMPTIONS + 5


def test_download_without_any_length_goes_on_and_learns_it(download):
    def cut_chunk(handler):
        handler.answer(Transfer_Encoding="chunked", ETag='"1"')
        handler.wfile.write(b"100000\r\n" + VIDEO[:HALF])

    told, sink = download(cut_chunk, File())
    assert (sink.content, sink.restarts) == (VIDEO, 0)
    assert told.announced == len(VIDEO)


@pytest.mark.parametrize("trouble", [502, 429])
def test_download_whose_host_is_busy_in_between_goes_on(download, ranges, trouble):
    _, sink = download(fail_with(503), File(cut=HALF), fail_with(trouble), File())
    assert (sink.content, sink.restarts) == (VIDEO, 0)
    assert ranges()[2] == ranges()[3] == (f"bytes={HALF}-", '"1"')


# ------------------------------------------------------------------ from zero


@pytest.mark.parametrize(
    "second",
    [
        File(has_ranges=False),
        File(tag='"2"'),
        File(tag=None),
        File(tag='"2"', content=VIDEO[:1000]),
    ],
)
def test_download_whose_resumption_is_answered_with_the_whole_begins_anew(download, second):
    told, sink = download(File(cut=HALF), second)
    assert (sink.content, sink.restarts) == (second.content, 1)
    assert told.announced == len(second.content)


@pytest.mark.parametrize(
    "first",
    [
        *map(File, [VIDEO] * 7, [None, 'W/"1"', "1", '"', '"a"b"', '"1", "2"', '"a b"']),
        File(tag='W/"1"', changed=LONG_AGO),
        File(tag=None, changed=LONG_AGO),
    ],
)
def test_download_of_an_unsure_version_begins_anew_without_asking_for_a_part(
    download, ranges, first
):
    _, sink = download(replace(first, cut=HALF), first)
    assert (sink.content, sink.restarts) == (VIDEO, 1)
    assert ranges() == [(None, None)] * 2


def test_download_that_is_not_satisfiable_begins_anew(download, ranges):
    refused = fail_with(416, Content_Range=f"bytes */{HALF}")
    _, sink = download(File(cut=HALF), refused, File())
    assert (sink.content, sink.restarts) == (VIDEO, 1)
    assert ranges()[2] == (None, None)


@pytest.mark.parametrize(
    "content_range",
    [
        f"bytes 0-{len(VIDEO) - 1}/{len(VIDEO)}",
        f"bytes {HALF + 1}-{len(VIDEO) - 1}/{len(VIDEO)}",
        f"bytes {HALF}-{len(VIDEO) - 2}/{len(VIDEO)}",
        f"bytes {HALF}-{len(VIDEO)}/{len(VIDEO) + 1}",
        f"bytes {HALF}-{len(VIDEO) - 1}/*",
        f"lines {HALF}-{len(VIDEO) - 1}/{len(VIDEO)}",
        "",
    ],
)
def test_download_given_another_part_than_asked_begins_anew(download, ranges, content_range):
    _, sink = download(File(cut=HALF), File(content_range=content_range), File())
    assert (sink.content, sink.restarts) == (VIDEO, 1)
    assert ranges()[2] == (None, None)


def test_download_given_a_part_of_another_version_begins_anew(download, ranges):
    _, sink = download(File(cut=HALF), File(part_tag='"2"', content=VIDEO[::-1]), File())
    assert (sink.content, sink.restarts) == (VIDEO, 1)


def test_download_from_a_host_that_never_serves_parts_ends_after_its_tries(download, server):
    sink = MemorySink()
    with pytest.raises(MediaUnavailableError, match="broke off"):
        download(File(has_ranges=False, cut=HALF), sink=sink)
    assert len(server.received) == 1 + RESUMPTIONS
    assert sink.restarts == RESUMPTIONS


def test_download_of_more_than_announced_begins_anew(download):
    def lie(handler):
        handler.answer(Transfer_Encoding="chunked", Content_Length="5", ETag='"1"')
        handler.wfile.write(b"6\r\nsixsix\r\n0\r\n\r\n")

    _, sink = download(lie, File())
    assert (sink.content, sink.restarts) == (VIDEO, 1)


# ------------------------------------------------------------------ what ends it


def test_download_whose_url_expires_in_between_is_gone(download):
    with pytest.raises(MediaGoneError, match="HTTP 410"):
        download(File(cut=HALF), fail_with(410))


def test_download_that_grows_beyond_the_limit_in_between_is_refused(download):
    limits = DownloadLimits(LIMITS.total, len(VIDEO))
    larger = File(tag='"2"', content=VIDEO + b"x")
    with pytest.raises(MediaRefusedError, match="larger than"):
        download(File(cut=HALF), larger, limits=limits)


def test_download_whose_sink_fails_after_a_resumption_passes_its_error_through(download):
    def fail_late(_):
        if len(sink.content) >= HALF:
            raise OSError("disk full")

    sink = CallSink(fail_late)
    with pytest.raises(OSError, match="disk full"):
        download(File(cut=HALF), File(), sink=sink)


@pytest.mark.parametrize(
    ("answer", "tries"), [(File(cut=0), RESUMPTIONS), (fail_with(503), REPETITIONS)]
)
def test_download_waits_longer_each_time_but_never_long(download, waits, answer, tries):
    with pytest.raises(MediaUnavailableError):
        download(answer)
    assert len(waits) == tries
    assert all(later == 2 * earlier for earlier, later in pairwise(waits))
    assert waits[0] > 0
    assert waits[-1] <= 5


def test_download_that_has_no_time_for_the_wait_ends_at_once(download, server, waits):
    limits = DownloadLimits(timedelta(seconds=0.2), LIMITS.max_bytes)
    with pytest.raises(MediaUnavailableError, match="HTTP 503"):
        download(fail_with(503, Retry_After="5"), limits=limits)
    assert (len(server.received), waits) == (1, [])


@pytest.mark.parametrize("is_date", [True, False])
def test_download_waits_as_long_as_it_is_asked_to(download, waits, is_date):
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=8), usegmt=True)
    _, sink = download(fail_with(429, Retry_After=at if is_date else "8"), File())
    assert sink.content == VIDEO
    assert 5 < waits[0] < 10


@pytest.mark.parametrize("retry_after", ["11", "9" * 40, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_download_asked_to_wait_for_long_leaves_it_to_its_row(download, server, waits, retry_after):
    with pytest.raises(MediaUnavailableError, match="HTTP 429"):
        download(fail_with(429, Retry_After=retry_after))
    assert (len(server.received), waits) == (1, [])


@pytest.mark.parametrize("retry_after", ["-1", "soon"])
def test_download_asked_to_wait_for_nonsense_waits_as_usual(download, waits, retry_after):
    _, sink = download(fail_with(429, Retry_After=retry_after), File())
    assert sink.content == VIDEO
    assert 0 < waits[0] <= 1


def test_download_that_breaks_off_lets_its_onlooker_end_it_before_the_next_try(server, download):
    class ClaimLostError(Exception):
        pass

    def lose(_):
        if len(server.received) == 1 and server.hung_up.is_set():
            raise ClaimLostError

    def cut(handler):
        File(cut=HALF)(handler)
        server.hung_up.set()

    url = server.serve("/v", cut)
    client = MediaClient(sleep=lambda _: server.hung_up.wait(10))
    with pytest.raises(ClaimLostError):
        download_video(
            url,
            MemorySink(),
            client=client,
            hosts=server.hosts,
            limits=LIMITS,
            on_progress=lose,
        )
    assert len(server.received) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.builds(File, cut=st.integers(0, len(VIDEO))),
            st.builds(File, cut=st.integers(0, HALF), has_ranges=st.just(False)),
            st.builds(File, cut=st.integers(0, HALF), tag=st.sampled_from(['"2"', 'W/"1"', None])),
            st.builds(File, content_range=st.sampled_from(["", "bytes 0-1/2", "bytes 5-6/*"])),
        ),
        max_size=RESUMPTIONS,
    )
)
def test_download_through_any_troubles_within_its_tries_gives_the_very_bytes(download, troubles):
    """Versions differ in name only, so that whatever was put together must be the video."""
    _, sink = download(*troubles, File())
    assert sink.content == VIDEO

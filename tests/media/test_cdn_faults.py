"""A download from the emulator's CDN, which fails in every way it knows."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import httpx
import pytest

from tests.emulator.processes import Emulator, start_emulator
from tests.harness.sinks import MemorySink
from worker.ground.errors import MediaGoneError
from worker.media.download import MAX_REDIRECTS, Download, DownloadLimits, download_video
from worker.media.hosts import parse_media_hosts
from worker.media.pinned import REPETITIONS, RESUMPTIONS, MediaClient

LIMITS = DownloadLimits(timedelta(seconds=30), 10 * 1024 * 1024)
CLIENT = MediaClient(sleep=lambda _: None)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Emulator]:
    with start_emulator(tmp_path_factory.mktemp("cdn"), "--render", "fake") as emulator:
        yield emulator


@pytest.fixture
def cdn(running) -> Iterator[Emulator]:
    yield running
    running.client.delete("/_emulator/faults")
    assert running.client.get("/_emulator/leaks").json() == []


@pytest.fixture
def request_id(cdn) -> str:
    done = cdn.submit()
    cdn.wait_for_status(done, "COMPLETED")
    return str(done)


@pytest.fixture
def read_url(cdn, request_id) -> Callable[[], str]:
    """The URL as the result names it now."""
    return lambda: str(cdn.get_result(request_id).json()["video"]["url"])


@pytest.fixture
def whole(cdn, read_url) -> bytes:
    """Asked for without a key: that any came here is what the last check would tell."""
    content = httpx.get(read_url(), trust_env=False).content
    assert len(content) > 5000
    return content


@pytest.fixture
def fetch(cdn, read_url, whole) -> Callable[..., tuple[Download, MemorySink]]:
    """Download while these faults are in force, each `times` times, in their order."""

    def run(*faults):
        cdn.order(*({"point": "cdn", **one} for one in faults))
        sink, hosts = MemorySink(), parse_media_hosts(cdn.url.removeprefix("http://"))
        told = download_video(read_url(), sink, client=CLIENT, hosts=hosts, limits=LIMITS)
        return told, sink

    return run


def cut(kind: str = "truncate", times: int = 1, **options: object) -> dict[str, object]:
    return {"kind": kind, "bytes": 1000, "times": times, **options}


def test_undisturbed_download_tells_all_there_is(fetch, whole):
    told, sink = fetch()
    assert sink.content == whole
    assert (told.bytes, told.announced, told.content_type) == (len(whole), len(whole), "video/mp4")


@pytest.mark.parametrize(
    ("faults", "restarts"),
    [
        # goes on where it was
        ([cut(times=RESUMPTIONS)], 0),
        ([{"kind": "drop", "times": RESUMPTIONS}], 0),
        ([{"kind": "status", "code": 503, "times": REPETITIONS}], 0),
        ([cut(), {"kind": "status", "code": 502, "times": 1}], 0),
        # begins anew
        ([cut(), {"kind": "no_ranges"}], 1),
        ([cut(), {"kind": "new_version", "times": 1}], 1),
        ([{"kind": "wrong_length", "surplus": 9, "times": 1}], 1),
        # all the same
        ([{"kind": "redirect", "hops": MAX_REDIRECTS}], 0),
        ([{"kind": "wrong_type", "content_type": "text/plain"}], 0),
    ],
)
def test_download_through_faults_gives_the_very_bytes(fetch, whole, faults, restarts):
    told, sink = fetch(*faults)
    assert sink.content == whole
    assert (told.announced, sink.restarts) == (len(whole), restarts)


def test_download_of_an_expired_url_is_gone_and_the_fresh_url_of_the_result_works(
    fetch, whole, read_url
):
    old = read_url()
    with pytest.raises(MediaGoneError, match="HTTP 410"):
        fetch({"kind": "expire", "code": 410, "times": 1})
    assert read_url() != old
    _, sink = fetch()
    assert sink.content == whole


def test_download_of_a_page_or_a_short_file_is_for_verification_to_see(fetch, whole):
    """Nothing tells a download: it reports what came, and what had been announced."""
    told, sink = fetch({"kind": "html"})
    assert (told.content_type, sink.content[:9]) == ("text/html; charset=utf-8", b"<!DOCTYPE")
    told, sink = fetch({"kind": "wrong_length", "surplus": -9})
    assert (sink.content, told.announced) == (whole[:-9], len(whole) - 9)

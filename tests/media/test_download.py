import hashlib
import socket
import time
import tracemalloc
from datetime import timedelta

import pytest

from tests.harness.sinks import CallSink, HashSink, MemorySink
from tests.media.conftest import Answer, MediaHandler
from worker.ground.errors import MediaGoneError, MediaRefusedError, MediaUnavailableError
from worker.media.download import Download, DownloadLimits, download_video
from worker.media.hosts import parse_media_hosts
from worker.media.layout import HEAD_BYTES
from worker.media.pinned import REPETITIONS, RESUMPTIONS, MediaClient, Pace

VIDEO = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 4000
LIMITS = DownloadLimits(total=timedelta(seconds=30), max_bytes=100 * 1024 * 1024)


@pytest.fixture
def client() -> MediaClient:
    """Tries again as often as any, but without pauses."""
    return MediaClient(sleep=lambda _: None)


@pytest.fixture
def download(server, client):
    """Download a URL of `server`; keyword arguments replace the usual ones."""

    def run(url, sink=None, **changes):
        usual = {"client": client, "hosts": server.hosts, "limits": LIMITS}
        return download_video(url, sink or MemorySink(), **(usual | changes))

    return run


def send_video(handler: MediaHandler) -> None:
    handler.answer(Content_Length=str(len(VIDEO)), Content_Type="video/mp4")
    handler.wfile.write(VIDEO)


def redirect_to(location: str, status: int = 302) -> Answer:
    return lambda handler: handler.answer(status, Location=location, Content_Length="0")


def send_chunked(body: bytes, **headers: str) -> Answer:
    def answer(handler: MediaHandler) -> None:
        handler.answer(Transfer_Encoding="chunked", **headers)
        chunks = [body] if body else []
        for chunk in [*chunks, b""]:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    return answer


def test_download_video_whole_body_gives_bytes_hash_and_type(server, download):
    sink = MemorySink()
    progress: list[int] = []

    result = download(server.serve("/v.mp4", send_video), sink, on_progress=progress.append)

    assert sink.content == VIDEO
    assert result == Download(
        bytes=len(VIDEO),
        sha256=hashlib.sha256(VIDEO).hexdigest(),
        content_type="video/mp4",
        head=VIDEO[:HEAD_BYTES],
        announced=len(VIDEO),
    )
    assert progress == sorted(set(progress))
    assert progress[-1] == len(VIDEO)


def test_download_video_without_length_or_type_reads_to_the_end(server, download):
    def answer(handler):
        handler.answer()
        handler.wfile.write(b"short")

    result = download(server.serve("/v", answer))

    assert result == Download(5, hashlib.sha256(b"short").hexdigest(), None, b"short", None)


def test_download_video_sends_nothing_of_ours(server, download, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://user:secret@127.0.0.1:1")

    download(server.serve("/v.mp4", send_video))

    (headers,) = server.received
    assert dict(headers.items()) == {
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Host": server.place,
        "User-Agent": "extend-video",
    }


def test_download_video_cookie_from_redirect_is_not_sent_on(server, download):
    url = server.serve(
        "/old",
        lambda handler: handler.answer(
            302, Location="/v.mp4", Set_Cookie="a=1", Content_Length="0"
        ),
    )
    server.serve("/v.mp4", send_video)

    download(url)

    assert [headers["Cookie"] for headers in server.received] == [None, None]


@pytest.mark.parametrize("status", [301, 308])
def test_download_video_redirect_to_named_host_is_followed(server, start_server, download, status):
    other = start_server()
    target = other.serve("/v.mp4", send_video)
    hosts = parse_media_hosts(f"{server.place},{other.place}")

    result = download(server.serve("/old", redirect_to(target, status)), hosts=hosts)

    assert result.bytes == len(VIDEO)


def test_download_video_five_redirects_are_followed(server, download):
    for hop in range(5):
        server.serve(f"/{hop}", redirect_to(f"/{hop + 1}"))
    server.serve("/5", send_video)

    assert download(f"http://{server.place}/0").bytes == len(VIDEO)


def test_download_video_redirect_loop_is_refused_after_six_requests(server, download):
    with pytest.raises(MediaRefusedError, match="more than 5 times"):
        download(server.serve("/loop", redirect_to("/loop")))

    assert len(server.received) == 6


def test_download_video_redirect_to_stranger_is_refused_unasked(server, start_server, download):
    stranger = start_server()
    target = stranger.serve("/v.mp4", send_video)

    with pytest.raises(MediaRefusedError, match="not allowed by FAL_MEDIA_HOSTS"):
        download(server.serve("/old", redirect_to(target)))

    assert stranger.received == []


def test_download_video_from_stranger_is_refused_unasked(server, download):
    with pytest.raises(MediaRefusedError, match="not allowed by FAL_MEDIA_HOSTS"):
        download(server.serve("/v", send_video), hosts=parse_media_hosts("*.fal.media"))

    assert server.received == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://a:99999/"])
def test_download_video_redirect_elsewhere_is_refused(server, download, location):
    with pytest.raises(MediaRefusedError):
        download(server.serve("/old", redirect_to(location)))


def test_download_video_redirect_to_no_url_is_unavailable(server, download):
    with pytest.raises(MediaUnavailableError, match="location"):
        download(server.serve("/old", redirect_to("http://[1]/")))


def test_download_video_redirect_without_location_is_unavailable(server, download):
    with pytest.raises(MediaUnavailableError, match="HTTP 302"):
        download(server.serve("/old", lambda handler: handler.answer(302)))


@pytest.mark.parametrize("status", [408, 429, 503])
def test_download_video_passing_status_is_unavailable_after_a_few_tries(server, download, status):
    with pytest.raises(MediaUnavailableError, match=f"HTTP {status}"):
        download(server.serve("/v", lambda handler: handler.answer(status)))

    assert len(server.received) == 1 + REPETITIONS


@pytest.mark.parametrize("status", [204, 206, 304])
def test_download_video_strange_status_is_unavailable_at_once(server, download, status):
    with pytest.raises(MediaUnavailableError, match=f"HTTP {status}"):
        download(server.serve("/v", lambda handler: handler.answer(status)))

    assert len(server.received) == 1


@pytest.mark.parametrize("status", [401, 416])
def test_download_video_lasting_status_is_refused_at_once(server, download, status):
    with pytest.raises(MediaRefusedError, match=f"HTTP {status}"):
        download(server.serve("/v", lambda handler: handler.answer(status)))

    assert len(server.received) == 1


@pytest.mark.parametrize("status", [403, 404, 410])
def test_download_video_of_an_expired_url_is_gone_at_once(server, download, status):
    with pytest.raises(MediaGoneError, match=f"HTTP {status}"):
        download(server.serve("/v", lambda handler: handler.answer(status)))

    assert len(server.received) == 1


def test_download_video_encoded_body_is_refused(server, download):
    with pytest.raises(MediaRefusedError, match="encoded"):
        download(server.serve("/v", send_chunked(b"zipped", Content_Encoding="gzip")))


def test_download_video_transfer_encoded_otherwise_is_refused(server, download):
    def zipped(handler):
        handler.answer(Transfer_Encoding="gzip, chunked")

    with pytest.raises(MediaRefusedError, match="encoded"):
        download(server.serve("/v", zipped))


def test_download_video_cut_short_is_unavailable(server, download):
    def answer(handler):
        handler.answer(Content_Length=str(len(VIDEO)))
        handler.wfile.write(VIDEO[:-1])

    with pytest.raises(MediaUnavailableError, match="broke off"):
        download(server.serve("/v", answer))


def test_download_video_cut_chunk_is_unavailable(server, download):
    def answer(handler):
        handler.answer(Transfer_Encoding="chunked")
        handler.wfile.write(b"10\r\nhalf")

    with pytest.raises(MediaUnavailableError, match="broke off"):
        download(server.serve("/v", answer))


@pytest.mark.parametrize("announced", [5, 7])
def test_download_video_other_length_than_announced_is_unavailable(server, download, announced):
    lying = send_chunked(b"sixsix", Content_Length=str(announced))

    with pytest.raises(MediaUnavailableError, match=f"6 bytes came, {announced} were announced"):
        download(server.serve("/v", lying))


def test_download_video_bytes_beyond_the_announced_are_not_taken(server, download):
    def answer(handler):
        handler.answer(Content_Length="4")
        handler.wfile.write(b"fourmore")

    sink = MemorySink()
    assert download(server.serve("/v", answer), sink).bytes == 4
    assert sink.content == b"four"


def test_download_video_length_announced_twice_is_taken(server, download):
    def answer(handler):
        handler.send_response(200)
        for _ in range(2):
            handler.send_header("Content-Length", "4")
        handler.end_headers()
        handler.wfile.write(b"four")

    assert download(server.serve("/v", answer)).bytes == 4


@pytest.mark.parametrize("length", ["nonsense", "4, 5"])
def test_download_video_senseless_length_is_unavailable(server, download, length):
    with pytest.raises(MediaUnavailableError, match="Content-Length"):
        download(server.serve("/v", lambda handler: handler.answer(Content_Length=length)))


@pytest.mark.parametrize("answer", [send_chunked(b""), lambda handler: handler.answer()])
def test_download_video_empty_body_is_unavailable(server, download, answer):
    with pytest.raises(MediaUnavailableError, match="empty"):
        download(server.serve("/v", answer))


def test_download_video_announced_over_limit_is_refused_unread(server, download):
    sink = MemorySink()
    limits = DownloadLimits(total=LIMITS.total, max_bytes=len(VIDEO) - 1)

    with pytest.raises(MediaRefusedError, match=f"larger than {len(VIDEO) - 1} bytes"):
        download(server.serve("/v", send_video), sink, limits=limits)

    assert sink.content == b""


def test_download_video_endless_body_is_refused_at_the_limit(server, download):
    def answer(handler):
        handler.answer()
        while not handler.server.closing.is_set():
            handler.wfile.write(bytes(65536))

    sink = MemorySink()
    limits = DownloadLimits(total=LIMITS.total, max_bytes=1_000_000)

    with pytest.raises(MediaRefusedError, match="larger than 1000000 bytes"):
        download(server.serve("/v", answer), sink, limits=limits)

    assert len(sink.content) <= 1_000_000
    assert server.hung_up.wait(10)


def test_download_video_exactly_at_limit_is_taken(server, download):
    limits = DownloadLimits(total=LIMITS.total, max_bytes=len(VIDEO))

    assert download(server.serve("/v", send_video), limits=limits).bytes == len(VIDEO)


def test_download_video_slow_drip_ends_at_the_total_limit(server, download):
    def drip(handler):
        handler.answer(Content_Length="100000")
        while not handler.server.closing.wait(0.02):
            handler.wfile.write(b"x")

    started = time.monotonic()
    limits = DownloadLimits(total=timedelta(seconds=0.3), max_bytes=LIMITS.max_bytes)

    with pytest.raises(MediaUnavailableError, match="longer than its time limit"):
        download(server.serve("/v", drip), limits=limits)

    assert 0.3 <= time.monotonic() - started < 5


def test_download_video_slow_redirects_end_at_the_total_limit(server, download):
    def redirect_late(handler):
        handler.server.closing.wait(0.2)
        redirect_to("/loop")(handler)

    limits = DownloadLimits(total=timedelta(seconds=0.3), max_bytes=LIMITS.max_bytes)

    with pytest.raises(MediaUnavailableError):
        download(server.serve("/loop", redirect_late), limits=limits)

    assert len(server.received) <= 2


def test_download_video_no_time_left_is_unavailable_unasked(server, download):
    limits = DownloadLimits(total=timedelta(0), max_bytes=1)

    with pytest.raises(MediaUnavailableError, match="time limit"):
        download(server.serve("/v", send_video), limits=limits)

    assert server.received == []


def test_download_video_dripping_headers_end_at_the_total_limit(server, download):
    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
        while not handler.server.closing.wait(0.02):
            handler.wfile.write(b"x")

    started = time.monotonic()
    limits = DownloadLimits(total=timedelta(seconds=0.3), max_bytes=LIMITS.max_bytes)

    with pytest.raises(MediaUnavailableError, match="longer than its time limit"):
        download(server.serve("/v", drip), limits=limits)

    assert 0.3 <= time.monotonic() - started < 5
    assert server.hung_up.wait(10)


def test_download_video_body_without_length_that_the_limit_cuts_is_not_taken_for_whole(
    server, download
):
    def stop_midway(handler):
        handler.answer()
        handler.wfile.write(VIDEO)
        handler.server.closing.wait()

    limits = DownloadLimits(total=timedelta(seconds=0.3), max_bytes=LIMITS.max_bytes)

    with pytest.raises(MediaUnavailableError, match="longer than its time limit"):
        download(server.serve("/v", stop_midway), limits=limits)


def fall_silent(handler: MediaHandler) -> None:
    handler.server.closing.wait()


def test_download_video_silent_server_is_unavailable(server, download):
    impatient = MediaClient(read_time=timedelta(seconds=0.1), sleep=lambda _: None)

    with pytest.raises(MediaUnavailableError, match="gives no answer: ReadTimeout"):
        download(server.serve("/v", fall_silent), client=impatient)

    assert len(server.received) == 1 + RESUMPTIONS


def test_download_video_nobody_listening_is_unavailable(download):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{reserved.getsockname()[1]}"

        with pytest.raises(MediaUnavailableError, match="gives no answer: ConnectError"):
            download(f"http://{place}/v", hosts=parse_media_hosts(place))


def test_download_video_plain_server_asked_by_tls_is_unavailable(server, download):
    with pytest.raises(MediaUnavailableError, match="SSL"):
        download(f"https://{server.place}/v")


@pytest.mark.parametrize("words", [b"nonsense\r\n\r\n", b""])
def test_download_video_of_no_http_is_unavailable(server, download, words):
    with pytest.raises(MediaUnavailableError, match="gives no answer"):
        download(server.serve("/v", lambda handler: handler.wfile.write(words)))


def test_download_video_raising_sink_passes_its_error_through(server, download):
    def fail(_):
        raise OSError("sink")

    with pytest.raises(OSError, match="sink"):
        download(server.serve("/v", send_video), CallSink(fail))

    assert len(server.received) == 1


def test_download_video_raising_progress_stops_the_download(server, download):
    class ClaimLostError(Exception):
        pass

    def lose_claim(_):
        raise ClaimLostError

    sink = MemorySink()
    with pytest.raises(ClaimLostError):
        download(server.serve("/v", send_video), sink, on_progress=lose_claim)

    assert len(sink.content) < len(VIDEO)


def test_download_video_of_64_mib_needs_little_memory(server, download):
    block, blocks = bytes(1024 * 1024), 64

    def answer(handler):
        handler.answer(Content_Length=str(len(block) * blocks))
        for _ in range(blocks):
            handler.wfile.write(block)

    url = server.serve("/v", answer)
    tracemalloc.start()
    try:
        result = download(url, HashSink())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert result.bytes == len(block) * blocks
    assert peak < 8 * 1024 * 1024


def test_download_video_at_a_pace_reads_small_chunks_and_waits_for_each(server, download):
    waits: list[float] = []
    pace = Pace(64 * 1024, clock=lambda: sum(waits), sleep=waits.append)
    sizes: list[int] = []

    paced = MediaClient(pace=pace)
    download(
        server.serve("/v", send_video), CallSink(lambda one: sizes.append(len(one))), client=paced
    )

    assert sum(waits) == pytest.approx(len(VIDEO) / (64 * 1024))
    assert max(sizes) <= pace.chunk_bytes

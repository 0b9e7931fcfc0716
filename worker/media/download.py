"""Fetch a video over HTTP, chunk by chunk, into any sink.

What can change by itself is a MediaUnavailableError: no connection, silence, a body cut short,
408, 425, 429 and 5xx. What cannot is a MediaRefusedError: other 4xx, a host nobody named, too many
bytes.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

import httpx

from worker.errors import MediaRefusedError, MediaUnavailableError
from worker.media.hosts import MediaHosts, check_media_url

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
MAX_REDIRECTS = 5
HEAD_BYTES = 256

OK = 200
REFUSALS = frozenset(range(400, 500)) - {408, 425, 429}
# nothing of the client's own headers, cookies or credentials goes to a media host
REQUEST_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "extend-video"}

Chunk: TypeAlias = bytes
Sink: TypeAlias = Callable[[Chunk], object]


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """`total` bounds the whole download, redirects included; `max_bytes` bounds the body."""

    total: timedelta
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Download:
    """What was received: count, sha256 (hex), the header Content-Type, and the first bytes."""

    bytes: int
    sha256: str
    content_type: str | None
    head: Chunk


class Intake:
    """Passes chunks on to the sink, and checks and counts what goes through."""

    def __init__(
        self, sink: Sink, max_bytes: int, on_progress: Callable[[int], None] | None
    ) -> None:
        self.received = 0
        self._sink = sink
        self._max_bytes = max_bytes
        self._on_progress = on_progress
        self._digest = hashlib.sha256()
        self._head = b""

    def take(self, chunk: Chunk) -> None:
        self.received += len(chunk)
        _check_size(self.received, self._max_bytes)
        self._digest.update(chunk)
        self._head += chunk[: HEAD_BYTES - len(self._head)]
        self._sink(chunk)
        if self._on_progress is not None:
            self._on_progress(self.received)

    def finish(self, content_type: str | None) -> Download:
        return Download(self.received, self._digest.hexdigest(), content_type, self._head)


def media_client() -> httpx.Client:
    """Build the client for downloads: bounded waits, no proxies or netrc, no own redirects."""
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    return httpx.Client(timeout=timeout, trust_env=False, follow_redirects=False)


def download_video(
    url: str,
    sink: Sink,
    *,
    client: httpx.Client,
    hosts: MediaHosts,
    limits: DownloadLimits,
    on_progress: Callable[[int], None] | None = None,
) -> Download:
    """Stream the video at `url` into `sink`; memory stays at one chunk.

    `on_progress` gets the bytes so far after every chunk (at most 64 KiB apart). What it or the
    sink raises ends the download and passes through unchanged. The limit on time is looked at
    before every request and on every chunk of a body, so it may be passed by one read timeout;
    dripping headers are bound by the read timeout alone.

    Raises MediaUnavailableError and MediaRefusedError. Some chunks may be in the sink by then.
    """
    deadline = time.monotonic() + limits.total.total_seconds()
    with _open_video(url, client, hosts, deadline) as response:
        expected = _read_length(response, limits.max_bytes)
        intake = Intake(sink, limits.max_bytes, on_progress)
        for chunk in _read_chunks(response):
            _remaining_seconds(deadline)
            intake.take(chunk)
        _check_length(intake.received, expected)
        return intake.finish(response.headers.get("content-type") or None)


@contextmanager
def _open_video(
    url: str, client: httpx.Client, hosts: MediaHosts, deadline: float
) -> Iterator[httpx.Response]:
    """Follow redirects by hand: each hop has to pass the host check before it is asked."""
    address = check_media_url(url, hosts)
    for _ in range(MAX_REDIRECTS + 1):
        with closing(_send_request(address, client, deadline)) as response:
            if response.next_request is None:
                _check_answer(response)
                yield response
                return
            address = check_media_url(str(response.next_request.url), hosts)
    raise MediaRefusedError(f"the video URL redirects more than {MAX_REDIRECTS} times")


def _send_request(address: httpx.URL, client: httpx.Client, deadline: float) -> httpx.Response:
    remaining = _remaining_seconds(deadline)
    timeout = {
        name: remaining if seconds is None else min(seconds, remaining)
        for name, seconds in client.timeout.as_dict().items()
    }
    request = httpx.Request(
        "GET", address, headers=REQUEST_HEADERS, extensions={"timeout": timeout}
    )
    try:
        return client.send(request, stream=True, auth=None, follow_redirects=False)
    except httpx.RequestError as error:
        raise _describe_break(error) from error


def _check_answer(response: httpx.Response) -> None:
    status = response.status_code
    if status in REFUSALS:
        raise MediaRefusedError(f"{response.url.host} refuses the video: HTTP {status}")
    if status != OK:
        raise MediaUnavailableError(f"{response.url.host} has no video now: HTTP {status}")
    coding = response.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise MediaRefusedError(f"{response.url.host} sends the video encoded, though not asked to")


def _read_length(response: httpx.Response, max_bytes: int) -> int | None:
    text = response.headers.get("content-length")
    length = None if text is None else int(text)  # the HTTP parser lets only digits pass
    _check_size(length or 0, max_bytes)
    return length


def _read_chunks(response: httpx.Response) -> Iterator[bytes]:
    """Yield what each read of the socket gave: gathering larger chunks would let a drip hide."""
    try:
        yield from response.iter_raw()
    except httpx.RequestError as error:
        raise _describe_break(error) from error


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise MediaRefusedError(f"the video is larger than {max_bytes} bytes")


def _check_length(received: int, expected: int | None) -> None:
    if received == 0:
        raise MediaUnavailableError("the video is empty")
    if expected not in (None, received):
        raise MediaUnavailableError(f"{received} bytes came, {expected} were announced")


def _remaining_seconds(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise MediaUnavailableError("the download took longer than its time limit")
    return remaining


def _describe_break(error: httpx.RequestError) -> MediaUnavailableError:
    return MediaUnavailableError(f"the download broke off: {type(error).__name__}: {error}")

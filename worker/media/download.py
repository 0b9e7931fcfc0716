"""Fetch a video over HTTP, chunk by chunk, into any sink; a download that breaks off is resumed.

Redirects are followed by hand: each hop has to pass the checks of `hosts.py`, and is a request of
its own to an address that was checked (`pinned.py`).

What may pass by itself is a MediaUnavailableError: no connection, silence, a body cut short, 408,
425, 429 and 5xx, after a few tries. A MediaGoneError is a URL that has expired: 403, 404, 410. What
cannot change is a MediaRefusedError: other 4xx, a host that is not allowed, too many bytes.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Protocol, Self, TypeAlias

import httpx

from worker.ground.errors import MediaGoneError, MediaRefusedError, MediaUnavailableError
from worker.ground.network import read_retry_after
from worker.media.hosts import MediaHosts, check_media_place
from worker.media.layout import HEAD_BYTES
from worker.media.pinned import (
    SECOND,
    BrokenError,
    BusyError,
    Deadline,
    MediaClient,
    Response,
    send_request,
)

DAY = timedelta(days=1)
LONGEST_RETRY_AFTER = 10 * SECOND
# So many new bytes and nothing has failed yet: the total limit alone bounds what makes progress.
PROGRESS_BYTES = 1024 * 1024
MAX_REDIRECTS = 5
PARTS = frozenset({206, 416})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
GONE = frozenset({403, 404, 410})
BUSY = frozenset({408, 425, 429, *range(500, 600)})
CLIENT_ERRORS = range(400, 500)
COMPRESSIONS = frozenset(
    {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd", "dcb", "dcz", "exi"}
)

_DIGITS = r"[0-9]{1,18}"
_CONTENT_RANGE = re.compile(rf"(?i:bytes) +({_DIGITS})-({_DIGITS})/({_DIGITS})")
_STRONG_TAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')

Chunk: TypeAlias = bytes
OnProgress: TypeAlias = Callable[[int], object]


class Sink(Protocol):
    """Where a video goes. Called by one thread at a time, but not always by the same."""

    def write(self, chunk: Chunk, /) -> object: ...

    def restart(self) -> object:
        """Forget all that was written."""

    def sha256(self) -> str:
        """Hex, of all that was written since the beginning or the last restart."""


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """`total` bounds the whole download, all its pauses included; `max_bytes` bounds the body."""

    total: timedelta
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Download:
    """What was received: count, sha256 (hex), the header Content-Type, and the first bytes.

    `announced` is how many bytes its host said that it has, if it did; `coding` is what the host
    called the encoding of the bytes, if that is neither nothing nor a compression.
    """

    bytes: int
    sha256: str
    content_type: str | None
    head: Chunk
    announced: int | None = None
    coding: str | None = None


class Intake:
    """Checks and counts what is received; a thread of its own hashes and writes it meanwhile."""

    def __init__(self, sink: Sink, max_bytes: int, on_progress: OnProgress | None) -> None:
        self.received = 0
        self._sink, self._max_bytes, self._on_progress = sink, max_bytes, on_progress
        self._head = b""
        self._writer = ThreadPoolExecutor(1, "media writer")
        self._write: Future[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown(cancel_futures=True)

    def take(self, chunk: Chunk) -> None:
        """Raises MediaRefusedError for one byte too many, and what the sink has raised."""
        self.check_size(self.received + len(chunk))
        self.received += len(chunk)
        self._head += chunk[: HEAD_BYTES - len(self._head)]
        self._await_write()
        self._write = self._writer.submit(self._sink.write, chunk)
        self.report()

    def report(self) -> None:
        """Give the caller the count; what it raises ends the download."""
        if self._on_progress is not None:
            self._on_progress(self.received)

    def check_size(self, size: int) -> None:
        """Raises MediaRefusedError for more bytes than are allowed."""
        if size > self._max_bytes:
            raise MediaRefusedError(f"the video is larger than {self._max_bytes} bytes")

    def restart(self) -> None:
        """Begin anew; the count goes back to nothing."""
        if self.received > 0:
            self._await_write()
            self._sink.restart()
            self.received, self._head = 0, b""

    def finish(
        self, content_type: str | None, announced: int | None = None, coding: str | None = None
    ) -> Download:
        """Wait until all is written, and say what it was."""
        self._await_write()
        sha256 = self._sink.sha256()
        return Download(self.received, sha256, content_type, self._head, announced, coding)

    def _await_write(self) -> None:
        """Raises what the sink has raised."""
        if self._write is not None:
            self._write.result()


def download_video(
    url: str,
    sink: Sink,
    *,
    client: MediaClient,
    hosts: MediaHosts,
    limits: DownloadLimits,
    on_progress: OnProgress | None = None,
) -> Download:
    """Stream the video at `url` into `sink`; memory is a few chunks.

    `on_progress` gets the bytes so far after every chunk and before every further try; fewer than
    before if it had to begin anew. What it or the sink raises ends the download and passes through
    unchanged. The limit on time bounds all together: redirects, headers, pauses between tries.

    Raises MediaUnavailableError, MediaGoneError and MediaRefusedError. Some chunks may be in the
    sink by then.
    """
    deadline = Deadline(limits.total)
    failures, reached = Counter[type[BrokenError]](), 0
    with Intake(sink, limits.max_bytes, on_progress) as intake:
        transfer = _Transfer(url, intake, client, hosts, deadline)
        while True:
            try:
                return transfer.run()
            except BrokenError as error:
                if intake.received >= reached + PROGRESS_BYTES:
                    reached = intake.received
                    failures.clear()
                failures[type(error)] += 1
                tries = failures[type(error)]
                pause = error.retry_after + error.backoff.draw(tries, client.draw)
                is_late = pause.total_seconds() >= deadline.check()
                if tries > error.tries or error.retry_after > LONGEST_RETRY_AFTER or is_late:
                    raise
                client.sleep(pause.total_seconds())
                intake.report()


@dataclass(slots=True)
class _Transfer:
    """One video, over as many requests as it takes.

    `version` and `total` are those of the representation that was begun: what `If-Range` may name
    it by, and its length.
    """

    url: str
    intake: Intake
    client: MediaClient
    hosts: MediaHosts
    deadline: Deadline
    version: str | None = None
    total: int | None = None

    def run(self) -> Download:
        """Request what is missing, and take it. Raises BrokenError if more is missing after that.

        After a BrokenError it may be run again. A host that sends the whole video, or another
        version of it, begins anew.
        """
        if self.version is None:
            self._restart()
        intake, start = self.intake, self.intake.received
        headers = {"Range": f"bytes={start}-", "If-Range": self.version or ""} if start else {}
        with self._open(headers) as response:
            if start and response.status in PARTS:
                self._check_part(response, start)
            else:
                check_status(response)
                self._restart()
                tag = response.find_header("etag") or ""
                self.version = tag if _STRONG_TAG.fullmatch(tag) else None
                length = response.find_header("content-length")
                self.total = None if length is None else int(length)
            coding = check_coding(response)
            intake.check_size(self.total or 0)
            for chunk in response.stream:
                self.deadline.check()
                intake.take(chunk)
                if self.client.pace is not None:
                    self.client.pace.take(len(chunk))
            if intake.received == 0:
                raise BrokenError("the video is empty")
            if self.total not in {None, intake.received}:
                reason = f"{intake.received} bytes came, {self.total} were announced"
                if intake.received > (self.total or 0):
                    self._restart()
                raise BrokenError(f"the download broke off: {reason}")
            content_type = response.find_header("content-type") or None
            return intake.finish(content_type, self.total, coding)

    def _restart(self) -> None:
        self.intake.restart()
        self.version = self.total = None

    def _check_part(self, response: Response, start: int) -> None:
        """Raises BrokenError unless the rest of the same version comes; takes its whole length."""
        first, last, total = parse_content_range(response.find_header("content-range")) or (0, 0, 0)
        is_rest = response.status == HTTPStatus.PARTIAL_CONTENT and (first, last) == (
            start,
            total - 1,
        )
        is_same = response.find_header("etag") in {None, self.version}
        if not is_rest or not is_same or self.total not in {None, total}:
            self._restart()
            raise BrokenError(f"{response.host} sends another part than was requested")
        self.total = total

    @contextmanager
    def _open(self, headers: dict[str, str]) -> Iterator[Response]:
        """Follow redirects by hand: each hop has to pass all checks before it is requested."""
        place = check_media_place(self.url, self.hosts)
        for _ in range(MAX_REDIRECTS + 1):
            with send_request(place, headers, self.client, self.deadline) as response:
                location = response.find_header("location")
                if location is None or response.status not in REDIRECTS:
                    yield response
                    return
            try:
                url = str(place.url.join(location))
            except (httpx.InvalidURL, ValueError) as error:
                reason = f"{place.host} redirects to no URL in its location"
                raise MediaUnavailableError(reason) from error
            place = check_media_place(url, self.hosts)
        raise MediaRefusedError(f"the video URL redirects more than {MAX_REDIRECTS} times")


def check_status(response: Response) -> None:
    """Raises what the status means for the download, unless it is 200."""
    host, status = response.host, response.status
    if status == HTTPStatus.OK:
        return
    if status in GONE:
        raise MediaGoneError(f"{host} no longer has the video: HTTP {status}")
    reason = f"{host} has no video now: HTTP {status}"
    if status in BUSY:
        retry_after = read_retry_after(response.find_header("retry-after"), DAY, datetime.now(UTC))
        raise BusyError(reason, retry_after)
    if status in CLIENT_ERRORS:
        raise MediaRefusedError(f"{host} refuses the video: HTTP {status}")
    raise MediaUnavailableError(reason)


def check_coding(response: Response) -> str | None:
    """What the host calls the encoding of the bytes, if anything but nothing.

    A store repeats what an uploader once wrote there (`aws-chunked`, `none`): that says nothing of
    the bytes, which are read anyway. Raises MediaRefusedError for a compression.
    """
    coding = response.find_header("content-encoding") or ""
    codings = {one.strip().lower() for one in coding.split(",")}
    if codings & COMPRESSIONS:
        raise MediaRefusedError(f"{response.host} sends the video encoded, though not requested")
    return coding if codings - {"", "identity"} else None


# What headers say of a part of a video (RFC 9110, 14.4).


def parse_content_range(text: str | None) -> tuple[int, int, int] | None:
    """First and last byte, and how many there are; None for no part of a file of known size."""
    match = _CONTENT_RANGE.fullmatch((text or "").strip())
    first, last, total = map(int, match.groups()) if match else (0, 0, 0)
    return (first, last, total) if first <= last < total else None

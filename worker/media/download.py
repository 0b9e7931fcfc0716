"""Fetch a video over HTTP, chunk by chunk, into any sink; what breaks off goes on where it was.

What can change by itself is a MediaUnavailableError: no connection, silence, a body cut short,
408, 425, 429 and 5xx, after a few tries. A MediaGoneError is a URL that has expired: 403, 404, 410.
What cannot change is a MediaRefusedError: other 4xx, a host nobody named, too many bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx

from worker.ground.errors import MediaGoneError, MediaRefusedError, MediaUnavailableError
from worker.media.hosts import MediaHosts, MediaPlace, check_media_place
from worker.media.intake import Download, DownloadLimits, Intake, OnProgress, Sink
from worker.media.pacing import LARGEST_CHUNK
from worker.media.patience import Patience
from worker.media.ranges import choose_version, parse_content_range, parse_length, parse_retry_after
from worker.media.wire import (
    Answer,
    BrokenError,
    BusyError,
    Deadline,
    MediaClient,
    ThrottledError,
    send_request,
)

MAX_REDIRECTS = 5
OK = 200
PARTIAL = 206
THROTTLED = 429
UNSATISFIABLE = 416
REDIRECTS = frozenset({301, 302, 303, 307, 308})
COMPRESSIONS = frozenset(
    {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd", "dcb", "dcz", "exi"}
)
GONE = frozenset({403, 404, 410})
BUSY = frozenset({408, 425, *range(500, 600)})
REFUSALS = frozenset(range(400, 500)) - GONE - BUSY - {THROTTLED}


def download_video(
    url: str,
    sink: Sink,
    *,
    client: MediaClient,
    hosts: MediaHosts,
    limits: DownloadLimits,
    on_progress: OnProgress | None = None,
) -> Download:
    """Stream the video at `url` into `sink`; memory stays at a few chunks.

    `on_progress` gets the bytes so far after every chunk and before every further try; fewer than
    before if it had to begin anew. What it or the sink raises ends the download and passes through
    unchanged. The limit on time bounds all together: redirects, headers, pauses between tries.

    Raises MediaUnavailableError, MediaGoneError and MediaRefusedError. Some chunks may be in the
    sink by then.
    """
    deadline = Deadline(limits.total)
    patience = Patience(client.draw)
    with Intake(sink, limits.max_bytes, on_progress) as intake:
        transfer = Transfer(url, intake, client, hosts, deadline)
        while True:
            try:
                return transfer.run()
            except BrokenError as error:
                wait = patience.choose_wait(error, intake.received).total_seconds()
                if wait >= deadline.check():
                    raise
                client.sleep(wait)
                intake.tell()


class Transfer:
    """One video on its way, over as many requests as it takes."""

    def __init__(
        self,
        url: str,
        intake: Intake,
        client: MediaClient,
        hosts: MediaHosts,
        deadline: Deadline,
    ) -> None:
        self._url = url
        self._intake = intake
        self._client = client
        self._hosts = hosts
        self._deadline = deadline
        self._version: str | None = None
        self._total: int | None = None
        self._coding: str | None = None

    def run(self) -> Download:
        """Ask for what is missing, and take it. Raises BrokenError if more is missing after that.

        After a BrokenError it may be run again.
        """
        start = self._choose_start()
        headers = self._name_part(start)
        with open_video(self._url, headers, self._client, self._hosts, self._deadline) as answer:
            self._admit(answer, start)
            self._take_body(answer)
            content_type = answer.find_header("content-type") or None
            return self._intake.finish(content_type, self._total, self._coding)

    def _choose_start(self) -> int:
        """The first byte that is missing; without a sure name of the version all are."""
        if self._version is None:
            self._forget()
        return self._intake.received

    def _name_part(self, start: int) -> dict[str, str]:
        if start == 0 or self._version is None:
            return {}
        return {"Range": f"bytes={start}-", "If-Range": self._version}

    def _forget(self) -> None:
        self._intake.restart()
        self._version = self._total = None

    def _admit(self, answer: Answer, start: int) -> None:
        """Hold the answer against what was asked for. Raises what becomes of the download if not.

        A host that answers with the whole video, or with another version of it, begins anew.
        """
        if start > 0 and answer.status == UNSATISFIABLE:
            self._forget()
            raise BrokenError(f"{answer.host} no longer has the rest of the video")
        if start > 0 and answer.status == PARTIAL:
            self._coding = check_coding(answer)
            self._continue_at(answer, start)
            return
        check_status(answer)
        self._coding = check_coding(answer)
        self._forget()
        self._version = choose_version(answer.find_header)
        self._total = read_length(answer)
        self._intake.check_size(self._total or 0)

    def _continue_at(self, answer: Answer, start: int) -> None:
        part = parse_content_range(answer.find_header("content-range"))
        is_rest = part is not None and part.first == start and part.last == part.total - 1
        is_same = answer.find_header("etag") in {None, self._version}
        if part is None or not is_rest or self._total not in {None, part.total} or not is_same:
            self._forget()
            raise BrokenError(f"{answer.host} sends another part than was asked for")
        self._total = part.total
        self._intake.check_size(part.total)

    def _take_body(self, answer: Answer) -> None:
        pace = self._client.pace
        most = LARGEST_CHUNK if pace is None else pace.chunk_bytes
        while chunk := answer.read(most):
            self._deadline.check()
            self._intake.take(chunk)
            if pace is not None:
                pace.take(len(chunk))
        self._check_length(self._intake.received)

    def _check_length(self, received: int) -> None:
        if received == 0:
            raise BrokenError("the video is empty")
        if self._total in {None, received}:
            return
        told = f"{received} bytes came, {self._total} were announced"
        if received > (self._total or 0):
            self._forget()
            raise BrokenError(told)
        raise BrokenError(f"the download broke off: {told}")


@contextmanager
def open_video(
    url: str,
    headers: dict[str, str],
    client: MediaClient,
    hosts: MediaHosts,
    deadline: Deadline,
) -> Iterator[Answer]:
    """Follow redirects by hand: each hop has to pass all checks before it is asked."""
    place = check_media_place(url, hosts)
    for _ in range(MAX_REDIRECTS + 1):
        with send_request(place, headers, client, deadline) as answer:
            location = find_location(answer)
            if location is None:
                yield answer
                return
            place = check_media_place(join_location(place, location), hosts)
    raise MediaRefusedError(f"the video URL redirects more than {MAX_REDIRECTS} times")


def find_location(answer: Answer) -> str | None:
    return answer.find_header("location") if answer.status in REDIRECTS else None


def join_location(place: MediaPlace, location: str) -> str:
    try:
        return str(place.url.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise MediaUnavailableError(f"{place.host} redirects to no URL in its location") from error


def check_status(answer: Answer) -> None:
    """Raises what the status means for the download, unless it is 200."""
    host, status = answer.host, answer.status
    if status == OK:
        return
    if status in GONE:
        raise MediaGoneError(f"{host} has the video no more: HTTP {status}")
    if status in REFUSALS:
        raise MediaRefusedError(f"{host} refuses the video: HTTP {status}")
    told = f"{host} has no video now: HTTP {status}"
    retry_after = parse_retry_after(answer.find_header("retry-after"), datetime.now(UTC))
    if status == THROTTLED:
        raise ThrottledError(told, retry_after)
    if status in BUSY:
        raise BusyError(told, retry_after)
    raise MediaUnavailableError(told)


def check_coding(answer: Answer) -> str | None:
    """What the host calls the encoding of the bytes, if anything but nothing.

    A store repeats what an uploader once wrote there (`aws-chunked`, `none`): that says nothing of
    the bytes, which are read anyway. Raises MediaRefusedError for a compression.
    """
    told = answer.find_header("content-encoding") or ""
    codings = {one.strip().lower() for one in told.split(",")}
    transfer = (answer.find_header("transfer-encoding") or "chunked").lower()
    if codings & COMPRESSIONS or transfer not in {"chunked", "identity"}:
        raise MediaRefusedError(f"{answer.host} sends the video encoded, though not asked to")
    return told if codings - {"", "identity"} else None


def read_length(answer: Answer) -> int | None:
    """The announced length, if any. Raises BrokenError for one that is no number."""
    text = answer.find_header("content-length")
    if text is None:
        return None
    length = parse_length(text)
    if length is None:
        raise BrokenError(f"the download broke off: {answer.host} announces a senseless length")
    return length

"""Uploads to fal's storage, as fal's own clients do them (fal-api, section 6).

Ask with the key for a signed URL, then send the bytes there without any credential: at once up to
90 MiB, above that in parts of 10 MiB, several at a time. Memory stays at a chunk for each of them.
Where fal signs no URLs, a CDN token takes the key's place. Nothing here is paid, and all of it may
be repeated.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Event

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.errors import parse_failure
from worker.fal.http import Reply
from worker.fal.storage_api import MayUse, Place, StorageApi, UploadFile, read_tag
from worker.fal.transfer import (
    Meter,
    OnProgress,
    Slice,
    StoppedError,
    read_slice,
    send_slices,
    slice_file,
)
from worker.ground.clock import Backoff
from worker.ground.errors import UploadRefusedError, UploadUnavailableError

MIB = 1024 * 1024
PAUSE = Backoff(timedelta(seconds=1), timedelta(seconds=20))
PASSING = frozenset({408, 425, 429})
ACCOUNT = frozenset({401, 403})
NO_SUCH_CALL = frozenset({404, 405, 410, 501})
GONE = frozenset({404, 410})
SERVER_ERROR = 500


class NoSuchCallError(UploadRefusedError):
    """fal does not know this way of uploading; there is another."""


@dataclass(frozen=True, slots=True)
class UploadPolicy:
    """How much at once, how often, and how long: `overhead` and the time at the slowest rate."""

    whole_bytes: int = 90 * MIB
    part_bytes: int = 10 * MIB
    parallel: int = 4
    tries: int = 5
    pause: Backoff = PAUSE
    slowest_bytes_per_second: int = 64 * 1024
    overhead: timedelta = timedelta(seconds=60)

    def bound(self, size: int) -> timedelta:
        return self.overhead + timedelta(seconds=size / self.slowest_bytes_per_second)


DEFAULT_POLICY = UploadPolicy()


class StorageClient:
    """Uploads files."""

    def __init__(
        self,
        rest_url: str,
        cdn_url: str,
        credentials: SecretStr,
        policy: UploadPolicy = DEFAULT_POLICY,
        *,
        may_use: MayUse,
    ) -> None:
        self._api = StorageApi(rest_url, cdn_url, credentials, may_use)
        self._policy = policy

    def start(self, file: UploadFile) -> "Upload":
        """An upload that can go on after whatever stops it; nothing is sent yet."""
        return Upload(self._api, file, self._policy)

    def upload(self, file: UploadFile, on_progress: OnProgress | None = None) -> str:
        """The file's URL at fal. Raises UploadUnavailableError and UploadRefusedError.

        It goes on where it was stopped, as long as at least a part has arrived since.
        """
        upload = self.start(file)
        while True:
            before = upload.parts_sent
            try:
                return upload.finish(on_progress)
            except UploadUnavailableError:
                if upload.parts_sent == before:
                    raise

    def has_lost(self, url: str) -> bool:
        """Whether fal surely has the file no more: an account may keep its files for an hour."""
        try:
            return self._api.ask_about(url).http_status in GONE
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            return False

    def close(self) -> None:
        self._api.close()


class Upload:
    """One file on its way. `finish` may be called again after it has raised: it then goes on."""

    def __init__(self, api: StorageApi, file: UploadFile, policy: UploadPolicy) -> None:
        self._api = api
        self._file = file
        self._policy = policy
        self._in_parts = file.size > policy.whole_bytes
        self._place: Place | None = None
        self._tags: dict[int, str] = {}

    @property
    def parts_sent(self) -> int:
        return len(self._tags)

    def finish(self, on_progress: OnProgress | None = None) -> str:
        """Send what is missing; the file's URL at fal.

        `on_progress` gets the bytes sent and their total, one call at a time; what it raises ends
        the upload and passes through. Raises UploadUnavailableError and UploadRefusedError.
        """
        run = _Run(self._policy, self._file.size, on_progress)
        try:
            place = self._place = self._place or self._find_place(run)
            return self._send_parts(place, run) if self._in_parts else self._send_whole(place, run)
        except UploadRefusedError:
            # Perhaps a signature is too old: another call shall not go the same way.
            self._place = None
            self._tags.clear()
            raise

    def _find_place(self, run: "_Run") -> Place:
        ask = partial(self._api.ask_signed, self._file, in_parts=self._in_parts)
        try:
            return self._api.read_signed(run.insist("asking where to upload", ask, keyed=True))
        except NoSuchCallError:
            return self._find_place_by_token(run)

    def _find_place_by_token(self, run: "_Run") -> Place:
        reply = run.insist("asking for a CDN token", self._api.ask_token, keyed=True)
        token = self._api.read_token(reply)
        if not self._in_parts:
            return self._api.name_whole(token)
        create = partial(self._api.create_multipart, self._file, token)
        return self._api.read_created(run.insist("beginning the upload", create), token)

    def _send_whole(self, place: Place, run: "_Run") -> str:
        whole = Slice(self._file.path, 1, 0, self._file.size)
        within = self._policy.bound(whole.length)

        def send() -> Reply:
            content = read_slice(whole, run.meter, run.stop, run.choose_deadline(within))
            return self._api.send_whole(place, self._file, content, within)

        reply = run.insist("sending the file", send)
        return place.file_url or self._api.read_access_url(reply)

    def _send_parts(self, place: Place, run: "_Run") -> str:
        missing = []
        for part in slice_file(self._file.path, self._file.size, self._policy.part_bytes):
            if part.number in self._tags:
                run.meter.set_sent(part.number, part.length)
            else:
                missing.append(part)
        send_slices(
            missing, lambda part: self._send_part(part, place, run), self._policy.parallel, run.stop
        )
        told: JsonValue = [
            {"partNumber": number, "etag": self._tags[number]} for number in sorted(self._tags)
        ]
        complete = partial(self._api.complete, place, told, self._policy.overhead)
        reply = run.insist("completing the upload", complete)
        return place.file_url or self._api.read_access_url(reply)

    def _send_part(self, part: Slice, place: Place, run: "_Run") -> None:
        within = self._policy.bound(part.length)
        headers = {"Content-Type": self._file.content_type, "Content-Length": str(part.length)}

        def send() -> Reply:
            content = read_slice(part, run.meter, run.stop, run.choose_deadline(within))
            return self._api.send_part(place, part.number, content, headers, within)

        self._tags[part.number] = read_tag(run.insist(f"sending part {part.number}", send))


class _Run:
    """One call of `finish`: its deadline, its progress, and a sign that it is over."""

    def __init__(self, policy: UploadPolicy, size: int, on_progress: OnProgress | None) -> None:
        self._policy = policy
        self._deadline = time.monotonic() + policy.bound(size).total_seconds()
        self.meter = Meter(size, on_progress)
        self.stop = Event()

    def choose_deadline(self, within: timedelta) -> float:
        """The end of a single try, which is never after the end of all."""
        return min(time.monotonic() + within.total_seconds(), self._deadline)

    def insist(self, what: str, send: Callable[[], Reply], *, keyed: bool = False) -> Reply:
        """A good reply, after several tries if need be, with growing pauses in between."""
        tries = 0
        while True:
            tries += 1
            try:
                reply = send()
                reason = _judge(what, reply, keyed=keyed)
                if reason is None:
                    return reply
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
            pause = self._policy.pause.draw(tries).total_seconds()
            if tries >= self._policy.tries or time.monotonic() + pause > self._deadline:
                raise UploadUnavailableError(f"{what}: {reason} (tried {tries} times)")
            if self.stop.wait(pause):
                raise StoppedError


def _judge(what: str, reply: Reply, *, keyed: bool) -> str | None:
    """None if the reply is good, else why to try again.

    Raises UploadRefusedError, and UploadUnavailableError where fal refuses the account: that is
    put right by people, and the same file goes through then.
    """
    status = reply.http_status
    if httpx.codes.is_success(status):
        return None
    failure = parse_failure(reply.parse_json(), "")
    words = f"HTTP {status}" + (f", {failure.message}" if failure and failure.message else "")
    if keyed and status in NO_SUCH_CALL:
        raise NoSuchCallError(f"{what}: {words}")
    if status in PASSING or status >= SERVER_ERROR:
        return words
    if keyed and status in ACCOUNT:
        raise UploadUnavailableError(f"{what}: fal refuses the account ({words})")
    raise UploadRefusedError(f"{what}: {words}")

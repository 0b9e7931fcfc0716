"""Uploads to fal's storage, as fal's own clients do them (fal-api, section 6; ADR 21).

The key buys a signed URL; the bytes go there without any credential: at once up to 90 MiB, above
that in parts of 10 MiB, several at a time. Memory stays at a chunk for each of them. Where fal
signs no URLs, a CDN token takes the key's place. Nothing here is paid, and all of it may be
repeated. The key goes to the host of `rest_url`, a CDN token to that of `cdn_url`, and a signed URL
is a credential itself: it is never logged.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.errors import parse_failure
from worker.fal.http import (
    ACCOUNT_CODES,
    Reply,
    build_client,
    exchange,
    is_transient,
    name_origin,
    open_client,
)
from worker.ground.clock import Backoff
from worker.ground.errors import UploadRefusedError, UploadUnavailableError

MIB = 1024 * 1024
CHUNK_BYTES = 128 * 1024
PAUSE = Backoff(timedelta(seconds=1), timedelta(seconds=20))
STORAGE_TYPE = {"storage_type": "fal-cdn-v3"}
# Silence, not slowness: how long a host may accept none of a chunk, or not answer afterwards.
TRANSFER_TIMEOUT = httpx.Timeout(connect=10, write=60, read=60, pool=60)
NO_SUCH_CALL = frozenset({404, 405, 410, 501})
GONE = frozenset({404, 410})

OnProgress = Callable[[int, int], object]
MayUse = Callable[[str], bool]


class NoSuchCallError(UploadRefusedError):
    """fal does not know this way of uploading; there is another."""


class StoppedError(Exception):
    """Another part has failed for good: this one need not go on."""


@dataclass(frozen=True, slots=True)
class UploadFile:
    """A file of this machine, and as what fal will serve it."""

    path: Path
    size: int
    content_type: str
    file_name: str


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


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the bytes go, and the URL that they will have; None if only the reply states it.

    `token` is empty for a signed URL.
    """

    method: str
    upload_url: str = field(repr=False)
    file_url: str | None
    token: Mapping[str, str] = field(default_factory=dict, repr=False)

    def name_step(self, step: object) -> str:
        """The URL of a part, or of the completion: path and query stay as they were signed."""
        path, mark, query = self.upload_url.partition("?")
        return f"{path}/{step}{mark}{query}"


class StorageClient:
    """Uploads files.

    URLs that fal names are on the very host of `rest_url` or `cdn_url`, or https and `may_use`
    allows them: a file of ours is sent there.
    """

    def __init__(
        self,
        rest_url: str,
        cdn_url: str,
        credentials: SecretStr,
        policy: UploadPolicy = DEFAULT_POLICY,
        *,
        may_use: MayUse,
    ) -> None:
        self.rest_url = rest_url
        self.cdn_url = cdn_url
        self.policy = policy
        self.keyed = build_client(credentials, keep_connections=True)
        self.bare = open_client(timeout=TRANSFER_TIMEOUT)
        self._own = {name_origin(httpx.URL(rest_url)), name_origin(httpx.URL(cdn_url))}
        self._may_use = may_use

    def start(self, file: UploadFile) -> "Upload":
        """An upload that can go on after an error; nothing is sent yet."""
        return Upload(self, file)

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
        """Whether fal certainly no longer has the file: an account may keep it for an hour only."""
        try:
            return exchange(self.bare, self.bare.build_request("HEAD", url)).http_status in GONE
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            return False

    def close(self) -> None:
        self.keyed.close()
        self.bare.close()

    def check_url(self, reply: Reply, name: str) -> str:
        """A URL of the reply. Raises UploadRefusedError, never with the URL: it may be signed."""
        value = _read_object(reply).get(name)
        try:
            url = httpx.URL(value if isinstance(value, str) else "")
        except (httpx.InvalidURL, ValueError):
            url = httpx.URL("")
        is_named = url.host and not url.userinfo
        if is_named and name_origin(url) in self._own:
            return str(value)
        if not is_named or url.scheme != "https":
            raise UploadRefusedError(f"fal's storage gave no {name} that may be used")
        if not self._may_use(str(value)):
            raise UploadRefusedError(
                f"fal's storage gave no {name} that may be used: {url.host} is no public host of "
                "fal's, nor named by FAL_MEDIA_HOSTS"
            )
        return str(value)


class Upload:
    """One file on its way. `finish` may be called again after it has raised: it then goes on."""

    def __init__(self, client: StorageClient, file: UploadFile) -> None:
        self._client = client
        self._file = file
        self._policy = client.policy
        self._in_parts = file.size > client.policy.whole_bytes
        self._target: _Target | None = None
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
            self._target = self._target or self._find_target(run)
            if self._in_parts:
                self._send_parts(self._target, run)
                return self._complete(self._target, run)
            reply = self._send("sending the file", self._target, 0, self._file.size, run)
            return self._target.file_url or self._client.check_url(reply, "access_url")
        except UploadRefusedError:
            # Perhaps a signature is too old: the next call gets another.
            self._target = None
            self._tags.clear()
            raise

    def _find_target(self, run: "_Run") -> _Target:
        client, file = self._client, self._file

        def query(what: str, path: str, body: dict[str, str]) -> Reply:
            url = f"{client.rest_url}/storage/{path}"
            return run.insist(
                what,
                client.keyed,
                lambda: client.keyed.build_request("POST", url, params=STORAGE_TYPE, json=body),
                keyed=True,
            )

        path = "upload/initiate-multipart" if self._in_parts else "upload/initiate"
        named = {"content_type": file.content_type, "file_name": file.file_name}
        try:
            reply = query("requesting an upload URL", path, named)
            upload_url = client.check_url(reply, "upload_url")
            return _Target("PUT", upload_url, client.check_url(reply, "file_url"))
        except NoSuchCallError:
            body = _read_object(query("requesting a CDN token", "auth/token", {}))
        kind, secret = body.get("token_type"), body.get("token")
        if not isinstance(kind, str) or not isinstance(secret, str):
            raise UploadRefusedError("fal's storage gave no token")
        token = {"Authorization": f"{kind} {secret}"}
        url = f"{client.cdn_url}/files/upload"
        if not self._in_parts:
            return _Target("POST", url, None, token)
        headers = token | self._describe(is_cdn=True)
        reply = run.insist(
            "beginning the upload",
            client.bare,
            lambda: client.bare.build_request("POST", f"{url}/multipart", headers=headers),
        )
        access_url = client.check_url(reply, "access_url")
        upload_id = _read_object(reply).get("uploadId")
        at_cdn = name_origin(httpx.URL(access_url)) == name_origin(httpx.URL(client.cdn_url))
        if not at_cdn or not isinstance(upload_id, str):
            raise UploadRefusedError("fal's storage sends parts elsewhere than to FAL_CDN_URL")
        return _Target("PUT", f"{access_url}/multipart/{upload_id}", access_url, token)

    def _send_parts(self, target: _Target, run: "_Run") -> None:
        size, part_bytes = self._file.size, self._policy.part_bytes
        missing: SimpleQueue[tuple[int, int, int]] = SimpleQueue()
        for number, start in enumerate(range(0, size, part_bytes), start=1):
            length = min(part_bytes, size - start)
            if number in self._tags:
                run.count(number, length)
            else:
                missing.put((number, start, length))
        ended: SimpleQueue[Exception | None] = SimpleQueue()

        def work() -> None:
            try:
                while not run.stop.is_set():
                    number, start, length = missing.get_nowait()
                    reply = self._send(f"sending part {number}", target, start, length, run, number)
                    self._tags[number] = _read_tag(reply)
                ended.put(None)
            except Empty:
                ended.put(None)
            except Exception as error:  # noqa: BLE001 - raised by the thread that uploads
                # In this order: how the others stop is reported after the cause.
                ended.put(error)
                run.stop.set()

        # Daemons: an interrupted command does not wait for a host that does not answer.
        lanes = min(self._policy.parallel, missing.qsize())
        for _ in range(lanes):
            Thread(target=work, name="upload", daemon=True).start()
        try:
            errors = [error for error in (ended.get() for _ in range(lanes)) if error is not None]
        except BaseException:
            run.stop.set()
            raise
        if errors:
            raise errors[0]

    def _complete(self, target: _Target, run: "_Run") -> str:
        client = self._client
        parts: JsonValue = [
            {"partNumber": number, "etag": self._tags[number]} for number in sorted(self._tags)
        ]
        url, headers = target.name_step("complete"), dict(target.token)
        reply = run.insist(
            "completing the upload",
            client.bare,
            lambda: client.bare.build_request("POST", url, json={"parts": parts}, headers=headers),
            within=self._policy.overhead,
        )
        return target.file_url or client.check_url(reply, "access_url")

    def _send(
        self, what: str, target: _Target, start: int, length: int, run: "_Run", number: int = 0
    ) -> Reply:
        """Send a part, or with number 0 the whole file."""
        within = self._policy.bound(length)
        url = target.name_step(number) if number else target.upload_url
        named = self._describe(is_cdn=bool(target.token) and not number)
        headers = {**target.token, **named, "Content-Length": str(length)}

        def build() -> httpx.Request:
            content = self._read(start, length, run, run.choose_deadline(within), number)
            return self._client.bare.build_request(
                target.method, url, content=content, headers=headers
            )

        return run.insist(what, self._client.bare, build, within=within)

    def _read(
        self, start: int, length: int, run: "_Run", deadline: float, number: int
    ) -> Iterator[bytes]:
        """A part of the file, never more than one chunk of it in memory.

        Raises StoppedError once another part has failed, httpx.WriteTimeout after `deadline`
        (monotonic), and UploadRefusedError if the file has become shorter.
        """
        with _refuse_unreadable():
            file = self._file.path.open("rb")
        with file:
            sent = 0
            while sent < length:
                if run.stop.is_set():
                    raise StoppedError
                if time.monotonic() > deadline:
                    raise httpx.WriteTimeout("the host accepts the file too slowly")
                with _refuse_unreadable():
                    file.seek(start + sent)
                    chunk = file.read(min(CHUNK_BYTES, length - sent))
                if not chunk:
                    raise UploadRefusedError("the file became shorter while it was uploaded")
                yield chunk
                sent += len(chunk)
                run.count(number, sent)

    def _describe(self, *, is_cdn: bool) -> dict[str, str]:
        name = {"X-Fal-File-Name": self._file.file_name} if is_cdn else {}
        return {"Content-Type": self._file.content_type, **name}


class _Run:
    """One call of `finish`: its deadline, its progress, and whether it is over; thread-safe."""

    def __init__(self, policy: UploadPolicy, size: int, on_progress: OnProgress | None) -> None:
        self.stop = Event()
        self._policy = policy
        self._deadline = time.monotonic() + policy.bound(size).total_seconds()
        self._size = size
        self._on_progress = on_progress
        self._sent: dict[int, int] = {}
        self._reported = 0
        self._lock = Lock()

    def count(self, number: int, sent: int) -> None:
        """Report the bytes sent of all parts; one that is sent again counts once."""
        with self._lock:
            self._sent[number] = sent
            total = sum(self._sent.values())
            if total > self._reported and self._on_progress is not None:
                self._reported = total
                self._on_progress(total, self._size)

    def choose_deadline(self, within: timedelta) -> float:
        """The end of a single try, which is never after the end of all."""
        return min(time.monotonic() + within.total_seconds(), self._deadline)

    def insist(
        self,
        what: str,
        client: httpx.Client,
        build: Callable[[], httpx.Request],
        *,
        within: timedelta | None = None,
        keyed: bool = False,
    ) -> Reply:
        """A successful reply, after several tries if need be, with growing pauses in between.

        Raises UploadRefusedError, and UploadUnavailableError after the last try or where fal
        refuses the account: its owner can put that right, and the same file is accepted then.
        """
        tries = 0
        while True:
            tries += 1
            try:
                reply = exchange(client, build(), limit=within)
                if httpx.codes.is_success(reply.http_status):
                    return reply
                failure = parse_failure(reply.parse_json(), "")
                reason = f"HTTP {reply.http_status}"
                reason += f", {failure.message}" if failure and failure.message else ""
                if keyed and reply.http_status in NO_SUCH_CALL:
                    raise NoSuchCallError(f"{what}: {reason}")
                if keyed and reply.http_status in ACCOUNT_CODES:
                    raise UploadUnavailableError(f"{what}: fal refuses the account ({reason})")
                if not is_transient(reply.http_status):
                    raise UploadRefusedError(f"{what}: {reason}")
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
            pause = self._policy.pause.draw(tries).total_seconds()
            if tries >= self._policy.tries or time.monotonic() + pause > self._deadline:
                raise UploadUnavailableError(f"{what}: {reason} (tried {tries} times)")
            if self.stop.wait(pause):
                raise StoppedError


@contextmanager
def _refuse_unreadable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UploadRefusedError(f"the file can no longer be read: {error.strerror}") from error


def _read_tag(reply: Reply) -> str:
    """The name of a part at completion: in the body, or in the header."""
    tag = _read_object(reply).get("etag") or reply.headers.get("etag")
    if not isinstance(tag, str):
        raise UploadRefusedError("fal's storage took a part without naming it")
    return tag


def _read_object(reply: Reply) -> Mapping[str, JsonValue]:
    body = reply.parse_json()
    return body if isinstance(body, dict) else {}

"""Uploads to fal's storage, as fal's own clients do them (fal-api, section 6; ADR 21).

The key buys a signed URL; the bytes go there without any credential: at once up to 90 MiB, above
that in parts of 10 MiB, one after the other. Memory is one chunk. Where fal signs no URLs, a
CDN token takes the key's place. Nothing here is paid, so every step is repeated. The key goes to
the host of `rest_url`, a CDN token to that of `cdn_url`, and a signed URL is a credential itself:
it is never logged.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.errors import parse_failure
from worker.fal.http import (
    ACCOUNT_CODES,
    Reply,
    build_client,
    describe_error,
    exchange,
    is_transient,
    name_origin,
    parse_url,
    query,
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
        self.keyed = build_client(credentials)
        self.bare = build_client(timeout=TRANSFER_TIMEOUT)
        self._may_use = may_use

    def upload(self, file: UploadFile, on_progress: OnProgress | None = None) -> str:
        """The file's URL at fal. Raises UploadUnavailableError and UploadRefusedError.

        `on_progress` gets the bytes sent and their total; what it raises ends the upload and passes
        through.
        """
        return _Upload(self, file, on_progress).run()

    def has_lost(self, url: str) -> bool:
        """Whether fal certainly no longer has the file: an account may keep it for an hour only."""
        reply = query(self.bare, "HEAD", url)
        return isinstance(reply, Reply) and reply.http_status in GONE

    def close(self) -> None:
        self.keyed.close()
        self.bare.close()

    def check_url(self, reply: Reply, name: str) -> str:
        """A URL of the reply. Raises UploadRefusedError, never with the URL: it may be signed."""
        value = reply.parse_object().get(name)
        url = parse_url(value)
        own = {name_origin(httpx.URL(base)) for base in (self.rest_url, self.cdn_url)}
        is_foreign = url.scheme == "https" and url.host and not url.userinfo
        if name_origin(url) in own or (is_foreign and self._may_use(str(value))):
            return str(value)
        raise UploadRefusedError(
            f"fal's storage gave no {name} that may be used: {url.host or 'it'} is neither a "
            "public host of fal's by https nor named by FAL_MEDIA_HOSTS"
        )


class _Upload:
    """One file on its way: its deadline, and its progress."""

    def __init__(
        self, client: StorageClient, file: UploadFile, on_progress: OnProgress | None
    ) -> None:
        self._client = client
        self._file = file
        self._policy = client.policy
        self._on_progress = on_progress
        self._deadline = time.monotonic() + self._policy.bound(file.size).total_seconds()
        self._reported = 0

    def run(self) -> str:
        in_parts = self._file.size > self._policy.whole_bytes
        target = self._find_target(in_parts=in_parts)
        if in_parts:
            reply = self._send_parts(target)
        else:
            reply = self._send("sending the file", target, 0, self._file.size)
        return target.file_url or self._client.check_url(reply, "access_url")

    def _find_target(self, *, in_parts: bool) -> _Target:
        client, file = self._client, self._file

        def request(what: str, path: str, body: dict[str, str]) -> Reply:
            url = f"{client.rest_url}/storage/{path}"
            build = partial(client.keyed.build_request, "POST", url, params=STORAGE_TYPE, json=body)
            return self._insist(what, client.keyed, build, accept=NO_SUCH_CALL)

        path = "upload/initiate-multipart" if in_parts else "upload/initiate"
        named = {"content_type": file.content_type, "file_name": file.file_name}
        reply = request("requesting an upload URL", path, named)
        if reply.http_status not in NO_SUCH_CALL:
            upload_url = client.check_url(reply, "upload_url")
            return _Target("PUT", upload_url, client.check_url(reply, "file_url"))
        body = request("requesting a CDN token", "auth/token", {}).parse_object()
        kind, secret = body.get("token_type"), body.get("token")
        if not isinstance(kind, str) or not isinstance(secret, str):
            raise UploadRefusedError("fal's storage gave no token")
        token = {"Authorization": f"{kind} {secret}"}
        url = f"{client.cdn_url}/files/upload"
        if not in_parts:
            return _Target("POST", url, None, token)
        headers = token | self._describe(is_cdn=True)
        begin = partial(client.bare.build_request, "POST", f"{url}/multipart", headers=headers)
        reply = self._insist("beginning the upload", client.bare, begin)
        access_url = client.check_url(reply, "access_url")
        upload_id = reply.parse_object().get("uploadId")
        at_cdn = name_origin(httpx.URL(access_url)) == name_origin(httpx.URL(client.cdn_url))
        if not at_cdn or not isinstance(upload_id, str):
            raise UploadRefusedError("fal's storage sends parts elsewhere than to FAL_CDN_URL")
        return _Target("PUT", f"{access_url}/multipart/{upload_id}", access_url, token)

    def _send_parts(self, target: _Target) -> Reply:
        size, part_bytes = self._file.size, self._policy.part_bytes
        parts: list[JsonValue] = []
        for number, start in enumerate(range(0, size, part_bytes), start=1):
            length = min(part_bytes, size - start)
            reply = self._send(f"sending part {number}", target, start, length, number)
            tag = reply.parse_object().get("etag") or reply.headers.get("etag")
            if not isinstance(tag, str):
                raise UploadRefusedError("fal's storage took a part without naming it")
            parts.append({"partNumber": number, "etag": tag})
        complete = partial(
            self._client.bare.build_request,
            "POST",
            target.name_step("complete"),
            json={"parts": parts},
            headers=dict(target.token),
        )
        within = self._policy.overhead
        return self._insist("completing the upload", self._client.bare, complete, within=within)

    def _send(self, what: str, target: _Target, start: int, length: int, number: int = 0) -> Reply:
        """Send a part, or with number 0 the whole file."""
        within = self._policy.bound(length)
        url = target.name_step(number) if number else target.upload_url
        named = self._describe(is_cdn=bool(target.token) and not number)
        headers = {**target.token, **named, "Content-Length": str(length)}

        def build() -> httpx.Request:
            deadline = min(time.monotonic() + within.total_seconds(), self._deadline)
            content = self._read(start, length, deadline)
            return self._client.bare.build_request(
                target.method, url, content=content, headers=headers
            )

        return self._insist(what, self._client.bare, build, within=within)

    def _read(self, start: int, length: int, deadline: float) -> Iterator[bytes]:
        """A part of the file, never more than one chunk of it in memory.

        Reports the bytes sent; those that are sent again count once. Raises httpx.WriteTimeout
        after `deadline` (monotonic), and UploadRefusedError if the file has become shorter.
        """
        with _refuse_unreadable():
            file = self._file.path.open("rb")
        with file:
            sent = start
            while sent < start + length:
                if time.monotonic() > deadline:
                    raise httpx.WriteTimeout("the host accepts the file too slowly")
                with _refuse_unreadable():
                    file.seek(sent)
                    chunk = file.read(min(CHUNK_BYTES, start + length - sent))
                if not chunk:
                    raise UploadRefusedError("the file became shorter while it was uploaded")
                yield chunk
                sent += len(chunk)
                if sent > self._reported and self._on_progress is not None:
                    self._reported = sent
                    self._on_progress(sent, self._file.size)

    def _describe(self, *, is_cdn: bool) -> dict[str, str]:
        name = {"X-Fal-File-Name": self._file.file_name} if is_cdn else {}
        return {"Content-Type": self._file.content_type, **name}

    def _insist(
        self,
        what: str,
        http: httpx.Client,
        build: Callable[[], httpx.Request],
        *,
        within: timedelta | None = None,
        accept: Collection[int] = (),
    ) -> Reply:
        """A successful or accepted reply, after several tries if need be, with growing pauses.

        Raises UploadRefusedError, and UploadUnavailableError after the last try or where fal
        refuses the account: its owner can put that right, and the same file is accepted then.
        """
        for tries in range(1, self._policy.tries + 1):
            try:
                reply = exchange(http, build(), limit=within)
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                reason = describe_error(error)
            else:
                status = reply.http_status
                if httpx.codes.is_success(status) or status in accept:
                    return reply
                failure = parse_failure(reply.parse_json(), "")
                reason = f"HTTP {status}, {failure.message}" if failure else f"HTTP {status}"
                if http is self._client.keyed and status in ACCOUNT_CODES:
                    raise UploadUnavailableError(f"{what}: fal refuses the account ({reason})")
                if not is_transient(status):
                    raise UploadRefusedError(f"{what}: {reason}")
            pause = self._policy.pause.draw(tries).total_seconds()
            if tries == self._policy.tries or time.monotonic() + pause > self._deadline:
                break
            time.sleep(pause)
        raise UploadUnavailableError(f"{what}: {reason} (tried {tries} times)")


@contextmanager
def _refuse_unreadable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UploadRefusedError(f"the file can no longer be read: {error.strerror}") from error

"""fal's storage, call by call (fal-api, section 6). Each call is made once; `storage.py` insists.

The key goes to the host of `rest_url`, a CDN token to that of `cdn_url`, and a signed URL is a
credential itself: nothing else goes there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.http import Reply, build_client, exchange, name_origin, open_client
from worker.ground.errors import UploadRefusedError

MayUse = Callable[[str], bool]

STORAGE_TYPE = {"storage_type": "fal-cdn-v3"}
# Silence, not slowness: how long a host may take none of a chunk, or say nothing afterwards.
TRANSFER_TIMEOUT = httpx.Timeout(connect=10, write=60, read=60, pool=60)


@dataclass(frozen=True, slots=True)
class UploadFile:
    """A file of this machine, and as what fal will serve it."""

    path: Path
    size: int
    content_type: str
    file_name: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes go, and the URL that they will have; None if only the reply tells it.

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


class StorageApi:
    """URLs that fal names are on the very host of `rest_url` or `cdn_url`, or https and allowed.

    `may_use` says what is allowed: a file of ours is sent there.
    """

    def __init__(
        self, rest_url: str, cdn_url: str, credentials: SecretStr, may_use: MayUse
    ) -> None:
        self._rest_url = rest_url
        self._cdn_url = cdn_url
        self._cdn = name_origin(httpx.URL(cdn_url))
        self._may_use = may_use
        self._own = {name_origin(httpx.URL(rest_url)), self._cdn}
        self._keyed = build_client(credentials, keep_connections=True)
        self._bare = open_client(timeout=TRANSFER_TIMEOUT)

    def close(self) -> None:
        self._keyed.close()
        self._bare.close()

    # ------------------------------------------------------------------ with the key

    def ask_signed(self, file: UploadFile, *, in_parts: bool) -> Reply:
        """Where to send the file."""
        path = "upload/initiate-multipart" if in_parts else "upload/initiate"
        return self._ask(path, {"content_type": file.content_type, "file_name": file.file_name})

    def ask_token(self) -> Reply:
        return self._ask("auth/token", {})

    def _ask(self, path: str, body: Mapping[str, str]) -> Reply:
        url = f"{self._rest_url}/storage/{path}"
        request = self._keyed.build_request("POST", url, params=STORAGE_TYPE, json=body)
        return exchange(self._keyed, request)

    # ------------------------------------------------------------------ without it

    def create_multipart(self, file: UploadFile, token: Mapping[str, str]) -> Reply:
        """Begin an upload in parts at the CDN itself."""
        headers = {**token, **_describe(file)}
        url = f"{self._cdn_url}/files/upload/multipart"
        return exchange(self._bare, self._bare.build_request("POST", url, headers=headers))

    def send_whole(
        self, place: Place, file: UploadFile, content: Iterator[bytes], within: timedelta
    ) -> Reply:
        names = _describe(file) if place.token else {"Content-Type": file.content_type}
        headers = {**place.token, **names, "Content-Length": str(file.size)}
        request = self._bare.build_request(
            place.method, place.upload_url, content=content, headers=headers
        )
        return exchange(self._bare, request, limit=within)

    def send_part(
        self,
        place: Place,
        number: int,
        content: Iterator[bytes],
        headers: Mapping[str, str],
        within: timedelta,
    ) -> Reply:
        request = self._bare.build_request(
            "PUT", place.name_step(number), content=content, headers={**place.token, **headers}
        )
        return exchange(self._bare, request, limit=within)

    def complete(self, place: Place, parts: JsonValue, within: timedelta) -> Reply:
        """Have the parts put together."""
        request = self._bare.build_request(
            "POST", place.name_step("complete"), json={"parts": parts}, headers=dict(place.token)
        )
        return exchange(self._bare, request, limit=within)

    def ask_about(self, url: str) -> Reply:
        """Whether there is a file, not what is in it."""
        return exchange(self._bare, self._bare.build_request("HEAD", url))

    # ------------------------------------------------------------------ what was answered

    def read_signed(self, reply: Reply) -> Place:
        """Raises UploadRefusedError: nowhere, or where nothing may be sent; as all of these do."""
        upload_url = self._check_url(reply, "upload_url")
        return Place("PUT", upload_url, self._check_url(reply, "file_url"))

    def read_token(self, reply: Reply) -> dict[str, str]:
        body = _read_object(reply)
        kind, token = body.get("token_type"), body.get("token")
        if not isinstance(kind, str) or not isinstance(token, str):
            raise UploadRefusedError("fal's storage gave no token")
        return {"Authorization": f"{kind} {token}"}

    def name_whole(self, token: Mapping[str, str]) -> Place:
        """Where a file is sent at once with a token."""
        return Place("POST", f"{self._cdn_url}/files/upload", None, token)

    def read_created(self, reply: Reply, token: Mapping[str, str]) -> Place:
        access_url, upload_id = self.read_access_url(reply), _read_object(reply).get("uploadId")
        if name_origin(httpx.URL(access_url)) != self._cdn or not isinstance(upload_id, str):
            raise UploadRefusedError("fal's storage sends parts elsewhere than to FAL_CDN_URL")
        return Place("PUT", f"{access_url}/multipart/{upload_id}", access_url, token)

    def read_access_url(self, reply: Reply) -> str:
        return self._check_url(reply, "access_url")

    def _check_url(self, reply: Reply, name: str) -> str:
        """The message never holds the URL: it may be signed."""
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


def read_tag(reply: Reply) -> str:
    """By which a part is named at completion: in the body, or in the header."""
    tag = _read_object(reply).get("etag") or reply.headers.get("etag")
    if not isinstance(tag, str):
        raise UploadRefusedError("fal's storage took a part without naming it")
    return tag


def _describe(file: UploadFile) -> dict[str, str]:
    """As the CDN's own way wants it."""
    return {"Content-Type": file.content_type, "X-Fal-File-Name": file.file_name}


def _read_object(reply: Reply) -> Mapping[str, JsonValue]:
    body = reply.parse_json()
    return body if isinstance(body, dict) else {}

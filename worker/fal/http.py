"""One HTTP exchange with fal: sent once, bounded in time and size as a whole, never redirected."""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.completion import make_storable
from worker.ground.clock import call_within
from worker.ground.network import read_network

TIMEOUT = httpx.Timeout(connect=5, write=10, read=20, pool=5)
TOTAL_TIMEOUT = timedelta(seconds=30)
MAX_REPLY_BYTES = 1024 * 1024
ACCOUNT_CODES = frozenset({401, 403})
SERVER_ERROR = 500
# A call that failed so may succeed when it is made again.
TRANSIENT_CODES = frozenset({408, 425, 429})
MAX_RETRY_AFTER = timedelta(hours=1)


class ReplyTooLargeError(httpx.ReadError):
    """The reply has more bytes than its bound."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, read whole within its bounds."""

    http_status: int
    headers: Mapping[str, str]
    body: bytes

    def parse_json(self) -> JsonValue:
        """The body as far as a JSON column can hold it; None if it is no JSON."""
        try:
            return make_storable(json.loads(self.body))
        except (ValueError, RecursionError):
            return None

    def parse_object(self) -> dict[str, JsonValue]:
        """The body if it is a JSON object, else an empty one."""
        body = self.parse_json()
        return body if isinstance(body, dict) else {}


def build_client(
    credentials: SecretStr | None = None,
    *,
    keep_connections: bool = True,
    timeout: httpx.Timeout | None = None,
) -> httpx.Client:
    """Every client for fal and its storage: proxies and authorities of the environment, no more.

    With the key it is for requests to fal's own hosts only.
    """
    # What is measured against the bound is then what is held in memory.
    headers = {"Accept-Encoding": "identity"}
    if credentials is not None:
        headers["Authorization"] = f"Key {credentials.get_secret_value()}"
    kept = 20 if keep_connections else 0
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=kept)
    return httpx.Client(
        timeout=timeout or TIMEOUT,
        headers=headers,
        transport=read_network().build_transport(limits),
        trust_env=False,
        follow_redirects=False,
    )


def exchange(
    client: httpx.Client,
    request: httpx.Request,
    *,
    max_bytes: int = MAX_REPLY_BYTES,
    limit: timedelta | None = None,
) -> Reply:
    """Send once. Raises httpx.HTTPError, and TimeoutError once `limit` has passed.

    Without `limit` it is TOTAL_TIMEOUT.
    """
    limit = limit or TOTAL_TIMEOUT
    deadline = time.monotonic() + limit.total_seconds()
    try:
        return call_within(limit, lambda: _send(client, request, max_bytes, deadline))
    except TimeoutError:
        raise TimeoutError(f"no reply within {limit.total_seconds():g} s") from None


def query(  # noqa: PLR0913 - what a request has, and its bounds
    client: httpx.Client,
    method: str,
    url: str,
    *,
    params: Mapping[str, str] | None = None,
    json: JsonValue = None,
    max_bytes: int = MAX_REPLY_BYTES,
    limit: timedelta | None = None,
) -> Reply | str:
    """The reply to a call that may be repeated, or why there is none."""
    try:
        request = client.build_request(method, url, params=params, json=json)
        return exchange(client, request, max_bytes=max_bytes, limit=limit)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        return describe_error(error)


def is_transient(http_status: int) -> bool:
    """Whether a call that is safe to repeat is worth repeating after this answer."""
    return http_status in TRANSIENT_CODES or http_status >= SERVER_ERROR


def describe_error(error: httpx.HTTPError | httpx.InvalidURL | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def accept_url(url: JsonValue, base_url: str) -> str | None:
    """A URL as fal returned it, if it lies on the host that may see our key."""
    is_ours = name_origin(parse_url(url)) == name_origin(httpx.URL(base_url))
    return url if isinstance(url, str) and is_ours else None


def parse_url(url: JsonValue) -> httpx.URL:
    """A URL of a reply; an empty one if it is none."""
    try:
        return httpx.URL(url if isinstance(url, str) else "")
    except (httpx.InvalidURL, ValueError):
        return httpx.URL("")


def name_origin(url: httpx.URL) -> tuple[str, bytes, bytes]:
    """As httpx, which will send there, parses it: two parsers could see two hosts in one text."""
    return url.scheme, url.userinfo, url.netloc


def _send(client: httpx.Client, request: httpx.Request, max_bytes: int, deadline: float) -> Reply:
    try:
        response = client.send(request, stream=True, auth=None, follow_redirects=False)
    except httpx.InvalidURL as error:
        # A redirect is read even where it is not followed.
        raise httpx.RemoteProtocolError(f"the redirect leads nowhere: {error}") from error
    with closing(response):
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > max_bytes:
                raise ReplyTooLargeError(f"the reply has more than {max_bytes} bytes")
            if time.monotonic() > deadline:
                # The caller has given up; a trickling reply could go on for ever.
                raise httpx.ReadTimeout("the reply is too slow")
        return Reply(response.status_code, response.headers, bytes(body))

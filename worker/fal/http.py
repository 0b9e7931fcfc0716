"""One HTTP exchange with fal: bounded in time and size as a whole, never repeated or redirected."""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

import httpx
from pydantic import JsonValue, SecretStr

from worker.deadline import call_within
from worker.fal.completion import make_storable

TIMEOUT = httpx.Timeout(connect=5, write=10, read=20, pool=5)
TOTAL_TIMEOUT = timedelta(seconds=30)
MAX_REPLY_BYTES = 1024 * 1024


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


def build_client(credentials: SecretStr, *, keep_connections: bool) -> httpx.Client:
    """Build a client that carries the key: for requests to fal's own hosts only."""
    return httpx.Client(
        timeout=TIMEOUT,
        follow_redirects=False,
        limits=httpx.Limits(max_keepalive_connections=8 if keep_connections else 0),
        headers={
            "Authorization": f"Key {credentials.get_secret_value()}",
            # What is measured against the bound is then what is held in memory.
            "Accept-Encoding": "identity",
        },
    )


def exchange(
    client: httpx.Client,
    request: httpx.Request,
    *,
    max_bytes: int = MAX_REPLY_BYTES,
    within: timedelta = TOTAL_TIMEOUT,
) -> Reply:
    """Send once. Raises httpx.HTTPError, and TimeoutError once `within` has passed."""
    deadline = time.monotonic() + within.total_seconds()
    return call_within(within, lambda: _send(client, request, max_bytes, deadline))


def describe_error(error: httpx.HTTPError | httpx.InvalidURL | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return f"no reply within {TOTAL_TIMEOUT.total_seconds():g} s"
    return f"{type(error).__name__}: {error}"


def accept_url(url: JsonValue, base_url: str) -> str | None:
    """A URL as fal returned it, if it lies on the host that may see our key."""
    if not isinstance(url, str):
        return None
    try:
        ours, theirs = httpx.URL(base_url), httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return None
    return url if name_origin(ours) == name_origin(theirs) else None


def name_origin(url: httpx.URL) -> tuple[str, bytes, bytes]:
    """Read by whoever will send there: two parsers could see two hosts in one text."""
    return url.scheme, url.userinfo, url.netloc


def _send(client: httpx.Client, request: httpx.Request, max_bytes: int, deadline: float) -> Reply:
    try:
        response = client.send(request, stream=True)
    except httpx.InvalidURL as error:
        # A redirect is read even where it is not followed.
        raise httpx.RemoteProtocolError(f"the redirect leads nowhere: {error}") from error
    with closing(response):
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > max_bytes:
                raise httpx.ReadError(f"the reply has more than {max_bytes} bytes")
            if time.monotonic() > deadline:
                # Nobody waits any more, and drop by drop this could go on for ever.
                raise httpx.ReadTimeout("the reply is too slow")
        return Reply(response.status_code, response.headers, bytes(body))

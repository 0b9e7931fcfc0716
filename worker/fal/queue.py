"""fal's queue API. Submitting is paid and not idempotent, so here nothing is ever repeated."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import httpx
from pydantic import JsonValue, SecretStr

from worker.deadline import call_within
from worker.fal.completion import make_storable
from worker.fal.errors import UNNAMED_CODE, parse_failure

TIMEOUT = httpx.Timeout(connect=5, write=10, read=20, pool=5)
TOTAL_TIMEOUT = timedelta(seconds=30)
MAX_REPLY_BYTES = 1024 * 1024

ACCOUNT_DELAY = timedelta(seconds=60)
BUSY_DELAY = timedelta(seconds=30)
UNREACHABLE_DELAY = timedelta(seconds=10)
MAX_RETRY_AFTER = timedelta(hours=1)

# They tell that the connection was lost, not that the request is refused.
LOST_CONNECTION = frozenset({408, 499})


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is queued; its URLs as fal returned them, or None if they point elsewhere."""

    fal_request_id: str
    status_url: str | None
    response_url: str | None
    cancel_url: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The request is surely not queued; `retry_after` is None where asking again is no use."""

    http_status: int | None
    code: str
    message: str
    retry_after: timedelta | None


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Nobody can say whether fal queued the request: it must not be sent again."""

    http_status: int | None
    message: str


SubmitReply = Accepted | Refused | Ambiguous


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, read whole within its bounds."""

    http_status: int
    headers: Mapping[str, str]
    body: bytes


class QueueClient:
    """One connection pool to fal's queue. The key goes to `base_url` and nowhere else."""

    def __init__(self, base_url: str, credentials: SecretStr) -> None:
        self._base_url = base_url
        self._http = httpx.Client(
            timeout=TIMEOUT,
            follow_redirects=False,
            # Each POST has a connection of its own: a kept one may have died unnoticed, and then
            # nobody could say whether the request was read.
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={
                "Authorization": f"Key {credentials.get_secret_value()}",
                # What is measured against the bound is then what is held in memory.
                "Accept-Encoding": "identity",
            },
        )

    def submit(
        self,
        endpoint: str,
        arguments: Mapping[str, JsonValue],
        *,
        webhook_url: str,
        start_timeout: timedelta,
        store_io: bool,
    ) -> SubmitReply:
        """POST once. Every outcome is a value; no exception tells of the network."""
        seconds = f"{start_timeout.total_seconds():g}"
        request = self._http.build_request(
            "POST",
            f"{self._base_url}/{endpoint}",
            params={"fal_webhook": webhook_url},
            json=dict(arguments),
            headers={
                # The second name is the older one; fal lets the first win.
                "X-Fal-Request-Start-Timeout": seconds,
                "X-Fal-Request-Timeout": seconds,
                "X-Fal-Store-IO": "1" if store_io else "0",
            },
        )
        try:
            reply = call_within(TOTAL_TIMEOUT, lambda: self._send(request))
        except TimeoutError:
            return Ambiguous(None, f"no reply within {TOTAL_TIMEOUT.total_seconds():g} s")
        except httpx.HTTPError as error:
            return sort_transport_error(error)
        return sort_reply(reply, self._base_url)

    def close(self) -> None:
        self._http.close()

    def _send(self, request: httpx.Request) -> Reply:
        with closing(self._http.send(request, stream=True)) as response:
            body = bytearray()
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    raise httpx.ReadError(f"the reply has more than {MAX_REPLY_BYTES} bytes")
            return Reply(response.status_code, response.headers, bytes(body))


def sort_transport_error(error: httpx.HTTPError) -> SubmitReply:
    """Without a connection no byte of the request left; after that nobody knows."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return Refused(None, "fal_unreachable", _describe_error(error), UNREACHABLE_DELAY)
    return Ambiguous(None, _describe_error(error))


def sort_reply(reply: Reply, base_url: str) -> SubmitReply:
    """Accepted only with a request id, refused only with fal's own error shape."""
    body = _parse_json(reply.body)
    if reply.http_status == httpx.codes.OK:
        return _read_acceptance(body, base_url) or Ambiguous(
            reply.http_status, "fal answered 200 without a request id"
        )
    failure = parse_failure(body, f"HTTP {reply.http_status}")
    refused = httpx.codes.is_client_error(reply.http_status)
    if failure is None or not refused or reply.http_status in LOST_CONNECTION:
        return Ambiguous(reply.http_status, f"fal answered {reply.http_status}")
    code = failure.code if failure.code != UNNAMED_CODE else f"fal_http_{reply.http_status}"
    return Refused(reply.http_status, code, failure.message, _choose_retry_after(reply))


def _choose_retry_after(reply: Reply) -> timedelta | None:
    """Account trouble and a full queue pass by; any other refusal is of the request itself."""
    match reply.http_status:
        case httpx.codes.UNAUTHORIZED | httpx.codes.FORBIDDEN:
            return ACCOUNT_DELAY
        case httpx.codes.TOO_MANY_REQUESTS:
            text = reply.headers.get("retry-after", "")
            wished = timedelta(seconds=int(text[:6])) if text.isdecimal() else BUSY_DELAY
            return min(wished, MAX_RETRY_AFTER)
        case _:
            return None


def _read_acceptance(body: JsonValue, base_url: str) -> Accepted | None:
    if not isinstance(body, dict):
        return None
    fal_request_id = body.get("request_id")
    if not isinstance(fal_request_id, str) or not fal_request_id:
        return None
    urls = (_accept_url(body.get(f"{name}_url"), base_url) for name in _FOLLOW_UPS)
    return Accepted(fal_request_id, *urls)


_FOLLOW_UPS = ("status", "response", "cancel")


def _accept_url(url: JsonValue, base_url: str) -> str | None:
    """Follow-up URLs are used as returned, but only on the host that may see our key."""
    if not isinstance(url, str):
        return None
    try:
        ours, theirs = urlsplit(base_url), urlsplit(url)
    except ValueError:
        return None
    return url if (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc) else None


def _parse_json(body: bytes) -> JsonValue:
    try:
        return make_storable(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _describe_error(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}"

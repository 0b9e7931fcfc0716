"""fal's queue API, submitting. That is paid and not idempotent, so here nothing is ever repeated.

What may be repeated, asking about a request and cancelling it, is in `requests.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.errors import UNNAMED_CODE, Detail, parse_failure
from worker.fal.http import Reply, accept_url, build_client, describe_error, exchange
from worker.fal.options import RequestOptions

MAX_RETRY_AFTER = timedelta(hours=1)

# They tell that the connection was lost, not that the request is refused.
LOST_CONNECTION = frozenset({408, 499})
ACCOUNT_CODES = frozenset({401, 403})
# A front door answers it when it has nobody to pass a request to. Its 502 and 504 may come after
# the request was passed on, so they prove nothing (ADR 16; fal-api, section 4.4).
INGRESS_MARK = b"nginx"


class RefusalClass(StrEnum):
    """Why a submission was refused, as far as that decides what follows."""

    # of the request itself: it would be refused again
    INPUT = "input"
    # 401, 403: the key, or the account's lock or balance; every other job would be refused as well
    ACCOUNT = "account"
    # 429
    BUSY = "busy"
    # no connection, no TLS
    UNREACHABLE = "unreachable"
    # the front door's own 503
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is queued; its URLs as fal returned them, or None if they point elsewhere."""

    fal_request_id: str
    status_url: str | None
    response_url: str | None
    cancel_url: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The request is surely not queued; `retry_after` is what fal asks for, if it does.

    `details` has an item for each wrong field, if fal named any.
    """

    why: RefusalClass
    http_status: int | None
    code: str
    message: str
    retry_after: timedelta = timedelta()
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Nobody can say whether fal queued the request: it must not be sent again."""

    http_status: int | None
    message: str


SubmitReply = Accepted | Refused | Ambiguous


class QueueClient:
    """Submits to fal's queue. The key goes to `base_url` and nowhere else."""

    def __init__(
        self, base_url: str, credentials: SecretStr, *, limit: timedelta | None = None
    ) -> None:
        self._base_url = base_url
        self._limit = limit
        # Each POST has a connection of its own: a kept one may have died unnoticed, and then
        # nobody could say whether the request was read.
        self._http = build_client(credentials, keep_connections=False)

    def submit(
        self,
        endpoint: str,
        arguments: Mapping[str, JsonValue],
        *,
        webhook_url: str | None,
        options: RequestOptions,
    ) -> SubmitReply:
        """POST once. Every outcome is a value; no exception tells of the network."""
        request = self._http.build_request(
            "POST",
            f"{self._base_url}/{endpoint}",
            params={} if webhook_url is None else {"fal_webhook": webhook_url},
            json=dict(arguments),
            headers=options.to_headers(),
        )
        try:
            reply = exchange(self._http, request, limit=self._limit)
        except (httpx.HTTPError, TimeoutError) as error:
            return sort_transport_error(error)
        return sort_reply(reply, self._base_url)

    def close(self) -> None:
        self._http.close()


def sort_transport_error(error: httpx.HTTPError | TimeoutError) -> SubmitReply:
    """Without a connection no byte of the request left; after that nobody knows.

    A proxy error is a refused CONNECT or SOCKS handshake: the tunnel to fal was never open.
    """
    never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
    if isinstance(error, never_sent):
        return Refused(RefusalClass.UNREACHABLE, None, "fal_unreachable", describe_error(error))
    return Ambiguous(None, describe_error(error))


def sort_reply(reply: Reply, base_url: str) -> SubmitReply:
    """Accepted only with a request id; refused only in fal's own words, or by its front door."""
    body = reply.parse_json()
    if reply.http_status == httpx.codes.OK:
        return _read_acceptance(body, base_url) or Ambiguous(
            reply.http_status, "fal answered 200 without a request id"
        )
    if body is None and _is_from_ingress(reply):
        message = f"fal's front door answered {reply.http_status}"
        return Refused(
            RefusalClass.UNAVAILABLE,
            reply.http_status,
            "fal_unavailable",
            message,
            _read_retry_after(reply),
        )
    error_type = reply.headers.get("x-fal-error-type", "")
    failure = parse_failure(body, f"HTTP {reply.http_status}", error_type)
    refused = httpx.codes.is_client_error(reply.http_status)
    if failure is None or not refused or reply.http_status in LOST_CONNECTION:
        return Ambiguous(reply.http_status, f"fal answered {reply.http_status}")
    code = failure.code if failure.code != UNNAMED_CODE else f"fal_http_{reply.http_status}"
    why = _classify_refusal(reply.http_status)
    wait, details = _read_retry_after(reply), failure.details
    return Refused(why, reply.http_status, code, failure.message, wait, details)


def _is_from_ingress(reply: Reply) -> bool:
    return (
        reply.http_status == httpx.codes.SERVICE_UNAVAILABLE
        and "x-fal-request-id" not in reply.headers
        and INGRESS_MARK in reply.body.lower()
    )


def _classify_refusal(http_status: int) -> RefusalClass:
    match http_status:
        case code if code in ACCOUNT_CODES:
            return RefusalClass.ACCOUNT
        case httpx.codes.TOO_MANY_REQUESTS:
            return RefusalClass.BUSY
        case _:
            return RefusalClass.INPUT


def _read_retry_after(reply: Reply) -> timedelta:
    """Whole seconds, within a bound; the header's other form, a date, is not used by fal."""
    text = reply.headers.get("retry-after", "")
    if not text.isascii() or not text.isdecimal():
        return timedelta()
    digits = text.lstrip("0")[:6] or "0"
    return min(timedelta(seconds=int(digits)), MAX_RETRY_AFTER)


def _read_acceptance(body: JsonValue, base_url: str) -> Accepted | None:
    if not isinstance(body, dict):
        return None
    fal_request_id = body.get("request_id")
    if not isinstance(fal_request_id, str) or not fal_request_id:
        return None
    urls = (accept_url(body.get(f"{name}_url"), base_url) for name in _FOLLOW_UPS)
    return Accepted(fal_request_id, *urls)


_FOLLOW_UPS = ("status", "response", "cancel")

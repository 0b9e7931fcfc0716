"""Submitting to fal's queue: paid and not idempotent, so nothing here is ever repeated.

What may be repeated, querying and cancelling a request, is in `requests.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.errors import UNNAMED_CODE, Detail, parse_failure
from worker.fal.http import (
    MAX_RETRY_AFTER,
    Reply,
    accept_url,
    build_client,
    describe_error,
    exchange,
)
from worker.fal.options import RequestOptions
from worker.ground.network import read_retry_after

# They say that the connection was lost, not that the request is refused.
LOST_CONNECTION = frozenset({408, 499})
# fal's gateway answers 503 when it has no server to pass a request to. Its 502 and 504 may come
# after the request was passed on, so they prove nothing (ADR 16; fal-api, section 4.4).
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
    # the gateway's own 503
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
    """The request is certainly not queued; `retry_after` is the wait that fal requests.

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
    """Whether fal queued the request is unknown: it must not be sent again."""

    http_status: int | None
    message: str


SubmitReply = Accepted | Refused | Ambiguous


class QueueClient:
    """Submits to fal's queue. The key goes to `base_url` and nowhere else."""

    def __init__(self, base_url: str, credentials: SecretStr) -> None:
        self._base_url = base_url
        # Each POST has a connection of its own: a kept one may have died unnoticed, and then
        # whether the request was read would be unknown.
        self._http = build_client(credentials, keep_connections=False)

    def submit(
        self,
        endpoint: str,
        arguments: Mapping[str, JsonValue],
        *,
        webhook_url: str | None,
        options: RequestOptions,
    ) -> SubmitReply:
        """POST once. Every outcome is a value; network errors never raise."""
        request = self._http.build_request(
            "POST",
            f"{self._base_url}/{endpoint}",
            params={} if webhook_url is None else {"fal_webhook": webhook_url},
            json=dict(arguments),
            headers=options.to_headers(),
        )
        try:
            reply = exchange(self._http, request)
        except (httpx.HTTPError, TimeoutError) as error:
            return sort_transport_error(error)
        return sort_reply(reply, self._base_url)

    def close(self) -> None:
        self._http.close()


def sort_transport_error(error: httpx.HTTPError | TimeoutError) -> SubmitReply:
    """Without a connection no byte of the request left; after that the outcome is unknown.

    A proxy error is a refused CONNECT or SOCKS handshake: the tunnel to fal was never open.
    """
    never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
    if isinstance(error, never_sent):
        return Refused(RefusalClass.UNREACHABLE, None, "fal_unreachable", describe_error(error))
    return Ambiguous(None, describe_error(error))


def sort_reply(reply: Reply, base_url: str) -> SubmitReply:
    """Accepted only with a request id; refused only in fal's own words, or by its gateway."""
    status, body = reply.http_status, reply.parse_json()
    if status == httpx.codes.OK:
        given = reply.parse_object()
        fal_request_id = given.get("request_id")
        if not isinstance(fal_request_id, str) or not fal_request_id:
            return Ambiguous(status, "fal answered 200 without a request id")
        names = ("status_url", "response_url", "cancel_url")
        return Accepted(fal_request_id, *(accept_url(given.get(name), base_url) for name in names))
    wait = read_retry_after(reply.headers.get("retry-after"), MAX_RETRY_AFTER, datetime.now(UTC))
    from_gateway = "x-fal-request-id" not in reply.headers and INGRESS_MARK in reply.body.lower()
    if body is None and status == httpx.codes.SERVICE_UNAVAILABLE and from_gateway:
        message = f"fal's gateway answered {status}"
        return Refused(RefusalClass.UNAVAILABLE, status, "fal_unavailable", message, wait)
    error_type = reply.headers.get("x-fal-error-type", "")
    failure = parse_failure(body, f"HTTP {status}", error_type)
    if failure is None or not httpx.codes.is_client_error(status) or status in LOST_CONNECTION:
        return Ambiguous(status, f"fal answered {status}")
    code = failure.code if failure.code != UNNAMED_CODE else f"fal_http_{status}"
    known = {401: RefusalClass.ACCOUNT, 403: RefusalClass.ACCOUNT, 429: RefusalClass.BUSY}
    why = known.get(status, RefusalClass.INPUT)
    return Refused(why, status, code, failure.message, wait, failure.details)

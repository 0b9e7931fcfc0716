"""What can be asked about one request in fal's queue, and repeated: status, result, cancellation.

COMPLETED covers success, failure and cancellation alike; `error`, `error_type` and the code of the
result tell them apart (fal-api, section 3). A status call that fails is no conclusion.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from urllib.parse import quote

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.completion import Completion
from worker.fal.errors import parse_failure
from worker.fal.http import (
    MAX_REPLY_BYTES,
    Reply,
    accept_url,
    build_client,
    describe_error,
    exchange,
)

# A result that travels as a data URI is as large as its video.
MAX_RESULT_BYTES = 256 * 1024 * 1024
NOT_FOUND = frozenset({404, 410})
# These path heads keep one segment more than owner and app in their follow-up URLs.
NAMESPACES = frozenset({"workflows", "comfy"})


class RequestRef(Protocol):
    """What a request is asked for by: its id, and its URLs as far as fal has returned them."""

    @property
    def endpoint(self) -> str: ...
    @property
    def status_url(self) -> str | None: ...
    @property
    def response_url(self) -> str | None: ...
    @property
    def cancel_url(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Pending:
    """Queued or running."""

    status: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """fal does not know the request, or knows it no longer: 404."""


@dataclass(frozen=True, slots=True)
class ResultGone:
    """The request is completed, without error, and its result cannot be read any more: 404."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """Nothing was learnt."""

    message: str


Truth = Completion | Pending | Forgotten | ResultGone | Unclear


class CancelAnswer(StrEnum):
    """fal's answer to a cancellation; UNCLEAR if there was none."""

    OK = "OK"
    REQUESTED = "CANCELLATION_REQUESTED"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    NOT_FOUND = "NOT_FOUND"
    UNCLEAR = "UNCLEAR"


class RequestClient:
    """Asks about requests. The key goes to `base_url` and nowhere else."""

    def __init__(self, base_url: str, credentials: SecretStr) -> None:
        self._base_url = base_url
        self._http = build_client(credentials, keep_connections=True)

    def find_truth(self, ref: RequestRef, fal_request_id: str) -> Truth:
        """Where the request is by fal's own words, its result included. Never raises."""
        reply = self._ask("GET", self._choose_url(ref.status_url, ref, fal_request_id, "/status"))
        if not isinstance(reply, Reply):
            return reply
        status = read_status(reply)
        match status:
            case Finished():
                return self._read_result(ref, fal_request_id, status)
            case Forgotten():
                # The status may be gone, or away, while the result can still be read.
                truth = self._read_result(ref, fal_request_id, Finished(None, None))
                return truth if isinstance(truth, Completion) else status
            case _:
                return status

    def cancel(self, ref: RequestRef, fal_request_id: str) -> CancelAnswer:
        """Ask fal to remove the request from its queue, or to stop it."""
        reply = self._ask("PUT", self._choose_url(ref.cancel_url, ref, fal_request_id, "/cancel"))
        return read_cancel_answer(reply) if isinstance(reply, Reply) else CancelAnswer.UNCLEAR

    def close(self) -> None:
        self._http.close()

    def _read_result(self, ref: RequestRef, fal_request_id: str, finished: "Finished") -> Truth:
        url = self._choose_url(ref.response_url, ref, fal_request_id, "")
        reply = self._ask("GET", url, max_bytes=MAX_RESULT_BYTES)
        if not isinstance(reply, Reply):
            return reply if finished.error is None else finished.fail(fal_request_id, None)
        return sort_result(reply, finished, fal_request_id)

    def _ask(self, method: str, url: str, *, max_bytes: int = MAX_REPLY_BYTES) -> Reply | Unclear:
        try:
            return exchange(self._http, self._http.build_request(method, url), max_bytes=max_bytes)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return Unclear(describe_error(error))

    def _choose_url(
        self, returned: str | None, ref: RequestRef, fal_request_id: str, suffix: str
    ) -> str:
        """As returned, if the key may go there; else built from owner and app (section 2.2)."""
        known = accept_url(returned, self._base_url)
        if known is not None:
            return known
        parts = ref.endpoint.split("/")
        app = "/".join(parts[: 3 if parts[0] in NAMESPACES else 2])
        return f"{self._base_url}/{app}/requests/{quote(fal_request_id, safe='')}{suffix}"


@dataclass(frozen=True, slots=True)
class Finished:
    """COMPLETED; with `error` if it failed or was cancelled."""

    error: str | None
    error_type: str | None

    def fail(self, fal_request_id: str, body: JsonValue) -> Completion:
        """The failure as a webhook would tell it: the model's own words, or the platform's."""
        known = parse_failure(body, "") is not None
        platform: JsonValue = {"detail": self.error, "error_type": self.error_type}
        payload = body if known else platform
        return Completion(fal_request_id, None, "ERROR", payload, self.error)


def read_status(reply: Reply) -> Finished | Pending | Forgotten | Unclear:
    """Sort a status reply; pure. 202 while pending and 200 when COMPLETED, but the body decides."""
    if reply.http_status in NOT_FOUND:
        return Forgotten()
    body = reply.parse_json()
    status = body.get("status") if isinstance(body, dict) else None
    if not httpx.codes.is_success(reply.http_status) or not isinstance(body, dict):
        return Unclear(f"the status call answered {reply.http_status}")
    if status in ("IN_QUEUE", "IN_PROGRESS"):
        return Pending(str(status))
    if status != "COMPLETED":
        return Unclear("the status call named no known status")
    error, error_type = _as_text(body.get("error")), _as_text(body.get("error_type"))
    return Finished(error or error_type, error_type)


def sort_result(reply: Reply, finished: Finished, fal_request_id: str) -> Truth:
    """Sort the result of a completed request; pure.

    A failed run answers with the model's own code and words. A 5xx of a run that did not fail
    passes by (section 3.3), and a 404 in no model's words means that the result is gone.
    """
    body = reply.parse_json()
    if finished.error is not None:
        return finished.fail(fal_request_id, body)
    if httpx.codes.is_success(reply.http_status):
        if body is None:
            return Unclear("the result is not JSON")
        return Completion(fal_request_id, None, "OK", body, None)
    is_models_own = isinstance(body, dict) and isinstance(body.get("detail"), list)
    if httpx.codes.is_client_error(reply.http_status) and is_models_own:
        return Completion(fal_request_id, None, "ERROR", body, f"HTTP {reply.http_status}")
    if reply.http_status in NOT_FOUND:
        return ResultGone()
    return Unclear(f"the result call answered {reply.http_status}")


def read_cancel_answer(reply: Reply) -> CancelAnswer:
    """Sort the answer to a cancellation; pure. Sources disagree on its codes, so both count."""
    body = reply.parse_json()
    status = body.get("status") if isinstance(body, dict) else None
    known = {answer.value: answer for answer in CancelAnswer if answer is not CancelAnswer.UNCLEAR}
    if isinstance(status, str) and status in known:
        return known[status]
    if httpx.codes.is_success(reply.http_status):
        return CancelAnswer.REQUESTED
    return CancelAnswer.NOT_FOUND if reply.http_status in NOT_FOUND else CancelAnswer.UNCLEAR


def _as_text(value: JsonValue) -> str | None:
    """Text is promised; an error of another shape is still an error."""
    if isinstance(value, str):
        return value or None
    return json.dumps(value, ensure_ascii=False) if value else None

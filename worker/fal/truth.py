"""What fal's replies about one request mean; pure.

COMPLETED covers success, failure and cancellation alike; `error`, `error_type` and the code of the
result tell them apart (fal-api, section 3). A status call that fails is no conclusion.
"""

from dataclasses import dataclass
from enum import StrEnum

import httpx
from pydantic import JsonValue

from worker.fal.completion import Completion, names_video
from worker.fal.errors import parse_failure, read_retry_header
from worker.fal.http import Reply
from worker.fal.status import Completed, InProgress, Queued, parse_status

NOT_FOUND = frozenset({404, 410})


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


Known = Completion | Pending | ResultGone
Truth = Known | Forgotten | Unclear


class CancelAnswer(StrEnum):
    """fal's answer to a cancellation; UNCLEAR if there was none."""

    OK = "OK"
    REQUESTED = "CANCELLATION_REQUESTED"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    NOT_FOUND = "NOT_FOUND"
    UNCLEAR = "UNCLEAR"


@dataclass(frozen=True, slots=True)
class Finished:
    """COMPLETED; with `error` if it failed or was cancelled."""

    error: str | None
    error_type: str | None

    def fail(
        self, fal_request_id: str, body: JsonValue, *, retryable: bool | None = None
    ) -> Completion:
        """The failure as a webhook would tell it: the model's own words, or the platform's."""
        known = parse_failure(body, "") is not None
        platform: JsonValue = {"detail": self.error, "error_type": self.error_type}
        payload = body if known else platform
        return Completion(fal_request_id, None, "ERROR", payload, self.error, retryable=retryable)


def read_status(reply: Reply) -> Finished | Pending | Forgotten | Unclear:
    """Sort a status reply; pure. 202 while pending and 200 when COMPLETED, but the body decides."""
    if reply.http_status in NOT_FOUND:
        return Forgotten()
    body = reply.parse_json()
    if not httpx.codes.is_success(reply.http_status) or not isinstance(body, dict):
        return Unclear(f"the status call answered {reply.http_status}")
    status = parse_status(body)
    match status:
        case Queued():
            return Pending("IN_QUEUE")
        case InProgress():
            return Pending("IN_PROGRESS")
        case Completed():
            return Finished(status.error, status.error_type)
        case None:
            return Unclear("the status call named no known status")


def sort_result(reply: Reply, finished: Finished, fal_request_id: str) -> Truth:
    """Sort the result of a completed request; pure.

    A failed run answers with the model's own code and words. A 5xx of a run that did not fail
    passes by (section 3.3), and a 404 in no model's words means that the result is gone.
    """
    body = reply.parse_json()
    retryable = read_retry_header(reply.headers)
    is_success = httpx.codes.is_success(reply.http_status)
    if finished.error is not None and not (is_success and names_video(body)):
        return finished.fail(fal_request_id, body, retryable=retryable)
    if is_success:
        if body is None:
            return Unclear("the result is not JSON")
        return Completion(fal_request_id, None, "OK", body, None)
    is_models_own = isinstance(body, dict) and isinstance(body.get("detail"), list)
    if httpx.codes.is_client_error(reply.http_status) and is_models_own:
        error = f"HTTP {reply.http_status}"
        return Completion(fal_request_id, None, "ERROR", body, error, retryable=retryable)
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

"""What `FalClient` raises, and for which reply: the errors of calls without the job table."""

from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, assert_never

import httpx
from pydantic import JsonValue

from worker.fal.completion import Completion
from worker.fal.error_types import ErrorClass, find_error_type
from worker.fal.errors import UNNAMED_CODE, Detail, FalFailure, parse_failure
from worker.fal.http import Reply
from worker.fal.queue import RefusalClass, Refused
from worker.fal.status import RequestStatus, parse_status
from worker.fal.truth import NOT_FOUND, Forgotten, Pending, ResultGone, Truth, Unclear
from worker.ground.errors import ExtendVideoError, PermanentError, RetryableError

REFUSED_ACCOUNT = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Handle:
    """A request at fal. Endpoint and id are enough: the URLs are as fal returned them, if known."""

    endpoint: str
    fal_request_id: str
    status_url: str | None = None
    response_url: str | None = None
    cancel_url: str | None = None


class SubmissionRefusedError(PermanentError):
    """Surely not queued, and refused for itself: the same arguments would be refused again.

    `error_type` is fal's, `details` has an item for each wrong field.
    """

    code = "submission_refused"

    def __init__(
        self, message: str, *, http_status: int | None, error_type: str, details: tuple[Detail, ...]
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.error_type = error_type
        self.details = details


class SubmissionPostponedError(RetryableError):
    """Surely not queued, because fal is busy or away: the same arguments may be taken later."""

    code = "submission_postponed"

    def __init__(
        self, message: str, *, http_status: int | None, error_type: str, retry_after: timedelta
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.error_type = error_type
        self.retry_after = retry_after


class SubmissionUnknownError(ExtendVideoError):
    """Nobody can say whether fal queued the request: submitting again may pay twice.

    Neither retryable nor permanent. The platform's request listing, or a webhook, may tell.
    """

    code = "submission_unknown"

    def __init__(self, message: str, *, http_status: int | None) -> None:
        super().__init__(message)
        self.http_status = http_status


class AccountRefusedError(PermanentError):
    """401 or 403: the key, or the account's lock or balance; every other call fares alike."""

    code = "account_refused"

    def __init__(self, message: str, *, http_status: int | None) -> None:
        super().__init__(message)
        self.http_status = http_status


class RequestPendingError(RetryableError):
    """The request has not ended; its id is not lost."""

    code = "request_pending"

    def __init__(self, message: str, *, fal_request_id: str) -> None:
        super().__init__(message)
        self.fal_request_id = fal_request_id


class RequestUnclearError(RetryableError):
    """Nothing was learnt about the request."""

    code = "request_unclear"

    def __init__(self, message: str, *, fal_request_id: str) -> None:
        super().__init__(message)
        self.fal_request_id = fal_request_id


class RequestNotFoundError(PermanentError):
    """fal does not know the request, or its result, any more."""

    code = "request_not_found"

    def __init__(self, message: str, *, fal_request_id: str) -> None:
        super().__init__(message)
        self.fal_request_id = fal_request_id


class RequestFailedError(ExtendVideoError):
    """The request has ended without a result; what is raised is one of its three kinds.

    `error_type` is fal's (`error_types.py` says what it means), `details` has an item for each
    wrong field, `retryable` is what fal's header says of another try, None if nothing.
    """

    code = "request_failed"

    def __init__(
        self,
        message: str,
        *,
        fal_request_id: str,
        error_type: str,
        details: tuple[Detail, ...],
        retryable: bool | None,
    ) -> None:
        super().__init__(message)
        self.fal_request_id = fal_request_id
        self.error_type = error_type
        self.details = details
        self.retryable = retryable


class InputRefusedError(RequestFailedError, PermanentError):
    """The model does not take this input: another run would end the same way."""

    code = "input_refused"


class RunFailedError(RequestFailedError, RetryableError):
    """The model, or fal, failed: another run, which is paid as well, may end otherwise."""

    code = "run_failed"


class RequestCancelledError(RequestFailedError, PermanentError):
    """Whoever asked has cancelled the request, or gone away."""

    code = "request_cancelled"


FAILURES: dict[ErrorClass, type[RequestFailedError]] = {
    ErrorClass.INPUT: InputRefusedError,
    ErrorClass.MODEL: RunFailedError,
    ErrorClass.PLATFORM: RunFailedError,
    ErrorClass.CALLER: RequestCancelledError,
    ErrorClass.API: RunFailedError,
}


def raise_refusal(reply: Refused) -> NoReturn:
    """Raise as `FalClient.submit` does; after each of these nothing is queued."""
    match reply.why:
        case RefusalClass.INPUT:
            raise SubmissionRefusedError(
                reply.message,
                http_status=reply.http_status,
                error_type=reply.code,
                details=reply.details,
            )
        case RefusalClass.ACCOUNT:
            raise AccountRefusedError(reply.message, http_status=reply.http_status)
        case RefusalClass.BUSY | RefusalClass.UNREACHABLE | RefusalClass.UNAVAILABLE:
            raise SubmissionPostponedError(
                reply.message,
                http_status=reply.http_status,
                error_type=reply.code,
                retry_after=reply.retry_after,
            )
        case _:
            assert_never(reply.why)


def take_status(reply: Reply | Unclear, handle: Handle) -> RequestStatus:
    """What fal says of the request. Raises as `FalClient.status` does."""
    fal_request_id = handle.fal_request_id
    if isinstance(reply, Unclear):
        raise RequestUnclearError(reply.message, fal_request_id=fal_request_id)
    if reply.http_status in REFUSED_ACCOUNT:
        message = f"the status call answered {reply.http_status}"
        raise AccountRefusedError(message, http_status=reply.http_status)
    if reply.http_status in NOT_FOUND:
        message = "fal does not know the request, or knows it no longer"
        raise RequestNotFoundError(message, fal_request_id=fal_request_id)
    status = parse_status(reply.parse_json())
    if not httpx.codes.is_success(reply.http_status) or status is None:
        message = f"the status call answered {reply.http_status} and no status"
        raise RequestUnclearError(message, fal_request_id=fal_request_id)
    return status


def take_output(truth: Truth, handle: Handle) -> dict[str, JsonValue]:
    """The model's output. Raises as `FalClient.result` does."""
    fal_request_id = handle.fal_request_id
    match truth:
        case Completion(status="OK", payload=dict(output)):
            return output
        case Completion(status="ERROR", error=error):
            words = error or "fal reports an error without a message"
            failure = parse_failure(truth.payload, words) or FalFailure(UNNAMED_CODE, words)
            known = find_error_type(failure.code, names_fields=bool(failure.details))
            raise FAILURES[known.error_class](
                failure.message,
                fal_request_id=fal_request_id,
                error_type=failure.code,
                details=failure.details,
                retryable=truth.retryable,
            )
        case ResultGone() | Forgotten():
            message = "fal has no result of the request any more"
            raise RequestNotFoundError(message, fal_request_id=fal_request_id)
        case Unclear(message):
            raise RequestUnclearError(message, fal_request_id=fal_request_id)
        case Pending() | Completion():
            message = "the result is no JSON object"
            raise RequestUnclearError(message, fal_request_id=fal_request_id)
        case _:
            assert_never(truth)

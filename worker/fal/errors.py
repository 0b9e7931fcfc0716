"""fal's errors: their shapes read into one value, their types, and what `FalClient` raises.

Model errors are `{"detail": [{"loc", "msg", "type", ...}]}`, platform errors are
`{"detail": "text", "error_type": "..."}`, and the platform APIs wrap theirs as
`{"error": {"type", "message"}}`. The type becomes our searchable `error_code`. The types are those
of fal-api, sections 4.1 (a model's) and 4.2 (the platform's); what is charged follows section 4.3.
fal adds types without notice, so an unknown one is no error of ours.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from pydantic import JsonValue

from worker.ground.errors import ExtendVideoError, PermanentError, RetryableError

UNNAMED_CODE = "fal_error"
# Bounds that keep the job's row small.
MAX_MESSAGE = 2000
MAX_DETAILS = 20
MAX_DETAIL_TEXT = 500
MAX_DETAIL_PLACE = 10
MAX_ECHO = 200
MAX_CONTEXT = 1000

Detail = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class FalFailure:
    """What fal says went wrong: its type (or `fal_error`) and its words, shortened.

    `details` has an item for each wrong field, in fal's form, if the model named any.
    """

    code: str
    message: str
    details: tuple[Detail, ...] = ()


def parse_failure(body: JsonValue, fallback: str, error_type: str = "") -> FalFailure | None:
    """The failure in an error body of fal's shape; None if the body has another shape.

    `error_type` is the header X-Fal-Error-Type, which counts where the body names no type.
    """
    details: tuple[Detail, ...] = ()
    if not isinstance(body, dict):
        return None
    match body.get("detail"):
        case str(text):
            code, message = body.get("error_type"), text or fallback
        case [dict(first), *_] as items:
            code, message = first.get("type"), "; ".join(map(_describe_item, items))
            objects = (item for item in items[:MAX_DETAILS] if isinstance(item, dict))
            details = tuple(map(_bound_detail, objects))
        case _:
            return None
    code = code or error_type
    named = isinstance(code, str) and code
    return FalFailure(str(code) if named else UNNAMED_CODE, message[:MAX_MESSAGE], details)


def describe_platform_error(status: int, body: JsonValue) -> str:
    """What a platform API said instead of an answer, in a few words."""
    error = body.get("error") if isinstance(body, dict) else None
    given = error if isinstance(error, dict) else {}
    named = (given.get(name) for name in ("type", "message"))
    words = ": ".join(one for one in named if isinstance(one, str) and one)[:MAX_DETAIL_TEXT]
    return f"HTTP {status}, {words}" if words else f"HTTP {status}"


def read_retry_header(headers: Mapping[str, str]) -> bool | None:
    """Whether fal says that trying again can help; None if it does not say.

    Of the two names the first is the newer one.
    """
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    for name in ("x-fal-needs-retry", "x-fal-retryable"):
        said = words.get(headers.get(name, "").strip().lower())
        if said is not None:
            return said
    return None


def name_field(detail: Mapping[str, JsonValue]) -> str:
    """The input field that a detail is about; empty if it is about the whole."""
    place = detail.get("loc")
    return ".".join(map(str, place[1:])) if isinstance(place, list) else ""


def _describe_item(item: JsonValue) -> str:
    if not isinstance(item, dict):
        return str(item)
    field, message = name_field(item), str(item.get("msg", "no message"))
    return f"{field}: {message}" if field else message


def _bound_detail(item: Detail) -> Detail:
    """Small enough for a row, without long echoes of the input."""
    place = item.get("loc")
    steps = place[:MAX_DETAIL_PLACE] if isinstance(place, list) else []
    known: Detail = {"loc": [one if isinstance(one, int) else str(one)[:MAX_ECHO] for one in steps]}
    for name in ("msg", "type", "url"):
        if isinstance(text := item.get(name), str):
            known[name] = text[:MAX_DETAIL_TEXT]
    for name, most in (("ctx", MAX_CONTEXT), ("input", MAX_ECHO)):
        if name in item and len(json.dumps(item[name], ensure_ascii=False)) <= most:
            known[name] = item[name]
    return known


# ------------------------------------------------------------------ the types that fal documents

FIRST_SERVER_ERROR = 500


class ErrorClass(StrEnum):
    """Whose fault it is, and so who can correct it."""

    # the request itself: another one may go through
    INPUT = "input"
    # the model, or a service that it needs
    MODEL = "model"
    # fal's queue and machines
    PLATFORM = "platform"
    # the caller gave up
    CALLER = "caller"
    # a call to a platform API, which runs nothing
    API = "api"


class Retryable(StrEnum):
    """Whether the same request may succeed when repeated; `maybe`: fal's header says."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"


class Charge(StrEnum):
    """Whether a run that ended so is on the bill."""

    NO = "no"
    POSSIBLE = "possible"


@dataclass(frozen=True, slots=True)
class ErrorType:
    """One type: the HTTP codes it comes with, and a sentence for the job's producer."""

    name: str
    error_class: ErrorClass
    http_statuses: tuple[int, ...]
    retryable: Retryable
    sentence: str

    @property
    def charge(self) -> Charge:
        """From 500 on nothing is charged; below, work of a GPU may be."""
        if self.error_class is ErrorClass.API:
            return Charge.NO
        surely_free = all(status >= FIRST_SERVER_ERROR for status in self.http_statuses)
        return Charge.NO if surely_free and self.http_statuses else Charge.POSSIBLE


def find_error_type(name: str, *, names_fields: bool = False) -> ErrorType:
    """The type of this name; a generic one of that name if it is unknown.

    Where the model named the fields that it is about, a new one is of the input (section 4.1).
    """
    if name in ERROR_TYPES:
        return ERROR_TYPES[name]
    if names_fields:
        return ErrorType(name, ErrorClass.INPUT, (), Retryable.NO, SENTENCES[ErrorClass.INPUT])
    return ErrorType(name, ErrorClass.PLATFORM, (), Retryable.MAYBE, GENERIC_SENTENCE)


GENERIC_SENTENCE = "fal failed for a reason that this version does not know."
SENTENCES = {
    ErrorClass.INPUT: "The model does not take this input.",
    ErrorClass.MODEL: "The model, or a service that it needs, failed.",
    ErrorClass.PLATFORM: "fal's queue or machines failed.",
    ErrorClass.CALLER: "The request was cancelled, or its caller disconnected.",
    ErrorClass.API: "A call to a platform API failed; no run is involved.",
}
_UNPROCESSABLE = (
    "content_policy_violation no_media_generated file_download_error file_too_large "
    "image_too_small image_too_large image_load_error face_detection_error "
    "greater_than greater_than_equal less_than less_than_equal multiple_of "
    "sequence_too_short sequence_too_long one_of feature_not_supported "
    "invalid_archive archive_file_count_below_minimum archive_file_count_exceeds_maximum "
    "audio_duration_too_long audio_duration_too_short "
    "video_duration_too_long video_duration_too_short "
    "unsupported_audio_format unsupported_image_format unsupported_video_format"
)
_UNAVAILABLE = (
    "runner_scheduling_failure runner_connection_timeout runner_disconnected "
    "runner_connection_refused runner_connection_error"
)
_ROWS = [
    (ErrorClass.MODEL, (500,), Retryable.MAYBE, "internal_server_error"),
    (ErrorClass.MODEL, (500,), Retryable.MAYBE, "downstream_service_unavailable"),
    (ErrorClass.MODEL, (504,), Retryable.MAYBE, "generation_timeout"),
    (ErrorClass.MODEL, (400, 500), Retryable.MAYBE, "downstream_service_error"),
    (ErrorClass.INPUT, (422,), Retryable.NO, _UNPROCESSABLE),
    (ErrorClass.INPUT, (400,), Retryable.NO, "bad_request"),
    (ErrorClass.PLATFORM, (504,), Retryable.YES, "request_timeout startup_timeout"),
    (ErrorClass.PLATFORM, (503,), Retryable.YES, _UNAVAILABLE),
    (ErrorClass.PLATFORM, (502,), Retryable.YES, "runner_incomplete_response"),
    (ErrorClass.PLATFORM, (500,), Retryable.YES, "runner_server_error internal_error"),
    (ErrorClass.PLATFORM, (429,), Retryable.YES, "concurrent_requests_limit"),
    (ErrorClass.CALLER, (499,), Retryable.NO, "client_disconnected client_cancelled"),
    (ErrorClass.API, (400,), Retryable.NO, "validation_error"),
    (ErrorClass.API, (401, 403), Retryable.NO, "authorization_error"),
    (ErrorClass.API, (404,), Retryable.NO, "not_found"),
    (ErrorClass.API, (429,), Retryable.YES, "rate_limited"),
    (ErrorClass.API, (500,), Retryable.YES, "server_error"),
    (ErrorClass.API, (501,), Retryable.NO, "not_implemented"),
]
ERROR_TYPES = {
    name: ErrorType(name, error_class, statuses, retryable, SENTENCES[error_class])
    for error_class, statuses, retryable, names in _ROWS
    for name in names.split()
}


# ------------------------------------------------------------------ what FalClient raises


class FalError(ExtendVideoError):
    """A call to fal that did not do what it was made for; what is not stated has its default.

    `error_type` is fal's, `details` has an item for each wrong field, `retry_after` is the wait
    that fal requests, `retryable` what its header says of another try. Each subclass has a `code`.
    """

    def __init__(  # noqa: PLR0913 - one attribute for each thing that fal may state
        self,
        message: str,
        *,
        fal_request_id: str | None = None,
        http_status: int | None = None,
        error_type: str = "",
        details: tuple[Detail, ...] = (),
        retry_after: timedelta = timedelta(),
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.fal_request_id = fal_request_id
        self.http_status = http_status
        self.error_type = error_type
        self.details = details
        self.retry_after = retry_after
        self.retryable = retryable


class SubmissionRefusedError(FalError, PermanentError):
    """Certainly not queued: the same arguments would be refused again.

    Correct the fields that `details` names.
    """

    code = "submission_refused"


class SubmissionPostponedError(FalError, RetryableError):
    """Certainly not queued, because fal is busy or unavailable.

    Submit the same again after `retry_after`.
    """

    code = "submission_postponed"


class SubmissionUnknownError(FalError):
    """The request may be queued or not: submitting again may pay twice.

    Search the platform's request listing, or wait for a webhook, before submitting again.
    """

    code = "submission_unknown"


class AccountRefusedError(FalError, PermanentError):
    """401 or 403: the key, or the account's lock or balance; all other calls fail alike.

    Check key, balance and locks of the account.
    """

    code = "account_refused"


class RequestPendingError(FalError, RetryableError):
    """The request has not ended; `fal_request_id` names it.

    Follow it further with `iter_events`, or allow a longer `timeout`.
    """

    code = "request_pending"


class RequestUnclearError(FalError, RetryableError):
    """fal gave no usable answer about the request.

    Make the same call again: it costs nothing.
    """

    code = "request_unclear"


class RequestNotFoundError(FalError, PermanentError):
    """fal does not know the request, or no longer has its result.

    Check endpoint, id and key; fal keeps most results for an hour only.
    """

    code = "request_not_found"


class RequestFailedError(FalError):
    """The request has ended without a result; what is raised is one of its three kinds.

    See `input_refused`, `run_failed` and `request_cancelled`.
    """

    code = "request_failed"


class InputRefusedError(RequestFailedError, PermanentError):
    """The model does not take this input: another run would end the same way.

    Correct the fields that `details` names.
    """

    code = "input_refused"


class RunFailedError(RequestFailedError, RetryableError):
    """The model, or fal, failed.

    Submit again, unless `retryable` is False; that run is paid as well.
    """

    code = "run_failed"


class RequestCancelledError(RequestFailedError, PermanentError):
    """The request was cancelled, or its caller disconnected.

    Submit again if the result is still wanted.
    """

    code = "request_cancelled"


FAILURES: dict[ErrorClass, type[RequestFailedError]] = {
    ErrorClass.INPUT: InputRefusedError,
    ErrorClass.MODEL: RunFailedError,
    ErrorClass.PLATFORM: RunFailedError,
    ErrorClass.CALLER: RequestCancelledError,
    ErrorClass.API: RunFailedError,
}

"""fal's errors: their shapes read into one value, their types, and what `FalClient` raises.

Model errors are `{"detail": [{"loc", "msg", "type", ...}]}`, platform errors are
`{"detail": "text", "error_type": "..."}`, and the platform APIs wrap theirs as
`{"error": {"type", "message"}}`. fal asks its users to branch on the type, never on the message, so
the type becomes our searchable `error_code`. The types are those of fal-api, sections 4.1 (a
model's) and 4.2 (the platform's); what is charged follows section 4.3. fal adds types without
notice, so an unknown one is no error of ours.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from pydantic import JsonValue

from worker.ground.errors import ExtendVideoError, PermanentError, RetryableError

UNNAMED_CODE = "fal_error"
MAX_MESSAGE = 2000
# Bounds that keep the job's row small.
MAX_DETAILS = 20
MAX_DETAIL_TEXT = 500
MAX_DETAIL_PLACE = 10
MAX_ECHO = 200
MAX_CONTEXT = 1000
YES, NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})

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
    if not isinstance(body, dict):
        return None
    match body.get("detail"):
        case str(text):
            return _build_failure(body.get("error_type") or error_type, text or fallback)
        case [dict(first), *_] as items:
            message = "; ".join(map(_describe_item, items))
            return _build_failure(first.get("type") or error_type, message, bound_details(items))
        case _:
            return None


def describe_platform_error(status: int, body: JsonValue) -> str:
    """What a platform API said instead of an answer, in a few words."""
    error = body.get("error") if isinstance(body, dict) else None
    given = error if isinstance(error, dict) else {}
    words = (given.get(name) for name in ("type", "message"))
    words_given = ": ".join(one for one in words if isinstance(one, str) and one)
    return f"HTTP {status}, {words_given[:MAX_DETAIL_TEXT]}" if words_given else f"HTTP {status}"


def read_retry_header(headers: Mapping[str, str]) -> bool | None:
    """Whether fal says that trying again can help; None if it does not say.

    Of the two names the first is the newer one.
    """
    for name in ("x-fal-needs-retry", "x-fal-retryable"):
        said = headers.get(name, "").strip().lower()
        if said in YES | NO:
            return said in YES
    return None


def bound_details(items: list[JsonValue]) -> tuple[Detail, ...]:
    """The first items of a model's detail list, each small, without long echoes of the input."""
    return tuple(_bound_detail(item) for item in items[:MAX_DETAILS] if isinstance(item, dict))


def name_field(detail: Mapping[str, JsonValue]) -> str:
    """The input field that a detail is about; empty if it is about the whole."""
    place = detail.get("loc")
    return ".".join(map(str, place[1:])) if isinstance(place, list) else ""


def _build_failure(code: JsonValue, message: str, details: tuple[Detail, ...] = ()) -> FalFailure:
    named = isinstance(code, str) and code != ""
    return FalFailure(str(code) if named else UNNAMED_CODE, message[:MAX_MESSAGE], details)


def _describe_item(item: JsonValue) -> str:
    if not isinstance(item, dict):
        return str(item)
    field = name_field(item)
    message = str(item.get("msg", "no message"))
    return f"{field}: {message}" if field else message


def _bound_detail(item: dict[str, JsonValue]) -> Detail:
    place = item.get("loc")
    known: Detail = {"loc": _bound_place(place) if isinstance(place, list) else []}
    for name in ("msg", "type", "url"):
        if isinstance(text := item.get(name), str):
            known[name] = text[:MAX_DETAIL_TEXT]
    for name, most in (("ctx", MAX_CONTEXT), ("input", MAX_ECHO)):
        if name in item and _is_short(item[name], most):
            known[name] = item[name]
    return known


def _is_short(value: JsonValue, most: int) -> bool:
    try:
        return len(json.dumps(value, ensure_ascii=False)) <= most
    except RecursionError:
        return False


def _bound_place(place: list[JsonValue]) -> list[JsonValue]:
    kept = place[:MAX_DETAIL_PLACE]
    return [one if isinstance(one, int) else str(one)[:MAX_ECHO] for one in kept]


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
        return ErrorType(name, ErrorClass.INPUT, (), Retryable.NO, GENERIC_SENTENCE)
    return ErrorType(name, ErrorClass.PLATFORM, (), Retryable.MAYBE, GENERIC_SENTENCE)


GENERIC_SENTENCE = "fal failed for a reason that this version does not know."

_ROWS: list[tuple[ErrorClass, tuple[int, ...], Retryable, dict[str, str]]] = [
    (ErrorClass.MODEL, (500,), Retryable.MAYBE, {
        "internal_server_error": "The model had an internal error.",
        "downstream_service_unavailable": "A service that the model needs was unavailable.",
    }),
    (ErrorClass.MODEL, (504,), Retryable.MAYBE, {
        "generation_timeout": "The model took too long for this input.",
    }),
    (ErrorClass.MODEL, (400, 500), Retryable.MAYBE, {
        "downstream_service_error": "A service that the model needs failed.",
    }),
    (ErrorClass.INPUT, (422,), Retryable.NO, {
        "content_policy_violation": "fal's content policy does not allow this prompt or video.",
        "no_media_generated": "The model made no video of this input.",
        "image_too_small": "The picture is smaller than the model takes.",
        "image_too_large": "The picture is larger than the model takes.",
        "image_load_error": "The picture cannot be read: it is damaged, or no picture.",
        "file_download_error": "fal could not download the file: its URL must be public.",
        "face_detection_error": "No face was found where the model needs one.",
        "file_too_large": "The file has more bytes than the model takes.",
        "greater_than": "A value must be greater.",
        "greater_than_equal": "A value is below what is allowed.",
        "less_than": "A value must be less.",
        "less_than_equal": "A value is above what is allowed.",
        "multiple_of": "A value must be a multiple of another number.",
        "sequence_too_short": "A text or list is too short.",
        "sequence_too_long": "A text or list is too long.",
        "one_of": "A value is none of those allowed.",
        "feature_not_supported": "The model cannot do this combination of fields.",
        "invalid_archive": "The archive file cannot be read.",
        "archive_file_count_below_minimum": "The archive file holds too few files.",
        "archive_file_count_exceeds_maximum": "The archive file holds too many files.",
        "audio_duration_too_long": "The sound is longer than the model takes.",
        "audio_duration_too_short": "The sound is shorter than the model takes.",
        "video_duration_too_long": "The video is longer than the model takes.",
        "video_duration_too_short": "The video is shorter than the model takes.",
        "unsupported_audio_format": "The model does not read this kind of sound file.",
        "unsupported_image_format": "The model does not read this kind of picture file.",
        "unsupported_video_format": "The model does not read this kind of video file.",
    }),
    (ErrorClass.PLATFORM, (504,), Retryable.YES, {
        "request_timeout": "The request did not start, or end, in the time it was given.",
        "startup_timeout": "No machine was ready for the request in time.",
    }),
    (ErrorClass.PLATFORM, (503,), Retryable.YES, {
        "runner_scheduling_failure": "fal found no machine for the request.",
        "runner_connection_timeout": "The machine of the request did not answer.",
        "runner_disconnected": "The runner disconnected while it worked.",
        "runner_connection_refused": "The machine of the request took no connection.",
        "runner_connection_error": "The connection to the machine of the request broke.",
    }),
    (ErrorClass.PLATFORM, (502,), Retryable.YES, {
        "runner_incomplete_response": "The machine of the request broke off its answer.",
    }),
    (ErrorClass.PLATFORM, (500,), Retryable.YES, {
        "runner_server_error": "The machine of the request failed.",
        "internal_error": "fal had an internal error.",
    }),
    (ErrorClass.CALLER, (499,), Retryable.NO, {
        "client_disconnected": "The caller's connection was lost.",
        "client_cancelled": "The request was cancelled.",
    }),
    (ErrorClass.INPUT, (400,), Retryable.NO, {
        "bad_request": "fal could not read the request.",
    }),
    (ErrorClass.PLATFORM, (429,), Retryable.YES, {
        "concurrent_requests_limit": "The account has reached its limit of concurrent requests.",
    }),
    (ErrorClass.API, (400,), Retryable.NO, {
        "validation_error": "The platform API does not accept the call's parameters.",
    }),
    (ErrorClass.API, (401, 403), Retryable.NO, {
        "authorization_error": "The key has no permission for this call of the platform API.",
    }),
    (ErrorClass.API, (404,), Retryable.NO, {
        "not_found": "The platform API finds nothing of this name.",
    }),
    (ErrorClass.API, (429,), Retryable.YES, {
        "rate_limited": "The platform API was called too often.",
    }),
    (ErrorClass.API, (500,), Retryable.YES, {
        "server_error": "The platform API had an internal error.",
    }),
    (ErrorClass.API, (501,), Retryable.NO, {
        "not_implemented": "The platform API does not do this.",
    }),
]  # fmt: skip

ERROR_TYPES = {
    name: ErrorType(name, error_class, statuses, retryable, sentence)
    for error_class, statuses, retryable, sentences in _ROWS
    for name, sentence in sentences.items()
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
    """Certainly not queued: the same arguments would be refused again."""

    code = "submission_refused"


class SubmissionPostponedError(FalError, RetryableError):
    """Certainly not queued, because fal is busy or unavailable: submit the same later."""

    code = "submission_postponed"


class SubmissionUnknownError(FalError):
    """The request may be queued or not: submitting again may pay twice.

    Neither retryable nor permanent. The platform's request listing, or a webhook, may show it.
    """

    code = "submission_unknown"


class AccountRefusedError(FalError, PermanentError):
    """401 or 403: the key, or the account's lock or balance; all other calls fail alike."""

    code = "account_refused"


class RequestPendingError(FalError, RetryableError):
    """The request has not ended; `fal_request_id` names it."""

    code = "request_pending"


class RequestUnclearError(FalError, RetryableError):
    """fal gave no usable answer about the request."""

    code = "request_unclear"


class RequestNotFoundError(FalError, PermanentError):
    """fal does not know the request, or no longer has its result."""

    code = "request_not_found"


class RequestFailedError(FalError):
    """The request has ended without a result; what is raised is one of its three kinds."""

    code = "request_failed"


class InputRefusedError(RequestFailedError, PermanentError):
    """The model does not take this input: another run would end the same way."""

    code = "input_refused"


class RunFailedError(RequestFailedError, RetryableError):
    """The model, or fal, failed: another run, which is paid as well, may succeed."""

    code = "run_failed"


class RequestCancelledError(RequestFailedError, PermanentError):
    """The request was cancelled, or its caller disconnected."""

    code = "request_cancelled"


FAILURES: dict[ErrorClass, type[RequestFailedError]] = {
    ErrorClass.INPUT: InputRefusedError,
    ErrorClass.MODEL: RunFailedError,
    ErrorClass.PLATFORM: RunFailedError,
    ErrorClass.CALLER: RequestCancelledError,
    ErrorClass.API: RunFailedError,
}

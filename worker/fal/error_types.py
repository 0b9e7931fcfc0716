"""Every type of error that fal documents: its class, what it means, whether asking again can help.

The rows are those of fal-api, sections 4.1 (a model's errors) and 4.2 (the platform's); what is
charged follows section 4.3. fal adds types without notice, so an unknown one is no error of ours.
"""

from dataclasses import dataclass
from enum import StrEnum

FIRST_SERVER_ERROR = 500


class ErrorClass(StrEnum):
    """Whose the trouble is, and so who can end it."""

    # the request itself: another one may go through
    INPUT = "input"
    # the model, or a service that it needs
    MODEL = "model"
    # fal's queue and machines
    PLATFORM = "platform"
    # whoever asked gave up
    CALLER = "caller"
    # a call to a platform API, which runs nothing
    API = "api"


class Retryable(StrEnum):
    """Whether the same request may come to another end; `maybe` is for fal's header to say."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"


class Charge(StrEnum):
    """Whether a run that ended so is on the bill."""

    NO = "no"
    POSSIBLE = "possible"


@dataclass(frozen=True, slots=True)
class ErrorType:
    """One type: the HTTP codes it comes with, and a sentence for whoever enqueued the job."""

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
    """The type of this name; one that says little, but keeps the name, if fal's is new to us.

    Where the model named the fields that it is about, a new one is of the input (section 4.1).
    """
    if name in ERROR_TYPES:
        return ERROR_TYPES[name]
    if names_fields:
        return ErrorType(name, ErrorClass.INPUT, (), Retryable.NO, GENERIC_SENTENCE)
    return ErrorType(name, ErrorClass.PLATFORM, (), Retryable.MAYBE, GENERIC_SENTENCE)


def _list_types(
    error_class: ErrorClass,
    statuses: int | tuple[int, ...],
    retryable: Retryable,
    sentences: dict[str, str],
) -> list[ErrorType]:
    codes = statuses if isinstance(statuses, tuple) else (statuses,)
    return [
        ErrorType(name, error_class, codes, retryable, text) for name, text in sentences.items()
    ]


GENERIC_SENTENCE = "fal failed for a reason that it named and that is new to this version."

_MODEL = [
    *_list_types(ErrorClass.MODEL, 500, Retryable.MAYBE, {
        "internal_server_error": "The model failed inside.",
        "downstream_service_unavailable": "A service that the model needs was away.",
    }),
    *_list_types(ErrorClass.MODEL, 504, Retryable.MAYBE, {
        "generation_timeout": "The model took too long for this input.",
    }),
    *_list_types(ErrorClass.MODEL, (400, 500), Retryable.MAYBE, {
        "downstream_service_error": "A service that the model needs failed.",
    }),
    *_list_types(ErrorClass.INPUT, 422, Retryable.NO, {
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
]  # fmt: skip

_PLATFORM = [
    *_list_types(ErrorClass.PLATFORM, 504, Retryable.YES, {
        "request_timeout": "The request did not start, or end, in the time it was given.",
        "startup_timeout": "No machine was ready for the request in time.",
    }),
    *_list_types(ErrorClass.PLATFORM, 503, Retryable.YES, {
        "runner_scheduling_failure": "fal found no machine for the request.",
        "runner_connection_timeout": "The machine of the request did not answer.",
        "runner_disconnected": "The machine of the request went away while it worked.",
        "runner_connection_refused": "The machine of the request took no connection.",
        "runner_connection_error": "The connection to the machine of the request broke.",
    }),
    *_list_types(ErrorClass.PLATFORM, 502, Retryable.YES, {
        "runner_incomplete_response": "The machine of the request broke off its answer.",
    }),
    *_list_types(ErrorClass.PLATFORM, 500, Retryable.YES, {
        "runner_server_error": "The machine of the request failed.",
        "internal_error": "fal failed inside.",
    }),
    *_list_types(ErrorClass.CALLER, 499, Retryable.NO, {
        "client_disconnected": "The connection of whoever asked was lost.",
        "client_cancelled": "The request was cancelled.",
    }),
    *_list_types(ErrorClass.INPUT, 400, Retryable.NO, {
        "bad_request": "fal could not read the request.",
    }),
    *_list_types(ErrorClass.PLATFORM, 429, Retryable.YES, {
        "concurrent_requests_limit": "The account runs as many requests as it may at once.",
    }),
]  # fmt: skip

_API = [
    *_list_types(ErrorClass.API, 400, Retryable.NO, {
        "validation_error": "The platform API does not take the question as it was put.",
    }),
    *_list_types(ErrorClass.API, (401, 403), Retryable.NO, {
        "authorization_error": "The key may not ask the platform API for this.",
    }),
    *_list_types(ErrorClass.API, 404, Retryable.NO, {
        "not_found": "The platform API knows nothing of this name.",
    }),
    *_list_types(ErrorClass.API, 429, Retryable.YES, {
        "rate_limited": "The platform API was asked too often.",
    }),
    *_list_types(ErrorClass.API, 500, Retryable.YES, {
        "server_error": "The platform API failed inside.",
    }),
    *_list_types(ErrorClass.API, 501, Retryable.NO, {
        "not_implemented": "The platform API does not do this.",
    }),
]  # fmt: skip

ERROR_TYPES = {one.name: one for one in (*_MODEL, *_PLATFORM, *_API)}

"""What the end of a request means for its job, and for its cost. All of it is pure.

For `complete.py`, which records it.
"""

from worker.fal.completion import Completion
from worker.fal.errors import ERROR_TYPES, UNNAMED_CODE, FalFailure, parse_failure
from worker.fal.model import parse_output
from worker.fal.requests import CancelAnswer
from worker.ground.errors import InvalidResultError
from worker.jobs.charges import VoidReason
from worker.jobs.values import Attempt, Ending, Job, Outcome

# fal's own type for a request that was cancelled, by us or by anybody with the key.
CANCELLED_CODE = "client_cancelled"
# The start timeout that we send with each request was over.
NOT_STARTED_CODE = "request_timeout"
RUNNING = "IN_PROGRESS"
SERVER_ERROR = 500


def has_video(job: Job) -> bool:
    """Whether the job has a result that it can archive, or has archived; pure."""
    try:
        parse_output(job.result)
    except InvalidResultError:
        return False
    return True


def needs_fetching(completion: Completion) -> bool:
    """Whether fal could not put the result into the message: then it has to be fetched."""
    is_empty = completion.payload is None
    return is_empty and (completion.status == "OK" or completion.payload_error is not None)


def find_failure(completion: Completion) -> FalFailure | None:
    """Why this completion is no video; None if it is one, even if fal says ERROR. Pure."""
    try:
        parse_output(completion.payload)
    except InvalidResultError as error:
        if completion.status == "OK":
            return FalFailure(error.code, str(error))
    else:
        return None
    message = completion.error or "fal reports an error without a message"
    return parse_failure(completion.payload, message) or FalFailure(UNNAMED_CODE, message)


def find_void_reason(failure: FalFailure | None, attempt: Attempt) -> VoidReason | None:
    """Why the attempt costs nothing, if that is sure (fal-api, section 4.3); pure."""
    if failure is None or attempt.ending == Ending.OK:
        return None
    has_run = attempt.inference_seconds or attempt.fal_status == RUNNING
    if failure.code == NOT_STARTED_CODE and not has_run:
        return VoidReason.NEVER_STARTED
    if failure.code == CANCELLED_CODE:
        return VoidReason.REMOVED if attempt.cancel_status == CancelAnswer.OK else None
    known = ERROR_TYPES.get(failure.code)
    is_server_error = known is not None and min(known.http_statuses) >= SERVER_ERROR
    return VoidReason.SERVER_ERROR if is_server_error else None


def may_be_void(attempt: Attempt) -> bool:
    """Whether its charge may have been voided before its result came; pure."""
    was_over = attempt.outcome in (Outcome.DEAD, Outcome.REJECTED, Outcome.POSTPONED)
    return was_over or attempt.ending is not None or attempt.cancel_status is not None


def find_ending(failure: FalFailure | None) -> Ending:
    """How the attempt's request ended, as far as its cost is concerned; pure."""
    if failure is None:
        return Ending.OK
    return Ending.CANCELLED if failure.code == CANCELLED_CODE else Ending.FAILED

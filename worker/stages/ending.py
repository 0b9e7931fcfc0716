"""Beneath the path. What a completion says of the end of its request; pure."""

from worker.fal.completion import Completion
from worker.fal.errors import UNNAMED_CODE, FalFailure, parse_failure
from worker.fal.model import parse_output
from worker.ground.errors import InvalidResultError
from worker.jobs.values import Ending, Job

# fal's own type for a request that was cancelled, by us or by anybody with the key.
CANCELLED_CODE = "client_cancelled"
# For an operator: nothing is sent again by itself, for it may cost again.
RETRY_WORDS = {
    None: "",
    True: " (fal says that trying again can help)",
    False: " (fal says that trying again changes nothing)",
}


def has_video(job: Job) -> bool:
    """Whether the job has a result that it can archive, or has archived; pure."""
    try:
        parse_output(job.result)
    except InvalidResultError:
        return False
    return True


def needs_fetching(completion: Completion) -> bool:
    """Whether fal could not put the result into the message: then it has to be asked for."""
    is_empty = completion.payload is None
    return is_empty and (completion.status == "OK" or completion.payload_error is not None)


def find_failure(completion: Completion) -> FalFailure | None:
    """Why this completion is no video; None if it is one, whatever else fal says. Pure."""
    try:
        parse_output(completion.payload)
    except InvalidResultError as error:
        if completion.status == "OK":
            return FalFailure(error.code, str(error))
    else:
        return None
    message = completion.error or "fal reports an error without a message"
    return parse_failure(completion.payload, message) or FalFailure(UNNAMED_CODE, message)


def find_ending(failure: FalFailure | None) -> Ending:
    """How the attempt's request ended, as far as its cost is concerned; pure."""
    if failure is None:
        return Ending.OK
    return Ending.CANCELLED if failure.code == CANCELLED_CODE else Ending.FAILED

"""Beneath the archive stage. Where a job's video can be read: fal is asked as far as it has to be.

A URL expires while fal still has the result: it is asked for again, and has a URL that works. Files
that not everybody may read are read by a URL that their owner has signed (fal-api, section 7).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from worker.fal.completion import Completion
from worker.fal.model import parse_output
from worker.fal.options import needs_signing, parse_options
from worker.fal.platform import FileSigner
from worker.fal.requests import Forgotten, Pending, RequestClient, ResultGone, Truth, Unclear
from worker.ground.errors import InvalidResultError, MediaGoneError
from worker.jobs.values import Attempt, Job


@dataclass(frozen=True, slots=True)
class Source:
    """Both clients are opened when they are first needed: most videos need neither.

    `made` is the attempt whose request made the job's result; None if it is not known.
    """

    open_requests: Callable[[], RequestClient]
    open_signer: Callable[[], FileSigner]

    def find_url(self, job: Job, made: Attempt | None, life: timedelta) -> str:
        """The URL to read the job's video by, for at least so long.

        Raises MediaUnavailableError and MediaRefusedError where fal signs none.
        """
        url = parse_output(job.result).video.url
        if made is None or not needs_signing(parse_options(made.options)):
            return url
        return self.open_signer().sign_file(url, life)

    def renew_result(self, job: Job, made: Attempt | None, refusal: MediaGoneError) -> Job:
        """The job with the result that fal has now.

        Raises the refusal, with what fal says, if that is the same, or none any more.
        """
        if made is None:
            raise refusal
        truth = self.open_requests().find_truth(made, str(made.fal_request_id))
        result = read_result(truth)
        if result is None:
            raise MediaGoneError(f"{refusal}; fal was asked again: {describe_truth(truth)}")
        if parse_output(result).video.url == parse_output(job.result).video.url:
            raise MediaGoneError(f"{refusal}; fal was asked again: it names the same URL")
        return replace(job, result=result)


def read_result(truth: Truth) -> dict[str, Any] | None:
    """The result, if that is what fal says; pure."""
    if not isinstance(truth, Completion) or truth.status != "OK":
        return None
    try:
        parse_output(truth.payload)
    except InvalidResultError:
        return None
    return truth.payload if isinstance(truth.payload, dict) else None


def describe_truth(truth: Truth) -> str:
    """Why that is no result; pure."""
    match truth:
        case Unclear():
            return f"nothing was learnt ({truth.message})"
        case Completion():
            return "its result has no video"
        case Forgotten() | ResultGone():
            return "it has the result no longer"
        case Pending():
            return f"the request is {truth.status}"

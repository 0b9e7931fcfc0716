"""The job's state machine as data: states, events, and every permitted edge on a line of its own.

Pure: no imports from this project. `jobs/table.py` turns each edge into one guarded UPDATE, and a
property test holds the two against each other.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never
from uuid import UUID


class JobState(StrEnum):
    """Resting states are past participles; states ending in -ing are claimed by a worker."""

    QUEUED = "queued"
    SUBMITTING = "submitting"
    SUBMISSION_UNKNOWN = "submission_unknown"
    SUBMITTED = "submitted"
    COMPLETED = "completed"
    ARCHIVING = "archiving"
    ARCHIVED = "archived"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobEvent(StrEnum):
    """What can happen to a job; written into `events.reason`."""

    ENQUEUED = "enqueued"
    SUBMISSION_CLAIMED = "submission_claimed"
    SUBMISSION_ACCEPTED = "submission_accepted"
    SUBMISSION_POSTPONED = "submission_postponed"
    SUBMISSION_REJECTED = "submission_rejected"
    SUBMISSION_LOST = "submission_lost"
    RESULT_ARRIVED = "result_arrived"
    FAILURE_ARRIVED = "failure_arrived"
    ARCHIVE_CLAIMED = "archive_claimed"
    ARCHIVE_POSTPONED = "archive_postponed"
    ARCHIVE_CLAIM_EXPIRED = "archive_claim_expired"
    ARCHIVE_RECORDED = "archive_recorded"
    ARCHIVE_REFUSED = "archive_refused"


class Step(StrEnum):
    """Work that a resting state asks for; the doorbell message carries one of these."""

    SUBMIT = "submit"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A hint that a job waits for a step; it may be lost, doubled or late without harm."""

    step: Step
    job_id: UUID


_S, _E = JobState, JobEvent

EDGES: dict[tuple[JobState, JobEvent], JobState] = {
    (_S.QUEUED, _E.SUBMISSION_CLAIMED): _S.SUBMITTING,
    (_S.SUBMITTING, _E.SUBMISSION_ACCEPTED): _S.SUBMITTED,
    (_S.SUBMITTING, _E.SUBMISSION_POSTPONED): _S.QUEUED,
    (_S.SUBMITTING, _E.SUBMISSION_REJECTED): _S.FAILED,
    (_S.SUBMITTING, _E.SUBMISSION_LOST): _S.SUBMISSION_UNKNOWN,
    (_S.SUBMITTED, _E.RESULT_ARRIVED): _S.COMPLETED,
    (_S.SUBMITTED, _E.FAILURE_ARRIVED): _S.FAILED,
    # The webhook may overtake the reply to the submission.
    (_S.SUBMITTING, _E.RESULT_ARRIVED): _S.COMPLETED,
    (_S.SUBMITTING, _E.FAILURE_ARRIVED): _S.FAILED,
    # The reply was lost, yet the webhook's token names the attempt: the job adopts it.
    (_S.SUBMISSION_UNKNOWN, _E.RESULT_ARRIVED): _S.COMPLETED,
    (_S.SUBMISSION_UNKNOWN, _E.FAILURE_ARRIVED): _S.FAILED,
    # A refusal was not one: fal ran the attempt all the same. What is paid is taken.
    (_S.QUEUED, _E.RESULT_ARRIVED): _S.COMPLETED,
    (_S.COMPLETED, _E.ARCHIVE_CLAIMED): _S.ARCHIVING,
    (_S.ARCHIVING, _E.ARCHIVE_RECORDED): _S.ARCHIVED,
    (_S.ARCHIVING, _E.ARCHIVE_POSTPONED): _S.COMPLETED,
    (_S.ARCHIVING, _E.ARCHIVE_REFUSED): _S.FAILED,
    # Its worker fell silent for a whole lease: another one may take over.
    (_S.ARCHIVING, _E.ARCHIVE_CLAIM_EXPIRED): _S.COMPLETED,
}

ENDED = frozenset({_S.ARCHIVED, _S.FAILED, _S.CANCELLED})


def next_state(state: JobState, event: JobEvent) -> JobState | None:
    """The state that `event` leads to, or None where it is not permitted."""
    return EDGES.get((state, event))


def step_for(state: JobState) -> Step | None:
    """The step to ring for when a job rests in `state`; None where nobody is waited for."""
    match state:
        case JobState.QUEUED:
            return Step.SUBMIT
        case JobState.COMPLETED:
            return Step.ARCHIVE
        case (
            JobState.SUBMITTING
            | JobState.SUBMISSION_UNKNOWN
            | JobState.SUBMITTED
            | JobState.ARCHIVING
            | JobState.ARCHIVED
            | JobState.FAILED
            | JobState.CANCELLED
        ):
            return None
        case _:
            assert_never(state)

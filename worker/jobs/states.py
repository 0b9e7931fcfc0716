"""The job's state machine as data: states, events, and where each event leads.

Pure: no imports from this project. `jobs/table.py` turns each edge into one guarded UPDATE, and a
property test holds the two against each other.
"""

from dataclasses import dataclass
from enum import StrEnum
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
    SUBMISSION_CLAIM_EXPIRED = "submission_claim_expired"
    SUBMISSION_DOUBTED = "submission_doubted"
    SUBMISSION_EXHAUSTED = "submission_exhausted"
    SUBMISSION_HELD = "submission_held"
    DEATH_PROVEN = "death_proven"
    REQUEST_ADOPTED = "request_adopted"
    RESULT_ARRIVED = "result_arrived"
    FAILURE_ARRIVED = "failure_arrived"
    START_TIMED_OUT = "start_timed_out"
    EXPIRED = "expired"
    ARCHIVE_CLAIMED = "archive_claimed"
    ARCHIVE_POSTPONED = "archive_postponed"
    ARCHIVE_CLAIM_EXPIRED = "archive_claim_expired"
    ARCHIVE_RECORDED = "archive_recorded"
    ARCHIVE_REFUSED = "archive_refused"
    ARCHIVE_REPLACED = "archive_replaced"
    CANCEL_REQUESTED = "cancel_requested"
    JOB_CANCELLED = "job_cancelled"
    SUBMIT_REDRIVEN = "submit_redriven"
    POLL_REDRIVEN = "poll_redriven"
    ARCHIVE_REDRIVEN = "archive_redriven"


class BlockedBy(StrEnum):
    """A row's own reason to wait; reasons that jobs share are derived when they are read."""

    RETRY = "retry"
    HOLD = "hold"
    NOT_BEFORE = "not_before"
    # It alone would cost more than its scope's whole budget of a day.
    BUDGET = "budget"
    # The database refuses the result that fal has.
    UNRECORDABLE = "unrecordable"
    # fal's replies to polls say nothing about the request.
    UNANSWERED = "unanswered"


class PauseCause(StrEnum):
    """Why nothing is admitted; each ends by its own rule only."""

    OPERATOR = "operator"
    # fal refuses the account, is too busy or cannot be reached, or answers nothing clear.
    ACCOUNT = "account"
    BUSY = "busy"
    AMBIGUOUS = "ambiguous"
    # No worker can write to the archive.
    ARCHIVE = "archive"


class Step(StrEnum):
    """Work that waits for a worker; the doorbell message carries one of these."""

    SUBMIT = "submit"
    RECONCILE = "reconcile"
    ARCHIVE = "archive"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A notice that a step can be tried; it may be lost, doubled or late without harm.

    A submission is of the next job, whichever that is: its message names one at the most.
    """

    step: Step
    job_id: UUID | None = None


_S, _E = JobState, JobEvent
# The POST may have left, and fal may have taken it.
_SENT = (_S.SUBMITTING, _S.SUBMISSION_UNKNOWN)

# What happens, the state that it leads to, and those in which it is permitted.
_TRANSITIONS: tuple[tuple[JobEvent, JobState, *tuple[JobState, ...]], ...] = (
    (_E.SUBMISSION_CLAIMED, _S.SUBMITTING, _S.QUEUED),
    # The worker was slow, not dead: its reply may come after its lease, or after a refusal or a
    # death that was none. What is paid is taken, also after the job had been given up.
    (_E.SUBMISSION_ACCEPTED, _S.SUBMITTED, *_SENT, _S.QUEUED, _S.FAILED),
    (_E.SUBMISSION_POSTPONED, _S.QUEUED, *_SENT),
    (_E.SUBMISSION_REJECTED, _S.FAILED, *_SENT),
    (_E.SUBMISSION_EXHAUSTED, _S.FAILED, *_SENT),
    # Its worker was silent for a whole lease. Any worker may take over a download, and none a paid
    # submission: its POST may have left.
    (_E.SUBMISSION_LOST, _S.SUBMISSION_UNKNOWN, _S.SUBMITTING),
    (_E.SUBMISSION_CLAIM_EXPIRED, _S.SUBMISSION_UNKNOWN, _S.SUBMITTING),
    # The table is a restored back-up, or a webhook came of an attempt without a row: what is queued
    # here may be at fal.
    (_E.SUBMISSION_DOUBTED, _S.SUBMISSION_UNKNOWN, _S.QUEUED),
    # Neither webhook nor listing knows it: by policy a new attempt, a human, or the bound's end.
    (_E.DEATH_PROVEN, _S.QUEUED, _S.SUBMISSION_UNKNOWN),
    # fal had not started it within the start timeout: nothing ran, and nothing is charged.
    (_E.START_TIMED_OUT, _S.QUEUED, *_SENT, _S.SUBMITTED),
    # Its producer wanted it submitted by a time that has passed.
    (_E.EXPIRED, _S.FAILED, _S.QUEUED),
    (_E.SUBMISSION_HELD, _S.SUBMISSION_UNKNOWN, _S.SUBMISSION_UNKNOWN),
    # fal's listing, or a delivery without payload, shows which request the attempt became: it may
    # overtake the reply, and then no refusal may send the job round again.
    (_E.REQUEST_ADOPTED, _S.SUBMITTED, *_SENT, _S.QUEUED, _S.FAILED, _S.CANCELLED),
    # The webhook may overtake the reply, or replace it: its token names the attempt.
    (_E.RESULT_ARRIVED, _S.COMPLETED, *_SENT, _S.SUBMITTED, _S.QUEUED, _S.FAILED, _S.CANCELLED),
    (_E.FAILURE_ARRIVED, _S.FAILED, *_SENT, _S.SUBMITTED),
    (_E.ARCHIVE_CLAIMED, _S.ARCHIVING, _S.COMPLETED),
    (_E.ARCHIVE_RECORDED, _S.ARCHIVED, _S.ARCHIVING),
    (_E.ARCHIVE_POSTPONED, _S.COMPLETED, _S.ARCHIVING),
    (_E.ARCHIVE_CLAIM_EXPIRED, _S.COMPLETED, _S.ARCHIVING),
    (_E.ARCHIVE_REFUSED, _S.FAILED, _S.ARCHIVING),
    # An operator had the video fetched again, in place of a copy that was damaged or lost.
    (_E.ARCHIVE_REPLACED, _S.ARCHIVED, _S.ARCHIVED),
    # Before the POST it is free. After it, fal may or may not still cancel.
    *((_E.CANCEL_REQUESTED, state, state) for state in (*_SENT, _S.SUBMITTED)),
    (_E.JOB_CANCELLED, _S.CANCELLED, _S.QUEUED, *_SENT, _S.SUBMITTED),
    # Redriven by an operator, from the earliest step that is still needed.
    (_E.SUBMIT_REDRIVEN, _S.QUEUED, _S.FAILED, _S.CANCELLED, _S.SUBMISSION_UNKNOWN),
    (_E.POLL_REDRIVEN, _S.SUBMITTED, _S.FAILED),
    (_E.ARCHIVE_REDRIVEN, _S.COMPLETED, _S.FAILED),
)
EDGES: dict[tuple[JobState, JobEvent], JobState] = {
    (source, event): target for event, target, *sources in _TRANSITIONS for source in sources
}

ENDED = frozenset({_S.ARCHIVED, _S.FAILED, _S.CANCELLED})
# fal has the request, or may have it: no worker holds the job, and fal is polled for it.
AWAITING_FAL = frozenset({_S.SUBMITTED, _S.SUBMISSION_UNKNOWN})


_STEPS = {
    _S.QUEUED: Step.SUBMIT,
    _S.SUBMITTED: Step.RECONCILE,
    _S.SUBMISSION_UNKNOWN: Step.RECONCILE,
    _S.COMPLETED: Step.ARCHIVE,
}


def next_state(state: JobState, event: JobEvent) -> JobState | None:
    """The state that `event` leads to, or None where it is not permitted."""
    return EDGES.get((state, event))


def step_for(state: JobState) -> Step | None:
    """The step to publish when a job rests in `state`; None where no worker is needed."""
    return _STEPS.get(state)

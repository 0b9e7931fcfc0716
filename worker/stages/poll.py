"""Beside the path. poll: learn from fal itself how a job's request stands.

What fal says goes through the same door as the webhook, `complete.py`. A status call that fails is
no conclusion; only a result that fal had, and no longer has, ends a job here.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import Connection
from structlog.contextvars import bind_contextvars

from worker.fal.completion import Completion
from worker.fal.platform import Listing
from worker.fal.requests import (
    CancelAnswer,
    Known,
    Pending,
    Progress,
    RequestClient,
    Unclear,
    find_retention,
)
from worker.ground.clock import Clock, choose_poll_delay
from worker.ground.db import REFUSED, Database, will_repeat
from worker.jobs import attempts, deliveries, limits, observed, table
from worker.jobs.attempts import COMPLETED, note_progress
from worker.jobs.limits import MANY_POLLS, POLL_GATE, name_poll_gate
from worker.jobs.states import Doorbell, JobEvent, JobState
from worker.jobs.values import Attempt, Ending, Job, Move, Outcome, Settlement
from worker.stages.complete import (
    RESULT_GONE,
    RETRY_FOR,
    describe_refusal,
    record_completion,
)
from worker.stages.endings import has_video
from worker.stages.resolve import Resolver, measure_wait

# A count of failed polls that nobody goes on with: the job ended by its webhook.
FORGOTTEN_AFTER = timedelta(days=30)
# Jobs without a result, which a late one may bring back.
GIVEN_UP = frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLED})
# How often all followers together poll, and each of them for one job.
FOLLOW_LIMIT = "follow"
ALL_PAUSE = timedelta(milliseconds=200)
JOB_PAUSE = timedelta(seconds=2)
# Following must not hold up what it shows.
STATUS_TIMEOUT = timedelta(seconds=3)
# So long the webhook of a finished request may take before fal is polled for the result.
WEBHOOK_TIME = timedelta(seconds=5)

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Polls for one job at a time, with what a worker has at hand."""

    resolver: Resolver
    poll_after: timedelta
    retry_for: timedelta = RETRY_FOR

    @property
    def clock(self) -> Clock:
        return self.resolver.clock

    def reconcile_job(self, job_id: UUID) -> list[Doorbell]:
        """Poll fal for the job, if it waits for fal; what to publish."""
        with self.resolver.db.reading() as connection:
            job = table.find_job(connection, job_id)
            attempt = attempts.find_current_attempt(connection, job) if job else None
        if job is None:
            return []
        moved = self.poll_competing(job)
        if attempt is None or (moved is not None and moved.doorbell is not None):
            return _list_doorbells(moved)
        bind_contextvars(attempt=attempt.number)
        if job.state is JobState.SUBMITTED:
            return _list_doorbells(self._poll_request(job, attempt))
        if job.state is JobState.SUBMISSION_UNKNOWN:
            return self.resolver.resolve_unknown(job, attempt)
        if job.state in GIVEN_UP and not has_video(job):
            # Then a delivery came that proves nothing: fal is polled for it.
            return _list_doorbells(self.resolver.adopt_named(attempt))
        return []

    def poll_competing(self, job: Job) -> Job | None:
        """Poll for the job's earlier attempts that unproven deliveries name.

        One may have the result: the job, if it has moved. One that still runs is dismissed.
        """
        with self.resolver.db.reading() as connection:
            competing = deliveries.list_hinted_competitors(connection, job)
        moved = None
        for attempt in competing:
            found = self.resolver.find_named(attempt)
            if found is not None:
                moved = self._record(job, attempt, found[1], adopted=found[0]) or moved
        return moved

    def _poll_request(self, job: Job, attempt: Attempt) -> Job | None:
        """The job, if it has moved by what fal says of its request."""
        fal_request_id = str(job.fal_request_id or attempt.fal_request_id)
        look = self.resolver.requests.look(attempt, fal_request_id)
        truth = look.truth
        if isinstance(truth, Completion):
            return self._record(job, attempt, truth, progress=look.progress)
        if isinstance(truth, Pending):
            self._wait(job, attempt, look.progress)
            return None
        unclear = truth.message if isinstance(truth, Unclear) else None
        if unclear is not None and self._count_unanswered(job, attempt, unclear) < MANY_POLLS:
            return None
        # The platform's listing may have kept the end, also where the queue has none any more.
        listing = self.resolver.platform.find_request(attempt.endpoint, fal_request_id)
        listed = next(iter(listing.requests), None)
        if listed is not None and listed.completion is not None:
            return self._record(job, attempt, listed.completion)
        is_removed = attempt.cancel_status == CancelAnswer.OK and bool(job.cancel_requested_at)
        if unclear is None and (is_removed or self._is_gone(attempt, listing)):
            return self._give_up(job, attempt, fal_request_id)
        if unclear is None:  # else fal's queue may have a result all the same
            self._wait(job, attempt)
        return None

    def _record(
        self,
        job: Job,
        attempt: Attempt,
        truth: Known,
        *,
        progress: Progress | None = None,
        adopted: str | None = None,
    ) -> Job | None:
        """Write what fal says in one transaction; where the database refuses it, the row says why.

        `adopted` is the request that the attempt has from now on, which competes with another.
        """
        now, dispatch_timeout = self.clock(), self.resolver.policy.dispatch_timeout
        try:
            with self.resolver.db.transaction() as connection:
                current = table.get_job(connection, job.id, lock=True)
                if adopted is not None:
                    if not attempts.adopt_request(connection, attempt, adopted):
                        return None
                    accepted = Settlement(Outcome.ACCEPTED, now, fal_request_id=adopted)
                    attempts.record_outcome(connection, attempt.id, accepted)
                if not isinstance(truth, Completion):
                    attempts.dismiss_attempt(connection, attempt.id, now)
                    return None
                if progress is not None:
                    record_progress(connection, attempt, progress)
                return record_completion(
                    connection, current, attempt, truth, now, dispatch_timeout, self.retry_for
                )
        except Exception as error:
            if not will_repeat(error):
                raise
            reason = describe_refusal(error)
            with self.resolver.db.transaction() as connection:
                table.note_unrecordable(connection, job.id, reason)
                table.advance_due(connection, job, self._choose_due(attempt))
            log.error("completion_not_recorded", reason=reason)  # noqa: TRY400 - repeated at each poll
            if not isinstance(error, REFUSED):
                raise
            return None

    def _count_unanswered(self, job: Job, attempt: Attempt, why: str) -> int:
        """How many polls in a row have said nothing; the row says what fal has answered."""
        now = self.clock()
        with self.resolver.db.transaction() as connection:
            limits.remove_stale(connection, f"{POLL_GATE} ", now - FORGOTTEN_AFTER)
            failed = limits.count_strike(connection, name_poll_gate(job.id), now)
            polls = "poll" if failed == 1 else "polls in a row"
            table.note_unanswered(connection, job.id, f"{why} ({failed} {polls})")
            table.advance_due(connection, job, self._choose_due(attempt))
        log.warning("poll_failed", reason=why, in_a_row=failed)
        return failed

    def _wait(self, job: Job, attempt: Attempt, progress: Progress | None = None) -> None:
        with self.resolver.db.transaction() as connection:
            if job.is_unanswered:
                limits.remove_gate(connection, name_poll_gate(job.id))
                table.note_unanswered(connection, job.id, None)
            table.advance_due(connection, job, self._choose_due(attempt))
            if progress is not None:
                record_progress(connection, attempt, progress)

    def _choose_due(self, attempt: Attempt) -> datetime:
        """When fal is polled again."""
        now, kept_for = self.clock(), find_retention(attempt.input)
        delay = choose_poll_delay(self.poll_after, now - attempt.started_at, retention=kept_for)
        return now + delay

    def _is_gone(self, attempt: Attempt, listing: Listing) -> bool:
        """Whether this account's fal surely no longer has the result.

        Not before fal must have finished, by observed time; and twice as late where the listing has
        never shown the request. Another account's silence, or a listing that cannot be read, says
        nothing.
        """
        policy = self.resolver.policy
        if attempt.account is None or attempt.account != policy.account:
            return False
        with self.resolver.db.reading() as connection:
            waited = measure_wait(attempt, observed.read_observed(connection))
        judge_after = policy.judge_after(attempt)
        if not listing.requests:
            return listing.lists_all and waited >= 2 * judge_after
        return listing.requests[0].ended and waited >= judge_after

    def _give_up(self, job: Job, attempt: Attempt, fal_request_id: str) -> Job | None:
        """The job is cancelled if fal had promised that, else its result is lost."""
        now = self.clock()
        promised = attempt.cancel_status in (CancelAnswer.OK, CancelAnswer.REQUESTED)
        if promised and job.cancel_requested_at is not None:
            ending, event = Ending.CANCELLED, JobEvent.JOB_CANCELLED
            move = Move(now, detail=f"fal no longer knows request {fal_request_id}")
        else:
            ending, event = Ending.FAILED, JobEvent.FAILURE_ARRIVED
            message = f"fal has no result of request {fal_request_id} any more: none was delivered"
            why = {"error_code": RESULT_GONE, "error_message": message}
            move = Move(now, detail=message, columns=why)
        with self.resolver.db.transaction() as connection:
            table.get_job(connection, job.id, lock=True)
            attempts.complete_attempt(connection, attempt.id, ending, now)
            return table.apply_event(connection, job, event, move)


def _list_doorbells(job: Job | None) -> list[Doorbell]:
    return [job.doorbell] if job is not None and job.doorbell is not None else []


def record_progress(connection: Connection, attempt: Attempt, progress: Progress) -> None:
    note_progress(
        connection,
        attempt.id,
        fal_status=progress.status,
        queue_position=progress.queue_position,
        inference_seconds=progress.inference_seconds,
        logs=progress.logs,
    )


# ------------------------------------------------------------------ following


@dataclass(slots=True)
class Follower:
    """Polls for requests that somebody waits for, with what a process has at hand.

    Nothing is concluded from the reply: it is written into the attempt for all to read. All
    followers together keep one bound: a thousand of them poll fal no more often than a few.
    """

    db: Database
    requests: RequestClient
    clock: Clock
    polled_at: dict[UUID, datetime] = field(default_factory=dict)

    def ask_in_turn(self, job_id: UUID, *, is_last: bool = False) -> bool:
        """Poll for the job's request and write the reply; False if it was not this one's turn.

        There is nothing to poll before there is a request, or after its last word has been written.
        The last poll does not wait for the job's own turn.
        """
        now = self.clock()
        if not is_last and job_id in self.polled_at and now < self.polled_at[job_id] + JOB_PAUSE:
            return False
        with self.db.reading() as connection:
            shared = limits.find_gate(connection, FOLLOW_LIMIT)
            if shared is not None and shared.opens_at > now:
                return False
            job = table.get_job(connection, job_id)
            tried = attempts.list_attempts(connection, job.id)
        # The attempt of the request that the job has, or else the newest one.
        own = [one for one in tried if one.fal_request_id == job.fal_request_id]
        attempt = next(reversed(own or tried), None)
        if attempt is None or attempt.fal_request_id is None:
            return True
        if attempt.fal_status == COMPLETED and attempt.inference_seconds is not None:
            return True  # a webhook alone gives neither time nor logs
        with self.db.transaction() as connection:
            if not limits.pass_gate(connection, FOLLOW_LIMIT, self.clock(), ALL_PAUSE):
                return False
        self.polled_at[job_id] = now
        progress = self.requests.find_progress(attempt, attempt.fal_request_id, STATUS_TIMEOUT)
        if progress is not None:
            soon = self.clock() + WEBHOOK_TIME
            is_late = job.due_at is not None and job.due_at > soon
            with self.db.transaction() as connection:
                if progress.has_ended and job.state is JobState.SUBMITTED and is_late:
                    table.advance_due(connection, job, soon)
                record_progress(connection, attempt, progress)
        return True

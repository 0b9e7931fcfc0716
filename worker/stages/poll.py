"""Beside the path. reconcile: ask fal for the truth about a job that waits for its webhook.

What fal says goes through the same door as the webhook, `complete.py`. A status call that fails is
no conclusion; only a result that fal had, and has no more, ends a job here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

import structlog
from sqlalchemy import Connection
from structlog.contextvars import bind_contextvars

from worker.fal.completion import Completion
from worker.fal.platform import Listing
from worker.fal.requests import (
    CancelAnswer,
    Forgotten,
    Known,
    Pending,
    Progress,
    RequestClient,
    ResultGone,
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
from worker.stages.complete import describe_refusal, has_video, record_completion
from worker.stages.resolve import Resolver, measure_wait

# ------------------------------------------------------------------ follow


# Of all followers together, and of those of one job.
FOLLOW_GATE = "follow"
ALL_PAUSE = timedelta(milliseconds=200)
JOB_PAUSE = timedelta(seconds=2)
# What killed followers have left.
STALE = timedelta(minutes=1)
# Following must not hold up what it tells of.
ASK_TIME = timedelta(seconds=3)
# So long the webhook of a finished request may take before fal is asked for the result.
WEBHOOK_TIME = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Follower:
    """Asks about requests that somebody waits for, with what a process has at hand."""

    db: Database
    requests: RequestClient
    clock: Clock

    def ask_in_turn(self, job_id: UUID, *, is_last: bool = False) -> bool:
        """Ask about the job's request and write the answer; False if it was not this one's turn.

        There is nothing to ask before there is a request, or after its last word has been written.
        Who asks for the last time does not wait for the job's own turn.
        """
        names = [FOLLOW_GATE] if is_last else [FOLLOW_GATE, name_gate(job_id)]
        if not self._are_open(names):
            return False
        with self.db.reading() as connection:
            job = table.get_job(connection, job_id)
            attempt = find_request(connection, job)
        if attempt is None or attempt.fal_request_id is None or is_told(attempt):
            return True
        if not self._take_turn(names):
            return False
        progress = self.requests.find_progress(attempt, attempt.fal_request_id, ASK_TIME)
        if progress is not None:
            self._write(job, attempt, progress)
        return True

    def clear(self, job_id: UUID | None = None) -> None:
        """Remove the turns of this job, and those that nobody takes any more."""
        with self.db.transaction() as connection:
            if job_id is not None:
                limits.remove_gate(connection, name_gate(job_id))
            limits.remove_stale(connection, f"{FOLLOW_GATE} ", self.clock() - STALE)

    def _are_open(self, names: list[str]) -> bool:
        now = self.clock()
        with self.db.reading() as connection:
            known = [limits.find_gate(connection, name) for name in names]
        return all(gate is None or gate.opens_at <= now for gate in known)

    def _take_turn(self, names: list[str]) -> bool:
        now = self.clock()
        with self.db.transaction() as connection:
            return all(
                limits.pass_gate(connection, name, now, pause)
                for name, pause in zip(names, (ALL_PAUSE, JOB_PAUSE), strict=False)
            )

    def _write(self, job: Job, attempt: Attempt, progress: Progress) -> None:
        soon = self.clock() + WEBHOOK_TIME
        is_late = job.due_at is not None and job.due_at > soon
        with self.db.transaction() as connection:
            if progress.status == COMPLETED and job.state is JobState.SUBMITTED and is_late:
                table.advance_due(connection, job, soon)
            record_progress(connection, attempt, progress)


def record_progress(connection: Connection, attempt: Attempt, progress: Progress) -> None:
    note_progress(
        connection,
        attempt.id,
        fal_status=progress.status,
        queue_position=progress.queue_position,
        inference_seconds=progress.inference_seconds,
        logs=progress.logs,
    )


def find_request(connection: Connection, job: Job) -> Attempt | None:
    """The attempt of the request that the job has, or else of the newest one."""
    known = attempts.list_attempts(connection, job.id)
    same = [one for one in known if one.fal_request_id == job.fal_request_id]
    return same[-1] if same else (known[-1] if known else None)


def is_told(attempt: Attempt) -> bool:
    """Whether fal's last word is written; a webhook alone tells neither time nor logs."""
    return attempt.fal_status == COMPLETED and attempt.inference_seconds is not None


def name_gate(job_id: UUID) -> str:
    return f"{FOLLOW_GATE} {job_id}"


# ------------------------------------------------------------------ reconcile


RESULT_GONE = "result_gone"
# A count of failed polls that nobody goes on with: the job ended by its webhook.
FORGOTTEN_AFTER = timedelta(days=30)

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Asks about one job at a time, with what a worker has at hand."""

    resolver: Resolver
    poll_after: timedelta

    @property
    def clock(self) -> Clock:
        return self.resolver.clock

    def reconcile_job(self, job_id: UUID) -> list[Doorbell]:
        """Ask fal about the job, if it waits for fal; returns whom to ring for."""
        with self.resolver.db.reading() as connection:
            job = table.find_job(connection, job_id)
            attempt = attempts.find_current_attempt(connection, job) if job else None
        if job is None:
            return []
        doorbells = self._publish(self._follow_rivals(job))
        if doorbells or attempt is None:
            return doorbells
        bind_contextvars(attempt=attempt.number)
        match job.state:
            case JobState.SUBMITTED:
                return self._publish(self._poll_request(job, attempt))
            case JobState.SUBMISSION_UNKNOWN:
                return self.resolver.resolve_unknown(job, attempt)
            case JobState.QUEUED | JobState.FAILED | JobState.CANCELLED:
                # Given up, and then a delivery came that proves nothing: fal is asked about it.
                return [] if has_video(job) else self._publish(self.resolver.follow_hints(attempt))
            case JobState.SUBMITTING | JobState.COMPLETED | JobState.ARCHIVING | JobState.ARCHIVED:
                return []
            case _:
                assert_never(job.state)

    def _follow_rivals(self, job: Job) -> Job | None:
        """Ask about earlier attempts of which unproven deliveries tell: one may have the result."""
        with self.resolver.db.reading() as connection:
            rivals = deliveries.list_hinted_rivals(connection, job)
        moved = None
        for rival in rivals:
            found = self.resolver.find_hinted(rival)
            if found is not None:
                moved = self._take_rival(job, rival, *found) or moved
        return moved

    def _take_rival(
        self, job: Job, rival: Attempt, fal_request_id: str, truth: Known
    ) -> Job | None:
        now, grace = self.clock(), self.resolver.policy.grace

        def write(connection: Connection) -> Job | None:
            current = table.get_job(connection, job.id, lock=True)
            if not attempts.adopt_request(connection, rival, fal_request_id):
                return None
            settlement = Settlement(Outcome.ACCEPTED, now, fal_request_id=fal_request_id)
            attempts.record_outcome(connection, rival.id, settlement)
            if isinstance(truth, Completion):
                return record_completion(connection, current, rival, truth, now, grace)[1]
            attempts.dismiss_attempt(connection, rival.id, now)
            return None

        return self._write_end(job, rival, write)

    def _write_end(
        self, job: Job, attempt: Attempt, write: Callable[[Connection], Job | None]
    ) -> Job | None:
        """Write it in one transaction; where the database refuses it, the row says why."""
        try:
            with self.resolver.db.transaction() as connection:
                return write(connection)
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

    def _poll_request(self, job: Job, attempt: Attempt) -> Job | None:
        fal_request_id = str(job.fal_request_id or attempt.fal_request_id)
        look = self.resolver.requests.look(attempt, fal_request_id)
        match look.truth:
            case Completion():
                return self._record(job, attempt, look.truth, look.progress)
            case Pending():
                self._wait(job, attempt, look.progress)
                return None
            case Unclear():
                return self._note_unanswered(job, attempt, fal_request_id, look.truth.message)
            case Forgotten() | ResultGone():
                return self._ask_listing(job, attempt, fal_request_id)
            case _:
                assert_never(look.truth)

    def _ask_listing(self, job: Job, attempt: Attempt, fal_request_id: str) -> Job | None:
        """The queue has no result (any more): the platform's listing may have kept it."""
        listing = self.resolver.platform.find_request(attempt.endpoint, fal_request_id)
        listed = next(iter(listing.requests), None)
        if listed is not None and listed.completion is not None:
            return self._record(job, attempt, listed.completion)
        removed = attempt.cancel_status == CancelAnswer.OK and job.cancel_requested_at is not None
        if removed or self._is_gone(attempt, listing):
            return self._give_up(job, attempt, fal_request_id)
        self._wait(job, attempt)
        return None

    def _note_unanswered(
        self, job: Job, attempt: Attempt, fal_request_id: str, why: str
    ) -> Job | None:
        """The row says what fal has answered; after some in a row the listing may have the end.

        The listing only brings results here: fal's queue may have one all the same.
        """
        with self.resolver.db.transaction() as connection:
            limits.remove_stale(connection, f"{POLL_GATE} ", self.clock() - FORGOTTEN_AFTER)
            failed = limits.count_strike(connection, name_poll_gate(job.id), self.clock())
            polls = "poll" if failed == 1 else "polls in a row"
            table.note_unanswered(connection, job.id, f"{why} ({failed} {polls})")
            table.advance_due(connection, job, self._choose_due(attempt))
        log.warning("poll_failed", reason=why, in_a_row=failed)
        if failed < MANY_POLLS:
            return None
        listing = self.resolver.platform.find_request(attempt.endpoint, fal_request_id)
        listed = next(iter(listing.requests), None)
        if listed is None or listed.completion is None:
            return None
        return self._record(job, attempt, listed.completion)

    def _is_gone(self, attempt: Attempt, listing: Listing) -> bool:
        """Whether this account's fal surely has the result no more.

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

    def _record(
        self,
        job: Job,
        attempt: Attempt,
        completion: Completion,
        progress: Progress | None = None,
    ) -> Job | None:
        now, grace = self.clock(), self.resolver.policy.grace

        def write(connection: Connection) -> Job | None:
            current = table.get_job(connection, job.id, lock=True)
            if progress is not None:
                record_progress(connection, attempt, progress)
            return record_completion(connection, current, attempt, completion, now, grace)[1]

        return self._write_end(job, attempt, write)

    def _give_up(self, job: Job, attempt: Attempt, fal_request_id: str) -> Job | None:
        """The job is cancelled if fal had promised that, else its result is lost."""
        now = self.clock()
        promised = attempt.cancel_status in (CancelAnswer.OK, CancelAnswer.REQUESTED)
        with self.resolver.db.transaction() as connection:
            table.get_job(connection, job.id, lock=True)
            if promised and job.cancel_requested_at is not None:
                attempts.complete_attempt(connection, attempt.id, Ending.CANCELLED, now)
                move = Move(now, detail=f"fal knows request {fal_request_id} no more")
                return table.apply_event(connection, job, JobEvent.JOB_CANCELLED, move)
            attempts.complete_attempt(connection, attempt.id, Ending.FAILED, now)
            message = f"fal has no result of request {fal_request_id} any more: none was delivered"
            why = {"error_code": RESULT_GONE, "error_message": message}
            move = Move(now, detail=message, columns=why)
            return table.apply_event(connection, job, JobEvent.FAILURE_ARRIVED, move)

    def _wait(self, job: Job, attempt: Attempt, progress: Progress | None = None) -> None:
        with self.resolver.db.transaction() as connection:
            if job.is_unanswered:
                limits.remove_gate(connection, name_poll_gate(job.id))
                table.note_unanswered(connection, job.id, None)
            table.advance_due(connection, job, self._choose_due(attempt))
            if progress is not None:
                record_progress(connection, attempt, progress)

    def _choose_due(self, attempt: Attempt) -> datetime:
        """When fal is asked again."""
        now, kept_for = self.clock(), find_retention(attempt.input)
        delay = choose_poll_delay(self.poll_after, now - attempt.started_at, retention=kept_for)
        return now + delay

    def _publish(self, job: Job | None) -> list[Doorbell]:
        return [job.doorbell] if job is not None and job.doorbell is not None else []

"""Beside the path. follow: ask fal how far a request is while somebody waits for it.

Nothing is concluded from the answer: it is written into the attempt for all who look. All followers
together keep one bound, so that a thousand of them ask fal no more often than a few.
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection

from worker.fal.requests import Progress, RequestClient
from worker.ground.clock import Clock
from worker.ground.db import Database
from worker.jobs import attempts, limits, table
from worker.jobs.attempts import COMPLETED, note_progress
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Job

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

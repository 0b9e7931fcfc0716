"""Beside the path. rearchive: an operator has an archived job's video fetched again from fal.

The copy is replaced only by one that was fetched whole; a failure before that changes nothing.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from uuid import UUID

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import ClaimLostError, StoreUnavailableError, TooLateError
from worker.jobs import archives, table
from worker.jobs.archives import Copy
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job, Move
from worker.media.store import Store
from worker.ops.verify import find_damage, is_elsewhere, list_companions
from worker.stages.lease import Holder

COPY_COLUMNS = ("archive_uri", "archive_poster_uri", "archive_sidecar_uri")
USE_FORCE = "--force fetches it anyway"

Fetch: TypeAlias = Callable[[Job, Holder], Mapping[str, Any]]
"""Fetches, verifies and publishes the video of a job's result: its columns. Renews the holder right
before it publishes. Raises RetryableError or PermanentError."""


@dataclass(frozen=True, slots=True)
class Rearchived:
    """The job as committed, and whether its copy was replaced: an intact one is left alone."""

    job: Job
    is_replaced: bool


class Hold:
    """Lets one of several runs for the same job succeed: it raises the fence before it publishes.

    It is not raised before that, so that a run that fails earlier leaves no trace.
    """

    def __init__(self, job: Job, db: Database) -> None:
        self.job = job
        self._db = db

    def check(self, *_: object) -> None:
        """The table is only read by `renew`."""

    def renew(self) -> None:
        """Raises ClaimLostError if somebody else has replaced or pruned the copy."""
        with self._db.transaction() as connection:
            fence = archives.hold_archived(connection, self.job)
        if fence is None:
            raise ClaimLostError(f"job {self.job.id} was replaced or pruned by somebody else")
        self.job = replace(self.job, fence=fence)


@dataclass(frozen=True, slots=True)
class Rearchiver:
    """Fetches one job's video at a time."""

    db: Database
    store: Store
    fetch: Fetch
    clock: Clock = read_clock

    def rearchive_job(self, job_id: UUID, *, force: bool = False) -> Rearchived:
        """Replace the job's copy unless it is intact; with `force`, in any case.

        Raises JobNotFoundError, TooLateError where there is no copy to replace, and the errors of
        the fetch.
        """
        with self.db.reading() as connection:
            job = table.get_job(connection, job_id)
            copies = archives.find_copies(connection, [job_id])
        if job.state is not JobState.ARCHIVED:
            raise TooLateError(
                f"job {job_id} is {job.state.value}: only an archived job has a copy to replace; "
                f"extend-video show {job_id} says what can be done"
            )
        reason = "an operator had it fetched again" if force else self._find_reason(job, copies)
        if reason is None:
            return Rearchived(job, is_replaced=False)
        hold = Hold(job, self.db)
        columns = {
            **dict.fromkeys((*COPY_COLUMNS, "archive_media", "archive_warnings", "archive_error")),
            **self.fetch(job, hold),
            "archive_verified_at": self.clock(),
        }
        with self.db.transaction() as connection:
            move = Move(self.clock(), detail=reason, columns=columns)
            moved = table.apply_event(connection, hold.job, JobEvent.ARCHIVE_REPLACED, move)
        if moved is None:
            raise ClaimLostError(f"job {job_id} was replaced or pruned by somebody else")
        # What the row no longer names. What cannot be deleted now is listed as an orphan later.
        with suppress(StoreUnavailableError):
            for name in self._list_names(job) - self._list_names(moved):
                self.store.delete(name)
        return Rearchived(moved, is_replaced=True)

    def _find_reason(self, job: Job, copies: list[Copy]) -> str | None:
        """Why the copy is to be replaced; None if it is intact."""
        if job.archive_pruned_at is not None:
            raise TooLateError(f"the files of job {job.id} were pruned: {USE_FORCE}")
        if not copies:
            return "the row has no size and checksum of its copy"
        (copy,) = copies
        if is_elsewhere(copy, self.store):
            raise TooLateError(f"{copy.uri} is in another archive: {USE_FORCE}")
        damage = find_damage(copy, self.store)
        with self.db.transaction() as connection:
            archives.record_check(connection, copy, damage, self.clock())
        return damage

    def _list_names(self, job: Job) -> set[str]:
        video, poster, sidecar = (getattr(job, column) for column in COPY_COLUMNS)
        named = {self.store.find_name(uri) for uri in (video, poster, sidecar) if uri}
        beside = list_companions((video and self.store.find_name(video)) or "")
        return {name for name in (*named, *beside) if name}

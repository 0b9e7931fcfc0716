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
"""Fetches, verifies and publishes the video of a job's result: its columns. Asks the holder right
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
        require_archived(job)
        damage = None if force else self._find_reason(job, copies)
        if damage is None and not force:
            return Rearchived(job, is_replaced=False)
        hold = Hold(job, self.db)
        columns = self.fetch(job, hold)
        replaced = self._record(hold.job, columns, damage or "an operator had it fetched again")
        self._delete_former(job, replaced)
        return Rearchived(replaced, is_replaced=True)

    def _find_reason(self, job: Job, copies: list[Copy]) -> str | None:
        """What is wrong with the copy; None if it is intact."""
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

    def _record(self, job: Job, columns: Mapping[str, Any], detail: str) -> Job:
        now = self.clock()
        fresh = {
            **dict.fromkeys(COPY_COLUMNS),
            "archive_media": None,
            "archive_warnings": None,
            "archive_verified_at": now,
            "archive_error": None,
            **columns,
        }
        with self.db.transaction() as connection:
            move = Move(now, detail=detail, columns=fresh)
            moved = table.apply_event(connection, job, JobEvent.ARCHIVE_REPLACED, move)
        if moved is None:
            raise ClaimLostError(f"job {job.id} was replaced or pruned by somebody else")
        return moved

    def _delete_former(self, before: Job, after: Job) -> None:
        """Delete what the row no longer names: another layout, or another kind of video.

        What cannot be deleted now is an orphan, and listed as one.
        """
        with suppress(StoreUnavailableError):  # see above
            for name in self._list_names(before) - self._list_names(after):
                self.store.delete(name)

    def _list_names(self, job: Job) -> set[str]:
        uris = (getattr(job, column) for column in COPY_COLUMNS)
        names = {name for uri in uris if uri and (name := self.store.find_name(uri))}
        video = job.archive_uri and self.store.find_name(job.archive_uri)
        return names | set(list_companions(video) if video else ())


def require_archived(job: Job) -> None:
    """Raises TooLateError that names the command to use instead."""
    match job.state:
        case JobState.ARCHIVED:
            return
        case JobState.FAILED | JobState.CANCELLED:
            raise TooLateError(
                f"job {job.id} is {job.state.value}: `extend-video redrive {job.id}` continues it, "
                "to the archive if it has a result"
            )
        case _:
            raise TooLateError(f"job {job.id} is {job.state.value}: it is archived in its own time")

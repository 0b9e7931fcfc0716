"""Beside the path. prune: delete ended jobs by their age, objects first, then rows.

A job's row is marked before its first object is deleted, and the row is deleted last. So a run that
is killed at any moment leaves rows that the next run takes up again, and no object without a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.jobs import archives as sql
from worker.jobs.archives import OldJob, Page, Place, Retention
from worker.media.layout import SIDECAR
from worker.media.store import Store
from worker.ops.verify import list_companions
from worker.stages.refuse import count_old_requests, prune_requests

# ------------------------------------------------------------------ prune


BATCH = 100
SURVEYED = 2000


@dataclass
class Pruning:
    """What a run would prune, or has pruned; bytes are of videos."""

    jobs: int = 0
    bytes: int = 0
    elsewhere: int = 0
    moved: int = 0
    requests: int = 0
    """Refused ones, which are no jobs."""
    oldest: datetime | None = None
    newest: datetime | None = None

    def add(self, job: OldJob) -> None:
        self.jobs += 1
        self.bytes += job.kept_bytes
        self.oldest = min(self.oldest or job.ended_at, job.ended_at)
        self.newest = max(self.newest or job.ended_at, job.ended_at)


def survey_jobs(retention: Retention, *, db: Database, store: Store) -> Pruning:
    """What would be pruned; nothing is changed."""
    found = Pruning(requests=count_old_requests(retention, db=db))
    for page in _walk(db, retention, SURVEYED):
        with db.reading() as connection:
            old = sql.list_old_jobs(connection, retention, page)
        here = [job for job in old if is_here(job, store)]
        found.elsewhere += len(old) - len(here)
        for job in here:
            found.add(job)
    return found


def prune_jobs(
    retention: Retention,
    pruning: Pruning,
    *,
    db: Database,
    store: Store,
    on_progress: Callable[[int], None] | None = None,
    clock: Clock = read_clock,
) -> None:
    """Delete them, or with `files_only` their files. Raises StoreUnavailableError; run it again."""
    end = sql.forget_files if retention.files_only else sql.delete_job
    for page in _walk(db, retention, BATCH):
        now = clock()
        with db.reading() as connection:
            if not sql.list_old_jobs(connection, retention, page):
                continue
        with db.transaction() as connection:
            old = sql.list_old_jobs(connection, retention, page, lock=True)
            here = [job.id for job in old if is_here(job, store)]
            marked = sql.mark_pruned(connection, here, now)
        for job in marked:
            for name in list_objects(job, store):
                store.delete(name)
        with db.transaction() as connection:
            ended = [job for job in marked if end(connection, job, now)]
        pruning.elsewhere += len(old) - len(here)
        pruning.moved += len(marked) - len(ended)
        for job in ended:
            pruning.add(job)
        if on_progress is not None:
            on_progress(pruning.jobs)
    pruning.requests += prune_requests(retention, db=db)


def is_here(job: OldJob, store: Store) -> bool:
    """Whether all that the row names is in this archive."""
    return all(store.find_name(uri) is not None for uri in job.uris)


def list_objects(job: OldJob, store: Store) -> list[str]:
    """What is deleted, in order: the sidecar, from which a video can be made again, goes last."""
    named = [name for uri in job.uris if (name := store.find_name(uri)) is not None]
    beside = [
        companion
        for uri in (job.archive_uri, job.quarantine_uri)
        for companion in list_companions((uri and store.find_name(uri)) or "")
    ]
    return sorted(dict.fromkeys([*named, *beside]), key=lambda name: name.endswith(SIDECAR))


def _walk(db: Database, retention: Retention, size: int) -> Iterator[Page]:
    after: Place | None = None
    while True:
        with db.reading() as connection:
            page = sql.next_page(connection, retention.before, after, size)
        if page is None:
            return
        yield page
        after = page.last

"""Many wishes at once: as `enqueue.py` for one after the other, in few statements."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import IdempotencyConflictError, InvalidInputError, Violation
from worker.jobs import table
from worker.jobs.values import Job, NewJob
from worker.media.local_file import LocalFile
from worker.stages.enqueue import Enqueued, JobRequest, build_job, require_same
from worker.stages.upload import FilePolicy, OpenStorage, check_job_request, place_files, scratch

BATCH = 1000


def name_job_request(place: int) -> str:
    """How a wish of a list is called in errors, by its place from 0 on."""
    return f"wishes.{place}"


def make_job_requests(
    wished: Sequence[Mapping[str, object]],
    *,
    db: Database,
    open_storage: OpenStorage,
    policy: FilePolicy,
    name: Callable[[int], str] = name_job_request,
    clock: Clock = read_clock,
) -> list[JobRequest]:
    """The checked wishes. No file is uploaded before all of them have been found good.

    Raises InvalidInputError with what is wrong in any of them: `wishes.3.prompt` is a field of the
    fourth; UploadUnavailableError and UploadRefusedError.
    """
    with scratch() as make_scratch:
        checked = _check_all(wished, policy, name, make_scratch)
        return [
            place_files(job_request, files, db=db, open_storage=open_storage, clock=clock)
            for job_request, files in checked
        ]


def enqueue_jobs(
    job_requests: Iterable[JobRequest],
    *,
    db: Database,
    endpoint: str,
    grace: timedelta,
    name: Callable[[int], str] = name_job_request,
    clock: Clock = read_clock,
) -> Iterator[list[Enqueued]]:
    """Write the rows, or find those that such wishes have made before: each batch once committed.

    Raises IdempotencyConflictError, which names the wish; what was committed before it stays.
    """
    place = 0
    for batch in split_batches(job_requests):
        now = clock()
        named = [
            _Named(name(place + offset), job_request, build_job(job_request, endpoint, now, grace))
            for offset, job_request in enumerate(batch)
        ]
        yield _write_batch(db, named)
        place += len(batch)


def split_batches(
    job_requests: Iterable[JobRequest], size: int = BATCH
) -> Iterator[list[JobRequest]]:
    """In order; two wishes with the same id or key are never in one batch."""
    batch: list[JobRequest] = []
    seen: set[object] = set()
    for job_request in job_requests:
        names = _list_names(job_request)
        if len(batch) == size or not seen.isdisjoint(names):
            yield batch
            batch, seen = [], set()
        batch.append(job_request)
        seen |= names
    if batch:
        yield batch


def _check_all(
    wished: Sequence[Mapping[str, object]],
    policy: FilePolicy,
    name: Callable[[int], str],
    make_scratch: Callable[[], Path],
) -> list[tuple[JobRequest, dict[str, LocalFile]]]:
    checked, wrong = [], list[Violation]()
    for place, fields in enumerate(wished):
        try:
            checked.append(check_job_request(fields, (), policy, make_scratch))
        except InvalidInputError as error:
            wrong += (replace(one, field=f"{name(place)}.{one.field}") for one in error.violations)
    if wrong:
        raise InvalidInputError(tuple(wrong))
    return checked


def _list_names(job_request: JobRequest) -> set[object]:
    """By what else the same job may be meant."""
    options = job_request.options
    key = None if options.idempotency_key is None else (options.tenant, options.idempotency_key)
    return {name for name in (options.job_id, key) if name is not None}


@dataclass(frozen=True, slots=True)
class _Named:
    """A wish as it is called in errors, and the row it would make."""

    name: str
    job_request: JobRequest
    new: NewJob

    def find_earlier(
        self, by_id: Mapping[UUID, Job], by_key: Mapping[tuple[str, str | None], Job]
    ) -> Job:
        """As `enqueue_job` finds it."""
        new, earlier = self.new, None
        if new.idempotency_key is not None:
            earlier = by_key.get((new.tenant, new.idempotency_key))
        try:
            return require_same(earlier or by_id.get(new.id), new, self.job_request)
        except IdempotencyConflictError as error:
            raise IdempotencyConflictError(f"{self.name}: {error}") from None


def _write_batch(db: Database, batch: Sequence[_Named]) -> list[Enqueued]:
    # In one order, so that two producers of the same keys do not wait for each other in a ring.
    news = sorted(
        (one.new for one in batch),
        key=lambda new: (new.tenant, new.idempotency_key or "", new.id),
    )
    with db.transaction() as connection:
        made = table.insert_jobs(connection, news)
        taken = [new for new in news if new.id not in made]
        rivals = table.list_rivals(connection, taken)
        by_id = {job.id: job for job in rivals}
        by_key = {(job.tenant, job.idempotency_key): job for job in rivals}
        return [
            Enqueued(made[one.new.id], created=True)
            if one.new.id in made
            else Enqueued(one.find_earlier(by_id, by_key), created=False)
            for one in batch
        ]

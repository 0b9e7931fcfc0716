"""1. enqueue: check a job request, write its row. Nothing is bought here.

One request is a batch of one. Next: `submit.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from uuid_utils.compat import uuid7

from worker.fal.model import complete_input
from worker.fal.options import RequestOptions
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import IdempotencyConflictError, InvalidInputError, Violation
from worker.ground.validation import validate_fields
from worker.jobs import table
from worker.jobs.states import BlockedBy
from worker.jobs.values import Job, NewJob

DEFAULT_TENANT = "default"
BATCH = 1000


def _allow(allowed: str, **bounds: Any) -> Any:  # noqa: ANN401 - pydantic's own signature
    return Field(**bounds, json_schema_extra={"allowed": allowed})


def read_time(value: object) -> object:
    """An aware time, or text in ISO 8601 with an offset; as UTC."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        moment = None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError("a time in ISO 8601 with an offset, such as 2026-12-01T18:30:00Z")
    return moment.astimezone(UTC)


Moment = BeforeValidator(read_time, json_schema_input_type=str)
LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,64}$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[^\x00]{0,256}$")]
Labels = dict[LabelName, LabelValue]


class JobOptions(BaseModel):
    """What a producer may say about a job besides the model's input."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    job_id: Annotated[UUID, _allow("a UUID", strict=False)] | None = None
    idempotency_key: (
        Annotated[str, _allow("1 to 255 characters", pattern=r"^[^\x00]{1,255}$")] | None
    ) = None
    tenant: Annotated[
        str, _allow("1 to 128 characters without spaces", pattern=r"^[^\s\x00]{1,128}$")
    ] = DEFAULT_TENANT
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    labels: Annotated[
        Labels,
        _allow(
            "at most 32 texts of up to 256 characters, named by letters, digits and . _ / -",
            max_length=32,
        ),
    ] = {}
    fal_options: RequestOptions = RequestOptions()
    not_before: Annotated[datetime, Moment] | None = None
    expires_at: Annotated[datetime, Moment] | None = None

    @model_validator(mode="after")
    def check_times(self) -> Self:
        """Raises ValueError for a job that could never be submitted."""
        if self.not_before and self.expires_at and self.expires_at <= self.not_before:
            raise ValueError("expires_at: a time after not_before")
        return self


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A checked request: the complete input as it will be sent, and the options beside it."""

    input: dict[str, Any]
    options: JobOptions
    seed_drawn: bool


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job of a request, and whether this call made it."""

    job: Job
    created: bool


def parse_job_request(fields: Mapping[str, object]) -> JobRequest:
    """Read flat fields: options by name, all others are the model's input.

    Raises InvalidInputError with every violation of both at once.
    """
    own = {name: value for name, value in fields.items() if name in JobOptions.model_fields}
    sent = {name: value for name, value in fields.items() if name not in own}
    options, completed, wrong = None, None, list[Violation]()
    try:
        completed = complete_input(sent)
    except InvalidInputError as error:
        wrong += error.violations
    try:
        options = validate_fields(JobOptions, own)
    except InvalidInputError as error:
        wrong += error.violations
    if options is None or completed is None:
        raise InvalidInputError(tuple(wrong))
    return JobRequest(completed.to_json(), options, seed_drawn=sent.get("seed") is None)


def name_job_request(place: int) -> str:
    """What errors call a request of a list, by its place from 0 on."""
    return f"requests.{place}"


def enqueue_job(
    job_request: JobRequest,
    *,
    db: Database,
    endpoint: str,
    dispatch_timeout: timedelta,
    clock: Clock = read_clock,
) -> Enqueued:
    """Write the row, or find the one that this request has made before.

    `dispatch_timeout` is how long the message may take before the sweep publishes another. Raises
    IdempotencyConflictError if the id or key belongs to a request with another input or options.
    """
    new = _build_job(job_request, endpoint, clock(), dispatch_timeout)
    return _write_batch(db, [("", job_request, new)])[0]


def enqueue_jobs(
    job_requests: Iterable[JobRequest],
    *,
    db: Database,
    endpoint: str,
    dispatch_timeout: timedelta,
    name: Callable[[int], str] = name_job_request,
    clock: Clock = read_clock,
) -> Iterator[list[Enqueued]]:
    """As `enqueue_job` for each, in few statements; each batch once it is committed.

    Raises IdempotencyConflictError, which names the request; what was committed before it is kept.
    """
    place = 0
    for batch in split_batches(job_requests):
        now = clock()
        rows = [(one, _build_job(one, endpoint, now, dispatch_timeout)) for one in batch]
        yield _write_batch(db, [(name(place + n), *row) for n, row in enumerate(rows)])
        place += len(batch)


def split_batches(
    job_requests: Iterable[JobRequest], size: int = BATCH
) -> Iterator[list[JobRequest]]:
    """In order; two requests with the same id or key are never in one batch."""
    batch: list[JobRequest] = []
    seen: set[object] = set()
    for job_request in job_requests:
        options = job_request.options
        key = options.idempotency_key and (options.tenant, options.idempotency_key)
        names = {options.job_id, key} - {None}
        if len(batch) == size or not seen.isdisjoint(names):
            yield batch
            batch, seen = [], set()
        batch.append(job_request)
        seen |= names
    if batch:
        yield batch


def _build_job(
    job_request: JobRequest, endpoint: str, now: datetime, dispatch_timeout: timedelta
) -> NewJob:
    options = job_request.options
    is_early = options.not_before is not None and options.not_before > now
    return NewJob(
        id=options.job_id or uuid7(),
        endpoint=endpoint,
        input=job_request.input,
        tenant=options.tenant,
        idempotency_key=options.idempotency_key,
        priority=options.priority,
        labels=dict(options.labels),
        options=options.fal_options.to_json(),
        enqueued_at=now,
        due_at=max(options.not_before, now) if options.not_before else now + dispatch_timeout,
        blocked_by=BlockedBy.NOT_BEFORE.value if is_early else None,
        blocked_reason=f"not before {options.not_before}" if is_early else None,
        not_before=options.not_before,
        expires_at=options.expires_at,
    )


def _write_batch(db: Database, batch: Sequence[tuple[str, JobRequest, NewJob]]) -> list[Enqueued]:
    """Insert the rows, and find those that are there already; each with what errors call it."""
    # In one order, so that two producers of the same keys do not deadlock.
    ordered = sorted(
        (new for _, _, new in batch),
        key=lambda new: (new.tenant, new.idempotency_key or "", new.id),
    )
    with db.statement() if len(batch) == 1 else db.transaction() as connection:
        made = table.insert_jobs(connection, ordered)
        taken = [new for new in ordered if new.id not in made]
        earlier = table.list_competitors(connection, taken) if taken else []
        by_id = {job.id: job for job in earlier}
        by_key = {(job.tenant, job.idempotency_key): job for job in earlier}
        enqueued = []
        for name, job_request, new in batch:
            job = made.get(new.id)
            if job is None:
                key = new.idempotency_key and (new.tenant, new.idempotency_key)
                job = (by_key.get(key) if key else None) or by_id.get(new.id)
                if job is None or not _is_same_request(job, new, job_request):
                    owned = new.idempotency_key if job and job.id != new.id else new.id
                    raise IdempotencyConflictError(
                        f"{f'{name}: ' if name else ''}{owned} belongs to a job with another input,"
                        " fal_options, key or tenant; choose another key or id"
                    )
            enqueued.append(Enqueued(job, created=new.id in made))
        return enqueued


def _is_same_request(earlier: Job, new: NewJob, job_request: JobRequest) -> bool:
    """A seed that was drawn for the caller differs each time and does not count."""
    expected = dict(new.input)
    if job_request.seed_drawn:
        expected["seed"] = earlier.input.get("seed")
    return (
        earlier.input == expected
        and earlier.options == new.options
        and earlier.endpoint == new.endpoint
        and earlier.tenant == new.tenant
        and (earlier.not_before, earlier.expires_at) == (new.not_before, new.expires_at)
        and job_request.options.job_id in {None, earlier.id}
        and new.idempotency_key in {None, earlier.idempotency_key}
    )

"""1. enqueue: check a wish, write its row. Nothing is bought here.

Next: `submit.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import Connection
from uuid_utils.compat import uuid7

from worker.fal.model import complete_input
from worker.fal.options import RequestOptions
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import IdempotencyConflictError, InvalidInputError, Violation
from worker.ground.validation import validate_fields
from worker.jobs import table
from worker.jobs.values import Job, NewJob

DEFAULT_TENANT = "default"
V = TypeVar("V")


def _allow(allowed: str, **bounds: Any) -> Any:  # noqa: ANN401 - pydantic's own signature
    return Field(**bounds, json_schema_extra={"allowed": allowed})


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


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A checked wish: the complete input as it will be sent, and the options beside it."""

    input: dict[str, Any]
    options: JobOptions
    seed_drawn: bool


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job of a wish, and whether this call made it."""

    job: Job
    created: bool


def parse_job_request(fields: Mapping[str, object]) -> JobRequest:
    """Read flat fields: options by name, all others are the model's input.

    Raises InvalidInputError with every violation of both at once.
    """
    own = {name: value for name, value in fields.items() if name in JobOptions.model_fields}
    wished = {name: value for name, value in fields.items() if name not in own}
    options, wrong_options = _try_parse(lambda: validate_fields(JobOptions, own))
    completed, wrong_input = _try_parse(lambda: complete_input(wished))
    if options is None or completed is None or wrong_options:
        raise InvalidInputError((*wrong_input, *wrong_options))
    return JobRequest(completed.to_json(), options, seed_drawn=wished.get("seed") is None)


def enqueue_job(
    job_request: JobRequest,
    *,
    db: Database,
    endpoint: str,
    grace: timedelta,
    clock: Clock = read_clock,
) -> Enqueued:
    """Write the row, or find the one that this wish has made before.

    `grace` is how long the doorbell may take before the sweep rings again. Raises
    IdempotencyConflictError if the id or the key belongs to a wish with another input or options.
    """
    new = build_job(job_request, endpoint, clock(), grace)
    with db.statement() as connection:
        job = table.insert_job(connection, new)
        if job is not None:
            return Enqueued(job, created=True)
        earlier = _find_earlier(connection, new)
        return Enqueued(require_same(earlier, new, job_request), created=False)


def _try_parse(parse: Callable[[], V]) -> tuple[V | None, tuple[Violation, ...]]:
    try:
        return parse(), ()
    except InvalidInputError as error:
        return None, error.violations


def build_job(job_request: JobRequest, endpoint: str, now: datetime, grace: timedelta) -> NewJob:
    options = job_request.options
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
        due_at=now + grace,
    )


def require_same(earlier: Job | None, new: NewJob, job_request: JobRequest) -> Job:
    """The row that stands in the way, if it is of the same wish; or IdempotencyConflictError."""
    if earlier is None or not _is_same_request(earlier, new, job_request):
        taken = new.idempotency_key if earlier and earlier.id != new.id else new.id
        raise IdempotencyConflictError(
            f"{taken} belongs to a job with another input, fal_options, key or tenant; "
            "choose another key or id"
        )
    return earlier


def _find_earlier(connection: Connection, new: NewJob) -> Job | None:
    earlier = None
    if new.idempotency_key is not None:
        earlier = table.find_job_by_key(connection, new.tenant, new.idempotency_key)
    return earlier or table.find_job(connection, new.id)


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
        and job_request.options.job_id in {None, earlier.id}
        and new.idempotency_key in {None, earlier.idempotency_key}
    )

"""The Python surface for other services: `from worker.producer import enqueue, cancel, ...`."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from worker.bulk import place_requests
from worker.fal.options import RequestOptions
from worker.fal.storage import OnProgress
from worker.ground.log import join_host_logging
from worker.ground.settings import load_settings
from worker.ground.tracing import trace_since
from worker.jobs.values import Job
from worker.runtime import Once, Runtime
from worker.stages.cancel import cancel_job
from worker.stages.enqueue import DEFAULT_TENANT, enqueue_job


@Once
def get_runtime() -> Runtime:
    join_host_logging()
    return Runtime(load_settings())


def cancel(job_id: UUID | str) -> Job:
    """Cancel a job, or have fal asked to; returns the row.

    Free before the submission. Raises JobNotFoundError, and TooLateError once there is a result.
    """
    runtime = get_runtime()
    cancelled = cancel_job(UUID(str(job_id)), db=runtime.db)
    runtime.dispatcher.publish(cancelled.doorbell)
    return cancelled.job


def enqueue(  # noqa: PLR0913 - one parameter per option
    *,
    job_id: UUID | str | None = None,
    idempotency_key: str | None = None,
    tenant: str = DEFAULT_TENANT,
    priority: int = 0,
    labels: dict[str, str] | None = None,
    fal_options: Mapping[str, object] | RequestOptions | None = None,
    on_progress: OnProgress | None = None,
    **fields: object,
) -> Job:
    """Commit a job for one extended video and ring for its submission; returns the row.

    `fields` are the model's input (`prompt` and `video_url` at least), `fal_options` what fal is
    told besides, such as `{"priority": "low"}`. `video_url` and
    `end_image_url` take a URL, a data URI, or what is uploaded first, with FAL_KEY: a pathlib.Path,
    bytes, or a file open for reading; `on_progress` gets the bytes sent and their total. The same
    `job_id`, or the same `idempotency_key` within a tenant, gives the same job.

    Raises InvalidInputError with every wrong field at once, IdempotencyConflictError if the key
    belongs to another input or other options, and where a file cannot be uploaded
    UploadUnavailableError, UploadRefusedError or, without a key, InvalidSettingsError.
    """
    runtime = get_runtime()
    job_request = runtime.make_job_request(
        {
            "job_id": job_id,
            "idempotency_key": idempotency_key,
            "tenant": tenant,
            "priority": priority,
            "labels": labels or {},
            "fal_options": fal_options or {},
            **fields,
        },
        on_progress=on_progress,
    )
    enqueued = enqueue_job(
        job_request,
        db=runtime.db,
        endpoint=runtime.settings.fal_endpoint,
        grace=runtime.settings.lease_seconds,
    )
    if enqueued.created:
        trace_since("enqueue", enqueued.job.id, enqueued.job.enqueued_at)
        runtime.dispatcher.publish(enqueued.job.doorbell)
    return enqueued.job


def enqueue_many(job_requests: Iterable[Mapping[str, object]]) -> list[Job]:
    """Commit a job for each wish, as `enqueue(**wish)` would, and ring; their rows, in order.

    All wishes are checked, and their files uploaded, before the first row is written. Rows are
    committed by the thousand: what a conflict or the database cuts off comes after whole batches
    that stay, and are not made twice where wishes have a `job_id` or an `idempotency_key`.

    Raises as `enqueue` does; violations and conflicts name the wish by its place, as `wishes.0`.
    """
    return place_requests(get_runtime(), list(job_requests))

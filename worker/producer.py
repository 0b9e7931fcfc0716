"""The Python surface for other services: `from worker.producer import enqueue, cancel, ...`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from uuid import UUID

from worker.fal.options import RequestOptions
from worker.fal.storage import OnProgress
from worker.ground.log import join_host_logging
from worker.ground.once import Once
from worker.ground.settings import load_settings
from worker.ground.tracing import trace_since
from worker.jobs.values import Job
from worker.runtime import Runtime
from worker.stages.cancel import cancel_job
from worker.stages.enqueue import (
    DEFAULT_TENANT,
    Enqueued,
    JobRequest,
    enqueue_job,
    enqueue_jobs,
    name_job_request,
)
from worker.stages.upload import make_job_requests


@Once
def get_runtime() -> Runtime:
    join_host_logging()
    return Runtime(load_settings())


def enqueue(  # noqa: PLR0913 - one parameter per option
    *,
    job_id: UUID | str | None = None,
    idempotency_key: str | None = None,
    tenant: str = DEFAULT_TENANT,
    priority: int = 0,
    labels: dict[str, str] | None = None,
    fal_options: Mapping[str, object] | RequestOptions | None = None,
    not_before: datetime | None = None,
    expires_at: datetime | None = None,
    on_progress: OnProgress | None = None,
    **fields: object,
) -> Job:
    """Commit a job for one extended video, publish its message, and return its row.

    `fields` are the model's input (at least `prompt` and `video_url`); `fal_options` are options of
    the request, such as `{"priority": "low"}`. `video_url` and `end_image_url` take a URL or a data
    URI, or what is uploaded first, which needs FAL_KEY: a pathlib.Path, bytes, or a file open for
    reading. The job is not submitted before `not_before`, an aware time; if it is not by
    `expires_at`, it fails, and nothing is paid. `on_progress` gets the bytes sent and their total.
    The same `job_id`, or the same `idempotency_key` within a tenant, gives the same job.

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
            "not_before": not_before,
            "expires_at": expires_at,
            **fields,
        },
        on_progress=on_progress,
    )
    return place_request(runtime, job_request).job


def enqueue_many(job_requests: Iterable[Mapping[str, object]]) -> list[Job]:
    """Commit a job for each, as `enqueue(**job_request)` would; their rows, in order.

    All are checked, and their files uploaded, before the first row is written. Rows are committed
    by the thousand: if this is interrupted, whole batches have been committed, and calling it
    again makes no second job of requests with a `job_id` or an `idempotency_key`.

    Raises as `enqueue` does; violations and conflicts name the request by its place in the list.
    """
    return place_requests(get_runtime(), list(job_requests))


def cancel(job_id: UUID | str) -> Job:
    """Cancel a job, or request its cancellation at fal; returns the row.

    Free before the submission. Raises JobNotFoundError, and TooLateError once there is a result.
    """
    runtime = get_runtime()
    cancelled = cancel_job(UUID(str(job_id)), db=runtime.db)
    runtime.dispatcher.publish(cancelled.doorbell)
    return cancelled.job


# ------------------------------------------------------------------ shared with the shell


def place_request(runtime: Runtime, job_request: JobRequest) -> Enqueued:
    """Commit the job, then publish its message; an existing job is returned as it is."""
    enqueued = enqueue_job(
        job_request,
        db=runtime.db,
        endpoint=runtime.settings.fal_endpoint,
        dispatch_timeout=runtime.settings.lease_seconds,
    )
    if enqueued.created:
        trace_since("enqueue", enqueued.job.id, enqueued.job.enqueued_at)
        runtime.publish_submissions([enqueued.job])
    return enqueued


def place_requests(
    runtime: Runtime,
    requested: Sequence[Mapping[str, object]],
    name: Callable[[int], str] = name_job_request,
) -> list[Job]:
    """Check all, then commit and publish batch by batch; the job of each, in order.

    `name` names a request in errors by its place. Once the broker has not taken a batch, the rest
    is left to the sweep.
    """
    job_requests = make_job_requests(
        requested,
        db=runtime.db,
        open_storage=runtime.open_storage,
        policy=runtime.file_policy,
        name=name,
    )
    batches = enqueue_jobs(
        job_requests,
        db=runtime.db,
        endpoint=runtime.settings.fal_endpoint,
        dispatch_timeout=runtime.settings.lease_seconds,
        name=name,
    )

    def publish(created: Sequence[Job]) -> bool:
        for job in created:
            trace_since("enqueue", job.id, job.enqueued_at)
        return runtime.publish_submissions(created)

    jobs, published = list[Job](), None
    # A batch is published while the next one is written.
    with ThreadPoolExecutor(1) as publisher:
        for batch in batches:
            jobs += (enqueued.job for enqueued in batch)
            if published is None or published.result():
                created = [one.job for one in batch if one.created]
                published = publisher.submit(publish, created)
    return jobs

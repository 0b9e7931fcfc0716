"""Enqueue many wishes and ring for them: what Python's and the shell's surface have in common."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from worker.ground.tracing import trace_since
from worker.jobs.values import Job
from worker.runtime import Runtime
from worker.stages.bulk import enqueue_jobs, make_job_requests, name_job_request


def place_requests(
    runtime: Runtime,
    wished: Sequence[Mapping[str, object]],
    name: Callable[[int], str] = name_job_request,
) -> list[Job]:
    """Check all, then commit and ring batch by batch; the job of each wish, in order.

    Once the broker has not taken a batch, the rest is left to the sweep.
    """
    settings, jobs = runtime.settings, list[Job]()
    job_requests = make_job_requests(
        wished,
        db=runtime.db,
        open_storage=runtime.open_storage,
        policy=runtime.file_policy,
        name=name,
    )
    batches = enqueue_jobs(
        job_requests,
        db=runtime.db,
        endpoint=settings.fal_endpoint,
        grace=settings.lease_seconds,
        name=name,
    )
    published: Future[bool] | None = None
    # A batch is rung for while the next one is written.
    with ThreadPoolExecutor(1) as ringer:
        for batch in batches:
            jobs += (enqueued.job for enqueued in batch)
            if published is None or published.result():
                published = ringer.submit(
                    _publish, runtime, [one.job for one in batch if one.created]
                )
    return jobs


def _publish(runtime: Runtime, created: Sequence[Job]) -> bool:
    for job in created:
        trace_since("enqueue", job.id, job.enqueued_at)
    doorbells = (job.doorbell for job in created)
    return runtime.dispatcher.publish_all([one for one in doorbells if one is not None])

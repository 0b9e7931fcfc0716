"""The spans that are made of a job's row at its end: fal's run, and the root of all its spans."""

from worker.ground.clock import read_clock
from worker.ground.tracing import get_tracer
from worker.jobs.states import ENDED
from worker.jobs.values import Job


def trace_end(job: Job | None) -> None:
    """Write both once the job has ended; nothing before, or while tracing is off."""
    tracer = get_tracer()
    if tracer is None or job is None or job.state not in ENDED:
        return
    if job.submitted_at is not None and job.completed_at is not None:
        known = {"fal.request_id": job.fal_request_id or "", "fal.endpoint": job.endpoint}
        tracer.record("run at fal", job.id, job.submitted_at, job.completed_at, attributes=known)
    ended_at = job.archived_at or job.failed_at or job.cancelled_at or read_clock()
    shown = {"job.state": job.state.value, "job.tenant": job.tenant}
    began, error = job.enqueued_at, job.error_code
    tracer.record("job", job.id, began, ended_at, attributes=shown, error=error, root=True)

"""One trace of each job, for whoever collects traces: from its enqueuing to its archived video.

The trace's id is the job's, and its root span's id follows from that. So no context travels through
the broker, fal or the webhook, and nothing is stored: every process knows where its spans belong.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT (or the one for traces) is set; then the extra `otel` is
needed. OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and the exporter's other variables hold as ever;
OTEL_TRACES_SAMPLER_ARG is the part of jobs that is traced, all of their spans or none.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from worker.ground.clock import read_clock
from worker.jobs.states import ENDED
from worker.jobs.values import Job

if TYPE_CHECKING:
    from worker.ground.spans import JobTracer

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = structlog.stdlib.get_logger(__name__)


@cache
def get_tracer() -> "JobTracer | None":
    """Made when first used, for this process alone; None while tracing is off."""
    if not any(map(os.environ.get, VARIABLES)):
        return None
    if find_spec("opentelemetry.sdk") is None:
        log.warning("tracing_off", reason="pip install 'extend-video[otel]' for OpenTelemetry")
        return None
    from worker.ground.spans import open_tracer

    return open_tracer(float(os.environ.get("OTEL_TRACES_SAMPLER_ARG") or 1.0))


def forget_tracer() -> None:
    """For a forked process, which has none of its parent's threads."""
    get_tracer.cache_clear()


def flush_traces() -> None:
    """Send what is still held; a process that is killed loses its last seconds."""
    if get_tracer.cache_info().currsize and (tracer := get_tracer()) is not None:
        tracer.flush()


@contextmanager
def trace_step(name: str, job_id: UUID | None) -> Iterator[None]:
    """A span of the job for as long as the block takes; what it raises is named in it."""
    tracer = get_tracer()
    if tracer is None or job_id is None:
        yield
        return
    began = read_clock()
    error: str | None = None
    try:
        yield
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        tracer.record(name, job_id, began, read_clock(), error=error)


def trace_since(name: str, job_id: UUID, began: datetime, **attributes: str) -> None:
    """A span from then to now, where the job was not known at its beginning."""
    tracer = get_tracer()
    if tracer is not None:
        tracer.record(name, job_id, began, read_clock(), attributes=attributes)


def trace_end(job: Job | None) -> None:
    """Once the job has ended: fal's run, and the root of all its spans."""
    tracer = get_tracer()
    if tracer is None or job is None or job.state not in ENDED:
        return
    if job.submitted_at is not None and job.completed_at is not None:
        known = {"fal.request_id": job.fal_request_id or "", "fal.endpoint": job.endpoint}
        tracer.record("run at fal", job.id, job.submitted_at, job.completed_at, attributes=known)
    ended_at = job.archived_at or job.failed_at or job.cancelled_at or read_clock()
    told = {"job.state": job.state.value, "job.tenant": job.tenant}
    error = job.error_code
    tracer.record("job", job.id, job.enqueued_at, ended_at, attributes=told, error=error, root=True)

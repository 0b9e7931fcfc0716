"""One OpenTelemetry trace for each job, from its enqueuing to its archived video.

The trace's id is the job's, and its root span's id follows from that. So no context travels through
the broker, fal or the webhook, and nothing is stored: each process derives where its spans belong.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT (or the one for traces) is set; then the extra `otel` is
needed, and imported only then. OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and the exporter's other
variables apply as usual; OTEL_TRACES_SAMPLER_ARG is the part of jobs that is traced, with all of
their spans or none.
"""

import hashlib
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from worker.ground.clock import read_clock

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

SERVICE = "extend-video"
FLUSH_MS = 5000
VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = structlog.stdlib.get_logger(__name__)


class JobTracer:
    """Exports finished spans into the trace of their job.

    The spans are built here, not by OpenTelemetry's tracer, which draws their ids by itself.
    """

    def __init__(self, part: float, processor: "SpanProcessor | None" = None) -> None:
        """With the exporter that the environment describes, unless another processor is given."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = Resource({SERVICE_NAME: SERVICE}).merge(OTELResourceDetector().detect())
        self._part, self._resource = part, Resource.create().merge(named)
        self._processor = processor or BatchSpanProcessor(OTLPSpanExporter())

    def record(  # noqa: PLR0913 - what a span has
        self,
        name: str,
        job_id: UUID,
        began: datetime,
        ended: datetime,
        *,
        attributes: Mapping[str, str] | None = None,
        error: str | None = None,
        root: bool = False,
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        if not is_sampled(job_id.int, self._part):
            return
        start, end = (int(at.timestamp() * 1e6) * 1000 for at in (began, max(began, ended)))
        flags, root_id = TraceFlags(TraceFlags.SAMPLED), derive_root(job_id)
        own_id = root_id if root else random.getrandbits(64) or 1
        parent = SpanContext(job_id.int, root_id, is_remote=True, trace_flags=flags)
        span = ReadableSpan(
            name,
            SpanContext(job_id.int, own_id, is_remote=False, trace_flags=flags),
            None if root else parent,
            self._resource,
            attributes={"job.id": str(job_id), **(attributes or {})},
            status=Status() if error is None else Status(StatusCode.ERROR, error),
            start_time=start,
            end_time=end,
            instrumentation_scope=InstrumentationScope(SERVICE),
        )
        self._processor.on_end(span)

    def flush(self) -> None:
        self._processor.force_flush(FLUSH_MS)


@cache
def get_tracer() -> JobTracer | None:
    """Made when first used, for this process alone; None while tracing is off."""
    if not any(map(os.environ.get, VARIABLES)):
        return None
    if find_spec("opentelemetry.sdk") is None:
        log.warning("tracing_off", reason="pip install 'extend-video[otel]' for OpenTelemetry")
        return None
    return JobTracer(float(os.environ.get("OTEL_TRACES_SAMPLER_ARG") or 1.0))


def forget_tracer() -> None:
    """For a forked process, which has none of its parent's threads."""
    get_tracer.cache_clear()


def flush_traces() -> None:
    """Send what is still held; a process that is killed loses its last seconds."""
    if get_tracer.cache_info().currsize and (tracer := get_tracer()) is not None:
        tracer.flush()


@contextmanager
def trace_step(name: str, job_id: UUID | None) -> Iterator[None]:
    """A span of the job for as long as the block takes; the class of its exception is noted."""
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


def derive_root(job_id: UUID) -> int:
    """The id of the job's root span."""
    return int.from_bytes(hashlib.sha256(job_id.bytes).digest()[:8], "big") or 1


def is_sampled(trace_id: int, part: float) -> bool:
    """The same for all spans of a job, in every process.

    By a hash: time and version bits of the ids are anything but evenly spread.
    """
    drawn = hashlib.sha256(b"sample" + trace_id.to_bytes(16, "big")).digest()[:8]
    return int.from_bytes(drawn, "big") < part * 2**64

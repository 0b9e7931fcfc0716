"""OpenTelemetry's side of `traces.py`: imported only where tracing is on."""

import hashlib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any
from uuid import UUID

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from typing_extensions import override

SERVICE = "extend-video"
_ROOT: ContextVar[UUID | None] = ContextVar("root_of_job", default=None)


class JobIds(IdGenerator):
    """Random ids but for the root of a job's trace."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()

    @override
    def generate_trace_id(self) -> int:
        job_id = _ROOT.get()
        return self._random.generate_trace_id() if job_id is None else job_id.int

    @override
    def generate_span_id(self) -> int:
        job_id = _ROOT.get()
        return self._random.generate_span_id() if job_id is None else derive_root(job_id)


class JobSampler(Sampler):
    """All spans of a job, or none."""

    def __init__(self, part: float) -> None:
        self._part = part

    @override
    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> SamplingResult:
        taken = is_sampled(trace_id, self._part)
        decision = Decision.RECORD_AND_SAMPLE if taken else Decision.DROP
        return SamplingResult(decision, attributes, trace_state)

    @override
    def get_description(self) -> str:
        return f"JobSampler{{{self._part}}}"


class JobTracer:
    """Writes finished spans into the trace of their job."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE)

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
        token = _ROOT.set(job_id if root else None)
        try:
            span = self._tracer.start_span(
                name,
                context=Context() if root else _enter_trace(job_id),
                attributes={"job.id": str(job_id), **(attributes or {})},
                start_time=_count_nanoseconds(began),
            )
        finally:
            _ROOT.reset(token)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(_count_nanoseconds(max(began, ended)))

    def flush(self) -> None:
        self._provider.force_flush(5000)


def open_tracer(part: float, processor: SpanProcessor | None = None) -> JobTracer:
    """With the exporter that the environment describes, unless another processor is given."""
    resource = Resource({SERVICE_NAME: SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(
        sampler=JobSampler(part), id_generator=JobIds(), resource=Resource.create().merge(resource)
    )
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
    return JobTracer(provider)


def _enter_trace(job_id: UUID) -> Context:
    """As if the root span, wherever it will be written, had been heard of from elsewhere."""
    flags = TraceFlags(TraceFlags.SAMPLED)
    parent = SpanContext(job_id.int, derive_root(job_id), is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())


def _count_nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


def derive_root(job_id: UUID) -> int:
    """The id of the job's root span."""
    return int.from_bytes(hashlib.sha256(job_id.bytes).digest()[:8], "big") or 1


def is_sampled(trace_id: int, part: float) -> bool:
    """The same for all spans of a job, in every process.

    By a hash: time and version bits of the ids are anything but evenly spread.
    """
    drawn = hashlib.sha256(b"sample" + trace_id.to_bytes(16, "big")).digest()[:8]
    return int.from_bytes(drawn, "big") < part * 2**64

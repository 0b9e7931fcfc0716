"""A job's spans find their trace without anything that travels; off, they cost and need nothing."""

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from uuid_utils.compat import uuid7

from tests.harness.jobs import NOW, REQUEST_ID
from tests.harness.values import JOB, JOB_ID
from worker.ground import tracing
from worker.ground.tracing import (
    JobTracer,
    derive_root,
    get_tracer,
    is_sampled,
    trace_since,
    trace_step,
)
from worker.jobs.states import JobState
from worker.stages import trace
from worker.stages.trace import trace_end

SECOND = timedelta(seconds=1)


class Traced:
    def __init__(self, part: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = JobTracer(part, SimpleSpanProcessor(self.exporter))

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def traced(monkeypatch) -> Traced:
    traced = Traced()
    for module in (tracing, trace):
        monkeypatch.setattr(module, "get_tracer", lambda: traced.tracer)
    return traced


def build_archived():
    return replace(
        JOB,
        state=JobState.ARCHIVED,
        due_at=None,
        submitted_at=NOW + 2 * SECOND,
        completed_at=NOW + 90 * SECOND,
        archived_at=NOW + 100 * SECOND,
    )


def test_spans_of_a_job_are_one_trace_with_the_job_s_id(traced) -> None:
    trace_since("enqueue", JOB_ID, NOW)
    with trace_step("submit", JOB_ID):
        pass
    trace_end(build_archived())
    spans = traced.spans
    assert set(spans) == {"enqueue", "submit", "run at fal", "job"}
    assert {span.context.trace_id for span in spans.values()} == {JOB_ID.int}
    root = spans.pop("job")
    assert root.parent is None
    assert root.context.span_id == derive_root(JOB_ID)
    assert {span.parent.span_id for span in spans.values()} == {derive_root(JOB_ID)}
    assert len({span.context.span_id for span in spans.values()}) == 3


def test_root_and_run_last_as_long_as_the_row_says(traced) -> None:
    trace_end(build_archived())

    def measure(name: str) -> float:
        span = traced.spans[name]
        return float(span.end_time - span.start_time) / 1e9

    assert (measure("job"), measure("run at fal")) == (100, 88)
    assert traced.spans["job"].start_time == NOW.timestamp() * 1e9
    assert traced.spans["run at fal"].attributes["fal.request_id"] == REQUEST_ID


def test_job_that_has_not_ended_has_no_root_yet(traced) -> None:
    trace_end(JOB)
    trace_end(None)
    assert traced.spans == {}


def test_step_that_fails_names_the_error_and_not_its_words(traced) -> None:
    with pytest.raises(ValueError, match="secret"), trace_step("archive", JOB_ID):
        raise ValueError("a secret")
    span = traced.spans["archive"]
    assert not span.status.is_ok
    assert span.status.description == "ValueError"
    assert "secret" not in span.to_json()


def test_spans_hold_nothing_of_the_request(traced) -> None:
    trace_end(build_archived())
    assert JOB.input["prompt"] == JOB.tenant, "the tenant is told, the prompt is not"
    assert set(traced.spans["job"].attributes) == {"job.id", "job.state", "job.tenant"}


def test_sampling_takes_all_spans_of_a_job_or_none() -> None:
    traced = Traced(0.5)
    ids = [uuid7() for _ in range(400)]
    for job_id in ids:
        traced.tracer.record("a", job_id, NOW, NOW)
        traced.tracer.record("b", job_id, NOW, NOW, root=True)
    found: dict[int, int] = {}
    for span in traced.exporter.get_finished_spans():
        found[span.context.trace_id] = found.get(span.context.trace_id, 0) + 1
    assert set(found.values()) == {2}
    assert 120 < len(found) < 280, "about the half, though the ids begin alike"
    assert {UUID(int=one) for one in found} == {one for one in ids if is_sampled(one.int, 0.5)}


def test_tracing_is_off_without_an_endpoint(monkeypatch) -> None:
    for name in tracing.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    get_tracer.cache_clear()
    assert get_tracer() is None
    with trace_step("submit", JOB_ID):
        pass
    trace_since("enqueue", JOB_ID, NOW)
    trace_end(build_archived())
    get_tracer.cache_clear()


def test_nothing_imports_opentelemetry_while_tracing_is_off() -> None:
    """No part that traces; redis-py imports those for metrics by itself, if they are there."""
    script = "import sys, worker.tasks, webhook, worker.producer, worker.cli; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    heavy = ("opentelemetry.sdk.trace", "opentelemetry.exporter")
    assert [name for name in ended.stdout.split() if name.startswith(heavy)] == []

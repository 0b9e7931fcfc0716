"""One trace of a job through real processes: worker, fal, receiver, worker."""

from collections.abc import Iterator
from uuid import UUID

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.harness.processes import ONE_WORKER
from tests.harness.waiting import wait_until
from tests.harness.web import ScriptedServer, run_server, send_body
from tests.system.scene import run_scene
from worker.ground.tracing import derive_root

SPANS = {"enqueue", "submit", "receive", "run at fal", "archive", "job"}


def read_spans(collector: ScriptedServer, job_id: UUID) -> Iterator[Span]:
    for asked in list(collector.asked):
        for of_resource in ExportTraceServiceRequest.FromString(asked.body).resource_spans:
            for of_scope in of_resource.scope_spans:
                yield from (one for one in of_scope.spans if one.trace_id == job_id.bytes)


def test_one_trace_leads_from_the_wish_to_its_archived_video(tmp_path, clip, sqlite_url) -> None:
    with run_server(send_body(b"", 200, Content_Type="application/x-protobuf")) as collector:
        changes = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_SERVICE_NAME": "videos",
        }
        with run_scene(tmp_path, sqlite_url, clip, ONE_WORKER, changes=changes) as scene:
            job_id = scene.enqueue()
            job = scene.table.wait_for_end(job_id, seconds=60)
            wait_until(lambda: {one.name for one in read_spans(collector, job_id)} >= SPANS, 30)
        spans = {one.name: one for one in read_spans(collector, job_id)}
        bodies = b"".join(asked.body for asked in collector.asked)
    assert {asked.path for asked in collector.asked} == {"/v1/traces"}
    root = spans.pop("job")
    root_id = derive_root(job_id).to_bytes(8, "big")
    assert (root.span_id, root.parent_span_id) == (root_id, b"")
    assert {one.parent_span_id for one in spans.values()} == {root_id}
    for one in spans.values():
        assert root.start_time_unix_nano <= one.start_time_unix_nano <= one.end_time_unix_nano
    order = sorted(
        ("enqueue", "submit", "receive", "archive"),
        key=lambda name: spans[name].start_time_unix_nano,
    )
    assert order == ["enqueue", "submit", "receive", "archive"]
    assert b"videos" in bodies
    for secret in ("emulator-key", job["input"]["prompt"]):
        assert secret.encode() not in bodies

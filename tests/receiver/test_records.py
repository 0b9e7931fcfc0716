"""What the receiver writes for each genuine delivery."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from tests.harness.jobs import (
    ENDPOINT,
    REQUEST_ID,
    WAYS,
    build_result,
    lead_job,
    make_job,
    read_attempts,
    read_job,
)
from tests.harness.stages import submit_job
from tests.harness.together import call_together
from tests.harness.web import ScriptedHandler, run_server, send_json
from tests.harness.webhooks import build_body, build_delivery
from tests.receiver.scene import LEASE
from worker.fal.options import RequestOptions
from worker.fal.submit import QueueClient
from worker.jobs.admission import Caps
from worker.jobs.states import Doorbell, JobEvent, JobState, Step
from worker.stages.admit import AdmissionPolicy
from worker.stages.submit import SubmitPolicy
from worker.stages.sweep import sweep_jobs

# The next job may be submitted, and this one's video is to be kept.
FREED_AND_ARCHIVED = ["extend_video.submit", "extend_video.archive"]


@pytest.mark.both_databases
def test_receive_success_commits_result_and_rings(scene, job) -> None:
    answer = scene.post(build_delivery())

    assert (answer.status_code, answer.get_json()) == (200, {"verdict": "recorded"})
    recorded = read_job(scene.db, job.id)
    assert recorded.state is JobState.COMPLETED
    assert recorded.result == build_result()
    assert recorded.fal_request_id == REQUEST_ID
    assert recorded.completed_at is not None
    assert read_attempts(scene.db, job.id)[0].fal_request_id == REQUEST_ID
    assert scene.take_doorbells() == FREED_AND_ARCHIVED


@pytest.mark.both_databases
def test_receive_failure_commits_its_code_and_frees_its_slot(scene, job) -> None:
    detail = [{"loc": ["body", "video_url"], "msg": "no such file", "type": "file_download_error"}]
    body = build_body(status="ERROR", error="Invalid status code: 422", payload={"detail": detail})
    answer = scene.post(build_delivery(body))

    assert answer.status_code == 200
    failed = read_job(scene.db, job.id)
    assert failed.state is JobState.FAILED
    assert failed.error_code == "file_download_error"
    assert failed.error_message == "video_url: no such file"
    assert scene.take_doorbells() == ["extend_video.submit"]


def test_receive_keeps_raw_body(scene, job) -> None:
    body = json.dumps(build_body(), indent=3).encode() + b"\n "
    assert scene.post(build_delivery(body)).status_code == 200

    with scene.db.reading() as connection:
        kept = connection.execute(text("SELECT body, times_received FROM deliveries")).one()
    assert (bytes(kept.body), kept.times_received) == (body, 1)


@pytest.mark.both_databases
def test_receive_duplicate_is_answered_and_recorded_once(scene, job) -> None:
    delivery = build_delivery()
    verdicts = [scene.post(delivery).get_json()["verdict"] for _ in range(3)]

    assert verdicts == ["recorded", "duplicate", "duplicate"]
    assert scene.count("deliveries") == 1
    with scene.db.reading() as connection:
        times = connection.execute(text("SELECT times_received FROM deliveries")).scalar_one()
    assert times == 3
    assert scene.take_doorbells() == FREED_AND_ARCHIVED


def test_receive_redelivery_signed_anew_is_duplicate(scene, job) -> None:
    later = datetime.now(UTC) + timedelta(seconds=30)
    scene.post(build_delivery())

    assert scene.post(build_delivery(at=later)).get_json() == {"verdict": "duplicate"}


@pytest.mark.both_databases
def test_receive_same_delivery_at_once_records_once(scene, job) -> None:
    delivery = build_delivery()
    answers = call_together(*[lambda: scene.post(delivery)] * 6)

    assert [answer.status_code for answer in answers] == [200] * 6
    verdicts = sorted(answer.get_json()["verdict"] for answer in answers)
    assert verdicts == ["duplicate"] * 5 + ["recorded"]
    assert scene.take_doorbells() == FREED_AND_ARCHIVED
    assert scene.count("deliveries") == 1


@pytest.mark.both_databases
def test_receive_other_body_after_end_is_kept(scene, job) -> None:
    scene.post(build_delivery())
    before = read_job(scene.db, job.id)
    failure = build_body(status="ERROR", error="too late", payload=None)

    assert scene.post(build_delivery(failure)).get_json() == {"verdict": "kept"}
    assert read_job(scene.db, job.id) == before
    assert scene.count("deliveries") == 2


HAVE_RESULT = {JobState.COMPLETED, JobState.ARCHIVING, JobState.ARCHIVED}
# those with an attempt, whose token a webhook can know
TRIED = [state for state in WAYS if JobEvent.SUBMISSION_CLAIMED in WAYS[state]]


@pytest.mark.parametrize("state", TRIED)
def test_receive_result_without_payload_is_kept_and_asked_for(scene, state) -> None:
    """Fal leaves out a payload it cannot write; the POST is genuine, whatever became of the job."""
    job = make_job(scene.db, state, now=datetime.now(UTC))
    body = build_body(payload=None, payload_error="too large")

    answer = scene.post(build_delivery(body))

    assert (answer.status_code, answer.get_json()) == (200, {"verdict": "kept"})
    assert scene.count("deliveries") == 1
    after = read_job(scene.db, job.id)
    if state in HAVE_RESULT:
        assert (after.state, after.result) == (state, job.result)
        assert scene.take_doorbells() == []
    else:
        assert (after.state, after.result) == (JobState.SUBMITTED, None)
        assert scene.take_doorbells() == ["extend_video.reconcile"]


@pytest.mark.both_databases
def test_receive_result_without_payload_after_refusal_buys_no_second_run(scene) -> None:
    """Fal refused the attempt, yet ran it: to look at the job at once would be to pay again."""
    now = datetime.now(UTC)
    job = make_job(scene.db, JobState.SUBMITTING, now=now)
    postponed = lead_job(scene.db, job, JobEvent.SUBMISSION_POSTPONED, now=now)
    assert postponed is not None
    body = build_body(payload=None, payload_error="too large")

    assert scene.post(build_delivery(body)).status_code == 200

    swept = sweep_jobs(db=scene.db, lease=LEASE, clock=lambda: now + timedelta(minutes=1))
    assert swept.doorbells == [Doorbell(Step.RECONCILE, job.id)]
    assert lead_job(scene.db, job, JobEvent.SUBMISSION_CLAIMED, now=now + LEASE) is None


def test_receive_result_without_payload_while_archiving_leaves_claim(scene) -> None:
    job = make_job(scene.db, JobState.ARCHIVING, now=datetime.now(UTC))
    scene.post(build_delivery(build_body(payload=None, payload_error="too large")))

    assert read_job(scene.db, job.id).due_at == job.due_at


@pytest.mark.both_databases
@pytest.mark.parametrize("state", [JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN])
def test_receive_before_submit_reply_adopts_request(scene, state) -> None:
    job = make_job(scene.db, state, now=datetime.now(UTC))

    assert scene.post(build_delivery()).get_json() == {"verdict": "recorded"}
    recorded = read_job(scene.db, job.id)
    assert (recorded.state, recorded.fal_request_id) == (JobState.COMPLETED, REQUEST_ID)
    assert recorded.submitted_at is not None


@pytest.mark.both_databases
def test_receive_webhook_during_submission_completes_paid_job(scene) -> None:
    job = make_job(scene.db, now=datetime.now(UTC))

    def call_back_first(handler: ScriptedHandler) -> None:
        (webhook_url,) = handler.asked.query["fal_webhook"]
        answer = scene.post(build_delivery(token=webhook_url.rpartition("/")[2]))
        assert answer.get_json() == {"verdict": "recorded"}
        send_json({"status": "IN_QUEUE", "request_id": REQUEST_ID})(handler)

    with run_server(call_back_first) as fal:
        queue = QueueClient(fal.url, SecretStr("key"))
        policy = SubmitPolicy(
            "w:1",
            "https://hooks.test",
            RequestOptions(),
            *[LEASE] * 4,
            admission=AdmissionPolicy(Caps(1000), ENDPOINT),
        )
        moved = submit_job(job, db=scene.db, queue=queue, policy=policy)
        queue.close()

    assert moved is None
    assert read_job(scene.db, job.id).state is JobState.COMPLETED
    (attempt,) = read_attempts(scene.db, job.id)
    assert (attempt.outcome, attempt.fal_request_id) == ("accepted", REQUEST_ID)
    assert len(fal.asked) == 1

"""What the receiver answers fal about attempts and jobs whose rows are lost."""

from datetime import UTC, datetime, timedelta

from pydantic import SecretStr
from uuid_utils.compat import uuid7

from tests.harness.jobs import insert_job, read_job
from tests.harness.webhooks import build_delivery
from tests.receiver.scene import refuse
from worker.jobs.states import JobState
from worker.stages.tokens import TokenName, sign_token

SECRET = SecretStr("n" * 32)
OLDER = SecretStr("o" * 32)
TOKEN_SECRET = f"{SECRET.get_secret_value()},{OLDER.get_secret_value()}"


def test_lost_attempt_is_recorded_with_any_secret_of_the_list(open_scene) -> None:
    scene = open_scene(token_secret=TOKEN_SECRET)
    for number, secret in enumerate((SECRET, OLDER)):
        job = insert_job(scene.db, now=datetime.now(UTC), input={"seed": number})
        token = sign_token(TokenName(job.id, 1, "0"), secret)
        request_id = str(uuid7())
        body = {"request_id": request_id, "status": "ERROR", "error": "failed", "payload": {}}
        answer = scene.post(build_delivery(body, token=token, request_id=request_id))
        assert (answer.status_code, answer.get_json()) == (200, {"verdict": "recorded"})
        assert read_job(scene.db, job.id).state is JobState.FAILED


def test_lost_job_is_kept_counted_and_answered_for_good(open_scene) -> None:
    scene = open_scene(token_secret=TOKEN_SECRET)
    token = sign_token(TokenName(uuid7(), 3, "0"), SECRET)
    stale = datetime.now(UTC) - timedelta(hours=1)
    for at, status in ((stale, 202), (datetime.now(UTC), 200)):
        answer = scene.post(build_delivery(token=token, at=at))
        assert (answer.status_code, answer.get_json()) == (status, {"verdict": "stray"})
    assert scene.count("stray_deliveries") == 1
    assert scene.take_doorbells() == []
    metrics = scene.client.get("/metrics").get_data(as_text=True)
    assert 'received_deliveries_total{code="",verdict="stray"}' in metrics


def test_signed_token_means_nothing_to_a_receiver_without_the_secret(open_scene) -> None:
    scene = open_scene(token_secret="x" * 32)
    job = insert_job(scene.db, now=datetime.now(UTC))
    token = sign_token(TokenName(job.id, 1, "0"), SECRET)
    refuse(scene, build_delivery(token=token), 401, "invalid_signature")

"""Each delivery that is refused or doubted, with its answer; what is refused writes nothing."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from tests.harness.jobs import REQUEST_ID, TOKEN, make_job, read_attempts, read_job
from tests.harness.webhooks import (
    OTHER_KEY,
    PREFIX,
    USER_ID,
    SignedDelivery,
    build_body,
    build_delivery,
)
from tests.receiver.scene import LIMIT, refuse, take_as_hint
from worker.jobs.states import JobState


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        json.dumps(build_body(status="FAILED")).encode(),
        json.dumps(build_body(request_id=...)).encode(),
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"1" * 5_000,
    ],
)
def test_receive_genuine_body_of_wrong_shape_answers_400(scene, job, body) -> None:
    refuse(scene, build_delivery(body), 400, "invalid_delivery")


@pytest.mark.parametrize("token", ["another-token", "%00", "%ff%fe", "x" * 5000, TOKEN.upper()])
def test_receive_unknown_token_answers_401(scene, job, token) -> None:
    refuse(scene, build_delivery(token=token), 401, "invalid_signature")


def test_receive_token_hash_as_token_answers_401(scene, job) -> None:
    """Who reads the table can call nobody's webhook."""
    (attempt,) = read_attempts(scene.db, job.id)
    refuse(scene, build_delivery(token=attempt.token_hash), 401, "invalid_signature")


@pytest.mark.parametrize("name", ["Request-Id", "User-Id", "Timestamp", "Signature"])
def test_receive_without_header_answers_401(scene, job, name) -> None:
    refuse(scene, build_delivery().without_header(name), 401, "invalid_signature")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Request-Id", "another-request"),
        ("User-Id", f"{USER_ID} "),
        ("Timestamp", "now"),
        ("Signature", "00" * 64),
        ("Signature", "zz" * 64),
    ],
)
def test_receive_altered_header_answers_401(scene, job, name, value) -> None:
    refuse(scene, build_delivery().with_header(name, value), 401, "invalid_signature")


def test_receive_timestamp_of_same_value_in_other_digits_answers_401(scene, job) -> None:
    """The header is signed as it stands, not as the number it means."""
    delivery = build_delivery()
    zero_first = f"0{delivery.headers[PREFIX + 'Timestamp']}"
    refuse(scene, delivery.with_header("Timestamp", zero_first), 401, "invalid_signature")


def test_receive_signature_of_foreign_key_answers_401(scene, job) -> None:
    refuse(scene, build_delivery(key=OTHER_KEY), 401, "invalid_signature")


def test_receive_body_encoded_anew_answers_401(scene, job) -> None:
    """The signature is over the bytes, not over what they mean."""
    delivery = build_delivery()
    anew = json.dumps(json.loads(delivery.body), separators=(",", ":")).encode()
    assert anew != delivery.body
    refuse(scene, SignedDelivery(TOKEN, delivery.headers, anew), 401, "invalid_signature")


def test_receive_delivery_of_other_user_answers_401(scene, job) -> None:
    refuse(scene, build_delivery(user_id="someone-else"), 401, "invalid_signature")


def test_receive_any_user_where_none_is_set_records(open_scene, job) -> None:
    scene = open_scene(fal_user_id=None)
    assert scene.post(build_delivery(user_id="someone-else")).status_code == 200


def test_receive_request_id_differing_from_header_answers_401(scene, job) -> None:
    delivery = build_delivery(build_body(request_id="another-request"))
    refuse(scene, delivery, 401, "invalid_signature")


def test_receive_request_of_another_attempt_answers_401(scene) -> None:
    """A genuine delivery of one request, sent to the webhook URL of another."""
    job = make_job(scene.db, JobState.SUBMITTED, now=datetime.now(UTC))
    scene.post(build_delivery())
    scene.take_doorbells()
    delivery = build_delivery(build_body(request_id="other-request"), request_id="other-request")

    refuse(scene, delivery, 401, "invalid_signature")
    assert read_job(scene.db, job.id).fal_request_id == REQUEST_ID


@contextmanager
def clock_at(moment: datetime) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("webhook.fal.read_clock", lambda: moment)
        yield


@pytest.mark.parametrize(("age", "status"), [(-301, 202), (-300, 200), (300, 200), (301, 202)])
def test_receive_at_edge_of_time_window_answers(scene, job, age, status) -> None:
    signed_at = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    delivery = build_delivery(at=signed_at)
    with clock_at(signed_at + timedelta(seconds=age)):
        if status == 202:
            take_as_hint(scene, delivery, job, due_now=True)
        else:
            assert scene.post(delivery).status_code == status


OLD = datetime.now(UTC) - timedelta(hours=2)


@pytest.mark.both_databases
@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.SUBMISSION_UNKNOWN])
def test_receive_stale_delivery_has_fal_asked_at_once(scene, state) -> None:
    job = make_job(scene.db, state, now=datetime.now(UTC))
    take_as_hint(scene, build_delivery(at=OLD), job, due_now=True)


@pytest.mark.parametrize("state", [JobState.SUBMITTING, JobState.FAILED])
def test_receive_stale_delivery_for_job_that_waits_for_nobody_changes_no_row(scene, state) -> None:
    job = make_job(scene.db, state, now=datetime.now(UTC))
    take_as_hint(scene, build_delivery(at=OLD), job, due_now=False)


def test_receive_stale_delivery_of_archived_job_rings_for_nobody(scene) -> None:
    job = make_job(scene.db, JobState.ARCHIVED, now=datetime.now(UTC))
    answer = scene.post(build_delivery(at=OLD))
    assert (answer.status_code, answer.get_json()) == (202, {"verdict": "hint"})
    assert (read_job(scene.db, job.id), scene.take_doorbells()) == (job, [])


def test_receive_stale_delivery_then_proven_one_is_recorded(scene, job) -> None:
    assert scene.post(build_delivery(at=OLD)).status_code == 202
    assert scene.post(build_delivery()).get_json() == {"verdict": "recorded"}
    assert scene.count("deliveries") == 1


def test_receive_stale_delivery_with_unknown_token_answers_401(scene, job) -> None:
    refuse(scene, build_delivery(at=OLD, token="another-token"), 401, "invalid_signature")


def test_receive_stale_delivery_of_another_request_answers_401(scene) -> None:
    make_job(scene.db, JobState.SUBMITTED, now=datetime.now(UTC))
    scene.post(build_delivery())
    scene.take_doorbells()
    body = build_body(request_id="other-request")
    stale = build_delivery(body, request_id="other-request", at=OLD)
    refuse(scene, stale, 401, "invalid_signature")


def test_receive_stale_delivery_whose_header_names_another_request_answers_401(scene, job) -> None:
    stale = build_delivery(build_body(request_id="other-request"), at=OLD)
    refuse(scene, stale, 401, "invalid_signature")


def test_receive_stale_body_that_cannot_be_read_answers_401(scene, job) -> None:
    refuse(scene, build_delivery(b"{", at=OLD), 401, "stale_signature")


def test_receive_stale_forgery_is_no_stale_signature(scene, job) -> None:
    refuse(scene, build_delivery(at=OLD, key=OTHER_KEY), 401, "invalid_signature")


def test_receive_body_at_limit_is_read(scene, job) -> None:
    filling = LIMIT - len(json.dumps(build_body(filling="")))
    delivery = build_delivery(build_body(filling="x" * filling))
    assert len(delivery.body) == LIMIT

    assert scene.post(delivery).status_code == 200


def build_too_large(token: str = TOKEN) -> SignedDelivery:
    filling = LIMIT - len(json.dumps(build_body(filling=""))) + 1
    return build_delivery(build_body(filling="x" * filling), token=token)


def test_receive_body_above_limit_answers_413_and_has_fal_asked(scene, job) -> None:
    """The result may not last until fal has given up sending it."""
    answer = scene.post(build_too_large())

    assert (answer.status_code, answer.get_json()["error"]) == (413, "request_entity_too_large")
    assert scene.take_doorbells() == ["extend_video.reconcile"]
    assert read_job(scene.db, job.id) == job
    assert scene.count("deliveries") == 0


def test_receive_body_above_limit_of_unknown_token_writes_nothing(scene, job) -> None:
    refuse(scene, build_too_large("another-token"), 413, "request_entity_too_large")


def test_receive_body_above_limit_of_job_with_a_result_writes_nothing(scene) -> None:
    make_job(scene.db, JobState.COMPLETED, now=datetime.now(UTC))
    refuse(scene, build_too_large(), 413, "request_entity_too_large")


def test_receive_forged_body_that_is_no_json_is_verified_first(scene, job) -> None:
    refuse(scene, build_delivery(b"{", key=OTHER_KEY), 401, "invalid_signature")


def test_receive_compressed_body_is_verified_as_it_came(scene, job) -> None:
    body = gzip.compress(json.dumps(build_body()).encode())
    delivery = build_delivery(body)
    headers = {**delivery.headers, "Content-Encoding": "gzip"}
    refuse(scene, SignedDelivery(TOKEN, headers, body), 400, "invalid_delivery")


def test_receive_under_other_content_type_reads_same_bytes(scene, job) -> None:
    delivery = build_delivery()
    headers = {**delivery.headers, "Content-Type": "application/x-www-form-urlencoded"}
    assert scene.post(SignedDelivery(TOKEN, headers, delivery.body)).status_code == 200

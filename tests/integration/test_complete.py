"""What a webhook tells, recorded once, for a job in any state."""

import json
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.harness.clock import FakeClock
from tests.harness.jobs import (
    NOW,
    REQUEST_ID,
    TOKEN,
    build_result,
    make_job,
    move_job,
    read_attempts,
    read_job,
)
from tests.harness.together import call_together
from worker.errors import InvalidDeliveryError, InvalidSignatureError
from worker.fal.completion import Completion, parse_webhook
from worker.fal.errors import UNNAMED_CODE
from worker.jobs import attempts, deliveries, table
from worker.jobs.states import Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Job, Outcome, Settlement
from worker.stages.complete import Verdict, receive_delivery

S = JobState
LATER = NOW + timedelta(seconds=20)
GRACE = timedelta(seconds=30)
MODEL_ERROR: dict[str, Any] = {
    "detail": [
        {"loc": ["body", "video_url"], "msg": "cannot be read", "type": "file_download_error"},
        {"loc": ["body"], "msg": "too short", "type": "video_duration_too_short"},
    ]
}
OK: dict[str, Any] = {"status": "OK", "payload": build_result()}
ERROR: dict[str, Any] = {
    "status": "ERROR",
    "error": "Invalid status code: 422",
    "payload": MODEL_ERROR,
}
EMPTY: dict[str, Any] = {
    "status": "OK",
    "payload": None,
    "payload_error": "Response payload is too big",
}
UNREADABLE: dict[str, Any] = {"status": "OK", "payload": {"video": {"url": "ftp://x/y"}}}


def build_body(content, **changes):
    known = {"request_id": REQUEST_ID, "gateway_request_id": REQUEST_ID, **content}
    return json.dumps(known | changes).encode()


def deliver(db, content, *, token=TOKEN, clock=FakeClock(LATER), **changes):  # noqa: B008 - stands
    body = build_body(content, **changes)
    return receive_delivery(token, parse_webhook(body), body, db=db, grace=GRACE, clock=clock)


def make_attempted(db, state) -> Job:
    """A job in `state` for which a POST was begun, whatever became of it."""
    if state is S.CANCELLED:
        job = make_job(db, S.SUBMITTED)
        with db.transaction() as connection:
            ended = "state = 'cancelled', due_at = NULL, cancelled_at = enqueued_at"
            connection.execute(text(f"UPDATE jobs SET {ended}"))
    elif state is S.QUEUED:
        job = move_job(db, make_job(db, S.SUBMITTING), JobEvent.SUBMISSION_POSTPONED)
    else:
        job = make_job(db, state)
    return read_job(db, job.id)


def list_deliveries(db, job):
    with db.reading() as connection:
        return deliveries.list_deliveries(connection, job.id)


def list_events(db, job):
    with db.reading() as connection:
        return table.list_events(connection, job.id)


# every state of the job, every kind of delivery

WAITING = {S.SUBMITTING, S.SUBMITTED, S.SUBMISSION_UNKNOWN}
TARGETS = {
    "ok": dict.fromkeys({*WAITING, S.QUEUED}, S.COMPLETED),
    "error": dict.fromkeys(WAITING, S.FAILED),
    "unreadable": dict.fromkeys(WAITING, S.FAILED),
    "empty": {},
}
CONTENTS = {"ok": OK, "error": ERROR, "unreadable": UNREADABLE, "empty": EMPTY}
PAIRS = sorted(product(S, CONTENTS))


@pytest.mark.parametrize(
    ("state", "kind"), [(state, kind) for state, kind in PAIRS if state in TARGETS[kind]]
)
def test_receive_delivery_moves_a_job_that_waits_for_it(db, state, kind):
    job = make_attempted(db, state)
    receipt = deliver(db, CONTENTS[kind])
    target = TARGETS[kind][state]
    assert (receipt.verdict, receipt.job.state) == (Verdict.RECORDED, target)
    assert receipt.job == read_job(db, job.id)
    assert receipt.job.fence == job.fence
    event = list_events(db, job)[-1]
    assert (event.from_state, event.to_state, event.at) == (state, target, LATER)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (state, kind)
        for state, kind in PAIRS
        # what asks for a look at fal may bring that look forward
        if state not in TARGETS[kind] and not (kind == "empty" and state in WAITING)
    ],
)
def test_receive_delivery_of_no_use_is_kept_and_changes_nothing(db, state, kind):
    job = make_attempted(db, state)
    events = list_events(db, job)
    receipt = deliver(db, CONTENTS[kind])
    assert (receipt.verdict, receipt.job) == (Verdict.KEPT, job)
    assert read_job(db, job.id) == job
    assert list_events(db, job) == events
    assert len(list_deliveries(db, job)) == 1


@pytest.mark.parametrize("state", sorted(WAITING))
def test_receive_delivery_without_payload_leaves_the_state(db, state):
    job = make_attempted(db, state)
    receipt = deliver(db, EMPTY)
    after = read_job(db, job.id)
    assert (receipt.verdict, after.state, after.result) == (Verdict.KEPT, state, None)
    assert len(list_deliveries(db, job)) == 1


@pytest.mark.parametrize("state", [S.SUBMITTED, S.SUBMISSION_UNKNOWN])
def test_receive_delivery_without_payload_makes_the_job_due_now(db, state):
    job = make_attempted(db, state)
    deliver(db, EMPTY)
    assert read_job(db, job.id).due_at == LATER


# what is written


def test_receive_delivery_stores_the_result_as_fal_sent_it(db):
    job = make_job(db, S.SUBMITTED)
    payload = {**build_result(), "novelty": {"a": [1, 2.5, None, True, "ü🎬"]}}
    payload["video"]["novelty"] = "x"
    receipt = deliver(db, OK, payload=payload)
    after = read_job(db, job.id)
    assert after.result == payload
    assert (after.fal_request_id, after.completed_at) == (REQUEST_ID, LATER)
    assert after.due_at == LATER + GRACE
    assert receipt.job.doorbell == Doorbell(Step.ARCHIVE, job.id)


def test_receive_delivery_of_an_unknown_submission_adopts_it(db):
    job = make_job(db, S.SUBMISSION_UNKNOWN)
    deliver(db, OK)
    after = read_job(db, job.id)
    assert (after.state, after.fal_request_id) == (S.COMPLETED, REQUEST_ID)
    assert (after.submitted_at, after.blocked_reason) == (NOW, None)
    assert read_attempts(db, job.id)[0].fal_request_id == REQUEST_ID


def test_receive_delivery_of_a_failure_writes_its_code_and_words(db):
    job = make_job(db, S.SUBMITTED)
    receipt = deliver(db, ERROR)
    assert receipt.job.error_code == "file_download_error"
    assert receipt.job.error_message == "video_url: cannot be read; too short"
    assert (receipt.job.failed_at, receipt.job.due_at) == (LATER, None)
    assert (receipt.job.result, receipt.job.doorbell) == (MODEL_ERROR, None)
    assert list_events(db, job)[-1].detail == receipt.job.error_message


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            {"payload": {"detail": "it broke", "error_type": "internal_error"}},
            "internal_error",
            "it broke",
        ),
        ({"payload": {"detail": "it broke"}}, UNNAMED_CODE, "it broke"),
        ({"payload": {"detail": ""}}, UNNAMED_CODE, "Invalid status code: 422"),
        ({"payload": None}, UNNAMED_CODE, "Invalid status code: 422"),
        ({"payload": [1]}, UNNAMED_CODE, "Invalid status code: 422"),
        (
            {"payload": None, "error": None},
            UNNAMED_CODE,
            "fal reports an error without a message",
        ),
    ],
)
def test_receive_delivery_of_any_failure_names_it(db, changes, code, message):
    make_job(db, S.SUBMITTED)
    receipt = deliver(db, ERROR, **changes)
    assert (receipt.job.error_code, receipt.job.error_message) == (code, message)


@pytest.mark.parametrize("payload", [{}, [], "text", 7, False, {"video": None}, {"video": {}}])
def test_receive_delivery_of_an_unreadable_result_fails_the_job(db, payload):
    make_job(db, S.SUBMITTED)
    receipt = deliver(db, OK, payload=payload)
    assert (receipt.job.state, receipt.job.error_code) == (S.FAILED, "invalid_result")
    assert receipt.job.error_message


def test_receive_delivery_keeps_its_body_as_it_came(db):
    job = make_job(db, S.SUBMITTED)
    deliver(db, OK, gateway_request_id="another")
    (delivery,) = list_deliveries(db, job)
    assert delivery.body == build_body(OK, gateway_request_id="another")
    assert (delivery.attempt_id, delivery.status) == (read_attempts(db, job.id)[0].id, "OK")
    assert (delivery.fal_request_id, delivery.gateway_request_id) == (REQUEST_ID, "another")
    assert delivery.received_at == delivery.last_received_at == LATER


# again, and at once


@pytest.mark.parametrize("kind", CONTENTS)
def test_receive_delivery_again_only_counts(db, kind):
    job = make_job(db, S.SUBMITTED)
    first = deliver(db, CONTENTS[kind])
    clock = FakeClock(LATER + timedelta(minutes=5))
    receipts = [deliver(db, CONTENTS[kind], clock=clock) for _ in range(2)]
    assert {receipt.verdict for receipt in receipts} == {Verdict.DUPLICATE}
    assert read_job(db, job.id) == receipts[-1].job
    assert receipts[-1].job.state is first.job.state
    (delivery,) = list_deliveries(db, job)
    assert (delivery.times_received, delivery.received_at) == (3, LATER)
    assert delivery.last_received_at == clock()


def test_receive_delivery_with_another_body_is_kept_beside_the_first(db):
    job = make_job(db, S.SUBMITTED)
    first = deliver(db, OK).job
    other = deliver(db, OK, payload=build_result("https://v3.fal.media/other.mp4"))
    failure = deliver(db, ERROR)
    assert (other.verdict, failure.verdict) == (Verdict.KEPT, Verdict.KEPT)
    assert read_job(db, job.id) == first
    assert [one.times_received for one in list_deliveries(db, job)] == [1, 1, 1]


def test_receive_delivery_with_the_result_after_one_without_completes(db):
    job = make_job(db, S.SUBMITTED)
    deliver(db, EMPTY)
    assert deliver(db, OK).verdict is Verdict.RECORDED
    assert read_job(db, job.id).state is S.COMPLETED


@pytest.mark.parametrize(
    ("second", "verdicts", "rows"),
    [
        (OK, [Verdict.DUPLICATE, Verdict.RECORDED], 1),
        (ERROR, [Verdict.KEPT, Verdict.RECORDED], 2),
    ],
)
def test_receive_delivery_of_two_at_once_records_one(db, second, verdicts, rows):
    job = make_job(db, S.SUBMITTED)
    receipts = call_together(lambda: deliver(db, OK), lambda: deliver(db, second))
    assert sorted(receipt.verdict for receipt in receipts) == verdicts
    assert len(list_events(db, job)) == 4
    deliveries = list_deliveries(db, job)
    assert len(deliveries) == rows
    assert sum(delivery.times_received for delivery in deliveries) == 2


# who may speak for which attempt


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", attempts.hash_token(TOKEN)])
def test_receive_delivery_with_an_unknown_token_is_refused(db, token):
    job = make_job(db, S.SUBMITTED)
    with pytest.raises(InvalidSignatureError, match="token"):
        deliver(db, OK, token=token)
    assert read_job(db, job.id) == job
    assert list_deliveries(db, job) == []


def test_receive_delivery_of_another_request_is_refused(db):
    job = make_job(db, S.SUBMITTED)
    (attempt,) = read_attempts(db, job.id)
    with db.transaction() as connection:
        accepted = Settlement(Outcome.ACCEPTED, NOW, 200, "another-request")
        attempts.settle_attempt(connection, attempt.id, accepted)
    with pytest.raises(InvalidSignatureError, match="another fal request"):
        deliver(db, OK)
    assert read_job(db, job.id) == job
    assert list_deliveries(db, job) == []


def test_receive_delivery_after_an_adoption_refuses_other_requests(db):
    job = make_job(db, S.SUBMISSION_UNKNOWN)
    deliver(db, EMPTY)
    with pytest.raises(InvalidSignatureError, match="another fal request"):
        deliver(db, OK, request_id="another-request")
    assert read_job(db, job.id).state is S.SUBMISSION_UNKNOWN


def test_receive_delivery_of_an_error_without_its_payload_leaves_the_result_to_be_fetched(db):
    """Fal says ERROR too when a result would not fit into its message."""
    job = make_job(db, S.SUBMITTED)
    receipt = deliver(db, ERROR, payload=None, payload_error="too big")
    assert (receipt.verdict, receipt.job.state) == (Verdict.KEPT, S.SUBMITTED)
    assert read_job(db, job.id).due_at == LATER


def make_second_attempt(db) -> Job:
    """A job whose first POST was postponed, and whose second was accepted."""
    queued = move_job(db, make_job(db, S.SUBMITTING), JobEvent.SUBMISSION_POSTPONED)
    claimed = move_job(db, queued, JobEvent.SUBMISSION_CLAIMED)
    return move_job(db, claimed, JobEvent.SUBMISSION_ACCEPTED)


def test_receive_delivery_of_an_earlier_attempt_brings_its_result(db):
    job = make_second_attempt(db)
    receipt = deliver(db, OK)
    assert (receipt.verdict, receipt.job.state) == (Verdict.RECORDED, S.COMPLETED)
    first, second = read_attempts(db, job.id)
    assert (first.fal_request_id, second.fal_request_id) == (REQUEST_ID, None)


def test_receive_delivery_of_an_earlier_attempts_failure_leaves_the_later_one(db):
    job = make_second_attempt(db)
    assert deliver(db, ERROR).verdict is Verdict.KEPT
    assert read_job(db, job.id) == job
    later = deliver(db, OK, token=f"{TOKEN}-2", request_id="the-second-request")
    assert (later.verdict, later.job.state) == (Verdict.RECORDED, S.COMPLETED)


# bodies that are odd but genuine


def read_body(content) -> Completion:
    return parse_webhook(json.dumps({"request_id": "r", "status": "OK", **content}).encode())


def test_parse_webhook_reads_every_key():
    body = build_body(ERROR, gateway_request_id="g", metrics={"x": 1})
    assert parse_webhook(body) == Completion(
        REQUEST_ID, "g", "ERROR", MODEL_ERROR, "Invalid status code: 422"
    )


def test_parse_webhook_without_optional_keys_reads_nulls():
    assert read_body({}) == Completion("r", None, "OK", None, None)


def test_parse_webhook_keeps_the_payload_error_beside_the_error():
    assert read_body({"payload_error": "p"}).error is None
    completion = read_body({"payload_error": "p", "error": "e"})
    assert (completion.error, completion.payload_error) == ("e", "p")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"request_id": "r"}',
        b'{"request_id": 7, "status": "OK"}',
        b'{"request_id": null, "status": "OK"}',
        b'{"request_id": "r", "status": "ok"}',
        b'{"request_id": "r", "status": "COMPLETED"}',
        b'{"request_id": "r", "status": "OK", "error": 7}',
        b'{"request_id": "r", "status": "OK", "gateway_request_id": 7}',
        b'{"request_id": "r", "status": "OK", "payload": ' + b"9" * 5000 + b"}",
        b'{"request_id": "r", "status": "OK", "payload": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"request_id": "r", "status": "OK", "payload": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    ],
)
def test_parse_webhook_of_a_wrong_body_is_refused_with_a_reason(body):
    with pytest.raises(InvalidDeliveryError) as caught:
        parse_webhook(body)
    assert 0 < len(str(caught.value)) < 500


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(body=st.binary() | st.text().map(str.encode))
def test_parse_webhook_of_any_bytes_parses_or_refuses(body):
    try:
        completion = parse_webhook(body)
    except InvalidDeliveryError:
        return
    assert completion.fal_request_id


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        (r'"a\u0000b"', "a\ufffdb"),
        (r'"a\ud800b"', "a?b"),
        (r'"\ud83c\udfac"', "🎬"),
        ("NaN", None),
        ("[Infinity, -Infinity, 1e999, -0.0]", [None, None, None, 0.0]),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("9" * 4000, int("9" * 4000)),
        ("1e-300", 1e-300),
        (r'{"a\u0000": {"\udfff": "\u0000"}}', {"a\ufffd": {"?": "\ufffd"}}),
        ("[" * 100 + "]" * 100, json.loads("[" * 100 + "]" * 100)),
    ],
)
def test_receive_delivery_stores_what_no_database_can_hold_made_storable(db, raw, stored):
    job = make_job(db, S.SUBMITTED)
    result = json.dumps(build_result())[:-1] + f', "odd": {raw}}}'
    body = f'{{"request_id": "{REQUEST_ID}", "status": "OK", "payload": {result}}}'.encode()
    completion = parse_webhook(body)
    receipt = receive_delivery(TOKEN, completion, body, db=db, grace=GRACE)
    assert receipt.verdict is Verdict.RECORDED
    assert read_job(db, job.id).result == {**build_result(), "odd": stored}
    assert list_deliveries(db, job)[0].body == body


@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize("name", ["request_id", "gateway_request_id", "error"])
def test_receive_delivery_stores_odd_text_anywhere(db, name, odd):
    job = make_job(db, S.SUBMISSION_UNKNOWN)
    receipt = deliver(db, ERROR, **{"payload": {"detail": odd, "error_type": odd}, name: odd})
    assert (receipt.verdict, receipt.job) == (Verdict.RECORDED, read_job(db, job.id))
    assert receipt.job.state is S.FAILED


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(-1e15, 1e15)
    | st.sampled_from([float("nan"), float("inf")])
    | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    # every example has a job and a token of its own in the same database
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(extra=json_values)
def test_receive_delivery_stores_any_payload(db, extra):
    with db.transaction() as connection:
        connection.execute(text("DELETE FROM jobs"))
    job = make_job(db, S.SUBMITTED)
    body = build_body(OK, payload={**build_result(), "extra": extra})
    completion = parse_webhook(body)
    receive_delivery(TOKEN, completion, body, db=db, grace=GRACE)
    after = read_job(db, job.id)
    assert (after.state, after.result) == (S.COMPLETED, completion.payload)

"""What a webhook tells, recorded once, for a job in any state."""

import json
from dataclasses import replace
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
from worker.fal.completion import parse_webhook
from worker.ground.errors import InvalidSignatureError
from worker.jobs import attempts, deliveries, table
from worker.jobs.states import Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Ending, Job, Outcome, Settlement, Verdict
from worker.stages.complete import receive_delivery, receive_hint
from worker.stages.endings import CANCELLED_CODE

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
SECOND_REQUEST = "the-second-request"


def build_body(content, **changes):
    known = {"request_id": REQUEST_ID, "gateway_request_id": REQUEST_ID, **content}
    return json.dumps(known | changes).encode()


def deliver(db, content, *, token=TOKEN, clock=FakeClock(LATER), **changes):  # noqa: B008 - stands
    body = build_body(content, **changes)
    return receive_delivery(
        token, parse_webhook(body), body, db=db, dispatch_timeout=GRACE, clock=clock
    )


def make_attempted(db, state) -> Job:
    """A job in `state` for which a POST was begun, whatever became of it."""
    if state is S.CANCELLED:
        job = move_job(db, make_job(db, S.SUBMITTED), JobEvent.JOB_CANCELLED)
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
# Given up, or not sent as far as anybody knew: what is paid is taken all the same.
GIVEN_UP = {S.QUEUED, S.FAILED, S.CANCELLED}
TARGETS = {
    "ok": dict.fromkeys(WAITING | GIVEN_UP, S.COMPLETED),
    "error": dict.fromkeys(WAITING, S.FAILED),
}
# What fal could not put into its message is asked for.
FETCHED = WAITING | GIVEN_UP
CONTENTS = {"ok": OK, "error": ERROR, "empty": EMPTY}
PAIRS = sorted(product(S, CONTENTS))


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("state", "kind"), [(state, kind) for state, kind in PAIRS if state in TARGETS.get(kind, {})]
)
def test_receive_delivery_moves_a_job_that_waits_for_it(db, state, kind):
    job = make_attempted(db, state)
    receipt = deliver(db, CONTENTS[kind])
    target = TARGETS[kind][state]
    assert (receipt.verdict, receipt.job.state) == (Verdict.RECORDED, target)
    assert receipt.job == read_job(db, job.id)
    assert receipt.doorbell == receipt.job.doorbell
    assert receipt.job.fence == job.fence
    event = list_events(db, job)[-1]
    assert (event.from_state, event.to_state, event.at) == (state, target, LATER)
    (delivery,) = list_deliveries(db, job)
    assert delivery.verdict == Verdict.RECORDED


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (state, kind)
        for state, kind in PAIRS
        if state not in TARGETS.get(kind, {}) and not (kind == "empty" and state in FETCHED)
    ],
)
def test_receive_delivery_of_no_use_is_kept_and_changes_nothing(db, state, kind):
    job = make_attempted(db, state)
    events = list_events(db, job)
    receipt = deliver(db, CONTENTS[kind])
    assert (receipt.verdict, receipt.job, receipt.doorbell) == (Verdict.KEPT, job, None)
    assert read_job(db, job.id) == job
    assert list_events(db, job) == events
    (delivery,) = list_deliveries(db, job)
    assert delivery.verdict == Verdict.KEPT


@pytest.mark.both_databases
@pytest.mark.parametrize("state", sorted(FETCHED))
def test_receive_delivery_without_payload_has_fal_asked_now(db, state):
    job = make_attempted(db, state)
    receipt = deliver(db, EMPTY)
    after = read_job(db, job.id)
    assert receipt.verdict is Verdict.KEPT
    assert receipt.doorbell == Doorbell(Step.RECONCILE, job.id)
    assert (after.state, after.due_at, after.result) == (S.SUBMITTED, LATER, None)
    assert (after.error_code, after.claimed_by, after.fence) == (None, None, job.fence)
    assert len(list_deliveries(db, job)) == 1
    reason = "submission_accepted" if state is S.SUBMITTED else "request_adopted"
    assert list_events(db, job)[-1].reason == reason
    assert (after.fal_request_id == REQUEST_ID) == (state is not S.SUBMITTED)
    assert read_attempts(db, job.id)[0].fal_request_id == REQUEST_ID


# what is written


@pytest.mark.both_databases
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


def test_receive_delivery_of_a_failure_writes_its_code_and_words(db):
    job = make_job(db, S.SUBMITTED)
    receipt = deliver(db, ERROR)
    assert receipt.job.error_code == "file_download_error"
    assert receipt.job.error_message == "video_url: cannot be read; too short"
    assert (receipt.job.failed_at, receipt.job.due_at) == (LATER, None)
    assert (receipt.job.result, receipt.job.doorbell) == (MODEL_ERROR, None)
    assert list_events(db, job)[-1].detail == receipt.job.error_message


@pytest.mark.parametrize("payload", [[], {"video": {"url": "ftp://x/y"}}])
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


@pytest.mark.both_databases
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


@pytest.mark.both_databases
def test_receive_delivery_of_two_at_once_records_one(db):
    job = make_job(db, S.SUBMITTED)
    receipts = call_together(lambda: deliver(db, OK), lambda: deliver(db, OK))
    verdicts = sorted(receipt.verdict for receipt in receipts)
    assert verdicts == [Verdict.DUPLICATE, Verdict.RECORDED]
    assert len(list_events(db, job)) == 4
    (delivery,) = list_deliveries(db, job)
    assert (delivery.times_received, delivery.verdict) == (2, Verdict.RECORDED)


@pytest.mark.both_databases
def test_receive_delivery_of_result_and_failure_at_once_ends_with_the_result(db):
    job = make_job(db, S.SUBMITTED)
    result, failure = call_together(lambda: deliver(db, OK), lambda: deliver(db, ERROR))
    assert result.verdict is Verdict.RECORDED
    after = read_job(db, job.id)
    assert (after.state, after.result, after.error_code) == (S.COMPLETED, OK["payload"], None)
    # whichever was first: a failure before the result had moved the job
    failed_first = failure.verdict is Verdict.RECORDED
    assert len(list_events(db, job)) == 4 + failed_first
    verdicts = {delivery.status: delivery.verdict for delivery in list_deliveries(db, job)}
    assert verdicts == {"OK": Verdict.RECORDED, "ERROR": failure.verdict}


@pytest.mark.parametrize("first", [OK, ERROR])
def test_receive_delivery_of_result_and_failure_in_any_order_ends_with_the_result(db, first):
    job = make_job(db, S.SUBMITTED)
    deliver(db, first)
    deliver(db, ERROR if first is OK else OK)
    after = read_job(db, job.id)
    assert (after.state, after.result) == (S.COMPLETED, OK["payload"])
    (attempt,) = read_attempts(db, job.id)
    assert (attempt.ending, attempt.extra_charge_at) == (Ending.OK, None)


# who may speak for which attempt


@pytest.mark.parametrize("token", ["", TOKEN[:-1], attempts.hash_token(TOKEN)])
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
        attempts.record_outcome(connection, attempt.id, accepted)
    with pytest.raises(InvalidSignatureError, match="another fal request"):
        deliver(db, OK)
    assert read_job(db, job.id) == job
    assert list_deliveries(db, job) == []


def test_receive_delivery_without_payload_of_an_end_that_is_known_asks_nobody(db):
    job = make_job(db, S.SUBMITTED)
    failed = deliver(db, ERROR).job
    receipt = deliver(db, EMPTY)
    assert (receipt.verdict, receipt.job, receipt.doorbell) == (Verdict.KEPT, failed, None)
    assert read_job(db, job.id) == failed


def test_receive_delivery_without_payload_of_an_earlier_attempt_is_counted(db):
    """It ran, so it was paid, while the job goes on with another."""
    job = make_second_attempt(db)
    receipt = deliver(db, EMPTY)
    assert (receipt.verdict, receipt.doorbell, read_job(db, job.id)) == (Verdict.KEPT, None, job)
    assert [one.extra_charge_at for one in read_attempts(db, job.id)] == [LATER, None]


def test_receive_delivery_after_an_adoption_refuses_other_requests(db):
    job = make_job(db, S.SUBMISSION_UNKNOWN)
    deliver(db, EMPTY)
    with pytest.raises(InvalidSignatureError, match="another fal request"):
        deliver(db, OK, request_id="another-request")
    after = read_job(db, job.id)
    assert (after.state, after.fal_request_id) == (S.SUBMITTED, REQUEST_ID)


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
    accepted = move_job(db, claimed, JobEvent.SUBMISSION_ACCEPTED)
    with db.transaction() as connection:
        newest = attempts.find_current_attempt(connection, accepted)
        assert newest is not None
        known = Settlement(Outcome.ACCEPTED, NOW, 200, SECOND_REQUEST)
        attempts.record_outcome(connection, newest.id, known)
    return accepted


@pytest.mark.both_databases
def test_receive_delivery_of_an_earlier_attempt_brings_its_result(db):
    job = make_second_attempt(db)
    receipt = deliver(db, OK)
    assert (receipt.verdict, receipt.job.state) == (Verdict.RECORDED, S.COMPLETED)
    assert receipt.job.fal_request_id == REQUEST_ID
    first, second = read_attempts(db, job.id)
    assert (first.fal_request_id, second.fal_request_id) == (REQUEST_ID, SECOND_REQUEST)
    assert (first.completed_at, first.ending, first.extra_charge_at) == (LATER, Ending.OK, None)
    # the later one is cancelled at fal, and counted until it is known to have cost nothing
    assert (second.completed_at, second.cancel_due_at) == (None, LATER)
    assert second.extra_charge_at == LATER


@pytest.mark.both_databases
def test_receive_delivery_of_a_second_result_counts_an_extra_charge(db):
    job = make_second_attempt(db)
    first = deliver(db, OK)
    second = deliver(db, OK, token=f"{TOKEN}-2", request_id=SECOND_REQUEST)
    assert (second.verdict, second.job) == (Verdict.KEPT, first.job)
    loser = read_attempts(db, job.id)[1]
    assert (loser.ending, loser.completed_at, loser.cancel_due_at) == (Ending.OK, LATER, None)
    assert loser.extra_charge_at == LATER


def test_receive_delivery_that_the_loser_was_cancelled_takes_the_charge_back(db):
    job = make_second_attempt(db)
    deliver(db, OK)
    gone = {"detail": "Request was cancelled", "error_type": CANCELLED_CODE}
    deliver(db, ERROR, payload=gone, token=f"{TOKEN}-2", request_id=SECOND_REQUEST)
    loser = read_attempts(db, job.id)[1]
    assert (loser.ending, loser.extra_charge_at) == (Ending.CANCELLED, None)
    assert loser.cancel_due_at is None
    assert read_job(db, job.id).state is S.COMPLETED


def test_receive_delivery_of_an_earlier_attempts_failure_leaves_the_later_one(db):
    job = make_second_attempt(db)
    assert deliver(db, ERROR).verdict is Verdict.KEPT
    assert read_job(db, job.id) == job
    later = deliver(db, OK, token=f"{TOKEN}-2", request_id=SECOND_REQUEST)
    assert (later.verdict, later.job.state) == (Verdict.RECORDED, S.COMPLETED)


# a wish to cancel


@pytest.mark.both_databases
def test_receive_delivery_of_a_cancellation_that_was_wished_cancels_the_job(db):
    job = move_job(db, make_job(db, S.SUBMITTED), JobEvent.CANCEL_REQUESTED)
    with db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET cancel_requested_at = enqueued_at"))
    gone = {"detail": "Request was cancelled", "error_type": CANCELLED_CODE}
    receipt = deliver(db, ERROR, payload=gone)
    assert (receipt.verdict, receipt.job.state) == (Verdict.RECORDED, S.CANCELLED)
    assert (receipt.job.cancelled_at, receipt.job.due_at) == (LATER, None)
    assert receipt.job.error_code is None
    assert read_attempts(db, job.id)[0].ending == Ending.CANCELLED


def test_receive_delivery_of_a_cancellation_by_others_fails_the_job(db):
    make_job(db, S.SUBMITTED)
    gone = {"detail": "Request was cancelled", "error_type": CANCELLED_CODE}
    receipt = deliver(db, ERROR, payload=gone)
    assert (receipt.job.state, receipt.job.error_code) == (S.FAILED, CANCELLED_CODE)


def test_receive_delivery_of_a_result_in_spite_of_the_wish_is_taken(db):
    job = make_job(db, S.SUBMITTED)
    with db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET cancel_requested_at = enqueued_at"))
    receipt = deliver(db, OK)
    assert (receipt.verdict, receipt.job.state) == (Verdict.RECORDED, S.COMPLETED)
    assert receipt.job.cancel_requested_at == NOW
    assert "in spite of the cancellation" in str(list_events(db, job)[-1].detail)


# deliveries that prove nothing


def hint(db, content, *, token=TOKEN, **changes):
    body = build_body(content, **changes)
    return receive_hint(token, parse_webhook(body), body, db=db, clock=FakeClock(LATER))


@pytest.mark.parametrize("state", list(S))
def test_receive_hint_believes_nothing_and_has_fal_asked(db, state):
    job = make_attempted(db, state)
    events = list_events(db, job)
    receipt = hint(db, OK)
    waits = state in {S.SUBMITTED, S.SUBMISSION_UNKNOWN}
    done = state in {S.COMPLETED, S.ARCHIVING, S.ARCHIVED}
    after = replace(job, due_at=LATER) if waits else job
    assert read_job(db, job.id) == after
    assert receipt.verdict is Verdict.HINT
    assert receipt.doorbell == (None if done else Doorbell(Step.RECONCILE, job.id))
    assert list_events(db, job) == events
    assert read_attempts(db, job.id)[0].fal_request_id is None
    (delivery,) = list_deliveries(db, job)
    assert (delivery.verdict, delivery.fal_request_id) == (Verdict.HINT, REQUEST_ID)


@pytest.mark.parametrize("token", ["", attempts.hash_token(TOKEN)])
def test_receive_hint_with_an_unknown_token_is_refused(db, token):
    job = make_job(db, S.SUBMITTED)
    with pytest.raises(InvalidSignatureError, match="token"):
        hint(db, OK, token=token)
    assert (read_job(db, job.id), list_deliveries(db, job)) == (job, [])


def test_receive_hint_of_another_request_than_the_attempts_is_refused(db):
    job = make_job(db, S.SUBMISSION_UNKNOWN)
    deliver(db, EMPTY)
    with pytest.raises(InvalidSignatureError, match="another fal request"):
        hint(db, OK, request_id="another-request")
    assert len(list_deliveries(db, job)) == 1


@pytest.mark.both_databases
def test_receive_delivery_after_its_own_hint_is_recorded(db):
    job = make_job(db, S.SUBMISSION_UNKNOWN)
    hint(db, OK)
    receipt = deliver(db, OK)
    assert (receipt.verdict, receipt.job.state) == (Verdict.RECORDED, S.COMPLETED)
    (delivery,) = list_deliveries(db, job)
    assert (delivery.times_received, delivery.verdict) == (2, Verdict.RECORDED)
    assert deliver(db, OK).verdict is Verdict.DUPLICATE


def test_receive_hint_after_its_own_proof_takes_nothing_back(db):
    job = make_job(db, S.SUBMITTED)
    recorded = deliver(db, OK).job
    receipt = hint(db, OK)
    assert (receipt.job, receipt.doorbell) == (recorded, None)
    (delivery,) = list_deliveries(db, job)
    assert (delivery.times_received, delivery.verdict) == (2, Verdict.RECORDED)


# bodies that are odd but genuine


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        (r'"a\u0000b"', "a\ufffdb"),
        (r'"a\ud800b"', "a?b"),
        (r'"\ud83c\udfac"', "🎬"),
        ("[NaN, -Infinity, 1e999, -0.0, 1e-300]", [None, None, None, 0.0, 1e-300]),
        ("9" * 4000, int("9" * 4000)),
        (r'{"a\u0000": {"\udfff": "\u0000"}}', {"a\ufffd": {"?": "\ufffd"}}),
        ("[" * 100 + "]" * 100, json.loads("[" * 100 + "]" * 100)),
    ],
)
def test_receive_delivery_stores_what_no_database_can_hold_made_storable(db, raw, stored):
    job = make_job(db, S.SUBMITTED)
    result = json.dumps(build_result())[:-1] + f', "odd": {raw}}}'
    body = f'{{"request_id": "{REQUEST_ID}", "status": "OK", "payload": {result}}}'.encode()
    completion = parse_webhook(body)
    receipt = receive_delivery(TOKEN, completion, body, db=db, dispatch_timeout=GRACE)
    assert receipt.verdict is Verdict.RECORDED
    assert read_job(db, job.id).result == {**build_result(), "odd": stored}
    assert list_deliveries(db, job)[0].body == body


@pytest.mark.both_databases
@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b"])
def test_receive_delivery_stores_odd_text_anywhere(db, odd):
    job = make_job(db, S.SUBMISSION_UNKNOWN)
    texts = dict.fromkeys(("request_id", "gateway_request_id", "error"), odd)
    receipt = deliver(db, ERROR, payload={"detail": odd, "error_type": odd}, **texts)
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


@pytest.mark.both_databases
@settings(
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
    receive_delivery(TOKEN, completion, body, db=db, dispatch_timeout=GRACE)
    after = read_job(db, job.id)
    assert (after.state, after.result) == (S.COMPLETED, completion.payload)

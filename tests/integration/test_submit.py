"""One paid POST per submission, whatever the network does to it."""

import json
import re
import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from threading import Event
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from tests.harness.clock import FakeClock
from tests.harness.jobs import ENDPOINT, LEASE, NOW, build_result, read_attempts, read_job
from tests.harness.stages import submit_job
from tests.harness.together import call_together
from tests.harness.web import break_off, hang, run_server, send_body, send_json
from worker.fal import http as fal_http
from worker.fal.completion import Completion
from worker.fal.options import RequestOptions
from worker.fal.submit import QueueClient
from worker.jobs import admission, table
from worker.jobs.admission import Caps
from worker.jobs.states import ENDED, BlockedBy, JobState, PauseCause
from worker.jobs.values import Outcome, Verdict
from worker.stages.admit import AdmissionPolicy
from worker.stages.complete import receive_delivery
from worker.stages.enqueue import enqueue_job, parse_job_request
from worker.stages.submit import SubmitPolicy, begin_submission

KEY = "key-id:key-secret"
REQUEST_ID = "7f3c1d0e-0000-4000-8000-00000000aaaa"
WEBHOOK_BASE = "https://hooks.example.com/fal"
TERMS = SubmitPolicy(
    worker="tester:1",
    webhook_base_url=WEBHOOK_BASE,
    options=RequestOptions(start_timeout=timedelta(hours=1), store_io=True),
    lease=LEASE,
    poll_after=timedelta(minutes=2),
    retry_for=timedelta(days=1),
    probe_after=timedelta(minutes=1),
    admission=AdmissionPolicy(Caps(1000), ENDPOINT),
)
FIELDS = {"prompt": "on it göes 🎬", "video_url": "https://example.com/a.mp4"}


@pytest.fixture
def fal():
    with run_server(send_acceptance) as server:
        yield server


@pytest.fixture
def job(db):
    return enqueue_job(
        parse_job_request(FIELDS), db=db, endpoint=ENDPOINT, dispatch_timeout=LEASE
    ).job


@pytest.fixture
def submit(db, fal):
    """Submit a job to `fal`, or to another place."""
    clients = []

    def run(job, *, url=None, clock=FakeClock(), **policy):  # noqa: B008 - never moved
        queue = QueueClient(url or fal.url, SecretStr(KEY))
        clients.append(queue)
        return submit_job(job, db=db, queue=queue, policy=replace(TERMS, **policy), clock=clock)

    yield run
    for client in clients:
        client.close()


def send_acceptance(handler):
    base = f"{handler.server.url}/fal-ai/ltx-2.3-22b/requests/{REQUEST_ID}"
    urls = {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}
    send_json({"status": "IN_QUEUE", "request_id": REQUEST_ID, "queue_position": 0, **urls})(
        handler
    )


def read_token(asked):
    (url,) = asked.query["fal_webhook"]
    base, _, token = url.rpartition("/webhooks/fal/")
    assert base == WEBHOOK_BASE
    return token


def deliver(database, token, **changes):
    known: dict[str, Any] = {
        "fal_request_id": REQUEST_ID,
        "gateway_request_id": None,
        "status": "OK",
        "payload": build_result(),
        "error": None,
    }
    completion = Completion(**(known | changes))
    body = json.dumps(changes).encode()
    clock = FakeClock(NOW)
    return receive_delivery(
        token, completion, body, db=database, dispatch_timeout=LEASE, clock=clock
    )


def list_reasons(db, job):
    with db.reading() as connection:
        return [event.reason for event in table.list_events(connection, job.id)]


# what fal accepts


@pytest.mark.both_databases
def test_submit_job_accepted_waits_for_its_webhook(db, fal, job, submit):
    moved = submit(job)
    assert moved == read_job(db, job.id)
    assert (moved.state, moved.fence, moved.claimed_by) == (JobState.SUBMITTED, 1, None)
    assert (moved.fal_request_id, moved.submitted_at) == (REQUEST_ID, NOW)
    assert NOW + TERMS.poll_after * 0.8 <= moved.due_at <= NOW + TERMS.poll_after * 1.2
    (attempt,) = read_attempts(db, job.id)
    base = f"{fal.url}/fal-ai/ltx-2.3-22b/requests/{REQUEST_ID}"
    assert (attempt.outcome, attempt.fal_request_id) == (Outcome.ACCEPTED, REQUEST_ID)
    assert (attempt.status_url, attempt.response_url) == (f"{base}/status", base)
    assert (attempt.cancel_url, attempt.ended_at) == (f"{base}/cancel", NOW)
    assert list_reasons(db, job) == ["enqueued", "submission_claimed", "submission_accepted"]


def test_submit_job_sends_exactly_the_input_that_was_stored(db, fal, job, submit):
    submit(job)
    (asked,) = fal.asked
    (attempt,) = read_attempts(db, job.id)
    texts = {
        json.dumps(sent, sort_keys=True)
        for sent in (json.loads(asked.body), read_job(db, job.id).input, attempt.input)
    }
    assert len(texts) == 1
    assert len(attempt.input) == 39
    assert (asked.method, asked.path) == ("POST", f"/{ENDPOINT}")


def test_submit_job_gives_the_webhook_a_token_that_the_database_cannot_tell(db, fal, job, submit):
    submit(job)
    token = read_token(fal.asked[0])
    assert re.fullmatch(r"[\w-]{43}", token)
    (attempt,) = read_attempts(db, job.id)
    assert attempt.token_hash == sha256(token.encode()).hexdigest()
    assert token not in dump_database(db)


def dump_database(db):
    with db.reading() as connection:
        tables = ("jobs", "attempts", "deliveries", "events")
        return "\n".join(
            str(row) for name in tables for row in connection.execute(text(f"SELECT * FROM {name}"))
        )


@pytest.mark.both_databases
def test_submit_job_commits_the_attempt_before_it_posts(db, fal, job, submit):
    seen = []

    def look(handler):
        seen.append((read_job(db, job.id), read_attempts(db, job.id)))
        send_acceptance(handler)

    fal.answer = look
    submit(job)
    ((claimed, (attempt,)),) = seen
    assert (claimed.state, claimed.claimed_by) == (JobState.SUBMITTING, TERMS.worker)
    assert (claimed.fence, claimed.due_at) == (1, NOW + LEASE)
    assert (attempt.number, attempt.fence, attempt.outcome) == (1, 1, None)
    assert (attempt.started_at, attempt.ended_at) == (NOW, None)
    assert attempt.input == json.loads(fal.asked[0].body)


# everything else


@dataclass(frozen=True)
class Case:
    """A reply, and what it has to mean."""

    answer: Any
    state: JobState
    outcome: Outcome
    http_status: int | None = None
    code: str | None = None
    least: timedelta | None = None
    jitter: timedelta = timedelta()
    blocked_by: BlockedBy | None = None
    pause: tuple[PauseCause, timedelta] | None = None


def lost(answer, http_status=None):
    return Case(
        answer,
        JobState.SUBMISSION_UNKNOWN,
        Outcome.UNKNOWN,
        http_status,
        # fal's listing is searched at once
        least=timedelta(),
    )


def rejected(answer, http_status, code):
    return Case(answer, JobState.FAILED, Outcome.REJECTED, http_status, code)


def postponed(answer, http_status, code, **waits):
    """Blocked for at least `least`, and up to `jitter` more."""
    waits = {"blocked_by": BlockedBy.RETRY, "least": timedelta(), **waits}
    return Case(answer, JobState.QUEUED, Outcome.POSTPONED, http_status, code, **waits)


def paused(answer, http_status, code, cause, seconds):
    """The account waits, and the job waits with it: nothing of its own holds it up."""
    pause = cause, timedelta(seconds=seconds)
    return postponed(answer, http_status, code, blocked_by=None, pause=pause)


MODEL_ERROR = {
    "detail": [{"loc": ["body", "fps"], "msg": "too big", "type": "less_than_equal", "ctx": {}}]
}
LOCKED = {"detail": "User is locked. Reason: Exhausted balance."}
BUSY = {"detail": "Too many", "error_type": "concurrent_requests_limit"}
INGRESS = b"<html><center>nginx</center></html>"
# What each reply means: `unit/test_submit.py`. Here one for each way that a job may go.
CASES = {
    "500 in fal's shape": lost(
        send_json({"detail": "x", "error_type": "internal_error"}, 500), 500
    ),
    "200 that is cut short": lost(break_off(b'{"request_id": "' + REQUEST_ID.encode() + b'"}')),
    "422 in fal's shape": rejected(send_json(MODEL_ERROR, 422), 422, "less_than_equal"),
    "403": paused(send_json(LOCKED, 403), 403, "fal_http_403", PauseCause.ACCOUNT, 60),
    "429 with a time": paused(
        *(send_json(BUSY, 429, Retry_After="17"), 429, "concurrent_requests_limit"),
        *(PauseCause.BUSY, 17),
    ),
    "503 of fal's front door": postponed(
        send_body(INGRESS, 503), 503, "fal_unavailable", jitter=timedelta(seconds=2)
    ),
}


@pytest.mark.both_databases
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_submit_job_posts_once_and_rules_by_the_reply(db, fal, job, submit, case):
    fal.answer = case.answer
    moved = submit(job)
    assert len(fal.asked) == 1
    assert moved == read_job(db, job.id)
    (attempt,) = read_attempts(db, job.id)
    assert (moved.state, attempt.outcome) == (case.state, case.outcome)
    assert (attempt.http_status, attempt.error_code) == (case.http_status, case.code)
    assert (attempt.ended_at, attempt.fal_request_id) == (NOW, None)
    assert attempt.error_message
    check_moved(moved, case, attempt.error_message)
    with db.reading() as connection:
        pauses = [one for one in admission.list_pauses(connection) if not one.is_counting]
    assert [(one.cause, one.until) for one in pauses] == list_pauses(case)


def list_pauses(case):
    if case.pause is None:
        return []
    cause, duration = case.pause
    return [(cause, NOW + duration)]


def check_moved(moved, case, message):
    if case.least is None:
        assert moved.due_at is None
    else:
        assert case.least <= moved.due_at - NOW <= case.least + case.jitter
    assert (moved.submitted_at, moved.claimed_by) == (None, None)
    if case.state in ENDED:
        assert (moved.error_code, moved.error_message) == (case.code, message)
        assert (moved.failed_at, moved.blocked_reason) == (NOW, None)
        return
    assert (moved.error_code, moved.error_message) == (None, None)
    assert moved.blocked_by == case.blocked_by
    if case.pause is not None:
        assert moved.blocked_reason is None
    else:
        assert message in moved.blocked_reason
        assert (case.code or "fal may or may not have it") in moved.blocked_reason


def test_submit_job_without_a_connection_is_postponed(db, job, submit):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        moved = submit(job, url=f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert moved.state is JobState.QUEUED
    assert timedelta() <= moved.due_at - NOW <= timedelta(seconds=2)
    assert moved.blocked_reason.startswith("fal_unreachable: ConnectError")
    assert read_attempts(db, job.id)[0].outcome == Outcome.POSTPONED


def test_submit_job_without_a_reply_in_time_is_unknown(monkeypatch, db, fal, job, submit):
    monkeypatch.setattr(fal_http, "TIMEOUT", httpx.Timeout(0.2))
    fal.answer = hang
    moved = submit(job)
    assert (moved.state, len(fal.asked)) == (JobState.SUBMISSION_UNKNOWN, 1)
    assert "ReadTimeout" in str(read_attempts(db, job.id)[0].error_message)


@pytest.mark.both_databases
@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b"])
def test_submit_job_survives_replies_that_no_database_can_hold(db, fal, job, submit, odd):
    fal.answer = send_json({"detail": odd, "error_type": odd}, 422)
    assert submit(job).state is JobState.FAILED
    assert read_attempts(db, job.id)[0].outcome == Outcome.REJECTED


@pytest.mark.both_databases
@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b"])
def test_submit_job_survives_an_id_that_no_database_can_hold(db, fal, job, submit, odd):
    fal.answer = send_json({"request_id": odd, "status_url": f"{fal.url}/{odd}"})
    assert submit(job).state in {JobState.SUBMITTED, JobState.SUBMISSION_UNKNOWN}
    assert read_attempts(db, job.id)[0].outcome in {Outcome.ACCEPTED, Outcome.UNKNOWN}


# doorbells and webhooks that come when they like


def test_submit_job_twice_posts_once(fal, job, submit):
    assert submit(job).state is JobState.SUBMITTED
    assert submit(job) is None
    assert len(fal.asked) == 1


@pytest.mark.both_databases
def test_submit_job_at_once_from_two_workers_posts_once(fal, job, submit):
    moved = call_together(*[lambda: submit(job)] * 2)
    assert [one.state for one in moved if one] == [JobState.SUBMITTED]
    assert len(fal.asked) == 1


@pytest.mark.parametrize("answer", [hang, send_body(b"", 500)])
def test_submit_job_again_after_an_unknown_outcome_posts_no_more(
    monkeypatch, fal, job, submit, answer
):
    monkeypatch.setattr(fal_http, "TIMEOUT", httpx.Timeout(0.2))
    fal.answer = answer
    submit(job)
    fal.answer = send_acceptance
    late = FakeClock(NOW + timedelta(days=1))
    assert submit(job, clock=late) is None
    assert len(fal.asked) == 1


@pytest.mark.both_databases
def test_submit_job_of_a_postponed_job_waits_for_its_time(db, fal, job, submit):
    fal.answer = send_json(BUSY, 429, Retry_After="17")
    submit(job)
    fal.answer = send_acceptance
    clock = FakeClock(NOW + timedelta(seconds=16))
    assert submit(job, clock=clock) is None
    clock.move(timedelta(seconds=1 + 20))
    assert submit(job, clock=clock).state is JobState.SUBMITTED
    assert [attempt.number for attempt in read_attempts(db, job.id)] == [1, 2]
    tokens = {read_token(asked) for asked in fal.asked}
    assert len(tokens) == 2


@pytest.mark.both_databases
def test_submit_job_after_a_crash_before_the_reply_posts_no_more(db, fal, job, submit):
    assert begin_submission(db=db, policy=TERMS, clock=FakeClock())
    late = FakeClock(NOW + timedelta(days=1))
    assert submit(job, clock=late) is None
    assert fal.asked == []


def test_begin_submission_of_an_unknown_job_gives_none(db):
    assert begin_submission(db=db, policy=TERMS, clock=FakeClock()) is None


@pytest.mark.both_databases
def test_submit_job_overtaken_by_its_webhook_ends_completed(db, fal, job, submit):
    def overtake(handler):
        assert deliver(db, read_token(handler.asked)).verdict is Verdict.RECORDED
        send_acceptance(handler)

    fal.answer = overtake
    assert submit(job) is None
    after = read_job(db, job.id)
    assert (after.state, after.fal_request_id) == (JobState.COMPLETED, REQUEST_ID)
    assert (after.result, after.submitted_at) == (build_result(), NOW)
    (attempt,) = read_attempts(db, job.id)
    assert (attempt.outcome, attempt.fal_request_id) == (Outcome.ACCEPTED, REQUEST_ID)
    assert attempt.status_url == f"{fal.url}/fal-ai/ltx-2.3-22b/requests/{REQUEST_ID}/status"
    assert list_reasons(db, job) == ["enqueued", "submission_claimed", "result_arrived"]


@pytest.mark.parametrize("answer", [break_off(), send_json({"detail": "no"}, 400)])
def test_submit_job_overtaken_by_its_webhook_stands_whatever_the_reply(
    db, fal, job, submit, answer
):
    def overtake(handler):
        deliver(db, read_token(handler.asked))
        answer(handler)

    fal.answer = overtake
    assert submit(job) is None
    after = read_job(db, job.id)
    assert (after.state, after.blocked_reason) == (JobState.COMPLETED, None)
    (attempt,) = read_attempts(db, job.id)
    assert attempt.fal_request_id == REQUEST_ID
    assert attempt.outcome is not None


def test_submit_job_overtaken_by_a_failure_ends_failed(db, fal, job, submit):
    def overtake(handler):
        deliver(db, read_token(handler.asked), status="ERROR", payload=MODEL_ERROR)
        send_acceptance(handler)

    fal.answer = overtake
    assert submit(job) is None
    after = read_job(db, job.id)
    assert (after.state, after.error_code) == (JobState.FAILED, "less_than_equal")


def test_submit_job_whose_webhook_brings_no_result_stays_submitted(db, fal, job, submit):
    def overtake(handler):
        assert deliver(db, read_token(handler.asked), payload=None).verdict is Verdict.KEPT
        send_acceptance(handler)

    fal.answer = overtake
    assert submit(job) is None
    after = read_job(db, job.id)
    # it is known to have ended, so fal is asked for the result without any wait
    assert (after.state, after.due_at) == (JobState.SUBMITTED, NOW)
    assert after.fal_request_id == REQUEST_ID
    assert read_attempts(db, job.id)[0].fal_request_id == REQUEST_ID


@pytest.mark.both_databases
def test_submit_job_while_its_webhook_arrives_ends_completed(db, fal, job, submit):
    """The reply is recorded at the same time as the webhook; either may be first."""
    arrived = Event()

    def deliver_when_asked():
        assert arrived.wait(timeout=10)
        return deliver(db, read_token(fal.asked[0])).verdict

    def answer(handler):
        arrived.set()
        send_acceptance(handler)

    fal.answer = answer
    _, verdict = call_together(lambda: submit(job), deliver_when_asked)
    assert verdict is Verdict.RECORDED
    assert read_job(db, job.id).state is JobState.COMPLETED
    (attempt,) = read_attempts(db, job.id)
    assert (attempt.outcome, attempt.fal_request_id) == (Outcome.ACCEPTED, REQUEST_ID)

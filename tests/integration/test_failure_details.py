"""Why fal failed a job: stored field by field, told in words, and gone once the job goes on."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import JsonValue, SecretStr

from tests.harness.clock import FakeClock
from tests.harness.jobs import ENDPOINT, LEASE, REQUEST_ID, TOKEN, make_job, read_attempts, read_job
from tests.harness.stages import submit_job
from tests.harness.web import run_server, send_json
from worker.cli import output
from worker.fal.completion import Completion
from worker.fal.errors import ERROR_TYPES, MAX_DETAILS, Charge, Retryable
from worker.fal.options import RequestOptions
from worker.fal.submit import QueueClient
from worker.ground.db import Database
from worker.jobs.admission import Caps
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.ops.timeline import (
    describe_explanation,
    explain_failure,
    fails_again,
    read_story,
    will_fail_again,
)
from worker.stages.admit import AdmissionPolicy
from worker.stages.complete import receive_delivery
from worker.stages.redrive import redrive_job
from worker.stages.submit import SubmitPolicy

TOO_MANY: dict[str, JsonValue] = {
    "loc": ["body", "num_frames"],
    "msg": "Input should be less than or equal to 481",
    "type": "less_than_equal",
    "ctx": {"le": 481},
    "input": 500,
}
TOO_WIDE: dict[str, JsonValue] = {
    "loc": ["body", "video_size", "width"],
    "msg": "Input should be greater than or equal to 1",
    "type": "greater_than_equal",
    "input": 0,
}
REFUSAL: JsonValue = {"detail": [TOO_MANY, TOO_WIDE]}


def fail(db: Database, payload: JsonValue, *, retryable: bool | None = None) -> Job:
    """A job whose run fal has failed, as its webhook says."""
    job = make_job(db, JobState.SUBMITTED)
    completion = Completion(REQUEST_ID, None, "ERROR", payload, "told", retryable=retryable)
    body = json.dumps(payload).encode()
    receive_delivery(TOKEN, completion, body, db=db, dispatch_timeout=LEASE, clock=FakeClock())
    failed = read_job(db, job.id)
    assert failed.state is JobState.FAILED
    return failed


def explain(db: Database, job: Job) -> dict[str, str] | None:
    explanation = explain_failure(job, read_attempts(db, job.id))
    return None if explanation is None else describe_explanation(explanation, job)


def test_failure_of_several_fields_stores_each(db) -> None:
    job = fail(db, REFUSAL)
    assert job.error_code == "less_than_equal"
    assert job.error_details == [TOO_MANY, TOO_WIDE]
    assert str(job.error_message).startswith("num_frames: Input should be less than")


def test_failure_of_the_platform_has_no_fields(db) -> None:
    job = fail(db, {"detail": "Runner went away", "error_type": "runner_disconnected"})
    assert (job.error_code, job.error_details) == ("runner_disconnected", None)


def test_failure_of_countless_fields_stores_some(db) -> None:
    job = fail(db, {"detail": [TOO_MANY | {"input": "x" * 999} for _ in range(500)]})
    assert job.error_details is not None
    assert len(job.error_details) == MAX_DETAILS
    assert all("input" not in detail for detail in job.error_details)


def test_submission_refused_for_its_fields_stores_each(db) -> None:
    job = make_job(db)
    policy = SubmitPolicy(
        "w:1",
        "https://h.test",
        RequestOptions(),
        LEASE,
        LEASE,
        LEASE,
        LEASE,
        admission=AdmissionPolicy(Caps(1000), ENDPOINT),
    )
    with run_server(send_json(REFUSAL, 422)) as fal:
        queue = QueueClient(fal.url, SecretStr("key"))
        submit_job(job, db=db, queue=queue, policy=policy, clock=FakeClock())
        queue.close()
    failed = read_job(db, job.id)
    assert (failed.state, failed.error_code) == (JobState.FAILED, "less_than_equal")
    assert failed.error_details == [TOO_MANY, TOO_WIDE]


def test_failed_job_that_goes_on_keeps_no_details(db) -> None:
    job = fail(db, REFUSAL)
    dispatch_timeout = timedelta(seconds=60)
    again = redrive_job(
        job.id, db=db, pay_again=True, dispatch_timeout=dispatch_timeout, clock=FakeClock()
    )
    assert (again.state, again.error_code, again.error_details) == (JobState.QUEUED, None, None)


@pytest.mark.parametrize(
    ("retryable", "told"),
    [(None, False), (True, "trying again can help"), (False, "trying again changes nothing")],
)
def test_event_says_what_fals_header_says_of_another_try(db, retryable, told) -> None:
    body: JsonValue = {
        "detail": [{"loc": ["body"], "msg": "broke", "type": "internal_server_error"}]
    }
    job = fail(db, body, retryable=retryable)
    detail = str(read_story(job.id, db=db).events[-1].detail)
    assert detail.startswith("broke")
    assert (told in detail) if told else detail == "broke"


@pytest.mark.both_databases
@pytest.mark.parametrize("error_type", ["internal_server_error", None], ids=["type", "no-type"])
@pytest.mark.parametrize("retryable", [None, True, False])
def test_header_of_a_failure_decides_whether_another_input_is_advised(
    db, error_type, retryable
) -> None:
    body: JsonValue = {"detail": "broke"} | ({"error_type": error_type} if error_type else {})
    story = read_story(fail(db, body, retryable=retryable).id, db=db)
    assert [one.retryable for one in story.attempts] == [retryable]
    assert story.wait.may_do.startswith("enqueue another input") is (retryable is False)
    assert fails_again(story.job, db=db) is (retryable is False)
    told = explain(db, story.job)
    assert (told is None) is (error_type is None)
    if told is not None:
        assert told["again"].startswith("a new run fails in the same way") is (retryable is False)
        assert ("fal does not say" in told["again"]) is (retryable is None)


def test_webhook_that_comes_after_the_poll_leaves_what_its_header_said(db) -> None:
    job = fail(db, {"detail": "broke"}, retryable=False)
    again = Completion(REQUEST_ID, None, "ERROR", {"detail": "broke"}, "told")
    receive_delivery(TOKEN, again, b"another", db=db, dispatch_timeout=LEASE, clock=FakeClock())
    assert [one.retryable for one in read_attempts(db, job.id)] == [False]


def test_header_of_an_earlier_attempt_says_nothing_of_the_newest(db) -> None:
    job = fail(db, {"detail": "broke"}, retryable=False)
    redrive_job(job.id, db=db, pay_again=True, dispatch_timeout=LEASE, clock=FakeClock())
    again = replace(job, error_code="fal_error")
    tried = read_attempts(db, job.id)
    newest = replace(tried[-1], number=2, retryable=None, ending="failed")
    assert not will_fail_again(again, [*tried, newest])
    assert will_fail_again(again, tried)


def test_cancelled_run_does_not_fail_again_whatever_its_header_says(db) -> None:
    job = fail(db, {"detail": "x", "error_type": "client_cancelled"}, retryable=False)
    assert not fails_again(job, db=db)


def test_failure_of_known_type_is_told_in_words(db) -> None:
    name = "content_policy_violation"
    told = explain(db, fail(db, {"detail": [TOO_MANY | {"type": name}]}))
    assert told is not None
    assert told["class"] == ERROR_TYPES[name].error_class
    assert told["means"] == ERROR_TYPES[name].sentence
    assert ("redrive" in told["again"]) is (ERROR_TYPES[name].retryable is not Retryable.NO)
    assert told["charge"].startswith("not") is (ERROR_TYPES[name].charge is Charge.NO)


def test_failure_of_unknown_type_keeps_the_name_and_says_so(db) -> None:
    job = fail(db, {"detail": "no", "error_type": "a_type_of_tomorrow"})
    told = explain(db, job)
    assert job.error_code == "a_type_of_tomorrow"
    assert told is not None
    assert "reason that this version does not know" in told["means"]
    assert (told["class"], "redrive" in told["again"]) == ("platform", True)


@pytest.mark.parametrize("payload", [None, {"detail": "no"}])
def test_failure_without_a_type_is_left_to_its_message(db, payload) -> None:
    assert explain(db, fail(db, payload)) is None


def test_live_job_has_nothing_to_explain(db) -> None:
    assert explain(db, make_job(db, JobState.SUBMITTED)) is None


def test_show_prints_each_field(db, capsys) -> None:
    job = fail(db, {"detail": [TOO_MANY, TOO_WIDE | {"msg": "[red]markup[/red]"}]})
    output.print_story(read_story(job.id, db=db))
    printed = capsys.readouterr().out
    assert "The model does not take this input." in printed
    assert "num_frames: Input should be less than or equal to 481 (less_than_equal)" in printed
    assert "video_size.width: [red]markup[/red] (greater_than_equal)" in printed
    assert "a new run fails in the same way" in printed
    assert "possibly charged by fal" in printed


def test_show_as_json_has_each_field(db, capsys) -> None:
    job = fail(db, REFUSAL)
    output.print_json(output.story_to_json(read_story(job.id, db=db)))
    shown = json.loads(capsys.readouterr().out)
    assert shown["error_details"] == [TOO_MANY, TOO_WIDE]
    assert shown["explanation"] == {
        "error_class": "input",
        "sentence": "The model does not take this input.",
        "retryable": "no",
        "charge": "possible",
        "fields": [
            {
                "field": "num_frames",
                "error_type": "less_than_equal",
                "message": "Input should be less than or equal to 481",
            },
            {
                "field": "video_size.width",
                "error_type": "greater_than_equal",
                "message": "Input should be greater than or equal to 1",
            },
        ],
    }

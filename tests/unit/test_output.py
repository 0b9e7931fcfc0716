"""Jobs and stories for people and for programs, whatever stands in their rows."""

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from tests.harness.jobs import NOW, REQUEST_ID
from tests.harness.values import ATTEMPT, DELIVERY, EVENT, JOB, JOB_ID, MARKUP, MOVED
from worker.cli import output
from worker.ground.errors import InvalidInputError, Violation
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Delivery, Event, Job
from worker.ops.timeline import Story, explain_wait, list_times_in_state


def make_story(
    job: Job, attempts: list[Attempt], deliveries: list[Delivery], events: list[Event]
) -> Story:
    wait = explain_wait(job, attempts, None, NOW)
    stays = list_times_in_state(events, NOW)
    return Story(job, attempts, deliveries, events, stays, wait, [])


STORY = make_story(JOB, [ATTEMPT], [DELIVERY], [EVENT, MOVED])


def read_out(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err == ""
    return str(captured.out)


def test_print_json_is_one_line_of_values_as_stored(capsys) -> None:
    output.print_json(output.story_to_json(STORY))

    out = read_out(capsys)
    assert out.count("\n") == 1
    story = json.loads(out)
    assert story["id"] == str(JOB_ID)
    assert story["state"] == "submitted"
    assert datetime.fromisoformat(story["enqueued_at"]) == NOW
    assert story["input"]["prompt"] == MARKUP
    assert story["attempts"][0]["error_message"] == MARKUP
    assert "body" not in story["deliveries"][0]
    assert story["deliveries"][0]["body_sha256"] == "0" * 64
    assert [event["to_state"] for event in story["events"]] == ["queued", "failed"]
    assert story["events"][0]["from_state"] is None


def test_print_json_of_a_job_has_each_column(capsys) -> None:
    output.print_json(JOB)
    assert json.loads(read_out(capsys)).keys() == {one.name for one in fields(Job)}


def test_print_json_of_value_without_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        output.print_json({"value": object()})


@pytest.mark.parametrize("columns", ["40", "200"])
def test_job_table_shows_each_job_whole_on_a_line_however_narrow(
    capsys, monkeypatch, columns
) -> None:
    """Ids are there to be copied: `extend-video list | grep failed`."""
    monkeypatch.setenv("COLUMNS", columns)
    jobs = [replace(JOB, id=uuid4(), state=state) for state in JobState]
    output.print_wide(output.build_job_table(jobs, {}))

    lines = read_out(capsys).splitlines()
    for job in jobs:
        (line,) = [line for line in lines if str(job.id) in line]
        assert job.state.value in line
        assert MARKUP in line


def test_job_table_of_none_prints_heading(capsys) -> None:
    output.print_wide(output.build_job_table([], {}))
    assert read_out(capsys).split()[:2] == ["id", "state"]


def test_job_table_says_why_by_code_before_reason(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    failed = replace(JOB, state=JobState.FAILED, due_at=None, error_code="media_refused")
    output.print_wide(output.build_job_table([failed], {}))
    row = read_out(capsys).splitlines()[1]
    assert "media_refused" in row
    assert MARKUP not in row.partition("media_refused")[2]


def test_print_story_tells_all_of_it(capsys) -> None:
    twice = replace(DELIVERY, times_received=2)
    accepted = replace(ATTEMPT, number=2, outcome="accepted", fal_request_id=REQUEST_ID)
    paid_twice = replace(accepted, number=3, ending="ok", extra_charge_at=NOW)
    tried = [ATTEMPT, accepted, paid_twice]
    output.print_story(make_story(JOB, tried, [DELIVERY, twice], [EVENT, MOVED]))

    out = read_out(capsys)
    lines = out.splitlines()
    assert f"  id              {JOB_ID}" in lines
    assert any(MARKUP in line and "blocked_reason" in line for line in lines)
    assert "idempotency_key" not in out, "a column without value is left out"
    assert f"  1  2026-11-23 12:00:00  no outcome yet  {MARKUP}" in lines
    assert f"  2  2026-11-23 12:00:00  accepted  {REQUEST_ID}" in lines
    assert f"  3  2026-11-23 12:00:00  accepted  {REQUEST_ID}  ended ok  extra charge" in lines
    assert "  2026-11-23 12:00:00  OK  recorded  received once" in lines
    assert "  2026-11-23 12:00:00  OK  recorded  received 2 times" in lines
    assert "  12:00:00.000  +  0.000 s  queued  enqueued" in lines
    moved = f"  12:00:01.500  +  1.500 s  queued → failed  submission_rejected  {MARKUP}"
    assert moved in lines


def test_print_story_of_new_job_has_empty_sections(capsys) -> None:
    output.print_story(make_story(JOB, [], [], []))
    assert read_out(capsys).splitlines()[-3:] == ["attempts", "deliveries", "events"]


def test_list_facts_writes_long_ones_as_json() -> None:
    facts = output.list_facts(replace(JOB, result={"video": {"url": "ü"}}, archive_bytes=0))
    assert facts["result"] == '{"video": {"url": "ü"}}'
    assert facts["archive_bytes"] == 0
    assert facts["priority"] == 0
    assert "error_code" not in facts


def test_print_violations_names_each_on_its_line(capsys) -> None:
    violations = (
        Violation("fps", "99", "a number from 1 to 60"),
        Violation("prompt", MARKUP, "text"),
    )
    output.print_violations(InvalidInputError(violations))

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "invalid_input",
        "  fps=99: a number from 1 to 60",
        f"  prompt={MARKUP}: text",
    ]


def test_show_time_without_time_is_empty() -> None:
    assert output.show_time(None) == ""
    assert output.show_time(datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)) == "2026-01-02 03:04:05"


def test_control_characters_of_others_reach_no_terminal(capsys) -> None:
    """Fal's words, and a producer's, are printed; they must not steer the operator's terminal."""
    text = "\x1b[31mred\x1b]0;title\x07 a\rb \x9b31m"
    job = replace(JOB, error_message=text, blocked_reason=text, tenant=text)
    output.print_story(
        make_story(job, [replace(ATTEMPT, error_message=text)], [], [replace(MOVED, detail=text)])
    )
    output.print_wide(output.build_job_table([job], {}))
    out = read_out(capsys)
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(out)


def test_print_story_has_a_line_for_each_archive_warning(capsys) -> None:
    told = {"code": "odd_field", "field": "seed", "message": f"seed cannot be read: {MARKUP}"}
    job = replace(JOB, archive_warnings=[told])

    output.print_story(make_story(job, [], [], []))

    lines = read_out(capsys).splitlines()
    at = lines.index("archive warnings")
    assert lines[at + 1] == f"  seed cannot be read: {MARKUP}"

"""`extend-video`: what each command prints, and with which code it ends."""

import json
import re
import shlex
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tests.harness.brokers import find_closed_port, take_messages
from tests.harness.commands import Run, build_run
from tests.harness.jobs import lead_job, make_job, move_job, read_attempts, read_job
from tests.harness.processes import EXTEND_VIDEO, Yard, run_yard
from tests.harness.servers import Postgres
from tests.harness.waiting import wait_until
from worker.broker.app import QUEUES
from worker.broker.dispatch import NO_JOB
from worker.cli import COMMANDS, build_command, enqueue, jobs
from worker.ground.clock import read_clock
from worker.ground.db import Database
from worker.ground.schema import read_head
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job
from worker.jobs.workers import SeenWorker, keep_worker

VIDEO = "https://example.com/a.mp4"
ENQUEUE = ("enqueue", "--prompt", "on it goes", "--video", VIDEO)
PASSWORD = "s3cret"
NOBODY = str(uuid.UUID(int=7))
NAMES = (
    *("enqueue", "list", "show", "cancel", "redrive", "sweep", "migrate", "up", "demo"),
    *("doctor", "emulator", "verify", "rearchive", "prune", "replay", "restore"),
)

HEAVY = ("alembic", "av", "celery", "cryptography", "flask", "kombu", "obstore", "redis")
LIST_MODULES = """
import sys
from worker.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.fixture
def run(monkeypatch, capsys, database_url, redis_url) -> Run:
    """On a migrated table and a real broker."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", redis_url)
    for queue in QUEUES.values():
        take_messages(redis_url, queue)
    return build_run(monkeypatch, capsys)


@pytest.fixture
def yard(tmp_path) -> Iterator[Yard]:
    with run_yard(tmp_path) as running:
        yield running


def find_dead_broker() -> str:
    return f"redis://127.0.0.1:{find_closed_port()}/0"


# ------------------------------------------------------------------ enqueue


def test_enqueue_prints_id_of_committed_job(run, db, redis_url) -> None:
    ended = run(*ENQUEUE)

    assert ended.code == 0
    job = read_job(db, uuid.UUID(ended.out.strip()))
    assert job.state is JobState.QUEUED
    assert (job.input["prompt"], job.input["video_url"]) == ("on it goes", VIDEO)
    assert len(take_messages(redis_url, "extend_video.submit")) == 1


def test_enqueue_with_all_options_writes_them(run, db) -> None:
    chosen = uuid.uuid4()
    ended = run(
        *ENQUEUE,
        *("--set", "num_frames=49", "--set", "video_size=640x384", "--set", "generate_audio=false"),
        *("--set", "negative_prompt=a=b", "--set", "fps=12.5", "--set", "end_image_url=null"),
        *("--job-id", str(chosen), "--idempotency-key", "k", "--tenant", "t", "--priority", "-7"),
        *("--label", "a=1", "--label", "b=x=y", "--json"),
    )

    assert ended.json == {"id": str(chosen)}
    job = read_job(db, chosen)
    assert (job.idempotency_key, job.tenant, job.priority) == ("k", "t", -7)
    assert job.labels == {"a": "1", "b": "x=y"}
    assert job.input["num_frames"] == 49
    assert job.input["video_size"] == {"width": 640, "height": 384}
    assert job.input["generate_audio"] is False
    assert job.input["negative_prompt"] == "a=b"
    assert (job.input["fps"], job.input["end_image_url"]) == (12.5, None)


def test_enqueue_same_key_gives_same_id_and_with_other_input_fails(run, redis_url) -> None:
    keyed = (*ENQUEUE, "--idempotency-key", "k")
    assert run(*keyed) == run(*keyed)
    assert len(take_messages(redis_url, "extend_video.submit")) == 1

    ended = run(*keyed, "--set", "seed=3")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("idempotency_conflict: k belongs to a job with another input")


def test_enqueue_wrong_input_lists_every_violation_and_writes_nothing(run, db) -> None:
    """A text of the wrong form is no reason to keep silent about the other fields."""
    pairs = {
        "num_frames=many": 'num_frames="many": a valid integer',
        "fps=99": "fps=99.0: less than or equal to 60",
        "generate_audio=yes": 'generate_audio="yes": a valid boolean',
        "video_size={": "video_size=",
        "scheduler=none": "'ltx2', 'linear_quadratic' or 'beta'",
        "num_frame=9": "did you mean num_frames?",
        "nonsense": "NAME=VALUE",
        "=9": "no such field",
        "seed=99999999999999999999": "seed=",
    }
    wrong = ("--prompt", " ", "--video", "file.mp4", "--priority", "101", "--tenant", "a b")
    ended = run(
        *("enqueue", *wrong, "--job-id", "x", "--label", "no-value"),
        *(word for pair in pairs for word in ("--set", pair)),
    )

    assert (ended.code, ended.out) == (2, "")
    heading, *lines = ended.err.splitlines()
    assert heading == "invalid_input"
    named = {line.strip().partition("=")[0] for line in lines}
    assert named >= {"prompt", "video_url", "priority", "tenant", "job_id", "--label", "--set"}
    assert [told for told in pairs.values() if told not in ended.err] == []
    assert list_ids(db) == []


def test_enqueue_field_given_twice_is_refused(run) -> None:
    """Which of the two is meant? A run is too dear to guess."""
    ended = run(*ENQUEUE, "--set", "prompt=another")
    assert ended.code == 2
    assert "prompt" in ended.err


def test_enqueue_without_broker_still_prints_id(run, db, monkeypatch) -> None:
    monkeypatch.setenv("BROKER_URL", find_dead_broker())
    ended = run(*ENQUEUE)
    assert ended.code == 0
    assert read_job(db, uuid.UUID(ended.out.strip())).state is JobState.QUEUED
    assert "doorbell_lost" in ended.err


# ------------------------------------------------------------------ enqueue --wait

END = {
    JobState.ARCHIVED: (
        JobEvent.SUBMISSION_CLAIMED,
        JobEvent.SUBMISSION_ACCEPTED,
        JobEvent.RESULT_ARRIVED,
        JobEvent.ARCHIVE_CLAIMED,
        JobEvent.ARCHIVE_RECORDED,
    ),
    JobState.FAILED: (JobEvent.SUBMISSION_CLAIMED, JobEvent.SUBMISSION_REJECTED),
}


def drive_job(db: Database, end: JobState) -> threading.Thread:
    """Lead the job that is about to be enqueued to its end, from another thread."""

    def drive() -> None:
        wait_until(lambda: list_ids(db))
        job: Job | None = read_job(db, list_ids(db)[0])
        for event in END[end]:
            assert job is not None
            job = lead_job(db, job, event, now=datetime.now(UTC))

    thread = threading.Thread(target=drive)
    thread.start()
    return thread


def list_ids(db: Database) -> list[uuid.UUID]:
    with db.reading() as connection:
        return [
            uuid.UUID(str(value)) for (value,) in connection.execute(text("SELECT id FROM jobs"))
        ]


@pytest.mark.parametrize("end", END)
def test_enqueue_wait_follows_job_to_its_end(run, db, end) -> None:
    driver = drive_job(db, end)
    ended = run(*ENQUEUE, "--wait")
    driver.join()

    job_id, *lines = ended.out.splitlines()
    assert uuid.UUID(job_id) == list_ids(db)[0]
    moves = [line for line in lines if re.match(r"  \d\d:\d\d:\d\d\.\d{3}  \+", line)]
    assert len(moves) == 1 + len(END[end])
    assert moves[0].endswith("queued  enqueued")
    assert moves[1].endswith("queued → submitting  submission_claimed")
    assert f"→ {end.value}" in moves[-1]
    assert ended.code == (0 if end is JobState.ARCHIVED else 1)
    if end is JobState.ARCHIVED:
        assert lines[-1].startswith("archived at ")
    else:
        assert ended.err


def test_enqueue_wait_for_programs_prints_story_alone(run, db) -> None:
    driver = drive_job(db, JobState.FAILED)
    ended = run(*ENQUEUE, "--wait", "--json")
    driver.join()

    assert (ended.code, ended.json["state"]) == (1, "failed")
    reasons = [event["reason"] for event in ended.json["events"]]
    assert reasons == ["enqueued", *END[JobState.FAILED]]


def test_wait_beyond_its_timeout_fails_with_state(run, monkeypatch) -> None:
    monkeypatch.setattr(enqueue, "FOLLOW_TIMEOUT", timedelta(seconds=0.05))
    ended = run(*ENQUEUE, "--wait")
    assert ended.code == 1
    assert re.search(r"timeout: job \S+ is still queued", ended.err)


# ------------------------------------------------------------------ list, show, sweep, migrate


def test_list_shows_each_job_on_a_line_and_as_json(run, db) -> None:
    jobs = [make_job(db, tenant=f"t{number}") for number in range(3)]
    ended = run("list")
    assert ended.code == 0
    for job in jobs:
        (line,) = [line for line in ended.out.splitlines() if str(job.id) in line]
        assert f"queued  {job.tenant}" in line
    assert {one["id"] for one in run("list", "--json").json} == {str(job.id) for job in jobs}


def test_show_prints_story(run, db) -> None:
    job = make_job(db, JobState.ARCHIVED)
    people, programs = run("show", str(job.id)), run("show", str(job.id), "--json")

    assert people.code == programs.code == 0
    assert str(job.id) in people.out
    assert programs.json["id"] == str(job.id)
    assert len(programs.json["events"]) == people.out.count("  +") == 6


@pytest.mark.parametrize("command", ["show", "cancel", "redrive"])
def test_command_for_unknown_job_fails(run, command) -> None:
    ended = run(command, NOBODY)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"job_not_found: no job has the id {NOBODY}\n"


def test_sweep_dispatches_overdue_jobs_and_as_many_submissions_as_there_is_room(
    run, db, redis_url, monkeypatch
) -> None:
    monkeypatch.setenv("MAX_IN_FLIGHT", "2")
    now = datetime.now(UTC)
    overdue = make_job(db, JobState.COMPLETED, now=now - timedelta(hours=1))
    for _ in range(3):
        make_job(db, now=now)

    assert run("sweep", "--json").json == {"overdue": 3, "dispatched": 3}
    (message,) = take_messages(redis_url, "extend_video.archive")
    assert message["headers"]["argsrepr"] == f"['{overdue.id}']"
    # They name no job, and are as many as fal runs at once.
    messages = take_messages(redis_url, "extend_video.submit")
    assert [message["headers"]["argsrepr"] for message in messages] == [f"['{NO_JOB}']"] * 2


def test_sweep_publishes_no_submission_that_the_queue_holds_already(run, db) -> None:
    make_job(db)
    assert run("sweep", "--json").json == {"overdue": 1, "dispatched": 1}
    ended = run("sweep")
    assert (ended.code, ended.out) == (0, "0 overdue jobs, 0 dispatched\n")


def test_sweep_without_broker_fails(run, db, monkeypatch) -> None:
    make_job(db, now=datetime.now(UTC) - timedelta(hours=1))
    monkeypatch.setenv("BROKER_URL", find_dead_broker())
    ended = run("sweep")
    assert (ended.code, ended.out) == (1, "1 overdue jobs, 0 dispatched\n")


def test_migrate_creates_table_and_again_changes_nothing(run, monkeypatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///new.db")
    head = read_head()
    assert run("migrate").out == f"the job table is at revision {head}\n"
    assert run("migrate", "--json").json == {"revision": head}
    assert run("list", "--json").json == []
    assert Path("new.db").exists()


def test_migrate_over_newer_schema_fails_with_reason(run, db) -> None:
    """An older release is asked to migrate a table that a newer one has."""
    with db.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    ended = run("migrate")
    assert ended.code == 1
    assert "9999" in ended.err


# ------------------------------------------------------------------ what is away, what is wrong


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "not-an-id"),
        ("show", "1", "2"),
        ("redrive", NOBODY, "--pay-again", "yes"),
        ("list", "--state", "lost"),
        ("list", "--limit", "0"),
        ("list", "--nonsense"),
        ("enqueue", "--prompt", "x"),
        ("enqueue", "--prompt", "x", "--video", VIDEO, "--priority", "high"),
        ("nonsense",),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what(monkeypatch, capsys, arguments) -> None:
    ended = build_run(monkeypatch, capsys)(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert re.search(r"^Usage: .*\n(.*\n)*Error: ", ended.err)


@pytest.mark.parametrize("command", [ENQUEUE, ("list",)], ids=["enqueue", "list"])
def test_command_without_table_names_its_address_and_the_remedy(run, monkeypatch, command) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///empty.db")
    ended = run(*command)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("outdated_schema: ")
    assert "extend-video migrate" in ended.err
    assert "(DATABASE_URL=sqlite:///empty.db)" in ended.err


def test_command_without_table_on_postgres_names_the_remedy(
    monkeypatch, capsys, postgres: Postgres
) -> None:
    name = postgres.create_database()
    monkeypatch.setenv("DATABASE_URL", postgres.url_of(name))
    ended = build_run(monkeypatch, capsys)("list")
    postgres.drop_database(name)
    assert (ended.code, ended.out) == (1, "")
    assert "extend-video migrate" in ended.err


@pytest.mark.parametrize("command", ["list", "migrate"])
@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/at/all.db", "postgresql+psycopg://u:{password}@127.0.0.1:{port}/x"]
)
def test_command_without_database_says_so(run, monkeypatch, command, url) -> None:
    filled = url.format(password=PASSWORD, port=find_closed_port())
    monkeypatch.setenv("DATABASE_URL", filled)
    ended = run(command)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("database_unavailable: ")
    assert PASSWORD not in ended.err


@pytest.mark.parametrize("command", ["list", "migrate", "up"])
def test_command_with_wrong_settings_lists_them(run, monkeypatch, command) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "soon")
    monkeypatch.setenv("POLL_SECONDS", "0")
    ended = run(command)
    assert (ended.code, ended.out) == (2, "")
    heading, *lines = ended.err.splitlines()
    assert heading == "invalid_settings"
    assert [line.strip().partition(":")[0] for line in lines] == [
        "LEASE_SECONDS=soon",
        "POLL_SECONDS=0",
    ]


def test_up_without_key_lists_what_it_needs(run) -> None:
    ended = run("up")
    assert ended.code == 2
    assert "WEBHOOK_BASE_URL" in ended.err
    assert "FAL_KEY" in ended.err


def test_up_on_port_in_use_and_without_broker_says_so(run, monkeypatch) -> None:
    monkeypatch.setenv("FAL_KEY", "k")
    monkeypatch.setenv("WEBHOOK_BASE_URL", "https://hooks.test")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("up", "--port", str(port))
    assert ended.code == 1
    assert f"cannot listen on 127.0.0.1:{port}: " in ended.err

    monkeypatch.setenv("BROKER_URL", find_dead_broker())
    ended = run("up", "--port", "0")
    assert ended.code == 1
    assert "BROKER_URL" in ended.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PoolTimeoutError("no connection within 5 s"), "database_unavailable: no connection"),
        (
            PermissionError(13, "Permission denied", "/x"),
            "os_error: [Errno 13] Permission denied: '/x'",
        ),
        (ZeroDivisionError("oh"), "internal_error: ZeroDivisionError: oh (LOG_LEVEL=debug shows"),
    ],
)
def test_whatever_goes_wrong_is_told_in_a_line(run, monkeypatch, error, told) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(jobs, "list_lines", fail)
    ended = run("list")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(told)
    assert ended.err.count("\n") == 1


def test_enqueue_without_a_worker_alive_says_so_and_writes_the_job(run, db) -> None:
    ended = run(*ENQUEUE)
    assert (ended.code, ended.err.count("\n")) == (0, 1)
    assert ended.err.startswith("no worker has been seen within the last minute")
    assert read_job(db, uuid.UUID(ended.out.strip())).state is JobState.QUEUED


def test_log_is_quiet_unless_asked_for(run, db, monkeypatch) -> None:
    now = read_clock()
    with db.transaction() as connection:
        keep_worker(connection, SeenWorker("w@host", 7, [], now, now))
    assert run(*ENQUEUE).err == ""
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("LOG_FORMAT", "json")
    ended = run("migrate")
    assert any(json.loads(line)["level"] == "info" for line in ended.err.splitlines())


def test_interrupt_ends_with_130(run, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "list_lines", interrupt)
    ended = run("list")
    assert (ended.code, ended.out) == (130, "")


# ------------------------------------------------------------------ cancel, redrive


def make_now(db: Database, state: JobState, *events: JobEvent) -> Job:
    """A job in `state`, or where the events have led it from there."""
    now = datetime.now(UTC)
    job = make_job(db, state, now=now)
    for event in events:
        job = move_job(db, job, event, now=now)
    return job


def write_columns(db: Database, table: str, assignment: str) -> None:
    with db.transaction() as connection:
        connection.execute(text(f"UPDATE {table} SET {assignment}"))


def take_steps(redis_url: str) -> list[tuple[str, str]]:
    """The tasks that were published, and of which jobs."""
    return [
        (message["headers"]["task"].removeprefix("extend_video."), message["headers"]["argsrepr"])
        for queue in QUEUES.values()
        for message in take_messages(redis_url, queue)
    ]


def test_cancel_before_submission_cancels_at_once(run, db, redis_url) -> None:
    job = make_now(db, JobState.QUEUED)
    ended = run("cancel", str(job.id))

    assert (ended.code, ended.out, ended.err) == (0, "cancelled\n", "")
    assert read_job(db, job.id).state is JobState.CANCELLED
    assert take_steps(redis_url) == []


def test_cancel_at_fal_is_noted_and_published_and_again_changes_nothing(run, db, redis_url) -> None:
    job = make_now(db, JobState.SUBMITTED)
    write_columns(db, "jobs", "fal_request_id = 'r'")
    write_columns(db, "attempts", "fal_request_id = 'r'")
    ended = run("cancel", str(job.id))

    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "cancellation requested at fal; a result that still comes is archived\n"
    after = read_job(db, job.id)
    assert (after.state, after.cancel_requested_at is None) == (JobState.SUBMITTED, False)
    assert take_steps(redis_url) == [("cancel", f"['{job.id}']")]
    (attempt,) = read_attempts(db, job.id)
    assert attempt.cancel_due_at == after.cancel_requested_at

    again = run("cancel", str(job.id), "--json")
    assert (again.code, again.json["state"]) == (0, "submitted")
    assert read_job(db, job.id) == after


def test_cancel_without_broker_is_committed_all_the_same(run, db, monkeypatch) -> None:
    job = make_now(db, JobState.SUBMITTED)
    monkeypatch.setenv("BROKER_URL", find_dead_broker())
    assert run("cancel", str(job.id)).code == 0
    assert read_job(db, job.id).cancel_requested_at is not None


@pytest.mark.parametrize("command", [("cancel",), ("redrive", "--pay-again")])
def test_order_that_comes_too_late_fails_and_changes_nothing(run, db, redis_url, command) -> None:
    job = make_now(db, JobState.ARCHIVED)
    ended = run(*command, str(job.id), "--json")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"too_late: job {job.id} is archived")
    assert read_job(db, job.id) == job
    assert take_steps(redis_url) == []


def test_redrive_of_job_that_cost_nothing_submits_it_again(run, db, redis_url) -> None:
    job = make_now(db, JobState.CANCELLED)
    ended = run("redrive", str(job.id))

    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"queued again: extend-video show {job.id}\n"
    assert read_job(db, job.id).state is JobState.QUEUED
    assert take_steps(redis_url) == [("submit", f"['{job.id}']")]


def test_redrive_of_paid_result_archives_it_and_buys_another_only_on_demand(
    run, db, redis_url
) -> None:
    job = make_now(db, JobState.ARCHIVING, JobEvent.ARCHIVE_REFUSED)
    ended = run("redrive", str(job.id), "--json")
    assert (ended.code, ended.json["state"]) == (0, "completed")
    assert take_steps(redis_url) == [("archive", f"['{job.id}']")]

    claimed = move_job(db, read_job(db, job.id), JobEvent.ARCHIVE_CLAIMED)
    move_job(db, claimed, JobEvent.ARCHIVE_REFUSED)
    ended = run("redrive", str(job.id), "--pay-again", "--json")
    assert (ended.code, ended.json["state"], ended.json["result"]) == (0, "queued", None)
    assert take_steps(redis_url) == [("submit", f"['{job.id}']")]


def test_redrive_that_pays_again_needs_consent(run, db, redis_url) -> None:
    job = make_now(db, JobState.SUBMITTED, JobEvent.FAILURE_ARRIVED)
    refused = run("redrive", str(job.id))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(f"pays_again: job {job.id} ")
    assert read_job(db, job.id) == job
    assert take_steps(redis_url) == []

    agreed = run("redrive", str(job.id), "--pay-again")
    assert (agreed.code, agreed.err) == (0, "")
    assert read_job(db, job.id).state is JobState.QUEUED
    events = run("show", str(job.id), "--json").json["events"]
    assert events[-1]["reason"] == "submit_redriven"
    assert "agreed to pay again" in events[-1]["detail"]


# ------------------------------------------------------------------ help, and as a process


def test_help_of_each_command_says_what_it_does_with_examples(monkeypatch, capsys) -> None:
    run = build_run(monkeypatch, capsys)
    # The emulator is another program, which takes this one's place.
    for command in set(NAMES) - {"emulator"}:
        ended = run(command, "--help")
        assert (ended.code, ended.err) == (0, "")
        assert len(ended.out.splitlines()) > 3
        assert "usage:" in ended.out.lower()
        assert ended.out.count("\n    extend-video ") == len(list_examples(command))
        assert COMMANDS[command].summary in " ".join(ended.out.split())


def list_examples(command: str) -> list[str]:
    return re.findall(r"^  (extend-video .*)$", str(build_command(command).epilog), re.MULTILINE)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_example_is_a_command_that_parses(command) -> None:
    known = build_command(command)
    assert len(list_examples(command)) >= 2
    for example in list_examples(command):
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("extend-video", command)
        known.make_context(name, arguments)


def test_program_shows_its_commands_and_breaks_no_sentence_off(yard) -> None:
    ended = yard.run([EXTEND_VIDEO, "--help"], {})
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.partition("Commands:")[2].splitlines()
    told = {line.split()[0] for line in lines if line.startswith("  ") and line.split()}
    assert told >= {*NAMES, *COMMANDS}
    assert [line for line in lines if line.endswith("...")] == []


def test_summary_of_each_command_begins_its_docstring() -> None:
    for name, command in COMMANDS.items():
        assert str(build_command(name).help).splitlines()[0] == command.summary


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], [*HEAVY, "httpx", "psycopg", "pydantic", "sqlalchemy", "rich"]),
        (["list"], [*HEAVY, "httpx", "psycopg"]),
        (["refused"], [*HEAVY, "psycopg"]),
        (["show", NOBODY], [*HEAVY, "psycopg"]),
        (["cancel", "--state", "queued", "--dry-run"], [*HEAVY, "psycopg"]),
        (["prune", "--older-than", "90d", "--dry-run"], [*HEAVY, "psycopg"]),
        (["migrate"], set(HEAVY) - {"alembic"}),
    ],
    ids=lambda one: one[0] if isinstance(one, list) and one[0] not in HEAVY else "",
)
def test_program_loads_only_what_its_command_needs(yard, sqlite_url, arguments, unwanted) -> None:
    ended = yard.run([sys.executable, "-c", LIST_MODULES, *arguments], {"DATABASE_URL": sqlite_url})
    loaded = ended.stderr.splitlines()[-1].split()
    assert "worker.cli" in loaded
    assert sorted({*unwanted} & {*loaded}) == []


def test_program_needs_no_key_to_enqueue(yard, sqlite_url, redis_url) -> None:
    settings = {"DATABASE_URL": sqlite_url, "BROKER_URL": redis_url}
    ended = yard.run([EXTEND_VIDEO, *ENQUEUE, "--json"], settings)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    db = Database(sqlite_url)
    assert read_job(db, uuid.UUID(json.loads(ended.stdout)["id"])).state is JobState.QUEUED
    db.close()


def test_program_into_closed_pipe_leaves_no_traceback(yard, sqlite_url) -> None:
    db = Database(sqlite_url)
    for _ in range(100):
        make_job(db)
    db.close()
    shell = f"{EXTEND_VIDEO} list --json | head -c 10"
    ended = yard.run(["sh", "-c", shell], {"DATABASE_URL": sqlite_url})
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("age", "code"), [(1, 0), (120, 1), (None, 1)])
def test_health_check_of_a_worker_asks_the_job_table_alone(run, db, monkeypatch, age, code) -> None:
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{find_closed_port()}/0")
    now = read_clock()
    with db.transaction() as connection:
        keep_worker(connection, SeenWorker("other@host", 1, [], now, now))
        if age is not None:
            seen_at = now - timedelta(seconds=age)
            keep_worker(connection, SeenWorker("submit@host", 7, ["q"], now, seen_at))
    assert run("status", "--worker", "submit@host").code == code

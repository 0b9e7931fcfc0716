"""`extend-video`: what it prints, and with which code it ends."""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.harness.brokers import find_closed_port, take_messages
from tests.harness.jobs import lead_job, make_job, move_job, read_attempts, read_job
from tests.harness.logs import preserved_logging
from tests.harness.processes import EXTEND_VIDEO, Yard, run_yard
from tests.harness.servers import Postgres
from tests.harness.waiting import wait_until
from worker import cli, listing, orders, watch
from worker.app import QUEUES
from worker.db import Database
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job
from worker.runtime import Runtime, build_runtime
from worker.schema import read_head

VIDEO = "https://example.com/a.mp4"
ENQUEUE = ("enqueue", "--prompt", "on it goes", "--video", VIDEO)
PASSWORD = "s3cret"
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

# Each command that reads or writes the table.
NOBODY = str(uuid.UUID(int=7))
COMMANDS = (
    ENQUEUE,
    ("list",),
    ("show", NOBODY),
    ("cancel", NOBODY),
    ("redrive", NOBODY),
    ("sweep",),
)
NAMES = (
    *("enqueue", "list", "show", "cancel", "redrive", "sweep", "migrate", "up", "demo"),
    *("doctor", "emulator", "verify", "rearchive", "prune", "replay"),
)


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1, "one line for programs"
        return json.loads(self.out)


Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def logging_undone() -> Iterator[None]:
    with preserved_logging():
        yield


@pytest.fixture
def run(monkeypatch, capsys, database_url, redis_url) -> Run:
    """Runs the command in this process, on a migrated table and a real broker."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", redis_url)
    for queue in QUEUES.values():
        take_messages(redis_url, queue)

    opened: list[Runtime] = []

    def build_and_keep() -> Runtime:
        opened.append(build_runtime())
        return opened[-1]

    for module in (cli, listing, orders):
        monkeypatch.setattr(module, "build_runtime", build_and_keep)

    def run_in_process(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["extend-video", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        while opened:
            close_runtime(opened.pop())
        code = caught.value.code
        assert isinstance(code, int | None)
        return Ended(code or 0, captured.out, captured.err)

    return run_in_process


def close_runtime(runtime: Runtime) -> None:
    """The end of a process does this by itself."""
    if "db" in vars(runtime):
        runtime.db.close()
    if "dispatcher" in vars(runtime):
        runtime.dispatcher.close()


@pytest.fixture
def yard(tmp_path) -> Iterator[Yard]:
    with run_yard(tmp_path) as running:
        yield running


# ------------------------------------------------------------------ enqueue


def test_enqueue_prints_id_of_committed_job(run, db, redis_url) -> None:
    ended = run(*ENQUEUE)

    assert (ended.code, ended.err) == (0, "")
    job = read_job(db, uuid.UUID(ended.out.strip()))
    assert (job.state, job.input["prompt"], job.input["video_url"]) == (
        JobState.QUEUED,
        "on it goes",
        VIDEO,
    )
    assert len(take_messages(redis_url, "extend_video.submit")) == 1


@ON_SQLITE
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


@ON_SQLITE
def test_enqueue_same_key_twice_prints_same_id_and_rings_once(run, redis_url) -> None:
    first, second = (run(*ENQUEUE, "--idempotency-key", "k") for _ in range(2))
    assert first == second
    assert len(take_messages(redis_url, "extend_video.submit")) == 1


@ON_SQLITE
def test_enqueue_same_key_with_other_input_fails(run) -> None:
    run(*ENQUEUE, "--idempotency-key", "k")
    ended = run(*ENQUEUE, "--idempotency-key", "k", "--set", "seed=3")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("idempotency_conflict: k belongs to a job with another input")


@ON_SQLITE
def test_enqueue_wrong_input_lists_every_violation(run, db) -> None:
    ended = run(
        *(
            "enqueue",
            "--prompt",
            " ",
            "--video",
            "file.mp4",
            "--priority",
            "101",
            "--tenant",
            "a b",
        ),
        *("--set", "fps=99", "--set", "num_frames=3", "--job-id", "x", "--label", "a b=c"),
    )

    assert (ended.code, ended.out) == (2, "")
    heading, *lines = ended.err.splitlines()
    assert heading == "invalid_input"
    assert {line.strip().partition("=")[0] for line in lines} == {
        "prompt",
        "video_url",
        "priority",
        "tenant",
        "fps",
        "num_frames",
        "job_id",
        "labels",
    }
    assert "  fps=99.0: a number from 1 to 60" in lines
    with db.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 0


@ON_SQLITE
@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("num_frames=many", 'num_frames="many": an integer from 9 to 481'),
        ("fps=fast", 'fps="fast": a number from 1 to 60'),
        ("generate_audio=yes", 'generate_audio="yes": true or false'),
        ("video_size=big", "video_size="),
        ("video_size={", "video_size="),
        ("scheduler=none", "one of ltx2, linear_quadratic, beta"),
        ("num_frame=9", "did you mean num_frames?"),
        ("x=9", "no such field"),
        ("num_frames", "NAME=VALUE"),
        ("=9", "no such field"),
        ("seed=99999999999999999999", "seed="),
    ],
)
def test_enqueue_bad_set_is_refused_with_what_is_allowed(run, pair, message) -> None:
    ended = run(*ENQUEUE, "--set", pair)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@ON_SQLITE
def test_enqueue_bad_texts_are_listed_with_bad_values(run) -> None:
    """A text of the wrong form is no reason to keep silent about the other fields."""
    ended = run(
        *("enqueue", "--prompt", " ", "--video", VIDEO, "--label", "no-value"),
        *("--set", "num_frames=many", "--set", "fps=99", "--set", "nonsense"),
    )
    assert ended.code == 2
    for field in ("prompt", "num_frames", "fps", "--set", "--label"):
        assert f"  {field}=" in ended.err, ended.err


@ON_SQLITE
@pytest.mark.parametrize("pair", ["prompt=another", "video_url=https://example.com/b.mp4"])
def test_enqueue_field_given_twice_is_refused(run, pair) -> None:
    """Which of the two is meant? A run is too dear to guess."""
    ended = run(*ENQUEUE, "--set", pair)
    assert ended.code == 2
    assert pair.partition("=")[0] in ended.err


@ON_SQLITE
@pytest.mark.parametrize("label", ["no-value", "=x", "a b=c", "a=" + "x" * 257])
def test_enqueue_bad_label_is_refused(run, label) -> None:
    ended = run(*ENQUEUE, "--label", label)
    assert (ended.code, ended.out) == (2, "")
    assert "label" in ended.err


@ON_SQLITE
def test_enqueue_without_broker_still_prints_id(run, db, monkeypatch) -> None:
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{find_closed_port()}/0")
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


@ON_SQLITE
@pytest.mark.parametrize("end", END)
def test_enqueue_wait_for_programs_prints_story_alone(run, db, end) -> None:
    driver = drive_job(db, end)
    ended = run(*ENQUEUE, "--wait", "--json")
    driver.join()

    assert ended.json["state"] == end.value
    assert [event["reason"] for event in ended.json["events"]] == ["enqueued", *END[end]]
    assert ended.code == (0 if end is JobState.ARCHIVED else 1)


@ON_SQLITE
def test_enqueue_wait_for_ended_job_ends_at_once(run, db) -> None:
    driver = drive_job(db, JobState.ARCHIVED)
    run(*ENQUEUE, "--idempotency-key", "k", "--wait")
    driver.join()
    again = run(*ENQUEUE, "--idempotency-key", "k", "--wait")
    assert again.code == 0
    assert "archived at " in again.out


# ------------------------------------------------------------------ list, show, sweep, migrate


def test_list_filters_and_limits_newest_first(run, db) -> None:
    now = datetime.now(UTC)
    old = make_job(db, now=now - timedelta(hours=1), tenant="a")
    failed = make_job(db, JobState.FAILED, now=now, tenant="b")

    def list_listed(*options: str) -> list[str]:
        return [job["id"] for job in run("list", "--json", *options).json]

    assert list_listed() == [str(failed.id), str(old.id)]
    assert list_listed("--limit", "1") == [str(failed.id)]
    assert list_listed("--state", "queued") == [str(old.id)]
    assert list_listed("--tenant", "b") == [str(failed.id)]
    assert list_listed("--tenant", "nobody") == []


@ON_SQLITE
def test_list_for_people_shows_each_job_on_a_line(run, db) -> None:
    jobs = [make_job(db, tenant=f"t{number}") for number in range(3)]
    ended = run("list")
    assert ended.code == 0
    for job in jobs:
        (line,) = [line for line in ended.out.splitlines() if str(job.id) in line]
        assert f"queued  {job.tenant}" in line


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.ARCHIVED])
def test_show_prints_story(run, db, state) -> None:
    job = make_job(db, state)
    people, programs = run("show", str(job.id)), run("show", str(job.id), "--json")

    assert people.code == programs.code == 0
    assert str(job.id) in people.out
    assert programs.json["id"] == str(job.id)
    assert len(programs.json["events"]) == people.out.count("  +")


@ON_SQLITE
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_show_unknown_job_fails(run, as_json) -> None:
    job_id = uuid.UUID(int=7)
    ended = run("show", str(job_id), *as_json)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"job_not_found: no job has the id {job_id}\n"


@ON_SQLITE
@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "not-an-id"),
        ("show",),
        ("show", "1", "2"),
        ("cancel", "not-an-id"),
        ("cancel",),
        ("cancel", NOBODY, "--pay-again"),
        ("redrive", "not-an-id"),
        ("redrive",),
        ("redrive", NOBODY, "--pay-again", "yes"),
        ("list", "--state", "lost"),
        ("list", "--limit", "0"),
        ("list", "--limit", "10001"),
        ("list", "--nonsense"),
        ("enqueue", "--prompt", "x"),
        ("enqueue", "--prompt", "x", "--video", VIDEO, "--priority", "high"),
        ("up", "--port", "65536"),
        ("nonsense",),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what(run, arguments) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert re.search(r"^Usage: .*\n(.*\n)*Error: ", ended.err)


def test_sweep_rings_for_overdue_jobs(run, db, redis_url) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    overdue = make_job(db, now=past)
    make_job(db, now=datetime.now(UTC))

    assert run("sweep", "--json").json == {"overdue": 1, "rung": 1}
    (message,) = take_messages(redis_url, "extend_video.submit")
    assert message["headers"]["argsrepr"] == f"['{overdue.id}']"
    ended = run("sweep")
    assert (ended.code, ended.out) == (0, "0 overdue, rung for 0\n")


@ON_SQLITE
def test_sweep_without_broker_fails_and_keeps_jobs_due(run, db, monkeypatch) -> None:
    make_job(db, now=datetime.now(UTC) - timedelta(hours=1))
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{find_closed_port()}/0")
    ended = run("sweep")
    assert (ended.code, ended.out) == (1, "1 overdue, rung for 0\n")


@ON_SQLITE
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


@ON_SQLITE
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_command_without_table_names_the_remedy(run, monkeypatch, command) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///empty.db")
    ended = run(*command)
    assert (ended.code, ended.out) == (1, "")
    assert "extend-video migrate" in ended.err


def test_command_without_table_on_postgres_names_the_remedy(
    run, monkeypatch, postgres: Postgres
) -> None:
    name = postgres.create_database()
    monkeypatch.setenv("DATABASE_URL", postgres.url_of(name))
    ended = run("list")
    postgres.drop_database(name)
    assert (ended.code, ended.out) == (1, "")
    assert "extend-video migrate" in ended.err


@ON_SQLITE
@pytest.mark.parametrize("command", [*COMMANDS, ("migrate",)], ids=lambda command: command[0])
@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/at/all.db", "postgresql+psycopg://u:{password}@127.0.0.1:{port}/x"]
)
def test_command_without_database_says_so(run, monkeypatch, command, url) -> None:
    filled = url.format(password=PASSWORD, port=find_closed_port())
    monkeypatch.setenv("DATABASE_URL", filled)
    ended = run(*command)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("database_unavailable: ")
    assert PASSWORD not in ended.err


@ON_SQLITE
@pytest.mark.parametrize("command", [*COMMANDS, ("migrate",), ("up",)], ids=lambda one: one[0])
def test_command_with_wrong_settings_lists_them(run, monkeypatch, command) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "soon")
    monkeypatch.setenv("POLL_SECONDS", "0")
    ended = run(*command)
    assert (ended.code, ended.out) == (2, "")
    heading, *lines = ended.err.splitlines()
    assert heading == "invalid_settings"
    assert [line.strip().partition(":")[0] for line in lines] == [
        "LEASE_SECONDS=soon",
        "POLL_SECONDS=0",
    ]


@ON_SQLITE
def test_up_without_key_lists_what_it_needs(run) -> None:
    ended = run("up")
    assert ended.code == 2
    assert "WEBHOOK_BASE_URL" in ended.err
    assert "FAL_KEY" in ended.err


@ON_SQLITE
def test_up_on_port_in_use_says_so(run, monkeypatch) -> None:
    import socket

    monkeypatch.setenv("FAL_KEY", "k")
    monkeypatch.setenv("WEBHOOK_BASE_URL", "https://hooks.test")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("up", "--port", str(port))
    assert ended.code == 1
    assert f"cannot listen on 127.0.0.1:{port}: " in ended.err


@ON_SQLITE
def test_up_without_broker_says_so(run, monkeypatch) -> None:
    monkeypatch.setenv("FAL_KEY", "k")
    monkeypatch.setenv("WEBHOOK_BASE_URL", "https://hooks.test")
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{find_closed_port()}/0")
    ended = run("up", "--port", "0")
    assert ended.code == 1
    assert "BROKER_URL" in ended.err.splitlines()[-1]


@ON_SQLITE
def test_log_is_quiet_unless_asked_for(run, monkeypatch) -> None:
    assert run(*ENQUEUE).err == ""
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("LOG_FORMAT", "json")
    ended = run("migrate")
    assert any(json.loads(line)["level"] == "info" for line in ended.err.splitlines())


@ON_SQLITE
def test_interrupt_ends_with_130(run, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "list_lines", interrupt)
    ended = run("list")
    assert (ended.code, ended.out) == (130, "")


@ON_SQLITE
def test_wait_beyond_patience_fails_with_state(run, monkeypatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE", timedelta(seconds=0.05))
    ended = run(*ENQUEUE, "--wait")
    assert ended.code == 1
    assert re.search(r"timeout: job \S+ is still queued", ended.err)


# ------------------------------------------------------------------ cancel, redrive


def make_now(db: Database, state: JobState, *events: JobEvent) -> Job:
    """A job in `state`, or where the events have led it from there."""
    now = datetime.now(UTC)
    job = make_job(db, state, now=now)
    for event in events:
        job = move_job(db, job, event, now=now)
    return job


def write_columns(db: Database, assignment: str) -> None:
    with db.transaction() as connection:
        connection.execute(text(f"UPDATE jobs SET {assignment}"))


def take_doorbells(redis_url: str) -> list[tuple[str, str]]:
    """Which steps were rung for, and for whom."""
    return [
        (message["headers"]["task"], message["headers"]["argsrepr"])
        for queue in QUEUES.values()
        for message in take_messages(redis_url, queue)
    ]


def bell(step: str, job: Job) -> tuple[str, str]:
    return f"extend_video.{step}", f"['{job.id}']"


def test_cancel_before_submission_cancels_at_once(run, db, redis_url) -> None:
    job = make_now(db, JobState.QUEUED)
    ended = run("cancel", str(job.id))

    assert (ended.code, ended.out, ended.err) == (0, "cancelled\n", "")
    after = read_job(db, job.id)
    assert (after.state, after.due_at) == (JobState.CANCELLED, None)
    assert after.cancelled_at is not None
    assert take_doorbells(redis_url) == []


def test_cancel_at_fal_is_a_wish_and_rings(run, db, redis_url) -> None:
    job = make_now(db, JobState.SUBMITTED)
    write_columns(db, "fal_request_id = 'r'")
    with db.transaction() as connection:
        connection.execute(text("UPDATE attempts SET fal_request_id = 'r'"))
    ended = run("cancel", str(job.id))

    assert (ended.code, ended.err) == (0, "")
    told = "fal is asked to cancel it; a result that comes anyway is archived\n"
    assert ended.out == told
    after = read_job(db, job.id)
    assert (after.state, after.cancel_requested_at is None) == (JobState.SUBMITTED, False)
    assert take_doorbells(redis_url) == [bell("cancel", job)]
    (attempt,) = read_attempts(db, job.id)
    assert attempt.cancel_due_at == after.cancel_requested_at


@pytest.mark.parametrize("state", [JobState.SUBMITTING, JobState.SUBMISSION_UNKNOWN])
def test_cancel_of_what_may_be_at_fal_is_noted_and_rings_for_nobody(
    run, db, redis_url, state
) -> None:
    job = make_now(db, state)
    ended = run("cancel", str(job.id), "--json")

    assert (ended.code, ended.json["state"]) == (0, state.value)
    assert ended.json["cancel_requested_at"] is not None
    after = read_job(db, job.id)
    assert (after.claimed_by, after.due_at, after.fence) == (job.claimed_by, job.due_at, job.fence)
    assert take_doorbells(redis_url) == []


@ON_SQLITE
@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.SUBMITTED])
def test_cancel_twice_is_as_good_as_once(run, db, state) -> None:
    job = make_now(db, state)
    first = run("cancel", str(job.id), "--json")
    again = run("cancel", str(job.id), "--json")
    assert (first.code, again.code) == (0, 0)
    assert again.json == first.json


@pytest.mark.parametrize(
    "state", [JobState.COMPLETED, JobState.ARCHIVING, JobState.ARCHIVED, JobState.FAILED]
)
@ON_SQLITE
def test_cancel_too_late_fails_and_changes_nothing(run, db, redis_url, state) -> None:
    job = make_now(db, state)
    ended = run("cancel", str(job.id), "--json")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"too_late: job {job.id} is {state.value}")
    assert read_job(db, job.id) == job
    assert take_doorbells(redis_url) == []


@ON_SQLITE
@pytest.mark.parametrize("command", ["cancel", "redrive"])
def test_order_for_unknown_job_fails(run, command) -> None:
    ended = run(command, NOBODY)
    assert (ended.code, ended.out, ended.err) == (
        1,
        "",
        f"job_not_found: no job has the id {NOBODY}\n",
    )


@ON_SQLITE
def test_cancel_without_broker_is_committed_all_the_same(run, db, monkeypatch) -> None:
    job = make_now(db, JobState.SUBMITTED)
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{find_closed_port()}/0")
    assert run("cancel", str(job.id)).code == 0
    assert read_job(db, job.id).cancel_requested_at is not None


def test_redrive_of_job_that_cost_nothing_submits_it_again(run, db, redis_url) -> None:
    job = make_now(db, JobState.CANCELLED)
    ended = run("redrive", str(job.id))

    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"it is queued again: extend-video show {job.id}\n"
    after = read_job(db, job.id)
    assert (after.state, after.cancel_requested_at) == (JobState.QUEUED, None)
    assert after.redriven_at is not None
    assert take_doorbells(redis_url) == [bell("submit", job)]


def test_redrive_of_paid_result_archives_it_again(run, db, redis_url) -> None:
    job = make_now(db, JobState.ARCHIVING, JobEvent.ARCHIVE_REFUSED)
    ended = run("redrive", str(job.id), "--json")

    assert (ended.code, ended.json["state"]) == (0, "completed")
    after = read_job(db, job.id)
    assert (after.state, after.result) == (JobState.COMPLETED, job.result)
    assert take_doorbells(redis_url) == [bell("archive", job)]


@ON_SQLITE
def test_redrive_of_paid_result_buys_another_only_on_demand(run, db, redis_url) -> None:
    job = make_now(db, JobState.ARCHIVING, JobEvent.ARCHIVE_REFUSED)
    ended = run("redrive", str(job.id), "--pay-again", "--json")

    assert (ended.code, ended.json["state"], ended.json["result"]) == (0, "queued", None)
    assert take_doorbells(redis_url) == [bell("submit", job)]


def test_redrive_that_pays_again_needs_consent(run, db, redis_url) -> None:
    job = make_now(db, JobState.SUBMITTED, JobEvent.FAILURE_ARRIVED)
    refused = run("redrive", str(job.id))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(f"pays_again: job {job.id} ")
    assert read_job(db, job.id) == job
    assert take_doorbells(redis_url) == []

    agreed = run("redrive", str(job.id), "--pay-again")
    assert (agreed.code, agreed.err) == (0, "")
    assert read_job(db, job.id).state is JobState.QUEUED
    assert take_doorbells(redis_url) == [bell("submit", job)]
    events = run("show", str(job.id), "--json").json["events"]
    assert events[-1]["reason"] == "submit_redriven"
    assert "agreed to pay again" in events[-1]["detail"]


def test_redrive_of_result_gone_has_fal_asked_again_for_free(run, db, redis_url) -> None:
    job = make_now(db, JobState.SUBMITTED, JobEvent.FAILURE_ARRIVED)
    write_columns(db, "error_code = 'result_gone', fal_request_id = 'r'")
    ended = run("redrive", str(job.id), "--json")

    assert (ended.code, ended.json["state"]) == (0, "submitted")
    assert ended.json["fal_request_id"] == "r"
    assert take_doorbells(redis_url) == [bell("reconcile", job)]


@ON_SQLITE
@pytest.mark.parametrize(
    "state",
    sorted({*JobState} - {JobState.FAILED, JobState.CANCELLED, JobState.SUBMISSION_UNKNOWN}),
)
def test_redrive_of_job_that_has_not_failed_changes_nothing(run, db, redis_url, state) -> None:
    job = make_now(db, state)
    ended = run("redrive", str(job.id), "--pay-again")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"too_late: job {job.id} is {state.value}")
    assert read_job(db, job.id) == job
    assert take_doorbells(redis_url) == []


# ------------------------------------------------------------------ as a process


@pytest.mark.parametrize("command", NAMES)
@ON_SQLITE
def test_help_of_each_command_says_what_it_does(run, yard, command) -> None:
    if command == "emulator":  # it is another program, which takes this one's place
        result = yard.run([EXTEND_VIDEO, command, "--help"], {})
        ended = Ended(result.returncode, result.stdout, result.stderr)
    else:
        ended = run(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert len(ended.out.splitlines()) > 3
    assert "usage:" in ended.out.lower()


def test_program_without_arguments_shows_commands(yard) -> None:
    ended = yard.run([EXTEND_VIDEO, "--help"], {})
    assert (ended.returncode, ended.stderr) == (0, "")
    for command in NAMES:
        assert re.search(rf"^ +{command} ", ended.stdout, re.MULTILINE), command


def test_program_needs_no_settings_to_help_and_no_key_to_enqueue(yard, redis_url) -> None:
    settings = {"DATABASE_URL": "sqlite:///p.db", "BROKER_URL": redis_url}
    assert yard.run([EXTEND_VIDEO, "migrate"], settings).returncode == 0
    ended = yard.run([EXTEND_VIDEO, *ENQUEUE, "--json"], settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    shown = yard.run([EXTEND_VIDEO, "show", json.loads(ended.stdout)["id"], "--json"], settings)
    assert json.loads(shown.stdout)["state"] == "queued"


def test_program_into_closed_pipe_leaves_no_traceback(yard, sqlite_url) -> None:
    db = Database(sqlite_url)
    for _ in range(100):
        make_job(db)
    db.close()
    shell = f"{EXTEND_VIDEO} list --json | head -c 10"
    ended = yard.run(["sh", "-c", shell], {"DATABASE_URL": sqlite_url})
    assert "Traceback" not in ended.stderr

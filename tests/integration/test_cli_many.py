"""`extend-video` on many jobs: filters, orders by filter, completion, colours."""

import json
import os
import pty
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO, TextIOWrapper
from typing import Any
from uuid import UUID

import pytest
import typer
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tests.harness.commands import build_run
from tests.harness.jobs import insert_job, make_job, move_job, read_attempts, read_job
from tests.harness.processes import EXTEND_VIDEO
from worker.cli import jobs as commands
from worker.ground.db import Database
from worker.ground.settings import load_settings
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job
from worker.runtime import Runtime

NOBODY = UUID(int=7)
Run = Callable[..., tuple[int, str, str]]


class Silent:
    """Takes every message, and keeps it."""

    def __init__(self) -> None:
        self.published: list[str] = []

    def publish(self, doorbell) -> bool:
        if doorbell is not None:
            self.published.append(doorbell.step.value)
        return True

    def publish_all(self, doorbells) -> bool:
        return all(self.publish(doorbell) for doorbell in doorbells)


@pytest.fixture
def bell() -> Silent:
    return Silent()


@pytest.fixture
def run(monkeypatch, capsys, db, database_url, bell) -> Run:
    """Runs a command in this process; what is typed is given by `typed`."""
    runtime = Runtime(load_settings(database_url=database_url))
    vars(runtime)["db"], vars(runtime)["dispatcher"] = db, bell
    run_command = build_run(monkeypatch, capsys, lambda: runtime)

    def run_in_process(*arguments: str, typed: str | None = None) -> tuple[int, str, str]:
        asked: list[str] = []

        def prompt(question: str, **_: object) -> str:
            asked.append(question)
            assert typed is not None, question
            return typed

        monkeypatch.setattr(typer, "prompt", prompt)
        ended = run_command(*arguments)
        return ended.code, "".join(asked) + ended.out, ended.err

    return run_in_process


def add(db: Database, prompt: str = "x", *, age: float = 0, **columns: Any) -> Job:
    now = datetime.now(UTC) - timedelta(hours=age)
    return insert_job(db, now=now, input={"prompt": prompt}, **columns)


def add_paid_failure(db: Database, token: str) -> Job:
    """A job whose attempt fal took and failed: a redrive costs money."""
    job = make_job(db, JobState.SUBMITTED, now=datetime.now(UTC))
    with db.transaction() as connection:
        mark = {"token": token, "id": job.id.hex}
        where = "WHERE replace(CAST(job_id AS text), '-', '') = :id"
        connection.execute(text(f"UPDATE attempts SET token_hash = :token {where}"), mark)
    return move_job(db, job, JobEvent.FAILURE_ARRIVED)


def set_error(db: Database, job: Job, code: str) -> None:
    with db.transaction() as connection:
        where = "WHERE replace(CAST(id AS text), '-', '') = :id"
        connection.execute(
            text(f"UPDATE jobs SET error_code = :code {where}"), {"code": code, "id": job.id.hex}
        )


def list_ids(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines()[1:]]


# ------------------------------------------------------------------ list


def test_list_is_narrowed_by_each_filter(run, db) -> None:
    old = add(db, "rain on the harbour", age=5, tenant="t", labels={"env": "prod"})
    new = add(db, "glacier", idempotency_key="k-1")
    for option, value, found in (
        ("--tenant", "t", old),
        ("--label", "env=prod", old),
        ("--label", "env", old),
        ("--until", "2h", old),
        ("--since", "2h", new),
        ("--text", "HARBOUR", old),
        ("--text", "k-1", new),
        ("--text", str(new.id), new),
    ):
        code, out, _ = run("list", option, value)
        assert (code, list_ids(out)) == (0, [str(found.id)]), (option, value)
    _, out, _ = run("list", "--limit", "1", "--json")
    assert [one["id"] for one in json.loads(out)] == [str(new.id)]
    move_job(db, old, JobEvent.JOB_CANCELLED)
    assert list_ids(run("list", "--state", "cancelled")[1]) == [str(old.id)]


@pytest.mark.parametrize("wrong", [("--since", "soon"), ("--until", "x"), ("--label", "=")])
def test_list_names_an_option_that_makes_no_sense(run, wrong) -> None:
    code, out, err = run("list", *wrong)
    assert (code, out) == (2, "")
    assert wrong[0] in err
    assert f"invalid {'label' if wrong[1] == '=' else 'time'} '{wrong[1]}'; expected" in err


def test_list_watched_shows_what_has_changed_until_ctrl_c(run, db, monkeypatch) -> None:
    job = add(db)
    looks = iter([lambda: move_job(db, job, JobEvent.JOB_CANCELLED), None])

    def pass_time(_seconds: float) -> None:
        change = next(looks)
        if change is None:
            raise KeyboardInterrupt
        change()

    monkeypatch.setattr("worker.cli.jobs.time.sleep", pass_time)
    code, out, _ = run("list", "--watch")
    assert code == 0
    states = [line.split()[1] for line in out.splitlines() if str(job.id) in line]
    assert states == ["queued", "cancelled"]


# ------------------------------------------------------------------ cancel by filter


def test_cancel_by_filter_takes_the_count_and_leaves_the_rest(run, db, bell) -> None:
    chosen = [add(db, tenant="t") for _ in range(3)]
    other = add(db, tenant="u")
    ended = move_job(db, add(db, tenant="t"), JobEvent.JOB_CANCELLED)

    code, out, err = run("cancel", "--tenant", "t", "--dry-run")
    assert (code, out, bell.published) == (0, "", [])
    assert "3 jobs to cancel: 3 in queued" in err
    code, out, err = run("cancel", "--tenant", "t", typed="4")
    assert code == 1
    assert "nothing was changed" in err
    assert {read_job(db, job.id).state for job in chosen} == {JobState.QUEUED}

    code, out, err = run("cancel", "--tenant", "t", typed="3")
    assert code == 0
    assert "Type 3 to cancel 3 jobs" in out
    assert "3 cancelled" in out
    assert {read_job(db, job.id).state for job in chosen} == {JobState.CANCELLED}
    assert read_job(db, other.id) == other
    assert read_job(db, ended.id) == ended


def test_cancel_by_filter_for_scripts_prints_counts(run, db) -> None:
    add(db, tenant="t")
    make_job(db, JobState.SUBMITTED, tenant="t")
    _, out, _ = run("cancel", "--tenant", "t", "--dry-run", "--json")
    planned = {"dry_run": True, "matched": 2, "in_queued": 1, "in_submitted": 1, "left_out": 0}
    assert json.loads(out) == planned
    code, out, _ = run("cancel", "--tenant", "t", "--yes", "--json")
    assert code == 0
    assert json.loads(out) == {"matched": 2, "cancelled": 1, "cancellation_requested_at_fal": 1}
    _, out, _ = run("cancel", "--tenant", "nobody", "--yes", "--json")
    assert json.loads(out) == {"matched": 0}


def test_order_for_nothing_or_for_both_is_refused(run, db) -> None:
    job = add(db)
    for arguments in ((), (str(job.id), "--tenant", "default"), ("--yes",)):
        code, out, err = run("cancel", *arguments)
        assert (code, out) == (2, "")
        assert "give one ID, or select jobs" in err
    assert read_job(db, job.id) == job


def test_job_that_moves_on_meanwhile_is_told_and_no_failure(run, db, monkeypatch) -> None:
    job = add(db)

    def end_it(*_: object, **__: object) -> None:
        make_end = move_job(db, job, JobEvent.SUBMISSION_CLAIMED)
        move_job(db, read_job(db, make_end.id), JobEvent.SUBMISSION_REJECTED)

    monkeypatch.setattr(commands, "agree", end_it)
    code, out, err = run("cancel", "--state", "queued")
    assert (code, out.strip()) == (0, "1 moved on")
    assert "is failed: there is nothing to cancel" in err


def test_order_for_many_goes_on_after_jobs_that_fail(run, db, monkeypatch) -> None:
    """One whose row is gone meanwhile, and one that the database was away for."""
    first, second, third = add(db), add(db), add(db)
    cancel_one = commands.cancel_one

    def cancel(runtime, job_id):
        if job_id == second.id:
            raise OperationalError("UPDATE", {}, OSError("the server closed the connection"))
        return cancel_one(runtime, NOBODY if job_id == third.id else job_id)

    monkeypatch.setattr(commands, "cancel_one", cancel)
    ended = run("cancel", "--state", "queued", "--yes", "--json")
    assert ended[0] == 1
    assert json.loads(ended[1]) == {"matched": 3, "cancelled": 1, "failed": 1, "moved_on": 1}
    assert f"job {second.id}: the server closed the connection" in ended[2]
    assert read_job(db, first.id).state is JobState.CANCELLED


def test_order_for_many_gives_up_on_a_database_that_stays_away(run, db, monkeypatch) -> None:
    for _ in range(5):
        add(db)

    def fail(*_: object) -> None:
        raise PoolTimeoutError("no connection within 5 s")

    monkeypatch.setattr(commands, "cancel_one", fail)
    code, out, _ = run("cancel", "--state", "queued", "--yes")
    assert (code, out.strip()) == (1, "3 failed, 2 not tried")


@pytest.mark.parametrize("command", ["cancel", "redrive"])
def test_dry_run_for_an_unknown_id_says_so(run, command) -> None:
    code, out, err = run(command, str(NOBODY), "--dry-run")
    assert (code, out, err) == (1, "", f"job_not_found: no job has the id {NOBODY}\n")


# ------------------------------------------------------------------ redrive by filter


def test_redrive_by_filter_spends_money_only_where_agreed_and_counted(run, db, bell) -> None:
    free = move_job(db, add(db), JobEvent.JOB_CANCELLED)
    paid = [add_paid_failure(db, token) for token in ("a", "b")]

    code, _, err = run("redrive", "--since", "1h", "--dry-run")
    assert code == 0
    assert "1 jobs to redrive: 1 submitted (nothing paid yet)" in err
    assert "2 more need a new paid run: --pay-again" in err
    code, out, _ = run("redrive", "--since", "1h", typed="1")
    assert (code, bell.published) == (0, ["submit"])
    assert read_job(db, free.id).state is JobState.QUEUED
    assert {read_job(db, job.id).state for job in paid} == {JobState.FAILED}

    code, out, _ = run("redrive", "--state", "failed", "--pay-again", typed="2")
    assert "Type 2 to redrive 2 jobs, and buy 2 new paid runs" in out
    assert "2 new paid run" in out
    assert code == 0
    assert {read_job(db, job.id).state for job in paid} == {JobState.QUEUED}
    assert bell.published == ["submit"] * 3


def test_redrive_by_filter_uses_a_paid_result_even_with_pay_again(run, db) -> None:
    job = make_job(db, JobState.ARCHIVING, now=datetime.now(UTC))
    failed = move_job(db, job, JobEvent.ARCHIVE_REFUSED)
    code, out, _ = run("redrive", "--state", "failed", "--pay-again", "--yes")
    assert (code, out.strip()) == (0, "1 archived again")
    assert read_job(db, failed.id).state is JobState.COMPLETED
    assert len(read_attempts(db, failed.id)) == 1


def test_redrive_by_filter_buys_nothing_that_fal_says_will_fail_again(run, db) -> None:
    hopeless, other = add_paid_failure(db, "a"), add_paid_failure(db, "b")
    for job, code in ((hopeless, "content_policy_violation"), (other, "generation_timeout")):
        set_error(db, job, code)
    told = run("redrive", "--state", "failed", "--pay-again", "--dry-run", "--json")
    assert json.loads(told[1]) == {
        "dry_run": True,
        "matched": 1,
        "new_paid_run": 1,
        "left_out": 0,
        "failing_again": 1,
    }
    code, out, err = run("redrive", "--state", "failed", "--pay-again", "--yes")
    assert (code, out.strip()) == (0, "1 new paid run")
    assert "1 are left out: fal says that the same input would fail again" in err
    assert read_job(db, hopeless.id).state is JobState.FAILED
    assert run("redrive", str(hopeless.id), "--pay-again")[0] == 0
    assert read_job(db, hopeless.id).state is JobState.QUEUED


def test_redrive_by_filter_leaves_a_submission_that_may_turn_up(run, db) -> None:
    job = make_job(db, JobState.SUBMISSION_UNKNOWN, now=datetime.now(UTC))
    _, out, _ = run("redrive", "--state", "submission_unknown", "--pay-again", "--yes", "--json")
    assert json.loads(out) == {"matched": 0}
    assert read_job(db, job.id) == job


def test_order_for_many_that_nobody_can_confirm_says_what_scripts_give(db, database_url) -> None:
    job = add(db)
    ended = subprocess.run(
        [EXTEND_VIDEO, "cancel", "--state", "queued"],
        env={**os.environ, "DATABASE_URL": database_url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("no confirmation: in scripts, give --yes\nnothing was changed\n")
    assert read_job(db, job.id).state is JobState.QUEUED


# ------------------------------------------------------------------ completion, colours


def test_completion_knows_states() -> None:
    line = "extend-video list --state arch"
    env = {**os.environ, "_EXTEND_VIDEO_COMPLETE": "complete_bash"}
    env |= {"COMP_WORDS": line, "COMP_CWORD": "3"}
    ended = subprocess.run(
        [EXTEND_VIDEO], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout.split() == ["archiving", "archived"]


def read_terminal(sqlite_url: str) -> str:
    """What `list` prints on a terminal."""
    master, slave = pty.openpty()
    settings = {"DATABASE_URL": sqlite_url, "TERM": "xterm-256color", "PATH": os.environ["PATH"]}
    with subprocess.Popen(
        [EXTEND_VIDEO, "list"], stdout=slave, stderr=slave, stdin=slave, env=settings
    ) as process:
        os.close(slave)
        shown = b""
        while chunk := _read_or_end(master):
            shown += chunk
        process.wait(timeout=30)
    os.close(master)
    return shown.decode()


def _read_or_end(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # the other end is closed
        return b""


def test_colours_are_for_terminals(run, db, database_url) -> None:
    move_job(db, add(db), JobEvent.JOB_CANCELLED)
    assert "\x1b[33mcancelled" in read_terminal(database_url)
    plain = run("list")[1]
    assert "cancelled" in plain
    assert "\x1b" not in plain


@pytest.mark.parametrize("is_typed", [False, True], ids=["file", "stdin"])
def test_lines_behind_a_byte_order_mark_are_taken(run, db, tmp_path, monkeypatch, is_typed) -> None:
    line = '\ufeff{"prompt": "p1", "video_url": "https://e.com/a.mp4"}\n'
    file = tmp_path / "bom.jsonl"
    file.write_text(line, "utf-8")
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(line.encode())))

    code, out, err = run("enqueue", "--from", "-" if is_typed else str(file))

    assert code == 0, err
    assert read_job(db, UUID(out.strip())).input["prompt"] == "p1"

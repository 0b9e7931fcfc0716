"""`extend-video verify`, `rearchive`, `prune`: what they print, how they end, and being killed."""

import io
import os
import pty
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from uuid_utils.compat import uuid7

from tests.harness.archives import (
    VIDEO,
    archive_ended,
    insert_all_ended,
    insert_ended,
    list_names,
    name_of,
    set_columns,
)
from tests.harness.commands import Run, build_run
from tests.harness.jobs import insert_job, read_job
from tests.harness.processes import EXTEND_VIDEO, Yard, run_yard
from tests.harness.waiting import wait_until
from worker.ground.db import Database
from worker.jobs.models import JobRow
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.media.layout import ARCHIVE_MARK
from worker.media.local_store import LocalStore

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=100)


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(Path(tmp_path) / "archive")


@pytest.fixture
def settings(database_url, store) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "ARCHIVE_URL": f"file:{store.root}"}


@pytest.fixture
def run(monkeypatch, capsys, settings) -> Run:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return build_run(monkeypatch, capsys)


@pytest.fixture
def yard(tmp_path) -> Iterator[Yard]:
    with run_yard(tmp_path) as running:
        yield running


def test_verify_without_a_table_says_only_that(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'empty.db'}")
    for options in ((), ("--sample", "1")):
        ended = run("verify", *options)
        assert ended.code == 1
        assert ended.err.startswith("outdated_schema: "), ended.err
        assert "objects" not in ended.err


def count_jobs(db: Database, *conditions: Any) -> int:
    with db.reading() as connection:
        statement = select(func.count()).select_from(JobRow).where(*conditions)
        return int(connection.execute(statement).scalar_one())


def remove_video(store: LocalStore, job: Job) -> None:
    store.delete(name_of(store, job.archive_uri))


# ------------------------------------------------------------------ verify


def test_verify_of_sound_archive_says_so_and_ends_with_0(run, db, store) -> None:
    for _ in range(3):
        archive_ended(db, store)
    ended = run("verify")
    assert (ended.code, ended.out) == (0, "verified 3 objects, 0.0 MiB: all fine\n")
    lines = ended.err.splitlines()
    assert lines[0] == "3 objects, 0.0 MiB"
    assert lines[-1] == "verifying: 0.0 of 0.0 MiB"


def test_verify_lists_damage_with_its_reason_and_ends_with_1(run, db, store) -> None:
    archive_ended(db, store)
    job = archive_ended(db, store)
    remove_video(store, job)
    ended = run("verify")
    assert ended.code == 1
    name = name_of(store, job.archive_uri)
    assert ended.out.splitlines() == [
        f"{job.id}  missing: the archive has no {name}",
        "verified 2 objects, 0.0 MiB: 1 damaged",
    ]
    told = run("verify", "--json", "--tenant", "default").json
    assert (told["fine"], told["checked"], told["damages"]) == (False, 2, 1)
    assert told["damaged"] == [
        {
            "job_id": str(job.id),
            "uri": job.archive_uri,
            "reason": f"missing: the archive has no {name}",
        }
    ]


def test_verify_of_a_sample_reads_so_many(run, db, store) -> None:
    for _ in range(5):
        archive_ended(db, store)
    assert run("verify", "--sample", "2", "--json").json["checked"] == 2
    assert run("verify", "--tenant", "nobody").out == "verified 0 objects, 0.0 MiB: all fine\n"


def test_verify_in_the_wrong_archive_is_no_success(run, db, store, monkeypatch, tmp_path) -> None:
    archive_ended(db, store)
    monkeypatch.setenv("ARCHIVE_URL", f"file:{tmp_path}/other")
    ended = run("verify")
    assert ended.code == 1
    assert ended.out.startswith("note  1 objects are in an archive other than ARCHIVE_URL")


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--sample", "0"),
        ("verify", "--not-since", "yesterday"),
        ("verify", "--orphans", "--sample", "3"),
        ("verify", "--orphans", "--tenant", "t"),
        ("rearchive",),
        ("rearchive", "x"),
    ],
)
def test_command_used_wrongly_ends_with_2(monkeypatch, capsys, arguments) -> None:
    ended = build_run(monkeypatch, capsys)(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage:" in ended.err


def test_orphans_are_listed_and_end_with_1(run, db, store) -> None:
    archive_ended(db, store)
    assert run("verify", "--orphans").code == 0
    store.put("2026/01/01/stranger.mp4", VIDEO, "video/mp4")
    old = (NOW - timedelta(days=2)).timestamp()
    for name in list_names(store):
        os.utime(store.root / name, (old, old))
    ended = run("verify", "--orphans")
    assert ended.code == 1
    first, last = ended.out.splitlines()
    assert first.startswith(f"2026/01/01/stranger.mp4  {len(VIDEO)}  ")
    assert last.startswith("5 objects, 1 without a row (0.0 MiB); 0 younger than 24 hours")
    told = run("verify", "--orphans", "--json").json
    assert [one["name"] for one in told["orphans"]] == ["2026/01/01/stranger.mp4"]
    assert told["counts"] == {
        "objects": 5,
        "young": 0,
        "orphans": 1,
        "orphan_bytes": len(VIDEO),
    }


def block_at(store: LocalStore, job: Job) -> Callable[[], None]:
    """Whoever opens the job's video waits; gives what undoes it."""
    path = store.root / name_of(store, job.archive_uri)
    path.unlink()
    os.mkfifo(path)

    def unblock() -> None:
        path.unlink()
        path.write_bytes(VIDEO)

    return unblock


def test_verify_that_is_interrupted_says_how_to_go_on_where_it_was(
    run, db, store, settings, yard
) -> None:
    jobs = [archive_ended(db, store) for _ in range(6)]
    remove_video(store, jobs[1])
    unblock = block_at(store, jobs[3])
    part = yard.start("verify", [EXTEND_VIDEO, "verify", "--tenant", "default"], settings)
    wait_until(lambda: count_jobs(db, JobRow.archive_verified_at.is_not(None)) == 3)
    part.process.send_signal(signal.SIGINT)
    assert part.wait() == 130
    read = {job.id: read_job(db, job.id).archive_verified_at for job in jobs[:3]}
    assert "3 objects were verified; to resume:" in part.read_log()
    command = shlex.split(part.read_log().splitlines()[-1])[1:]
    assert command[-2:] == ["--tenant", "default"]
    unblock()
    ended = run(*command, "--json")
    assert (ended.code, ended.json["checked"]) == (1, 3)
    assert [one["job_id"] for one in ended.json["damaged"]] == [str(jobs[1].id)]
    assert {job_id: read_job(db, job_id).archive_verified_at for job_id in read} == read
    assert count_jobs(db, JobRow.archive_verified_at.is_(None)) == 0


# ------------------------------------------------------------------ rearchive


def test_rearchive_tells_of_each_job_and_fails_if_one_does(run, db, store) -> None:
    intact, live = archive_ended(db, store), insert_job(db)
    nobody = "00000000-0000-7000-8000-000000000007"
    ended = run("rearchive", str(intact.id), str(live.id), nobody)
    assert ended.code == 1
    first, second, third = ended.out.splitlines()
    assert first == f"{intact.id}  intact"
    assert second.startswith(f"{live.id}  failed  too_late: job {live.id} is queued")
    assert third == f"{nobody}  failed  job_not_found: no job has the id {nobody}"
    told = run("rearchive", str(intact.id), "--json")
    assert told.code == 0
    assert told.json == [{"id": str(intact.id), "outcome": "intact", "code": None, "why": None}]


def test_rearchive_of_what_fal_has_no_more_says_why(run, db, store, monkeypatch) -> None:
    monkeypatch.setenv("FAL_MEDIA_HOSTS", "media.test")
    job = archive_ended(db, store)
    remove_video(store, job)
    ended = run("rearchive", str(job.id))
    assert ended.code == 1
    assert re.match(rf"{job.id}  failed  media_refused: .*FAL_MEDIA_HOSTS", ended.out)
    assert read_job(db, job.id).archive_uri == job.archive_uri


# ------------------------------------------------------------------ prune


OLD = ("--older-than", "90d")


def test_dry_run_tells_count_bytes_and_times_and_changes_nothing(run, db, store) -> None:
    for days in (0, 5):
        archive_ended(db, store, ended_at=LONG_AGO - timedelta(days=days))
    archive_ended(db, store, ended_at=NOW)
    names = list_names(store)
    ended = run("prune", *OLD, "--dry-run")
    oldest = f"{LONG_AGO - timedelta(days=5):%F %T}"
    told = f"ended {oldest} to {LONG_AGO:%F %T} UTC: to be pruned"
    assert (ended.code, ended.out) == (0, f"2 jobs, {2 * len(VIDEO)} bytes of video, {told}\n")
    assert run("prune", *OLD, "--dry-run", "--json").json["jobs"] == 2
    assert (list_names(store), count_jobs(db)) == (names, 3)


def test_prune_with_consent_deletes_and_tells(run, db, store) -> None:
    archive_ended(db, store, ended_at=LONG_AGO, labels={"team": "a"})
    insert_ended(db, ended_at=LONG_AGO, labels={"team": "b"})
    young = archive_ended(db, store, ended_at=NOW)
    first = run("prune", *OLD, "--label", "team=a", "--state", "archived", "--yes")
    assert first.code == 0
    assert first.out.startswith(f"1 jobs, {len(VIDEO)} bytes of video, ended ")
    assert run("prune", *OLD, "--yes", "--json").json["jobs"] == 1
    assert run("prune", *OLD, "--yes").out == "0 jobs, 0 bytes of video: pruned\n"
    assert count_jobs(db) == 1
    assert [str(young.id) in name for name in list_names(store)] == [True] * 4


def test_prune_of_files_only_keeps_rows(run, db, store) -> None:
    job = archive_ended(db, store, ended_at=LONG_AGO)
    ended = run("prune", *OLD, "--files-only", "--yes")
    assert ended.out.startswith("1 jobs' files, ")
    after = read_job(db, job.id)
    assert (after.archive_uri, after.archive_sha256) == (None, job.archive_sha256)
    assert run("verify", "--json").json["checked"] == 0


def test_prune_tells_of_jobs_with_files_elsewhere(run, db, store) -> None:
    job = archive_ended(db, store, ended_at=LONG_AGO)
    set_columns(db, job.id, archive_uri="s3://elsewhere/a.mp4")
    ended = run("prune", *OLD, "--yes")
    assert ended.out.splitlines()[1] == "1 jobs have files in another archive: left alone"
    assert count_jobs(db) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        *(("--older-than", age) for age in ("90", "0d", "2999-01-01", "1d2h", "3 months")),
        (*OLD, "--state", "queued"),
        (*OLD, "--label", "team", "--yes"),
    ],
)
def test_prune_used_wrongly_ends_with_2_and_deletes_nothing(
    run, db, monkeypatch, arguments
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    insert_ended(db, ended_at=LONG_AGO)
    ended = run("prune", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err
    assert ("invalid time '3 months'; expected" in ended.err) == ("3 months" in arguments)
    assert count_jobs(db) == 1


def test_prune_that_nobody_can_confirm_deletes_nothing_and_says_what_scripts_give(
    run, db, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    insert_ended(db, ended_at=LONG_AGO)
    ended = run("prune", *OLD)
    assert (ended.code, count_jobs(db)) == (1, 1)
    assert "in scripts, give --yes" in ended.err


@pytest.mark.parametrize(("typed", "code"), [("2", 0), ("y", 1)])
def test_prune_on_a_terminal_asks_for_the_number(run, db, monkeypatch, typed, code) -> None:
    for _ in range(2):
        insert_ended(db, ended_at=LONG_AGO)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        os.write(ours, f"{typed}\n".encode())
        ended = run("prune", *OLD)
    os.close(ours)
    assert (ended.code, count_jobs(db)) == (code, 2 * code)
    told = ended.out + ended.err
    assert "the same key buys a new run then" in told
    assert "Type 2 to delete the jobs with their files" in told
    assert ("nothing was changed" in told) == bool(code)


def fill(db: Database, store: LocalStore, number: int) -> list[Path]:
    """So many archived jobs of long ago, their files made without waiting for the disk."""
    directory = store.root / f"{LONG_AGO:%Y/%m/%d}"
    directory.mkdir(parents=True)
    paths, jobs = [], []
    for _ in range(number):
        job_id = uuid7()
        of_job = [directory / f"{job_id}{end}" for end in (".mp4", ".jpg", ".sheet.jpg", ".json")]
        for path in of_job:
            path.write_bytes(b"v")
        named = {"archive_uri": of_job[0].as_uri(), "archive_sidecar_uri": of_job[-1].as_uri()}
        jobs.append({"id": job_id, "archive_bytes": 1, **named})
        paths += of_job
    insert_all_ended(db, jobs, JobState.ARCHIVED, LONG_AGO)
    return paths


def test_prune_killed_within_a_job_is_ended_by_the_next(run, db, store, settings, yard) -> None:
    paths = fill(db, store, 130)
    young, live = archive_ended(db, store, ended_at=NOW), insert_job(db)
    command = ["prune", *OLD, "--yes"]
    part = yard.start("prune", [EXTEND_VIDEO, *command], settings)
    # it goes by batches, and is within one when the batch before is recorded
    wait_until(lambda: count_jobs(db, JobRow.archive_pruned_at.is_not(None)) > 0, 60)
    part.kill()
    assert any(path.exists() for path in paths)
    ended = run(*command)
    assert (ended.code, ended.err) == (0, "")
    assert count_jobs(db) == 2
    assert count_jobs(db, JobRow.archive_uri.is_not(None)) == 1
    assert [str(young.id) in name for name in list_names(store)] == [True] * 4
    assert read_job(db, live.id) == live


@pytest.mark.parametrize(
    "command",
    [("rearchive", "--force"), ("prune", *OLD, "--yes"), ("verify", "--orphans")],
    ids=lambda command: command[0],
)
def test_command_leaves_an_archive_alone_that_is_not_the_one_of_the_table(
    run, db, store, command
) -> None:
    job = archive_ended(db, store)
    assert run("verify").code == 0
    (store.root / ARCHIVE_MARK).write_text("another")
    before, names = read_job(db, job.id), list_names(store)
    ended = run(*command, *([str(job.id)] if command[0] == "rearchive" else []))
    assert (ended.code, ended.out) == (1, "")
    assert "foreign_archive" in ended.err
    assert (read_job(db, job.id), list_names(store)) == (before, names)


def test_verify_on_a_host_with_another_archive_marks_no_copy_as_damaged(run, db, store):
    job = archive_ended(db, store)
    assert run("verify").code == 0
    (store.root / ARCHIVE_MARK).unlink()
    store.delete(name_of(store, job.archive_uri))
    refused = run("verify", "--resume-from", LONG_AGO.isoformat())
    assert refused.code == 1
    assert "foreign_archive" in refused.err
    assert "volume is not mounted" in refused.err
    assert read_job(db, job.id).archive_error is None
    looked = run("doctor")
    assert "volume is not mounted" in looked.out
    assert "there is no such file" not in looked.out

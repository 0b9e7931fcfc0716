"""`extend-video doctor`: violations are found by their ids, what is sound is not."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from typing_extensions import override
from uuid_utils.compat import uuid7

from tests.emulator.processes import Emulator, start_emulator
from tests.harness.archives import WatchedStore
from tests.harness.brokers import find_closed_port
from tests.harness.commands import build_run
from tests.harness.jobs import (
    ENDPOINT,
    LEASE,
    build_result,
    insert_job,
    move_job,
    read_attempts,
    read_job,
)
from tests.harness.webhooks import build_body
from worker.cli.system import REMEDIES
from worker.fal.platform import PlatformClient
from worker.ground.db import Database
from worker.ground.errors import StoreUnavailableError
from worker.jobs import admission, attempts, deliveries, limits, table, walks
from worker.jobs.admission import ACCOUNT, COUNTING, Pause
from worker.jobs.checks import Check, Finding
from worker.jobs.models import Base
from worker.jobs.states import JobEvent, JobState, PauseCause
from worker.jobs.values import (
    Attempt,
    Claim,
    Ending,
    Job,
    Move,
    NewAttempt,
    NewDelivery,
    Outcome,
    Settlement,
    Verdict,
)
from worker.media.layout import ListedObject
from worker.media.store import Store, open_store
from worker.ops import doctor
from worker.ops.doctor import Diagnosis, DoctorPolicy, examine

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
TERMS = DoctorPolicy(ENDPOINT)
VIDEO = b"a video of sorts"


def open_here() -> Store:
    """The archive in the test's own directory, where it stands."""
    return open_store("file:.", Path("spool"))


def run_doctor(db: Database, policy: DoctorPolicy = TERMS, **options: Any) -> Diagnosis:
    options = {"store": open_here(), **options}
    return examine(db=db, platform=None, policy=policy, **options)


def find_all(db: Database, check: Check) -> list[Finding]:
    """The findings of this check, where no other one has any."""
    diagnosis = run_doctor(db)
    assert {one.check for one in diagnosis.findings} <= {check}
    assert diagnosis.counts[check] == len(diagnosis.findings)
    return diagnosis.findings


def change(db: Database, statement: str, **values: Any) -> None:
    """What no code of ours would write."""
    bound = {name: bind(db, value) for name, value in values.items()}
    with db.transaction() as connection:
        connection.execute(text(statement), bound)


def bind(db: Database, value: Any) -> Any:
    if db.engine.dialect.name == "postgresql":
        return value
    match value:
        case UUID():
            return value.hex
        case datetime():
            return value.replace(tzinfo=None).isoformat(" ")
        case _:
            return value


@contextmanager
def without_constraint(db: Database, name: str) -> Iterator[None]:
    """A table whose constraint somebody has dropped."""
    if db.engine.dialect.name == "postgresql":
        change(db, f"ALTER TABLE jobs DROP CONSTRAINT {name}")
        yield
        constraints = Base.metadata.tables["jobs"].constraints
        (ours,) = [one for one in constraints if one.name == name]
        check = str(ours.sqltext)  # type: ignore[attr-defined] # it is a check
        change(db, f"ALTER TABLE jobs ADD CONSTRAINT {name} CHECK ({check}) NOT VALID")
        return
    with db.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints=ON")
    yield
    with db.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints=OFF")


# ------------------------------------------------------------------ rows as the stages write them


def claim(db: Database, job: Job) -> tuple[Job, Attempt]:
    """A queued job in a worker's hands, and the attempt that it begins."""
    now = datetime.now(UTC)
    with db.transaction() as connection:
        policy = Claim("tester:1", now, now + LEASE)
        claimed = table.claim_job(connection, job.id, JobEvent.SUBMISSION_CLAIMED, policy)
        assert claimed is not None
        new = NewAttempt(uuid7(), attempts.hash_token(str(uuid7())), now)
        return claimed, attempts.insert_attempt(connection, claimed, new)


def begin_one(db: Database, **columns: Any) -> tuple[Job, Attempt]:
    return claim(db, insert_job(db, now=NOW, **columns))


def submit_one(db: Database, request_id: str | None = None, **columns: Any) -> tuple[Job, Attempt]:
    """A job at fal, and its attempt."""
    return accept(db, *begin_one(db, **columns), request_id or str(uuid7()))


def accept(db: Database, job: Job, attempt: Attempt, request_id: str) -> tuple[Job, Attempt]:
    known = {"fal_request_id": request_id}
    with db.transaction() as connection:
        move = Move(NOW, NOW + LEASE, columns=known)
        moved = table.apply_event(connection, job, JobEvent.SUBMISSION_ACCEPTED, move)
        settled = Settlement(Outcome.ACCEPTED, NOW, 200, request_id)
        attempts.record_outcome(connection, attempt.id, settled)
    assert moved is not None
    return moved, next(one for one in read_attempts(db, job.id) if one.id == attempt.id)


def deliver(db: Database, attempt: Attempt, verdict: Verdict, **changes: Any) -> int:
    """The delivery's id."""
    request_id = changes.pop("request_id", attempt.fal_request_id)
    body = json.dumps(build_body(request_id=request_id)).encode()
    with db.transaction() as connection:
        received_at = changes.get("received_at", NOW)
        new = NewDelivery(received_at, request_id, None, "OK", verdict, body)
        deliveries.count_delivery(connection, attempt, new)
        return deliveries.list_deliveries(connection, attempt.job_id)[-1].id


def complete(db: Database, attempt: Attempt, ending: Ending = Ending.OK) -> None:
    with db.transaction() as connection:
        attempts.complete_attempt(connection, attempt.id, ending, NOW)


def archive_one(db: Database, directory: Path) -> tuple[Job, Attempt]:
    """A job at its good end, with its file."""
    job, attempt = submit_one(db)
    deliver(db, attempt, Verdict.RECORDED)
    complete(db, attempt)
    job = move_job(db, move_job(db, job, JobEvent.RESULT_ARRIVED), JobEvent.ARCHIVE_CLAIMED)
    path = directory / f"{job.id}.mp4"
    path.write_bytes(VIDEO)
    stored = {
        "archive_uri": path.as_uri(),
        "archive_sha256": "0" * 64,
        "archive_bytes": len(VIDEO),
    }
    with db.transaction() as connection:
        move = Move(NOW, columns=stored)
        archived = table.apply_event(connection, job, JobEvent.ARCHIVE_RECORDED, move)
    assert archived is not None
    return archived, attempt


def fail_one(db: Database) -> tuple[Job, Attempt]:
    job, attempt = begin_one(db)
    settle(db, attempt, Outcome.REJECTED)
    return move_job(db, job, JobEvent.SUBMISSION_REJECTED), attempt


def settle(db: Database, attempt: Attempt, outcome: Outcome) -> None:
    with db.transaction() as connection:
        attempts.record_outcome(connection, attempt.id, Settlement(outcome, NOW))


def lose_one(db: Database, **columns: Any) -> tuple[Job, Attempt]:
    """A job whose submission came to nobody knows what."""
    job, attempt = begin_one(db, **columns)
    settle(db, attempt, Outcome.UNKNOWN)
    return move_job(db, job, JobEvent.SUBMISSION_LOST), attempt


def resubmit(db: Database, job: Job, dead: Attempt) -> tuple[Job, Attempt]:
    """A second attempt after the first was taken for dead."""
    settle(db, dead, Outcome.DEAD)
    claimed, attempt = claim(db, move_job(db, job, JobEvent.DEATH_PROVEN))
    return accept(db, claimed, attempt, str(uuid7()))


def redrive_failed_one(db: Database) -> None:
    """Paid again, by an operator's order, after the model had failed."""
    job, attempt = submit_one(db)
    deliver(db, attempt, Verdict.RECORDED)
    complete(db, attempt, Ending.FAILED)
    failed = move_job(db, job, JobEvent.FAILURE_ARRIVED)
    job, attempt = claim(db, move_job(db, failed, JobEvent.SUBMIT_REDRIVEN))
    accept(db, job, attempt, str(uuid7()))


def cancel_one(db: Database) -> None:
    job, attempt = submit_one(db)
    job = move_job(db, job, JobEvent.CANCEL_REQUESTED)
    complete(db, attempt, Ending.CANCELLED)
    move_job(db, job, JobEvent.JOB_CANCELLED)


def overtake_one(db: Database) -> None:
    """The webhook has come before the reply to the submission."""
    job, attempt = begin_one(db)
    with db.transaction() as connection:
        attempts.adopt_request(connection, attempt, "early-request")
    deliver(db, attempt, Verdict.RECORDED, request_id="early-request")
    complete(db, attempt)
    move_job(db, job, JobEvent.RESULT_ARRIVED)


def make_all(db: Database, directory: Path) -> None:
    """A job in every state, as the stages leave them, some with an odd but sound past."""
    insert_job(db, now=NOW)
    begin_one(db)
    submit_one(db)
    lose_one(db)
    resubmit(db, *lose_one(db))
    redrive_failed_one(db)
    cancel_one(db)
    overtake_one(db)
    _, attempt = submit_one(db)
    deliver(db, attempt, Verdict.HINT, received_at=NOW - DAY / 2)
    fail_one(db)
    archive_one(db, directory)


# ------------------------------------------------------------------ rows


def test_doctor_of_empty_table_is_clean(db) -> None:
    diagnosis = run_doctor(db)
    assert diagnosis.is_clean
    assert (diagnosis.jobs, diagnosis.archived, diagnosis.files, diagnosis.listed) == (
        0,
        0,
        0,
        None,
    )


@pytest.mark.both_databases
def test_doctor_of_sound_table_is_clean(db, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(walks, "SLICE", 2)
    make_all(db, tmp_path)
    diagnosis = run_doctor(db)
    assert diagnosis.findings == []
    assert diagnosis.is_clean
    assert (diagnosis.jobs, diagnosis.archived, diagnosis.files) == (11, 1, 1)
    assert set(diagnosis.counts) == set(Check) - {Check.ORPHAN_AT_FAL, Check.MISSING_AT_FAL}


def test_doctor_finds_each_violation_once_in_several_slices(db, monkeypatch) -> None:
    monkeypatch.setattr(walks, "SLICE", 1)
    jobs = [submit_one(db)[0] for _ in range(3)]
    change(db, "DELETE FROM events")
    found = [one.job_id for one in find_all(db, Check.BROKEN_HISTORY)]
    assert sorted(map(str, found)) == sorted(str(job.id) for job in jobs)


@pytest.mark.both_databases
def test_live_row_without_due_time_is_found(db) -> None:
    job, _ = submit_one(db)
    with without_constraint(db, "ck_jobs_due_at"):
        change(db, "UPDATE jobs SET due_at = NULL WHERE id = :id", id=job.id)
        found = find_all(db, Check.DUE_TIME)
        change(db, "UPDATE jobs SET due_at = :now WHERE id = :id", id=job.id, now=NOW)
    (one,) = found
    assert (one.job_id, one.detail) == (job.id, "submitted: it is live without a due time")


def test_ended_row_with_due_time_is_found(db) -> None:
    job, _ = fail_one(db)
    with without_constraint(db, "ck_jobs_due_at"):
        change(db, "UPDATE jobs SET due_at = :now WHERE id = :id", id=job.id, now=NOW)
        found = find_all(db, Check.DUE_TIME)
        change(db, "UPDATE jobs SET due_at = NULL WHERE id = :id", id=job.id)
    assert [one.job_id for one in found] == [job.id]


@pytest.mark.both_databases
@pytest.mark.parametrize("outcome", [None, Outcome.UNKNOWN])
def test_unsettled_attempt_of_ended_job_is_found(db, outcome) -> None:
    job, attempt = begin_one(db)
    move_job(db, job, JobEvent.SUBMISSION_REJECTED)
    if outcome is not None:
        settle(db, attempt, outcome)
    (found,) = find_all(db, Check.UNTRACKED_PAYMENT)
    assert (found.job_id, found.attempt_id) == (job.id, attempt.id)
    assert found.detail.endswith("the job is failed: nothing polls fal")


def test_unsettled_attempt_that_fal_has_finished_is_sound(db) -> None:
    job, attempt = begin_one(db)
    complete(db, attempt, Ending.FAILED)
    move_job(db, job, JobEvent.SUBMISSION_REJECTED)
    assert run_doctor(db).is_clean


@pytest.mark.both_databases
def test_attempt_without_outcome_that_nobody_holds_is_found(db) -> None:
    job, attempt = begin_one(db)
    move_job(db, job, JobEvent.SUBMISSION_CLAIM_EXPIRED)
    (found,) = find_all(db, Check.UNTRACKED_PAYMENT)
    assert (found.job_id, found.attempt_id) == (job.id, attempt.id)
    assert "no worker holds its submission" in found.detail


def test_attempt_of_an_earlier_claim_without_outcome_is_found(db) -> None:
    job, attempt = begin_one(db)
    claim(db, move_job(db, job, JobEvent.SUBMISSION_POSTPONED))
    (found,) = find_all(db, Check.UNTRACKED_PAYMENT)
    assert found.attempt_id == attempt.id


@pytest.mark.both_databases
def test_charge_noted_as_extra_is_found(db) -> None:
    job, dead = lose_one(db)
    resubmit(db, job, dead)
    with db.transaction() as connection:
        attempts.adopt_request(connection, dead, "late-request")
        attempts.note_extra_charge(connection, dead.id, NOW)
    (found,) = find_all(db, Check.TWO_CHARGES)
    assert (found.job_id, found.attempt_id, found.fal_request_id) == (
        job.id,
        dead.id,
        "late-request",
    )


@pytest.mark.both_databases
@pytest.mark.parametrize("ending", [None, Ending.OK])
def test_two_requests_of_one_job_are_found(db, ending) -> None:
    job, dead = lose_one(db)
    _, second = resubmit(db, job, dead)
    with db.transaction() as connection:
        attempts.adopt_request(connection, dead, "late-request")
    if ending is not None:
        complete(db, dead, ending)
        complete(db, second, ending)
    (found,) = find_all(db, Check.TWO_CHARGES)
    assert found.job_id == job.id
    assert found.detail.startswith("2 attempts have a request")


def test_second_request_after_one_that_gave_nothing_is_sound(db) -> None:
    job, dead = lose_one(db)
    resubmit(db, job, dead)
    with db.transaction() as connection:
        attempts.adopt_request(connection, dead, "late-request")
    complete(db, dead, Ending.CANCELLED)
    assert run_doctor(db).is_clean


def add_event(db: Database, job: Job, source: str | None, target: str, reason: str) -> None:
    change(
        db,
        "INSERT INTO events (job_id, at, from_state, to_state, reason, fence) "
        "VALUES (:id, :now, :source, :target, :reason, 0)",
        id=job.id,
        now=NOW,
        source=source,
        target=target,
        reason=reason,
    )


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("target", "reason"), [("queued", "submit_redriven"), ("archived", "archive_recorded")]
)
def test_event_after_archiving_is_found(db, tmp_path, target, reason) -> None:
    job, _ = archive_one(db, tmp_path)
    add_event(db, job, "archived", target, reason)
    if target != "archived":
        change(db, f"UPDATE jobs SET state = '{target}', due_at = :now", now=NOW)
    (found,) = find_all(db, Check.ENDED_ROW_CHANGED)
    assert found.job_id == job.id
    assert f"archived → {target}" in found.detail


def test_event_out_of_an_end_that_is_no_edge_is_found(db) -> None:
    job, _ = fail_one(db)
    add_event(db, job, "failed", "completed", "submission_accepted")
    add_event(db, job, "completed", "archiving", "archive_claimed")
    change(db, "UPDATE jobs SET state = 'archiving', due_at = :now", now=NOW)
    (found,) = find_all(db, Check.ENDED_ROW_CHANGED)
    assert found.job_id == job.id
    assert found.detail.endswith("is no edge of the state machine")


@pytest.mark.parametrize(
    ("event", "columns"),
    [(JobEvent.SUBMIT_REDRIVEN, {}), (JobEvent.RESULT_ARRIVED, {"result": build_result()})],
)
def test_legal_way_out_of_an_end_is_sound(db, event, columns) -> None:
    job, _ = fail_one(db)
    with db.transaction() as connection:
        move = Move(NOW, NOW + LEASE, columns=columns)
        assert table.apply_event(connection, job, event, move) is not None
    assert run_doctor(db).is_clean


def test_replaced_copy_of_an_archived_job_is_sound(db, tmp_path) -> None:
    job, _ = archive_one(db, tmp_path)
    assert move_job(db, job, JobEvent.ARCHIVE_REPLACED).archived_at == job.archived_at
    assert run_doctor(db).is_clean


def test_archive_that_verify_found_damaged_is_found_until_it_is_pruned(db, tmp_path) -> None:
    job, _ = archive_one(db, tmp_path)
    change(db, "UPDATE jobs SET archive_error = 'missing: there is no such object'")
    (found,) = find_all(db, Check.DAMAGED_ARCHIVE)
    assert (found.job_id, found.detail) == (
        job.id,
        f"{job.archive_uri}: missing: there is no such object",
    )
    change(db, "UPDATE jobs SET archive_pruned_at = :now", now=NOW)
    assert run_doctor(db).is_clean


def test_archived_row_whose_files_are_pruned_is_sound(db, tmp_path) -> None:
    job, _ = archive_one(db, tmp_path)
    Path(str(job.archive_uri).removeprefix("file://")).unlink()
    change(db, "UPDATE jobs SET archive_pruned_at = :now", now=NOW)
    assert run_doctor(db, DoctorPolicy(ENDPOINT, every_file=True)).is_clean
    change(db, "UPDATE jobs SET archive_uri = NULL")
    assert run_doctor(db, DoctorPolicy(ENDPOINT, every_file=True)).is_clean


@pytest.mark.both_databases
def test_ended_row_that_has_changed_without_event_is_found(db, tmp_path) -> None:
    job, _ = archive_one(db, tmp_path)
    change(db, "UPDATE jobs SET state = 'cancelled', cancelled_at = :now", now=NOW)
    (found,) = find_all(db, Check.ENDED_ROW_CHANGED)
    assert found.job_id == job.id
    assert found.detail.endswith("is the newest one, yet the job is cancelled")


def test_live_row_that_has_changed_without_event_is_found(db) -> None:
    job, _ = submit_one(db)
    change(db, "UPDATE jobs SET state = 'completed'")
    (found,) = find_all(db, Check.BROKEN_HISTORY)
    assert found.job_id == job.id
    assert found.detail.endswith("is the newest one, yet the job is completed")


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("DELETE FROM events WHERE reason = 'submission_claimed'", "follows an event into queued"),
        ("DELETE FROM events WHERE reason = 'enqueued'", "is the first one, yet not its enqueuing"),
        ("UPDATE events SET reason = 'chance' WHERE reason = 'submission_claimed'", "is no edge"),
        ("DELETE FROM events", "it has no events"),
    ],
)
def test_history_with_a_hole_is_found(db, damage, told) -> None:
    job, _ = submit_one(db)
    change(db, damage)
    (found,) = find_all(db, Check.BROKEN_HISTORY)
    assert found.job_id == job.id
    assert told in found.detail


def test_event_of_a_state_that_nobody_knows_is_found(db) -> None:
    job, _ = submit_one(db)
    change(db, "UPDATE events SET to_state = 'limbo' WHERE reason = 'submission_claimed'")
    findings = find_all(db, Check.BROKEN_HISTORY)
    assert {one.job_id for one in findings} == {job.id}


@pytest.mark.both_databases
@pytest.mark.parametrize("column", ["result", "archive_bytes"])
def test_archived_row_that_lacks_something_is_found(db, tmp_path, column) -> None:
    job, _ = archive_one(db, tmp_path)
    change(db, f"UPDATE jobs SET {column} = NULL")
    (found,) = find_all(db, Check.INCOMPLETE_ARCHIVED_ROW)
    assert found.job_id == job.id


@pytest.mark.both_databases
def test_delivery_that_names_another_request_is_found(db) -> None:
    job, attempt = submit_one(db)
    complete(db, attempt)
    delivery_id = deliver(db, attempt, Verdict.KEPT, request_id="of-somebody-else")
    assert find_all(db, Check.UNMATCHED_DELIVERY) == [
        Finding(
            Check.UNMATCHED_DELIVERY,
            job.id,
            "it names another request than its attempt",
            attempt.id,
            delivery_id,
            "of-somebody-else",
        )
    ]


def test_delivery_to_attempt_without_request_is_found(db) -> None:
    _, attempt = lose_one(db)
    delivery_id = deliver(db, attempt, Verdict.KEPT, request_id="never-adopted")
    (found,) = find_all(db, Check.UNMATCHED_DELIVERY)
    assert found.delivery_id == delivery_id


@pytest.mark.both_databases
def test_recorded_delivery_without_effect_is_found(db) -> None:
    job, attempt = submit_one(db)
    delivery_id = deliver(db, attempt, Verdict.RECORDED)
    (found,) = find_all(db, Check.UNMATCHED_DELIVERY)
    assert (found.job_id, found.delivery_id) == (job.id, delivery_id)
    assert found.detail == "it was recorded, and its attempt is not completed"


def test_recorded_delivery_of_first_release_is_matched_by_its_jobs_state(db, tmp_path) -> None:
    """It has not written when an attempt was completed."""
    archive_one(db, tmp_path)
    change(db, "UPDATE attempts SET completed_at = NULL, ending = NULL")
    assert run_doctor(db).is_clean


@pytest.mark.both_databases
def test_delivery_of_another_job_than_its_attempt_is_found(db) -> None:
    other, _ = submit_one(db)
    _, attempt = submit_one(db)
    complete(db, attempt)
    deliver(db, attempt, Verdict.KEPT)
    change(db, "UPDATE deliveries SET job_id = :id", id=other.id)
    (found,) = find_all(db, Check.UNMATCHED_DELIVERY)
    assert found.detail == "it belongs to another job than its attempt"


@pytest.mark.parametrize(
    ("age", "completed", "count"),
    [(2 * DAY, False, 1), (DAY / 2, False, 0), (2 * DAY, True, 0)],
)
def test_hint_that_led_to_nothing_for_a_day_is_found(db, age, completed, count) -> None:
    job, attempt = submit_one(db)
    deliver(db, attempt, Verdict.HINT, received_at=NOW - age, request_id="whatever-it-says")
    if completed:
        complete(db, attempt)
    assert [one.job_id for one in find_all(db, Check.UNMATCHED_DELIVERY)] == [job.id] * count


# ------------------------------------------------------------------ files


def count_faults(diagnosis: Diagnosis) -> int:
    return diagnosis.counts[Check.ARCHIVED_FILE]


@pytest.mark.parametrize(
    ("damage", "every_file"), [("removed", True), ("shortened", False), ("directory", False)]
)
def test_archived_row_without_its_file_is_found(db, tmp_path, damage, every_file) -> None:
    job, _ = archive_one(db, tmp_path)
    path = tmp_path / f"{job.id}.mp4"
    path.unlink()
    if damage == "shortened":
        path.write_bytes(VIDEO[:-1])
    if damage == "directory":
        path.mkdir()
    diagnosis = run_doctor(db, DoctorPolicy(ENDPOINT, every_file))
    (found,) = diagnosis.findings
    assert (found.check, found.job_id) == (Check.ARCHIVED_FILE, job.id)
    assert path.as_uri() in found.detail
    assert (diagnosis.archived, diagnosis.files) == (1, 1)


@pytest.mark.parametrize("uri", ["file:///a.mp4", "s3://bucket/a.mp4"])
def test_archived_row_with_a_uri_of_another_archive_is_found(db, tmp_path, uri) -> None:
    archive_one(db, tmp_path)
    change(db, "UPDATE jobs SET archive_uri = :uri", uri=uri)
    (found,) = find_all(db, Check.ARCHIVED_FILE)
    assert found.detail == f"{uri}: it is not of the archive that ARCHIVE_URL names"


def test_file_in_a_store_that_is_no_directory_is_looked_at_there(db, tmp_path) -> None:
    store = open_store("memory:", tmp_path / "spool")
    archive_one(db, tmp_path)
    stored = store.put("2026/a.mp4", VIDEO, "video/mp4")
    change(db, "UPDATE jobs SET archive_uri = :uri", uri=stored.uri)
    assert count_faults(run_doctor(db, store=store)) == 0
    store.put("2026/a.mp4", VIDEO[:-1], "video/mp4")
    assert count_faults(run_doctor(db, store=store)) == 1
    store.delete("2026/a.mp4")
    diagnosis = run_doctor(db, store=store)
    assert (count_faults(diagnosis), diagnosis.archived, diagnosis.files) == (1, 1, 1)


class StoreAway(WatchedStore):
    """One that does not answer."""

    @override
    def stat(self, name: str) -> ListedObject | None:
        raise StoreUnavailableError("there is no such bucket")


def test_archive_that_does_not_answer_is_left_alone_after_a_few_files(db, tmp_path) -> None:
    for _ in range(5):
        archive_one(db, tmp_path)
    diagnosis = run_doctor(db, store=StoreAway(open_here()))
    assert count_faults(diagnosis) == diagnosis.files == 3
    assert "there is no such bucket" in diagnosis.findings[0].detail
    told = "2 more archived files were not checked: the archive cannot be read"
    assert told in diagnosis.notes


def test_sample_of_files_is_bounded_and_all_is_all(db, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "SAMPLE", 3)
    monkeypatch.setattr(walks, "SLICE", 2)
    for _ in range(8):
        job, _ = archive_one(db, tmp_path)
        (tmp_path / f"{job.id}.mp4").unlink()
    sampled = run_doctor(db)
    assert (sampled.archived, sampled.files, count_faults(sampled)) == (8, 3, 3)
    assert len({one.job_id for one in sampled.findings}) == 3
    every = run_doctor(db, DoctorPolicy(ENDPOINT, every_file=True))
    assert (every.archived, every.files, count_faults(every)) == (8, 8, 8)


def test_findings_beyond_what_can_be_read_are_counted(db, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "MOST_FINDINGS", 2)
    for _ in range(5):
        submit_one(db)
    change(db, "DELETE FROM events")
    diagnosis = run_doctor(db)
    assert (diagnosis.counts[Check.BROKEN_HISTORY], len(diagnosis.findings)) == (5, 2)


def test_pause_is_noted_and_no_violation(db) -> None:
    insert_job(db, now=NOW)
    with db.transaction() as connection:
        refused = Pause(
            ACCOUNT, PauseCause.ACCOUNT, "fal_http_403: locked", NOW, until=NOW + LEASE, room=1
        )
        counted = Pause(ACCOUNT, PauseCause.BUSY, "fal_http_502", NOW, room=COUNTING)
        for pause in (refused, counted):
            admission.keep_pause(connection, pause)
        limits.pass_gate(connection, "listing", NOW, LEASE)
    diagnosis = run_doctor(db)
    change(db, "DELETE FROM pauses")
    assert diagnosis.is_clean
    (note,) = diagnosis.notes
    assert note.startswith("submissions of account are paused, next try at ")
    assert note.endswith(" UTC: fal_http_403: locked")


# ------------------------------------------------------------------ fal's list


@pytest.fixture(scope="module")
def shared_fal(tmp_path_factory) -> Iterator[Emulator]:
    directory = tmp_path_factory.mktemp("fal")
    with start_emulator(directory, "--render", "fake", "--concurrency", "8") as emulator:
        yield emulator


@pytest.fixture
def fal(shared_fal) -> Iterator[Emulator]:
    yield shared_fal
    shared_fal.client.delete("/_emulator/faults")


@pytest.fixture
def began() -> datetime:
    """Requests of earlier tests are older than this."""
    return datetime.now(UTC)


@pytest.fixture
def compare(db, fal, began, monkeypatch) -> Iterator[Callable[[], Diagnosis]]:
    """Examines the window of this test only."""
    platform = PlatformClient(f"{fal.url}/v1", SecretStr("emulator-key"))
    monkeypatch.setattr(doctor, "MARGIN", timedelta())

    def run() -> Diagnosis:
        now = datetime.now(UTC)
        policy = DoctorPolicy(ENDPOINT, window=now - began)
        return examine(
            db=db, store=open_here(), platform=platform, policy=policy, clock=lambda: now
        )

    yield run
    platform.close()


def buy(fal: Emulator, job_input: Mapping[str, Any], **headers: str) -> str:
    """A request at fal that has ended; its id."""
    stored = {"X-Fal-Store-IO": "1"} | headers
    answer = fal.client.post(f"/{ENDPOINT}", json=dict(job_input), headers=stored)
    request_id = str(answer.json()["request_id"])
    fal.wait_for_status(request_id, "COMPLETED")
    return request_id


def job_request(seed: int) -> dict[str, Any]:
    return {"prompt": "on it goes", "video_url": "https://example.com/a.mp4", "seed": seed}


def test_requests_on_both_sides_are_clean(db, fal, compare) -> None:
    request_id = buy(fal, job_request(1))
    _, attempt = submit_one(db, request_id, input=job_request(1))
    complete(db, attempt)
    diagnosis = compare()
    assert (diagnosis.findings, diagnosis.notes, diagnosis.listed) == ([], [], 1)
    assert set(diagnosis.counts) == set(Check)


def test_requests_whose_input_is_none_of_ours_are_counted_as_not_ours(db, fal, compare) -> None:
    """As on an account that two deployments share."""
    submit_one(db, buy(fal, job_request(1)), input=job_request(1))
    for seed in (2, 3):
        buy(fal, job_request(seed))
    diagnosis = compare()
    assert diagnosis.is_clean
    (note,) = diagnosis.notes
    assert note.startswith("2 requests at fal are not ours: ")
    assert len(diagnosis.not_ours) == 2


def test_second_request_with_the_input_of_an_attempt_is_an_orphan(db, fal, compare) -> None:
    job, attempt = submit_one(db, buy(fal, job_request(1)), input=job_request(1))
    orphan = buy(fal, job_request(1))
    (found,) = compare().findings
    assert found == Finding(
        Check.ORPHAN_AT_FAL,
        job.id,
        "it ended with 200; an attempt with another request at fal has sent the same input",
        attempt.id,
        fal_request_id=orphan,
    )


def test_request_whose_webhook_has_a_token_of_ours_is_an_orphan(db, fal, compare) -> None:
    orphan = buy(fal, job_request(2))
    with db.transaction() as connection:
        values = {"id": uuid7().hex, "orphan": orphan, "at": "2026-11-23 12:00:00+00:00"}
        connection.execute(
            text(
                "INSERT INTO stray_deliveries (job_id, number, token_hash, received_at, "
                "last_received_at, times_received, fal_request_id, status, verdict, body, "
                "body_sha256) VALUES (:id, 1, 't', :at, :at, 1, :orphan, 'OK', 'kept', '', 'b')"
            ),
            values,
        )
    found = [one for one in compare().findings if one.check is Check.ORPHAN_AT_FAL]
    assert [(one.fal_request_id, one.detail) for one in found] == [
        (orphan, "it ended with 200; its webhook has a token of ours, and no attempt has it")
    ]


def test_request_with_the_input_of_an_open_attempt_is_being_resolved(db, fal, compare) -> None:
    lose_one(db, input=job_request(1))
    buy(fal, dict(reversed(job_request(1).items())))
    diagnosis = compare()
    assert diagnosis.is_clean
    assert diagnosis.notes == ["1 requests at fal have the input of an open attempt"]


def test_request_with_the_input_of_a_dead_attempt_is_an_orphan_of_its_job(db, fal, compare) -> None:
    job, dead = lose_one(db, input=job_request(1))
    settle(db, dead, Outcome.DEAD)
    move_job(db, job, JobEvent.DEATH_PROVEN)
    orphan = buy(fal, job_request(1))
    (found,) = compare().findings
    assert (found.check, found.job_id, found.attempt_id, found.fal_request_id) == (
        Check.ORPHAN_AT_FAL,
        job.id,
        dead.id,
        orphan,
    )
    assert "recorded as dead" in found.detail


def test_request_with_the_input_of_a_queued_job_is_one_that_would_be_paid_again(
    db, fal, compare
) -> None:
    """As after a back-up from before the job's submission was restored."""
    job = insert_job(db, input=job_request(1))
    orphan = buy(fal, job_request(1))
    (found,) = compare().findings
    assert (found.check, found.job_id, found.attempt_id, found.fal_request_id) == (
        Check.ORPHAN_AT_FAL,
        job.id,
        None,
        orphan,
    )
    assert "would pay again" in found.detail


def test_request_without_input_beside_an_open_attempt_is_undecided(db, fal, compare) -> None:
    lose_one(db, input=job_request(1))
    buy(fal, job_request(2), **{"X-Fal-Store-IO": "0"})
    diagnosis = compare()
    assert diagnosis.is_clean
    assert len(diagnosis.notes) == 2
    assert "they may be those of open attempts" in diagnosis.notes[1]


def test_request_without_input_and_without_open_attempts_may_be_anybodys(db, fal, compare) -> None:
    buy(fal, job_request(2), **{"X-Fal-Store-IO": "0"})
    diagnosis = compare()
    assert diagnosis.is_clean
    assert "another deployment's" in diagnosis.notes[1]


def test_finished_request_that_fal_does_not_list_is_found(db, compare) -> None:
    job, attempt = submit_one(db, "not-at-fal")
    complete(db, attempt)
    assert compare().findings == [
        Finding(
            Check.MISSING_AT_FAL,
            job.id,
            "fal has finished it, and does not list it",
            attempt.id,
            fal_request_id="not-at-fal",
        )
    ]


def test_unlisted_request_that_may_still_run_is_undecided(db, compare) -> None:
    submit_one(db, "may-run")
    diagnosis = compare()
    assert diagnosis.is_clean
    (note,) = diagnosis.notes
    assert note.endswith("which proves nothing: they may still run")


def test_list_with_a_gap_proves_nothing(db, fal, compare) -> None:
    _, attempt = submit_one(db, "not-at-fal")
    complete(db, attempt)
    buy(fal, job_request(2))
    fal.order({"point": "listing", "kind": "status", "code": 500})
    diagnosis = compare()
    assert diagnosis.is_clean
    assert diagnosis.listed == 0
    gap, undecided = diagnosis.notes
    assert gap.startswith("fal's list is not whole: cannot be read: ")
    assert undecided.endswith("which proves nothing: the list is not whole")


def test_list_without_inputs_still_shows_what_is_missing(db, fal, compare) -> None:
    submit_one(db, buy(fal, job_request(1)))
    _, attempt = submit_one(db, "not-at-fal")
    complete(db, attempt)
    fal.order({"point": "listing", "kind": "omit_payloads"})
    assert [one.fal_request_id for one in compare().findings] == ["not-at-fal"]


def test_attempts_before_the_window_and_of_other_endpoints_are_left_out(db, compare) -> None:
    for request_id in ("old", "other"):
        _, attempt = submit_one(db, request_id)
        complete(db, attempt)
    old, other = "fal_request_id = 'old'", "fal_request_id = 'other'"
    change(db, f"UPDATE attempts SET started_at = :at WHERE {old}", at=NOW - 2 * DAY)
    change(db, f"UPDATE attempts SET endpoint = 'fal-ai/other' WHERE {other}")
    assert compare().is_clean


# ------------------------------------------------------------------ the command


@pytest.fixture
def run(monkeypatch, capsys, database_url) -> Callable[..., tuple[int, str]]:
    """Runs the command in this process; its exit code and what it printed."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("ARCHIVE_URL", "file:.")
    run_command = build_run(monkeypatch, capsys)

    def run_doctor_command(*arguments: str) -> tuple[int, str]:
        ended = run_command("doctor", *arguments)
        return ended.code, ended.out + ended.err

    return run_doctor_command


def test_command_on_sound_table_says_so_and_ends_with_0(db, run, tmp_path) -> None:
    make_all(db, tmp_path)
    code, printed = run()
    assert code == 0
    lines = printed.splitlines()
    made = [check for check in Check if check not in doctor.CHECKS_WITH_KEY]
    assert lines[:-1] == [f"ok  {check.value}" for check in made]
    assert lines[-1] == "examined 11 jobs, 1 archived files"


def test_command_on_violations_prints_whole_ids_and_ends_with_1(db, run) -> None:
    job, attempt = submit_one(db, "the-request")
    delivery_id = deliver(db, attempt, Verdict.RECORDED)
    change(db, "DELETE FROM events")
    code, printed = run("--all")
    assert code == 1
    for whole in (str(job.id), str(attempt.id), f" {delivery_id} ", "the-request"):
        assert whole in printed
    for check in (Check.UNMATCHED_DELIVERY, Check.BROKEN_HISTORY):
        assert f"{check.value}: 1  {REMEDIES[check]}" in printed


def test_command_counts_what_it_does_not_print(db, run, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "MOST_FINDINGS", 2)
    for _ in range(5):
        submit_one(db)
    change(db, "DELETE FROM events")
    assert "and 3 more" in run()[1]


def test_command_prints_json_for_programs(db, run) -> None:
    job, _ = submit_one(db)
    change(db, "DELETE FROM events")
    code, printed = run("--json")
    told = json.loads(printed)
    assert code == 1
    assert told["clean"] is False
    assert told["examined"] == {"jobs": 1, "archived": 0, "files": 0, "listed": None}
    assert told["checks"]["broken_history"] == 1
    assert told["notes"] == []
    assert told["findings"] == [
        {
            "check": "broken_history",
            "job_id": str(job.id),
            "detail": "it has no events",
            "attempt_id": None,
            "delivery_id": None,
            "fal_request_id": None,
        }
    ]


def test_command_with_key_compares_with_fal(db, fal, run, monkeypatch) -> None:
    submit_one(db, buy(fal, job_request(1)), input=job_request(1))
    orphan = buy(fal, job_request(1))
    monkeypatch.setenv("FAL_KEY", "emulator-key")
    monkeypatch.setenv("FAL_PLATFORM_URL", f"{fal.url}/v1")
    code, printed = run("--json", "--hours", "1")
    told = json.loads(printed)
    assert code == 1
    assert told["examined"]["listed"] >= 1
    assert orphan in {one["fal_request_id"] for one in told["findings"]}
    code, printed = run("--hours", "1")
    assert f"{orphan}" in printed
    assert " requests at fal" in printed.splitlines()[-1]


def test_command_with_key_and_no_fal_says_what_it_cannot_tell(db, run, monkeypatch) -> None:
    monkeypatch.setenv("FAL_KEY", "emulator-key")
    monkeypatch.setenv("FAL_PLATFORM_URL", f"http://127.0.0.1:{find_closed_port()}/v1")
    code, printed = run()
    assert code == 0
    assert "note  fal's list is not whole: cannot be read: ConnectError" in printed


def test_command_used_wrongly_ends_with_2(run) -> None:
    for wrong in (("--hours", "0"), ("--hours", "soon"), ("--every",)):
        assert run(*wrong)[0] == 2


def test_command_names_every_check_in_the_operators_document() -> None:
    document = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert set(REMEDIES) == set(Check)
    assert [check for check in Check if f"| `{check}` |" not in document] == []


# ------------------------------------------------------------------ reading only


def test_doctor_works_on_a_file_that_it_may_not_write(db, sqlite_url, run, monkeypatch) -> None:
    submit_one(db)
    place = sqlite_url.removeprefix("sqlite:///")
    read_only = f"sqlite:///file:{place}?mode=ro&uri=true"
    monkeypatch.setenv("DATABASE_URL", read_only)
    as_reader = Database(read_only)
    with pytest.raises(Exception, match="readonly"):
        change(as_reader, "DELETE FROM jobs")
    as_reader.close()
    assert run()[0] == 0


def test_doctor_works_as_a_user_who_may_only_read(postgres, postgres_url, run, monkeypatch):
    db = Database(postgres_url)
    make_one = submit_one(db)[0]
    postgres.execute("CREATE ROLE reader LOGIN")
    change(db, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    postgres.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    reader = postgres_url.replace("//postgres:@", "//reader:@")
    try:
        as_reader = Database(reader)
        with pytest.raises(Exception, match="read-only transaction"):
            change(as_reader, "DELETE FROM jobs")
        as_reader.close()
        monkeypatch.setenv("DATABASE_URL", reader)
        code, printed = run()
    finally:
        change(db, "DROP OWNED BY reader")
        postgres.execute("DROP ROLE reader")
    assert code == 0, printed
    assert read_job(db, make_one.id).state is JobState.SUBMITTED
    db.close()


def test_doctor_changes_nothing(db, tmp_path) -> None:
    make_all(db, tmp_path)
    before = read_everything(db)
    run_doctor(db)
    assert read_everything(db) == before


def read_everything(db: Database) -> list[tuple[Any, ...]]:
    with db.reading() as connection:
        return [
            tuple(row)
            for name in ("jobs", "attempts", "deliveries", "events", "gates")
            for row in connection.execute(text(f"SELECT * FROM {name} ORDER BY 1"))
        ]

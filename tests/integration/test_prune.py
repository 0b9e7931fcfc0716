"""What ended long ago is deleted with its files; everything else is left as it is."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text

from tests.harness.archives import (
    VIDEO,
    WatchedStore,
    archive_ended,
    fail_with_quarantine,
    insert_ended,
    list_names,
    name_of,
    set_columns,
)
from tests.harness.clock import FakeClock
from tests.harness.jobs import LEASE, NOW, WAYS, insert_job, make_job, move_job, read_job
from worker.ground.errors import ClaimLostError, StoreUnavailableError
from worker.jobs import attempts, table
from worker.jobs.archives import Retention, Scope
from worker.jobs.models import AttemptRow, DeliveryRow, EventRow, JobRow
from worker.jobs.states import ENDED, JobEvent, JobState
from worker.jobs.values import Move, Outcome, Settlement
from worker.media.local_store import LocalStore
from worker.media.store import open_store
from worker.ops import retention as prune
from worker.ops.doctor import DoctorPolicy, examine
from worker.ops.rearchive import Hold
from worker.ops.retention import Pruning, prune_jobs, survey_jobs
from worker.ops.verify import Inventory, Verification, Verifier, find_orphans

DAY = timedelta(days=1)
TODAY = NOW + 100 * DAY
BEFORE = TODAY - 90 * DAY
RETENTION = Retention(BEFORE)
YOUNG = BEFORE


@pytest.fixture
def store(tmp_path):
    return WatchedStore(LocalStore(Path(tmp_path) / "archive"))


def run(db, store, retention=RETENTION):
    pruning = Pruning()
    prune_jobs(retention, pruning, db=db, store=store, clock=FakeClock(TODAY))
    return pruning


def list_ids(db):
    with db.reading() as connection:
        return set(connection.execute(select(JobRow.id)).scalars())


def count_rows(db):
    with db.reading() as connection:
        return [
            connection.execute(select(func.count()).select_from(row)).scalar_one()
            for row in (JobRow, AttemptRow, DeliveryRow, EventRow)
        ]


@pytest.mark.both_databases
def test_old_jobs_go_with_their_files_and_all_that_was_written_about_them(db, store):
    with db.transaction() as connection:
        assert connection.execute(select(func.count()).select_from(JobRow)).scalar_one() == 0
    job = make_job(db, JobState.ARCHIVED)
    (attempt,) = read_attempts_of(db, job)
    with db.transaction() as connection:
        delivery = {"job_id": job.id, "attempt_id": attempt.id, "received_at": NOW}
        delivery |= {"last_received_at": NOW, "times_received": 1, "fal_request_id": "r"}
        delivery |= {"status": "OK", "body": b"{}", "body_sha256": "s"}
        connection.execute(insert(DeliveryRow).values(delivery))
    archive_ended(db, store)
    fail_with_quarantine(db, store)
    insert_ended(db, JobState.CANCELLED)
    pruning = run(db, store)
    assert (pruning.jobs, pruning.bytes) == (4, len(VIDEO))
    assert (pruning.oldest, pruning.newest) == (NOW, NOW)
    assert count_rows(db) == [0, 0, 0, 0]
    assert list_names(store) == []


def read_attempts_of(db, job):
    with db.reading() as connection:
        return attempts.list_attempts(connection, job.id)


@pytest.mark.both_databases
def test_survey_counts_the_very_jobs_that_are_pruned_and_changes_nothing(db, store):
    archive_ended(db, store)
    archive_ended(db, store, ended_at=BEFORE - DAY)
    archive_ended(db, store, ended_at=YOUNG)
    names, ids = list_names(store), list_ids(db)
    found = survey_jobs(RETENTION, db=db, store=store)
    assert (found.jobs, found.bytes) == (2, 2 * len(VIDEO))
    assert (found.oldest, found.newest) == (NOW, BEFORE - DAY)
    assert (list_names(store), list_ids(db)) == (names, ids)
    assert run(db, store) == found


@pytest.mark.both_databases
def test_age_counts_from_the_end_to_the_very_moment(db, store):
    young = archive_ended(db, store, ended_at=BEFORE)
    old = archive_ended(db, store, ended_at=BEFORE - timedelta(microseconds=1))
    slow = archive_ended(db, store, ended_at=YOUNG, enqueued_at=NOW)
    assert run(db, store).jobs == 1
    assert list_ids(db) == {young.id, slow.id}
    assert old.id not in list_ids(db)


@pytest.mark.both_databases
def test_job_that_has_not_ended_is_never_touched(db, store):
    for state in sorted(set(WAYS) - ENDED):
        job = make_job(db, state)
        assert run(db, store, Retention(TODAY + 900 * DAY)) == Pruning()
        assert read_job(db, job.id) == job
        with db.transaction() as connection:
            connection.execute(text("DELETE FROM jobs"))


@pytest.mark.both_databases
def test_job_that_ended_anew_is_as_old_as_its_last_end(db, store):
    """The columns keep the first end."""
    failed = make_job(db, JobState.FAILED)
    redriven = move_job(db, failed, JobEvent.SUBMIT_REDRIVEN, now=BEFORE)
    again = move_job(db, redriven, JobEvent.JOB_CANCELLED, now=BEFORE)
    redriven = move_job(db, again, JobEvent.SUBMIT_REDRIVEN, now=BEFORE)
    claimed = move_job(db, redriven, JobEvent.SUBMISSION_CLAIMED, now=BEFORE)
    last = move_job(db, claimed, JobEvent.SUBMISSION_REJECTED, now=BEFORE)
    assert last.failed_at == NOW
    assert run(db, store).jobs == 0
    assert run(db, store, Retention(BEFORE + timedelta(microseconds=1))).jobs == 1


def test_replaced_copy_does_not_make_a_job_younger(db, store):
    job = archive_ended(db, store)
    move_job(db, job, JobEvent.ARCHIVE_REPLACED, now=TODAY)
    assert run(db, store).jobs == 1


@pytest.mark.both_databases
def test_job_with_a_request_still_to_be_cancelled_is_kept(db, store):
    """The row is all by which it is remembered that it costs money."""
    job = make_job(db, JobState.ARCHIVED)
    with db.transaction() as connection:
        (attempt,) = attempts.list_attempts(connection, job.id)
        known = Settlement(Outcome.ACCEPTED, NOW, 200, "the-request")
        attempts.record_outcome(connection, attempt.id, known)
        attempts.order_cancel(connection, attempt.id, NOW)
    assert run(db, store).jobs == 0
    with db.transaction() as connection:
        connection.execute(text("UPDATE attempts SET cancel_due_at = NULL"))
    assert run(db, store).jobs == 1


LABELS = {"team": "films", "a.b/c-d_e": "1", "note": 'it\'s "so" ☂ %_', "empty": ""}


@pytest.mark.both_databases
def test_labels_choose_jobs_that_have_all_of_them(db, store):
    insert_ended(db, labels=LABELS)
    insert_ended(db, labels={"x": "y"})

    def count(chosen):
        return survey_jobs(Retention(BEFORE, labels=chosen), db=db, store=store).jobs

    assert count({}) == 2
    for chosen in (LABELS, *({name: value} for name, value in LABELS.items())):
        assert count(chosen) == 1, chosen
    for chosen in (
        *({"team": "film"}, {"team": "FILMS"}, {"team": ""}, {"other": "films"}, {"a": "1"}),
        *({"empty": "null"}, {"team": "films", "empty": "x"}),
    ):
        assert count(chosen) == 0, chosen


@pytest.mark.both_databases
def test_tenant_and_state_choose_jobs(db, store):
    for tenant in ("shop", "Shop"):
        for state in sorted(ENDED):
            insert_ended(db, state, tenant=tenant)
    chosen = Retention(BEFORE, states=frozenset({JobState.FAILED}), tenant="shop")
    assert run(db, store, chosen).jobs == 1
    assert len(list_ids(db)) == 5
    assert run(db, store, Retention(BEFORE, tenant="shop")).jobs == 2
    assert run(db, store, Retention(BEFORE, states=ENDED - {JobState.FAILED})).jobs == 2


@pytest.mark.parametrize("column", ["archive_uri", "quarantine_uri"])
def test_job_with_a_file_in_another_archive_is_left_alone(db, store, column):
    job = archive_ended(db, store)
    set_columns(db, job.id, **{column: "s3://elsewhere/a.mp4"})
    before, names = read_job(db, job.id), list_names(store)
    for look in (run(db, store), survey_jobs(RETENTION, db=db, store=store)):
        assert (look.jobs, look.elsewhere) == (0, 1)
    assert (read_job(db, job.id), list_names(store)) == (before, names)


def test_sidecar_goes_last_and_the_row_after_it(db, store):
    job = archive_ended(db, store)
    seen = []
    store.before_delete = lambda _: seen.append(job.id in list_ids(db))
    run(db, store)
    stem = name_of(store, job.archive_uri).removesuffix(".mp4")
    endings = [name.removeprefix(stem) for name in store.deletes]
    assert endings == [".mp4", ".jpg", ".sheet.jpg", ".json"]
    assert all(seen)
    assert list_ids(db) == set()


@pytest.mark.both_databases
def test_jobs_are_pruned_in_several_batches(db, store, monkeypatch):
    monkeypatch.setattr(prune, "BATCH", 3)
    for number in range(7):
        # some of them enqueued at the very same moment
        archive_ended(db, store, ended_at=NOW + (number // 3) * DAY)
    live, young = insert_job(db), archive_ended(db, store, ended_at=YOUNG)
    assert run(db, store).jobs == 7
    assert list_ids(db) == {live.id, young.id}
    assert len(list_names(store)) == 4


# killed, refused, overtaken


@pytest.mark.parametrize("files_only", [False, True])
def test_run_that_dies_at_any_deletion_is_ended_by_the_next(db, store, files_only):
    retention = Retention(BEFORE, files_only=files_only)
    jobs = [archive_ended(db, store) for _ in range(2)]
    deletions = 4 * len(jobs)
    for fatal in range(1, deletions + 1):
        store.deletes.clear()

        def die(_name, fatal=fatal):
            if len(store.deletes) == fatal:
                raise KeyboardInterrupt

        store.before_delete = die
        with pytest.raises(KeyboardInterrupt):
            run(db, store, retention)
        assert list_ids(db) == {job.id for job in jobs}
        verification = Verification()
        Verifier(db, store).verify(Scope(TODAY), verification)
        assert verification.damages == 0, "what is being pruned is not damaged"
    store.before_delete = lambda _: None
    assert run(db, store, retention).jobs == 2
    assert list_names(store) == []
    assert len(list_ids(db)) == (2 if files_only else 0)


def test_archive_that_cannot_be_written_keeps_the_row(db, store):
    job = archive_ended(db, store)

    def refuse(_name):
        raise StoreUnavailableError("the archive cannot be written: Read-only file system")

    store.before_delete = refuse
    with pytest.raises(StoreUnavailableError):
        run(db, store)
    assert list_ids(db) == {job.id}
    store.before_delete = lambda _: None
    assert run(db, store).jobs == 1


@pytest.mark.both_databases
def test_job_that_moves_while_its_files_are_deleted_is_left(db, store):
    job = fail_with_quarantine(db, store, result={"video": {"url": "https://v3.fal.media/a.mp4"}})

    def redrive(_name):
        if read_job(db, job.id).state is JobState.FAILED:
            current = read_job(db, job.id)
            with db.transaction() as connection:
                move = Move(TODAY, TODAY + LEASE)
                table.apply_permitted(connection, current, JobEvent.ARCHIVE_REDRIVEN, move)

    store.before_delete = redrive
    pruning = run(db, store)
    assert (pruning.jobs, pruning.moved) == (0, 1)
    after = read_job(db, job.id)
    assert (after.state, after.archive_pruned_at) == (JobState.COMPLETED, None)


@pytest.mark.both_databases
def test_copy_that_is_being_replaced_cannot_be_recorded_once_pruning_has_begun(db, store):
    job = archive_ended(db, store)
    hold = Hold(job, db)
    lost: list[ClaimLostError] = []

    def publish_late(_name):
        if not lost:
            with pytest.raises(ClaimLostError) as caught:
                hold.renew()
            lost.append(caught.value)

    store.before_delete = publish_late
    assert run(db, store).jobs == 1
    assert len(lost) == 1


def test_copy_whose_replacement_has_begun_to_publish_is_pruned_all_the_same(db, store):
    job = archive_ended(db, store)
    hold = Hold(job, db)
    hold.renew()
    assert run(db, store).jobs == 1
    with db.transaction() as connection:
        assert table.apply_event(connection, hold.job, JobEvent.ARCHIVE_REPLACED, Move(NOW)) is None


def test_objects_of_a_store_that_is_no_directory_are_cared_for_as_well(db, tmp_path):
    store = WatchedStore(open_store("memory:", tmp_path / "spool"))
    jobs = [archive_ended(db, store) for _ in range(3)]
    store.delete(name_of(store, jobs[0].archive_uri))
    store.put(name_of(store, jobs[1].archive_uri), VIDEO[:-1], "video/mp4")
    store.put("2026/01/01/stranger.mp4", VIDEO, "video/mp4")
    verification = Verification()
    Verifier(db, store).verify(Scope(TODAY), verification)
    kinds = {one.job_id: one.reason.partition(":")[0] for one in verification.damaged}
    assert kinds == {jobs[0].id: "missing", jobs[1].id: "different"}
    found = find_orphans(Inventory(), db=db, store=store, age=-DAY)
    assert [one.name for one in found] == ["2026/01/01/stranger.mp4"]
    assert run(db, store).jobs == 3
    assert list_names(store) == ["2026/01/01/stranger.mp4"]


# files only


@pytest.mark.both_databases
def test_files_only_keeps_the_row_its_key_and_checksum(db, store):
    job = archive_ended(db, store, idempotency_key="k")
    failed = fail_with_quarantine(db, store)
    chosen = Retention(BEFORE, files_only=True)
    assert survey_jobs(chosen, db=db, store=store).jobs == 2
    assert run(db, store, chosen).jobs == 2
    assert list_names(store) == []
    after = read_job(db, job.id)
    assert (after.state, after.idempotency_key) == (JobState.ARCHIVED, "k")
    assert (after.archive_uri, after.archive_poster_uri, after.archive_sidecar_uri) == (None,) * 3
    assert (after.archive_sha256, after.archive_bytes) == (job.archive_sha256, job.archive_bytes)
    assert after.archive_pruned_at == TODAY
    assert read_job(db, failed.id).quarantine_uri is None
    store.deletes.clear()
    assert run(db, store, chosen) == Pruning()
    assert store.deletes == []


def test_row_without_files_is_sound_to_doctor_and_verify_and_pruned_in_the_end(db, store):
    job = make_job(db, JobState.ARCHIVED)
    stored = store.put(f"{job.id}.mp4", VIDEO, "video/mp4")
    known = {"archive_uri": stored.uri, "archive_sha256": stored.sha256}
    set_columns(db, job.id, **known, archive_bytes=stored.bytes, archive_error="missing: x")
    with db.transaction() as connection:
        connection.execute(text("UPDATE attempts SET outcome = 'accepted', ending = 'ok'"))
    run(db, store, Retention(BEFORE, files_only=True))
    diagnosis = examine(
        db=db, store=store, platform=None, policy=DoctorPolicy("x", every_file=True)
    )
    assert diagnosis.findings == []
    verification = Verification()
    Verifier(db, store).verify(Scope(TODAY), verification)
    assert verification == Verification()
    assert run(db, store).jobs == 1
    assert list_ids(db) == set()

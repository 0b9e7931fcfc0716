"""The archive read again: what is missing or changed is told and marked, and nothing else."""

from collections import Counter
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from tests.harness.archives import (
    VIDEO,
    WatchedStore,
    archive_ended,
    describe_video,
    fail_with_quarantine,
    insert_all_ended,
    insert_ended,
    name_of,
    set_columns,
)
from tests.harness.clock import FakeClock
from tests.harness.jobs import NOW, insert_job, move_job, read_job
from worker.ground.errors import StoreUnavailableError
from worker.jobs import walks
from worker.jobs.archives import Scope
from worker.jobs.states import JobEvent, JobState
from worker.media.local_store import LocalStore
from worker.ops import verify as verify_module
from worker.ops.verify import (
    DamagedCopy,
    Verification,
    Verifier,
    is_fine,
    measure_copies,
    start_scope,
)

HOUR = timedelta(hours=1)
LATER = NOW + HOUR


@pytest.fixture
def store(tmp_path):
    return WatchedStore(LocalStore(Path(tmp_path) / "archive"))


def verify(db, store, scope=None, *, sample=None, now=LATER):
    verification = Verification()
    verifier = Verifier(db, store, clock=FakeClock(now))
    verifier.verify(scope or Scope(now), verification, sample=sample)
    return verification


def overwrite(store, job, body):
    store.put(name_of(store, job.archive_uri), body, "video/mp4")


def test_copies_as_their_rows_say_are_fine_and_marked(db, store):
    jobs = [archive_ended(db, store, VIDEO + bytes([number])) for number in range(3)]
    verification = verify(db, store)
    assert is_fine(verification)
    assert (verification.checked, verification.bytes) == (3, 3 * (len(VIDEO) + 1))
    for job in jobs:
        after = read_job(db, job.id)
        assert (after.archive_verified_at, after.archive_error) == (LATER, None)


def remove_video(store, job):
    store.delete(name_of(store, job.archive_uri))


def flip_a_bit(store, job):
    overwrite(store, job, VIDEO[:-1] + bytes([VIDEO[-1] ^ 1]))


def cut_off(store, job):
    overwrite(store, job, VIDEO[:-1])


def remove_sidecar(store, job):
    store.delete(name_of(store, job.archive_sidecar_uri))


def remove_poster(store, job):
    store.delete(name_of(store, job.archive_poster_uri))


def spoil_sidecar(store, job):
    store.put(name_of(store, job.archive_sidecar_uri), b'{"video": {', "application/json")


def exchange_sidecar(store, job):
    """By what an earlier release left when it was killed while it archived again."""
    body = describe_video("0" * 64)
    store.put(name_of(store, job.archive_sidecar_uri), body, "application/json")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (remove_video, "missing: the archive has no 2026/11/23/"),
        (flip_a_bit, "different: its SHA-256 is "),
        (cut_off, f"different: it has {len(VIDEO) - 1} bytes, the row says {len(VIDEO)}"),
        (remove_sidecar, "missing: the archive has no 2026/11/23/"),
        (remove_poster, "missing: the archive has no file://"),
        (spoil_sidecar, "different: the SHA-256 in the sidecar is "),
        (exchange_sidecar, "different: the SHA-256 in the sidecar is "),
    ],
)
def test_damage_is_told_and_marked_and_cleared_once_it_is_mended(db, store, harm, told):
    sound, job = archive_ended(db, store), archive_ended(db, store)
    harm(store, job)
    found: list[DamagedCopy] = []
    verification = Verification()
    Verifier(db, store, on_damage=found.append, clock=FakeClock(LATER)).verify(
        Scope(LATER), verification
    )
    assert not is_fine(verification)
    (damaged,) = verification.damaged
    assert found == [damaged]
    assert (damaged.job_id, damaged.uri) == (job.id, job.archive_uri)
    assert damaged.reason.startswith(told)
    after = read_job(db, job.id)
    assert (after.archive_error, after.archive_verified_at) == (damaged.reason, LATER)
    assert (after.state, after.fence) == (job.state, job.fence)
    assert read_job(db, sound.id).archive_error is None

    overwrite(store, job, VIDEO)
    right = describe_video(str(job.archive_sha256))
    store.put(name_of(store, job.archive_sidecar_uri), right, "application/json")
    store.put(name_of(store, job.archive_poster_uri), b"a poster", "image/jpeg")
    assert is_fine(verify(db, store, now=LATER + HOUR))
    after = read_job(db, job.id)
    assert (after.archive_error, after.archive_verified_at) == (None, LATER + HOUR)


@pytest.mark.both_databases
def test_every_copy_is_read_once_in_several_slices(db, store, monkeypatch):
    monkeypatch.setattr(walks, "SLICE", 2)
    jobs = [archive_ended(db, store) for _ in range(5)]
    insert_job(db)
    assert measure_copies(db, Scope(LATER)) == (5, 5 * len(VIDEO))
    assert verify(db, store).checked == 5
    assert Counter(store.reads) == Counter(name_of(store, job.archive_uri) for job in jobs)


@pytest.mark.both_databases
def test_run_that_goes_on_reads_only_what_is_left_and_repeats_what_was_found(db, store):
    jobs = [archive_ended(db, store) for _ in range(6)]
    remove_video(store, jobs[1])

    def pull_the_plug(name):
        if len(store.reads) == 4:
            raise KeyboardInterrupt

    store.before_read = pull_the_plug
    scope = Scope(LATER)
    with pytest.raises(KeyboardInterrupt):
        verify(db, store, scope)
    first = store.reads[:3]
    store.reads.clear()
    store.before_read = lambda _: None
    verification = verify(db, store, scope, now=LATER + HOUR)
    assert sorted([*first, *store.reads]) == sorted(name_of(store, j.archive_uri) for j in jobs)
    assert [one.job_id for one in verification.damaged] == [jobs[1].id]
    assert not is_fine(verification)
    assert verification.checked == 3


def test_rows_without_a_copy_to_be_read_are_passed_over(db, store):
    insert_job(db)
    fail_with_quarantine(db, store)
    insert_ended(db)
    pruned = archive_ended(db, store)
    set_columns(db, pruned.id, archive_pruned_at=NOW)
    remove_video(store, pruned)
    assert verify(db, store) == Verification()


def test_only_the_tenants_copies_are_read(db, store):
    mine = archive_ended(db, store, tenant="shop")
    archive_ended(db, store)
    scope = start_scope("shop", LATER)
    assert measure_copies(db, scope) == (1, len(VIDEO))
    assert verify(db, store, scope).checked == 1
    assert store.reads == [name_of(store, mine.archive_uri)]


@pytest.mark.both_databases
def test_copy_replaced_while_it_is_read_is_no_damage(db, store):
    job = archive_ended(db, store)

    def replace_it(_name):
        remove_video(store.inner, job)
        move_job(db, read_job(db, job.id), JobEvent.ARCHIVE_REPLACED)
        set_columns(db, job.id, archive_sha256="0" * 64)

    store.before_read = replace_it
    verification = verify(db, store)
    assert (verification.moved, verification.checked, verification.damages) == (1, 0, 0)
    assert read_job(db, job.id).archive_error is None


def test_copy_in_another_archive_is_counted_and_not_called_missing(db, store, tmp_path):
    job = archive_ended(db, store)
    other = WatchedStore(LocalStore(Path(tmp_path) / "other"))
    verification = verify(db, other)
    assert (verification.elsewhere, verification.damages, other.reads) == (1, 0, [])
    assert not is_fine(verification), "nothing at all was read"
    assert read_job(db, job.id).archive_verified_at is None
    archive_ended(db, other)
    assert is_fine(verify(db, other))


def test_archive_that_cannot_be_read_ends_the_run_and_marks_nothing(db, store):
    job = archive_ended(db, store)

    def go_away(_name):
        raise StoreUnavailableError("the archive cannot be read: Input/output error")

    store.before_read = go_away
    with pytest.raises(StoreUnavailableError):
        verify(db, store)
    assert read_job(db, job.id) == job


# a sample


def test_sample_reads_so_many_different_copies(db, store):
    for _ in range(8):
        archive_ended(db, store)
    verification = verify(db, store, sample=5)
    assert (verification.checked, len(set(store.reads))) == (5, 5)
    assert verify(db, store, sample=100, now=LATER + HOUR).checked == 8


def test_sample_that_goes_on_repeats_what_was_found_and_reads_others(db, store):
    for _ in range(6):
        remove_video(store, archive_ended(db, store))
    assert verify(db, store, start_scope(None, LATER), sample=2).damages == 2
    scope = start_scope(None, LATER)
    verification = verify(db, store, scope, sample=3, now=LATER + HOUR)
    assert (verification.checked, verification.damages) == (3, 5)
    assert len(set(store.reads)) == 5
    assert len({one.job_id for one in verification.damaged}) == 5


@pytest.mark.both_databases
def test_sample_of_many_rows_is_drawn_only_of_its_scope(db, store, monkeypatch):
    known = {"archive_uri": "file:///a", "archive_sha256": "0" * 64, "archive_bytes": 1}
    jobs = [
        {"id": uuid7(), **known, "tenant": f"t{number % 2}", "archive_verified_at": None}
        for number in range(600)
    ]
    jobs += [{**job, "id": uuid7(), "archive_verified_at": LATER} for job in jobs[:200]]
    insert_all_ended(db, jobs, JobState.ARCHIVED, NOW)
    scope = Scope(LATER, "t1")
    wanted = {job["id"] for job in jobs[:600] if job["tenant"] == "t1"}
    read: set[UUID] = set()

    def record(copy, _store):
        read.add(copy.job_id)
        return True

    monkeypatch.setattr(verify_module, "is_elsewhere", record)
    for size, drawn in ((50, 50), (400, len(wanted))):
        read.clear()
        assert verify(db, store, scope, sample=size).elsewhere == len(read) == drawn
        assert read <= wanted

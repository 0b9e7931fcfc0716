"""SQL on both databases: guards, fences, history, constraints."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from tests.harness.jobs import (
    LEASE,
    NOW,
    WAYS,
    insert_job,
    lead_job,
    list_all_jobs,
    make_job,
    move_job,
    read_job,
)
from worker.ground.errors import JobNotFoundError
from worker.jobs import table
from worker.jobs.states import BlockedBy, JobEvent, JobState, next_state
from worker.jobs.values import Claim, Move

pytestmark = pytest.mark.both_databases


def list_events(db, job):
    with db.reading() as connection:
        return table.list_events(connection, job.id)


@pytest.mark.parametrize("state", WAYS)
def test_event_that_is_no_edge_from_a_state_changes_nothing(db, state):
    """Those that are edges: `test_machine.py`."""
    job = make_job(db, state)
    history = list_events(db, job)
    for event in set(JobEvent) - {JobEvent.ENQUEUED}:
        if next_state(state, event) is None:
            assert lead_job(db, job, event, now=NOW + LEASE) is None
    assert (read_job(db, job.id), list_events(db, job)) == (job, history)


def test_apply_event_with_an_old_fence_changes_nothing(db):
    zombie = make_job(db, JobState.ARCHIVING)
    lead_job(db, zombie, JobEvent.ARCHIVE_CLAIM_EXPIRED)
    holder = move_job(db, zombie, JobEvent.ARCHIVE_CLAIMED)
    assert lead_job(db, zombie, JobEvent.ARCHIVE_RECORDED) is None
    assert read_job(db, zombie.id) == holder


def test_extend_claim_with_an_old_fence_is_refused(db):
    zombie = make_job(db, JobState.ARCHIVING)
    lead_job(db, zombie, JobEvent.ARCHIVE_CLAIM_EXPIRED)
    holder = move_job(db, zombie, JobEvent.ARCHIVE_CLAIMED)
    with db.transaction() as connection:
        assert not table.extend_claim(connection, zombie, NOW + 9 * LEASE)
        assert table.extend_claim(connection, holder, NOW + 5 * LEASE)
    assert read_job(db, zombie.id).due_at == NOW + 5 * LEASE


def test_claim_job_bumps_the_fence_each_time(db):
    job = make_job(db, JobState.COMPLETED)
    fences = []
    for _ in range(3):
        claimed = move_job(db, job, JobEvent.ARCHIVE_CLAIMED)
        fences.append(claimed.fence)
        lead_job(db, claimed, JobEvent.ARCHIVE_POSTPONED)
    assert fences == [job.fence + 1, job.fence + 2, job.fence + 3]


def test_claim_job_before_a_blocked_job_is_due_is_refused(db):
    job = make_job(db, JobState.SUBMITTING)
    move = Move(NOW, NOW + LEASE, columns={"blocked_by": "retry"})
    with db.transaction() as connection:
        table.apply_event(connection, job, JobEvent.SUBMISSION_POSTPONED, move)
    early, late = NOW + LEASE - timedelta(seconds=1), NOW + LEASE
    assert lead_job(db, job, JobEvent.SUBMISSION_CLAIMED, now=early) is None
    assert move_job(db, job, JobEvent.SUBMISSION_CLAIMED, now=late).blocked_by is None


def test_claim_job_of_two_workers_at_once_gives_it_to_one(db):
    job = insert_job(db)
    claims = []
    for worker in ("one", "two"):
        with db.transaction() as connection:
            claim = Claim(worker, NOW, NOW + LEASE)
            claims.append(table.claim_job(connection, job.id, JobEvent.SUBMISSION_CLAIMED, claim))
    assert [claim and claim.claimed_by for claim in claims] == ["one", None]


def test_insert_job_with_a_taken_id_or_key_inserts_nothing(db):
    job = insert_job(db, tenant="a", idempotency_key="k")
    assert insert_job(db, tenant="b", idempotency_key="k").id != job.id
    for columns in ({"id": job.id}, {"tenant": "a", "idempotency_key": "k"}):
        with pytest.raises(AssertionError):
            insert_job(db, **columns)
    with db.reading() as connection:
        assert len(list_all_jobs(connection)) == 2


def test_read_job_gives_back_what_was_inserted(db):
    labels, fields = {"shop": "ü"}, {"fps": 24.0, "seed": 2**62, "n": None, "b": True, "t": "🎬"}
    job = insert_job(db, labels=labels, input=fields, priority=-100)
    again = read_job(db, job.id)
    assert again == job
    assert (again.labels, again.input, again.priority) == (labels, fields, -100)
    assert isinstance(again.input["fps"], float)
    assert again.enqueued_at == NOW
    assert again.enqueued_at.utcoffset() == timedelta()


def test_get_job_of_an_unknown_id_raises(db):
    with db.reading() as connection, pytest.raises(JobNotFoundError):
        table.get_job(connection, uuid7())


@pytest.mark.parametrize(
    "assignment",
    [
        "state = 'done'",
        "state = 'archived'",
        "state = 'failed', due_at = NULL",
        "state = 'cancelled', due_at = NULL",
        "state = 'archived', due_at = NULL",
        "due_at = NULL",
        "priority = 101",
        "fence = -1",
    ],
)
def test_update_by_hand_into_nonsense_is_refused_by_the_database(db, assignment):
    insert_job(db)
    with pytest.raises(IntegrityError), db.transaction() as connection:
        connection.execute(text(f"UPDATE jobs SET {assignment}"))


def test_entered_at_of_a_state_is_not_moved_by_a_later_visit(db):
    job = make_job(db, JobState.ARCHIVING)
    later = move_job(db, job, JobEvent.ARCHIVE_POSTPONED, now=NOW + LEASE)
    assert later.completed_at == job.completed_at == NOW


def take_due(db, now, limit=10):
    with db.transaction() as connection:
        day = timedelta(days=1)
        due = table.list_due(connection, now, day, limit)
        return table.lock_due(connection, due, now, day)


def test_due_rows_come_by_priority_then_age_and_queued_ones_not_at_all(db):
    old, older, important, _ = (
        move_job(
            db, insert_job(db, priority=priority), JobEvent.RESULT_ARRIVED, now=NOW - age * LEASE
        )
        for age, priority in ((3, 0), (4, 0), (2, 5), (0, 0))
    )
    insert_job(db, now=NOW - 9 * LEASE)
    assert [job.id for job in take_due(db, NOW)] == [important.id, older.id, old.id]
    assert [job.id for job in take_due(db, NOW, 2)] == [important.id, older.id]


def test_a_row_is_due_from_its_time_on_and_read_without_its_result(db):
    job = make_job(db, JobState.COMPLETED)
    assert take_due(db, NOW + LEASE - timedelta(microseconds=1)) == []
    # A result may be a whole video, and no sweep looks at it.
    assert take_due(db, NOW + LEASE) == [replace(job, result=None)]


def test_a_row_whose_time_is_further_ahead_than_any_wait_is_due(db):
    job = make_job(db, JobState.SUBMITTED, now=NOW + timedelta(days=2))
    assert [one.id for one in take_due(db, NOW)] == [job.id]


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.SUBMITTING])
def test_block_queued_blocks_only_what_is_queued(db, state):
    job, by = make_job(db, state), BlockedBy.RETRY
    with db.transaction() as connection:
        table.block_queued(connection, job.id, by, NOW + 9 * LEASE, "fal is unreachable")
    blocked = replace(
        job, due_at=NOW + 9 * LEASE, blocked_by=by.value, blocked_reason="fal is unreachable"
    )
    assert read_job(db, job.id) == (blocked if state is JobState.QUEUED else job)


def test_hasten_blocked_makes_due_only_who_waits_for_such_a_reason(db):
    later, soon = NOW + 9 * LEASE, NOW + LEASE
    jobs = [insert_job(db, tenant=tenant) for tenant in ("a", "b", "a")]
    reasons = (BlockedBy.BUDGET, BlockedBy.BUDGET, BlockedBy.RETRY)
    with db.transaction() as connection:
        for job, by in zip(jobs, reasons, strict=True):
            table.block_queued(connection, job.id, by, later, "why")
        assert table.hasten_blocked(connection, BlockedBy.BUDGET, "a", soon) == 1
    assert [read_job(db, job.id).due_at for job in jobs] == [soon, later, later]
    with db.transaction() as connection:
        assert table.hasten_blocked(connection, BlockedBy.BUDGET, None, soon) == 1


@pytest.mark.parametrize("by", [BlockedBy.RETRY, BlockedBy.NOT_BEFORE, BlockedBy.BUDGET])
def test_unblock_due_releases_what_has_waited_for_its_time(db, by):
    due, later = insert_job(db), insert_job(db)
    with db.transaction() as connection:
        table.block_queued(connection, due.id, by, NOW, "why")
        table.block_queued(connection, later.id, by, NOW + LEASE, "why")
        released = table.unblock_due(connection, NOW, timedelta(days=1), 10)
    assert list(released) == [due.id]
    assert read_job(db, due.id).blocked_by is None
    assert read_job(db, later.id).blocked_by == by


def test_advance_due_of_a_job_that_has_moved_changes_nothing(db):
    before = make_job(db, JobState.SUBMITTING)
    after = move_job(db, before, JobEvent.SUBMISSION_ACCEPTED)
    with db.transaction() as connection:
        table.advance_due(connection, before, NOW)
    assert read_job(db, before.id) == after
    with db.transaction() as connection:
        table.advance_due(connection, after, NOW)
    assert read_job(db, before.id) == replace(after, due_at=NOW)


def test_apply_event_out_of_a_failure_clears_its_words(db):
    claimed = make_job(db, JobState.SUBMITTING)
    why = {"error_code": "x", "error_message": "y"}
    with db.transaction() as connection:
        move = Move(NOW, columns=why)
        failed = table.apply_event(connection, claimed, JobEvent.SUBMISSION_REJECTED, move)
        assert failed is not None
    assert (failed.error_code, failed.error_message) == ("x", "y")
    redriven = move_job(db, failed, JobEvent.SUBMIT_REDRIVEN)
    assert (redriven.error_code, redriven.error_message) == (None, None)
    assert redriven.failed_at == NOW

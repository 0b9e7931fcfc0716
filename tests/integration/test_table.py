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
from worker.jobs.states import JobEvent, JobState, next_state
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
    move = Move(NOW, NOW + LEASE, columns={"blocked_reason": "busy"})
    with db.transaction() as connection:
        table.apply_event(connection, job, JobEvent.SUBMISSION_POSTPONED, move)
    early, late = NOW + LEASE - timedelta(seconds=1), NOW + LEASE
    assert lead_job(db, job, JobEvent.SUBMISSION_CLAIMED, now=early) is None
    assert move_job(db, job, JobEvent.SUBMISSION_CLAIMED, now=late).blocked_reason is None


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


def test_find_overdue_gives_due_rows_by_priority_then_age(db):
    old = insert_job(db, now=NOW - 3 * LEASE)
    older = insert_job(db, now=NOW - 4 * LEASE)
    important = insert_job(db, now=NOW - 2 * LEASE, priority=5)
    insert_job(db)
    with db.transaction() as connection:
        found = table.find_overdue(connection, NOW, 10)
        assert [job.id for job in found] == [important.id, older.id, old.id]
        found = table.find_overdue(connection, NOW, 2)
        assert [job.id for job in found] == [important.id, older.id]


def test_find_overdue_gives_a_row_once_it_is_due_and_without_its_result(db):
    job = make_job(db, JobState.COMPLETED)
    with db.transaction() as connection:
        assert table.find_overdue(connection, NOW + LEASE - timedelta(microseconds=1), 9) == []
        found = table.find_overdue(connection, NOW + LEASE, 9)
    # A result may be a whole video, and no sweep looks at it.
    assert found == [replace(job, result=None)]


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.SUBMITTING])
def test_block_queued_blocks_only_what_is_queued(db, state):
    job = make_job(db, state)
    with db.transaction() as connection:
        table.block_queued(connection, [job.id], NOW + 9 * LEASE, "the account is locked")
    blocked = replace(job, due_at=NOW + 9 * LEASE, blocked_reason="the account is locked")
    assert read_job(db, job.id) == (blocked if state is JobState.QUEUED else job)


def test_hasten_blocked_makes_due_only_who_waits_for_such_a_reason(db):
    reasons = ("account: locked", "account: 100%", "busy: account", "100% of the account")
    jobs = [insert_job(db) for _ in range(5)]
    with db.transaction() as connection:
        for job, reason in zip(jobs, reasons, strict=False):
            table.block_queued(connection, [job.id], NOW + 9 * LEASE, reason)
        assert table.hasten_blocked(connection, "account: ", NOW + LEASE) == 2
        assert table.hasten_blocked(connection, "1%", NOW + LEASE) == 0
    due_at = [read_job(db, job.id).due_at for job in jobs]
    soon, later = NOW + LEASE, NOW + 9 * LEASE
    assert due_at == [soon, soon, later, later, soon]


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

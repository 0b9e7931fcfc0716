"""The table in numbers: right, however it is read, and cheap, however large it is."""

from datetime import timedelta

import pytest
from sqlalchemy import delete, insert, text, update

from tests.harness.clock import FakeClock
from tests.harness.jobs import LEASE, NOW, TOKEN, WAYS, make_job, move_job
from tests.harness.many_rows import fill_table
from tests.harness.stages import build_completion, encode
from tests.harness.together import call_together
from worker.ground.db import Database
from worker.jobs import admission, stats
from worker.jobs.admission import ACCOUNT, Pause
from worker.jobs.models import EventRow, JobRow
from worker.jobs.states import ENDED, JobEvent, JobState, PauseCause
from worker.jobs.stats import CachedCount
from worker.jobs.workers import SeenWorker, keep_worker
from worker.ops import metrics as measures_module
from worker.ops.metrics import (
    BOUNDS,
    COMPLETE_AFTER,
    COUNTS,
    HISTORY,
    LIVE,
    LONGEST_REST,
    add_events,
    is_due,
    list_seen,
    note_sweep,
    read_measures,
    refresh_measures,
)
from worker.stages.complete import receive_delivery

SECOND = timedelta(seconds=1)
ENTERED = {
    JobState.SUBMITTED: "submitted_at",
    JobState.COMPLETED: "completed_at",
    JobState.ARCHIVED: "archived_at",
}


@pytest.fixture
def clock():
    return FakeClock(NOW + 10 * SECOND)


@pytest.fixture(autouse=True)
def counting_is_cheap(monkeypatch):
    """However slow the machine is just now."""
    monkeypatch.setattr(measures_module, "WORTH_KEEPING_SECONDS", 60.0)


def test_measures_of_an_empty_table_are_zeros(db, clock):
    measures = read_measures(db=db, clock=clock)
    assert set(measures.jobs) == set(JobState)
    assert {*measures.jobs.values(), *measures.attempts.values(), *measures.ages.values()} == {0}
    assert (measures.extra_charges, measures.held, measures.events_behind) == (0, 0, 0)
    assert (measures.sweep_lag, measures.swept_at) == (timedelta(), None)


def test_measures_count_jobs_of_each_state_with_the_age_of_the_oldest(db, clock):
    for number, state in enumerate(JobState, start=1):
        for _ in range(number):
            make_job_with_own_token(db, state)
    measures = read_measures(db=db, clock=clock)
    assert measures.jobs == {state: number for number, state in enumerate(JobState, start=1)}
    assert measures.ages == dict.fromkeys(set(JobState) - ENDED, 10.0)


def test_measures_are_new_at_each_reading_of_a_small_table(db, clock):
    job = make_job(db, JobState.COMPLETED)
    assert read_measures(db=db, clock=clock).jobs[JobState.COMPLETED] == 1
    move_job(db, job, JobEvent.ARCHIVE_CLAIMED)
    clock.move(SECOND)
    measures = read_measures(db=db, clock=clock)
    assert (measures.jobs[JobState.COMPLETED], measures.jobs[JobState.ARCHIVING]) == (0, 1)


@pytest.mark.both_databases
def test_age_of_a_redriven_job_counts_from_its_restart(db, clock):
    make_job(db, JobState.SUBMITTED)
    with db.transaction() as connection:
        at = NOW + 7 * SECOND
        connection.execute(
            text("UPDATE jobs SET redriven_at = :at").bindparams(
                at=at if db.engine.dialect.name == "postgresql" else "2026-11-23 12:00:07.000000"
            )
        )
    assert read_measures(db=db, clock=clock).ages[JobState.SUBMITTED] == 3


@pytest.mark.both_databases
def test_measures_count_attempts_deliveries_and_transitions(db, clock):
    make_job(db, JobState.SUBMITTED)
    completion = build_completion()
    for _ in range(2):
        receive_delivery(
            TOKEN, completion, encode(completion), db=db, dispatch_timeout=LEASE, clock=clock
        )
    measures = read_measures(db=db, clock=clock)
    assert measures.attempts["open"] == 1
    assert measures.deliveries == {"recorded": 1, "kept": 0, "hint": 0}
    assert measures.history.reasons == dict.fromkeys(["enqueued", *WAYS[JobState.COMPLETED]], 1)
    assert sum(measures.history.phases["run"].counts) == 1


def test_sweep_lag_is_how_long_the_most_overdue_job_is_due(db):
    make_job(db, JobState.SUBMITTED)
    before, after = FakeClock(NOW), FakeClock(NOW + LEASE + 8 * SECOND)
    assert read_measures(db=db, clock=before).sweep_lag == timedelta()
    assert read_measures(db=db, clock=after).sweep_lag == 8 * SECOND


@pytest.mark.both_databases
def test_sweep_lag_is_not_how_long_jobs_wait_for_their_turn(db):
    make_job(db, JobState.QUEUED)
    after = FakeClock(NOW + LEASE + 8 * SECOND)
    assert read_measures(db=db, clock=after).sweep_lag == timedelta()
    with db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET blocked_by = 'retry'"))
    assert read_measures(db=db, clock=after).sweep_lag == 8 * SECOND


@pytest.mark.both_databases
def test_scopes_and_queued_jobs_are_told_by_what_holds_them(db, clock):
    for _ in range(3):
        make_job_with_own_token(db, JobState.QUEUED)
    with db.transaction() as connection:
        connection.execute(
            text("UPDATE jobs SET blocked_by = 'budget' WHERE id = (SELECT min(id) FROM jobs)")
            if connection.dialect.name == "sqlite"
            else text(
                "UPDATE jobs SET blocked_by = 'budget' WHERE id = (SELECT id FROM jobs LIMIT 1)"
            )
        )
        admission.keep_pause(
            connection, Pause(ACCOUNT, PauseCause.OPERATOR, "to be checked", clock())
        )
    measures = read_measures(db=db, clock=clock)
    assert {name: number for name, number in measures.queued.items() if number} == {
        "account": 2,
        "budget": 1,
    }
    assert measures.over_budget == 1
    (account,) = measures.scopes
    assert (account.scope, account.in_flight, account.is_paused_by_hand) == (ACCOUNT, 0, True)


def test_pause_held_submissions_workers_and_sweeps_are_told(db, clock):
    note_sweep(3, 0.5, db=db, clock=clock)
    job = make_job(db, JobState.SUBMISSION_UNKNOWN)
    with db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET blocked_by = 'hold'"))
        refused = "fal refuses the account"
        admission.keep_pause(connection, Pause(ACCOUNT, PauseCause.ACCOUNT, refused, clock()))
        for name, age in (("a", SECOND), ("b", timedelta(minutes=5))):
            keep_worker(connection, SeenWorker(name, 1, ["q"], NOW, clock() - age))
    measures = read_measures(db=db, clock=clock)
    assert (measures.held, measures.swept_at) == (1, clock())
    assert [(one.scope, one.cause) for one in measures.pauses] == [(ACCOUNT, PauseCause.ACCOUNT)]
    assert [worker.name for worker in list_seen(measures.workers, measures.now)] == ["a"]
    assert job.state is JobState.SUBMISSION_UNKNOWN


@pytest.mark.both_databases
def test_many_who_add_events_at_once_add_each_once(db, clock):
    for _ in range(20):
        make_job_with_own_token(db, JobState.SUBMITTED)

    clock.move(2 * COMPLETE_AFTER)

    def add():
        add_events(db=db, batch=7, budget=timedelta(seconds=5), clock=clock)

    call_together(*[add] * 4)
    add()
    reasons = read_measures(db=db, clock=clock).history.reasons
    assert reasons == dict.fromkeys(["enqueued", *WAYS[JobState.SUBMITTED]], 20)


def test_event_that_commits_after_a_higher_id_is_added_all_the_same(postgres_url):
    db = Database(postgres_url)
    clock = FakeClock(NOW + 10 * SECOND)
    job = make_job(db, JobState.QUEUED)
    row = {"job_id": job.id, "at": clock(), "from_state": None, "to_state": JobState.QUEUED}
    slow = db.engine.connect()
    slow.execute(insert(EventRow).values(**row, reason="first", fence=0))
    with db.transaction() as quick:
        quick.execute(insert(EventRow).values(**row, reason="second", fence=0))
    refresh_measures(db=db, clock=clock)
    before = read_measures(db=db, clock=clock).history.reasons
    slow.commit()
    slow.close()
    clock.move(COMPLETE_AFTER)
    refresh_measures(db=db, clock=clock)
    after = read_measures(db=db, clock=clock).history.reasons
    db.close()
    assert before == {"enqueued": 1, "second": 1}
    assert after == {"enqueued": 1, "second": 1, "first": 1}


@pytest.mark.both_databases
def test_history_goes_on_after_the_table_was_emptied(db, clock):
    make_job(db, JobState.ARCHIVED)
    clock.move(2 * COMPLETE_AFTER)
    refresh_measures(db=db, clock=clock)
    before = read_measures(db=db, clock=clock).history.reasons["enqueued"]
    with db.transaction() as connection:
        connection.execute(text("DELETE FROM events"))
        if db.engine.dialect.name == "postgresql":
            connection.execute(text("ALTER SEQUENCE events_id_seq RESTART"))
    make_job_with_own_token(db, JobState.QUEUED, now=clock())
    assert read_measures(db=db, clock=clock).history.reasons["enqueued"] == before + 1


@pytest.mark.both_databases
def test_history_counts_no_event_again_after_the_newest_were_pruned(db, clock):
    make_job_with_own_token(db, JobState.ARCHIVED)
    newest = make_job_with_own_token(db, JobState.ARCHIVED)
    clock.move(2 * COMPLETE_AFTER)
    refresh_measures(db=db, clock=clock)
    before = read_measures(db=db, clock=clock).history.reasons
    with db.transaction() as connection:
        connection.execute(delete(EventRow).where(EventRow.job_id == newest.id))
    assert read_measures(db=db, clock=clock).history.reasons == before
    make_job_with_own_token(db, JobState.QUEUED, now=clock())
    clock.move(2 * COMPLETE_AFTER)
    refresh_measures(db=db, clock=clock)
    after = read_measures(db=db, clock=clock).history.reasons
    assert after == {**before, "enqueued": before["enqueued"] + 1}


@pytest.mark.both_databases
def test_phases_end_at_the_first_visit_of_their_state(db, clock):
    """In seconds after it was enqueued: when it was submitted, completed, archived."""
    times = {"submitted_at": 4, "completed_at": 90, "archived_at": 100}
    for direct in (False, True):
        job = make_job_with_own_token(db, JobState.ARCHIVED)
        with db.transaction() as connection:
            at = {name: job.enqueued_at + offset * SECOND for name, offset in times.items()}
            connection.execute(update(JobRow).where(JobRow.id == job.id).values(**at))
            for state, name in ENTERED.items():
                event = (EventRow.job_id == job.id, EventRow.to_state == state)
                connection.execute(update(EventRow).where(*event).values(at=at[name]))
            if direct:
                # The webhook came before the reply: `submitted` is passed over.
                event = (EventRow.job_id == job.id, EventRow.to_state == JobState.SUBMITTED)
                connection.execute(delete(EventRow).where(*event))
                event = (EventRow.job_id == job.id, EventRow.to_state == JobState.COMPLETED)
                values = {"from_state": JobState.SUBMITTING}
                connection.execute(update(EventRow).where(*event).values(**values))
            # A restart visits states anew: their times are those of the first visit.
            later = at["archived_at"] + 500 * SECOND
            states = {"from_state": JobState.ARCHIVING, "to_state": JobState.ARCHIVED}
            again = insert(EventRow).values(job_id=job.id, at=later, reason="again", fence=0)
            connection.execute(again.values(**states))
    history = read_measures(db=db, clock=clock).history
    found = {name: (sum(one.counts), round(one.seconds, 3)) for name, one in history.phases.items()}
    expected = {"submit": (2, 8), "run": (2, 172), "archive": (2, 20), "whole": (2, 200)}
    assert found == expected
    assert history.phases["archive"].counts[BOUNDS.index(10)] == 2
    assert history.phases["whole"].counts[BOUNDS.index(120)] == 2


@pytest.mark.both_databases
def test_phase_is_never_negative_though_clocks_differ(db, clock):
    job = make_job(db, JobState.SUBMITTED)
    early = job.enqueued_at - SECOND
    with db.transaction() as connection:
        connection.execute(update(JobRow).values(submitted_at=early))
        event = EventRow.to_state == JobState.SUBMITTED
        connection.execute(update(EventRow).where(event).values(at=early))
    submit = read_measures(db=db, clock=clock).history.phases["submit"]
    assert (submit.counts[0], submit.seconds) == (1, 0)


def test_phases_that_were_kept_for_other_bounds_begin_anew(db, clock):
    phase = {"counts": [1, 1], "seconds": 5.0}
    value = {"cursor": 0, "reasons": {}, "phases": {"run": phase}, "archive_bytes": 7}
    keep_costly_tally(db, clock, HISTORY, **value)
    history = read_measures(db=db, clock=clock).history
    assert (history.phases["run"].seconds, history.archive_bytes) == (0, 7)


def keep_costly_tally(db, clock, name=LIVE, seconds=1.0, **value):
    with db.transaction() as connection:
        stats.note_cached_count(connection, CachedCount(name, 1, clock(), seconds, value))


def test_costly_count_rests_a_hundred_times_as_long_as_it_took(db, clock):
    make_job(db, JobState.QUEUED)
    keep_costly_tally(db, clock, queued={"jobs": 41, "oldest": NOW.timestamp()})
    clock.move(99 * SECOND)
    assert read_measures(db=db, clock=clock).jobs[JobState.QUEUED] == 41
    clock.move(SECOND)
    assert read_measures(db=db, clock=clock).jobs[JobState.QUEUED] == 1


def test_no_count_rests_for_ever(clock):
    endless = CachedCount(LIVE, 1, clock(), 10_000.0, {})
    assert not is_due(endless, clock() + LONGEST_REST - SECOND)
    assert is_due(endless, clock() + LONGEST_REST)


def test_count_from_the_future_is_made_again(clock):
    """Some clock was wrong once."""
    assert is_due(CachedCount(LIVE, 1, clock() + LEASE, 1.0, {}), clock())


def test_cheap_counts_write_nothing(db, clock):
    refresh_measures(db=db, clock=clock)
    with db.reading() as connection:
        assert stats.list_cached_counts(connection) == []


def test_costly_counts_are_kept_for_others(db, clock, monkeypatch):
    monkeypatch.setattr(measures_module, "WORTH_KEEPING_SECONDS", 0.0)
    make_job(db, JobState.QUEUED)
    clock.move(2 * COMPLETE_AFTER)
    refresh_measures(db=db, clock=clock)
    with db.reading() as connection:
        kept = {cached_count.name for cached_count in stats.list_cached_counts(connection)}
    assert kept == {*COUNTS, HISTORY}


@pytest.mark.both_databases
def test_of_two_who_count_at_once_one_is_kept(db, clock):
    cached_count = CachedCount("name", 1, clock(), 1.0, {"by": "first"})
    with db.transaction() as connection:
        assert stats.keep_cached_count(connection, cached_count)
        assert not stats.keep_cached_count(
            connection, CachedCount("name", 1, clock(), 1.0, {"by": "second"})
        )
        assert stats.keep_cached_count(
            connection, CachedCount("name", 2, clock(), 1.0, {"by": "third"})
        )
        found = stats.find_cached_count(connection, "name")
    assert found is not None
    assert found.value == {"by": "third"}


@pytest.mark.both_databases
def test_measures_agree_with_plain_counts_of_a_filled_table(db, clock):
    fill_table(db, 700, newest=NOW)
    refresh_measures(db=db, clock=clock, budget=timedelta(seconds=60))
    measures = read_measures(db=db, clock=clock)
    with db.reading() as connection:
        counted = dict(
            connection.execute(text("SELECT state, count(*) FROM jobs GROUP BY state")).all()
        )
        reasons = dict(
            connection.execute(text("SELECT reason, count(*) FROM events GROUP BY reason")).all()
        )
        stored = connection.execute(text("SELECT sum(archive_bytes) FROM jobs")).scalar_one()
    assert {state.value: n for state, n in measures.jobs.items() if n} == counted
    assert measures.history.reasons == reasons
    assert measures.history.archive_bytes == stored
    assert sum(measures.history.phases["whole"].counts) == counted["archived"]


def test_reading_adds_new_events_to_what_is_told_and_keeps_nothing(db, clock, monkeypatch):
    monkeypatch.setattr(measures_module, "WORTH_KEEPING_SECONDS", 0.0)
    monkeypatch.setattr(measures_module, "SCRAPE_EVENTS", 500)
    fill_table(db, 1300, newest=NOW)
    refresh_measures(db=db, clock=clock, batch=10, budget=timedelta())
    with db.reading() as connection:
        kept = stats.list_cached_counts(connection)
    first = read_measures(db=db, clock=clock)
    assert first.history.reasons["enqueued"] > 10
    assert first.events_behind > 0, "a scrape reads some, not all"
    assert read_measures(db=db, clock=clock).events_behind == first.events_behind
    with db.reading() as connection:
        assert stats.list_cached_counts(connection) == kept


def make_job_with_own_token(db, state, now=NOW):
    """`make_job` gives every attempt the same token, of which there can be one."""
    job = make_job(db, state, now=now)
    with db.transaction() as connection:
        connection.execute(text("UPDATE attempts SET token_hash = cast(id AS text)"))
    return job

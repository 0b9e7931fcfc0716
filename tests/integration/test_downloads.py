"""No more downloads at once than are allowed, over all workers and on both databases."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import event

from tests.harness.archiving import archive_locally, make_video, state_video
from tests.harness.clock import FakeClock
from tests.harness.jobs import (
    LEASE,
    NOW,
    insert_job,
    lead_job,
    make_job,
    move_job,
    read_job,
)
from tests.harness.together import call_together
from tests.harness.web import run_server, send_body
from worker.jobs import limits, table
from worker.jobs.states import BlockedBy, Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Claim, Job, Move
from worker.stages.archive import (
    FIRST_TURN,
    LONGEST_TURN,
    choose_turn_delay,
)
from worker.stages.sweep import sweep_jobs

pytestmark = pytest.mark.both_databases

SECOND = timedelta(seconds=1)
LATER = NOW + 7 * SECOND
VIDEO = make_video()


def claim(db, job, most, *, now=NOW, worker="tester:1") -> Job | None:
    with db.transaction() as connection:
        return limits.claim_download(
            connection,
            job.id,
            Claim(worker, now, now + LEASE),
            most=most,
            defer=lambda _: now + 7 * SECOND,
        )


def make_waiting(db, count: int, result=None) -> list[Job]:
    """Their results came though their submissions had been given up, so they have no attempts."""
    jobs = []
    for _ in range(count):
        job = lead_job(db, insert_job(db), JobEvent.RESULT_ARRIVED, result=result)
        assert job is not None
        jobs.append(job)
    return jobs


def list_reasons(db, job) -> list[str]:
    with db.reading() as connection:
        return [one.reason for one in table.list_events(connection, job.id)]


def test_claims_up_to_the_bound_succeed_and_no_more(db):
    jobs = make_waiting(db, 4)
    claimed = [claim(db, job, 2) for job in jobs]
    assert [one is not None for one in claimed] == [True, True, False, False]
    assert [one.state for one in claimed if one] == [JobState.ARCHIVING] * 2


def test_job_turned_away_stays_as_it_was_but_is_due_later(db):
    first, second = make_waiting(db, 2)
    claim(db, first, 1)
    assert claim(db, second, 1) is None
    after = read_job(db, second.id)
    assert (after.state, after.due_at, after.fence) == (JobState.COMPLETED, LATER, second.fence)
    assert (after.claimed_by, after.blocked_reason) == (None, None)
    assert list_reasons(db, second)[-1] == "result_arrived", "no history of mere waiting"


def test_job_that_waits_for_another_time_is_not_made_due_earlier(db):
    running, postponed = make_waiting(db, 2)
    claim(db, running, 1)
    claimed = move_job(db, postponed, JobEvent.ARCHIVE_CLAIMED)
    with db.transaction() as connection:
        why = {"blocked_by": BlockedBy.RETRY.value, "blocked_reason": "the host is away"}
        move = Move(NOW, NOW + 2 * LEASE, columns=why)
        waiting = table.apply_event(connection, claimed, JobEvent.ARCHIVE_POSTPONED, move)
    assert claim(db, postponed, 1) is None
    assert read_job(db, postponed.id) == waiting


@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.ARCHIVED])
def test_job_that_is_not_completed_is_left_alone_when_all_run(db, state):
    (running,) = make_waiting(db, 1)
    claim(db, running, 1)
    other = make_job(db, state)
    assert claim(db, other, 1) is None
    assert read_job(db, other.id) == other


def test_download_that_ended_makes_room(db):
    first, second = make_waiting(db, 2)
    claimed = claim(db, first, 1)
    assert claimed is not None
    move_job(db, claimed, JobEvent.ARCHIVE_POSTPONED)
    assert claim(db, second, 1) is not None


def test_download_whose_worker_fell_silent_makes_room(db):
    first, second = make_waiting(db, 2)
    claim(db, first, 1)
    assert claim(db, second, 1, now=NOW + LEASE - SECOND) is None
    assert claim(db, second, 1, now=NOW + LEASE) is not None


@pytest.mark.parametrize("most", [1, 3])
def test_claims_at_once_never_exceed_the_bound(db, most):
    """Each round all jobs are claimed at one moment by workers that know nothing of each other."""
    for _ in range(4):
        jobs = make_waiting(db, 8)
        calls: list[Callable[[], Job | None]] = [
            partial(claim, db, job, most, worker=f"tester:{number}")
            for number, job in enumerate(jobs)
        ]
        claimed = [job for job in call_together(*calls) if job is not None]
        assert len(claimed) == most
        for job in claimed:
            move_job(db, job, JobEvent.ARCHIVE_RECORDED)


def test_claims_of_one_job_at_once_succeed_once(db):
    (job,) = make_waiting(db, 1)
    claimed = call_together(*[partial(claim, db, job, 5)] * 6)
    assert sum(one is not None for one in claimed) == 1


def test_count_of_running_downloads_searches_an_index_of_few_rows(db):
    job, *_ = make_waiting(db, 3)
    sent: list[tuple[str, object]] = []

    def note(_connection, _cursor, statement, parameters, *_):
        if "count" in statement:
            sent.append((statement, parameters))

    with db.transaction() as connection:
        if db.engine.dialect.name == "postgresql":
            # so few rows are read whole otherwise
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        event.listen(connection, "before_cursor_execute", note)
        policy = Claim("tester:1", NOW, NOW + LEASE)
        assert limits.claim_download(connection, job.id, policy, most=1, defer=lambda at: at)
        event.remove(connection, "before_cursor_execute", note)
        word = "EXPLAIN" if db.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        ((statement, parameters),) = sent
        plan = connection.exec_driver_sql(f"{word} {statement}", parameters)
        told = "\n".join(str(row[-1]) for row in plan)
        assert "ix_jobs_archiving" in told or "ix_jobs_live" in told


# ------------------------------------------------------------------ with the stage


def test_choose_turn_delay_grows_with_the_wait_within_its_bounds():
    delays = [choose_turn_delay(timedelta(seconds=waited), lambda: 0.5) for waited in range(200)]
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (FIRST_TURN, LONGEST_TURN)
    assert choose_turn_delay(LONGEST_TURN, lambda: 0.0) < LONGEST_TURN
    assert choose_turn_delay(LONGEST_TURN, lambda: 1.0) > LONGEST_TURN


def test_archive_jobs_beyond_the_bound_are_turned_away_and_archived_by_a_later_sweep(db, tmp_path):
    clock = FakeClock()

    def archive(job: Job, host: str) -> Job | None:
        archiver = archive_locally(db, tmp_path, host).with_(max_downloads=1)
        return archiver(job, clock=clock)

    with run_server(send_body(VIDEO)) as cdn:
        result = state_video(f"{cdn.url}/v.mp4")
        first, second = make_waiting(db, 2, result)
        turned_away: list[Job | None] = []

        def answer(handler):
            if not turned_away:
                turned_away.append(archive(second, cdn.place))
            send_body(VIDEO)(handler)

        cdn.answer = answer
        moved = archive(first, cdn.place)
        assert moved is not None
        assert moved.state is JobState.ARCHIVED
        assert (turned_away, len(cdn.asked)) == ([None], 1)
        due_at = read_job(db, second.id).due_at
        assert due_at is not None
        clock.now = due_at
        assert NOW + FIRST_TURN / 2 < due_at < NOW + 2 * FIRST_TURN
        swept = sweep_jobs(db=db, lease=LEASE, clock=clock).doorbells
        assert swept == [Doorbell(Step.ARCHIVE, second.id)]
        moved = archive(second, cdn.place)
        assert moved is not None
        assert moved.state is JobState.ARCHIVED

"""`restore`: what a restored back-up may have wrong is searched for before it is bought again."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.harness.commands import Run, build_run
from tests.harness.fal import LISTING, build_item, list_items
from tests.harness.jobs import REQUEST_ID
from tests.harness.lost import SECRETS, deliver, queue_again, sign_tokens
from tests.harness.stages import SECOND, SUBMIT_TERMS, UNKNOWN, Bench, build_completion
from worker.jobs.checks import Check
from worker.jobs.states import JobState
from worker.jobs.values import Job, Outcome, Verdict
from worker.jobs.workers import SeenWorker, keep_worker
from worker.media.store import open_store
from worker.ops.doctor import Diagnosis, DoctorPolicy, examine
from worker.stages.restore import Restored, foresee_restore, restore_jobs
from worker.stages.tokens import read_token

S = JobState
HOUR = timedelta(hours=1)
STEP = timedelta(minutes=5)


def restore_at(bench: Bench, since: datetime) -> Restored:
    bench.observe()
    options = SUBMIT_TERMS.options
    return restore_jobs(since, db=bench.db, options=options, account="tester", clock=bench.clock)


def restore(bench: Bench, ago: timedelta = HOUR) -> Restored:
    since = bench.clock() - ago
    return restore_at(bench, since)


def count(restored: Restored) -> tuple[int, int, int]:
    return restored.doubted, restored.taken_over, restored.unknown


def make_queued(bench: Bench, seed: int = 7) -> Job:
    return bench.insert(input={"prompt": "on", "seed": seed})


@pytest.fixture
def restored(bench) -> Job:
    """A job that was queued in the back-up of an hour ago."""
    job = make_queued(bench)
    bench.clock.move(2 * HOUR)
    restore(bench)
    return job


@pytest.mark.both_databases
def test_restore_puts_in_doubt_what_fal_may_have_taken_and_nothing_else(bench):
    queued, claimed = make_queued(bench), bench.begin(make_queued(bench, 8)).job
    submitted = bench.make_submitted()
    bench.clock.move(2 * HOUR)
    since = bench.clock() - HOUR
    foreseen = foresee_restore(since, db=bench.db)
    assert (foreseen.epoch, bench.read(queued).state) == (None, S.QUEUED)
    done = restore(bench)
    assert count(done) == count(foreseen) == (1, 1, 2)
    for job in (queued, claimed):
        assert bench.read(job).state is S.SUBMISSION_UNKNOWN
        assert bench.read(job).due_at == bench.clock()
    assert bench.read(submitted) == submitted
    (stand_in,) = bench.attempts(queued)
    assert (stand_in.outcome, stand_in.started_at) == (Outcome.UNKNOWN, since)
    assert (stand_in.input, stand_in.options) == (queued.input, SUBMIT_TERMS.options.to_json())


@pytest.mark.both_databases
def test_restore_again_does_nothing_twice_and_leaves_later_jobs_alone(bench):
    make_queued(bench)
    bench.clock.move(2 * HOUR)
    since = bench.clock() - HOUR
    first = restore_at(bench, since)
    bench.clock.move(SECOND)
    later = make_queued(bench, 8)
    again = restore_at(bench, since)
    assert (again.epoch, again.is_repeated, count(again)) == (first.epoch, True, (0, 0, 1))
    assert bench.read(later) == later
    other = restore(bench, 2 * HOUR)
    assert other.epoch != first.epoch


def test_restore_goes_on_where_it_was_interrupted(bench, monkeypatch):
    monkeypatch.setattr("worker.stages.restore.BATCH", 2)
    for seed in range(5):
        make_queued(bench, seed)
    bench.clock.move(2 * HOUR)
    assert count(restore(bench)) == (5, 0, 5)
    assert count(restore(bench)) == (0, 0, 5)


def test_request_of_the_gap_is_adopted_from_the_listing(bench, desk, restored):
    desk.listing = list_items(build_item(REQUEST_ID, {**restored.input, "sync_mode": False}))
    bench.turn()
    assert bench.read(restored).fal_request_id == REQUEST_ID
    (listed,) = [one for one in desk.asked if one.path == LISTING]
    assert listed.query["start"][0] < (bench.clock() - HOUR).isoformat()
    assert desk.count("POST") == 0


def test_job_that_fal_never_had_is_bought_only_once_that_is_proven(bench, desk, restored):
    """The lost POST may have left just before the restore, however old the back-up is."""
    bench.live(UNKNOWN - timedelta(minutes=2), STEP)
    assert desk.count("POST") == 0
    bench.live(timedelta(minutes=10), STEP)
    assert desk.count("POST") == 1
    assert bench.read(restored).state is S.SUBMITTED
    assert [one.outcome for one in bench.attempts(restored)] == [Outcome.DEAD, Outcome.ACCEPTED]


def test_unknown_submission_is_waited_for_anew_from_the_restore_on(bench, desk):
    """Its attempt may have been given up in the gap, and another one been sent."""
    job = bench.lose(bench.begin(make_queued(bench)))
    bench.clock.move(UNKNOWN - timedelta(minutes=5))
    restore(bench)
    bench.live(UNKNOWN - timedelta(minutes=2), STEP)
    assert (desk.count("POST"), bench.read(job).state) == (0, S.SUBMISSION_UNKNOWN)


@pytest.mark.both_databases
def test_webhook_of_the_gap_finds_the_attempt_that_stands_for_it(bench):
    signed = sign_tokens(bench)
    lost = signed.begin(make_queued(bench))
    job = queue_again(signed, lost.job)
    restore(signed, timedelta())
    assert deliver(signed, lost.token, build_completion()).verdict is Verdict.RECORDED
    assert signed.read(job).state is S.COMPLETED
    (attempt,) = signed.attempts(job)
    assert (attempt.outcome, attempt.fal_request_id) == (Outcome.ACCEPTED, REQUEST_ID)
    assert deliver(signed, lost.token, build_completion()).verdict is Verdict.DUPLICATE


def test_tokens_after_a_restore_are_of_another_epoch(bench):
    signed = sign_tokens(bench)
    lost = signed.begin(make_queued(bench))
    job = queue_again(signed, lost.job)
    epoch = restore(signed).epoch
    signed.live(UNKNOWN + timedelta(minutes=10), STEP)
    fresh = signed.begin(make_queued(bench, 8))
    name = read_token(fresh.token, SECRETS)
    assert name is not None
    assert name.epoch == epoch
    assert signed.attempts(job)[-1].token_hash != lost.attempt.token_hash


def test_earlier_time_widens_the_search_of_what_a_later_one_has_doubted(bench, restored):
    restore(bench, HOUR * 3 / 2)
    (stand_in,) = bench.attempts(restored)
    assert stand_in.started_at == bench.clock() - HOUR * 3 / 2


# ------------------------------------------------------------------ the command


@pytest.fixture
def run(monkeypatch, capsys, database_url) -> Run:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return build_run(monkeypatch, capsys)


def test_command_says_what_it_did_and_what_would_be_done(run, bench):
    make_queued(bench)
    told = run("restore", "--since", "2026-11-23T11:00", "--dry-run")
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines() == [
        "lost since 2026-11-23 11:00:00 UTC",
        "1 queued jobs would be put in doubt",
        "0 jobs would be taken from workers that are gone",
        "1 jobs would be searched for at fal at once",
    ]
    assert "1 queued jobs put in doubt" in run("restore", "--since", "2026-11-23T11:00").out
    again = run("restore", "--since", "2026-11-23T11:00", "--json").json
    assert (again["is_repeated"], again["doubted"], again["unknown"]) == (True, 0, 1)


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        ("2h", "the back-up's own time"),
        ("soon", "invalid time 'soon'"),
        ("2999-01-01", "is not in the past"),
        ("", "invalid time ''"),
    ],
)
def test_command_takes_only_a_moment_that_is_over(run, bench, since, reason):
    """An age would be another restore each time."""
    ended = run("restore", "--since", since)
    assert (ended.code, ended.out) == (2, "")
    assert reason in " ".join(ended.err.split())


def test_command_refuses_while_a_worker_runs(run, bench):
    job, now = make_queued(bench), datetime.now(UTC)
    with bench.db.transaction() as connection:
        keep_worker(connection, SeenWorker("w@host", 7, [], now, now))
    ended = run("restore", "--since", "2026-11-23T11:00")
    assert (ended.code, ended.out) == (1, "")
    assert "w@host" in ended.err
    assert bench.read(job) == job


# ------------------------------------------------------------------ what doctor says before it


@pytest.mark.parametrize("more", [{}, {"sync_mode": False}])
def test_doctor_names_the_queued_job_that_would_be_paid_again(bench, desk, more):
    """The owner of a request is whoever the search would give it to: fal may show more fields."""
    job = make_queued(bench)
    desk.listing = list_items(build_item(REQUEST_ID, {**job.input, **more}))
    policy, store = DoctorPolicy(job.endpoint), open_store("file:.", Path("spool"))

    def look() -> Diagnosis:
        return examine(db=bench.db, store=store, platform=bench.platform, policy=policy)

    (found,) = look().findings
    assert (found.check, found.job_id) == (Check.ORPHAN_AT_FAL, job.id)
    assert "queued with the same input, and would pay again" in found.detail
    bench.clock.move(2 * HOUR)
    restore(bench)
    after = look()
    assert after.is_clean
    assert after.notes == ["1 requests at fal have the input of an open attempt"]

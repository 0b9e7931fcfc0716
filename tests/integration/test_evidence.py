"""What is no proof buys nothing: outages, listings that cannot tell, clocks that step."""

from datetime import timedelta

import pytest

from tests.harness.fal import INGRESS, accept, build_item, list_items
from tests.harness.jobs import LEASE, NOW, REQUEST_ID
from tests.harness.stages import PROBE, SECOND, UNKNOWN, Bench
from tests.harness.web import send_body, send_json
from worker.fal import platform
from worker.ground.db import Database
from worker.jobs import admission, observed, table
from worker.jobs.admission import ACCOUNT, Pause
from worker.jobs.states import JobState, PauseCause
from worker.jobs.values import Job, Outcome
from worker.media.store import open_store
from worker.ops.doctor import DoctorPolicy, examine
from worker.stages.admit import LONGEST_PAUSE, MOST_IN_A_ROW
from worker.stages.sweep import LONGEST_WAIT, Observer

S = JobState
HOUR = timedelta(hours=1)


def lose(bench: Bench, **columns: object) -> Job:
    submission = bench.begin(bench.insert(**columns))
    return bench.lose(submission)


def ask_after(bench: Bench, job: Job, waited: timedelta) -> Job:
    """Reconcile so long after the start of its attempt; the job then."""
    bench.clock.now = bench.attempts(job)[-1].started_at + waited
    bench.reconcile(job)
    return bench.read(job)


# ------------------------------------------------------------------ ambiguous replies


@pytest.mark.both_databases
def test_gateway_that_answers_504_makes_few_unknowns_and_is_probed(bench, desk):
    """Seen: 17 charges for 5 jobs, for each POST had been forwarded before the 504."""
    desk.submit = send_body(INGRESS, 504)
    jobs = [bench.insert(input={"seed": seed}) for seed in range(8)]
    for job in jobs:
        bench.submit(job)
    assert desk.count("POST") == MOST_IN_A_ROW
    states = [bench.read(job).state for job in jobs]
    assert states == [S.SUBMISSION_UNKNOWN] * MOST_IN_A_ROW + [S.QUEUED] * 5
    pause = bench.pause(PauseCause.AMBIGUOUS)
    assert pause is not None
    assert "ambiguous" in pause.reason

    bench.live(PROBE, PROBE / 4)
    assert desk.count("POST") == MOST_IN_A_ROW + 1

    desk.submit = accept()
    bench.live(2 * PROBE, PROBE / 4)
    assert bench.pause(PauseCause.AMBIGUOUS) is None


def test_ambiguous_reply_between_sure_ones_pauses_nothing(bench, desk):
    for number in range(2 * MOST_IN_A_ROW):
        desk.submit = send_body(INGRESS, 502) if number % 2 else accept(f"request-{number}")
        bench.submit(bench.insert(input={"seed": number}))
    assert desk.count("POST") == 2 * MOST_IN_A_ROW


def test_pause_for_the_account_is_not_ended_by_a_probe_that_reached_nobody(bench, desk):
    desk.submit = send_json({"detail": "User is locked"}, 403)
    bench.submit(bench.insert())
    bench.clock.move(PROBE)
    desk.submit = send_body(INGRESS, 503)
    bench.submit(bench.insert())
    assert bench.pause() is not None


# ------------------------------------------------------------------ the listing


def hide_inputs(_: Job) -> object:
    return list_items(build_item("somebody", None))


def refuse(_: Job) -> object:
    return send_json({"detail": "no"}, 401)


def cut(_: Job) -> object:
    return send_json({"items": [], "next_cursor": "more", "has_more": True})


@pytest.mark.parametrize("listing", [hide_inputs, refuse, cut])
def test_job_is_held_while_the_listing_cannot_tell_and_submitted_once_it_can(bench, desk, listing):
    job = lose(bench)
    desk.listing = listing(job)
    for times in (1, 2, 10):
        found = ask_after(bench, job, UNKNOWN * times + SECOND)
        assert (found.state, found.is_held) == (S.SUBMISSION_UNKNOWN, True)
    assert bench.reasons(job).count("submission_held") == 1
    assert "redrive ID --pay-again" in str(found.blocked_reason)

    desk.listing = list_items()
    assert ask_after(bench, job, UNKNOWN * 11).state is S.QUEUED
    assert bench.attempts(job)[-1].outcome == Outcome.DEAD


def test_job_is_held_while_this_hosts_clock_and_fals_disagree(bench, monkeypatch):
    job = lose(bench)
    monkeypatch.setattr(platform, "CLOCK_TOLERANCE", -SECOND)  # no two clocks agree so well
    found = ask_after(bench, job, UNKNOWN * 2)
    assert (found.state, found.is_held) == (S.SUBMISSION_UNKNOWN, True)
    assert "clock differs from fal's" in str(found.blocked_reason)


def test_silence_of_another_account_holds_the_job(bench):
    job = lose(bench)
    other = bench.resolving(account="another key")
    found = ask_after(other, job, UNKNOWN * 2)
    assert (found.state, found.is_held) == (S.SUBMISSION_UNKNOWN, True)
    assert "another key than FAL_KEY" in str(found.blocked_reason)


def test_twins_that_the_listing_shows_both_are_both_paired_and_none_is_bought_again(bench, desk):
    """Seen: 3 charges for 2 jobs of one input and seed."""
    first = lose(bench)
    bench.clock.move(timedelta(minutes=10))
    second = lose(bench)
    sent = first.input
    desk.listing = list_items(build_item("request-1", sent), build_item("request-2", sent))
    assert ask_after(bench, first, UNKNOWN + SECOND).state is S.SUBMISSION_UNKNOWN
    ask_after(bench, second, UNKNOWN + SECOND)
    found = {bench.read(one).fal_request_id for one in (first, second)}
    assert found == {"request-1", "request-2"}


def test_each_search_asks_for_a_window_around_its_attempts(bench, desk):
    old = lose(bench)
    bench.resolving(account="another key").live(UNKNOWN * 2, UNKNOWN / 8)
    assert bench.read(old).is_held
    desk.asked.clear()
    young = lose(bench, input={"seed": 8})
    bench.reconcile(young)
    windows = [one.query for one in desk.asked if one.path.endswith("by-endpoint")]
    assert len(windows) == 2
    assert all("start" in one and "end" in one for one in windows)


def test_doctor_says_why_submissions_are_held_and_what_settles_it(bench, desk, tmp_path):
    desk.listing = send_json({"detail": "no"}, 401)
    job = lose(bench)
    ask_after(bench, job, UNKNOWN)
    policy = DoctorPolicy(job.endpoint)
    store = open_store(f"file:{tmp_path}", tmp_path)
    diagnosis = examine(db=bench.db, store=store, platform=None, policy=policy, clock=bench.clock)
    (note,) = diagnosis.notes
    assert note.startswith("1 submissions are held: ")
    assert "401" in note
    assert "redrive ID --pay-again" in note


def test_key_that_cannot_list_is_told_from_one_that_can(bench, desk):
    assert bench.platform.explain_unreadable("fal-ai/app", NOW) is None
    desk.listing = send_json({"error": {"type": "authorization_error", "message": "no"}}, 401)
    assert "401" in str(bench.platform.explain_unreadable("fal-ai/app", NOW))
    assert timedelta(minutes=1) == platform.CLOCK_TOLERANCE


# ------------------------------------------------------------------ clocks


def test_clock_that_steps_two_hours_ahead_decides_nothing(bench, desk):
    """Seen: 10 charges for 5 jobs, and nothing due for two hours after."""
    job = lose(bench)
    bench.clock.move(2 * HOUR)
    bench.reconciler.reconcile_job(job.id)  # nobody has watched for these two hours
    assert bench.read(job).state is S.SUBMISSION_UNKNOWN
    assert bench.attempts(job)[-1].outcome == Outcome.UNKNOWN
    bench.clock.move(-2 * HOUR)
    assert bench.read(job).due_at is not None
    bench.sweep()
    due_at = bench.read(job).due_at
    assert due_at is not None
    assert due_at <= bench.clock() + LONGEST_WAIT


@pytest.mark.both_databases
def test_impossible_due_time_and_pause_are_clamped(bench, desk):
    waiting, _ = bench.make_submitted(), desk
    with bench.db.transaction() as connection:
        table.advance_due(connection, waiting, bench.clock() + 2 * HOUR)
        until = bench.clock() + LONGEST_PAUSE + HOUR
        cause = PauseCause.ACCOUNT
        pause = Pause(ACCOUNT, cause, "locked", bench.clock(), until=until, room=1)
        admission.keep_pause(connection, pause)
    assert [one.job_id for one in bench.sweep().doorbells] == [waiting.id]
    assert bench.try_begin(bench.insert()) is not None


def watch(db: Database, *passes: tuple[float, float]) -> float:
    """What passes of one process observe in all.

    Of each pass: its monotonic time, and how far the database's clock went before it.
    """
    now = 0.0

    def read_monotonic() -> float:
        return now

    observer = Observer(timedelta(seconds=10), read_monotonic)
    with db.reading() as connection:
        before = observed.read_observed(connection)
    for monotonic, step in passes:
        now = monotonic
        with db.transaction() as connection:
            # The database's clock moves against the row instead of the row against the clock.
            connection.exec_driver_sql(f"UPDATE observed_time SET noted_at = noted_at - {step}")
        observer.note(db)
    with db.reading() as connection:
        return (observed.read_observed(connection) - before).total_seconds()


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("passes", "seconds"),
    [
        ([(0, 5)], 0),
        ([(0, 5), (5, 5), (10, 5)], 10),
        ([(0, 5), (5, 7200)], 5),
        ([(0, 5), (5, -7200), (10, 5)], 5),
        ([(0, 5), (3600, 3600)], 10),
    ],
    ids=["first-sight", "each-period", "clock-ahead", "clock-back", "after-a-long-sleep"],
)
def test_observed_time_is_what_database_and_process_both_saw(db, passes, seconds):
    assert watch(db, *passes) == pytest.approx(seconds, abs=0.5)


@pytest.mark.both_databases
def test_ten_processes_that_sweep_in_turn_count_each_second_once(db):
    observers = [Observer(timedelta(seconds=10), lambda: clock[0]) for _ in range(10)]
    clock = [0.0]
    with db.reading() as connection:
        before = observed.read_observed(connection)
    for number in range(30):
        clock[0] = 5.0 * number
        with db.transaction() as connection:
            connection.exec_driver_sql("UPDATE observed_time SET noted_at = noted_at - 5")
        observers[number % 10].note(db)
    with db.reading() as connection:
        gained = (observed.read_observed(connection) - before).total_seconds()
    assert gained == pytest.approx(100, abs=1)  # all but the first sight of each


@pytest.mark.both_databases
def test_attempt_starts_at_the_observed_time_of_its_moment(bench):
    bench.clock.move(LEASE)
    attempt = bench.begin(bench.insert()).attempt
    assert attempt.observed_start == LEASE.total_seconds()
    assert attempt.account == "tester"
    assert bench.accept(bench.begin(bench.insert()), REQUEST_ID) is not None

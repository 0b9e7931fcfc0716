"""Which job is submitted next, if any: caps, rate, turns of tenants, pauses, its own times."""

import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.harness.jobs import ENDPOINT, LEASE
from tests.harness.stages import SECOND, Bench, build_completion, build_failure
from tests.harness.together import call_together
from worker.fal.submit import Accepted, RefusalClass, Refused
from worker.ground.clock import read_clock
from worker.ground.money import NANO
from worker.jobs import admission, charges, table, workers
from worker.jobs.admission import ACCOUNT, Caps, Pause
from worker.jobs.states import BlockedBy, JobState, PauseCause, Step
from worker.jobs.values import Outcome
from worker.stages.admit import AdmissionPolicy, count_submissions, read_room
from worker.stages.complete import record_completion
from worker.stages.submit import Submission, begin_submission
from worker.stages.sweep import pause_without_archive, release_queued, settle_charges

S = JobState
BUSY = Refused(RefusalClass.BUSY, 429, "fal_http_429", "too many", timedelta(seconds=30))
PRICE = 1_605_000
# 121 frames of 1280x720.
UNITS = 112
MINUTE = timedelta(minutes=1)
numbers = count(1)


def under(bench: Bench, cap: int = 1000, price: int | None = None, **caps: int) -> Bench:
    """The same bench with these caps of the settings."""
    policy = AdmissionPolicy(Caps(cap, **caps), ENDPOINT, price)
    return replace(bench, submit_policy=replace(bench.submit_policy, admission=policy))


def admit(bench: Bench) -> Submission | None:
    bench.observe()
    return begin_submission(db=bench.db, policy=bench.submit_policy, clock=bench.clock)


def admit_all(bench: Bench) -> list[Submission]:
    admitted = []
    while (submission := admit(bench)) is not None:
        admitted.append(submission)
    return admitted


def accept(bench: Bench, submission: Submission) -> str:
    request_id = f"request-{next(numbers)}"
    bench.reply(submission, Accepted(request_id, None, None, None))
    return request_id


def finish(bench: Bench, submission: Submission) -> None:
    bench.deliver(submission, build_completion(accept(bench, submission)))


def set_limits(bench: Bench, scope: str, **values: int | None) -> None:
    with bench.db.transaction() as connection:
        admission.set_limits(connection, scope, values)


def keep_pause(bench: Bench, scope: str, cause: PauseCause = PauseCause.OPERATOR) -> None:
    with bench.db.transaction() as connection:
        admission.keep_pause(connection, Pause(scope, cause, "by hand", bench.clock()))


def remove_pause(bench: Bench, scope: str, cause: PauseCause = PauseCause.OPERATOR) -> None:
    with bench.db.transaction() as connection:
        admission.remove_pause(connection, scope, cause)


def read_reason(bench: Bench) -> str | None:
    with bench.db.reading() as connection:
        room = read_room(connection, bench.submit_policy.admission, bench.clock())
    return room.reason and room.reason.value


def list_waiting(bench: Bench) -> dict[Any, tuple[str | None, int]]:
    with bench.db.reading() as connection:
        rows = connection.execute(text("SELECT id, blocked_by, place FROM jobs_waiting"))
        return {str(row.id).replace("-", ""): (row.blocked_by, row.place) for row in rows}


def in_flight(bench: Bench) -> int:
    with bench.db.reading() as connection:
        return admission.read_usage(connection, bench.clock()).in_flight


# ------------------------------------------------------------------ caps


@pytest.mark.both_databases
def test_no_more_are_admitted_than_may_be_in_flight(bench):
    bench = under(bench, 2)
    for _ in range(5):
        bench.insert()
    first, second = admit_all(bench)
    assert (first.has_next, second.has_next) == (True, False)
    assert second.attempt.admitted_cap == 2
    assert read_reason(bench) == "in_flight"
    finish(bench, first)
    assert len(admit_all(bench)) == 1


@pytest.mark.both_databases
def test_many_workers_at_once_admit_no_more_than_the_cap(bench):
    bench = under(bench, 5)
    for number in range(40):
        bench.insert(tenant=f"tenant-{number % 3}")
    bench.observe()
    for _ in range(3):
        begun = call_together(*[lambda: admit(bench)] * 16)
        admitted = [one for one in begun if one is not None]
        assert len(admitted) == 5
        assert in_flight(bench) == 5
        for submission in admitted:
            finish(bench, submission)


@pytest.mark.both_databases
@pytest.mark.parametrize(
    "reply",
    [
        Refused(RefusalClass.INPUT, 422, "fal_http_422", "no"),
        Refused(RefusalClass.UNREACHABLE, None, "fal_unreachable", "refused"),
    ],
)
def test_sure_refusal_frees_its_slot_and_costs_nothing(bench, reply):
    bench = under(bench, 1, PRICE)
    bench.insert()
    submission = admit(bench)
    assert submission is not None
    bench.reply(submission, reply)
    assert in_flight(bench) == 0
    settle(bench)
    charge = find_charge(bench, submission)
    assert (charge.void_reason, charge.voided_at) == ("refused", bench.clock())
    assert spent_today(bench) == 0


def test_unknown_submission_keeps_its_slot_until_it_must_be_over(bench):
    bench = under(bench, 1)
    bench.insert()
    bench.insert()
    submission = admit(bench)
    assert submission is not None
    bench.lose(submission)
    assert admit(bench) is None
    bench.clock.move(timedelta(hours=2))
    assert in_flight(bench) == 0


def test_a_tenants_own_cap_holds_and_keeps_nobody_waiting(bench):
    bench = under(bench, 10)
    set_limits(bench, "tenant:big", max_in_flight=2)
    for _ in range(9):
        bench.insert(tenant="big")
    bench.insert(tenant="small")
    assert Counter(one.job.tenant for one in admit_all(bench)) == {"big": 2, "small": 1}


def test_no_more_are_submitted_within_a_minute_than_the_rate(bench):
    bench = under(bench, per_minute=3)
    for _ in range(9):
        bench.insert()
    assert len(admit_all(bench)) == 3
    assert read_reason(bench) == "rate"
    bench.clock.move(MINUTE + SECOND)
    assert len(admit_all(bench)) == 3


def test_limits_set_at_run_time_replace_the_settings(bench):
    bench = under(bench, 2)
    for _ in range(9):
        bench.insert()
    assert len(admit_all(bench)) == 2
    set_limits(bench, ACCOUNT, max_in_flight=5)
    assert len(admit_all(bench)) == 3
    set_limits(bench, ACCOUNT, max_in_flight=None)
    assert admit(bench) is None


# ------------------------------------------------------------------ turns


@pytest.mark.both_databases
def test_three_tenants_share_two_slots_in_turn(bench):
    bench = under(bench, 2)
    for tenant, jobs in (("a", 30), ("b", 30), ("c", 30)):
        for _ in range(jobs):
            bench.insert(tenant=tenant)
    order = admit_in_order(bench, 30)
    assert Counter(order) == {"a": 10, "b": 10, "c": 10}
    assert all(len(set(order[at : at + 3])) == 3 for at in range(0, 30, 3))


def admit_in_order(bench: Bench, number: int, flying: list[Submission] | None = None) -> list[str]:
    """The tenants of the next jobs, where each admission frees the slot of the oldest."""
    flying, order = [] if flying is None else flying, list[str]()
    while len(order) < number:
        submission = admit(bench)
        if submission is None:
            if not flying:
                break
            finish(bench, flying.pop(0))
            continue
        flying.append(submission)
        order.append(submission.job.tenant)
    return order


@pytest.mark.both_databases
def test_weights_of_ten_to_one_give_ten_times_the_share(bench):
    bench = under(bench, 2)
    set_limits(bench, "tenant:gold", weight=10)
    for tenant in ("gold", "plain"):
        for _ in range(60):
            bench.insert(tenant=tenant)
    assert Counter(admit_in_order(bench, 55)) == {"gold": 50, "plain": 5}


def test_a_small_tenant_that_comes_late_is_next(bench):
    bench = under(bench, 2)
    for _ in range(40):
        bench.insert(tenant="big")
    flying = list[Submission]()
    admit_in_order(bench, 20, flying)
    for _ in range(2):
        bench.insert(tenant="small")
    assert admit_in_order(bench, 4, flying).count("small") == 2


def test_a_tenant_that_was_away_has_saved_up_nothing(bench):
    bench = under(bench, 2)
    bench.insert(tenant="rare")
    for _ in range(60):
        bench.insert(tenant="busy")
    flying = list[Submission]()
    admit_in_order(bench, 40, flying)
    for _ in range(20):
        bench.insert(tenant="rare")
    order = admit_in_order(bench, 12, flying)
    assert 5 <= order.count("rare") <= 7


def test_priority_and_age_decide_within_a_tenant(bench):
    bench = under(bench, 1000)
    old = bench.insert()
    bench.clock.move(SECOND)
    young, urgent = bench.insert(), bench.insert(priority=100)
    assert [one.job.id for one in admit_all(bench)] == [urgent.id, old.id, young.id]


def test_jobs_that_may_not_run_yet_keep_nobody_waiting(bench):
    later = bench.clock() + timedelta(hours=1)
    for _ in range(20):
        bench.insert(blocked_by=BlockedBy.NOT_BEFORE.value, not_before=later, due_at=later)
    job = bench.insert()
    assert [one.job.id for one in admit_all(bench)] == [job.id]


def test_jobs_that_are_too_dear_keep_no_other_tenant_waiting(bench):
    bench = under(bench, price=PRICE, daily_budget_nano_usd=2 * UNITS * PRICE)
    for _ in range(60):
        bench.insert(tenant="a", input={"prompt": "p", "num_frames": 481})
    bench.insert(tenant="b")
    submission = admit(bench)
    assert submission is not None
    assert submission.job.tenant == "b"


def test_nothing_is_published_for_tenants_that_are_all_paused_or_full(bench):
    bench = under(bench, 10)
    bench.insert(tenant="a")
    keep_pause(bench, "tenant:a")
    policy = bench.submit_policy.admission
    assert count_submissions(db=bench.db, policy=policy, most=50, clock=bench.clock) == 0


@pytest.mark.slow  # twenty stories of up to sixty admissions
@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(seed=st.integers(0, 2**32))
def test_nobody_starves_whatever_tenants_weights_priorities_and_arrivals(bench, seed):
    draw = random.Random(seed)
    empty(bench)
    cap, tenants = draw.randint(1, 4), [f"t{number}" for number in range(draw.randint(2, 5))]
    bench = under(bench, cap)
    weights = {tenant: draw.choice((1, 2, 10)) for tenant in tenants}
    for tenant, weight in weights.items():
        set_limits(bench, f"tenant:{tenant}", weight=weight)
    flying, waiting, rounds = list[Submission](), Counter[str](), 0
    passed = Counter[str]()
    while rounds < 60:
        rounds += 1
        for _ in range(draw.randint(0, 3)):
            tenant = draw.choice(tenants)
            bench.insert(tenant=tenant, priority=draw.randint(-100, 100))
            waiting[tenant] += 1
        if len(flying) >= cap:
            finish(bench, flying.pop(draw.randrange(len(flying))))
        submission = admit(bench)
        if submission is None:
            assert sum(waiting.values()) == 0
            continue
        flying.append(submission)
        assert len(flying) <= cap
        chosen = submission.job.tenant
        waiting[chosen] -= 1
        passed[chosen] = 0
        for tenant in tenants:
            if waiting[tenant] and tenant != chosen:
                passed[tenant] += 1
                # Between two turns of one tenant the others have as many as their weights say.
                assert passed[tenant] <= 2 * sum(weights.values()) / weights[tenant] + len(tenants)
            elif not waiting[tenant]:
                passed[tenant] = 0


def empty(bench: Bench) -> None:
    with bench.db.transaction() as connection:
        for name in ("jobs", "limits", "pauses", "charges", "spend"):
            connection.execute(text(f"DELETE FROM {name}"))


# ------------------------------------------------------------------ who is in the way


@pytest.mark.only_postgresql
def test_a_row_that_somebody_else_has_locked_is_passed_over(bench):
    locked, free = bench.insert(priority=9), bench.insert()
    with bench.db.transaction() as operator:
        operator.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": locked.id})
        submission = admit(bench)
        assert submission is not None
        assert submission.job.id == free.id


@pytest.mark.only_postgresql
@pytest.mark.slow  # the database ends what idles within an admission after five seconds
def test_a_worker_that_stops_within_an_admission_holds_up_buying_for_seconds(bench):
    bench.insert()
    with bench.db.engine.connect() as stopped:
        stopped.begin()
        admission.begin_admission(stopped)
        admission.lock_account(stopped, Caps(1))
        assert admit(bench) is not None
        stopped.invalidate()


# ------------------------------------------------------------------ pauses


@pytest.mark.both_databases
@pytest.mark.parametrize("cause", [PauseCause.OPERATOR, PauseCause.ARCHIVE])
def test_a_pause_by_hand_or_of_the_archive_sends_no_probe(bench, cause):
    bench.insert()
    keep_pause(bench, ACCOUNT, cause)
    bench.clock.move(timedelta(days=2))
    assert admit(bench) is None
    assert read_reason(bench) == ("archive" if cause is PauseCause.ARCHIVE else "account")
    remove_pause(bench, ACCOUNT, cause)
    assert admit(bench) is not None


def test_a_tenants_pause_holds_up_that_tenant_alone(bench):
    bench.insert(tenant="a")
    bench.insert(tenant="b")
    keep_pause(bench, "tenant:a")
    assert [one.job.tenant for one in admit_all(bench)] == ["b"]


def test_a_probe_that_fal_accepts_lifts_no_operators_pause(bench):
    bench.insert()
    submission = admit(bench)
    assert submission is not None
    keep_pause(bench, ACCOUNT)
    accept(bench, submission)
    assert bench.pause(PauseCause.OPERATOR) is not None


@pytest.mark.both_databases
def test_a_429_pauses_the_account_and_opens_gradually(bench):
    for _ in range(100):
        bench.insert()
    submission = admit(bench)
    assert submission is not None
    bench.reply(submission, BUSY)
    assert admit(bench) is None
    bench.clock.move(timedelta(seconds=31))
    rooms = []
    for _ in range(4):
        admitted = admit_all(bench)
        rooms.append(len(admitted))
        for one in admitted:
            accept(bench, one)
    assert rooms[0] == 1
    assert rooms == sorted(rooms)
    assert rooms[-1] > 10
    assert bench.pause(PauseCause.BUSY) is None
    outcomes = Counter(attempt.outcome for attempt in bench.attempts(submission.job))
    assert outcomes == {Outcome.POSTPONED: 1, Outcome.ACCEPTED: 1}


def test_a_429_for_all_writes_one_attempt_for_each_probe(bench):
    jobs = [bench.insert() for _ in range(9)]
    first = admit(bench)
    assert first is not None
    bench.reply(first, BUSY)
    for _ in range(5):
        bench.clock.move(timedelta(seconds=31))
        for submission in admit_all(bench):
            bench.reply(submission, BUSY)
    assert sum(len(bench.attempts(job)) for job in jobs) == 6
    assert {bench.read(job).blocked_by for job in jobs} == {None}


# ------------------------------------------------------------------ a job's own times


@pytest.mark.both_databases
def test_a_job_is_admitted_from_its_not_before_on(bench):
    later = bench.clock() + MINUTE
    job = bench.insert(blocked_by=BlockedBy.NOT_BEFORE.value, not_before=later, due_at=later)
    bench.sweep()
    assert admit(bench) is None
    bench.clock.move(MINUTE)
    release_queued(db=bench.db, clock=bench.clock)
    assert bench.read(job).blocked_by is None
    assert admit(bench) is not None


@pytest.mark.both_databases
def test_a_job_that_was_not_submitted_in_time_fails_and_costs_nothing(bench):
    job = bench.insert(expires_at=bench.clock() + MINUTE)
    bench.clock.move(MINUTE)
    _, failed = release_queued(db=bench.db, clock=bench.clock)
    assert [one.id for one in failed] == [job.id]
    ended = bench.read(job)
    assert (ended.state, ended.error_code) == (S.FAILED, "expired")
    assert bench.attempts(job) == []


def test_an_expired_job_at_the_head_makes_way(bench):
    expired, job = bench.insert(expires_at=bench.clock() + SECOND), bench.insert()
    bench.clock.move(MINUTE)
    submission = admit(bench)
    assert submission is not None
    assert submission.job.id == job.id
    assert bench.read(expired).error_code == "expired"


@pytest.mark.both_databases
def test_a_request_that_fal_had_not_started_in_time_is_queued_again_for_nothing(bench):
    bench = under(bench, 1, PRICE)
    job = bench.insert()
    submission = admit(bench)
    assert submission is not None
    request_id = accept(bench, submission)
    bench.deliver(submission, build_failure(request_id, "request_timeout", "not started"))
    assert bench.read(job).state is S.QUEUED
    assert bench.reasons(job)[-1] == "start_timed_out"
    settle(bench)
    assert find_charge(bench, submission).void_reason == "never_started"
    again = admit(bench)
    assert again is not None
    bench.clock.move(timedelta(days=2))
    request_id = accept(bench, again)
    bench.deliver(again, build_failure(request_id, "request_timeout", "not started"))
    assert bench.read(job).state is S.FAILED


@pytest.mark.both_databases
def test_a_long_wait_for_its_turn_takes_nothing_from_the_time_for_retries(bench):
    job = bench.insert()
    bench.clock.move(timedelta(days=2))
    submission = admit(bench)
    assert submission is not None
    request_id = accept(bench, submission)
    bench.deliver(submission, build_failure(request_id, "request_timeout", "not started"))
    assert bench.read(job).state is S.QUEUED


def test_a_timed_out_request_that_had_started_stays_a_failure(bench):
    job = bench.make_submitted("request-running")
    with bench.db.transaction() as connection:
        connection.execute(text("UPDATE attempts SET fal_status = 'IN_PROGRESS'"))
    failure = build_failure("request-running", "request_timeout", "timed out")
    with bench.db.transaction() as connection:
        current = table.get_job(connection, job.id, lock=True)
        [attempt] = bench.attempts(job)
        record_completion(connection, current, attempt, failure, bench.clock(), LEASE)
    assert bench.read(job).state is S.FAILED


# ------------------------------------------------------------------ money


def settle(bench: Bench) -> None:
    settle_charges(bench.submit_policy.admission, db=bench.db, clock=bench.clock)


def find_charge(bench: Bench, submission: Submission) -> charges.Charge:
    with bench.db.reading() as connection:
        found = charges.find_charge(connection, submission.attempt.id)
    assert found is not None
    return found


def spent_today(bench: Bench, scope: str = ACCOUNT) -> int:
    with bench.db.reading() as connection:
        return charges.read_spent(connection, admission.name_day(bench.clock())).get(scope, 0)


@pytest.mark.both_databases
def test_an_admission_reserves_its_estimate_at_the_price_of_then(bench):
    bench = under(bench, price=PRICE)
    bench.insert(tenant="a")
    submission = admit(bench)
    assert submission is not None
    charge = find_charge(bench, submission)
    assert (charge.units, charge.estimated_nano_usd) == (UNITS, UNITS * PRICE)
    assert charge.assumed == "video_size auto: 1280x720"
    assert spent_today(bench) == spent_today(bench, "tenant:a") == UNITS * PRICE


@pytest.mark.both_databases
def test_of_a_budget_for_ten_the_eleventh_is_never_bought_however_many_workers(bench):
    bench = under(bench, price=PRICE, daily_budget_nano_usd=10 * UNITS * PRICE)
    for _ in range(40):
        bench.insert()
    bench.observe()
    begun = call_together(*[lambda: admit(bench)] * 16)
    assert sum(one is not None for one in begun) == 10
    assert read_reason(bench) == "budget"
    bench.clock.move(timedelta(days=1))
    assert admit(bench) is not None


def test_what_was_settled_below_its_estimate_makes_room_for_more(bench):
    bench = under(bench, price=PRICE, daily_budget_nano_usd=2 * UNITS * PRICE)
    for _ in range(3):
        bench.insert()
    first, _ = admit_all(bench)
    finish(bench, first)
    with bench.db.transaction() as connection:
        charges.note_units(connection, first.attempt.id, "1", PRICE, bench.clock())
    settle(bench)
    assert spent_today(bench) == (UNITS + 1) * PRICE
    assert admit(bench) is None
    with bench.db.transaction() as connection:
        charges.note_bill(connection, first.attempt.id, "0", 0, bench.clock())
    settle(bench)
    assert admit(bench) is not None


def test_a_job_dearer_than_a_whole_day_is_passed_over(bench):
    bench = under(bench, price=PRICE, daily_budget_nano_usd=UNITS * PRICE)
    dear = bench.insert(input={"prompt": "p", "num_frames": 481})
    job = bench.insert()
    assert [one.job.id for one in admit_all(bench)] == [job.id]
    assert bench.read(dear).blocked_by == BlockedBy.BUDGET


def test_a_tenants_budget_keeps_that_tenant_waiting_alone(bench):
    bench = under(bench, price=PRICE)
    set_limits(bench, "tenant:a", daily_budget_nano_usd=UNITS * PRICE)
    for tenant in ("a", "a", "b"):
        bench.insert(tenant=tenant)
    assert Counter(one.job.tenant for one in admit_all(bench)) == {"a": 1, "b": 1}


def test_with_a_budget_and_no_price_nothing_is_admitted(bench):
    bench = under(bench, daily_budget_nano_usd=NANO)
    bench.insert()
    assert admit(bench) is None
    with bench.db.transaction() as connection:
        price = charges.Price(ENDPOINT, "megapixel", PRICE, bench.clock())
        charges.keep_price(connection, price)
    assert admit(bench) is not None


def test_without_a_bill_the_estimate_counts_after_seven_days(bench):
    bench = under(bench, price=PRICE)
    bench.insert()
    submission = admit(bench)
    assert submission is not None
    finish(bench, submission)
    bench.clock.move(timedelta(days=7))
    settle(bench)
    charge = find_charge(bench, submission)
    assert (charge.source, charge.billed_nano_usd) == ("estimate", UNITS * PRICE)


def test_a_late_bill_reopens_a_void_charge(bench):
    bench = under(bench, price=PRICE)
    bench.insert()
    submission = admit(bench)
    assert submission is not None
    request_id = accept(bench, submission)
    bench.deliver(submission, build_failure(request_id, "internal_error", "broken"))
    settle(bench)
    assert find_charge(bench, submission).voided_at is not None
    with bench.db.transaction() as connection:
        charges.note_bill(connection, submission.attempt.id, "500", 500 * PRICE, bench.clock())
    settle(bench)
    charge = find_charge(bench, submission)
    assert (charge.voided_at, charge.settled_at) == (None, bench.clock())
    assert spent_today(bench) == 500 * PRICE


# ------------------------------------------------------------------ what is told of it


@pytest.mark.both_databases
def test_the_view_gives_each_waiting_job_its_reason_and_place(bench):
    bench = under(bench, 1)
    bench.clock.now = read_clock()
    first, second = bench.insert(tenant="a", priority=1), bench.insert(tenant="a")
    later = bench.clock() + MINUTE
    own = bench.insert(blocked_by=BlockedBy.NOT_BEFORE.value, not_before=later, due_at=later)
    admit(bench)
    third = bench.insert(tenant="a")
    waiting = list_waiting(bench)
    assert first.id.hex not in waiting
    assert waiting[second.id.hex] == ("in_flight", 1)
    assert waiting[third.id.hex] == ("in_flight", 2)
    assert waiting[own.id.hex] == ("not_before", 1)
    keep_pause(bench, ACCOUNT)
    assert list_waiting(bench)[second.id.hex] == ("account", 1)
    assert read_reason(bench) == "account"


def test_as_many_messages_are_worth_publishing_as_there_is_room_and_jobs(bench):
    policy = under(bench, 3).submit_policy.admission
    assert count_submissions(db=bench.db, policy=policy, most=50, clock=bench.clock) == 0
    for _ in range(9):
        bench.insert()
    assert count_submissions(db=bench.db, policy=policy, most=50, clock=bench.clock) == 3
    assert [one.step for one in bench.sweep().doorbells] == [Step.SUBMIT] * 9


def test_the_archives_pause_ends_once_a_worker_can_write(bench):
    def note(fault: str | None, host: str) -> None:
        seen = workers.SeenWorker(
            name=f"w@{host}",
            pid=1,
            queues=["extend_video.archive"],
            started_at=bench.clock(),
            last_seen_at=bench.clock(),
            host=host,
            archive_fault=fault,
        )
        with bench.db.transaction() as connection:
            workers.keep_worker(connection, seen)
        pause_without_archive(db=bench.db, clock=bench.clock)

    note("disk full", "a")
    assert bench.pause(PauseCause.ARCHIVE) is not None
    note(None, "b")
    assert bench.pause(PauseCause.ARCHIVE) is None
    note("no permission", "b")
    pause = bench.pause(PauseCause.ARCHIVE)
    assert pause is not None
    assert pause.host == "a, b"

"""What holds a queued job: one function, the view `jobs_waiting`, and what admission does."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from tests.harness.jobs import ENDPOINT
from tests.harness.stages import SECOND, Bench, build_completion
from worker.cli import output
from worker.fal.submit import Accepted
from worker.ground.clock import read_clock
from worker.jobs import admission, charges
from worker.jobs.admission import ACCOUNT, Caps, Pause
from worker.jobs.states import BlockedBy, PauseCause
from worker.jobs.values import Job
from worker.ops.timeline import read_story
from worker.ops.waiting import Hold, count_queued, list_holds, list_scopes
from worker.stages.admit import AdmissionPolicy
from worker.stages.submit import Submission, begin_submission
from worker.stages.sweep import settle_charges

pytestmark = pytest.mark.both_databases
PRICE, UNITS = 1_605_000, 112
COST = PRICE * UNITS
MINUTE = timedelta(minutes=1)


@pytest.fixture
def now_bench(bench: Bench) -> Bench:
    """By the real time, which the view goes by."""
    bench.clock.now = read_clock()
    return bench


def under(bench: Bench, cap: int = 1000, price: int | None = None, **caps: int) -> Bench:
    policy = AdmissionPolicy(Caps(cap, **caps), ENDPOINT, price)
    changed = replace(bench, submit_policy=replace(bench.submit_policy, admission=policy))
    # As a sweep does, whereby the row of the account learns the settings.
    settle_charges(policy, db=bench.db, clock=bench.clock)
    return changed


def admit(bench: Bench) -> Submission | None:
    bench.observe()
    return begin_submission(db=bench.db, policy=bench.submit_policy, clock=bench.clock)


def pause(bench: Bench, scope: str, *causes: PauseCause, **values: Any) -> None:
    with bench.db.transaction() as connection:
        for cause in causes:
            admission.keep_pause(connection, Pause(scope, cause, "so", bench.clock(), **values))


def pause_by_both(bench: Bench) -> None:
    for cause in (PauseCause.ARCHIVE, PauseCause.OPERATOR):
        pause(bench, ACCOUNT, cause)


def limit(bench: Bench, scope: str, **values: int) -> None:
    with bench.db.transaction() as connection:
        admission.set_limits(connection, scope, values)


def read_holds(bench: Bench, *jobs: Job) -> dict[str, Hold]:
    with bench.db.reading() as connection:
        found = list_holds(connection, [bench.read(job) for job in jobs], bench.clock())
    return {job_id.hex: hold for job_id, hold in found.items()}


def read_view(bench: Bench) -> dict[str, tuple[str | None, int]]:
    with bench.db.reading() as connection:
        rows = connection.execute(text("SELECT id, blocked_by, place FROM jobs_waiting"))
        return {str(row.id).replace("-", ""): (row.blocked_by, row.place) for row in rows}


def take_all(bench: Bench) -> None:
    while admit(bench) is not None:
        pass


# By name: what is set up before all that may be admitted is, and what then holds the next job.
HOLDS: dict[str, tuple[Callable[[Bench], Bench], str | None]] = {
    "free": (under, None),
    "in_flight": (lambda bench: under(bench, 2), "in_flight"),
    "rate": (lambda bench: under(bench, per_minute=2), "rate"),
    "budget spent": (
        lambda bench: under(bench, price=PRICE, daily_budget_nano_usd=2 * COST),
        "budget",
    ),
    "less than a job is left": (
        lambda bench: under(bench, price=PRICE, daily_budget_nano_usd=2 * COST + 1),
        "budget",
    ),
    "budget without a price": (
        lambda bench: under(bench, daily_budget_nano_usd=2 * COST),
        "budget",
    ),
    "paused by hand": (
        lambda bench: after(bench, lambda: pause(bench, ACCOUNT, PauseCause.OPERATOR)),
        "account",
    ),
    "busy": (
        lambda bench: after(
            bench,
            lambda: pause(bench, ACCOUNT, PauseCause.BUSY, until=bench.clock() + MINUTE, room=1),
        ),
        "account",
    ),
    "a probe is under way": (
        lambda bench: after(bench, lambda: pause(bench, ACCOUNT, PauseCause.BUSY, room=1)),
        "account",
    ),
    "a time that a wrong clock wrote": (
        lambda bench: after(
            bench,
            lambda: pause(
                bench, ACCOUNT, PauseCause.BUSY, until=bench.clock() + 9000 * MINUTE, room=9
            ),
        ),
        None,
    ),
    "archive": (
        lambda bench: after(bench, lambda: pause(bench, ACCOUNT, PauseCause.ARCHIVE)),
        "archive",
    ),
    "archive and account": (
        lambda bench: after(
            bench,
            lambda: pause(bench, ACCOUNT, PauseCause.ARCHIVE, PauseCause.OPERATOR),
        ),
        "account",
    ),
    "failures are counted": (
        lambda bench: after(
            bench, lambda: pause(bench, ACCOUNT, PauseCause.BUSY, room=admission.COUNTING)
        ),
        None,
    ),
    "tenant paused": (
        lambda bench: after(bench, lambda: pause(bench, "tenant:a", PauseCause.OPERATOR)),
        "tenant",
    ),
    "tenant's cap": (
        lambda bench: after(bench, lambda: limit(bench, "tenant:a", max_in_flight=2)),
        "tenant",
    ),
    "tenant's rate": (
        lambda bench: after(bench, lambda: limit(bench, "tenant:a", per_minute=2)),
        "rate",
    ),
    "tenant's budget": (
        lambda bench: after(
            bench, lambda: limit(bench, "tenant:a", daily_budget_nano_usd=2 * COST), price=PRICE
        ),
        "budget",
    ),
}


def after(bench: Bench, change: Callable[[], object], **options: Any) -> Bench:
    change()
    return under(bench, **options)


@pytest.mark.parametrize("name", HOLDS)
def test_function_and_view_say_alike_what_holds_a_job_and_admission_does_it(now_bench, name):
    build, expected = HOLDS[name]
    bench = under(now_bench, price=PRICE if "budget" in name or "left" in name else None)
    if name == "budget without a price":
        bench = under(now_bench)
    for _ in range(2):
        bench.insert(tenant="a")
    take_all(bench)
    bench = build(bench)
    jobs = [bench.insert(tenant="a") for _ in range(3)]
    holds, view = read_holds(bench, *jobs), read_view(bench)
    for place, job in enumerate(jobs, 1):
        hold = holds[job.id.hex]
        assert (hold.blocked_by, hold.place) == view[job.id.hex] == (expected, place)
    assert (admit(bench) is None) == (expected is not None)


def test_a_job_s_own_reason_comes_before_those_that_are_shared(now_bench):
    bench = under(now_bench, 1)
    pause(bench, ACCOUNT, PauseCause.OPERATOR)
    later = bench.clock() + 10 * MINUTE
    columns = {"blocked_by": BlockedBy.NOT_BEFORE.value, "not_before": later, "due_at": later}
    own, job = bench.insert(tenant="a", priority=9, **columns), bench.insert(tenant="a")
    holds, view = read_holds(bench, own, job), read_view(bench)
    assert (holds[own.id.hex].blocked_by, holds[own.id.hex].place) == ("not_before", 2)
    assert holds[own.id.hex].until == bench.read(own).due_at
    assert {key: (one.blocked_by, one.place) for key, one in holds.items()} == view


def test_places_are_those_of_the_order_in_which_jobs_are_admitted(now_bench):
    bench, draw = under(now_bench), random.Random(7)
    jobs = []
    for _ in range(30):
        bench.clock.move(draw.choice((timedelta(), SECOND)))
        jobs.append(bench.insert(tenant=draw.choice("ab"), priority=draw.randint(-2, 2)))
    holds, view = read_holds(bench, *jobs), read_view(bench)
    assert {key: one.place for key, one in holds.items()} == {
        key: at for key, (_, at) in view.items()
    }
    with bench.db.reading() as connection:
        assert {
            job.id.hex: admission.find_place(connection, job) for job in map(bench.read, jobs)
        } == {key: one.place for key, one in holds.items()}
    order: dict[str, list[int]] = {"a": [], "b": []}
    while (submission := admit(bench)) is not None:
        order[submission.job.tenant].append(holds[submission.job.id.hex].place)
    assert all(places == sorted(places) for places in order.values())


def run_one_a_minute(bench: Bench, number: int) -> None:
    """So many runs, each as long as a minute, one after the other."""
    for _ in range(number):
        submission = admit(bench)
        assert submission is not None
        request_id = f"request-{submission.job.id}"
        bench.reply(submission, Accepted(request_id, None, None, None))
        bench.clock.move(MINUTE)
        bench.deliver(submission, build_completion(request_id))


def test_the_time_of_submission_is_estimated_by_the_last_hour_s_pace(bench):
    bench = under(bench, 1)
    for _ in range(11):
        bench.insert(tenant="done")
    run_one_a_minute(bench, 11)
    own = [bench.insert(tenant="a") for _ in range(4)]
    admit(bench)
    now, holds = bench.clock(), read_holds(bench, *own[1:])
    times = [holds[job.id.hex].estimated_submit_at for job in own[1:]]
    assert all(time is not None for time in times)
    minutes = [(time - now) / MINUTE for time in times if time is not None]
    # Eleven ends within ten minutes since the first.
    assert minutes == pytest.approx([10 / 11, 20 / 11, 30 / 11], rel=1e-3)
    for _ in range(20):
        bench.insert(tenant="b")
    last = read_holds(bench, *own[1:])[own[3].id.hex].estimated_submit_at
    # One of the other tenant for each of its own.
    assert last is not None
    assert (last - now) / MINUTE == pytest.approx(60 / 11, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "starts"),
    [("paused by hand", None), ("archive", None), ("tenant paused", None), ("free", 0)],
)
def test_what_somebody_has_to_end_has_no_estimate(now_bench, name, starts):
    build, _ = HOLDS[name]
    bench = build(now_bench)
    job = bench.insert(tenant="a")
    at = read_holds(bench, job)[job.id.hex].estimated_submit_at
    assert at == (None if starts is None else bench.clock())


def test_a_spent_budget_is_over_at_midnight(bench):
    bench = under(bench, price=PRICE, daily_budget_nano_usd=COST)
    first, second = bench.insert(), bench.insert()
    submission = admit(bench)
    assert submission is not None
    bench.reply(submission, Accepted("r", None, None, None))
    bench.clock.move(MINUTE)
    bench.deliver(submission, build_completion("r"))
    assert bench.read(first).blocked_by is None
    at = read_holds(bench, second)[second.id.hex].estimated_submit_at
    midnight = datetime.combine(bench.clock().date(), datetime.min.time(), UTC) + timedelta(days=1)
    assert at is not None
    assert midnight <= at <= midnight + 2 * MINUTE


def test_show_tells_what_holds_a_job_its_place_and_the_estimate(bench, capsys):
    bench = under(bench, 1)
    for _ in range(3):
        bench.insert(tenant="a")
    run_one_a_minute(bench, 1)
    assert admit(bench) is not None
    job = bench.insert(tenant="a", priority=-1)
    story = read_story(job.id, db=bench.db, clock=bench.clock)
    assert "a free place at fal (1 of 1 are in flight; place 2 in its tenant's queue; by an " in (
        story.wait.sentence
    )
    shown = output.story_to_json(story)
    assert (shown["blocked_by"], shown["place"]) == ("in_flight", 2)
    assert shown["waits_for"] == story.wait.waits_for
    assert shown["estimated_submit_at"] > bench.clock()
    output.print_story(story)
    output.print_json(shown)
    printed, _, line = capsys.readouterr().out.rpartition("\n{")
    assert "why is it not done?" in printed
    assert json.loads("{" + line)["place"] == 2


def test_show_tells_what_an_operator_s_pause_is_ended_by(bench):
    pause(bench, ACCOUNT, PauseCause.OPERATOR)
    wait = read_story(bench.insert().id, db=bench.db, clock=bench.clock).wait
    assert "extend-video limits resume account" in wait.may_do
    assert "(so; place 1" in wait.waits_for


def test_show_tells_each_charge_and_how_it_is_known(bench, capsys):
    bench = under(bench, price=PRICE)
    job = bench.insert()
    submission = admit(bench)
    assert submission is not None
    story = read_story(job.id, db=bench.db, clock=bench.clock)
    assert [one["estimated_nano_usd"] for one in output.story_to_json(story)["charges"]] == [COST]
    output.print_story(story)
    assert "0.17976 USD  reserved, an estimate  112 units" in capsys.readouterr().out
    with bench.db.transaction() as connection:
        charges.note_bill(connection, submission.attempt.id, "50", 50 * PRICE, bench.clock())
    output.print_story(read_story(job.id, db=bench.db, clock=bench.clock))
    assert "0.08025 USD  by fal's billing events  50 units" in capsys.readouterr().out


def test_list_says_what_holds_each_queued_job(bench, capsys):
    bench = under(bench, 1)
    first, second = bench.insert(tenant="a"), bench.insert(tenant="a")
    assert admit(bench) is not None
    holds = read_holds(bench, first, second)
    assert set(holds) == {second.id.hex}
    by_id = {second.id: holds[second.id.hex]}
    output.print_wide(output.build_job_table([bench.read(first), bench.read(second)], by_id))
    assert "in_flight: 1 of 1 are in flight, place 1" in capsys.readouterr().out


def test_queued_jobs_are_counted_by_what_holds_them(bench):
    bench = under(bench, 1)
    limit(bench, "tenant:b", max_in_flight=1)
    for tenant in ("a", "a", "b"):
        bench.insert(tenant=tenant)
    bench.insert(blocked_by=BlockedBy.RETRY.value)
    with bench.db.reading() as connection:
        counted = count_queued(connection, bench.clock())
    assert (counted["none"], counted["retry"], counted["in_flight"]) == (3, 1, 0)
    assert admit(bench) is not None
    with bench.db.reading() as connection:
        counted = count_queued(connection, bench.clock())
    assert (counted["none"], counted["retry"], counted["in_flight"]) == (0, 1, 2)


def test_scopes_have_their_limits_use_spending_and_pauses(bench):
    bench = under(bench, 3, PRICE, daily_budget_nano_usd=9 * COST)
    limit(bench, "tenant:a", max_in_flight=2)
    pause(bench, "tenant:b", PauseCause.OPERATOR)
    bench.insert(tenant="a")
    assert admit(bench) is not None
    with bench.db.reading() as connection:
        account, first, second = list_scopes(connection, bench.clock())
    assert (account.scope, account.max_in_flight, account.in_flight) == (ACCOUNT, 3, 1)
    assert (account.daily_budget_nano_usd, account.spent_nano_usd) == (9 * COST, COST)
    assert (first.scope, first.max_in_flight, first.in_flight) == ("tenant:a", 2, 1)
    assert (second.scope, second.is_paused_by_hand) == ("tenant:b", True)

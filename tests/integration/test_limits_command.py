"""`extend-video limits` and `costs`: what they change, what they show, what they refuse."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text, update

from tests.emulator.processes import Emulator
from tests.harness.brokers import take_messages
from tests.harness.clock import FakeClock
from tests.harness.commands import Run, build_run
from tests.harness.jobs import ENDPOINT
from tests.harness.stages import Bench, build_completion
from worker.broker.app import SUBMIT
from worker.ground.clock import read_clock
from worker.ground.db import Database
from worker.ground.money import NANO
from worker.jobs import admission, charges
from worker.jobs.admission import ACCOUNT, Caps, Limits, Pause
from worker.jobs.charges import Price, VoidReason
from worker.jobs.models import ChargeRow
from worker.jobs.states import BlockedBy, PauseCause
from worker.stages.admit import AdmissionPolicy
from worker.stages.submit import Submission
from worker.stages.sweep import settle_charges

PRICE = 1_605_000
UNITS = 112


@pytest.fixture
def run(monkeypatch, capsys, database_url, redis_url) -> Run:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", redis_url)
    take_messages(redis_url, SUBMIT)
    return build_run(monkeypatch, capsys)


@pytest.fixture
def now_bench(bench: Bench) -> Bench:
    """The command's clock is the database's."""
    policy = AdmissionPolicy(Caps(1000), ENDPOINT, PRICE)
    terms = replace(bench.submit_policy, admission=policy)
    return replace(bench, clock=FakeClock(read_clock()), submit_policy=terms)


def find_limits(db: Database, scope: str) -> Limits | None:
    with db.reading() as connection:
        return admission.find_limits(connection, scope)


def list_pauses(db: Database) -> list[Pause]:
    with db.reading() as connection:
        return list(admission.list_pauses(connection))


def dump(db: Database) -> dict[str, list[dict[str, Any]]]:
    """All that a command about limits could change."""
    with db.reading() as connection:
        return {
            name: [
                dict(row) for row in connection.execute(text(f"SELECT * FROM {name}")).mappings()
            ]
            for name in ("limits", "pauses", "jobs", "spend", "charges")
        }


def find_line(ended: Any, scope: str) -> dict[str, Any]:
    [line] = [one for one in ended.json["limits"] if one["scope"] == scope]
    return dict(line)


# ------------------------------------------------------------------ set


@pytest.mark.both_databases
def test_what_is_set_is_stored_shown_and_published(run, db, redis_url):
    ended = run(
        *("limits", "set", "account", "--max-in-flight", "10", "--per-minute", "30"),
        *("--daily-budget", "25.00", "--json"),
    )
    assert (ended.code, ended.err) == (0, "")
    line = find_line(ended, ACCOUNT)
    assert (line["max_in_flight"], line["per_minute"]) == (10, 30)
    assert line["daily_budget_nano_usd"] == 25 * NANO
    stored = find_limits(db, ACCOUNT)
    assert stored is not None
    assert (stored.max_in_flight, stored.daily_budget_nano_usd) == (10, 25 * NANO)
    assert len(take_messages(redis_url, SUBMIT)) == 1


def test_what_is_not_named_stays_and_none_takes_back(run, db):
    run("limits", "set", "tenant:studio", "--weight", "10", "--max-in-flight", "4")
    run("limits", "set", "tenant:studio", "--per-minute", "7", "--max-in-flight", "none")
    stored = find_limits(db, "tenant:studio")
    assert stored is not None
    assert (stored.weight, stored.max_in_flight, stored.per_minute) == (10, None, 7)
    run("limits", "set", "tenant:studio", "--weight", "none")
    stored = find_limits(db, "tenant:studio")
    assert stored is not None
    assert stored.weight == 1


def test_budget_is_exact_and_the_command_shows_what_is_spent_of_it(run, now_bench):
    now_bench.insert(tenant="studio")
    now_bench.try_begin(None)
    ended = run("limits", "set", "tenant:studio", "--daily-budget", "0.179760001")
    assert "0.17976 USD of 0.179760001" in ended.out
    line = find_line(run("limits", "show", "tenant:studio", "--json"), "tenant:studio")
    assert line["daily_budget_nano_usd"] == UNITS * PRICE + 1
    assert line["spent_today_nano_usd"] == UNITS * PRICE


def test_new_budget_tries_jobs_that_were_too_dear_for_the_old_one(run, now_bench):
    later = now_bench.clock() + timedelta(days=1)
    blocked = {"blocked_by": BlockedBy.BUDGET.value, "due_at": later}
    mine, other = (now_bench.insert(tenant=name, **blocked) for name in ("studio", "other"))
    run("limits", "set", "tenant:studio", "--daily-budget", "none")
    assert now_bench.read(mine).due_at < later
    assert now_bench.read(other).due_at == later


def test_without_rows_the_settings_hold(run, monkeypatch):
    monkeypatch.setenv("MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("DAILY_BUDGET_USD", "0.001605")
    line = find_line(run("limits", "--json"), ACCOUNT)
    assert (line["max_in_flight"], line["per_minute"], line["weight"]) == (7, None, 1)
    assert line["daily_budget_nano_usd"] == PRICE
    assert line["in_flight"] == 0


USD = "an amount in USD from 0 to 1000000, with at most 9 decimals, such as 12.50, or none"
OPTIONS = {
    "--max-in-flight": ("0", "10001", "00001000000", "ten", "1.5", "-1", "٣", ""),
    "--per-minute": ("0", "100001", "9" * 5000, "1e2"),
    "--weight": ("0", "1001", "heavy", "-1"),
    "--daily-budget": ("-1", "1e7", "0.0000000001", "1e999999999", "free", "NaN", "1,50"),
}
BOUNDS = {
    "--max-in-flight": "a whole number from 1 to 10000, or none",
    "--per-minute": "a whole number from 1 to 100000, or none",
    "--weight": "a whole number from 1 to 1000, or none",
    "--daily-budget": USD,
}
LONG = "tenant:" + "x" * 129
WRONG = [
    *(
        (("account", option, value), f"{option}={value}: {BOUNDS[option]}")
        for option, values in OPTIONS.items()
        for value in values
    ),
    (
        ("account",),
        "limits set=(nothing): --max-in-flight, --weight, --per-minute or --daily-budget",
    ),
    (("--weight", "2"), "SCOPE=(not set): account or tenant:NAME"),
    *(
        ((scope, "--weight", "2"), f"SCOPE={scope}: account or tenant:NAME")
        for scope in ("studio", "tenant:", "tenant:a b", "ACCOUNT", LONG)
    ),
]


@pytest.mark.parametrize(("words", "told"), WRONG, ids=repr)
def test_wrong_input_names_field_value_and_bound_and_changes_nothing(run, db, words, told):
    run("limits", "set", "account", "--max-in-flight", "5")
    before = dump(db)
    ended = run("limits", "set", *words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.split("\n  ") == ["invalid_input", f"{told}\n"]
    assert dump(db) == before


def test_every_wrong_option_is_named_at_once(run, db):
    before = dump(db)
    ended = run(
        *("limits", "set", "account", "--max-in-flight", "0", "--per-minute", "0"),
        *("--daily-budget", "x", "--weight", "0"),
    )
    assert ended.code == 2
    assert [option for option in BOUNDS if option not in ended.err] == []
    assert dump(db) == before


def test_unknown_action_is_wrong_usage(run):
    assert run("limits", "lift", "account").code == 2


# ------------------------------------------------------------------ pause and resume


@pytest.mark.both_databases
@pytest.mark.parametrize("scope", ["account", "tenant:studio"])
def test_pause_stands_until_it_is_resumed(run, db, redis_url, scope):
    ended = run("limits", "pause", scope, "--reason", " invoice to be checked ", "--json")
    [pause] = find_line(ended, scope)["pauses"]
    assert (pause["cause"], pause["reason"]) == ("operator", "invoice to be checked")
    [kept] = list_pauses(db)
    assert (kept.scope, kept.cause, kept.until) == (scope, PauseCause.OPERATOR, None)
    assert "invoice to be checked" in run("limits").out
    take_messages(redis_url, SUBMIT)
    ended = run("limits", "resume", scope)
    assert ended.code == 0
    assert list_pauses(db) == []
    assert len(take_messages(redis_url, SUBMIT)) == 1


@pytest.mark.parametrize("reason", [(), ("--reason", " ")])
def test_pause_without_a_reason_is_refused(run, db, reason):
    ended = run("limits", "pause", "account", *reason)
    assert ended.code == 2
    assert "--reason" in ended.err
    assert list_pauses(db) == []


def test_resume_ends_no_pause_but_the_operators(run, db):
    with db.transaction() as connection:
        busy = Pause(ACCOUNT, PauseCause.BUSY, "429", read_clock())
        admission.keep_pause(connection, busy)
    ended = run("limits", "resume", "account")
    assert (ended.code, ended.err.strip()) == (1, "account was not paused by hand")
    assert [one.cause for one in list_pauses(db)] == [PauseCause.BUSY]


# ------------------------------------------------------------------ show


def test_price_is_shown_with_its_age(run, db):
    price = Price(ENDPOINT, "megapixel", PRICE, read_clock() - timedelta(minutes=5))
    with db.transaction() as connection:
        charges.keep_price(connection, price)
    assert "0.001605 USD a megapixel, read 5 min" in run("limits").out
    shown = run("limits", "--json").json["prices"][ENDPOINT]
    assert shown["unit_price_nano_usd"] == PRICE
    assert 300 <= shown["age_seconds"] < 360


# ------------------------------------------------------------------ costs


def settle(bench: Bench) -> None:
    settle_charges(bench.submit_policy.admission, db=bench.db, clock=bench.clock)


@pytest.fixture
def spent(now_bench: Bench) -> Bench:
    """Of tenant a: a settled and a reserved attempt; of b: a void one."""
    begun: dict[str, list[Submission]] = {"a": [], "b": []}
    for name in "aab":
        now_bench.insert(tenant=name, labels={"show": name})
    for _ in range(3):
        submission = now_bench.try_begin(None)
        assert submission is not None
        begun[submission.job.tenant].append(submission)
    with now_bench.db.transaction() as connection:
        now = now_bench.clock()
        charges.note_bill(connection, begun["a"][0].attempt.id, "7", 7 * PRICE, now)
        charges.void(connection, begun["b"][0].attempt.id, VoidReason.REFUSED, now)
    settle(now_bench)
    return now_bench


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("key", "totals"),
    [
        ("tenant", {"a": 119, "b": 0}),
        ("day", {None: 119}),
        ("label", {"show=a": 119, "show=b": 0}),
        ("state", {"submitting": 119}),
    ],
)
def test_costs_are_summed_by_what_is_asked(run, spent, key, totals):
    day = admission.name_day(spent.clock())
    ended = run("costs", "--by", key, "--json")
    assert ended.code == 0
    assert (ended.json["by"], ended.json["reconciled"]) == (key, False)
    listed = {one["key"]: one["total_nano_usd"] for one in ended.json["costs"]}
    assert listed == {name or day: total * PRICE for name, total in totals.items()}
    assert all(isinstance(amount, int) for amount in listed.values())


def test_costs_are_shown_in_dollars_with_what_is_settled_reserved_and_void(run, spent):
    shown = [" ".join(line.split()) for line in run("costs", "--by", "tenant").out.splitlines()]
    assert shown == [
        "a 0.190995 USD (0.011235 settled, 0.17976 reserved), 2 attempts",
        "b 0.00 USD (0.00 settled, 0.00 reserved), 1 attempt, 1 cost nothing",
        "total 0.190995 USD",
    ]


def test_costs_since_a_time_leave_out_what_is_older(run, spent):
    assert run("costs", "--since", "1h", "--json").json["costs"] != []
    with spent.db.transaction() as connection:
        old = spent.clock() - timedelta(hours=2)
        connection.execute(update(ChargeRow).values(admitted_at=old))
    assert run("costs", "--since", "1h", "--json").json["costs"] == []


@pytest.mark.parametrize(
    "words", [("--by", "month"), ("--since", "soon"), ("--since", "2030-01-01")]
)
def test_costs_by_or_since_what_there_is_not_are_wrong_usage(run, words):
    ended = run("costs", *words)
    assert ended.code == 2
    assert words[0] in ended.err
    assert words[1] in ended.err


# ------------------------------------------------------------------ reconcile


@pytest.fixture
def billed(monkeypatch, emulator: Emulator, now_bench: Bench) -> tuple[Bench, Emulator]:
    monkeypatch.setenv("FAL_PLATFORM_URL", f"{emulator.url}/v1")
    monkeypatch.setenv("FAL_KEY", "emulator-key")
    return now_bench, emulator


def buy(bench: Bench, emulator: Emulator) -> str:
    submission = bench.begin(bench.insert())
    request_id = emulator.submit()
    emulator.get_result(request_id)
    bench.accept(submission, request_id)
    bench.deliver(submission, build_completion(request_id))
    return request_id


def test_without_the_admin_key_reconciling_says_so_and_fails(run, billed):
    ended = run("costs", "--reconcile")
    assert ended.code == 1
    assert ended.err.startswith("billing_refused: ")
    assert "FAL_ADMIN_KEY" in ended.err


def test_platform_that_does_not_answer_fails_the_command(run, billed, monkeypatch):
    _, emulator = billed
    monkeypatch.setenv("FAL_ADMIN_KEY", "emulator-admin")
    emulator.order({"point": "billing", "kind": "status", "code": 503})
    ended = run("costs", "--reconcile")
    assert ended.code == 1
    assert ended.err.startswith("billing_unavailable: ")


def test_reconciling_names_a_request_that_no_job_has_and_fails(run, billed, monkeypatch):
    bench, emulator = billed
    monkeypatch.setenv("FAL_ADMIN_KEY", "emulator-admin")
    ours, unknown = buy(bench, emulator), emulator.submit()
    units = int(emulator.get_result(unknown).headers["X-Fal-Billable-Units"])
    ended = run("costs", "--reconcile", "--since", "1h", "--json")
    assert ended.code == 1
    assert ended.json["reconciled"] is True
    found = {one["fal_request_id"]: one for one in ended.json["differences"]}
    assert ours not in found  # its reservation has become its bill
    assert found[unknown]["kind"] == "unknown_request"
    assert found[unknown]["billed_nano_usd"] == units * PRICE
    [line] = ended.json["costs"]
    assert (line["reserved_nano_usd"], line["settled_nano_usd"]) == (0, units * PRICE)
    ended = run("costs", "--reconcile")
    assert ended.code == 1
    assert f"{unknown} unknown_request: ledger no attempt, billed" in " ".join(ended.out.split())


def test_ledger_that_agrees_says_so(run, billed, monkeypatch):
    """Since a moment after which nobody else has bought."""
    bench, emulator = billed
    monkeypatch.setenv("FAL_ADMIN_KEY", "emulator-admin")
    start = read_clock()
    buy(bench, emulator)
    ended = run("costs", "--reconcile", "--since", start.isoformat())
    assert (ended.code, ended.err) == (0, "")
    assert "the ledger agrees with fal's billing events" in ended.out

"""`extend-video limits`: what it shows, sets, pauses, resumes; and what `list` and `show` say."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.harness.brokers import take_messages
from tests.harness.commands import Run, build_run
from tests.harness.jobs import insert_job, read_job
from worker.broker.app import QUEUES, SUBMIT
from worker.jobs import admission
from worker.jobs.admission import ACCOUNT, Pause
from worker.jobs.states import BlockedBy, PauseCause


@pytest.fixture
def run(monkeypatch, capsys, database_url, redis_url) -> Run:
    """On a migrated table and a real broker."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BROKER_URL", redis_url)
    for queue in QUEUES.values():
        take_messages(redis_url, queue)
    return build_run(monkeypatch, capsys)


def read_scopes(run: Run, *arguments: str) -> dict[str, dict[str, Any]]:
    ended = run("limits", *arguments, "--json")
    assert ended.code == 0, ended.err
    return {one["scope"]: one for one in json.loads(ended.out)["limits"]}


@pytest.mark.both_databases
def test_limits_are_those_of_the_settings_until_others_are_set(run) -> None:
    account = read_scopes(run)[ACCOUNT]
    assert (account["max_in_flight"], account["daily_budget_nano_usd"]) == (40, None)
    values = ("--max-in-flight", "10", "--daily-budget", "25.00")
    account = read_scopes(run, "set", ACCOUNT, *values)[ACCOUNT]
    assert (account["max_in_flight"], account["daily_budget_nano_usd"]) == (10, 25 * 10**9)
    tenant = read_scopes(run, "set", "tenant:studio", "--weight", "10")["tenant:studio"]
    assert (tenant["weight"], tenant["max_in_flight"]) == (10, None)
    assert set(read_scopes(run)) == {ACCOUNT, "tenant:studio"}
    account = read_scopes(run, "set", ACCOUNT, "--max-in-flight", "none")[ACCOUNT]
    assert account["max_in_flight"] == 40
    shown = run("limits").out
    assert "0 of 40" in shown
    assert "0.00 USD of 25.00" in shown


@pytest.mark.both_databases
def test_a_pause_shows_in_list_and_show_and_ends_by_hand(run, db, redis_url) -> None:
    job = insert_job(db, now=datetime.now(UTC))
    scopes = read_scopes(run, "pause", ACCOUNT, "--reason", "invoice to be checked")
    assert [one["cause"] for one in scopes[ACCOUNT]["pauses"]] == ["operator"]
    (listed,) = json.loads(run("list", "--json").out)
    shown = json.loads(run("show", str(job.id), "--json").out)
    for one in (listed, shown):
        assert (one["blocked_by"], one["place"]) == ("account", 1)
        assert one["estimated_submit_at"] is None
        assert "submissions to be resumed" in one["waits_for"]
    assert "account: invoice to be checked, place 1" in run("list").out
    assert read_job(db, job.id).blocked_by is None
    take_messages(redis_url, SUBMIT)
    assert read_scopes(run, "resume", ACCOUNT)[ACCOUNT]["pauses"] == []
    assert len(take_messages(redis_url, SUBMIT)) == 1
    ended = run("limits", "resume", ACCOUNT)
    assert (ended.code, ended.err.strip()) == (1, "account was not paused by hand")
    assert json.loads(run("list", "--json").out)[0]["blocked_by"] is None


def test_no_hand_ends_what_fal_has_paused(run, db) -> None:
    with db.transaction() as connection:
        admission.keep_pause(
            connection, Pause(ACCOUNT, PauseCause.ACCOUNT, "403", datetime.now(UTC))
        )
    assert run("limits", "resume", ACCOUNT).code == 1
    assert read_scopes(run)[ACCOUNT]["pauses"][0]["reason"] == "403"


def test_a_new_budget_lets_jobs_be_tried_that_were_too_dear_for_the_old_one(run, db) -> None:
    now = datetime.now(UTC)
    job = insert_job(
        db, now=now, blocked_by=BlockedBy.BUDGET.value, due_at=datetime(2100, 1, 1, tzinfo=UTC)
    )
    read_scopes(run, "set", ACCOUNT, "--daily-budget", "100")
    due_at = read_job(db, job.id).due_at
    assert due_at is not None
    assert due_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    "arguments",
    [
        ("pause", ACCOUNT),
        ("pause", ACCOUNT, "--reason", " "),
        ("pause", "tenant:", "--reason", "why"),
        ("set", "everybody", "--weight", "2"),
        ("set", ACCOUNT),
        ("set", ACCOUNT, "--max-in-flight", "0"),
        ("set", ACCOUNT, "--per-minute", "many"),
        ("set", ACCOUNT, "--daily-budget", "much"),
        ("resume",),
    ],
)
def test_wrong_use_changes_nothing(run, db, arguments) -> None:
    assert run("limits", *arguments).code == 2
    with db.reading() as connection:
        assert admission.list_limits(connection) == []
        assert admission.list_pauses(connection) == []

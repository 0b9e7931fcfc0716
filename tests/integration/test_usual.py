"""The usual path on PostgreSQL does what the long way does, and nothing if anything is unusual."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.harness.jobs import LEASE, NOW, REQUEST_ID, build_result
from tests.harness.stages import Bench, build_completion
from worker.db import Database
from worker.jobs import attempts, usual
from worker.jobs.values import (
    Attempt,
    Claim,
    Job,
    Move,
    NewAttempt,
    NewDelivery,
    Outcome,
    Settlement,
    Verdict,
)
from worker.stages import pause
from worker.stages.submit import Submission

TABLES = ("jobs", "attempts", "events", "deliveries", "gates")
# Drawn anew in each run, or counted on.
OWN = {"id", "job_id", "attempt_id", "token_hash"}
OTHER_ID = "0c1f2e60-0000-4000-8000-000000000002"


@pytest.fixture
def bench(postgres_url, scripted_clients) -> Iterator[Bench]:
    with closing(Database(postgres_url)) as db:
        yield Bench(db, *scripted_clients)


def dump(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    with bench.db.reading() as connection:
        return {name: read_rows(connection, name) for name in TABLES}


@contextmanager
def nothing_written(bench: Bench) -> Iterator[None]:
    before = dump(bench)
    yield
    assert dump(bench) == before


def read_rows(connection: Connection, name: str) -> list[dict[str, Any]]:
    found = connection.execute(text(f"SELECT * FROM {name} ORDER BY 1"))
    return [dict(row) for row in found.mappings()]


def strip(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [{key: row[key] for key in row.keys() - OWN} for row in found]
        for name, found in rows.items()
    }


def go(bench: Bench) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """One job, a second between its steps, and the tables after each."""
    job = bench.insert(options={"priority": "low", "store_io": False}, labels={"a": "b"})
    bench.clock.move(timedelta(seconds=1))
    submission = bench.begin(job)
    yield strip(dump(bench))
    bench.clock.move(timedelta(seconds=1))
    bench.accept(submission)
    yield strip(dump(bench))
    bench.clock.move(timedelta(seconds=1))
    bench.deliver(submission, build_completion())
    yield strip(dump(bench))


def clear(bench: Bench) -> None:
    with bench.db.transaction() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(TABLES)}"))


def test_usual_path_leaves_the_same_rows_as_the_long_way(monkeypatch, bench):
    monkeypatch.setattr("worker.stages.judge.choose_poll_delay", lambda after, **_: after)
    begun = bench.clock()
    usually = list(go(bench))
    clear(bench)
    bench.clock.move(begun - bench.clock())
    monkeypatch.setattr(bench.db, "is_postgres", False)
    assert list(go(bench)) == usually


def test_usual_results_are_the_values_that_the_tables_hold(bench):
    submission = bench.begin(bench.insert())
    assert submission.job == bench.read(submission.job)
    assert bench.attempts(submission.job) == [submission.attempt]
    assert bench.accept(submission) == bench.read(submission.job)
    assert bench.deliver(submission, build_completion()).job == bench.read(submission.job)


def begin(bench: Bench, job: Job) -> tuple[Attempt, Job] | None:
    now = bench.clock()
    new = NewAttempt(job.id, attempts.hash_token("t"), now, {})
    claim = Claim("w", now, now + LEASE)
    with bench.db.statement() as connection:
        return usual.begin_attempt(connection, job.id, claim, new, pause.SUBMISSIONS_GATE)


def accept(bench: Bench, submission: Submission) -> Job | None:
    settlement = Settlement(Outcome.ACCEPTED, bench.clock(), 200, REQUEST_ID)
    with bench.db.statement() as connection:
        move = Move(bench.clock(), bench.clock() + LEASE)
        return usual.accept_submission(connection, submission.attempt, settlement, move)


def record(bench: Bench, submission: Submission, request_id: str = REQUEST_ID) -> Job | None:
    new = NewDelivery(bench.clock(), request_id, None, "OK", Verdict.RECORDED, b"{}")
    token_hash = attempts.hash_token(submission.token)
    with bench.db.statement() as connection:
        move = Move(bench.clock(), bench.clock() + LEASE)
        return usual.record_result(connection, token_hash, new, build_result(), move)


def shut(bench: Bench) -> Job:
    job = bench.insert()
    with bench.db.transaction() as connection:
        # Open again by now: but then one job is tried, and the others wait.
        pause.begin_pause(connection, "no balance", NOW - timedelta(hours=1))
    return job


def take(bench: Bench) -> Job:
    return bench.begin(bench.insert()).job


@pytest.mark.parametrize("prepare", [shut, take])
def test_attempt_is_not_begun_while_anything_holds_the_job_up(bench, prepare: Callable[..., Job]):
    job = prepare(bench)
    with nothing_written(bench):
        assert begin(bench, job) is None


def accept_twice(bench: Bench) -> Submission:
    submission = bench.begin(bench.insert())
    bench.accept(submission)
    return submission


def ask_to_cancel(bench: Bench) -> Submission:
    submission = bench.begin(bench.insert())
    bench.cancel(submission.job)
    return submission


def give_request_away(bench: Bench) -> Submission:
    bench.make_submitted()
    return bench.begin(bench.insert())


@pytest.mark.parametrize("prepare", [ask_to_cancel, give_request_away])
def test_submission_is_not_accepted_if_anything_came_between(
    bench, prepare: Callable[..., Submission]
):
    submission = prepare(bench)
    with nothing_written(bench):
        assert accept(bench, submission) is None


def deliver_twice(bench: Bench) -> Submission:
    submission = accept_twice(bench)
    bench.deliver(submission, build_completion())
    return submission


def ask_late_to_cancel(bench: Bench) -> Submission:
    submission = accept_twice(bench)
    bench.cancel(submission.job)
    return submission


@pytest.mark.parametrize("prepare", [deliver_twice, ask_late_to_cancel])
def test_result_is_not_recorded_if_it_does_not_come_first(
    bench, prepare: Callable[..., Submission]
):
    submission = prepare(bench)
    with nothing_written(bench):
        assert record(bench, submission) is None


def test_result_of_another_request_or_token_is_not_recorded(bench):
    submission = accept_twice(bench)
    stranger = replace(submission, token="unknown")
    with nothing_written(bench):
        assert record(bench, submission, OTHER_ID) is None
        assert record(bench, stranger) is None

"""A request that becomes no job is a row: once for each message, short, and without secrets."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from tests.harness.clock import FakeClock
from tests.harness.commands import Run, build_run
from tests.harness.jobs import NOW
from worker.ground.errors import InvalidInputError, WorkersLostError
from worker.jobs.archives import Retention
from worker.jobs.job_requests import Door, count_refused, list_refused
from worker.jobs.models import JobRequestRow
from worker.jobs.states import JobState
from worker.ops.metrics import read_measures
from worker.stages.enqueue import parse_job_request
from worker.stages.refuse import (
    claim_request,
    count_old_requests,
    keep_refusal,
    list_errors,
    prune_requests,
    release_request,
    trim_fields,
)

DAY = timedelta(days=1)
KEY = "0f9e8d7c-6b5a-4f3e-8d2c-1b0a9f8e7d6c:" + "5f" * 16


def keep(db, message_id, *, code="invalid_input", at=NOW, **fields):
    errors = [("prompt", "text")]
    return keep_refusal(
        Door.CELERY, message_id, fields, code=code, errors=errors, db=db, clock=FakeClock(at)
    )


def claim(db, message_id="m"):
    return claim_request(Door.CELERY, message_id, {"prompt": "p"}, db=db, clock=FakeClock(NOW))


def list_all(db):
    with db.reading() as connection:
        return list_refused(connection, 100)


@pytest.fixture
def run(monkeypatch, capsys, database_url) -> Run:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return build_run(monkeypatch, capsys)


@pytest.mark.both_databases
def test_each_refused_message_is_one_row_however_often_it_comes(db) -> None:
    assert keep(db, "m", tenant="studio")
    assert not keep(db, "m", code="workers_lost")
    # Without an id nobody can tell that it is the same.
    assert keep(db, None)
    assert keep(db, None)
    rows = list_all(db)
    assert [row.message_id for row in rows] == [None, None, "m"]
    assert rows[-1].errors == [{"field": "prompt", "code": "invalid_input", "message": "text"}]
    assert (rows[-1].tenant, rows[-1].received_at, rows[-1].claims) == ("studio", NOW, 0)
    with db.reading() as connection:
        assert count_refused(connection) == {"celery": {"invalid_input": 3}}


@pytest.mark.both_databases
def test_fourth_look_at_a_message_that_ended_three_workers_is_none(db) -> None:
    assert [claim(db) for _ in range(3)] == [True] * 3
    assert list_all(db) == []
    with pytest.raises(WorkersLostError, match="3 workers have ended"):
        claim(db)
    assert keep(db, "m", code="workers_lost")
    assert [(row.state, row.claims) for row in list_all(db)] == [("refused", 4)]
    assert claim(db) is False
    # One of the looks was only slow.
    release_request(Door.CELERY, "m", db=db)
    assert list_all(db) == []
    assert keep(db, "m")
    release_request(Door.CELERY, "m", db=db)
    assert [row.error_code for row in list_all(db)] == ["invalid_input"]


@pytest.mark.both_databases
def test_look_that_ends_well_leaves_nothing(db) -> None:
    claim(db)
    claim(db, "other")
    release_request(Door.CELERY, "m", db=db)
    with db.reading() as connection:
        kept = connection.execute(select(JobRequestRow.message_id, JobRequestRow.claims)).all()
    assert kept == [("other", 1)]


@pytest.mark.both_databases
def test_whatever_a_message_holds_can_be_kept(db) -> None:
    fields = {"\0\ud800": float("nan"), "n": 10**400, "deep": {"a": {"b": {"c": [1]}}}, "b": b"x"}
    assert keep(db, "\0", **fields)
    [row] = list_all(db)
    assert row.message_id is None
    assert row.fields["deep"] == '{"a": {"b": {"c": "<list>"}}}'


def test_fields_are_kept_short_and_without_secrets_and_data_uris() -> None:
    trimmed = trim_fields(
        {
            "prompt": "p" * 1000,
            "num_frames": 100,
            "video_url": "data:video/mp4;base64," + "A" * 5000,
            "end_image_url": f"https://e.com/a.png?sig={KEY}",
            "labels": {"api_key": "hidden", "of": KEY, "uri": "data:image/png;base64,AAAA"},
            **{f"field_{number}": number for number in range(100)},
        }
    )
    assert len(trimmed) == 50
    assert trimmed["prompt"] == "p" * 199 + "…"
    assert trimmed["num_frames"] == 100
    assert trimmed["video_url"] == "data:video/mp4;base64 (5022 characters)"
    assert trimmed["end_image_url"] == "https://e.com/a.png?****"
    assert "hidden" not in trimmed["labels"]
    assert KEY not in trimmed["labels"]
    assert "AAAA" not in trimmed["labels"]


def test_errors_name_every_field_and_quote_none() -> None:
    secret = "data:video/mp4;base64,SECRET"
    with pytest.raises(InvalidInputError) as caught:
        parse_job_request({"prompt": 7, "video_url": "v", "num_frames": secret})
    told = dict(list_errors(caught.value))
    assert {"prompt", "video_url", "num_frames"} <= set(told)
    assert "SECRET" not in str(told)


def test_old_requests_are_pruned_and_pending_ones_of_other_doors_are_not(db) -> None:
    keep(db, "old", at=NOW - 2 * DAY, tenant="studio")
    keep(db, "new", at=NOW)
    claim_request(Door.CELERY, "silent", {}, db=db, clock=FakeClock(NOW - 2 * DAY))
    with db.transaction() as connection:
        connection.execute(
            JobRequestRow.__table__.update()  # type: ignore[attr-defined]  # a table
            .where(JobRequestRow.message_id == "silent")
            .values(door="sql")
        )
    before = NOW - DAY
    for narrow in (
        Retention(before, tenant="other"),
        Retention(before, labels={"a": "b"}),
        Retention(before, states=frozenset({JobState.FAILED})),
        Retention(before, files_only=True),
    ):
        assert (count_old_requests(narrow, db=db), prune_requests(narrow, db=db)) == (0, 0)
    assert count_old_requests(Retention(before), db=db) == 1
    assert prune_requests(Retention(before), db=db) == 1
    with db.reading() as connection:
        kept = set(connection.execute(select(JobRequestRow.message_id)).scalars())
    assert kept == {"new", "silent"}


def test_refused_lists_each_with_every_wrong_field(run, db) -> None:
    keep(db, "first", tenant="studio")
    keep(db, "[red]second", at=NOW + DAY)
    ended = run("refused")
    head, second, first = ended.out.splitlines()
    assert "message id" in head
    assert "[red]second" in second
    assert all(word in first for word in ("celery", "studio", "invalid_input", "prompt: text"))
    [kept] = run("refused", "--tenant", "studio", "--json").json
    assert (kept["message_id"], kept["errors"][0]["field"]) == ("first", "prompt")
    assert len(run("refused", "--limit", "1", "--json").json) == 1


def test_prune_tells_and_deletes_old_requests(run, db) -> None:
    keep(db, "old", at=NOW - 9000 * DAY)
    assert "1 refused requests: to be pruned" in run("prune", "--older-than", "1d", "--dry-run").out
    ended = run("prune", "--older-than", "1d", "--yes", "--json")
    assert (ended.json["requests"], list_all(db)) == (1, [])


def test_refused_requests_are_measured_from_zero_on(db) -> None:
    assert read_measures(db=db).refused["celery", "invalid_input"] == 0
    keep(db, "m")
    assert read_measures(db=db).refused["celery", "invalid_input"] == 1

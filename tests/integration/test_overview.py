"""Lists and counts against what a plain look at every row finds."""

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.harness.jobs import NOW, insert_job, make_job, read_job
from worker.jobs import queries, stats
from worker.jobs.queries import JobFilter, list_jobs, list_lines, parse_label, walk_lines
from worker.jobs.states import ENDED, JobEvent, JobState
from worker.jobs.table import apply_event
from worker.jobs.values import Job, Move
from worker.ops.metrics import count_states

PROMPTS = ("Rain over the harbour", "a glacier, 100% ice_cold", "RAIN again", 'quote " and \\ back')


@pytest.fixture
def rows(db) -> list[Job]:
    """Sixty jobs, many of them of one moment; the newest first."""
    dice = random.Random(5)
    jobs = []
    for number in range(60):
        job = insert_job(
            db,
            now=NOW - timedelta(minutes=number // 4),
            tenant=dice.choice(("a", "b")),
            labels=dice.choice(({}, {"env": "prod"}, {"env": "test", "x.y/z": "1"})),
            idempotency_key=f"key-{number}" if number % 2 else None,
            input={"prompt": dice.choice(PROMPTS), "seed": number},
        )
        if number % 3 == 0:
            with db.transaction() as connection:
                move = Move(NOW, columns={"cancel_requested_at": NOW})
                assert apply_event(connection, job, JobEvent.JOB_CANCELLED, move)
        jobs.append(read_job(db, job.id))
    return sorted(jobs, key=lambda job: (job.enqueued_at, job.id), reverse=True)


def match(job: Job, wanted: JobFilter) -> bool:
    """The filter's meaning, in plain words."""
    name, value = wanted.label or (None, None)
    return all(
        (
            wanted.state in {None, job.state},
            wanted.tenant in {None, job.tenant},
            name is None or (name in job.labels and value in {None, job.labels[name]}),
            wanted.since is None or job.enqueued_at >= wanted.since,
            wanted.until is None or job.enqueued_at < wanted.until,
            wanted.states is None or job.state in wanted.states,
            wanted.text is None or wanted.text.lower() in job.input["prompt"].lower(),
        )
    )


FILTERS = [
    JobFilter(),
    JobFilter(state=JobState.QUEUED),
    JobFilter(state=JobState.CANCELLED, tenant="a"),
    JobFilter(state=JobState.QUEUED, tenant="b"),
    JobFilter(tenant="b"),
    JobFilter(tenant="nobody"),
    JobFilter(label=("env", "prod")),
    JobFilter(label=("env", None), tenant="a"),
    JobFilter(label=("x.y/z", "1"), state=JobState.CANCELLED),
    JobFilter(since=NOW - timedelta(minutes=5), until=NOW - timedelta(minutes=2)),
    JobFilter(text="rain"),
    JobFilter(text="100% ice_"),
    JobFilter(text='" and \\ b', tenant="a"),
    JobFilter(states=ENDED, tenant="a"),
    JobFilter(text="rain", state=JobState.QUEUED, tenant="a", label=("env", "test")),
]


@pytest.mark.both_databases
@pytest.mark.parametrize("window", [5000, 3], ids=["usual", "narrow"])
def test_pages_hold_every_match_once_in_order(db, rows, window, monkeypatch) -> None:
    """However narrow the windows are that are looked through."""
    monkeypatch.setattr(queries, "WINDOW", window)
    for wanted in FILTERS:
        expected = [job.id for job in rows if match(job, wanted)]
        assert [line.id for line in walk_lines(wanted, db=db, size=4)] == expected, wanted
        assert [line.id for line in list_lines(wanted, db=db, limit=5)] == expected[:5], wanted


@pytest.mark.both_databases
def test_backward_page_is_the_one_before(db, rows) -> None:
    for wanted in FILTERS[:5]:
        expected = [job.id for job in rows if match(job, wanted)]
        with db.reading() as connection:
            first = queries.list_page(connection, wanted, limit=3)
            second = queries.list_page(connection, wanted, place=first.following, limit=3)
            back = queries.list_page(
                connection, wanted, place=second.lines[0].place, limit=3, is_backward=True
            )
        assert len(expected) > 3
        assert [line.id for line in second.lines] == expected[3:6]
        assert back.lines == first.lines
        assert back.following is None


def test_page_that_a_window_has_not_filled_says_where_to_look_on(db, rows, monkeypatch) -> None:
    monkeypatch.setattr(queries, "WINDOW", 15)
    with db.reading() as connection:
        page = queries.list_page(connection, JobFilter(text="nothing like it"), limit=3)
    assert page.lines == []
    assert page.following == queries.Place(rows[14].enqueued_at, rows[14].id)


@pytest.mark.both_databases
def test_text_finds_jobs_by_id_key_and_request(db, rows) -> None:
    other = make_job(db, JobState.SUBMITTED, now=NOW)
    with db.transaction() as connection:
        connection.exec_driver_sql("UPDATE attempts SET fal_request_id = 'request-1'")
    keyed = next(job for job in rows if job.idempotency_key)
    for text, found in (
        (str(keyed.idempotency_key), keyed.id),
        (str(keyed.id), keyed.id),
        (keyed.id.hex.upper(), keyed.id),
        ("request-1", other.id),
    ):
        assert [one.id for one in list_jobs(JobFilter(text=text), db=db, limit=9)] == [found], text
    begins = list_lines(JobFilter(text=str(keyed.id)[:13]), db=db, limit=99)
    assert keyed.id in {one.id for one in begins}
    elsewhere = replace(JobFilter(text=str(keyed.id)), tenant="nobody")
    assert list_lines(elsewhere, db=db, limit=9) == []


def test_list_jobs_gives_whole_rows_in_order(db, rows) -> None:
    assert list_jobs(JobFilter(), db=db, limit=7) == rows[:7]


@pytest.mark.both_databases
def test_counts_know_every_state_and_the_oldest(db, rows) -> None:
    counted = {one.state: one for one in count_states(db=db)}
    queued = [job for job in rows if job.state is JobState.QUEUED]
    assert list(counted) == list(JobState)
    assert counted[JobState.QUEUED].count == len(queued)
    assert counted[JobState.QUEUED].oldest_at == min(job.enqueued_at for job in queued)
    cancelled = [job for job in rows if job.state is JobState.CANCELLED]
    assert counted[JobState.CANCELLED].count == len(cancelled) > 0
    assert counted[JobState.CANCELLED].oldest_at is None
    assert counted[JobState.FAILED].count == 0


@pytest.mark.both_databases
def test_measure_counts_ends_of_its_span_alone(db) -> None:
    job = make_job(db, JobState.ARCHIVED, now=NOW)
    with db.transaction() as connection:
        connection.exec_driver_sql("UPDATE attempts SET token_hash = 'other'")
    make_job(db, JobState.FAILED, now=NOW)
    hour = timedelta(hours=1)
    assert job.archived_at == NOW
    with db.reading() as connection:
        measure = stats.measure_span(connection, NOW, NOW + hour)
        before = stats.measure_span(connection, NOW - hour, NOW)
    assert (measure.archived, measure.failed, measure.latencies) == (1, 1, (0.0,))
    assert (before.archived, before.failed, before.latencies) == (0, 0, ())


def test_label_that_cannot_be_one_is_refused() -> None:
    for text in ("", "=x", "a b=c", "a" * 65, 'a"b=c'):
        with pytest.raises(ValueError, match="name=value"):
            parse_label(text)

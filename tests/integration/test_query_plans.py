"""The hot queries stay on their indices when ended rows pile up."""

import shutil
from contextlib import closing
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import event, insert, inspect
from uuid_utils.compat import uuid7

from tests.harness.jobs import ENDPOINT, LEASE, NOW, insert_job, lead_job, list_all_jobs, make_job
from worker.ground.db import Database
from worker.jobs import admission, archives, attempts, limits, queries, stats, table
from worker.jobs.models import AttemptRow, JobRow
from worker.jobs.queries import JobFilter, Place
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Claim, NewJob

ENDED_ROWS = 4000
LIVE_ROWS = 40
# A row is much larger than its entry in any index, as it is with real inputs.
PROMPT = "Slow push towards the lighthouse as its lamp comes on. " * 20


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def full(request, tmp_path_factory):
    """For all tests: what they add is not due, and what they do to explain it is taken back."""
    if request.param == "sqlite":
        template = request.getfixturevalue("sqlite_template")
        url = f"sqlite:///{shutil.copyfile(template, tmp_path_factory.mktemp('full') / 'jobs.db')}"
    else:
        postgres = request.getfixturevalue("postgres")
        template = request.getfixturevalue("postgres_template")
        url = postgres.url_of(postgres.create_database(template))
    with closing(Database(url)) as db:
        insert_rows(db)
        yield db


def insert_rows(db):
    """As it looks after a while: nearly all rows have ended."""
    rows = [
        {
            "id": uuid7(),
            "state": JobState.ARCHIVED,
            "tenant": f"tenant-{number % 7}",
            "idempotency_key": f"key-{number}",
            "labels": {},
            "endpoint": ENDPOINT,
            "input": {"seed": number, "prompt": PROMPT},
            "enqueued_at": NOW - timedelta(minutes=number),
            "archived_at": NOW,
        }
        for number in range(ENDED_ROWS)
    ]
    tried = [
        {
            "id": uuid7(),
            "job_id": row["id"],
            "number": 1,
            "fence": 1,
            "token_hash": str(number),
            "endpoint": ENDPOINT,
            "input": row["input"],
            "claimed_by": "tester:1",
            "started_at": NOW,
            "outcome": "accepted",
            "fal_request_id": str(number),
            # one is the loser of two, and still to be cancelled
            "completed_at": NOW if number else None,
            "cancel_due_at": None if number else NOW,
        }
        for number, row in enumerate(rows)
    ]
    with db.transaction() as connection:
        connection.execute(insert(JobRow), rows)
        connection.execute(insert(AttemptRow), tried)
    for age in range(LIVE_ROWS):
        insert_job(db, now=NOW - age * LEASE)
    make_job(db, JobState.SUBMISSION_UNKNOWN)
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


@pytest.fixture
def explain(full):
    """The plan of the very statement that a call sends: the first that has the word."""

    def run(call, word_of_it=""):
        sent = []

        def note(_connection, _cursor, statement, parameters, *_):
            if word_of_it in statement:
                sent.append((statement, parameters))

        with full.engine.connect() as connection, connection.begin() as transaction:
            event.listen(connection, "before_cursor_execute", note)
            call(connection)
            event.remove(connection, "before_cursor_execute", note)
            (statement, parameters) = sent[0]
            word = "EXPLAIN" if full.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
            plan = connection.exec_driver_sql(f"{word} {statement}", parameters)
            told = "\n".join(str(row[-1]) for row in plan)
            transaction.rollback()
        return told

    return run


def check_plan(plan, index):
    assert index in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "SCAN" not in plan, plan


def test_find_overdue_searches_the_index_of_live_rows(full, explain):
    found = []
    plan = explain(lambda connection: found.extend(table.find_overdue(connection, NOW, 100)))
    # Of these few, either index takes as long.
    check_plan(plan, "ix_jobs_live" if "ix_jobs_live" in plan else "ix_jobs_due_at")
    assert len(found) == LIVE_ROWS - 1


def test_claim_job_looks_up_one_row_by_its_id(full, explain):
    job = insert_job(full)
    claim, claimed = Claim("tester:1", NOW, NOW + LEASE), []
    plan = explain(
        lambda connection: claimed.append(
            table.claim_job(connection, job.id, JobEvent.SUBMISSION_CLAIMED, claim)
        )
    )
    # SQLite's own index of the primary key has no name of ours
    assert "pk_jobs" in plan or "sqlite_autoindex_jobs_1" in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "SCAN" not in plan, plan
    assert claimed[0] is not None


def test_claims_of_a_worker_are_searched_among_live_rows(full, explain):
    found = []
    plan = explain(lambda connection: found.extend(table.list_claims(connection, "tester:1")))
    assert "ix_jobs_due_at" in plan or "ix_jobs_live" in plan, plan
    assert "Seq Scan" not in plan, plan
    assert found == []


def test_running_downloads_are_counted_in_an_index_of_live_rows(full, explain):
    job = lead_job(full, insert_job(full), JobEvent.RESULT_ARRIVED)
    assert job is not None
    claim, claimed = Claim("tester:1", NOW, NOW + LEASE), []
    plan = explain(
        lambda connection: claimed.append(
            limits.claim_download(connection, job.id, claim, most=1, defer=lambda since: since)
        ),
        "count(",
    )
    assert any(f"ix_jobs_{name}" in plan for name in ("archiving", "live", "due_at")), plan
    assert "Seq Scan" not in plan, plan
    assert claimed[0] is not None


def test_blocked_jobs_are_hastened_among_live_rows(explain):
    plan = explain(lambda connection: table.hasten_blocked(connection, "fal", NOW))
    assert any(f"ix_jobs_{name}" in plan for name in ("due_at", "live", "state")), plan
    assert "Seq Scan" not in plan, plan


def test_rivals_of_a_batch_are_searched_by_their_keys(explain):
    keys, found = [f"key-{number * 7 + 1}" for number in range(50)], []
    new = [NewJob(uuid7(), ENDPOINT, {}, "tenant-1", key, 0, {}, NOW, NOW) for key in keys]
    plan = explain(lambda connection: found.extend(table.list_competitors(connection, new)))
    assert "idempotency_key" in plan or "sqlite_autoindex_jobs" in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "SCAN" not in plan, plan
    assert len(found) == 50


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("jobs", "ix_jobs_due_at"),
        ("jobs", "ix_jobs_live"),
        ("attempts", "ix_attempts_cancel_due_at"),
    ],
)
def test_hot_index_holds_no_ended_row(db, name, index):
    """Partial on both databases: it stays small however many jobs there have been."""
    (found,) = [one for one in inspect(db.engine).get_indexes(name) if one["name"] == index]
    where = found["dialect_options"][f"{db.engine.dialect.name}_where"]
    assert "IS NOT NULL" in str(where)


def test_list_unsettled_searches_an_index_of_live_rows(full, explain):
    """Either does: few rows are live, and fewer are in these two states."""
    found = []
    plan = explain(lambda connection: found.extend(attempts.list_unsettled(connection, 100)))
    assert any(f"ix_jobs_{name}" in plan for name in ("due_at", "live", "state")), plan
    assert "Seq Scan" not in plan, plan
    # SQLite calls walking a whole index a scan of the table by it
    scans = [line for line in plan.splitlines() if line.startswith("SCAN")]
    live = ("USING INDEX ix_jobs_due_at", "USING INDEX ix_jobs_live")
    assert all(any(name in line for name in live) for line in scans), plan
    assert [attempt.outcome for attempt, _ in found] == [None]


@pytest.mark.parametrize(
    ("count", "index"),
    [
        (stats.count_live, "ix_jobs_live"),
        (stats.count_ended, "ix_jobs_state"),
        (stats.count_outcomes, "ix_attempts_outcome"),
        (stats.count_extra_charges, "ix_attempts_extra_charge_at"),
    ],
)
def test_counting_reads_an_index_alone(full, explain, count, index):
    """Rows are a hundred times as large as their entries there."""
    with full.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.dialect.name == "postgresql":
            # Without it, PostgreSQL looks each row up to see whether it is there; and it takes no
            # row for there whose commit is not on disk yet.
            connection.exec_driver_sql("CHECKPOINT")
            connection.exec_driver_sql("VACUUM")
    plan = explain(count)
    assert index in plan, plan
    assert "COVERING" in plan or "Index Only Scan" in plan, plan


def test_find_earliest_due_looks_at_one_entry(explain):
    plan = explain(stats.find_earliest_due)
    assert "ix_jobs_due" in plan or "ix_jobs_live" in plan, plan


def test_claim_due_cancels_searches_its_index(full, explain):
    found = []
    until = NOW + LEASE
    plan = explain(
        lambda connection: found.extend(attempts.claim_due_cancels(connection, NOW, until, 100))
    )
    check_plan(plan, "ix_attempts_cancel_due_at")
    assert len(found) == 1


def test_find_job_by_key_searches_its_unique_index(explain):
    plan = explain(lambda connection: table.find_job_by_key(connection, "tenant-1", "key-1"))
    check_plan(plan, "jobs_")


def test_list_sources_of_late_jobs_searches_by_their_ids(full, explain):
    with full.reading() as connection:
        ids = [job.id for job in list_all_jobs(connection)[:3]]
    plan = explain(lambda connection: archives.list_sources(connection, ids))
    check_plan(plan, "attempts_")


def test_next_page_of_old_jobs_walks_the_index_of_times(full, explain):
    found = []
    after = (NOW - timedelta(minutes=ENDED_ROWS - 2), UUID(int=0))
    plan = explain(lambda c: found.append(archives.next_page(c, NOW, after, 100)))
    assert "ix_jobs_enqueued_at" in plan, plan
    assert "Seq Scan" not in plan, plan
    assert found[0] is not None


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (JobFilter(), "ix_jobs_enqueued_at"),
        (JobFilter(since=NOW - timedelta(days=1)), "ix_jobs_enqueued_at"),
        (JobFilter(state=JobState.QUEUED), "ix_jobs_state"),
        (JobFilter(tenant="tenant-1"), "ix_jobs_tenant"),
        (JobFilter(state=JobState.QUEUED, tenant="tenant-1"), "ix_jobs_state"),
        (JobFilter(label=("a", "b")), "ix_jobs_enqueued_at"),
    ],
)
def test_list_page_walks_an_index_from_where_it_left_off(explain, wanted, index):
    place = Place(NOW - timedelta(hours=1), UUID(int=1))
    plan = explain(lambda connection: queries.list_page(connection, wanted, place=place, limit=9))
    assert index in plan, plan
    assert "Seq Scan" not in plan, plan
    is_whole = wanted.label is None and not (wanted.state and wanted.tenant)
    if is_whole:
        assert "TEMP B-TREE" not in plan, plan
        assert "Sort" not in plan, plan


def test_measure_span_searches_the_indices_of_ends(explain):
    later = NOW + timedelta(hours=1)
    plan = explain(lambda connection: stats.measure_span(connection, later, later + LEASE))
    assert "ix_jobs_archived_at" in plan, plan
    assert "ix_jobs_failed_at" in plan, plan
    assert "Seq Scan on jobs" not in plan, plan


@pytest.mark.parametrize(
    "read",
    [
        lambda connection: admission.list_waiting_tenants(connection, NOW),
        lambda connection: admission.count_admissible(connection, 50),
        lambda connection: admission.list_heads(connection, "default", 2),
        admission.count_waiting,
    ],
    ids=["tenants", "admissible", "heads", "waiting"],
)
def test_admission_walks_its_own_index_and_sorts_nothing(explain, read):
    plan = explain(read)
    assert "TEMP B-TREE" not in plan, plan
    assert "Sort" not in plan, plan
    # Of so few queued jobs PostgreSQL may count those of the index on states, too.
    assert "ix_jobs_admission" in plan or "Aggregate" in plan, plan

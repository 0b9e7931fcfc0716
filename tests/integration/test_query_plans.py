"""The hot queries stay on their indices when ended rows pile up, or queued ones, or due ones."""

import re
import shutil
from contextlib import closing
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import bindparam, event, insert, inspect, text
from uuid_utils.compat import uuid7

from tests.harness.jobs import ENDPOINT, LEASE, NOW, insert_job, lead_job, list_all_jobs, make_job
from worker.ground.db import Database
from worker.jobs import admission, archives, attempts, charges, limits, queries, stats, table
from worker.jobs.admission import name_scope
from worker.jobs.base import UtcDateTime
from worker.jobs.models import AttemptRow, JobRow, SpendRow
from worker.jobs.queries import JobFilter, Place
from worker.jobs.states import BlockedBy, JobEvent, JobState
from worker.jobs.values import Claim, NewJob

ENDED_ROWS = 4000
LIVE_ROWS = 40
# A row is much larger than its entry in any index, as it is with real inputs.
PROMPT = "Slow push towards the lighthouse as its lamp comes on. " * 20


def create_database(kind, request, tmp_path_factory):
    """An empty table, for all tests of this module."""
    if kind.startswith("sqlite"):
        template = request.getfixturevalue("sqlite_template")
        place = tmp_path_factory.mktemp("plans") / "jobs.db"
        return Database(f"sqlite:///{shutil.copyfile(template, place)}")
    postgres = request.getfixturevalue("postgres")
    template = request.getfixturevalue("postgres_template")
    return Database(postgres.url_of(postgres.create_database(template)))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def full(request, tmp_path_factory):
    """For all tests: what they add is not due, and what they do to explain it is taken back."""
    with closing(create_database(request.param, request, tmp_path_factory)) as db:
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
    analyze(db)


def analyze(db):
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


@pytest.fixture
def explain(full):
    """The plan of the very statement that a call sends: the first that has the word."""
    return lambda call, word_of_it="": explain_all(full, call, word_of_it)[0]


def explain_all(db, call, word_of_it=""):
    """The plans of all statements that a call sends and that have the word."""
    sent = []

    def note(_connection, _cursor, statement, parameters, *_):
        if word_of_it in statement:
            sent.append((statement, parameters))

    with db.engine.connect() as connection, connection.begin() as transaction:
        event.listen(connection, "before_cursor_execute", note)
        call(connection)
        event.remove(connection, "before_cursor_execute", note)
        # Only of a statement that is run, too, the plan has all subqueries.
        is_postgres = db.engine.dialect.name == "postgresql"
        word = "EXPLAIN (ANALYZE, VERBOSE)" if is_postgres else "EXPLAIN QUERY PLAN"
        explained = [connection.exec_driver_sql(f"{word} {one}", given) for one, given in sent]
        plans = ["\n".join(str(row[-1]) for row in rows) for rows in explained]
        transaction.rollback()
    return [plan.replace(" on public.", " on ") for plan in plans]


def check_plan(plan, index):
    assert index in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "SCAN" not in plan, plan


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
    assert any(f"ix_jobs_{name}" in plan for name in ("due", "live", "state")), plan
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
    assert any(f"ix_jobs_{name}" in plan for name in ("archiving", "live", "due")), plan
    assert "Seq Scan" not in plan, plan
    assert claimed[0] is not None


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
        ("jobs", "ix_jobs_due"),
        ("jobs", "ix_jobs_blocked"),
        ("jobs", "ix_jobs_expires_at"),
        ("jobs", "ix_jobs_late"),
        ("jobs", "ix_jobs_live"),
        ("attempts", "ix_attempts_cancel_due_at"),
        ("attempts", "ix_attempts_slot_until"),
        ("charges", "ix_charges_due_at"),
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
    assert any(f"ix_jobs_{name}" in plan for name in ("due", "live", "state")), plan
    assert "Seq Scan" not in plan, plan
    # SQLite calls walking a whole index a scan of the table by it
    scans = [line for line in plan.splitlines() if line.startswith("SCAN")]
    live = ("USING INDEX ix_jobs_due", "USING INDEX ix_jobs_live")
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


# ------------------------------------------------------------------ a backlog, and much that is due

TENANTS, BACKLOG, DUE = 20, 12_000, 6_000
SOON, PAST = NOW + timedelta(hours=1), NOW - timedelta(hours=1)
# Of three queued rows one waits for a reason of its own; of these, one in ten is due.
QUEUED = """
INSERT INTO jobs (id, fence, priority, state, due_at, tenant, labels, endpoint, input, blocked_by,
    expires_at, enqueued_at)
SELECT {id}, 0, n % 3, 'queued', CASE WHEN n % 30 = 0 THEN :past ELSE :soon END,
    'tenant-' || (n % :tenants), '{{}}', 'e', '{{"seed": 7}}',
    CASE n % 9 WHEN 0 THEN 'retry' WHEN 3 THEN 'not_before' WHEN 6 THEN 'budget' END,
    CASE n % 40 WHEN 1 THEN :past WHEN 2 THEN :soon END, :now
FROM {numbers}
"""
LIVE = """
INSERT INTO jobs (id, fence, priority, state, due_at, tenant, labels, endpoint, input, enqueued_at,
    archive_alarmed_at)
SELECT {id}, 1, n % 3, CASE n % 4 WHEN 0 THEN 'completed' ELSE 'submitted' END, :past,
    'tenant-' || (n % :tenants), '{{}}', 'e', '{{"seed": 7}}', :now,
    CASE WHEN n % 200 = 0 THEN :past END
FROM {numbers}
"""
TRIED = """
INSERT INTO attempts (id, job_id, number, fence, token_hash, endpoint, input, claimed_by,
    started_at, outcome, slot_until)
SELECT id, id, 1, 1, {hash}, 'e', '{{}}', 'w', :past, 'accepted',
    CASE WHEN {hash} < '01' THEN :soon WHEN {hash} < '02' THEN :past END
FROM jobs WHERE state <> 'queued'
"""
CHARGED = """
INSERT INTO charges (attempt_id, job_id, tenant, day, admitted_at, units, due_at)
SELECT id, job_id, 'tenant-1', '2026-11-23', :past, 1,
    CASE WHEN token_hash < '01' THEN :past WHEN token_hash < '80' THEN :soon END
FROM attempts
"""


@pytest.fixture(scope="module", params=["sqlite", "sqlite without statistics", "postgresql"])
def busy(request, tmp_path_factory):
    """More rows than any statement may read: queued, blocked, due, tried and charged.

    Nobody has SQLite analyze its tables, but an operator may.
    """
    with closing(create_database(request.param, request, tmp_path_factory)) as db:
        is_postgres = db.engine.dialect.name == "postgresql"
        new_id = "gen_random_uuid()" if is_postgres else "lower(hex(randomblob(16)))"
        hashed = "md5(id::text)" if is_postgres else "id"
        values = {"now": NOW, "past": PAST, "soon": SOON, "tenants": TENANTS}
        times = [bindparam(name, type_=UtcDateTime()) for name in ("now", "past", "soon")]
        with db.transaction() as connection:
            for statement, rows in ((QUEUED, BACKLOG), (LIVE, DUE), (TRIED, 0), (CHARGED, 0)):
                numbers = "(WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many "
                numbers += f"WHERE n < {rows}) SELECT n FROM many) AS numbers"
                filled = statement.format(id=new_id, hash=hashed, numbers=numbers)
                known = [one for one in times if f":{one.key}" in filled]
                used = {name: one for name, one in values.items() if f":{name}" in filled}
                connection.execute(text(filled).bindparams(*known), used)
            limits_of_one = {"per_minute": 9, "daily_budget_nano_usd": 10**9}
            admission.set_limits(connection, name_scope("tenant-1"), limits_of_one)
            days = [f"2026-{month:02}-{day:02}" for month in range(1, 12) for day in range(1, 29)]
            spent = [
                {"scope": name_scope(f"tenant-{number}"), "day": day, "nano_usd": 1}
                for number in range(TENANTS)
                for day in days
            ]
            connection.execute(insert(SpendRow), spent)
        if "without" not in request.param:
            analyze(db)
        yield db


@pytest.mark.parametrize(
    ("call", "indices"),
    [
        (lambda c: table.list_due(c, NOW, LEASE, 100), ["ix_jobs_late"] + ["ix_jobs_due"] * 3),
        (lambda c: admission.list_heads(c, "tenant-1", 2), ["ix_jobs_admission"]),
        (admission.has_admissible, ["ix_jobs_admission"]),
        (lambda c: admission.count_admissible(c, 50), ["ix_jobs_admission"]),
        (lambda c: table.list_expired(c, NOW, 100), ["ix_jobs_expires_at"]),
        (lambda c: charges.settle_due(c, NOW, 5), ["ix_charges_due_at"]),
    ],
    ids=["list_due", "list_heads", "has_admissible", "count_admissible", "expired", "settle_due"],
)
def test_bounded_reading_walks_its_index_and_sorts_nothing(busy, call, indices):
    """The index is in the order that is wanted, and the reading ends with its limit."""
    found = []
    plans = explain_all(busy, lambda connection: found.append(call(connection)), "SELECT")
    assert found[0]
    for plan, index in zip(plans, indices, strict=False):
        assert index in plan, plan
    for plan in plans:
        check_searched(plan)
        assert "TEMP B-TREE" not in plan, plan
        assert "Sort" not in plan, plan


def check_searched(plan):
    """Of no large table more is read than an index says; SQLite calls walking one a scan, too."""
    for name in ("jobs", "attempts", "charges", "spend"):
        assert f"Seq Scan on {name}" not in plan, plan
        assert not re.search(rf"SCAN {name}(?! USING)", plan), plan


def test_due_rows_are_locked_by_their_ids(busy):
    found = []
    with busy.reading() as connection:
        ids = table.list_due(connection, NOW, LEASE, 100)
    (plan,) = explain_all(busy, lambda c: found.extend(table.lock_due(c, ids, NOW, LEASE)))
    # Both have the id.
    assert any(name in plan for name in ("pk_jobs", "ix_jobs_due", "sqlite_autoindex_jobs_1")), plan
    check_searched(plan)
    assert [job.id for job in found] == ids


def test_due_rows_come_late_videos_first_and_by_priority(busy):
    with busy.reading() as connection:
        ids = table.list_due(connection, NOW, LEASE, 100)
        found = table.lock_due(connection, ids, NOW, LEASE)
    late = [job for job in found if job.archive_alarmed_at]
    assert (len(found), len(late)) == (100, DUE // 200)
    assert found[: len(late)] == late
    assert {job.priority for job in found[len(late) :]} == {2}
    assert all(job.state is not JobState.QUEUED for job in found)


def test_waiting_tenants_are_stepped_through_by_their_index(busy):
    """A step for each tenant, however many jobs each of them has; and what is in flight."""
    found = []
    plans = explain_all(busy, lambda c: found.extend(admission.list_waiting_tenants(c, NOW)))
    tenants, in_flight, started, spent = plans
    assert tenants.count("ix_jobs_admission") == 2, tenants
    assert "ix_attempts_slot_until" in in_flight, in_flight
    assert "ix_charges_admitted_at" in started, started
    assert "pk_spend" in spent or "sqlite_autoindex_spend_1" in spent, spent
    for plan in plans:
        check_searched(plan)
    assert len(found) == TENANTS


def test_queued_rows_whose_own_time_has_come_are_searched_by_reason(busy):
    found: list[UUID] = []
    plans = explain_all(
        busy, lambda c: found.extend(table.unblock_due(c, NOW, timedelta(hours=2), 1000)), "SELECT"
    )
    for plan in plans:
        # Of a time that is too far ahead there are so few that either index does.
        assert "ix_jobs_blocked" in plan or "ix_jobs_live" in plan, plan
        check_searched(plan)
        assert "TEMP B-TREE" not in plan, plan
    assert ["ix_jobs_blocked" in plan for plan in plans].count(False) <= 1, plans
    assert len(found) == BACKLOG // 30


def test_usage_of_the_account_is_counted_in_its_indices(busy):
    found = []
    (plan,) = explain_all(busy, lambda c: found.append(admission.read_usage(c, NOW)))
    assert "ix_attempts_slot_until" in plan, plan
    assert "ix_charges_admitted_at" in plan, plan
    check_searched(plan)
    assert 0 < found[0].in_flight < DUE / 10


def test_earliest_due_time_is_one_entry_for_each_state_and_reason(busy):
    """Not that of a queued job that may be admitted: it has been due for as long as it waits."""
    found = []
    (plan,) = explain_all(busy, lambda c: found.append(stats.find_earliest_due(c)))
    assert plan.count("ix_jobs_live") == 5, plan
    assert plan.count("ix_jobs_blocked") == 3, plan
    check_searched(plan)
    assert found == [PAST]


def test_jobs_that_wait_for_a_reason_are_hastened_by_its_index(busy):
    found = []
    (plan,) = explain_all(
        busy, lambda c: found.append(table.hasten_blocked(c, BlockedBy.RETRY, None, NOW))
    )
    assert "ix_jobs_blocked" in plan, plan
    check_searched(plan)
    assert found == [len([n for n in range(1, BACKLOG + 1) if n % 9 == 0 and n % 30])]

"""Whoever stands still while others buy: a stopped worker, an operator's forgotten transaction."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from uuid import UUID

import pytest
from sqlalchemy import Connection, create_engine, text

from tests.harness.processes import CELERY, Part
from tests.harness.waiting import wait_until
from tests.soak.admission.crowd import OTHERS, READY_SECONDS, Crowd, build_requests, run_crowd

CAP = 2
JOBS = 12
ACCOUNT = ("--concurrency", str(CAP), "--webhook-retry-seconds", "0.2")
WITHIN = 20.0
"""Seconds, of which most go until the database ends the stopped worker's transaction."""
SUBMITTERS = ("first", "second")
WAITING = """SELECT application_name FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND application_name IN ('first', 'second')
    ORDER BY query_start"""
HOLDING = """SELECT count(*) FROM pg_stat_activity
    WHERE application_name = :name AND state LIKE 'idle in transaction%'"""


@pytest.fixture
def crowd(request, tmp_path, own_url) -> Iterator[Crowd]:
    """Its two submitters can be told apart by their connections."""
    with run_crowd(request, tmp_path, own_url, OTHERS, *ACCOUNT, MAX_IN_FLIGHT=str(CAP)) as crowd:
        parts = [start_submitter(crowd, name) for name in SUBMITTERS]
        for part in parts:
            part.wait_for_log(" ready.", READY_SECONDS)
        yield crowd


def start_submitter(crowd: Crowd, name: str) -> Part:
    url = crowd.deployment.settings["DATABASE_URL"]
    if url.startswith("postgresql"):
        url += f"&application_name={name}"
    command = [*CELERY, "worker", "-n", f"{name}@%h", "-P", "solo", "-Q", "extend_video.submit"]
    settings = {**crowd.deployment.settings, "DATABASE_URL": url}
    return crowd.deployment.yard.start(name, command, settings)


@contextmanager
def connected(crowd: Crowd) -> Iterator[Connection]:
    """As an operator is: what is begun stays open until it is rolled back."""
    engine = create_engine(crowd.deployment.settings["DATABASE_URL"])
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def stopped(part: Part) -> Iterator[None]:
    """The process alone: its connections stay open, as those of a host that hangs."""
    os.kill(part.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(part.process.pid, signal.SIGCONT)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("own_url", ["postgresql"], indirect=True)
def test_worker_stopped_inside_admission_holds_up_the_others_for_seconds_only(crowd):
    """SQLite has no such case: who is stopped while he writes there stops all who write."""
    with connected(crowd) as guard:
        guard.execute(text("LOCK TABLE limits IN EXCLUSIVE MODE"))
        crowd.enqueue(*build_requests(JOBS))
        name = wait_for_first_in_line(crowd)
        part = crowd.deployment.yard.parts[name]
        with stopped(part):
            guard.rollback()
            with connected(crowd) as observer:
                wait_until(lambda: read_count(observer, HOLDING, name=name) > 0)
            crowd.wait_for_ends(JOBS, WITHIN)
            before = crowd.read_ledger()
    crowd.enqueue(*build_requests(JOBS))
    crowd.wait_for_ends(2 * JOBS, WITHIN)

    assert len(before.posts) == JOBS
    assert crowd.count_states() == {"archived": 2 * JOBS}
    assert crowd.read_ledger().most_at_once <= CAP
    assert part.is_running


def wait_for_first_in_line(crowd: Crowd) -> str:
    """Which submitter waits for the lock in the longest-standing admission."""
    with connected(crowd) as observer:
        names: Sequence[str] = ()

        def is_somebody_there() -> bool:
            nonlocal names
            observer.rollback()
            names = observer.execute(text(WAITING)).scalars().all()
            return bool(names)

        wait_until(is_somebody_there, READY_SECONDS)
    return names[0]


def read_count(connection: Connection, statement: str, **values: object) -> int:
    connection.rollback()
    return int(connection.execute(text(statement), values).scalar_one())


@pytest.mark.timeout(300)
def test_operators_open_transaction_on_a_queued_row_holds_up_that_row_alone(crowd):
    """On SQLite it reads, for whoever writes there keeps all others from writing."""
    with connected(crowd) as operator:
        with ExitStack() as nobody_buys:
            for name in SUBMITTERS:
                nobody_buys.enter_context(stopped(crowd.deployment.yard.parts[name]))
            ids = crowd.enqueue(*build_requests(JOBS))
            touched = open_transaction(operator, crowd, ids[0])
        crowd.wait_for_ends(JOBS - touched, WITHIN)
        if touched:
            assert crowd.table.read_job(ids[0])["state"] == "queued"
        operator.rollback()
    crowd.wait_for_ends(JOBS, WITHIN)

    assert crowd.count_states() == {"archived": JOBS}
    assert len(crowd.read_ledger().posts) == JOBS


def open_transaction(operator: Connection, crowd: Crowd, job_id: UUID) -> int:
    """How many rows nobody else can change before it ends."""
    if operator.dialect.name == "sqlite":
        operator.exec_driver_sql("BEGIN")
        operator.execute(text("SELECT * FROM jobs")).all()
        return 0
    statement = text("UPDATE jobs SET priority = priority WHERE id = :id")
    return operator.execute(statement, {"id": crowd.table.spell_value(job_id)}).rowcount

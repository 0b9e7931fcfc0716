"""What one job costs in SQL, from enqueue to archived: it must not creep (docs/performance.md)."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import event

from tests.harness.archiving import Archiver, archive_locally, make_video, state_video
from tests.harness.jobs import LEASE, REQUEST_ID
from tests.harness.stages import Bench, build_completion
from tests.harness.web import run_server, send_body
from worker.ground.db import Database
from worker.jobs.admission import Caps
from worker.jobs.states import JobState
from worker.stages.enqueue import enqueue_job, parse_job_request
from worker.stages.submit import begin_submission

pytestmark = pytest.mark.both_databases

WISH = {"prompt": "on it goes", "video_url": "https://example.com/a.mp4"}
# A transition and its line in the history are one statement on PostgreSQL, two on SQLite. The
# intent is an admission: whether there is room and a job is read without a lock, and under it.
STATEMENTS = {
    "postgresql": {"enqueue": 1, "intent": 19, "reply": 4, "delivery": 4, "archive": 5},
    "sqlite": {"enqueue": 2, "intent": 19, "reply": 5, "delivery": 5, "archive": 6},
}
# Of a message that finds no room, or no job.
IN_VAIN = {"full": 4, "empty": 5}
COMMITS = {"enqueue": 1, "intent": 1, "reply": 1, "delivery": 1, "archive": 3}


class Meter:
    """Counts statements and commits of a database, by the step that is under way.

    A statement that writes outside of a transaction commits itself.
    """

    def __init__(self, db: Database) -> None:
        self.statements: Counter[str] = Counter()
        self.commits: Counter[str] = Counter()
        self._step = ""
        event.listen(db.engine, "before_cursor_execute", self._note_statement)
        event.listen(db.engine, "commit", self._note_commit)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._step = name
        yield
        self._step = ""

    def _note_statement(self, connection, _cursor, statement: str, *_) -> None:
        if not self._step or statement.startswith("BEGIN"):
            return
        self.statements[self._step] += 1
        is_alone = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
        if is_alone and not statement.startswith("SELECT"):
            self.commits[self._step] += 1

    def _note_commit(self, _connection) -> None:
        if self._step:
            self.commits[self._step] += 1


@pytest.fixture
def cdn():
    with run_server(send_body(make_video(), Content_Type="video/mp4")) as server:
        yield server


@pytest.fixture
def archive(db, cdn, tmp_path) -> Archiver:
    return archive_locally(db, tmp_path / "archive", cdn.place)


@pytest.fixture
def counted(bench: Bench, archive: Archiver, cdn) -> Meter:
    """Of one job's whole way, on which nothing goes wrong."""
    meter = Meter(bench.db)
    with meter.step("enqueue"):
        job_request = parse_job_request(WISH)
        job = enqueue_job(
            job_request, db=bench.db, endpoint="e", dispatch_timeout=LEASE, clock=bench.clock
        ).job
    with meter.step("intent"):
        policy = bench.submit_policy
        submission = begin_submission(db=bench.db, policy=policy, clock=bench.clock)
    assert submission is not None
    with meter.step("reply"):
        bench.accept(submission)
    result = state_video(f"{cdn.url}/files/b/0a/clip.mp4")
    with meter.step("delivery"):
        bench.deliver(submission, build_completion(REQUEST_ID, result))
    bench.clock.move(timedelta(seconds=1))
    with meter.step("archive"):
        ended = archive(job, clock=bench.clock)
    assert ended is not None
    assert ended.state is JobState.ARCHIVED
    return meter


def test_a_job_takes_so_many_statements_and_commits_and_no_more(db, counted):
    assert counted.statements == STATEMENTS[db.engine.dialect.name]
    assert counted.commits == COMMITS


@pytest.mark.parametrize("why", list(IN_VAIN))
def test_a_message_that_finds_no_room_or_no_job_reads_a_little_and_locks_nothing(bench, why):
    admission_policy = replace(bench.submit_policy.admission, caps=Caps(1))
    policy = replace(bench.submit_policy, admission=admission_policy)
    if why == "full":
        bench.begin(bench.insert())
        bench.insert()
    meter = Meter(bench.db)
    with meter.step(why):
        assert begin_submission(db=bench.db, policy=policy, clock=bench.clock) is None
    assert (meter.statements, meter.commits) == ({why: IN_VAIN[why]}, {})

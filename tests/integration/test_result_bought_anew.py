"""A result bought anew has its own time: nothing about it counts from the job's first result."""

from datetime import timedelta

import pytest

from tests.harness.archiving import Archiver, archive_locally, state_video
from tests.harness.jobs import LEASE, NOW
from tests.harness.stages import Bench, build_completion
from tests.harness.web import run_server, send_body
from worker.jobs import limits, table
from worker.jobs.checks import Check, check_slice
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Claim, Job, Move
from worker.jobs.walks import next_slice
from worker.stages.archive import FIRST_DELAY, GONE_AFTER
from worker.stages.sweep import sweep_jobs

DEADLINE = timedelta(hours=1)
LATER = timedelta(hours=3)


@pytest.fixture
def cdn():
    with run_server(send_body(b"", 404)) as server:
        yield server


@pytest.fixture
def archive(db, tmp_path, cdn, bench, desk) -> Archiver:
    """Of a video that its host does not have, nor fal a newer URL of it."""
    desk.forget()
    archiver = archive_locally(db, tmp_path / "archive", cdn.place)
    return archiver.with_(open_requests=lambda: bench.requests)


def complete(bench: Bench, job: Job, request_id: str, url: str) -> Job:
    attempt = bench.attempts(job)[-1]
    completion = build_completion(request_id, state_video(url))
    bench.reconciler._record(bench.read(job), attempt, completion)
    completed = bench.read(job)
    assert completed.state is JobState.COMPLETED
    return completed


def refuse(bench: Bench, job: Job) -> None:
    """The first video can never be archived."""
    claim = Claim("tester:2", bench.clock(), bench.clock() + LEASE)
    with bench.db.transaction() as connection:
        claimed = table.claim_job(connection, job.id, JobEvent.ARCHIVE_CLAIMED, claim)
        assert claimed is not None
        why = {"error_code": "media_gone", "error_message": "no"}
        move = Move(bench.clock(), columns=why)
        table.apply_permitted(connection, claimed, JobEvent.ARCHIVE_REFUSED, move)


def buy_anew(bench: Bench, url: str) -> Job:
    """Completed at NOW for the first time, and LATER by another request."""
    job = complete(bench, bench.make_submitted(), "request-1", url)
    bench.clock.move(DEADLINE)
    sweep(bench)
    assert bench.read(job).archive_alarmed_at is not None
    refuse(bench, job)
    bench.redrive(job, pay_again=True)
    bench.clock.move(LATER - DEADLINE)
    bench.accept(bench.begin(bench.read(job)), "request-2")
    return complete(bench, job, "request-2", url)


def sweep(bench: Bench) -> None:
    sweep_jobs(db=bench.db, lease=LEASE, archive_deadline=DEADLINE, clock=bench.clock)


def list_late(bench: Bench) -> list[str]:
    with bench.db.reading() as connection:
        part = next_slice(connection, None)
        assert part is not None
        found = check_slice(connection, part, bench.clock())
        return [one.detail for one in found if one.check is Check.LATE_ARCHIVE]


@pytest.mark.both_databases
def test_video_bought_anew_that_is_not_there_yet_is_waited_for(bench, archive, cdn):
    job = buy_anew(bench, f"{cdn.url}/v.mp4")
    assert job.completed_at == NOW, "the column keeps the first time"
    moved = archive(job, clock=bench.clock)
    assert (moved.state, moved.due_at) == (JobState.COMPLETED, bench.clock() + FIRST_DELAY)
    bench.clock.move(GONE_AFTER)
    moved = archive(job, clock=bench.clock)
    assert (moved.state, moved.error_code) == (JobState.FAILED, "media_gone")


@pytest.mark.both_databases
def test_alarm_is_raised_for_the_new_result_too_at_its_own_deadline(bench):
    job = buy_anew(bench, "https://v3.fal.media/v.mp4")
    bench.clock.move(DEADLINE - timedelta(seconds=1))
    sweep(bench)
    assert (bench.read(job).archive_alarmed_at, list_late(bench)) == (None, [])
    bench.clock.move(timedelta(seconds=1) + LEASE)
    sweep(bench)
    assert bench.read(job).archive_alarmed_at == bench.clock()
    assert list_late(bench) == ["completed, and its video is late: nothing holds it up"]


@pytest.mark.both_databases
def test_turn_of_a_download_is_waited_for_since_the_new_result(bench):
    job, since = buy_anew(bench, "https://v3.fal.media/v.mp4"), []
    claim = Claim("tester:1", bench.clock(), bench.clock() + LEASE)

    def defer(at):
        since.append(at)
        return at + LEASE

    with bench.db.transaction() as connection:
        assert limits.claim_download(connection, job.id, claim, most=0, defer=defer) is None
    assert since == [NOW + LATER]

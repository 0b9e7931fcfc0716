"""The video's way into the archive, from a real server onto a real disk."""

from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from tests.harness.archiving import (
    FRAMES,
    LIMITS,
    RATE,
    Archiver,
    archive_locally,
    list_files,
    make_completed,
    make_video,
)
from tests.harness.clock import FakeClock
from tests.harness.jobs import LEASE, NOW, make_job, move_job, read_job
from tests.harness.together import call_together
from tests.harness.waiting import wait_until
from tests.harness.web import break_off, run_server, send_body
from worker.jobs import table
from worker.jobs.states import Doorbell, JobEvent, JobState, Step
from worker.jobs.values import Job
from worker.media.local_store import PARTIAL_DIRECTORY
from worker.stages.archive import FIRST_DELAY, GONE_AFTER, LONGEST_DELAY, choose_delay
from worker.stages.lease import Heartbeat
from worker.stages.sweep import sweep_jobs

VIDEO = make_video()
THIRD = len(VIDEO) // 3


@pytest.fixture
def cdn():
    with run_server(send_body(VIDEO, Content_Type="video/mp4")) as server:
        yield server


@pytest.fixture
def root(tmp_path) -> Path:
    return Path(tmp_path) / "archive"


@pytest.fixture
def archive(db, root, cdn) -> Archiver:
    return archive_locally(db, root, cdn.place)


@pytest.fixture
def job(db, cdn) -> Job:
    return make_completed(db, f"{cdn.url}/files/b/0a/clip.mp4?sig=%20x")


def list_names(job: Job) -> list[str]:
    """What lies in the archive of one job: the video, its poster, its sidecar."""
    return [f"{job.id}.jpg", f"{job.id}.json", f"{job.id}.mp4"]


def list_events(db, job):
    with db.reading() as connection:
        return table.list_events(connection, job.id)


def sweep(db, clock):
    return sweep_jobs(db=db, lease=LEASE, clock=clock).doorbells


# the way it ought to be


@pytest.mark.both_databases
def test_archive_job_keeps_the_very_bytes_under_the_jobs_id(db, root, cdn, job, archive):
    moved = archive(job)
    assert moved == read_job(db, job.id)
    final = root / f"{job.id}.mp4"
    assert (moved.state, moved.archived_at) == (JobState.ARCHIVED, NOW)
    assert (moved.archive_uri, moved.archive_bytes) == (final.as_uri(), len(VIDEO))
    assert moved.archive_poster_uri == final.with_suffix(".jpg").as_uri()
    assert moved.archive_sidecar_uri == final.with_suffix(".json").as_uri()
    assert (moved.archive_verified_at, moved.archive_error) == (NOW, None)
    facts = (moved.archive_media["frames"], moved.archive_media["duration"])
    assert facts == (FRAMES, FRAMES / RATE)
    assert moved.archive_sha256 == sha256(VIDEO).hexdigest()
    assert final.read_bytes() == VIDEO
    assert list_files(root) == list_names(job)
    assert list((root / PARTIAL_DIRECTORY).iterdir()) == []
    assert (moved.due_at, moved.claimed_by, moved.doorbell) == (None, None, None)
    assert cdn.asked[0].target == "/files/b/0a/clip.mp4?sig=%20x"
    reasons = [event.reason for event in list_events(db, job)]
    assert reasons[-2:] == ["archive_claimed", "archive_recorded"]


@pytest.mark.parametrize(
    ("ending", "stated", "media_type"),
    [
        ("mp4", {"content_type": "video/quicktime", "file_name": "a.exe"}, "video/mp4"),
        ("mkv", {"file_name": "x/../y.OGV"}, "video/x-matroska"),
    ],
)
def test_archive_job_names_the_file_by_its_bytes(cdn, archive, ending, stated, media_type):
    cdn.answer = send_body(make_video(ending))
    stated = {"file_size": len(make_video(ending)), **stated}
    moved = archive(make_completed(archive.db, f"{cdn.url}/v", **stated))
    path = archive.store.root / f"{moved.id}.{ending}"
    assert path.read_bytes() == make_video(ending)
    assert moved.archive_media["media_type"] == media_type


@pytest.mark.both_databases
def test_archive_job_claims_before_it_downloads(db, cdn, job, archive):
    seen = []

    def look(handler):
        seen.append(read_job(db, job.id))
        send_body(VIDEO)(handler)

    cdn.answer = look
    archive(job)
    (claimed,) = seen
    assert (claimed.state, claimed.claimed_by) == (JobState.ARCHIVING, "tester:1")
    assert (claimed.fence, claimed.due_at) == (job.fence + 1, NOW + LEASE)


# what passes by


def refuse_to_write(root):
    root.parent.mkdir(exist_ok=True)
    root.write_text("a file where the directory ought to be")


@pytest.mark.parametrize(
    "trouble",
    [
        (send_body(b"", 500), "media_unavailable: 127.0.0.1 has no video now: HTTP 500"),
        (send_body(b""), "media_unavailable: the video is empty"),
        (break_off(VIDEO, len(VIDEO) + 1), "media_unavailable: the download broke off"),
    ],
)
def test_archive_job_of_an_unavailable_video_is_postponed(db, root, cdn, job, archive, trouble):
    cdn.answer, reason = trouble
    moved = archive(job)
    assert moved == read_job(db, job.id)
    assert (moved.state, moved.claimed_by) == (JobState.COMPLETED, None)
    assert moved.blocked_reason.startswith(reason)
    assert moved.due_at == NOW + FIRST_DELAY
    assert (moved.error_code, moved.archive_uri) == (None, None)
    assert (moved.result, list_files(root)) == (job.result, [])
    assert list_events(db, job)[-1].detail in moved.blocked_reason


def test_archive_job_that_cannot_write_is_postponed(db, root, job, archive):
    refuse_to_write(root)
    moved = archive(job)
    assert moved.state is JobState.COMPLETED
    assert moved.blocked_reason.startswith("store_unavailable: ")


def test_archive_job_postponed_waits_longer_each_time(db, cdn, job, archive):
    cdn.answer = send_body(b"", 503)
    clock, delays = FakeClock(), []
    for _ in range(8):
        moved = archive(job, clock=clock)
        delays.append(moved.due_at - clock())
        clock.now = moved.due_at
    assert delays == sorted(delays)
    assert delays[:4] == [FIRST_DELAY, FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
    assert delays[-1] == LONGEST_DELAY


@pytest.mark.both_databases
def test_archive_job_postponed_is_claimable_again_by_the_sweep_at_its_time(
    db, root, cdn, job, archive
):
    cdn.answer = send_body(b"", 503)
    due_at, asked = archive(job).due_at, len(cdn.asked)
    cdn.answer = send_body(VIDEO)
    clock = FakeClock(due_at - timedelta(seconds=1))
    assert archive(job, clock=clock) is None
    assert sweep(db, clock) == []
    clock.now = due_at
    assert sweep(db, clock) == [Doorbell(Step.ARCHIVE, job.id)]
    assert archive(job, clock=clock).state is JobState.ARCHIVED
    assert (len(cdn.asked), list_files(root)) == (asked + 1, list_names(job))


def test_choose_delay_never_leaves_its_bounds():
    delays = [choose_delay(timedelta(seconds=seconds)) for seconds in range(2000)]
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (FIRST_DELAY, LONGEST_DELAY)


# what never will be


@pytest.mark.parametrize(
    "refusal",
    [
        (send_body(b"", 401), "refuses the video: HTTP 401"),
        (send_body(b"", 302, Location="https://evil.example/v"), "not allowed by FAL_MEDIA_HOSTS"),
        (send_body(b"x" * (LIMITS.max_bytes + 1)), "larger than"),
    ],
)
def test_archive_job_of_a_refused_video_fails(db, root, cdn, job, archive, refusal):
    cdn.answer, message = refusal
    moved = archive(job)
    assert moved == read_job(db, job.id)
    assert (moved.state, moved.error_code) == (JobState.FAILED, "media_refused")
    assert message in moved.error_message
    assert (moved.failed_at, moved.due_at, moved.archive_uri) == (NOW, None, None)
    assert (moved.result, list_files(root)) == (job.result, [])


@pytest.mark.both_databases
def test_archive_job_of_a_video_that_is_gone_waits_at_first_and_fails_then(
    db, root, cdn, job, archive
):
    cdn.answer = send_body(b"", 404)
    moved = archive(job)
    assert (moved.state, moved.due_at) == (JobState.COMPLETED, NOW + FIRST_DELAY)
    told = "no longer has the video: HTTP 404"
    assert moved.blocked_reason == f"media_gone: 127.0.0.1 {told}"
    moved = archive(job, clock=FakeClock(NOW + GONE_AFTER))
    assert (moved.state, moved.error_code) == (JobState.FAILED, "media_gone")
    assert told in moved.error_message
    assert (len(cdn.asked), list_files(root)) == (2, [])


def test_archive_job_of_a_strange_url_fails_without_asking(db, cdn, archive):
    moved = archive(make_completed(db, "https://evil.example/v"))
    assert (moved.state, moved.error_code) == (JobState.FAILED, "media_refused")
    assert cdn.asked == []


def test_archive_job_of_a_result_without_video_fails(db, archive):
    moved = archive(make_job(db, JobState.COMPLETED, result={"video": None}))
    assert (moved.state, moved.error_code) == (JobState.FAILED, "invalid_result")
    assert moved.error_message


# whose job it is


BEAT = timedelta(seconds=0.15)


@pytest.mark.both_databases
def test_archive_job_renews_its_lease_during_a_silent_download(db, root, cdn, job, archive):
    """A host that says nothing for long must not look like a dead worker."""
    clock, swept = FakeClock(), []

    def fall_silent(handler):
        handler.send_head(200, Content_Length=len(VIDEO))
        for start in (0, THIRD):
            handler.wfile.write(VIDEO[start : start + THIRD])
            clock.move(BEAT / 2)
            wait_until(lambda: read_job(db, job.id).due_at == clock() + BEAT)
            swept.extend(sweep(db, clock))
        handler.wfile.write(VIDEO[2 * THIRD :])

    cdn.answer = fall_silent
    assert archive(job, clock=clock, lease=BEAT).state is JobState.ARCHIVED
    assert (swept, clock()) == ([], NOW + BEAT)
    assert list_files(root) == list_names(job)


def take_over(db, job, clock):
    """Let the lease run out and another worker claim the job."""
    clock.move(LEASE)
    assert sweep(db, clock) == [Doorbell(Step.ARCHIVE, job.id)]
    return move_job(db, read_job(db, job.id), JobEvent.ARCHIVE_CLAIMED, now=clock())


@pytest.mark.both_databases
@pytest.mark.parametrize("answer", [send_body(VIDEO), send_body(b"", 404), send_body(b"", 503)])
def test_archive_job_taken_over_writes_nothing(db, root, cdn, job, archive, answer):
    clock, holders = FakeClock(), list[Job]()

    def fall_silent(handler):
        if not holders:
            holders.append(take_over(db, job, clock))
        answer(handler)

    cdn.answer = fall_silent
    assert archive(job, clock=clock) is None
    assert [read_job(db, job.id)] == holders
    assert list_files(root) == []


@pytest.mark.both_databases
def test_archive_job_taken_over_and_ended_leaves_the_others_file(db, root, cdn, job, archive):
    clock, archived = FakeClock(), list[Job]()

    def fall_silent(handler):
        cdn.answer = send_body(VIDEO)
        clock.move(LEASE)
        sweep(db, clock)
        archived.append(archive(job, clock=clock, worker="tester:2"))
        send_body(b"x" * len(VIDEO))(handler)

    cdn.answer = fall_silent
    assert archive(job, clock=clock) is None
    assert [read_job(db, job.id)] == archived
    assert archived[0].state is JobState.ARCHIVED
    assert (root / f"{job.id}.mp4").read_bytes() == VIDEO
    assert list_files(root) == list_names(job)


@pytest.mark.both_databases
def test_archive_job_after_a_crash_before_the_record_ends_with_the_same_files(
    db, root, job, archive
):
    claimed = move_job(db, job, JobEvent.ARCHIVE_CLAIMED)
    heartbeat = Heartbeat(claimed, db=db, lease=LEASE, clock=FakeClock())
    archive.build_keeper().keep_video(claimed, heartbeat)
    assert list_files(root) == list_names(job)
    assert archive(job) is None
    clock = FakeClock(NOW + LEASE)
    assert sweep(db, clock) == [Doorbell(Step.ARCHIVE, job.id)]
    assert archive(job, clock=clock).state is JobState.ARCHIVED
    assert list_files(root) == list_names(job)


@pytest.mark.both_databases
def test_archive_job_twice_downloads_once(db, root, cdn, job, archive):
    first = archive(job)
    assert archive(job) is None
    assert (read_job(db, job.id), len(cdn.asked)) == (first, 1)
    assert list_files(root) == list_names(job)


@pytest.mark.both_databases
def test_archive_job_at_once_by_two_doorbells_downloads_once(cdn, job, archive):
    moved = call_together(*[lambda: archive(job)] * 2)
    assert [one.state for one in moved if one] == [JobState.ARCHIVED]
    assert len(cdn.asked) == 1


@pytest.mark.parametrize("state", [JobState.SUBMITTED, JobState.ARCHIVING])
def test_archive_job_that_is_not_completed_is_left_alone(db, cdn, archive, state):
    job = make_job(db, state)
    assert archive(job) is None
    assert (read_job(db, job.id), cdn.asked) == (job, [])

"""What comes instead of the stated video, what lies beside it, and whose names are whose."""

import base64
import json
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from typing_extensions import override

from tests.harness.archiving import (
    Archiver,
    archive_locally,
    list_files,
    make_completed,
    make_video,
    state_video,
)
from tests.harness.clock import FakeClock
from tests.harness.jobs import NOW, REQUEST_ID, move_job, read_job
from tests.harness.stages import Bench
from tests.harness.web import ScriptedServer, run_server, send_body, send_json
from worker.fal.platform import PlatformClient
from worker.ground.errors import MediaUnavailableError
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job
from worker.media.local_store import LocalStore
from worker.media.sidecar import parse_sidecar
from worker.stages.archive import GONE_AFTER

VIDEO = make_video()
HTML = b"<!DOCTYPE html><html><title>Sign in</title></html>"
LATE = FakeClock(NOW + GONE_AFTER)


@pytest.fixture
def cdn():
    with run_server(send_body(VIDEO)) as server:
        yield server


@pytest.fixture
def root(tmp_path) -> Path:
    return Path(tmp_path) / "archive"


@pytest.fixture
def archive(db, root, cdn) -> Archiver:
    return archive_locally(db, root, cdn.place)


class Unheld:
    """A job that nobody can take over."""

    def check(self, *_: object) -> None: ...

    def renew(self) -> None: ...


def answer_in_turn(cdn: ScriptedServer, *bodies: bytes) -> None:
    """One body after the other, the last one for ever."""
    rest = list(bodies)

    def answer(handler):
        send_body(rest.pop(0) if len(rest) > 1 else rest[0])(handler)

    cdn.answer = answer


# ------------------------------------------------------------------ verification


@pytest.mark.parametrize(
    "wrong",
    [HTML, VIDEO[:3000] + bytes(len(VIDEO) - 3000)],
    ids=["html", "zeroed"],
)
def test_wrong_bytes_are_fetched_again_and_the_right_ones_kept(db, root, cdn, archive, wrong):
    answer_in_turn(cdn, wrong, VIDEO)
    moved = archive(make_completed(db, f"{cdn.url}/v.mp4"))
    assert moved.state is JobState.ARCHIVED
    assert (root / f"{moved.id}.mp4").read_bytes() == VIDEO
    assert len(cdn.asked) == 2


def test_wrong_bytes_twice_are_unarchivable_and_lie_in_quarantine(db, root, cdn, archive):
    cdn.answer = send_body(HTML)
    job = make_completed(db, f"{cdn.url}/v.mp4")
    moved = archive(job)
    assert moved == read_job(db, job.id)
    assert (moved.state, moved.error_code) == (JobState.FAILED, "unarchivable")
    assert "video.file_size: stated" in moved.error_message
    assert "<!DOCTYPE html>" in moved.error_message
    kept = root / "quarantine" / f"{job.id}.bin"
    assert (moved.quarantine_uri, kept.read_bytes()) == (kept.as_uri(), HTML)
    evidence = json.loads(kept.with_suffix(".json").read_bytes())
    assert evidence["job_id"] == str(job.id)
    assert {"video.file_size", "media type"} == {one["field"] for one in evidence["evidence"]}
    assert list_files(root) == [f"quarantine/{job.id}.bin", f"quarantine/{job.id}.json"]
    assert (moved.archive_uri, moved.result) == (None, job.result)


def test_bytes_in_quarantine_stay_named_when_a_redrive_archives_the_job(db, cdn, archive):
    cdn.answer = send_body(HTML)
    failed = archive(make_completed(db, f"{cdn.url}/v.mp4"))
    cdn.answer = send_body(VIDEO)
    moved = archive(move_job(db, failed, JobEvent.ARCHIVE_REDRIVEN))
    assert moved.state is JobState.ARCHIVED
    assert moved.quarantine_uri == failed.quarantine_uri, "for prune, which deletes what is named"


def test_quarantine_that_cannot_be_written_leaves_the_job_waiting(db, root, cdn, archive):
    (root / "quarantine").parent.mkdir()
    (root / "quarantine").write_text("a file where the directory ought to be")
    cdn.answer = send_body(HTML)
    moved = archive(make_completed(db, f"{cdn.url}/v.mp4"))
    assert moved.state is JobState.COMPLETED
    assert moved.blocked_reason.startswith("store_unavailable: ")


# ------------------------------------------------------------------ recipe and pictures


def test_sidecar_says_how_the_video_was_made(db, root, cdn, archive):
    moved = archive(make_completed(db, f"{cdn.url}/v.mp4"))
    sidecar = parse_sidecar((root / f"{moved.id}.json").read_bytes())
    assert (sidecar.job_id, sidecar.input, sidecar.seed) == (moved.id, moved.input, 7)
    assert (sidecar.result, sidecar.times.completed_at) == (moved.result, moved.completed_at)
    video = root / sidecar.video.name
    assert (video.read_bytes(), sidecar.video.bytes) == (VIDEO, len(VIDEO))
    assert sidecar.video.sha256 == moved.archive_sha256
    assert sidecar.poster is not None
    poster = (root / sidecar.poster.name).read_bytes()
    assert (poster[:3], len(poster)) == (b"\xff\xd8\xff", sidecar.poster.bytes)


def test_sidecar_of_another_job_is_never_written_over(db, root, cdn, archive):
    job, other = make_completed(db, f"{cdn.url}/v.mp4"), uuid4()
    path = root / f"{job.id}.json"
    archive.build_keeper().keep_video(job, Unheld())
    (root / f"{job.id}.mp4").unlink()
    foreign = parse_sidecar(path.read_bytes()).model_copy(update={"job_id": other})
    path.write_bytes(foreign.to_bytes())
    moved = archive(job)
    assert (moved.state, moved.error_code) == (JobState.FAILED, "name_taken")
    assert str(other) in moved.error_message
    assert path.read_bytes() == foreign.to_bytes()
    assert not (root / f"{job.id}.mp4").exists()


def test_file_that_is_no_sidecar_is_never_written_over(db, root, cdn, archive):
    job = make_completed(db, f"{cdn.url}/v.mp4")
    root.mkdir()
    path = root / f"{job.id}.json"
    path.write_text("my notes")
    assert archive(job).error_code == "name_taken"
    assert path.read_text() == "my notes"


def test_sidecar_deleted_while_its_owner_is_looked_up_leaves_the_job_waiting(cdn, archive):
    job = make_completed(archive.db, f"{cdn.url}/v.mp4")

    class Fleeting(LocalStore):
        @override
        def create(self, name: str, body: bytes, content_type: str) -> bool:
            return False

    moved = archive.with_(store=Fleeting(archive.store.root))(job)
    assert moved.state is JobState.COMPLETED
    assert moved.blocked_reason == f"store_unavailable: {job.id}.json was deleted just now"


def test_layout_names_every_file(db, root, cdn, archive):
    layout = "{yyyy}/{mm}/{tenant}/{job_id}.{ext}"
    moved = archive.with_(layout=layout)(make_completed(db, f"{cdn.url}/v.mp4"))
    stem = f"{NOW:%Y/%m}/default/{moved.id}"
    assert list_files(root) == [f"{stem}.jpg", f"{stem}.json", f"{stem}.mp4"]
    assert moved.archive_uri == (root / f"{stem}.mp4").as_uri()


# ------------------------------------------------------------------ inside the result


def test_inline_video_is_verified_and_its_bytes_kept_once(db, root, archive):
    url = f"data:video/mp4;base64,{base64.b64encode(VIDEO).decode()}"
    moved = archive(make_completed(db, url))
    assert moved.state is JobState.ARCHIVED
    assert (root / f"{moved.id}.mp4").read_bytes() == VIDEO
    assert moved.result["video"]["url"].startswith("data:video/mp4;archived;sha256=")
    sidecar = parse_sidecar((root / f"{moved.id}.json").read_bytes())
    assert sidecar.result == moved.result


def test_inline_bytes_that_are_no_video_are_unarchivable_at_once(db, root, archive):
    url = f"data:video/mp4;base64,{base64.b64encode(HTML).decode()}"
    moved = archive(make_completed(db, url, file_size=None))
    assert (moved.state, moved.error_code) == (JobState.FAILED, "unarchivable")
    assert (root / "quarantine" / f"{moved.id}.bin").read_bytes() == HTML


# ------------------------------------------------------------------ where it can be read


@pytest.fixture
def expired(bench: Bench, desk, cdn) -> Job:
    """A completed job whose URL its host knows no more."""
    submission = bench.begin(bench.insert())
    bench.accept(submission)
    desk.finish(state_video(f"{cdn.url}/old.mp4"))
    bench.reconcile(submission.job)

    def answer(handler):
        is_old = handler.asked.path == "/old.mp4"
        send_body(b"" if is_old else VIDEO, 403 if is_old else 200)(handler)

    cdn.answer = answer
    return bench.read(submission.job)


def test_expired_url_is_asked_for_again_at_fal(bench, desk, cdn, root, archive, expired):
    desk.result = send_json(state_video(f"{cdn.url}/new.mp4"))
    moved = archive.with_(open_requests=lambda: bench.requests)(expired)
    assert moved.state is JobState.ARCHIVED
    assert moved.result["video"]["url"] == f"{cdn.url}/new.mp4"
    assert [one.path for one in cdn.asked] == ["/old.mp4", "/new.mp4"]
    assert REQUEST_ID in desk.asked[-1].path


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_expired_url_that_fal_cannot_renew_is_gone_in_the_end(
    bench, desk, archive, expired, is_forgotten
):
    if is_forgotten:
        desk.forget()
    archive = archive.with_(open_requests=lambda: bench.requests)
    assert archive(expired).state is JobState.COMPLETED
    moved = archive(expired, clock=LATE)
    assert (moved.state, moved.error_code) == (JobState.FAILED, "media_gone")
    assert "fal was polled again: it has no other result" in moved.error_message


@pytest.fixture
def private(bench: Bench, desk, cdn) -> Job:
    """A completed job whose files nobody but their owner may read."""
    options = {"initial_acl": {"default": "forbid", "rules": []}}
    policy = bench.submit_policy
    submission = bench.begin(bench.insert(options=options))
    assert policy is not None
    bench.accept(submission)
    desk.finish(state_video(f"{cdn.url}/private.mp4"))
    bench.reconcile(submission.job)

    def answer(handler):
        is_signed = handler.asked.query.get("identity") == ["me"]
        send_body(VIDEO if is_signed else b"", 200 if is_signed else 403)(handler)

    cdn.answer = answer
    return bench.read(submission.job)


class Signer(PlatformClient):
    """Signs at once, or not at all."""

    def __init__(self, *, is_away: bool = False) -> None:
        self.is_away = is_away
        self.lives: list[timedelta] = []

    @override
    def sign_file(self, url: str, expires_in: timedelta) -> str:
        self.lives.append(expires_in)
        if self.is_away:
            raise MediaUnavailableError("fal signs no URL of the file now")
        return f"{url}?identity=me"


def test_private_video_is_read_by_a_signed_url_that_is_kept_nowhere(db, root, archive, private):
    signer = Signer()
    moved = archive.with_(open_signer=lambda: signer)(private)
    assert moved.state is JobState.ARCHIVED
    assert signer.lives[0] > archive.limits.total
    assert "identity" not in json.dumps(moved.result)
    assert b"identity" not in (root / f"{moved.id}.json").read_bytes()


def test_private_video_waits_while_fal_signs_nothing(archive, private):
    moved = archive.with_(open_signer=lambda: Signer(is_away=True))(private)
    assert moved.state is JobState.COMPLETED
    assert moved.blocked_reason.startswith("media_unavailable: fal signs no URL")

"""A video fetched again from fal in place of a copy that is damaged, and never without need."""

import base64
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
from typing_extensions import override

from tests.harness.archives import (
    WatchedStore,
    hash_object,
    list_names,
    name_of,
    set_columns,
)
from tests.harness.archiving import Archiver, make_video, state_video
from tests.harness.clock import FakeClock
from tests.harness.jobs import REQUEST_ID, make_job, move_job, read_job
from tests.harness.stages import build_completion
from tests.harness.web import run_server, send_body
from worker.ground.errors import (
    ClaimLostError,
    JobNotFoundError,
    MediaGoneError,
    MediaUnavailableError,
    StoreUnavailableError,
    TooLateError,
)
from worker.ground.settings import DEFAULT_LAYOUT
from worker.jobs import archives, table
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Move
from worker.media.local_store import LocalStore
from worker.ops.doctor import DoctorPolicy, examine
from worker.ops.rearchive import Rearchived, Rearchiver
from worker.ops.verify import Inventory, find_damage, find_orphans

VIDEO, OTHER = make_video(), make_video(has_audio=False)


@pytest.fixture
def cdn():
    with run_server(send_body(VIDEO, Content_Type="video/mp4")) as server:
        yield server


@pytest.fixture
def store(tmp_path):
    return WatchedStore(LocalStore(Path(tmp_path) / "archive"))


@pytest.fixture
def archiver(bench, cdn, store):
    return Archiver(
        bench.db, store, cdn.place, layout=DEFAULT_LAYOUT, open_requests=lambda: bench.requests
    )


@pytest.fixture
def fetch(archiver):
    keeper = archiver.build_keeper()
    return lambda job, holder: keeper.keep_video(job, holder).columns


@pytest.fixture
def rearchiver(bench, store, fetch):
    return Rearchiver(bench.db, store, fetch, FakeClock())


@pytest.fixture
def job(bench, cdn, store):
    """Archived as the stages do it, its file where release 0.2.0 has put it."""
    submitted = bench.make_submitted()
    (attempt,) = bench.attempts(submitted)
    result = state_video(f"{cdn.url}/files/clip.mp4", file_size=None)
    bench.reconciler._record(submitted, attempt, build_completion(REQUEST_ID, result))
    claimed = move_job(bench.db, bench.read(submitted), JobEvent.ARCHIVE_CLAIMED)
    stored = store.put(f"{claimed.id}.mp4", VIDEO, "video/mp4")
    with bench.db.transaction() as connection:
        columns = {
            "archive_uri": stored.uri,
            "archive_sha256": stored.sha256,
            "archive_bytes": stored.bytes,
        }
        move = Move(bench.clock(), columns=columns)
        return table.apply_permitted(connection, claimed, JobEvent.ARCHIVE_RECORDED, move)


def harm(store, job):
    store.put(name_of(store, job.archive_uri), b"spoilt", "video/mp4")


def test_damaged_copy_is_replaced_by_the_video_at_fal(bench, cdn, store, rearchiver, job):
    harm(store, job)
    done = rearchiver.rearchive_job(job.id)
    after = bench.read(job)
    assert (done.is_replaced, done.job) == (True, after)
    assert (after.state, after.archived_at) == (JobState.ARCHIVED, job.archived_at)
    assert hash_object(store, name_of(store, after.archive_uri)) == after.archive_sha256
    assert (after.archive_sha256, after.archive_bytes) == (sha256(VIDEO).hexdigest(), len(VIDEO))
    assert (after.archive_error, after.archive_verified_at) == (None, rearchiver.clock())
    event = bench.events(job)[-1]
    assert (event.reason, event.from_state, event.to_state) == (
        "archive_replaced",
        JobState.ARCHIVED,
        JobState.ARCHIVED,
    )
    assert str(event.detail).startswith("different: it has 6 bytes")
    assert len(cdn.asked) == 1
    policy = DoctorPolicy("x", every_file=True)
    assert examine(db=bench.db, store=store, platform=None, policy=policy).findings == []


def test_former_object_under_another_name_is_deleted_after_the_record(store, rearchiver, job):
    """The layout, or the kind of the video, is another one by now."""
    harm(store, job)
    store.put(f"{job.id}.sheet.jpg", b"a sheet", "image/jpeg")
    seen = []
    store.before_delete = lambda _: seen.append(read_job(rearchiver.db, job.id).archive_uri)
    after = rearchiver.rearchive_job(job.id).job
    stem = f"2026/11/23/{job.id}"
    assert list_names(store) == [f"{stem}.jpg", f"{stem}.json", f"{stem}.mp4"]
    assert set(seen) == {after.archive_uri}


def test_former_object_that_cannot_be_deleted_is_left_to_the_list_of_orphans(
    store, rearchiver, job
):
    harm(store, job)

    def refuse(_name):
        raise StoreUnavailableError("the archive cannot be written: Read-only file system")

    store.before_delete = refuse
    assert rearchiver.rearchive_job(job.id).is_replaced
    assert len(list_names(store)) == 4
    found = find_orphans(Inventory(), db=rearchiver.db, store=store, age=-timedelta(days=1))
    assert [one.name for one in found] == [f"{job.id}.mp4"]


def test_intact_copy_is_left_alone_and_marked_as_verified(bench, cdn, rearchiver, job):
    set_columns(bench.db, job.id, archive_error="missing: it was away for a while")
    done = rearchiver.rearchive_job(job.id)
    after = bench.read(job)
    assert not done.is_replaced
    assert (cdn.asked, after.archive_error) == ([], None)
    assert after.archive_verified_at == rearchiver.clock()
    assert replace(after, archive_verified_at=None) == job


def test_intact_copy_is_replaced_by_force(cdn, store, rearchiver, job):
    cdn.answer = send_body(OTHER, Content_Type="video/mp4")
    after = rearchiver.rearchive_job(job.id, force=True).job
    assert after.archive_sha256 == sha256(OTHER).hexdigest()
    assert hash_object(store, name_of(store, after.archive_uri)) == after.archive_sha256


@dataclass
class MortalStore(WatchedStore):
    """A store whose process is killed before its nth change."""

    changes_left: int = 1000

    def _die(self) -> None:
        self.changes_left -= 1
        if self.changes_left < 0:
            raise KeyboardInterrupt

    @override
    def publish(self, file, name, content_type):
        self._die()
        return super().publish(file, name, content_type)

    @override
    def create(self, name, body, content_type):
        self._die()
        return super().create(name, body, content_type)

    @override
    def put(self, name, body, content_type):
        self._die()
        return super().put(name, body, content_type)

    @override
    def delete(self, name):
        self._die()
        return super().delete(name)


def test_sidecar_and_video_agree_whenever_a_rearchive_is_killed(bench, cdn, store, archiver, job):
    def rearchive(changes):
        mortal = MortalStore(store, changes_left=changes)
        keeper = replace(archiver.build_keeper(), store=mortal)

        def fetch(job, holder):
            return keeper.keep_video(job, holder).columns

        Rearchiver(bench.db, mortal, fetch, FakeClock()).rearchive_job(job.id, force=True)
        return mortal.changes_left

    def find_fault():
        with bench.db.reading() as connection:
            (copy,) = archives.find_copies(connection, [job.id])
        return find_damage(copy, store)

    rearchive(1000)
    made = 1000 - rearchive(1000)
    for changes in range(made):
        with pytest.raises(KeyboardInterrupt):
            rearchive(changes)
        assert find_fault() is None
    cdn.answer = send_body(OTHER, Content_Type="video/mp4")
    for changes in range(50):
        try:
            rearchive(changes)
            break
        except KeyboardInterrupt:
            assert find_fault() is None
    assert find_fault() is None
    after = bench.read(job)
    assert after.archive_sha256 == sha256(OTHER).hexdigest()
    stem = f"2026/11/23/{job.id}-{after.archive_sha256[:12]}"
    assert name_of(store, after.archive_uri) == f"{stem}.mp4"
    assert name_of(store, after.archive_sidecar_uri) == f"{stem}.json"


def serve_only(path):
    def answer(handler):
        found = handler.asked.path == path
        send_body(VIDEO if found else b"", 200 if found else 403)(handler)

    return answer


def test_refused_url_is_asked_for_again_at_fal(desk, cdn, store, rearchiver, job):
    harm(store, job)
    cdn.answer = serve_only("/files/new.mp4")
    desk.finish(state_video(f"{cdn.url}/files/new.mp4", file_size=None))
    after = rearchiver.rearchive_job(job.id).job
    assert after.archive_sha256 == sha256(VIDEO).hexdigest()
    assert [one.path for one in cdn.asked] == ["/files/clip.mp4", "/files/new.mp4"]
    assert after.result == job.result, "it is what fal said then"
    assert desk.count("POST") == 0


def test_inline_video_is_asked_for_again_at_fal(bench, desk, store, rearchiver, job):
    marker = "data:video/mp4;archived;sha256=00;bytes=3,"
    set_columns(bench.db, job.id, result=state_video(marker, file_size=None))
    harm(store, job)
    desk.finish(
        state_video("data:video/mp4;base64," + base64.b64encode(VIDEO).decode(), file_size=None)
    )
    after = rearchiver.rearchive_job(job.id).job
    assert after.archive_sha256 == sha256(VIDEO).hexdigest()
    assert after.result["video"]["url"] == marker


@pytest.mark.parametrize(
    "case",
    [
        (lambda desk: desk.forget(), "fal was polled again: it has no other result"),
        (lambda desk: desk.finish({"video": None}), "it has no other result"),
        (lambda desk: None, "it has no other result"),
    ],
)
def test_video_that_fal_has_no_more_changes_nothing_and_says_why(
    desk, cdn, store, rearchiver, job, case
):
    order, told = case
    harm(store, job)
    cdn.answer = send_body(b"", 404)
    order(desk)
    names = list_names(store)
    with pytest.raises(MediaGoneError, match="HTTP 404") as caught:
        rearchiver.rearchive_job(job.id)
    assert told in str(caught.value)
    check_unchanged(rearchiver, job, names)


def check_unchanged(rearchiver, job, names):
    """But for what was found wrong with the copy."""
    after = read_job(rearchiver.db, job.id)
    assert str(after.archive_error).startswith("different")
    assert replace(after, archive_error=None, archive_verified_at=None) == job
    assert list_names(rearchiver.store) == names
    with rearchiver.db.reading() as connection:
        assert table.list_events(connection, job.id)[-1].reason == "archive_recorded"


def test_fetch_that_fails_changes_nothing(desk, cdn, store, rearchiver, job):
    harm(store, job)
    cdn.answer = send_body(b"", 503)
    names = list_names(store)
    with pytest.raises(MediaUnavailableError):
        rearchiver.rearchive_job(job.id)
    check_unchanged(rearchiver, job, names)
    assert desk.asked == []


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.FAILED])
def test_job_without_a_copy_is_led_elsewhere(bench, cdn, rearchiver, state):
    job = make_job(bench.db, state)
    with pytest.raises(TooLateError, match=f"is {state}: .* extend-video show"):
        rearchiver.rearchive_job(job.id, force=True)
    assert (bench.read(job), cdn.asked) == (job, [])


def test_unknown_job_is_not_found(rearchiver):
    with pytest.raises(JobNotFoundError):
        rearchiver.rearchive_job(uuid4())


def test_pruned_files_come_back_only_by_force(bench, store, rearchiver, job):
    set_columns(bench.db, job.id, archive_pruned_at=job.archived_at, archive_uri=None)
    with pytest.raises(TooLateError, match="were pruned: --force"):
        rearchiver.rearchive_job(job.id)
    after = rearchiver.rearchive_job(job.id, force=True).job
    assert after.archive_pruned_at is None
    assert name_of(store, after.archive_uri) in list_names(store)


def test_copy_in_another_archive_is_fetched_into_this_one_only_by_force(
    bench, cdn, rearchiver, job
):
    set_columns(bench.db, job.id, archive_uri="s3://elsewhere/a.mp4")
    with pytest.raises(TooLateError, match="is in another archive: --force"):
        rearchiver.rearchive_job(job.id)
    assert cdn.asked == []
    assert rearchiver.rearchive_job(job.id, force=True).is_replaced


@pytest.mark.both_databases
def test_second_order_that_ends_later_publishes_nothing(bench, cdn, store, rearchiver, job):
    """Else the row could tell of one fetch, and the object be of the other."""
    harm(store, job)
    nested: list[Rearchived | None] = []

    def answer(handler):
        if not nested:
            nested.append(None)
            cdn.answer = send_body(OTHER, Content_Type="video/mp4")
            nested[0] = rearchiver.rearchive_job(job.id)
        send_body(VIDEO, Content_Type="video/mp4")(handler)

    cdn.answer = answer
    with pytest.raises(ClaimLostError):
        rearchiver.rearchive_job(job.id)
    after = bench.read(job)
    assert nested[0] is not None
    assert after == nested[0].job
    assert hash_object(store, name_of(store, after.archive_uri)) == sha256(OTHER).hexdigest()
    assert after.archive_sha256 == sha256(OTHER).hexdigest()

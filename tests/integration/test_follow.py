"""Jobs followed at an emulator over HTTP: by the poll, by whoever waits, and results inside."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import SecretStr

from tests.emulator.processes import Emulator
from tests.harness.archiving import archive_locally
from tests.harness.brokers import find_closed_port
from tests.harness.clock import FakeClock
from tests.harness.jobs import LEASE, NOW, make_job, read_attempts, read_job
from tests.harness.stages import submit_job
from tests.harness.together import call_together
from tests.harness.waiting import wait_until
from tests.harness.web import hang, run_server, send_json
from worker.fal.options import RequestOptions
from worker.fal.platform import PlatformClient
from worker.fal.requests import MAX_ENTRIES, Progress, RequestClient
from worker.fal.submit import QueueClient
from worker.ground.clock import read_clock
from worker.ground.db import Database
from worker.ground.settings import UnknownPolicy
from worker.jobs import attempts, limits, table
from worker.jobs.admission import Caps
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Attempt, Claim, Ending, Job, Move, NewAttempt
from worker.stages import poll
from worker.stages.admit import AdmissionPolicy
from worker.stages.enqueue import enqueue_job, parse_job_request
from worker.stages.poll import ALL_PAUSE, FOLLOW_LIMIT, JOB_PAUSE, Follower, Reconciler
from worker.stages.resolve import ResolvePolicy, Resolver
from worker.stages.submit import SubmitPolicy

KEY = SecretStr("emulator-key")
ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"
POLL = timedelta(minutes=10)
MINUTE = timedelta(minutes=1)
KEPT = ("timestamp", "level", "message")


@dataclass(frozen=True)
class Shop:
    """One database, and everything that asks one emulator."""

    db: Database
    fal: Emulator
    queue: QueueClient
    requests: RequestClient
    platform: PlatformClient

    def submit(self, **fields: object) -> Job:
        """A job as fal has taken it; no webhook of it ever comes through."""
        job_request = parse_job_request(
            {"prompt": "on it goes", "video_url": f"{self.fal.url}/files/ready.mp4", **fields}
        )
        job = enqueue_job(job_request, db=self.db, endpoint=ENDPOINT, dispatch_timeout=LEASE).job
        policy = SubmitPolicy(
            worker="tester:1",
            webhook_base_url=f"http://127.0.0.1:{find_closed_port()}",
            options=RequestOptions(start_timeout=timedelta(hours=2), store_io=True),
            lease=LEASE,
            poll_after=POLL,
            retry_for=timedelta(days=1),
            probe_after=MINUTE,
            admission=AdmissionPolicy(Caps(1000), ENDPOINT),
        )
        submitted = submit_job(job, db=self.db, queue=self.queue, policy=policy)
        assert submitted is not None
        assert submitted.state is JobState.SUBMITTED
        return submitted

    def reconcile(self, job: Job) -> Job:
        policy = ResolvePolicy(timedelta(hours=2), UnknownPolicy.RESUBMIT, 3, LEASE)
        resolver = Resolver(self.db, self.requests, self.platform, policy, read_clock)
        Reconciler(resolver, POLL).reconcile_job(job.id)
        return read_job(self.db, job.id)

    def follow(self, job: Job, **options: bool) -> bool:
        return Follower(self.db, self.requests, read_clock).ask_in_turn(job.id, **options)

    def read_attempt(self, job: Job) -> Attempt:
        (attempt,) = read_attempts(self.db, job.id)
        return attempt

    def wait_for(self, job: Job, status: str) -> None:
        self.fal.wait_for_status(str(job.fal_request_id), status)


def open_shop(db: Database, fal: Emulator) -> Iterator[Shop]:
    queue, requests = QueueClient(fal.url, KEY), RequestClient(fal.url, KEY)
    platform = PlatformClient(f"{fal.url}/v1", KEY)
    yield Shop(db, fal, queue, requests, platform)
    for client in (queue, requests, platform):
        client.close()


@pytest.fixture
def shop(db, emulator) -> Iterator[Shop]:
    yield from open_shop(db, emulator)


@pytest.fixture
def busy_shop(db, busy_emulator) -> Iterator[Shop]:
    yield from open_shop(db, busy_emulator)


# ------------------------------------------------------------------ the poll


def test_poll_of_waiting_request_writes_its_place(busy_shop) -> None:
    job = busy_shop.submit()
    polled = busy_shop.reconcile(job)
    attempt = busy_shop.read_attempt(job)
    assert (polled.state, attempt.fal_status) == (JobState.SUBMITTED, "IN_QUEUE")
    assert attempt.queue_position is not None
    assert attempt.queue_position >= 0
    assert attempt.inference_seconds is None


@pytest.mark.both_databases
def test_poll_of_finished_request_writes_its_time_and_logs(shop) -> None:
    job = shop.submit()
    shop.wait_for(job, "COMPLETED")
    polled = shop.reconcile(job)
    attempt = shop.read_attempt(job)
    assert polled.state is JobState.COMPLETED
    assert (attempt.fal_status, attempt.queue_position) == ("COMPLETED", None)
    assert attempt.inference_seconds is not None
    assert attempt.inference_seconds >= 0
    status = shop.fal.get_status(str(job.fal_request_id), logs="1")
    told = [{name: entry[name] for name in KEPT if name in entry} for entry in status["logs"]]
    assert attempt.logs == told


# ------------------------------------------------------------------ a result inside the message


def archive(shop: Shop, job_id: UUID, root: Path) -> Job:
    archived = archive_locally(shop.db, root, "*.fal.media")(read_job(shop.db, job_id))
    assert archived is not None
    return archived


def test_result_inside_that_no_webhook_brings_is_polled_in_time_and_archived(
    shop, tmp_path
) -> None:
    job = shop.submit(sync_mode=True)
    assert job.due_at is not None
    assert job.due_at <= datetime.now(UTC) + MINUTE, "though POLL_SECONDS says ten minutes"
    shop.wait_for(job, "COMPLETED")

    completed = shop.reconcile(job)
    assert completed.state is JobState.COMPLETED
    assert completed.result is not None
    url = completed.result["video"]["url"]
    content = base64.b64decode(url.partition(",")[2])
    archived = archive(shop, job.id, tmp_path / "archive")

    assert archived == read_job(shop.db, job.id)
    assert archived.state is JobState.ARCHIVED
    path = tmp_path / "archive" / f"{job.id}.mp4"
    assert path.read_bytes() == content
    sha256 = hashlib.sha256(content).hexdigest()
    assert (archived.archive_sha256, archived.archive_bytes) == (sha256, len(content))
    assert archived.result is not None
    marker = f"data:video/mp4;archived;sha256={sha256};bytes={len(content)},"
    assert archived.result == {
        **completed.result,
        "video": {**completed.result["video"], "url": marker},
    }


def test_spoiled_result_inside_fails_and_is_kept(db, tmp_path) -> None:
    result = {"video": {"url": "data:video/mp4;base64,AA!A"}, "seed": 1, "prompt": "on"}
    job = make_job(db, JobState.COMPLETED, result=result)
    failed = archive_locally(db, tmp_path / "archive", "x")(job)
    assert failed is not None
    assert (failed.state, failed.error_code) == (JobState.FAILED, "media_refused")
    assert failed.result == result, "it is paid for"
    assert [path for path in (tmp_path / "archive").rglob("*") if path.is_file()] == []


# ------------------------------------------------------------------ whoever waits


def test_follower_writes_what_fal_says_while_the_job_waits(busy_shop) -> None:
    job = busy_shop.submit()
    assert busy_shop.follow(job) is True
    attempt = busy_shop.read_attempt(job)
    assert attempt.fal_status == "IN_QUEUE"
    assert attempt.queue_position is not None
    assert read_job(busy_shop.db, job.id) == job, "nothing is concluded from it"


def test_follower_of_finished_request_hastens_the_poll(shop) -> None:
    job = shop.submit()
    shop.wait_for(job, "COMPLETED")
    assert shop.follow(job) is True
    attempt = shop.read_attempt(job)
    assert attempt.fal_status == "COMPLETED"
    assert attempt.inference_seconds is not None
    due_at = read_job(shop.db, job.id).due_at
    assert due_at is not None
    assert due_at <= datetime.now(UTC) + poll.WEBHOOK_TIME
    assert read_job(shop.db, job.id).state is JobState.SUBMITTED


@pytest.mark.both_databases
def test_follower_asks_about_one_job_once_in_its_pause(busy_shop) -> None:
    job, other = busy_shop.submit(), busy_shop.submit(prompt="another")
    clock = FakeClock(read_clock())
    follower = Follower(busy_shop.db, busy_shop.requests, clock)
    assert follower.ask_in_turn(job.id) is True
    assert follower.ask_in_turn(other.id) is False, "all followers share one turn"
    clock.move(ALL_PAUSE)
    assert follower.ask_in_turn(job.id) is False, "and those of one job another"
    assert follower.ask_in_turn(other.id) is True
    clock.move(JOB_PAUSE)
    assert follower.ask_in_turn(job.id) is True


def test_follower_asks_for_the_last_time_without_the_jobs_pause(busy_shop) -> None:
    job = busy_shop.submit()
    clock = FakeClock(read_clock())
    follower = Follower(busy_shop.db, busy_shop.requests, clock)
    assert follower.ask_in_turn(job.id) is True
    assert follower.ask_in_turn(job.id, is_last=True) is False
    clock.move(ALL_PAUSE)
    assert follower.ask_in_turn(job.id, is_last=True) is True


STATUS = {"status": "IN_PROGRESS", "request_id": "r", "logs": [{"message": "25%"}]}


def make_known(db: Database, number: int) -> Job:
    """A submitted job with a request id."""
    job = make_job(db, JobState.QUEUED, id=UUID(int=number))
    claim = Claim("tester:1", NOW, NOW + LEASE)
    with db.transaction() as connection:
        claimed = table.claim_job(connection, job.id, JobEvent.SUBMISSION_CLAIMED, claim)
        assert claimed is not None
        new = NewAttempt(UUID(int=number), attempts.hash_token(str(number)), NOW)
        attempt = attempts.insert_attempt(connection, claimed, new)
        assert attempts.adopt_request(connection, attempt, f"r-{number}")
        known = {"fal_request_id": f"r-{number}"}
        move = Move(NOW, NOW + MINUTE, columns=known)
        submitted = table.apply_event(connection, claimed, JobEvent.SUBMISSION_ACCEPTED, move)
    assert submitted is not None
    return submitted


@pytest.fixture
def ask_scripted(db) -> Iterator[Callable[..., list[str]]]:
    """Follows one job with a fal that answers as told; what it was asked."""
    clients: list[RequestClient] = []

    def ask(answer, *, times: int = 1, jobs: int = 1, moves: timedelta = JOB_PAUSE) -> list[str]:
        with run_server(answer) as server:
            clients.append(RequestClient(server.url, KEY))
            clock = FakeClock()
            follower = Follower(db, clients[-1], clock)
            known = [make_known(db, number + 1) for number in range(jobs)]
            for _ in range(times):
                call_together(*[lambda job=job: follower.ask_in_turn(job.id) for job in known])
                clock.move(moves)
            return [asked.target for asked in server.asked]

    yield ask
    for client in clients:
        client.close()


@pytest.mark.both_databases
def test_many_followers_at_once_ask_as_often_as_one(ask_scripted) -> None:
    asked = ask_scripted(send_json(STATUS, 202), jobs=8, times=3, moves=ALL_PAUSE)
    assert len(asked) <= 3
    assert len(asked) >= 1
    assert all(target.endswith("/status?logs=1") for target in asked)


def test_follower_keeps_logs_within_their_bound(db, ask_scripted) -> None:
    logs = [{"message": f"line {number}"} for number in range(1000)]
    ask_scripted(send_json({**STATUS, "logs": logs}, 202))
    (attempt,) = read_attempts(db, UUID(int=1))
    assert attempt.logs == logs[-MAX_ENTRIES:]


@pytest.mark.parametrize(
    "answer",
    [
        send_json({"detail": "away"}, 503),
        send_json({"status": "STRANGE"}, 200),
    ],
)
def test_follower_writes_nothing_of_what_it_does_not_know(db, ask_scripted, answer) -> None:
    assert len(ask_scripted(answer)) == 1
    (attempt,) = read_attempts(db, UUID(int=1))
    assert (attempt.fal_status, attempt.queue_position, attempt.logs) == (None, None, None)


def test_follower_does_not_wait_long_for_a_silent_fal(db, ask_scripted, monkeypatch) -> None:
    monkeypatch.setattr(poll, "STATUS_TIMEOUT", timedelta(seconds=0.2))
    before = read_clock()
    asked = ask_scripted(hang)
    assert len(asked) == 1
    assert read_clock() - before < timedelta(seconds=10)


def test_follower_keeps_the_last_logs_where_a_later_reply_has_none(db, ask_scripted) -> None:
    ended = {"status": "COMPLETED", "logs": [], "metrics": {"inference_time": 1.5}}
    replies = [STATUS, {**STATUS, "logs": None}, ended]

    def answer(handler) -> None:
        send_json(replies.pop(0))(handler)

    ask_scripted(answer, times=4)
    (attempt,) = read_attempts(db, UUID(int=1))
    assert (attempt.fal_status, attempt.logs) == ("COMPLETED", STATUS["logs"])
    assert attempt.inference_seconds == 1.5
    assert replies == [], "its last word is written, and is not asked for again"


@pytest.mark.both_databases
def test_word_that_comes_after_the_end_is_not_written(db) -> None:
    job = make_known(db, 1)
    (attempt,) = read_attempts(db, job.id)
    with db.transaction() as connection:
        attempts.complete_attempt(connection, attempt.id, Ending.OK, NOW)
        poll.record_progress(connection, attempt, Progress("IN_PROGRESS", 3))
    (attempt,) = read_attempts(db, job.id)
    assert (attempt.fal_status, attempt.queue_position) == ("COMPLETED", None)


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.SUBMITTING])
def test_follower_has_nothing_to_ask_without_a_request(db, state) -> None:
    client = RequestClient(f"http://127.0.0.1:{find_closed_port()}", KEY)
    job = make_job(db, state)
    assert Follower(db, client, FakeClock()).ask_in_turn(job.id) is True
    with db.reading() as connection:
        assert limits.find_gate(connection, FOLLOW_LIMIT) is None
    client.close()


@pytest.mark.both_databases
def test_poll_and_followers_at_once_leave_one_story(shop) -> None:
    job = shop.submit()
    shop.wait_for(job, "COMPLETED")
    call_together(*[lambda: shop.follow(job) for _ in range(4)], lambda: shop.reconcile(job))
    wait_until(lambda: read_job(shop.db, job.id).state is JobState.COMPLETED)
    assert shop.read_attempt(job).fal_status == "COMPLETED"

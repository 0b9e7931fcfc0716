"""The stages as a worker calls them, on one job table, one fal and one clock."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

from pydantic import JsonValue, SecretStr
from sqlalchemy import update

from tests.harness.clock import FakeClock
from tests.harness.jobs import (
    ENDPOINT,
    LEASE,
    NOW,
    REQUEST_ID,
    build_result,
    insert_job,
    read_attempts,
    read_job,
)
from worker.fal.completion import Completion
from worker.fal.options import RequestOptions
from worker.fal.platform import PlatformClient
from worker.fal.requests import RequestClient
from worker.fal.submit import Accepted, QueueClient, SubmitReply
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.settings import UnknownPolicy
from worker.jobs import admission, table
from worker.jobs.admission import ACCOUNT, Caps, Pause
from worker.jobs.models import JobRow, ObservedTimeRow
from worker.jobs.states import Doorbell, JobState, PauseCause, Step
from worker.jobs.values import Attempt, Event, Job
from worker.stages.admit import AdmissionPolicy, count_submissions
from worker.stages.cancel import Cancelled, cancel_job, cancel_requests
from worker.stages.complete import Receipt, receive_delivery, receive_hint
from worker.stages.poll import Reconciler
from worker.stages.redrive import redrive_job
from worker.stages.resolve import ResolvePolicy, Resolver
from worker.stages.submit import (
    Submission,
    SubmitPolicy,
    begin_submission,
    keep_reply,
    record_reply,
    submit_next,
)
from worker.stages.sweep import Swept, release_queued, sweep_jobs

POLL = timedelta(minutes=2)
UNKNOWN = timedelta(minutes=90)
RETRY = timedelta(days=1)
PROBE = timedelta(seconds=60)
SECOND = timedelta(seconds=1)
Clients = tuple[QueueClient, RequestClient, PlatformClient]
SUBMIT_TERMS = SubmitPolicy(
    worker="tester:1",
    # A port that nobody listens on: deliveries are made by the tests.
    webhook_base_url="http://127.0.0.1:9",
    options=RequestOptions(start_timeout=timedelta(hours=1), store_io=True),
    lease=LEASE,
    poll_after=POLL,
    retry_for=RETRY,
    probe_after=PROBE,
    admission=AdmissionPolicy(Caps(1000), ENDPOINT),
    longest_run=timedelta(minutes=31),
    account="tester",
)
RESOLVE_TERMS = ResolvePolicy(UNKNOWN, UnknownPolicy.RESUBMIT, 3, LEASE, account="tester")


@dataclass(frozen=True)
class Bench:
    """Calls one stage at a time, as the tasks do."""

    db: Database
    queue: QueueClient
    requests: RequestClient
    platform: PlatformClient
    clock: FakeClock = field(default_factory=FakeClock)
    submit_policy: SubmitPolicy = SUBMIT_TERMS
    resolve_policy: ResolvePolicy = RESOLVE_TERMS

    def resolving(self, **policy: object) -> "Bench":
        """The same under other terms of resolution."""
        return replace(self, resolve_policy=replace(self.resolve_policy, **policy))  # type: ignore[arg-type]

    @property
    def reconciler(self) -> Reconciler:
        policy = self.resolve_policy
        resolver = Resolver(self.db, self.requests, self.platform, policy, self.clock)
        return Reconciler(resolver, POLL)

    def insert(self, **columns: object) -> Job:
        return insert_job(self.db, now=self.clock(), **columns)

    def read(self, job: Job) -> Job:
        return read_job(self.db, job.id)

    def attempts(self, job: Job) -> list[Attempt]:
        return read_attempts(self.db, job.id)

    def events(self, job: Job) -> list[Event]:
        with self.db.reading() as connection:
            return table.list_events(connection, job.id)

    def reasons(self, job: Job) -> list[str]:
        return [event.reason for event in self.events(job)]

    def pause(self, cause: PauseCause = PauseCause.ACCOUNT) -> Pause | None:
        with self.db.reading() as connection:
            found = admission.list_pauses(connection, ACCOUNT)
        return next((one for one in found if one.cause is cause), None)

    # 2. submit

    def submit(self, job: Job | None = None) -> Job | None:
        """Submit the next job, or this one."""
        self.prefer(job)
        self.observe()
        submitted = submit_next(
            db=self.db, queue=self.queue, policy=self.submit_policy, clock=self.clock
        )
        if submitted is None:
            return None
        assert job is None or submitted.submission.job.id == job.id
        return submitted.job

    def prefer(self, job: Job | None) -> None:
        """Have this job be the next."""
        if job is not None:
            queued = update(JobRow).where(JobRow.state == JobState.QUEUED)
            with self.db.transaction() as connection:
                connection.execute(queued.where(JobRow.priority == 100).values(priority=99))
                connection.execute(queued.where(JobRow.id == job.id).values(priority=100))

    def observe(self) -> None:
        """Somebody has watched since the clock's beginning: observed time is the clock's."""
        seconds = (self.clock() - NOW).total_seconds()
        with self.db.transaction() as connection:
            connection.execute(update(ObservedTimeRow).values(seconds=seconds))

    def try_begin(self, job: Job | None) -> Submission | None:
        self.prefer(job)
        self.observe()
        submission = begin_submission(db=self.db, policy=self.submit_policy, clock=self.clock)
        assert submission is None or job is None or submission.job.id == job.id
        return submission

    def begin(self, job: Job) -> Submission:
        submission = self.try_begin(job)
        assert submission is not None
        return submission

    def reply(self, submission: Submission, reply: SubmitReply) -> Job | None:
        return record_reply(
            submission, reply, db=self.db, policy=self.submit_policy, clock=self.clock
        ).job

    def keep(self, submission: Submission, reply: SubmitReply) -> Job | None:
        """As `reply`, and again where the database could not."""
        return keep_reply(
            submission, reply, db=self.db, policy=self.submit_policy, clock=self.clock
        ).job

    def accept(self, submission: Submission, request_id: str = REQUEST_ID) -> Job | None:
        return self.reply(submission, Accepted(request_id, None, None, None))

    def make_submitted(self, request_id: str = REQUEST_ID, **columns: object) -> Job:
        """A job whose request fal has accepted."""
        job = self.accept(self.begin(self.insert(**columns)), request_id)
        assert job is not None
        return job

    def lose(self, submission: Submission) -> Job:
        """Its worker falls silent: a sweep makes the job unknown."""
        self.clock.move(LEASE + SECOND)
        for _ in range(9):  # more jobs may be overdue than one sweep takes
            self.sweep()
            job = self.read(submission.job)
            if job.state is JobState.SUBMISSION_UNKNOWN:
                return job
        raise AssertionError(f"still {job.state}")

    # 3. complete

    def deliver(self, submission: Submission, completion: Completion) -> Receipt:
        """A proven webhook with the attempt's token."""
        body = encode(completion)
        return receive_delivery(
            submission.token, completion, body, db=self.db, dispatch_timeout=LEASE, clock=self.clock
        )

    def hint(self, submission: Submission, completion: Completion) -> Receipt:
        body = encode(completion)
        return receive_hint(submission.token, completion, body, db=self.db, clock=self.clock)

    # beside the path

    def reconcile(self, job: Job) -> list[Doorbell]:
        self.observe()
        return self.reconciler.reconcile_job(job.id)

    def cancel(self, job: Job) -> Cancelled:
        return cancel_job(job.id, db=self.db, clock=self.clock)

    def cancel_requests(self, job: Job) -> None:
        cancel_requests(
            job.id,
            db=self.db,
            requests=self.requests,
            give_up_after=self.resolve_policy.unknown_after,
            clock=self.clock,
        )

    def redrive(self, job: Job, *, pay_again: bool = False) -> Job:
        return redrive_job(
            job.id, db=self.db, pay_again=pay_again, dispatch_timeout=LEASE, clock=self.clock
        )

    def sweep(self) -> Swept:
        """A pass: rows that are due, and as many submissions as there is room for."""
        release_queued(db=self.db, clock=self.clock)
        swept = sweep_jobs(db=self.db, lease=LEASE, clock=self.clock)
        policy = self.submit_policy.admission
        wanted = count_submissions(db=self.db, policy=policy, most=50, clock=self.clock)
        return Swept(swept.rows, [*swept.doorbells, *[Doorbell(Step.SUBMIT)] * wanted])

    def publish(self, doorbell: Doorbell) -> list[Doorbell]:
        """Do what the doorbell asks for; downloads are not made here."""
        if doorbell.step is Step.SUBMIT:
            self.submit()
            return []
        assert doorbell.job_id is not None
        job = read_job(self.db, doorbell.job_id)
        match doorbell.step:
            case Step.RECONCILE:
                return self.reconcile(job)
            case Step.CANCEL:
                self.cancel_requests(job)
            case Step.ARCHIVE | Step.SUBMIT:
                pass
        return []

    def turn(self) -> list[Doorbell]:
        """One round of a deployment: sweep, and answer every doorbell; which ones there were."""
        published: list[Doorbell] = []
        waiting = list(self.sweep().doorbells)
        while waiting:
            doorbell = waiting.pop(0)
            published.append(doorbell)
            waiting += self.publish(doorbell)
        return published

    def live(self, span: timedelta, step: timedelta = timedelta(minutes=1)) -> None:
        """Let so much time go by, with a round after each step."""
        end = self.clock() + span
        while self.clock() < end:
            self.clock.move(min(step, end - self.clock()))
            self.turn()


def submit_job(
    job: Job, *, db: Database, queue: QueueClient, policy: SubmitPolicy, clock: Clock = read_clock
) -> Job | None:
    """As the task does, where the next job has to be this one."""
    submitted = submit_next(db=db, queue=queue, policy=policy, clock=clock)
    assert submitted is None or submitted.submission.job.id == job.id
    return None if submitted is None else submitted.job


def build_completion(request_id: str = REQUEST_ID, payload: JsonValue = None) -> Completion:
    """A success, with the usual video if no other is given."""
    return Completion(request_id, request_id, "OK", payload or build_result(), None)


def build_failure(
    request_id: str = REQUEST_ID, code: str = "bad_video", error: str = "failed"
) -> Completion:
    payload: JsonValue = {"detail": error, "error_type": code}
    return Completion(request_id, request_id, "ERROR", payload, error)


def build_empty(request_id: str = REQUEST_ID) -> Completion:
    """A completion whose result fal could not put into the message."""
    return Completion(request_id, request_id, "OK", None, None, "the payload is too large")


def encode(completion: Completion) -> bytes:
    fields = (completion.fal_request_id, completion.status, completion.payload, completion.error)
    return json.dumps(fields).encode()


@contextmanager
def open_clients(fal_url: str, key: str = "emulator-key") -> Iterator[Clients]:
    credentials = SecretStr(key)
    clients = (
        QueueClient(fal_url, credentials),
        RequestClient(fal_url, credentials),
        PlatformClient(f"{fal_url}/v1", credentials),
    )
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def find_attempt(bench: Bench, submission: Submission) -> Attempt:
    """The attempt as it is now."""
    return next(one for one in bench.attempts(submission.job) if one.id == submission.attempt.id)

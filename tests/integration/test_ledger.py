"""Sixty jobs that end in every way there is: our ledger is fal's bill, to the nano-dollar."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.emulator.processes import Emulator, start_emulator
from tests.harness.archiving import archive_locally
from tests.harness.clock import FakeClock
from tests.harness.commands import build_run
from tests.harness.jobs import ENDPOINT
from tests.harness.stages import SECOND, UNKNOWN, Bench, build_completion, open_clients
from tests.harness.waiting import wait_until
from worker.fal.billing import BillingClient
from worker.ground.clock import read_clock
from worker.ground.db import Database
from worker.jobs import admission, charges
from worker.jobs.admission import ACCOUNT, Caps
from worker.jobs.charges import Source
from worker.jobs.states import JobState, PauseCause
from worker.jobs.values import Attempt, Job
from worker.ops.spend import BILLS_PAUSE, fetch_bills, fetch_units
from worker.stages.admit import AdmissionPolicy
from worker.stages.resolve import SEARCH_PAUSE
from worker.stages.submit import Submission, submit_next
from worker.stages.sweep import settle_charges

EACH = 5
PRICE = 1_605_000
ADMIN = "emulator-admin"
FRAMES = (9, 121, 241)
LONG = 3600
# By the beginning of the prompt.
FAULTS: Mapping[str, Mapping[str, object]] = {
    "refused": {"point": "output", "kind": "failure", "code": 422},
    "bought-again": {"point": "output", "kind": "failure", "code": 422, "times": EACH},
    "broken": {"point": "output", "kind": "failure", "code": 500},
    "rejected": {"point": "submit", "kind": "status", "code": 400},
    "cancelled-in-queue": {"point": "submit", "kind": "slow", "queue_seconds": LONG},
    "cancelled-running": {"point": "submit", "kind": "slow", "run_seconds": 2},
    "never-started": {"point": "submit", "kind": "slow", "queue_seconds": LONG, "times": EACH},
    "reply-lost": {"point": "submit", "kind": "execute_then_drop"},
    "never-arrived": {"point": "submit", "kind": "drop", "times": EACH},
    "late": {"point": "submit", "kind": "execute_then_drop", "times": EACH},
}
KINDS = ("delivered", "polled", *FAULTS)
REFUSALS = {"point": "billing", "kind": "billed_refusals"}
LISTS_NOTHING = {"point": "listing", "kind": "empty"}


@dataclass
class Books:
    """Jobs at an emulator of their own, and what becomes of them."""

    bench: Bench
    emulator: Emulator
    jobs: dict[str, list[Job]] = field(default_factory=dict)
    begun: dict[str, list[Submission]] = field(default_factory=dict)

    @property
    def db(self) -> Database:
        return self.bench.db

    def insert(self, kind: str) -> None:
        fields = [
            {
                "prompt": f"{kind} {number}",
                "video_url": self.emulator.sample_url,
                "num_frames": FRAMES[number % len(FRAMES)],
                "num_context_frames": 5,
                "seed": number,
            }
            for number in range(EACH)
        ]
        self.jobs[kind] = [self.bench.insert(input=one, tenant="one") for one in fields]

    def submit(self, kind: str, start_timeout: timedelta | None = None) -> None:
        policy = self.bench.submit_policy
        if start_timeout is not None:
            options = policy.options.model_copy(update={"start_timeout": start_timeout})
            policy = replace(policy, options=options)
        self.begun.setdefault(kind, [])
        for job in self.jobs[kind]:
            with self.db.transaction() as connection:  # lost replies in a row are meant here
                admission.remove_pause(connection, ACCOUNT, PauseCause.AMBIGUOUS)
            self.bench.prefer(job)
            self.bench.observe()
            submitted = submit_next(
                db=self.db,
                queue=self.bench.queue,
                policy=policy,
                clock=self.bench.clock,
                on_admitted=self.begun[kind].append,
            )
            assert submitted is not None
            assert submitted.submission.job.id == job.id

    def read(self, kind: str) -> list[Job]:
        return [self.bench.read(job) for job in self.jobs[kind]]

    def find_attempts(self, kind: str) -> list[Attempt]:
        """The newest of each job."""
        return [self.bench.attempts(job)[-1] for job in self.jobs[kind]]

    def wait_for_ends(self, kind: str) -> None:
        for attempt in self.find_attempts(kind):
            self.emulator.wait_for_status(str(attempt.fal_request_id), "COMPLETED")

    def poll(self, *kinds: str) -> None:
        """Once fal has finished."""
        for kind in kinds:
            self.wait_for_ends(kind)
            for job in self.jobs[kind]:
                self.bench.reconcile(job)

    def reconcile_until(self, kind: str, state: JobState) -> None:
        def reconcile() -> bool:
            self.bench.clock.move(SEARCH_PAUSE + SECOND)
            for job in self.jobs[kind]:
                self.bench.reconcile(job)
            return all(job.state is state for job in self.read(kind))

        wait_until(reconcile)

    def cancel(self, kind: str) -> None:
        for job in self.jobs[kind]:
            self.bench.cancel(job)
            self.bench.cancel_requests(job)

    def settle(self) -> None:
        settle_charges(self.bench.submit_policy.admission, db=self.db, clock=self.bench.clock)


def list_faults() -> list[Mapping[str, object]]:
    return [{**fault, "match": {"prompt": f"{kind} "}} for kind, fault in FAULTS.items()]


@pytest.fixture
def books(db, tmp_path: Path) -> Iterator[Books]:
    options = ("--render", "fake", "--concurrency", "32", "--webhook-retry-seconds", "3600")
    with (
        start_emulator(tmp_path / "fal", *options) as emulator,
        open_clients(emulator.url) as clients,
    ):
        bench = Bench(db, *clients, clock=FakeClock(read_clock()))
        policy = AdmissionPolicy(Caps(1000), ENDPOINT, PRICE)
        terms = replace(bench.submit_policy, admission=policy)
        books = Books(replace(bench, submit_policy=terms), emulator)
        emulator.order(REFUSALS, *list_faults())
        yield books
        emulator.order()


@pytest.mark.both_databases
@pytest.mark.slow  # sixty jobs and more, each at an emulator over HTTP
def test_whatever_the_end_the_ledger_is_fals_bill(
    books, tmp_path, monkeypatch, capsys, database_url
):
    for kind in KINDS:
        books.insert(kind)
    end_as_usual(books, tmp_path)
    end_by_cancellation(books)
    end_after_a_lost_reply(books)
    assert_every_kind_ended_as_meant(books)

    client = BillingClient(f"{books.emulator.url}/v1", SecretStr(ADMIN))
    books.bench.clock.move(BILLS_PAUSE)
    while fetch_bills(client, db=books.db, clock=books.bench.clock):
        books.bench.clock.move(BILLS_PAUSE)
    client.close()
    books.settle()
    assert_ledger_is_the_bill(books)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("FAL_PLATFORM_URL", f"{books.emulator.url}/v1")
    monkeypatch.setenv("FAL_ADMIN_KEY", ADMIN)
    ended = build_run(monkeypatch, capsys)("costs", "--reconcile", "--json")
    assert (ended.code, ended.json["differences"]) == (0, [])
    assert_ledger_is_the_bill(books)


def end_as_usual(books: Books, directory: Path) -> None:
    for kind in ("delivered", "polled", "refused", "bought-again", "broken", "rejected"):
        books.submit(kind)
    books.submit("never-started", SECOND)
    books.poll("polled", "refused", "bought-again", "broken", "never-started")
    books.submit("never-started")
    books.poll("never-started")
    books.jobs["bought-again"] = [
        books.bench.redrive(job, pay_again=True) for job in books.jobs["bought-again"]
    ]
    books.submit("bought-again")
    books.poll("bought-again")
    archive = archive_locally(
        books.db, directory / "archive", books.emulator.url.removeprefix("http://")
    )
    books.wait_for_ends("delivered")
    for submission in books.begun["delivered"]:
        [attempt] = books.bench.attempts(submission.job)
        deliver(books, submission, str(attempt.fal_request_id))
        job = archive(books.bench.read(submission.job), clock=books.bench.clock)
        assert job is not None
        assert job.state is JobState.ARCHIVED, job.blocked_reason
        fetch_units(job, requests=books.bench.requests, db=books.db, clock=books.bench.clock)
        books.settle()
        with books.db.reading() as connection:
            charge = charges.find_charge(connection, attempt.id)
        assert charge is not None
        assert charge.source == Source.UNITS


def deliver(books: Books, submission: Submission, request_id: str) -> None:
    result = books.emulator.get_result(request_id).json()
    books.bench.deliver(submission, build_completion(request_id, result))


def end_by_cancellation(books: Books) -> None:
    for kind in ("cancelled-in-queue", "cancelled-running"):
        books.submit(kind)
    for attempt in books.find_attempts("cancelled-running"):
        books.emulator.wait_for_status(str(attempt.fal_request_id), "IN_PROGRESS")
    for kind in ("cancelled-in-queue", "cancelled-running"):
        books.cancel(kind)
        books.poll(kind)


def end_after_a_lost_reply(books: Books) -> None:
    books.submit("reply-lost")
    books.reconcile_until("reply-lost", JobState.COMPLETED)
    for kind in ("never-arrived", "late"):
        books.submit(kind)
    wait_until(lambda: all(one["status"] == "COMPLETED" for one in books.emulator.list_requests()))
    books.emulator.order(REFUSALS, LISTS_NOTHING)
    books.bench.clock.move(UNKNOWN)
    for kind in ("never-arrived", "late"):
        books.reconcile_until(kind, JobState.QUEUED)
        books.submit(kind)
        books.poll(kind)
    books.emulator.order(REFUSALS)
    lost = {str(one["input"]["prompt"]): one["request_id"] for one in reversed(list_late(books))}
    for submission in books.begun["late"][:EACH]:
        deliver(books, submission, lost[submission.job.input["prompt"]])


def list_late(books: Books) -> list[dict[str, Any]]:
    """Requests of the kind of which our first attempts know nothing, oldest first."""
    listed = books.emulator.list_requests()
    return [one for one in listed if str(one["input"]["prompt"]).startswith("late ")]


def assert_every_kind_ended_as_meant(books: Books) -> None:
    ends = {
        "delivered": "archived",
        "refused": "failed",
        "broken": "failed",
        "rejected": "failed",
        "cancelled-in-queue": "cancelled",
    }
    found = {kind: {job.state.value for job in books.read(kind)} for kind in KINDS}
    assert found == {kind: {ends.get(kind, "completed")} for kind in KINDS}
    twice = ("bought-again", "never-started", "never-arrived", "late")
    attempts = {
        kind: [len(books.bench.attempts(job)) for job in books.jobs[kind]] for kind in KINDS
    }
    assert attempts == {kind: [2 if kind in twice else 1] * EACH for kind in KINDS}


def assert_ledger_is_the_bill(books: Books) -> None:
    bill = read_bill(books.emulator)
    with books.db.reading() as connection:
        known = charges.find_by_requests(connection, list(bill))
        days = dict(charges.sum_days(connection))
        spent = sum(charges.read_spent(connection, day)[ACCOUNT] for day in days)
        lines = charges.sum_costs(connection, charges.CostKey.TENANT, None)
    assert {one: charge.counted_nano_usd for one, charge in known.items()} == bill
    assert sum(days.values()) == spent == sum(bill.values())
    [line] = lines
    assert (line.settled_nano_usd, line.reserved_nano_usd) == (spent, 0)
    # All but those that fal refused, broke, never had or never started; of `late` both.
    assert len(bill) == (len(KINDS) + 2 - 3) * EACH


def read_bill(emulator: Emulator) -> dict[str, int]:
    """In nano-USD by request."""
    admin = {"Authorization": f"Key {ADMIN}"}
    answered = emulator.client.get(
        "/v1/models/billing-events", params={"limit": "10000"}, headers=admin
    )
    events = json.loads(answered.text)["billing_events"]
    return {one["request_id"]: one["cost_estimate_nano_usd"] for one in events}

"""Three hundred jobs that end in every way there is: our ledger and fal's bill agree to the end."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from tests.harness.processes import THREADS, WorkerPlan
from tests.harness.waiting import wait_until
from tests.soak.admission.crowd import Crowd, build_request, run_crowd

WORKERS: WorkerPlan = dict.fromkeys(("one", "two"), THREADS)
CAP = 24
ACCOUNT = ("--concurrency", "20", "--run-seconds", "0.2", "--webhook-retry-seconds", "0.2")
SETTINGS = {
    "MAX_IN_FLIGHT": str(CAP),
    "START_TIMEOUT_SECONDS": "20",
    "UNKNOWN_SECONDS": "40",
    # Of the same account; it may read the bill.
    "FAL_KEY": "emulator-admin",
}
SECONDS = 600.0
SIZES = (
    "auto",
    "landscape_16_9",
    {"width": 128, "height": 96},
    {"width": 640, "height": 480},
)
"""Estimates below and above the bill, which is for the emulator's own clip."""
FRAMES = (9, 121, 241, 481)

KINDS: Mapping[str, int] = {
    "good": 165,
    "unreported": 15,
    "reply-lost": 15,
    "post-lost": 6,
    "refused": 15,
    "broken": 15,
    "rejected": 15,
    "elsewhere": 10,
    "never-started": 5,
    "expired": 10,
    "cancelled-here": 14,
    "cancelled-in-queue": 10,
    "cancelled-running": 5,
}
"""Each is a tenant, by which the emulator knows what is to become of a request."""
CANCELLED_AT_FAL = ("cancelled-in-queue", "cancelled-running")
EXPIRES_AFTER = timedelta(seconds=5)
LONG = 3600
RUNS_ON_SECONDS = 30
FAULTS: Mapping[str, Mapping[str, object]] = {
    "unreported": {"point": "webhook", "kind": "lost"},
    "reply-lost": {"point": "submit", "kind": "execute_then_drop"},
    "post-lost": {"point": "submit", "kind": "drop", "times": KINDS["post-lost"]},
    "refused": {"point": "output", "kind": "failure", "code": 422},
    "broken": {"point": "output", "kind": "failure", "code": 500},
    # Paid, and never to be had: its host is none of FAL_MEDIA_HOSTS.
    "elsewhere": {
        "point": "output",
        "kind": "odd_fields",
        "merge": {"video": {"url": "http://media.invalid/video.mp4"}},
    },
    "rejected": {"point": "submit", "kind": "status", "code": 400},
    "never-started": {
        "point": "submit",
        "kind": "slow",
        "queue_seconds": LONG,
        "times": KINDS["never-started"],
    },
    "cancelled-in-queue": {"point": "submit", "kind": "slow", "queue_seconds": LONG},
    "cancelled-running": {"point": "submit", "kind": "slow", "run_seconds": RUNS_ON_SECONDS},
}
BILLED_REFUSALS = {"point": "billing", "kind": "billed_refusals"}
OURS = """SELECT attempts.fal_request_id, charges.billed_nano_usd
    FROM charges JOIN attempts ON attempts.id = charges.attempt_id
    WHERE charges.voided_at IS NULL"""
OPEN = "SELECT count(*) AS n FROM charges WHERE settled_at IS NULL AND voided_at IS NULL"


@pytest.fixture
def crowd(request, tmp_path, own_url) -> Iterator[Crowd]:
    with run_crowd(request, tmp_path, own_url, WORKERS, *ACCOUNT, **SETTINGS) as crowd:
        yield crowd


@pytest.mark.timeout(1500)
def test_every_way_to_end_costs_in_our_ledger_what_it_costs_on_fals_bill(crowd):
    crowd.emulator.order(BILLED_REFUSALS, *list_faults())
    # At fal all at once: before the others come, which would be in their way.
    crowd.enqueue(*build_all(CANCELLED_AT_FAL))
    wait_until(lambda: all(is_all_at_fal(crowd, tenant) for tenant in CANCELLED_AT_FAL), SECONDS)
    for tenant in CANCELLED_AT_FAL:
        crowd.run("cancel", "--tenant", tenant, "--yes")
    with nobody_buying(crowd):
        crowd.enqueue(*build_all(KINDS.keys() - CANCELLED_AT_FAL))
        crowd.run("cancel", "--tenant", "cancelled-here", "--yes")
        last = datetime.now(UTC) + EXPIRES_AFTER
        wait_until(lambda: datetime.now(UTC) > last)
    crowd.wait_for_ends(sum(KINDS.values()), SECONDS)
    wait_until(lambda: all_ended(crowd), SECONDS)
    wait_until(lambda: crowd.table.select(OPEN)[0]["n"] == 0, SECONDS)

    bill = read_bill(crowd)
    ours = {row["fal_request_id"]: row["billed_nano_usd"] for row in crowd.table.select(OURS)}
    assert_every_kind_ended_as_meant(crowd)
    assert ours == bill
    assert sum(ours.values()) == sum(bill.values()) > 0
    assert crowd.read_ledger().most_at_once <= CAP
    crowd.run("costs", "--reconcile")
    crowd.run("doctor")


@contextmanager
def nobody_buying(crowd: Crowd) -> Iterator[None]:
    with ExitStack() as stack:
        for name in WORKERS:
            stack.enter_context(crowd.deployment.yard.parts[name].standing_still())
        yield


def build_all(kinds: Collection[str]) -> list[dict[str, object]]:
    """In an order that mixes the kinds, the same each time."""
    dice = Random(5)
    expires_at = datetime.now(UTC) + EXPIRES_AFTER
    options = {"expired": {"expires_at": expires_at.isoformat()}}
    requests = [
        build_request(
            kind,
            num_frames=dice.choice(FRAMES),
            video_size=dice.choice(SIZES),
            **options.get(kind, {}),
        )
        for kind, count in KINDS.items()
        if kind in kinds
        for _ in range(count)
    ]
    dice.shuffle(requests)
    return requests


def list_faults() -> list[dict[str, object]]:
    return [{**fault, "match": {"prompt": f"tenant={kind} "}} for kind, fault in FAULTS.items()]


def count_state(crowd: Crowd, tenant: str, state: str) -> int:
    return sum(job["state"] == state for job in crowd.table.list_jobs(tenant))


def is_all_at_fal(crowd: Crowd, tenant: str) -> bool:
    return count_state(crowd, tenant, "submitted") == KINDS[tenant]


def all_ended(crowd: Crowd) -> bool:
    """At fal, too: a run that was cancelled too late goes on, and is billed when it ends."""
    return all(one["status"] == "COMPLETED" for one in crowd.emulator.list_requests())


def read_bill(crowd: Crowd) -> dict[str, int]:
    """Nano-USD by request."""
    answered = crowd.emulator.client.get(
        "/v1/models/billing-events",
        params={"limit": "10000"},
        headers={"Authorization": f"Key {SETTINGS['FAL_KEY']}"},
    )
    events: list[dict[str, Any]] = json.loads(answered.text)["billing_events"]
    return {one["request_id"]: one["cost_estimate_nano_usd"] for one in events}


def assert_every_kind_ended_as_meant(crowd: Crowd) -> None:
    ends = {
        # A run that goes on in spite of its cancellation is paid, and so its video is kept.
        "archived": (
            *("good", "unreported", "reply-lost", "post-lost", "never-started"),
            "cancelled-running",
        ),
        "failed": ("refused", "broken", "rejected", "elsewhere", "expired"),
        "cancelled": ("cancelled-here", "cancelled-in-queue"),
    }
    meant = {(kind, state): KINDS[kind] for state, kinds in ends.items() for kind in kinds}
    rows = crowd.table.select(
        "SELECT tenant, state, count(*) AS n FROM jobs GROUP BY tenant, state"
    )
    assert {(row["tenant"], row["state"]): row["n"] for row in rows} == meant

"""Sixteen workers at once: never one request above the cap, never one above the budget."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from celery import Celery

from tests.harness.processes import WorkerPlan
from tests.harness.waiting import wait_until
from tests.soak.admission.crowd import OTHERS, UNIT_PRICE, Crowd, build_requests, run_crowd

SUBMIT = "extend_video.submit"
SUBMITTERS = 16
WORKERS: WorkerPlan = {
    **{f"submitter-{number:02}": ("-P", "solo", "-Q", SUBMIT) for number in range(SUBMITTERS)},
    **OTHERS,
}
CAP = 5
JOBS = 500
ROUNDS = int(os.environ.get("RACE_ROUNDS", "20"))
SECONDS_A_ROUND = 300.0
REFUSED = {"point": "output", "kind": "failure", "code": 422}
AFFORDED = 10
"""Jobs, of one megapixel each."""
WISHED = 40
IDLE_SWEEPS = 3
BUSY_FAL = ("--concurrency", "40", "--run-seconds", "0.5", "--webhook-retry-seconds", "0.2")
"""It would run whatever came above a cap of ours."""
BREATH_SECONDS = 0.25


@pytest.fixture
def crowd(request, tmp_path, own_url) -> Iterator[Crowd]:
    with run_crowd(request, tmp_path, own_url, WORKERS, *BUSY_FAL, MAX_IN_FLIGHT=str(CAP)) as crowd:
        yield crowd


@pytest.fixture
def crowd_on_a_budget(request, tmp_path, own_url) -> Iterator[Crowd]:
    """The price is known, and the day does not end meanwhile."""
    if datetime.now(UTC).date() != (datetime.now(UTC) + timedelta(minutes=15)).date():
        pytest.skip("NOT RUN: a day's budget is renewed within the next minutes")
    with run_crowd(
        request,
        tmp_path,
        own_url,
        WORKERS,
        *BUSY_FAL,
        MAX_IN_FLIGHT=str(SUBMITTERS),
        FAL_UNIT_PRICE_USD=UNIT_PRICE,
        DAILY_BUDGET_USD=multiply_price(AFFORDED),
    ) as crowd:
        yield crowd


def multiply_price(jobs: int) -> str:
    """In USD; whole nano-USD, as no float has them."""
    nano = jobs * int(UNIT_PRICE.partition(".")[2].ljust(9, "0"))
    return f"{nano // 10**9}.{nano % 10**9:09}"


@contextmanager
def all_trying(crowd: Crowd) -> Iterator[None]:
    """One message for each submitter comes again and again: all look for room at the same time."""
    enough = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        trying = thread.submit(send_doorbells, crowd, enough)
        try:
            yield
        finally:
            enough.set()
        trying.result()


def send_doorbells(crowd: Crowd, enough: threading.Event) -> None:
    with (
        Celery("crier", broker=crowd.broker.url, set_as_current=False) as celery,
        crowd.broker.connect() as redis,
    ):
        while not enough.wait(BREATH_SECONDS):
            if redis.llen(SUBMIT) < SUBMITTERS:
                for _ in range(SUBMITTERS):
                    celery.send_task(SUBMIT, args=[str(uuid4())], queue=SUBMIT)


@pytest.mark.timeout(int(ROUNDS * SECONDS_A_ROUND))
def test_sixteen_workers_never_have_one_request_more_at_fal_than_the_cap(crowd):
    """Each run is refused by the model, for what comes after it is no part of the race."""
    crowd.emulator.order(REFUSED)
    with all_trying(crowd):
        for number in range(1, ROUNDS + 1):
            crowd.enqueue(*build_requests(JOBS))
            crowd.wait_for_ends(number * JOBS, SECONDS_A_ROUND)
            assert crowd.read_ledger().most_at_once <= CAP, f"in round {number}"

    ledger = crowd.read_ledger()
    # Where five never met, nothing was raced for.
    assert ledger.most_at_once == CAP
    assert ledger.list_paid_twice() == []
    assert len(ledger.posts) == ROUNDS * JOBS


@pytest.mark.timeout(900)
def test_sixteen_workers_never_buy_one_job_more_than_the_budget_until_it_is_raised(
    crowd_on_a_budget,
):
    crowd = crowd_on_a_budget
    with all_trying(crowd):
        crowd.enqueue(*build_requests(WISHED))
        crowd.wait_for_ends(AFFORDED, SECONDS_A_ROUND)
    sweep_in_vain(crowd)

    assert len(crowd.read_ledger().posts) == AFFORDED
    assert crowd.count_states() == {"archived": AFFORDED, "queued": WISHED - AFFORDED}
    assert list_reasons(crowd) == ["budget"] * (WISHED - AFFORDED)

    crowd.run("limits", "set", "account", "--daily-budget", multiply_price(2 * AFFORDED))
    crowd.wait_for_ends(2 * AFFORDED, SECONDS_A_ROUND)
    sweep_in_vain(crowd)
    assert len(crowd.read_ledger().posts) == 2 * AFFORDED


def sweep_in_vain(crowd: Crowd) -> None:
    """Whatever a sweep publishes is received before the next one."""
    for _ in range(IDLE_SWEEPS):
        crowd.run("sweep")
        wait_until(lambda: count_messages(crowd) == 0, 60)


def count_messages(crowd: Crowd) -> int:
    """That nobody has received yet, or not answered for."""
    with crowd.broker.connect() as redis:
        return int(redis.llen(SUBMIT)) + int(redis.hlen("unacked"))


def list_reasons(crowd: Crowd) -> list[str]:
    return [row["blocked_by"] for row in crowd.table.select("SELECT blocked_by FROM jobs_waiting")]

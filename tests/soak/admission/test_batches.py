"""A batch far beyond what the account runs at once, of two tenants, without and with kills."""

from collections.abc import Iterator
from random import Random

import psutil
import pytest

from tests.harness.processes import Part, WorkerPlan
from tests.harness.waiting import wait_until
from tests.soak.admission.crowd import POOLS, READY_SECONDS, Crowd, build_requests, run_crowd

CAP = 2
BIG, SMALL = 80, 4
ACCOUNT = ("--concurrency", str(CAP), "--run-seconds", "0.4", "--webhook-retry-seconds", "0.2")
"""With the time that a start takes: 0.4 to 0.5 s a run."""
KILLS = 25
POSTS_BETWEEN = 3
MOMENTS = (None, "submit_received", "submit_queued", "webhook_sending", "cdn_half")
"""Of the path, at which a worker is killed; None: whenever it happens."""
SECONDS = 240.0


@pytest.fixture(params=list(POOLS))
def workers(request: pytest.FixtureRequest) -> WorkerPlan:
    """Two, for every queue."""
    return dict.fromkeys(("one", "two"), POOLS[request.param])


@pytest.fixture
def crowd(request, tmp_path, own_url, workers) -> Iterator[Crowd]:
    with run_crowd(request, tmp_path, own_url, workers, *ACCOUNT, MAX_IN_FLIGHT=str(CAP)) as crowd:
        yield crowd


def enqueue_both(crowd: Crowd) -> None:
    """The small tenant's last."""
    crowd.enqueue(*build_requests(BIG, "big"), *build_requests(SMALL, "small"))


def assert_all_archived_within_the_cap(crowd: Crowd) -> None:
    ledger = crowd.read_ledger()
    assert crowd.count_states() == {"archived": BIG + SMALL}
    assert ledger.most_at_once <= CAP
    assert ledger.list_paid_twice() == []
    wait_until(lambda: crowd.list_slots() == [])


def count_archived_before_small(crowd: Crowd) -> int:
    """How many of the big tenant's were archived when the small one's last was."""
    last = max(job["archived_at"] for job in crowd.table.list_jobs("small"))
    return sum(job["archived_at"] < last for job in crowd.table.list_jobs("big"))


@pytest.mark.timeout(600)
def test_batch_beyond_the_accounts_pace_is_archived_whole_and_no_tenant_waits_for_another(crowd):
    enqueue_both(crowd)
    crowd.wait_for_ends(BIG + SMALL, SECONDS)

    assert_all_archived_within_the_cap(crowd)
    assert len(crowd.read_ledger().posts) == BIG + SMALL
    assert count_archived_before_small(crowd) < BIG / 3
    crowd.run("doctor")


@pytest.mark.timeout(1200)
def test_killed_workers_leave_no_slot_behind_exceed_no_cap_and_pay_nothing_twice(crowd):
    chance = Random(7)
    enqueue_both(crowd)
    amid_work = 0
    for number in range(KILLS):
        wait_for_posts(crowd, POSTS_BETWEEN * (number + 1))
        amid_work += crowd.count_ended() < BIG + SMALL
        strike(crowd, chance)
    assert amid_work == KILLS
    crowd.deployment.start_missing()
    crowd.wait_for_ends(BIG + SMALL, SECONDS)

    assert_all_archived_within_the_cap(crowd)
    crowd.run("doctor")


def wait_for_posts(crowd: Crowd, count: int) -> None:
    """Or until there is nothing left to be bought: what is killed then archives."""
    wait_until(
        lambda: crowd.count_posts() >= count or crowd.count_ended() == BIG + SMALL, READY_SECONDS
    )


def strike(crowd: Crowd, chance: Random) -> None:
    """Kill one that is ready: the whole worker, or a process of its pool."""
    moment = chance.choice(MOMENTS)
    if moment is not None and crowd.count_ended() < BIG:
        crowd.emulator.arm({"point": moment, "times": 1})
        crowd.emulator.wait_for_held()
    wait_until(lambda: list_ready(crowd), READY_SECONDS)
    victim = chance.choice(list_ready(crowd))
    pool = list_pool(victim)
    if pool and chance.random() < 0.5:
        chance.choice(pool).kill()
    else:
        victim.kill()
        crowd.deployment.start_workers()
    crowd.emulator.arm()


def list_ready(crowd: Crowd) -> list[Part]:
    parts = [crowd.deployment.yard.parts[name] for name in crowd.deployment.workers]
    return [part for part in parts if part.is_running and " ready." in part.read_log()]


def list_pool(part: Part) -> list[psutil.Process]:
    """The worker's processes: of prefork alone has it any."""
    return list(psutil.Process(part.process.pid).children())

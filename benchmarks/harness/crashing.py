"""Kill workers while jobs are paid for, and see what becomes of the jobs; alike for any engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from time import monotonic
from typing import Protocol
from uuid import UUID

from tests.chaos.judge import read_charges
from tests.chaos.site import read_ids
from tests.emulator.processes import Emulator
from tests.harness.processes import Part
from tests.harness.waiting import PAUSE

LOOK_SECONDS = 0.1
PRODUCER_SECONDS = 300
EMULATOR = ("--render", "fake", "--concurrency", "1000", "--run-seconds", "0.3")
SLOW_REPLY = {"point": "submit", "kind": "late", "seconds": 0.1}
"""The request is queued, and paid, at once: so long its caller does not know of it."""


@dataclass(frozen=True, slots=True)
class Size:
    """So many jobs, so many in a second, and kills.

    A kill comes within `spread` seconds after a payment. Jobs are given up when for `timeout`
    seconds none was paid for or recorded.
    """

    jobs: int
    pace: float
    kills: int
    spread: float
    timeout: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one crowd of jobs.

    `drain_seconds` are from the last kill, or the last job request if that came later, until all
    that was going to be recorded was.
    """

    kills: int
    lost: int
    lost_paid: int
    paid_twice: int
    drain_seconds: float


class Engine(Protocol):
    """An engine with its worker, at the emulator."""

    @property
    def emulator(self) -> Emulator: ...

    def produce(self, count: int, pace: float) -> Part:
        """Start a process that enqueues, and tells the id of each job it has enqueued."""

    def kill(self) -> None:
        """SIGKILL the worker, and start it again at once."""

    def list_recorded(self) -> set[UUID]:
        """The jobs whose video was downloaded and written down."""


def run_round(engine: Engine, size: Size, seed: int) -> Outcome:
    """Enqueue, kill at the moments that the seed draws, and wait until nothing moves."""
    draw = Random(seed)  # noqa: S311 - moments, not a secret
    producer, kills, last = engine.produce(size.jobs, size.pace), 0, monotonic()
    while kills < size.kills and wait_for_payment(engine, producer, size.timeout):
        PAUSE.wait(draw.uniform(0, size.spread))
        engine.kill()
        kills, last = kills + 1, monotonic()
    if producer.is_running:
        assert producer.wait(PRODUCER_SECONDS) == 0, producer.read_log()  # noqa: S101 - a broken run
        last = monotonic()
    ids = read_ids(producer)
    ended = wait_for_records(engine, ids, size.timeout)
    return judge(engine, ids, kills, max(0.0, ended - last))


def wait_for_payment(engine: Engine, producer: Part, timeout: float) -> bool:
    """Until one more job is paid for; False if none is."""
    before, began = count_payments(engine.emulator), monotonic()
    while count_payments(engine.emulator) == before:
        is_over = not producer.is_running and engine.list_recorded() >= {*read_ids(producer)}
        if is_over or monotonic() - began > timeout:
            return False
        PAUSE.wait(LOOK_SECONDS)
    return True


def count_payments(emulator: Emulator) -> int:
    return int(emulator.client.get("/_emulator/ledger").json()["submissions"])


def wait_for_records(engine: Engine, ids: Sequence[UUID], timeout: float) -> float:
    """When the last job was recorded; gives up when for so long none is, nor paid for."""
    wanted, seen, recorded, moved = set(ids), (-1, -1), monotonic(), monotonic()
    while seen[0] < len(wanted) and monotonic() - moved < timeout:
        found = (len(wanted & engine.list_recorded()), count_payments(engine.emulator))
        if found[0] != seen[0]:
            recorded = monotonic()
        if found != seen:
            seen, moved = found, monotonic()
        PAUSE.wait(LOOK_SECONDS)
    return recorded


def judge(engine: Engine, ids: Sequence[UUID], kills: int, drain_seconds: float) -> Outcome:
    charges = read_charges(engine.emulator.client.get("/_emulator/ledger").json())
    lost = set(ids) - engine.list_recorded()
    return Outcome(
        kills=kills,
        lost=len(lost),
        lost_paid=sum(charges.get(job_id, 0) > 0 for job_id in lost),
        paid_twice=sum(charges.get(job_id, 0) > 1 for job_id in ids),
        drain_seconds=drain_seconds,
    )

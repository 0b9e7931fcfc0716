"""What a SIGKILL of the worker costs while jobs are paid for: `python -m benchmarks.crash`.

Ours and four peers do the same job at an emulator of their own: pay, wait, download, write down.
Their worker is killed several times, at moments that a seed has drawn, and started again at once.
Counted are jobs that were never written down, and jobs that were paid more than once.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from benchmarks.harness.crashing import EMULATOR, SLOW_REPLY, Engine, Outcome, Size, run_round
from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.peers import PEERS, are_installed, run_peer
from benchmarks.harness.run import run_alone
from tests.chaos.site import ARCHIVER, SUBMITTER, Site, run_site
from tests.emulator.processes import Emulator
from tests.harness.processes import Part
from tests.harness.servers import Postgres, run_postgres

LEASE_SECONDS = 3
CHANGES = {"LEASE_SECONDS": str(LEASE_SECONDS), "UNKNOWN_SECONDS": "5"}
NONE, DRAINED = Goal("<=", 0), Goal("<=", LEASE_SECONDS + 10)
TIMEOUT_SECONDS = 25.0
# A worker with a backlog may take thirty to end (docs/operations.md).
STOP_SECONDS = 40.0
SHOWN_CHARACTERS = 200

Crowds = dict[str, list[Outcome]]
"""By the name of their size: a crowd's outcome each round."""


@dataclass(frozen=True, slots=True)
class Ours:
    """Our deployment: an Engine."""

    site: Site

    @property
    def emulator(self) -> Emulator:
        return self.site.emulator

    def produce(self, count: int, pace: float) -> Part:
        return self.site.start_producer(pace, count)

    def kill(self) -> None:
        """Both workers at one moment; the site's supervisor starts them again at once."""
        self.site.supervisor.kill(SUBMITTER, ARCHIVER)

    def list_recorded(self) -> set[UUID]:
        rows = self.site.table.select("SELECT id FROM jobs WHERE state = 'archived'")
        return {row["id"] for row in rows}


@dataclass(frozen=True, slots=True)
class Measure:
    """What is reported of each crowd."""

    title: str
    unit: str
    goal: Goal | None
    read: Callable[[Outcome], float]

    def tell(self, name: str, crowds: Crowds, remark: str) -> Figure:
        return Figure(
            f"{name}: {self.title}",
            self.unit,
            self._read(crowds[name]),
            goal=self.goal,
            remark=remark,
        )

    def tell_peer(self, name: str, peer: str, crowds: Crowds) -> Figure:
        return Figure(f"{name}: {self.title}", self.unit, (), self._read(crowds[name]), peer)

    def _read(self, outcomes: Sequence[Outcome]) -> tuple[float, ...]:
        return tuple(float(self.read(one)) for one in outcomes)


MEASURES = (
    Measure("lost", "jobs", NONE, lambda one: one.lost),
    Measure("paid twice", "jobs", NONE, lambda one: one.paid_twice),
    Measure("drained after", "s", DRAINED, lambda one: one.drain_seconds),
)


def measure(plan: Plan) -> list[Figure]:
    """Ours alone; then the peers, all at the same time."""
    with run_postgres(is_durable=True) as postgres:
        with run_ours(plan.directory / "ours", postgres) as ours:
            crowds = run_crowds(plan, ours)
        peers = measure_peers(plan, postgres) if are_installed() else {}
    return [figure for name in crowds for figure in tell(name, crowds, peers)]


@contextmanager
def run_ours(directory: Path, postgres: Postgres) -> Iterator[Ours]:
    with run_site(directory, postgres, changes=CHANGES, emulator_options=EMULATOR) as site:
        site.yard.stop_seconds = STOP_SECONDS
        site.emulator.order(SLOW_REPLY)
        yield Ours(site)


def measure_peers(plan: Plan, postgres: Postgres) -> dict[str, Crowds | str]:
    """By name; a text for one that has failed."""

    def measure_one(number: int) -> Crowds | str:
        directory = plan.directory / f"peer-{number}"
        try:
            with run_peer(PEERS[number], directory, postgres, LEASE_SECONDS) as engine:
                return run_crowds(plan, engine)
        except Exception as error:  # noqa: BLE001 - a peer that does not run is no fault of ours
            return f"{type(error).__name__}: {str(error)[-SHOWN_CHARACTERS:]}"

    with ThreadPoolExecutor(len(PEERS)) as pool:
        found = pool.map(measure_one, range(len(PEERS)))
        return dict(zip([peer.name for peer in PEERS], found, strict=True))


def run_crowds(plan: Plan, engine: Engine) -> Crowds:
    """Every engine is killed at the moments that the same seeds draw."""
    few = Size(plan.pick(20, 6), 10, plan.pick(3, 1), 0.6, TIMEOUT_SECONDS)
    # As many in a second as two slow cores keep up with, or the backlog would be measured.
    many = Size(plan.pick(1000, 20), 6, plan.pick(5, 1), plan.pick(8, 1), TIMEOUT_SECONDS)
    return {
        "20 jobs": [run_round(engine, few, seed) for seed in range(plan.rounds)],
        "1,000 jobs": [run_round(engine, many, plan.rounds)],
    }


def tell(name: str, crowds: Crowds, peers: dict[str, Crowds | str]) -> Iterator[Figure]:
    """Ours, and below each figure those of the peers."""
    failures = [
        f"{peer} did not run: {found}" for peer, found in peers.items() if isinstance(found, str)
    ]
    remark = "; ".join(failures) if peers else "the peers are not installed"
    for one in MEASURES:
        yield one.tell(name, crowds, f"({remark})" if remark else "")
        for peer, found in peers.items():
            if not isinstance(found, str):
                yield one.tell_peer(name, peer, found)
    kills = tuple(float(outcome.kills) for outcome in crowds[name])
    yield Figure(f"{name}: kills in a round", "", kills)


CRASH = Question(
    "crash", "What does a SIGKILL of the worker cost while jobs are paid for?", measure
)

if __name__ == "__main__":
    sys.exit(run_alone(CRASH))

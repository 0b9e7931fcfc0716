"""How long and how hard: the long form for `make soak`, the short one for CI."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """`kills` are of each database; `pace` is jobs a second, `jobs` how many come at once."""

    kills: int
    pace: float
    jobs: int
    crowd: int
    crowd_lease: int
    flush_seconds: float
    flush_pace: float
    pause_seconds: float
    restarts: int
    outage_seconds: float
    lock_seconds: float
    seed: int = 7


LONG = Plan(
    kills=500,
    pace=6,
    jobs=200,
    crowd=1000,
    crowd_lease=60,
    flush_seconds=30,
    flush_pace=60,
    pause_seconds=30,
    restarts=5,
    outage_seconds=15,
    lock_seconds=25,
)
SHORT = Plan(
    kills=30,
    pace=6,
    jobs=20,
    crowd=100,
    crowd_lease=10,
    flush_seconds=3,
    flush_pace=60,
    pause_seconds=3,
    restarts=1,
    outage_seconds=2,
    lock_seconds=11,
)

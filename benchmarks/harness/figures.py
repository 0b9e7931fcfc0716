"""What a benchmark finds out: figures of ours beside those of a reference, round by round."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from typing_extensions import override


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of the ratio ours / reference where there is a reference, else of the value."""

    sense: Literal["<=", ">=", "<"]
    bound: float

    def is_met(self, value: float) -> bool:
        match self.sense:
            case "<=":
                return value <= self.bound
            case "<":
                return value < self.bound
            case ">=":
                return value >= self.bound

    @override
    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One value a round of ours, and one of the reference in the same round.

    A figure without a goal is told for its own sake, and one without ours for the reference's.
    """

    name: str
    unit: str
    ours: tuple[float, ...]
    reference: tuple[float, ...] = ()
    reference_name: str = ""
    goal: Goal | None = None
    remark: str = ""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours / reference of each round: what the machine did to both cancels out."""
        if not (self.ours and self.reference):
            return ()
        pairs = zip(self.ours, self.reference, strict=True)
        return tuple(ours / reference if reference else math.inf for ours, reference in pairs)

    @property
    def judged(self) -> float:
        """The value that the goal is held against: the median of the ratios, or of ours."""
        return statistics.median(self.ratios or self.ours or self.reference)

    @property
    def is_met(self) -> bool | None:
        """None without a goal."""
        return None if self.goal is None else self.goal.is_met(self.judged)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done: `directory` is empty, and removed afterwards."""

    rounds: int
    is_short: bool
    directory: Path

    def pick(self, full: int, short: int) -> int:
        """A size: the real one, or one that shows in seconds that the benchmark works."""
        return short if self.is_short else full

    def alternate(
        self, measures: Mapping[str, Callable[[], dict[str, float]]]
    ) -> dict[str, dict[str, tuple[float, ...]]]:
        """Call each by turns, every other round in the opposite order.

        Each call gives values by name; the answer has a value a round, by call and by name.
        """
        found: dict[str, list[dict[str, float]]] = {name: [] for name in measures}
        for number in range(self.rounds):
            order = list(measures) if number % 2 == 0 else list(measures)[::-1]
            for name in order:
                found[name].append(measures[name]())
        return {
            name: {key: tuple(one[key] for one in calls) for key in calls[0]}
            for name, calls in found.items()
        }


@dataclass(frozen=True, slots=True)
class Question:
    """One benchmark: its name on the command line, what it asks, how that is found out.

    `sizes` are variables of the environment that change a size.
    """

    name: str
    text: str
    measure: Callable[[Plan], list[Figure]]
    sizes: tuple[str, ...] = ()

"""The faults in force: read from JSON, chosen by a seed, counted.

Whether a fault with a rate below 1 fires depends on the seed, its place in the list, the prompt,
and how often that prompt came by; not on the order in which different jobs arrive. So a run can
be repeated although its jobs race each other.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from emulator.fault_table import MATCHLESS_POINTS, POINTS, is_count, is_number
from emulator.records import FalRequest

T = TypeVar("T")


class WrongSettingError(ValueError):
    """A fault or a hook cannot be what was asked for; the message names what is wrong."""


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests are meant; all, if nothing is said."""

    prompt: str | None = None
    """A part of it."""
    request_id: str | None = None

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Raises WrongSettingError: naming what is wrong."""
        given = read_object(value, "match", ("prompt", "request_id"))
        for name, text in given.items():
            if not isinstance(text, str):
                raise WrongSettingError(f"match.{name} must be a string, not {text!r}")
        return cls(**given)

    def covers(self, request: FalRequest | None) -> bool:
        if request is None:
            return self == Match()
        if self.request_id is not None and self.request_id != request.request_id:
            return False
        return self.prompt is None or self.prompt in request.prompt

    def to_json(self) -> dict[str, str]:
        named = {"prompt": self.prompt, "request_id": self.request_id}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the list: where, what, how often, for whom."""

    point: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    times: int | None = None
    match: Match = Match()

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Raises WrongSettingError: naming what is unknown or wrong."""
        given = read_object(value, "a fault", None)
        point = _choose(given.pop("point", None), "point", POINTS)
        kind = _choose(given.pop("kind", None), f'kind at point "{point}"', POINTS[point])
        rate, times = given.pop("rate", 1.0), given.pop("times", None)
        if not is_number(rate) or not 0 <= rate <= 1:
            raise WrongSettingError(f"rate must be a number from 0 to 1, not {rate!r}")
        match = Match.from_json(given.pop("match", {}))
        if point in MATCHLESS_POINTS and match != Match():
            raise WrongSettingError(f'match means nothing at point "{point}"')
        options = read_options(point, kind, given)
        return cls(point, kind, options, rate, read_times(times), match)

    def to_json(self) -> dict[str, object]:
        return {
            "point": self.point,
            "kind": self.kind,
            **self.options,
            "rate": self.rate,
            "times": self.times,
            "match": self.match.to_json(),
        }


class Faults:
    """The list in force. At each occasion the first fault that matches and fires is taken."""

    def __init__(self, faults: Sequence[Fault] = (), *, seed: int = 0) -> None:
        self._seed = seed
        self.replace(faults)

    def replace(self, faults: Sequence[Fault]) -> None:
        """Put another list into force; all counts begin anew."""
        self._faults = tuple(faults)
        self._fired: Counter[int] = Counter()
        self._asked: Counter[tuple[int, str]] = Counter()

    def take(
        self, point: str, request: FalRequest | None = None, *, is_early: bool = False
    ) -> Fault | None:
        """What is to go wrong now, if anything.

        `early` is the one webhook fault to be decided at submission, so it is asked for apart.
        """
        for number, fault in enumerate(self._faults):
            if fault.point != point or (fault.kind == "early") is not is_early:
                continue
            if fault.match.covers(request) and self._fires(number, fault, request):
                self._fired[number] += 1
                return fault
        return None

    def to_json(self) -> list[dict[str, object]]:
        return [
            {**fault.to_json(), "fired": self._fired[number]}
            for number, fault in enumerate(self._faults)
        ]

    def _fires(self, number: int, fault: Fault, request: FalRequest | None) -> bool:
        if fault.times is not None and self._fired[number] >= fault.times:
            return False
        key = request.prompt if request else ""
        self._asked[number, key] += 1
        chance = random.Random(f"{self._seed}/{number}/{self._asked[number, key]}/{key}")
        return chance.random() < fault.rate


def parse_faults(value: object) -> tuple[Fault, ...]:
    """Raises WrongSettingError: naming the fault by its place, and what is wrong with it."""
    return tuple(read_list(value, "faults", Fault.from_json))


def read_options(point: str, kind: str, given: Mapping[str, object]) -> dict[str, object]:
    """The kind's options, defaults filled in.

    Raises WrongSettingError: naming the unknown or wrong one.
    """
    known = POINTS[point][kind]
    for name, value in given.items():
        if name not in known:
            raise WrongSettingError(
                f'unknown option "{name}" of {point}/{kind}; known: {_join(known)}'
            )
        if not known[name].accepts(value):
            raise WrongSettingError(f"{name} must be {known[name].wanted}, not {value!r}")
    return {name: given.get(name, option.default) for name, option in known.items()}


def read_object(value: object, what: str, known: Sequence[str] | None) -> dict[str, Any]:
    """A copy of the JSON object; with no other keys than the known ones, if these are given.

    Raises WrongSettingError: it is none, or has others.
    """
    if not isinstance(value, dict):
        raise WrongSettingError(f"{what} must be an object, not {value!r}")
    for name in value:
        if known is not None and name not in known:
            raise WrongSettingError(f'unknown key "{name}" of {what}; known: {_join(known)}')
    return dict(value)


def read_list(value: object, what: str, read: Callable[[object], T]) -> list[T]:
    """Raises WrongSettingError: no list, or an item `read` refuses, which is named by its place."""
    if not isinstance(value, list):
        raise WrongSettingError(f"{what} must be a list, not {value!r}")
    items = []
    for number, item in enumerate(value):
        try:
            items.append(read(item))
        except WrongSettingError as error:
            raise WrongSettingError(f"{what}[{number}]: {error}") from error
    return items


def read_times(value: object) -> int | None:
    """Raises WrongSettingError: neither null nor a whole number from 1."""
    if value is None or (isinstance(value, int) and is_count(value)):
        return value
    raise WrongSettingError(f"times must be null or a whole number from 1, not {value!r}")


def _choose(value: object, what: str, known: Mapping[str, object]) -> str:
    if isinstance(value, str) and value in known:
        return value
    raise WrongSettingError(f"unknown {what}: {value!r}; known: {_join(known)}")


def _join(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names) or "none"

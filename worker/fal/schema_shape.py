"""What a JSON schema allows, whichever way it says so: references, unions and nullable forms.

Both dialects are read: OpenAPI 3.0 (`nullable`, boolean `exclusiveMinimum`) and JSON Schema.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pydantic import JsonValue

Schema: TypeAlias = Mapping[str, JsonValue]

# A document that is nested more deeply is not compared any deeper.
DEEPEST = 32
NUMBERS = frozenset({"integer", "number"})
SCALARS = NUMBERS | {"string", "boolean"}
# Bounds of what databases and generators hold stand for none: fal names none there.
WIDEST = (-(2**63), 2**63 - 1)
# Beyond it a number has no other form than its digits.
HIGHEST = 10**300
UNIONS = ("anyOf", "oneOf")
KINDS: Mapping[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Range:
    """None where there is no bound; a bound that is not itself allowed is exclusive."""

    low: float | None = None
    high: float | None = None
    is_low_exclusive: bool = False
    is_high_exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One named field of an object. `default` is JSON text, None where none is told."""

    shape: "Shape"
    is_required: bool
    default: str | None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a value may be; `values` are JSON texts, None where any of the kind will do."""

    kinds: frozenset[str]
    values: frozenset[str] | None = None
    range: Range = Range()
    shortest: int = 0
    longest: int | None = None
    pattern: str | None = None
    step: float | None = None
    members: Mapping[str, Member] = field(default_factory=dict)
    items: "Shape | None" = None


ANYTHING = Shape(frozenset({"anything"}))


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the schemas of one document, whose references lead into itself."""

    document: Schema

    def read(self, schema: JsonValue, trail: tuple[str, ...] = ()) -> Shape:
        """The union of all that the schema's branches allow. Never raises."""
        branches = [self._read_leaf(leaf, seen) for leaf, seen in self._split(schema, trail)]
        return unite(branches) if branches else ANYTHING

    def flatten(self, schema: JsonValue, trail: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
        """The schema with its reference and its `allOf` read into it; what stands beside wins."""
        if not isinstance(schema, dict) or len(trail) > DEEPEST:
            return {}, trail
        merged: dict[str, JsonValue] = {}
        reference = schema.get("$ref")
        parts = _as_list(schema.get("allOf"))
        if isinstance(reference, str):
            if reference in trail:
                return {}, trail
            trail = (*trail, reference)
            parts = [*parts, self._resolve(reference)]
        else:
            trail = (*trail, "")
        for part in parts:
            inner, _ = self.flatten(part, trail)
            merged = merge_all(merged, inner)
        beside = {name: value for name, value in schema.items() if name not in {"$ref", "allOf"}}
        return merge_all(merged, beside), trail

    def _split(
        self, schema: JsonValue, trail: tuple[str, ...]
    ) -> Iterator[tuple[Schema, tuple[str, ...]]]:
        flat, trail = self.flatten(schema, trail)
        unions = [branch for name in UNIONS for branch in _as_list(flat.get(name))]
        beside = {name: value for name, value in flat.items() if name not in UNIONS}
        if not unions:
            yield flat, trail
            return
        for branch in unions:
            inner, seen = self.flatten(branch, trail)
            yield from self._split(merge_all(beside, inner), seen)

    def _read_leaf(self, leaf: Schema, trail: tuple[str, ...]) -> Shape:
        kinds, values = read_kinds(leaf)
        required = {name for name in _as_list(leaf.get("required")) if isinstance(name, str)}
        properties = leaf.get("properties")
        members = properties.items() if isinstance(properties, dict) else ()
        return Shape(
            kinds,
            values,
            read_range(leaf, kinds),
            _as_count(leaf.get("minLength")) or 0,
            _as_count(leaf.get("maxLength")),
            _as_text(leaf.get("pattern")),
            _as_number(leaf.get("multipleOf")),
            {
                name: Member(self.read(inner, trail), name in required, self._read_default(inner))
                for name, inner in members
            },
            self.read(leaf["items"], trail) if "items" in leaf else None,
        )

    def _read_default(self, schema: JsonValue) -> str | None:
        flat, _ = self.flatten(schema, ())
        return to_text(flat["default"]) if flat.get("default") is not None else None

    def _resolve(self, reference: str) -> JsonValue:
        """Where the reference leads; nothing that would say more than "anything" if nowhere."""
        place: JsonValue = dict(self.document)
        for step in reference.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not reference.startswith("#") or not isinstance(place, dict):
                return None
            place = place.get(name)
        return place if reference.startswith("#") else None


def merge_all(one: Schema, other: Schema) -> dict[str, JsonValue]:
    """Both schemas in one: fields and requirements are joined, of the rest the second wins."""
    merged = {**one, **other}
    for name in ("properties", "required"):
        first, second = one.get(name), other.get(name)
        if isinstance(first, dict) and isinstance(second, dict):
            merged[name] = {**first, **second}
        if isinstance(first, list) and isinstance(second, list):
            merged[name] = [*first, *second]
    return merged


def read_kinds(leaf: Schema) -> tuple[frozenset[str], frozenset[str] | None]:
    """The kinds of value by `type`, or else by what the schema speaks of; and the values named."""
    named = leaf.get("type")
    told = named if isinstance(named, list) else [named]
    kinds = {kind for kind in told if isinstance(kind, str)}
    listed = [leaf["const"]] if "const" in leaf else _as_list(leaf.get("enum"))
    if listed and not kinds:
        kinds = {KINDS[type(value)] for value in listed}
    if not kinds and "properties" in leaf:
        kinds = {"object"}
    if leaf.get("nullable") is True or None in listed:
        kinds |= {"null"}
    values = frozenset(to_text(value) for value in listed if value is not None)
    return _widen(kinds or {"anything"}), values or None


def read_range(leaf: Schema, kinds: frozenset[str]) -> Range:
    if not kinds & NUMBERS:
        return Range()
    low, is_low_exclusive = _read_bound(leaf, "minimum", "exclusiveMinimum")
    high, is_high_exclusive = _read_bound(leaf, "maximum", "exclusiveMaximum")
    if "number" not in kinds:
        # Of whole numbers, above 8 is from 9.
        low = low + 1 if low is not None and is_low_exclusive else low
        high = high - 1 if high is not None and is_high_exclusive else high
        is_low_exclusive = is_high_exclusive = False
    low = None if low is not None and low <= WIDEST[0] else low
    high = None if high is not None and high >= WIDEST[1] else high
    return Range(
        low, high, is_low_exclusive and low is not None, is_high_exclusive and high is not None
    )


def unite(branches: list[Shape]) -> Shape:
    """What any of the branches allows."""
    scalars = [one for one in branches if one.kinds & SCALARS or one == ANYTHING]
    numbers = [one.range for one in branches if one.kinds & NUMBERS and one.values is None]
    texts = [one for one in branches if "string" in one.kinds and one.values is None]
    values = [one.values for one in scalars]
    lengths = [one.longest for one in texts]
    patterns, steps = {one.pattern for one in texts}, {one.step for one in scalars}
    return Shape(
        _widen(kind for one in branches for kind in one.kinds),
        _join(values),
        _widest(numbers),
        min((one.shortest for one in texts), default=0),
        None if None in lengths else max((one for one in lengths if one is not None), default=None),
        patterns.pop() if len(patterns) == 1 else None,
        steps.pop() if len(steps) == 1 else None,
        {name: member for one in branches for name, member in one.members.items()},
        next((one.items for one in branches if one.items is not None), None),
    )


def to_text(value: JsonValue) -> str:
    """The value as JSON, numbers alike however they are written."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _widen(kinds: Iterable[str]) -> frozenset[str]:
    found = frozenset(kinds)
    return found - {"integer"} if "number" in found else found


def _join(values: list[frozenset[str] | None]) -> frozenset[str] | None:
    known = [one for one in values if one is not None]
    if not known or len(known) < len(values):
        return None
    return frozenset(value for one in known for value in one)


def _widest(ranges: list[Range]) -> Range:
    if not ranges:
        return Range()
    lows = [(one.low, one.is_low_exclusive) for one in ranges if one.low is not None]
    highs = [(one.high, not one.is_high_exclusive) for one in ranges if one.high is not None]
    low, is_low_exclusive = min(lows) if len(lows) == len(ranges) else (None, False)
    high, is_high_inclusive = max(highs) if len(highs) == len(ranges) else (None, True)
    return Range(low, high, is_low_exclusive, not is_high_inclusive)


def _read_bound(leaf: Schema, name: str, exclusive: str) -> tuple[float | None, bool]:
    inclusive, beyond = _as_number(leaf.get(name)), leaf.get(exclusive)
    if beyond is True:
        return inclusive, inclusive is not None
    outer = _as_number(beyond)
    return (inclusive, False) if outer is None else (outer, True)


def _as_list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _as_text(value: JsonValue) -> str | None:
    return value if isinstance(value, str) else None


def _as_number(value: JsonValue) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -HIGHEST < value < HIGHEST else None


def _as_count(value: JsonValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None

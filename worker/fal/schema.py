"""Where our model of the endpoint and its published OpenAPI document differ.

Shown are added and removed fields, and for the others type, values, range, length, whether it is
required, and default. Our own bounds on text, which fal does not have, are no difference.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import JsonValue

from worker.fal.model import ExtendVideoInput, ExtendVideoOutput
from worker.ground.errors import SchemaUnreadableError

DEFAULT = "default"
MAX_DEPTH = 6
EXACT = 2**53


class Change(StrEnum):
    """What fal has done, seen from our model."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference: `field` begins with `input.` or `output.`; texts for people."""

    change: Change
    field: str
    aspect: str
    ours: str | None = None
    theirs: str | None = None

    @property
    def is_default(self) -> bool:
        """Of a default alone: ours are the model page's by decision, and always sent."""
        return self.aspect == DEFAULT


@dataclass(slots=True)
class _Shape:
    """What a schema allows, over all its alternatives."""

    kinds: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    low: str = ""
    high: str = ""
    longest: float | None = None
    members: dict[str, Any] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)


def compare_document(document: JsonValue, endpoint: str) -> list[Drift]:
    """Every difference, by field. Raises SchemaUnreadableError if it is not the endpoint's."""
    inner = _unwrap(document, endpoint)
    paths = inner.get("paths")
    if not isinstance(paths, dict):
        raise SchemaUnreadableError("the document has no paths: it is no OpenAPI document")
    content = ("content", "application/json", "schema")
    given = _dig(paths, f"/{endpoint}", "post", "requestBody", *content)
    if given is None:
        known = ", ".join(sorted(paths)[:5])
        raise SchemaUnreadableError(f"the document has no POST /{endpoint}; it has {known}")
    answer = ("responses", "200", *content)
    result = _dig(paths, f"/{endpoint}/requests/{{request_id}}", "get", *answer)
    result = _dig(paths, f"/{endpoint}", "post", *answer) if result is None else result
    drifts: list[Drift] = []
    for place, model, schema in (
        ("input", ExtendVideoInput, given),
        ("output", ExtendVideoOutput, result),
    ):
        own = model.model_json_schema()
        drifts += _compare(place, _read(own, own), _read(schema, inner), (own, inner), 0)
    # Nobody chooses what is left out of a result.
    return [one for one in drifts if not (one.is_default and one.field.startswith("output."))]


def _compare(
    path: str, ours: _Shape, theirs: _Shape, roots: tuple[Any, Any], depth: int
) -> Iterator[Drift]:
    if depth > MAX_DEPTH:
        return
    for name in [*ours.members, *(name for name in theirs.members if name not in ours.members)]:
        place = f"{path}.{name}"
        own = _read(ours.members.get(name), roots[0])
        other = _read(theirs.members.get(name), roots[1])
        own_words = _describe(own, ours, name)
        other_words = _describe(other, theirs, name)
        if name not in theirs.members:
            yield Drift(Change.REMOVED, place, "field", ours=_join(own_words))
        elif name not in ours.members:
            yield Drift(Change.ADDED, place, "field", theirs=_join(other_words))
        else:
            for aspect, mine in own_words.items():
                if mine != other_words[aspect]:
                    yield Drift(
                        Change.CHANGED, place, aspect, mine or "any", other_words[aspect] or "any"
                    )
            if other.longest is not None and other.longest < (own.longest or float("inf")):
                texts = (f"0 to {one.longest or 'any'}" for one in (own, other))
                yield Drift(Change.CHANGED, place, "length", *texts)
            if own.members and other.members:
                yield from _compare(place, own, other, roots, depth + 1)


def _describe(shape: _Shape, parent: _Shape, name: str) -> dict[str, str]:
    """A field in words, by aspect; empty where anything is allowed."""
    schema = parent.members.get(name)
    return {
        "type": " or ".join(sorted(shape.kinds, key=lambda kind: (kind == "null", kind))),
        "values": " | ".join(sorted(shape.values)),
        "range": f"{shape.low}..{shape.high}" if shape.low or shape.high else "",
        "required": "required" if name in parent.required else "optional",
        DEFAULT: _show(schema.get("default") if isinstance(schema, dict) else None),
    }


def _join(words: dict[str, str]) -> str:
    end = "required" if words["required"] == "required" else f"default {words[DEFAULT]}"
    return ", ".join([*filter(None, (words[name] for name in ("type", "values", "range"))), end])


def _show(value: JsonValue) -> str:
    """Equal values in the same text; 121.0 is 121."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "none" if value is None else json.dumps(value, sort_keys=True)


def _read(schema: JsonValue, root: JsonValue) -> _Shape:
    """Collect what the schema, its references and its alternatives allow; odd parts are skipped."""
    shape = _Shape()
    waiting, seen = [schema], set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(reference := one.get("$ref"), str):
            waiting.append(_dig(root, *reference.split("/")[1:]))
        waiting += [it for name in ("anyOf", "oneOf", "allOf") for it in _list(one.get(name))]
        kinds = _list(one.get("type")) or [one.get("type")]
        shape.kinds |= {kind for kind in kinds if isinstance(kind, str)}
        shape.kinds |= {"null"} if one.get("nullable") is True else set()
        shape.values |= {_show(value) for value in _list(one.get("enum"))}
        is_whole = "integer" in kinds
        shape.low = _read_bound(one, "inimum", ">", 1 if is_whole else 0) or shape.low
        shape.high = _read_bound(one, "aximum", "<", -1 if is_whole else 0) or shape.high
        if isinstance(longest := one.get("maxLength"), int | float):
            shape.longest = longest
        if isinstance(members := one.get("properties"), dict):
            shape.members |= members
        shape.required |= {name for name in _list(one.get("required")) if isinstance(name, str)}
    return shape


def _read_bound(schema: dict[str, JsonValue], name: str, mark: str, step: int) -> str:
    """Of an integer as the last value allowed; none where it is beyond what JSON keeps exactly."""
    end, is_open = schema.get(f"exclusiveM{name}"), True
    if isinstance(end, bool) or not isinstance(end, int | float):
        end, is_open = schema.get(f"m{name}"), False
    if isinstance(end, bool) or not isinstance(end, int | float) or not abs(end) < EXACT:
        return ""
    if is_open and step:
        end += step
    return f"{mark if is_open and not step else ''}{end:g}"


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _unwrap(document: JsonValue, endpoint: str) -> dict[str, JsonValue]:
    """The OpenAPI document; a reply of the platform API may be around it."""
    if not isinstance(document, dict):
        raise SchemaUnreadableError("the document is no JSON object")
    models = document.get("models")
    if not isinstance(models, list):
        return document
    for model in models:
        if isinstance(model, dict) and model.get("endpoint_id") == endpoint:
            inner = model.get("openapi")
            if isinstance(inner, dict):
                return inner
            raise SchemaUnreadableError(f"fal shows no OpenAPI document of {endpoint}")
    raise SchemaUnreadableError(f"fal does not list {endpoint}")


def _dig(place: JsonValue, *names: str) -> JsonValue:
    for name in names:
        if not isinstance(place, dict):
            return None
        place = place.get(name)
    return place

"""Where our model of the endpoint and its published OpenAPI document differ.

Shown are added and removed fields, and for the others type, values, range, whether it is required,
and default. Our own bounds on text, which fal does not have, are no difference; a shorter one is.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from pydantic import JsonValue

from worker.fal.model import ExtendVideoInput, ExtendVideoOutput
from worker.ground.errors import SchemaUnreadableError

DEFAULT, LENGTH = "default", "length"
MAX_DEPTH = 4
EXACT = 2**53

Schema: TypeAlias = dict[str, Any]
Fields: TypeAlias = dict[str, dict[str, str]]
"""By a field's path, what it allows by aspect, in words; empty where anything is allowed."""


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


def compare_document(document: JsonValue, endpoint: str) -> list[Drift]:
    """Every difference, by field. Raises SchemaUnreadableError if it is not the endpoint's.

    A reply of the platform API may be around the document.
    """
    for model in _list(_dig(document, "models")):
        if _dig(model, "endpoint_id") == endpoint:
            document = _dig(model, "openapi")
    content = ("content", "application/json", "schema")
    given = _dig(document, "paths", f"/{endpoint}", "post", "requestBody", *content)
    if given is None:
        raise SchemaUnreadableError(f"it is no OpenAPI document with POST /{endpoint}")
    place = _dig(document, "paths", f"/{endpoint}/requests/{{request_id}}", "get")
    result = _dig(place, "responses", "200", *content)
    ours, theirs = Fields(), Fields()
    for path, schema, model_schema in (
        ("input", given, ExtendVideoInput.model_json_schema()),
        ("output", result, ExtendVideoOutput.model_json_schema()),
    ):
        ours |= _read_fields(model_schema, model_schema, path)
        theirs |= _read_fields(schema, document, path)
    drifts = [one for field in ours | theirs for one in _compare(field, ours, theirs)]
    # Nobody chooses what is left out of a result.
    return [one for one in drifts if not (one.is_default and one.field.startswith("output."))]


def _compare(field: str, ours: Fields, theirs: Fields) -> Iterator[Drift]:
    if field not in theirs:
        yield Drift(Change.REMOVED, field, "field", ours=_join(ours[field]))
    elif field not in ours:
        yield Drift(Change.ADDED, field, "field", theirs=_join(theirs[field]))
    else:
        for aspect, mine in ours[field].items():
            other = theirs[field][aspect]
            differs = mine != other
            if aspect == LENGTH:
                differs = float(other or "inf") < float(mine or "inf")
            if differs:
                yield Drift(Change.CHANGED, field, aspect, mine or "any", other or "any")


def _read_fields(schema: JsonValue, root: JsonValue, path: str, depth: int = 0) -> Fields:
    """The fields of an object, and those of the objects inside it."""
    fields = Fields()
    parts = _list_parts(schema, root)
    required = [name for part in parts for name in _list(part.get("required"))]
    for part in parts:
        members = part.get("properties")
        for name, member in members.items() if isinstance(members, dict) else ():
            place = f"{path}.{name}"
            is_required = "required" if name in required else "optional"
            fields[place] = _describe(_list_parts(member, root), is_required)
            if depth < MAX_DEPTH:
                fields |= _read_fields(member, root, place, depth + 1)
    return fields


def _list_parts(schema: JsonValue, root: JsonValue) -> list[Schema]:
    """The schema with its references and alternatives; odd parts are skipped."""
    parts: list[Schema] = []
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict) or any(part is one for one in parts):
            continue
        parts.append(part)
        if isinstance(reference := part.get("$ref"), str):
            waiting.append(_dig(root, *reference.split("/")[1:]))
        waiting += [one for name in ("anyOf", "oneOf", "allOf") for one in _list(part.get(name))]
    return parts


def _describe(parts: list[Schema], required: str) -> dict[str, str]:
    """What all parts allow together; of bounds and default the outermost part's count."""
    merged: Schema = {name: value for part in reversed(parts) for name, value in part.items()}
    kinds = {str(one) for part in parts for one in _list(part.get("type")) or [part.get("type")]}
    kinds |= {"null"} if merged.get("nullable") is True else set()
    values = {_show(value) for part in parts for value in _list(part.get("enum"))}
    step = 1 if "integer" in kinds else 0
    low = _read_bound(merged, "inimum", ">", step)
    high = _read_bound(merged, "aximum", "<", -step)
    return {
        "type": " or ".join(sorted(kinds - {"None"}, key=lambda kind: (kind == "null", kind))),
        "values": " | ".join(sorted(values)),
        "range": f"{low}..{high}" if low or high else "",
        LENGTH: str(merged["maxLength"]) if type(merged.get("maxLength")) is int else "",
        "required": required,
        DEFAULT: _show(merged.get("default")),
    }


def _read_bound(schema: Schema, side: str, mark: str, step: int) -> str:
    """Of an integer as the last value allowed; none where it is beyond what JSON keeps exactly."""
    value: Any = schema.get(f"exclusiveM{side}")
    if type(value) not in {int, float}:
        value, mark = schema.get(f"m{side}"), ""
    elif step:
        value, mark = value + step, ""
    return f"{mark}{value:g}" if type(value) in {int, float} and abs(value) < EXACT else ""


def _join(words: dict[str, str]) -> str:
    end = "required" if words["required"] == "required" else f"default {words[DEFAULT]}"
    return ", ".join([*filter(None, (words[name] for name in ("type", "values", "range"))), end])


def _show(value: JsonValue) -> str:
    """Equal values in the same text; 121.0 is 121."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "none" if value is None else json.dumps(value, sort_keys=True)


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


def _dig(place: JsonValue, *names: str) -> JsonValue:
    for name in names:
        place = place.get(name) if isinstance(place, dict) else None
    return place

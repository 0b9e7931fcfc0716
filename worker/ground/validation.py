"""What a field of a model allows, in plain words; and wrong fields as violations.

Both are read from the model's JSON schema, so a bound stands in one place only: the model. A type
whose schema does not say it all brings its words along as `json_schema_extra={"allowed": ...}`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from worker.ground.errors import InvalidInputError, Violation

SHOWN_CHARACTERS = 80
NOTHING = "nothing"
PLAIN_KINDS = {"array": "a list", "boolean": "true or false", "null": "null", "string": "text"}

Schema: TypeAlias = dict[str, Any]
ModelT = TypeVar("ModelT", bound=BaseModel)

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SIZE = re.compile(r"([0-9]+)[xX]([0-9]+)")
_LAZY_JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False, skipkeys=True, default=repr)


def validate_fields(model: type[ModelT], fields: object) -> ModelT:
    """Build the model from its fields by name.

    Raises InvalidInputError with every wrong, missing and unknown field at once.
    """
    if not isinstance(fields, Mapping):
        allowed = "an object with one value per field"
        raise InvalidInputError((Violation("input", show_value(fields), allowed),))
    known = model.model_fields.keys()
    unknown = tuple(
        Violation(show_name(name), show_value(value), suggest_name(name, known))
        for name, value in fields.items()
        if name not in known
    )
    try:
        built = model.model_validate({name: fields[name] for name in known if name in fields})
    except ValidationError as error:
        raise InvalidInputError((*list_violations(model, error), *unknown)) from None
    if unknown:
        raise InvalidInputError(unknown)
    return built


def parse_text(model: type[BaseModel], name: str, text: str) -> object:
    """Turn a shell's text into the JSON value that the field's type calls for.

    Only the form is judged, not the bounds: `validate_fields` does that for all fields at once.
    Raises InvalidInputError.
    """
    schema = _find_schema(model, (name,))
    if schema is None:
        allowed = suggest_name(name, model.model_fields)
        raise InvalidInputError((Violation(show_name(name), show_value(text), allowed),))
    kinds = {branch.get("type") for branch in _list_branches(model, schema)}
    try:
        return _parse_kind(kinds, text)
    except (LookupError, ValueError, RecursionError):
        allowed = describe_allowed(model, name)
        raise InvalidInputError((Violation(name, show_value(text), allowed),)) from None


def _parse_kind(kinds: set[object], text: str) -> object:
    if "null" in kinds and text == "null":
        return None
    if "object" in kinds:
        return _parse_size(text)
    if "boolean" in kinds:
        return {"true": True, "false": False}[text]
    if "integer" in kinds:
        return int(_match(_INTEGER, text)[0])
    if "number" in kinds:
        return float(_match(_NUMBER, text)[0])
    return text


def _parse_size(text: str) -> object:
    if text.startswith("{"):
        return json.loads(text)
    if size := _SIZE.fullmatch(text):
        return {"width": int(size[1]), "height": int(size[2])}
    return text


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    if found := pattern.fullmatch(text):
        return found
    raise ValueError(text)


def list_violations(model: type[BaseModel], error: ValidationError) -> tuple[Violation, ...]:
    details = error.errors(include_url=False, include_context=False)
    return tuple(_build_violation(model, detail) for detail in details)


def _build_violation(model: type[BaseModel], detail: ErrorDetails) -> Violation:
    path = _trim_path(model, detail["loc"])
    field = ".".join(show_name(name) for name in path) or "payload"
    if detail["type"] == "missing":
        return Violation(field, NOTHING, f"required: {describe_allowed(model, *path)}")
    return Violation(field, show_value(detail["input"]), describe_allowed(model, *path))


def _trim_path(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[object, ...]:
    """Leave out the tag that pydantic puts behind the name of a field of several types.

    Of a field with free names or a list inside, its own words say what is allowed in it.
    """
    for end in range(1, len(path)):
        field = _find_schema(model, path[:end]) or {}
        if any(_has_free_inside(branch) for branch in _list_branches(model, field)):
            return path[:end]
    tagged = len(path) > 1 and "oneOf" in (_find_schema(model, path[:1]) or {})
    return (path[0], *path[2:]) if tagged else path


def _has_free_inside(schema: Schema) -> bool:
    kind = schema.get("type")
    return kind == "array" or (kind == "object" and "properties" not in schema)


def describe_allowed(model: type[BaseModel], *path: object) -> str:
    """Say what the field at `path` allows; of an unknown field, which one may be meant."""
    schema = _find_schema(model, path)
    if schema is not None:
        return _describe(model, schema)
    parent = _find_schema(model, path[:-1]) or {}
    names = (
        name for branch in _list_branches(model, parent) for name in branch.get("properties", ())
    )
    return suggest_name(path[-1], names)


def _describe(model: type[BaseModel], schema: Schema) -> str:
    branches = _list_branches(model, schema)
    return ", or ".join(_describe_branch(model, branch) for branch in branches)


def _describe_branch(model: type[BaseModel], schema: Schema) -> str:
    if "allowed" in schema:
        return str(schema["allowed"])
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    match schema["type"]:
        case "object":
            return _describe_object(model, schema)
        case "integer" | "number" as kind:
            return _describe_range("an integer" if kind == "integer" else "a number", schema)
        case kind:
            return PLAIN_KINDS[str(kind)]


def _describe_object(model: type[BaseModel], schema: Schema) -> str:
    properties = schema["properties"]
    named = schema.get("required") or properties
    inner = (f"{name} ({_describe(model, properties[name])})" for name in named)
    return "an object with " + " and ".join(inner)


def _describe_range(noun: str, schema: Schema) -> str:
    if "minimum" in schema:
        return f"{noun} from {schema['minimum']} to {schema['maximum']}"
    return noun


def _find_schema(model: type[BaseModel], path: Iterable[object]) -> Schema | None:
    found: Schema | None = _read_schema(model)
    for name in path:
        branches = _list_branches(model, found or {})
        inner = (branch["properties"] for branch in branches if "properties" in branch)
        found = next((properties[name] for properties in inner if name in properties), None)
    return found


def _list_branches(model: type[BaseModel], schema: Schema) -> tuple[Schema, ...]:
    """List the types that a schema allows, each one resolved."""
    branches = schema.get("anyOf") or schema.get("oneOf") or (schema,)
    definitions = _read_schema(model).get("$defs", {})
    return tuple(
        definitions[branch["$ref"].rpartition("/")[2]] if "$ref" in branch else branch
        for branch in branches
    )


@cache
def _read_schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def suggest_name(name: object, known: Iterable[str]) -> str:
    close = get_close_matches(str(name), known, n=1)
    return f"no such field; did you mean {close[0]}?" if close else "no such field"


def show_name(name: object) -> str:
    plain = isinstance(name, str) and name.isidentifier() and len(name) <= SHOWN_CHARACTERS
    return str(name) if plain else show_value(name)


def show_value(value: object) -> str:
    """Write a value as JSON, for people: on one line, of at most SHOWN_CHARACTERS characters.

    Never raises: what JSON cannot hold is shown all the same.
    """
    text = ""
    try:
        # chunk by chunk, so that neither depth nor size of what was given matters
        for chunk in _LAZY_JSON.iterencode(value):
            text += chunk
            if len(text) > SHOWN_CHARACTERS:
                break
    except ValueError:  # an integer of too many digits to be written
        text += f"<{type(value).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > SHOWN_CHARACTERS:
        text = text[: SHOWN_CHARACTERS - 1] + "…"
    return text

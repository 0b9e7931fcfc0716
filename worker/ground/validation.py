"""Wrong fields of a model as violations, and what each field allows, in plain words.

Read from the model's JSON schema, so a bound stands in one place only: the model. (pydantic's own
messages name one bound, and those of a custom check would quote the value.) A type whose schema
does not say it all has its words as `json_schema_extra={"allowed": ...}`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from worker.ground.errors import InvalidInputError, Violation

SHOWN_CHARACTERS = 80
NOTHING = "nothing"
PLAIN_KINDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "string": "text",
}

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


def list_violations(model: type[BaseModel], error: ValidationError) -> tuple[Violation, ...]:
    """One for each error: the field's path, its value, and what it allows."""
    found = []
    for detail in error.errors(include_url=False, include_context=False):
        path = _trim_path(model, detail["loc"])
        field = ".".join(show_name(name) for name in path) or "payload"
        value, allowed = show_value(detail["input"]), describe_allowed(model, *path)
        if detail["type"] == "missing":
            value, allowed = NOTHING, f"required: {allowed}"
        found.append(Violation(field, value, allowed))
    return tuple(found)


def _trim_path(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[object, ...]:
    """The path without the tag that pydantic puts behind the name of a field of several types.

    It ends at a field with free names or a list inside: that field's own words cover those.
    """
    for end in range(1, len(path)):
        for branch in _list_branches(model, _find_schema(model, path[:end]) or {}):
            kind = branch.get("type")
            if kind == "array" or (kind == "object" and "properties" not in branch):
                return path[:end]
    tagged = len(path) > 1 and "oneOf" in (_find_schema(model, path[:1]) or {})
    return (path[0], *path[2:]) if tagged else path


def parse_text(model: type[BaseModel], name: str, text: str) -> object:
    """Turn a shell's text into the JSON value that the field's type calls for.

    Only the form is checked, not the bounds: `validate_fields` does that for all fields at once.
    Raises InvalidInputError.
    """
    schema = _find_schema(model, (name,))
    if schema is None:
        allowed = suggest_name(name, model.model_fields)
        raise InvalidInputError((Violation(show_name(name), show_value(text), allowed),))
    kinds = {branch.get("type") for branch in _list_branches(model, schema)}
    value: object = text
    try:
        if "null" in kinds and text == "null":
            value = None
        elif "object" in kinds:
            value = _parse_size(text)
        elif "boolean" in kinds:
            value = {"true": True, "false": False}[text]
        elif kinds & {"integer", "number"}:
            pattern, read = (_INTEGER, int) if "integer" in kinds else (_NUMBER, float)
            value = read(pattern.fullmatch(text)[0])  # type: ignore[index]  # no match: TypeError
    except (LookupError, TypeError, ValueError, RecursionError):
        allowed = describe_allowed(model, name)
        raise InvalidInputError((Violation(name, show_value(text), allowed),)) from None
    return value


def _parse_size(text: str) -> object:
    if text.startswith("{"):
        return json.loads(text)
    size = _SIZE.fullmatch(text)
    return {"width": int(size[1]), "height": int(size[2])} if size else text


def describe_allowed(model: type[BaseModel], *path: object) -> str:
    """What the field at `path` allows; of an unknown field, which one may be meant."""
    schema = _find_schema(model, path)
    if schema is not None:
        return _describe(model, schema)
    parent = _find_schema(model, path[:-1]) or {}
    branches = _list_branches(model, parent)
    return suggest_name(path[-1], (name for one in branches for name in one.get("properties", ())))


def _describe(model: type[BaseModel], schema: Schema) -> str:
    described = []
    for branch in _list_branches(model, schema):
        if "allowed" in branch:
            words = str(branch["allowed"])
        elif "enum" in branch:
            words = "one of " + ", ".join(branch["enum"])
        elif branch["type"] == "object":
            inner = branch["properties"]
            named = branch.get("required") or inner
            words = "an object with " + " and ".join(
                f"{name} ({_describe(model, inner[name])})" for name in named
            )
        else:
            words = PLAIN_KINDS[branch["type"]]
            words += f" from {branch['minimum']}" if "minimum" in branch else ""
            words += f" to {branch['maximum']}" if "maximum" in branch else ""
        described.append(words)
    return ", or ".join(described)


def _find_schema(model: type[BaseModel], path: Iterable[object]) -> Schema | None:
    found: Schema | None = _read_schema(model)
    for name in path:
        branches = _list_branches(model, found or {})
        inner = (branch["properties"] for branch in branches if "properties" in branch)
        found = next((properties[name] for properties in inner if name in properties), None)
    return found


def _list_branches(model: type[BaseModel], schema: Schema) -> tuple[Schema, ...]:
    """The types that a schema allows, each one resolved."""
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
    """A value as JSON on one line, of at most SHOWN_CHARACTERS characters.

    Never raises: what JSON cannot hold is shown as Python would.
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

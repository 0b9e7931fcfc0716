"""Wrong fields of a model as violations: the path of each field, its value, and what it allows.

What a field allows is said in pydantic's words, or in the field's own if it has some, as
`json_schema_extra={"allowed": ...}`.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from worker.ground.errors import InvalidInputError, Violation

SHOWN_CHARACTERS = 80
UNKNOWN = {"extra_forbidden", "invalid_key"}

Schema: TypeAlias = dict[str, Any]
ModelT = TypeVar("ModelT", bound=BaseModel)

_SIZE = re.compile(r"([0-9]{1,9})[xX]([0-9]{1,9})")


def validate_fields(model: type[ModelT], fields: object) -> ModelT:
    """Build the model from its fields by name.

    Raises InvalidInputError with every wrong, missing and unknown field at once.
    """
    if not isinstance(fields, Mapping):
        wrong = Violation("input", show_value(fields), "an object with one value per field")
        raise InvalidInputError((wrong,))
    try:
        return model.model_validate(dict(fields))
    except ValidationError as error:
        raise InvalidInputError(list_violations(model, error)) from None


def list_violations(model: type[BaseModel], error: ValidationError) -> tuple[Violation, ...]:
    """One for each error; what is wrong within a list or free names is said of the whole field."""
    found = []
    for detail in error.errors(include_url=False, include_context=False):
        path: list[object] = []
        branches = _list_branches(model, _read_schema(model))
        for name in detail["loc"]:
            # What is passed over is a place in a list, a free name, or pydantic's tag of a type.
            inner = [one["properties"].get(name) for one in branches if "properties" in one]
            if schema := next(filter(None, inner), None):
                path.append(name)
                branches = _list_branches(model, schema)
        value = show_value(detail["input"])
        allowed = ", or ".join(one["allowed"] for one in branches if "allowed" in one)
        if detail["type"] == "missing":
            value, allowed = "nothing", f"required: {allowed}" if allowed else "required"
        elif not allowed and detail["type"] in UNKNOWN:
            path.append(detail["loc"][-1])
            known = [key for branch in branches for key in branch.get("properties", ())]
            close = get_close_matches(str(path[-1]), known, n=1)
            allowed = f"no such field; did you mean {close[0]}?" if close else "no such field"
        elif not allowed and detail["type"] == "model_type":
            allowed = "an object"
        elif not allowed:
            allowed = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        found.append(Violation(".".join(map(show_name, path)) or "payload", value, allowed))
    return tuple(found)


def parse_text(model: type[BaseModel], name: str, text: str) -> object:
    """A shell's text as the JSON value that the type of the field calls for.

    Other text is returned as it is: `validate_fields` names all wrong fields at once.
    """
    schema = _read_schema(model)["properties"].get(name, {})
    kinds = {branch.get("type") for branch in _list_branches(model, schema)}
    value: object = text
    with suppress(ValueError, RecursionError):
        if "null" in kinds and text == "null":
            value = None
        elif "boolean" in kinds:
            value = {"true": True, "false": False}.get(text, text)
        elif "integer" in kinds:
            value = int(text)
        elif "number" in kinds:
            value = float(text)
        elif "object" in kinds and text.startswith("{"):
            value = json.loads(text)
        elif "object" in kinds and (size := _SIZE.fullmatch(text)):
            value = {"width": int(size[1]), "height": int(size[2])}
    return value


def _list_branches(model: type[BaseModel], schema: Schema) -> list[Schema]:
    """The types that a schema allows, each one resolved."""
    branches = schema.get("anyOf") or schema.get("oneOf") or [schema]
    named = _read_schema(model).get("$defs", {})
    return [named[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in branches]


@cache
def _read_schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def show_name(name: object) -> str:
    plain = isinstance(name, str) and name.isidentifier() and len(name) <= SHOWN_CHARACTERS
    return str(name) if plain else show_value(name)


def show_value(value: object) -> str:
    """A value as JSON on one line, of at most SHOWN_CHARACTERS characters.

    Never raises: what JSON cannot hold is shown as Python would.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, skipkeys=True, default=repr)
    except (ValueError, RecursionError):  # too deep, or an integer of too many digits
        text = f"<{type(value).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"

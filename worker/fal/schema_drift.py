"""Where our model of the endpoint and its published OpenAPI document differ; pure.

Our own bounds on text, which fal does not have, are no difference: they refuse what nobody sends.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, JsonValue

from worker.fal.extend_video import ExtendVideoInput, ExtendVideoOutput
from worker.fal.schema_shape import Member, Range, Reader, Shape
from worker.ground.errors import SchemaUnreadableError

DEFAULT = "default"


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


@dataclass(frozen=True, slots=True)
class Contract:
    """What the endpoint takes and gives."""

    input: Shape
    output: Shape


def compare_document(document: JsonValue, endpoint: str) -> list[Drift]:
    """Every difference, by field. Raises SchemaUnreadableError if it is not the endpoint's."""
    theirs, ours = read_contract(document, endpoint), read_own_contract()
    return [
        *compare_members("input", ours.input.members, theirs.input.members),
        *(
            one
            for one in compare_members("output", ours.output.members, theirs.output.members)
            # Nobody chooses what is left out of a result.
            if not one.is_default
        ),
    ]


def read_own_contract() -> Contract:
    return Contract(_read_model(ExtendVideoInput), _read_model(ExtendVideoOutput))


def read_contract(document: JsonValue, endpoint: str) -> Contract:
    """The endpoint's input and output; a reply of the platform API may be around the document."""
    inner = _unwrap(document, endpoint)
    paths = inner.get("paths")
    if not isinstance(paths, dict):
        raise SchemaUnreadableError("the document has no paths: it is no OpenAPI document")
    path = f"/{endpoint}"
    given = _dig(paths, path, "post", "requestBody", "content", "application/json", "schema")
    if given is None:
        known = ", ".join(sorted(paths)[:5])
        raise SchemaUnreadableError(f"the document has no POST {path}; it has {known}")
    answer = ("responses", "200", "content", "application/json", "schema")
    result = _dig(paths, f"{path}/requests/{{request_id}}", "get", *answer)
    if result is None:
        result = _dig(paths, path, "post", *answer)
    reader = Reader(inner)
    return Contract(reader.read(given), reader.read(result))


def compare_members(
    place: str, ours: Mapping[str, Member], theirs: Mapping[str, Member]
) -> Iterator[Drift]:
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        path = f"{place}.{name}"
        if name not in theirs:
            yield Drift(Change.REMOVED, path, "field", ours=describe_member(ours[name]))
        elif name not in ours:
            yield Drift(Change.ADDED, path, "field", theirs=describe_member(theirs[name]))
        else:
            yield from _compare_member(path, ours[name], theirs[name])


def describe_member(member: Member) -> str:
    """In words: kinds, values or range, whether it is required, its default."""
    shape = member.shape
    words = [_show_kinds(shape)]
    if shape.values is not None:
        words.append(_show_values(shape.values))
    if shape.range != Range():
        words.append(show_range(shape.range))
    words.append("required" if member.is_required else f"default {member.default or 'none'}")
    return ", ".join(words)


def show_range(found: Range) -> str:
    """As in `9..481`; `>0..1` leaves the 0 out."""
    low = "" if found.low is None else f"{'>' if found.is_low_exclusive else ''}{found.low:g}"
    high = "" if found.high is None else f"{'<' if found.is_high_exclusive else ''}{found.high:g}"
    return f"{low}..{high}" if low or high else "any"


def _compare_member(path: str, ours: Member, theirs: Member) -> Iterator[Drift]:
    yield from compare_shapes(path, ours.shape, theirs.shape)
    if ours.is_required != theirs.is_required:
        words = {True: "required", False: "optional"}
        yield _changed(path, "required", words[ours.is_required], words[theirs.is_required])
    if ours.default != theirs.default:
        yield _changed(path, DEFAULT, ours.default or "none", theirs.default or "none")


def compare_shapes(path: str, ours: Shape, theirs: Shape) -> Iterator[Drift]:
    if ours.kinds != theirs.kinds:
        yield _changed(path, "type", _show_kinds(ours), _show_kinds(theirs))
    if ours.values != theirs.values:
        yield _changed(path, "values", _show_values(ours.values), _show_values(theirs.values))
    if ours.range != theirs.range:
        yield _changed(path, "range", show_range(ours.range), show_range(theirs.range))
    if ours.step != theirs.step:
        yield _changed(path, "step", f"{ours.step or 'any'}", f"{theirs.step or 'any'}")
    if theirs.pattern not in {None, ours.pattern}:
        yield _changed(path, "pattern", ours.pattern or "any", str(theirs.pattern))
    yield from _compare_lengths(path, ours, theirs)
    if "object" in ours.kinds & theirs.kinds:
        yield from compare_members(path, ours.members, theirs.members)
    if ours.items is not None and theirs.items is not None:
        yield from compare_shapes(f"{path}[]", ours.items, theirs.items)


def _compare_lengths(path: str, ours: Shape, theirs: Shape) -> Iterator[Drift]:
    """Only where fal would refuse what we take."""
    longest = theirs.longest
    is_shorter = longest is not None and (ours.longest is None or longest < ours.longest)
    if is_shorter or theirs.shortest > ours.shortest:
        texts = [f"{one.shortest} to {one.longest or 'any'}" for one in (ours, theirs)]
        yield _changed(path, "length", *texts)


def _changed(path: str, aspect: str, ours: str, theirs: str) -> Drift:
    return Drift(Change.CHANGED, path, aspect, ours, theirs)


def _show_kinds(shape: Shape) -> str:
    return " or ".join(sorted(shape.kinds, key=lambda kind: (kind == "null", kind)))


def _show_values(values: frozenset[str] | None) -> str:
    return "any" if values is None else " | ".join(sorted(values))


def _read_model(model: type[BaseModel]) -> Shape:
    schema = model.model_json_schema()
    return Reader(schema).read(schema)


def _unwrap(document: JsonValue, endpoint: str) -> dict[str, JsonValue]:
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

"""What differs between our model and a published document, however the document spells it."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.fal.model import ExtendVideoInput, ExtendVideoOutput
from worker.fal.schema import Change, Drift, compare_document
from worker.ground.errors import SchemaUnreadableError

ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"
REFS = "#/components/schemas/"
Document = dict[str, Any]
# As fal's own generator writes: none of our text bounds, none of our words.
OURS_ONLY = {"maxLength", "allowed", "description", "title", "$defs", "additionalProperties"}
SEED = {"anyOf": [{"type": "integer"}, {"type": "null"}]}


def clean(schema: Any) -> Any:
    match schema:
        case dict():
            kept = {name: clean(value) for name, value in schema.items() if name not in OURS_ONLY}
            return {
                name: value.replace("#/$defs/", REFS) if name == "$ref" else value
                for name, value in kept.items()
                if not (name == "default" and value is None)
            }
        case list():
            return [clean(one) for one in schema]
        case _:
            return schema


def describe(name: str) -> Document:
    return {"application/json": {"schema": {"$ref": f"{REFS}{name}"}}}


def build_document() -> Document:
    """A document of an endpoint that is just as our model has it."""
    given = ExtendVideoInput.model_json_schema()
    output = ExtendVideoOutput.model_json_schema()
    schemas = {**given["$defs"], **output["$defs"], "Given": given, "Output": output}
    document: Document = {
        "openapi": "3.0.4",
        "components": {"schemas": clean(schemas)},
        "paths": {
            f"/{ENDPOINT}": {"post": {"requestBody": {"content": describe("Given")}}},
            f"/{ENDPOINT}/requests/{{request_id}}": {
                "get": {"responses": {"200": {"content": describe("Output")}}}
            },
        },
    }
    schedulers = ["ltx2", "linear_quadratic", "beta"]
    document["components"]["schemas"]["Scheduler"] = {"type": "string", "enum": schedulers}
    document["components"]["schemas"]["Given"]["properties"]["seed"] = copy.deepcopy(SEED)
    return document


def edit(document: Document, field: str, **changes: Any) -> Document:
    """The document with a field changed; a change to `...` takes a key away."""
    schemas = document["components"]["schemas"]
    place = schemas["Output" if field.startswith("output.") else "Given"]
    *path, name = field.split(".")[1:]
    for step in path:
        place = schemas[place["properties"][step]["$ref"].removeprefix(REFS)]
    known = place["properties"].get(name, {}) | changes
    place["properties"][name] = {key: value for key, value in known.items() if value is not ...}
    return document


def compare(document: Document) -> list[Drift]:
    return compare_document(document, ENDPOINT)


def test_document_of_our_own_model_shows_no_drift() -> None:
    assert compare(build_document()) == []


@pytest.mark.parametrize(
    ("field", "changes", "expected"),
    [
        ("input.num_frames", {"maximum": 241}, ("range", "9..481", "9..241")),
        ("input.fps", {"minimum": ..., "exclusiveMinimum": 1}, ("range", "1..60", ">1..60")),
        ("input.num_frames", {"type": "number"}, ("type", "integer", "number")),
        ("input.generate_audio", {"nullable": True}, ("type", "boolean", "boolean or null")),
        ("input.prompt", {"maxLength": 5000}, ("length", "65536", "5000")),
        ("output.seed", {"type": "string"}, ("type", "integer", "string")),
        ("input.num_inference_steps", {"default": 40}, ("default", "15", "40")),
        ("input.use_restart_sampling", {"default": ...}, ("default", "true", "none")),
    ],
)
def test_change_of_one_field_is_the_one_drift(field, changes, expected) -> None:
    drift = Drift(Change.CHANGED, field, *expected)
    assert compare(edit(build_document(), field, **changes)) == [drift]
    assert drift.is_default == (expected[0] == "default")


def test_other_spelling_of_the_same_is_no_drift() -> None:
    changes: list[tuple[str, Document]] = [
        ("input.prompt", {"maxLength": 100_000, "minLength": 0}),
        ("input.num_frames", {"minimum": ..., "exclusiveMinimum": 8, "default": 121.0}),
        ("input.num_frames", {"title": "Frames", "description": "How many"}),
        ("input.seed", {"anyOf": ..., "type": ["integer", "null"], "default": None}),
        ("input.seed", {"anyOf": ..., "type": "integer", "nullable": True}),
        ("input.scheduler", {"type": ..., "enum": ..., "allOf": [{"$ref": f"{REFS}Scheduler"}]}),
    ]
    for field, change in changes:
        assert compare(edit(build_document(), field, **change)) == []


def test_new_fields_are_added_and_lost_ones_removed() -> None:
    document = build_document()
    edit(document, "input.lora", type="string", enum=["a", "b"], default="a")
    edit(document, "output.video.codec", type="string")
    schemas = document["components"]["schemas"]
    del schemas["Given"]["properties"]["fps"]
    del schemas["ImageSize"]["properties"]["height"]
    found = {one.field: (one.change, one.ours, one.theirs) for one in compare(document)}
    assert found == {
        "input.lora": (Change.ADDED, None, 'string, "a" | "b", default "a"'),
        "output.video.codec": (Change.ADDED, None, "string, default none"),
        "input.fps": (Change.REMOVED, "number, 1..60, default 24", None),
        "input.video_size.height": found["input.video_size.height"],
    }


def test_other_values_and_a_field_that_becomes_required_are_drifts() -> None:
    document = build_document()
    schemas = document["components"]["schemas"]
    schemas["Given"]["properties"]["acceleration"]["enum"] = ["none", "regular", "turbo"]
    schemas["Given"]["required"].append("end_image_url")
    found = {(one.field, one.aspect): (one.ours, one.theirs) for one in compare(document)}
    assert found == {
        ("input.end_image_url", "required"): ("optional", "required"),
        ("input.acceleration", "values"): (
            '"full" | "high" | "none" | "regular"',
            '"none" | "regular" | "turbo"',
        ),
    }


def test_document_may_stand_in_the_platforms_reply() -> None:
    models: list[Any] = [
        {"endpoint_id": "other/app"},
        {"endpoint_id": ENDPOINT, "openapi": build_document()},
    ]
    assert compare_document({"models": models}, ENDPOINT) == []


@pytest.mark.parametrize(
    "document", [None, {}, {"paths": {"/a/b": {}}}, {"models": [{"endpoint_id": ENDPOINT}]}]
)
def test_what_is_not_the_endpoints_document_is_refused(document) -> None:
    with pytest.raises(SchemaUnreadableError, match="no OpenAPI document with POST /fal-ai/"):
        compare_document(document, ENDPOINT)


NAMES = ["$ref", "allOf", "anyOf", "type", "enum", "nullable", "properties", "items", "default"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner | st.sampled_from(["#", "#/x", "#/anyOf/0", "http://x/", "string", "object"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_comparing_any_schema_with_ours_never_raises(value) -> None:
    document = build_document()
    document["components"]["schemas"]["Given"] = value
    for drift in compare(document):
        assert json.dumps(drift.change)
        assert drift.ours or drift.theirs

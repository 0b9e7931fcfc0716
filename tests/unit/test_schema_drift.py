"""What differs between our model and a published document, however the document spells it."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import SchemaUnreadableError
from worker.fal.extend_video import ExtendVideoInput, ExtendVideoOutput
from worker.fal.schema_drift import Change, Drift, compare_document, compare_shapes
from worker.fal.schema_shape import ANYTHING, Range, Reader, Shape

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


def changed(field: str, aspect: str, ours: str, theirs: str) -> list[Drift]:
    return [Drift(Change.CHANGED, field, aspect, ours, theirs)]


def test_document_of_our_own_model_shows_no_drift() -> None:
    assert compare(build_document()) == []


@pytest.mark.parametrize(
    ("field", "changes", "expected"),
    [
        ("input.num_frames", {"maximum": 241}, ("range", "9..481", "9..241")),
        ("input.num_frames", {"minimum": ...}, ("range", "9..481", "..481")),
        ("input.fps", {"minimum": ..., "exclusiveMinimum": 1}, ("range", "1..60", ">1..60")),
        ("input.fps", {"exclusiveMaximum": True}, ("range", "1..60", "1..<60")),
        ("input.num_frames", {"type": "number"}, ("type", "integer", "number")),
        ("input.generate_audio", {"type": "string"}, ("type", "boolean", "string")),
        ("input.generate_audio", {"nullable": True}, ("type", "boolean", "boolean or null")),
        ("input.fps", {"multipleOf": 0.5}, ("step", "any", "0.5")),
        ("input.prompt", {"maxLength": 5000}, ("length", "0 to 65536", "0 to 5000")),
        ("input.prompt", {"minLength": 2}, ("length", "0 to 65536", "2 to any")),
        ("input.prompt", {"pattern": "^a"}, ("pattern", "any", "^a")),
        ("input.seed", {"anyOf": ..., "type": "integer"}, ("type", "integer or null", "integer")),
        ("output.seed", {"type": "string"}, ("type", "integer", "string")),
        ("input.num_inference_steps", {"default": 40}, ("default", "15", "40")),
        ("input.use_restart_sampling", {"default": False}, ("default", "true", "false")),
        ("input.use_restart_sampling", {"default": 1}, ("default", "true", "1")),
        ("input.use_restart_sampling", {"default": ...}, ("default", "true", "none")),
        ("input.scheduler", {"default": "ltx2"}, ("default", '"beta"', '"ltx2"')),
    ],
)
def test_change_of_one_field_is_the_one_drift(field, changes, expected) -> None:
    assert compare(edit(build_document(), field, **changes)) == changed(field, *expected)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("input.prompt", {"maxLength": 65536}),
        ("input.prompt", {"maxLength": 100_000, "minLength": 0}),
        ("input.num_frames", {"minimum": 9.0, "maximum": 481.0, "default": 121.0}),
        ("input.num_frames", {"minimum": ..., "exclusiveMinimum": 8}),
        ("input.num_frames", {"minimum": 8, "exclusiveMinimum": True}),
        ("input.num_frames", {"title": "Frames", "description": "How many", "examples": [121]}),
        ("input.fps", {"type": ["number"]}),
        ("input.seed", {"anyOf": ..., "type": ["integer", "null"]}),
        ("input.seed", {"anyOf": ..., "type": "integer", "nullable": True}),
        ("input.seed", {"anyOf": ..., "oneOf": SEED["anyOf"]}),
        ("input.seed", {"default": None}),
        ("input.scheduler", {"$ref": ..., "allOf": [{"$ref": f"{REFS}Scheduler"}]}),
        (
            "input.scheduler",
            {"$ref": ..., "anyOf": [{"const": "beta"}, {"enum": ["ltx2", "linear_quadratic"]}]},
        ),
    ],
)
def test_other_spelling_of_the_same_is_no_drift(field, changes) -> None:
    document = edit(build_document(), field, **changes)
    assert [one for one in compare(document) if not one.is_default or changes == {}] == []
    assert compare(document) == []


def test_new_field_is_added_with_all_that_is_told_of_it() -> None:
    document = build_document()
    edit(document, "input.lora", type="string", enum=["a", "b"], default="a")
    edit(document, "input.strength", type="number", minimum=0, maximum=1)
    edit(document, "output.video.codec", type="string")
    assert compare(document) == [
        Drift(Change.ADDED, "input.lora", "field", None, 'string, "a" | "b", default "a"'),
        Drift(Change.ADDED, "input.strength", "field", None, "number, 0..1, default none"),
        Drift(Change.ADDED, "output.video.codec", "field", None, "string, default none"),
    ]


def test_fields_that_are_gone_are_removed() -> None:
    document = build_document()
    schemas = document["components"]["schemas"]
    del schemas["Given"]["properties"]["fps"]
    del schemas["ImageSize"]["properties"]["height"]
    del schemas["VideoFile"]["properties"]["fps"]
    assert [(one.change, one.field) for one in compare(document)] == [
        (Change.REMOVED, "input.video_size.height"),
        (Change.REMOVED, "input.fps"),
        (Change.REMOVED, "output.video.fps"),
    ]
    assert compare(document)[1].ours == "number, 1..60, default 24"


def test_other_values_are_a_drift_with_both_lists() -> None:
    document = build_document()
    document["components"]["schemas"]["Acceleration"]["enum"] = ["none", "regular", "turbo"]
    (drift,) = compare(document)
    assert (drift.field, drift.aspect) == ("input.acceleration", "values")
    assert drift.ours == '"full" | "high" | "none" | "regular"'
    assert drift.theirs == '"none" | "regular" | "turbo"'


def test_free_text_in_place_of_values_is_a_drift() -> None:
    document = build_document()
    document["components"]["schemas"]["Scheduler"] = {"type": "string"}
    assert [(one.aspect, one.theirs) for one in compare(document)] == [("values", "any")]


def test_field_that_becomes_required_is_a_drift() -> None:
    document = build_document()
    document["components"]["schemas"]["Given"]["required"].append("end_image_url")
    assert compare(document) == changed("input.end_image_url", "required", "optional", "required")


def test_defaults_of_last_may_are_seven_and_nothing_else() -> None:
    """What fal changed within a month, as ADR 6 tells."""
    document = build_document()
    newer = {
        "num_inference_steps": 40,
        "scheduler": "ltx2",
        "acceleration": "regular",
        "video_stg_scale": 0,
        "video_rescaling_scale": 0.7,
        "gradient_estimation_gamma": 2,
        "use_restart_sampling": False,
    }
    for name, value in newer.items():
        edit(document, f"input.{name}", default=value)
    found = compare(document)
    assert {one.field.removeprefix("input.") for one in found} == set(newer)
    assert all(one.is_default for one in found)


def test_document_may_stand_in_the_platforms_reply() -> None:
    models = [{"endpoint_id": "other/app"}, {"endpoint_id": ENDPOINT, "openapi": build_document()}]
    assert compare({"models": models}) == []


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (None, "no JSON object"),
        ([], "no JSON object"),
        ({}, "no paths"),
        ({"paths": {"/a/b": {}}}, "no POST"),
        ({"models": []}, "does not list"),
        ({"models": [{"endpoint_id": ENDPOINT}]}, "shows no OpenAPI"),
        ({"models": [{"endpoint_id": ENDPOINT, "openapi": {"error": {}}}]}, "no paths"),
    ],
)
def test_what_is_not_the_endpoints_document_is_refused(document, reason) -> None:
    with pytest.raises(SchemaUnreadableError, match=reason):
        compare_document(document, ENDPOINT)


def test_endpoint_without_a_known_result_misses_its_fields() -> None:
    document = build_document()
    del document["paths"][f"/{ENDPOINT}/requests/{{request_id}}"]
    assert [one.field for one in compare(document)] == [
        "output.video",
        "output.seed",
        "output.prompt",
    ]


# ------------------------------------------------------------------ any schema at all

NUMBERS = st.integers(-1000, 1000)
SCALARS = st.one_of(
    st.builds(
        lambda values: {"type": "string", "enum": sorted(values)},
        st.sets(st.text(max_size=3), min_size=1),
    ),
    st.just({"type": "string"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        NUMBERS,
        st.integers(0, 100),
    ),
    st.builds(lambda low: {"type": "number", "minimum": low}, NUMBERS),
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(
            lambda members: {
                "type": "object",
                "properties": members,
                "required": sorted(members)[:1],
            },
            st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
        ),
        st.builds(lambda items: {"type": "array", "items": items}, inner),
    ),
    max_leaves=6,
)


def respell(schema: Document, draw: Any, defined: Document) -> Document:
    """The same schema in another form that means the same."""
    told = dict(schema)
    if "properties" in told:
        told["properties"] = {
            name: respell(inner, draw, defined) for name, inner in told["properties"].items()
        }
    if "items" in told:
        told["items"] = respell(told["items"], draw, defined)
    match draw(st.integers(0, 5)):
        case 0:
            name = f"a/b~{len(defined)}"
            defined[name] = told
            return {"$ref": "#/defined/" + name.replace("~", "~0").replace("/", "~1")}
        case 1:
            return {"allOf": [told], "description": "beside"}
        case 2:
            return {"anyOf": [told]}
        case 3:
            return {"oneOf": [{"allOf": [told]}, told]}
        case 4:
            return {**told, "type": [told["type"]]}
        case _:
            return told


@given(st.data(), SCHEMAS)
def test_any_schema_reads_the_same_in_every_spelling(data, schema) -> None:
    defined: Document = {}
    spelled = respell(schema, data.draw, defined)
    known = Reader({"defined": defined}).read(spelled)
    plain = Reader({}).read(schema)
    assert known == plain
    assert list(compare_shapes("x", plain, known)) == []


@given(SCHEMAS, st.sampled_from(["nullable", "anyOf", "list", "enum"]))
def test_null_is_read_in_every_form(schema, form) -> None:
    forms = {
        "nullable": {**schema, "nullable": True},
        "anyOf": {"anyOf": [schema, {"type": "null"}]},
        "list": {**schema, "type": [schema["type"], "null"]},
        "enum": {"oneOf": [schema, {"enum": [None]}]},
    }
    plain, known = Reader({}).read(schema), Reader({}).read(forms[form])
    assert known.kinds == plain.kinds | {"null"}
    assert (known.values, known.range, known.members) == (plain.values, plain.range, plain.members)


@given(SCHEMAS, SCHEMAS)
def test_drift_between_two_schemas_is_none_exactly_if_they_allow_the_same(one, other) -> None:
    ours, theirs = Reader({}).read(one), Reader({}).read(other)
    assert (list(compare_shapes("x", ours, theirs)) == []) is (ours == theirs)


NAMES = [
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "type",
    "enum",
    "const",
    "nullable",
    "properties",
    "required",
    "items",
    "default",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "x",
]
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


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_reading_any_json_never_raises(value) -> None:
    document = value if isinstance(value, dict) else {"x": value}
    shape = Reader(document).read(document)
    assert list(compare_shapes("x", shape, shape)) == []


@settings(deadline=None, max_examples=50)
@given(JSON)
def test_comparing_any_schema_with_ours_never_raises(value) -> None:
    document = build_document()
    document["components"]["schemas"]["Given"] = value
    for drift in compare(document):
        assert json.dumps(drift.change)
        assert drift.ours or drift.theirs


def test_schema_of_itself_ends() -> None:
    document: Document = {"a": {"properties": {"inner": {"$ref": "#/a"}, "n": {"type": "integer"}}}}
    shape = Reader(document).read({"$ref": "#/a"})
    assert shape.members["inner"].shape == ANYTHING
    assert shape.members["n"].shape == Shape(frozenset({"integer"}))


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "integer"}]}, Range()),
        (
            {
                "anyOf": [
                    {"type": "number", "exclusiveMinimum": 1},
                    {"type": "number", "minimum": 1},
                ]
            },
            Range(1),
        ),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, Range()),
        ({"type": "integer", "exclusiveMaximum": 10}, Range(None, 9)),
        ({"type": "string", "minimum": 3}, Range()),
        ({"type": "integer", "minimum": "3", "maximum": True}, Range()),
    ],
)
def test_range_is_the_widest_of_the_branches(schema, expected) -> None:
    assert Reader({}).read(schema).range == expected

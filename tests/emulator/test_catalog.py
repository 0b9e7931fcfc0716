"""The platform's description of the model, its document and its price."""

from typing import Any

import httpx
import pytest

from emulator.schema import FIELDS
from tests.emulator.conftest import lay_out
from tests.emulator.processes import Emulator, start_emulator

ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"
PRICING = "/v1/models/pricing"


def fetch_document(quick) -> dict[str, Any]:
    query = {"endpoint_id": ENDPOINT, "expand": "openapi-3.0"}
    [model] = httpx.get(f"{quick.url}/v1/models", params=query).json()["models"]
    return dict(model["openapi"])


def find_input(document: dict[str, Any]) -> dict[str, Any]:
    """The input's schema, by way of the submission's reference."""
    body = document["paths"][f"/{ENDPOINT}"]["post"]["requestBody"]
    reference = body["content"]["application/json"]["schema"]["$ref"]
    return dict(document["components"]["schemas"][reference.rpartition("/")[2]])


def test_document_describes_every_field_in_order(quick):
    schema = find_input(fetch_document(quick))
    assert list(schema["properties"]) == list(FIELDS)
    assert schema["x-fal-order-properties"] == list(FIELDS)
    assert schema["required"] == ["prompt", "video_url"]
    assert len(FIELDS) == 39


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("num_frames", {"type": "integer", "minimum": 9, "maximum": 481, "default": 121}),
        ("fps", {"type": "number", "minimum": 1, "maximum": 60, "default": 24}),
        ("seed", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ("sync_mode", {"type": "boolean", "default": False}),
        (
            "scheduler",
            {"type": "string", "enum": ["ltx2", "linear_quadratic", "beta"], "default": "ltx2"},
        ),
    ],
)
def test_document_tells_type_range_and_default(quick, name, expected):
    said = find_input(fetch_document(quick))["properties"][name]
    assert {key: value for key, value in said.items() if key != "title"} == expected


def test_every_reference_of_the_document_leads_somewhere(quick):
    document = fetch_document(quick)
    names = document["components"]["schemas"]
    found = list_references(document)
    assert len(found) > 5
    assert [one for one in found if one.rpartition("/")[2] not in names] == []


def list_references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [one for inner in value.values() for one in list_references(inner)]
    inners = value if isinstance(value, list) else []
    return [one for inner in inners for one in list_references(inner)]


def test_document_is_served_by_itself_too(quick):
    url = f"{quick.url}/api/openapi/queue/openapi.json"
    alone = httpx.get(url, params={"endpoint_id": ENDPOINT})
    assert alone.json() == fetch_document(quick)
    assert httpx.get(url, params={"endpoint_id": "a/b"}).status_code == 404


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, 1),
        ({"q": "lipstick"}, 0),
        ({"category": "video-to-video", "status": "active"}, 1),
    ],
)
def test_model_is_found_by_what_it_is(quick, query, found):
    page = httpx.get(f"{quick.url}/v1/models", params=query).json()
    assert [one["endpoint_id"] for one in page["models"]] == [ENDPOINT] * found
    assert (page["next_cursor"], page["has_more"]) == (None, False)


def test_model_tells_no_more_than_was_asked_for(quick):
    [plain] = httpx.get(f"{quick.url}/v1/models").json()["models"]
    query = {"expand": "enterprise_status"}
    [more] = httpx.get(f"{quick.url}/v1/models", params=query).json()["models"]
    assert set(plain) == {"endpoint_id", "metadata"}
    assert set(more) == {"endpoint_id", "metadata", "enterprise_status"}


@pytest.mark.parametrize(
    ("path", "code", "kind"),
    [
        ("/v1/models?endpoint_id=a/b", 404, "not_found"),
        ("/v1/models?expand=colours", 400, "validation_error"),
        (f"{PRICING}?endpoint_id=a/b,{ENDPOINT}", 404, "not_found"),
        (PRICING, 400, "validation_error"),
    ],
)
def test_wrong_question_is_refused_in_the_platforms_envelope(quick, path, code, kind):
    response = quick.client.get(path)
    assert (response.status_code, response.json()["error"]["type"]) == (code, kind)


# ------------------------------------------------------------------ price


def test_price_is_told_per_megapixel(quick):
    assert quick.client.get(PRICING, params={"endpoint_id": ENDPOINT}).json() == {
        "prices": [
            {
                "endpoint_id": ENDPOINT,
                "unit_price": 0.001605,
                "unit": "megapixel",
                "currency": "USD",
            }
        ],
        "next_cursor": None,
        "has_more": False,
    }


def test_price_is_asked_for_with_the_key(quick):
    assert httpx.get(f"{quick.url}{PRICING}").status_code == 401
    assert httpx.post(f"{quick.url}{PRICING}/estimate").status_code == 401


def estimate(
    emulator: Emulator, kind: object, entry: object, endpoint: str = ENDPOINT
) -> httpx.Response:
    body = {"estimate_type": kind, "endpoints": {endpoint: entry}}
    return emulator.client.post(f"{PRICING}/estimate", json=body)


def test_estimate_by_units_multiplies_the_price(quick):
    reply = estimate(quick, "unit_price", {"unit_quantity": 112}).json()
    assert reply == {"estimate_type": "unit_price", "total_cost": 0.17976, "currency": "USD"}


def test_estimate_by_calls_goes_by_what_calls_cost_so_far(tmp_path, sample):
    with start_emulator(lay_out(tmp_path / "a", sample), "--render", "fake") as emulator:
        before = estimate(emulator, "historical_api_price", {"call_quantity": 2}).json()
        result = emulator.get_result(emulator.submit({"num_frames": 481}))
        after = estimate(emulator, "historical_api_price", {"call_quantity": 10}).json()
    units = int(result.headers["X-Fal-Billable-Units"])
    assert before["total_cost"] == pytest.approx(2 * 112 * 0.001605)
    assert after["total_cost"] == pytest.approx(10 * units * 0.001605)


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("guess", {"unit_quantity": 1}),
        ("unit_price", {"unit_quantity": "1"}),
        ("unit_price", 1),
    ],
)
def test_wrong_estimate_is_refused(quick, kind, entry):
    response = estimate(quick, kind, entry)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "validation_error")


def test_estimate_of_nothing_is_refused(quick):
    assert quick.client.post(f"{PRICING}/estimate", content=b"{").status_code == 400


def test_estimate_for_another_endpoint_is_not_found(quick):
    response = estimate(quick, "unit_price", {"unit_quantity": 1}, endpoint="a/b")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found")

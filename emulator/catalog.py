"""`/v1/models…`: the platform's description of the one model there is, and what it costs."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

from aiohttp import web

from emulator.faults import Fault
from emulator.openapi import compose_document
from emulator.queue_routes import ENDPOINT, QUEUE
from emulator.spoiling import answer, compose_platform_error

UNIT_PRICE = Decimal("0.001605")
PRICE = web.AppKey("price", Decimal)
"""Of a megapixel, in USD: what is shown, and what is billed."""
UNIT = "megapixel"
CURRENCY = "USD"
USUAL_UNITS = 112
"""Of a call with 121 frames of 1280 by 720: what is assumed where no call was made yet."""
EXPANSIONS = ("openapi-3.0", "enterprise_status")
MOST_ENDPOINTS = 50
FEWEST_UNITS = 1e-6
NOT_FOUND = 404
METADATA = {
    "display_name": "LTX-2.3 22B Extend Video",
    "category": "video-to-video",
    "description": "Extends a video, forward or backward. Served by the extend-video emulator.",
    "status": "active",
    "tags": ["extend-video"],
    "updated_at": datetime(2026, 8, 2, tzinfo=UTC).isoformat(),
    "is_favorited": False,
    "thumbnail_url": "",
    "model_url": f"https://fal.run/{ENDPOINT}",
    "license_type": "commercial",
    "date": datetime(2026, 4, 16, tzinfo=UTC).isoformat(),
    "highlighted": False,
    "kind": "inference",
    "pinned": False,
}


class UnknownEndpointError(Exception):
    """There is no such model here."""


def add_catalog_routes(app: web.Application) -> None:
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/pricing", show_prices)
    app.router.add_post("/v1/models/pricing/estimate", estimate)
    app.router.add_get("/api/openapi/queue/openapi.json", show_document)


async def list_models(request: web.Request) -> web.Response:
    """Without `endpoint_id` a search: the model is found by a part of its name or category."""
    try:
        expansions = read_expansions(request)
        endpoints = read_endpoints(request)
        found = bool(endpoints) or is_sought(request)
    except UnknownEndpointError as error:
        return refuse(NOT_FOUND, error)
    except ValueError as error:
        return refuse(400, error)
    models = [describe_model(expansions)] if found else []
    return web.json_response({"models": models, "next_cursor": None, "has_more": False})


async def show_document(request: web.Request) -> web.Response:
    if request.query.get("endpoint_id") != ENDPOINT:
        return web.json_response({"detail": "Endpoint not found"}, status=NOT_FOUND)
    return web.json_response(compose_document())


async def show_prices(request: web.Request) -> web.Response:
    try:
        endpoints = read_endpoints(request)
        if not endpoints:
            return refuse(400, f"endpoint_id: from 1 to {MOST_ENDPOINTS} are required")
    except UnknownEndpointError as error:
        return refuse(NOT_FOUND, error)
    except ValueError as error:
        return refuse(400, error)

    def compose(fault: Fault | None) -> web.Response:
        unit_price = float(choose_price(request.app[PRICE], fault))
        price = {"unit_price": unit_price, "unit": UNIT, "currency": CURRENCY}
        prices = [{"endpoint_id": ENDPOINT, **price}]
        return web.json_response({"prices": prices, "next_cursor": None, "has_more": False})

    return await answer(request, "pricing", None, compose)


def choose_price(usual: Decimal, fault: Fault | None) -> Decimal:
    """The fault's, if it is one of price."""
    if fault is None or fault.kind != "other_price":
        return usual
    return Decimal(fault.options["unit_price"])


async def estimate(request: web.Request) -> web.Response:
    """By units, or by calls as costly as those made so far were on average."""
    try:
        kind, quantity = read_estimate(await request.read())
    except UnknownEndpointError as error:
        return refuse(NOT_FOUND, error)
    except ValueError as error:
        return refuse(400, error)
    units = quantity * (1 if kind == "unit_price" else find_usual_units(request))
    cost = round(units * float(request.app[PRICE]), 6)
    return web.json_response({"estimate_type": kind, "total_cost": cost, "currency": CURRENCY})


def find_usual_units(request: web.Request) -> float:
    """What a call was billed on average, or a usual one where none was."""
    outcomes = [one.outcome for one in request.app[QUEUE].requests if one.outcome is not None]
    billed = [one.headers.get("X-Fal-Billable-Units") for one in outcomes]
    units = [float(one) for one in billed if one is not None]
    return sum(units) / len(units) if units else USUAL_UNITS


def describe_model(expansions: list[str]) -> dict[str, object]:
    model: dict[str, object] = {"endpoint_id": ENDPOINT, "metadata": METADATA}
    if "enterprise_status" in expansions:
        model["enterprise_status"] = "ready"
    if "openapi-3.0" in expansions:
        model["openapi"] = compose_document()
    return model


def is_sought(request: web.Request) -> bool:
    wanted = {name: request.query.get(name, "").lower() for name in ("q", "category", "status")}
    return (
        wanted["q"] in f"{ENDPOINT} {METADATA['display_name']}".lower()
        and wanted["category"] in ("", METADATA["category"])
        and wanted["status"] in ("", METADATA["status"])
    )


def read_expansions(request: web.Request) -> list[str]:
    """Raises ValueError: unknown ones."""
    given = [one for text in request.query.getall("expand", []) for one in text.split(",")]
    if unknown := [one for one in given if one not in EXPANSIONS]:
        raise ValueError(f"expand: unknown {unknown}; known: {', '.join(EXPANSIONS)}")
    return given


def read_endpoints(request: web.Request) -> list[str]:
    """Raises UnknownEndpointError: one that is not here. Raises ValueError: too many."""
    named = [one for text in request.query.getall("endpoint_id", []) for one in text.split(",")]
    endpoints = [one.strip() for one in named if one.strip()]
    if len(endpoints) > MOST_ENDPOINTS:
        raise ValueError(f"endpoint_id: at most {MOST_ENDPOINTS}")
    check_endpoints(endpoints)
    return endpoints


def read_estimate(raw: bytes) -> tuple[str, float]:
    """The kind of estimate, and how many units or calls in all.

    Raises ValueError: the body is of another shape.
    Raises UnknownEndpointError: there is no such model here.
    """
    body = json.loads(raw)
    given = body if isinstance(body, dict) else {}
    kind, endpoints = given.get("estimate_type"), given.get("endpoints")
    names = {"historical_api_price": "call_quantity", "unit_price": "unit_quantity"}
    if kind not in names:
        raise ValueError(f"estimate_type: unknown {kind!r}; known: {', '.join(names)}")
    if not isinstance(endpoints, dict) or not endpoints:
        raise ValueError("endpoints: an object with an entry per endpoint is required")
    check_endpoints(list(endpoints))
    least = 1 if kind == "historical_api_price" else FEWEST_UNITS
    return kind, sum(read_quantity(one, names[kind], least) for one in endpoints.values())


def read_quantity(entry: object, name: str, least: float) -> float:
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        quantity = float(value)
        if math.isfinite(quantity) and quantity >= least:
            return quantity
    raise ValueError(f"{name} must be a number from {least:g}, not {value!r}")


def check_endpoints(endpoints: list[str]) -> None:
    if unknown := [one for one in endpoints if one != ENDPOINT]:
        raise UnknownEndpointError(f"No such endpoint: {', '.join(unknown)}")


def refuse(code: int, reason: object) -> web.Response:
    return web.json_response(compose_platform_error(code, str(reason)), status=code)

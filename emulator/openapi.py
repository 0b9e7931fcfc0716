"""The endpoint's OpenAPI document, made from the table of its fields."""

from collections.abc import Mapping

from emulator.queue_routes import ENDPOINT
from emulator.schema import FIELDS, REQUIRED, SIZES, Field, Flag, Kind, OneOf, Real, Size, Whole

Schema = dict[str, object]

TITLE = "LTX23ExtendVideo"
PREFIX = "Ltx2322bExtendVideo"
REFS = "#/components/schemas/"
LARGEST_SIDE = 14142
VIDEO_FIELDS = {
    "url": "string",
    "content_type": "string",
    "file_name": "string",
    "file_size": "integer",
    "width": "integer",
    "height": "integer",
    "fps": "number",
    "duration": "number",
    "num_frames": "integer",
}


def compose_document() -> Schema:
    page = f"https://fal.ai/models/{ENDPOINT}"
    scheme = {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Fal Key"}
    return {
        "openapi": "3.0.4",
        "info": {
            "title": f"Queue OpenAPI for {ENDPOINT}",
            "version": "1.0.0",
            "description": f"The OpenAPI schema for the {ENDPOINT} queue.",
            "x-fal-metadata": {
                "endpointId": ENDPOINT,
                "category": "video-to-video",
                "playgroundUrl": page,
                "documentationUrl": f"{page}/api",
            },
        },
        "components": {
            "securitySchemes": {"apiKeyAuth": scheme},
            "schemas": {
                "QueueStatus": compose_status(),
                f"{PREFIX}Input": compose_input(FIELDS),
                f"{PREFIX}Output": compose_output(),
                "ImageSize": compose_size(),
                "VideoFile": compose_video(),
            },
        },
        "paths": compose_paths(),
        "servers": [{"url": "https://queue.fal.run"}],
        "security": [{"apiKeyAuth": []}],
    }


def compose_input(fields: Mapping[str, Field]) -> Schema:
    properties = {name: compose_property(name, field) for name, field in fields.items()}
    required = [name for name, field in fields.items() if field.default is REQUIRED]
    return compose_object(f"{TITLE}Input", properties, required)


def compose_property(name: str, field: Field) -> Schema:
    """Optional without a default means that null is accepted too."""
    said = describe_kind(field.kind)
    if field.default is None:
        said = {"anyOf": [said, {"type": "null"}]}
    elif field.default is not REQUIRED:
        said = {**said, "default": field.default}
    return {**said, "title": make_title(name)}


def describe_kind(kind: Kind) -> Schema:
    match kind:
        case Flag():
            return {"type": "boolean"}
        case Whole():
            return {"type": "integer", **describe_range(kind.low, kind.high)}
        case Real():
            return {"type": "number", **describe_range(kind.low, kind.high)}
        case OneOf():
            return {"type": "string", "enum": list(kind.values)}
        case Size():
            named: Schema = {"type": "string", "enum": ["auto", *SIZES]}
            return {"anyOf": [{"$ref": f"{REFS}ImageSize"}, named]}
        case _:
            return {"type": "string"}


def describe_range(low: float | None, high: float | None) -> Schema:
    said = {"minimum": low, "maximum": high}
    return {name: value for name, value in said.items() if value is not None}


def compose_size() -> Schema:
    side = {"type": "integer", "minimum": 1, "maximum": LARGEST_SIDE, "default": 512}
    properties: dict[str, Schema] = {
        name: {**side, "title": make_title(name)} for name in ("width", "height")
    }
    return compose_object("ImageSize", properties, [])


def compose_video() -> Schema:
    """All but `url` may be null."""
    properties: dict[str, Schema] = {
        name: {"anyOf": [{"type": kind}, {"type": "null"}], "title": make_title(name)}
        for name, kind in VIDEO_FIELDS.items()
    }
    properties["url"] = {"type": "string", "title": "Url"}
    return compose_object("VideoFile", properties, ["url"])


def compose_output() -> Schema:
    properties: dict[str, Schema] = {
        "video": {"allOf": [{"$ref": f"{REFS}VideoFile"}], "title": "Video"},
        "seed": {"type": "integer", "title": "Seed"},
        "prompt": {"type": "string", "title": "Prompt"},
    }
    return compose_object(f"{TITLE}Output", properties, list(properties))


def compose_status() -> Schema:
    kinds = {
        "request_id": "string",
        "response_url": "string",
        "status_url": "string",
        "cancel_url": "string",
        "logs": "object",
        "metrics": "object",
        "queue_position": "integer",
    }
    states = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    properties: Schema = {"status": {"type": "string", "enum": states}}
    properties |= {name: {"type": kind} for name, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": ["status", "request_id"]}


def compose_paths() -> Schema:
    one = f"/{ENDPOINT}/requests/{{request_id}}"
    named = {"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}
    logs = {"name": "logs", "in": "query", "required": False, "schema": {"type": "number"}}
    body = {"required": True, "content": refer(f"{PREFIX}Input")}
    success: Schema = {"type": "object", "properties": {"success": {"type": "boolean"}}}
    return {
        f"{one}/status": {
            "get": {"parameters": [named, logs], **answer_with(refer("QueueStatus"))}
        },
        f"{one}/cancel": {
            "put": {"parameters": [named], **answer_with({"application/json": {"schema": success}})}
        },
        f"/{ENDPOINT}": {"post": {"requestBody": body, **answer_with(refer("QueueStatus"))}},
        one: {"get": {"parameters": [named], **answer_with(refer(f"{PREFIX}Output"))}},
    }


def refer(name: str) -> Schema:
    return {"application/json": {"schema": {"$ref": f"{REFS}{name}"}}}


def answer_with(content: Schema) -> Schema:
    return {"responses": {"200": {"description": "OK", "content": content}}}


def compose_object(title: str, properties: Mapping[str, Schema], required: list[str]) -> Schema:
    return {
        "title": title,
        "type": "object",
        "properties": dict(properties),
        "x-fal-order-properties": list(properties),
        "required": required,
    }


def make_title(name: str) -> str:
    return name.replace("_", " ").title()

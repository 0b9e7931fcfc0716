"""Entries of a broker's queue that are no task messages, and one that is, as Redis holds them."""

import base64
import bz2
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

TASK = "extend_video.enqueue"
QUEUE = "extend_video"
FIELDS = {"prompt": "a prompt nobody may log", "video_url": "https://e.com/a.mp4?sig=nobody"}
EMBED: Mapping[str, object] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
BODY = [[], FIELDS, EMBED]
DROP = object()


def build_headers(**changes: object) -> dict[str, Any]:
    own = str(uuid4())
    made = {
        "lang": "js",
        "task": TASK,
        "id": own,
        "root_id": own,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        # As producers write it, prompt and URL included.
        "kwargsrepr": repr(FIELDS),
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not DROP}


def build_entry(body: object, headers: object, *, raw: str | None = None, **changes: object) -> str:
    text = base64.b64encode(json.dumps(body).encode()).decode() if raw is None else raw
    properties = {
        "body_encoding": "base64",
        "correlation_id": str(uuid4()),
        "delivery_mode": 2,
        "priority": 0,
        "delivery_tag": str(uuid4()),
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        **changes,
    }
    kept = {name: value for name, value in properties.items() if value is not DROP}
    return json.dumps(
        {
            "body": text,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": kept,
        }
    )


def build_v1(**changes: object) -> dict[str, object]:
    made = {"id": str(uuid4()), "task": TASK, "args": [], "kwargs": FIELDS, "retries": 0, **changes}
    return {name: value for name, value in made.items() if value is not DROP}


def build_bomb() -> str:
    return base64.b64encode(bz2.compress(b"0" * 10_000_000)).decode()


# What a producer with a fault may send, through any broker: body and headers.
POISON: Mapping[str, tuple[object, dict[str, Any]]] = {
    "no id": (BODY, build_headers(id=DROP, root_id=DROP)),
    "empty id": (BODY, build_headers(id="")),
    "unhashable id": (BODY, build_headers(id={"a": 1})),
    "unhashable task": (BODY, build_headers(task=["a"])),
    "no such task": (BODY, build_headers(task="extend_video.enque")),
    "two items": (BODY[:2], build_headers()),
    "text": ("text", build_headers()),
    "object": ({"a": 1}, build_headers()),
    "NaN": (float("nan"), build_headers()),
    "null": (None, build_headers()),
    "args null": ([None, FIELDS, EMBED], build_headers()),
    "kwargs null": ([[], None, EMBED], build_headers()),
    "embed text": ([[], FIELDS, "text"], build_headers()),
    "timelimit of one": (BODY, build_headers(timelimit=[1])),
    "timelimit of texts": (BODY, build_headers(timelimit=["a", "b"])),
    "timelimit a number": (BODY, build_headers(timelimit=5)),
    "retries text": (BODY, build_headers(retries="many")),
    "eta a word": (BODY, build_headers(eta="soon")),
    "expires a number": (BODY, build_headers(expires=5)),
    "v1 no id": (build_v1(id=DROP), {}),
    "v1 args null": (build_v1(args=None), {}),
    "v1 kwargs text": (build_v1(kwargs="text"), {}),
    "v1 no task": (build_v1(task=DROP), {}),
}

# What only Redis lets in.
ENTRIES: Mapping[str, str] = {
    **{name: build_entry(body, headers) for name, (body, headers) in POISON.items()},
    "bad base64": build_entry(None, build_headers(), raw="%%%"),
    "body is no JSON": build_entry(None, build_headers(), raw=base64.b64encode(b"{").decode()),
    "compressed": build_entry(None, build_headers(compression="bzip2"), raw=build_bomb()),
    "headers are a list": build_entry(BODY, [1]),
    "no delivery tag": build_entry(BODY, build_headers(), delivery_tag=DROP),
    "delivery tag is a list": build_entry(BODY, build_headers(), delivery_tag=[1]),
    "no delivery info": build_entry(BODY, build_headers(), delivery_info=DROP),
    "routing key is an object": build_entry(
        BODY, build_headers(), delivery_info={"exchange": "", "routing_key": {}}
    ),
    "unknown body encoding": build_entry(BODY, build_headers(), body_encoding="rot13"),
    "unknown content": build_entry(BODY, build_headers()).replace("application/json", "a/b"),
    "a list": "[1]",
    "an empty object": "{}",
    "no JSON": "what is this",
    "no text": "\udcff\udcfe",
    "nested too deep": "[" * 100_000,
    "odd type": '{"__type__": "uuid", "__value__": 5}',
}

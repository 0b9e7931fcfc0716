"""Every way in which the emulator can be made to fail: points, their kinds, the kinds' options."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

LONGEST_SECONDS = 86_400.0
ALL = 100


@dataclass(frozen=True, slots=True)
class Option:
    """A value a kind takes: its default, what is accepted, and how to say what is."""

    default: object
    accepts: Callable[[object], bool]
    wanted: str


Options = Mapping[str, Option]


def is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def is_seconds(value: object) -> bool:
    return is_number(value) and 0 <= float(str(value)) <= LONGEST_SECONDS


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_code(value: object) -> bool:
    return is_count(value) and 400 <= int(str(value)) <= 599  # noqa: PLR2004 - the codes of refusals


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_price(value: object) -> bool:
    """Text, as a float is no amount of money."""
    if not isinstance(value, str):
        return False
    try:
        price = Decimal(value)
    except InvalidOperation:
        return False
    return price.is_finite() and price > 0 and price % Decimal("1E-9") == 0


def is_header_map(value: object) -> bool:
    """Header values; null takes a header away."""
    if not isinstance(value, dict):
        return False
    values = [one for one in value.values() if one is not None]
    return all(isinstance(one, str) and one.isprintable() for one in (*value, *values))


def build_choice(*values: object) -> Option:
    wanted = " or ".join(map(repr, values))
    return Option(
        values[0], lambda value: type(value) is type(values[0]) and value in values, wanted
    )


def build_seconds(default: float) -> Option:
    return Option(default, is_seconds, "a number of seconds from 0 to 86400")


def build_count(default: int) -> Option:
    return Option(default, is_count, "a whole number from 1")


def build_text(default: str) -> Option:
    return Option(default, is_text, "a string")


CODE = Option(500, is_code, "a whole number from 400 to 599")
FLAG = Option(False, lambda value: isinstance(value, bool), "true or false")
HEADERS = Option({}, is_header_map, "an object of strings or nulls")
OBJECT = Option({}, lambda value: isinstance(value, dict), "an object")
NAMES = Option([], lambda value: isinstance(value, list), "a list of strings")
DETAIL = Option(None, lambda value: isinstance(value, str | list | None), "a string or a list")
ERROR_TYPE = Option(None, lambda value: isinstance(value, str | None), "a string")
BYTES = Option(0, lambda value: value == 0 or is_count(value), "a whole number from 0")
PACE = Option(1000, lambda value: is_number(value) and float(str(value)) > 0, "a number above 0")
SURPLUS = Option(
    1000,
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value != 0,
    "a whole number but 0",
)
OFFSET = Option(
    7200,
    lambda value: is_number(value) and abs(float(str(value))) <= LONGEST_SECONDS,
    "a number of seconds from -86400 to 86400",
)
PRICE = Option("0.0016", is_price, "an amount of USD above 0 as text, in whole nano-USD")
PERCENT = Option(10, lambda value: is_count(value) and int(str(value)) <= ALL, "from 1 to 100")
FIELDS = replace(OBJECT, default={"request_source": "api"})
INGRESS_CODE = build_choice(502, 503, 504)
MALFORMED: Options = {"form": build_choice("not_json", "truncated", "empty", "no_request_id")}
STATUS: Options = {
    "code": CODE,
    "detail": DETAIL,
    "error_type": ERROR_TYPE,
    "retry_after": build_seconds(0),
    "headers": HEADERS,
}
INGRESS: Options = {"code": INGRESS_CODE, "seconds": build_seconds(0)}
HANG: Options = {"seconds": build_seconds(60)}
REFUSALS: Mapping[str, Options] = {"status": STATUS, "ingress": INGRESS, "hang": HANG, "drop": {}}
"""Kinds known wherever the emulator answers a request: nothing of what was asked is done."""
ALSO: Options = {"also": FLAG}

POINTS: Mapping[str, Mapping[str, Options]] = {
    "submit": {
        **REFUSALS,
        "execute_then_drop": {},
        "execute_then_hang": HANG,
        "execute_then_status": STATUS,
        "execute_then_ingress": INGRESS,
        "late": {"seconds": build_seconds(5)},
        "malformed": MALFORMED,
        "foreign_urls": {"base": build_text("https://queue.fal.invalid")},
        "crowded": {"waiting": build_count(1000)},
        "slow": {"queue_seconds": build_seconds(0), "run_seconds": build_seconds(0)},
    },
    "webhook": {
        "lost": {},
        "repeat": {"count": build_count(2)},
        "early": {"seconds": build_seconds(30)},
        "delay": {"seconds": build_seconds(5)},
        "reorder": {"seconds": build_seconds(30)},
        "forged": ALSO,
        "wrong_key": ALSO,
        "stale": {"seconds": build_seconds(900), **ALSO},
        "wrong_user": {"user_id": build_text("somebody-else"), **ALSO},
        "payload_null": {"status": build_choice("OK", "ERROR"), **ALSO},
        "truncated": ALSO,
        "odd_message": {"fields": OBJECT, **ALSO},
    },
    "status": {**REFUSALS, "malformed": MALFORMED, "stuck": {}},
    "result": {**REFUSALS, "malformed": MALFORMED, "headers": {"headers": HEADERS}},
    "cancel": REFUSALS,
    "stream": {**REFUSALS, "cut": {"events": build_count(1)}},
    "jwks": {**REFUSALS, "malformed": MALFORMED},
    "cdn": {
        **REFUSALS,
        "hang": {"bytes": BYTES, **HANG},
        "truncate": {"bytes": BYTES},
        "drip": {"bytes_per_second": PACE},
        "drip_headers": {"bytes_per_second": PACE, "seconds": build_seconds(60)},
        "wrong_type": {"content_type": build_text("text/html")},
        "odd_encoding": {"encoding": build_text("aws-chunked")},
        "wrong_length": {"surplus": SURPLUS},
        "html": {},
        "no_ranges": {},
        "new_version": {},
        "redirect": {
            "url": build_text(""),
            "hops": build_count(1),
            "code": build_choice(302, 301, 303, 307, 308),
        },
        "expire": {"code": build_choice(403, 404, 410)},
    },
    "listing": {
        **REFUSALS,
        "malformed": MALFORMED,
        "omit_running": {},
        "omit_payloads": {},
        "empty": {},
        "lag": {"seconds": build_seconds(5)},
        "extra_fields": {"fields": FIELDS},
        "cut": {
            "form": build_choice("endless", "no_cursor", "refused"),
            "items": build_count(100),
        },
    },
    "pricing": {**REFUSALS, "malformed": MALFORMED, "other_price": {"unit_price": PRICE}},
    "billing": {
        **REFUSALS,
        "malformed": MALFORMED,
        "lag": {"seconds": build_seconds(60)},
        "split": {},
        "old_form": {},
        "billed_refusals": {},
        "surcharge": {"units": build_count(1)},
        "other_price": {"unit_price": PRICE},
        "discount": {"percent": PERCENT},
    },
    "output": {
        "odd_fields": {"merge": OBJECT, "delete": NAMES},
        "failure": {"code": CODE, "error_type": ERROR_TYPE},
    },
    "date": {"wrong": {"seconds": OFFSET}, "missing": {}},
    "upload": REFUSALS,
    "upload_part": REFUSALS,
    "upload_complete": REFUSALS,
}
MATCHLESS_POINTS = (
    "jwks",
    "listing",
    "pricing",
    "billing",
    "date",
    "upload",
    "upload_part",
    "upload_complete",
)
"""Nothing there belongs to a single request."""

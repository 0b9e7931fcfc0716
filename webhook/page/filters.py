"""How the templates of the page print values: times, amounts, names, and texts without secrets."""

import json
from collections.abc import Callable

from webhook.page.masks import Masker
from worker.ground.clock import format_duration, tell_briefly


def list_filters(masker: Masker) -> dict[str, Callable[..., str]]:
    def show_json(value: object) -> str:
        return json.dumps(masker.mask_json(value), indent=2, ensure_ascii=False)

    return {
        "mask": lambda value: masker.mask(str(value)),
        "pretty": show_json,
        "duration": format_duration,
        "brief": tell_briefly,
        "clock": lambda at: f"{at:%Y-%m-%d %H:%M:%S}",
        "words": lambda name: str(name).replace("_", " "),
        "amount": format_bytes,
    }


def format_bytes(count: int) -> str:
    amount, units = float(count), ["B", "kB", "MB", "GB"]
    while amount >= 1000 and len(units) > 1:  # noqa: PLR2004 - as units go
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] in {"B", "kB"} else f"{amount:.1f} {units[0]}"

"""How long fal keeps a result that nobody has fetched (fal-api, section 3.3)."""

from collections.abc import Mapping
from datetime import timedelta

from pydantic import JsonValue

from worker.ground.clock import RETENTION

# Of a result of 10 KB or more; with stored payloads longer, but never in sync mode.
LARGE_RETENTION = timedelta(minutes=6)
# A result repeats the prompt, and has about 1 KB besides.
LARGE_PROMPT = 8 * 1024


def find_retention(given: Mapping[str, JsonValue]) -> timedelta:
    """How long the result of this input is surely kept."""
    prompt = given.get("prompt")
    is_long = isinstance(prompt, str) and len(prompt.encode()) >= LARGE_PROMPT
    return LARGE_RETENTION if is_long or given.get("sync_mode") is True else RETENTION

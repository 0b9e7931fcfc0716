"""What a bill would show: a charge for each run that was started."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from emulator.billing import count_units
from emulator.posts import Post
from emulator.records import FalRequest

Span = tuple[datetime | None, datetime | None]
"""Without a beginning it never was, without an end it goes on."""


def compose_ledger(requests: Sequence[FalRequest], posts: Sequence[Post]) -> dict[str, object]:
    return {
        "submissions": len(requests),
        "charges": sum(one.is_charged for one in requests),
        "by_request": {
            one.request_id: {"charges": int(one.is_charged), "units": count_units(one)}
            for one in requests
        },
        "most_at_once": count_most((one.submitted_at, one.completed_at) for one in requests),
        "most_running": count_most((one.started_at, one.completed_at) for one in requests),
        "posts": [one.to_json() for one in posts],
        "by_input": group_by_input(requests),
        "cancelled": [describe_charge(one) for one in requests if one.is_cancel_requested],
    }


def count_most(spans: Iterable[Span]) -> int:
    """How many of them overlapped at most; one that begins when another ends does not."""
    changes: list[tuple[datetime, int]] = []
    for start, end in spans:
        if start is not None:
            changes.append((start, 1))
            changes += [(end, -1)] if end is not None else []
    at_once = most = 0
    for _, change in sorted(changes):
        at_once += change
        most = max(most, at_once)
    return most


def group_by_input(requests: Sequence[FalRequest]) -> list[dict[str, object]]:
    """One entry per exact input: who pays a job once has one charge in each."""
    groups: dict[str, list[FalRequest]] = {}
    for one in requests:
        groups.setdefault(json.dumps(one.input, sort_keys=True), []).append(one)
    return [
        {
            "prompt": group[0].prompt,
            "submissions": len(group),
            "charges": sum(one.is_charged for one in group),
            "request_ids": [one.request_id for one in group],
        }
        for group in groups.values()
    ]


def describe_charge(request: FalRequest) -> dict[str, object]:
    return {"request_id": request.request_id, "charged": request.is_charged}

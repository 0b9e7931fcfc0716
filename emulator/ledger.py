"""What a bill would show: a charge for each run that was started."""

import json
from collections.abc import Sequence

from emulator.billing import count_units
from emulator.records import FalRequest


def compose_ledger(requests: Sequence[FalRequest]) -> dict[str, object]:
    return {
        "submissions": len(requests),
        "charges": sum(one.is_charged for one in requests),
        "by_request": {
            one.request_id: {"charges": int(one.is_charged), "units": count_units(one)}
            for one in requests
        },
        "most_at_once": count_most_at_once(requests),
        "by_input": group_by_input(requests),
        "cancelled": [describe_charge(one) for one in requests if one.is_cancel_requested],
    }


def count_most_at_once(requests: Sequence[FalRequest]) -> int:
    """The most requests that were accepted and had not ended, at any one time."""
    starts = [(one.submitted_at, 1) for one in requests]
    ends = [(one.completed_at, -1) for one in requests if one.completed_at is not None]
    at_once = most = 0
    for _, change in sorted([*starts, *ends]):
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

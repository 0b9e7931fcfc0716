"""A job's time line: each stay in a state with its length, from the job's events; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.jobs.states import ENDED, JobState
from worker.jobs.values import Event


@dataclass(frozen=True, slots=True)
class Stay:
    """A time that a job spent in a state, and what happened in it; the last has no `until`.

    `duration` grows while the job is there, and is None of an end.
    """

    state: JobState
    since: datetime
    until: datetime | None
    duration: timedelta | None
    events: tuple[Event, ...]


def list_stays(events: Sequence[Event], now: datetime) -> list[Stay]:
    """In their order. What happens without leaving a state begins no new stay."""
    visits: list[list[Event]] = []
    for event in events:
        if visits and event.from_state is event.to_state:
            visits[-1].append(event)
        else:
            visits.append([event])
    ends = [*(visit[0].at for visit in visits[1:]), None]
    return [
        Stay(visit[0].to_state, visit[0].at, end, _measure(visit[0], end, now), tuple(visit))
        for visit, end in zip(visits, ends, strict=False)
    ]


def _measure(first: Event, end: datetime | None, now: datetime) -> timedelta | None:
    if end is None and first.to_state in ENDED:
        return None
    return max((end or now) - first.at, timedelta())

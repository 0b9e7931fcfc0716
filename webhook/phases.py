"""A job's time line: each stay in a state with its length, from the job's events. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.jobs.states import ENDED, JobState
from worker.jobs.values import Event


@dataclass(frozen=True, slots=True)
class Phase:
    """One stay in a state; `duration` is None of an end, and grows while the job is there."""

    state: JobState
    since: datetime
    until: datetime | None
    duration: timedelta | None
    is_current: bool
    share: float
    events: tuple[Event, ...]


def list_phases(events: Sequence[Event], now: datetime) -> list[Phase]:
    """In their order. What happens without leaving a state is told within its phase."""
    stays: list[list[Event]] = []
    for event in events:
        if stays and event.from_state is event.to_state:
            stays[-1].append(event)
        else:
            stays.append([event])
    ends = [*(stay[0].at for stay in stays[1:]), None][: len(stays)]
    spans = [_measure(stay, end, now) for stay, end in zip(stays, ends, strict=True)]
    longest = max((span for span in spans if span), default=timedelta())
    return [
        Phase(
            state=stay[0].to_state,
            since=stay[0].at,
            until=end,
            duration=span,
            is_current=end is None,
            share=span / longest if span and longest else 0.0,
            events=tuple(stay),
        )
        for stay, end, span in zip(stays, ends, spans, strict=True)
    ]


def _measure(stay: Sequence[Event], end: datetime | None, now: datetime) -> timedelta | None:
    if end is None and stay[0].to_state in ENDED:
        return None
    return max((end or now) - stay[0].at, timedelta())

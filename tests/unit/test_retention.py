"""No result is erased between two looks for it."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from worker.fal.requests import LARGE_PROMPT, LARGE_RETENTION, find_retention
from worker.ground.clock import LONGEST_POLL, RETENTION, choose_poll_delay

MINUTE = timedelta(minutes=1)
SPANS = st.timedeltas(timedelta(seconds=1), timedelta(days=7))
DRAWS = st.floats(0, 1, exclude_max=True)


def test_find_retention_goes_by_the_size_of_the_result() -> None:
    assert find_retention({"sync_mode": False, "prompt": "x" * (LARGE_PROMPT - 1)}) == RETENTION
    assert find_retention({"prompt": None}) == RETENTION
    for prompt in ("x" * LARGE_PROMPT, "ü" * (LARGE_PROMPT // 2)):
        assert find_retention({"prompt": prompt}) == LARGE_RETENTION
    assert find_retention({"sync_mode": True, "prompt": "on"}) == LARGE_RETENTION


@given(SPANS, SPANS, DRAWS)
def test_result_kept_for_minutes_is_looked_for_each_minute(poll_after, waited, drawn) -> None:
    delay = choose_poll_delay(poll_after, waited, lambda: drawn, retention=LARGE_RETENTION)
    assert timedelta() < delay <= MINUTE


@given(SPANS, SPANS, DRAWS)
def test_usual_result_is_looked_for_several_times_while_it_is_kept(
    poll_after, waited, drawn
) -> None:
    delay = choose_poll_delay(poll_after, waited, lambda: drawn)
    assert delay <= LONGEST_POLL * 1.2 < RETENTION / 3


def test_short_retention_does_not_hasten_who_polls_more_often_anyway() -> None:
    often = timedelta(seconds=5)
    delays = [
        choose_poll_delay(often, draw=lambda: 0.5, retention=kept)
        for kept in (RETENTION, LARGE_RETENTION)
    ]
    assert delays == [often, often]

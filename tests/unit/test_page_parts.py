"""The page's pure parts, and the shell's: time lines, plots, masks, addresses, spans of time."""

import time
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.jobs import NOW
from webhook.page.board import HEIGHT, WIDTH, Hour, pick_quantile, plot_latency, plot_throughput
from webhook.page.login import LONGEST_PAUSE, MOST_ADDRESSES, Throttle
from webhook.page.views import Masker, read_place, read_query, write_place
from worker.ground.clock import format_briefly, format_duration, read_moment
from worker.jobs.queries import JobFilter, Place
from worker.jobs.states import JobState
from worker.jobs.stats import Measure
from worker.jobs.values import Event
from worker.ops.timeline import list_times_in_state

SECOND = timedelta(seconds=1)


def tell(*states: str) -> list[Event]:
    """One event after the other, each a second later than the one before took."""
    numbers = count(1)
    at, before, told = NOW, None, []
    for state in states:
        number = next(numbers)
        target = JobState(state)
        told.append(Event(number, UUID(int=1), at, before, target, "moved", None, 1))
        at, before = at + number * SECOND, target
    return told


# ------------------------------------------------------------------ stays


def test_stays_last_from_one_state_to_the_next_and_the_last_until_now() -> None:
    stays = list_times_in_state(tell("queued", "submitting", "submitted"), NOW + 10 * SECOND)
    assert [(one.state.value, one.duration) for one in stays] == [
        ("queued", SECOND),
        ("submitting", 2 * SECOND),
        ("submitted", 7 * SECOND),
    ]
    assert [one.until for one in stays] == [NOW + SECOND, NOW + 3 * SECOND, None]


def test_stay_in_an_end_has_no_duration() -> None:
    stays = list_times_in_state(tell("queued", "cancelled"), NOW + 1000 * SECOND)
    assert [one.duration for one in stays] == [SECOND, None]


def test_event_without_a_change_of_state_is_told_within_its_stay() -> None:
    stays = list_times_in_state(
        tell("queued", "submitting", "submitting", "submitted"), NOW + 9 * SECOND
    )
    assert [len(one.events) for one in stays] == [1, 2, 1]
    assert stays[1].duration == 5 * SECOND


def test_clock_that_went_back_makes_no_negative_stay() -> None:
    [stay] = list_times_in_state(tell("queued"), NOW - SECOND)
    assert stay.duration == timedelta()
    assert list_times_in_state([], NOW) == []


# ------------------------------------------------------------------ plots


def build_hours(*measures: Measure) -> list[Hour]:
    return [Hour(NOW + number * timedelta(hours=1), one) for number, one in enumerate(measures)]


def test_throughput_stands_within_its_frame() -> None:
    plot = plot_throughput(build_hours(Measure(10, 5, ()), Measure(0, 0, ()), Measure(3, 0, ())))
    assert plot.top == "15"
    assert plot.summary == "13 archived and 5 failed in 3 hours"
    for bar in plot.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH
        assert 0 <= bar.failed_y <= bar.archived_y <= HEIGHT
    assert (plot.bars[1].archived_height, plot.bars[1].failed_height) == (0, 0)


def test_latency_is_broken_where_nothing_ended() -> None:
    some = Measure(2, 0, (1.0, 3.0))
    plot = plot_latency(build_hours(some, some, Measure(0, 0, ()), some))
    median, slow = plot.lines
    assert (len(median.points), median.path.count("M"), median.path.count("L")) == (3, 2, 1)
    assert plot.top == "3 s"
    assert all(HEIGHT >= y >= 0 for _, y, _ in (*median.points, *slow.points))
    assert plot_latency(build_hours(Measure(0, 0, ()))).summary == "nothing archived"


@given(st.lists(st.floats(0, 1e6), max_size=50).map(sorted))
def test_quantiles_are_of_the_values_and_in_order(values) -> None:
    median, slow = (pick_quantile(tuple(values), share) for share in (0.5, 0.9))
    if not values:
        assert median is slow is None
        return
    assert {median, slow} <= set(values)
    assert median is not None
    assert slow is not None
    assert median <= slow


# ------------------------------------------------------------------ masks


def test_masks_hide_what_is_secret_and_nothing_else() -> None:
    masker = Masker(["own-secret", ""])
    for text, shown in {
        "https://a.b/c?X-Sig=1&y=2 and": "https://a.b/c?**** and",
        "https://a.b/c#x": "https://a.b/c#x",
        "s3+x.y-z://a.b/c?sig=1": "s3+x.y-z://a.b/c?****",
        "https://me:pw@a.b/c": "https://****@a.b/c",
        "see /webhooks/fal/tok.": "see /webhooks/fal/****",
        "own-secret twice own-secret": "**** twice ****",
        "Authorization: Key abcdefghijklmnopqrst": "Authorization: Key ****",
        "the key to it is a question? yes": "the key to it is a question? yes",
        "rate 30/1, 10:30 o'clock": "rate 30/1, 10:30 o'clock",
    }.items():
        assert masker.mask(text) == shown


@pytest.mark.parametrize("piece", ["://", "ab://c", "12345678-", "data:a/b;base64,"])
def test_masks_take_no_longer_than_the_text_is_long(piece) -> None:
    """A producer chooses the prompt, and an operator's page must not stand still for it."""

    def measure(length: int) -> float:
        text, began = piece * (length // len(piece)), time.thread_time()
        Masker(["own-secret"]).mask(text)
        return time.thread_time() - began

    # Sixteen times as much text; by the square it would take 256 times as long.
    assert measure(160_000) < 64 * max(measure(10_000), 0.001)


def test_masks_fold_long_bytes_and_walk_through_json() -> None:
    masker = Masker(["own-secret"])
    value = {"own-secret": ["data:video/mp4;base64," + "A" * 500, 7, None, {"a": "own-secret"}]}
    masked = masker.mask_json(value)
    assert isinstance(masked, dict)
    [folded, seven, none, inner] = masked["****"]
    assert folded.endswith("… (522 characters)")
    assert (seven, none, inner) == (7, None, {"a": "****"})


# ------------------------------------------------------------------ addresses


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - bounds
    st.uuids(),
)
def test_place_in_an_address_is_the_same_place(at, job_id) -> None:
    assert read_place(write_place(Place(at, job_id))) == Place(at, job_id)


def test_place_that_is_none_is_the_beginning() -> None:
    for text in ("", "x", "-", "20260101T000000.0-zz", "9" * 400, "a-" * 9):
        assert read_place(text) is None


def test_query_narrows_by_what_it_understands_and_names_the_rest() -> None:
    given_fields = {"state": "failed", "label": "env=a=b", "since": "2h", "until": "soon", "x": "y"}
    query = read_query(given_fields | {"tenant": " t ", "text": ""}, NOW)
    wanted = JobFilter(
        state=JobState.FAILED, tenant="t", label=("env", "a=b"), since=NOW - timedelta(hours=2)
    )
    assert query.wanted == wanted
    assert set(query.wrong) == {"until"}
    assert query.link(state=None, label=None) == "?tenant=t&since=2h&until=soon"


# ------------------------------------------------------------------ times


def test_moment_is_read_as_time_or_age() -> None:
    for text, moment in {
        "90s": NOW - timedelta(seconds=90),
        " 15m ": NOW - timedelta(minutes=15),
        "7d": NOW - timedelta(days=7),
        "2w": NOW - timedelta(weeks=2),
        "2026-11-24": datetime(2026, 11, 24, tzinfo=UTC),
        "2026-11-24T18:30+02:00": datetime(2026, 11, 24, 16, 30, tzinfo=UTC),
    }.items():
        assert read_moment(text, NOW) == moment


def test_moment_that_is_none_is_refused_with_examples() -> None:
    for text in ("", "soon", "-1h", "2026-13-01", "999999w", "1.5h"):
        with pytest.raises(ValueError, match="such as 2026-11-24"):
            read_moment(text, NOW)


def test_duration_is_told_in_its_largest_units() -> None:
    for seconds, brief, full in [
        (-5, "0 s", "0 s"),
        (0.25, "0 s", "250 ms"),
        (12.34, "12 s", "12.3 s"),
        (59.97, "59 s", "1 min"),
        (185, "3 min", "3 min 5 s"),
        (7800, "2 h", "2 h 10 min"),
        (86400, "1 d", "1 d"),
        (200_000, "2 d", "2 d 7 h"),
    ]:
        duration = timedelta(seconds=seconds)
        assert (format_briefly(duration), format_duration(duration)) == (brief, full)


# ------------------------------------------------------------------ guesses


def test_throttle_doubles_up_to_a_minute_for_each_address_alone() -> None:
    now = 0.0
    throttle = Throttle(lambda: now)
    pauses: list[float] = []
    for _ in range(14):
        assert throttle.admit("a") == 0
        pauses.append(throttle.admit("a") if len(pauses) >= 2 else 0)
        now += pauses[-1]
    assert pauses == [0, 0, 1, 2, 4, 8, 16, 32, *[LONGEST_PAUSE] * 6]
    assert throttle.admit("b") == 0
    throttle.forget("a")
    assert [throttle.admit("a"), throttle.admit("a")] == [0, 0]


def test_throttle_remembers_no_more_addresses_than_it_may() -> None:
    throttle = Throttle()
    for number in range(MOST_ADDRESSES + 50):
        throttle.admit(str(number))
    assert len(throttle._known) == MOST_ADDRESSES

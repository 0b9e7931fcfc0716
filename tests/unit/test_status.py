"""What `extend-video status` calls a problem."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from tests.harness.jobs import NOW
from worker.broker.app import QUEUES
from worker.cli.system import SOONEST_LATE, list_problems, list_shared_names
from worker.ground.settings import load_settings
from worker.jobs.admission import ACCOUNT, COUNTING, Pause
from worker.jobs.states import ENDED, JobState, PauseCause
from worker.jobs.workers import UNSEEN_AFTER, SeenWorker
from worker.ops.metrics import History, Measures

SECOND = timedelta(seconds=1)
QUEUE_NAMES = list(QUEUES.values())
WORKER = SeenWorker("w@h", 1, QUEUE_NAMES, NOW, NOW)
WELL = Measures(
    now=NOW,
    jobs=dict.fromkeys(JobState, 0),
    ages=dict.fromkeys(set(JobState) - ENDED, 0.0),
    attempts={},
    deliveries={},
    refused={},
    extra_charges=0,
    held=0,
    sweep_lag=timedelta(),
    swept_at=NOW,
    pauses=[],
    scopes=[],
    queued={},
    over_budget=0,
    workers=[WORKER],
    history=History(),
    events_behind=0,
    counted_at=NOW,
)
EMPTY = dict.fromkeys(QUEUE_NAMES, 0)
REFUSED = Pause(ACCOUNT, PauseCause.ACCOUNT, "fal_http_403", NOW)
BY_HAND = Pause("tenant:a", PauseCause.OPERATOR, "why", NOW)


def test_deployment_at_work_has_no_problem() -> None:
    assert list_problems(WELL, EMPTY, load_settings()) == []


def test_each_thing_that_is_wrong_is_told() -> None:
    unseen = replace(WORKER, last_seen_at=NOW - UNSEEN_AFTER - SECOND)
    partial = replace(WORKER, queues=QUEUE_NAMES[1:])
    cases: list[tuple[str, dict[str, Any]]] = [
        ("submissions of account pause: fal_http_403", {"pauses": [REFUSED]}),
        ("submissions of tenant:a pause: why", {"pauses": [BY_HAND]}),
        ("no worker has been seen within the last minute", {"workers": []}),
        ("no worker has been seen within the last minute", {"workers": [unseen]}),
        (f"no worker consumes {QUEUE_NAMES[0]}", {"workers": [partial]}),
        ("no sweep has run yet", {"swept_at": None}),
        ("no sweep for 31 s", {"swept_at": NOW - SOONEST_LATE - SECOND}),
        ("jobs have been due for 1 min", {"sweep_lag": 2 * SOONEST_LATE}),
        (
            (
                "2 held submissions wait for a decision: "
                "extend-video list --state submission_unknown shows why"
            ),
            {"held": 2},
        ),
    ]
    for problem, changes in cases:
        assert list_problems(replace(WELL, **changes), EMPTY, load_settings()) == [problem]


def test_failures_that_are_only_counted_are_no_problem() -> None:
    counted = Pause(ACCOUNT, PauseCause.BUSY, "fal_http_502", NOW, room=COUNTING)
    assert list_problems(replace(WELL, pauses=[counted]), EMPTY, load_settings()) == []


def test_silent_broker_is_told() -> None:
    assert list_problems(WELL, None, load_settings()) == ["the broker does not answer"]


def test_slow_sweeps_are_late_by_their_own_measure() -> None:
    settings = load_settings(sweep_seconds=60)
    late = replace(WELL, swept_at=NOW - timedelta(minutes=5))
    assert list_problems(late, EMPTY, settings) == []


def test_name_that_several_processes_share_is_told_while_they_are_there() -> None:
    other, gone = (
        replace(WORKER, pid=2),
        replace(WORKER, name="v@h", pid=3, last_seen_at=NOW - UNSEEN_AFTER - SECOND),
    )
    workers = [WORKER, other, gone, replace(gone, pid=4)]
    assert list_shared_names(replace(WELL, workers=workers)) == ["w@h"]
    assert list_shared_names(WELL) == []


def test_queues_are_shared_by_several_workers() -> None:
    halves = [replace(WORKER, queues=QUEUE_NAMES[:3]), replace(WORKER, queues=QUEUE_NAMES[3:])]
    assert list_problems(replace(WELL, workers=halves), EMPTY, load_settings()) == []


def test_worker_that_cannot_archive_is_a_problem_while_it_is_seen() -> None:
    faulty = replace(WORKER, archive_fault="file:///a has no mark")
    measures = replace(WELL, workers=[faulty])
    expected = ["archive of w@h: file:///a has no mark"]
    assert list_problems(measures, EMPTY, load_settings()) == expected

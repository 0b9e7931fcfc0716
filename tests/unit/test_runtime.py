"""What a process works with is made when first used, and refused with its variable's name."""

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Thread

import pytest

from tests.harness.together import call_together
from worker.ground.errors import InvalidSettingsError
from worker.ground.once import Once, shared_property
from worker.ground.settings import UnknownPolicy, load_settings
from worker.runtime import Runtime, name_account
from worker.stages.archive import ArchivePolicy
from worker.stages.resolve import ResolvePolicy

WHOLE = {"fal_key": "k", "webhook_base_url": "https://hooks.test"}


def test_runtime_of_producer_needs_no_key(sqlite_url) -> None:
    runtime = Runtime(load_settings(database_url=sqlite_url))
    with runtime.db.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one() == 0
    runtime.db.close()
    runtime.dispatcher.close()


def test_runtime_makes_each_part_once(tmp_path, sqlite_url) -> None:
    runtime = Runtime(
        load_settings(database_url=sqlite_url, archive_url=f"file:{tmp_path}", **WHOLE)
    )
    for name in ("worker", "db", "dispatcher", "queue", "requests", "reconciler", "media", "store"):
        assert getattr(runtime, name) is getattr(runtime, name)
    runtime.queue.close()


def test_worker_name_is_not_shared_with_any_other() -> None:
    first, second = Runtime(load_settings()), Runtime(load_settings())
    assert first.worker != second.worker
    assert f":{os.getpid()}:" in first.worker


@pytest.mark.parametrize("part", ["queue", "submit_policy"])
def test_part_without_its_setting_is_refused(part) -> None:
    with pytest.raises(InvalidSettingsError, match=r"\(not set\)"):
        getattr(Runtime(load_settings()), part)


def test_submit_terms_carry_the_settings() -> None:
    settings = load_settings(
        **WHOLE,
        fal_store_io=False,
        start_timeout_seconds=10,
        lease_seconds=20,
        poll_seconds=30,
        retry_seconds=400,
        probe_seconds=50,
    )
    runtime = Runtime(settings)
    policy = runtime.submit_policy
    assert (policy.worker, policy.webhook_base_url) == (runtime.worker, "https://hooks.test")
    assert policy.options.store_io is False
    durations = (policy.options.start_timeout, policy.lease, policy.poll_after)
    assert durations == tuple(timedelta(seconds=seconds) for seconds in (10, 20, 30))
    bounds = (policy.retry_for, policy.probe_after)
    assert bounds == (timedelta(seconds=400), timedelta(seconds=50))


def test_resolve_terms_carry_the_settings() -> None:
    settings = load_settings(
        **WHOLE,
        lease_seconds=20,
        poll_seconds=30,
        unknown_seconds=4000,
        unknown_policy="hold",
        max_attempts=5,
    )
    reconciler = Runtime(settings).reconciler
    assert reconciler.poll_after == timedelta(seconds=30)
    assert reconciler.resolver.policy == ResolvePolicy(
        unknown_after=timedelta(seconds=4000),
        policy=UnknownPolicy.HOLD,
        max_attempts=5,
        dispatch_timeout=timedelta(seconds=20),
        start_timeout=timedelta(hours=1),
        account=name_account(settings.fal_credentials),
    )


def test_archive_terms_carry_the_settings() -> None:
    settings = load_settings(max_video_bytes=1000, lease_seconds=20, archive_max_downloads=3)
    runtime = Runtime(settings)
    assert runtime.keeper.fetcher.limits.max_bytes == 1000
    assert runtime.archive_policy == ArchivePolicy(runtime.worker, timedelta(seconds=20), 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fal_media_hosts", "https://fal.media"),
        ("archive_url", "ftp://user:s3cret@h/x"),
        ("archive_url", "file:"),
    ],
)
def test_check_worker_refuses_setting_by_name_without_its_secret(name, value) -> None:
    runtime = Runtime(load_settings(**WHOLE, **{name: value}))
    with pytest.raises(InvalidSettingsError) as caught:
        runtime.check_worker()
    (violation,) = caught.value.violations
    assert violation.field == name.upper()
    assert len(violation.allowed) > 10
    assert "s3cret" not in str(caught.value)


def test_check_worker_with_all_it_needs_passes(tmp_path) -> None:
    Runtime(load_settings(**WHOLE, archive_url=f"file:{tmp_path / 'archive'}")).check_worker()


# ------------------------------------------------------------------ threads that come together


def make_slowly(made: list[object]) -> object:
    time.sleep(0.01)
    made.append(object())
    return made[-1]


def test_once_is_made_once_by_many_threads_and_anew_when_forgotten() -> None:
    made: list[object] = []
    get = Once(lambda: make_slowly(made))
    assert not get.is_made
    assert len(set(map(id, call_together(*[get] * 8)))) == 1
    assert len(made) == 1
    get.forget()
    assert get() is made[1]


@dataclass(frozen=True)
class Thing:
    made: list[object]

    @shared_property
    def part(self) -> object:
        return make_slowly(self.made)


def test_part_is_made_once_by_many_threads_and_by_each_thing() -> None:
    thing = Thing([])
    assert len(set(map(id, call_together(*[lambda: thing.part] * 8)))) == 1
    assert len(thing.made) == 1
    assert Thing([]).part is not thing.part


def test_forked_child_does_not_wait_for_a_thread_that_it_has_not() -> None:
    making, made = Event(), Event()

    def make_for_long() -> None:
        making.set()
        made.wait(10)

    maker = Thread(target=Once(make_for_long))
    maker.start()
    making.wait(10)
    pid = os.fork()
    if pid == 0:
        other = Thread(target=Once(object), daemon=True)
        other.start()
        other.join(5)
        os._exit(other.is_alive())
    made.set()
    maker.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

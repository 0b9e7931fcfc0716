"""What a process works with is made when first used, and refused with its variable's name."""

import os
from datetime import timedelta

import pytest

from worker.ground.errors import InvalidSettingsError
from worker.ground.setting_types import UnknownPolicy
from worker.ground.settings import load_settings
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
        grace=timedelta(seconds=20),
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

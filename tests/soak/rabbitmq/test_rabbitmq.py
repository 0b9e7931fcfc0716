"""The whole end-to-end suite once more, with RabbitMQ and its quorum queues for a broker."""

import json
from collections.abc import Iterator

import pytest

from tests.harness.poison import BODY, POISON, build_headers
from tests.harness.processes import TWO_WORKERS
from tests.harness.rabbit import REASON_WHY_NOT, Rabbit, has_rabbit, run_rabbit
from tests.harness.waiting import wait_until
from tests.system.conftest import prepare_scene
from tests.system.scene import Scene, run_scene
from tests.system.test_end_to_end import (
    test_archived_file_holds_source_and_new_frames,
    test_fal_gets_each_of_39_fields_exactly_as_stored,
    test_many_jobs_at_once_are_each_paid_and_archived_once,
    test_producer_with_only_celery_gets_its_video_archived,
    test_python_producer_keeps_its_row_without_a_broker,
    test_shell_waits_for_the_archive_and_prints_every_state,
    test_video_that_is_not_there_fails_with_fals_own_reason,
)

__all__ = [
    "test_archived_file_holds_source_and_new_frames",
    "test_fal_gets_each_of_39_fields_exactly_as_stored",
    "test_many_jobs_at_once_are_each_paid_and_archived_once",
    "test_producer_with_only_celery_gets_its_video_archived",
    "test_python_producer_keeps_its_row_without_a_broker",
    "test_shell_waits_for_the_archive_and_prints_every_state",
    "test_video_that_is_not_there_fails_with_fals_own_reason",
]
# A broker of this weight comes with no wheel.
pytestmark = [
    pytest.mark.skipif(not has_rabbit(), reason=REASON_WHY_NOT),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def rabbit() -> Iterator[Rabbit]:
    with run_rabbit() as rabbit:
        yield rabbit


@pytest.fixture(scope="module")
def rabbit_scene(rabbit, tmp_path_factory, clip) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("rabbit-scene")
    url = f"sqlite:///{directory / 'jobs.db'}"
    with run_scene(directory, url, clip, TWO_WORKERS, broker_url=rabbit.url) as scene:
        yield scene


@pytest.fixture
def scene(request) -> Scene:
    return prepare_scene(request, "rabbit_scene")


@pytest.fixture
def sqlite_scene(request) -> Scene:
    return prepare_scene(request, "rabbit_scene")


def test_every_queue_is_a_quorum_queue(scene, rabbit):
    scene.table.wait_for_end(scene.enqueue())

    printed = rabbit.control("list_queues", "-p", "videos", "name", "type", "--no-table-headers")

    kinds = dict(line.split("\t") for line in printed.splitlines())
    ours = {name: kind for name, kind in kinds.items() if name.startswith("extend_video")}
    assert len(ours) == 6
    assert set(ours.values()) == {"quorum"}


def test_wish_of_a_killed_worker_goes_to_another_at_once(scene, rabbit):
    """RabbitMQ sees the connection end: no lease has to run out."""
    with scene.deployment.submitter.standing_still():
        job_id = scene.enqueue()
        scene.deployment.submitter.kill()
    scene.deployment.start_workers()

    assert len(scene.list_submissions(scene.table.wait_for_end(job_id))) == 1


def test_every_poisonous_message_is_refused_alone_and_the_worker_goes_on(scene, rabbit):
    worker = scene.deployment.submitter
    with scene.producer.connection_for_write() as connection, connection.channel() as channel:
        for body, headers in (*POISON.values(), (BODY, build_headers(compression="bzip2"))):
            message = channel.prepare_message(
                json.dumps(body).encode(),
                content_type="application/json",
                content_encoding="utf-8",
                headers=headers,
            )
            channel.basic_publish(message, exchange="", routing_key="extend_video")
    scene.table.wait_for_end(scene.enqueue())

    wait_until(lambda: worker.read_log().count('"enqueue_refused"') == len(POISON) + 1)
    assert worker.is_running
    assert "Traceback" not in worker.read_log()
    assert "nobody may log" not in worker.read_log()
    wait_until(lambda: count_messages(rabbit) == 0)
    [row] = scene.table.select("SELECT count(*) AS n FROM job_requests WHERE state = 'refused'")
    assert row["n"] == len(POISON) + 1


def count_messages(rabbit: Rabbit) -> int:
    """Also those that were delivered and not acknowledged."""
    printed = rabbit.control(
        "list_queues", "-p", "videos", "name", "messages", "--no-table-headers"
    )
    rows = [line.split("\t") for line in printed.splitlines()]
    return sum(int(number) for name, number in rows if name == "extend_video")

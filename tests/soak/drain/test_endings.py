"""Daemons that are told to end at an awkward moment end all the same."""

import pytest
import redis

from tests.harness.processes import CELERY
from tests.harness.servers import run_broker
from tests.harness.waiting import wait_until

LONG_MILLISECONDS = 100_000


@pytest.fixture
def settings(sqlite_url):
    return {"DATABASE_URL": sqlite_url, "SWEEP_SECONDS": "1"}


def is_publishing(client: redis.Redis) -> bool:
    """Whether somebody waits for Redis to take a message; `b` stands for blocked."""
    return any("b" in one["flags"] for one in client.client_list())


def test_beat_told_to_end_while_the_broker_takes_its_message_ends(yard, settings):
    with run_broker() as broker, broker.connect() as client:
        beat = yard.start("beat", [*CELERY, "beat"], {**settings, "BROKER_URL": broker.url})
        client.client_pause(LONG_MILLISECONDS, all=False)
        wait_until(lambda: is_publishing(client))

        ended = beat.end()

    assert ended == 0
    assert "Traceback" not in beat.read_log()

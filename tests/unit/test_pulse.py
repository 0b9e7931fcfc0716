"""Each turn of a worker's loop is noted, whichever loop it has."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.utils.dispatch import Signal

from worker.broker.app import ARCHIVE, QUEUES
from worker.ground.settings import load_settings
from worker.lifecycle import pulse
from worker.lifecycle.archive_probe import ArchiveProbe
from worker.lifecycle.pulse import Pulse
from worker.lifecycle.standby import Standby


class BlockingConsumer:
    """One of a transport without event loop, such as gevent's workers have."""

    hub = None
    hostname = "w@h"
    turned = 0

    def perform_pending_operations(self) -> None:
        self.turned += 1


def test_turn_of_a_blocking_loop_is_noted_and_does_what_it_did(monkeypatch) -> None:
    monkeypatch.setattr(pulse.Watch, "begin", lambda _: None)
    monkeypatch.setattr(Standby, "begin", lambda _: None)
    consumer = BlockingConsumer()
    step = Pulse(consumer)
    step.start(consumer)
    step.start(consumer)
    step.watch.looped_at = 0.0
    consumer.perform_pending_operations()
    assert step.watch.looped_at > 0
    assert consumer.turned == 1, "a second connection must not turn twice"


def test_turns_of_an_event_loop_are_noted_until_the_connection_ends(monkeypatch) -> None:
    monkeypatch.setattr(pulse.Watch, "begin", lambda _: None)
    monkeypatch.setattr(Standby, "begin", lambda _: None)
    entries: list[SimpleNamespace] = []

    def call_repeatedly(seconds, call):
        entry = SimpleNamespace(seconds=seconds, call=call, cancelled=False)
        entry.cancel = lambda: setattr(entry, "cancelled", True)
        entries.append(entry)
        return entry

    timer = SimpleNamespace(call_repeatedly=call_repeatedly)
    consumer = SimpleNamespace(hub=object(), timer=timer, hostname="w@h")
    step = Pulse(consumer)
    step.start(consumer)
    (entry,) = entries
    step.watch.looped_at = 0.0
    entry.call()
    assert step.watch.looped_at > 0
    step.stop(consumer)
    assert entry.cancelled


@pytest.mark.parametrize(("queue", "fault"), [(QUEUES[ARCHIVE], "disk full"), ("other", None)])
def test_worker_that_archives_tries_its_archive_and_says_what_came_of_it(
    monkeypatch, queue, fault
) -> None:
    for name in ("task_received", "worker_shutting_down", "worker_shutdown"):
        monkeypatch.setattr(pulse, name, Signal())
    monkeypatch.setattr(pulse.Watch, "_run", lambda _: None)
    monkeypatch.setattr(ArchiveProbe, "begin", lambda probe: setattr(probe, "fault", "disk full"))
    consumed = SimpleNamespace(queues=[SimpleNamespace(name=queue)])
    consumer: Any = SimpleNamespace(hostname="w@h", task_consumer=consumed)
    watch = pulse.Watch(consumer, load_settings())
    watch.begin()
    assert watch._describe().archive_fault == fault

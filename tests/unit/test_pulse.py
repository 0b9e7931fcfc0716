"""Each turn of a worker's loop is noted, whichever loop it has."""

from types import SimpleNamespace

from worker.lifecycle import pulse
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

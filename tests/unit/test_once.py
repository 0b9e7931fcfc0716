"""Threads that come together make one thing."""

import os
import time
from dataclasses import dataclass
from threading import Thread

from tests.harness.together import call_together
from worker.ground.once import Once, shared_property


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
    get = Once(object)
    get._lock.acquire()
    pid = os.fork()
    if pid == 0:
        asking = Thread(target=get, daemon=True)
        asking.start()
        asking.join(5)
        os._exit(asking.is_alive())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

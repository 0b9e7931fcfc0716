"""What is made once for all threads of a process, where `functools` would make one for each."""

import os
from collections.abc import Callable
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Generic, TypeVar

V = TypeVar("V")


class Once(Generic[V]):
    """A function without parameters, called once; `functools.cache` with a lock."""

    # Reentrant: a signal's handler may interrupt `make`. One for all, so that no order of locks has
    # to be kept.
    lock = RLock()

    def __init__(self, make: Callable[[], V]) -> None:
        self._make = make
        self._made: list[V] = []

    def __call__(self) -> V:
        with Once.lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    @property
    def is_made(self) -> bool:
        return bool(self._made)

    def forget(self) -> None:
        """The next call makes it anew."""
        self._made.clear()


# A child forked while another thread held the lock would wait forever.
os.register_at_fork(after_in_child=lambda: setattr(Once, "lock", RLock()))

if TYPE_CHECKING:
    shared_property = cached_property
else:

    class shared_property(cached_property):  # noqa: N801 - as its base
        """`functools.cached_property` with a lock, which it lost in Python 3.12."""

        def __get__(self, instance: object, owner: type | None = None) -> object:
            with Once.lock:
                return super().__get__(instance, owner)

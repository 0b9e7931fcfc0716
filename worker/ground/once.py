"""What threads that come together must make once: `functools` makes it once for each of them.

A child that was forked while another thread held a lock would wait for ever: it gets new ones.
"""

import os
from collections.abc import Callable
from functools import cached_property
from threading import RLock
from typing import Any, Generic, Self, TypeVar, overload

from typing_extensions import override

T = TypeVar("T")


class Once(Generic[T]):
    """A function without parameters, called once; `functools.cache` with a lock."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []
        self._renew_lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def __call__(self) -> T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    @property
    def is_made(self) -> bool:
        return bool(self._made)

    def forget(self) -> None:
        """The next call makes it anew."""
        self._made.clear()

    def _renew_lock(self) -> None:
        # A signal's handler may ask in the middle of the making.
        self._lock = RLock()


class shared_property(cached_property[T]):  # noqa: N801 - as its base
    """`functools.cached_property` with a lock, which that has lost in Python 3.12."""

    def __init__(self, func: Callable[[Any], T]) -> None:
        super().__init__(func)
        self._renew_lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> T: ...
    @override
    def __get__(self, instance: object, owner: type[Any] | None = None) -> Self | T:
        if instance is None:
            return self
        with self._shared_lock:
            return super().__get__(instance, owner)

    def _renew_lock(self) -> None:
        self._shared_lock = RLock()

"""Starts again what has ended, as the supervisor of a deployment does; and ends what it is told."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from tests.harness.processes import Deployment

LOOK_SECONDS = 0.03


@dataclass
class Supervisor:
    """`kills` counts killed process groups by name; `ends` those that ended by themselves."""

    deployment: Deployment
    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _told_to_end: threading.Event = field(default_factory=threading.Event)
    _held_down: set[str] = field(default_factory=set)
    _thread: threading.Thread | None = None
    _failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._told_to_end.set()
        assert self._thread is not None
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def kill(self, *names: str) -> None:
        """SIGKILL the process groups of these daemons; one that does not run is not counted."""
        with self._lock:
            parts = [self.deployment.yard.parts[name] for name in names]
            for part in parts:
                if part.is_running:
                    part.kill()
                    self.kills[part.name] += 1

    @contextmanager
    def holding_down(self, *names: str) -> Iterator[None]:
        """These daemons are told to end, and are not started again before the block is left."""
        with self._lock:
            self._held_down.update(names)
            for name in names:
                self.deployment.yard.parts[name].process.terminate()
            for name in names:
                self.deployment.yard.parts[name].wait()
        try:
            yield
        finally:
            with self._lock:
                self._held_down.difference_update(names)
                self.deployment.start_missing(but=self._held_down)

    @contextmanager
    def power_cut(self) -> Iterator[None]:
        """All daemons are killed at one moment, and start again when the block is left."""
        names = ("receiver", "beat", *self.deployment.workers)
        with self._lock:
            self._held_down.update(names)
        self.kill(*names)
        try:
            yield
        finally:
            with self._lock:
                self._held_down.clear()
                self.deployment.start_missing()

    def _watch(self) -> None:
        try:
            while not self._told_to_end.wait(LOOK_SECONDS):
                with self._lock:
                    self._start_missing()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for this thread
            self._failure = error

    def _start_missing(self) -> None:
        for name in {"receiver", "beat", *self.deployment.workers} - self._held_down:
            part = self.deployment.yard.parts[name]
            if not part.is_running and part.process.returncode != -signal.SIGKILL:
                self.ends[name] += 1
        self.deployment.start_missing(but=self._held_down)

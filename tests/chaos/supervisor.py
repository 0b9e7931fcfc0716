"""Starts again what has ended, as the supervisor of a deployment does; and ends what it is told."""

import threading
from collections import Counter
from collections.abc import Sequence
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
    _is_resting: bool = False
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

    def rest(self) -> None:
        """Start nothing again until `resume`."""
        self._is_resting = True

    def resume(self) -> None:
        self._is_resting = False

    def _watch(self) -> None:
        try:
            while not self._told_to_end.wait(LOOK_SECONDS):
                if not self._is_resting:
                    self._start_missing()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for this thread
            self._failure = error

    def _start_missing(self) -> None:
        with self._lock:
            self._count_ends(["receiver", "beat", *self.deployment.workers])
            self.deployment.start_missing()

    def _count_ends(self, names: Sequence[str]) -> None:
        for name in names:
            part = self.deployment.yard.parts[name]
            if not part.is_running and part.process.returncode != -9:
                self.ends[name] += 1

"""The emulator's hooks, shared by hunters that each wait at a point of their own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Self

import httpx

PATIENCE_SECONDS = 0.5
LOOK_SECONDS = 0.01
HOLD_SECONDS = 20


@dataclass
class HookBoard:
    """One thread asks the emulator who is held, and tells the hunter who waits for that point."""

    url: str
    _wanted: dict[str, SimpleQueue[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _told_to_end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _client: httpx.Client | None = None

    def __enter__(self) -> Self:
        self._client = httpx.Client(base_url=self.url, trust_env=False, timeout=30)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._told_to_end.set()
        assert self._thread is not None
        self._thread.join()
        self._ask("DELETE", "hooks")
        assert self._client is not None
        self._client.close()

    @contextmanager
    def holding(self, point: str) -> Iterator["Catch"]:
        """The next request at this point is held, at the latest until the block is left."""
        reached: SimpleQueue[str] = SimpleQueue()
        self._want(point, reached)
        catch = Catch(self, reached)
        try:
            yield catch
        finally:
            self._want(point, None)
            catch.release()

    def release(self, held_id: str) -> None:
        self._ask("POST", f"hooks/{held_id}/release")

    def _want(self, point: str, reached: "SimpleQueue[str] | None") -> None:
        with self._lock:
            self._wanted.pop(point, None)
            if reached is not None:
                self._wanted[point] = reached
            hooks = [
                {"point": one, "times": 1, "hold_seconds": HOLD_SECONDS} for one in self._wanted
            ]
            self._ask("PUT", "hooks", hooks)

    def _watch(self) -> None:
        seen: set[str] = set()
        while not self._told_to_end.is_set():
            for held in self._ask("GET", f"hooks/held?wait={PATIENCE_SECONDS}"):
                if held["id"] not in seen:
                    seen.add(held["id"])
                    self._tell(held)
            self._told_to_end.wait(LOOK_SECONDS)

    def _tell(self, held: dict[str, Any]) -> None:
        with self._lock:
            reached = self._wanted.pop(held["point"], None)
        if reached is None:
            self.release(held["id"])
        else:
            reached.put(held["id"])

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        assert self._client is not None
        return self._client.request(method, f"/_emulator/{path}", json=body).json()


@dataclass
class Catch:
    """Who is held for a hunter, once somebody is."""

    board: HookBoard
    reached: "SimpleQueue[str]"
    _held: list[str] = field(default_factory=list)

    def wait(self, seconds: float) -> bool:
        with suppress(Empty):
            self._held.append(self.reached.get(timeout=seconds))
        return bool(self._held)

    def release(self) -> None:
        """Let everybody go who is held by now."""
        with suppress(Empty):
            while True:
                self._held.append(self.reached.get_nowait())
        while self._held:
            self.board.release(self._held.pop())

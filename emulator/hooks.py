"""Named points at which a test driver can stop the world, to kill somebody just there.

An armed point holds the next request that reaches it until the driver lets it go, or until the
hook's time is over. Everything else continues meanwhile.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

from emulator.fault_table import LONGEST_SECONDS, is_seconds
from emulator.faults import Match, WrongSettingError, read_list, read_object, read_times
from emulator.records import FalRequest

POINTS = (
    "submit_received",
    "submit_queued",
    "submit_replied",
    "webhook_sending",
    "webhook_sent",
    "status_received",
    "result_received",
    "cancel_received",
    "jwks_received",
    "listing_received",
    "stream_received",
    "upload_received",
    "upload_part_received",
    "upload_complete_received",
    "cdn_started",
    "cdn_half",
    "cdn_sent",
)
KEYS = ("point", "times", "hold_seconds", "match")


@dataclass(slots=True)
class Hook:
    """An armed point; `times` is how often it will hold yet, None: without end."""

    point: str
    times: int | None
    hold: timedelta
    match: Match

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Raises WrongSettingError: naming what is unknown or wrong."""
        given = read_object(value, "a hook", KEYS)
        point = given.get("point")
        if point not in POINTS:
            raise WrongSettingError(f"unknown point: {point!r}; known: {', '.join(POINTS)}")
        seconds = given.get("hold_seconds", 60)
        if not is_seconds(seconds):
            limit = f"{LONGEST_SECONDS:.0f}"
            raise WrongSettingError(
                f"hold_seconds must be a number from 0 to {limit}, not {seconds!r}"
            )
        times = read_times(given.get("times"))
        return cls(
            point, times, timedelta(seconds=seconds), Match.from_json(given.get("match", {}))
        )

    def to_json(self) -> dict[str, object]:
        seconds = self.hold.total_seconds()
        named = {"point": self.point, "times": self.times, "hold_seconds": seconds}
        return {**named, "match": self.match.to_json()}


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A request that stands still."""

    id: str
    point: str
    request_id: str | None
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def to_json(self) -> dict[str, object]:
        return {"id": self.id, "point": self.point, "request_id": self.request_id}


class Hooks:
    def __init__(self) -> None:
        self._armed: tuple[Hook, ...] = ()
        self._held: dict[str, Held] = {}
        self._is_any_held = asyncio.Event()
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def arm(self, hooks: Sequence[Hook]) -> None:
        """Replace what is armed. Requests that are held remain so."""
        self._armed = tuple(hooks)

    def disarm(self) -> None:
        """Let everybody go, and hold nobody any more."""
        self._armed = ()
        for held_id in list(self._held):
            self.release(held_id)

    async def reach(self, point: str, request: FalRequest | None = None) -> None:
        """Stand still here if the point is armed."""
        hook = self._take(point, request)
        if hook is None:
            return
        held = Held(str(next(self._numbers)), point, request.request_id if request else None)
        self._held[held.id] = held
        self._is_any_held.set()
        try:
            async with asyncio.timeout(hook.hold.total_seconds()):
                await held.released.wait()
        except TimeoutError:
            pass
        finally:
            self._forget(held.id)

    def note(self, point: str, request: FalRequest | None = None) -> None:
        """Show the point as reached where nothing is left that could be held."""
        task = asyncio.create_task(self.reach(point, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_for_held(self, longest: timedelta) -> list[Held]:
        """Everybody who is held, as soon as there is one; nobody after `longest`."""
        try:
            async with asyncio.timeout(longest.total_seconds()):
                await self._is_any_held.wait()
        except TimeoutError:
            pass
        return list(self._held.values())

    def list_held(self) -> list[dict[str, object]]:
        return [held.to_json() for held in self._held.values()]

    def release(self, held_id: str) -> bool:
        """False: nobody of that id is held."""
        held = self._forget(held_id)
        if held is not None:
            held.released.set()
        return held is not None

    async def close(self) -> None:
        self.disarm()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def to_json(self) -> list[dict[str, object]]:
        return [hook.to_json() for hook in self._armed]

    def _forget(self, held_id: str) -> Held | None:
        held = self._held.pop(held_id, None)
        if not self._held:
            self._is_any_held.clear()
        return held

    def _take(self, point: str, request: FalRequest | None) -> Hook | None:
        for hook in self._armed:
            if hook.point == point and hook.times != 0 and hook.match.covers(request):
                if hook.times is not None:
                    hook.times -= 1
                return hook
        return None


def parse_hooks(value: object) -> tuple[Hook, ...]:
    """Raises WrongSettingError: naming the hook by its place, and what is wrong with it."""
    return tuple(read_list(value, "hooks", Hook.from_json))

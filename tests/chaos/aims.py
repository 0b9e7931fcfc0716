"""The moments at which a daemon is killed, each found from outside.

A hook of the emulator stops the world at a point of fal's side. Everything else is seen by looking:
a row that has just come to a state, a directory that has just changed; or left to chance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from time import monotonic
from typing import Protocol

from tests.chaos.board import HookBoard
from tests.chaos.site import ARCHIVER, BEAT, RECEIVER, SUBMITTER, Site
from tests.harness.waiting import PAUSE

LOOK_SECONDS = 0.002
AT_RANDOM = "at random"


class Aim(Protocol):
    """A named moment; `strike` waits for it and kills. False: it did not come in time."""

    @property
    def name(self) -> str: ...

    def strike(self, hunt: "Hunt", kill: Callable[[], None]) -> bool: ...


@dataclass(frozen=True)
class Hunt:
    """What an aim needs to know its moment."""

    site: Site
    board: HookBoard
    chance: Random
    patience: float


@dataclass(frozen=True)
class AtHook:
    """While fal is held at a point. With `after`, up to so many seconds after it was let go."""

    name: str
    point: str
    after: float = 0

    def strike(self, hunt: Hunt, kill: Callable[[], None]) -> bool:
        with hunt.board.holding(self.point) as catch:
            if not catch.wait(hunt.patience):
                return False
            if self.after:
                catch.release()
                PAUSE.wait(hunt.chance.uniform(0, self.after))
            kill()
            return True


@dataclass(frozen=True)
class AtState:
    """As soon as another row is seen to have come to a state."""

    name: str
    state: str

    def strike(self, hunt: Hunt, kill: Callable[[], None]) -> bool:
        before = hunt.site.count_events(self.state)
        return strike_when(lambda: hunt.site.count_events(self.state) > before, hunt, kill)


@dataclass(frozen=True)
class AtFile:
    """As soon as a directory of the archive has another entry, or one less.

    `below` is a template of the present time, as the archive's layout is.
    """

    name: str
    below: str

    def strike(self, hunt: Hunt, kill: Callable[[], None]) -> bool:
        directory = hunt.site.deployment.archive / datetime.now(UTC).strftime(self.below)
        if not directory.exists():
            return False
        before = directory.stat().st_mtime_ns
        return strike_when(lambda: directory.stat().st_mtime_ns != before, hunt, kill)


@dataclass(frozen=True)
class AtRandom:
    name: str = AT_RANDOM
    within: float = 1.5

    def strike(self, hunt: Hunt, kill: Callable[[], None]) -> bool:
        PAUSE.wait(hunt.chance.uniform(0, self.within))
        kill()
        return True


def strike_when(holds: Callable[[], bool], hunt: Hunt, kill: Callable[[], None]) -> bool:
    deadline = monotonic() + hunt.patience
    while not holds():
        if monotonic() > deadline:
            return False
        PAUSE.wait(LOOK_SECONDS)
    kill()
    return True


AIMS: dict[str, tuple[Aim, ...]] = {
    SUBMITTER: (
        AtState("before claim", "queued"),
        AtState("after claim", "submitting"),
        AtHook("before POST is queued", "submit_received"),
        AtHook("after POST, before reply", "submit_queued"),
        AtHook("after reply, before commit", "submit_replied"),
        AtState("after reply's commit", "submitted"),
        AtHook("asking for a status", "status_received"),
        AtHook("asking for a result", "result_received"),
        AtHook("asking for the listing", "listing_received"),
        AtRandom(),
    ),
    RECEIVER: (
        AtHook("in webhook, before or after commit", "webhook_sending", after=0.02),
        AtState("after webhook's commit, before publish", "completed"),
        AtHook("after webhook's answer", "webhook_sent"),
        AtHook("fetching the signing keys", "jwks_received"),
        AtRandom(),
    ),
    ARCHIVER: (
        AtState("before archive claim", "completed"),
        AtState("after archive claim", "archiving"),
        AtHook("before download", "cdn_started"),
        AtHook("half of the download", "cdn_half"),
        AtHook("after download", "cdn_sent"),
        AtHook("between download and commit", "cdn_sent", after=0.05),
        AtFile("before rename", ".partial"),
        AtFile("after rename", "%Y/%m/%d"),
        AtRandom(),
    ),
    BEAT: (AtRandom(within=20),),
}

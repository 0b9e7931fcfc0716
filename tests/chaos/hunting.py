"""Kill loops: one hunter for each daemon, all at once, while the deployment goes on."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from random import Random
from threading import Event

import httpx

from tests.chaos.aims import AIMS, AT_RANDOM, Aim, Hunt
from tests.chaos.board import HookBoard
from tests.chaos.site import BEAT, DAEMONS, RECEIVER, Site
from tests.harness.waiting import PAUSE, wait_until

READY_SECONDS = 60
ALL_OF = 10
"""One kill in so many is a kill of everything."""


@dataclass
class Pack:
    """`cached_count` counts how often each moment was met, by daemon and name."""

    site: Site
    seed: int
    wanted: int
    patience: float = 15
    cached_count: Counter[str] = field(default_factory=Counter)
    enough: Event = field(default_factory=Event)

    def hunt(self) -> None:
        """Kill until there are as many kills as wanted."""
        with HookBoard(self.site.emulator.url) as board, ThreadPoolExecutor(len(AIMS)) as threads:
            hunters = [threads.submit(self._hunt_one, name, board) for name in AIMS]
            try:
                wait_until(
                    lambda: self._has_enough() or any(one.done() for one in hunters), 24 * 3600
                )
            finally:
                self.enough.set()
            for hunter in hunters:
                hunter.result()

    def _has_enough(self) -> bool:
        return self.site.supervisor.kills.total() >= self.wanted

    def _hunt_one(self, name: str, board: HookBoard) -> None:
        chance = Random(f"{self.seed} {name}")
        hunt = Hunt(self.site, board, chance, self.patience)
        for aim in shuffle_endlessly(AIMS[name], chance):
            victims = DAEMONS if chance.randrange(ALL_OF) == 0 else (name,)
            if not self._wait_for_ready(name):
                return
            met = aim.strike(hunt, partial(self.site.supervisor.kill, *victims))
            if not met:
                self.site.supervisor.kill(*victims)
            self.cached_count[f"{name} {aim.name if met else AT_RANDOM}"] += 1

    def _wait_for_ready(self, name: str) -> bool:
        """False if there have been enough kills meanwhile."""
        while not self.enough.is_set():
            if self._is_ready(name):
                return True
            PAUSE.wait(0.05)
        return False

    def _is_ready(self, name: str) -> bool:
        part = self.site.yard.parts[name]
        if not part.is_running:
            return False
        if name == RECEIVER:
            return answers_health(self.site)
        return name == BEAT or " ready." in part.read_log()


def answers_health(site: Site) -> bool:
    url = site.deployment.settings["WEBHOOK_BASE_URL"]
    try:
        return httpx.get(f"{url}/healthz", timeout=0.3, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def shuffle_endlessly(aims: tuple[Aim, ...], chance: Random) -> Iterator[Aim]:
    """Every aim once in each round, in another order each time."""
    while True:
        yield from chance.sample(aims, len(aims))

"""The experiments by name, each with the settings in which it differs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.chaos.broker import harm_broker
from tests.chaos.kill_sweep import sweep_kills
from tests.chaos.outages import interrupt_database
from tests.chaos.plan import Plan
from tests.chaos.recovery import recover_crowd
from tests.chaos.report import Finding
from tests.chaos.site import Site
from tests.chaos.webhooks import disturb_webhooks


@dataclass(frozen=True)
class Experiment:
    run: Callable[[Site, Plan], Iterator[Finding]]
    settings: Mapping[str, str] = field(default_factory=dict)
    emulator: tuple[str, ...] = ()


EXPERIMENTS = {
    "kills": Experiment(sweep_kills),
    "broker": Experiment(harm_broker),
    "database": Experiment(interrupt_database),
    "webhooks": Experiment(disturb_webhooks),
    "recovery": Experiment(recover_crowd, {"LEASE_SECONDS": "5"}, ("--run-seconds", "3")),
}

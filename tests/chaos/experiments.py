"""The experiments by name, each with the settings in which it differs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from tests.chaos.broker import harm_broker
from tests.chaos.gateway import answer_late
from tests.chaos.judge import ask_doctor
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
    choose_settings: Callable[[Plan], Mapping[str, str]] = lambda _: {}
    emulator: tuple[str, ...] = ()

    def conduct(self, site: Site, plan: Plan) -> Iterator[Finding]:
        """All rounds; what the doctor says in the end belongs to the last one."""
        finding: Finding | None = None
        for following in self.run(site, plan):
            if finding is not None:
                yield finding
            finding = following
        assert finding is not None, "an experiment without a round"
        yield replace(finding, problems=[*finding.problems, *ask_doctor(site)])


def choose_lease(plan: Plan) -> Mapping[str, str]:
    return {"LEASE_SECONDS": str(plan.crowd_lease)}


EXPERIMENTS = {
    "kills": Experiment(sweep_kills),
    "broker": Experiment(harm_broker),
    "database": Experiment(interrupt_database),
    "webhooks": Experiment(disturb_webhooks),
    "gateway": Experiment(answer_late),
    "recovery": Experiment(recover_crowd, choose_lease, ("--run-seconds", "3")),
}

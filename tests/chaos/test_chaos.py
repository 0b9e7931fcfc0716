"""The short form of each experiment on one database; `make chaos` is the long one, on both."""

import pytest

from tests.chaos.experiments import EXPERIMENTS
from tests.chaos.plan import SHORT
from tests.chaos.report import render_table
from tests.chaos.site import run_site

# The slowest first, so that two workers finish together.
DATABASES = {
    "kills": "sqlite",
    "database": "postgresql",
    "webhooks": "sqlite",
    "recovery": "postgresql",
    "broker": "sqlite",
}


def test_every_experiment_has_a_short_form() -> None:
    assert sorted(DATABASES) == sorted(EXPERIMENTS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "database"), DATABASES.items())
def test_nothing_is_lost_nor_paid_twice(tmp_path, chaos_postgres, name, database) -> None:
    experiment = EXPERIMENTS[name]
    with run_site(
        tmp_path,
        chaos_postgres,
        changes=experiment.choose_settings(SHORT),
        emulator_options=experiment.emulator,
    ) as site:
        findings = list(experiment.conduct(site, SHORT))
    problems = [problem for finding in findings for problem in finding.problems]
    assert all(finding.is_clean for finding in findings), "\n".join(
        [render_table(findings), *problems, site.yard.quote_logs()]
    )
    assert all(finding.jobs for finding in findings)
    assert sum(finding.kills for finding in findings) >= (SHORT.kills if name == "kills" else 0)

"""Every daemon is told to end and started again, one after another, while jobs keep coming."""

from contextlib import ExitStack
from time import monotonic

import pytest

from tests.chaos.judge import ask_doctor, judge_site
from tests.chaos.rounds import drain
from tests.chaos.site import DAEMONS, PATIENCE_SECONDS, Site, run_site
from tests.harness.waiting import wait_until

PACE, MOST_LIVE = 8.0, 40
SUPERVISORS_PATIENCE = 30.0


def wait_for_progress(site: Site) -> None:
    before = site.count_archived()
    wait_until(lambda: site.count_archived() > before + PACE, PATIENCE_SECONDS)


@pytest.mark.timeout(500)
def test_rolling_restart_under_load_loses_and_doubles_nothing(tmp_path, postgres) -> None:
    with ExitStack() as stack:
        site = stack.enter_context(run_site(tmp_path, postgres))
        site.start_producer(PACE, most_live=MOST_LIVE)
        wait_for_progress(site)
        for name in DAEMONS:
            began = monotonic()
            with site.supervisor.holding_down(name):
                assert site.yard.parts[name].process.returncode == 0
                assert monotonic() - began < SUPERVISORS_PATIENCE
            site.wait_for_ready()
            wait_for_progress(site)
        site.end_producers()
        drain(site)
        judgement = judge_site(site)

        assert judgement.is_clean, judgement
        assert judgement.jobs > len(DAEMONS) * PACE
        assert list(ask_doctor(site)) == []

"""What `tests/page` has for its tests, and a whole deployment."""

from collections.abc import Iterator

import pytest

from tests.emulator.clips import make_clip
from tests.harness.processes import ONE_WORKER, Deployment, run_deployment, run_emulator, run_yard
from tests.harness.servers import run_redis
from tests.page.browser import TOKEN
from tests.page.conftest import browser, context, logging_undone, open_site, page, site

__all__ = ["browser", "context", "logging_undone", "open_site", "page", "site"]


@pytest.fixture(scope="session")
def deployment(tmp_path_factory) -> Iterator[Deployment]:
    """Every daemon, an emulator of fal, and the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield from _run_deployment(tmp_path_factory)


def _run_deployment(tmp_path_factory) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("page")
    files = directory / "emulator" / "files"
    files.mkdir(parents=True)
    clip = make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=72)
    (files / "sample.mp4").write_bytes(clip.read_bytes())
    with (
        run_redis() as broker_url,
        run_yard(directory) as yard,
        run_emulator(yard) as emulator,
        run_deployment(
            yard,
            emulator=emulator,
            fal_url=emulator.url,
            database_url=f"sqlite:///{directory / 'jobs.db'}",
            broker_url=broker_url,
            workers=ONE_WORKER,
            changes={"MONITOR_TOKEN": TOKEN, "SAMPLE": emulator.sample_url},
        ) as running,
    ):
        yield running

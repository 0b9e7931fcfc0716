"""A browser for the run, and a page of its own for each test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from playwright.sync_api import Browser, BrowserContext, Page

from tests.harness.brokers import take_messages
from tests.harness.logs import preserved_logging
from tests.page.browser import TOKEN, run_browser
from tests.page.scene import Site, build_site, close_site, serve
from worker.broker.app import QUEUES


@pytest.fixture(autouse=True)
def logging_undone() -> Iterator[None]:
    with preserved_logging():
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with run_browser() as running:
        yield running


@pytest.fixture
def open_site(database_url, db, redis_url) -> Iterator[Callable[..., Site]]:
    """Builds receivers with a page; settings as keywords."""
    opened: list[Site] = []

    def build(**changes: Any) -> Site:
        opened.append(build_site(database_url, db, redis_url, **changes))
        return opened[-1]

    for queue in QUEUES.values():
        take_messages(redis_url, queue)
    yield build
    for site in opened:
        close_site(site)


@pytest.fixture
def site(open_site) -> Iterator[Site]:
    """Served on a port, for a browser."""
    with serve(open_site()) as served:
        yield served


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 1280, "height": 900}) as opened:
        opened.set_default_timeout(15_000)
        yield opened


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab that nothing has complained in, not even the content policy, when the test ends."""
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
    yield tab
    # What a test provokes, the browser tells as a failed load.
    assert [one for one in complaints if "Failed to load resource" not in one] == []


@pytest.fixture
def client(open_site) -> FlaskClient:
    """Without a browser, and logged in."""
    client: FlaskClient = open_site().app.test_client()
    answer = client.post("/jobs/login", data={"secret": TOKEN})
    assert answer.status_code == 303
    return client

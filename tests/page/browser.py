"""Debian's Chromium, without a window, driven by Playwright."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
TOKEN = "the-token-of-the-page-in-tests"


@contextmanager
def run_browser() -> Iterator[Browser]:
    """Chromium is no Python package: where it is missing, the test says NOT RUN and what to do."""
    if not CHROMIUM.exists():
        # `make test` asks for python3, make and git only; CI installs it.
        pytest.skip(f"NOT RUN: there is no {CHROMIUM} (Debian, Ubuntu: apt-get install chromium)")
    with sync_playwright() as playwright:
        # Root has no sandbox; what is looked at here is our own page.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        # Longer than the page takes to renew itself, on a busy machine.
        expect.set_options(timeout=20_000)
        yield browser
        browser.close()


def log_in(page: Page, url: str, token: str = TOKEN) -> None:
    page.goto(f"{url}/jobs")
    page.get_by_label("Token or password").fill(token)
    page.get_by_role("button", name="Log in").click()

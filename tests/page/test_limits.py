"""Limits on the page: what is shown of them, and who may pause and resume."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect

from tests.page.browser import TOKEN
from tests.page.scene import Site
from worker.ground.money import NANO
from worker.jobs import admission, charges
from worker.jobs.admission import ACCOUNT, Pause
from worker.jobs.states import PauseCause
from worker.jobs.values import Job
from worker.ops.timeline import read_story

ORDERS = ("/jobs/limits/pause", "/jobs/limits/resume")


def read_page(client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200
    return str(answer.text)


def find_csrf(client) -> str:
    found = re.search(r'name="csrf_token" value="([0-9a-f]+)"', read_page(client, "/jobs/limits"))
    assert found is not None
    return found[1]


def list_pauses(site: Site) -> list[tuple[str, str, str]]:
    with site.db.reading() as connection:
        return [(one.scope, one.cause, one.reason) for one in admission.list_pauses(connection)]


def set_up(site: Site) -> None:
    """A tenant with limits, and what was spent today."""
    now = datetime.now(UTC)
    with site.db.transaction() as connection:
        admission.set_limits(connection, ACCOUNT, {"daily_budget_nano_usd": 25 * NANO})
        admission.set_limits(
            connection, "tenant:studio", {"max_in_flight": 4, "weight": 10, "per_minute": 30}
        )
        charges.add_spent(connection, "studio", admission.name_day(now), 3 * NANO // 2)
        price = charges.Price("fal-ai/model", "megapixel", 1_605_000, now)
        charges.keep_price(connection, price)


@pytest.fixture
def logged_in(open_site):
    """A site, and a client of it that is logged in."""
    site = open_site()
    client = site.app.test_client()
    assert client.post("/jobs/login", data={"secret": TOKEN}).status_code == 303
    return site, client


def test_limits_use_costs_of_today_and_the_price_are_shown(logged_in) -> None:
    site, client = logged_in
    set_up(site)
    text = " ".join(re.sub(r"<[^>]+>", " ", read_page(client, "/jobs/limits")).split())
    assert "account 0 of 40 no bound – 1.50 USD of 25.00 USD no" in text  # noqa: RUF001
    assert "tenant:studio 0 of 4 30 10 1.50 USD no" in text
    assert "0.001605 USD a megapixel" in text
    board = " ".join(re.sub(r"<[^>]+>", " ", read_page(client, "/jobs")).split())
    assert "In flight 0 of 40 · spent today 1.50 USD of 25.00 USD" in board


@pytest.mark.parametrize("scope", [ACCOUNT, "tenant:studio"])
def test_a_pause_by_hand_is_ended_by_hand_and_publishes_a_submission(logged_in, scope) -> None:
    site, client = logged_in
    word = find_csrf(client)
    order = {"csrf_token": word, "scope": scope, "reason": " invoice to be <b>checked</b> "}
    answer = client.post("/jobs/limits/pause", data=order)
    assert (answer.status_code, answer.location) == (303, "/jobs/limits?done=paused")
    assert list_pauses(site) == [(scope, "operator", "invoice to be <b>checked</b>")]
    shown = read_page(client, "/jobs/limits")
    assert "invoice to be &lt;b&gt;checked&lt;/b&gt;" in shown
    assert site.take_doorbells() == []
    answer = client.post("/jobs/limits/resume", data={"csrf_token": word, "scope": scope})
    assert answer.status_code == 303
    assert list_pauses(site) == []
    assert len(site.take_doorbells()) == 1
    assert (
        client.post("/jobs/limits/resume", data={"csrf_token": word, "scope": scope}).status_code
        == 409
    )


def test_a_pause_by_fal_is_shown_and_not_ended_by_hand(logged_in) -> None:
    site, client = logged_in
    now = datetime.now(UTC)
    pause = Pause(ACCOUNT, PauseCause.BUSY, "429: too many", now, until=now + timedelta(hours=1))
    with site.db.transaction() as connection:
        admission.keep_pause(connection, pause)
    assert "429: too many" in read_page(client, "/jobs")
    form = {"csrf_token": find_csrf(client), "scope": ACCOUNT}
    assert client.post("/jobs/limits/resume", data=form).status_code == 409
    assert list_pauses(site) == [(ACCOUNT, "busy", "429: too many")]


@pytest.mark.parametrize(
    "form",
    [
        {"scope": ACCOUNT, "reason": "  "},
        {"scope": ACCOUNT, "reason": "x" * 501},
        {"scope": ACCOUNT, "reason": "a\0b"},
        {"scope": "tenant:", "reason": "why"},
        {"scope": "tenant:a b", "reason": "why"},
        {"scope": f"tenant:{'x' * 129}", "reason": "why"},
        {"scope": "everybody", "reason": "why"},
        {"reason": "why"},
    ],
)
def test_a_pause_of_nothing_or_without_a_reason_is_refused(logged_in, form) -> None:
    site, client = logged_in
    answer = client.post("/jobs/limits/pause", data={"csrf_token": find_csrf(client), **form})
    assert answer.status_code == 400
    assert 'role="alert"' in answer.text
    assert list_pauses(site) == []


@pytest.mark.parametrize("path", ORDERS)
def test_without_login_or_the_session_s_word_nothing_is_paused_or_resumed(logged_in, path) -> None:
    site, client = logged_in
    with site.db.transaction() as connection:
        pause = Pause("tenant:a", PauseCause.OPERATOR, "by hand", datetime.now(UTC))
        admission.keep_pause(connection, pause)
    before = list_pauses(site)
    form = {"scope": "tenant:a" if "resume" in path else "tenant:b", "reason": "why"}
    stranger = site.app.test_client().post(path, data={**form, "csrf_token": "x"})
    assert (stranger.status_code, stranger.location) == (303, "/jobs/login")
    assert client.post(path, data=form).status_code == 403
    assert client.post(path, data={**form, "csrf_token": "0" * 64}).status_code == 403
    word = find_csrf(client)
    foreign = {"Origin": "https://elsewhere.example"}
    assert client.post(path, data={**form, "csrf_token": word}, headers=foreign).status_code == 403
    assert client.get(path).status_code in {404, 405}
    assert list_pauses(site) == before


def test_login_leads_back_to_the_limits(open_site) -> None:
    client = open_site().app.test_client()
    answer = client.get("/jobs/limits")
    assert answer.location == "/jobs/login?next=/jobs/limits"
    answer = client.post("/jobs/login", data={"secret": TOKEN, "next": "/jobs/limits"})
    assert answer.location == "/jobs/limits"


def test_list_and_story_say_what_holds_a_job(logged_in) -> None:
    site, client = logged_in
    jobs: list[Job] = [site.add_job(age=age) for age in (3, 2, 1)]
    with site.db.transaction() as connection:
        pause = Pause(ACCOUNT, PauseCause.OPERATOR, "invoice", datetime.now(UTC))
        admission.keep_pause(connection, pause)
    shown = read_page(client, "/jobs")
    for place in (1, 2, 3):
        assert f"account: invoice · place {place}" in shown
    story = read_page(client, f"/jobs/{jobs[2].id}")
    assert "place 3 in its tenant" in story
    assert "<dt>Held by</dt><dd>account</dd>" in story
    assert read_story(jobs[2].id, db=site.db).hold is not None


def test_operator_pauses_a_tenant_and_resumes_it_in_a_browser(site: Site, page: Page) -> None:
    set_up(site)
    site.log_in(page)
    page.get_by_role("link", name="Limits").first.click()
    row = page.get_by_role("row").filter(has_text="tenant:studio")
    row.get_by_text("Pause…").click()
    row.get_by_label("Why").fill("their loop runs wild")
    row.get_by_role("button", name="Pause tenant:studio").click()
    expect(page.get_by_role("status")).to_have_text("Submissions are paused.")
    expect(row).to_contain_text("by hand since")
    expect(row).to_contain_text("their loop runs wild")
    assert list_pauses(site) == [("tenant:studio", "operator", "their loop runs wild")]
    row.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status")).to_have_text("Submissions go on.")
    assert list_pauses(site) == []

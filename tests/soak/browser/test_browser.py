"""The page in a real browser: all that people see and do; `tests/page` has a smoke of it."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from playwright.sync_api import Page, expect
from werkzeug.test import TestResponse

import webhook.page.files
from tests.emulator.clips import make_clip
from tests.harness.jobs import make_job, move_job, read_attempts, read_job
from tests.harness.waiting import wait_until
from tests.page.browser import TOKEN, log_in
from tests.page.scene import Site, serve
from tests.system.rows import open_table
from worker.jobs.states import JobEvent, JobState

TITLES = "table.jobs a.title"
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def home(site: Site, page: Page) -> Page:
    """The list, logged in."""
    site.log_in(page)
    return page


def read_titles(page: Page) -> list[str]:
    return page.locator(TITLES).all_inner_texts()


def choose(page: Page, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)
    page.get_by_role("button", name="Filter").click()
    page.wait_for_load_state()


# ------------------------------------------------------------------ login


def test_visitor_without_login_is_asked_for_it_and_led_back(site, page) -> None:
    job = site.add_job("behind the door")
    site.open(page, f"/jobs/{job.id}")
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    assert "behind the door" not in page.content()

    page.get_by_label("Token or password").fill(TOKEN)
    page.keyboard.press("Enter")

    page.wait_for_url(f"{site.url}/jobs/{job.id}")
    expect(page.get_by_role("heading", name="behind the door")).to_be_visible()


def test_wrong_token_is_refused_in_words(site, page) -> None:
    log_in(page, site.url, "not-the-token-at-all")
    expect(page.get_by_role("alert")).to_have_text("That is not it.")
    site.open(page)
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()


def test_logged_in_visitor_from_another_site_is_let_in_without_asking(site, home, context) -> None:
    """The strict cookie is not sent with a link from elsewhere, so the login page looks for it."""
    job = site.add_job("linked from an alert")
    other = context.new_page()
    address = f"{site.url}/jobs/{job.id}"
    other.goto("data:text/html,<a href='" + address + "'>alert</a>")
    other.get_by_role("link").click()
    other.wait_for_url(address)
    expect(other.get_by_role("heading", name="linked from an alert")).to_be_visible()


def test_logout_ends_the_login(site, home) -> None:
    home.get_by_role("button", name="Log out").click()
    expect(home.get_by_role("heading", name="Log in")).to_be_visible()
    site.open(home)
    expect(home.get_by_role("heading", name="Log in")).to_be_visible()


# ------------------------------------------------------------------ list


def test_list_shows_jobs_newest_first_with_counts(site, page) -> None:
    site.add_job("the older one", age=5)
    site.add_job("the newer one", tenant="studio", labels={"env": "prod"})
    cancelled = site.add_job("given up", age=9)
    move_job(site.db, cancelled, JobEvent.JOB_CANCELLED)

    site.log_in(page)

    assert read_titles(page) == ["the newer one", "the older one", "given up"]
    expect(page.get_by_role("link", name=re.compile(r"^queued 2 oldest 5 min"))).to_be_visible()
    expect(page.get_by_role("link", name=re.compile(r"^cancelled 1"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Ended each hour"))).to_be_visible()


def test_list_is_filtered_by_each_field(site, home) -> None:
    site.add_job("rain over the harbour", age=90, tenant="studio", labels={"env": "prod"})
    keyed = site.add_job("a glacier", idempotency_key="order-7")
    move_job(site.db, site.add_job("given up", age=5), JobEvent.JOB_CANCELLED)
    chosen = {
        "Tenant": ("studio", "rain over the harbour"),
        "Label": ("env=prod", "rain over the harbour"),
        "Until": ("1h", "rain over the harbour"),
        "Id, key or words of the prompt": ("HARBOUR", "rain over the harbour"),
    }
    for label, (text, found) in chosen.items():
        site.open(home)
        choose(home, label, text)
        assert read_titles(home) == [found], label
    for text in ("order-7", str(keyed.id), str(keyed.id)[:20]):
        site.open(home, f"/jobs?text={text}")
        assert "a glacier" in read_titles(home), text
    site.open(home)
    home.get_by_label("State", exact=True).select_option("cancelled")
    home.wait_for_url("**/jobs?state=cancelled")
    assert read_titles(home) == ["given up"]
    home.get_by_role("link", name="Clear").click()
    assert len(read_titles(home)) == 3


def test_filter_that_makes_no_sense_is_named_and_ignored(site, home) -> None:
    site.add_job()
    site.open(home, "/jobs?state=lost&since=yesterday&label=%24")
    assert home.get_by_role("alert").count() == 3
    assert read_titles(home) == ["on it goes"]


def test_filter_without_match_says_so(site, home) -> None:
    site.add_job()
    choose(home, "Tenant", "nobody")
    expect(home.get_by_text("No job is like that.")).to_be_visible()


def test_pages_show_every_job_once_there_and_back(site, home) -> None:
    """Many of them at the same moment: the order is still one."""
    names = [f"job {number:03}" for number in range(120)]
    for number, name in enumerate(names):
        site.add_job(name, age=number // 7)
    home.reload()
    pages = [read_titles(home)]
    for size in (50, 20):
        home.get_by_role("link", name="Older").click()
        home.wait_for_load_state()
        pages.append(read_titles(home))
        assert len(pages[-1]) == size
    assert sorted(name for one in pages for name in one) == names
    expect(home.get_by_role("link", name="Older")).to_have_count(0)

    home.get_by_role("link", name="Newer").click()
    home.wait_for_load_state()
    assert read_titles(home) == pages[1]
    home.get_by_role("link", name="Newest").click()
    home.wait_for_load_state()
    assert read_titles(home) == pages[0]


def test_list_renews_itself_until_that_is_switched_off(site, home) -> None:
    site.add_job("came later")
    expect(home.locator(TITLES)).to_have_text(["came later"])
    home.get_by_label("Live").uncheck()
    home.reload()
    expect(home.get_by_label("Live")).not_to_be_checked()


def test_list_that_gets_no_answer_says_so(site, home) -> None:
    """Numbers that stand still must not look alive."""
    home.route("**/jobs", lambda route: route.abort())
    expect(home.get_by_text("No answer")).to_be_visible()
    home.unroute("**/jobs")
    expect(home.get_by_text("Live", exact=True)).to_be_visible()


def test_keyboard_alone_finds_and_opens_a_job(site, home) -> None:
    site.add_job("first", age=3)
    site.add_job("second", age=9)
    home.reload()
    home.keyboard.press("/")
    home.keyboard.type("second")
    home.keyboard.press("Enter")
    home.wait_for_url("**/jobs?text=second")
    home.keyboard.press("j")
    expect(home.get_by_role("link", name="second")).to_be_focused()
    home.keyboard.press("Enter")
    expect(home.get_by_role("heading", name="second")).to_be_visible()


def test_skip_link_comes_first(home) -> None:
    home.keyboard.press("Tab")
    expect(home.get_by_role("link", name="Skip to content")).to_be_focused()


# ------------------------------------------------------------------ looks


@pytest.mark.parametrize("place", ["/jobs", "/jobs/{id}"])
def test_phone_never_scrolls_sideways(site, home, place) -> None:
    job = make_job(site.db, JobState.FAILED, tenant="a-tenant-of-a-rather-long-name-" * 3)
    home.set_viewport_size(PHONE)
    site.open(home, place.format(id=job.id))
    assert home.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    small = home.evaluate("""() => [...document.querySelectorAll('button, select, .button')]
        .filter(one => one.offsetHeight && one.offsetHeight < 40).map(one => one.textContent)""")
    assert small == []


def test_page_is_dark_where_that_is_wished(site, home) -> None:
    def read_lightness() -> int:
        colour = home.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)))

    home.emulate_media(color_scheme="light")
    light = read_lightness()
    home.emulate_media(color_scheme="dark")
    assert read_lightness() < 200
    assert light > 600


def test_page_loads_nothing_from_elsewhere(site, page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    job = site.add_job("<script>alert(1)</script>", labels={"x": "<b>"})
    site.log_in(page)
    site.open(page, f"/jobs/{job.id}")
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith(f"{site.url}/jobs")] == []


# ------------------------------------------------------------------ story


def test_story_tells_states_attempt_wait_and_input(site, home) -> None:
    job = make_job(site.db, JobState.SUBMITTED, now=datetime.now(UTC) - timedelta(minutes=3))
    site.open(home, f"/jobs/{job.id}")

    expect(home.locator(".wait")).to_contain_text("It waits for")
    phases = home.locator("ol.stays > li > .name")
    expect(phases).to_have_text(["queued", "submitting", "submitted"])
    expect(home.locator("ol.stays > li.current .took")).to_have_text(re.compile("so far"))
    expect(home.get_by_role("region", name="Attempts").first).to_contain_text("no outcome yet")
    home.get_by_text("Input", exact=True).click()
    expect(home.locator("pre").first).to_contain_text('"prompt": "on it goes"')


def test_story_of_a_live_job_follows_it(site, home) -> None:
    job = site.add_job()
    site.open(home, f"/jobs/{job.id}")
    move_job(site.db, job, JobEvent.JOB_CANCELLED)
    expect(home.locator("header.story .badge")).to_have_text("cancelled")


def test_unknown_job_is_said_to_be_none(site, home) -> None:
    site.open(home, f"/jobs/{UUID(int=9)}")
    expect(home.get_by_role("heading", name="No such job")).to_be_visible()


# ------------------------------------------------------------------ orders


def test_cancel_of_a_queued_job_ends_it(site, home) -> None:
    job = site.add_job()
    site.open(home, f"/jobs/{job.id}")
    home.get_by_text("Cancel…").click()
    home.get_by_role("button", name="Cancel this job").click()

    expect(home.get_by_role("status")).to_have_text("The job is cancelled.")
    assert read_job(site.db, job.id).state is JobState.CANCELLED


def test_cancel_of_a_submitted_job_rings_for_asking_fal(site, home) -> None:
    job = make_job(site.db, JobState.SUBMITTED, now=datetime.now(UTC))
    [attempt] = read_attempts(site.db, job.id)
    with site.db.transaction() as connection:
        connection.exec_driver_sql("UPDATE attempts SET fal_request_id = 'r-1'")
    site.open(home, f"/jobs/{job.id}")
    home.get_by_text("Cancel…").click()
    home.get_by_role("button", name="Cancel this job").click()

    expect(home.get_by_role("status")).to_contain_text("fal is asked to cancel it")
    assert read_job(site.db, job.id).cancel_requested_at is not None
    assert read_attempts(site.db, job.id)[0].cancel_due_at is not None, attempt
    assert site.take_doorbells() == ["extend_video.cancel"]


def test_cancel_too_late_says_why(site, home) -> None:
    job = site.add_job()
    site.open(home, f"/jobs/{job.id}")
    home.get_by_text("Cancel…").click()
    move_job(site.db, job, JobEvent.SUBMISSION_CLAIMED)
    claimed = read_job(site.db, job.id)
    move_job(site.db, claimed, JobEvent.SUBMISSION_REJECTED)
    home.get_by_role("button", name="Cancel this job").click()
    expect(home.get_by_role("alert")).to_contain_text("is failed: there is nothing to cancel")


def test_redrive_of_a_job_that_cost_nothing_submits_it(site, home) -> None:
    job = move_job(site.db, site.add_job(), JobEvent.JOB_CANCELLED)
    site.open(home, f"/jobs/{job.id}")
    home.get_by_text("Redrive…").click()
    home.get_by_role("button", name="Redrive this job").click()

    expect(home.get_by_role("status")).to_have_text("The job goes on.")
    assert read_job(site.db, job.id).state is JobState.QUEUED
    assert site.take_doorbells() == ["extend_video.submit"]


def test_redrive_that_costs_money_needs_a_second_word(site, home) -> None:
    job = make_job(site.db, JobState.SUBMITTED)
    job = move_job(site.db, job, JobEvent.FAILURE_ARRIVED)
    site.open(home, f"/jobs/{job.id}")
    home.get_by_text("Redrive…").click()
    home.get_by_role("button", name="Redrive this job").click()
    expect(home.get_by_role("heading", name="This takes new money")).to_be_visible()

    home.get_by_role("button", name="Pay again and redrive").click()
    expect(home.get_by_role("heading", name="This takes new money")).to_be_visible()
    assert read_job(site.db, job.id).state is JobState.FAILED
    assert site.take_doorbells() == []

    home.get_by_label("I agree to pay").check()
    home.get_by_role("button", name="Pay again and redrive").click()
    expect(home.get_by_role("status")).to_have_text("The job goes on.")
    assert read_job(site.db, job.id).state is JobState.QUEUED
    assert site.take_doorbells() == ["extend_video.submit"]


# ------------------------------------------------------------------ video


def test_archived_video_plays_and_is_sought_by_range(deployment, page) -> None:
    url = deployment.settings["WEBHOOK_BASE_URL"]
    sample = deployment.settings["SAMPLE"]
    enqueued = deployment.run(
        *("enqueue", "--prompt", "it really plays", "--video", sample, "--set", "num_frames=49")
    )
    job_id = UUID(enqueued.stdout.strip())
    with open_table(deployment.settings["DATABASE_URL"]) as table:
        job = table.wait_for_end(job_id, seconds=90)
    answers: list[tuple[int, str | None, str | None]] = []

    def note(response) -> None:
        if response.url.endswith("/video"):
            wanted = response.request.headers.get("range")
            answers.append((response.status, wanted, response.headers.get("content-range")))

    page.on("response", note)
    log_in(page, url)
    page.goto(f"{url}/jobs/{job_id}")
    video = page.locator("video")
    expect(video).to_be_visible()
    video.evaluate("video => { video.muted = true; return video.play(); }")
    wait_until(lambda: video.evaluate("video => video.currentTime") > 0.3)
    assert video.evaluate("video => video.duration") > 3

    video.evaluate("video => { video.currentTime = 2.5; }")
    wait_until(lambda: video.evaluate("video => !video.seeking && video.currentTime >= 2.5"))
    assert {status for status, _, _ in answers} == {206}
    assert all(re.fullmatch(r"bytes=\d+-\d*", wanted or "") for _, wanted, _ in answers)
    size = job["archive_bytes"]
    assert all((told or "").endswith(f"/{size}") for _, _, told in answers)


def test_video_larger_than_a_part_plays_once_there_is_a_place_for_it(
    open_site, page, tmp_path, monkeypatch
) -> None:
    """The player asks for part after part, and again where it was refused for a while."""
    (tmp_path / "archive").mkdir()
    clip = make_clip(tmp_path / "archive" / "a.mp4", frames=72)
    monkeypatch.setattr(webhook.page.files, "LONGEST_RANGE", clip.stat().st_size // 5)
    with serve(open_site(archive_url=f"file:{clip.parent}")) as site:
        job = make_job(site.db, JobState.ARCHIVED)
        with site.db.transaction() as connection:
            connection.exec_driver_sql(f"UPDATE jobs SET archive_uri = '{clip.as_uri()}'")
        statuses: list[int] = []
        page.on("response", lambda got: statuses.append(got.status) if "/video" in got.url else 0)
        site.log_in(page)
        readers = [open_reader(site, job.id) for _ in range(webhook.page.files.MOST_AT_ONCE)]
        site.open(page, f"/jobs/{job.id}")
        wait_until(lambda: 503 in statuses)
        for reader in readers:
            reader.close()
        video = page.locator("video")
        wait_until(lambda: video.evaluate("video => video.readyState") > 0)
        video.evaluate("video => { video.muted = true; return video.play(); }")
        wait_until(lambda: video.evaluate("video => video.ended"))
        assert statuses.count(206) > 2


def open_reader(site: Site, job_id: UUID) -> TestResponse:
    """An answer that is not read to its end."""
    client = site.app.test_client()
    client.post("/jobs/login", data={"secret": TOKEN})
    return client.get(f"/jobs/{job_id}/video")


# ------------------------------------------------------------------ long texts


@pytest.mark.parametrize("width", [1280, 390])
def test_text_without_a_blank_makes_no_page_wider_than_the_window(site, home, width) -> None:
    endless = "https://example.com/" + "a" * 1980
    fields = {"prompt": endless, "video_url": endless, "seed": 7}
    labels, request_id = {"source": "x" * 90}, "0193abcd-1111-2222-3333-444455556666"
    job = make_job(
        site.db,
        JobState.FAILED,
        now=datetime.now(UTC),
        input=fields,
        tenant="t" * 80,
        labels=labels,
    )
    with site.db.transaction() as connection:
        for assignment in (
            f"jobs SET error_code = 'media_refused', error_message = '{endless}'",
            f"jobs SET fal_request_id = '{request_id}'",
            f"attempts SET error_message = '{endless}', fal_request_id = '{request_id}'",
            f"events SET detail = '{endless}'",
        ):
            connection.exec_driver_sql(f"UPDATE {assignment}")
    home.set_viewport_size({"width": width, "height": 900})
    for path in ("/jobs", f"/jobs/{job.id}"):
        site.open(home, path)
        for summary in home.locator("section > details > summary").all():
            summary.click()
        assert home.evaluate("document.documentElement.scrollWidth") <= width
    # The request's id is one line, with room before its neighbour.
    apart = home.evaluate(
        """id => [...document.querySelectorAll('.facts code, td code')]
            .filter(one => one.textContent === id)
            .map(one => {
                const next = one.closest('div, td').nextElementSibling;
                const range = document.createRange();
                range.selectNodeContents(one);
                const ends = range.getBoundingClientRect(), begins = next.getBoundingClientRect();
                return begins.left > ends.left ? begins.left - ends.right : 16;
            })""",
        request_id,
    )
    assert len(apart) == 2
    assert min(apart) >= 16

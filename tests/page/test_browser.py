"""One way through the page in a real browser; `tests/soak/browser` has all the others."""

import pytest
from playwright.sync_api import expect

from tests.emulator.clips import make_clip
from tests.harness.jobs import make_job, read_job
from tests.harness.waiting import wait_until
from tests.page.browser import TOKEN
from tests.page.scene import serve
from worker.jobs.states import JobState


@pytest.mark.slow  # starts Chromium
def test_visitor_logs_in_finds_a_job_plays_its_video_and_cancels_another(
    open_site, page, tmp_path
) -> None:
    (tmp_path / "archive").mkdir()
    clip = make_clip(tmp_path / "archive" / "a.mp4", has_audio=False)
    with serve(open_site(archive_url=f"file:{clip.parent}")) as site:
        archived = make_job(site.db, JobState.ARCHIVED)
        with site.db.transaction() as connection:
            connection.exec_driver_sql(f"UPDATE jobs SET archive_uri = '{clip.as_uri()}'")
        queued = site.add_job("a glacier at dawn")

        site.open(page, f"/jobs/{archived.id}")
        page.get_by_label("Token or password").fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{site.url}/jobs/{archived.id}")
        phases = page.locator("ol.stays > li > .name")
        expect(phases.first).to_have_text("queued")
        expect(phases.last).to_have_text("archived")
        video = page.locator("video")
        wait_until(lambda: video.evaluate("video => video.readyState") > 0)
        assert video.evaluate("video => video.duration") == 2

        site.open(page)
        page.get_by_role("link", name="a glacier at dawn").click()
        page.get_by_text("Cancel…").click()
        page.get_by_role("button", name="Cancel this job").click()
        expect(page.get_by_role("status")).to_have_text("The job is cancelled.")
        assert read_job(site.db, queued.id).state is JobState.CANCELLED

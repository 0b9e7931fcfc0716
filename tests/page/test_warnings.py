"""What is odd about an archived video is told on its job's page."""

from tests.harness.archives import set_columns
from tests.harness.jobs import make_job
from tests.page.browser import TOKEN
from worker.jobs.states import JobState

MEDIA = {"width": 320, "height": 180, "fps": None, "duration": None, "codec": "vp9"}


def test_warnings_and_unknown_facts_are_shown(open_site) -> None:
    site = open_site()
    told = [{"code": "odd_field", "field": "seed", "message": "seed cannot be read: <b>"}]
    job = make_job(site.db, JobState.ARCHIVED)
    columns = {"archive_media": MEDIA, "archive_warnings": told}
    set_columns(site.db, job.id, archive_uri="file:///nowhere/a.webm", **columns)
    client = site.app.test_client()
    client.post("/jobs/login", data={"secret": TOKEN})

    page = client.get(f"/jobs/{job.id}").text

    assert "<dt>Warnings</dt><dd><ul><li>seed cannot be read: &lt;b&gt;</li></ul></dd>" in page
    assert "180, vp9" in page

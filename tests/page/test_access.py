"""Who gets in, what a page never says, and what its answers carry along."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from werkzeug.security import generate_password_hash

import webhook.page.files
from tests.harness.jobs import make_job, read_job
from tests.page.browser import TOKEN
from webhook.page.files import MOST_AT_ONCE
from webhook.page.login import COOKIE, FORGIVEN_AFTER, HEADERS, Throttle
from worker.jobs.states import JobState
from worker.media.store import open_store

JOB = UUID(int=7)
PATHS = ("/jobs", f"/jobs/{JOB}", f"/jobs/{JOB}/video", "/jobs/login", "/jobs/session")
CANARY = "c4n4ry-0123456789abcdef"


def find_csrf(client, job_id) -> str:
    found = re.search(
        r'name="csrf_token" value="([0-9a-f]+)"', read_page(client, f"/jobs/{job_id}")
    )
    assert found is not None
    return found[1]


def read_page(client, path) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return str(answer.text)


# ------------------------------------------------------------------ off, and on


def test_without_settings_there_is_no_page(open_site) -> None:
    client = open_site(monitor_token=None).app.test_client()
    for path in (*PATHS, "/jobs/static/page.css", "/static/page.css"):
        assert client.get(path).status_code == 404, path
        assert client.post(path).status_code in {404, 405}, path
    assert client.get("/healthz").status_code == 200


def test_without_login_every_path_leads_to_it(open_site) -> None:
    client = open_site().app.test_client()
    for path in (*PATHS[:3], "/jobs/123"):
        answer = client.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["Location"].startswith("/jobs/login"), path


def test_order_without_login_changes_nothing(open_site) -> None:
    site = open_site()
    job = site.add_job()
    answer = site.app.test_client().post(f"/jobs/{job.id}/cancel", data={"csrf_token": "x"})
    assert answer.status_code == 303
    assert read_job(site.db, job.id) == job


@pytest.mark.parametrize(
    "path", ["/jobs", f"/jobs/{JOB}/video", "/jobs/login", "/jobs/static/page.js"]
)
def test_every_answer_has_the_headers_of_a_guarded_page(client, path) -> None:
    with client.get(path) as answer:
        assert HEADERS.items() <= dict(answer.headers).items()
    is_static = "static" in path
    assert answer.headers["Cache-Control"] == ("private, no-cache" if is_static else "no-store")
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "*" not in policy
    assert policy.startswith("default-src 'none'")


def test_receiver_has_none_of_these_headers(client) -> None:
    assert set(HEADERS).isdisjoint(dict(client.get("/healthz").headers))


# ------------------------------------------------------------------ login


@pytest.mark.parametrize("given", ["", TOKEN[:-1], "ü" * 20])
def test_wrong_secret_gives_no_session(open_site, given) -> None:
    client = open_site().app.test_client()
    answer = client.post("/jobs/login", data={"secret": given})
    assert answer.status_code == 401
    assert "Set-Cookie" not in answer.headers
    assert client.get("/jobs").status_code == 303


def test_password_is_known_by_its_hash(open_site) -> None:
    hashed = generate_password_hash("correct horse", method="pbkdf2:sha256:1000")
    client = open_site(monitor_token=None, monitor_password_hash=hashed).app.test_client()
    assert client.post("/jobs/login", data={"secret": hashed}).status_code == 401
    assert client.post("/jobs/login", data={"secret": ""}).status_code == 401
    assert client.post("/jobs/login", data={"secret": "correct horse"}).status_code == 303
    assert client.get("/jobs").status_code == 200


def test_cookie_is_kept_from_scripts_other_sites_and_plain_http(open_site) -> None:
    client = open_site(monitor_session_seconds=3600).app.test_client()
    answer = client.post("/jobs/login", data={"secret": TOKEN}, base_url="https://localhost")
    cookie = answer.headers["Set-Cookie"]
    for flag in ("HttpOnly", "Secure", "SameSite=Strict", "Path=/jobs", "Expires="):
        assert flag in cookie
    assert TOKEN not in cookie


@pytest.mark.parametrize(("proxies", "is_secure"), [(0, False), (1, True)])
def test_cookie_learns_of_https_from_a_trusted_proxy_only(open_site, proxies, is_secure) -> None:
    client = open_site(trusted_proxies=proxies).app.test_client()
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
    answer = client.post("/jobs/login", data={"secret": TOKEN}, headers=headers)
    assert ("Secure" in answer.headers["Set-Cookie"]) is is_secure


def test_login_leads_to_our_own_pages_only(open_site) -> None:
    client = open_site().app.test_client()
    for wanted, led_to in {
        f"/jobs/{JOB}": f"/jobs/{JOB}",
        "/jobs?state=failed": "/jobs?state=failed",
        "https://example.com": "/jobs",
        "//example.com/jobs": "/jobs",
        "/jobs\\@example.com": "/jobs",
        "/jobs/../healthz": "/jobs",
        "javascript:alert(1)": "/jobs",
    }.items():
        answer = client.post("/jobs/login", data={"secret": TOKEN, "next": wanted})
        assert answer.headers["Location"] == led_to, wanted


def test_wrong_guesses_are_slowed_down_and_the_right_one_too(open_site) -> None:
    client = open_site().app.test_client()
    answers = [client.post("/jobs/login", data={"secret": "wrong"}) for _ in range(4)]
    assert [one.status_code for one in answers] == [401, 401, 401, 429]
    assert answers[-1].headers["Retry-After"] == "1"
    assert client.post("/jobs/login", data={"secret": TOKEN}).status_code == 429


def guess(client, address: str, secret: str = "wrong") -> int:
    headers = {"X-Forwarded-For": address}
    return int(client.post("/jobs/login", data={"secret": secret}, headers=headers).status_code)


def test_guesses_from_many_addresses_are_slowed_down_together(open_site) -> None:
    client = open_site(trusted_proxies=1).app.test_client()
    assert guess(client, "192.0.2.1", TOKEN) == 303
    answers = [guess(client, f"198.51.100.{number}") for number in range(22)]
    assert answers == [401] * 20 + [429] * 2
    assert guess(client, "203.0.113.1", TOKEN) == 429
    assert guess(client, "192.0.2.1", TOKEN) == 303, "who was here before is not held up"


def test_wrong_guesses_are_forgiven_in_time() -> None:
    seconds = 1000.0
    throttle = Throttle(lambda: seconds)
    assert [throttle.admit("a") > 0 for _ in range(4)] == [False, False, False, True]
    seconds += FORGIVEN_AFTER + 1
    assert [throttle.admit("a") > 0 for _ in range(4)] == [False, False, False, True]


@pytest.mark.both_databases
def test_cookie_of_a_session_that_was_logged_out_is_good_nowhere(open_site) -> None:
    one, other = open_site().app.test_client(), open_site().app.test_client()
    for client in (one, other):
        client.post("/jobs/login", data={"secret": TOKEN})
    copied = one.get_cookie(COOKIE, path="/jobs").value
    stranger = open_site().app.test_client()
    stranger.set_cookie(COOKIE, copied, path="/jobs")
    assert stranger.get("/jobs").status_code == 200
    found = re.search(r'name="csrf_token" value="([0-9a-f]+)"', read_page(one, "/jobs"))
    assert found is not None
    assert one.post("/jobs/logout", data={"csrf_token": found[1]}).status_code == 303
    assert stranger.get("/jobs").status_code == 303
    assert stranger.get("/jobs/session").status_code == 401
    assert other.get("/jobs").status_code == 200, "another login goes on"


def test_session_ends_with_its_time_another_secret_and_any_change(open_site, monkeypatch) -> None:
    client, other = (open_site(monitor_token=one).app.test_client() for one in (TOKEN, "x" * 32))
    client.post("/jobs/login", data={"secret": TOKEN})
    cookie = client.get_cookie(COOKIE, path="/jobs").value

    def is_good(value: str, reader=client) -> bool:
        reader.set_cookie(COOKIE, value, path="/jobs")
        return bool(reader.get("/jobs/session").status_code == 204)

    assert is_good(cookie)
    assert not is_good(cookie, other)
    for spoilt in ("", cookie[:-1], cookie + "x", cookie.swapcase(), "a.b.c"):
        assert not is_good(spoilt)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 13 * 3600)
    assert not is_good(cookie)


# ------------------------------------------------------------------ forms of others


@pytest.mark.parametrize(("order", "token"), [("cancel", None), ("redrive", "0" * 64)])
def test_order_without_the_sessions_word_is_refused(open_site, order, token) -> None:
    site = open_site()
    job = make_job(site.db, JobState.QUEUED if order == "cancel" else JobState.CANCELLED)
    client = site.app.test_client()
    client.post("/jobs/login", data={"secret": TOKEN})
    form = {} if token is None else {"csrf_token": token}
    answer = client.post(f"/jobs/{job.id}/{order}", data=form)
    assert answer.status_code == 403
    assert "another login" in answer.text
    assert read_job(site.db, job.id) == job
    assert site.take_doorbells() == []


def test_order_with_the_word_of_another_session_is_refused(open_site) -> None:
    site = open_site()
    job = site.add_job()
    clients = [site.app.test_client() for _ in range(2)]
    for one in clients:
        one.post("/jobs/login", data={"secret": TOKEN})
    words = [find_csrf(one, job.id) for one in clients]
    assert words[0] != words[1]
    refused = clients[0].post(f"/jobs/{job.id}/cancel", data={"csrf_token": words[1]})
    assert refused.status_code == 403
    taken = clients[0].post(f"/jobs/{job.id}/cancel", data={"csrf_token": words[0]})
    assert taken.status_code == 303
    assert read_job(site.db, job.id).state is JobState.CANCELLED


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_form_of_another_site_is_refused_whatever_it_knows(open_site, headers) -> None:
    site = open_site()
    job = site.add_job()
    client = site.app.test_client()
    client.post("/jobs/login", data={"secret": TOKEN})
    form = {"csrf_token": find_csrf(client, job.id)}
    assert client.post(f"/jobs/{job.id}/cancel", data=form, headers=headers).status_code == 403
    assert client.post("/jobs/login", data={"secret": TOKEN}, headers=headers).status_code == 403
    assert read_job(site.db, job.id) == job


def test_order_by_get_does_not_exist(client, db) -> None:
    job = make_job(db)
    assert client.get(f"/jobs/{job.id}/cancel").status_code == 404
    assert read_job(db, job.id) == job


@pytest.mark.parametrize(
    ("state", "done", "told"),
    [
        (JobState.SUBMITTED, "cancel_asked", "fal is asked to cancel it"),
        (JobState.CANCELLED, "cancel_asked", "The job is cancelled."),
        (JobState.ARCHIVED, "cancel_asked", None),
        (JobState.SUBMITTED, "redriven", "The job goes on."),
        (JobState.ARCHIVED, "redriven", None),
        (JobState.SUBMITTED, "cancelled", None),
    ],
)
def test_notice_of_an_order_goes_when_it_is_true_no_more(client, db, state, done, told) -> None:
    shown = read_page(client, f"/jobs/{make_job(db, state).id}?done={done}")
    assert (told is None) == ('class="notice"' not in shown)
    assert told is None or told in shown


# ------------------------------------------------------------------ what is not said


def test_page_shows_no_secret_wherever_it_was_written(open_site) -> None:
    key = f"11111111-2222-3333-4444-555555555555:{CANARY}"
    site = open_site(fal_key=key, webhook_base_url="https://hooks.example.com")
    leak = (
        f"fal said: Key {key}, https://user:{CANARY}@host/a?Signature={CANARY} and "
        f"https://hooks.example.com/webhooks/fal/{CANARY} and {TOKEN}"
    )
    fields = {"prompt": leak, "video_url": f"https://s3.example.com/a.mp4?X-Amz-Signature={CANARY}"}
    job = make_job(
        site.db,
        JobState.SUBMITTED,
        now=datetime.now(UTC),
        input=fields,
        idempotency_key=f"https://x/?a={CANARY}",
    )
    with site.db.transaction() as connection:
        for table, column in (
            ("jobs", "blocked_reason"),
            ("jobs", "error_code"),
            ("jobs", "error_message"),
            ("attempts", "error_message"),
            ("events", "detail"),
        ):
            connection.execute(text(f"UPDATE {table} SET {column} = :leak"), {"leak": leak})
    client = site.app.test_client()
    client.post("/jobs/login", data={"secret": TOKEN})
    for path in ("/jobs", f"/jobs/{job.id}", "/jobs?text=fal"):
        shown = read_page(client, path)
        assert CANARY not in shown
        assert TOKEN not in shown
        assert "s3.example.com/a.mp4?****" in shown or path != f"/jobs/{job.id}"


def test_database_away_is_a_page_with_503(open_site) -> None:
    site = open_site()
    with site.db.transaction() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO away"))
    client = site.app.test_client()
    client.post("/jobs/login", data={"secret": TOKEN})
    answer = client.get("/jobs")
    assert answer.status_code == 503
    assert "job table cannot be read" in answer.text


def test_address_of_nothing_is_a_page_that_says_so(client) -> None:
    for path in ("/jobs/123", f"/jobs/{JOB.hex}", f"/jobs/{JOB}/", "/jobs/a/b"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert "There is no such page" in answer.text
        assert HEADERS.items() <= dict(answer.headers).items()


def test_slash_after_the_list_leads_to_it(client) -> None:
    assert client.get("/jobs/").headers["Location"] == "/jobs"


def test_list_shows_the_beginning_of_a_prompt_that_is_a_book(client, db) -> None:
    make_job(db, input={"prompt": "once upon a time " + "and then " * 50_000})
    shown = read_page(client, "/jobs")
    assert "once upon a time" in shown
    assert len(shown) < 50_000


def test_unknown_file_and_job_are_404_pages(client, db) -> None:
    job = make_job(db)
    for path in (f"/jobs/{JOB}", f"/jobs/{JOB}/video", f"/jobs/{job.id}/poster"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "<h1>" in answer.text


# ------------------------------------------------------------------ files


@pytest.fixture
def archived(open_site, tmp_path):
    """Gives a client and the address of an archived video whose URI is what a test likes."""
    (tmp_path / "archive").mkdir()
    site = open_site(archive_url=f"file:{tmp_path / 'archive'}")
    client = site.app.test_client()
    client.post("/jobs/login", data={"secret": TOKEN})
    job = make_job(site.db, JobState.ARCHIVED)

    def build(uri: str) -> tuple[object, str]:
        with site.db.transaction() as connection:
            connection.execute(
                text("UPDATE jobs SET archive_uri = :uri, archive_sha256 = :sum"),
                {"uri": uri, "sum": "ab" * 32},
            )
        return client, f"/jobs/{job.id}/video"

    return build


def test_video_is_served_whole_in_ranges_and_not_again(archived, tmp_path) -> None:
    path = tmp_path / "archive" / "a b.mp4"
    path.write_bytes(bytes(range(256)) * 4)
    client, url = archived(path.as_uri())
    with client.get(url) as whole:
        assert (whole.status_code, whole.content_type) == (200, "video/mp4")
        assert whole.data == path.read_bytes()
        assert whole.headers["Accept-Ranges"] == "bytes"
        etag = whole.headers["ETag"]
    with client.get(url, headers={"Range": "bytes=10-19"}) as part:
        assert (part.status_code, part.data) == (206, bytes(range(10, 20)))
        assert part.headers["Content-Range"] == "bytes 10-19/1024"
    with client.get(url, headers={"Range": "bytes=5000-"}) as beyond:
        assert beyond.status_code == 416
    with client.get(url, headers={"If-None-Match": etag}) as same:
        assert (same.status_code, same.data) == (304, b"")
    with client.get(f"{url}?download=1") as download:
        assert "attachment" in download.headers["Content-Disposition"]


def test_file_that_is_no_video_of_the_archive_is_not_served(archived, tmp_path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    archive: Path = tmp_path / "archive"
    (archive / "notes.txt").write_bytes(b"secret")
    (archive / "a.mp4").write_bytes(b"secret")
    (archive / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    for uri in (
        f"file:{tmp_path}/secret.mp4",
        f"file:{archive}/../secret.mp4",
        f"file:{archive}/%2e%2e/secret.mp4",
        f"file:{archive}/link.mp4",
        f"file:{archive}/notes.txt",
        f"file:{archive}/gone.mp4",
        f"file:{archive}",
        f"file://host{archive}/a.mp4",
        f"file:{archive}/a.mp4?x",
        "https://example.com/a.mp4",
        "s3://bucket/a.mp4",
        "",
    ):
        client, url = archived(uri)
        answer = client.get(url)
        assert answer.status_code == 404, uri
        assert b"secret" not in answer.data, uri


def test_range_is_answered_in_parts_but_a_download_as_asked(
    archived, tmp_path, monkeypatch
) -> None:
    """A player asks on by itself; a browser that goes on with a download does not."""
    monkeypatch.setattr(webhook.page.files, "LONGEST_RANGE", 100)
    path = tmp_path / "archive" / "a.mp4"
    path.write_bytes(bytes(range(256)) * 4)
    client, url = archived(path.as_uri())
    for wanted, told in {
        "bytes=0-": "bytes 0-99/1024",
        "bytes=1000-": "bytes 1000-1023/1024",
        "bytes=-200": "bytes 824-923/1024",
        "bytes=5-9": "bytes 5-9/1024",
    }.items():
        with client.get(url, headers={"Range": wanted}) as part:
            assert (part.status_code, part.headers["Content-Range"]) == (206, told)
    with client.get(f"{url}?download=1", headers={"Range": "bytes=10-"}) as rest:
        assert rest.data == path.read_bytes()[10:]


def test_every_answer_gives_its_place_back(archived, tmp_path) -> None:
    path = tmp_path / "archive" / "a.mp4"
    path.write_bytes(b"x" * 1024)
    client, url = archived(path.as_uri())
    asks: tuple[dict[str, Any], ...] = (
        {},
        {"headers": {"Range": "bytes=0-9"}},
        {"headers": {"Range": "bytes=5000-"}},
        {"headers": {"If-None-Match": f'"{"ab" * 32}"'}},
        {"method": "HEAD"},
    )
    for ask in asks:
        for _ in range(MOST_AT_ONCE + 1):
            with client.open(url, **{"method": "GET"} | ask) as answer:
                assert answer.status_code != 503, ask


def test_more_files_at_once_than_there_are_places_for_are_refused_for_now(
    archived, tmp_path
) -> None:
    path = tmp_path / "archive" / "a.mp4"
    path.write_bytes(b"x" * 1024)
    client, url = archived(path.as_uri())
    reading = [client.get(url) for _ in range(MOST_AT_ONCE)]
    with client.get(url) as refused:
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert "Try again" in refused.text
    assert client.get("/jobs").status_code == 200
    reading[0].close()
    with client.get(url) as taken:
        assert taken.status_code == 200
    for one in reading[1:]:
        one.close()


# ------------------------------------------------------------------ files in an object store


@pytest.fixture
def remote(open_site, monkeypatch):
    """Builds a client and an archived job whose video is an object in a store of this process."""
    store = open_store("memory:", Path("spool"))
    monkeypatch.setattr("worker.media.store.open_store", lambda *_: store)
    site = open_site(archive_url="memory:")
    client = site.app.test_client()
    client.post("/jobs/login", data={"secret": TOKEN})

    def build(name: str, body: bytes | None) -> tuple[object, str]:
        if body is not None:
            store.put(name, body, "video/mp4")
        job = make_job(site.db, JobState.ARCHIVED)
        columns = {"uri": store.find_uri(name), "sum": "ab" * 32, "size": len(body or b"")}
        with site.db.transaction() as connection:
            connection.execute(
                text(
                    "UPDATE jobs SET archive_uri = :uri, archive_sha256 = :sum,"
                    " archive_bytes = :size"
                ),
                columns,
            )
        return client, f"/jobs/{job.id}"

    return build


def test_video_in_an_object_store_is_passed_through(remote) -> None:
    body = bytes(range(256)) * 40
    client, url = remote("2026/11/24/a.mp4", body)
    assert f"{url}/video" in client.get(url).text
    with client.get(f"{url}/video") as whole:
        assert (whole.status_code, whole.content_type) == (200, "video/mp4")
        assert whole.data == body
        assert whole.headers["Content-Length"] == str(len(body))
        etag = whole.headers["ETag"]
    with client.get(f"{url}/video", headers={"If-None-Match": etag}) as same:
        assert (same.status_code, same.data) == (304, b"")
    with client.get(f"{url}/video?download=1") as download:
        assert "attachment" in download.headers["Content-Disposition"]


def test_video_in_an_object_store_has_ranges(remote) -> None:
    body = bytes(range(256)) * 40
    client, url = remote("2026/11/24/a.mp4", body)
    with client.get(f"{url}/video", headers={"Range": "bytes=1000-1999"}) as part:
        assert (part.status_code, part.data) == (206, body[1000:2000])
        assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(body)}"
        assert part.headers["Content-Length"] == "1000"
    with client.get(f"{url}/video", headers={"Range": "bytes=-10"}) as end:
        assert (end.status_code, end.data) == (206, body[-10:])
    with client.get(f"{url}/video", headers={"Range": f"bytes={len(body)}-"}) as beyond:
        assert beyond.status_code == 416
    with client.head(f"{url}/video") as head:
        assert (head.headers["Content-Length"], head.data) == (str(len(body)), b"")


def test_object_that_is_gone_from_its_store_is_a_404_page(remote) -> None:
    client, url = remote("2026/11/24/gone.mp4", None)
    answer = client.get(f"{url}/video")
    assert answer.status_code == 404
    assert "<h1>" in answer.text

"""Faults of what is asked after a submission: status, result, cancel, keys, files, listing."""

from time import monotonic

import httpx
import pytest

from tests.emulator.processes import ENDPOINT, SHORT, Emulator, wait_until

BROKEN_OFF = (httpx.RemoteProtocolError, httpx.ReadError)
POINTS = ["status", "result", "cancel", "jwks", "cdn", "listing"]


def ask(emulator: Emulator, point: str, request_id: str) -> httpx.Response:
    """The request that reaches the point."""
    base = f"{SHORT}/requests/{request_id}"
    if point == "cancel":
        return emulator.client.put(f"{base}/cancel")
    if point == "cdn":
        return emulator.client.get(emulator.find(request_id)["result"]["video"]["url"])
    path = {
        "status": f"{base}/status",
        "result": base,
        "jwks": "/.well-known/jwks.json",
        "listing": f"/v1/models/requests/by-endpoint?endpoint_id={ENDPOINT[1:]}",
    }
    return emulator.client.get(path[point])


@pytest.fixture
def done(faulty) -> str:
    """The id of a completed request."""
    request_id = faulty.submit()
    faulty.wait_for_status(request_id, "COMPLETED")
    return str(request_id)


@pytest.mark.parametrize(
    ("point", "code"), [*zip(POINTS, [404, 429, 500, 503, 410, 502], strict=True)]
)
def test_answer_with_status_fault_has_that_code(faulty, done, point, code):
    faulty.order({"point": point, "kind": "status", "code": code, "times": 1})
    response = ask(faulty, point, done)
    assert response.status_code == code
    assert response.headers["x-fal-request-id"]
    assert ask(faulty, point, done).status_code in (200, 400)


def test_answer_with_not_found_fault_is_that_of_an_unknown_id(faulty, done):
    for point in ("status", "result", "cancel"):
        faulty.order({"point": point, "kind": "status", "code": 404})
        assert ask(faulty, point, done).json() == {"status": "NOT_FOUND"}


@pytest.mark.parametrize(("code", "kind"), [(400, "validation_error"), (503, "server_error")])
def test_listing_with_status_fault_has_the_platforms_envelope(faulty, done, code, kind):
    fault = {"point": "listing", "kind": "status", "code": code, "detail": "no"}
    faulty.order({**fault, "retry_after": 7})
    response = ask(faulty, "listing", done)
    error = response.json()["error"]
    assert (error["type"], error["message"]) == (kind, "no")
    assert response.headers["retry-after"] == "7"


def test_answer_with_ingress_fault_is_html(faulty, done):
    for point in POINTS:
        faulty.order({"point": point, "kind": "ingress", "code": 504})
        response = ask(faulty, point, done)
        assert (point, response.status_code) == (point, 504)
        assert "nginx" in response.text


@pytest.mark.parametrize("point", POINTS)
def test_answer_that_breaks_off_does_so_in_time(faulty, done, point):
    for kind, seconds in (("drop", 0.0), ("hang", 0.05)):
        faulty.order({"point": point, "kind": kind, **({"seconds": seconds} if seconds else {})})
        began = monotonic()
        with pytest.raises(BROKEN_OFF):
            ask(faulty, point, done)
        assert monotonic() - began >= seconds
        assert faulty.count_fired() == [1]


def test_answer_to_caller_who_left_breaks_nothing(faulty, done):
    url = f"{faulty.url}{SHORT}/requests/{done}/status"
    faulty.order({"point": "status", "kind": "drop"})
    faulty.arm({"point": "status_received", "times": 1})
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(url, headers=faulty.client.headers, timeout=0.1, trust_env=False)
    [held] = faulty.wait_for_held()
    faulty.release(held)
    wait_until(lambda: faulty.count_fired() == [1])
    with pytest.raises(BROKEN_OFF):
        ask(faulty, "status", done)


@pytest.mark.parametrize(
    ("point", "form"),
    [
        ("status", "not_json"),
        ("result", "truncated"),
        ("result", "no_request_id"),
        ("jwks", "empty"),
        ("listing", "not_json"),
    ],
)
def test_answer_malformed_is_of_no_use(faulty, done, point, form):
    faulty.order({"point": point, "kind": "malformed", "form": form})
    response = ask(faulty, point, done)
    assert response.status_code == 200
    if form in ("not_json", "truncated"):
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            response.json()
    else:
        assert "request_id" not in response.json()
        assert (response.text == "{}") is (form == "empty")


def test_cancel_that_is_refused_cancels_nothing(faulty):
    faulty.order({"point": "cancel", "kind": "status"})
    request_id = faulty.submit()
    assert faulty.cancel(request_id).status_code == 500
    assert faulty.get_result(request_id).status_code == 200
    assert faulty.find(request_id)["cancel_requested"] is False


def test_status_stuck_is_in_progress_for_ever(faulty):
    request_id = faulty.submit({"fps": 0})
    faulty.wait_for_status(request_id, "COMPLETED")
    faulty.order({"point": "status", "kind": "stuck"})
    response = ask(faulty, "status", request_id)
    body = response.json()
    assert (response.status_code, body["status"], body["metrics"]) == (202, "IN_PROGRESS", {})
    assert not {"queue_position", "error", "error_type"} & set(body)
    assert ask(faulty, "result", request_id).status_code == 422


def test_file_truncated_again_and_again_is_whole_in_ranges(faulty, done):
    video = faulty.find(done)["result"]["video"]
    whole = faulty.client.get(video["url"]).content
    part = len(whole) // 3 + 1
    faulty.order({"point": "cdn", "kind": "truncate", "bytes": part})
    received = b""
    for count in (1, 2, 3):
        span = {"Range": f"bytes={len(received)}-"}
        with faulty.client.stream("GET", video["url"], headers=span) as response:
            promised = int(response.headers["content-length"])
            assert promised == len(whole) - len(received)
            received += read_until_broken(response)
        assert faulty.count_fired() == [count]
    assert received == whole


def test_file_that_hangs_breaks_off_after_its_silence(faulty, done):
    video = faulty.find(done)["result"]["video"]
    faulty.order({"point": "cdn", "kind": "hang", "bytes": 500, "seconds": 0.1})
    began = monotonic()
    with faulty.client.stream("GET", video["url"]) as response:
        received = read_until_broken(response)
    assert len(received) == 500
    assert monotonic() - began >= 0.1


def test_file_dripped_comes_whole_and_slowly(faulty, done):
    video = faulty.find(done)["result"]["video"]
    faulty.order({"point": "cdn", "kind": "drip", "bytes_per_second": video["file_size"] * 5})
    began = monotonic()
    content = faulty.client.get(video["url"]).content
    assert len(content) == video["file_size"]
    assert monotonic() - began >= 0.1


def test_file_of_wrong_type_is_otherwise_right(faulty, done):
    faulty.order({"point": "cdn", "kind": "wrong_type", "content_type": "text/plain"})
    response = ask(faulty, "cdn", done)
    assert response.headers["content-type"].startswith("text/plain")
    assert len(response.content) == faulty.find(done)["result"]["video"]["file_size"]


@pytest.mark.parametrize("part", [{}, {"Range": "bytes=10-"}])
def test_file_announced_too_long_breaks_off_after_its_last_byte(faulty, done, part):
    video = faulty.find(done)["result"]["video"]
    whole = faulty.client.get(video["url"], headers=part).content
    faulty.order({"point": "cdn", "kind": "wrong_length", "surplus": 7})
    with faulty.client.stream("GET", video["url"], headers=part) as response:
        assert read_until_broken(response) == whole
    assert response.headers["content-length"] == str(len(whole) + 7)


def test_file_announced_too_short_comes_as_short(faulty, done):
    video = faulty.find(done)["result"]["video"]
    whole = faulty.client.get(video["url"]).content
    faulty.order({"point": "cdn", "kind": "wrong_length", "surplus": -7})
    assert ask(faulty, "cdn", done).content == whole[:-7]
    faulty.order({"point": "cdn", "kind": "wrong_length", "surplus": -(10**9)})
    assert ask(faulty, "cdn", done).content == b""


def test_file_with_html_fault_is_a_page_with_200(faulty, done):
    faulty.order({"point": "cdn", "kind": "html"})
    response = ask(faulty, "cdn", done)
    assert (response.status_code, response.headers["content-type"][:9]) == (200, "text/html")
    assert response.text.startswith("<!DOCTYPE html>")


def test_file_without_ranges_is_always_whole(faulty, done):
    video = faulty.find(done)["result"]["video"]
    faulty.order({"point": "cdn", "kind": "no_ranges"})
    for header in ("bytes=10-", "bytes=-5", "bytes=999999999-"):
        response = faulty.client.get(video["url"], headers={"Range": header})
        assert (response.status_code, len(response.content)) == (200, video["file_size"])
        assert response.headers["accept-ranges"] == "none"


def test_file_of_new_version_keeps_no_earlier_if_range(faulty, done):
    video = faulty.find(done)["result"]["video"]
    first = faulty.client.get(video["url"])
    faulty.order({"point": "cdn", "kind": "new_version"})
    for name in ("etag", "last-modified"):
        condition = {"Range": "bytes=10-", "If-Range": first.headers[name]}
        response = faulty.client.get(video["url"], headers=condition)
        assert response.status_code == 200
        assert response.headers["etag"] != first.headers["etag"]
        assert response.content == first.content


def test_file_with_dripping_headers_breaks_off_without_an_answer(faulty, done):
    fault = {"point": "cdn", "kind": "drip_headers", "bytes_per_second": 100, "seconds": 0.1}
    faulty.order(fault)
    began = monotonic()
    with pytest.raises(BROKEN_OFF):
        ask(faulty, "cdn", done)
    assert monotonic() - began >= 0.1


def test_file_redirected_to_itself_comes_after_so_many_hops(faulty, done):
    hops = 3
    faulty.order({"point": "cdn", "kind": "redirect", "hops": hops, "code": 307})
    video = faulty.find(done)["result"]["video"]
    response = faulty.client.get(video["url"], follow_redirects=True)
    assert [one.status_code for one in response.history] == [307] * hops
    assert len(response.content) == video["file_size"]


def test_file_redirected_elsewhere_names_that_place(faulty, done):
    elsewhere = "http://169.254.169.254/latest/meta-data/"
    faulty.order({"point": "cdn", "kind": "redirect", "url": elsewhere})
    response = ask(faulty, "cdn", done)
    assert (response.status_code, response.headers["location"]) == (302, elsewhere)


def test_file_that_expired_is_dead_and_the_result_names_a_fresh_url(faulty, done):
    code = 410
    old = faulty.find(done)["result"]["video"]
    whole = faulty.client.get(old["url"]).content
    faulty.order({"point": "cdn", "kind": "expire", "code": code, "times": 1})
    for _ in range(2):
        assert faulty.client.get(old["url"]).status_code == code
    fresh = ask(faulty, "result", done).json()["video"]
    assert fresh["url"] != old["url"]
    assert {**fresh, "url": None} == {**old, "url": None}
    assert faulty.client.get(fresh["url"]).content == whole
    assert faulty.client.get(old["url"]).status_code == code


def read_until_broken(response: httpx.Response) -> bytes:
    received = bytearray()
    try:
        for chunk in response.iter_raw():
            received += chunk
    except BROKEN_OFF:
        assert len(received) < int(response.headers["content-length"])
    else:
        assert len(received) == int(response.headers["content-length"])
    return bytes(received)

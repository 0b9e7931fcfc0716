"""How long a file of the CDN lives, who may read it, and how its owner changes that."""

import json

import httpx
import pytest

from tests.emulator.processes import Emulator, wait_until
from tests.emulator.uploading import (
    complete,
    find_path,
    get,
    get_token,
    initiate,
    list_leaks,
    name_part,
    put,
    upload,
)

CODES = [("allow", 200), ("forbid", 403), ("hide", 404)]
HEADERS = ["X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference"]


def write_lifecycle(decision: str = "allow", seconds: int | None = None) -> str:
    acl = {"default": decision, "rules": [{"user": "somebody", "decision": "allow"}]}
    return json.dumps({"expiration_duration_seconds": seconds, "initial_acl": acl})


@pytest.mark.parametrize(("decision", "code"), CODES)
def test_uploaded_file_obeys_its_acl(quick, decision, code):
    urls = [upload(quick, b"content", {header: write_lifecycle(decision)}) for header in HEADERS]
    assert [get(url).status_code for url in urls] == [code, code]
    assert httpx.head(urls[0], trust_env=False).status_code == code


def test_file_of_a_signed_upload_obeys_its_acl(quick):
    headers = {HEADERS[0]: write_lifecycle("hide")}
    given = initiate(quick, headers=headers)
    put(given["upload_url"], b"a")
    parted = initiate(quick, is_multipart=True, headers=headers)
    told = put(name_part(parted["upload_url"], 1), b"a").json()
    complete(parted["upload_url"], [told])
    codes = [get(one["file_url"]).status_code for one in (given, parted)]
    assert codes == [404, 404]


def test_owner_with_cdn_token_may_always_read(quick):
    url = upload(quick, b"content", {HEADERS[0]: write_lifecycle("forbid")})
    assert get(url, **get_token(quick)).content == b"content"
    assert get(url, Authorization="Bearer 9999999999.00").status_code != 200


def test_result_obeys_the_acl_of_its_submission(quick):
    headers = {HEADERS[1]: write_lifecycle("forbid")}
    request_id = quick.post(headers=headers).json()["request_id"]
    url = quick.get_result(request_id).json()["video"]["url"]
    assert get(url).status_code == 403
    assert get(url, **get_token(quick)).status_code == 200


def test_header_of_uploads_says_nothing_of_results(quick):
    request_id = quick.post(headers={HEADERS[0]: write_lifecycle("hide")}).json()["request_id"]
    assert get(quick.get_result(request_id).json()["video"]["url"]).status_code == 200


def test_files_are_deleted_at_their_end_and_a_result_is_still_shown(quick):
    uploaded = upload(quick, b"content", {HEADERS[0]: write_lifecycle(seconds=1)})
    path = quick.directory / find_path(uploaded).removeprefix("/")
    assert path.read_bytes() == b"content"
    headers = {HEADERS[1]: json.dumps({"expiration_duration_seconds": 1})}
    request_id = quick.post(headers=headers).json()["request_id"]
    rendered = quick.get_result(request_id).json()["video"]["url"]
    wait_until(lambda: [get(url).status_code for url in (uploaded, rendered)] == [404, 404])
    assert not path.exists()
    assert get(uploaded, **get_token(quick)).status_code == 404
    assert quick.get_result(request_id).json()["video"]["url"] == rendered


def test_file_that_may_not_be_read_cannot_be_an_input(emulator, sample):
    url = upload(emulator, sample.read_bytes(), {HEADERS[0]: write_lifecycle("forbid")})
    result = emulator.get_result(emulator.submit({"video_url": url}))
    assert result.json()["detail"][0]["type"] == "file_download_error"


WRONG = [
    "{",
    '{"expiration_duration_seconds": 0}',
    '{"expiration_duration_seconds": "1h"}',
    '{"initial_acl": {"default": "deny"}}',
    '{"initial_acl": {"rules": [{"user": 1, "decision": "hide"}]}}',
]


@pytest.mark.parametrize("value", WRONG)
def test_wrong_lifecycle_is_refused_and_named(quick, value):
    submitted = quick.post(headers={HEADERS[1]: value})
    body = {"file_name": "a", "content_type": "b/c"}
    path = "/storage/upload/initiate"
    initiated = quick.client.post(path, json=body, headers={HEADERS[0]: value})
    assert [submitted.status_code, initiated.status_code] == [400, 400]
    assert HEADERS[1] in submitted.json()["detail"]
    assert HEADERS[0] in initiated.json()["detail"]


# ------------------------------------------------------------------ asked and changed


@pytest.mark.parametrize("base", ["/v1/storage/files", "/storage/files"])
def test_acl_is_shown_and_replaced(quick, base):
    url = upload(quick, b"content", {HEADERS[0]: write_lifecycle("hide")})
    shown = quick.client.get(f"{base}/acl", params={"url": url})
    replaced = quick.client.put(f"{base}/acl", params={"url": url}, json={"default": "allow"})
    assert shown.json() == {
        "default": "hide",
        "rules": [{"user": "somebody", "decision": "allow"}],
    }
    assert replaced.json() == {"default": "allow", "rules": []}
    assert get(url).status_code == 200


@pytest.mark.parametrize(("method", "url"), [("PUT", "/files/none"), ("POST", "http://[")])
def test_file_that_is_none_is_not_found(quick, method, url):
    path = "/v1/storage/files/" + ("sign" if method == "POST" else "acl")
    response = quick.client.request(method, path, params={"url": url}, json={})
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found"


def test_wrong_acl_is_refused_and_changes_nothing(quick):
    url = upload(quick, b"content", {HEADERS[0]: write_lifecycle("hide")})
    body = {"default": "deny"}
    response = quick.client.put("/v1/storage/files/acl", params={"url": url}, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "validation_error"
    assert get(url).status_code == 404


def test_access_is_asked_for_with_the_key(quick):
    for path in ("acl", "sign"):
        response = httpx.get(f"{quick.url}/v1/storage/files/{path}", trust_env=False)
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authorization_error"


# ------------------------------------------------------------------ signed URLs


def test_signed_url_opens_a_hidden_file_until_its_end(quick):
    url = upload(quick, b"content", {HEADERS[0]: write_lifecycle("hide")})
    long, short = (sign(quick, url, seconds) for seconds in (3600, 1))
    assert long.startswith(f"{url}?identity=")
    assert get(long).content == b"content"
    wait_until(lambda: get(short).status_code == 404)


def sign(emulator: Emulator, url: str, seconds: int) -> str:
    body = {"expiration_seconds": seconds}
    reply = emulator.client.post("/v1/storage/files/sign", params={"url": url}, json=body)
    return str(reply.json()["signed_url"])


def test_signed_url_opens_no_other_file(quick):
    one, other = (upload(quick, b"a", {HEADERS[0]: write_lifecycle("hide")}) for _ in range(2))
    reply = quick.client.post(f"{other}/sign", json={}, headers=get_token(quick))
    query = reply.json()["signed_url"].partition("?")[2]
    assert get(f"{other}?{query}").status_code == 200
    assert get(f"{one}?{query}").status_code == 404


@pytest.mark.parametrize("seconds", [604_801, "60"])
def test_wrong_time_of_a_signed_url_is_refused(quick, seconds):
    url = upload(quick, b"a")
    body = {"expiration_seconds": seconds}
    by_key = quick.client.post("/v1/storage/files/sign", params={"url": url}, json=body)
    headers = get_token(quick)
    by_token = httpx.post(f"{url}/sign", json={"duration": seconds}, headers=headers)
    assert [by_key.status_code, by_token.status_code] == [400, 400]


def test_key_sent_along_with_a_download_is_remembered_and_of_no_use(quick):
    url = upload(quick, b"content", {HEADERS[0]: write_lifecycle("forbid")})
    assert quick.client.get(url).status_code == 403
    [leak] = list_leaks(quick, find_path(url))
    assert (leak["place"], leak["credential"], leak["method"]) == ("cdn", "key", "GET")

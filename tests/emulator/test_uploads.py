"""Uploads: to signed URLs and with CDN tokens, at once and in parts."""

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.emulator.processes import wait_until
from tests.emulator.uploading import (
    complete,
    find_path,
    find_upload,
    get,
    get_token,
    initiate,
    list_leaks,
    name_part,
    put,
    send_signed,
)

PARTS = [b"one " * 30_000, b"two " * 30_000, b"three"]


def test_file_put_to_signed_url_is_served_with_its_type(quick):
    given = initiate(quick)
    response = put(given["upload_url"], b"content")
    served = get(given["file_url"])
    assert response.status_code == 200
    assert response.headers["etag"] == f'"{hashlib.md5(b"content").hexdigest()}"'
    assert (served.content, served.headers["content-type"]) == (b"content", "video/mp4")
    assert given["file_url"].endswith("_my_clip.mp4")


def test_file_is_not_there_before_it_was_put(quick):
    assert get(initiate(quick)["file_url"]).status_code == 404


def test_asking_without_key_is_refused(quick):
    for path in ("upload/initiate", "upload/initiate-multipart", "auth/token"):
        response = httpx.post(f"{quick.url}/storage/{path}", json={}, trust_env=False)
        assert (path, response.status_code) == (path, 401)


@pytest.mark.parametrize("path", ["/storage/upload/initiate", "/storage/auth/token"])
def test_unknown_storage_type_is_refused(quick, path):
    response = quick.client.post(path, params={"storage_type": "tape"}, json={})
    assert response.status_code == 400
    assert "tape" in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"file_name": "a"}', 422),
        (b'{"file_name": "a", "content_type": "a/b\\r\\nX: y"}', 422),
        (b"[" * 100_000, 400),
    ],
)
def test_description_that_lacks_something_is_refused(quick, body, code):
    response = quick.client.post("/storage/upload/initiate", content=body)
    assert response.status_code == code
    assert response.json()["detail"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "é?#%2f" + "x" * 400])
def test_file_name_never_leads_elsewhere(quick, name):
    body = {"file_name": name, "content_type": "a/b"}
    given = quick.client.post("/storage/upload/initiate", json=body).json()
    put(given["upload_url"], b"safe")
    assert re.fullmatch(r"/files/b/[0-9a-f]{8}/[A-Za-z0-9._-]+", find_path(given["file_url"]))
    assert get(given["file_url"]).content == b"safe"


# ------------------------------------------------------------------ credentials


@pytest.mark.parametrize(
    ("credential", "tail"), [("key", ""), ("key", "/1"), ("other", ""), ("cdn_token", "")]
)
def test_credential_at_signed_url_is_refused_and_remembered(quick, credential, tail):
    header = {"key": "Key emulator-key", "other": "Basic abc", **get_token(quick)}
    header["cdn_token"] = header.pop("Authorization")
    given = initiate(quick, is_multipart=bool(tail))
    url = name_part(given["upload_url"], 1) if tail else given["upload_url"]
    response = put(url, b"content", Authorization=header[credential])
    [leak] = list_leaks(quick, find_path(given["upload_url"]))
    assert response.status_code == 403
    told = (leak["place"], leak["credential"], leak["method"])
    assert told == ("signed_upload", credential, "PUT")
    assert header[credential] not in str(leak)
    assert "emulator-key" not in str(leak)
    assert get(given["file_url"]).status_code == 404


def test_leaks_can_be_cleared(quick):
    quick.client.post("/files/upload", content=b"a")
    assert quick.client.get("/_emulator/leaks").json()
    assert quick.client.delete("/_emulator/leaks").json() == []
    assert quick.client.get("/_emulator/leaks").json() == []


@pytest.mark.parametrize("signature", ["", "9999999999.00", "é"])
def test_wrong_signature_is_refused(quick, signature):
    url = initiate(quick)["upload_url"].partition("?")[0]
    response = httpx.put(url, params={"signature": signature}, content=b"a", trust_env=False)
    assert response.status_code == 403


def test_signature_of_one_upload_is_of_no_use_for_another(quick):
    one, other = (initiate(quick)["upload_url"] for _ in range(2))
    mixed = one.partition("?")[0] + "?" + other.partition("?")[2]
    assert put(mixed, b"a").status_code == 403


def test_cdn_takes_no_upload_without_its_own_token(quick):
    for path in ("upload", "upload/multipart", "b/1/2/multipart/3/complete"):
        for header in ({}, {"Authorization": "Key emulator-key"}):
            response = httpx.post(f"{quick.url}/files/{path}", content=b"a", headers=header)
            assert (path, response.status_code) == (path, 401)


def test_key_sent_to_cdn_with_an_upload_is_remembered(quick):
    before = len(list_leaks(quick, "/files/upload"))
    headers = {"Authorization": "Key emulator-key"}
    httpx.post(f"{quick.url}/files/upload", content=b"a", headers=headers)
    leak = list_leaks(quick, "/files/upload")[before]
    assert (leak["place"], leak["credential"]) == ("cdn", "key")


# ------------------------------------------------------------------ parts


def test_parts_sent_backwards_become_the_file(quick):
    given, told = send_signed(quick, PARTS)
    assert get(given["file_url"]).status_code == 404
    assert complete(given["upload_url"], told).status_code == 200
    assert get(given["file_url"]).content == b"".join(PARTS)


def test_parts_with_cdn_token_become_the_file(quick):
    token = get_token(quick)
    with httpx.Client(headers={**token, "Content-Type": "video/mp4"}, trust_env=False) as client:
        headers = {"X-Fal-File-Name": "long.mp4"}
        created = client.post(f"{quick.url}/files/upload/multipart", headers=headers).json()
        base = f"{created['access_url']}/multipart/{created['uploadId']}"
        tags = [
            client.put(f"{base}/{number}", content=part).headers["etag"]
            for number, part in enumerate(PARTS, 1)
        ]
        named = [{"partNumber": number, "etag": tag} for number, tag in enumerate(tags, 1)]
        done = client.post(f"{base}/complete", json={"parts": named[::-1]})
    assert done.status_code == 200
    served = get(created["access_url"])
    assert served.content == b"".join(PARTS)
    assert served.headers["content-type"] == "video/mp4"
    assert created["access_url"].endswith("_long.mp4")


def test_part_sent_again_replaces_the_first(quick):
    given = initiate(quick, is_multipart=True)
    url = name_part(given["upload_url"], 1)
    put(url, b"broken")
    told = put(url, b"mended").json()
    upload_id = find_path(given["upload_url"]).split("/")[2]
    assert len(list((quick.directory / "scratch").glob(f"upload-{upload_id}-*"))) == 1
    assert complete(given["upload_url"], [told]).status_code == 200
    assert get(given["file_url"]).content == b"mended"


def test_completing_twice_is_completing_once(quick):
    given, told = send_signed(quick, PARTS)
    answers = [complete(given["upload_url"], told) for _ in range(2)]
    assert [one.status_code for one in answers] == [200, 200]
    shown = find_upload(quick, given["file_url"])
    assert (shown["parts"], shown["bytes"]) == (3, len(b"".join(PARTS)))
    assert (shown["completed"], shown["multipart"]) == (True, True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda told: told[:-1], "numbered from 1"),
        (lambda told: [*told, told[0]], "each once"),
        (lambda told: [*told, {"partNumber": 4, "etag": "x"}], "part 4 was not received"),
        (lambda told: [{**told[0], "etag": '"0"'}, *told[1:]], "another etag"),
        (lambda told: None, "must be like"),
    ],
)
def test_completing_with_other_parts_than_received_is_refused(quick, change, complaint):
    given, told = send_signed(quick, PARTS)
    response = complete(given["upload_url"], change(told))
    assert response.status_code == 400
    assert complaint in response.json()["detail"]
    assert get(given["file_url"]).status_code == 404
    assert complete(given["upload_url"], told).status_code == 200


@pytest.mark.parametrize("number", ["0", "10001"])
def test_part_of_impossible_number_is_refused(quick, number):
    url = initiate(quick, is_multipart=True)["upload_url"]
    assert put(name_part(url, number), b"a").status_code == 400


def test_part_after_completion_is_refused(quick):
    given, told = send_signed(quick, PARTS)
    complete(given["upload_url"], told)
    assert put(name_part(given["upload_url"], 1), b"late").status_code == 400
    assert get(given["file_url"]).content == b"".join(PARTS)


def test_bytes_come_the_way_that_was_asked_for(quick):
    whole, parted = initiate(quick)["upload_url"], initiate(quick, is_multipart=True)["upload_url"]
    assert put(name_part(whole, 1), b"a").status_code == 400
    assert put(parted, b"a").status_code == 400


def test_part_of_unknown_upload_is_not_found(quick):
    response = put(f"{quick.url}/files/b/1/2/multipart/none/1", b"a", **get_token(quick))
    assert (response.status_code, response.json()) == (404, {"detail": "No such upload"})


# ------------------------------------------------------------------ going wrong


def test_upload_broken_off_leaves_nothing_behind(quick):
    given = initiate(quick)
    upload_id = find_path(given["upload_url"]).split("/")[2]
    scratch = quick.directory / "scratch"
    with promise_more_than_is_sent(given["upload_url"]):
        wait_until(lambda: bool(list(scratch.glob(f"upload-{upload_id}-*"))))
    wait_until(lambda: not list(scratch.glob(f"upload-{upload_id}-*")))
    assert get(given["file_url"]).status_code == 404


@contextmanager
def promise_more_than_is_sent(url: str) -> Iterator[None]:
    """An upload that breaks off when the block is left."""
    target = httpx.URL(url)
    assert target.port is not None
    with socket.create_connection((target.host, target.port)) as connection:
        path = target.raw_path.decode()
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode() + b"a" * 100_000)
        yield


@pytest.mark.parametrize("point", ["upload", "upload_part", "upload_complete"])
def test_fault_comes_instead_of_the_step_of_an_upload(faulty, point):
    given = initiate(faulty, is_multipart=point != "upload")
    url = given["upload_url"]
    told = put(name_part(url, 1), b"a").json() if point == "upload_complete" else {}
    faulty.order({"point": point, "kind": "ingress", "times": 1})
    assert go_on(point, url, told).status_code == 502
    faulty.order({"point": point, "kind": "drop", "times": 1})
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)):
        go_on(point, url, told)
    assert get(given["file_url"]).status_code == 404
    assert go_on(point, url, told).status_code == 200


def go_on(point: str, url: str, told: object) -> httpx.Response:
    """The next step of the upload."""
    if point == "upload":
        return put(url, b"a")
    return put(name_part(url, 1), b"a") if point == "upload_part" else complete(url, [told])


# ------------------------------------------------------------------ use and size

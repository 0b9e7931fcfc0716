import os

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.cdn import Span, UnsatisfiableRangeError, parse_range

CONTENT = bytes(range(256)) * 2000


@pytest.fixture(scope="module")
def client(quick):
    """Without a key, as whoever downloads a result has none."""
    (quick.directory / "files" / "sub").mkdir()
    (quick.directory / "files" / "sub" / "some file.bin").write_bytes(CONTENT)
    (quick.directory / "secret.txt").write_text("secret")
    (quick.directory / "files" / "link.txt").symlink_to(quick.directory / "secret.txt")
    with httpx.Client(base_url=f"{quick.url}/files", trust_env=False) as client:
        yield client


def test_get_serves_whole_file_to_anybody(client):
    response = client.get("/sub/some%20file.bin")
    assert response.status_code == 200
    assert response.content == CONTENT
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["Cache-Control"].startswith("public, max-age=")
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["Accept-Ranges"] == "bytes"


def test_head_tells_length_without_body(client):
    response = client.head("/sub/some%20file.bin")
    assert response.status_code == 200
    assert response.headers["Content-Length"] == str(len(CONTENT))
    assert response.content == b""


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=5-260", 5, 260),
        ("bytes=511990-", 511990, 511999),
        ("bytes=511990-999999", 511990, 511999),
        ("bytes=-7", 511993, 511999),
    ],
)
def test_get_of_range_serves_that_part(client, header, first, last):
    response = client.get("/sub/some%20file.bin", headers={"Range": header})
    assert response.status_code == 206
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert response.content == CONTENT[first : last + 1]


@pytest.mark.parametrize("header", ["bytes=512000-", "bytes=-0"])
def test_get_of_range_beyond_the_end_is_not_satisfiable(client, header):
    response = client.get("/sub/some%20file.bin", headers={"Range": header})
    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize("header", ["bytes=0-1,3-4", "x"])
def test_get_of_nonsense_range_serves_whole_file(client, header):
    response = client.get("/sub/some%20file.bin", headers={"Range": header})
    assert response.status_code == 200
    assert len(response.content) == len(CONTENT)


@pytest.mark.parametrize("name", ["ETag", "Last-Modified"])
def test_get_of_range_if_unchanged_serves_that_part(client, name):
    version = client.head("/sub/some%20file.bin").headers[name]
    headers = {"Range": "bytes=1-2", "If-Range": version}
    assert client.get("/sub/some%20file.bin", headers=headers).status_code == 206


@pytest.mark.parametrize("version", ['"other"', "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_get_of_range_if_changed_serves_whole_file(client, version):
    headers = {"Range": "bytes=1-2", "If-Range": version}
    response = client.get("/sub/some%20file.bin", headers=headers)
    assert response.status_code == 200
    assert response.content == CONTENT


def test_etag_changes_with_the_file(client, quick):
    path = quick.directory / "files" / "changing.bin"
    path.write_bytes(b"one")
    before = client.head("/changing.bin").headers["ETag"]
    path.write_bytes(b"longer")
    assert client.head("/changing.bin").headers["ETag"] != before


def test_get_of_file_cut_meanwhile_breaks_off(client, quick):
    path = quick.directory / "files" / "cut.bin"
    with path.open("wb") as file:
        file.truncate(256 * 1024 * 1024)
    with client.stream("GET", "/cut.bin") as response:
        chunks = response.iter_raw()
        assert next(chunks)
        os.truncate(path, 0)
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)


@pytest.mark.parametrize(
    "name",
    [
        "none.mp4",
        "sub",
        "..%2fsecret.txt",
        "%2fetc/passwd",
        "link.txt",
        "%00",
    ],
)
def test_get_of_anything_but_a_served_file_is_not_found(client, name):
    response = client.get(f"/{name}")
    assert response.status_code == 404
    assert response.json() == {"detail": "File not found"}


@given(header=st.from_regex(r"bytes=\d{0,4}-\d{0,4}", fullmatch=True), size=st.integers(0, 1000))
def test_parse_range_of_any_range_stays_inside_the_file(header, size):
    try:
        span = parse_range(header, size)
    except UnsatisfiableRangeError:
        return
    assert span is None or 0 <= span.first <= span.last < size


@given(first=st.integers(0, 999), length=st.integers(1, 1000))
def test_parse_range_of_existing_bytes_gives_them(first, length):
    assert parse_range(f"bytes={first}-{first + length - 1}", 2000) == Span(
        first, first + length - 1
    )

"""fal's own Python client, unchanged but for its addresses and sizes, uploads to the emulator."""

import os
from pathlib import Path

import fal_client
import fal_client.client
import pytest

from tests.emulator.official import APPLICATION
from tests.emulator.uploading import find_upload, get, get_token

CHUNK_BYTES = 256 * 1024
CONTENT = os.urandom(3 * CHUNK_BYTES + 77)


@pytest.fixture
def small_parts(monkeypatch):
    """Whatever is longer than a part goes up in parts."""
    monkeypatch.setattr(fal_client.client, "MULTIPART_THRESHOLD", CHUNK_BYTES)
    monkeypatch.setattr(fal_client.client, "MULTIPART_CHUNK_SIZE", CHUNK_BYTES)


@pytest.fixture
def file(tmp_path) -> Path:
    path: Path = tmp_path / "my clip.mp4"
    path.write_bytes(CONTENT)
    return path


def test_sync_client_uploads_bytes(quick, point_at, client):
    point_at(quick)
    url = client.upload(CONTENT, "video/mp4", "clip.mp4")
    served = get(url)
    assert (served.content, served.headers["content-type"]) == (CONTENT, "video/mp4")
    assert url.endswith("_clip.mp4")
    assert find_upload(quick, url)["multipart"] is False


def test_sync_client_uploads_a_file_in_parts(quick, point_at, client, small_parts, file):
    point_at(quick)
    url = client.upload_file(file)
    shown = find_upload(quick, url)
    assert get(url).content == CONTENT
    assert (shown["parts"], shown["bytes"]) == (4, len(CONTENT))
    assert (shown["multipart"], shown["content_type"]) == (True, "video/mp4")


def test_sync_client_uploads_with_a_lifecycle(quick, point_at, client, small_parts, file):
    point_at(quick)
    acl = fal_client.client.StorageACL(default="forbid")
    settings = fal_client.client.StorageSettings(expires_in="1h", initial_acl=acl)
    urls = [client.upload(b"short", "video/mp4", lifecycle=settings)]
    urls.append(client.upload_file(file, lifecycle=settings))
    for url in urls:
        assert get(url).status_code == 403
        assert get(url, **get_token(quick)).status_code == 200
        lifecycle = find_upload(quick, url)["lifecycle"]
        assert lifecycle["expiration_duration_seconds"] == 3600


def test_sync_client_extends_what_it_uploaded(emulator, point_at, client, sample):
    arguments = {**point_at(emulator), "video_url": client.upload_file(sample)}
    assert client.subscribe(APPLICATION, arguments)["video"]["num_frames"] == 28


def test_sync_client_tries_again_when_the_front_door_refuses(
    faulty, point_at, client, small_parts, file
):
    point_at(faulty)
    faulty.order({"point": "upload_complete", "kind": "ingress", "times": 1, "code": 503})
    url = client.upload_file(file)
    assert faulty.count_fired() == [1]
    assert get(url).content == CONTENT


def test_sync_client_tries_no_part_again(faulty, point_at, client, small_parts, file):
    point_at(faulty)
    faulty.order({"point": "upload_part", "kind": "ingress", "times": 1, "code": 503})
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.upload_file(file)
    assert caught.value.status_code == 503


def test_sync_client_sends_its_key_to_a_signed_url(quick, point_at, client):
    """The client's own fault: in its fallback the key goes along to whoever signed the URL."""
    point_at(quick)
    before = len(quick.client.get("/_emulator/leaks").json())
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.upload(b"a", "video/mp4", repository="fal", fallback_repository=[])
    leaks = quick.client.get("/_emulator/leaks").json()[before:]
    assert caught.value.status_code == 403
    assert [(one["place"], one["credential"]) for one in leaks] == [("signed_upload", "key")]

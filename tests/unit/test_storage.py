"""Uploads against two recording hosts: what goes where, and what is done if it does not arrive."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from threading import Event
from time import monotonic

import pytest
from pydantic import SecretStr

from tests.harness.storage import SIGNATURE, TOKEN, Host, Storage, run_storage
from worker.fal.storage import (
    DEFAULT_POLICY,
    MIB,
    OnProgress,
    StorageClient,
    UploadFile,
    UploadPolicy,
)
from worker.ground.clock import Backoff
from worker.ground.errors import UploadRefusedError, UploadUnavailableError

KEY = "key-id:key-secret"
QUICK = Backoff(timedelta(milliseconds=1), timedelta(milliseconds=2))
TERMS = UploadPolicy(whole_bytes=1000, part_bytes=400, tries=3, pause=QUICK)
LONG = 400 * 5 + 1  # six parts, the last of one byte
Start = Callable[..., "Upload"]


@dataclass(frozen=True)
class Upload:
    """A client, and a file for it."""

    client: StorageClient
    file: UploadFile

    def finish(self, on_progress: OnProgress | None = None) -> str:
        return self.client.upload(self.file, on_progress)


@pytest.fixture
def storage() -> Iterator[Storage]:
    with run_storage() as running:
        yield running


def write_file(tmp_path: Path, size: int) -> UploadFile:
    path = tmp_path / "video.mp4"
    path.write_bytes(random.Random(size).randbytes(size))
    return UploadFile(path, size, "video/mp4", "name.mp4")


def may_use(url: str) -> bool:
    return "not-fals" not in url


def open_client(storage: Storage, policy: UploadPolicy = TERMS) -> StorageClient:
    return StorageClient(
        storage.rest.url, storage.bytes.url, SecretStr(KEY), policy, may_use=may_use
    )


@pytest.fixture
def start(storage, tmp_path) -> Iterator[Start]:
    """Begins the upload of so many bytes; nothing is sent yet."""
    clients: list[StorageClient] = []

    def begin(size: int = 100, policy: UploadPolicy = TERMS) -> Upload:
        clients.append(open_client(storage, policy))
        return Upload(clients[-1], write_file(tmp_path, size))

    yield begin
    for client in clients:
        client.close()


def read_content(tmp_path: Path) -> bytes:
    return (tmp_path / "video.mp4").read_bytes()


def find_credentials(host: Host) -> set[str]:
    """All that came to the host and could be a credential."""
    names = ("authorization", "cookie", "proxy-authorization")
    return {one.headers[name] for one in host.asked for name in names if name in one.headers}


# ------------------------------------------------------------------ what goes where


def test_defaults_are_those_of_fals_client() -> None:
    assert (DEFAULT_POLICY.whole_bytes, DEFAULT_POLICY.part_bytes) == (90 * MIB, 10 * MIB)


def test_small_file_is_put_at_once_to_the_signed_url(storage, start, tmp_path) -> None:
    assert start(1000).finish() == storage.file_url

    [asked], [put] = storage.rest.asked, storage.bytes.asked
    assert (asked.method, asked.path) == ("POST", "/storage/upload/initiate")
    assert asked.query == "storage_type=fal-cdn-v3"
    assert asked.json == {"content_type": "video/mp4", "file_name": "name.mp4"}
    assert (put.method, put.path, put.query) == ("PUT", "/upload/video.mp4", SIGNATURE)
    assert put.body == read_content(tmp_path)
    assert put.headers["content-type"] == "video/mp4"
    assert put.headers["content-length"] == "1000"
    assert "transfer-encoding" not in put.headers


def test_larger_file_is_put_in_parts_and_completed_in_order(storage, start, tmp_path) -> None:
    assert start(LONG).finish() == storage.file_url

    assert [one.path for one in storage.rest.asked] == ["/storage/upload/initiate-multipart"]
    *puts, completed = storage.bytes.asked
    assert {one.path for one in puts} == {f"/upload/video.mp4/{number}" for number in range(1, 7)}
    assert storage.bytes.join_parts() == read_content(tmp_path)
    assert (completed.method, completed.path) == ("POST", "/upload/video.mp4/complete")
    assert {one.query for one in storage.bytes.asked} == {SIGNATURE}
    assert completed.json == {
        "parts": [
            {"partNumber": number, "etag": f'"tag-{number}-{400 if number < 6 else 1}"'}
            for number in range(1, 7)
        ]
    }


@pytest.mark.parametrize(("size", "step"), [(1000, "initiate"), (1001, "initiate-multipart")])
def test_size_alone_decides_between_both_ways(storage, start, size, step) -> None:
    start(size).finish()
    assert storage.rest.count(step) == len(storage.rest.asked) == 1


@pytest.mark.parametrize("size", [10, LONG])
def test_key_goes_to_fal_and_no_credential_to_the_signed_host(storage, start, size) -> None:
    start(size).finish()
    assert find_credentials(storage.rest) == {f"Key {KEY}"}
    assert find_credentials(storage.bytes) == set()


def test_lifecycle_is_never_said_of_an_input(storage, start) -> None:
    start(LONG).finish()
    names = {
        name.lower()
        for host in (storage.rest, storage.bytes)
        for one in host.asked
        for name in one.headers
    }
    assert not [name for name in names if "lifecycle" in name]


def test_tag_of_a_part_may_stand_in_the_header(storage, start) -> None:
    storage.bytes.tag_in_header = True
    start(LONG).finish()
    assert storage.bytes.asked[-1].json["parts"][5] == {"partNumber": 6, "etag": '"tag-6-1"'}


def test_part_without_a_tag_is_refused(storage, start) -> None:
    storage.bytes.answers |= {"3": {}}
    with pytest.raises(UploadRefusedError, match="without naming it"):
        start(LONG).finish()
    assert storage.bytes.count("complete") == 0


@pytest.mark.parametrize("name", ["upload_url", "file_url"])
def test_url_that_is_not_safe_is_refused_before_a_byte_is_sent(storage, start, name) -> None:
    for url in (
        None,
        "http://elsewhere.example/",
        "https://u:w@elsewhere.example/",
        "https://[::1/",
        "https://not-fals.example/",
    ):
        storage.rest.answers["initiate"] |= {name: url}
        with pytest.raises(UploadRefusedError, match=f"no {name} that may be used"):
            start().finish()
    assert storage.bytes.asked == []


# ------------------------------------------------------------------ trying again


def test_part_cut_off_half_way_is_sent_again_alone(storage, start, tmp_path) -> None:
    storage.bytes.cuts["2"] = 2
    assert start(LONG).finish() == storage.file_url
    assert [storage.bytes.count(str(number)) for number in range(1, 7)] == [1, 3, 1, 1, 1, 1]
    assert storage.bytes.join_parts() == read_content(tmp_path)


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ("initiate-multipart", 429),
        ("complete", 500),
        *(("4", status) for status in (408, 425, 503)),
    ],
)
def test_step_that_fails_in_passing_is_tried_again(storage, start, step, status) -> None:
    host = storage.rest if step.startswith("initiate") else storage.bytes
    host.refusals[step] = [status, status]
    assert start(LONG).finish() == storage.file_url
    assert host.count(step) == 3


def test_upload_ends_after_its_last_try(storage, start) -> None:
    storage.bytes.refusals["4"] = [503] * 9
    with pytest.raises(UploadUnavailableError, match=r"part 4: HTTP 503, no \(tried 3 times\)"):
        start(LONG).finish()
    assert (storage.bytes.count("4"), storage.bytes.count("complete")) == (3, 0)


@pytest.mark.parametrize("status", [307, 403])
def test_refusal_of_the_signed_host_is_final(storage, start, status) -> None:
    storage.bytes.refusals["video.mp4"] = [status]
    upload = start()
    with pytest.raises(UploadRefusedError, match=f"HTTP {status}, no") as caught:
        upload.finish()
    assert "secret" not in str(caught.value)
    assert storage.bytes.count("video.mp4") == 1
    assert upload.finish() == storage.file_url
    assert storage.rest.count("initiate") == 2, "a signature may be too old: another is requested"


def test_refused_account_is_not_asked_again_at_once(storage, start) -> None:
    storage.rest.refusals["initiate"] = [403]
    with pytest.raises(UploadUnavailableError, match="fal refuses the account"):
        start().finish()
    assert storage.rest.count("initiate") == 1


def test_failed_part_ends_the_upload(storage, start) -> None:
    storage.bytes.refusals["1"] = [400]
    with pytest.raises(UploadRefusedError, match="part 1"):
        start(400 * 40).finish()
    assert storage.bytes.count("2") == 0
    assert storage.bytes.count("complete") == 0


def test_host_that_says_nothing_is_given_up_in_time(storage, start) -> None:
    storage.bytes.held["video.mp4"] = Event()
    policy = replace(TERMS, tries=2, overhead=timedelta(seconds=0.3))
    began = monotonic()
    with pytest.raises(UploadUnavailableError, match="sending the file"):
        start(100, policy).finish()
    assert monotonic() - began < 10


def test_unreachable_host_is_told(storage, start) -> None:
    upload = start()
    storage.rest.answers["initiate"] |= {"upload_url": "https://127.0.0.1:9/upload"}
    with pytest.raises(UploadUnavailableError, match=r"ConnectError.*tried 3 times"):
        upload.finish()


def test_time_allowed_grows_with_the_size() -> None:
    small, large = (DEFAULT_POLICY.bound(size) for size in (1, 1024 * MIB))
    assert small < timedelta(minutes=2)
    assert timedelta(hours=1) < large < timedelta(hours=12)


@pytest.mark.parametrize(("content", "reason"), [(b"short", "became shorter"), (None, "No such")])
def test_file_that_became_shorter_or_is_gone_is_refused(
    storage, start, tmp_path, content, reason
) -> None:
    upload = start(100)
    (tmp_path / "video.mp4").unlink()
    if content is not None:
        (tmp_path / "video.mp4").write_bytes(content)
    with pytest.raises(UploadRefusedError, match=reason):
        upload.finish()


# ------------------------------------------------------------------ progress


@pytest.mark.parametrize("size", [100, LONG])
def test_progress_never_goes_back_and_ends_at_the_total(storage, start, size) -> None:
    storage.bytes.cuts.update({"video.mp4": 1, "2": 1})
    told: list[tuple[int, int]] = []
    start(size).finish(lambda sent, total: told.append((sent, total)))
    assert {total for _, total in told} == {size}
    sent = [one for one, _ in told]
    assert sent == sorted(set(sent))
    assert sent[-1] == size


def test_what_the_callback_raises_ends_the_upload_and_passes_through(storage, start) -> None:
    def interrupt(_sent: int, _total: int) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        start(LONG).finish(interrupt)
    assert storage.bytes.count("complete") == 0


# ------------------------------------------------------------------ with a CDN token


@pytest.mark.parametrize(("size", "status"), [(100, 404), (100, 501), (LONG, 405)])
def test_token_takes_the_keys_place_where_no_url_is_signed(
    storage, start, tmp_path, size, status
) -> None:
    storage.rest.refusals |= {"initiate": [status], "initiate-multipart": [status]}

    assert start(size).finish() == f"{storage.bytes.url}/files/b/1/video.mp4"

    assert storage.rest.asked[-1].path == "/storage/auth/token"
    assert find_credentials(storage.rest) == {f"Key {KEY}"}
    assert find_credentials(storage.bytes) == {f"Bearer {TOKEN}"}
    first = storage.bytes.asked[0]
    assert first.headers["x-fal-file-name"] == "name.mp4"
    assert first.headers["content-type"] == "video/mp4"
    if size == LONG:
        assert first.path == "/files/upload/multipart"
        assert storage.bytes.join_parts() == read_content(tmp_path)
        assert storage.bytes.asked[-1].path == "/files/b/1/video.mp4/multipart/7/complete"
    else:
        assert first.path == "/files/upload"
        assert first.body == read_content(tmp_path)


@pytest.mark.parametrize("url", ["https://elsewhere.example/files/1", "{rest}/files/1"])
def test_token_never_leaves_the_cdns_host(storage, start, url) -> None:
    storage.rest.refusals["initiate-multipart"] = [404]
    access_url = url.format(rest=storage.rest.url)
    storage.bytes.answers["multipart"] = {"access_url": access_url, "uploadId": "7"}
    with pytest.raises(UploadRefusedError, match="elsewhere than to FAL_CDN_URL"):
        start(LONG).finish()
    assert len(storage.bytes.asked) == 1
    assert find_credentials(storage.rest) == {f"Key {KEY}"}


def test_missing_token_is_told(storage, start) -> None:
    storage.rest.refusals["initiate"] = [404]
    storage.rest.answers["token"] = {"token": 7, "token_type": "Bearer"}
    with pytest.raises(UploadRefusedError, match="no token"):
        start().finish()

"""Object stores: what each URL opens, what they are sent, and what is told when they refuse."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import TypeAlias

import pytest
from obstore.exceptions import BaseError

from tests.harness.disk import limit_file_size, list_files
from tests.harness.web import (
    ScriptedHandler,
    ScriptedServer,
    break_off,
    hang,
    run_server,
    send_body,
)
from worker.ground.errors import StoreObjectMissingError, StoreUnavailableError
from worker.media import object_store
from worker.media.object_store import LEAST_PART_BYTES, MOST_PARTS, MOST_RETRIES, choose_part_size
from worker.media.store import Store, open_store

JOB = "019a9f6e-0000-7000-8000-000000000001"
NAME = f"2026/03/01/{JOB}.mp4"
BODY = b"a video"
LARGE = 2 * LEAST_PART_BYTES + 1
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEBYaDEXAMPLETOKEN",
}
Call: TypeAlias = Callable[[Store], object]


def publish(store: Store, size: int = len(BODY)) -> object:
    with store.spool.begin(JOB) as file:
        file.write(bytes(size))
        return store.publish(file, NAME, "video/mp4")


CALLS: dict[str, Call] = {
    "publish": publish,
    "publish parts": lambda store: publish(store, LARGE),
    "create": lambda store: store.create(NAME, b"{}", "application/json"),
    "put": lambda store: store.put(NAME, b"{}", "application/json"),
    "read": lambda store: list(store.read(NAME)),
    "stat": lambda store: store.stat(NAME),
    "list": lambda store: list(store.list()),
    "delete": lambda store: store.delete(NAME),
}


def refuse(status: int, code: str) -> Callable[[ScriptedHandler], None]:
    """As S3 refuses: the reason is in the body, which the answer to HEAD has not."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>As said by {SECRETS['AWS_ACCESS_KEY_ID']}.</Message>"
        "<RequestId>656c76696e6727732072657175657374</RequestId></Error>"
    )

    def answer(handler: ScriptedHandler) -> None:
        content = b"" if handler.command == "HEAD" else body.encode()
        send_body(content, status, Content_Type="application/xml")(handler)

    return answer


@pytest.fixture
def fast(monkeypatch) -> None:
    """The same number of retries, without the pauses."""
    monkeypatch.setattr(object_store, "FIRST_PAUSE", timedelta(milliseconds=1))
    monkeypatch.setattr(object_store, "LONGEST_PAUSE", timedelta(milliseconds=2))


@pytest.fixture
def server(monkeypatch, fast) -> Iterator[ScriptedServer]:
    """A place that speaks S3 as the test says."""
    with run_server(refuse(500, "InternalError")) as server:
        variables = {**SECRETS, "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def store(server, tmp_path) -> Store:
    return open_store("s3://bucket/videos", tmp_path / "spool")


def list_shown(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that a traceback of it would show."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def describe(store: Store, call: Call) -> str:
    """The reason that is told; it has no secret and no address in it, nor anything behind it."""
    with pytest.raises(StoreUnavailableError) as caught:
        call(store)
    told = str(caught.value)
    assert not any(isinstance(error, BaseError) for error in list_shown(caught.value))
    assert [secret for secret in SECRETS.values() if secret in told] == []
    assert "127.0.0.1" not in told
    assert store.spool.remove_partials() == 0
    assert list_files(store.spool.directory) == []
    return told


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize("call", CALLS)
def test_refusal_is_told_by_every_call(server, store, call) -> None:
    server.answer = refuse(403, "AccessDenied")
    told = describe(store, CALLS[call])

    trouble = "read" if call in {"read", "stat", "list", "delete"} else "written"
    assert told.startswith(f"the archive cannot be {trouble}: ")
    # An answer to HEAD has no body, so there is the status alone.
    is_head = call in {"read", "stat", "delete"}
    assert ("HTTP 403" if is_head else "the credentials do not allow it") in told
    assert [
        asked.path for asked in server.asked if asked.method == "POST" and "uploadId" in asked.query
    ] == []


@pytest.mark.parametrize("call", ["read", "stat", "list", "delete"])
def test_missing_bucket_is_no_missing_object(server, store, call) -> None:
    server.answer = refuse(404, "NoSuchBucket")
    assert "there is no such bucket" in describe(store, CALLS[call])


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "the credentials are refused (HTTP 401, Strange)"),
        (418, "it refuses the request (HTTP 418, Strange)"),
        (403, "the credentials do not allow it (HTTP 403, Strange)"),
        (429, "it limits the rate of requests, or is unavailable (HTTP 429, Strange)"),
        (502, "it failed (HTTP 502, Strange)"),
        (507, "it is full (HTTP 507, Strange)"),
    ],
)
def test_refusal_names_status_and_code(server, store, status, told) -> None:
    server.answer = refuse(status, "Strange")
    assert describe(store, CALLS["put"]).endswith(told)


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong"),
        (400, "ExpiredToken", "renew the credentials"),
        (400, "AuthorizationHeaderMalformed", "set AWS_REGION"),
        (403, "InvalidAccessKeyId", "check the credentials"),
        (403, "SignatureDoesNotMatch", "check the credentials"),
    ],
)
def test_refusal_whose_cause_is_known_says_what_to_do(server, store, status, code, advice) -> None:
    server.answer = refuse(status, code)
    told = describe(store, CALLS["put"])
    assert advice in told
    assert told.endswith(f"(HTTP {status}, {code})")


@pytest.mark.parametrize("call", ["put", "read"])
def test_silent_store_is_left_in_time(server, tmp_path, monkeypatch, call) -> None:
    monkeypatch.setattr(object_store, "REQUEST_TIME", timedelta(milliseconds=200))
    server.answer = hang
    store = open_store("s3://bucket/videos", tmp_path / "spool")
    assert "it did not answer in time" in describe(store, CALLS[call])
    server.closing.set()


def test_store_that_hangs_up_is_told(server, store) -> None:
    server.answer = break_off()
    assert "the connection to it broke" in describe(store, CALLS["put"])


def test_store_without_a_server_is_told(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_store("s3://bucket/videos", tmp_path / "spool")
    assert "no connection to it" in describe(store, CALLS["put"])


def test_plain_http_that_nobody_has_allowed_is_told(server, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    store = open_store("s3://bucket/videos", tmp_path / "spool")
    assert "AWS_ALLOW_HTTP=true" in describe(store, CALLS["put"])
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "code", "times"),
    [(503, "SlowDown", 1 + MOST_RETRIES), (403, "X", 1)],
)
def test_request_is_repeated_a_bounded_number_of_times(server, store, status, code, times) -> None:
    server.answer = refuse(status, code)
    describe(store, CALLS["put"])
    assert len(server.asked) == times


def test_store_that_fails_for_a_moment_is_asked_again(server, store) -> None:
    def answer(handler: ScriptedHandler) -> None:
        server.answer = send_body(b"", 200, ETag='"1"')
        refuse(503, "SlowDown")(handler)

    server.answer = answer
    assert publish(store) is not None
    assert [asked.method for asked in server.asked] == ["PUT", "PUT"]


def test_failed_part_leaves_no_object_and_no_upload(server, store) -> None:
    """The parts that did arrive are given up, and none is made an object."""
    opened = (
        b"<InitiateMultipartUploadResult><UploadId>7</UploadId></InitiateMultipartUploadResult>"
    )

    def answer(handler: ScriptedHandler) -> None:
        if handler.command == "POST":
            send_body(opened, 200)(handler)
        elif handler.command == "DELETE":
            send_body(b"", 204)(handler)
        elif handler.asked.query["partNumber"] == ["2"]:
            refuse(507, "InsufficientStorage")(handler)
        else:
            send_body(b"", 200, ETag='"1"')(handler)

    server.answer = answer
    assert "it is full" in describe(store, CALLS["publish parts"])
    posts = [asked for asked in server.asked if asked.method == "POST"]
    assert ["uploadId" in asked.query for asked in posts] == [False], "never completed"
    assert [asked.method for asked in server.asked][-1] == "DELETE"


@pytest.fixture
def small_reads(monkeypatch, tmp_path) -> Store:
    """An object store, of which three bytes are read at a time."""
    monkeypatch.setattr(object_store, "READ_BYTES", 3)
    return open_store("memory:", tmp_path / "spool")


def test_object_deleted_while_it_is_read_is_missing(small_reads) -> None:
    small_reads.put(NAME, BODY, "video/mp4")
    chunks = small_reads.read(NAME)
    assert next(chunks) == BODY[:3]
    small_reads.delete(NAME)
    with pytest.raises(StoreObjectMissingError):
        next(chunks)


def test_object_replaced_while_it_is_read_is_noticed(small_reads) -> None:
    small_reads.put(NAME, BODY, "video/mp4")
    chunks = small_reads.read(NAME)
    next(chunks)
    small_reads.put(NAME, b"another", "video/mp4")
    with pytest.raises(StoreUnavailableError, match="replaced while it was read"):
        next(chunks)


@pytest.mark.parametrize("is_free", [True, False])
def test_conflict_of_creations_is_looked_into(server, store, is_free) -> None:
    """S3 answers 409 where a deletion of the same name is on its way: the name may be free."""

    def answer(handler: ScriptedHandler) -> None:
        if handler.command == "PUT":
            refuse(409, "ConditionalRequestConflict")(handler)
        elif is_free:
            refuse(404, "NoSuchKey")(handler)
        else:
            when = "Sun, 01 Mar 2026 12:00:00 GMT"
            send_body(b"", 200, Last_Modified=when, ETag='"1"')(handler)

    server.answer = answer
    if is_free:
        assert "others write and delete the same name" in describe(store, CALLS["create"])
        assert sum(asked.method == "PUT" for asked in server.asked) == object_store.MOST_CREATIONS
    else:
        assert CALLS["create"](store) is False


# ------------------------------------------------------------------ what is sent


def test_creation_is_sent_as_one_that_replaces_nothing(server, store) -> None:
    server.answer = send_body(b"", 200, ETag='"1"')
    assert store.create("a b/ü.json", b"{}", "application/json")
    (asked,) = server.asked
    assert (asked.method, asked.body) == ("PUT", b"{}")
    assert asked.path == "/bucket/videos/a%20b/%C3%BC.json"
    assert asked.headers["If-None-Match"] == "*"
    assert asked.headers["Content-Type"] == "application/json"


def test_secret_key_is_never_sent(server, store) -> None:
    for call in CALLS.values():
        with pytest.raises(StoreUnavailableError):
            call(store)
    sent = "".join(f"{asked.target} {asked.headers}" for asked in server.asked)
    assert SECRETS["AWS_ACCESS_KEY_ID"] in sent
    assert SECRETS["AWS_SECRET_ACCESS_KEY"] not in sent


def test_opening_asks_nobody(server, tmp_path) -> None:
    open_store("s3://bucket", tmp_path / "spool")
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, LEAST_PART_BYTES * MOST_PARTS, 5 * 1024**4])
def test_part_size_keeps_the_bounds_of_s3(size) -> None:
    part = choose_part_size(size)
    assert part >= LEAST_PART_BYTES
    assert -(-size // part) <= MOST_PARTS


def run_script(script: str, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# ------------------------------------------------------------------ the disk


def test_spool_file_that_somebody_removed_is_told_as_such(server, store) -> None:
    def publish_nothing(store: Store) -> None:
        with store.spool.begin(JOB) as file:
            file.path.unlink()
            store.publish(file, NAME, "video/mp4")

    assert "No such file or directory" in describe(store, publish_nothing)


def test_spool_file_that_somebody_changed_is_not_published(server, store) -> None:
    def publish_half(store: Store) -> None:
        with store.spool.begin(JOB) as file:
            file.write(BODY)
            os.truncate(file.path, 3)
            store.publish(file, NAME, "video/mp4")

    assert f"has 3 bytes, {len(BODY)} were written" in describe(store, publish_half)
    assert server.asked == []


def test_spool_without_space_is_told_and_nothing_is_sent(server, store) -> None:
    with limit_file_size(1000):
        told = describe(store, partial(publish, size=1001))
    assert told == "the spool cannot be written: File too large"
    assert server.asked == []


# ------------------------------------------------------------------ which URLs


@pytest.mark.parametrize(
    ("url", "variables", "kind", "base"),
    [
        ("s3://bucket", {}, "S3Store", "s3://bucket/"),
        ("s3://bucket/a/b c/", {}, "S3Store", "s3://bucket/a/b c/"),
        ("gs://bucket/videos", {}, "GCSStore", "gs://bucket/videos/"),
        (
            "az://container/videos",
            {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"},
            "AzureStore",
            "az://container/videos/",
        ),
        ("memory:", {}, "MemoryStore", "memory:///"),
    ],
)
def test_url_opens_the_store_that_it_names(
    monkeypatch, tmp_path, url, variables, kind, base
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    store = open_store(url, tmp_path / "spool")

    assert isinstance(store, object_store.RemoteStore)
    assert type(store.remote).__name__ == kind
    assert store.base == base
    assert store.spool.directory == tmp_path / "spool"
    assert store.find_name(f"{base}{NAME}") == NAME


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3:bucket", "must be s3://bucket/prefix without user, port"),
        ("s3:///prefix", "must be s3://"),
        ("s3://key:secret@bucket/x", "must be s3://"),
        ("s3://bucket:9000/x", "must be s3://"),
        ("s3://bucket/x?secret=1", "must be s3://"),
        ("s3://bucket/../x", "must be s3://"),
        ("s3://bucket/a//b", "must be s3://"),
        (f"s3://bucket/{'x' * 101}", "at most 100 bytes"),
        ("memory:x", "no place in it"),
        ("az://container/videos", "Account must be specified"),
    ],
)
def test_url_that_names_no_store_is_refused_with_the_reason(tmp_path, url, reason) -> None:
    with pytest.raises(ValueError, match=reason) as failure:
        open_store(url, tmp_path)
    assert "secret" not in str(failure.value)


def test_variable_that_makes_no_store_is_refused_without_its_value(monkeypatch, tmp_path) -> None:
    secret = "not-quite-base64-s3cret"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", secret)
    with pytest.raises(ValueError, match="AZURE_") as failure:
        open_store("az://container", tmp_path)
    assert secret not in str(failure.value)


def test_service_account_that_is_no_file_is_refused(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "missing.json"))
    with pytest.raises(ValueError, match="GOOGLE_"):
        open_store("gs://bucket", tmp_path)


def test_local_archive_loads_no_object_store() -> None:
    script = (
        "import sys; from pathlib import Path; from worker.media.store import open_store\n"
        "open_store('file:./archive', Path('spool')); print('obstore' in sys.modules)"
    )
    assert run_script(script) == "False\n"

"""What every archive does alike: local disk, memory, and S3 over HTTP."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeAlias

import pytest

from tests.harness.disk import list_files
from tests.harness.s3 import S3
from tests.harness.together import call_together
from worker.errors import StoreObjectMissingError
from worker.media.store import ListedObject, Store, StoredObject, open_store

JOB = "019a9f6e-0000-7000-8000-000000000001"
NAME = f"2026/03/01/{JOB}.mp4"
SIDECAR = f"2026/03/01/{JOB}.json"
BODY = b"first second"
VIDEO, JSON = "video/mp4", "application/json"
# Three parts of an upload, and more than one chunk of a read.
LARGE = 11 * 1024 * 1024
UNUSUAL = [
    "a",
    "a b/c d.mp4",
    "ü/漢字 🎬.mp4",
    "%2E%2E/%2F/100%.mp4",
    "a+b&c=d;e,f@g!h$i'j(k)~.mp4",
    "what?/#hash.mp4",
    'back\\slash/[x]{y}|z^`<>*".mp4',
    "-/_/a..b/c.mp4",
    "x" * 255,
    "/".join(["y" * 80] * 10),
]
WRONG = ["", ".", "..", "../x", "a/../x", "/x", "a//b", "a/", ".partial/x", "a\0b", "x" * 256]

OpenStore: TypeAlias = Callable[[], Store]


@pytest.fixture(params=["file", "memory", "s3", "s3 without prefix"])
def store(request, tmp_path) -> Store:
    if not request.param.startswith("s3"):
        return open_store({"file": "file:./archive", "memory": "memory:"}[request.param], tmp_path)
    s3: S3 = request.getfixturevalue("s3")
    prefix = "" if "without" in request.param else "/videos/of ours"
    return open_store(f"s3://{s3.make_bucket()}{prefix}", tmp_path / "spool")


def publish(store: Store, name: str = NAME, body: bytes = BODY) -> StoredObject:
    with store.spool.begin(JOB) as file:
        file.write(body)
        return store.publish(file, name, VIDEO)


def read(store: Store, name: str = NAME) -> bytes:
    return b"".join(store.read(name))


def list_names(store: Store, prefix: str = "") -> list[str]:
    return sorted(found.name for found in store.list(prefix))


def test_published_file_is_told_by_uri_hash_and_size(store):
    stored = publish(store)

    assert stored.sha256 == hashlib.sha256(BODY).hexdigest()
    assert stored.bytes == len(BODY)
    assert stored.uri.endswith(NAME)
    assert read(store) == BODY
    assert list_files(store.spool.directory) == []


def test_published_file_replaces_the_one_of_its_name(store):
    first, second = publish(store, body=b"an older one"), publish(store, body=b"new")

    assert first.uri == second.uri
    assert read(store) == b"new"
    assert list_names(store) == [NAME]


def test_empty_file_is_an_object_too(store):
    assert publish(store, body=b"").bytes == 0
    assert read(store) == b""
    found = store.stat(NAME)
    assert found is not None
    assert found.bytes == 0


def test_file_of_several_parts_comes_back_whole(store):
    body = hashlib.shake_256(b"video").digest(LARGE)
    stored = publish(store, body=body)

    assert (stored.bytes, stored.sha256) == (LARGE, hashlib.sha256(body).hexdigest())
    assert read(store) == body
    assert max(map(len, store.read(NAME))) < LARGE, "it comes in chunks"


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 7), (5, None), (LARGE // 2, LARGE // 2 + 1), (9, 9), (LARGE - 3, LARGE * 2)],
)
def test_part_of_an_object_is_read_alone(store, start, stop):
    body = hashlib.shake_256(b"video").digest(LARGE)
    publish(store, body=body)
    assert b"".join(store.read(NAME, start, stop)) == body[start:stop]


def test_restarted_file_is_published_as_it_was_written_then(store):
    with store.spool.begin(JOB) as file:
        file.write(b"broken off, and longer")
        file.restart()
        file.write(BODY)
        stored = store.publish(file, NAME, VIDEO)

    assert (stored.bytes, stored.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert read(store) == BODY


def test_file_not_yet_published_is_seen_nowhere(store):
    with store.spool.begin(JOB) as file:
        file.write(BODY)
        assert list_names(store) == []
    assert list_names(store) == []


def test_created_object_is_not_replaced_by_another(store):
    assert store.create(SIDECAR, b'{"first": 1}', JSON) is True
    assert store.create(SIDECAR, b'{"other": 1}', JSON) is False
    assert read(store, SIDECAR) == b'{"first": 1}'


def test_name_of_published_file_cannot_be_created(store):
    publish(store)
    assert store.create(NAME, b"{}", JSON) is False
    assert read(store) == BODY


def test_name_that_was_deleted_can_be_created_again(store):
    store.create(SIDECAR, b"1", JSON)
    store.delete(SIDECAR)
    assert store.create(SIDECAR, b"2", JSON) is True
    assert read(store, SIDECAR) == b"2"


def test_of_several_creating_at_once_exactly_one_wins(store):
    for number in range(10):
        bodies = [f"{number} {one}".encode() for one in range(4)]
        name = f"{number}/{JOB}.json"
        won = call_together(*[partial(store.create, name, body, JSON) for body in bodies])

        assert sorted(won) == [False, False, False, True]
        assert read(store, name) == bodies[won.index(True)]


def test_several_publishing_at_once_leave_one_whole_object(store):
    bodies = [bytes([one]) * 200_000 for one in range(4)]
    call_together(*[partial(publish, store, NAME, body) for body in bodies])

    assert read(store) in bodies
    assert list_names(store) == [NAME]


def test_small_object_is_put_and_replaced(store):
    assert store.put(SIDECAR, b"older", JSON).bytes == 5
    stored = store.put(SIDECAR, b"{}", JSON)

    assert (stored.bytes, stored.sha256) == (2, hashlib.sha256(b"{}").hexdigest())
    assert read(store, SIDECAR) == b"{}"


def test_stat_tells_size_and_time_of_the_last_change(store):
    publish(store)
    found = store.stat(NAME)

    assert found is not None
    assert (found.name, found.bytes) == (NAME, len(BODY))
    assert found.modified_at.tzinfo is not None
    assert abs(found.modified_at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("name", [NAME, "2026", "2026/03", "other", f"{NAME}/deeper", "2026/03/0"])
def test_object_that_is_not_there_is_not_found_nor_read_nor_deleted(store, name):
    store.put("2026/03/02/else.json", b"{}", JSON)

    assert store.stat(name) is None
    assert store.delete(name) is False
    with pytest.raises(StoreObjectMissingError, match="the archive has no"):
        read(store, name)


def test_deleted_object_is_gone_and_its_neighbours_stay(store):
    publish(store)
    store.put(SIDECAR, b"{}", JSON)

    assert store.delete(NAME) is True
    assert store.delete(NAME) is False
    assert store.stat(NAME) is None
    assert list_names(store) == [SIDECAR]


def test_list_tells_every_object_once_with_its_size(store):
    publish(store)
    store.put("flat.json", b"{}", JSON)
    store.put("2026/03/02/other.json", b"{ }", JSON)

    sizes = {found.name: found.bytes for found in store.list()}
    assert sizes == {NAME: len(BODY), "flat.json": 2, "2026/03/02/other.json": 3}
    assert all(isinstance(found, ListedObject) for found in store.list())


def test_list_below_a_prefix_takes_whole_parts_of_names(store):
    names = ["2026/03/01/a.json", "2026/03/01b/a.json", "2026/03/02/a.json", "2026/03.json", "x"]
    for name in names:
        store.put(name, b"{}", JSON)

    assert list_names(store, "2026/03/01") == ["2026/03/01/a.json"]
    assert list_names(store, "2026/03") == sorted(names[:3])
    assert list_names(store, "2026/03/01/a.json") == []
    assert list_names(store, "2027") == []


def test_list_of_empty_archive_is_empty(store):
    assert list_names(store) == []


def test_list_goes_beyond_one_page(store):
    names = [f"{number:04}.json" for number in range(1010)]  # S3 tells of 1000 at a time
    for name in names:
        store.put(name, b"", JSON)
    assert list_names(store) == names


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_name_is_kept_as_it_is(store, name):
    stored = publish(store, name)
    sidecar = f"{name[:200]}.json"
    assert store.create(sidecar, b"{}", JSON)

    assert read(store, name) == BODY
    assert list_names(store) == sorted({name, sidecar})
    assert store.find_name(stored.uri) == name
    assert store.delete(name)
    assert store.stat(name) is None


@pytest.mark.parametrize("name", WRONG)
def test_name_that_could_escape_is_refused_by_everything(store, name):
    def publish_it() -> object:
        return publish(store, name)

    calls: list[Callable[[], object]] = [
        publish_it,
        lambda: store.create(name, b"{}", JSON),
        lambda: store.put(name, b"{}", JSON),
        lambda: read(store, name),
        lambda: store.stat(name),
        lambda: store.delete(name),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="cannot name an object"):
            call()
    assert list_names(store) == []


def test_uri_of_this_archive_gives_its_name_back(store):
    stored = publish(store)

    assert store.find_name(stored.uri) == NAME
    assert store.find_name(stored.uri.replace(JOB, "other")) == NAME.replace(JOB, "other")


@pytest.mark.parametrize("change", [lambda uri: f"x{uri}", lambda _: "", lambda _: "s3://other/x"])
def test_uri_of_another_archive_has_no_name(store, change):
    assert store.find_name(change(publish(store).uri)) is None


@pytest.mark.parametrize("ending", ["", "../x", ".partial/x.part", "/"])
def test_uri_that_leads_out_of_the_archive_has_no_name(store, ending):
    base = publish(store).uri.removesuffix(NAME)
    assert store.find_name(base + ending) is None


def test_archive_opened_anew_finds_what_was_published(request, tmp_path):
    s3: S3 = request.getfixturevalue("s3")
    for url in (f"file:{tmp_path}/archive", f"s3://{s3.make_bucket()}/videos"):
        stored = publish(open_store(url, tmp_path / "spool"))
        again = open_store(url, tmp_path / "spool")
        assert again.find_name(stored.uri) == NAME
        assert read(again) == BODY

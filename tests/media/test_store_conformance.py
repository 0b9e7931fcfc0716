"""What every archive does alike: local disk and memory here, S3 over HTTP in `tests/soak/s3`."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeAlias

import pytest

from tests.harness.disk import list_files
from tests.harness.together import call_together
from worker.ground.errors import StoreObjectMissingError
from worker.media.layout import ListedObject, StoredObject
from worker.media.store import Store, open_store

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

OpenStore: TypeAlias = Callable[[], Store]


@pytest.fixture(params=["file:./archive", "memory:"])
def store(request, tmp_path) -> Store:
    return open_store(request.param, tmp_path)


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


def test_part_of_an_object_is_read_alone(store):
    size = len(BODY)
    publish(store)
    for start, stop in [(0, 7), (5, None), (9, 9), (size - 3, size * 2)]:
        assert b"".join(store.read(NAME, start, stop)) == BODY[start:stop]


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
    bodies = [str(one).encode() for one in range(4)]
    won = call_together(*[partial(store.create, SIDECAR, body, JSON) for body in bodies])

    assert sorted(won) == [False, False, False, True]
    assert read(store, SIDECAR) == bodies[won.index(True)]


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


def test_object_that_is_not_there_is_not_found_nor_read_nor_deleted(store):
    store.put("2026/03/02/else.json", b"{}", JSON)

    for name in (NAME, "2026/03", "2026/03/0", "2026/03/02/else.json/deeper"):
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


def test_unusual_names_are_kept_as_they_are(store):
    for name in UNUSUAL:
        stored = publish(store, name)
        assert read(store, name) == BODY
        assert store.find_name(stored.uri) == name
    assert list_names(store) == sorted(UNUSUAL)
    for name in UNUSUAL:
        assert store.delete(name)
        assert store.stat(name) is None


def test_name_that_could_escape_is_refused_by_everything(store):
    name = "../x"

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


def test_uri_of_another_place_has_no_name(store):
    uri = publish(store).uri
    base = uri.removesuffix(NAME)
    others = [f"x{uri}", "", "s3://other/x", base, f"{base}../x", f"{base}.partial/x.part"]
    assert [store.find_name(one) for one in others] == [None] * len(others)

"""Objects that no row names are listed, and those of a row, or on their way, are not."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text
from typing_extensions import override
from uuid_utils.compat import uuid7

from tests.harness.archives import (
    VIDEO,
    WatchedStore,
    archive_ended,
    describe_video,
    fail_with_quarantine,
    insert_ended,
    list_names,
    name_of,
    set_columns,
)
from tests.harness.jobs import insert_job
from worker.jobs.states import JobState
from worker.media.local_store import LocalStore
from worker.ops import verify
from worker.ops.verify import ORPHAN_AGE, Inventory, find_orphans

SECOND = timedelta(seconds=1)


@pytest.fixture
def store(tmp_path):
    return WatchedStore(LocalStore(Path(tmp_path) / "archive"))


def look(db, store, later=ORPHAN_AGE + SECOND):
    """The orphans' names, looked at so long after now; and the counts."""
    inventory = Inventory()
    now = datetime.now(UTC) + later
    found = find_orphans(inventory, db=db, store=store, clock=lambda: now)
    return sorted(one.name for one in found), inventory


def put(store, name):
    store.put(name, VIDEO, "video/mp4")
    return name


def test_archive_whose_objects_all_belong_to_rows_has_no_orphans(db, store):
    for _ in range(3):
        archive_ended(db, store)
    fail_with_quarantine(db, store)
    found, inventory = look(db, store)
    assert (found, inventory.objects, inventory.orphans, inventory.young) == ([], 14, 0, 0)


@pytest.mark.both_databases
def test_objects_of_no_row_are_listed_with_what_lies_beside_them(db, store):
    job = archive_ended(db, store)
    gone = archive_ended(db, store)
    with db.transaction() as connection:
        as_stored = gone.id.hex if db.engine.dialect.name == "sqlite" else gone.id
        connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": as_stored})
    strangers = [
        put(store, f"2026/01/01/{uuid4()}.mp4"),
        put(store, "notes.txt"),
        put(store, f"quarantine/{uuid4()}.mp4"),
        # beside its row's directory, in a place that the row does not name
        put(store, f"elsewhere/{job.id}.mp4"),
    ]
    stem = name_of(store, gone.archive_uri).removesuffix(".mp4")
    expected = [*strangers, *(stem + ending for ending in (".mp4", ".jpg", ".sheet.jpg", ".json"))]
    found, inventory = look(db, store)
    assert found == sorted(expected)
    assert inventory.orphans == 8
    beside = len(b"a poster" + b"a sheet" + describe_video(gone.archive_sha256 or ""))
    assert inventory.orphan_bytes == 5 * len(VIDEO) + beside


def test_object_on_its_way_is_no_orphan_and_a_young_one_is_not_judged(db, store):
    live = insert_job(db)
    put(store, f"2026/11/23/{live.id}.mp4")
    put(store, f"2026/11/23/{uuid7()}.mp4")
    found, inventory = look(db, store, later=ORPHAN_AGE - timedelta(minutes=1))
    assert (found, inventory.young) == ([], 2)
    found, _ = look(db, store)
    assert len(found) == 1
    assert str(live.id) not in found[0]


def test_age_of_an_object_is_the_stores_own_word(db, store):
    name = put(store, f"{uuid7()}.mp4")
    assert look(db, store, later=timedelta())[0] == []
    old = (datetime.now(UTC) - 2 * ORPHAN_AGE).timestamp()
    os.utime(store.inner.root / name, (old, old))
    assert look(db, store, later=timedelta())[0] == [name]


def test_files_left_by_a_failed_job_are_orphans_but_its_quarantine_is_not(db, store):
    job = fail_with_quarantine(db, store)
    left = put(store, f"2026/11/23/{job.id}.json")
    assert look(db, store)[0] == [left]


def test_tenants_that_look_like_ids_do_not_hide_anything(db, store):
    tenant = archive_ended(db, store)
    name = put(store, f"{tenant.id}/{uuid7()}.mp4")
    job_id = uuid7()
    stored = store.put(f"{uuid4()}/{job_id}.mp4", VIDEO, "video/mp4")
    insert_ended(db, id=job_id, archive_uri=stored.uri)
    assert look(db, store)[0] == [name]


def test_orphans_are_found_in_several_batches(db, store, monkeypatch):
    monkeypatch.setattr(verify, "LISTED_BATCH", 3)
    archive_ended(db, store)
    expected = sorted(put(store, f"{uuid7()}.mp4") for _ in range(4))
    assert look(db, store)[0] == expected


def test_object_that_goes_while_it_is_looked_at_is_not_listed(db, store):
    name = put(store, f"{uuid7()}.mp4")
    find = store.inner.stat

    class Vanishing(WatchedStore):
        @override
        def stat(self, name):
            self.inner.delete(name)
            return find(name)

    assert look(db, Vanishing(store.inner))[0] == []
    assert name not in list_names(store)


def test_pruned_row_that_still_names_its_files_keeps_them_from_being_orphans(db, store):
    job = archive_ended(db, store)
    set_columns(db, job.id, archive_pruned_at=job.archived_at)
    assert look(db, store)[0] == []
    assert job.state is JobState.ARCHIVED

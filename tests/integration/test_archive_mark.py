"""The mark by which an archive is told from another one of the same location."""

import shutil

import pytest

from tests.harness.together import call_together
from worker.ground.errors import ForeignArchiveError
from worker.jobs.archives import find_mark
from worker.media.layout import ARCHIVE_MARK
from worker.media.store import open_store
from worker.ops.verify import find_foreign_mark, require_own_archive


@pytest.fixture
def root(tmp_path):
    return tmp_path / "archive"


@pytest.fixture
def store(root, tmp_path):
    return open_store(f"file:{root}", tmp_path / "spool")


def read_known(db, store):
    with db.reading() as connection:
        return find_mark(connection, store.find_uri(ARCHIVE_MARK))


@pytest.mark.both_databases
def test_first_start_writes_mark_and_row_and_later_ones_find_them(db, store, root):
    call_together(*[lambda: require_own_archive(db=db, store=store)] * 2)
    mark = (root / ARCHIVE_MARK).read_text()
    assert (len(mark), read_known(db, store)) == (32, mark)
    require_own_archive(db=db, store=store)
    assert (root / ARCHIVE_MARK).read_text() == mark
    assert list(store.list()) == [], "it is no object of a job"


def test_archive_that_another_table_has_marked_keeps_its_mark(db, store, root):
    """A new table, or one restored from an old back-up."""
    root.mkdir()
    (root / ARCHIVE_MARK).write_text("abc")
    require_own_archive(db=db, store=store)
    assert read_known(db, store) == (root / ARCHIVE_MARK).read_text() == "abc"


@pytest.mark.parametrize("other", [None, "0" * 32], ids=["unmounted", "another host"])
def test_directory_of_another_host_is_refused_until_it_has_the_mark(db, store, root, other):
    require_own_archive(db=db, store=store)
    mark = read_known(db, store)
    shutil.rmtree(root)
    root.mkdir()
    if other is not None:
        (root / ARCHIVE_MARK).write_text(other)
    with pytest.raises(ForeignArchiveError, match=f"the job table knows {mark}"):
        require_own_archive(db=db, store=store)
    (root / ARCHIVE_MARK).write_text(f"{mark}\n")
    assert find_foreign_mark(db=db, store=store) is None


def test_object_store_is_marked_alike(db, tmp_path):
    store = open_store("memory:", tmp_path)
    require_own_archive(db=db, store=store)
    require_own_archive(db=db, store=store)
    assert find_foreign_mark(db=db, store=open_store("memory:", tmp_path)) is not None

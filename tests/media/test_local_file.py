"""Files of this machine: which are taken, and whether they still are what was taken."""

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from worker.ground.errors import MediaRefusedError
from worker.media.facts import FileKind
from worker.media.local_file import keep_stream, take_file

KIND = FileKind("video/mp4", "mp4")
NOBODY = 65_534


def accept(_path: Path) -> FileKind:
    return KIND


def take(path: Path, max_bytes: int = 1000) -> object:
    return take_file(path, accept, max_bytes)


def test_file_is_taken_with_its_size_and_hash(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content")
    file = take_file(path, accept, 7)
    assert (file.path, file.size, file.kind) == (path, 7, KIND)
    assert file.sha256 == hashlib.sha256(b"content").hexdigest()
    assert file.is_unchanged()


@pytest.mark.parametrize("change", ["longer", "touched", "replaced", "removed"])
def test_changed_file_is_noticed(tmp_path, change) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content")
    file = take_file(path, accept, 1000)
    match change:
        case "longer":
            path.write_bytes(b"content and more")
        case "touched":
            os.utime(path, ns=(1, 1))
        case "replaced":
            (tmp_path / "b").write_bytes(b"content")
            (tmp_path / "b").replace(path)
        case _:
            path.unlink()
    assert not file.is_unchanged()


def test_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(MediaRefusedError, match="cannot be read: No"):
        take(tmp_path / "none")


def test_directory_is_refused(tmp_path) -> None:
    with pytest.raises(MediaRefusedError, match="not a regular file"):
        take(tmp_path)


def test_path_through_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(MediaRefusedError, match="cannot be read: Not a directory"):
        take(tmp_path / "a" / "b")


def test_pipe_is_refused_without_waiting_for_its_other_end(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaRefusedError, match="not a regular file"):
        take(tmp_path / "pipe")


def test_empty_file_is_refused(tmp_path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(MediaRefusedError, match="0 bytes; MAX_UPLOAD_BYTES allows 1 to"):
        take(tmp_path / "a")


def test_name_that_no_file_can_have_is_refused(tmp_path) -> None:
    with pytest.raises(MediaRefusedError, match="cannot be read"):
        take(tmp_path / "a\0b")


def test_size_is_bounded(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"12345678")
    assert take(tmp_path / "a", 8)
    with pytest.raises(MediaRefusedError, match="8 bytes; MAX_UPLOAD_BYTES allows 1 to 7"):
        take(tmp_path / "a", 7)


def test_file_that_may_not_be_read_is_refused() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "a"
        path.write_bytes(b"x")
        path.chmod(0o000)
        with (
            _as_nobody(),
            pytest.raises(MediaRefusedError, match="cannot be read: Permission denied"),
        ):
            take(path)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may read everything; others need not change."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)


def test_open_file_is_kept_from_where_it_stands(tmp_path) -> None:
    source = io.BytesIO(b"head and content")
    source.seek(9)
    keep_stream(source, tmp_path / "kept", 7)
    assert (tmp_path / "kept").read_bytes() == b"content"


def test_open_file_is_bounded(tmp_path) -> None:
    with pytest.raises(MediaRefusedError, match="more than 3 bytes; MAX_UPLOAD_BYTES allows 3"):
        keep_stream(io.BytesIO(b"1234"), tmp_path / "kept", 3)


def test_open_file_of_text_is_refused(tmp_path) -> None:
    with pytest.raises(MediaRefusedError, match="binary mode"):
        keep_stream(io.StringIO("text"), tmp_path / "kept", 100)


def test_closed_file_is_refused(tmp_path) -> None:
    source = io.BytesIO(b"x")
    source.close()
    with pytest.raises(MediaRefusedError, match="cannot be read"):
        keep_stream(source, tmp_path / "kept", 100)

"""Which archive a URL opens, and which names objects may have."""

from pathlib import Path

import pytest

from worker.media.layout import check_name
from worker.media.local_store import LocalStore, local_path
from worker.media.store import open_store

SPOOL = Path("spool")


@pytest.mark.parametrize("url", ["file:./archive", "FILE:archive"])
def test_open_store_relative_url_is_below_the_working_directory(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)

    assert open_store(url, SPOOL) == LocalStore(tmp_path / "archive")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["file:", "file://"])
def test_open_store_absolute_url_gives_that_directory(tmp_path, prefix):
    stored = open_store(f"{prefix}{tmp_path}/a%20b", SPOOL).put("x.mp4", b"x", "video/mp4")

    assert local_path(stored.uri) == tmp_path / "a b" / "x.mp4"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://user:secret@host/x", "https: is not supported"),
        ("./archive", "a scheme is missing"),
        ("", "a scheme is missing"),
        ("file://", "has a path and nothing else"),
        ("file:/a%00b", "has a path and nothing else"),
        ("file://host/path", "has a path and nothing else"),
        ("file:/path?x=1", "has a path and nothing else"),
    ],
)
def test_open_store_other_url_raises_and_says_what_is_allowed(url, reason):
    with pytest.raises(ValueError, match=reason) as failure:
        open_store(url, SPOOL)

    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "/etc/x",
        "a//b",
        "a/",
        ".partial",
        "a/.x",
        "a\0b",
        "\ud800",
        "x" * 256,
        "ü" * 128,
        "/".join(["x" * 100] * 10),
    ],
)
def test_name_that_some_store_could_not_take_is_refused(name):
    with pytest.raises(ValueError, match=r"cannot name an object|surrogates not allowed"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "a/b.mp4", "a b/ü 🎬/%2E%2E", "a..b", "-", "x" * 255])
def test_name_that_every_store_can_take_is_given_back(name):
    assert check_name(name) == name

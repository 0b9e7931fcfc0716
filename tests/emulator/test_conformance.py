"""docs/conformance.md against the tests it names, and the clients they run."""

import ast
import importlib.metadata
import json
import re
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "conformance.md").read_text()
JAVASCRIPT = TESTS / "soak" / "javascript"
FILES = [
    TESTS / "emulator" / "test_official_client.py",
    TESTS / "emulator" / "test_official_uploads.py",
    TESTS / "soak" / "emulator" / "test_official_async.py",
    JAVASCRIPT / "test_official_js.py",
]
CLIENTS = {"test_sync_client": "Python", "test_async_client": "Python, async"}
CLIENTS["test_js_client"] = "JavaScript"
THEIRS, OURS = TEXT.split("\n## ")


def read_rows(text: str) -> list[list[str]]:
    """Of its one table, without the head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines][2:]


def list_tests() -> list[str]:
    """The tests in which one of fal's clients plays."""
    trees = [ast.parse(path.read_text()) for path in FILES]
    functions = [one for tree in trees for one in tree.body if isinstance(one, ast.FunctionDef)]
    return [one.name for one in functions if one.name.startswith(tuple(CLIENTS))]


def test_each_row_has_a_test_and_each_test_a_row():
    rows = read_rows(THEIRS)
    assert Counter(row[-1].strip("`") for row in rows) == Counter(list_tests())
    for client, call, said, test in rows:
        assert CLIENTS[re.sub(r"(_client)_.*", r"\1", test.strip("`"))] == client
        assert call
        assert said


def test_each_row_of_our_own_client_names_a_test():
    places = [row[1].strip("`").split("::") for row in read_rows(OURS)]
    assert [
        (path, name) for path, name in places if f"def {name}(" not in (TESTS / path).read_text()
    ] == []


def test_versions_told_are_those_that_ran():
    lock = json.loads((JAVASCRIPT / "js" / "package-lock.json").read_text())
    installed = lock["packages"]["node_modules/@fal-ai/client"]["version"]
    assert f"`fal-client` {importlib.metadata.version('fal-client')}" in TEXT
    assert f"`@fal-ai/client` {installed}" in TEXT.replace("\n", " ")

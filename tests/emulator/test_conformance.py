"""docs/conformance.md against the tests it names, and the clients they run."""

import ast
import importlib.metadata
import json
import re
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = (TESTS.parents[1] / "docs" / "conformance.md").read_text()
FILES = ["test_official_client.py", "test_official_uploads.py", "test_official_js.py"]
CLIENTS = {"test_sync_client": "Python", "test_async_client": "Python, async"}
CLIENTS["test_js_client"] = "JavaScript"
THEIRS, OURS = TEXT.split("\n## ")


def read_rows(text: str) -> list[list[str]]:
    """Of its one table, without the head."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][
        2:
    ]


ROWS = read_rows(THEIRS)


def list_tests() -> list[str]:
    """The tests in which one of fal's clients plays."""
    trees = [ast.parse((TESTS / name).read_text()) for name in FILES]
    functions = [one for tree in trees for one in tree.body if isinstance(one, ast.FunctionDef)]
    return [one.name for one in functions if one.name.startswith(tuple(CLIENTS))]


def test_each_row_has_a_test_and_each_test_a_row():
    told = [row[-1].strip("`") for row in ROWS]
    assert len(told) > 40
    assert Counter(told) == Counter(list_tests())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[-1].strip("`"))
def test_row_tells_the_client_and_what_it_does(row):
    client, call, said, test = row
    assert CLIENTS[re.sub(r"(_client)_.*", r"\1", test.strip("`"))] == client
    assert call
    assert len(said) > 5


@pytest.mark.parametrize("row", read_rows(OURS), ids=lambda row: row[0])
def test_row_of_our_own_client_names_a_test(row):
    scenario, place = row
    path, name = place.strip("`").split("::")
    assert scenario
    assert f"def {name}(" in (TESTS.parent / path).read_text()


def test_versions_told_are_those_that_ran():
    lock = json.loads((TESTS / "js" / "package-lock.json").read_text())
    installed = lock["packages"]["node_modules/@fal-ai/client"]["version"]
    assert f"`fal-client` {importlib.metadata.version('fal-client')}" in TEXT
    assert f"`@fal-ai/client` {installed}" in TEXT.replace("\n", " ")

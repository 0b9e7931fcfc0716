"""Every test runs somewhere: in `make test`, or in exactly one part of `make soak`."""

import tomllib
from pathlib import Path

import pytest

from tests.soak.__main__ import main, render_table, run_part
from tests.soak.parts import PARTS, Command, Part

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
SOAK = TESTS / "soak"


def list_tests(below: Path) -> set[Path]:
    return set(below.rglob("test_*.py"))


def test_each_test_of_the_soak_is_in_exactly_one_part() -> None:
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    tested = [path for part in PARTS for path in list_tests(part.folder)]
    assert sorted(tested) == sorted(list_tests(SOAK))


def test_each_part_has_something_to_run() -> None:
    assert [part.name for part in PARTS if not part.commands] == []
    named = [word for part in PARTS for one in part.commands for word in one.words if "/" in word]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_each_other_test_is_where_make_test_looks() -> None:
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())
    places = [
        path
        for pattern in read["tool"]["pytest"]["ini_options"]["testpaths"]
        for path in ROOT.glob(pattern)
    ]
    found = {test for path in places for test in (list_tests(path) if path.is_dir() else {path})}
    assert found == list_tests(TESTS) - list_tests(SOAK)


@pytest.mark.parametrize(("names", "code"), [(["?"], 0), (["no-such-part"], 2)])
def test_parts_are_listed_where_no_part_has_the_name(capsys, names, code) -> None:
    assert main(names) == code
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        part.name for part in PARTS
    ]


@pytest.mark.slow  # two runs of pytest
def test_part_counts_what_passed_failed_and_was_not_run(tmp_path, capsys) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 'a wrong' == 'word'\n"
        "def test_left_out(): pytest.skip('NOT RUN: no such server')\n"
    )
    words = ("pytest", str(tmp_path / "test_some.py"), "-n", "0", "--rootdir", str(tmp_path))
    part = Part("some", "shows something", [Command(words), Command(("py_compile", "none.py"))])

    result = run_part(part, [], tmp_path)

    assert (result.passed, result.failed) == (1, 2)
    assert dict(result.skipped) == {"NOT RUN: no such server": 1}
    assert "a wrong" in capsys.readouterr().out
    *_, row = render_table([result]).splitlines()
    assert row.split()[:5] == ["some", "shows", "something", "1", "2"]

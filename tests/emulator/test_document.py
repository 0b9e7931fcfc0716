"""docs/emulator.md against the emulator: options, faults, hooks."""

import re
from collections import Counter
from pathlib import Path

from emulator import fault_table, hooks
from emulator.__main__ import build_parser

TEXT = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()
WORDS = set(re.findall(r"`([a-z_]+)`", TEXT))


def test_document_lists_each_option_once():
    told = re.findall(r"^\| `(--[a-z-]+)", TEXT, re.MULTILINE)
    actions = build_parser()._actions
    known = [one.option_strings[-1] for one in actions if one.dest not in ("help", "allow_remote")]
    assert Counter(told) == Counter(known)


def test_document_tells_defaults_of_options():
    for name in ("result_seconds", "large_result_seconds", "keep_alive_seconds"):
        option = "--" + name.replace("_", "-")
        [told] = re.findall(rf"^\| `{option}` \| (\S+) \|", TEXT, re.MULTILINE)
        assert build_parser().get_default(name) == told


def test_document_names_each_point_kind_and_option():
    kinds = {kind for kinds in fault_table.POINTS.values() for kind in kinds}
    options = {
        option for kinds in fault_table.POINTS.values() for one in kinds.values() for option in one
    }
    named = set(re.findall(r'[`"]([a-z_]+)[`"]', TEXT))
    assert kinds | set(fault_table.POINTS) | set(hooks.POINTS) <= WORDS
    assert options <= named

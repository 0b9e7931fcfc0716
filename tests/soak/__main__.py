"""`python -m tests.soak [NAME...] [-- ARGUMENT...]`: each part of it in turn, and one table."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from xml.etree import ElementTree as ET

from tests.soak.parts import PARTS, Command, Part
from worker.cli import termination_as_interrupt

ROOT = Path(__file__).parents[2]
HEADINGS = ("part", "shows", "passed", "failed", "not run", "seconds")
LAST_LINES = 30
MOST_SECONDS = 1200
"""For a test that does not say itself how long it may take."""


@dataclass
class Result:
    """What became of a part; `skipped` counts what was not run by its reason."""

    part: Part
    passed: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0

    def count_tests(self, report: Path) -> None:
        """Add what pytest has written."""
        for case in ET.parse(report).iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                self.failed += 1
            elif (skipped := case.find("skipped")) is not None:
                self.skipped[skipped.get("message", "")] += 1
            else:
                self.passed += 1

    @property
    def outcome(self) -> str:
        if self.failed:
            return "FAILED"
        return "passed" if self.passed else "not run"

    def list_cells(self) -> list[str]:
        left_out = "; ".join(f"{count}: {reason}" for reason, count in self.skipped.items())
        numbers = (str(self.passed), str(self.failed))
        return [self.part.name, self.part.shows, *numbers, left_out, f"{self.seconds:.0f}"]


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 if anything failed, 2 for a name that no part has."""
    names, extra = split_arguments(arguments)
    known = {part.name: part for part in PARTS}
    if not set(names) <= set(known):
        print(describe_parts())
        return 0 if names == ["?"] else 2
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    parts = [known[name] for name in names] or PARTS
    results = [run_part(part, extra, directory) for part in parts]
    print(f"\n{render_table(results)}")
    if any(result.failed for result in results):
        print(f"\nwhat the parts have printed: {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of parts, and what is passed on to their commands: that stands behind `--`."""
    given = [*arguments, "--"]
    middle = given.index("--")
    return given[:middle], given[middle + 1 : -1]


def describe_parts() -> str:
    width = max(len(part.name) for part in PARTS)
    return "\n".join(f"{part.name.ljust(width)}  {part.shows}" for part in PARTS)


def run_part(part: Part, extra: Sequence[str], directory: Path) -> Result:
    print(f"{part.name}: {part.shows} ...", flush=True)
    log, began, result = directory / f"{part.name}.log", monotonic(), Result(part)
    for number, command in enumerate(part.commands):
        run_command(command, extra, log, directory / f"{part.name}-{number}.xml", result)
    result.seconds = monotonic() - began
    print(f"{part.name}: {result.outcome}, {result.seconds:.0f} s", flush=True)
    if result.failed:
        print(f"the last lines of {log}:", flush=True)
        print(*log.read_text(errors="replace").splitlines()[-LAST_LINES:], sep="\n", flush=True)
    return result


def run_command(
    command: Command, extra: Sequence[str], log: Path, report: Path, result: Result
) -> None:
    """A command that is none of pytest's counts as one test."""
    words = [*command.words, *extra]
    if command.is_pytest:
        # A part takes as long as it takes: the time limit is for `make test`.
        words += ["-p", "no:time-limit", f"--timeout={MOST_SECONDS}", f"--junitxml={report}"]
    failed_before = result.failed
    code = run_logged([sys.executable, "-m", *words], command, log)
    if report.exists():
        result.count_tests(report)
    elif code == 0:
        result.passed += 1
    if code != 0 and result.failed == failed_before:
        result.failed += 1


def run_logged(words: Sequence[str], command: Command, log: Path) -> int:
    """The exit code. Whoever interrupts it waits until it has ended what it has started."""
    with log.open("ab") as output:
        output.write(f"$ {' '.join(words)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **command.settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise


def render_table(results: Sequence[Result]) -> str:
    rows = [list(HEADINGS), *(result.list_cells() for result in results)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADINGS))]
    rule = ["-" * width for width in widths]
    return "\n".join(render_row(row, widths) for row in [rows[0], rule, *rows[1:]])


def render_row(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def list_names(arguments: Sequence[str]) -> Iterator[str]:
    """`make` hands over several names as one argument."""
    for argument in arguments:
        yield from argument.split()


if __name__ == "__main__":
    # Whoever ends it leaves no process behind. A shell that starts it in the background has it, and
    # all it starts, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with termination_as_interrupt():
        sys.exit(main(list(list_names(sys.argv[1:]))))

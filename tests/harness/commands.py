"""`extend-video` run within the test's process: what it printed, and its exit code."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.harness.logs import preserved_logging
from worker import cli
from worker.cli import archive, enqueue, jobs, limits, run, system
from worker.runtime import Runtime, build_runtime


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1, "one line for programs"
        return json.loads(self.out)


Run = Callable[..., Ended]


def build_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[], Runtime] = build_runtime,
) -> Run:
    """A function that runs the command with the arguments that it is given."""
    opened: list[Runtime] = []

    def build_and_keep() -> Runtime:
        opened.append(build())
        return opened[-1]

    patch_runtime(monkeypatch, build_and_keep)

    def run_command(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["extend-video", *arguments])
        capsys.readouterr()  # what the test itself has logged
        with preserved_logging(), pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        if build is build_runtime:
            while opened:
                close_runtime(opened.pop())
        code = caught.value.code
        assert isinstance(code, int | None)
        return Ended(code or 0, captured.out, captured.err)

    return run_command


def patch_runtime(monkeypatch: pytest.MonkeyPatch, build: Callable[[], Runtime]) -> None:
    """Let every command work with what `build` returns."""
    for module in (archive, enqueue, jobs, limits, run, system):
        monkeypatch.setattr(module, "build_runtime", build)


def close_runtime(runtime: Runtime) -> None:
    """The end of a process does this by itself."""
    for name in ("db", "dispatcher", "platform"):
        if name in vars(runtime):
            vars(runtime)[name].close()

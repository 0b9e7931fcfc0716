"""How heavy the code is: `python tests/house.py`, and `--at REVISION` for an earlier one.

Code lines are lines that hold a token of code: no blanks, comments or docstrings. The path of a job
is walked by its calls, from the tasks `enqueue`, `submit` and `archive` and from the receiver: each
function is entered once, in the order of the text. A call of a method is followed where only one
class has a method of that name. A turn back is a call into a file of the same package that the path
has entered before the calling one.
"""

import argparse
import ast
import io
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("worker", "webhook")
ENTRIES = ("worker/tasks.py", ("enqueue", "submit", "archive")), ("webhook", ("receive",))
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
NO_CODE = LAYOUT | {tokenize.COMMENT}
# Private words for which there is a standard term.
WORDS = (
    "wish|wishes|wished|rung|told of|is told|whoever|whatever|terms|tally|tallies|stays|verdict"
    "|ruling|recipe|rival|rivals|patience|crew|proven dead|turned away|turned down|looks? at"
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Function:
    """A function or method, where it is and what it calls by name, in order."""

    file: str
    name: str
    lines: int
    calls: tuple[tuple[str | None, str], ...]


@dataclass
class House:
    """What is counted of one tree."""

    files: dict[str, int] = field(default_factory=dict)
    functions: list[Function] = field(default_factory=list)
    imports: dict[str, dict[str, str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def read_house(root: Path) -> House:
    house = House()
    for path in sorted(file for top in TOPS for file in (root / top).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        house.texts[name] = path.read_text()
        tree = ast.parse(house.texts[name])
        code = list_code_lines(house.texts[name], tree)
        if code:
            house.files[name] = len(code)
        house.imports[name] = dict(list_imports(tree, root))
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                within = [line for line in code if node.lineno <= line <= (node.end_lineno or 0)]
                house.functions.append(
                    Function(name, node.name, len(within), tuple(list_calls(node)))
                )
    return house


def list_code_lines(text: str, tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def list_imports(tree: ast.Module, root: Path) -> Iterator[tuple[str, str]]:
    """Each name that a module imports from our code, and the file that it comes from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in TOPS:
            package = (node.module or "").replace(".", "/")
            for alias in node.names:
                for candidate in (
                    f"{package}/{alias.name}.py",
                    f"{package}.py",
                    f"{package}/__init__.py",
                ):
                    if (root / candidate).is_file():
                        yield alias.asname or alias.name, candidate
                        break


def list_calls(function: ast.AST) -> Iterator[tuple[str | None, str]]:
    """(module or object, name) of each call, in the order of the text."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(call.func, ast.Name):
            yield None, call.func.id
        elif isinstance(call.func, ast.Attribute):
            base = call.func.value
            yield (base.id if isinstance(base, ast.Name) else ""), call.func.attr


def walk_path(house: House) -> tuple[list[str], list[tuple[str, str]]]:
    """The files that a job's path enters, in order, and its turns back as (from, to)."""
    by_file = {(one.file, one.name): one for one in house.functions}
    by_name: dict[str, list[Function]] = {}
    for one in house.functions:
        by_name.setdefault(one.name, []).append(one)
    calls: dict[str, set[str]] = {}  # in the order in which files are entered
    seen: set[Function] = set()

    def find(caller: Function, base: str | None, name: str) -> Function | None:
        names = house.imports[caller.file]
        if base is None:
            return by_file.get((names.get(name, caller.file), name))
        if base in names:
            return by_file.get((names[base], name))
        same = by_name.get(name, [])
        return same[0] if len(same) == 1 else None

    waiting = [
        one
        for where, names in reversed(ENTRIES)
        for name in reversed(names)
        for one in by_name.get(name, [])
        if one.file == where or one.file.startswith(f"{where}/")
    ]
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        reached = calls.setdefault(function.file, set())
        called = [find(function, base, name) for base, name in function.calls]
        reached.update(one.file for one in called if one and one.file != function.file)
        waiting += [one for one in reversed(called) if one]
    order = list(calls)
    turns = [
        (start, end)
        for start in order
        for end in sorted(calls[start], key=order.index)
        if order.index(end) < order.index(start) and Path(start).parent == Path(end).parent
    ]
    return order, turns


def describe_house(root: Path) -> dict[str, str]:
    house = read_house(root)
    lengths = sorted(one.lines for one in house.functions)
    order, turns = walk_path(house)
    stages = [file for file in order if file.startswith("worker/stages/")]
    back = [start for start, _ in turns if start in stages]
    entries = [
        path.name
        for path in (root / "worker").iterdir()
        if path.name not in {"__init__.py", "__pycache__", "py.typed"}
    ]
    pattern = re.compile(rf"\b(?:{WORDS})\b", re.IGNORECASE)
    words = sum(len(pattern.findall(text)) for text in house.texts.values())
    return {
        "code lines": f"{sum(house.files.values()):,}",
        "modules with code": str(len(house.files)),
        "functions": f"{len(lengths):,}",
        "lines of a function, median": f"{statistics.median(lengths):g}",
        "lines of a function, 90th percentile": str(lengths[len(lengths) * 9 // 10]),
        "entries of worker/": str(len(entries)),
        "files on a job's path": f"{len(order)}, {len(stages)} of them stages",
        "turns back on it": f"{len(turns)}, {len(back)} between stages",
        "private words": str(words),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--at", metavar="REVISION", help="count that revision, too")
    revision: str | None = parser.parse_args().at
    counted = {"now": describe_house(ROOT)}
    if revision:
        command = ["git", "-C", str(ROOT), "archive", revision, *TOPS]
        packed = subprocess.run(command, capture_output=True, check=True).stdout
        with tempfile.TemporaryDirectory() as there:
            with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
                tar.extractall(there, filter="data")
            counted = {revision: describe_house(Path(there)), **counted}
    width = max(len(name) for name in counted["now"])
    sys.stdout.write(" " * width + "".join(f"  {name:>24}" for name in counted) + "\n")
    for name in counted["now"]:
        row = "".join(f"  {house[name]:>24}" for house in counted.values())
        sys.stdout.write(f"{name:{width}}{row}\n")


if __name__ == "__main__":
    main()

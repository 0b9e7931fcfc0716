"""Runs questions, one after the other: what `make bench` and each file alone do."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.figures import Figure, Plan, Question
from benchmarks.harness.report import (
    PICTURES,
    REPOSITORY,
    build_record,
    publish,
    render_table,
    write_record,
)

RESULTS = REPOSITORY / "build" / "bench"
ROUNDS = 5


def run_questions(questions: Sequence[Question], words: Sequence[str] | None = None) -> int:
    """Ask all, or those that are named. 1 if a goal is not met, 2 for an unknown name."""
    parser = build_parser(questions)
    given = parser.parse_args(words)
    known = {question.name: question for question in questions}
    if unknown := set(given.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [known[name] for name in given.names] or list(questions)
    met = [ask(question, given) for question in chosen]
    return 0 if all(met) else 1


def build_parser(questions: Sequence[Question]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(f"{question.name:<10} {question.text}" for question in questions),
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="only these; all without a name")
    add("--rounds", type=int, default=ROUNDS, help="of each, alternating")
    add("--short", action="store_true", help="one round of small sizes, to see that it works")
    add("--results", type=Path, default=RESULTS, help="where the JSON goes")
    add("--disk", type=Path, help="where the databases and files of the runs go")
    add("--publish", action="store_true", help="renew tables and plots of docs/performance.md")
    return parser


def ask(question: Question, given: argparse.Namespace) -> bool:
    """Measure, tell, and write; whether every goal is met."""
    print(f"\n## {question.name}: {question.text}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"bench-{question.name}-", dir=given.disk) as directory:
        plan = Plan(1 if given.short else given.rounds, given.short, Path(directory))
        figures = question.measure(plan)
    print(render_table(figures))
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    command = name_command(question, given)
    write_record(build_record(question, figures, command), given.results)
    if given.publish:
        publish_all(question, figures, command)
    return all(figure.is_met is not False for figure in figures)


def publish_all(question: Question, figures: Sequence[Figure], command: str) -> None:
    from benchmarks.harness.pictures import draw_ratios

    publish(question, figures, command)
    draw_ratios(question, figures, PICTURES)


def name_command(question: Question, given: argparse.Namespace) -> str:
    sizes = [f"{name}={os.environ[name]}" for name in question.sizes if name in os.environ]
    words = [*sizes, "make", "bench", f"NAME={question.name}"]
    if given.rounds != ROUNDS:
        words.append(f"ARGS='--rounds {given.rounds}'")
    return " ".join(words if not given.short else [*words, "ARGS=--short"])


def run_alone(question: Question) -> int:
    """The `main` of a question's own file."""
    return run_questions([question], [question.name, *sys.argv[1:]])

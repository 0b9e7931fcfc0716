"""How figures are told: as a table on the terminal, as JSON, as a picture, and in the docs."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness.figures import Figure, Question
from tests.harness.document import describe_run, put_between

HEADINGS = (
    "figure",
    "ours",
    "reference",
    "ours / reference",
    "goal",
    "met",
)
REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "performance.md"
PICTURES = REPOSITORY / "docs" / "images"


def render_table(figures: Sequence[Figure]) -> str:
    """Markdown; median, and the least and the most of the rounds in brackets."""
    rows = [HEADINGS, *(_list_cells(figure) for figure in figures)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADINGS))]
    rule = ["-" * width for width in widths]
    return "\n".join(_render_row(row, widths) for row in (rows[0], rule, *rows[1:]))


def build_record(question: Question, figures: Sequence[Figure], command: str) -> dict[str, object]:
    """What is written as JSON: every round, so that others can judge the spread."""
    return {
        "question": question.name,
        "text": question.text,
        "run": describe_run(command),
        "figures": [
            {
                **asdict(figure),
                "goal": None if figure.goal is None else str(figure.goal),
                "judged": figure.judged,
                "is_met": figure.is_met,
            }
            for figure in figures
        ],
    }


def write_record(record: dict[str, object], directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{record['question']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def publish(
    question: Question, figures: Sequence[Figure], command: str, document: Path = DOCUMENT
) -> None:
    """Put the table into the page, between the marks with the question's name."""
    table = f"{describe_run(command)}\n\n{render_table(figures)}"
    put_between(document, f"{question.name} table", table)


def tell_value(value: float) -> str:
    """Three figures, without an exponent."""
    if value >= 100:  # noqa: PLR2004 - figures enough before the point
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _list_cells(figure: Figure) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: ""}[figure.is_met]
    name = f"{figure.name}, {figure.unit}" if figure.unit else figure.name
    reference = ""
    if figure.reference:
        reference = f"{_tell_spread(figure.reference)} {figure.reference_name}".strip()
    ratio = _tell_spread(figure.ratios) if figure.ratios else ""
    goal = "" if figure.goal is None else str(figure.goal)
    spread = _tell_spread(figure.ours) if figure.ours else ""
    ours = f"{spread} {figure.remark}".strip()
    return (name, ours, reference, ratio, goal, met)


def _tell_spread(values: Sequence[float]) -> str:
    median = tell_value(statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} ({tell_value(min(values))} to {tell_value(max(values))})"


def _render_row(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "| " + " | ".join(cells) + " |"

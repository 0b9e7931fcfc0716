"""One table for all experiments."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.document import describe_run, put_between

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"

HEADINGS = (
    "experiment",
    "database",
    "jobs",
    "kills",
    "lost",
    "paid twice",
    "seconds to drain",
    "remarks",
)


@dataclass(frozen=True)
class Finding:
    """A row of the table; `problems` is what else was wrong, `details` what else was seen."""

    experiment: str
    database: str
    jobs: int
    kills: int
    lost: int
    paid_twice: int
    drain_seconds: float
    remarks: str = ""
    problems: Sequence[str] = ()
    details: Sequence[str] = ()

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.paid_twice or self.problems)

    def list_cells(self) -> list[str]:
        remarks = [self.remarks] if self.remarks else []
        if self.problems:
            remarks.append(f"{len(self.problems)} problems")
        numbers = (self.jobs, self.kills, self.lost, self.paid_twice)
        return [
            self.experiment,
            self.database,
            *(f"{number:,}" for number in numbers),
            f"{self.drain_seconds:.1f}",
            "; ".join(remarks),
        ]


def render_table(findings: Sequence[Finding]) -> str:
    """Markdown, with columns as wide as they need to be."""
    rows = [list(HEADINGS), *(finding.list_cells() for finding in findings)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADINGS))]
    lines = [_render_row(row, widths) for row in rows]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _render_row(row: Sequence[str], widths: Sequence[int]) -> str:
    return (
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
    )


def write_table(findings: Sequence[Finding], command: str, document: Path = DOCUMENT) -> None:
    """Put the table between the marks of the document, with what made it."""
    put_between(document, "chaos table", f"{describe_run(command)}\n\n{render_table(findings)}")

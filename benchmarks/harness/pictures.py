"""A picture of a question's figures: each round a dot, ours as a multiple of the reference."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.harness.figures import Figure, Question

mpl.use("agg")

INCHES_A_FIGURE = 0.62
OURS, GOAL = "#1f6feb", "#b35900"


def draw_ratios(question: Question, figures: Sequence[Figure], directory: Path) -> Path | None:
    """Write `performance-NAME.png`; None if nothing in it was compared."""
    compared = [figure for figure in figures if figure.ratios]
    if not compared:
        return None
    height = 1.3 + INCHES_A_FIGURE * len(compared)
    canvas, axes = plt.subplots(figsize=(8, height), layout="constrained")
    for place, figure in enumerate(reversed(compared)):
        axes.plot(figure.ratios, [place] * len(figure.ratios), "o", color=OURS, alpha=0.45)
        axes.plot([figure.judged], [place], "|", color=OURS, markersize=22, markeredgewidth=3)
        if figure.goal is not None:
            axes.plot([figure.goal.bound], [place], "D", color=GOAL, markersize=7)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_yticks(range(len(compared)), [_label(figure) for figure in reversed(compared)])
    axes.set_ylim(-0.6, len(compared) - 0.4)
    axes.set_xlim(left=0)
    axes.set_xlabel("ours / reference; bar: median, diamond: goal")
    axes.set_title(question.text, fontsize=10, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"performance-{question.name}.png"
    canvas.savefig(path, dpi=120)
    plt.close(canvas)
    return path


def _label(figure: Figure) -> str:
    beside = figure.reference_name
    return f"{figure.name}\nbeside {beside}" if beside else figure.name

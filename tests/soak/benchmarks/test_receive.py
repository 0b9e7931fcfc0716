"""The benchmarks of the receiver work, and nothing that was answered with 200 is lost in them."""

from benchmarks.burst import BURST
from benchmarks.handover import HANDOVER
from benchmarks.harness.figures import Figure, Plan, Question
from benchmarks.receive import RECEIVE


def ask(question: Question, directory) -> dict[str, Figure]:
    figures = question.measure(Plan(rounds=1, is_short=True, directory=directory))
    assert all(min(figure.ours) >= 0 for figure in figures)
    return {figure.name: figure for figure in figures}


def test_receive_in_short_compares_rates_and_latencies(tmp_path) -> None:
    figures = ask(RECEIVE, tmp_path)

    assert [figure.name for figure in figures.values() if figure.goal is not None] == [
        "as fast as they are answered",
        "p99 at 200/s",
    ]
    assert figures["as fast as they are answered"].ratios


def test_burst_in_short_loses_and_refuses_nothing(tmp_path) -> None:
    figures = ask(BURST, tmp_path)

    assert (figures["lost"].ours, figures["refused"].ours) == ((0,), (0,))


def test_handover_in_short_times_each_archive(tmp_path) -> None:
    figures = ask(HANDOVER, tmp_path)

    assert all(figure.ratios and min(figure.ours) > 0 for figure in figures.values())

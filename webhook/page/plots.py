"""Small plots as numbers: where bars and lines stand in an SVG of fixed size. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from webhook.page.board import Hour
from worker.ground.clock import format_duration

WIDTH, HEIGHT, TOP = 480.0, 96.0, 6.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One hour's column; failures stand on top of what was archived."""

    x: float
    width: float
    archived_y: float
    archived_height: float
    failed_y: float
    failed_height: float
    title: str


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """A curve, broken where there is no value."""

    name: str
    paths: tuple[str, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """What a plot shows, and in words for who cannot see it."""

    top: str
    summary: str
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()


def plot_throughput(hours: Sequence[Hour]) -> Plot:
    most = max((hour.measure.archived + hour.measure.failed for hour in hours), default=0)
    step = WIDTH / max(len(hours), 1)
    archived = sum(hour.measure.archived for hour in hours)
    failed = sum(hour.measure.failed for hour in hours)
    return Plot(
        top=f"{most:,}",
        summary=f"{archived:,} archived and {failed:,} failed in {len(hours)} hours",
        bars=tuple(
            _stand(hour, place * step, step, (HEIGHT - TOP) / max(most, 1))
            for place, hour in enumerate(hours)
        ),
    )


def plot_latency(hours: Sequence[Hour]) -> Plot:
    """Median, and what nine in ten stay below."""
    values = [value for hour in hours for value in (hour.median, hour.slow) if value is not None]
    most = max(values, default=0.0)
    newest = next((hour for hour in reversed(hours) if hour.median is not None), None)
    told = "nothing archived" if newest is None else _tell(newest)
    curves = {"median": [hour.median for hour in hours], "slow": [hour.slow for hour in hours]}
    return Plot(
        top=_format_seconds(most) if values else "",
        summary=told,
        lines=tuple(_draw(name, hours, line, most) for name, line in curves.items()),
    )


def _stand(hour: Hour, x: float, step: float, scale: float) -> Bar:
    archived, failed = hour.measure.archived * scale, hour.measure.failed * scale
    counts = f"{hour.measure.archived:,} archived, {hour.measure.failed:,} failed"
    return Bar(
        x=round(x + step * 0.12, 2),
        width=round(step * 0.76, 2),
        archived_y=round(HEIGHT - archived, 2),
        archived_height=round(archived, 2),
        failed_y=round(HEIGHT - archived - failed, 2),
        failed_height=round(failed, 2),
        title=f"{hour.start:%H}:00 UTC: {counts}",
    )


def _draw(name: str, hours: Sequence[Hour], values: Sequence[float | None], most: float) -> Line:
    step = WIDTH / max(len(hours), 1)
    points: list[Point] = []
    runs: list[list[Point]] = [[]]
    for place, (hour, value) in enumerate(zip(hours, values, strict=True)):
        if value is None:
            runs.append([])
            continue
        y = HEIGHT - (HEIGHT - TOP) * value / (most or 1)
        title = f"{hour.start:%H}:00 UTC: {_tell(hour)}"
        points.append(Point(round((place + 0.5) * step, 2), round(y, 2), title))
        runs[-1].append(points[-1])
    return Line(name, tuple(_join(run) for run in runs if len(run) > 1), tuple(points))


def _join(points: Iterable[Point]) -> str:
    return "M" + " L".join(f"{point.x} {point.y}" for point in points)


def _tell(hour: Hour) -> str:
    median, slow = (_format_seconds(one or 0) for one in (hour.median, hour.slow))
    return f"median {median}, nine in ten within {slow}"


def _format_seconds(seconds: float) -> str:
    return format_duration(timedelta(seconds=seconds))

"""Line charts as SVG text, in the colours of the page that they stand in."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 220  # units of the view box
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30  # margins


@dataclass(frozen=True)
class Line:
    """A curve: its name, and its points (x, y), all finite."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    level: float | None = None,
    level_name: str = "",
    x_range: tuple[float, float] | None = None,
) -> str:
    """An SVG of the lines over a common scale, with a dashed horizontal line at ``level``; "" without any point.

    Colours come from the classes "line0", "line1", ... and "level" of the page's style sheet.

    Args:
        lines: the curves.
        x_label: what stands below the axis.
        level: a value to compare with, such as the loss at chance level.
        level_name: what it is called.
        x_range: of the horizontal axis, so that several charts align; None: that of the points.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    x_range = _widened(*(x_range or (min(x for x, _ in points), max(x for x, _ in points))))
    heights = [y for _, y in points] + ([] if level is None else [level])
    y_range = _widened(min(heights), max(heights), margin=0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        share_x = (x - x_range[0]) / (x_range[1] - x_range[0])
        share_y = (y - y_range[0]) / (y_range[1] - y_range[0])
        return LEFT + share_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - share_y * (HEIGHT - TOP - BOTTOM)

    described = html.escape(", ".join(line.name for line in lines))
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described} over {html.escape(x_label)}">']
    for value in _ticks(*y_range):
        _, y = place(x_range[0], value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(*x_range, whole=True):
        x, _ = place(value, y_range[0])
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{value:g}</text>')
    parts.append(
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{html.escape(x_label)}</text>'
    )
    if level is not None:
        _, y = place(x_range[0], level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        below = y < TOP + 16
        height = y + 13 if below else y - 5
        parts.append(
            f'<text class="levelname" x="{WIDTH - RIGHT}" y="{height:.1f}" text-anchor="end">{html.escape(level_name)}</text>'
        )
    for number, line in enumerate(lines):
        drawn = [place(x, y) for x, y in line.points]
        if len(drawn) == 1:
            parts.append(f'<circle class="line{number % 6}" cx="{drawn[0][0]:.1f}" cy="{drawn[0][1]:.1f}" r="3"/>')
        elif drawn:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
            parts.append(f'<polyline class="line{number % 6}" points="{path}"/>')
    return "".join([*parts, "</svg>"])


def _widened(low: float, high: float, margin: float = 0.0) -> tuple[float, float]:
    """The range with a margin on both sides; of one value, a range around it."""
    room = (high - low) * margin if high > low else abs(low) * 0.1 or 0.5
    return low - room, high + room


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Three to six round numbers within the range."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(step * factor for factor in (0.5, 1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]

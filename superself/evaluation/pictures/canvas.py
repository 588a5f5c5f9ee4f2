"""Figures without a display: where they are made, how they look, and how they become files.

Plots with axes are made with matplotlib; sheets of images with ``superself.basics.drawing``. Both use the same font and colours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from superself.basics.drawing import COLOURS, INK, MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
POINT = 72 / DPI  # points in a pixel


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of ``width`` x ``height`` inches; matplotlib is imported at the first one, and no display is opened."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white", **options)


def style_axes(axes: Axes, title: str = "", xlabel: str = "") -> None:
    """The look of all plots: the title at the left, no box, light lines at the ticks, the package's colours."""
    axes.set_prop_cycle(color=COLOURS)
    axes.set_title(title, loc="left", fontsize=17 * POINT, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=15 * POINT, color=MUTED)
    axes.tick_params(labelsize=14 * POINT, colors=MUTED, length=0)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(RULE)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG, or what the ending of ``path`` says; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path

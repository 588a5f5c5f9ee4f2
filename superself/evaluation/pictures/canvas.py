"""Figures without a display: where they are made, how they look, and how they become files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of ``width`` x ``height`` inches; matplotlib is imported at the first one, and no display is opened."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", **options)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG, or what the ending of ``path`` says; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path

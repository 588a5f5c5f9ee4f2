"""How the loss and the other numbers of a run, or of several, developed."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superself.basics.drawing import COLOURS, INK, MUTED
from superself.evaluation.pictures.canvas import POINT, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Run = str | Path | Sequence[Row]

# Drawn in this order if a record has them; then everything else that is not in LEFT_OUT, until there are MOST panels.
FIRST = (
    "knn",
    "linear",
    "svm",
    "centroid",
    "ridge",
    "rotation",
    "held_out_loss",
    "top1",
    "retrieved",
    "rankme",
    "feature_rank",
)
LEFT_OUT = (
    "epoch",
    "step",
    "loss",
    "chance_loss",
    "images_per_second",
    "waiting_share",
    "seconds",
    "seconds_left",
    "lr",
)
MOST = 6  # panels
NAMES = {
    "knn": "kNN accuracy",
    "linear": "linear accuracy",
    "top1": "top-1 of the pretext task",
    "rankme": "RankMe of the features",
    "feature_rank": "effective rank of the features",
    "feature_std": "std of the features",
    "feature_cosine": "mean cosine of features",
    "positive_cosine": "cosine of positives",
    "held_out_loss": "loss on held-out images",
}


def show_curves(
    name_or_rows: Run | Mapping[str, Run] | Sequence[str | Path], path: str | Path, metrics: Any = None
) -> Path:
    """Writes a PNG with the loss and the metrics of a run by epoch; of several runs in the same panels.

    The loss is shown with its chance level; where several runs all have one, divided by it, so that 1 is chance and losses of
    different methods can be compared. A row of epoch 0 holds what was measured before training and has no loss.

    Args:
        name_or_rows: the name of a run, such as "store/base", whose "store/base.csv" is read; the rows of its record; a list
            of names; or a dictionary from captions to names or rows.
        path: of the PNG; missing folders are created.
        metrics: names of columns of the record, each to get a panel; None chooses up to 5.
    Raises:
        FileNotFoundError: if a run has no record.
        ValueError: if there are no rows, or no run has one of ``metrics``.
    """
    runs = {caption: _rows_of(run) for caption, run in _captioned(name_or_rows).items()}
    for caption, rows in runs.items():
        if not rows:
            raise ValueError(f"{caption or 'the run'} has no finished epochs to show; pass a run with at least one.")
    if metrics is None:
        metrics = _choose(runs)
    for metric in metrics:
        if not any(_points(rows, metric) for rows in runs.values()):
            known = sorted({key for rows in runs.values() for key in rows[0]})
            raise ValueError(f"no run has values of {metric!r}; pass some of {', '.join(known)}.")
    has_loss = any(_points(rows, "loss") for rows in runs.values())
    panels = [*(["loss"] if has_loss else []), *metrics]
    if not panels:
        raise ValueError('the record has neither a loss nor metrics to show; pass one with a column "loss".')
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    figure = new_figure(8.0 if across == 2 else 5.2, 2.7 * down + 0.4)
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for place, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        xlabel = "epoch" if place >= len(panels) - across else ""
        if panel == "loss":
            _draw_loss(axes, runs, xlabel)
        else:
            style_axes(axes, NAMES.get(panel, panel.replace("_", " ")), xlabel)
            _draw(axes, runs, panel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.02, y=0.1)
    if len(runs) == 1 and (caption := next(iter(runs))):
        options = {"fontsize": 22 * POINT, "fontweight": "bold", "color": INK, "ha": "left"}
        figure.suptitle(caption, x=0.01, **options)
    if len(runs) > 1:
        lines, captions = grid[0].get_legend_handles_labels()
        options = {"fontsize": 15 * POINT, "frameon": False, "ncols": min(4, len(runs))}
        figure.legend(lines, captions, loc="outside upper left", **options)
    return save_figure(figure, path)


def _draw_loss(axes: Axes, runs: Mapping[str, list[Row]], xlabel: str) -> None:
    """The loss with its chance level, or their ratio for several runs."""
    chance = {caption: _points(rows, "chance_loss") for caption, rows in runs.items()}
    if len(runs) > 1 and all(points and all(value for _, value in points) for points in chance.values()):
        style_axes(axes, "loss / chance level", xlabel)
        ratios = {
            caption: [{**row, "loss": _divided(row, chance[caption][-1][1])} for row in rows]
            for caption, rows in runs.items()
        }
        _draw(axes, ratios, "loss")
        _draw_level(axes, 1.0, "chance")
        return
    style_axes(axes, "loss", xlabel)
    _draw(axes, runs, "loss")
    if len(runs) == 1 and (points := next(iter(chance.values()))):
        _draw_level(axes, points[-1][1], f"chance level: {points[-1][1]:.3g}")


def _draw(axes: Axes, runs: Mapping[str, list[Row]], column: str) -> None:
    """A line for each run; of a single epoch, a dot."""
    for place, (caption, rows) in enumerate(runs.items()):
        points = _points(rows, column)
        epochs, values = [x for x, _ in points], [y for _, y in points]
        marker = "o" if len(points) <= 30 else None
        colour = COLOURS[place % len(COLOURS)]
        style = ("-", "--", ":")[place // len(COLOURS) % 3]
        axes.plot(epochs, values, style, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=caption)
        if points and points[0][0] == 0:
            axes.annotate(
                "before training" if place == 0 else "",
                points[0],
                (6, -2),
                textcoords="offset points",
                fontsize=13 * POINT,
                color=MUTED,
                va="top",
            )


def _draw_level(axes: Axes, value: float, text: str) -> None:
    """A dotted line across, with what it means."""
    axes.axhline(value, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(text, (1, value), (-2, 4), xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha="right",
                  fontsize=14 * POINT, color=MUTED)  # fmt: skip


def _captioned(given: Any) -> dict[str, Run]:
    """Runs by their captions."""
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, (str, Path)):
        return {Path(given).name: given}
    given = list(given)
    if given and all(isinstance(one, (str, Path)) for one in given):
        names = [Path(one).name for one in given]
        return dict(zip(names if len(set(names)) == len(names) else map(str, given), given, strict=True))
    return {"": given}


def _rows_of(run: Run) -> list[Row]:
    """The rows of a record, from its file or as they are."""
    if not isinstance(run, (str, Path)):
        return list(run)
    path = Path(run) if str(run).endswith(".csv") else Path(f"{run}.csv")
    if not path.is_file():
        raise FileNotFoundError(f'there is no {path}; pass the name of a run, such as "store/base" for store/base.csv.')
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _points(rows: Sequence[Row], column: str) -> list[tuple[float, float]]:
    """(epoch, value) of the rows that have a finite value."""
    points = []
    for place, row in enumerate(rows, 1):
        try:
            point = float(row.get("epoch") or (0 if row.get("epoch") in (0, "0") else place)), float(row[column])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(point[1]):
            points.append(point)
    return points


def _divided(row: Row, by: float) -> float | None:
    try:
        return float(row["loss"]) / by
    except (KeyError, TypeError, ValueError):
        return None


def _choose(runs: Mapping[str, list[Row]]) -> list[str]:
    """Up to five columns with numbers that change: the most telling first."""
    columns = list(dict.fromkeys(key for rows in runs.values() for row in rows for key in row))
    hidden = [c for c in columns if c in LEFT_OUT or c.startswith("embedding_") or c.endswith(("_uniform", "_rms"))]
    ordered = [c for c in FIRST if c in columns] + [c for c in columns if c not in FIRST]
    with_values = [c for c in ordered if c not in hidden and any(_points(rows, c) for rows in runs.values())]
    return with_values[: MOST - 1]

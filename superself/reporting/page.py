"""The report of a run: one self-contained HTML file from what the run left on the disk."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from superself.reporting.curves import Line, line_chart
from superself.reporting.measures import ACCURACIES, HIDDEN, NOT_DRAWN, PRETEXT, in_words, meaning, title_of
from superself.reporting.repetition import repeating_code
from superself.reporting.stored_run import read_facts, read_rows
from superself.training.files import write_text

SHOWN_SKIPPED = 20
MAIN = ("Loss", "Accuracy of the features", "Accuracy in the pretext task", "Spread: 1 is uniform, 0 collapsed")
LARGEST_PICTURE = 4 * 2**20  # bytes of a file that is put into the page


def report(name: str | Path, path: str | Path | None = None, tables: Mapping[str, Any] | None = None) -> Path:
    """Writes the report of a run as one HTML file that needs nothing else: no server, no network, no other file.

    It says what was run and how to repeat it, draws the curves, lists the numbers with those before training and the loss
    at chance level, repeats the warnings, and contains the pictures NAME.*.png. It is written from NAME.yaml and NAME.csv,
    so a run that was killed has one too. ``supervise()`` writes it at the end of every run.

    Args:
        name: of the run, "store/base".
        path: of the HTML file; None: NAME.html.
        tables: title -> what is printed below it, such as the result of ``compare()`` or ``supervisor.evaluate()``.
    Returns:
        The path of the file.
    Raises:
        FileNotFoundError: if there is no NAME.yaml.
        ValueError: if it is not the record of a run, or the record is damaged.
    """
    name = str(name).removesuffix(".pt")
    facts, rows = read_record(name)
    path = Path(path or f"{name}.html")
    pictures, left_out = _pictures(name, _timestamp(facts.get("start")))
    html = _template().render(
        name=Path(name).name,
        algorithm=facts.get("algorithm", "unknown"),
        state=facts.get("state", "unknown"),
        start=_local(facts.get("start")),
        minutes=_duration(facts),
        notes=facts.get("notes"),
        cards=_cards(facts, rows),
        warnings=[str(text) for text in facts.get("warnings") or []],
        has_chance=any(_number(row.get("chance_loss")) is not None for row in rows),
        judgements=_judgements(rows),
        worse=_worse(rows),
        skipped=_skipped(name),
        charts=_charts(rows),
        numbers=_numbers(rows),
        tables=[(title, str(value)) for title, value in (tables or {}).items()],
        pictures=pictures,
        left_out=left_out,
        code=repeating_code(facts),
        what=[(key, facts[key]) for key in ("data", "backbone", "loss", "plan", "seed") if facts.get(key) is not None],
        environment=_environment(facts),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
    return path


def read_record(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The facts of NAME.yaml and the rows of NAME.csv, with numbers as numbers and empty cells as None."""
    yaml_path, csv_path = Path(f"{name}.yaml"), Path(f"{name}.csv")
    if not yaml_path.is_file():
        raise FileNotFoundError(
            f"there is no {yaml_path}, so {name!r} is not a run, or its record was lost; pass the name that was given to "
            "supervise(name=...)."
        )
    facts = read_facts(yaml_path, yaml_path.read_text(encoding="utf-8", errors="replace"))
    if not isinstance(facts, dict) or "algorithm" not in facts:
        raise ValueError(f"{yaml_path} is not the record of a run; it has no algorithm.")
    for key, kind in (("warnings", list), ("versions", dict), ("settings", dict), ("arguments", dict)):
        if not isinstance(facts.get(key), (kind, type(None))):
            raise ValueError(f"{yaml_path} is damaged: {key} is a {type(facts[key]).__name__}, not a {kind.__name__}.")
    rows = read_rows(csv_path)
    for row in rows:
        for kind in ("feature", "embedding"):
            std, uniform = _number(row.get(f"{kind}_std")), _number(row.get(f"{kind}_std_uniform"))
            if std is not None and uniform:
                row[f"{kind} spread"] = std / uniform
    return facts, rows


def _environment(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Versions, device and precision."""
    return [*(facts.get("versions") or {}).items(), *((key, facts.get(key)) for key in ("device", "precision"))]


def _cards(facts: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The few numbers that matter, with what they are."""
    cards = []
    last = rows[-1] if rows else {}
    for measure in ACCURACIES:
        known = [value for row in rows if (value := _number(row.get(measure))) is not None]
        if known:
            before = f"{known[0]:.1%} → " if len(known) > 1 else ""
            cards.append((f"{before}{known[-1]:.1%}", {"knn": "kNN accuracy"}.get(measure, f"{measure} accuracy")))
    loss, chance = _number(last.get("loss")), _number(last.get("chance_loss"))
    if loss is not None:
        cards.append((f"{loss:.4g}", "loss" + ("" if chance is None else f" (chance level {chance:.4g})")))
    if (spread := _number(last.get("feature spread"))) is not None:
        cards.append((f"{spread:.0%}", "spread of the features (0% is collapsed)"))
    epochs = int(last.get("epoch") or 0)
    planned = facts.get("epochs")
    cards.append((f"{epochs}" + (f" of {planned}" if planned not in (None, epochs) else ""), "epochs"))
    if (speed := _number(last.get("images_per_second"))) is not None:
        cards.append((f"{speed:,.0f}", "images per second"))
    return cards


def _judgements(rows: list[dict[str, Any]]) -> list[str]:
    """What the numbers say, in sentences."""
    sentences = []
    last = rows[-1] if rows else {}
    loss, chance = _number(last.get("loss")), _number(last.get("chance_loss"))
    if loss is not None and chance is not None:
        where = "below" if loss < chance else "not below"
        sentences.append(f"The loss ended at {loss:.4g}, {where} its chance level of {chance:.4g}.")
    for measure, called in (("knn", "kNN"), ("linear", "linear-probe")):
        known = [value for row in rows if (value := _number(row.get(measure))) is not None]
        if len(known) > 1 and rows[0].get("epoch") == 0:
            best = max(range(len(known)), key=known.__getitem__)
            text = f"{called} accuracy was {known[0]:.1%} before training and {known[-1]:.1%} at the end"
            falling = known[best] - known[-1]
            sentences.append(text + (f"; the best epoch had {known[best]:.1%}." if falling > 0.005 else "."))
    if not any(_number(row.get(measure)) is not None for row in rows for measure in ACCURACIES):
        sentences.append(
            "No accuracy was measured. Whether the features are useful cannot be seen from the loss: pass "
            "probe=(labelled_train, labelled_test) to supervise(), or use compare()."
        )
    return sentences


def _worse(rows: list[dict[str, Any]]) -> list[str]:
    """The accuracies that are lower after training than before it, in words."""
    if not rows or rows[0].get("epoch") != 0:
        return []
    found = []
    for measure in ACCURACIES:
        known = [value for row in rows if (value := _number(row.get(measure))) is not None]
        if len(known) > 1 and known[-1] < known[0]:
            found.append(f"{title_of(measure)} {known[0]:.1%} → {known[-1]:.1%}")
    return found


def _skipped(name: str) -> list[str]:
    """The images that could not be read, with the reasons; the first few."""
    path = Path(f"{name}.skipped.txt")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    more = [f"... and {len(lines) - SHOWN_SKIPPED} more in {path.name}"] if len(lines) > SHOWN_SKIPPED else []
    return [line.replace("\t", ": ") for line in lines[:SHOWN_SKIPPED]] + more


def _charts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Loss against chance level, accuracies, spread, and everything else that was noted."""

    def line(key: str) -> Line:
        cells = ((_number(row.get("epoch")), _number(row.get(key))) for row in rows)
        return Line(key.replace("_", " "), [(x, y) for x, y in cells if x is not None and y is not None])

    keys = list(dict.fromkeys(key for row in rows for key in row))
    chance = next((value for row in reversed(rows) if (value := _number(row.get("chance_loss"))) is not None), None)
    groups: list[tuple[str, list[Line], float | None]] = [
        ("Loss", [line(key) for key in ("loss", "held_out_loss") if key in keys], chance),
        ("Accuracy of the features", [line(key) for key in ACCURACIES if key in keys], None),
        ("Accuracy in the pretext task", [line(key) for key in PRETEXT if key in keys], None),
        ("Spread: 1 is uniform, 0 collapsed", [line(key) for key in ("feature spread", "embedding spread") if key in keys], None),
        ("Directions used", [line(key) for key in ("feature_rank", "embedding_rank") if key in keys], None),
    ]  # fmt: skip
    drawn = {line.name for _, lines, _ in groups for line in lines}
    others = [key for key in keys if key.replace("_", " ") not in drawn and key not in NOT_DRAWN]
    groups += [(title_of(key), [line(key)], None) for key in others]
    epochs = [epoch for row in rows if (epoch := _number(row.get("epoch"))) is not None]
    charts = []
    for title, lines, level in groups:
        svg = line_chart(lines, "epochs", level, "chance level", (min(epochs), max(epochs)) if epochs else None)
        if svg:
            main = len(lines) > 1 or level is not None or title in MAIN
            charts.append({"title": title, "lines": [line.name for line in lines], "svg": svg, "main": main})
    return charts


def _numbers(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A line for each measure: before training, after the first epoch, and last."""
    if not rows:
        return []
    before = rows[0] if rows[0].get("epoch") == 0 else {}
    trained = rows[1:] if before else rows
    found = []
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [value for row in trained if (value := _number(row.get(key))) is not None]
        start = _number(before.get(key))
        if key in HIDDEN or (not values and start is None):
            continue
        cells = {"before": start, "first": values[0] if values else None, "last": values[-1] if values else None}
        found.append(
            {"name": key.replace("_", " "), "meaning": meaning(key)}
            | {cell: "" if value is None else in_words(key, value) for cell, value in cells.items()}
        )
    return found


def _pictures(name: str, start: float) -> tuple[list[dict[str, str]], list[str]]:
    """The PNG files of the run as data, and what is too large for the page; older ones belong to an earlier run."""
    folder, stem = Path(name).parent, Path(name).name
    pictures, left_out = [], []
    files = [path for path in folder.glob("*.png") if path.name.startswith(f"{stem}.")] if folder.is_dir() else []
    for path in sorted(files):
        if path.stat().st_mtime < start:
            continue
        size = path.stat().st_size
        if size > LARGEST_PICTURE:
            left_out.append(f"{path.name} is not shown: it has {size / 2**20:.1f} MiB.")
            continue
        title = (
            path.name.removeprefix(f"{stem}.").removesuffix("png").strip(".").replace("_", " ") or "nearest neighbours"
        )
        data = base64.b64encode(path.read_bytes()).decode()
        pictures.append({"title": title, "source": f"data:image/png;base64,{data}"})
    return pictures, left_out


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _local(time: Any) -> str:
    return "" if not time else str(time).replace("T", " ")[:16]


def _timestamp(time: Any) -> float:
    """Seconds since 1970 of a time in the record; 0 if it is missing."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (TypeError, ValueError):
        return 0.0


def _duration(facts: Mapping[str, Any]) -> str:
    start, end = (_timestamp(facts.get(key)) for key in ("start", "end"))
    if not (start and end):
        return ""
    seconds = end - start
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _template() -> Any:
    """The page; Jinja is imported at the first report."""
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("superself.reporting", "."), autoescape=True).get_template(
        "report.html.jinja"
    )

"""What is compared: networks that exist, runs, files, and methods that are trained for the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from superself.algorithms import list_algorithms, list_presets
from superself.basics.validate import shortened
from superself.buildable import Buildable
from superself.loading import open_backbone
from superself.networks import describe
from superself.supervisor import Supervisor
from superself.training import read_checkpoint
from superself.training.files import checkpoint_path

ALONE = "trained"  # the name of a single backbone


@dataclass(eq=False)
class Contestant:
    """A row of the table: one or several networks that exist, or a method that is trained with each seed.

    Args:
        name: of the row.
        backbones: with their facts ("minutes", "images_seen") as far as they are known; empty for a method.
        method: the name for ``create``, or None.
        arguments: for ``create``.
    """

    name: str
    backbones: list[tuple[nn.Module, dict[str, float]]] = field(default_factory=list)
    method: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def read_entries(entries: Any) -> list[Contestant]:
    """The contestants that ``compare`` was given, each with a name of its own.

    Raises:
        TypeError: if an entry is none of the things that ``compare`` takes.
        ValueError: if there are no entries.
    """
    if isinstance(entries, Mapping):
        given = [(str(name), entry) for name, entry in entries.items()]
    elif isinstance(entries, (list, tuple)) and not _is_method_with_arguments(entries):
        given = [(None, entry) for entry in entries]
    else:
        alone = _read_entry(None, entries)
        alone.name = ALONE if alone.method is None else alone.name
        return [alone]
    if not given:
        raise ValueError("there is nothing to compare; pass at least one backbone, run, file or name of a method.")
    found = [_read_entry(name, entry) for name, entry in given]
    names: dict[str, int] = {}
    for contestant in found:
        count = names[contestant.name] = names.get(contestant.name, 0) + 1
        contestant.name += f" {count}" if count > 1 else ""
    return found


def _read_entry(name: str | None, entry: Any) -> Contestant:
    if _is_method_with_arguments(entry):
        return Contestant(name or entry[0], method=entry[0], arguments=dict(entry[1]))
    if isinstance(entry, str) and entry in {*list_algorithms(), *list_presets()}:
        return Contestant(name or entry, method=entry)
    if isinstance(entry, list) and entry:
        runs = [_read_entry(None, part) for part in entry]
        if any(run.method is not None for run in runs):
            raise TypeError(
                f"{shortened(entry)} lists methods to train; pass each as an entry of its own, and seeds= for several runs."
            )
        return Contestant(name or runs[0].name, [pair for run in runs for pair in run.backbones])
    if not isinstance(entry, (str, Path, nn.Module)):
        raise TypeError(
            f"{shortened(entry)} cannot be compared; pass a module, a supervisor, the name of a run, an exported file, the name "
            "of a method, (name, arguments), or a list of several runs of one method."
        )
    backbone = open_backbone(entry)
    return Contestant(name or _name_of(entry, backbone), [(backbone, _facts_of(entry))])


def _is_method_with_arguments(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], Mapping)


def _name_of(entry: Any, backbone: nn.Module) -> str:
    if isinstance(entry, (str, Path)):
        return str(entry).removesuffix(".pt")
    return type(entry).__name__.removesuffix("Supervisor") if isinstance(entry, Buildable) else describe(backbone)


def _facts_of(entry: Any) -> dict[str, float]:
    """Minutes and images seen, of a run that was trained with ``supervise``; nothing of a mere network."""
    if isinstance(entry, Supervisor) and entry.run is not None:
        step, batch_size = entry.step, entry.run.settings.batch_size
        states = [(type(tracker).__name__, tracker.state_dict()) for tracker in entry.run.trackers]
    elif isinstance(entry, (str, Path)) and checkpoint_path(entry).is_file():
        try:
            stored = read_checkpoint(entry)
        except ValueError:  # an exported file
            return {}
        step, batch_size, states = stored["step"], stored["settings"]["batch_size"], stored["trackers"]
    else:
        return {}
    rows = next((state.get("rows", []) for name, state in states if name == "Record"), [])
    facts = {"images_seen": step * int(batch_size)}
    seconds = [row.get("seconds") for row in rows if row.get("epoch") != 0]  # 0: what was measured before training
    if seconds and all(isinstance(value, (int, float)) for value in seconds):
        facts["minutes"] = sum(seconds) / 60
    return facts

"""TensorBoardTracker: curves, pictures, texts and hyper-parameters of a run for TensorBoard."""

from __future__ import annotations

import datetime
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from superself.training.checkpoint import archived_path
from superself.training.trackers.external import ExternalTracker, grouped_within_epoch, hyper_parameters

EVENTS = "events.out.tfevents.*"  # the names that TensorBoard gives its files
CHANCE, FINAL = "chance", "final"  # sub-folders, which TensorBoard shows as runs next to that of the curves
LONGEST_TEXT = 100  # characters of a hyper-parameter
COMPARED = ("evaluation/", "loss/epoch", "features/feature_spread", "features/embedding_spread")


class TensorBoardTracker(ExternalTracker):
    """Writes curves, figures, texts and hyper-parameters of a run for TensorBoard: ``tensorboard --logdir store``.

    The loss has its chance level as a second line, the run NAME/chance. When the run ends, however it ends, NAME/final relates
    its hyper-parameters to the last loss, spread and evaluation (kNN, linear, rotation, alignment, ...), so that the runs of a
    folder can be compared in the HPARAMS tab. The horizontal axis is the optimizer step; 0 is before training. A resumed run
    continues its curves. The events of an earlier run of the same name are moved to NAME.1, as its other files are.

    Args:
        logdir: a folder for several runs, each in a sub-folder with its name; None: "tensorboard" in the folder of the run,
            so that the run "store/base" writes to store/tensorboard/base.
        every_step: also write values within epochs (a few times a second), rather than one per epoch.
        flush_secs: seconds until values are on the disk.
    Raises:
        ImportError: if TensorBoard is not installed.
    """

    library: ClassVar[str] = "tensorboard"

    def __init__(self, logdir: str | Path | None = None, every_step: bool = True, flush_secs: float = 10) -> None:
        super().__init__()
        self.logdir, self.every_step, self.flush_secs = logdir, every_step, flush_secs
        self._writers: dict[str, Any] = {}

    def start(self, facts: dict[str, Any]) -> None:
        """Checks that the folder can be written to; nothing is written before the first step."""
        super().start(facts)
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401 - fails here rather than later

        name = Path(self.run.name)
        parent = name.parent / "tensorboard" if self.logdir is None else Path(self.logdir)
        self.folder = parent / name.name
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
        self._purge = self.run.step + 1 if self.run.continues else None
        replaced = None if self.run.settings.overwrite else archived_path(self.run.name)
        self._archive_number = "1" if replaced is None else replaced.name[: -len(".pt")].rpartition(".")[2]

    def step(self, row: dict[str, Any]) -> None:
        """Writes the means of the epoch so far."""
        self._begin()
        if self.every_step:
            step, values = self.run.step, grouped_within_epoch(row)
            self._send(lambda: self._write_values(values, step, row["epoch"]), keep=False)

    def _open(self) -> None:
        if self._purge is None:
            self._make_room()
        about = yaml.safe_dump(self.facts, sort_keys=False, allow_unicode=True)
        writer, first = self._writer(), self._purge or 0
        writer.add_text("run/facts", "\n".join(f"    {line}" for line in about.splitlines()), first)
        if self.notes:
            writer.add_text("run/notes", self.notes, first)

    def _reopen(self) -> None:
        self._writers.clear()  # their threads have ended with the error
        self._purge = None

    def _make_room(self) -> None:
        """Moves the events of an earlier run away, or removes them if it is to be replaced."""
        if not any(self.folder.rglob(EVENTS)):
            return
        if self.run.settings.overwrite:
            for path in self.folder.rglob(EVENTS):
                path.unlink()
            return
        number = int(self._archive_number)
        while (target := self.folder.with_name(f"{self.folder.name}.{number}")).exists():
            number += 1
        os.rename(self.folder, target)

    def _writer(self, part: str = "") -> Any:
        """The SummaryWriter of the run, or of a sub-folder of it."""
        from torch.utils.tensorboard import SummaryWriter

        if part not in self._writers:
            folder = str(self.folder / part)
            self._writers[part] = SummaryWriter(folder, purge_step=self._purge, flush_secs=self.flush_secs)
        return self._writers[part]

    def _write_values(self, values: dict[str, float], step: int, epoch: int) -> None:
        for name, value in values.items():
            self._writer().add_scalar(name, value, step)
        chance = self.run.chance_loss
        if chance is not None and math.isfinite(chance):
            for name in ("loss/epoch", "loss/step"):
                if name in values:
                    self._writer(CHANCE).add_scalar(name, chance, step)

    def _write_figure(self, name: str, path: Path, step: int) -> None:
        array = pixels_of(path)
        if array is not None:
            self._writer().add_image(f"figures/{name}", array, step, dataformats="HWC")

    def _write_warning(self, text: str, step: int) -> None:
        self._writer().add_text("run/warnings", text, step)

    def _close(self, state: str) -> None:
        step = self.run.step
        self._writer().add_text("run/state", state, step)
        if FINAL not in self._writers:
            shutil.rmtree(self.folder / FINAL, ignore_errors=True)  # of the run before it was resumed
            self._purge = None
        label = f"{self.folder.name} {datetime.datetime.now():%m-%d %H:%M:%S}"
        for summary in hparams_summaries(hyper_parameters(self.facts), state, label):
            self._writer(FINAL).file_writer.add_summary(summary, step)
        for name, value in self.last.items():
            if name.startswith(COMPARED):
                self._writer(FINAL).add_scalar(name, value, step)
        for writer in self._writers.values():
            writer.close()


def pixels_of(path: Path) -> np.ndarray | None:
    """A picture as uint8 (H, W, 3); None if the file is not one, for example a PDF."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, FileNotFoundError):
        return None


def hparams_summaries(values: dict[str, Any], state: str, label: str) -> list[Any]:
    """What the HPARAMS tab reads of a run: its hyper-parameters, and how it ended.

    There is no summary of the whole experiment, of which TensorBoard reads one only: without it the tab has the columns of
    all runs, also where they have different algorithms and evaluators.

    Args:
        values: hyper-parameters.
        state: as in ``Tracker.end``.
        label: of the row; rows with the same one are averaged.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    start = SessionStartInfo(group_name=label)
    for name, value in values.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, (int, float)):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = str(value)[:LONGEST_TEXT]
    status = api_pb2.STATUS_SUCCESS if state == "finished" else api_pb2.STATUS_FAILURE
    parts = {
        metadata.SESSION_START_INFO_TAG: HParamsPluginData(session_start_info=start),
        metadata.SESSION_END_INFO_TAG: HParamsPluginData(session_end_info=SessionEndInfo(status=status)),
    }
    return [
        Summary(value=[Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))])
        for tag, data in parts.items()
    ]

"""MLflowTracker: a run of superself as a run of MLflow."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from superself.basics.random import preserve_random_state
from superself.training.trackers.external import ExternalTracker, parameters

LONGEST_VALUE = 500  # characters of a parameter: MLflow takes 6000, servers of earlier versions 500
LONGEST_TAG = 5000
LONGEST_KEY = 250
BATCH = 100  # parameters in one request
STATES = {"finished": "FINISHED", "interrupted": "KILLED"}
KIND = "mlflow.experimentKind"  # without it, MLflow shows a page for language models
NOTE = "mlflow.note.content"  # the tag that MLflow shows as the description of a run


class MLflowTracker(ExternalTracker):
    """Writes a run to MLflow: parameters, the values of every epoch, figures, notes, warnings, NAME.yaml and NAME.csv.

    By default into a local folder, without a server; to look at it: ``mlflow ui --backend-store-uri
    sqlite:///store/mlflow/mlflow.db``. The step of a value is its epoch; 0 is before training. A run that MLflow has active
    in this process is left alone. A resumed run continues its MLflow run.

    MLflow sends statistics on its use to its makers unless told otherwise; this tracker turns that off in this process, except
    where the environment variable MLFLOW_DISABLE_TELEMETRY is set.

    Args:
        tracking_uri: a server or a database, as MLflow takes it; None: the environment variable MLFLOW_TRACKING_URI, and
            without one the folder "mlflow" next to the run, store/mlflow for the run "store/base".
        experiment: under which the run is listed; made if it does not exist.
        run_name: name of the run; None: that of the run of superself.
    Raises:
        ImportError: if MLflow is not installed.
    """

    library: ClassVar[str] = "mlflow"

    def __init__(
        self, tracking_uri: str | Path | None = None, experiment: str = "superself", run_name: str | None = None
    ) -> None:
        super().__init__()
        self.tracking_uri, self.experiment, self.run_name = tracking_uri, experiment, run_name
        self.run_id: str | None = None  # of MLflow
        self.warnings: list[str] = []

    def start(self, facts: dict[str, Any]) -> None:
        """Makes the run in MLflow, or takes up that of the run which is resumed."""
        super().start(facts)
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None
        if not uri:
            self.folder = (Path(self.run.name).parent / "mlflow").absolute()
            self.folder.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{(self.folder / 'mlflow.db').as_posix()}", (self.folder / "artifacts").as_uri()
        with _quiet(), preserve_random_state():
            self.client = _client(str(uri))
            self._start_run(artifacts)
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """The latest values, the warnings, and the run of MLflow."""
        return {**super().state_dict(), "run_id": self.run_id, "warnings": list(self.warnings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the run of MLflow."""
        super().load_state_dict(state)
        self.run_id, self.warnings = state.get("run_id"), list(state.get("warnings", []))

    def _start_run(self, artifacts: str | None) -> None:
        from mlflow.exceptions import MlflowException

        known: dict[str, str] = {}
        if self.run_id is not None:
            try:
                known = self.client.get_run(self.run_id).data.params
                self.client.update_run(self.run_id, status="RUNNING")
            except MlflowException:  # it has been deleted, or is in another store
                self.run_id = None
        if self.run_id is None:
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None:
                number = self.client.create_experiment(
                    self.experiment, artifacts, tags={KIND: "custom_model_development"}
                )
            else:
                number = found.experiment_id
            name = self.run_name or Path(self.run.name).name
            self.run_id = self.client.create_run(number, run_name=name).info.run_id
        self._write_parameters(known)
        if self.notes:
            self.client.set_tag(self.run_id, NOTE, self.notes[:LONGEST_TAG])

    def _write_parameters(self, known: dict[str, str]) -> None:
        """Parameters cannot be changed in MLflow: what differs in a resumed run becomes a tag."""
        from mlflow.entities import Param

        values = {_key(name): str(value) for name, value in parameters(self.facts).items()}
        cut = sorted(name for name, value in values.items() if len(value) > LONGEST_VALUE)
        values = {name: value[:LONGEST_VALUE] for name, value in values.items()}
        new = [Param(name, value) for name, value in values.items() if name not in known]
        for first in range(0, len(new), BATCH):
            self.client.log_batch(self.run_id, params=new[first : first + BATCH])
        for name, value in values.items():
            if known.get(name, value) != value:
                self.client.set_tag(self.run_id, f"resumed.{name}"[:LONGEST_KEY], value)
        if cut:
            text = f"{', '.join(cut)}: cut off after {LONGEST_VALUE} characters; whole in the .yaml file"
            self.client.set_tag(self.run_id, "truncated", text[:LONGEST_TAG])

    def _write_values(self, values: dict[str, float], step: int, epoch: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_key(name), float(value), now, epoch) for name, value in values.items()]
        if epoch and self.run.chance_loss is not None:
            metrics.append(Metric("loss/chance", self.run.chance_loss, now, epoch))
        self.client.log_batch(self.run_id, metrics=metrics)

    def _write_figure(self, name: str, path: Path, step: int) -> None:
        if path.is_file():
            self.client.log_artifact(self.run_id, str(path), "figures")

    def _write_warning(self, text: str, step: int) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
        self.client.set_tag(self.run_id, "warnings", "\n".join(self.warnings)[:LONGEST_TAG])

    def _close(self, state: str) -> None:
        for ending in (".yaml", ".csv"):
            if Path(self.run.name + ending).is_file():
                self.client.log_artifact(self.run_id, self.run.name + ending)
        self.client.set_tag(self.run_id, "state", state)
        self.client.set_terminated(self.run_id, STATES.get(state, "FAILED"))


def _client(uri: str) -> Any:
    """MLflow's client, which leaves its global state alone; no statistics are sent."""
    chosen = "MLFLOW_DISABLE_TELEMETRY" in os.environ
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    imported = "mlflow" in sys.modules
    from mlflow.tracking import MlflowClient

    if imported and not chosen:
        with contextlib.suppress(ImportError):  # MLflow 2 sends nothing
            from mlflow.telemetry import set_telemetry_client

            set_telemetry_client()  # looks at the variable again
    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what MLflow writes when it makes a database."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _key(name: str) -> str:
    """A name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:LONGEST_KEY]

import logging
import os
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

from superself import RotateNetSupervisor
from superself.training import MLflowTracker
from superself.training.trackers.mlflow import LONGEST_VALUE

from cases import TinyBackbone, tiny_images
from trackers_runs import FACTS, fake_run, play, row_of

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder of runs; the database in it is made once, as that takes seconds."""
    return tmp_path_factory.mktemp("mlflow") / "store"


@pytest.fixture
def run(store, monkeypatch):
    """A fake run in it; whatever opens a connection fails."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def refuse(self, address):
        raise AssertionError(f"an unrequested connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    store.mkdir(exist_ok=True)
    return fake_run(name=str(store / "run"))


def client_of(store):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{(store / 'mlflow' / 'mlflow.db').as_posix()}")


def curve(store, run_id, name):
    return [(m.step, round(m.value, 4)) for m in client_of(store).get_metric_history(run_id, name)]


def artifacts(store, run_id, folder=None):
    return [item.path for item in client_of(store).list_artifacts(run_id, folder)]


def test_a_run_is_written_to_a_local_folder_without_a_connection(store, run, caplog):
    logging.getLogger("mlflow.store.db.utils").addHandler(caplog.handler)
    Image.new("RGB", (2, 2)).save("neighbours.png")
    for ending in (".yaml", ".csv"):
        Path(run.name + ending).write_text("x")
    tracker = MLflowTracker()
    play(tracker, run, [1, 2], None, before={"knn": 0.2}, knn=0.6)
    tracker.figure("neighbours", Path("neighbours.png"))
    tracker.warn("The features have collapsed.")
    tracker.end("finished")
    found = client_of(store).get_run(tracker.run_id)
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert found.data.params["lr"] == "0.1" and found.data.params["augment.name"] == "crop"
    assert found.data.tags["mlflow.note.content"] == FACTS["notes"] and found.data.tags["state"] == "finished"
    assert found.data.tags["warnings"] == "The features have collapsed."
    assert curve(store, tracker.run_id, "evaluation/knn") == [(0, 0.2), (1, 0.6), (2, 0.6)]
    assert curve(store, tracker.run_id, "loss/epoch") == [(1, 1.0), (2, 0.5)]
    assert curve(store, tracker.run_id, "loss/chance") == [(1, 1.386), (2, 1.386)]
    assert artifacts(store, tracker.run_id) == ["figures", "run.csv", "run.yaml"]
    assert artifacts(store, tracker.run_id, "figures") == ["figures/neighbours.png"]
    assert sorted(path.name for path in (store / "mlflow").iterdir()) == ["artifacts", "mlflow.db"]
    assert os.listdir() == ["neighbours.png"]
    assert caplog.records == []  # on the database that is made
    experiment = client_of(store).get_experiment(found.info.experiment_id)
    assert experiment.name == "superself"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_statistics_on_the_use_of_mlflow_are_turned_off(run):
    pytest.importorskip("mlflow.telemetry")
    from mlflow.telemetry import get_telemetry_client
    from mlflow.telemetry.client import _set_telemetry_client

    _set_telemetry_client(
        type("Client", (), {"info": {"session_id": "1"}})()
    )  # as if a user had imported MLflow before
    os.environ.pop("MLFLOW_DISABLE_TELEMETRY", None)
    play(MLflowTracker(), run, [1])
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true" and get_telemetry_client() is None


def test_long_parameters_are_cut_off_with_a_note_and_odd_names_replaced(store, run):
    tracker = MLflowTracker(run_name="other", experiment="tests")
    facts = {**FACTS, "arguments": {"long": "x" * 3000, "augment": {"a(b)": 1}}, "run": run}
    tracker.start(facts)
    tracker.end("stopped by an error")
    found = client_of(store).get_run(tracker.run_id)
    assert found.data.params["long"] == "x" * LONGEST_VALUE and found.data.params["augment.a_b_"] == "1"
    assert found.data.tags["truncated"].startswith("long: cut off after 500 characters")
    assert found.info.run_name == "other" and found.info.status == "FAILED"
    assert client_of(store).get_experiment(found.info.experiment_id).name == "tests"


def test_a_resumed_run_continues_the_run_of_mlflow(store, run):
    first = MLflowTracker()
    play(first, run, [1], "interrupted")
    resumed = MLflowTracker()
    resumed.load_state_dict(first.state_dict())
    facts = {**FACTS, "settings": {**FACTS["settings"], "epochs": 3, "lr": 0.2}}
    resumed.start({**facts, "run": fake_run(step=2, continues=True, name=run.name)})
    resumed.epoch(row_of(2))
    resumed.end("finished")
    found = client_of(store).get_run(first.run_id)
    assert resumed.run_id == first.run_id and found.info.status == "FINISHED"
    assert curve(store, first.run_id, "loss/epoch") == [(1, 1.0), (2, 0.5)]
    assert found.data.params["lr"] == "0.1" and found.data.tags["resumed.lr"] == "0.2"
    assert found.data.params["epochs"] == "3"


def test_a_run_of_mlflow_that_has_been_deleted_elsewhere_is_made_again(store, run):
    tracker = MLflowTracker()
    tracker.load_state_dict({"run_id": "0" * 32})
    play(tracker, run, [1], "interrupted")
    assert client_of(store).get_run(tracker.run_id).info.status == "KILLED"
    assert tracker.run_id != "0" * 32 and curve(store, tracker.run_id, "loss/epoch") == [(1, 1.0)]


def test_an_active_run_of_the_user_is_left_alone(store, run, monkeypatch):
    import mlflow

    before = mlflow.get_tracking_uri()
    level = logging.getLogger("alembic").level
    play(MLflowTracker(), run, [1])
    assert mlflow.active_run() is None and mlflow.get_tracking_uri() == before
    assert logging.getLogger("alembic").level == level


def test_the_environment_variable_of_mlflow_is_honoured(store, run, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{(store / 'mlflow' / 'mlflow.db').as_posix()}")
    tracker = MLflowTracker()
    play(tracker, fake_run(name=str(tmp_path / "elsewhere" / "run")), [1])
    assert curve(store, tracker.run_id, "loss/epoch") == [(1, 1.0)]
    assert tracker.folder is None and not (tmp_path / "elsewhere").exists()


def test_a_real_run_is_tracked_resumed_and_its_weights_are_those_without_a_tracker(store, run):
    weights = {}
    for name in ("plain", "tracked"):
        trackers = ["mlflow"] if name == "tracked" else []
        options = {"batch_size": 8, "name": str(store / name), "progress": False, "trackers": trackers}
        supervisor = RotateNetSupervisor(tiny_images(16), backbone=TinyBackbone(), seed=0)
        supervisor.supervise(epochs=1, **options).supervise(epochs=2, resume=True, **options)
        weights[name] = supervisor.state_dict()
    assert all(torch.equal(weights["plain"][name], weights["tracked"][name]) for name in weights["plain"])
    (found,) = client_of(store).search_runs(["1"], "attributes.run_name = 'tracked'")
    assert [epoch for epoch, _ in curve(store, found.info.run_id, "loss/epoch")] == [1, 2]
    assert artifacts(store, found.info.run_id) == ["tracked.csv", "tracked.yaml"]
    assert found.data.params["epochs"] == "1" and found.data.tags["resumed.epochs"] == "2"


def test_a_server_that_is_down_does_not_end_the_run_and_gets_the_values_later(store, run, monkeypatch):
    from mlflow.tracking import MlflowClient

    tracker = MLflowTracker()
    play(tracker, run, [1], None)
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="could not write .Connection refused"):
        patch.setattr(MlflowClient, "log_batch", refuse_connection)
        tracker.epoch(row_of(2))
        tracker.epoch(row_of(3))
    tracker.end("finished")
    assert curve(store, tracker.run_id, "loss/epoch") == [(1, 1.0), (2, 0.5), (3, 0.3333)]


def refuse_connection(*args, **options):
    raise ConnectionRefusedError(111, "Connection refused")

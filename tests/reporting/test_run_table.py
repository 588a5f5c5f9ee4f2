import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import superself
from superself import RotateNetSupervisor, SimCLRSupervisor, runs
from superself.training import RunLock

from cases import TinyBackbone, tiny_images


def train(name, cls=RotateNetSupervisor, epochs=2, lr=1e-3, **arguments):
    supervisor = cls(tiny_images(), backbone=TinyBackbone(), **arguments)
    supervisor.supervise(name=name, epochs=epochs, lr=lr, batch_size=8, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two real runs, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("runs") / "store"
    train(folder / "rotate")
    train(folder / "later" / "sim", SimCLRSupervisor, epochs=1, lr=0.01, temperature=0.2)
    return folder


@pytest.fixture
def store(trained, tmp_path):
    """A copy of it that a test may change, without the checkpoints: they are not needed."""
    shutil.copytree(trained, tmp_path / "store", ignore=shutil.ignore_patterns("*.pt"))
    return tmp_path / "store"


def edit(path, **facts):
    """Replaces top-level lines of a NAME.yaml."""
    lines = path.read_text().splitlines()
    for key, value in facts.items():
        places = [i for i, line in enumerate(lines) if line.startswith(f"{key}:")]
        lines[places[0] : places[0] + 1] = [] if value is None else [f"{key}: {value}"]
    path.write_text("\n".join(lines))


def write_rows(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def copy_run(store, name, rows=None, **facts):
    """Another run that differs from "rotate" as told."""
    for ending in (".yaml", ".csv"):
        shutil.copy(store / f"rotate{ending}", store / f"{name}{ending}")
    edit(store / f"{name}.yaml", **facts)
    if rows is not None:
        write_rows(store / f"{name}.csv", rows)


def test_real_runs_are_told_by_their_text_files(store):
    table = runs(store)
    assert [run.method for run in table] == ["simclr", "rotatenet"]  # the one started last first
    run = table["rotate"]
    assert (run.data, run.state, run.epoch, run.epochs) == ("16 of 16 x 16", "finished", 2, 2)
    rows = list(csv.DictReader((store / "rotate.csv").open()))
    assert run.loss == float(rows[-1]["loss"]) and run.chance_loss == pytest.approx(1.386, abs=1e-3)
    assert run.minutes == pytest.approx(sum(float(row["seconds"]) for row in rows) / 60)
    assert len(run.date) == 16 and run["lr"] == 0.001 and run["settings.batch_size"] == 8
    assert run.name == str(store / "rotate") and run["nothing like it"] is None


def test_the_table_names_each_run_and_its_loss(store):
    lines = str(runs(store)).splitlines()
    assert lines[0] == f"2 runs in {store}" and lines[1].split()[:4] == ["name", "method", "data", "date"]
    assert lines[3].startswith("rotate") and " 2/2 " in lines[3] and " 1.386 " in lines[3]
    assert "later/sim" in lines[2] and "knn" not in lines[1]


def test_folders_inside_are_optional(store):
    assert [run.method for run in runs(store, recursive=False)] == ["rotatenet"]


def test_a_name_finds_its_run(store):
    table = runs(store)
    assert table["later/sim"] is table[str(store / "later" / "sim")] is table[0]
    with pytest.raises(KeyError, match="there is no run 'rotat' .* did you mean rotate"):
        table["rotat"]


def measured(*knn, first=1, **more):
    return [
        {"epoch": i + first, "loss": "" if i + first == 0 else 2.0 - i, "seconds": 60, "knn": v, **more}
        for i, v in enumerate(knn)
    ]


def test_values_before_training_give_the_gain(store):
    copy_run(store, "probed", measured(0.25, 0.3, 0.375, first=0))
    run = runs(store)["probed"]
    assert run.gain("knn") == 0.125 and run.epoch == 2 and run.loss == 0.0 and run.gain("loss") is None
    head, line = (
        next(text for text in str(runs(store)).splitlines() if text.startswith(name)) for name in ("name", "probed")
    )
    assert head.split()[8:10] == ["knn", "gain"] and " 37.5%  +12.5 " in line


def test_without_values_before_training_there_is_no_gain(store):
    copy_run(store, "probed", measured(0.25, 0.5))
    assert runs(store)["probed"].gain("knn") is None and "gain" not in str(runs(store))


def test_the_best_come_first_and_runs_without_the_value_last(store):
    copy_run(store, "good", measured(0.4))
    copy_run(store, "better", measured(0.5))
    names = [Path(run.name).name for run in runs(store).sort("knn")]
    assert names[:2] == ["better", "good"] and set(names[2:]) == {"rotate", "sim"}
    assert [Path(run.name).name for run in runs(store).sort("knn", descending=False)][:2] == ["good", "better"]
    losses = [run.loss for run in runs(store).sort("loss")]
    assert losses == sorted(losses)
    assert [run.method for run in runs(store).sort("method")] == ["rotatenet"] * 3 + ["simclr"]


def test_runs_are_chosen_by_values(store):
    copy_run(store, "good", measured(0.4), state="interrupted")
    table = runs(store)
    assert len(table.where(method="rotatenet")) == 2 and len(table.where(method="SimCLRSupervisor")) == 1
    assert [run["temperature"] for run in table.where(temperature=0.2)] == [0.2]
    assert (
        len(table.where(state=["finished", "interrupted"])) == 3
        and len(table.where(state="Finished", method="rotatenet")) == 1
    )
    assert len(table.where(knn=lambda value: value > 0.3)) == len(table.where(lambda run: run["knn"] is not None)) == 1
    assert len(table.where(**{"settings.lr": 0.01})) == 1


def test_unknown_keys_are_explained(store):
    with pytest.raises(ValueError, match="no run has a value 'temprature'; did you mean temperature"):
        runs(store).sort("temprature")
    with pytest.raises(ValueError, match="no run has a value 'kn'"):
        runs(store).where(kn=1)


def test_two_runs_are_compared_argument_by_argument(store):
    found = runs(store).compare("rotate", "later/sim")
    assert found.differences["settings.lr"] == (0.001, 0.01)
    assert found.differences["arguments.temperature"] == ("not set", 0.2)
    assert found.differences["algorithm"] == ("RotateNetSupervisor", "SimCLRSupervisor")
    assert found.same["settings.batch_size"] == 8 and "settings.name" not in {**found.same, **found.differences}
    assert found.metrics["loss"] == (runs(store)["rotate"].loss, runs(store)["later/sim"].loss)
    lines = str(found).splitlines()
    assert lines[0].split() == ["differs", "rotate", "later/sim"] and any(
        line.split() == ["settings.lr", "0.001", "0.01"] for line in lines
    )


def test_a_run_equals_itself(store):
    found = runs(store).compare("rotate", "rotate")
    assert not found.differences and str(found).startswith("rotate and rotate have the same arguments")


def test_a_running_run_whose_process_is_gone_was_killed(store):
    copy_run(store, "alive", state="running")
    copy_run(store, "gone", state="running")
    copy_run(store, "left", state="running")
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    with RunLock(store / "alive"):
        holder = json.loads((store / "alive.lock").read_text())
        (store / "left.lock").write_text(json.dumps({**holder, "pid": ended.pid}))
        table = runs(store)
        assert [table[name].state for name in ("alive", "gone", "left", "rotate")] == [
            "running",
            "killed",
            "killed",
            "finished",
        ]


def test_damaged_and_foreign_files_are_passed_over_and_counted(store):
    (store / "mlflow").mkdir()
    (store / "mlflow" / "meta.yaml").write_text("artifact_uri: x\nname: y\n")
    (store / "list.yaml").write_text("- 1\n")
    (store / "bytes.yaml").write_bytes(bytes(range(256)))
    (store / "torn.yaml").write_text("algorithm: X\narguments: {a: [1")
    (store / "nobody.yaml").write_text("algorithm: [1]\n")
    (store / "folder.yaml").mkdir()
    table = runs(store)
    assert len(table) == 2 and table.others == 2  # not that in mlflow
    assert {Path(path).name for path in table.broken} == {"torn.yaml", "nobody.yaml"}
    lines = str(table).splitlines()
    assert lines[-1] == "2 other .yaml files passed over" and lines[-2].startswith(
        f"not read: {store}/torn.yaml: {store}/torn.yaml is damaged: not valid YAML"
    )


def test_what_a_run_lacks_is_empty(store):
    (store / "bare.yaml").write_text("algorithm: Mine\nepochs: many\nstart: 3\n")
    (store / "rotate.csv").write_text("epoch,loss\n1,not a number\n2\n,,,,\n")
    table = runs(store)
    assert [table["bare"][name] for name in ("method", "state", "loss", "minutes", "epochs")] == [
        "mine",
        "unknown",
        None,
        None,
        None,
    ]
    assert table["rotate"].loss is None and table["rotate"].epoch == 2
    assert len(str(table).splitlines()) == 5


def test_a_class_of_the_user_is_named_by_its_class(tmp_path):
    class Own(RotateNetSupervisor):
        pass

    train(tmp_path / "store" / "own", Own, epochs=1)
    run = runs(tmp_path / "store")[0]
    assert run.method == "Own" and run.facts["module"] == __name__


def test_records_are_written_as_csv(store, tmp_path):
    copy_run(store, "good", measured(0.4))
    with runs(store).to_csv(tmp_path / "new" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows if row["knn"] == "0.4"] == ["rotatenet"] and len(rows) == 3


def test_records_become_a_data_frame(store):
    pytest.importorskip("pandas")
    frame = runs(store).to_pandas()
    assert list(frame["method"]) == ["simclr", "rotatenet"] and frame["loss"].dtype == float


def test_no_checkpoint_is_opened(trained, monkeypatch):
    import torch

    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a checkpoint was opened"))
    assert (trained / "rotate.pt").is_file()
    str(runs(trained))


def test_empty_and_missing_folders(tmp_path):
    assert str(runs(tmp_path)) == f"0 runs in {tmp_path}" and len(runs(tmp_path).sort("knn").where(knn=1)) == 0
    with pytest.raises(FileNotFoundError, match="there is no folder 'nowhere'; pass the one that supervise"):
        superself.runs("nowhere")


def test_copies_in_the_folders_of_trackers_are_not_listed_twice(store):
    for place in ("mlflow/artifacts/1", "copies"):
        (store / place).mkdir(parents=True)
        shutil.copy(store / "rotate.yaml", store / place)
    assert sorted(str(Path(run.name).relative_to(store)) for run in runs(store)) == [
        "copies/rotate",
        "later/sim",
        "rotate",
    ]


@pytest.mark.parametrize(
    "text", ["a: &a [1]\nb: [*a, *a]", "a: &a [*a]", "a: " + "[" * 900 + "]" * 900], ids=["alias", "cycle", "deep"]
)
def test_a_record_that_could_exhaust_the_memory_is_named(store, text):
    (store / "bad.yaml").write_text(f"algorithm: X\n{text}\n")
    table = runs(store)
    assert len(table) == 2 and list(table.broken) == [str(store / "bad.yaml")] and "not read" in str(table)


@pytest.mark.parametrize("epoch", ["inf", "nan", "abc"])
def test_a_run_with_an_impossible_epoch_is_named(store, epoch):
    copy_run(store, "bad", [{"epoch": epoch, "loss": 1}])
    table = runs(store)
    assert "bad.csv is damaged" in str(table) and len(table) == 2

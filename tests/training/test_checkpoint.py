import os
from pathlib import Path

import pytest
import torch
from torch import nn

from superself.training import (
    archive,
    dataset_state_keys,
    read_checkpoint,
    require_fit,
    require_writable,
    write_checkpoint,
)

RUN = {"algorithm": "RotateNetSupervisor", "model": {"weight": torch.ones(2)}}


def test_state_is_read_back_as_it_was_written():
    path = write_checkpoint("deep/folder/run", {**RUN, "epoch": 3, "names": ("a", None, [1.5, True])})
    assert str(path) == "deep/folder/run.pt"
    state = read_checkpoint("deep/folder/run")
    assert state["epoch"] == 3 and state["names"] == ("a", None, [1.5, True])
    assert torch.equal(state["model"]["weight"], torch.ones(2))


def test_a_failing_write_leaves_the_old_file_and_no_other(monkeypatch):
    write_checkpoint("run", {**RUN, "epoch": 1})

    def half(state, file):
        file.write(b"half a file")
        raise RuntimeError("PytorchStreamWriter failed writing file: no space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=r"Cannot write the checkpoint run\.pt: .*no space left"),
    ):
        patch.setattr(torch, "save", half)
        write_checkpoint("run", {**RUN, "epoch": 2})
    assert os.listdir() == ["run.pt"]
    assert torch.load("run.pt", weights_only=True)["epoch"] == 1


def test_values_that_cannot_be_read_back_safely_are_refused_with_their_place():
    with pytest.raises(TypeError, match=r"state\['optimizer'\]\['steps'\]\[1\] is a set"):
        write_checkpoint("run", {**RUN, "optimizer": {"steps": [1, {2}]}})
    assert not os.path.exists("run.pt")


def test_a_missing_run_lists_the_runs_in_its_folder():
    write_checkpoint("store/first", RUN)
    with pytest.raises(FileNotFoundError, match=r"no run 'store/second'.*store/first"):
        read_checkpoint("store/second")


@pytest.mark.parametrize("content", [b"", b"some text", None])
def test_a_file_that_is_not_a_checkpoint_is_refused(content):
    if content is None:
        torch.save({"weights": torch.ones(1)}, "run.pt")
    else:
        Path("run.pt").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"run\.pt (is not a readable checkpoint: its .*|is not a checkpoint of superself)"
    ):
        read_checkpoint("run")


def test_a_file_that_does_not_fit_lists_its_keys():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(ValueError, match="(?s)2 entries differ.*missing in the file: b.*only in the file: c") as error:
        require_fit(expected, {"a": torch.zeros(2), "c": torch.zeros(1)}, "store/base")
    assert "a is" not in str(error.value)
    with pytest.raises(ValueError, match=r"b is \(4,\) in the file and \(3,\) in this model"):
        require_fit(expected, {"a": torch.zeros(2), "b": torch.zeros(4)}, "store/base")


def test_a_folder_in_place_of_the_file_is_an_error_that_says_so():
    Path("store/base.pt").mkdir(parents=True)
    with pytest.raises(
        IsADirectoryError, match=r"Cannot write the checkpoint store/base\.pt: it is a folder; remove it"
    ):
        require_writable("store/base")
    with pytest.raises(IsADirectoryError, match=r"Cannot write the checkpoint store/base\.pt: Is a directory"):
        write_checkpoint("store/base", RUN)
    assert os.listdir("store") == ["base.pt"]


def test_a_file_in_place_of_the_folder_is_an_error_that_names_the_checkpoint():
    Path("store").write_text("")
    with pytest.raises(
        OSError, match=r"Cannot write the checkpoint store/base\.pt: .*; pass a name= in a folder with write"
    ):
        write_checkpoint("store/base", RUN)


@pytest.mark.parametrize("write", [require_writable, lambda name: write_checkpoint(name, RUN)], ids=["before", "while"])
def test_a_folder_without_write_permission_is_reported_before_and_while_writing(write, monkeypatch):
    def refuse(*arguments, **options):  # tests may run as root, who may write everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(
        PermissionError, match=r"Cannot write the checkpoint .*base\.pt: Permission denied; pass a name="
    ):
        write("store/base")
    assert os.listdir("store") == []


def test_a_name_without_a_file_name_is_refused():
    with pytest.raises(ValueError, match=r"name='' has no file name; pass a name such as 'store/base'"):
        write_checkpoint("", RUN)


def files_of_a_run(name, epoch):
    write_checkpoint(name, {**RUN, "epoch": epoch})
    Path(f"{name}.yaml").write_text(f"epoch: {epoch}")
    Path(f"{name}.csv").write_text("epoch\n1\n")


@pytest.mark.parametrize("name", ["store/base", "store/base.pt", Path("store/base")])
def test_archived_runs_are_numbered_and_can_be_loaded(name):
    files_of_a_run("store/base", 1)
    Path("store/base.skipped.txt").write_text("0\tbroken")
    Path("store/base_large.yaml").write_text("another run")
    assert archive(name) == Path("store/base.1.pt")
    files_of_a_run("store/base", 2)
    assert archive(name) == Path("store/base.2.pt")
    assert sorted(os.listdir("store")) == [
        *("base.1.csv", "base.1.pt", "base.1.skipped.txt", "base.1.yaml", "base.2.csv", "base.2.pt", "base.2.yaml"),
        "base_large.yaml",
    ]
    assert [read_checkpoint(f"store/base.{k}")["epoch"] for k in (1, 2)] == [1, 2]
    assert Path("store/base.2.yaml").read_text() == "epoch: 2"


def test_archive_takes_a_number_of_which_no_file_exists():
    files_of_a_run("base", 1)
    Path("base.1.csv").write_text("kept")
    assert archive("base") == Path("base.2.pt") and Path("base.1.csv").read_text() == "kept"


def test_archive_without_a_checkpoint_changes_nothing():
    Path("base.yaml").write_text("state: running")
    assert archive("base") is None and os.listdir() == ["base.yaml"]


def test_an_archive_interrupted_halfway_loses_no_file_and_is_completed(monkeypatch):
    files_of_a_run("base", 1)
    rename = os.rename

    def interrupted(source, target):
        if source.suffix == ".csv":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupted)
        archive("base")
    assert sorted(os.listdir()) == ["base.1.yaml", "base.csv", "base.pt"] and read_checkpoint("base")["epoch"] == 1
    assert archive("base") == Path("base.1.pt")  # completed
    assert sorted(os.listdir()) == ["base.1.csv", "base.1.pt", "base.1.yaml"]


def test_state_of_a_data_set_is_found_by_whole_names():
    class Bank(nn.Module):
        dataset_state = ("rows", "head")

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 1)
            for name in ("rows", "rows_momentum"):
                self.register_buffer(name, torch.zeros(1))

    assert dataset_state_keys(nn.Sequential(Bank())) == ["0.rows", "0.head.weight", "0.head.bias"]

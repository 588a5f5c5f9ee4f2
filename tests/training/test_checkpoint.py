import os
from pathlib import Path

import pytest
import torch

from superself.training import read_checkpoint, require_fit, write_checkpoint

RUN = {"algorithm": "RotateNetSupervisor", "model": {"weight": torch.ones(2)}}


def test_what_is_written_is_read_back():
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

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"could not write run\.pt"):
        patch.setattr(torch, "save", half)
        write_checkpoint("run", {**RUN, "epoch": 2})
    assert os.listdir() == ["run.pt"]
    assert torch.load("run.pt", weights_only=True)["epoch"] == 1


def test_what_cannot_be_read_back_safely_is_refused_with_its_place():
    with pytest.raises(TypeError, match=r"state\['optimizer'\]\['steps'\]\[1\] is a set"):
        write_checkpoint("run", {**RUN, "optimizer": {"steps": [1, {2}]}})
    assert not os.path.exists("run.pt")


def test_a_missing_run_names_those_that_are_there():
    write_checkpoint("store/first", RUN)
    with pytest.raises(FileNotFoundError, match=r"no run 'store/second'.*store/first"):
        read_checkpoint("store/second")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_file_that_is_no_checkpoint_is_refused(content):
    if content is None:
        torch.save({"weights": torch.ones(1)}, "run.pt")
    else:
        Path("run.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)run\.pt .*pass a file that supervise\(\) wrote"):
        read_checkpoint("run")


def test_a_file_that_does_not_fit_lists_its_keys():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(ValueError, match="(?s)2 of 2.*missing in the file: b.*unknown here: c") as error:
        require_fit(expected, {"a": torch.zeros(2), "c": torch.zeros(1)}, "store/base")
    assert "a is" not in str(error.value)
    with pytest.raises(ValueError, match=r"b is \(4,\) in the file and \(3,\) here"):
        require_fit(expected, {"a": torch.zeros(2), "b": torch.zeros(4)}, "store/base")

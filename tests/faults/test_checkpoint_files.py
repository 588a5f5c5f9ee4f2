"""Damaged, foreign and hostile checkpoints, and writes that are stopped at any point."""

from __future__ import annotations

import csv
import os
import random
import re
import resource
import stat
import zipfile
from pathlib import Path

import pytest
import torch

import superself
from superself import RotateNetSupervisor
from superself.training import Record, read_checkpoint, require_space, require_writable, write_checkpoint
from superself.training.checkpoint import FORMAT, expected_bytes, first_nonfinite
from superself.training.files import remove_leftovers, replacing
from superself.training.stored_state import run_state

from cases import CASES, TinyBackbone, tiny_images
from processes import in_another_process

SHORT = {"epochs": 1, "batch_size": 8, "name": "run", "progress": False}
RUN = {"algorithm": "RotateNetSupervisor", "model": {"weight": torch.arange(6.0)}}
FOUR = ["BiGanSupervisor", "InstanceDiscriminationSupervisor", "MomentumContrastSupervisor", "RotateNetSupervisor"]
CASE = {case.algorithm.__name__: case for case in CASES}


def rotatenet(**arguments):
    return RotateNetSupervisor(tiny_images(), **{"backbone": TinyBackbone(), "seed": 0, **arguments})


def assert_equal(one, other, place="state"):
    """Equal values of the same types; tensors bit by bit."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape, place
        assert one.cpu().numpy().tobytes() == other.cpu().numpy().tobytes(), place
    elif isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for position, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{place}[{position}]")
    else:
        assert one == other or one != one, place


# ---- damage ----------------------------------------------------------------------------------------------------------


def flip(content, bit):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    Path("run.pt").write_bytes(damaged)


@pytest.mark.parametrize("algorithm", FOUR)
def test_a_flipped_bit_is_refused_or_changes_nothing(algorithm):
    CASE[algorithm].make().supervise(**SHORT)
    content, state = Path("run.pt").read_bytes(), read_checkpoint("run")
    refused = 0
    for bit in random.Random(0).sample(range(8 * len(content)), 60):
        flip(content, bit)
        try:
            found = read_checkpoint("run")
        except ValueError as error:
            assert "run.pt is not a readable checkpoint: " in str(error) and "weights_only" not in str(error)
            refused += 1
        else:
            assert_equal(found, state)
    assert refused > 25  # much of a tiny file is padding


def test_a_flipped_bit_between_the_weights_is_refused_or_changes_nothing():
    write_checkpoint("run", RUN)
    content, state = Path("run.pt").read_bytes(), read_checkpoint("run")
    for bit in range(0, 8 * len(content), 101):  # most of this file is headers and names
        flip(content, bit)
        try:
            found = read_checkpoint("run")
        except ValueError as error:
            assert str(error).startswith("run.pt ") and "weights_only" not in str(error)
        else:
            assert_equal(found, state)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(share):
    write_checkpoint("run", RUN)
    content = Path("run.pt").read_bytes()
    Path("run.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"run\.pt is not a readable checkpoint: its \d+ bytes .*; restore a copy"):
        read_checkpoint("run")


def repack(source, change=lambda name, data: data, **options):
    with zipfile.ZipFile(source) as old:
        parts = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(source, "w", **options) as new:
        for name, data in parts.items():
            new.writestr(name, change(name, data))


def test_a_compressed_file_is_refused_before_it_is_expanded(monkeypatch):
    write_checkpoint("run", RUN | {"large": torch.zeros(1_000_000)})
    repack("run.pt", compression=zipfile.ZIP_DEFLATED)
    assert os.path.getsize("run.pt") < 20_000
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("was read"))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: pytest.fail("was expanded"))
    with pytest.raises(ValueError, match=r"run\.pt is not a readable checkpoint: it has compressed entries"):
        read_checkpoint("run")


def test_entries_that_share_their_bytes_are_refused():
    write_checkpoint("run", RUN | {"large": torch.zeros(1000)})
    content = Path("run.pt").read_bytes()
    with zipfile.ZipFile("run.pt") as archive:
        large = next(e for e in archive.infolist() if e.file_size == 4000)
        start, directory = archive.start_dir, content[archive.start_dir :]
    entry = re.search(rb"PK\x01\x02.{42}" + large.filename.encode(), directory, re.DOTALL)[0]
    end = directory[-22:]
    count = 1000
    size = (count * len(entry)).to_bytes(4, "little")
    end = end[:8] + count.to_bytes(2, "little") * 2 + size + start.to_bytes(4, "little") + end[20:]
    Path("run.pt").write_bytes(content[:start] + count * entry + end)
    with pytest.raises(ValueError, match=r"its entries take 4000000 bytes and the file has \d+"):
        read_checkpoint("run")


def test_an_entry_that_is_marked_as_a_folder_is_refused():
    write_checkpoint("run", RUN)
    content = bytearray(Path("run.pt").read_bytes())
    header = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/0"))
    content[header + 38] |= 0x10
    Path("run.pt").write_bytes(content)  # torch would leave the weights as their memory happens to be
    with pytest.raises(
        ValueError, match=r"run\.pt is not a readable checkpoint: its part '.*/data/0' is marked as a folder"
    ):
        read_checkpoint("run")


def test_something_appended_is_refused():
    write_checkpoint("run", RUN)
    with zipfile.ZipFile("run.pt", "a") as archive:
        archive.comment = b"more"
    with pytest.raises(ValueError, match="or something was appended to it"):
        read_checkpoint("run")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_file_with_code_is_refused_without_advice_to_run_it():
    torch.save({**RUN, "format": FORMAT, "extra": Malicious()}, "run.pt")
    with pytest.raises(ValueError, match=r"run\.pt holds other objects than tensors and plain values") as caught:
        rotatenet().load("run")
    shown = str(caught.value) + str(caught.value.__cause__)
    assert "weights_only" not in shown and caught.value.__suppress_context__ and not os.path.exists("executed")


# ---- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"format": 7}, "has format 7 .written by superself 9.1.0.*reads format 1; upgrade superself"),
        ({}, "has no format number .written by superself 9.1.0.*; load it with that version, or train again"),
        ({"format": 0}, "has format 0 .*reads format 1; load it with that version"),
        ({"format": "x"}, "has format 'x' .*; load it with that version"),
    ],
    ids=str,
)
def test_a_file_of_another_format_is_refused_with_both_versions(stored, message):
    torch.save({**RUN, **stored, "versions": {"superself": "9.1.0"}}, "run.pt")
    with pytest.raises(ValueError, match=rf"run\.pt {message}"):
        rotatenet().load("run")
    torch.save({"format": FORMAT + 1, "networks": {}}, "run.pt")  # the future may rename everything
    with pytest.raises(ValueError, match=f"superself unknown.*superself {superself.__version__} reads"):
        read_checkpoint("run")


@pytest.mark.parametrize("model", [None, [1], {"weight": 1.0}], ids=str)
def test_a_file_without_weights_is_refused(model):
    torch.save({**RUN, "format": FORMAT, "model": model}, "run.pt")
    with pytest.raises(ValueError, match=r"run\.pt lacks the weights of a model"):
        read_checkpoint("run")


# ---- weights that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_tensor_that_is_not_finite_is_found(value, dtype):
    good, bad = torch.zeros(5, dtype=dtype), torch.zeros(5, dtype=dtype)
    bad[3] = value
    tensors = {"a": good, "empty": torch.zeros(0), "count": torch.tensor(3), "mask": torch.ones(2, dtype=torch.bool)}
    assert first_nonfinite(tensors) is None
    assert first_nonfinite({**tensors, "b": bad, "c": bad}) == "b"


@pytest.mark.parametrize("algorithm", FOUR)
def test_weights_that_are_not_finite_are_neither_stored_nor_loaded(algorithm):
    supervisor = CASE[algorithm].make().supervise(**SHORT)
    before, name = Path("run.pt").read_bytes(), next(iter(dict(supervisor.named_parameters())))
    stored = read_checkpoint("run")
    stored["model"][name].fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=rf"{name} is not finite.*run\.pt keeps what was stored before"):
        write_checkpoint("run", stored)
    assert Path("run.pt").read_bytes() == before and os.listdir().count("run.pt") == 1
    with pytest.raises(FloatingPointError, match="nothing has been stored"):
        write_checkpoint("other", stored)
    torch.save(stored, "run.pt")
    with pytest.raises(ValueError, match=rf"run\.pt holds weights that are not finite, first in {name}"):
        CASE[algorithm].make().load("run")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.algorithm.__name__)
def test_a_new_supervisor_has_finite_weights_and_buffers(case):
    assert first_nonfinite(case.make().state_dict()) is None


class Overflows(RotateNetSupervisor):
    def _after_step(self):
        if self.step == 3:
            next(self.parameters()).data.fill_(torch.inf)


def test_a_run_whose_weights_overflow_stops_and_keeps_the_last_good_epoch():
    supervisor = Overflows(tiny_images(), backbone=TinyBackbone(), seed=0)
    with pytest.raises(FloatingPointError, match=r"is not finite in epoch 2, step 4: run\.pt keeps"):
        supervisor.supervise(**SHORT | {"epochs": 3})
    assert read_checkpoint("run")["epoch"] == 1


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_symbolic_link_stays_one():
    os.makedirs("large_disk")
    os.symlink("large_disk/file.pt", "run.pt")
    for _ in range(2):
        rotatenet().supervise(**SHORT | {"overwrite": True})
    assert os.path.islink("run.pt") and os.listdir("large_disk") == ["file.pt"] and read_checkpoint("run")["epoch"] == 1


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_permissions_are_those_of_any_new_file(mask):
    before = os.umask(mask)
    try:
        rotatenet().supervise(**SHORT)
    finally:
        os.umask(before)
    for ending in ("pt", "yaml", "csv"):
        assert stat.S_IMODE(os.stat(f"run.{ending}").st_mode) == 0o666 & ~mask


def test_the_file_and_its_folder_are_synced(monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (synced.append(stat.S_ISDIR(os.fstat(d).st_mode)), fsync(d)))
    write_checkpoint("run", RUN)
    assert synced == [False, True]


def test_leftovers_of_killed_writes_are_removed_at_the_next_start_and_no_other_file():
    for name in (".run.pt.0123abcd.tmp", ".run.csv.0123abcd.tmp", ".run.yaml.ffffffff.tmp"):
        Path(name).write_text("half")
    others = [".run2.pt.0123abcd.tmp", ".run.pt.backup.tmp", "run.txt", ".run.1.pt.0123abcd.tmp"]
    for name in others:
        Path(name).write_text("kept")
    rotatenet().supervise(**SHORT)
    assert sorted(os.listdir()) == sorted([*others, "run.csv", "run.html", "run.pt", "run.yaml"])


def test_leftovers_next_to_the_target_of_a_link_are_removed():
    os.makedirs("disk")
    os.symlink("disk/file.pt", "run.pt")
    Path("disk/.file.pt.0123abcd.tmp").write_text("half")
    remove_leftovers("run")
    assert os.listdir("disk") == []


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(error):
    Path("file").write_text("old")
    with pytest.raises(type(error)), replacing(Path("file")) as file:
        file.write(b"new")
        raise error
    assert os.listdir() == ["file"] and Path("file").read_text() == "old"


def read_rows(name="run"):
    with open(f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("algorithm", FOUR)
def test_table_and_checkpoint_agree_after_a_kill_between_them(algorithm):
    def killed(self, row, original=Record.epoch):
        if row["epoch"] == 2:
            os._exit(9)
        original(self, row)

    def train():
        Record.epoch = killed
        CASE[algorithm].make().supervise(**SHORT | {"epochs": 3})

    assert in_another_process(train) == 9
    assert read_checkpoint("run")["epoch"] == 2 and [row["epoch"] for row in read_rows()] == ["1"]
    CASE[algorithm].make().supervise(**SHORT | {"epochs": 3}, resume=True)
    CASE[algorithm].make().supervise(**SHORT | {"epochs": 3, "name": "whole"})
    assert [(row["epoch"], row["loss"]) for row in read_rows()] == [(r["epoch"], r["loss"]) for r in read_rows("whole")]


@pytest.mark.parametrize("stop_at", range(3))
def test_an_archive_killed_at_any_point_loses_and_mixes_nothing(stop_at):
    rotatenet().supervise(**SHORT)
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    rename, calls = os.rename, []

    def killed(source, target):
        if len(calls) == stop_at:
            os._exit(9)
        if os.path.exists(source):
            calls.append(source)
        rename(source, target)

    def train():
        os.rename = killed
        rotatenet().supervise(**SHORT)

    assert in_another_process(train) == 9
    rotatenet().supervise(**SHORT)
    archived = {path.name.replace("run.1.", "run."): path.read_bytes() for path in Path().glob("run.1.*")}
    assert archived == before and not list(Path().glob("run.2.*")) and len(read_rows()) == 1


# ---- space and limits ------------------------------------------------------------------------------------------------


def test_too_little_space_is_reported_before_the_first_step_with_numbers(monkeypatch):
    class Usage:
        free = 3 * 2**20

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    require_space("run", 2**20)
    with pytest.raises(
        OSError, match=r"Cannot write the checkpoint run\.pt: 2 x 2\.0 MB are needed and 3\.0 MB are free; free some"
    ):
        require_space("run", 2 * 2**20)
    require_space("run", 2 * 2**20, copies=1)
    Usage.free = 1000
    supervisor = rotatenet()
    with pytest.raises(OSError, match="are needed and 0.0 MB are free"):
        supervisor.supervise(**SHORT)
    assert os.listdir() == [] and supervisor.step == 0


def test_the_expected_size_is_that_of_the_file():
    for optimizer in ("adam", "sgd"):
        supervisor = rotatenet().supervise(**SHORT | {"optimizer": optimizer, "overwrite": True})
        run = supervisor.run
        tensors = expected_bytes(run_state(run), run.optimizer)
        run.optimizer.state.clear()
        assert expected_bytes(run_state(run), run.optimizer) == pytest.approx(tensors, rel=0.01)
        assert 0.3 < tensors / os.path.getsize("run.pt") < 1  # tiny tensors, so that headers count


def test_a_limit_on_the_size_of_files_is_an_error_that_keeps_the_old_file():
    write_checkpoint("run", RUN)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        with pytest.raises(OSError, match=r"Cannot write the checkpoint run\.pt: File too large; pass a name= "):
            write_checkpoint("run", {**RUN, "model": {"weight": torch.zeros(100_000)}})
        with pytest.raises(
            OSError, match=r"it takes 0\.4 MB and this process may write files of at most 0\.2 MB; raise the limit"
        ):
            require_space("run", 400_000)
        with pytest.raises(OSError, match="may write files of at most 0.2 MB"):
            RotateNetSupervisor(tiny_images(), backbone="squeezenet1_1").supervise(**SHORT | {"name": "large"})

    assert in_another_process(limited) == 0
    assert os.listdir() == ["run.pt"] and read_checkpoint("run")["model"]["weight"][5] == 5


def test_a_name_that_is_too_long_is_refused_with_its_length():
    with pytest.raises(
        OSError, match=r"Cannot write the checkpoint a+\.pt: File name too long \(a part has 303 bytes; "
    ):
        require_writable("a" * 300)
    with pytest.raises(OSError, match="File name too long"):
        rotatenet().supervise(**SHORT | {"name": "a" * 300 + "/run"})
    with pytest.raises(OSError, match="null byte"):
        require_writable("a\0b")


def test_an_unwritable_disk_is_noticed_although_permissions_allow_writing(monkeypatch):
    def read_only(path, mode="r", *args, original=open, **kwargs):
        if "x" in mode or "w" in mode:
            raise OSError(30, "Read-only file system")
        return original(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", read_only)
    with pytest.raises(OSError, match=r"Cannot write the checkpoint run\.pt: Read-only file system; pass a name="):
        require_writable("run")


class FullDisk:
    """Lets writing fail as a full disk does: os.fsync raises."""

    def __init__(self, monkeypatch, epochs):
        self.count, self.epochs = 0, epochs
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            self.count += 1
            if self.count in self.epochs:
                raise OSError(28, "No space left on device")


@pytest.mark.parametrize("algorithm", FOUR)
def test_training_goes_on_when_the_disk_is_full_for_an_epoch(algorithm, monkeypatch):
    FullDisk(monkeypatch, epochs=[2])
    with pytest.warns(UserWarning, match="epoch 2 could not be saved .*No space left on device"):
        CASE[algorithm].make().supervise(**SHORT | {"epochs": 3})
    assert read_checkpoint("run")["epoch"] == 3 and [row["epoch"] for row in read_rows()] == ["1", "2", "3"]
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


def test_an_error_of_training_is_shown_although_the_disk_is_full_too(monkeypatch):
    class Fails(RotateNetSupervisor):
        def _forward(self, data):
            if self.step == 3:
                raise ZeroDivisionError("of the user")
            return super()._forward(data)

    FullDisk(monkeypatch, epochs=range(9))
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.warns(UserWarning), pytest.raises(ZeroDivisionError, match="of the user"):
        Fails(tiny_images(), backbone=TinyBackbone(), seed=0).supervise(**SHORT | {"epochs": 3})

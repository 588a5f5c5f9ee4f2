"""Folders with loops, pipes, dead links and names of every kind; nothing is written there, and no connection is opened."""

from __future__ import annotations

import os
import socket
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import TensorDataset

from superself import RotateNetSupervisor
from superself.data import BatchLoader, SequentialBatches, folders, open_images
from superself.data.folders import find_files, match_files
from superself.data.wording import printable

from cases import TinyBackbone

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
RANDOM = np.random.default_rng(0)


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(os.fspath(path), format="png")
    return path


@posix
def test_links_to_folders_above_and_besides_are_followed_once(tmp_path):
    root = tmp_path / "images"
    files = [save(root / name) for name in ("a/1.png", "b/2.png", "3.png")]
    outside = save(tmp_path / "other" / "4.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "self").symlink_to(".")
    (root / "aa").symlink_to(root / "b")
    (root / "z").symlink_to(outside.parent)
    (root / "y").symlink_to(outside.parent)
    (root / "link.png").symlink_to(files[0])
    found = find_files(root)
    assert found.files == sorted([*files, root / "link.png", root / "y" / "4.png"])
    assert sorted(found.left_out) == [str(root / name) for name in ("a/loop", "aa", "b/self", "z")]
    assert found.left_out[str(root / "aa")] == f"a link to {root / 'b'}, which is read already"
    images = open_images(root)
    assert len(images) == 5 and "; 4 left out: " in images.describe() and set(found.left_out) <= set(images.skipped)
    assert images.broken_places().tolist() == []


@posix
def test_patterns_read_every_folder_once(tmp_path):
    files = [save(tmp_path / name) for name in ("a/1.png", "a/b/2.png", "c/3.png")]
    for name in ("x", "y", "a/z"):  # glob.glob would go 2 ** 40 ways
        (tmp_path / name).symlink_to(tmp_path)
    assert match_files(f"{tmp_path}/**/*.png").files == files
    assert match_files(f"{tmp_path}/**").files == files
    assert (
        match_files(f"{tmp_path}/a/**/*.png").files == files[:2]
        or len(match_files(f"{tmp_path}/a/**/*.png").files) == 3
    )
    assert match_files(f"{tmp_path}/[ac]/*.png").files == [files[0], files[2]]
    assert match_files(f"{tmp_path}/**/[23].png").files == files[1:]


@posix
def test_pipes_sockets_and_devices_are_left_out_and_never_opened(tmp_path):
    save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
        began = time.monotonic()
        for source in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/**/*"):
            images = open_images(source)
            assert len(images) == 1
            assert images.skipped == {
                str(tmp_path / name): "not a regular file but a pipe, socket or device"
                for name in ("pipe.jpg", "null.jpg", "socket.png")
            }
            assert len(open_images(source, read=lambda path: Image.open(path))) == 1
        with pytest.raises(
            FileNotFoundError, match=r"1 of 2 paths are not files, the first is .*pipe.jpg; pass existing"
        ):
            open_images([tmp_path / "good.png", tmp_path / "pipe.jpg"])
        with pytest.raises(ValueError, match=r"pipe.jpg' is a pipe, socket or device; pass a folder or an image file"):
            open_images(tmp_path / "pipe.jpg")
        assert time.monotonic() - began < 5
    (tmp_path / "good.png").unlink()
    with pytest.raises(ValueError, match=r"no image files in .*left out: .*pipe.jpg .not a regular file"):
        open_images(tmp_path)


@posix
def test_file_that_became_a_pipe_is_broken_and_does_not_hang(tmp_path):
    for i in range(30):
        save(tmp_path / f"{i:02d}.png")
    images = open_images(tmp_path)
    (tmp_path / "03.png").unlink()
    os.mkfifo(tmp_path / "03.png")
    assert images.batch([3]).index.tolist() == [4]
    assert list(images.skipped.values()) == ["ValueError: not a regular file but a pipe, socket or device"]


@posix
def test_link_to_a_missing_file_is_a_broken_image(tmp_path):
    for i in range(30):
        save(tmp_path / f"{i:02d}.png")
    (tmp_path / "03.png").unlink()
    (tmp_path / "03.png").symlink_to(tmp_path / "nowhere.png")
    images = open_images(tmp_path)
    assert len(images) == 30 and images.batch([3]).index.tolist() == [4]
    assert "No such file" in images.skipped[str(tmp_path / "03.png")]


def test_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    save(tmp_path / "a" / "1.png"), save(tmp_path / "secret" / "2.png")
    listed = folders._entries

    def entries(folder):
        if folder.name == "secret":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(folders, "_entries", entries)
    images = open_images(tmp_path)
    assert len(images) == 1
    reason = "the folder cannot be read (PermissionError: [Errno 13] Permission denied)"
    assert images.skipped == {str(tmp_path / "secret"): reason}
    assert f"1 left out: {tmp_path / 'secret'} ({reason})" in images.describe()
    with pytest.raises(ValueError, match="no image files in .*left out: .*secret .the folder cannot be read"):
        open_images(tmp_path / "secret")


@posix
def test_class_folders_are_read_once_too(tmp_path):
    files = [save(tmp_path / name) for name in ("cat/1.png", "dog/2.png")]
    (tmp_path / "a").symlink_to(tmp_path / "dog")
    (tmp_path / "cat" / "all").symlink_to(tmp_path)
    images = open_images(f"imagefolder:{tmp_path}")
    assert images.paths == files and images.labels.tolist() == [1, 2] and images.classes == ["a", "cat", "dog"]
    assert len(images.skipped) == 2


ODD_NAMES = [
    b"caf\xe9.png",
    b"new\nline.png",
    b"tab\there.png",
    "über maß.png".encode(),
    b" space .png",
    b"\xff\xfe.png",
]


@posix
def test_names_of_every_kind_work_in_every_list(tmp_path, capsys):
    root = tmp_path / "b\udce9e"  # a byte that is not UTF-8
    for name in ODD_NAMES:
        save(root / os.fsdecode(name))
    for i in range(50):
        save(root / f"{i:02d}.png")
    images = open_images(root)
    assert len(images) == 56 and not images.skipped and len(images.fingerprint) == 32
    assert images.batch(range(56)).index.tolist() == list(range(56))
    for name in ODD_NAMES[:2]:
        (root / os.fsdecode(name)).write_bytes(b"no image")
    images = open_images(root)
    text = "\n".join([*images.names, *images.skipped, images.describe()])
    text.encode()
    assert printable(text.replace("\n", "")) == text.replace("\n", "")
    broken = [os.path.basename(name) for name in images.skipped]
    assert broken == ["caf\\xe9.png", "new\\nline.png"]
    assert {"tab\\there.png", "über maß.png", " space .png", "\\xff\\xfe.png"} <= {
        os.path.basename(n) for n in images.names
    }
    supervisor = RotateNetSupervisor(root, backbone=TinyBackbone(), seed=0)
    supervisor.supervise(epochs=1, batch_size=8, num_workers=1, name=tmp_path / "run")
    lines = (tmp_path / "run.skipped.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and all(line.count("\t") == 1 for line in lines)
    assert "54 used" in yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))["data"]
    for wrong in (root / "nothing\udce9.png", [root / "nothing\udce9.png"], root / "*.bmp"):
        with pytest.raises((FileNotFoundError, ValueError)) as found:
            open_images(wrong)
        str(found.value).encode()


def tree(root):
    return {path: path.lstat()[:9] for path in root.rglob("*")}  # all but the time of the last access


def test_nothing_is_written_into_a_folder_of_images(tmp_path):
    root = tmp_path / "images"
    for i in range(6):
        save(root / f"{i}.png")
    np.save(root / "5.npy", RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    before = tree(tmp_path)
    root.chmod(0o555)
    try:
        for images in (open_images(root), open_images(root).load()):
            list(BatchLoader(images, SequentialBatches(7, 3), num_workers=1))
            images.fingerprint, images.sample(3), images.describe()
    finally:
        root.chmod(0o755)
    after = tree(tmp_path)
    assert before.keys() == after.keys()
    assert all(before[path][6:] == after[path][6:] for path in before if path != root)  # size and times


def test_no_connection_is_opened(tmp_path, monkeypatch):
    for i in range(6):
        save(tmp_path / f"{i}.png")

    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    pixels = torch.randint(256, (6, 3, 8, 8)).byte()
    for source in (tmp_path, f"{tmp_path}/*.png", pixels, pixels.permute(0, 2, 3, 1).numpy(), TensorDataset(pixels)):
        images = open_images(source)
        assert len(images.load().fingerprint) == 32 and images.in_memory
        assert sum(len(batch) for batch in BatchLoader(images, SequentialBatches(6, 3))) == 6

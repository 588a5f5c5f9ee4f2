"""Training touches nothing but its own files: no network, and no file outside the run's name and the temporary folder."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from cases import tiny_images

NAMES = ("RotateNetSupervisor", "MomentumContrastSupervisor", "InstanceDiscriminationSupervisor", "BiGanSupervisor")
SCRIPT = """
import multiprocessing, os, sys, tempfile

from cases import CASES

folder, start_method, names = sys.argv[1], sys.argv[2], sys.argv[3:]
allowed = (os.path.join(folder, "runs"), tempfile.gettempdir(), "/dev/", "/proc/")


def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path, mode, flags = os.path.abspath(os.fsdecode(arguments[0])), arguments[1] or "", arguments[2]
        writes = set(mode) & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and not path.startswith(allowed):
            raise PermissionError(f"{path} was opened for writing")
    folders = {"os.mkdir": 2, "os.remove": 1}  # where an open folder stands in the arguments that the name is relative to
    relative = event in folders and arguments[folders[event]] != -1
    if event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink") and not relative:
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(allowed) and path != os.path.dirname(allowed[0]):
            raise PermissionError(f"{event} of {path}")
    if event in ("socket.getaddrinfo", "socket.connect") and not isinstance(arguments[-1], (str, bytes)):
        raise PermissionError(f"{event} {arguments[1:]}")  # pipes between processes have a name instead of an address


if __name__ == "__main__":
    if start_method != "none":
        multiprocessing.set_start_method(start_method)
    os.chdir(folder)
    sys.addaudithook(watch)
    for case in (case for case in CASES if case.algorithm.__name__ in names):
        supervisor = case.make(os.path.join(folder, "images"), memory_limit=0)
        name, workers = f"runs/{case.algorithm.__name__}", int(start_method != "none")
        supervisor.supervise(epochs=1, batch_size=8, num_workers=workers, name=name).load(name)
        print(case.algorithm.__name__, "done")
"""


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(tiny_images()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize(
    ("start_method", "names"),
    [("none", NAMES), ("fork", NAMES[:1]), pytest.param("spawn", NAMES[:1], marks=pytest.mark.thorough)],
)
def test_a_run_opens_no_connection_and_writes_only_its_own_files(start_method, names, tmp_path, images):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, tmp_path, start_method, *names]
    with tempfile.TemporaryDirectory() as scratch:  # with a short name: workers send batches over sockets in it
        environment = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[level]) for level in (1, 2)),
            "TMPDIR": scratch,
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    finished = [line for line in done.stdout.splitlines() if line.endswith("done")]
    assert finished == [f"{name} done" for name in sorted(names)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "runs", "train.py"]

"""RunLock: one process at a time writes the files of a run."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import socket
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from superself.basics.distributed import rank
from superself.training.files import remove_leftovers, run_path

BEAT = 60.0  # seconds from one sign of life to the next: the time of the lock file is set
STALE = 600.0  # seconds without one after which the lock of another machine counts as left behind


class RunLock:
    """Context manager that holds NAME.lock, so that two runs of one name do not mix their files.

    The file tells process, machine and when the process started. It is removed at the end, also after an exception. One that
    a killed process left is taken over: at once if that process ran on this machine and is gone (a process that got its number
    later is not mistaken for it), and after ten minutes without a sign of life if it ran on another machine or container. A
    job that SLURM restarted elsewhere takes over its own lock at once. Of several processes, only rank 0 takes the lock.
    Where no lock file can be created, the run goes on without, with a warning.

    Args:
        name: of the run; its folder exists.
    Raises:
        RuntimeError: on entering, if another process, or a thread of this one, holds the lock.
    """

    def __init__(self, name: str | Path) -> None:
        self.name, self.path = name, run_path(name, ".lock")
        self._text = ""  # of the file while this object holds it
        self._ended = threading.Event()

    def __enter__(self) -> RunLock:
        if rank() > 0:
            return self
        text = json.dumps({**_this_process(), "since": _now(), "token": secrets.token_hex(8)})
        try:
            while not self._create(text):
                self._remove_if_stale()
        except OSError as error:
            warnings.warn(
                f"{self.path} cannot be created ({error.strerror or error}), so nothing keeps a second run of this name from "
                "mixing its files with those of this one.",
                stacklevel=2,
            )
            return self
        self._text, self._pid = text, os.getpid()
        try:
            remove_leftovers(self.name)
            self._ended.clear()
            threading.Thread(target=self._beat, name="superself-lock", daemon=True).start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            if (
                self._text and self._pid == os.getpid() and _read(self.path) == self._text
            ):  # a forked process has a copy
                self.path.unlink()
        self._text = ""

    def _create(self, text: str) -> bool:
        """Creates the lock file, which only one process can; False if there is one."""
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        except BaseException:
            self.path.unlink()
            raise
        return True

    def _remove_if_stale(self) -> None:
        """Removes the lock file that a process left behind; raises a RuntimeError if the process is alive."""
        text = _read(self.path)
        for _ in range(10):  # its owner may have created it just now
            if text != "":
                break
            time.sleep(0.1)
            text = _read(self.path)
        if text is None:
            return
        holder = _parse(text)
        if not _is_stale(holder, self.path):
            raise RuntimeError(self._describe(holder))
        moved = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, moved)  # succeeds in one process only
            if _read(moved) == text:
                moved.unlink()
            else:  # another process took it over in between, and this is its lock
                os.rename(moved, self.path)

    def _describe(self, holder: dict[str, Any]) -> str:
        me, pid, last = _this_process(), holder.get("pid"), ""
        if holder.get("machine") != me["machine"]:
            process = f"process {pid} on {holder['host']}" if "host" in holder else "another process"
            last = f" If that has ended, remove {self.path}, or try again after {STALE / 60:.0f} minutes."
        else:
            process = "this process" if pid == me["pid"] else f"process {pid}"
        since = holder.get("since", "just now")
        return (
            f"The run {str(self.name)!r} is being trained by {process} (since {since}), and two runs of one name would mix their "
            f"files; pass another name=, or wait until it has ended.{last}"
        )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def is_running(name: str | Path) -> bool:
    """Whether a process holds the lock of the run ``name``; of another machine's, whether it has shown a sign of life lately."""
    path = run_path(name, ".lock")
    try:
        text = _read(path)
        return text is not None and not _is_stale(_parse(text), path)
    except OSError:  # there is one, and it cannot be read
        return True


def _is_stale(holder: dict[str, Any], path: Path) -> bool:
    """Whether the process that holds the lock is gone."""
    me = _this_process()
    if holder.get("job") and holder["job"] == me["job"] and holder.get("restarts", 0) < me["restarts"]:
        return True  # SLURM ended a job before it started it again
    if holder.get("machine") == me["machine"] and me["started"] is not None:
        return _start_time(holder.get("pid")) != holder.get("started")
    try:
        return time.time() - path.stat().st_mtime > STALE
    except FileNotFoundError:
        return True


def _this_process() -> dict[str, Any]:
    """What tells this process from every other one."""
    pid, host = os.getpid(), socket.gethostname()
    try:  # containers can share the name of their host, but not its processes
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return {
        "pid": pid,
        "host": host,
        "machine": f"{host} {namespace}",
        "started": _start_time(pid),
        "job": job,
        "restarts": int(restarts) if restarts.isdecimal() else 0,
    }


def _start_time(pid: Any) -> str | None:
    """When a process started, in clock ticks since the machine did; None if it has ended, or where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # the name of the program, in brackets, may hold anything
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]  # ended, but still listed


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _parse(text: str) -> dict[str, Any]:
    """The content of a lock file; empty if it is damaged, so that its time decides."""
    with contextlib.suppress(ValueError):
        holder = json.loads(text)
        if isinstance(holder, dict):
            return holder
    return {}


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds", sep=" ")

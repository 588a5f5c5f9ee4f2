"""One file per run with tensors and plain values only, written completely or not at all, and read only if it is intact."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from superself.training.files import RUN_FILES, checkpoint_path, figure_endings, replacing, run_path, unwritable
from superself.version import __version__

FOLDER = 0x10  # flag of an entry of a zip file
RESTORE = "restore a copy of it, or load another run"
FORMAT = 1  # of the content of a file; a higher number where older versions would misread it


def write_checkpoint(name: str | Path, state: dict[str, Any]) -> Path:
    """Writes ``state`` to a temporary file, syncs it and renames it, so that NAME.pt is a complete file at any time.

    Args:
        name: of the run; parent folders are created.
        state: nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
    Raises:
        TypeError: if ``state`` has a value that could not be read back safely; nothing is written.
        FloatingPointError: if a weight in ``state["model"]`` is not finite; nothing is written.
        OSError: if the file cannot be written; the previous file is kept.
    """
    require_plain(state, "state")
    path = checkpoint_path(name)
    broken = first_nonfinite(_expected_finite(state))
    if broken is not None:
        kept = f"{path} keeps what was stored before" if path.is_file() else "nothing has been stored"
        raise FloatingPointError(
            f"{broken} is not finite, so the run cannot be stored: {kept}. Training has diverged: try a lower lr, or clip=."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, sync=True) as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        raise unwritable(path, error) from error
    return path


def first_nonfinite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is NaN or infinite, or None."""
    return next(iter(nonfinite_names(tensors)), None)


def nonfinite_names(tensors: dict[str, Any]) -> list[str]:
    """The names of the tensors with a value that is NaN or infinite, in their order; fetched from their devices in one go."""
    values = {
        name: value
        for name, value in tensors.items()
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()) and value.numel()
    }
    if not values:
        return []
    device = next(iter(values.values())).device
    finite = torch.stack([_is_finite(value).to(device) for value in values.values()]).tolist()
    return [name for name, is_finite in zip(values, finite, strict=True) if not is_finite]


def _expected_finite(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights and buffers, without buffers that hold infinities on purpose, such as masks."""
    infinite = state.get("guard", {}).get("infinite", ())
    return {name: value for name, value in state.get("model", {}).items() if name not in infinite}


def _is_finite(tensor: Tensor) -> Tensor:
    if tensor.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        tensor = torch.stack(tensor.detach().aminmax())  # NaN if one is; ten times as fast as asking every value
    return tensor.isfinite().all()


def expected_bytes(state: dict[str, Any], optimizer: Optimizer) -> int:
    """How large the file of ``state`` will be, with what an optimizer that has not made a step will keep of each parameter."""
    total = sum(tensor.nbytes for tensor in _tensors(state))
    for group in () if optimizer.state else optimizer.param_groups:
        kept = 2 if "betas" in group else 1 if group.get("momentum") else 0  # moments per parameter
        total += kept * sum(parameter.nbytes for parameter in group["params"])
    return total


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def archived_path(name: str | Path) -> Path | None:
    """Where ``archive`` would move the checkpoint of a run: NAME.1.pt, or the first number that is free; None without one."""
    path = checkpoint_path(name)
    if not path.is_file():
        return None
    number = 1
    while not _is_free(path, number):
        number += 1
    return run_path(path, f".{number}.pt")


def _is_free(path: Path, number: int) -> bool:
    """Whether no file would be overwritten. An archive that was interrupted has moved some files, and is completed."""
    endings = (*figure_endings(path), *RUN_FILES)
    exists = {ending: os.path.lexists(run_path(path, f".{number}{ending}")) for ending in endings}
    return not exists[".pt"] and not any(exists[e] and os.path.lexists(run_path(path, e)) for e in endings)


def archive(name: str | Path) -> Path | None:
    """Renames NAME.pt, .best.pt, .yaml, .csv, .html, .skipped.txt and pictures of a run to NAME.1.*, or the first free number.

    A new run can then be stored as NAME. The old one is loaded as "NAME.1".

    Returns:
        The new path of the checkpoint, or None if there was no checkpoint to rename.
    """
    path, target = checkpoint_path(name), archived_path(name)
    if target is None:
        return None
    endings = (*figure_endings(path), *RUN_FILES)
    for ending in endings:  # the checkpoint last: if this is interrupted, the next call completes it
        with contextlib.suppress(FileNotFoundError):
            os.rename(run_path(path, ending), run_path(target, ending))
    return target


def read_checkpoint(name: str | Path) -> dict[str, Any]:
    """Reads the file of a run onto the CPU without executing any code from it.

    Raises:
        FileNotFoundError: if there is no such file; lists the runs in its folder.
        ValueError: if the file is not a checkpoint of this package and format, is damaged, or has weights that are not finite.
    """
    path = checkpoint_path(name)
    if not path.is_file():
        others = sorted(str(p.with_suffix("")) for p in path.parent.glob("*.pt"))
        raise FileNotFoundError(
            f"There is no run {str(name)!r}: {path} does not exist (runs in this folder: {', '.join(others) or 'none'}); "
            f"pass the name that was given to supervise(name=...)."
        )
    try:
        with path.open("rb") as file:  # read as one file, even if a run replaces it meanwhile
            _require_intact(file)
            file.seek(0)
            state = _load_plain(file)
    except _Damaged as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}; {RESTORE}.") from None
    except pickle.UnpicklingError:  # without torch's message, which advises to turn off its safety
        raise ValueError(
            f"{path} holds other objects than tensors and plain values, which are not loaded because they could run any code; "
            "pass a file that supervise() wrote."
        ) from None
    _require_format(path, state)
    broken = first_nonfinite(_expected_finite(state))
    if broken is not None:
        raise ValueError(
            f"{path} holds weights that are not finite, first in {broken}: that run had diverged; load an earlier one."
        )
    return state


class _Damaged(Exception):
    """What is wrong with the bytes of a file."""


def _load_plain(file: BinaryIO) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever torch makes of a zip file of other content
        raise _Damaged(str(error).strip().partition("\n")[0] or type(error).__name__) from error


def _require_intact(file: BinaryIO) -> None:
    """Raises ``_Damaged`` unless every entry is stored as it is, fits into the file and has the stored checksum.

    torch neither compares checksums nor limits what a compressed entry expands to.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            compressed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size]
            folders = [
                e for e in entries if e.external_attr & FOLDER
            ]  # torch would leave their memory as it happens to be
            total = sum(entry.file_size for entry in entries)
            if not compressed and not folders and total <= size and not archive.comment:
                broken = archive.testzip()
    except Exception as error:  # whatever zipfile makes of such bytes
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # the disk; EINVAL: an entry at a negative place
            raise
        raise _Damaged(f"its {size} bytes are not those of a complete file ({error})") from error
    if compressed:
        raise _Damaged("it has compressed entries, which supervise() does not write")
    if folders:
        raise _Damaged(f"its part {folders[0].filename!r} is marked as a folder")
    if total > size or archive.comment:
        raise _Damaged(f"its entries take {total} bytes and the file has {size}, or something was appended to it")
    if broken is not None:
        raise _Damaged(f"its part {broken!r} has changed since it was written (another checksum)")


def _require_format(path: Path, state: Any) -> None:
    """Raises a ValueError unless ``state`` is what this version writes."""
    is_ours = isinstance(state, dict) and isinstance(state.get("model"), dict) and "algorithm" in state
    found = state.get("format") if isinstance(state, dict) else None
    if not is_ours and found is None:
        raise ValueError(f"{path} is not a checkpoint of superself; pass a file that supervise() wrote.")
    if found != FORMAT:
        versions = state.get("versions")
        writer = versions.get("superself", "unknown") if isinstance(versions, dict) else "unknown"
        has = "has no format number" if found is None else f"has format {found!r}"
        newer = isinstance(found, int) and found > FORMAT
        remedy = "upgrade superself" if newer else "load it with that version, or train again"
        raise ValueError(
            f"{path} {has} (written by superself {writer}), and superself {__version__} reads format {FORMAT}; {remedy}."
        )
    if not is_ours or not all(isinstance(tensor, Tensor) for tensor in state["model"].values()):
        raise ValueError(f"{path} lacks the weights of a model; pass a file that supervise() wrote.")


def plain_dicts(value: Any) -> Any:
    """``value`` with plain dicts in place of their subclasses, such as the Counter of ``MultiStepLR``."""
    if isinstance(value, dict):
        return {key: plain_dicts(item) for key, item in value.items()}
    return type(value)(map(plain_dicts, value)) if type(value) in (list, tuple) else value


def is_plain(value: Any) -> bool:
    """Whether ``value`` consists of numbers, strings, booleans, None, tensors, and dicts, lists and tuples of these."""
    if isinstance(value, dict):
        return type(value).__name__ in ("dict", "OrderedDict") and all(is_plain(v) for kv in value.items() for v in kv)
    if type(value) in (list, tuple):
        return all(is_plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def require_plain(value: Any, place: str = "state") -> None:
    """Raises a TypeError that names the first entry of ``value`` that is not plain."""
    if is_plain(value):
        return
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            require_plain(item, f"{place}[{key!r}]")
    raise TypeError(
        f"{place} is a {type(value).__name__}, which cannot be stored in a checkpoint; convert it to a tensor, number, string, "
        "list or dict."
    )


def require_fit(expected: dict[str, Tensor], given: dict[str, Tensor], source: str) -> None:
    """Raises a ValueError that lists each key of ``given`` and ``expected`` that the other lacks or has in another shape.

    Args:
        expected: the state of the model.
        given: the state in the file.
        source: how the message calls the file.
    """
    problems = [f"missing in the file: {key}" for key in expected if key not in given]
    problems += [f"only in the file: {key}" for key in given if key not in expected]
    problems += [
        f"different shape: {key} is {tuple(given[key].shape)} in the file and {tuple(expected[key].shape)} in this model"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    if problems:
        listed = "\n  ".join(problems[:20] + [f"... and {len(problems) - 20} more"] * (len(problems) > 20))
        raise ValueError(
            f"{source} does not fit this model: {len(problems)} entries differ (the model has {len(expected)}). Create the "
            "supervisor with the backbone, predictor and arguments of that run. To continue with its backbone only, load the "
            f"run without a data set and pass its get_backbone() to a new supervisor as backbone=.\n  {listed}"
        )


def dataset_state_keys(module: nn.Module) -> list[str]:
    """Keys of the state that belong to the images of one data set, such as the rows of a memory bank.

    A module lists the names of these buffers or submodules in its attribute ``dataset_state``.
    """
    modules = [(f"{name}." if name else "", part) for name, part in module.named_modules()]
    names = [prefix + own for prefix, part in modules for own in getattr(part, "dataset_state", ())]
    return [key for key in module.state_dict() if any(key == name or key.startswith(f"{name}.") for name in names)]

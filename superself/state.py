"""What a checkpoint holds of a supervisor, and how a supervisor takes a stored run."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from superself.basics.random import preserve_random_state
from superself.basics.validate import shortened
from superself.data import Images, ImageSpec, Preprocessing, Reading
from superself.networks import describe
from superself.networks.pretrained import without_pretrained_weights
from superself.training import Settings, choose_precision, dataset_state_keys, read_checkpoint, require_fit, versions
from superself.training.hyper_parameters import (
    READING,
    adopt,
    contradictions,
    declared,
    lineage,
    run_identity,
    stored_values,
)
from superself.training.identity import identify, unchanged

NEEDED = {
    *(
        "lineage",
        "arguments",
        "identity",
        "attached",
        "seed",
        "preprocessing",
        "data",
    ),  # of the supervisor, and of its run:
    *("step", "epoch", "epoch_began", "epoch_random", "settings", "optimizer", "lr_scheduler", "sampler", "metrics"),
    *("trackers", "random"),
}


def supervisor_state(supervisor: Any) -> dict[str, Any]:
    """What NAME.pt holds of the supervisor; the run adds step, optimizer, schedule and random state."""
    images, run = supervisor.images, supervisor.run
    run.identity = unchanged(run.identity, run_identity(supervisor, run.settings, run.precision))
    return {
        "algorithm": type(supervisor).__name__,
        "lineage": lineage(type(supervisor)),
        "arguments": stored_values(supervisor),
        "identity": run.identity,
        "attached": sorted(supervisor._top_names() - supervisor._built),  # by the user, not by _build
        "seed": supervisor.seed,
        "model": supervisor.state_dict(),
        "preprocessing": supervisor.preprocessing.to_dict(),
        "data": {"shape": supervisor.network_shape, "count": len(images), "fingerprint": images.fingerprint},
        "versions": versions(),
    }


def run_facts(supervisor: Any) -> dict[str, Any]:
    """What NAME.yaml and the first lines say about the run of a supervisor."""
    chance = supervisor.run.chance_loss  # measured once
    meaning = (
        supervisor.loss_meaning
        if supervisor.uses_its_own_loss
        else f"custom, {getattr(supervisor.loss, '__name__', type(supervisor.loss).__name__)}"
    )
    return {
        "algorithm": type(supervisor).__name__,
        "module": type(supervisor).__module__,
        "arguments": declared(supervisor),
        "seed": supervisor.seed,
        "dataset": str(supervisor._dataset) if isinstance(supervisor._dataset, (str, Path)) else None,
        "reading": supervisor.reading_options,
        "data": supervisor.images.describe(),
        "backbone": f"{describe(supervisor.exported_backbone)}; on {supervisor.device} in {supervisor.run.precision}",
        "loss": meaning + ("" if chance is None else f"; chance level: {chance:.3f}"),
        "device": str(supervisor.device),
    }


def load_run(supervisor: Any, name: str | Path, settings: Settings | None = None) -> dict[str, Any]:
    """Gives ``supervisor`` the weights, hyper-parameters and preprocessing of a stored run, and returns the whole file.

    Networks are built again only if a hyper-parameter from the file or the shape of its images requires it. Seed, generator
    and whatever the user attached stay. State that belongs to the images of a data set, such as the rows of a memory bank,
    is only taken for the same data set.

    Args:
        supervisor: takes the run.
        name: of the run.
        settings: of the run that continues it; None if a run is only loaded.
    Raises:
        ValueError: if the file does not fit; lists the keys. If it cannot be continued with ``settings``; lists both values.
    """
    _require_run_name(name)
    stored = read_checkpoint(name)
    missing = NEEDED - stored.keys()
    if missing:
        raise ValueError(
            f"The file of {str(name)!r} has no {', '.join(sorted(missing))}, so another version of superself wrote it; train "
            "again, or load it with that version."
        )
    before = _snapshot(supervisor)
    try:
        contradictions = _take(supervisor, name, stored, settings)
    except Exception:
        _restore(supervisor, before)
        raise
    for text in contradictions:
        warnings.warn(f"load({str(name)!r}): {text}; the value that was passed is used.", stacklevel=3)
    return stored


def _require_run_name(name: Any) -> None:
    """Refuses what is not the name of a run, such as its record or its folder; whether the run exists is seen later."""
    if not isinstance(name, (str, Path)):
        raise TypeError(f"name={shortened(name)} is not the name of a run; pass what was given to supervise(name=...).")
    path = Path(name)
    if path.suffix in (".yaml", ".csv") and path.is_file():
        raise ValueError(f"{str(name)!r} is the record of a run; pass the run, {str(path.with_suffix(''))!r}.")
    if path.is_dir() and path.suffix != ".pt" and not Path(f"{path}.pt").is_file():
        raise IsADirectoryError(f"{str(name)!r} is a folder; pass the name of a run, such as {str(path / 'base')!r}.")


def _take(supervisor: Any, name: str | Path, stored: dict[str, Any], settings: Settings | None) -> list[str]:
    shape, count = tuple(stored["data"]["shape"]), stored["data"]["count"]
    changed, contradictions = False, []
    preprocessing = Preprocessing.from_dict(stored["preprocessing"])
    if _share_an_algorithm(supervisor, stored):
        changed, contradictions = adopt(supervisor, stored["arguments"])
    _take_reading(supervisor, name, preprocessing)
    if settings is not None:
        _require_same_run(supervisor, name, stored, settings)
    _check_shape(supervisor, name, preprocessing, shape)
    if not supervisor.has_data:
        supervisor.images = ImageSpec((preprocessing.shape[0], *shape[1:]), count)
    other_images = supervisor.has_data and supervisor.images.fingerprint != stored["data"]["fingerprint"]
    if other_images and not supervisor._pristine and dataset_state_keys(supervisor):
        changed = True  # rows that were made by the network which is now replaced
    attached = supervisor._top_names() - supervisor._built
    if changed or (shape, len(supervisor.images)) != supervisor._built_for:
        device = supervisor.device
        with preserve_random_state(), without_pretrained_weights():
            supervisor._build_for(shape)
        supervisor.to(device)
    if settings is not None:
        _require_same_networks(supervisor, name, stored)
    supervisor._build_views()
    supervisor._built = supervisor._top_names() - attached
    if supervisor.has_data:
        preprocessing = replace(preprocessing, shape=supervisor.view_shape, reading=supervisor.images.reading)
    supervisor.preprocessing = preprocessing
    _load_weights(supervisor, name, stored, contradictions, other_images)  # last: what can fail has not failed
    average = stored.get("average")
    if average is not None:
        own = supervisor.exported_backbone.state_dict()
        require_fit(own, average["values"], f"the averaged weights in {name}")
    supervisor.averaged_weights = None if average is None else average["values"]
    supervisor._pristine = False
    return contradictions


def _require_same_run(supervisor: Any, name: str | Path, stored: dict[str, Any], settings: Settings) -> None:
    precision = choose_precision(settings.precision, supervisor.device, supervisor)
    now = run_identity(supervisor, settings, precision)
    found = []
    if not _share_an_algorithm(supervisor, stored):
        found.append(f"algorithm: was {stored['algorithm']}, is now {type(supervisor).__name__}")
    found += contradictions(stored["identity"], now, ("settings", "arguments", "data"))
    seed = settings.seed if settings.seed is not None else supervisor.seed if supervisor.seed_was_given else None
    if seed not in (None, stored["seed"]):
        found.append(f"seed: was {stored['seed']}, is now {seed}")
    count, images = stored["data"]["count"], supervisor.images
    if count != len(images):
        found.append(f"images: was {count}, is now {len(images)}")
    elif stored["data"]["fingerprint"] != images.fingerprint:
        found.append(f"data set: different images (same number, {count})")
    _refuse_to_resume(name, found)


def _require_same_networks(supervisor: Any, name: str | Path, stored: dict[str, Any]) -> None:
    """Refuses a network that differs although all arguments agree, as the ``_build`` of a user's class may make one."""
    now = {"networks": {"model": identify(supervisor.model)}}
    _refuse_to_resume(name, contradictions(stored["identity"], now, ["networks"]))


def _refuse_to_resume(name: str | Path, found: list[str]) -> None:
    if found:
        raise ValueError(
            f"The run {str(name)!r} cannot be resumed with other settings ({'; '.join(found)}); pass the original values, or "
            "pretrained=True to start a new run from its weights."
        )


def _share_an_algorithm(supervisor: Any, stored: dict[str, Any]) -> bool:
    return bool(set(stored["lineage"]) & set(lineage(type(supervisor))))


def _snapshot(supervisor: Any) -> dict[str, Any]:
    """The attributes of the supervisor, so that a load that fails leaves it as it was."""
    copied = ("_modules", "_buffers", "_parameters", "_adopted")
    attributes = {name: value.copy() if name in copied else value for name, value in vars(supervisor).items()}
    return {**attributes, "given": SimpleNamespace(**vars(supervisor.given))}


def _restore(supervisor: Any, before: dict[str, Any]) -> None:
    vars(supervisor).clear()
    vars(supervisor).update(before)


def _load_weights(
    supervisor: Any, name: str | Path, stored: dict[str, Any], contradictions: list[str], other_images: bool
) -> None:
    own, model = supervisor.state_dict(), stored["model"]

    def top(key: str) -> str:
        return key.partition(".")[0]

    model = {key: value for key, value in model.items() if key in own or top(key) not in stored["attached"]}
    model |= {key: value for key, value in own.items() if key not in model and top(key) not in supervisor._built}
    if other_images:
        model |= {key: own[key] for key in dataset_state_keys(supervisor)}
    notes = f" ({'; '.join(contradictions)})" if contradictions else ""
    this = type(supervisor).__name__
    other = "" if _share_an_algorithm(supervisor, stored) else f" and not of {this}"
    require_fit(own, model, f"{name}, a run of {stored['algorithm']}{other}{notes},")
    supervisor.load_state_dict(model)


def _take_reading(supervisor: Any, name: str | Path, preprocessing: Preprocessing) -> None:
    """Images are read as those of the stored run, unless this supervisor was told how to read its own."""
    reading = preprocessing.reading
    if READING & supervisor._passed:
        return
    steps = Reading() if reading is None else reading
    if supervisor.has_data and supervisor.images.reading != reading:
        if isinstance(supervisor._dataset, Images):
            if supervisor.images.reading is not None:
                return  # opened with steps of its own
            given = ", ".join(f"{key}={value!r}" for key, value in steps.options().items() if value)
            raise ValueError(
                f"The run {str(name)!r} was trained on images that were read with {given}, and this data set was opened "
                f"without; pass open_images(..., {given}), or what it was opened from."
            )
        supervisor.images = None  # opened again at the next use
    supervisor._open_options = {**supervisor._open_options, **steps.options()}


def _check_shape(supervisor: Any, name: str | Path, preprocessing: Preprocessing, shape: tuple[int, int, int]) -> None:
    if supervisor.sobel != preprocessing.sobel:
        raise ValueError(
            f"The run {str(name)!r} was trained with sobel={preprocessing.sobel} and this supervisor has "
            f"sobel={supervisor.sobel}; pass sobel={preprocessing.sobel}."
        )
    if not supervisor.has_data:
        return
    channels, *size = supervisor.view_shape
    if channels != preprocessing.shape[0]:
        raise ValueError(
            f"The run {str(name)!r} was trained on {preprocessing.shape[0]} channels and this data set has {channels}; "
            f"pass images with {preprocessing.shape[0]} channels."
        )
    if supervisor.fixed_image_size and tuple(size) != shape[1:]:
        raise ValueError(
            f"The run {str(name)!r} predicts images of {shape[1]} x {shape[2]} and those of this data set have "
            f"{size[0]} x {size[1]}; pass image_size={shape[1:]}."
        )

"""Weights that a backbone starts from: of torchvision's and timm's libraries by name, or of a file."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from superself.basics.random import preserve_random_state

DEFAULT_NAMES = ("imagenet", "default")  # of the library's own choice for a network
POSITIONS = ("pos_embed", "pos_embedding")  # names of the position embeddings in vision transformers
OF_BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")
LISTED = 4  # names in a message
_left_random: ContextVar[bool] = ContextVar("_left_random", default=False)


@dataclass(frozen=True)
class LoadedWeights:
    """What ``load_weights`` did; ``str(...)`` says it in a sentence.

    Args:
        source: where the weights come from.
        matched: names of the parameters and buffers that were loaded.
        missing: names of those that keep their own values.
        unexpected: names in the source that the network does not have, such as its classifier's.
        changed: sentences about what was adapted on the way.
    """

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"{len(self.matched)} of {len(self.matched) + len(self.missing)} tensors from {self.source}"
        missing = f"not in it: {_listed(self.missing)}" if self.missing else ""
        unexpected = f"not used: {_listed(self.unexpected)}" if self.unexpected else ""
        return "; ".join(filter(None, [counts, missing, unexpected, *self.changed]))


@contextlib.contextmanager
def without_pretrained_weights() -> Iterator[None]:
    """Inside, ``build_backbone`` leaves the weights of networks random: those of a stored run follow."""
    token = _left_random.set(True)
    try:
        yield
    finally:
        _left_random.reset(token)


def pretrained_weights_wanted() -> bool:
    """Whether ``build_backbone`` loads weights; not inside ``without_pretrained_weights``."""
    return not _left_random.get()


def load_weights(network: nn.Module, weights: str | Path | Mapping[str, Any], name: str | None = None) -> LoadedWeights:
    """Loads weights into a backbone, and says what fitted.

    Names may have a common prefix such as "module." or "model.backbone.", which is found by itself; of several networks in a
    file the one that fits best is taken, of equally good ones the first. The weights of classifiers and heads are not used.

    Where the images have other channels than the source's, the first convolution's weights are summed over its channels and
    divided by the new number: equal channels give the same maps as before. Where its kernel has another size, as that of
    the stem for small images, it keeps its random weights. Position embeddings are interpolated to another grid. Each of
    these gives a warning.

    Args:
        network: a backbone, as ``build_backbone`` makes it.
        weights: a name of torchvision's or timm's weights, "imagenet" for the library's default, or a file: a state dict
            (.pt, .pth, .safetensors), a run of superself, or another checkpoint that holds one; or a state dict.
        name: of the network, for weights by name.
    Returns:
        Which parameters matched, and which did not.
    Raises:
        ValueError: if the weights are unknown or those of another network.
        OSError: if a file cannot be read, or a download fails.
    """
    source = "the state dict" if isinstance(weights, Mapping) else str(weights)
    values = weights
    if not isinstance(weights, Mapping):
        values = _from_library(source, name) if name else None
        if values is None:
            values = read_weights(_existing_file(source, name))
    own = network.state_dict()
    state, elsewhere, *_ = best_part(values, own)
    left_out, changed = _adapt(network, state, own)
    missing = tuple(key for key in own if key not in state and not key.endswith("num_batches_tracked"))
    unexpected = tuple(key for key in state if key not in own)
    reshaped = [key for key in own if key in state and state[key].shape != own[key].shape]
    foreign = [key for key in unexpected if _belongs_to_body(network, key)]
    matched = tuple(key for key in own if key in state and key not in reshaped)
    if reshaped or foreign or set(missing) - left_out:
        wrong = [
            f"not in it: {_listed(missing)}" if missing else "",
            f"of other shapes: {_listed(reshaped)}" if reshaped else "",
            f"not in the network: {_listed(foreign)}" if foreign else "",
        ]
        raise ValueError(
            f"the weights of {source} are not those of {name or type(network).__name__}: {len(matched)} of {len(own)} tensors "
            f"fit ({'; '.join(filter(None, wrong))}); pass the weights of this network, or the network of these weights."
        )
    load_tensors(network, {key: state[key] for key in matched})
    for text in changed:
        warnings.warn(f"weights of {source}: {text}", stacklevel=3)
    return LoadedWeights(source, matched, missing, (*unexpected, *elsewhere), tuple(changed))


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], versions: Mapping[str, Any] | None = None) -> None:
    """Loads some of a network's tensors by name.

    Args:
        network: takes them.
        tensors: name -> tensor of the same shape.
        versions: of the modules that the tensors come from, as ``state_dict()._metadata`` has them; some networks refuse
            tensors without. None: those of ``network``.
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(network.state_dict(), "_metadata", {}) if versions is None else versions
    network.load_state_dict(state, strict=False)


def read_weights(path: str | Path) -> dict[str, Any]:
    """The content of a file of weights on the CPU; only tensors and plain values are read.

    Raises:
        ValueError: if the file contains other Python objects, which could run code, or is no file of weights.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ImportError(
            f'{path} needs safetensors to be read, which is not installed; pip install "superself[export]".'
        ) from error
    except OSError:
        raise
    except Exception as error:  # damaged and foreign files raise many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} is not a file of tensors ({reason}); write one with torch.save(network.state_dict(), path)."
        ) from error


def _existing_file(source: str, name: str | None) -> Path:
    for path in (Path(source), Path(f"{source}.pt")):
        if path.is_file():
            return path
    known = [*DEFAULT_NAMES[:1], *library_names(name)] if name and library_names(name) else []
    names = f", nor weights of {name} ({', '.join(known)})" if known else ""
    raise FileNotFoundError(
        f"weights={source!r} is not an existing file{names}; pass the path of a file"
        f"{' or one of these names' if known else ''}."
    )


def library_names(name: str) -> list[str]:
    """The names of the weights that torchvision or, for "timm:NAME", timm has for a network."""
    if name.startswith("timm:"):
        import timm

        network, _, tag = name.removeprefix("timm:").partition(".")
        return [tag] if tag else [full.partition(".")[2] for full in timm.list_pretrained(network) if "." in full]
    if name not in torchvision.models.list_models(module=torchvision.models):
        return []
    return [member.name for member in torchvision.models.get_model_weights(name)]


def _from_library(weights: str, name: str) -> dict[str, Tensor] | None:
    """The state dict of a library's network with these weights; None if it has none of this name."""
    names = library_names(name)
    if weights not in names and (weights.lower() not in DEFAULT_NAMES or not names):
        return None
    default = weights not in names
    try:
        with preserve_random_state():  # the network is built and its random weights replaced
            if name.startswith("timm:"):
                import timm

                network = name.removeprefix("timm:").partition(".")[0]
                tag = name.partition(".")[2] if default else weights
                made = timm.create_model(f"{network}.{tag}" if tag else network, pretrained=True)
            else:
                made = torchvision.models.get_model(name, weights="DEFAULT" if default else weights)
    except Exception as error:  # of the network, the file system or the library, each with types of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"the weights {weights} of {name} could not be downloaded ({reason}); where there is no network, copy the file "
            f'from a machine that has one and pass backbone="{name}@PATH".'
        ) from error
    return made.state_dict()


class Part(NamedTuple):
    """The tensors in a file that belong to one network.

    ``state`` are the tensors by name without ``prefix``, ``elsewhere`` the names of the others, ``prefix`` what stood before
    the names, with the dictionaries of the checkpoint that led there, and ``equals`` the prefixes of other networks in the
    file that fit equally well.
    """

    state: dict[str, Tensor]
    elsewhere: list[str]
    prefix: str = ""
    equals: tuple[str, ...] = ()


def best_part(content: Any, own: Collection[str], prefix: str = "") -> Part:
    """Finds the tensors in the content of a file that have the most names of ``own`` behind a common prefix.

    Args:
        content: a state dict, or a checkpoint with state dicts in it.
        own: the names in the network.
        prefix: that the one wanted begins with, such as "teacher."; "" takes the one that fits best, of equals the first.
    """
    counts: dict[tuple[str, str], int] = {}  # place of the state dict, prefix in it -> names that fit
    mappings = dict(_mappings(content))
    for place, mapping in mappings.items():
        for key in mapping:
            parts = key.split(".")
            for start in range(len(parts)):
                if ".".join(parts[start:]) in own:
                    before = "".join(f"{part}." for part in parts[:start])
                    if (place + before).startswith(prefix):
                        counts[place, before] = counts.get((place, before), 0) + 1
    if not counts:
        return Part({}, [name for mapping in mappings.values() for name in mapping])
    best = max(counts, key=counts.get)  # the first of equally good ones
    place, before = best
    equals = tuple("".join(other) for other, count in counts.items() if count == counts[best] and other != best)
    inside = {key.removeprefix(before): value for key, value in mappings[place].items() if key.startswith(before)}
    elsewhere = [key for key in mappings[place] if not key.startswith(before)]
    return Part(inside, elsewhere, place + before, equals)


def _mappings(content: Any, place: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors by name of a state dict, and of those inside a checkpoint, each with its place in it."""
    if isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors:
            yield place, tensors
        for key, value in content.items():
            yield from _mappings(value, f"{place}{key}.")


def _adapt(network: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[set[str], list[str]]:
    """Fits norms, first convolution and position embeddings in ``state``: the weights left out of it, and what was done."""
    left_out, changed = set(), []
    statistics = [key for key in state if key.endswith(OF_BATCH_NORM)]
    if statistics and not any(key.endswith(OF_BATCH_NORM) for key in own):
        for key in statistics:
            del state[key]
        changed.append("this network has no batch norm, so its norm layers take scale and shift only.")
    name, conv = _first_conv(network)
    key = f"{name}.weight"
    if key in state and state[key].ndim == 4 and state[key].shape != own[key].shape and conv.groups == 1:
        weight, (out, channels, *kernel) = state[key], own[key].shape
        if weight.shape[0] == out and list(weight.shape[2:]) != kernel:
            del state[key]
            left_out.add(key)
            changed.append(
                f"its first convolution {name} is {' x '.join(map(str, weight.shape[2:]))} and this network's is "
                f"{' x '.join(map(str, kernel))}, which keeps its random weights; pass a larger image_size (above 64) or "
                "view_size to use the stem that was pretrained."
            )
        elif weight.shape[0] == out:
            state[key] = weight.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
            changed.append(
                f"its first convolution {name} takes {weight.shape[1]} channels and this network's {channels}: each gets the "
                f"sum of its weights over the channels{f' divided by {channels}' if channels > 1 else ''}."
            )
    for key in [key for key in own if key.rpartition(".")[2] in POSITIONS and key in state]:
        if state[key].shape != own[key].shape and state[key].ndim == own[key].ndim == 3:
            prefix = 1 if key.endswith("embedding") else getattr(network, "num_prefix_tokens", 1)
            resized = _resized_positions(state[key], own[key], prefix, getattr(network, "patch_embed", None))
            if resized is not None:
                state[key] = resized
                changed.append(f"its position embeddings were interpolated to this network's grid ({key}).")
    return left_out, changed


def _resized_positions(given: Tensor, own: Tensor, prefix: int, patches: Any) -> Tensor | None:
    """Position embeddings (1, P + T, D) on another grid of patches; None if they form no square."""
    before = math.isqrt(given.shape[1] - prefix)
    side = math.isqrt(own.shape[1] - prefix)
    grid = tuple(getattr(patches, "grid_size", None) or (side, side))
    fits = before**2 == given.shape[1] - prefix and math.prod(grid) == own.shape[1] - prefix
    if not fits or given.shape[2] != own.shape[2]:
        return None
    maps = given[:, prefix:].float().transpose(1, 2).unflatten(2, (before, before))  # (1, D, h, w)
    maps = F.interpolate(maps, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([given[:, :prefix].float(), maps.flatten(2).transpose(1, 2)], 1)


def _first_conv(network: nn.Module) -> tuple[str, nn.Conv2d]:
    found = (pair for pair in network.named_modules() if isinstance(pair[1], nn.Conv2d))
    return next(found, ("", nn.Conv2d(1, 1, 1)))


def _belongs_to_body(network: nn.Module, key: str) -> bool:
    """Whether a tensor that the network lacks belongs to one of its parts, and not to a classifier that was removed."""
    module = key.rpartition(".")[0]
    if not hasattr(network, key.partition(".")[0]):
        return False
    try:
        return not isinstance(network.get_submodule(module), nn.Identity)
    except AttributeError:
        return True


def _listed(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more

"""The kernels of the first convolution, which show whether a network found edges and colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from superself.basics.drawing import HEADING, MARGIN, TRAINED, UNTRAINED, Sheet, heading_height, line_height
from superself.basics.random import preserve_random_state
from superself.evaluation.evaluator import Evaluator
from superself.evaluation.subject import Subject
from superself.networks import fresh_copy

SIDE = 52  # pixels that a kernel is enlarged to, at least
GAP = 6
BETWEEN = 44  # pixels between the two networks
SHOWN_CHANNELS = 8


def show_kernels(
    backbone: nn.Module, path: str | Path, random: nn.Module | bool | None = True, count: int = 64, seed: int = 0
) -> Path:
    """Writes a PNG with the kernels of the first convolution, next to those of the network with random weights.

    The random weights are drawn from ``seed``. Where they turn out to be those that training started from, because a run had
    the same seed, the caption says "initial weights". If the shapes agree, the caption has the relative change of all kernels
    W from those they are compared with, V: the norm of W - V divided by the norm of V. It is about 140 % for unrelated weights
    of the same scale.

    Kernels over three channels are shown in colour, others with a grey picture for each of up to 8 channels. Each is scaled
    by its largest weight, so that mid-grey is a weight of 0.

    Args:
        backbone: any network with a convolution; the first one is shown, of a vision transformer its patch embedding.
        path: of the PNG; missing folders are created.
        random: True for the same network with random weights; a module, such as one from an earlier epoch; None or False for
            the trained one only.
        count: largest number of kernels, the first ones.
        seed: of the random weights.
    Raises:
        ValueError: if there is no 2-D convolution, or the backbone cannot be initialised again.
    """
    trained = first_kernels(backbone)
    networks, change = {"trained": trained}, ""
    other, name = None, "compared with"
    if isinstance(random, nn.Module):
        other = first_kernels(random)
    elif random:
        with preserve_random_state(seed):
            try:
                other = first_kernels(fresh_copy(backbone))
            except ValueError as error:
                raise ValueError(f"{error} Or pass random=False.") from error
        name = f"{'initial' if _started_from(trained, other) else 'random'} weights (seed {seed})"
    if other is not None:
        networks[name] = other
        change = _change(trained, other)
    return _draw({name: kernels[:count] for name, kernels in networks.items()}, len(trained), change).save(path)


def _started_from(trained: Tensor, other: Tensor) -> bool:
    """Whether kernels are so similar to random ones that training must have started from those.

    The cosine of two independent draws of n weights has a standard deviation of 1 / sqrt(n).
    """
    if trained.shape != other.shape:
        return False
    cosine = float(F.cosine_similarity(trained.flatten(), other.flatten(), dim=0))
    return cosine > max(0.3, 6 / trained.numel() ** 0.5)


def _change(trained: Tensor, other: Tensor) -> str:
    """A sentence with the relative change of all kernels; empty if shapes differ or there is nothing to divide by."""
    if trained.shape != other.shape or not other.any():
        return ""
    return f" Relative change of all weights: {float((trained - other).norm() / other.norm()):.0%}."


def first_kernels(network: nn.Module) -> Tensor:
    """The weights (out, in, h, w) of the first 2-D convolution of a network, on the CPU in float32.

    Raises:
        ValueError: if it has none.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.weight.detach().float().cpu()
    raise ValueError(
        f"{type(network).__name__} has no 2-D convolution, whose kernels could be shown; pass one that has."
    )


def _draw(networks: dict[str, Tensor], total: int, change: str) -> Sheet:
    kernels = next(iter(networks.values()))
    count, channels, height, width = kernels.shape
    in_colour = channels == 3
    times = max(1, -(-SIDE // max(height, width)))
    parts = 1 if in_colour else min(channels, SHOWN_CHANNELS)
    cell = (parts * (times * width + 2) - 2, times * height)  # width and height of one kernel
    across = min(count, 8, max(4, -(-count // 4))) if parts == 1 else max(1, 480 // (cell[0] + GAP))
    panel = across * (cell[0] + GAP) - GAP
    total_width = max(2 * MARGIN + len(networks) * panel + (len(networks) - 1) * BETWEEN, 420)
    kind = (
        "in colour" if in_colour else f"the first {parts} of {channels} channels" if parts < channels else "by channel"
    )
    title = "Kernels of the first convolution"
    subtitle = (
        f"{count} of {total}, {height} x {width} pixels, {kind}. Each is scaled by its largest weight; mid-grey is 0."
        + change
    )
    top = heading_height(title, subtitle, total_width) + line_height(HEADING) + 8
    sheet = Sheet(total_width, top + -(-count // across) * (cell[1] + GAP) - GAP + MARGIN)
    y = sheet.heading(title, subtitle)
    for number, (name, weights) in enumerate(networks.items()):
        left = MARGIN + number * (panel + BETWEEN)
        sheet.text(left, y, name, HEADING, TRAINED if name == "trained" else UNTRAINED, bold=True)
        for place, kernel in enumerate(weights):
            row, column = divmod(place, across)
            picture = _picture(kernel[:3] if in_colour else kernel[:parts], in_colour, times)
            sheet.picture(left + column * (cell[0] + GAP), top + row * (cell[1] + GAP), picture)
    return sheet


def _picture(kernel: Tensor, in_colour: bool, times: int) -> Image.Image:
    """A kernel (C, h, w) as one picture in colour, or with a grey one for each channel side by side."""
    shown = (
        0.5 + kernel / (2 * kernel.abs().max().clamp_min(1e-12)) if kernel.any() else torch.full_like(kernel, 0.5)
    ) * 255
    if in_colour:
        array = shown.permute(1, 2, 0).round().byte().numpy()
        return _enlarge(Image.fromarray(array), times)
    pictures = [_enlarge(Image.fromarray(channel.round().byte().numpy()).convert("RGB"), times) for channel in shown]
    width, height = pictures[0].size
    strip = Image.new("RGB", (len(pictures) * (width + 2) - 2, height), "white")
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * (width + 2), 0))
    return strip


def _enlarge(picture: Image.Image, times: int) -> Image.Image:
    return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)


class KernelsFigure(Evaluator):
    """The picture of ``show_kernels`` during a run; there is nothing to compute.

    Args:
        random: True for the kernels with random weights next to them.
        every: epochs from one picture to the next.
    """

    name, higher_is_better = "kernels_figure", None

    def __init__(self, random: bool = True, every: int = 1) -> None:
        super().__init__(every)
        self.random = random

    def open(self, subject: Subject) -> None:
        """Checks that there is a convolution."""
        first_kernels(subject.backbone)

    def evaluate(self, subject: Subject) -> dict[str, float]:
        """Nothing: this evaluator only draws."""
        return {}

    def figure(self, subject: Subject, path: Path) -> Any:
        """Writes the picture."""
        return show_kernels(subject.backbone, path, self.random, seed=subject.seed)

"""How well a pretext task is solved on images that were not trained on."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from superself import Supervisor
from superself.data import Images
from superself.networks import MemoryBank


@torch.no_grad()
def held_out_loss(
    supervisor: Supervisor, images: Images, chosen: Tensor, batch_size: int
) -> tuple[float, float | None]:
    """The algorithm's loss on the chosen images, in evaluation mode, over whole batches, and what knowing nothing gives.

    A memory bank knows the images that were trained on by their places: for these it is replaced by one of theirs, filled
    with what the trained network gives for them.
    """
    supervisor.eval()
    banks = {name: bank for name, bank in supervisor.named_children() if isinstance(bank, MemoryBank)}
    for name, bank in banks.items():
        fresh = MemoryBank(len(chosen), bank.features.shape[1], momentum=0.0).to(supervisor.device)
        setattr(supervisor, name, fresh)
    losses: list[float] = []
    for filling in [True, False] if banks else [False]:
        for places in chosen.split(batch_size):
            if len(places) == batch_size or filling or not losses:
                with supervisor.run.autocast():
                    loss = supervisor._forward(supervisor._to_device(images.batch(places)))
            for name in banks if filling else ():
                getattr(supervisor, name).commit()
            if not filling:
                losses.append(loss.item())
    chance = supervisor.chance_loss  # among the rows of these banks
    for name, bank in banks.items():
        setattr(supervisor, name, bank)
    return statistics.mean(losses), chance


@torch.no_grad()
def reconstruction_errors(supervisor: Supervisor, images: Images) -> tuple[float, float]:
    """Mean squared error of what comes back of images, as a share of what their mean gives: from themselves, and from others.

    What comes back tells images apart where it is nearer to its own image than to others, in whatever way both are far.
    """
    supervisor.eval()
    own, of_others, variances = [], [], []
    for places in torch.arange(len(images)).split(256):
        batch = images.batch(places).images.to(supervisor.device)
        wanted, back = supervisor.preprocessing(batch), supervisor.reconstruct(batch)
        own.append((back - wanted).square().mean().item())
        of_others.append((back - wanted.roll(1, 0)).square().mean().item())
        variances.append(wanted.square().mean().item())
    return tuple(sum(errors) / sum(variances) for errors in (own, of_others))

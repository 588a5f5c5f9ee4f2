"""How well a pretext task is solved on images that were not used for training."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from superself import Supervisor
from superself.data import Images
from superself.networks import MemoryBank
from superself.networks.modes import evaluation_mode


@torch.no_grad()
def held_out_loss(
    supervisor: Supervisor, images: Images, chosen: Tensor, batch_size: int
) -> tuple[float, float | None]:
    """The algorithm's loss on the chosen images in evaluation mode, over whole batches, and its chance level.

    The rows of a memory bank belong to the images of the training set. For this measurement each bank is replaced by one for
    the chosen images, filled with the embeddings that the trained network gives for them.

    Args:
        supervisor: after ``supervise()``.
        images: the data set that the images are in.
        chosen: (n,) their positions; with a memory bank 0 to n - 1.
        batch_size: images per batch; a last batch of fewer is left out.
    """
    banks = {name: bank for name, bank in supervisor.named_children() if isinstance(bank, MemoryBank)}
    losses: list[float] = []
    try:
        for name, bank in banks.items():
            fresh = MemoryBank(len(chosen), bank.features.shape[1], momentum=0.0)
            setattr(supervisor, name, fresh.to(supervisor.device))
        with evaluation_mode(supervisor):
            for filling in [True, False] if banks else [False]:
                for positions in chosen.split(batch_size):
                    if len(positions) < batch_size and losses and not filling:
                        continue
                    with supervisor.run.autocast():
                        loss = supervisor._forward(images.batch(positions).to(supervisor.device))
                    if filling:
                        for name in banks:
                            getattr(supervisor, name).commit()
                    else:
                        losses.append(loss.item())
        chance = supervisor.chance_loss  # depends on the number of rows of these banks
    finally:
        for name, bank in banks.items():
            setattr(supervisor, name, bank)
    return statistics.mean(losses), chance


@torch.no_grad()
def reconstruction_errors(supervisor: Supervisor, images: Images) -> tuple[float, float]:
    """Mean squared error of reconstructions, relative to that of the mean image: to their own image, and to another one.

    Reconstructions distinguish images if they are nearer to their own image than to others, however large both errors are.
    """
    own, to_others, variances = [], [], []
    with evaluation_mode(supervisor):
        for positions in torch.arange(len(images)).split(256):
            batch = images.batch(positions).images.to(supervisor.device)
            wanted, reconstructed = supervisor.preprocessing(batch), supervisor.reconstruct(batch)
            own.append((reconstructed - wanted).square().mean().item())
            to_others.append((reconstructed - wanted.roll(1, 0)).square().mean().item())
            variances.append(wanted.square().mean().item())
    return tuple(sum(errors) / sum(variances) for errors in (own, to_others))

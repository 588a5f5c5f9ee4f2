"""How well the networks that reconstruct images do so."""

from __future__ import annotations

import torch

from superself import Supervisor
from superself.data import Images
from superself.networks.modes import evaluation_mode


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

"""The same network before training: what a trained backbone is compared with."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from superself.augment import recipe
from superself.basics.random import preserve_random_state
from superself.data import Images, Preprocessing
from superself.networks import fresh_copy
from superself.networks.modes import device_of, evaluation_mode


def random_twin(
    backbone: nn.Module, images: Images, preprocessing: Preprocessing, seed: int = 0
) -> tuple[nn.Module, str]:
    """The same network with fresh random weights, also where ``backbone`` started from pretrained ones, and how it was made.

    Its batch norms get the statistics of ``images``: with their initial mean 0 and variance 1 they would not normalise, and
    training would seem to help more than it does.

    Args:
        backbone: stays as it is.
        images: up to 1024 of them are used.
        preprocessing: what the backbone expects.
        seed: of the random weights; the random state does not move.
    Raises:
        ValueError: if a module with parameters cannot be initialised again; it lists the parameters.
    """
    with preserve_random_state(seed):
        network = fresh_copy(backbone)
    description = f"the same network, freshly initialised with seed {seed}"
    if _measure_batch_norms(network, images, preprocessing.for_images(images)):
        description += ", batch norm statistics measured on training images"
    return network, description


def before_training(backbone: nn.Module, images: Images, preprocessing: Preprocessing) -> nn.Module:
    """The backbone as it is, or, where no batch norm has statistics yet, a copy that has those of ``images``.

    Args:
        backbone: stays as it is; with pretrained weights its batch norms have statistics.
        images: up to 1024 of them are used.
        preprocessing: what the backbone expects.
    """
    norms = _batch_norms(backbone)
    if not norms or not all((n.running_mean == 0).all() and (n.running_var == 1).all() for n in norms):
        return backbone
    network = copy.deepcopy(backbone)
    _measure_batch_norms(network, images, preprocessing.for_images(images))
    return network


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [norm for norm in network.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]


def _measure_batch_norms(network: nn.Module, images: Images, preprocessing: Preprocessing) -> bool:
    """Gives batch norms the statistics of up to 1024 images; returns whether there are any batch norms."""
    norms = _batch_norms(network)
    if not norms:
        return False
    pixels, size = images.sample(1024), preprocessing.shape[1:]
    if pixels.shape[2:] != size:  # stored larger than the views of training
        pixels = recipe(None, size)(pixels)
    with preserve_random_state(), torch.no_grad(), evaluation_mode(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over all batches
            norm.train()
        for batch in pixels.tensor_split(math.ceil(len(pixels) / 256)):  # no batch has a single image
            network(preprocessing(batch.to(device_of(network))))
    return True

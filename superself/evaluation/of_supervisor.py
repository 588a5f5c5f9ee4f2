"""A supervisor as a Subject: with its backbone, images, views, embeddings and its loss on other images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from superself.basics.random import preserve_random_state
from superself.data import Batch, Images
from superself.evaluation.held_out import held_out_loss
from superself.evaluation.subject import Subject
from superself.networks.modes import evaluation_mode


def subject_of(supervisor: Any, seed: int = 0) -> Subject:
    """The Subject of a supervisor that is built, trained or loaded; of its exported backbone.

    ``embed`` is None for methods without embeddings, ``views`` where a collate function makes them, and ``images`` for a
    supervisor without data.

    Args:
        supervisor: stays as it is.
        seed: of whatever an evaluator draws.
    """
    has_data = supervisor.has_data
    return Subject(
        supervisor.exported_backbone,
        supervisor.preprocessing,
        images=supervisor.images if has_data else None,
        views=None if supervisor.collate_fn is not None or not has_data else lambda images: _views(supervisor, images),
        embed=None if type(supervisor).embed.__module__ == "superself.supervisor" else supervisor.embed,
        held_out_loss=lambda images: _held_out_loss(supervisor, images),
        seed=seed,
    )


@contextlib.contextmanager
def undisturbed(supervisor: Any, seed: int = 0) -> Iterator[None]:
    """Inside, the networks are in evaluation mode and random numbers start from ``seed``; both are restored at the end."""
    with preserve_random_state(seed, supervisor.generator), evaluation_mode(supervisor):
        yield


def _views(supervisor: Any, images: Tensor) -> list[Tensor]:
    """The raw views of training, drawn from torch's random state, so that those of the run do not depend on it."""
    own = supervisor.generator
    supervisor.generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))
    try:
        return supervisor.raw_views(Batch(images.to(supervisor.device)))
    finally:
        supervisor.generator = own


def _held_out_loss(supervisor: Any, images: Images) -> float:
    return float(held_out_loss(supervisor, images).loss)

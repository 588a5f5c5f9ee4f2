"""By default a step is the module, the loss and the optimizer, with nothing around them."""

from __future__ import annotations

import torch

from superself import RotateNetSupervisor
from superself.training import read_checkpoint

from cases import TinyBackbone, tiny_images

SHORT = {"epochs": 1, "batch_size": 8, "name": "run", "progress": False, "precision": "32-true"}


def test_by_default_the_loss_is_that_of_the_algorithm_and_the_optimizer_has_no_hooks():
    class Looks(RotateNetSupervisor):
        def _forward(self, data):
            losses.append(super()._forward(data))
            return losses[-1]

        def _update(self, loss, optimizer, lr_scheduler):
            assert loss is losses[-1]
            assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
            super()._update(loss, optimizer, lr_scheduler)

    losses: list[torch.Tensor] = []
    Looks(tiny_images(), backbone=TinyBackbone()).supervise(**SHORT)
    stored = read_checkpoint("run")
    assert len(losses) == 2 and stored["loss_scale"] is None and stored["average"] is None


def test_a_file_of_before_there_were_averages_is_resumed():
    settings = {**SHORT, "average": 0.9}
    RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0).supervise(**settings)
    stored = read_checkpoint("run")
    del stored["average"], stored["loss_scale"]
    torch.save(stored, "run.pt")
    resumed = RotateNetSupervisor(tiny_images(), backbone=TinyBackbone(), seed=0)
    resumed.supervise(**settings | {"epochs": 2, "resume": True})
    assert resumed.run.training_step.average.updates == 2

"""AdversarialSupervisor: two players with a loss and an optimiser each, in the same loop and the same five hooks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from superself.data import BatchLoader
from superself.supervisor import Supervisor
from superself.training import OptimizerPair


class AdversarialSupervisor(Supervisor):
    """Base of the algorithms with a discriminator.

    A subclass builds ``self.discriminator``, the whole of the second player, in its ``__init__``. Its ``_forward`` returns the
    loss of the first player (everything else that trains) and leaves that of the second in ``self.discriminator_loss``. Both may
    come from the same outputs: ``_update`` takes the gradients of each loss with respect to its own player's parameters
    only, then both optimisers step. Where there is no second player (``self.discriminator`` is None) it is a Supervisor.

    Source: Goodfellow et al., Generative Adversarial Networks, arXiv:1406.2661; both players step at once, as in Donahue et
        al., BiGAN, arXiv:1605.09782.
    Args:
        model, dataset, loss, collate_fn: see Supervisor, as are the options that are not listed here.
        discriminator_lr: learning rate of the second player as a multiple of the first's.
    Raises:
        ValueError: if ``discriminator_lr`` is not positive.
        TypeError: at the first step, if ``_forward`` leaves no ``discriminator_loss``.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        dataset: Any = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        *,
        discriminator_lr: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(model, dataset, loss, collate_fn, **options)
        if discriminator_lr <= 0:
            raise ValueError(f"discriminator_lr={discriminator_lr} multiplies lr; pass a number above 0.")
        self.discriminator_lr = discriminator_lr
        self.discriminator: nn.Module | None = None
        self.discriminator_loss: Tensor | None = None  # of the last _forward, until _update has used it

    def _init_data_optimizer(
        self,
        optimizer: Callable[..., Optimizer],
        batch_size: int,
        shuffle: bool,
        num_workers: int,
        collate_fn: Callable[..., Any] | None,
        lr: float,
        lr_scheduler: Callable[..., Any] | None,
    ) -> tuple[BatchLoader, Optimizer, Any]:
        @wraps(optimizer, updated=())  # so that it is asked for what the optimiser itself can do
        def pair(parameters: list[Any], lr: float, **options: Any) -> Optimizer:
            groups = parameters if isinstance(parameters[0], dict) else [{"params": parameters}]
            second = {id(p) for p in self.discriminator.parameters()}
            of_first = [part for g in groups if (part := only(g, lambda p: id(p) not in second))["params"]]
            of_second = [part for g in groups if (part := only(g, lambda p: id(p) in second))["params"]]
            return OptimizerPair(
                optimizer(of_first, lr=lr, **options), optimizer(of_second, lr=lr * self.discriminator_lr, **options)
            )

        both = optimizer if self.discriminator is None else pair
        return super()._init_data_optimizer(both, batch_size, shuffle, num_workers, collate_fn, lr, lr_scheduler)

    def _update(self, loss: Tensor, optimizer: Optimizer, lr_scheduler: Any) -> None:
        if self.discriminator is None:
            super()._update(loss, optimizer, lr_scheduler)
            return
        if self.discriminator_loss is None:
            raise TypeError(
                f"{type(self).__name__}._forward left no loss in self.discriminator_loss; set it there, a scalar like what "
                "_forward returns."
            )
        second = [p for p in self.discriminator.parameters() if p.requires_grad]
        own = {id(p) for p in second}
        first = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=first, retain_graph=True)
        self.discriminator_loss.backward(inputs=second)
        self.discriminator_loss = None
        optimizer.step()
        lr_scheduler.step()


def only(group: dict[str, Any], belongs: Callable[[nn.Parameter], bool]) -> dict[str, Any]:
    """The group of parameters with those that belong."""
    return {**group, "params": [p for p in group["params"] if belongs(p)]}

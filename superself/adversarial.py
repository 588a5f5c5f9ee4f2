"""AdversarialSupervisor: base of the methods with a discriminator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.func import functional_call

from superself.basics.validate import require_positive
from superself.supervisor import Supervisor
from superself.training import GroupRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from superself.buildable import Options


class AdversarialSupervisor(Supervisor):
    """Two players, one optimizer: the discriminator is a parameter group with a learning rate of its own.

    A subclass builds ``self.discriminator``, the whole of the second player, in ``_build``, and routes gradients in
    ``_forward`` so that one ``backward`` serves both players: ``train_discriminator`` calls the discriminator on detached
    inputs, ``judge`` calls it with detached weights, and ``both_losses`` adds the two losses. Without a discriminator
    (None) it is a Supervisor.

    Source: Goodfellow et al., Generative Adversarial Networks, arXiv:1406.2661; both players step at once, as in Donahue et
        al., BiGAN, arXiv:1605.09782.
    Args:
        model, dataset, loss, collate_fn: see Supervisor, also for the options that are not listed here.
        discriminator_lr: learning rate of the discriminator as a multiple of ``lr``.
    Raises:
        ValueError: if ``discriminator_lr`` is not positive.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        dataset: Any = None,
        loss: Callable[..., Tensor] | None = None,
        collate_fn: Callable[..., Any] | None = None,
        *,
        discriminator_lr: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        require_positive("discriminator_lr", discriminator_lr, "multiplies lr")
        super().__init__(model, dataset, loss, collate_fn, **options)
        self.discriminator_lr = discriminator_lr
        self.discriminator: nn.Module | None = None

    def train_discriminator(self, *inputs: Tensor) -> Tensor:
        """What the discriminator says; the gradient reaches its weights and not what made the inputs."""
        return self.discriminator(*(part.detach() for part in inputs))

    def judge(self, *inputs: Tensor) -> Tensor:
        """What the discriminator says; the gradient reaches what made the inputs and not its weights."""
        state = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        state |= {name: buffer.clone() for name, buffer in self.discriminator.named_buffers()}  # moved once per step
        return functional_call(self.discriminator, state, inputs)

    def both_losses(self, loss: Tensor, discriminator_loss: Tensor) -> Tensor:
        """The value of ``loss`` with the gradients of both, so that the progress line shows the first player's loss."""
        self.note("discriminator_loss", discriminator_loss)
        return loss + (discriminator_loss - discriminator_loss.detach())

    def _group_rules(self) -> list[GroupRule]:
        if self.discriminator is None:
            return []
        return [GroupRule("discriminator", lr_factor=self.discriminator_lr)]

"""MemoryBankLoss: base of losses that take their negatives from the embeddings of recent batches, in any training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from superself.basics.validate import require_count
from superself.networks import FeatureQueue


class _Call:
    """The embeddings of a call, and whether its loss has had its backward pass."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings, self.had_backward = embeddings, False

    def began_backward(self, gradient: Tensor) -> None:
        self.had_backward = True


class MemoryBankLoss(nn.Module):
    """Base of a loss with a bank of the embeddings of recent batches.

    A subclass asks for ``negatives`` before it computes the loss and calls ``remember`` after it:

        def forward(self, query, key):
            negatives = self.negatives(key)  # (K, D), or None without a bank
            loss = ...
            self.remember(key, loss)
            return loss

    What a call remembers enters the bank after the backward pass of its loss: at the start of the next call, or when
    ``commit`` is called. So an embedding is never a negative of its own image in that step, even if the loss is called twice
    per step with the views exchanged. A call whose loss gets no backward pass, in eval mode or under ``torch.no_grad()``
    leaves nothing behind. The bank is in the ``state_dict``; call ``commit()`` before storing it, so that it has the last
    batch. With several processes all of them store the embeddings of all. A supervisor does not take such a loss; SimCLR and
    MoCo have banks of their own.

    Source: the queue of He et al., MoCo, arXiv:1911.05722, Sec. 3.2.
    Args:
        memory_bank_size: K, rows of the bank; (K, D) also gives their width, which is otherwise taken from the first call or
            the stored state; 0 for no bank. Below the number of images, or a bank holds older embeddings of the same image.
    Raises:
        TypeError, ValueError: if it is neither a number of at least 0 nor a pair.
    """

    bank: FeatureQueue | None

    def __init__(self, memory_bank_size: int | Sequence[int] = 0) -> None:
        super().__init__()
        rows, width = memory_bank_size if isinstance(memory_bank_size, (tuple, list)) else (memory_bank_size, None)
        require_count("memory_bank_size", rows, "is the number of rows of the memory bank", minimum=0)
        if width is not None:
            require_count("the width in memory_bank_size", width, "is the number of values of an embedding")
        self.memory_bank_size = rows
        self.bank = FeatureQueue(rows, width) if rows and width else None
        self._waiting: list[_Call] = []  # since the last commit, oldest first

    def negatives(self, embeddings: Tensor) -> Tensor | None:
        """The rows of the bank (K, D), for a call with these embeddings (B, D); None without a bank."""
        if not self.memory_bank_size:
            return None
        if self.bank is None:
            self.bank = FeatureQueue(self.memory_bank_size, embeddings.shape[1])
        self.bank.to(embeddings.device)
        if any(call.had_backward for call in self._waiting) and self.training and torch.is_grad_enabled():
            self.commit()
        return self.bank.features

    def remember(self, embeddings: Tensor, loss: Tensor) -> None:
        """Keeps embeddings (B, D), of any length, which enter the bank once ``loss`` () has had its backward pass."""
        if not (self.memory_bank_size and self.training and loss.requires_grad):
            return
        call = _Call(embeddings.detach())
        self._waiting.append(call)
        while sum(len(call.embeddings) for call in self._waiting[1:]) >= self.memory_bank_size:
            self._waiting.pop(0)  # which would leave the bank at once
        loss.register_hook(call.began_backward)

    def commit(self) -> None:
        """Writes what earlier calls remembered into the bank now, if their losses had their backward pass; forgets the rest."""
        embeddings = [call.embeddings for call in self._waiting if call.had_backward]
        if embeddings:
            self.bank.remember(torch.cat(embeddings))
            self.bank.commit()
        self._waiting = []

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        features = state_dict.get(f"{prefix}bank.features")
        if self.memory_bank_size and self.bank is None and features is not None:
            self.bank = FeatureQueue(*features.shape).to(features.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

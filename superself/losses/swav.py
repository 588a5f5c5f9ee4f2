"""SwAV: balanced codes by Sinkhorn-Knopp, and the cross-entropy of predicting them from other views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from superself.basics.distributed import gather
from superself.basics.validate import require_count, require_positive


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, counted: Tensor | None = None) -> Tensor:
    """Codes (N, K): how much each of N samples belongs to each of K prototypes, with about N / K samples for each prototype.

    Q = Diag(u) exp(scores / epsilon) Diag(v), scaled in turn so that all prototypes get the same share of the samples and
    the codes of each sample sum to 1. It is computed with logarithms in float32, without a gradient. With several processes
    the shares are those of the samples of all of them, and each gets the codes of its own.

    Source: Cuturi, Sinkhorn Distances, arXiv:1306.0895; for codes: Caron et al., SwAV, arXiv:2006.09882.
    Deviations: the sum of a sample's codes is 1 instead of 1 / N, as in the authors' code.
    Args:
        scores: (N, K) similarities, N may differ between processes.
        epsilon: smoothness; smaller is closer to one prototype for each sample.
        iterations: of scaling first the prototypes, then the samples.
        counted: (N,) bool: samples that count for the shares of the prototypes; None for all.
    Shape:
        (N, K) -> (N, K).
    Raises:
        ValueError: if an argument is out of range, or scores is not a matrix.
    """
    require_positive("epsilon", epsilon, "is the smoothness of the codes")
    require_count("iterations", iterations, "is the number of times that prototypes and samples are scaled")
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {tuple(scores.shape)}; pass one row for each sample, (N, K).")
    with torch.autocast(scores.device.type, enabled=False):
        log_q = scores.float() / epsilon
        weights = None if counted is None else torch.zeros_like(log_q[:, :1]).masked_fill(~counted[:, None], -torch.inf)
        for _ in range(iterations):
            shares = (log_q if weights is None else log_q + weights).logsumexp(0, keepdim=True)  # (1, K)
            log_q = log_q - gather(shares).logsumexp(0)  # of all processes
            log_q = log_q.log_softmax(1)
        return log_q.exp()


class SwAVLoss(nn.Module):
    """Cross-entropy between the codes of some views and what the other views of the same images predict.

    L = mean over views i with codes q_i, and over all views v other than i, of -sum_k q_i,k log softmax(s_v / t)_k, averaged
    over the batch, in float32. No gradient flows into the codes. The chance level is ln K.

        codes = [sinkhorn(scores) for scores in scores_of_views[:2]]
        loss = SwAVLoss()(scores_of_views, codes)

    Source: Caron et al., SwAV, arXiv:2006.09882, and the authors' code for more than two views.
    Deviations: none.
    Args:
        temperature: t, divides scores; smaller is sharper.
    Shape:
        scores: V views, each (B, K); codes: (B, K) for each of the first views -> scalar ().
    Raises:
        ValueError: if ``temperature`` is not positive, there are fewer than two views or more codes than views, or shapes
            differ.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        require_positive("temperature", temperature, "divides scores")
        self.temperature = temperature

    def forward(self, scores: Sequence[Tensor], codes: Sequence[Tensor]) -> Tensor:
        """The loss of a batch."""
        require_views(scores, codes, "scores", "codes")
        with torch.autocast(scores[0].device.type, enabled=False):
            predicted = [log_softmax(score.float() / self.temperature, dim=1) for score in scores]
            return cross_view_entropy(predicted, [code.detach().float() for code in codes])


def cross_view_entropy(predicted: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy of each target with the predictions of all views but its own.

    Args:
        predicted: logarithms of probabilities (B, K) of V views.
        targets: probabilities (B, K) of the first of these views.
    """
    losses = [
        -(target * log_p).sum(1).mean()
        for i, target in enumerate(targets)
        for v, log_p in enumerate(predicted)
        if v != i
    ]
    return torch.stack(losses).mean()


def require_views(views: Sequence[Tensor], targets: Sequence[Tensor], name: str, other: str) -> None:
    """Raises a ValueError unless there are at least two views, at most as many targets, and all have the same shape."""
    if len(views) < 2 or not 1 <= len(targets) <= len(views):
        raise ValueError(
            f"{name} of {len(views)} views and {other} of {len(targets)}; pass {name} of at least two views of each image, "
            f"and {other} of the first of them."
        )
    shapes = {tuple(tensor.shape) for tensor in (*views, *targets)}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"{name} and {other} have the shapes {sorted(shapes)}; all of them must be (B, K).")

"""DetConLoss: find the same segment of the same image among all segments of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from superself.basics.distributed import gather, mean, rank
from superself.basics.validate import require_fraction, require_nonnegative, require_positive
from superself.losses.hcl import log_hard_negatives

LOWEST = -1e30  # in place of minus infinity, whose gradient is not defined where nothing else is left


class DetConLoss(nn.Module):
    """Cross-entropy of finding a segment in the other view among all segments of both views of all images.

    L = -log exp(s+ / t) / (exp(s+ / t) + sum_n exp(s_n / t)), averaged over the segments that both views show: s is a cosine, s+
    that with the same segment of the same image in the other view, s_n those with all other segments, of this image too,
    in both views of all images of all processes. A segment that only one view shows has no positive, but is a negative of
    others. One that was drawn several times counts as one in the average, and its copies are not its negatives. The chance
    level is ln(N + 1) for N negatives.

    Source: Henaff et al., DetCon, arXiv:2103.10957, Eq. 3, and the authors' code. With ``beta`` or ``tau_plus``, the sum over
        negatives is that of Robinson et al., HCL, arXiv:2010.04592, as in the authors' code.
    Deviations: the average is over the segments with a positive, where the authors' also counts the others, as 0; the other
        copies of a positive are left out, where the authors' code sums over them.
    Args:
        temperature: t, divides cosines.
        beta: of HCL: how much more the negatives that are most similar to the query count; 0 for all alike.
        tau_plus: of HCL: the fraction of negatives that are assumed to show the same; 0 for none.
    Shape:
        query (B, 2, S, E) of both views, segments (B, 2, S) integers, key (B, 2, S, E) or None for the queries themselves
        -> scalar (). ``segments`` are the ids of the S segments of each view, of which those at the same place belong together,
        and 0 where the view does not show it. A batch in which no segment is shown twice has loss 0.
    Raises:
        ValueError: if a number is out of range, or shapes do not fit.
    """

    def __init__(self, temperature: float = 0.1, beta: float = 0.0, tau_plus: float = 0.0) -> None:
        super().__init__()
        require_positive("temperature", temperature, "divides similarities")
        require_nonnegative("beta", beta, "weighs negatives that are similar to the query")
        require_fraction("tau_plus", tau_plus, "is the assumed fraction of false negatives", upper_open=True)
        self.temperature, self.beta, self.tau_plus = temperature, beta, tau_plus

    def forward(self, query: Tensor, segments: Tensor, key: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        key = query if key is None else key
        if (
            query.shape != key.shape
            or query.shape[:-1] != segments.shape
            or segments.ndim != 3
            or segments.shape[1] != 2
        ):
            raise ValueError(
                f"query {tuple(query.shape)}, key {tuple(key.shape)} and segments {tuple(segments.shape)} do not fit; pass "
                "(B, 2, S, E) twice and (B, 2, S)."
            )
        with torch.autocast(query.device.type, enabled=False):
            query, key = normalize(query.float(), dim=3), normalize(key.float(), dim=3)
            positive = (query * key.flip(1)).sum(3) / self.temperature  # (B, 2, S)
            logits = query.flatten(0, 2) @ gather(key).flatten(0, 2).T / self.temperature  # (Q, K), Q = 2 B S
            is_negative = negative_pairs(segments)  # (Q, K)
            losses = softplus(self._log_negatives(logits, is_negative, positive.flatten()) - positive.flatten())
            weights = segment_weights(segments).flatten()  # (Q,)
            return (losses * weights).sum() / mean(weights.sum()).clamp(min=1e-6)

    def _log_negatives(self, logits: Tensor, is_negative: Tensor, positive: Tensor) -> Tensor:
        """The logarithm (Q,) of the sum over negatives, which HCL reweights by similarity and corrects for false ones."""
        alone = ~is_negative.any(1)  # -inf everywhere would make the gradient of a query without negatives NaN
        counted = is_negative | alone[:, None]
        logits = logits.masked_fill(~counted, -torch.inf)
        log_sum = log_hard_negatives(logits, positive, counted, self.temperature, self.beta, self.tau_plus)
        return log_sum.masked_fill(alone, LOWEST)


def negative_pairs(segments: Tensor) -> Tensor:
    """Which key is a negative of which query: those of all processes that are shown, but for copies of the query's own segment.

    Shape:
        (B, 2, S) -> (2 B S, 2 W B S) bool, for W processes.
    """
    images, views, samples = segments.shape
    image = torch.arange(images, device=segments.device).repeat_interleave(views * samples)
    image_of_key = gather(image + rank() * images)  # numbers of images, of all processes
    id_of_key = gather(segments).flatten()
    same = (segments.reshape(-1, 1) == id_of_key) & ((image + rank() * images)[:, None] == image_of_key)
    return (id_of_key > 0) & ~same


def segment_weights(segments: Tensor) -> Tensor:
    """1 over the number of copies of each segment that both views show, and 0 for the others. Shape: (B, 2, S) -> (B, 2, S)."""
    shown = (segments > 0).all(1, keepdim=True)  # (B, 1, S)
    ids = torch.where(shown, segments, 0)
    copies = (ids[:, :, :, None] == ids[:, :, None]).sum(3)  # (B, 2, S)
    return shown.expand_as(segments) / copies

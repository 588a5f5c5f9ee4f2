"""MoCHi: synthetic negatives, mixed of those that are hardest for each query."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from superself.basics.validate import require_count


@torch.no_grad()
def mix_hard_negatives(
    query: Tensor,
    negatives: Tensor,
    generator: torch.Generator,
    hardest: int = 1024,
    mixed: int = 1024,
    query_mixed: int = 128,
    exclude: Tensor | None = None,
) -> Tensor:
    """Synthetic negatives of each query, of unit length and without a gradient, for ``InfoNCE(...)(own=)``.

    The first are a n_i + (1 - a) n_j with a from (0, 1), the others b q + (1 - b) n_i with b from (0, 0.5): n_i and n_j are two
    different ones of the ``hardest`` negatives of q, and i, j, a and b are drawn for each point of each query.

    Source: Kalantidis et al., Hard Negative Mixing for Contrastive Learning, arXiv:2010.01028.
    Deviations: n_i and n_j are never the same, so that no point is a copy; a query with a single negative gets copies of it,
        one without any gets vectors of zeros, which are orthogonal to it.
    Args:
        query: (B, D), of any length.
        negatives: (K, D) of unit length.
        generator: random numbers on the CPU.
        hardest: N, how many of the negatives are mixed; all of them if there are fewer.
        mixed: s, points that mix two negatives.
        query_mixed: s', points that mix the query with a negative.
        exclude: (B, K) bool, which negatives are not those of that query; they are not mixed.
    Shape:
        -> (B, s + s', D).
    Raises:
        ValueError: if a number is out of range.
    """
    require_count("hardest", hardest, "is how many negatives are mixed")
    require_count("mixed", mixed, "is the number of points that mix two negatives", minimum=0)
    require_count("query_mixed", query_mixed, "is the number of points that mix query and negative", minimum=0)
    with torch.autocast(query.device.type, enabled=False):
        query, negatives = normalize(query.float(), dim=1), negatives.float()
        similarity = query @ negatives.T  # (B, K)
        if exclude is not None:
            similarity = similarity.masked_fill(exclude, -torch.inf)
        similarity, rows = similarity.topk(min(hardest, len(negatives)), dim=1)  # (B, N)
        usable = similarity.isfinite().sum(1, keepdim=True)  # (B, 1): excluded ones come last
        points = mixed + query_mixed
        draws = torch.rand(len(query), points, 3, generator=generator).to(query.device, non_blocking=True)
        first = (draws[..., 0] * usable).long().clamp(max=rows.shape[1] - 1)  # (B, s + s')
        others = (usable - 1).clamp(min=0)
        step = 1 + (draws[:, :mixed, 1] * others).long().minimum((others - 1).clamp(min=0))
        second = (first[:, :mixed] + step) % usable.clamp(min=1)  # another one
        weight = draws[..., 2:]  # (B, s + s', 1)
        hard = negatives[rows.gather(1, first)]  # (B, s + s', D)
        alpha, beta = weight[:, :mixed], weight[:, mixed:] / 2
        pairs = alpha * hard[:, :mixed] + (1 - alpha) * negatives[rows.gather(1, second)]
        with_query = beta * query[:, None] + (1 - beta) * hard[:, mixed:]
        return normalize(torch.cat([pairs, with_query], 1), dim=2) * (usable > 0)[..., None]

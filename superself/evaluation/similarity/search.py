"""The nearest rows by cosine: exact, in blocks, so that memory grows with the number of rows and not with its square."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from superself.basics.validate import require_count

QUERIES_AT_A_TIME = 1024
SIMILARITIES_AT_A_TIME = 2**25  # float32: 128 MiB
FEWEST_FOR_FAISS = 2**14  # rows from which on importing it pays


@torch.no_grad()
def search_nearest(queries: Tensor, directions: Tensor, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``k`` rows of ``directions`` with the largest cosine to each query, the most similar first.

    On a CPU, faiss searches where it is installed: just as exactly, in half the time. Rows that are equally similar may come in
    another order then.

    Args:
        queries: (M, D) of unit length.
        directions: (N, D) of unit length, on the same device.
        k: how many.
        own: (M,) the row of ``directions`` that each query is, which is not among its neighbours; None if it is none.
    Returns:
        Cosines (M, k) and rows (M, k), on the CPU.
    Raises:
        ValueError: if there are fewer than k rows to choose from.
    """
    available = len(directions) - (own is not None)
    require_count("k", k, f"is a number of neighbours, of which there are {available}", maximum=available)
    faiss = _faiss() if queries.device.type == "cpu" and len(directions) >= FEWEST_FOR_FAISS else None
    if faiss is not None:
        return _search_with(faiss, queries, directions, k, own)
    width = max(k + 1, SIMILARITIES_AT_A_TIME // QUERIES_AT_A_TIME)
    cosines, rows = [], []
    for begin in range(0, len(queries), QUERIES_AT_A_TIME):
        block = queries[begin : begin + QUERIES_AT_A_TIME]
        mine = None if own is None else own[begin : begin + QUERIES_AT_A_TIME].to(block.device)
        best = _nearest_of_block(block, directions, k, mine, width)
        cosines.append(best[0].clamp(-1, 1).cpu())
        rows.append(best[1].cpu())
    return torch.cat(cosines), torch.cat(rows)


def _nearest_of_block(
    block: Tensor, directions: Tensor, k: int, own: Tensor | None, width: int
) -> tuple[Tensor, Tensor]:
    best = block.new_empty(len(block), 0), block.new_empty(len(block), 0, dtype=torch.long)
    for begin in range(0, len(directions), width):
        columns = directions[begin : begin + width]
        similarity = block @ columns.T  # (m, w)
        if own is not None:
            inside = ((own >= begin) & (own < begin + len(columns))).nonzero().flatten()
            similarity[inside, own[inside] - begin] = -torch.inf
        found = similarity.topk(min(k, len(columns)))
        values = torch.cat([best[0], found.values], dim=1)
        places = torch.cat([best[1], found.indices + begin], dim=1)
        kept = values.topk(min(k, values.shape[1]))
        best = kept.values, places.gather(1, kept.indices)
    return best


def _faiss() -> Any:
    """The package, or None. On macOS and Windows its OpenMP and that of torch do not get along in one process."""
    if sys.platform != "linux":
        return None
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def _search_with(faiss: Any, queries: Tensor, directions: Tensor, k: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        arrays = queries.contiguous().numpy(), directions.contiguous().numpy()
        found = faiss.knn(*arrays, k + (own is not None), metric=faiss.METRIC_INNER_PRODUCT)
    finally:
        faiss.omp_set_num_threads(before)
    cosines, rows = map(torch.from_numpy, found)
    if own is not None:
        others = rows != own[:, None]  # all of them, where k copies are as similar: the last one gives way
        others[others.all(dim=1), -1] = False
        cosines, rows = cosines[others].view(-1, k), rows[others].view(-1, k)
    return cosines.clamp(-1, 1), rows

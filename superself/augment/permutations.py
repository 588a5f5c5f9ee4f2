"""Permutations of the tiles of a puzzle that differ from each other as much as possible."""

from __future__ import annotations

from importlib import resources
from itertools import permutations
from math import factorial

import numpy as np
import torch
from torch import Tensor

STORED = "permutations_9.txt"  # in this folder: a thousand permutations of nine tiles, in the order they were chosen
MAX_TILES = 9  # more have too many permutations to search


def permutation_set(tiles: int, count: int | None = None) -> Tensor:
    """``count`` permutations of ``tiles`` tiles that differ in many places, or all of them in order if there are fewer.

    Up to 1000 permutations of nine tiles, as in the paper, are read from a file: minimum Hamming distance 5, mean 8.008.

    Args:
        tiles: of a puzzle, at most 9.
        count: how many; None for all.
    Shape:
        -> (count, tiles) int64; row k says which tile goes to each place.
    Raises:
        ValueError: if there are too many tiles or no permutations.
    """
    if not 1 <= tiles <= MAX_TILES:
        raise ValueError(f"tiles={tiles} is out of range; pass 1 to {MAX_TILES}, that is, a grid of at most 3 x 3.")
    if count is not None and count < 1:
        raise ValueError(f"count={count} must be at least 1; pass None for all permutations.")
    if count is None or count >= factorial(tiles):
        return torch.tensor(list(permutations(range(tiles))))
    if tiles == 9:
        lines = resources.files(__package__).joinpath(STORED).read_text().split()
        if count <= len(lines):
            return torch.tensor([[int(tile) for tile in line] for line in lines[:count]])
    return torch.from_numpy(choose_far_apart(tiles, count))


def choose_far_apart(tiles: int, count: int) -> np.ndarray:
    """Chooses permutations one by one, always the one farthest from those chosen so far, starting with the identity.

    Farthest means the largest minimum Hamming distance, and among equals the largest mean distance. So the first rows of a
    set are the set for a smaller count.

    Source: Noroozi & Favaro, Jigsaw, arXiv:1603.09246, the algorithm for maximal Hamming distance.
    Deviations: the paper uses the mean distance alone and starts at random. That gives the same mean of 8.008 for 1000
        permutations of nine tiles, but some pairs differ in only two places.
    """
    candidates = np.array(list(permutations(range(tiles))))  # (tiles!, tiles)
    from scipy.spatial.distance import cdist  # takes a tenth of a second to import, and most runs need none

    chosen = [0]
    nearest, total = np.full(len(candidates), float(tiles)), np.zeros(len(candidates))
    while len(chosen) < count:
        distance = (cdist(candidates[chosen[-1:]], candidates, "hamming")[0] * tiles).round()
        nearest, total = np.minimum(nearest, distance), total + distance
        chosen.append(int((nearest * tiles * count + total).argmax()))
    return candidates[chosen]

"""Permutations of the tiles of a puzzle, as different from each other as can be."""

from __future__ import annotations

from importlib import resources
from itertools import permutations
from math import factorial

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

KEPT = "permutations_9.txt"  # beside this file: a thousand of nine tiles, in the order in which they were chosen
LARGEST = 9  # tiles; more have too many permutations to look through


def permutation_set(tiles: int, count: int | None = None) -> Tensor:
    """``count`` permutations of ``tiles`` tiles that differ in many places; all of them, in order, if there are no more.

    Those of nine tiles are read from a file up to the 1000 of the paper: minimal Hamming distance 5, mean 8.008.

    Args:
        tiles: of a puzzle, 9 at the most.
        count: how many; None for all.
    Shape:
        -> (count, tiles) int64; row k says which tile goes to each place.
    Raises:
        ValueError: if there are too many tiles or no permutations.
    """
    if not 1 <= tiles <= LARGEST:
        raise ValueError(f"tiles={tiles} cannot be permuted here; pass 1 to {LARGEST}, a grid of 3 at the most.")
    if count is not None and count < 1:
        raise ValueError(f"count={count} is no number of permutations; pass 1 or more, or None for all.")
    if count is None or count >= factorial(tiles):
        return torch.tensor(list(permutations(range(tiles))))
    if tiles == 9:
        lines = resources.files(__package__).joinpath(KEPT).read_text().split()
        if count <= len(lines):
            return torch.tensor([[int(tile) for tile in line] for line in lines[:count]])
    return torch.from_numpy(choose_far_apart(tiles, count))


def choose_far_apart(tiles: int, count: int) -> np.ndarray:
    """Chooses permutations one by one, the next always the one that is farthest from those there are.

    Farthest means the largest minimal Hamming distance, and of those that share it the largest mean one; the first is the
    order itself. So the first rows of a set are the set for a smaller count.

    Source: Noroozi & Favaro, Jigsaw, arXiv:1603.09246, the algorithm for maximal Hamming distance.
    Deviations: the paper looks at the mean distance alone, and starts at random: that gives the same mean of 8.008 for 1000
        permutations of nine tiles, but pairs that differ in two places only.
    """
    candidates = np.array(list(permutations(range(tiles))))  # (tiles!, tiles)
    chosen = [0]
    nearest, total = np.full(len(candidates), float(tiles)), np.zeros(len(candidates))
    while len(chosen) < count:
        distance = (cdist(candidates[chosen[-1:]], candidates, "hamming")[0] * tiles).round()
        nearest, total = np.minimum(nearest, distance), total + distance
        chosen.append(int((nearest * tiles * count + total).argmax()))
    return candidates[chosen]

"""Permutations that differ in as many places as possible: the classes of a jigsaw puzzle.

Noroozi & Favaro 2016, arXiv:1603.09246, algorithm 1, with one change: the next permutation is the
one whose *smallest* Hamming distance to those taken is largest. The largest sum of distances, which
the paper writes down, may be had by one that lies next to another; puzzles that differ in
two tiles can hardly be told apart.
"""

from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslops.training.data.cache import cached

__all__ = ["MOST", "distances", "permutation_set"]

MOST = {2: 24, 3: 2000}  # classes of a grid; 2 x 2 tiles have no more orders
VERSION = 1  # of what a seed gives


def permutation_set(grid: int, size: int, seed: int = 0) -> Tensor:
    """Permutations of the grid * grid tiles, [size, grid * grid] int64, all different.

    The same for the same arguments; larger sets begin with the smaller ones. Kept in the cache
    folder, as 1,000 of 9 tiles take some seconds.

    Args:
        grid: 2 or 3 tiles a side.
        size: 2..24 for 2 x 2 tiles, 2..2000 for 3 x 3.
        seed: decides between equally good ones.

    Raises:
        ValueError: another grid or size.
    """
    if grid not in MOST:
        raise ValueError(f"permutations: grid must be 2 or 3, got {grid}")
    if not 2 <= size <= MOST[grid]:
        raise ValueError(
            f"permutations: size must be in 2..{MOST[grid]} for {grid} x {grid} tiles, got {size}"
        )
    if grid == 2:
        found = _greedy(4, size, seed)
    else:
        key = f"permutations-{VERSION}-{grid}-{size}-{seed}"
        found = cached(key, lambda: {"permutations": _greedy(9, size, seed)})["permutations"]
    return torch.from_numpy(found.astype(np.int64))


def distances(found: Tensor) -> Tensor:
    """Hamming distances [P, P] int64 of permutations [P, n]: places in which two differ."""
    return (found[:, None] != found).sum(2)


def _greedy(tiles: int, size: int, seed: int) -> NDArray[np.generic]:
    """Take a drawn permutation, then always the one farthest from its nearest among those taken."""
    every = np.array(list(permutations(range(tiles))), dtype=np.uint8)
    every = every[np.random.default_rng(seed).permutation(len(every))]
    places = np.ascontiguousarray(every.T)  # [tiles, n!]: one place of all of them at a time
    nearest = np.full(len(every), tiles + 1, dtype=np.uint8)
    taken, newest = [0], 0
    while len(taken) < size:
        distance = np.zeros(len(every), dtype=np.uint8)
        for place in places:
            distance += place != place[newest]
        np.minimum(nearest, distance, out=nearest)
        newest = int(nearest.argmax())  # the first of equals: drawn, as the order is
        taken.append(newest)
    return every[taken]

"""Splits without leakage: clips of one video, of one origin, or that look alike all land in the same split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

TIED = 2  # clips whose fingerprints differ in up to so many times the bits of a duplicate may stay, but in one split
BANDS = 16  # of a fingerprint; the search compares two clips only where one of these is the same in both
_BITS = 256


def recall(bits: int) -> float:
    """The share of pairs that the search finds where `bits` of 256 differ and chance spreads them, in [0, 1].

    The chance that one band at least has none of them, by inclusion and exclusion: near 1-(1-(1-d/256)^16)^16, and 1 below 16 bits.
    """
    width, bits = _BITS // BANDS, min(bits, _BITS)
    hits = sum((-1) ** (k + 1) * math.comb(BANDS, k) * math.comb(_BITS - k * width, bits) for k in range(1, BANDS + 1))
    return hits / math.comb(_BITS, bits)


def components(*memberships: np.ndarray) -> np.ndarray:
    """For each of n clips the lowest index that it is tied to, int64 [n].

    memberships: integer arrays [n]; clips with the same number in any of them are tied, and so are those tied to a third.
    """
    n = len(memberships[0])
    groups = [np.unique(membership, return_inverse=True)[1].ravel() for membership in memberships]
    found = np.arange(n)
    while True:
        before = found
        for group in groups:
            lowest = np.full(n, n)
            np.minimum.at(lowest, group, found)
            found = lowest[group]
        if np.array_equal(before, found):
            return found


def assign(component: np.ndarray, kind: np.ndarray, chance: Sequence[int] | np.ndarray, shares: Mapping[str, float]) -> list[str]:
    """The split of each of n clips.

    The largest component goes first, to the split that lacks most of the kinds of clips that it has; so each split gets its share of
    each kind as far as components can be divided. Equal sizes go in the order of `chance`.

    Args:
        component: as `components` gives. kind: int [n], such as the visual label. chance: a number each, the same in every run.
        shares: split -> its share, of any scale; the first named wins a tie.
    """
    names = list(shares)
    weight = np.array([shares[name] for name in names], float) / sum(shares.values())
    kinds = np.unique(kind, return_inverse=True)[1].ravel()
    leaders, which = np.unique(component, return_inverse=True)
    sizes = np.zeros((len(leaders), kinds.max(initial=0) + 1))
    np.add.at(sizes, (which.ravel(), kinds), 1)
    total = np.maximum(sizes.sum(0), 1)
    got = np.zeros((len(names), sizes.shape[1]))
    chosen = np.zeros(len(leaders), int)
    chances = np.asarray(chance, dtype=np.uint64)[leaders]
    for i in np.lexsort((chances, -sizes.sum(1))):
        lack = weight[:, None] - got / total
        chosen[i] = int(np.argmax(np.round((lack * sizes[i]).sum(1), 9)))
        got[chosen[i]] += sizes[i]
    return [names[n] for n in chosen[which.ravel()]]

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a search of an inverted file does an entry, compiled by Numba: the extra ``fast``."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from feat_ros.types import Float64

Array = npt.NDArray[Any]
Int = npt.NDArray[np.int64]

# How many ones a byte has, and where they are.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder='little')
_COUNTS = _BITS.sum(axis=1).astype(np.int64)
_PLACES = np.argsort(1 - _BITS, axis=1, kind='stable').astype(np.int64)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def add_similarities(
    signatures: Array,
    id_lows: Array,
    id_highs: Array,
    starts: Int,
    stops: Int,
    high_starts: Int,
    high_stops: Int,
    queries: Array,
    of_distance: Float64,
    sums: Float64,
) -> bool:
    """Add the similarities of each entry of some words to the sum of its image.

    Words come one after the other, in three loops each: what waits for memory in one of them
    does not hold up the others.

    :param signatures: (M, D/64) uint64; ``queries`` (n, D/64) likewise.
    :param sums: (I,), which is changed.
    :returns: False where an entry's image is not one of these, whose sums are then wrong.
    """
    longest = 0
    for word in range(len(starts)):
        longest = max(longest, stops[word] - starts[word])
    images, similarities = np.empty(longest, np.int64), np.empty(longest)
    for word in range(len(starts)):
        start, count, rank = starts[word], stops[word] - starts[word], 0
        for byte in range(high_starts[word], high_stops[word]):
            bits = id_highs[byte]
            place = 8 * (byte - high_starts[word])
            if rank + _COUNTS[bits] > count:
                return False
            for one in range(_COUNTS[bits]):
                high = place + _PLACES[bits, one] - rank
                images[rank] = (high << 8) | id_lows[start + rank]
                rank += 1
        if rank != count:
            return False
        for entry in range(count):
            distance = np.uint64(0)
            for column in range(signatures.shape[1]):
                x = signatures[start + entry, column] ^ queries[word, column]
                # Pairs, fours and eights of bits are summed side by side.
                x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
                x = (x & np.uint64(0x3333333333333333)) + (
                    (x >> np.uint64(2)) & np.uint64(0x3333333333333333)
                )
                x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
                distance += (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
            similarities[entry] = of_distance[distance]
        for entry in range(count):
            image = images[entry]
            if image < 0 or image >= len(sums):
                return False
            sums[image] += similarities[entry]
    return True

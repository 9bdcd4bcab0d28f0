# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The visual words of a codebook, and which of them are nearest to a descriptor.

Few words are all compared. Many are divided into parts, and those of the parts whose centres are
nearest are compared: the inverted file of Jegou, Douze and Schmid, "Product quantization for
nearest neighbor search", PAMI 2011, section IV, without its compression.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
import math

import numpy as np
import numpy.typing as npt

from feat_ros.types import Float32

Int = npt.NDArray[np.int64]

# So few words are one part: all are compared.
_ONE_PART = 4096
_KMEANS_ITERATIONS = 10
_ROWS_PER_PART = 16
# Distances held at once while words are assigned: 16 MiB.
_DISTANCES_AT_ONCE = 1 << 22
# Multiply-adds of a product up to which OpenBLAS wakes no second thread: there are too many small
# products for that to pay.
_ONE_THREAD = 1 << 18


@dataclass(frozen=True, eq=False)
class VisualWords:
    """A codebook in parts.

    ================  ========  ====================================================
    ``words``         (W, D)    float32, those of a part behind each other
    ``part_starts``   (G + 1,)  int64: words ``part_starts[g]`` to ``part_starts[g + 1]``
                                are part g; none is empty
    ``part_centers``  (G, D)    float32
    ================  ========  ====================================================
    """

    words: Float32
    part_starts: Int
    part_centers: Float32

    @staticmethod
    def divide(codebook: Float32, seed: int = 0) -> VisualWords:
        """Divide words (W, D) into about sqrt(W) parts; up to 4096 words stay as they are."""
        if len(codebook) <= _ONE_PART:
            mean = codebook.mean(axis=0, dtype=np.float64, keepdims=True)
            return VisualWords(codebook, np.array([0, len(codebook)]), mean.astype(np.float32))
        rng = np.random.default_rng(seed)
        count = round(math.sqrt(len(codebook)))
        drawn = sample_rows(codebook, count * _ROWS_PER_PART, rng)
        centers = kmeans(drawn, count, rng)
        part = nearest_words(codebook, centers, 1)[:, 0]
        sizes = np.bincount(part, minlength=count)
        order = np.argsort(part, kind='stable')
        starts = np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
        return VisualWords(codebook[order], starts, centers[sizes > 0])

    def nearest(self, descriptors: Float32, count: int, probed_parts: int) -> Int:
        """Return the nearest words (N, min(count, W)) of descriptors (N, D), nearest first.

        :param probed_parts: how many parts are looked through; with all the answer is exact.
        """
        num_parts, count = len(self.part_centers), min(count, len(self.words))
        probed = min(max(probed_parts, count), num_parts)
        if probed == num_parts:
            return nearest_words(descriptors, self.words, count)
        part = nearest_words(descriptors, self.part_centers, probed).ravel()
        order = np.argsort(part, kind='stable')
        rows = descriptors[order // probed]
        found = np.zeros((len(part), count), np.int64)
        how_far = np.full((len(part), count), np.inf, np.float32)
        starts, end = self.part_starts.tolist(), 0
        for number, size in enumerate(np.bincount(part, minlength=num_parts).tolist()):
            (first, last), (start, end) = starts[number : number + 2], (end, end + size)
            words = self.words[first:last].T
            block = np.empty((size, last - first), np.float32)
            step = max(1, _ONE_THREAD // words.size)
            for row in range(0, size, step):
                some = slice(row, row + step)
                np.matmul(rows[start:end][some], words, out=block[some])
            np.subtract(self._half_square_norms[first:last], block, out=block)
            at = np.arange(size)
            for column in range(min(count, last - first)):
                best = block.argmin(axis=1)
                found[start:end, column] = best + first
                how_far[start:end, column] = block[at, best]
                if column < count - 1:
                    block[at, best] = np.inf
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        shape = len(descriptors), probed * count
        best = np.argsort(how_far[back].reshape(shape), axis=1, kind='stable')[:, :count]
        return np.take_along_axis(found[back].reshape(shape), best, axis=1)

    @cached_property
    def _half_square_norms(self) -> Float32:
        return _half_square_norms(self.words)


def _half_square_norms(words: Float32) -> Float32:
    return np.asarray(np.einsum('wd,wd->w', words, words) / np.float32(2), np.float32)


def nearest_words(descriptors: Float32, codebook: Float32, count: int) -> Int:
    """Return the nearest words (N, min(count, W)) of descriptors, nearest first, by all distances.

    Words at equal distance come by number.
    """
    half_square_norms = _half_square_norms(codebook)
    count = min(count, len(codebook))
    nearest = np.empty((len(descriptors), count), np.int64)
    step = max(1, _DISTANCES_AT_ONCE // len(codebook))
    for first in range(0, len(descriptors), step):
        block = descriptors[first : first + step]
        # |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x . c), and |x| is the same for all words.
        distance = half_square_norms - block @ codebook.T
        rows = np.arange(len(block))
        for column in range(count):
            best = np.argmin(distance, axis=1)
            nearest[first : first + step, column] = best
            distance[rows, best] = np.inf
    return nearest


def sample_rows(rows: Float32, at_most: int, rng: np.random.Generator) -> Float32:
    """Draw rows without repetition, in their order; all where they are not more."""
    if len(rows) <= at_most:
        return rows
    return rows[np.sort(rng.choice(len(rows), at_most, replace=False))]


def kmeans(rows: Float32, num_words: int, rng: np.random.Generator) -> Float32:
    """Lloyd's iterations (OpenCV) from randomly drawn rows; (num_words, D)."""
    import cv2  # here, because a query needs NumPy only

    if num_words == len(rows):
        return rows
    drawn = sample_rows(rows, num_words, rng)
    labels = nearest_words(rows, drawn, 1).astype(np.int32)
    stop = (cv2.TERM_CRITERIA_COUNT, _KMEANS_ITERATIONS, 0.0)
    # Starting from labels leaves OpenCV's global random generator out of it.
    _, _, words = cv2.kmeans(rows, num_words, labels, stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    return np.asarray(words, np.float32)

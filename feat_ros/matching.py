# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours between descriptors, by dot product or another similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# Columns multiplied at once: few, so that the product (8 MB for 2048 queries) is still in a cache
# when its maxima are sought; not fewer, since the threads of BLAS wait for each other after each
# block, which on a busy machine takes longer than the product.
_BLOCK = 1024
_MAX_BLOCK_VALUES = 1 << 23
# Parts of a row that equation 1 of AISLFD compares: local descriptors, then as many meta ones.
_LOCAL_PARTS = 4
# What their meta similarities are multiplied by: equation 1 does not say how long meta descriptors
# are, which decides how sharply they choose, and ours are unit length. Found on photographs that
# training holds out, turned and in other light.
_META_SHARPNESS = np.float32(3.0)

Float32 = npt.NDArray[np.float32]
# Writes how alike query rows (N, D) and reference rows (M, D) are into (N, M).
Similarity = Callable[[Float32, Float32, Float32], None]


class DescriptorRows(Protocol):
    """Unit descriptors (M, D) that may lie on disk: read by slices of rows."""

    def __len__(self) -> int:
        """Return M."""
        ...

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Return descriptors (rows, D)."""
        ...


# What :func:`mutual_nearest` is, by whatever computes it.
Matcher = Callable[[Float32, DescriptorRows, Similarity], tuple[npt.NDArray[np.int64], Float32]]


def dot_similarity(query: Float32, reference: Float32, out: Float32) -> None:
    """Write the dot products of unit descriptors."""
    np.matmul(query, reference.T, out=out)


def selected_similarity(query: Float32, reference: Float32, out: Float32) -> None:
    """Write the negative distance of equation 1 of AISLFD.

    Li, Li and Li, ICASSP 2022, section 2.3: the distances of four local descriptors, weighted by
    a softmax of the similarities of their meta descriptors. Rows are those of
    :class:`feat_ros.models.aislfd.AislfdExact`; what a mean over images or the rounding of a map
    has left of their parts is made unit length again.
    """
    query_parts, reference_parts = _unit_parts(query), _unit_parts(reference)
    out[:] = 0
    total = np.zeros_like(out)
    weight, distance = np.empty_like(out), np.empty_like(out)
    for local in range(_LOCAL_PARTS):
        meta = local + _LOCAL_PARTS
        np.matmul(_META_SHARPNESS * query_parts[meta], reference_parts[meta].T, out=weight)
        np.exp(weight, out=weight)
        np.matmul(query_parts[local], reference_parts[local].T, out=distance)
        # Of unit vectors the squared distance is 2 - 2 cos.
        np.multiply(distance, -2, out=distance)
        distance += 2
        np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
        total += weight
        out -= np.multiply(weight, distance, out=distance)
    out /= total


def _unit_parts(rows: Float32) -> Float32:
    """Return the eight parts (8, N, D / 8) of rows (N, D), unit length each."""
    parts = rows.reshape(len(rows), 2 * _LOCAL_PARTS, -1).swapaxes(0, 1)
    return np.asarray(parts / np.maximum(np.linalg.norm(parts, axis=2, keepdims=True), 1e-12))


# How descriptors of an extractor are compared, where not by dot product.
SIMILARITIES: Mapping[str, Similarity] = {'aislfd_exact': selected_similarity}


def similarity_of(extractor_name: str) -> Similarity:
    """Return how descriptors of an extractor are compared."""
    return SIMILARITIES.get(extractor_name, dot_similarity)


def mutual_nearest(
    query: npt.NDArray[np.float32],
    reference: DescriptorRows,
    similarity: Similarity = dot_similarity,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the pairs of rows that are each other's nearest neighbour.

    Similarities are formed a block of reference rows at a time, so memory does not grow with M:
    under 34 MB for any two sets up to 16,384 queries. Only maxima are needed: a row's best column
    is mutual if the value there is also that column's maximum. Of equal values the first wins.

    :param query: (N, D) float32.
    :param reference: (M, D), an array or anything read by slices of rows.
    :param similarity: what is largest for the nearest; see :func:`similarity_of`.
    :returns: pairs (K, 2) int64 (query row, reference row) by ascending query row, and their
        similarities (K,) float32.
    """
    num_query, num_reference = len(query), len(reference)
    if num_query == 0 or num_reference == 0:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    query = np.ascontiguousarray(query, np.float32)
    block = max(1, min(_BLOCK, _MAX_BLOCK_VALUES // num_query))
    products = np.empty((num_query, min(block, num_reference)), np.float32)
    every_row = np.arange(num_query)
    best_column = np.zeros(num_query, np.int64)
    best_value = np.full(num_query, -np.inf, np.float32)
    column_best = np.empty(num_reference, np.float32)
    for start in range(0, num_reference, block):
        part = np.asarray(reference[start : start + block], np.float32)
        view = products[:, : len(part)]
        similarity(query, part, view)
        column = view.argmax(axis=1)
        value = view[every_row, column]
        better = value > best_value
        best_column[better] = column[better] + start
        best_value[better] = value[better]
        view.max(axis=0, out=column_best[start : start + len(part)])
    return mutual_pairs(best_value == column_best[best_column], best_column, best_value)


def mutual_pairs(
    is_mutual: npt.NDArray[np.bool_],
    best_column: npt.NDArray[np.int64],
    best_value: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return pairs and similarities as :func:`mutual_nearest` does, of what each row found (N,).

    :param is_mutual: whether nothing is more like the row's best column.
    """
    rows = np.flatnonzero(is_mutual)
    # Two equal queries share a column: the first has it.
    _, first = np.unique(best_column[rows], return_index=True)
    rows = rows[np.sort(first)]
    return np.column_stack([rows, best_column[rows]]), best_value[rows]

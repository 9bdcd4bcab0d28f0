# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours between unit descriptors."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# Columns multiplied at once: few, so that the product (8 MB for 2048 queries) is still in a cache
# when its maxima are sought; not fewer, since the threads of BLAS wait for each other after each
# block, which on a busy machine takes longer than the product.
_BLOCK = 1024
_MAX_BLOCK_VALUES = 1 << 23


class DescriptorRows(Protocol):
    """Unit descriptors (M, D) that may lie on disk: read by slices of rows."""

    def __len__(self) -> int:
        """Return M."""
        ...

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Return descriptors (rows, D)."""
        ...


def mutual_nearest(
    query: npt.NDArray[np.float32], reference: DescriptorRows
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the pairs of rows that are each other's nearest neighbour by dot product.

    The product is formed a block of reference rows at a time, so memory does not grow with M:
    under 34 MB for any two sets up to 16,384 queries. Only maxima are needed: a row's best column
    is mutual if the value there is also that column's maximum. Of equal values the first wins.

    :param query: (N, D) float32.
    :param reference: (M, D), an array or anything read by slices of rows.
    :returns: pairs (K, 2) int64 (query row, reference row) by ascending query row, and their dot
        products (K,) float32.
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
        np.matmul(query, part.T, out=view)
        column = view.argmax(axis=1)
        value = view[every_row, column]
        better = value > best_value
        best_column[better] = column[better] + start
        best_value[better] = value[better]
        view.max(axis=0, out=column_best[start : start + len(part)])
    rows = np.flatnonzero(best_value == column_best[best_column])
    # Two equal queries share a column: the first has it.
    _, first = np.unique(best_column[rows], return_index=True)
    rows = rows[np.sort(first)]
    return np.column_stack([rows, best_column[rows]]), best_value[rows]

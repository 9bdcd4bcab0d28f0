# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours on a GPU by torch."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feat_ros.errors import NetworkError
from feat_ros.matching import (
    DescriptorRows,
    dot_similarity,
    mutual_nearest,
    mutual_pairs,
    Similarity,
)

logger = logging.getLogger(__name__)

# Products, and numbers of reference rows, held at once: 64 MB each in float32, so that a small GPU
# has room for the network beside.
_MAX_BLOCK_VALUES = 1 << 24


class TorchMatcher:
    """:func:`feat_ros.matching.mutual_nearest` by torch; see there for what it takes and gives.

    Other similarities than the dot product are left to NumPy, and so is all that follows once
    the GPU has failed.

    :param device: what torch calls it.
    :raises NetworkError: torch finds no GPU, or cannot use it.
    """

    def __init__(self, device: str = 'cuda') -> None:
        if device == 'cuda' and not torch.cuda.is_available():
            raise NetworkError(f'torch {torch.__version__} finds no GPU')
        self._device = torch.device(device)
        # Of its own, so that it does not wait for a network that is extracting meanwhile.
        try:
            self._stream = torch.cuda.Stream() if self._device.type == 'cuda' else None
        except RuntimeError as error:
            raise NetworkError(f'torch: {str(error).splitlines()[0]}') from None
        self._failed = False

    def __call__(
        self,
        query: npt.NDArray[np.float32],
        reference: DescriptorRows,
        similarity: Similarity = dot_similarity,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Find the pairs of rows that are each other's nearest neighbour."""
        if similarity is dot_similarity and not self._failed and len(query) and len(reference):
            try:
                with torch.inference_mode(), torch.cuda.stream(self._stream):
                    return self._match(query, reference)
            except RuntimeError as error:
                self._failed = True
                logger.warning(
                    'torch stopped matching on the GPU: %s; it goes on on the CPU',
                    str(error).splitlines()[0],
                )
        return mutual_nearest(query, reference, similarity)

    def _match(
        self, query: npt.NDArray[np.float32], reference: DescriptorRows
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        rows = self._tensor(query)
        best_value = torch.full((len(rows),), -torch.inf, device=self._device)
        best_column = torch.zeros(len(rows), dtype=torch.int64, device=self._device)
        column_best = torch.empty(len(reference), device=self._device)
        block = max(1, _MAX_BLOCK_VALUES // max(rows.shape))
        for start in range(0, len(reference), block):
            part = self._tensor(reference[start : start + block])
            value, column, of_columns = block_maxima(rows, part)
            better = value > best_value
            best_column = torch.where(better, column + start, best_column)
            best_value = torch.where(better, value, best_value)
            column_best[start : start + len(part)] = of_columns
        is_mutual = (best_value == column_best[best_column]).cpu().numpy()
        return mutual_pairs(is_mutual, best_column.cpu().numpy(), best_value.cpu().numpy())

    def _tensor(self, rows: npt.NDArray[Any]) -> Tensor:
        # Writable, as torch wants it.
        return torch.from_numpy(np.require(rows, np.float32, ['C', 'W'])).to(self._device)


def block_maxima(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's largest product and its first column, and each column's largest.

    :param query: (N, D).
    :param reference: (M, D).
    """
    products = query @ reference.T
    value, column = products.max(dim=1)
    return value, column, products.amax(dim=0)

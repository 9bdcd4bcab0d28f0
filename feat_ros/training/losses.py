# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of the learned features."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class MatchLoss(NamedTuple):
    """What :func:`dual_softmax_loss` finds.

    :ivar loss: ().
    :ivar is_right_a: (N,) bool, whether the best column of each row is its partner, mutually;
        False where it has none.
    :ivar is_right_b: (M,) likewise of columns.
    """

    loss: Tensor
    is_right_a: Tensor
    is_right_b: Tensor


class _DualSoftmax(torch.autograd.Function):
    """Sum over matches of -log softmax over rows - log softmax over columns, in four passes.

    The exponentials serve both softmaxes and the gradient. Similarities of unit vectors are at
    most ``scale``, so subtracting it keeps them from overflowing without a search for maxima.
    """

    @staticmethod
    def forward(
        context: Any, logits: Tensor, scale: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        exponentials = torch.exp(logits - scale)
        row_sums = exponentials.sum(1).clamp(min=1e-37)
        column_sums = exponentials.sum(0).clamp(min=1e-37)
        context.save_for_backward(exponentials, row_sums, column_sums, rows, columns)
        matched = logits[rows, columns] - scale
        row_part = (torch.log(row_sums[rows]) - matched).sum()
        return row_part + (torch.log(column_sums[columns]) - matched).sum()

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        exponentials, row_sums, column_sums, rows, columns = context.saved_tensors
        row_factor = torch.zeros_like(row_sums)
        row_factor[rows] = 1 / row_sums[rows]
        column_factor = torch.zeros_like(column_sums)
        column_factor[columns] = 1 / column_sums[columns]
        grad = exponentials * (row_factor[:, None] + column_factor[None])
        grad[rows, columns] -= 2.0
        return grad * grads[0], None, None, None


def dual_softmax_loss(
    descriptors_a: Tensor, descriptors_b: Tensor, scale: Tensor, rows: Tensor, columns: Tensor
) -> MatchLoss:
    """Contrast each match with all points of the batch, both ways.

    The mean over matches (i, j) of ``-log P_ij - log Q_ij``, where P and Q are the softmax over
    the rows and over the columns of ``scale * descriptors_a @ descriptors_b.T``: Sun et al.,
    "LoFTR", CVPR 2021, equation 2, with learned features at points.

    :param descriptors_a: (N, D) unit length; likewise (M, D) b.
    :param scale: (), the inverse temperature.
    :param rows: (K,) int64 and ``columns`` (K,): the matches; no row or column twice.
    """
    logits = (descriptors_a * scale) @ descriptors_b.T
    total = _DualSoftmax.apply(logits, scale.detach(), rows, columns)
    with torch.no_grad():
        matched = logits[rows, columns]
        is_right = (matched >= logits.amax(1)[rows]) & (matched >= logits.amax(0)[columns])
        is_right_a = torch.zeros(len(descriptors_a), dtype=torch.bool, device=logits.device)
        is_right_b = torch.zeros(len(descriptors_b), dtype=torch.bool, device=logits.device)
        is_right_a[rows], is_right_b[columns] = is_right, is_right
    return MatchLoss(total / max(len(rows), 1), is_right_a, is_right_b)


def matchability_loss(logits: Tensor, target: Tensor, is_right: Tensor) -> Tensor:
    """Cross-entropy of whether a point is matched right at this moment of the training.

    :param logits: (M,).
    :param target: (M,): 1 has a partner, 0 has none, -1 not known and left out.
    :param is_right: (M,) bool, of :class:`MatchLoss`.
    """
    is_known = target >= 0
    wanted = (is_right & (target == 1)).to(logits.dtype)
    loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction='none')
    return (loss * is_known).sum() / is_known.sum().clamp(min=1)


def group_loss(logits: Tensor, group: Tensor) -> Tensor:
    """Cross-entropy of the stability group; 0 where nothing is labelled.

    :param logits: (M, 3).
    :param group: (M,) int64, -1 not known.
    """
    loss = functional.cross_entropy(logits, group, ignore_index=-1, reduction='sum')
    return loss / (group >= 0).sum().clamp(min=1)

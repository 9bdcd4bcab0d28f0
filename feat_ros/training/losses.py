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
        context: Any, logits: Tensor, scale: Tensor, column: Tensor, share: Tensor
    ) -> Tensor:
        matched = torch.gather(logits, 1, column[:, None])[:, 0] - scale
        exponentials = torch.exp(logits - scale)
        row_sums = exponentials.sum(1).clamp(min=1e-37)
        column_sums = exponentials.sum(0).clamp(min=1e-37)
        context.save_for_backward(exponentials, row_sums, column_sums, column, share)
        each = torch.log(row_sums) + torch.log(column_sums[column]) - 2 * matched
        return (share * each).sum()

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        exponentials, row_sums, column_sums, column, share = context.saved_tensors
        column_share = torch.zeros_like(column_sums).scatter_add(0, column, share)
        grad = exponentials * ((share / row_sums)[:, None] + (column_share / column_sums)[None])
        grad.scatter_add_(1, column[:, None], -2 * share[:, None])
        return grad * grads[0], None, None, None


def dual_softmax_loss(
    descriptors_a: Tensor, descriptors_b: Tensor, scale: Tensor, partner: Tensor
) -> MatchLoss:
    """Contrast each match with all points of the batch, both ways.

    The mean over matches (i, j) of ``-log P_ij - log Q_ij``, where P and Q are the softmax over
    the rows and over the columns of ``scale * descriptors_a @ descriptors_b.T``: Sun et al.,
    "LoFTR", CVPR 2021, equation 2, with learned features at points. No shape follows from the
    number of matches, so that a GPU need not wait for it.

    :param descriptors_a: (N, D) unit length, or zero for none; likewise (M, D) b.
    :param scale: (), the inverse temperature.
    :param partner: (N,) int64, b's partner of each of a's, or -1; no partner twice.
    """
    is_matched = partner >= 0
    column = partner.clamp(min=0)
    logits = (descriptors_a * scale) @ descriptors_b.T
    share = is_matched.to(logits.dtype) / is_matched.sum().clamp(min=1)
    loss = _DualSoftmax.apply(logits, scale.detach(), column, share)
    with torch.no_grad():
        matched = torch.gather(logits, 1, column[:, None])[:, 0]
        is_right_a = (matched >= logits.amax(1)) & (matched >= logits.amax(0)[column]) & is_matched
        count = torch.zeros(len(descriptors_b), dtype=torch.int64, device=logits.device)
        is_right_b = count.scatter_add(0, column, is_right_a.long()) > 0
    return MatchLoss(loss, is_right_a, is_right_b)


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

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of SAMFeat: Wu et al., IEEE TIP 2025, section III-C and III-D."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Below this the slope of a root would have no bound.
_FLOOR = 1e-6


def relations(features: Tensor) -> Tensor:
    """Return R (B, n, n), the cosines between all places of features (B, C, h, w)."""
    rows = functional.normalize(features.flatten(2), dim=1)
    return rows.transpose(1, 2) @ rows


def distillation_loss(
    student: Tensor, teacher: Tensor, attention: Tensor, is_known: Tensor | None = None
) -> Tensor:
    """Return L_dis of equations 7 and 8: relations that attention says matter count for more.

    The mean of ``|R - R'|`` weighted by ``exp(V V^T)``. (The published program multiplies the
    features by the attention before it takes cosines, where a factor cancels.)

    :param student: (B, C, h, w) and ``teacher`` (B, C', h, w) features.
    :param attention: (B, 1, h, w), V.
    :param is_known: (B, 1, h, w) bool, where the teacher says anything; an image of which it says
        nothing does not count.
    """
    flat = attention.flatten(1)
    # Attention has no bound: the largest weight of an image is 1, which changes no share.
    product = flat[:, :, None] * flat[:, None]
    apart = (relations(teacher) - relations(student)).abs()
    if is_known is None:
        weight = (product - product.amax((1, 2), keepdim=True)).exp()
        return ((apart * weight).sum((1, 2)) / weight.sum((1, 2))).mean()
    seen = is_known.flatten(1)
    both = seen[:, :, None] & seen[:, None]
    # The largest of what is known: one of an unknown place would make all others vanish.
    product = product.masked_fill(~both, -1e9)
    weight = (product - product.amax((1, 2), keepdim=True)).exp() * both
    # It is one at least where anything is known.
    mean = (apart * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
    return mean.sum() / seen.any(1).sum().clamp(min=1)


def grouping_loss(
    descriptors: Tensor, group: Tensor, margin: float = 0.07, temperature: float = 5.0
) -> Tensor:
    """Return L_wsc of equations 9 to 11 of one image; 0 where there is one group only.

    Mean distances D within and across groups give ``-log(p / (p + n))`` with
    ``p = exp(-max(D_pos, M) / T)`` and ``n = exp(-D_neg / T)``. As equation 11 is printed it has
    no sign before the distances and would push groups together.

    :param descriptors: (N, D) unit length.
    :param group: (N,) int64, -1 where it is not known.
    """
    known = group >= 0
    is_pair = (
        known[:, None]
        & known[None]
        & ~torch.eye(len(group), dtype=torch.bool, device=group.device)
    )
    same = is_pair & (group[:, None] == group[None])
    other = is_pair & (group[:, None] != group[None])
    if not same.any() or not other.any():
        return descriptors.sum() * 0
    cosine = descriptors @ descriptors.T
    distance = (2 * (1 - cosine) + _FLOOR).clamp(min=_FLOOR).sqrt()
    within = (distance * same).sum() / same.sum()
    across = (distance * other).sum() / other.sum()
    return functional.softplus((within.clamp(min=margin) - across) / temperature)


def edge_loss(edge_logits: Tensor, edge: Tensor, is_known: Tensor) -> Tensor:
    """Return L_edge of equation 12, the mean of ``|E - E'|`` over the pixels that are known.

    :param edge_logits: (B, 1, h, w); with ``edge`` (B, 1, h, w) of 0 to 1.
    :param is_known: (B, 1, h, w) bool.
    """
    apart = (torch.sigmoid(edge_logits) - edge).abs() * is_known
    return apart.sum() / is_known.sum().clamp(min=1)


def detection_loss(heat: Tensor, is_point: Tensor, weight: float = 200.0) -> Tensor:
    """Return L_det, the cross-entropy of every pixel, that of keypoints weighted.

    :param heat: (B, 1, H, W) logits; ``is_point`` (B, 1, H, W) 0 or 1.
    """
    return functional.binary_cross_entropy_with_logits(
        heat, is_point, pos_weight=heat.new_tensor(weight)
    )


def weighted_triplet_loss(
    first: Tensor, second: Tensor, attention: Tensor, is_apart: Tensor,
    margin: float = 1.0, temperature: float = 15.0,
) -> Tensor:  # fmt: skip
    """Return L_des, the attention-weighted triplet loss of MTLDesc that the paper takes.

    With ``y = v d``, the sum of ``max(0, margin + |y - y'| - hardest)`` weighted by a softmax of
    ``v / T``.

    :param first: (N, D) unit descriptors of matches; ``second`` (N, D) their partners.
    :param attention: (N, 2), v of both.
    :param is_apart: (N, N) bool: whose partner may be a negative of whom.
    """
    a, b = first * attention[:, :1], second * attention[:, 1:]
    squared = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
    distance = (squared + _FLOOR).clamp(min=_FLOOR).sqrt()
    negative = distance.masked_fill(~is_apart, torch.inf).amin(1)
    # Without any negative a match says nothing.
    each = (margin + distance.diagonal() - negative).clamp(min=0)
    return (each * torch.softmax(attention.mean(1) / temperature, 0)).sum()

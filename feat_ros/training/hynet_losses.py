# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of HyNet: Tian et al., NeurIPS 2020, section 3, equations 5 to 7."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this the slope of a root would have no bound.
_FLOOR = 1e-6


def distance(cosine: Tensor) -> Tensor:
    """Return d of equation 4, the distance of unit vectors, from their cosine."""
    return (2 * (1 - cosine) + _FLOOR).sqrt()


def hybrid_distance(cosine: Tensor, alpha: float) -> Tensor:
    """Return s_H of equation 6: ``alpha (1 - s) + d``, which is small where vectors agree.

    Z is 1, as in the authors' program: the margin of 1.2 belongs to it.
    """
    return alpha * (1 - cosine) + distance(cosine)


def hardest_negatives(first: Tensor, second: Tensor, is_apart: Tensor) -> Tensor:
    """Return the cosine (N,) of each pair's hardest negative, of both of its sides.

    :param first: (N, D) unit descriptors; ``second`` (N, D) those of the same points.
    :param is_apart: (N, N) bool, symmetric: pairs that may be negatives of each other.
    """

    def hardest(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).masked_fill(~is_apart, -1.0).amax(1)

    across = (first @ second.T).masked_fill(~is_apart, -1.0)
    sides = [across.amax(1), across.amax(0), hardest(first, first), hardest(second, second)]
    return torch.stack(sides).amax(0)


def triplet_loss(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Return the mean of ``max(0, margin + positive - negative)``, equation 6.

    :param positive: (N,) how far apart the pairs are; ``negative`` (N,) their hardest negatives.
    """
    return (margin + positive - negative).clamp(min=0).mean()


def norm_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return R_L2 of equation 5: the mean squared difference of the pairs' lengths.

    :param first: (N, D) descriptors before they are made unit length; ``second`` (N, D).
    """

    def length(rows: Tensor) -> Tensor:
        return (rows.square().sum(1) + _FLOOR).sqrt()

    return (length(first) - length(second)).square().mean()

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of AISLFD, equation by equation.

Li, Li and Li, "Attention Guided Invariance Selection for Local Feature Descriptors", ICASSP 2022,
sections 2.3 and 2.4. Leading axes (...) are pairs of images and descriptors; each has its own
loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# The largest distance of unit descriptors: that of a point without a negative.
_FARTHEST = 2.0
_TINY = 1e-12


class Correspondences(NamedTuple):
    """The same n points in two images.

    ``xy_q`` (..., n, 2) pixels in image q, ``xy_k`` (..., n, 2) in image k, and ``is_match``
    (..., n) bool, which rows hold such a point.
    """

    xy_q: Tensor
    xy_k: Tensor
    is_match: Tensor


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean distances (..., n, m) of unit descriptors (..., n, D), (..., m, D)."""
    return (2 - 2 * first @ second.transpose(-1, -2)).clamp(min=_TINY).sqrt()


def selected_distances(local_q: Tensor, meta_q: Tensor, local_k: Tensor, meta_k: Tensor) -> Tensor:
    """Equation 1: the four distances, weighted by a softmax of the four meta similarities.

    :param local_q: (..., 4, n, D) unit length; ``meta_q`` likewise.
    :param local_k: (..., 4, m, D) unit length; ``meta_k`` likewise.
    :returns: (..., n, m).
    """
    weights = torch.softmax(meta_q @ meta_k.transpose(-1, -2), -3)
    return (weights * distances(local_q, local_k)).sum(-3)


def negative_distances(distance: Tensor, points: Correspondences, apart_px: float) -> Tensor:
    """Equation 2: the smallest distance of each correspondence to a wrong point, either way.

    A point is wrong when it is farther than T from the right one, in the image where it lies.

    :param distance: (..., n, n) of every point of image q to every one of image k.
    :param apart_px: T.
    :returns: (..., n); 2, the largest there is, where no point is wrong.
    """
    is_k = _is_apart(points.xy_k, points.is_match, apart_px)
    is_q = _is_apart(points.xy_q, points.is_match, apart_px)
    of_k = distance.masked_fill(~is_k, _FARTHEST).amin(-1)
    of_q = distance.transpose(-1, -2).masked_fill(~is_q, _FARTHEST).amin(-1)
    return torch.minimum(of_k, of_q)


def _is_apart(xy: Tensor, is_there: Tensor, apart_px: float) -> Tensor:
    """Whether point y (last axis) is there and farther than T from point x."""
    squared = (xy[..., :, None, :] - xy[..., None, :, :]).square().sum(-1)
    return (squared > apart_px**2) & is_there[..., None, :]


def triplet_loss(positive: Tensor, negative: Tensor, is_match: Tensor, margin: float) -> Tensor:
    """Equation 3: the mean of max(pd^2 - nd^2 + M, 0) over the correspondences.

    :param positive: pd (..., n), ``negative`` nd (..., n).
    :param is_match: (..., n) bool, which of them there are.
    :returns: (...); 0 where there is none.
    """
    each = (positive.square() - negative.square() + margin).clamp(min=0)
    return _mean(each, is_match)


def _mean(values: Tensor, is_counted: Tensor) -> Tensor:
    return (values * is_counted).sum(-1) / is_counted.sum(-1).clamp(min=1)


def invariant_loss(
    local_a: Tensor, local_i: Tensor, points: Correspondences, margin: float, apart_px: float
) -> Tensor:
    """Equation 4: the triplet loss of a descriptor's own distance.

    :param local_a: (..., n, D) unit length, of the anchor image; ``local_i`` of the invariant one.
    """
    return _ranked(distances(local_a, local_i), points, margin, apart_px)


def variant_loss(
    local_a: Tensor, local_v: Tensor, local_i: Tensor, factor: Tensor, is_match: Tensor,
    margin: float,
) -> Tensor:  # fmt: skip
    """Equation 5: nearer to the variant image than to the invariant one, by f M.

    :param local_a: (..., n, D) unit length, of the anchor image; ``local_v`` of the variant image,
        which has not changed, and ``local_i`` of the invariant one, which has.
    :param factor: f (...), in [0, 1].
    :param is_match: (..., n) bool, which points are in all three images.
    """
    to_v, to_i = ((local_a - each).square().sum(-1) for each in (local_v, local_i))
    each = (to_v - to_i + factor[..., None] * margin).clamp(min=0)
    return _mean(each, is_match)


def local_loss(invariant: Tensor, variant: Tensor, has_changed: Tensor) -> Tensor:
    """Equation 6: the mean over the descriptors of whichever loss each is due.

    :param invariant: (..., 4) of equation 4, ``variant`` (..., 4) of equation 5.
    :param has_changed: (..., 4) bool, whether between anchor and invariant image anything changed
        that the descriptor varies with.
    :returns: (...).
    """
    return torch.where(has_changed, variant, invariant).mean(-1)


def meta_loss(selected: Tensor, points: Correspondences, margin: float, apart_px: float) -> Tensor:
    """Equation 7: the triplet loss of the distance of equation 1.

    :param selected: (..., n, n) of :func:`selected_distances`.
    """
    return _ranked(selected, points, margin, apart_px)


def _ranked(distance: Tensor, points: Correspondences, margin: float, apart_px: float) -> Tensor:
    positive = torch.diagonal(distance, dim1=-2, dim2=-1)
    negative = negative_distances(distance, points, apart_px)
    return triplet_loss(positive, negative, points.is_match, margin)

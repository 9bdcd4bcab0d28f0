# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of SFD2, equation by equation.

Xue, Budvytis and Cipolla, "SFD2: Semantic-guided Feature Detection and Description", CVPR 2023,
section 3. The published code departs from it (it does not multiply the target by the stability,
its ranking loss knows no classes, and its inter-class loss is two hinges on squared distances);
these follow the paper, and say where they had to choose. The ranking of equation 3 is of He, Lu
and Sclaroff, "Local descriptors optimized for average precision", CVPR 2018, as Revaud et al.,
"R2D2", NeurIPS 2019, weigh it by reliability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.config import Config, option

# Label of a feature of which no class is known: no loss says anything of it.
UNKNOWN = -1
# What a query without any reliability costs (R2D2, section 3.3), so that giving up is possible
# but not free.
_AP_OF_UNRELIABLE = 0.5
# Points whose classes are compared at once: all triplets of them are formed.
_TRIPLET_POINTS = 256
_TINY = 1e-12


@dataclass(frozen=True)
class Sfd2LossWeights(Config):
    """Weights of equations 4 and 6."""

    detection: float = option(1.0, 'w_det', minimum=0.0)
    description: float = option(1.0, 'w_desc', minimum=0.0)
    consistency: float = option(1.0, 'w_feat', minimum=0.0)
    inter_class: float = option(1.0, 'w_inter', minimum=0.0)
    intra_class: float = option(0.5, 'w_intra', minimum=0.0)


def global_reliability(local_reliability: Tensor, stability: Tensor) -> Tensor:
    """Return S_gt = S_rel * S_sta (section 3.1); NaN where the stability is unknown.

    :param local_reliability: S_rel (B, 1, H, W) in [0, 1], of the corner teacher.
    :param stability: S_sta of the same shape, see :mod:`feat_ros.semantics`.
    """
    return local_reliability * stability


def detection_loss(score: Tensor, target: Tensor) -> Tensor:
    """Equation 1: L_det = BCE(S, S_gt), the mean over the pixels with a target.

    :param score: S (B, 1, H, W) in [0, 1].
    :param target: S_gt of the same shape; NaN where there is none.
    """
    is_known = ~torch.isnan(target)
    wanted = torch.where(is_known, target, torch.zeros_like(target))
    each = functional.binary_cross_entropy(score, wanted, reduction='none')
    return torch.where(is_known, each, torch.zeros_like(each)).sum() / is_known.sum().clamp(min=1)


def inter_class_loss(descriptors: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """Equation 2: sum of |x_i - x_j| - |x_i - x_k| + m over i, j of a class and k of another.

    Printed without a hinge; a triplet loss has one, and without it pushing apart what is far
    apart already would pay: each triplet counts if positive. Averaged over the triplets of an
    anchor i, then over the N anchors that have any, so that the loss does not grow with N. All
    triplets count, at the cost of sorting the distances of each anchor.

    :param descriptors: (N, D) unit length, of the whole batch.
    :param labels: (N,) class of each, :data:`UNKNOWN` for none.
    """
    is_known = labels != UNKNOWN
    descriptors, labels = descriptors[is_known], labels[is_known]
    count = len(labels)
    squared = 2 - 2 * descriptors @ descriptors.T
    distance = squared.clamp(min=_TINY).sqrt()
    is_same = labels[:, None] == labels[None]
    is_positive = is_same & ~torch.eye(count, dtype=torch.bool, device=labels.device)
    num_positive, num_negative = is_positive.sum(1), (~is_same).sum(1)
    # For each positive: how many negatives are nearer than it plus the margin, and their sum.
    reach = distance + margin
    far = torch.full_like(distance, 1e6)
    negatives = torch.where(is_same, far, distance).sort(1).values
    within = torch.searchsorted(negatives.detach(), reach.detach())
    before = functional.pad(negatives.cumsum(1), (1, 0)).gather(1, within)
    excess = torch.where(is_positive, within * reach - before, torch.zeros_like(reach))
    num_triplets = num_positive * num_negative
    has_any = num_triplets > 0
    anchors = excess.sum(1)[has_any] / num_triplets[has_any]
    return anchors.sum() / has_any.sum().clamp(min=1)


def inter_class_loss_of_some(descriptors: Tensor, labels: Tensor) -> Tensor:
    """Equation 2 on at most 256 of the labelled points, evenly of all views of a batch.

    :param descriptors: (N, D) unit length.
    :param labels: (N,) class of each, :data:`UNKNOWN` for none.
    """
    labelled = torch.nonzero(labels != UNKNOWN)[:, 0]
    count = min(len(labelled), _TRIPLET_POINTS)
    chosen = labelled[torch.arange(count, device=labels.device) * len(labelled) // max(count, 1)]
    return inter_class_loss(descriptors[chosen], labels[chosen])


def average_precision(
    similarity: Tensor, is_positive: Tensor, is_used: Tensor, num_bins: int = 20
) -> Tensor:
    """Return the average precision (N,) of ranking candidates by similarity, differentiable.

    He et al. 2018, section 3: similarities fall into bins, each into the two whose centres are
    next to it in shares that add up to 1; precision and recall are those of the bins from the
    most similar down.

    :param similarity: (N, M) of each query to its candidates; below 0 counts as 0.
    :param is_positive: (N, M), which candidates are right.
    :param is_used: (N, M), which candidates count at all.
    :param num_bins: bins from 1 down to 0.
    """
    step = 1 / (num_bins - 1)
    centers = torch.linspace(1, 0, num_bins, dtype=similarity.dtype, device=similarity.device)
    apart = (similarity.clamp(0, 1)[..., None] - centers).abs()
    shares = (1 - apart / step).clamp(min=0) * is_used[..., None]
    in_bin = shares.sum(1)
    right_in_bin = (shares * is_positive[..., None]).sum(1)
    precision = right_in_bin.cumsum(1) / in_bin.cumsum(1).clamp(min=_TINY)
    recall = right_in_bin / right_in_bin.sum(1, keepdim=True).clamp(min=_TINY)
    return (precision * recall).sum(1)


def class_candidates(
    queries: Tensor,
    matched_xy: Tensor,
    labels: Tensor,
    descriptors: Tensor,
    cell_labels: Tensor,
    *,
    positive_radius: float = 3.0,
    negative_radius: float = 5.0,
    negative_step: int = 4,
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates of queries in another image, of their own class only (section 3.2).

    As R2D2 samples: right is the most similar cell near the true match; wrong are the cells of
    a grid that are not near; between the two radii nothing is said.

    :param queries: (N, D) unit descriptors of one image.
    :param matched_xy: (N, 2) their places in the other image's map, centres of cells at halves.
    :param labels: (N,) their classes, :data:`UNKNOWN` for none.
    :param descriptors: (D, h, w) of the other image.
    :param cell_labels: (h, w) classes of its cells.
    :param positive_radius: cells from the match within which a cell is right.
    :param negative_radius: cells from the match beyond which a cell is wrong.
    :param negative_step: cells from one wrong candidate to the next.
    :returns: similarity, is_positive and is_used (N, 1 + M), for :func:`average_precision`. A
        query of unknown class, or without a cell of its class near its match, has none in use.
    """
    dim, height, width = descriptors.shape
    row, column = torch.meshgrid(
        torch.arange(height, device=queries.device),
        torch.arange(width, device=queries.device),
        indexing='ij',
    )
    center = torch.stack([column, row], -1).reshape(-1, 2) + 0.5
    distance = torch.linalg.norm(matched_xy[:, None] - center[None], dim=2)
    is_known = (labels != UNKNOWN)[:, None]
    is_same = (labels[:, None] == cell_labels.reshape(1, -1)) & is_known
    similarity = queries @ descriptors.reshape(dim, -1)
    is_near = is_same & (distance <= positive_radius)
    best = torch.where(is_near, similarity, torch.full_like(similarity, -2)).max(1, keepdim=True)
    has_match = is_near.any(1, keepdim=True)
    on_grid = ((row % negative_step == 0) & (column % negative_step == 0)).reshape(-1)
    is_wrong = is_same & (distance > negative_radius) & has_match
    everything = torch.cat([best.values, similarity[:, on_grid]], 1)
    is_used = torch.cat([has_match, is_wrong[:, on_grid]], 1)
    is_positive = torch.zeros_like(is_used)
    is_positive[:, 0] = True
    return everything, is_positive & is_used, is_used


def point_candidates(
    descriptors: Tensor,
    other_descriptors: Tensor,
    partner: Tensor,
    labels: Tensor,
    other_labels: Tensor,
    other_xy: Tensor,
    *,
    apart_px: float = 3.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates of points among the points of another view, of their own class only.

    What :func:`class_candidates` is for maps. Right is the partner; wrong is every point of the
    class that is not near the partner, for one near it may be the same place found twice.

    :param descriptors: (N, D) unit length, the queries; likewise (M, D) of the other view.
    :param partner: (N,) the other view's point of each, or -1.
    :param labels: (N,) their classes, :data:`UNKNOWN` for none; likewise (M,) of the other view.
    :param other_xy: (M, 2) pixels.
    :param apart_px: pixels from the partner up to which a point counts neither way.
    :returns: similarity, is_positive and is_used (N, M), for :func:`average_precision`. A query
        of unknown class, without partner, or with one of another class, has none in use.
    """
    at = partner.clamp(min=0)
    is_query = (partner >= 0) & (labels != UNKNOWN) & (other_labels[at] == labels)
    is_same = (labels[:, None] == other_labels) & is_query[:, None]
    is_partner = torch.arange(len(other_xy), device=partner.device) == partner[:, None]
    is_far = torch.linalg.vector_norm(other_xy[at][:, None] - other_xy, dim=2) > apart_px
    return descriptors @ other_descriptors.T, is_same & is_partner, is_same & (is_partner | is_far)


def intra_class_loss(precision: Tensor, reliability: Tensor, labels: Tensor) -> Tensor:
    """Equation 3: 1 - AP, weighted by reliability, averaged in each class, then over classes.

    With reliability r a query costs 1 - (r AP + (1 - r) / 2), as in R2D2.

    :param precision: (N,) of :func:`average_precision`.
    :param reliability: (N,) predicted, in [0, 1].
    :param labels: (N,) classes; :data:`UNKNOWN` for queries that do not count.
    """
    cost = 1 - (reliability * precision + (1 - reliability) * _AP_OF_UNRELIABLE)
    return _mean_of_classes(cost, labels)


def intra_class_triplet_loss(
    similarity: Tensor, is_positive: Tensor, is_used: Tensor, labels: Tensor, margin: float = 1.0
) -> Tensor:
    """What equation 3 is compared with in Table 6: triplets with a hard margin within a class.

    max(0, |x_i - x_p| - |x_i - x_n| + m) of a query i, its partner p and a wrong candidate n,
    averaged over all n, then in each class, then over classes as equation 3. The paper tunes m
    and does not say to what; this is the one that it gives for equation 2.

    :param similarity: (N, M) of unit descriptors, with the masks of :func:`point_candidates`.
    :param labels: (N,) classes. Queries without a right and a wrong candidate do not count.
    """
    distance = (2 - 2 * similarity).clamp(min=_TINY).sqrt()
    is_negative = is_used & ~is_positive
    matched = (distance * is_positive).sum(1, keepdim=True)
    excess = (matched - distance + margin).clamp(min=0) * is_negative
    cost = excess.sum(1) / is_negative.sum(1).clamp(min=1)
    counts = is_positive.any(1) & is_negative.any(1)
    return _mean_of_classes(cost, torch.where(counts, labels, UNKNOWN))


def _mean_of_classes(cost: Tensor, labels: Tensor) -> Tensor:
    classes = torch.unique(labels[labels != UNKNOWN])
    means = [cost[labels == each].mean() for each in classes]
    return torch.stack(means).mean() if means else (cost * 0).sum()


def consistency_loss(
    features: Sequence[Tensor], targets: Sequence[Tensor], is_known: Tensor | None = None
) -> Tensor:
    """Equation 5: L_feat = 1/2 sum of |X_i - X_i^ConvNeXt|, the mean over places and channels.

    The teacher's second map is coarser than ours, which the paper does not mention: ours is
    resized to the nearest cells, as in the published code.

    :param features: maps (B, C_i, h_i, w_i), ``Sfd2Maps.features``, which are two.
    :param targets: as many maps of the teacher, with as many channels.
    :param is_known: (B, 1, h, w) bool, where there is a target; None for everywhere.
    """
    apart = []
    for ours, target in zip(features, targets, strict=True):
        each = (functional.interpolate(ours, target.shape[2:], mode='nearest') - target).abs()
        if is_known is None:
            apart.append(each.mean())
        else:
            count = is_known.sum() * target.shape[1]
            apart.append((each * is_known).sum() / count.clamp(min=1))
    return torch.stack(apart).sum() / 2


def description_loss(inter_class: Tensor, intra_class: Tensor, weights: Sfd2LossWeights) -> Tensor:
    """Equation 4: L_desc = w_inter L_inter + w_intra L_intra."""
    return weights.inter_class * inter_class + weights.intra_class * intra_class


def total_loss(
    detection: Tensor, description: Tensor, consistency: Tensor, weights: Sfd2LossWeights
) -> Tensor:
    """Equation 6: L_total = w_det L_det + w_desc L_desc + w_feat L_feat."""
    return (
        weights.detection * detection
        + weights.description * description
        + weights.consistency * consistency
    )


def stability_loss(stability_logits: Tensor, group_index: Tensor) -> Tensor:
    """Cross-entropy of the stability head, which only the published code has.

    There it runs on probabilities instead of logits and over unknown pixels too; not here.

    :param stability_logits: (B, 3, h, w).
    :param group_index: (B, h, w) 0 volatile or dynamic, 1 short-term, 2 long-term, or
        :data:`UNKNOWN`.
    """
    is_known = (group_index != UNKNOWN).sum()
    summed = functional.cross_entropy(
        stability_logits, group_index, ignore_index=UNKNOWN, reduction='sum'
    )
    return summed / is_known.clamp(min=1)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How ``sfd2_lite`` is trained: no teacher, no labels needed, a CPU suffices.

With ``inter_class``, ``intra_class`` and ``consistency`` the terms of SFD2's paper come beside, so
that its Table 6 can be made (:mod:`feat_ros.training.sfd2_losses`); what is shipped is trained
without them. Classes are then the stability groups.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.models.sfd2_lite import FlatPoints, Sfd2Lite, Sfd2LiteNetwork, tones
from feat_ros.training.configs import LiteConfig
from feat_ros.training.losses import group_loss, matchability_loss
from feat_ros.training.pairs import Batch
from feat_ros.training.run import contrast, share_right, System, Trainee
from feat_ros.training.sfd2_losses import (
    average_precision,
    consistency_loss,
    inter_class_loss_of_some,
    intra_class_loss,
    intra_class_triplet_loss,
    point_candidates,
)
from feat_ros.training.teachers import create_teacher

# Which map the teacher gives: one of as many channels and cells as the pupil's, so that equation 5
# needs no projection.
_TAUGHT_MAP = 3


def losses(trainee: Trainee, batch: Batch, config: LiteConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and what is logged of it."""
    network = trainee.network
    device = batch.images.device
    views, size = batch.images.shape[:2]
    valid_wh = torch.full((views, 2), size, dtype=torch.int32, device=device)
    colors = tones(batch.images, valid_wh).colors
    points = batch.points
    count = points.xy.shape[1]
    image = torch.arange(views, device=device).repeat_interleave(count)
    flat = FlatPoints(points.xy.reshape(-1, 2), points.sigma.reshape(-1), image)
    is_point = (points.response > 0).reshape(-1)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.use_bfloat16):
        maps = network.backbone(colors)
    maps = [each.float() for each in maps]
    centers = network.centers(maps, flat)
    descriptors = network.describe(centers, network.rings(maps, flat)) * is_point[:, None]
    features = points.features.reshape(-1, points.features.shape[-1])
    ranking = network.rank(centers[1:], features)
    # Labels are few: without this the stability of what was not seen gets worse before the end.
    dropped = [
        functional.dropout(each, config.group_dropout, network.training) for each in centers
    ]
    group_logits = network.rank(dropped[1:], features).group_logits

    match, logged = contrast(trainee, descriptors, batch, config)
    is_right = torch.cat([match.is_right_a, match.is_right_b])
    group = batch.group.reshape(-1)
    matchability = matchability_loss(ranking.match_logit, batch.target.reshape(-1), is_right)
    stability = group_loss(group_logits, group)
    total = match.loss + config.match_weight * matchability + config.group_weight * stability
    if config.inter_class:
        inter_class = inter_class_loss_of_some(descriptors, group)
        total = total + config.inter_class * inter_class
        logged['inter_class_loss'] = inter_class.detach()
    if config.intra_class:
        reliability = torch.sigmoid(ranking.match_logit)
        intra_class = _intra_class(batch, descriptors, reliability, config.intra_kind)
        total = total + config.intra_class * intra_class
        logged['intra_class_loss'] = intra_class.detach()
    if config.taught_by:
        taught = create_teacher(config.taught_by, device)(batch.images)
        consistency = consistency_loss([maps[_TAUGHT_MAP]], [taught])
        total = total + config.consistency * consistency
        logged['consistency_loss'] = consistency.detach()
    with torch.no_grad():
        logged |= {
            'matchability_loss': matchability.detach(),
            'stability_loss': stability.detach(),
            'group_right': share_right(ranking.group_logits, group),
        }
    return total, logged


def _intra_class(batch: Batch, descriptors: Tensor, reliability: Tensor, kind: str) -> Tensor:
    """Equation 3, or triplets instead, on the points of the first views.

    :param descriptors: (2P N, D) view by view; likewise ``reliability`` (2P N,).
    """
    pairs, count = batch.partner.shape
    rows, reliable = descriptors.reshape(2 * pairs, count, -1), reliability.reshape(-1, count)
    found = []
    for a in range(pairs):
        b = pairs + a
        similarity, *masks = point_candidates(
            rows[a], rows[b], batch.partner[a], batch.group[a], batch.group[b], batch.points.xy[b]
        )
        # Of the many bins of those that do not count nothing is needed.
        counts = masks[1].any(1)
        found.append(
            (similarity[counts], *(mask[counts] for mask in masks), batch.group[a, counts],
             reliable[a, counts])
        )  # fmt: skip
    similarity, is_positive, is_used, labels, reliable = map(torch.cat, zip(*found, strict=True))
    if kind == 'triplet':
        return intra_class_triplet_loss(similarity, is_positive, is_used, labels)
    precision = average_precision(similarity, is_positive, is_used)
    return intra_class_loss(precision, reliable, labels)


SYSTEM = System(
    network='sfd2_lite',
    options=Sfd2Lite().options,
    make=Sfd2LiteNetwork,
    prefix='network.',
    losses=losses,
)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How ``sfd2_lite`` is trained: no teacher, no labels needed, a CPU suffices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.models.sfd2_lite import FlatPoints, Sfd2Lite, Sfd2LiteNetwork, tones
from feat_ros.training.configs import LiteConfig
from feat_ros.training.losses import group_loss, matchability_loss
from feat_ros.training.pairs import Batch
from feat_ros.training.run import contrast, share_right, System, Trainee


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
    with torch.no_grad():
        logged |= {
            'matchability_loss': matchability.detach(),
            'stability_loss': stability.detach(),
            'group_right': share_right(ranking.group_logits, group),
        }
    return total, logged


SYSTEM = System(
    network='sfd2_lite',
    options=Sfd2Lite().options,
    make=Sfd2LiteNetwork,
    prefix='network.',
    losses=losses,
)

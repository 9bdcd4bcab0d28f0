# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How ``sfd2`` is trained.

The loss is equation 6 of the paper (:mod:`feat_ros.training.sfd2_losses`) and two terms of our
own. As it is by default, with three choices that docs/models/sfd2.md gives the reasons of: the
corner teacher is the scale space of the image, what it finds in both views of a pair is reliable;
detection is a cross-entropy over the 65 outputs of a cell instead of one over each pixel; and
descriptors are contrasted with all points of the batch. With ``corners=files``, ``match=0``,
``stability=0`` and the weights of the paper it is what the paper says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.models.sfd2 import CELL, DESCRIPTOR_STRIDE, reliability, Sfd2, Sfd2Maps
from feat_ros.models.sfd2_lite import GROUPS, sample
from feat_ros.semantics import STABILITY
from feat_ros.training.configs import Sfd2Config
from feat_ros.training.pairs import Batch
from feat_ros.training.run import contrast, share_right, System, Trainee
from feat_ros.training.sfd2_losses import (
    average_precision,
    class_candidates,
    consistency_loss,
    description_loss,
    detection_loss,
    global_reliability,
    inter_class_loss_of_some,
    intra_class_loss,
    Sfd2LossWeights,
    stability_loss,
    total_loss,
)
from feat_ros.training.teachers import features_of

# Seed of what takes a teacher's channels to those of the network.
_PROJECTION_SEED = 5
_TINY = 1e-5
OPTIONS: dict[str, Any] = {'stability_exponent': 0.5, 'tones': 'adapted'}


def cell_targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """S_gt = S_rel * S_sta as shares of the 65 outputs of each cell.

    A point that both views have is reliable; it is shared out between the four pixels around it.
    Where no stability is known it counts as 1.

    :returns: (V, 65, h, w) of sum 1, and (V, h, w) bool, false where a cell has only points of
        which nothing is known.
    """
    views, size = batch.images.shape[:2]
    values = batch.images.new_tensor([STABILITY[group] for group in GROUPS], dtype=torch.float32)
    known = torch.where(batch.group >= 0, values[batch.group.clamp(min=0)], 1.0)
    mass = known * (batch.target == 1)
    xy = batch.points.xy - 0.5
    low = torch.floor(xy)
    share = xy - low
    heat = torch.zeros(views, size * size, device=xy.device)
    for right in (0, 1):
        for down in (0, 1):
            weight = (share[..., 0] if right else 1 - share[..., 0]) * (
                share[..., 1] if down else 1 - share[..., 1]
            )
            column = (low[..., 0].long() + right).clamp(0, size - 1)
            row = (low[..., 1].long() + down).clamp(0, size - 1)
            heat.scatter_add_(1, row * size + column, weight * mass)
    cells = functional.pixel_unshuffle(heat.reshape(views, 1, size, size), CELL)
    total = cells.sum(1, keepdim=True)
    cells = cells / total.clamp(min=1.0)
    nothing = 1 - cells.sum(1, keepdim=True)
    side = size // CELL
    cell = (batch.points.xy / CELL).long().clamp(0, side - 1)
    unknown = torch.zeros(views, side * side, device=xy.device)
    is_unknown = ((batch.target < 0) & (batch.points.response > 0)).float()
    unknown.scatter_add_(1, cell[..., 1] * side + cell[..., 0], is_unknown)
    is_known = (unknown.reshape(views, side, side) == 0) | (total[:, 0] > 0)
    return torch.cat([cells, nothing], 1), is_known


def cell_loss(cell_logits: Tensor, target: Tensor, is_known: Tensor) -> Tensor:
    """Cross-entropy of the 65 outputs of the cells that are known.

    :param cell_logits: (V, 65, h, w), and ``target`` of :func:`cell_targets`.
    """
    each = -(target * torch.log_softmax(cell_logits, 1)).sum(1)
    return (each * is_known).sum() / is_known.sum().clamp(min=1)


def corner_loss(cell_logits: Tensor, batch: Batch) -> Tensor:
    """Equation 1, with S_rel of the files of corners and S_sta of the labels.

    :param cell_logits: (V, 65, h, w).
    """
    if batch.corners is None:
        return cell_logits.sum() * 0
    # The last is for unknown pixels, whose index is -1.
    values = [*(STABILITY[group] for group in GROUPS), float('nan')]
    stability = batch.corners.new_tensor(values)[batch.groups][:, None]
    target = global_reliability(batch.corners, stability)
    return detection_loss(reliability(cell_logits), target)


def reachable(features: Tensor, is_known: Tensor | None, channels: int) -> Tensor:
    """Bring the features of any teacher to where a map of the network can follow them.

    A map that equation 5 compares has gone through a batch norm without scale and offset and a
    ReLU, so no teacher's numbers as they are can be had from it: the paper compares with those of
    ConvNeXt, which have both signs. These go the same way: each channel is a fixed random
    sum of the teacher's, of mean 0 and deviation 1 over the batch, then rectified. A sum that is
    fixed is no parameter to be kept and thrown away, and any number of channels fits.

    :param features: (V, C, h, w).
    :param is_known: (V, 1, h, w) bool, which places count; None for all.
    :param channels: how many there are to be.
    """
    generator = torch.Generator().manual_seed(_PROJECTION_SEED)
    mixing = torch.randn(channels, features.shape[1], generator=generator).to(features.device)
    mixed = torch.einsum('oc,vchw->vohw', mixing, features.float())
    weight = torch.ones_like(mixed[:, :1]) if is_known is None else is_known.float()
    count, over = weight.sum().clamp(min=1), (0, 2, 3)
    apart = mixed - (mixed * weight).sum(over, keepdim=True) / count
    variance = (apart.square() * weight).sum(over, keepdim=True) / count
    return functional.relu(apart / (variance + _TINY).sqrt())


def _consistency(maps: Sfd2Maps, batch: Batch, teacher: str) -> Tensor:
    """Equation 5: both maps with the one that the teacher gives."""
    features, is_known = features_of(batch, teacher)
    ours = [each.float() for each in maps.features]
    if features is None:
        return ours[0].sum() * 0
    targets = [reachable(features, is_known, each.shape[1]) for each in ours]
    return consistency_loss(ours, targets, is_known)


def losses(trainee: Trainee, batch: Batch, config: Sfd2Config) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and what is logged of it."""
    network = trainee.network
    device = batch.images.device
    views, size = batch.images.shape[:2]
    valid_wh = torch.full((views, 2), size, dtype=torch.int32, device=device)
    planes = network.planes(batch.images, valid_wh)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.use_bfloat16):
        maps = network.dense(planes.contiguous(memory_format=torch.channels_last))
    cell_logits, dense = maps.cell_logits.float(), maps.descriptors.float()
    if config.reads_corners:
        detection = corner_loss(cell_logits, batch)
    else:
        detection = cell_loss(cell_logits, *cell_targets(batch))

    count = batch.points.xy.shape[1]
    image = torch.arange(views, device=device).repeat_interleave(count)
    places = batch.points.xy.reshape(-1, 2) / DESCRIPTOR_STRIDE
    descriptors = functional.normalize(sample(dense, places, image), dim=1)
    descriptors = descriptors * (batch.points.response > 0).reshape(-1, 1)
    match, logged = contrast(trainee, descriptors, batch, config)

    step = DESCRIPTOR_STRIDE
    groups = batch.groups[:, step // 2 :: step, step // 2 :: step]
    stability_logits = maps.stability_logits.float()
    stability = stability_loss(stability_logits, groups)
    inter_class = intra_class = consistency = torch.zeros((), device=device)
    if config.inter_class:
        inter_class = inter_class_loss_of_some(descriptors, batch.group.reshape(-1))
        logged['inter_class_loss'] = inter_class.detach()
    if config.intra_class:
        reliable = query_reliability(reliability(cell_logits))
        intra_class = _intra_class(batch, descriptors, dense, groups, reliable)
        logged['intra_class_loss'] = intra_class.detach()
    if config.consistency:
        consistency = _consistency(maps, batch, config.teacher)
        logged['consistency_loss'] = consistency.detach()
    weights = Sfd2LossWeights(
        detection=config.detection, consistency=config.consistency,
        inter_class=config.inter_class, intra_class=config.intra_class,
    )  # fmt: skip
    description = description_loss(inter_class, intra_class, weights)
    of_paper = total_loss(detection, description, consistency, weights)
    total = config.match * match.loss + of_paper + config.stability * stability
    with torch.no_grad():
        logged |= {
            'detection_loss': detection.detach(),
            'stability_loss': stability.detach(),
            'group_right': share_right(stability_logits.movedim(1, -1), groups),
        }
    return total, logged


def query_reliability(score: Tensor) -> Tensor:
    """Return what weighs the queries of equation 3: 4 S + 1/2, at most 1, as published code has.

    The paper says S. But S is shared by the 64 pixels of a cell, a hundredth at most places, and
    descriptors learn next to nothing from a loss that has it for a factor.
    """
    return (4 * score + 0.5).clamp(max=1)


def _intra_class(
    batch: Batch, descriptors: Tensor, dense: Tensor, groups: Tensor, reliable: Tensor
) -> Tensor:
    """Equation 3 on the points of the first views that have a partner."""
    count, pairs = batch.points.xy.shape[1], len(batch.partner)
    costs = []
    for pair in range(pairs):
        rows = torch.nonzero(batch.partner[pair] >= 0)[:, 0]
        partner = batch.partner[pair, rows]
        labels = batch.group[pair, rows]
        similarity, is_positive, is_used = class_candidates(
            descriptors[pair * count + rows],
            batch.points.xy[pairs + pair, partner] / DESCRIPTOR_STRIDE,
            labels, dense[pairs + pair], groups[pairs + pair],
        )  # fmt: skip
        labels = torch.where(is_used.any(1), labels, -1)
        column, row = batch.points.xy[pair, rows].long().unbind(1)
        precision = average_precision(similarity, is_positive, is_used)
        costs.append(intra_class_loss(precision, reliable[pair, 0, row, column], labels))
    return torch.stack(costs).mean()


SYSTEM = System(
    network='sfd2',
    options=OPTIONS,
    make=lambda: Sfd2(**OPTIONS),
    prefix='',
    losses=losses,
    # A heat map that has learned equation 1 holds the stability.
    changes=lambda config: {'stability_exponent': 0.0} if config.reads_corners else {},
)

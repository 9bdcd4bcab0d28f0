# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How ``samfeat`` is trained: the losses of its paper, taught by files of SAM or by others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.models.samfeat import SamFeat, SamFeatMaps, STRIDE
from feat_ros.models.sfd2_lite import sample
from feat_ros.training import samfeat_losses as of_paper
from feat_ros.training.configs import SamfeatConfig
from feat_ros.training.pairs import Batch
from feat_ros.training.run import contrast, System, Trainee
from feat_ros.training.teachers import features_of

# Pixels that a negative is away from the match, at least.
_APART_PX = 8.0
# Points of an image that are grouped, and matches that are contrasted by triplets.
_GROUPED, _TRIPLETS = 256, 512
# Relations are between so many places a side.
_RELATED = 24


def losses(
    trainee: Trainee, batch: Batch, config: SamfeatConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch, equation 14 and what is ours beside, and what is logged."""
    network = trainee.network
    device = batch.images.device
    views, size = batch.images.shape[:2]
    valid_wh = torch.full((views, 2), size, dtype=torch.int32, device=device)
    planes = network.planes(batch.images, valid_wh)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.use_bfloat16):
        maps = network.dense(planes.contiguous(memory_format=torch.channels_last))
    points = batch.points
    count = points.xy.shape[1]
    image = torch.arange(views, device=device).repeat_interleave(count)
    places = points.xy.reshape(-1, 2) / STRIDE
    is_point = (points.response > 0).reshape(-1, 1)
    descriptors = functional.normalize(sample(maps.descriptors, places, image), dim=1) * is_point
    attention = sample(maps.attention, places, image)[:, 0]

    match, logged = contrast(trainee, descriptors, batch, config)
    detection = of_paper.detection_loss(maps.heat, _point_map(batch))
    triplet = _triplets(batch, descriptors, attention)
    total = detection + triplet + config.match * match.loss
    logged |= {'detection_loss': detection.detach(), 'triplet_loss': triplet.detach()}
    if config.distillation:
        loss = _distillation(maps, *features_of(batch, config.teacher))
        total = total + config.distillation * loss
        logged['distillation_loss'] = loss.detach()
    if config.grouping:
        loss = _grouping(batch, descriptors)
        total = total + config.grouping * loss
        logged['grouping_loss'] = loss.detach()
    if config.edge:
        loss = of_paper.edge_loss(maps.edge_logits, *edges(pieces(batch)))
        total = total + config.edge * loss
        logged['edge_loss'] = loss.detach()
    return total, logged


def _point_map(batch: Batch) -> Tensor:
    """(2P, 1, S, S): 1 at the pixels of the points."""
    views, size = batch.images.shape[:2]
    place = _pixels(batch)
    found = torch.zeros(views, size * size, device=place.device)
    found.scatter_reduce_(1, place, (batch.points.response > 0).float(), 'amax')
    return found.reshape(views, 1, size, size)


def _pixels(batch: Batch) -> Tensor:
    """(2P, N): which pixels of their views the points are in, row by row."""
    size = batch.images.shape[1]
    column, row = batch.points.xy.long().clamp(0, size - 1).unbind(-1)
    return row * size + column


def pieces(batch: Batch) -> Tensor:
    """(2P, S, S): the mask of SAM a pixel is in where a photograph has them, else its label."""
    if batch.masks is None:
        return batch.groups
    return torch.where(batch.masks >= 0, batch.masks, batch.groups)


def point_groups(batch: Batch) -> Tensor:
    """(2P, N): the mask of SAM or the label that a point is in, -1 where it is in none."""
    if batch.masks is None:
        return batch.group
    mask = torch.gather(batch.masks.flatten(1), 1, _pixels(batch))
    group = torch.where(mask < 0, batch.group, torch.where(mask > 0, mask, -1))
    return torch.where(batch.points.response > 0, group, -1)


def _distillation(maps: SamFeatMaps, features: Tensor | None, is_known: Tensor | None) -> Tensor:
    """Equations 7 and 8 between places that the teacher's features (2P, C, h, w) are known at."""
    if features is None:
        return maps.distilled.sum() * 0
    side = min(_RELATED, maps.distilled.shape[-1])
    student, taught, weight = (
        functional.adaptive_avg_pool2d(each, side)
        for each in (maps.distilled, features.float(), maps.attention.detach())
    )
    if is_known is not None:
        is_known = functional.adaptive_max_pool2d((~is_known).float(), side) == 0
    return of_paper.distillation_loss(student, taught, weight, is_known)


def edges(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return edges (V, 1, h, w) between groups (V, S, S), and where they are known.

    A cell of a quarter of the resolution is an edge where two groups meet in it or beside it.
    """
    known = (groups >= 0)[:, None]
    values = groups[:, None].float()
    high = functional.max_pool2d(values, STRIDE + 2, STRIDE, 1)
    low = -functional.max_pool2d(-values, STRIDE + 2, STRIDE, 1)
    is_known = -functional.max_pool2d(-known.float(), STRIDE + 2, STRIDE, 1) > 0
    return (high != low).float(), is_known


def _triplets(batch: Batch, descriptors: Tensor, attention: Tensor) -> Tensor:
    pairs, count = batch.partner.shape
    chosen = torch.nonzero((batch.partner >= 0).reshape(-1))[:, 0]
    chosen = chosen[:: max(1, len(chosen) // _TRIPLETS)][:_TRIPLETS]
    if not len(chosen):
        return descriptors.sum() * 0
    pair = chosen // count
    partner = (pairs + pair) * count + batch.partner.reshape(-1)[chosen]
    xy = batch.points.xy.reshape(-1, 2)[partner]
    far = (xy[:, None] - xy[None]).square().sum(2) > _APART_PX**2
    return of_paper.weighted_triplet_loss(
        descriptors[chosen], descriptors[partner],
        torch.stack([attention[chosen], attention[partner]], 1),
        far | (pair[:, None] != pair[None]),
    )  # fmt: skip


def _grouping(batch: Batch, descriptors: Tensor) -> Tensor:
    """Mean of equation 11 over the first views, on the strongest points that are labelled."""
    pairs, count = batch.partner.shape
    rows = descriptors.reshape(2 * pairs, count, -1)[:pairs, :_GROUPED]
    groups = point_groups(batch)[:pairs, :_GROUPED]
    return torch.stack([
        of_paper.grouping_loss(each, group)
        for each, group in zip(rows, groups, strict=True)
    ]).mean()  # fmt: skip


SYSTEM = System(
    network='samfeat',
    options=SamFeat().options,
    make=SamFeat,
    prefix='',
    losses=losses,
)
# The paper's base: without edge attention; SamfeatBaseConfig leaves out the teacher's losses.
BASE_SYSTEM = replace(
    SYSTEM, options=SamFeat(guided=False).options, make=lambda: SamFeat(guided=False)
)  # fmt: skip

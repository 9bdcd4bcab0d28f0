# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How ``hynet`` is trained: on patches about points of the scale space that views share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.models.hynet import cut_patches, HyNet, luma, orientations, PatchNetwork, Pyramid
from feat_ros.training import hynet_losses as of_paper
from feat_ros.training.configs import HynetConfig
from feat_ros.training.pairs import Batch
from feat_ros.training.run import System, Trainee

# Points of a picture that are nearer to each other, in sigmas, show nearly the same.
_APART_SIGMAS = 4.0


def losses(
    trainee: Trainee, batch: Batch, config: HynetConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch, equation 7, and what is logged of it."""
    network = trainee.network
    pairs, count = batch.partner.shape
    points, device = batch.points, batch.images.device
    chosen = _choose(batch.partner, config.matches)
    pair, row = chosen // count, chosen % count
    column = batch.partner.reshape(-1)[chosen]
    pyramid = Pyramid(luma(batch.images))
    raw = []
    for view, at in ((pair, row), (pair + pairs, column)):
        xy, sigma = points.xy[view, at], points.sigma[view, at].clamp(min=1.0)
        axis = orientations(pyramid, xy, sigma, view)
        raw.append(network.raw(cut_patches(pyramid, xy, sigma, axis, view)))
    first, second = (functional.normalize(rows, dim=1) for rows in raw)
    is_apart = _is_apart(points.xy[pair, row], points.sigma[pair, row], pair)
    positive = (first * second).sum(1)
    negative = of_paper.hardest_negatives(first, second, is_apart)
    if config.is_plain:
        measure = of_paper.distance
        total = of_paper.triplet_loss(measure(positive), measure(negative), 1.0)
        regular = total.new_zeros(())
    else:
        near, far = (of_paper.hybrid_distance(each, config.alpha) for each in (positive, negative))
        regular = of_paper.norm_loss(*raw)
        total = of_paper.triplet_loss(near, far, config.margin) + config.gamma * regular
    with torch.no_grad():
        # A batch without a match has nothing to say, and no gradient.
        right = (positive > negative).float().mean() if len(chosen) else total.new_zeros(())
    logged = {
        'match_loss': total.detach(),
        'norm_loss': regular.detach(),
        'matches': torch.tensor(len(chosen), device=device),
        'matched_right': right,
    }
    return total, logged


def _choose(partner: Tensor, at_most: int) -> Tensor:
    """Return flat places of points with a partner, the same number of each pair at most."""
    share = max(1, at_most // len(partner))
    is_matched = partner >= 0
    rank = torch.cumsum(is_matched, 1)
    return torch.nonzero((is_matched & (rank <= share)).reshape(-1))[:, 0]


def _is_apart(xy: Tensor, sigma: Tensor, pair: Tensor) -> Tensor:
    """Whether points (M,) show different things: of other pairs, or far from each other."""
    between = (xy[:, None] - xy[None]).square().sum(2).sqrt()
    reach = _APART_SIGMAS * torch.maximum(sigma[:, None], sigma[None])
    return (pair[:, None] != pair[None]) | (between > reach)


SYSTEM = System(
    network='hynet',
    options=HyNet().options,
    make=PatchNetwork,
    prefix='',
    losses=losses,
)
# What the paper compares with: batch norm; HynetBaseConfig has HardNet's plain triplet loss.
BASE_SYSTEM = replace(
    SYSTEM, options={'norm': 'batch'}, make=lambda: PatchNetwork('batch')
)  # fmt: skip

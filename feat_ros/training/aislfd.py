# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How ``aislfd`` is trained.

The losses are the paper's (:mod:`feat_ros.training.aislfd_losses`). Each pair of views gives two
triples of an anchor, the first view: one with the second view, in other light and perhaps turned,
and one with the anchor itself, turned or not, in the same light. The variant image of both is the
anchor warped a little. Which losses a descriptor gets follows from what has changed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.models.aislfd import Aislfd, attend, describe, VARIANCES
from feat_ros.models.sfd2_lite import tones
from feat_ros.training import aislfd_losses as of_paper
from feat_ros.training.configs import AislfdConfig
from feat_ros.training.pairs import apply_homography, Batch, homographies
from feat_ros.training.run import contrast, System, Trainee

# Turns below the first are none, for hands and roads are not level; from the second on f is 1.
_UNTURNED_RAD, _FULL_TURN_RAD = math.radians(10.0), math.pi / 4
# Of the anchors warped in the same light, this share is not turned, as in LISRD.
_UNTURNED_SHARE = 0.5
# How far corners move when the anchor is warped, as a share of the side.
_JITTER = 0.15
# Pixels at the border of a view where points are not looked for.
_BORDER = 8
_IS_ILLUM_VAR = tuple('illum_var' in name for name in VARIANCES)
_IS_ROT_VAR = tuple('rot_var' in name for name in VARIANCES)


class Warped(NamedTuple):
    """Anchors (P, S, S, 3) warped, and where their points lie then.

    ``xy`` (P, N, 2) pixels; ``is_inside`` (P, N) bool; ``turn`` (P,) radians.
    """

    images: Tensor
    xy: Tensor
    is_inside: Tensor
    turn: Tensor


def warp(images: Tensor, xy: Tensor, turn: Tensor) -> Warped:
    """Return images through a random homography after a turn about their centre.

    :param images: (P, S, S, 3) uint8.
    :param xy: (P, N, 2) pixels.
    :param turn: (P,) radians, clockwise.
    """
    count, size = images.shape[:2]
    corners = xy.new_tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    cos, sin = torch.cos(turn), torch.sin(turn)
    rotation = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
    jitter = (torch.rand(count, 4, 2, device=xy.device) - 0.5) * _JITTER
    quads = ((corners + jitter) @ rotation.transpose(1, 2) + 0.5) * size
    source_from_view = homographies(quads, size)
    at = torch.arange(size, device=xy.device) + 0.5
    grid = torch.stack(torch.meshgrid(at, at, indexing='xy'), -1).reshape(1, -1, 2)
    source = apply_homography(source_from_view, grid.expand(count, -1, -1))
    places = (2 * source / size - 1).reshape(count, size, size, 2)
    warped = functional.grid_sample(
        images.float().permute(0, 3, 1, 2), places, padding_mode='reflection', align_corners=False
    )
    moved = apply_homography(torch.linalg.inv_ex(source_from_view)[0], xy)
    is_inside = ((moved >= _BORDER) & (moved <= size - _BORDER)).all(-1)
    rounded = torch.round(warped).permute(0, 2, 3, 1).to(torch.uint8)
    return Warped(rounded, moved, is_inside, turn)


def turn_between(first: Tensor, second: Tensor, is_used: Tensor) -> Tensor:
    """Return the turn (P,), radians, that best takes points to points, in least squares.

    :param first: (P, N, 2) pixels, and ``second``; ``is_used`` (P, N) bool.
    """
    weight = is_used[..., None].to(first.dtype)
    total = weight.sum(1, keepdim=True).clamp(min=1)
    a, b = (
        (each - (each * weight).sum(1, keepdim=True) / total) * weight for each in (first, second)
    )
    across = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(1)
    return torch.atan2(across, (a * b).sum((1, 2)))


def changes(turn: Tensor, *, is_relit: bool) -> tuple[Tensor, Tensor]:
    """Return which descriptors (P, 4) vary with what has changed, and f (P, 4) of equation 5.

    As in LISRD, f grows with the turn where that alone has changed what a descriptor varies with.
    """
    relit, rot_var = (
        torch.tensor(flags, device=turn.device)
        for flags in ([each and is_relit for each in _IS_ILLUM_VAR], _IS_ROT_VAR)
    )
    is_turned = (turn.abs() > _UNTURNED_RAD)[:, None]
    share = (turn.abs() / _FULL_TURN_RAD).clamp(max=1)[:, None]
    return relit | (rot_var & is_turned), torch.where(relit, 1.0, share)


def aligned(partner: Tensor) -> Tensor:
    """Return an order (P, N) of the second views' points that puts partners beside the first's.

    The points without partner fill the other rows.

    :param partner: (P, N) of :class:`~feat_ros.training.pairs.Batch`.
    """
    is_match = partner >= 0
    taken = torch.zeros_like(partner).scatter_add(1, partner.clamp(min=0), is_match.long()) > 0
    # Those without partner come first, and there are as many in both views.
    rows, others = (
        torch.argsort(flags.to(torch.int8), dim=1, stable=True) for flags in (is_match, taken)
    )
    chosen = torch.where(is_match.gather(1, rows), partner.gather(1, rows), others)
    return torch.empty_like(partner).scatter(1, rows, chosen)


class _Views(NamedTuple):
    """Points of P views: ``xy`` (P, N, 2), ``local`` and ``meta`` (P, 4, N, 128)."""

    xy: Tensor
    local: Tensor
    meta: Tensor


def losses(
    trainee: Trainee, batch: Batch, config: AislfdConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and what is logged of it."""
    pairs = len(batch.partner)
    anchors, xy = batch.images[:pairs], batch.points.xy[:pairs]
    is_a, is_b = (batch.points.response > 0).chunk(2)
    angle = (2 * torch.rand(pairs, device=xy.device) - 1) * math.pi
    is_unturned = torch.rand(pairs, device=xy.device) < _UNTURNED_SHARE
    variant = warp(anchors, xy, torch.zeros_like(angle))
    turned = warp(anchors, xy, torch.where(is_unturned, 0.0, angle))
    order = aligned(batch.partner)
    xy_b = torch.gather(batch.points.xy[pairs:], 1, order[..., None].expand(-1, -1, 2))
    is_b, is_match = is_b.gather(1, order), batch.partner >= 0

    images = torch.cat([batch.images, variant.images, turned.images])
    places = torch.cat([xy, xy_b, variant.xy, turned.xy])
    first, second, same, again = _describe(trainee, images, places, config)
    turn = turn_between(xy, xy_b, is_match)
    both = is_a & turned.is_inside
    total, logged = torch.zeros((), device=xy.device), {}
    for name, other, points, changed in (
        (
            'relit', second, of_paper.Correspondences(xy, xy_b, is_match, is_a, is_b),
            changes(turn, is_relit=True),
        ),
        (
            'turned', again, of_paper.Correspondences(xy, turned.xy, both, both, both),
            changes(turned.turn, is_relit=False),
        ),
    ):  # fmt: skip
        loss = _local_loss(first, other, same, points, variant.is_inside, changed, config)
        total = total + loss
        logged[f'local_{name}'] = loss.detach()
        if not config.is_single:
            distance = of_paper.selected_distances(
                first.local, first.meta, other.local, other.meta
            )
            loss = of_paper.meta_loss(distance, points, config.margin, config.apart_px).mean()
            total = total + loss
            logged[f'meta_{name}'] = loss.detach()

    # The paper's losses alone shape the four descriptors.
    local = torch.cat([first.local, second.local]).transpose(1, 2).flatten(0, 1).detach()
    fused = trainee.network.fused(local) * torch.cat([is_a, is_b]).reshape(-1, 1)
    rows = torch.arange(is_match.shape[1], device=xy.device).expand_as(order)
    beside = batch._replace(partner=torch.where(is_match, rows, -1))
    match, of_fused = contrast(trainee, fused, beside, config)
    logged |= of_fused | {'matched_fused': of_fused['matched_right']}
    with torch.no_grad():
        logged |= _shares_right(first, second, is_match, is_a, is_b, config)
    return total + config.fused * match.loss, logged


def _describe(trainee: Trainee, images: Tensor, xy: Tensor, config: AislfdConfig) -> list[_Views]:
    """Descriptors of the four views of each pair, view by view."""
    network = trainee.network
    views, count = xy.shape[:2]
    valid_wh = torch.full((views, 2), images.shape[1], dtype=torch.int32, device=xy.device)
    colors = tones(images, valid_wh).colors
    with torch.autocast(xy.device.type, torch.bfloat16, enabled=config.use_bfloat16):
        maps = network.local_maps(colors.contiguous(memory_format=torch.channels_last))
    image = torch.arange(views, device=xy.device).repeat_interleave(count)
    local, meta = (
        describe(each, xy.reshape(-1, 2), image).unflatten(0, (views, count)).transpose(1, 2)
        for each in (maps, attend(maps, valid_wh))
    )
    parts = (each.chunk(4) for each in (xy, local, meta))
    return [_Views(*each) for each in zip(*parts, strict=True)]


def _local_loss(
    first: _Views, other: _Views, same: _Views, points: of_paper.Correspondences, is_same: Tensor,
    changed: tuple[Tensor, Tensor], config: AislfdConfig,
) -> Tensor:  # fmt: skip
    """Equation 6 of one triple, or equation 4 alone of the descriptor that is invariant to all."""
    has_changed, factor = changed
    of_all = of_paper.Correspondences(*(each[:, None] for each in points))
    invariant = of_paper.invariant_loss(
        first.local, other.local, of_all, config.margin, config.apart_px
    )
    if config.is_single:
        return invariant[:, -1].mean()
    variant = of_paper.variant_loss(
        first.local, same.local, other.local, factor, of_all.is_match & is_same[:, None],
        config.margin,
    )  # fmt: skip
    return of_paper.local_loss(invariant, variant, has_changed).mean()


def _shares_right(
    first: _Views, second: _Views, is_match: Tensor, is_a: Tensor, is_b: Tensor,
    config: AislfdConfig,
) -> dict[str, Tensor]:  # fmt: skip
    """Share of the matches that are nearest both ways among all points of the batch.

    By equation 1, and by each descriptor alone.
    """
    local_a, meta_a, local_b, meta_b = (
        each.transpose(0, 1).flatten(1, 2)
        for each in (first.local, first.meta, second.local, second.meta)
    )
    alone = of_paper.distances(local_a, local_b)
    distance = alone[-1]
    if not config.is_single:
        distance = of_paper.selected_distances(local_a, meta_a, local_b, meta_b)
    found = {}
    rows = torch.arange(is_match.numel(), device=is_match.device)
    is_nothing = ~is_a.reshape(-1, 1) | ~is_b.reshape(1, -1)
    names = ('matched_right', *(f'matched_{name}' for name in VARIANCES))
    for name, values in zip(names, (distance, *alone), strict=True):
        values = values.masked_fill(is_nothing, torch.inf)
        is_right = (values.argmin(1) == rows) & (values.argmin(0) == rows) & is_match.reshape(-1)
        found[name] = is_right.sum() / is_match.sum().clamp(min=1)
    return found


SYSTEM = System(
    network='aislfd',
    options=Aislfd().options,
    make=Aislfd,
    prefix='',
    losses=losses,
)

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
    is_point = batch.points.response > 0
    angle = (2 * torch.rand(pairs, device=xy.device) - 1) * math.pi
    is_unturned = torch.rand(pairs, device=xy.device) < _UNTURNED_SHARE
    turned = warp(anchors, xy, torch.where(is_unturned, 0.0, angle))
    variant = warp(anchors, xy, torch.zeros_like(angle))
    first, second, again, same = _describe(
        trainee, torch.cat([batch.images, turned.images, variant.images]),
        torch.cat([batch.points.xy, turned.xy, variant.xy]), config,
    )  # fmt: skip
    partner, is_match = batch.partner.clamp(min=0), batch.partner >= 0
    relit = _Views(
        torch.gather(second.xy, 1, partner[..., None].expand_as(second.xy)),
        *(
            torch.gather(each, 2, partner[:, None, :, None].expand_as(each))
            for each in (second.local, second.meta)
        ),
    )
    turn = turn_between(xy, relit.xy, is_match)
    total, logged = torch.zeros((), device=xy.device), {}
    for name, other, is_both, changed in (
        ('relit', relit, is_match, changes(turn, is_relit=True)),
        (
            'turned', again, is_point[:pairs] & turned.is_inside,
            changes(turned.turn, is_relit=False),
        ),
    ):  # fmt: skip
        points = of_paper.Correspondences(xy, other.xy, is_both)
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
    fused = trainee.network.fused(local) * is_point.reshape(-1, 1)
    match, of_fused = contrast(trainee, fused, batch, config)
    logged |= of_fused | {'matched_fused': of_fused['matched_right']}
    with torch.no_grad():
        logged |= _shares_right(first, second, is_point, batch.partner, config)
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
    first: _Views, second: _Views, is_point: Tensor, partner: Tensor, config: AislfdConfig
) -> dict[str, Tensor]:
    """Share of the matches that are nearest both ways among all points of the batch.

    By equation 1, and by each descriptor alone.
    """
    pairs, count = partner.shape
    local_a, meta_a, local_b, meta_b = (
        each.transpose(0, 1).flatten(1, 2)
        for each in (first.local, first.meta, second.local, second.meta)
    )
    start = torch.arange(pairs, device=partner.device)[:, None] * count
    wanted = torch.where(partner >= 0, partner + start, -1).reshape(-1)
    rows = torch.arange(len(wanted), device=partner.device)
    is_a, is_b = is_point.reshape(2, -1)
    is_nothing = ~is_a[:, None] | ~is_b[None]
    alone = of_paper.distances(local_a, local_b)
    distance = alone[-1]
    if not config.is_single:
        distance = of_paper.selected_distances(local_a, meta_a, local_b, meta_b)
    found = {}
    names = ('matched_right', *(f'matched_{name}' for name in VARIANCES))
    for name, values in zip(names, (distance, *alone), strict=True):
        values = values.masked_fill(is_nothing, torch.inf)
        nearest = values.argmin(1)
        is_right = (nearest == wanted) & (values.argmin(0)[nearest] == rows)
        found[name] = is_right.sum() / (wanted >= 0).sum().clamp(min=1)
    return found


SYSTEM = System(
    network='aislfd',
    options=Aislfd().options,
    make=Aislfd,
    prefix='',
    losses=losses,
)

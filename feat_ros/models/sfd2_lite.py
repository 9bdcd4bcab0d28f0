# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``sfd2_lite``: extrema of a fixed scale space, ranked and described by a small network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.models.keypoints import clear_rows, constants, TOP_K_LIMIT
from feat_ros.models.scale_space import POINT_FEATURES, ScaleSpace, top_k
from feat_ros.semantics import STABILITY, StabilityGroup

DESCRIPTOR_DIM = 128
# Channels of the maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution, and how many
# convolutions make each.
_CHANNELS = (16, 32, 64, 96, 128)
_DEPTHS = (1, 2, 2, 2, 3)
_HIDDEN, _RANK_HIDDEN = 128, 64
# Slope of the heads below zero: without one, half of the hidden units die in the first steps.
_LEAK = 0.1
# Where the descriptor samples the first two maps: on a ring around the point, in its sigmas.
_RING_POINTS, _RING_RADII = (8, 4), (2.5, 4.0)
# What the outputs of the stability head stand for.
GROUPS = (StabilityGroup.VOLATILE, StabilityGroup.SHORT_TERM, StabilityGroup.LONG_TERM)
_LUMA = (0.299, 0.587, 0.114)
_MULTIPLE = 32
# Grey levels added to the mean, so that the noise of a black image stays small.
_DARKNESS = 2.0


class Ranking(NamedTuple):
    """What decides whether a point is used.

    ================  ========  =============================
    ``match_logit``   (M,)      will it be matched right
    ``group_logits``  (M, 3)    of :data:`GROUPS`
    ================  ========  =============================
    """

    match_logit: Tensor
    group_logits: Tensor


class FlatPoints(NamedTuple):
    """Points of several images in one list; ``image`` (M,) int64 says whose each is.

    ``xy`` (M, 2) pixels, centres at +0.5; ``sigma`` (M,) pixels.
    """

    xy: Tensor
    sigma: Tensor
    image: Tensor


class Tones(NamedTuple):
    """An image made independent of how much light there was; the sides are multiples of 32.

    ==========  ================  =========================================================
    ``colors``  (B, 3, H', W')    -0.5 to 0.5, what the network sees
    ``grey``    (B, 1, H', W')    what the detector sees
    ==========  ================  =========================================================
    """

    colors: Tensor
    grey: Tensor


def tones(image: Tensor, valid_wh: Tensor) -> Tones:
    """Return the tones of RGB uint8 images (B, H, W, 3).

    For the network each channel v becomes v / (v + mean) - 0.5, the response of a photoreceptor
    that is adapted to the mean (Naka and Rushton, 1966): a factor on the light cancels, and lamps
    do not outshine the rest. The detector keeps proportions: luma / mean, less 1, over 4, for in
    the dark a curve lifts more noise than structure. What is beyond ``valid_wh`` (B, 2) is 0.
    """
    batch, height, width, _ = image.shape
    x = torch.arange(width, device=image.device)
    y = torch.arange(height, device=image.device)
    valid_x = (x < valid_wh[:, 0, None]).to(torch.float32)[:, None, None, :]
    valid_y = (y < valid_wh[:, 1, None]).to(torch.float32)[:, None, :, None]
    # TensorRT takes bytes as input, but only to convert them.
    values = image.to(torch.float32).permute(0, 3, 1, 2)
    # Sums as products: nothing of the size of the image is written for them.
    total = valid_y.transpose(2, 3) @ (values @ valid_x.transpose(2, 3))
    count = (valid_wh[:, 0] * valid_wh[:, 1]).to(torch.float32)[:, None, None, None]
    mean = total / count.clamp(min=1) + _DARKNESS
    # v / (v + mean) - 0.5 in as few passes: half of v - mean serves the detector too.
    half = (values - mean) * (0.5 * valid_y * valid_x)
    colors = half / (values + mean)
    luma = constants(_LUMA, values)[None, None]
    gain = luma / (2 * luma @ mean.reshape(batch, 3, 1))
    grey = (gain @ half.reshape(batch, 3, -1)).reshape(batch, 1, height, width)
    if width % _MULTIPLE or height % _MULTIPLE:
        padding = (0, -width % _MULTIPLE, 0, -height % _MULTIPLE)
        colors, grey = functional.pad(colors, padding), functional.pad(grey, padding)
    return Tones(colors, grey)


class _Corners(NamedTuple):
    """The four pixels (..., M) of a map, each as its row of pixels and its share of a sample."""

    rows: list[Tensor]
    shares: list[Tensor]


def _corners(x: Tensor, y: Tensor, width: Tensor, height: Tensor, image: Tensor) -> _Corners:
    x = torch.minimum((x - 0.5).clamp(min=0), width - 1)
    y = torch.minimum((y - 0.5).clamp(min=0), height - 1)
    column, row = x.to(torch.int64), y.to(torch.int64)
    right, down = x - column, y - row
    left, up = 1 - right, 1 - down
    step_x = torch.minimum(column + 1, width - 1) - column
    first = image * height
    above = (first + row) * width + column
    below = (first + torch.minimum(row + 1, height - 1)) * width + column
    return _Corners(
        [above, above + step_x, below, below + step_x],
        [left * up, right * up, left * down, right * down],
    )


def _weigh(values: Tensor, corners: _Corners) -> Tensor:
    # Rows of one pixel's channels lie together, so a point costs four reads; not one read for
    # all, for sums of slices of it would copy each.
    pixels = values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])
    a, b, c, d = (
        functional.embedding(rows, pixels).to(share.dtype) * share[:, None]
        for rows, share in zip(*corners, strict=True)
    )
    return (a + b) + (c + d)


def _size(value: int, like: Tensor) -> Tensor:
    return torch.full((1,), value, dtype=torch.int64, device=like.device)


def sample(values: Tensor, xy: Tensor, image: Tensor) -> Tensor:
    """Return bilinear samples (M, C) of maps (B, C, h, w).

    :param xy: (M, 2) in the map's pixels, the centre of the first at (0.5, 0.5); beyond the border
        the nearest pixels count.
    :param image: (M,) int64, which of the maps each point is in.
    """
    height, width = (_size(side, xy) for side in values.shape[2:])
    return _weigh(values, _corners(xy[:, 0], xy[:, 1], width, height, image))


class _Unit(nn.Module):
    """3x3 convolution, batch norm, ReLU; with a shortcut where shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.has_shortcut = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return torch.relu(y + x if self.has_shortcut else y)


class Backbone(nn.Module):
    """Tones (B, 3, H, W) to maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        stages, before = [], 3
        for channels, depth in zip(_CHANNELS, _DEPTHS, strict=True):
            units = [_Unit(before, channels, 2)]
            units += [_Unit(channels, channels, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*units))
            before = channels
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Sfd2LiteNetwork(nn.Module):
    """The learned part: maps by the backbone, then heads on their samples at the points.

    :class:`Sfd2Lite` puts it behind the detector; training gives it points of many images.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.rank_head = nn.Sequential(
            nn.Linear(sum(_CHANNELS[1:]) + POINT_FEATURES, _RANK_HIDDEN),
            nn.LeakyReLU(_LEAK),
            nn.Linear(_RANK_HIDDEN, 1 + len(GROUPS)),
        )
        ring = sum(n * c for n, c in zip(_RING_POINTS, _CHANNELS, strict=False))
        self.descriptor_head = nn.Sequential(
            nn.Linear(sum(_CHANNELS) + ring, _HIDDEN),
            nn.LeakyReLU(_LEAK),
            nn.Linear(_HIDDEN, DESCRIPTOR_DIM),
        )
        for number, (count, radius) in enumerate(zip(_RING_POINTS, _RING_RADII, strict=True)):
            angle = torch.arange(count) * (2 * torch.pi / count)
            ring_xy = radius * torch.stack([torch.cos(angle), torch.sin(angle)])
            self.register_buffer(f'ring_{number}', ring_xy, persistent=False)

    def centers(self, maps: list[Tensor], points: FlatPoints) -> list[Tensor]:
        """Return each map at the points (M, C)."""
        # The corners on all maps at once, each half as large as the one before.
        scales = torch.stack([_size(2**k, points.xy) for k in range(len(maps))])
        height, width = (
            torch.div(_size(side, points.xy), scales, rounding_mode='trunc')
            for side in maps[0].shape[2:]
        )
        x, y = (each / (2 * scales) for each in points.xy.unbind(1))
        corners = _corners(x, y, width, height, points.image)
        rows, shares = ([each.unbind(0) for each in part] for part in corners)
        return [
            _weigh(each, _Corners(list(at), list(share)))
            for each, at, share in zip(
                maps, zip(*rows, strict=True), zip(*shares, strict=True), strict=True
            )
        ]

    def rings(self, maps: list[Tensor], points: FlatPoints) -> list[Tensor]:
        """Return the first maps on rings around the points (M, n C)."""
        found = []
        for k, count in enumerate(_RING_POINTS):
            around = points.sigma[:, None] * getattr(self, f'ring_{k}').reshape(2, 1, count)
            x, y = (points.xy.T[..., None] + around) / 2 ** (k + 1)
            height, width = (_size(side, x) for side in maps[k].shape[2:])
            image = points.image[:, None].expand(-1, count).reshape(-1)
            corners = _corners(x.reshape(-1), y.reshape(-1), width, height, image)
            found.append(_weigh(maps[k], corners).reshape(len(points.sigma), -1))
        return found

    def rank(self, centers: list[Tensor], features: Tensor) -> Ranking:
        """Say whether points will be matched, and how stable they are.

        :param centers: samples (M, C) of the maps from 1/4 on.
        :param features: (M, 5) of :class:`~feat_ros.models.scale_space.Points`.
        """
        out = self.rank_head(torch.cat([*centers, features], 1))
        return Ranking(out[:, 0], out[:, 1:])

    def describe(self, centers: list[Tensor], rings: list[Tensor]) -> Tensor:
        """Return unit descriptors (M, 128) from :meth:`centers` of all maps and :meth:`rings`."""
        rows = self.descriptor_head(torch.cat([*centers, *rings], 1))
        return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-12)


def stability(group_logits: Tensor) -> Tensor:
    """Return the expected stability (...) of group logits (..., 3)."""
    values = constants([STABILITY[group] for group in GROUPS], group_logits)
    return (torch.softmax(group_logits, -1) * values).sum(-1)


class Sfd2Lite(nn.Module):
    """From an image to ranked keypoints with descriptors, in one graph.

    ===============  ===================  ==================================================
    ``image``        (1, H, W, 3) uint8   RGB
    ``valid_wh``     (2,) int32           width and height that are not padding
    ``keypoints``    (K, 2) float32       network pixels, centres at +0.5, strongest first
    ``scores``       (K,) float32         response x matchability x stability^exponent
    ``descriptors``  (K, 128) float32     unit length
    ``stability``    (K,) float32         0 to 1
    ``num``          () int32             how many there are; rows from it on are zero
    ===============  ===================  ==================================================

    :param max_keypoints: K.
    :param stability_exponent: how much the ranking prefers what stays; 0 for not at all.
    :cvar size_multiple: what width and height of the image are best a multiple of.
    :ivar options: what this network was made with, beside the number of keypoints.
    """

    descriptor_dim = DESCRIPTOR_DIM
    size_multiple = _MULTIPLE
    published_options: Mapping[str, Any] = {}

    def __init__(self, max_keypoints: int = 2048, stability_exponent: float = 3.0) -> None:
        super().__init__()
        self.max_keypoints = max_keypoints
        self.stability_exponent = stability_exponent
        self.options = {'stability_exponent': stability_exponent}
        self.detector = ScaleSpace()
        self.network = Sfd2LiteNetwork()
        self._dense_type = torch.float32

    def use_half(self) -> None:
        """Compute the maps in half precision from now on; points and heads stay float32."""
        self.network.backbone.half()
        self._dense_type = torch.float16

    def forward(
        self, image: Tensor, valid_wh: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See the class."""
        count = self.max_keypoints
        sizes = valid_wh[None]
        adapted = tones(image, sizes)
        # More than are kept, so that the network has a choice, but no second TopK for it.
        candidates = max(count, min(count + count // 2, TOP_K_LIMIT))
        points = self.detector(adapted.grey, sizes, candidates)
        maps = self.network.backbone(adapted.colors.to(self._dense_type))
        xy, sigma, response, features = (each[0] for each in points)
        image_zero = torch.zeros_like(sigma, dtype=torch.int64)
        centers = self.network.centers(maps, FlatPoints(xy, sigma, image_zero))
        ranking = self.network.rank(centers[1:], features)
        stable = stability(ranking.group_logits)
        score = response * torch.sigmoid(ranking.match_logit)
        score = score * stable**self.stability_exponent
        scores, chosen = (each[0] for each in top_k(score[None], count))
        kept_xy, kept_sigma, kept_stable, *kept_centers = (
            each.index_select(0, chosen) for each in (xy, sigma, stable, *centers)
        )
        kept_points = FlatPoints(kept_xy, kept_sigma, image_zero[:count])
        rings = self.network.rings(maps, kept_points)
        descriptors = self.network.describe(kept_centers, rings)
        num = (scores > 0).sum().to(torch.int32)
        return (
            clear_rows(num, kept_xy),
            clear_rows(num, scores),
            clear_rows(num, descriptors),
            clear_rows(num, kept_stable),
            num,
        )

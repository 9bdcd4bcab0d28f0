# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``sfd2_lite``: extrema of a fixed scale space, ranked and described by a small network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.models.keypoints import clear_rows, TOP_K_LIMIT
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
    is_valid = valid_y * valid_x
    # TensorRT takes bytes as input, but only to convert them.
    values = image.to(torch.float32).permute(0, 3, 1, 2)
    # Sums as products: nothing of the size of the image is written for them.
    total = valid_y.transpose(2, 3) @ (values @ valid_x.transpose(2, 3))
    count = (valid_wh[:, 0] * valid_wh[:, 1]).to(torch.float32)[:, None, None, None]
    mean = total / count.clamp(min=1) + _DARKNESS
    colors = (values / (values + mean) - 0.5) * is_valid
    luma = values.new_tensor(_LUMA)[None, None]
    gain = luma / (4 * luma @ mean.reshape(batch, 3, 1))
    grey = (gain @ values.reshape(batch, 3, -1)).reshape(batch, 1, height, width)
    grey = (grey - 0.25) * is_valid
    padding = (0, -width % _MULTIPLE, 0, -height % _MULTIPLE)
    return Tones(functional.pad(colors, padding), functional.pad(grey, padding))


def sample(values: Tensor, xy: Tensor, image: Tensor) -> Tensor:
    """Return bilinear samples (M, C) of maps (B, C, h, w).

    :param xy: (M, 2) in the map's pixels, the centre of the first at (0.5, 0.5); beyond the border
        the nearest pixels count.
    :param image: (M,) int64, which of the maps each point is in.
    """
    channels, height, width = values.shape[1:]
    # Rows of one pixel's channels lie together, so a point costs four reads.
    rows = values.permute(0, 2, 3, 1).reshape(-1, channels)
    x = (xy[:, 0] - 0.5).clamp(0, width - 1)
    y = (xy[:, 1] - 0.5).clamp(0, height - 1)
    left, top = torch.floor(x), torch.floor(y)
    right_share, down_share = x - left, y - top
    column, row = left.to(torch.int64), top.to(torch.int64)
    step_x = (column + 1).clamp(max=width - 1) - column
    step_y = ((row + 1).clamp(max=height - 1) - row) * width
    corner = image * (height * width) + row * width + column
    # One read for all four corners, which lie one after the other: a sum over them as an axis is
    # several times slower in runtimes than sums of slices.
    index = torch.stack([corner, corner + step_x, corner + step_y, corner + step_x + step_y])
    left_share, up_share = 1 - right_share, 1 - down_share
    weight = torch.stack(
        [
            left_share * up_share, right_share * up_share,
            left_share * down_share, right_share * down_share,
        ]
    )  # fmt: skip
    a, b, c, d = (functional.embedding(index, rows) * weight[..., None]).unbind(0)
    return (a + b) + (c + d)


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
            ring_xy = radius * torch.stack([torch.cos(angle), torch.sin(angle)], 1)
            ring_xy = torch.cat([torch.zeros(1, 2), ring_xy])
            self.register_buffer(f'ring_{number}', ring_xy, persistent=False)

    def samples(self, maps: list[Tensor], points: FlatPoints) -> tuple[list[Tensor], list[Tensor]]:
        """Return what the heads see: each map at the points (M, C), and the rings (M, n C)."""
        centers, rings = [], []
        for k, each in enumerate(maps, start=1):
            if k > len(_RING_POINTS):
                centers.append(sample(each, points.xy / 2**k, points.image))
                continue
            count = _RING_POINTS[k - 1] + 1
            ring = getattr(self, f'ring_{k - 1}')
            xy = points.xy[:, None] + points.sigma[:, None, None] * ring
            image = points.image[:, None].expand(-1, count).reshape(-1)
            taken = sample(each, xy.reshape(-1, 2) / 2**k, image)
            channels = each.shape[1]
            taken = taken.reshape(-1, count * channels)
            centers.append(taken[:, :channels])
            rings.append(taken[:, channels:])
        return centers, rings

    def rank(self, centers: list[Tensor], features: Tensor) -> Ranking:
        """Say whether points will be matched, and how stable they are.

        :param centers: samples (M, C) of the maps from 1/4 on.
        :param features: (M, 5) of :class:`~feat_ros.models.scale_space.Points`.
        """
        out = self.rank_head(torch.cat([*centers, features], 1))
        return Ranking(out[:, 0], out[:, 1:])

    def describe(self, centers: list[Tensor], rings: list[Tensor]) -> Tensor:
        """Return unit descriptors (M, 128) from :meth:`samples`."""
        return functional.normalize(self.descriptor_head(torch.cat([*centers, *rings], 1)), dim=1)


def stability(group_logits: Tensor) -> Tensor:
    """Return the expected stability (...) of group logits (..., 3)."""
    values = group_logits.new_tensor([STABILITY[group] for group in GROUPS])
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

    def __init__(self, max_keypoints: int = 2048, stability_exponent: float = 1.5) -> None:
        super().__init__()
        self.max_keypoints = max_keypoints
        self.stability_exponent = stability_exponent
        self.options = {'stability_exponent': stability_exponent}
        self.detector = ScaleSpace()
        self.network = Sfd2LiteNetwork()

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
        maps = self.network.backbone(adapted.colors)
        xy, sigma, response, features = (each[0] for each in points)
        image_zero = torch.zeros_like(sigma, dtype=torch.int64)
        centers = [sample(m, xy / 2**k, image_zero) for k, m in enumerate(maps[1:], start=2)]
        ranking = self.network.rank(centers, features)
        stable = stability(ranking.group_logits)
        score = response * torch.sigmoid(ranking.match_logit)
        score = score * stable**self.stability_exponent
        scores, chosen = (each[0] for each in top_k(score[None], count))
        kept_points = FlatPoints(xy[chosen], sigma[chosen], image_zero[:count])
        descriptors = self.network.describe(*self.network.samples(maps, kept_points))
        num = (scores > 0).sum().to(torch.int32)
        return (
            clear_rows(num, kept_points.xy),
            clear_rows(num, scores),
            clear_rows(num, descriptors),
            clear_rows(num, stable[chosen]),
            num,
        )

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The network of AISLFD.

Li, Li and Li, "Attention Guided Invariance Selection for Local Feature Descriptors", ICASSP 2022,
section 2, on Pautrat et al., "Online Invariance Selection for Local Feature Descriptors", ECCV
2020 (LISRD), whose names the four heads have. What the paper leaves open (its figure 2 has no
channels, its text no projections) is decided and argued for in docs/systems/aislfd.md.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.models.keypoints import clear_rows, TOP_K_LIMIT
from feat_ros.models.scale_space import ScaleSpace, top_k
from feat_ros.models.sfd2_lite import Backbone, sample, tones

# The four descriptors: whether each changes with the light, and with a turn of the camera.
VARIANCES = (
    'illum_var_rot_var',
    'illum_var_rot_invar',
    'illum_invar_rot_var',
    'illum_invar_rot_invar',
)
PART_DIM = 128
STRIDE = 8
_PYRAMID = 96
# Channels of the backbone's maps at 1/8, 1/16 and 1/32 of the resolution.
_LEVELS = (64, 96, 128)
_MULTIPLE = 32
# Makes weights of keys that are not there vanish, and is finite where no key is there.
_NOT_THERE = -1e4


class Aislfd(nn.Module):
    """AISLFD behind the detector of :mod:`feat_ros.models.scale_space`, 1,173,968 parameters.

    It gives one descriptor for any matcher, which is ours; :class:`AislfdExact` gives what the
    paper's equation 1 compares.

    ===============  ===================  =================================================
    ``image``        (1, H, W, 3) uint8   RGB
    ``valid_wh``     (2,) int32           width and height that are not padding
    ``keypoints``    (K, 2) float32       network pixels, centres at +0.5, strongest first
    ``scores``       (K,) float32         response of the detector
    ``descriptors``  (K, 128) float32     unit length
    ``stability``    (K,) float32         1: the paper knows none
    ``num``          () int32             how many there are; rows from it on are zero
    ===============  ===================  =================================================

    :param max_keypoints: K.
    :param window: side of the squares of cells within which attention is paid; 0 for the paper's
        attention, to the whole image, whose cost grows with the square of its area.
    :cvar size_multiple: what width and height of the image are best a multiple of.
    :ivar options: what this network was made with, beside the number of keypoints.
    """

    descriptor_dim = PART_DIM
    size_multiple = _MULTIPLE
    published_options: Mapping[str, Any] = {}

    def __init__(self, max_keypoints: int = 2048, window: int = 16) -> None:
        super().__init__()
        self.max_keypoints = max_keypoints
        self.window = window
        self.options = {'window': window}
        self.detector = ScaleSpace()
        self.backbone = Backbone()
        self.lateral = nn.ModuleList(nn.Conv2d(each, _PYRAMID, 1) for each in _LEVELS)
        self.merged = nn.Conv2d(_PYRAMID, _PYRAMID, 3, padding=1)
        for name in VARIANCES:
            self.add_module(f'conv_{name}_1', nn.Conv2d(_PYRAMID, _PYRAMID, 3, padding=1))
            self.add_module(f'bn_{name}_1', nn.BatchNorm2d(_PYRAMID))
            self.add_module(f'conv_{name}_2', nn.Conv2d(_PYRAMID, PART_DIM, 1))
        self.fuse = nn.Linear(len(VARIANCES) * PART_DIM, PART_DIM, bias=False)
        self._dense_type = torch.float32

    def use_half(self) -> None:
        """Compute the maps in half precision from now on; points and attention stay float32."""
        for name, part in self.named_children():
            if name not in ('detector', 'fuse'):
                part.half()
        self._dense_type = torch.float16

    def local_maps(self, colors: Tensor) -> Tensor:
        """Return the four maps (B, 4, 128, H/8, W/8), not of unit length yet: the MSFE.

        :param colors: (B, 3, H, W) of :func:`feat_ros.models.sfd2_lite.tones`.
        """
        levels = self.backbone(colors.to(self._dense_type))[-len(_LEVELS) :]
        merged = self.lateral[-1](levels[-1])
        for lateral, level in zip(self.lateral[-2::-1], levels[-2::-1], strict=True):
            raised = functional.interpolate(merged, level.shape[2:], mode='nearest')
            merged = lateral(level) + raised
        merged = torch.relu(self.merged(merged))
        return torch.stack([self._head(name, merged) for name in VARIANCES], 1).float()

    def _head(self, name: str, merged: Tensor) -> Any:
        """Conv, ReLU, norm, conv, in LISRD's order."""
        first, norm, last = (
            self.get_submodule(part.format(name)) for part in ('conv_{}_1', 'bn_{}_1', 'conv_{}_2')
        )
        return last(norm(torch.relu(first(merged))))

    def fused(self, local: Tensor) -> Tensor:
        """Return one descriptor (M, 128), unit length, of four (M, 4, 128)."""
        return functional.normalize(self.fuse(local.flatten(1)), dim=1)

    def descriptors(self, maps: Tensor, sizes: Tensor, xy: Tensor, image: Tensor) -> Tensor:
        """Return what the network gives of points, as :func:`describe`."""
        return self.fused(describe(maps, xy, image))

    def forward(
        self, image: Tensor, valid_wh: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See the class."""
        sizes = valid_wh[None]
        adapted = tones(image, sizes)
        count = self.max_keypoints
        # More than are kept: what turns out to be an edge has no response.
        candidates = max(count, min(count + count // 2, TOP_K_LIMIT))
        points = self.detector(adapted.grey, sizes, candidates)
        response, chosen = (each[0] for each in top_k(points.response, count))
        xy = points.xy[0].index_select(0, chosen)
        first = torch.zeros_like(chosen)
        maps = self.local_maps(adapted.colors)
        descriptors = self.descriptors(maps, sizes, xy, first)
        num = (response > 0).sum().to(torch.int32)
        return (
            clear_rows(num, xy),
            clear_rows(num, response),
            clear_rows(num, descriptors),
            clear_rows(num, torch.ones_like(response)),
            num,
        )


class AislfdExact(Aislfd):
    """The same network and weights, with all that equation 1 needs in its descriptors (K, 1024).

    They are the four local descriptors, then the four meta descriptors, over sqrt(8): unit length
    together. :func:`feat_ros.matching.selected_similarity` compares them by equation 1; their dot
    product weighs all eight the same.
    """

    descriptor_dim = 2 * len(VARIANCES) * PART_DIM

    def descriptors(self, maps: Tensor, sizes: Tensor, xy: Tensor, image: Tensor) -> Tensor:
        """Return what the network gives of points, as :func:`describe`."""
        local = describe(maps, xy, image)
        meta = describe(attend(maps, sizes, self.window), xy, image)
        parts = torch.cat([local, meta], 1)
        return parts.flatten(1) / math.sqrt(parts.shape[1])


def describe(maps: Tensor, xy: Tensor, image: Tensor) -> Tensor:
    """Return descriptors (M, 4, 128), unit length, of maps (B, 4, 128, h, w) at points.

    :param xy: (M, 2) in pixels of the image, and ``image`` (M,) int64, which of the B.
    """
    units = functional.normalize(maps, dim=2).flatten(1, 2)
    rows = sample(units, xy / STRIDE, image).reshape(-1, *maps.shape[1:3])
    return functional.normalize(rows, dim=2)


def attend(maps: Tensor, valid_wh: Tensor, window: int = 0) -> Tensor:
    """Return meta descriptors: self-attention of each map by itself (section 2.2: the PSA).

    Queries, keys and values are the map itself: Y = softmax(X X^T / sqrt(128)) X, over the cells
    that are not padding.

    :param maps: (B, S, C, h, w).
    :param valid_wh: (B, 2) int, width and height of each image that are not padding.
    :param window: cells of a side of the squares, from the top left, that are each by themselves;
        0 for one that is the whole map.
    :returns: (B, S, C, h, w).
    """
    batch, count, channels, height, width = maps.shape
    x = torch.arange(width, device=maps.device)
    y = torch.arange(height, device=maps.device)
    is_key = (STRIDE * y[None, :, None] < valid_wh[:, 1, None, None]) & (
        STRIDE * x[None, None, :] < valid_wh[:, 0, None, None]
    )
    bias = torch.where(is_key.flatten(1), 0.0, _NOT_THERE)[:, None]
    cells = maps.reshape(batch, count, channels, -1).transpose(2, 3)
    if not window:
        found = _attention(cells, bias[:, :, None])
    else:
        into, back, is_cell = _windows(height, width, window, maps.device)
        side = window * window
        parts = cells.index_select(2, into).reshape(batch, count, -1, side, channels)
        bias = torch.where(is_cell, bias.index_select(2, into), _NOT_THERE)
        found = _attention(parts, bias.reshape(batch, 1, -1, 1, side))
        found = found.reshape(batch, count, -1, channels).index_select(2, back)
    return found.transpose(2, 3).reshape(maps.shape)


def _attention(cells: Tensor, bias: Tensor) -> Tensor:
    scores = (cells / math.sqrt(cells.shape[-1])) @ cells.transpose(-1, -2)
    return torch.softmax(scores + bias, -1) @ cells


def _windows(
    height: int, width: int, window: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the cells of windows are in the map, where the map's are, and which are."""
    down, across = (height + window - 1) // window, (width + window - 1) // window
    row = torch.arange(down * window, device=device).reshape(down, 1, window, 1)
    column = torch.arange(across * window, device=device).reshape(1, across, 1, window)
    into = row.clamp(max=height - 1) * width + column.clamp(max=width - 1)
    is_cell = ((row < height) & (column < width)).reshape(-1)
    y = torch.arange(height, device=device)[:, None]
    x = torch.arange(width, device=device)[None, :]
    square = torch.div(y, window, rounding_mode='trunc') * across
    square = square + torch.div(x, window, rounding_mode='trunc')
    inside = torch.remainder(y, window) * window + torch.remainder(x, window)
    return into.reshape(-1), (square * window * window + inside).reshape(-1), is_cell

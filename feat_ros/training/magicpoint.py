# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""MagicPoint, a detector of corners from a file of the user's, and its homographic adaptation.

DeTone, Malisiewicz and Rabinovich, "SuperPoint: Self-Supervised Interest Point Detection and
Description", CVPR Workshops 2018, sections 4 and 5. What it says of a photograph is the S_rel of
SFD2 (:mod:`feat_ros.training.corner_writer`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.errors import NetworkError
from feat_ros.models.sfd2 import CELL, reliability
from feat_ros.models.weights import read_checkpoint
from feat_ros.training.pairs import apply_homography, homographies

# What comes out of the four pairs of convolutions; the image is halved after each but the last.
_CHANNELS = (64, 64, 128, 128)
# Of the checkpoint at hand.
_EPSILON = 1e-3
# Names of the layers in SuperPoint's published state dict; its descriptors are left out.
_SUPERPOINT = {f'conv{i + 1}{"ab"[j]}': f'backbone.{i}.{j}' for i in range(4) for j in range(2)}
_SUPERPOINT |= {'convPa': 'detector.0', 'convPb': 'detector.1'}
_SUPERPOINT_DESCRIPTORS = ('convDa', 'convDb')
# Pixels along the border of a view where the network sees its end, not the photograph.
_BORDER = 4
# How views differ from the picture (ours): sizes of what they show, turns to either side, how far
# their middles and corners are moved, as shares of the sides.
_SMALLEST, _LARGEST, _TURN_DEG, _SHIFT, _JITTER = 0.5, 1.2, 90.0, 0.2, 0.15


class MagicPoint(nn.Module):
    """Eight convolutions of 3x3 and a head of 65 outputs for each cell of 8x8 pixels.

    A unit is a convolution, ReLU and batch norm, in this order; the last has no ReLU.

    :param has_norm: with batch norm, as MagicPoint; without, as the detector of SuperPoint.
    :param largest_grey: what white is to the network.
    """

    def __init__(self, *, has_norm: bool = True, largest_grey: float = 255.0) -> None:
        super().__init__()
        self._scale = largest_grey / 255.0
        inputs = (1, *_CHANNELS)
        self.backbone = nn.Sequential(*(
            nn.Sequential(
                _Unit(before, after, 3, has_norm=has_norm),
                _Unit(after, after, 3, has_norm=has_norm),
            )
            for before, after in zip(inputs, _CHANNELS, strict=False)
        ))  # fmt: skip
        self.detector = nn.Sequential(
            _Unit(_CHANNELS[-1], 256, 3, has_norm=has_norm),
            _Unit(256, CELL * CELL + 1, 1, has_norm=has_norm, is_rectified=False),
        )

    def forward(self, grey: Tensor) -> Tensor:
        """Return logits (B, 65, H/8, W/8): the pixels of a cell row by row, then "none of them".

        :param grey: (B, 1, H, W) of 0 to 255, sides multiples of 8.
        """
        x = grey * self._scale
        for number, stage in enumerate(self.backbone):
            x = stage(x if number == 0 else functional.max_pool2d(x, 2))
        return torch.as_tensor(self.detector(x))


class _Unit(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, side: int, *, has_norm: bool, is_rectified: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, padding=side // 2)
        self.is_rectified = is_rectified
        if has_norm:
            self.bn = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.has_norm = has_norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.is_rectified:
            x = functional.relu(x)
        return torch.as_tensor(self.bn(x)) if self.has_norm else x


def open_detector(checkpoint: Path, device: torch.device) -> tuple[str, MagicPoint]:
    """Return which network a user's checkpoint is of, ``magicpoint`` or ``superpoint``, and it.

    :raises NetworkError: missing, damaged, or of another network.
    """
    if not checkpoint.is_file():
        raise NetworkError(f'checkpoint {checkpoint} does not exist')
    state: dict[str, Any] = {
        name: torch.from_numpy(each) for name, each in read_checkpoint(checkpoint).items()
    }
    kind, network = 'magicpoint', MagicPoint()
    if 'conv1a.weight' in state:
        kind, network = 'superpoint', MagicPoint(has_norm=False, largest_grey=1.0)
        layers = {name: name.partition('.')[0] for name in state}
        state = {
            f'{_SUPERPOINT.get(layers[name], layers[name])}.conv.{name.partition(".")[2]}': each
            for name, each in state.items()
            if layers[name] not in _SUPERPOINT_DESCRIPTORS
        }
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise NetworkError(
            f'checkpoint {checkpoint} is neither of MagicPoint nor of SuperPoint: its names or '
            'shapes differ'
        ) from None
    return kind, network.to(device).eval()


def heat_map(network: MagicPoint, grey: Tensor) -> Tensor:
    """Return the probability (B, 1, H, W) that a corner is in a pixel.

    :param grey: (B, 1, H, W) of 0 to 255, of any size.
    """
    height, width = grey.shape[2:]
    padded = functional.pad(grey, (0, -width % CELL, 0, -height % CELL), mode='replicate')
    with torch.no_grad():
        return reliability(network(padded))[:, :, :height, :width]


def random_views(count: int, size_wh: tuple[int, int], seed: int) -> Tensor:
    """Return random views of a picture, of its own size: source_from_view (N, 3, 3) float64."""
    rng = np.random.default_rng(seed)
    wh = np.array(size_wh, float)
    scale = np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST), count))
    angle = np.radians(rng.uniform(-_TURN_DEG, _TURN_DEG, count))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = (corners + rng.uniform(-_JITTER, _JITTER, (count, 4, 2))) * wh
    middle = (0.5 + rng.uniform(-_SHIFT, _SHIFT, (count, 1, 2))) * wh
    quads: npt.NDArray[np.float64] = middle + scale[:, None, None] * (
        corners @ turn.transpose(0, 2, 1)
    )
    unit_from_view = torch.tensor([1 / size_wh[0], 1 / size_wh[1], 1.0], dtype=torch.float64)
    return homographies(torch.from_numpy(quads), 1) * unit_from_view


def adapted_heat_map(network: MagicPoint, grey: Tensor, source_from_view: Tensor) -> Tensor:
    """Homographic adaptation: the mean of what is said of a picture and of views of it.

    A pixel's mean is over the picture and those views that show it, not at their border.

    :param grey: (H, W) of 0 to 255.
    :param source_from_view: (N, 3, 3) float64, see :func:`random_views`.
    :returns: (H, W) in [0, 1].
    """
    height, width = grey.shape
    total = heat_map(network, grey[None, None])
    count = torch.ones_like(total)
    for matrix in source_from_view:
        view = _sample(grey[None, None], *_places(matrix, width, height, grey.device))
        x, y = _places(torch.linalg.inv(matrix), width, height, grey.device)
        is_seen = (x >= _BORDER) & (x <= width - _BORDER)
        is_seen &= (y >= _BORDER) & (y <= height - _BORDER)
        total += _sample(heat_map(network, view), x, y) * is_seen
        count += is_seen
    return (total / count)[0, 0].clamp(0, 1)


def _places(
    matrix: Tensor, width: int, height: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return x and y (H, W) float32 of the centres of pixels through a matrix (3, 3)."""
    row, column = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=device) + 0.5,
        torch.arange(width, dtype=torch.float64, device=device) + 0.5,
        indexing='ij',
    )
    xy = torch.stack([column, row], -1).reshape(1, -1, 2)
    x, y = apply_homography(matrix[None].to(device), xy)[0].float().unbind(-1)
    return x.reshape(height, width), y.reshape(height, width)


def _sample(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read a map (1, 1, H, W) between pixels, whose centres are at halves; its border goes on."""
    height, width = maps.shape[2:]
    at = torch.stack([2 * x / width - 1, 2 * y / height - 1], -1)[None]
    return functional.grid_sample(maps, at, padding_mode='border', align_corners=False)

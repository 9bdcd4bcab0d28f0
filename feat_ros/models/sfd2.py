# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The network of SFD2.

Xue, Budvytis and Cipolla, "SFD2: Semantic-guided Feature Detection and Description", CVPR 2023,
section 3, figure 5 and supplement D. Names follow the published state dict, so that a checkpoint
of the authors loads strictly; what only their code has, the stability head, is said below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.errors import NetworkError
from feat_ros.models.keypoints import (
    clear_rows,
    constants,
    has_contrast,
    inside,
    keep_maxima,
    normalise,
    quadratic_offset,
    sample_bilinear,
    split_places,
    strongest,
)
from feat_ros.models.sfd2_lite import tones as adapted_tones

# Of ImageNet, as the authors have it.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What networks can see: see Sfd2.
TONES = ('imagenet', 'adapted')
# Makes the deviation of adapted tones about 1.
_ADAPTED_GAIN = 5.0
CELL = 8
DESCRIPTOR_STRIDE = 4
# As the authors extract: radius of non-maximum suppression, border in pixels, weakest score.
_RADIUS, _BORDER, _THRESHOLD = 4, 4, 0.001
# S_sta of the three outputs of the stability head (table 1).
_STABILITY = (0.1, 0.5, 1.0)


class Sfd2Maps(NamedTuple):
    """What the network says of every place, before any is chosen.

    ====================  =================  ================================================
    ``cell_logits``       (B, 65, H/8, W/8)  the 64 pixels of a cell and "none of them"
    ``descriptors``       (B, 128, H/4, W/4)  unit length
    ``stability_logits``  (B, 3, H/4, W/4)   volatile or dynamic, short-term, long-term
    ``features``          (B, 128, H/4, W/4), (B, 256, H/4, W/4)  what equation 5 compares
    ====================  =================  ================================================
    """

    cell_logits: Tensor
    descriptors: Tensor
    stability_logits: Tensor
    features: tuple[Tensor, Tensor]


class Sfd2(nn.Module):
    """SFD2, 4,010,244 parameters.

    The reliability map S (H, W) is a softmax over the 64 pixels of each 8x8 cell and one that
    says "none of them"; descriptors and stability lie on a map of a quarter of the size.

    :param max_keypoints: K.
    :param stability_exponent: scores are S x stability ^ this. 0 for weights trained by the
        paper, whose S already holds the stability; 1 for the authors' checkpoint, whose S does
        not: their code multiplies by the most probable group's.
    :param tones: what the network sees: ``imagenet``, as the authors have it, or ``adapted`` to
        the light of the image (:func:`feat_ros.models.sfd2_lite.tones`), as our weights do.
    :cvar size_multiple: what width and height of the image are best a multiple of.
    :cvar published_options: what a checkpoint of the authors is made with.
    :ivar options: what this network was made with, beside the number of keypoints.
    """

    descriptor_dim = 128
    size_multiple = CELL
    published_options: Mapping[str, Any] = {'stability_exponent': 1.0}

    def __init__(
        self,
        max_keypoints: int = 4096,
        stability_exponent: float = 0.0,
        tones: str = 'imagenet',
    ) -> None:
        super().__init__()
        if tones not in TONES:
            raise NetworkError(f'unknown tones {tones!r}; choose one of: {", ".join(TONES)}')
        self.max_keypoints = max_keypoints
        self.stability_exponent = stability_exponent
        self.tones = tones
        self.options = {'stability_exponent': stability_exponent, 'tones': tones}
        self.conv1a = _unit(3, 64)
        self.conv1b = nn.Sequential(_conv3(64, 64, stride=2))
        self.bn1b = _norm(64)
        self.conv2a = _unit(64, 128)
        self.conv2b = nn.Sequential(_conv3(128, 128, stride=2))
        self.bn2b = _norm(128)
        self.conv3a = _unit(128, 256)
        self.conv3b = nn.Sequential(_conv3(256, 256))
        self.bn3b = _norm(256)
        self.conv4 = nn.Sequential(*(ResidualBlock(256) for _ in range(3)))
        self.convPa = _head(256, stride=2)
        self.convDa = _head(256, stride=1)
        self.convPb = nn.Conv2d(256, CELL * CELL + 1, 1)
        self.convDb = nn.Conv2d(256, self.descriptor_dim, 1)
        self.ConvSta = nn.Conv2d(256, len(_STABILITY), 1)

    def use_half(self) -> None:
        """Compute the maps in half precision from now on.

        What is found in them stays float32, and so do the logits that places come from.
        """
        self.half()
        self.convPb.float()

    def planes(self, image: Tensor, valid_wh: Tensor) -> Tensor:
        """Return what the network sees (B, 3, H', W') of images (B, H, W, 3) uint8."""
        if self.tones == 'imagenet':
            return normalise(image, _MEAN, _DEVIATION)
        return _ADAPTED_GAIN * adapted_tones(image, valid_wh).colors

    def dense(self, planes: Tensor) -> Sfd2Maps:
        """Return the maps of images as :meth:`planes` leaves them."""
        quarter = self.bn1b(self.conv1b(self.conv1a(planes.to(self.convDb.weight.dtype))))
        quarter = self.bn2b(self.conv2b(self.conv2a(quarter)))
        third = self.bn3b(self.conv3b(self.conv3a(quarter)))
        encoded = self.conv4(third)
        return Sfd2Maps(
            self.convPb(self.convPa(encoded).to(self.convPb.weight.dtype)),
            functional.normalize(self.convDb(self.convDa(encoded)).float(), dim=1),
            self.ConvSta(encoded).float(),
            (quarter, third),
        )

    def forward(
        self, image: Tensor, valid_wh: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Extract features of one image.

        :param image: (1, H, W, 3) RGB uint8.
        :param valid_wh: int32 (2,): width and height at the top left that are not padding.
        :returns: keypoints (K, 2) in pixels, scores (K,), descriptors (K, 128), stability (K,)
            in [0, 1] and how many there are, int32; rows from there on are zero.
        """
        _, height, width, _ = image.shape
        maps = self.dense(self.planes(image, valid_wh[None]))
        score = reliability(maps.cell_logits)[:, :, :height, :width]
        stability = expected_stability(maps.stability_logits)
        if self.stability_exponent:
            fine = functional.interpolate(
                stability, scale_factor=float(DESCRIPTOR_STRIDE), mode='bilinear'
            )
            score = score * fine[:, :, :height, :width] ** self.stability_exponent
        allowed = inside(height, width, valid_wh, _BORDER) & has_contrast(image, _RADIUS)
        peaks = torch.where(allowed, keep_maxima(score, _RADIUS), torch.zeros_like(score))
        values, places = strongest(peaks, self.max_keypoints)
        column, row = split_places(places, width)
        keypoints = torch.stack([column, row], 1) + 0.5 + quadratic_offset(score, column, row)
        on_map = keypoints / DESCRIPTOR_STRIDE
        descriptors = functional.normalize(sample_bilinear(maps.descriptors, on_map), dim=1)
        num = (values > _THRESHOLD).sum().to(torch.int32)
        return (
            clear_rows(num, keypoints),
            clear_rows(num, values),
            clear_rows(num, descriptors),
            clear_rows(num, sample_bilinear(stability, on_map)[:, 0]),
            num,
        )


class ResidualBlock(nn.Module):
    """Two 1x1 convolutions around a 3x3 one in 32 groups, added to the input (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=32, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, C, h, w) of the same shape."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(x + self.bn3(self.conv3(y)))


def reliability(cell_logits: Tensor) -> Tensor:
    """Return S (B, 1, H, W) of logits (B, 65, H/8, W/8), the pixels of a cell row by row."""
    return functional.pixel_shuffle(torch.softmax(cell_logits, 1)[:, :-1], CELL)


def expected_stability(stability_logits: Tensor) -> Tensor:
    """Return the mean stability (B, 1, h, w) over the groups that logits (B, 3, h, w) weigh."""
    weights = constants(_STABILITY, stability_logits).reshape(1, -1, 1, 1)
    return (torch.softmax(stability_logits, 1) * weights).sum(1, keepdim=True)


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def _norm(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels, affine=False), nn.ReLU())


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv3(inputs, outputs), *_norm(outputs))


def _head(channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _conv3(channels, channels, stride),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        _conv3(channels, channels),
    )

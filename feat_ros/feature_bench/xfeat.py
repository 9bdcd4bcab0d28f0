# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""XFeat as a competitor, from a file of its weights.

Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching", CVPR 2024; names of
the modules as in its published state dict. Semi-dense matching and refinement are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import pickle
from typing import Any

import numpy as np
import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.config import Config, option
from feat_ros.errors import NetworkError
from feat_ros.extractors.learned import network_input
from feat_ros.image import check_image, Image
from feat_ros.models.keypoints import inside, keep_maxima, sample_bilinear, strongest
from feat_ros.models.sfd2 import reliability
from feat_ros.types import Features

_THRESHOLD, _RADIUS, _MULTIPLE = 0.05, 2, 32
_PIXEL_SIGMA = 0.7


@dataclass(frozen=True)
class XFeatConfig(Config):
    """Options of the competitor."""

    weights: str = option('', 'file of its state dict')
    max_keypoints: int = option(2048, 'strongest keypoints kept', minimum=1)
    max_image_size: int = option(
        1024, 'longer side in pixels above which an image is scaled down first', minimum=64
    )


class XFeatExtractor:
    """See :class:`feat_ros.extractors.Extractor`.

    :raises NetworkError: the file is not XFeat's state dict.
    """

    name = 'xfeat'
    descriptor_dim = 64
    weights_sha256 = ''

    def __init__(self, config: XFeatConfig) -> None:
        self.config = config
        self._network = XFeat()
        try:
            state = torch.load(Path(config.weights), map_location='cpu', weights_only=True)
            missing, unexpected = self._network.load_state_dict(state, strict=False)
        except (OSError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
            raise NetworkError(f'{config.weights} cannot be read as XFeat: {error}') from None
        # Only its matcher's refinement, which is not used here, may be over.
        if missing or any(not name.startswith('fine_matcher') for name in unexpected):
            raise NetworkError(f'{config.weights} is not the state dict of XFeat')
        self._network.eval()

    def __call__(self, image_rgb: Image) -> Features:
        """Extract features of an RGB (H, W, 3) uint8 image."""
        image = check_image(image_rgb)
        padded, valid_wh = network_input(image, self.config.max_image_size, _MULTIPLE, None)
        with torch.inference_mode():
            planes = torch.from_numpy(padded).permute(2, 0, 1)[None].float()
            descriptors, logits, heat = self._network(planes)
            score = reliability(logits)
            height, width = score.shape[2:]
            allowed = inside(height, width, torch.tensor(valid_wh), 4) & (score > _THRESHOLD)
            peaks = torch.where(allowed, keep_maxima(score, _RADIUS), 0.0)
            fine = functional.interpolate(heat, size=(height, width), mode='bilinear')
            values, places = strongest(peaks * fine, self.config.max_keypoints)
            num = int((values > 0).sum())
            row = torch.div(places[:num], width, rounding_mode='floor')
            points = torch.stack([places[:num] - row * width, row], 1) + 0.5
            rows = functional.normalize(sample_bilinear(descriptors, points / 8), dim=1)
        to_original = np.array(image.shape[1::-1], np.float32) / np.array(valid_wh, np.float32)
        sigma = np.float32(_PIXEL_SIGMA) * to_original.mean()
        return Features(
            keypoints=points.numpy().astype(np.float32) * to_original.astype(np.float32),
            scores=values[:num].numpy(),
            descriptors=rows.numpy(),
            stability=np.ones(num, np.float32),
            pixel_sigma=np.full(num, sigma, np.float32),
        )


class XFeat(nn.Module):
    """An image (1, 3, H, W) to descriptors (1, 64, H/8, W/8), logits (1, 65, ...), heat."""

    def __init__(self) -> None:
        super().__init__()
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = _units((1, 4, 3, 1), (4, 8, 3, 2), (8, 8, 3, 1), (8, 24, 3, 2))
        self.block2 = _units((24, 24, 3, 1), (24, 24, 3, 1))
        self.block3 = _units((24, 64, 3, 2), (64, 64, 3, 1), (64, 64, 1, 1))
        self.block4 = _units((64, 64, 3, 2), (64, 64, 3, 1), (64, 64, 3, 1))
        self.block5 = _units((64, 128, 3, 2), (128, 128, 3, 1), (128, 128, 3, 1), (128, 64, 1, 1))
        self.block_fusion = _units((64, 64, 3, 1), (64, 64, 3, 1))
        self.block_fusion.append(nn.Conv2d(64, 64, 1))
        self.heatmap_head = _units((64, 64, 1, 1), (64, 64, 1, 1))
        self.heatmap_head.append(nn.Conv2d(64, 1, 1))
        self.keypoint_head = _units((64, 64, 1, 1), (64, 64, 1, 1), (64, 64, 1, 1))
        self.keypoint_head.append(nn.Conv2d(64, 65, 1))

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit descriptors, logits of the 64 pixels of a cell and none, and reliability."""
        grey = functional.instance_norm(planes.mean(1, keepdim=True))
        quarter = self.block2(self.block1(grey) + self.skip1(grey))
        eighth = self.block3(quarter)
        sixteenth = self.block4(eighth)
        coarse = [sixteenth, self.block5(sixteenth)]
        size = eighth.shape[2:]
        fused = self.block_fusion(
            eighth + sum(functional.interpolate(part, size, mode='bilinear') for part in coarse)
        )
        heat = torch.sigmoid(self.heatmap_head(fused))
        logits = self.keypoint_head(functional.pixel_unshuffle(grey, 8))
        return functional.normalize(fused, dim=1), logits, heat


class _Unit(nn.Module):
    """A convolution, its statistics, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(outputs, affine=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


def _units(*shapes: tuple[int, int, int, int]) -> nn.Sequential:
    return nn.Sequential(*(_Unit(*shape) for shape in shapes))

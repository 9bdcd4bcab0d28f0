# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SAMFeat: a small VGG that a segmentation model has taught; the teacher is not needed to run it.

Wu et al., "Segment Anything Model is a Good Teacher for Local Feature Learning", IEEE TIP 2025,
section III. Names follow the published state dict, which loads strictly. Where the paper gives no
numbers they are the authors': 0.1 to 0.4 for the fused heat maps, 0.01 in the edge attention,
whose softmax is over the rows of each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.models.keypoints import (
    clear_rows,
    has_contrast,
    inside,
    keep_maxima,
    quadratic_offset,
    sample_bilinear,
    split_places,
    strongest,
)
from feat_ros.models.sfd2_lite import tones

DESCRIPTOR_DIM = 128
# Descriptors, attention and edges lie on a map of a quarter of the size.
STRIDE = 4
# Of tones: a graph exported for any size does not pad.
_MULTIPLE = 32
_FEATURES = 64 + 64 + 128 + 128
_FUSED = (0.1, 0.2, 0.3, 0.4)
_EDGE_SCALE = 0.01
# As the authors extract: radius of non-maximum suppression and border, in pixels.
_RADIUS, _BORDER = 4, 4
_THRESHOLD = 0.005
# Makes the deviation of adapted tones about 0.5, as that of colours between -1 and 1.
_ADAPTED_GAIN = 2.5


class SamFeatMaps(NamedTuple):
    """What the network says of every place.

    ================  ===================  ==================================================
    ``heat``          (B, 1, H, W)         logits of a keypoint
    ``descriptors``   (B, 128, H/4, W/4)   before they are made unit length
    ``attention``     (B, 1, H/4, W/4)     above zero: how much a descriptor is worth
    ``edge_logits``   (B, 1, H/4, W/4)     of the edge head
    ``distilled``     (B, 256, H/8, W/8)   what is compared with the teacher's features
    ================  ===================  ==================================================
    """

    heat: Tensor
    descriptors: Tensor
    attention: Tensor
    edge_logits: Tensor
    distilled: Tensor


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class EdgeAttention(nn.Module):
    """Section III-D.3 and figure 6: features of edges attend to each other and are added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels, 1)
        self.key_conv = nn.Conv2d(channels, channels, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor, edge: Tensor) -> Tensor:
        """Return features (B, C, h, w) guided by edges (B, 1, h, w) of 0 to 1."""
        edges = features * edge
        query, key, value = self.query_conv(edges), self.key_conv(edges), self.value_conv(edges)
        weight = torch.softmax(query @ key.transpose(2, 3) * _EDGE_SCALE, -1)
        return torch.as_tensor(weight @ value + features)


class SamFeat(nn.Module):
    """SAMFeat, 2,109,652 parameters.

    :param max_keypoints: K.
    :param guided: whether edges guide detection and description; without them and without the
        teacher's losses it is the base that the paper compares with.
    :param attention: what the attention is the mean of: ``features`` before they are guided, as
        the paper says, or ``guided``, as the published weights have it.
    :param colors: what the network sees: ``adapted`` to the light, as our weights do, or
        ``plain``, -1 to 1, as the published ones.
    :cvar size_multiple: what width and height of the image are best a multiple of.
    """

    descriptor_dim = DESCRIPTOR_DIM
    size_multiple = _MULTIPLE
    published_options: Mapping[str, Any] = {'attention': 'guided', 'colors': 'plain'}

    def __init__(
        self,
        max_keypoints: int = 2048,
        guided: bool = True,
        attention: str = 'features',
        colors: str = 'adapted',
    ) -> None:
        super().__init__()
        self.max_keypoints, self.guided = max_keypoints, guided
        self.attention, self.colors = attention, colors
        self.options = {'guided': guided, 'attention': attention, 'colors': colors}
        for number, share in enumerate(_FUSED, 1):
            self.register_parameter(f'fuse_weight_{number}', nn.Parameter(torch.tensor([share])))
        self.conv1a, self.conv1b = _conv3(3, 64), _conv3(64, 64)
        self.conv2a, self.conv2b = _conv3(64, 64), _conv3(64, 64)
        self.conv3a, self.conv3b = _conv3(64, 128), _conv3(128, 128)
        self.conv4a, self.conv4b = _conv3(128, 128), _conv3(128, 128)
        self.dist_conv_feat, self.dist_conv_fushion = _conv3(128, 256), _conv3(256, 128)
        for number, channels in enumerate((64, 64, 128, 128), 1):
            self.add_module(f'heatmap{number}', _conv3(channels, 1))
        self.scalemap = _conv3(1, 1)
        self.conv_des = _conv3(_FEATURES, DESCRIPTOR_DIM)
        # The published weights have this layer and their program does not use it.
        self.conv_det, self.conv_edg = (nn.Conv2d(_FEATURES, 1, 1) for _ in range(2))
        self.egde_module = EdgeAttention(_FEATURES)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode='fan_out', nonlinearity='relu')
                nn.init.zeros_(layer.bias)

    def use_half(self) -> None:
        """Compute the maps in half precision from now on."""
        self.half()

    def planes(self, image: Tensor, valid_wh: Tensor) -> Tensor:
        """Return what the network sees (B, 3, H', W') of images (B, H, W, 3) uint8."""
        if self.colors == 'plain':
            return image.float().permute(0, 3, 1, 2) / 127.5 - 1
        return _ADAPTED_GAIN * tones(image, valid_wh).colors

    def dense(self, planes: Tensor) -> SamFeatMaps:
        """Return the maps of images as :meth:`planes` leaves them; sides are multiples of 16."""
        size = planes.shape[2:]
        x = planes.to(self.conv1a.weight.dtype)
        c1 = torch.relu(self.conv1b(torch.relu(self.conv1a(x))))
        c2 = torch.relu(self.conv2b(torch.relu(self.conv2a(functional.max_pool2d(c1, 2)))))
        c3 = torch.relu(self.conv3b(torch.relu(self.conv3a(functional.max_pool2d(c2, 2)))))
        c4 = torch.relu(self.conv4b(torch.relu(self.conv4a(functional.max_pool2d(c3, 2)))))
        distilled = self.dist_conv_feat(c4)
        c4 = c4 + self.dist_conv_fushion(distilled)

        quarter = c3.shape[2:]
        features = torch.cat([_resize(each, quarter) for each in (c1, c2, c3, c4)], 1)
        edge_logits = self.conv_edg(features)
        guided = features
        if self.guided:
            edge = torch.sigmoid(edge_logits)
            c3 = c3 * edge + c3
            guided = self.egde_module(features, edge)
        heat = sum(
            getattr(self, f'fuse_weight_{number}')
            * _resize(getattr(self, f'heatmap{number}')(each), size)
            for number, each in enumerate((c1, c2, c3, c4), 1)
        )
        seen = guided if self.attention == 'guided' else features
        attention = functional.softplus(self.scalemap(seen.mean(1, keepdim=True)))
        parts = heat, self.conv_des(guided), attention, edge_logits, distilled
        return SamFeatMaps(*(part.float() for part in parts))

    def forward(
        self, image: Tensor, valid_wh: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Extract features of one image.

        :param image: (1, H, W, 3) RGB uint8.
        :param valid_wh: int32 (2,): width and height at the top left that are not padding.
        :returns: keypoints (K, 2) in pixels, scores (K,), descriptors (K, 128) unit length,
            stability (K,), which is 1, and how many there are; rows from there on are zero.
        """
        _, height, width, _ = image.shape
        maps = self.dense(self.planes(image, valid_wh[None]))
        heat = maps.heat[:, :, :height, :width]
        score = torch.sigmoid(heat)
        allowed = inside(height, width, valid_wh, _BORDER) & has_contrast(image, _RADIUS)
        peaks = torch.where(allowed, keep_maxima(score, _RADIUS), torch.zeros_like(score))
        values, places = strongest(peaks, self.max_keypoints)
        column, row = split_places(places, width)
        keypoints = torch.stack([column, row], 1) + 0.5 + quadratic_offset(heat, column, row)
        rows = sample_bilinear(maps.descriptors, keypoints / STRIDE)
        num = (values > _THRESHOLD).sum().to(torch.int32)
        return (
            clear_rows(num, keypoints),
            clear_rows(num, values),
            clear_rows(num, functional.normalize(rows, dim=1)),
            clear_rows(num, torch.ones_like(values)),
            num,
        )


def _resize(values: Tensor, size: Any) -> Tensor:
    if values.shape[2:] == size:
        return values
    return functional.interpolate(values, size, mode='bilinear', align_corners=False)

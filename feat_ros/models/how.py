# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""HOW: local descriptors for retrieval that are learned from pairs of images alone.

Tolias, Jenicek and Chum, "Learning and aggregating deep local descriptors for instance-level
recognition", ECCV 2020, sections 4 and 5.2. Names follow the published state dicts, of which both
layouts load strictly. What the paper leaves open is as in the authors' program: the attention is
floored, smoothing leaves out what is beyond the border, descriptors keep their length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.models.keypoints import clear_rows, normalise, split_places, strongest, take_pixels
from feat_ros.models.sfd2_lite import Backbone, tones

DESCRIPTOR_DIM = 128
# Of ImageNet, as the authors have it.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Section 5.2: half octaves from twice the size to a quarter.
PAPER_SCALES = (2.0, 1.414, 1.0, 0.707, 0.5, 0.353, 0.25)
_FLOOR = 1e-10


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: He et al., "Deep residual learning", CVPR 2016."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
    )


def _resnet(block: Any, depths: Sequence[int]) -> nn.Sequential:
    """Return the layers of a ResNet up to its last ReLU, numbered as torchvision's children."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    before = 64
    for number, depth in enumerate(depths):
        width, blocks = 64 << number, []
        for place in range(depth):
            blocks.append(block(before, width, 2 if number and not place else 1))
            before = width * block.expansion
        layers.append(nn.Sequential(*blocks))
    return nn.Sequential(*layers)


class How(nn.Module):
    """From an image to its strongest local descriptors for retrieval, in one graph.

    ===============  ===================  ==================================================
    ``image``        (1, H, W, 3) uint8   RGB
    ``valid_wh``     (2,) int32           width and height that are not padding
    ``keypoints``    (K, 2) float32       centres of the cells, network pixels
    ``scores``       (K,) float32         attention, less where it is weaker
    ``descriptors``  (K, 128) float32     whitened; not of unit length
    ``stability``    (K,) float32         1
    ``num``          () int32             how many there are; rows from it on are zero
    ===============  ===================  ==================================================

    :param max_keypoints: n of section 4.1, over all scales.
    :param scales: of the image, where it is tested.
    :cvar stride: pixels of a cell.
    :cvar channels: D of the features before they are reduced.
    """

    descriptor_dim = DESCRIPTOR_DIM
    size_multiple = 32
    published_options: Mapping[str, Any] = {}
    stride: int
    channels: int

    def __init__(
        self, max_keypoints: int = 1000, scales: Sequence[float] = PAPER_SCALES
    ) -> None:  # fmt: skip
        super().__init__()
        self.max_keypoints = max_keypoints
        self.scales = tuple(scales)
        self.options = {'scales': list(scales)}
        self.features = self._features()
        self.dim_reduction = nn.Conv2d(self.channels, DESCRIPTOR_DIM, 1)
        self.register_load_state_dict_pre_hook(_rename)
        self._dense_type = torch.float32

    def _features(self) -> nn.Module:
        raise NotImplementedError

    def prepare(self, image: Tensor, valid_wh: Tensor) -> Tensor:
        """Return what the features are computed of, (B, 3, H, W), 0 beyond ``valid_wh``."""
        planes = normalise(image, _MEAN, _DEVIATION)
        return planes * _valid(planes, valid_wh)

    def use_half(self) -> None:
        """Compute the features in half precision from now on."""
        self.features.half()
        self._dense_type = torch.float16

    def local(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Return whitened descriptors o(u) (B, 128, h, w) and their attention w(u) (B, 1, h, w).

        Section 4.1: attention is the length of the feature, descriptors are smoothed first.
        """
        found = self.features(planes.to(self._dense_type)).float()
        attention = (found.square().sum(1, keepdim=True) + _FLOOR).sqrt()
        smooth = functional.avg_pool2d(found, 3, 1, 1, count_include_pad=False)
        return self.dim_reduction(smooth), attention

    def describe(self, planes: Tensor) -> Tensor:
        """Return the global descriptor Z (B, 128) of equation 8, which is what is trained."""
        descriptors, attention = self.local(planes)
        return functional.normalize((descriptors * attention).sum((2, 3)), dim=1)

    def forward(
        self, image: Tensor, valid_wh: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See the class."""
        planes = self.prepare(image, valid_wh)
        valid = _valid(planes, valid_wh)
        parts = [self._at_scale(planes, valid, scale) for scale in self.scales]
        rows, strengths, places = (torch.cat(part) for part in zip(*parts, strict=True))
        scores, best = strongest(strengths, self.max_keypoints)
        num = (scores > 0).sum().to(torch.int32)
        ones = torch.ones_like(scores)
        return (
            clear_rows(num, places.index_select(0, best)),
            clear_rows(num, scores),
            clear_rows(num, rows.index_select(0, best)),
            clear_rows(num, ones),
            num,
        )

    def _at_scale(
        self, planes: Tensor, valid: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return descriptors (n, 128), attention (n,) and places (n, 2) of all cells."""
        height, width = planes.shape[2:]
        if scale != 1:
            planes = functional.interpolate(
                planes, scale_factor=scale, mode='bilinear', align_corners=False,
                recompute_scale_factor=True,
            )  # fmt: skip
        descriptors, attention = self.local(planes)
        rows, columns = descriptors.shape[2:]
        cells = torch.arange(rows * columns, device=planes.device)
        column, row = split_places(cells, columns)
        places = torch.stack(
            [(column + 0.5) * (width / columns), (row + 0.5) * (height / rows)], 1
        ).to(torch.float32)
        x, y = places.to(torch.int64).unbind(1)
        strength = attention.reshape(-1) * take_pixels(valid, x, y)[:, 0]
        return descriptors[0].flatten(1).T, strength, places


def _valid(planes: Tensor, valid_wh: Tensor) -> Tensor:
    """(1, 1, H, W): 1 where there is an image, 0 where there is padding."""
    x = torch.arange(planes.shape[3], device=planes.device) < valid_wh[0]
    y = torch.arange(planes.shape[2], device=planes.device) < valid_wh[1]
    return (y[:, None] & x[None, :])[None, None].to(torch.float32)


def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the entries of old checkpoints, whose reduction was called whiten, their new names."""
    for name in ('weight', 'bias'):
        old = state.pop(f'{prefix}whiten.{name}', None)
        if old is not None:
            wanted = getattr(module.get_submodule('dim_reduction'), name)
            state[f'{prefix}dim_reduction.{name}'] = old.reshape(wanted.shape)


class HowR18(How):
    """HOW on ResNet-18, 11.24 M parameters."""

    stride, channels = 32, 512

    def _features(self) -> nn.Module:
        return _resnet(_BasicBlock, (2, 2, 2, 2))


class HowR50(How):
    """HOW on ResNet-50 without its last block, 8.67 M parameters."""

    stride, channels = 16, 1024

    def _features(self) -> nn.Module:
        return _resnet(_Bottleneck, (3, 4, 6))


class HowSfd2(How):
    """HOW on the encoder of ``sfd2_lite``: no second backbone on the robot.

    The encoder is taken as it was trained for local features and stays; two convolutions on its
    map at 1/16 of the resolution learn what retrieval needs.
    """

    stride, channels = 16, 256

    def __init__(
        self, max_keypoints: int = 1000, scales: Sequence[float] = (1.0, 0.707, 0.5)
    ) -> None:  # fmt: skip
        super().__init__(max_keypoints, scales)

    def prepare(self, image: Tensor, valid_wh: Tensor) -> Tensor:
        """Return the tones of an image, as the encoder knows them."""
        return tones(image, valid_wh.expand(len(image), 2)).colors

    def _features(self) -> nn.Module:
        return _Sfd2Features()


class _Sfd2Features(nn.Module):
    """The encoder up to 1/16 and the head on it; tones (B, 3, H, W) to (B, 256, H/16, W/16)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(list(Backbone().stages)[:4])
        self.head = nn.Sequential(
            nn.Conv2d(96, 192, 3, padding=1), nn.ReLU(),
            nn.Conv2d(192, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.encoder:
            x = stage(x)
        return torch.as_tensor(self.head(x))


def whitening(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return P (128, D) and -P m (128,) of PCA-whitening, section 4.1, without shrinkage.

    :param features: (N, D) local features of training images, smoothed.
    """
    mean = features.mean(0)
    centered = (features - mean).double()
    covariance = centered.T @ centered / len(features)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:DESCRIPTOR_DIM], vectors.flip(1)[:, :DESCRIPTOR_DIM]
    # Directions in which nothing varies are left at rest, not blown up.
    scale = torch.where(values > 1e-9 * values[0], values.clamp(min=1e-30).rsqrt(), 0.0)
    projection = (vectors * scale).T.to(features.dtype)
    return projection, -projection @ mean


def contrastive_loss(anchor: Tensor, positive: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Return the loss of tuples of global descriptors, section 4.1.

    ``|z_a - z_p|^2 + sum_n max(0, margin - |z_a - z_n|)^2``, each halved as in the authors'
    program, summed over the negatives and averaged over the tuples.

    :param anchor: (T, D); with ``positive`` (T, D) and ``negatives`` (T, N, D).
    """
    apart = (anchor - positive).square().sum(1)
    # The root of zero has no slope.
    distance = ((anchor[:, None] - negatives).square().sum(2) + 1e-12).sqrt()
    pushed = (margin - distance).clamp(min=0).square().sum(1)
    return (0.5 * (apart + pushed)).mean()

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""HyNet: descriptors of patches of 32x32 pixels.

Tian, Barroso-Laguna, Ng, Balntas and Mikolajczyk, "HyNet: Learning local descriptor with hybrid
similarity measure and triplet loss", NeurIPS 2020, section 3.3 and figure 3. Names follow the
published state dict. The paper describes patches and says nothing of where they come from: points
are extrema of our scale space, patches are cut at their scale and turned to their orientation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.errors import NetworkError
from feat_ros.models.keypoints import clear_rows, constants, TOP_K_LIMIT
from feat_ros.models.scale_space import ScaleSpace, top_k
from feat_ros.models.sfd2_lite import tones

PATCH_SIZE, DESCRIPTOR_DIM = 32, 128
# Sides of a patch, and of the window whose centroid is its orientation, in sigmas of the point.
_PATCH_SIGMAS, _TURN_SIGMAS = 16.0, 12.0
_TURN_SIZE = 12
# Grey levels of the centroid's moment below which it points nowhere.
_FLAT = 1e-3
_LEVELS = 5
_LUMA = (0.299, 0.587, 0.114)
_MULTIPLE = 32
NORMS = ('response', 'batch')


class Frn(nn.Module):
    """Filter response normalisation, equation 8: each channel by the root of its mean square."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer('eps', torch.tensor([1e-6]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, h, w)."""
        power = x.square().mean((2, 3), keepdim=True)
        return x * torch.rsqrt(power + self.eps.abs()) * self.weight + self.bias


class Tlu(nn.Module):
    """Thresholded linear unit: max(x, tau) with a tau to each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(-torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Threshold (N, C, h, w)."""
        return torch.maximum(x, self.tau)


class PatchNetwork(nn.Module):
    """Patches (N, 1, 32, 32) of 0 to 255 to descriptors, 1,336,355 parameters.

    :param norm: ``response`` as the paper; ``batch`` for batch norm and ReLU in its place, the
        network of HardNet that it is compared with.
    """

    def __init__(self, norm: str = 'response') -> None:
        super().__init__()
        if norm not in NORMS:
            raise NetworkError(f'unknown norm {norm!r}; choose one of: {", ".join(NORMS)}')
        self.options = {'norm': norm}

        def after(channels: int) -> list[nn.Module]:
            if norm == 'response':
                return [Frn(channels), Tlu(channels)]
            return [nn.BatchNorm2d(channels, affine=False), nn.ReLU()]

        first = after(1) if norm == 'response' else [nn.InstanceNorm2d(1), nn.Identity()]
        self.layer1 = nn.Sequential(*first, nn.Conv2d(1, 32, 3, padding=1), *after(32))
        self.layer2 = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), *after(32))
        self.layer3 = nn.Sequential(nn.Conv2d(32, 64, 3, 2, padding=1), *after(64))
        self.layer4 = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), *after(64))
        self.layer5 = nn.Sequential(nn.Conv2d(64, 128, 3, 2, padding=1), *after(128))
        self.layer6 = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), *after(128))
        self.layer7 = nn.Sequential(
            nn.Dropout(0.3),
            nn.Conv2d(128, DESCRIPTOR_DIM, 8, bias=False),
            nn.BatchNorm2d(DESCRIPTOR_DIM, affine=False),
        )

    def raw(self, patches: Tensor) -> Tensor:
        """Return descriptors (N, 128) before they are made unit length, which equation 5 needs."""
        x = patches
        for layer in (
            self.layer1, self.layer2, self.layer3, self.layer4, self.layer5, self.layer6,
            self.layer7,
        ):  # fmt: skip
            x = layer(x)
        return x.flatten(1)

    def describe(self, patches: Tensor) -> Tensor:
        """Return unit descriptors (N, 128)."""
        return functional.normalize(self.raw(patches), dim=1)


def luma(images: Tensor) -> Tensor:
    """Return the grey (B, 1, H, W), 0 to 255, of RGB uint8 images (B, H, W, 3)."""
    planes = images.float().permute(0, 3, 1, 2)
    return (planes * constants(_LUMA, planes)[None, :, None, None]).sum(1, keepdim=True)


class Pyramid:
    """Grey images (B, 1, H, W), each level half the size of the one before, in one list of pixels.

    A sample is taken where pixels are as far apart as samples are, so that nothing is missed
    between them. H and W are multiples of 32.
    """

    def __init__(self, grey: Tensor) -> None:
        levels = [grey]
        for _ in range(_LEVELS - 1):
            levels.append(functional.avg_pool2d(levels[-1], 2))
        self._pixels = torch.cat([level.reshape(-1) for level in levels])
        device = grey.device

        def sizes(axis: int) -> Tensor:
            full = torch.full((1,), grey.shape[axis], dtype=torch.int64, device=device)
            scale = torch.full((1,), 2, dtype=torch.int64, device=device)
            return torch.cat([full // scale**k for k in range(_LEVELS)])

        self._height, self._width = sizes(2), sizes(3)
        pixels = self._height * self._width
        ends = torch.cumsum(pixels * grey.shape[0], 0)
        self._starts = ends - pixels * grey.shape[0]

    def sample(self, x: Tensor, y: Tensor, spacing: Tensor, image: Tensor) -> Tensor:
        """Return bilinear samples (M, n) at places (M, n) in pixels, centres at +0.5.

        :param spacing: (M,) pixels between the samples of a row.
        :param image: (M,) int64, which of the B.
        """
        level = torch.floor(torch.log2(spacing.clamp(min=1)) + 0.5).clamp(max=_LEVELS - 1).long()
        height, width, start = (
            each.index_select(0, level)[:, None]
            for each in (self._height, self._width, self._starts)
        )
        scale = torch.exp2(level.to(x.dtype))[:, None]
        x = torch.minimum((x / scale - 0.5).clamp(min=0), (width - 1).to(x.dtype))
        y = torch.minimum((y / scale - 0.5).clamp(min=0), (height - 1).to(y.dtype))
        column, row = x.long(), y.long()
        right, down = x - column, y - row
        across = torch.minimum(column + 1, width - 1) - column
        first = start + image[:, None] * height * width
        above = first + row * width + column
        below = first + torch.minimum(row + 1, height - 1) * width + column

        def pixel(at: Tensor) -> Tensor:
            return self._pixels.index_select(0, at.reshape(-1)).reshape(at.shape)

        top = pixel(above) * (1 - right) + pixel(above + across) * right
        bottom = pixel(below) * (1 - right) + pixel(below + across) * right
        return top * (1 - down) + bottom * down


def _grid(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y (size * size,) of the cells of a square of side 1 about the origin."""
    at = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size - 0.5
    x = at[None, :].expand(size, size).reshape(-1)
    y = at[:, None].expand(size, size).reshape(-1)
    return x, y


def orientations(pyramid: Pyramid, xy: Tensor, sigma: Tensor, image: Tensor) -> Tensor:
    """Return the direction (M, 2), a unit vector, from each point to the centroid around it.

    Rosin, "Measuring corner properties", CVIU 1999, under a Gaussian window. A vector and no
    angle, which needs no trigonometry in the graph; where all is flat it is the image's x axis.
    """
    x, y = _grid(_TURN_SIZE, xy)
    side = _TURN_SIGMAS * sigma[:, None]
    values = pyramid.sample(
        xy[:, :1] + side * x, xy[:, 1:] + side * y, _TURN_SIGMAS * sigma / _TURN_SIZE, image
    )
    weight = torch.exp(-0.5 * (x * x + y * y) / 0.25**2)
    values = (values - values.mean(1, keepdim=True)) * weight
    across, down = (values * x).sum(1), (values * y).sum(1)
    length = (across * across + down * down).sqrt()
    is_flat = length < _FLAT
    safe = torch.where(is_flat, torch.ones_like(length), length)
    cos = torch.where(is_flat, torch.ones_like(length), across / safe)
    return torch.stack([cos, down / safe], 1)


def cut_patches(
    pyramid: Pyramid, xy: Tensor, sigma: Tensor, axis: Tensor, image: Tensor
) -> Tensor:
    """Return patches (M, 1, 32, 32) about points, all in one warp.

    :param xy: (M, 2) pixels, with the scale ``sigma`` (M,) of each: a patch is 16 sigmas wide.
    :param axis: (M, 2) unit vectors, where the patch's x axis points.
    :param image: (M,) int64, which of the images.
    """
    x, y = _grid(PATCH_SIZE, xy)
    side = _PATCH_SIGMAS * sigma[:, None]
    cos, sin = axis[:, :1], axis[:, 1:]
    values = pyramid.sample(
        xy[:, :1] + side * (cos * x - sin * y), xy[:, 1:] + side * (sin * x + cos * y),
        _PATCH_SIGMAS * sigma / PATCH_SIZE, image,
    )  # fmt: skip
    return values.reshape(-1, 1, PATCH_SIZE, PATCH_SIZE)


class HyNet(PatchNetwork):
    """From an image to keypoints with HyNet descriptors, in one graph.

    ===============  ===================  ==================================================
    ``image``        (1, H, W, 3) uint8   RGB
    ``valid_wh``     (2,) int32           width and height that are not padding
    ``keypoints``    (K, 2) float32       network pixels, centres at +0.5, strongest first
    ``scores``       (K,) float32         response of the scale space
    ``descriptors``  (K, 128) float32     unit length
    ``stability``    (K,) float32         1: it knows nothing of what it sees
    ``num``          () int32             how many there are; rows from it on are zero
    ===============  ===================  ==================================================

    39 million products a patch: as many keypoints as a processor has time for.
    """

    descriptor_dim = DESCRIPTOR_DIM
    size_multiple = _MULTIPLE
    published_options: Mapping[str, Any] = {'norm': 'response'}

    def __init__(self, max_keypoints: int = 1024, norm: str = 'response') -> None:
        super().__init__(norm)
        self.max_keypoints = max_keypoints
        self.detector = ScaleSpace()

    def use_half(self) -> None:
        """Refuse: sums over patches of 0 to 255 do not fit half precision.

        :raises NetworkError: always.
        """
        raise NetworkError("'hynet' runs in single precision only: leave precision at fp32")

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
        xy, sigma = (each[0].index_select(0, chosen) for each in (points.xy, points.sigma))
        grey = luma(image)
        padding = (0, -image.shape[2] % _MULTIPLE, 0, -image.shape[1] % _MULTIPLE)
        if any(padding):
            grey = functional.pad(grey, padding, mode='replicate')
        pyramid = Pyramid(grey)
        first = torch.zeros_like(response, dtype=torch.int64)
        # Where there is no point any patch will do; its row is cleared.
        sigma = sigma.clamp(min=1.0)
        axis = orientations(pyramid, xy, sigma, first)
        descriptors = self.describe(cut_patches(pyramid, xy, sigma, axis, first))
        num = (response > 0).sum().to(torch.int32)
        return (
            clear_rows(num, xy),
            clear_rows(num, response),
            clear_rows(num, descriptors),
            clear_rows(num, torch.ones_like(response)),
            num,
        )

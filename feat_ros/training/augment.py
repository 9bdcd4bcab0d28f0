# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What light and camera do to pictures: shadows, night, blur, noise, compression.

Whole batches (V, 3, S, S) at once, on the device they are on. Random numbers come from the
generator that is given and from nowhere else.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.training.configs import LightConfig

# A power is near enough to sRGB's curve.
_GAMMA = 2.2
_LAMPS, _CORNERS = 3, 6
_KERNEL = 13
# Quantisation of luma and chroma at quality 50: ITU-T T.81, annex K, tables K.1 and K.2.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip
_YCC_FROM_RGB = (
    (0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)
)  # fmt: skip


class Dice:
    """Random numbers of a batch: one row a view, on the device of a generator."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self._generator = count, generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return (V, *shape) between two numbers."""
        device = self._generator.device
        found = torch.rand(self.count, *shape, generator=self._generator, device=device)
        return low + (high - low) * found

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return (V, *shape) between two numbers above zero, even in the logarithm."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        """Return (V, *shape) of standard deviation 1."""
        device = self._generator.device
        return torch.randn(self.count, *shape, generator=self._generator, device=device)

    def chance(self, share: float) -> Tensor:
        """Return (V,) bool, true in a share of the views."""
        return self.uniform(0.0, 1.0) < share


def change_light(
    images: Tensor, config: LightConfig, generator: torch.Generator, may_be_night: Tensor
) -> Tensor:
    """Return views in other light, through other cameras.

    :param images: (V, 3, S, S) float32 of 0 to 255.
    :param may_be_night: (V,) bool.
    :returns: (V, 3, S, S) whole numbers of 0 to 255, float32.
    """
    dice = Dice(len(images), generator)
    light = (images.clamp(0, 255) / 255) ** _GAMMA
    gain = torch.exp(0.08 * dice.normal(3) + dice.uniform(-0.6, 0.5, 1))
    light = light * gain[..., None, None]
    light = light * _shadows(images.shape[-1], config, dice)
    is_night = dice.chance(config.night_share) & may_be_night
    light, lift = _nights(light, config, dice, is_night)
    light = _blur(light, config, dice)
    electrons = torch.where(is_night, dice.log_uniform(8e2, 1e4), dice.log_uniform(2e3, 3e4))
    light = _expose(light, electrons, torch.where(is_night, 3.0, 2.0), dice)
    values = (light * _wide(lift)).clamp(0, 1) ** (1 / _GAMMA)
    # How cameras render tones differs.
    low, high, power = dice.uniform(0, 0.08), dice.uniform(0.9, 1.0), dice.uniform(-0.35, 0.35)
    toned = _wide(low) + _wide(high - low) * values ** _wide(power.exp())
    values = torch.where(_wide(is_night), values, toned)
    values = torch.round(255 * values)
    packed = jpeg(values, torch.floor(dice.uniform(35, 92)))
    return torch.where(_wide(dice.chance(config.jpeg_share)), packed, values)


def _wide(values: Tensor) -> Tensor:
    """(V,) as (V, 1, 1, 1)."""
    return values[:, None, None, None]


def _grid(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (1, 1, S) and y (1, S, 1) of pixels, as shares of the side."""
    at = (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) / size
    return at[None, None, :], at[None, :, None]


def _expose(light: Tensor, electrons: Tensor, read_noise: Tensor, dice: Dice) -> Tensor:
    """Add photon and read noise to linear light."""
    variance = light.clamp(min=0) / _wide(electrons) + _wide((read_noise / electrons) ** 2)
    return light + variance.sqrt() * dice.normal(*light.shape[1:])


def _nights(
    light: Tensor, config: LightConfig, dice: Dice, is_night: Tensor
) -> tuple[Tensor, Tensor]:
    """Light of a night where it is one, and how much the camera lifts it after taking it (V,)."""
    x, y = _grid(light.shape[-1], light)
    share = dice.log_uniform(config.darkest, config.brightest)
    field = _wide(share).expand(-1, 3, 1, 1)
    glare = torch.zeros_like(field)
    lamps = torch.floor(dice.uniform(0, _LAMPS + 1))
    for lamp in range(_LAMPS):
        is_lit = (lamps > lamp).float()
        at = dice.uniform(-0.2, 1.2, 2)
        reach = dice.uniform(0.15, 0.6)
        color = dice.uniform(0.0, 1.0, 3)
        color = torch.stack(
            [torch.ones_like(reach), 0.6 + 0.4 * color[:, 1], 0.3 + 0.7 * color[:, 2]], 1
        )[..., None, None]
        apart = (x - at[:, 0, None, None]) ** 2 + (y - at[:, 1, None, None]) ** 2
        distance = apart / reach[:, None, None] ** 2
        lit = 1 / (1 + 4 * distance)
        strength = share * dice.uniform(0.0, 2.5).exp() * is_lit
        field = field + (_wide(strength) * (lit * lit)[:, None]) * color
        spot = torch.exp(-apart / dice.uniform(0.01, 0.05)[:, None, None] ** 2)
        glow = dice.uniform(0.2, 1.5) * is_lit * dice.chance(0.5)
        glare = glare + (_wide(glow) * (spot + 0.02 * lit)[:, None]) * color
    dark = light * field + glare * _wide((4 * share).clamp(max=1.0))
    # Automatic exposure lifts some of the darkness, and the noise with it.
    lift = torch.exp(dice.uniform(0.0, 0.6) * -share.log())
    lift = torch.where(dice.chance(0.5) & is_night, lift, torch.ones_like(lift))
    return torch.where(_wide(is_night), dark, light), lift


def _shadows(size: int, config: LightConfig, dice: Dice) -> Tensor:
    """Factors (V, 1, S, S) on the light: a polygon in the shade, with a soft border."""
    corners = dice.uniform(-0.3, 1.3, _CORNERS, 2)
    # Corners beyond a polygon's number fall onto its first.
    number = torch.floor(dice.uniform(3, _CORNERS + 1))
    order = torch.arange(_CORNERS, device=corners.device)
    corners = torch.where((order < number[:, None])[..., None], corners, corners[:, :1])
    x, y = _grid(size, corners)
    inside = torch.zeros(dice.count, size, size, dtype=torch.bool, device=corners.device)
    for k in range(_CORNERS):
        (x1, y1), (x2, y2) = (
            corners[:, each % _CORNERS, :, None, None].unbind(1) for each in (k, k + 1)
        )
        crossing = x1 + (y - y1) * (x2 - x1) / torch.where(y2 == y1, 1e-9, y2 - y1)
        inside = inside ^ (((y1 > y) != (y2 > y)) & (x < crossing))
    depth = dice.uniform(0.15, 0.7)
    depth = torch.where(dice.chance(config.shadow_share), depth, torch.ones_like(depth))
    mask = torch.where(inside, depth[:, None, None], 1.0)
    # As wide as the widest border needs, on every second pixel: it is soft anyway.
    sigma = dice.uniform(0.35, 3.0)
    at = torch.arange(-9, 10, device=mask.device)
    weights = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    small = functional.avg_pool2d(mask[None], 2)
    small = functional.pad(small, (9, 9, 9, 9), mode='replicate')
    small = functional.conv2d(small, weights[:, None, None, :], groups=dice.count)
    small = functional.conv2d(small, weights[:, None, :, None], groups=dice.count)
    return functional.interpolate(small, size=(size, size), mode='bilinear')[0][:, None]


def _blur(light: Tensor, config: LightConfig, dice: Dice) -> Tensor:
    """Defocus and motion: Gaussians along a straight line of up to 8 pixels."""
    has_blur, has_motion = dice.chance(config.blur_share), dice.chance(config.motion_blur_share)
    sigma = torch.where(has_blur, dice.uniform(0.4, 1.3), torch.full_like(light[:, 0, 0, 0], 0.25))
    length = torch.where(has_motion, dice.uniform(2.0, 8.0), torch.zeros_like(sigma))
    angle = dice.uniform(0.0, math.pi)
    along = torch.linspace(-0.5, 0.5, 17, device=light.device) * length[:, None]
    at = torch.arange(_KERNEL, device=light.device) - _KERNEL // 2
    two_variances = 2 * sigma[:, None, None] ** 2
    across = (at - (along * angle.cos()[:, None])[..., None]) ** 2 / two_variances
    down = (at - (along * angle.sin()[:, None])[..., None]) ** 2 / two_variances
    kernel = torch.exp(-down).transpose(1, 2) @ torch.exp(-across)
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    count, channels, height, width = light.shape
    padding = _KERNEL // 2
    padded = functional.pad(light, (padding,) * 4, mode='reflect')
    padded = padded.reshape(1, count * channels, *padded.shape[2:])
    kernels = kernel.repeat_interleave(channels, dim=0)[:, None]
    blurred = functional.conv2d(padded, kernels, groups=count * channels)
    blurred = blurred.reshape(count, channels, height, width)
    return torch.where(_wide(has_blur | has_motion), blurred, light)


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Return pictures as JPEG gives them back: ITU-T T.81 with chroma at half the resolution.

    :param images: (V, 3, S, S) of 0 to 255; S a multiple of 16.
    :param quality: (V,) of 1 to 100, scaled as the IJG's library does.
    """
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    matrix = images.new_tensor(_YCC_FROM_RGB)
    ycc = torch.einsum('ij,vjhw->vihw', matrix, images)
    luma, chroma = ycc[:, :1] - 128, functional.avg_pool2d(ycc[:, 1:], 2)
    parts = [
        _quantised(part, images.new_tensor(table), scale)
        for part, table in ((luma, _LUMA), (chroma, _CHROMA))
    ]
    chroma = functional.interpolate(parts[1], scale_factor=2.0, mode='bilinear')
    ycc = torch.cat([parts[0] + 128, chroma], 1)
    rgb = torch.einsum('ij,vjhw->vihw', torch.linalg.inv_ex(matrix)[0], ycc)
    return torch.round(rgb).clamp(0, 255)


def _quantised(planes: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    """Planes (V, C, H, W) with the cosines of their 8x8 blocks rounded to a table's steps."""
    count, channels, height, width = planes.shape
    at = np.arange(8)
    cosines = np.cos((2 * at[None] + 1) * at[:, None] * np.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    basis = planes.new_tensor(cosines)
    blocks = planes.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    found = basis @ blocks @ basis.T
    steps = torch.floor(table.reshape(8, 8) * scale[:, None, None] + 0.5).clamp(1, 255)
    steps = steps[:, None, None, None]
    found = torch.round(found / steps) * steps
    blocks = basis.T @ found @ basis
    return blocks.transpose(3, 4).reshape(planes.shape)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What light and camera do to a picture: shadows, night, blur, noise, compression.

Pictures are (H, W, 3) uint8 RGB. Every function takes its random numbers from the generator it is
given and nowhere else, so that a training step is a function of its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.config import Config, option

Image = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

# A power is near enough to sRGB's curve.
_GAMMA = 2.2
_NOISE_SIDE = 1024


@dataclass(frozen=True)
class LightConfig(Config):
    """How pictures are changed; shares are probabilities a view."""

    night_share: float = option(0.5, 'second views at night', minimum=0.0, maximum=1.0)
    darkest: float = option(0.01, 'smallest share of the light at night', minimum=1e-4, maximum=1)
    brightest: float = option(0.7, 'largest share of the light at night', minimum=1e-4, maximum=1)
    shadow_share: float = option(0.35, 'views with a shadow', minimum=0.0, maximum=1.0)
    motion_blur_share: float = option(0.2, 'views with motion blur', minimum=0.0, maximum=1.0)
    blur_share: float = option(0.3, 'views out of focus', minimum=0.0, maximum=1.0)
    jpeg_share: float = option(0.5, 'views compressed by JPEG', minimum=0.0, maximum=1.0)


@lru_cache(maxsize=1)
def _to_linear() -> Float32:
    return ((np.arange(256) / 255) ** _GAMMA).astype(np.float32)


@lru_cache(maxsize=1)
def _noise_bank() -> Float32:
    """Gaussian noise to cut pieces from: making it anew would take half of a view's time."""
    rng = np.random.default_rng(20)
    return rng.standard_normal((_NOISE_SIDE, _NOISE_SIDE, 3)).astype(np.float32)


def noise(height: int, width: int, rng: np.random.Generator) -> Float32:
    """Return (H, W, 3) of standard deviation 1; from 1024 pixels on it repeats itself."""
    bank = _noise_bank()
    if max(height, width) > _NOISE_SIDE:
        bank = np.tile(bank, (-(-height // _NOISE_SIDE), -(-width // _NOISE_SIDE), 1))
    y = int(rng.integers(bank.shape[0] - height + 1))
    x = int(rng.integers(bank.shape[1] - width + 1))
    piece = bank[y : y + height, x : x + width]
    return piece[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]


def encode(light: Float32) -> Image:
    """Return linear light, 1 the brightest, as 8-bit values."""
    values = cv2.pow(np.clip(light, 0.0, 1.0), 1 / _GAMMA)
    return np.asarray(cv2.convertScaleAbs(values, alpha=255.0), np.uint8)


def change_light(
    image: Image, config: LightConfig, rng: np.random.Generator, *, may_be_night: bool
) -> Image:
    """Return a view in other light, through another camera."""
    light = _to_linear()[image]
    height, width = image.shape[:2]
    cast = np.exp(rng.normal(0.0, 0.08, 3)).astype(np.float32)
    light = light * (cast * np.float32(np.exp(rng.uniform(-0.6, 0.5))))
    if rng.random() < config.shadow_share:
        light = light * _shadow(height, width, rng)[..., None]
    electrons, read_noise = float(np.exp(rng.uniform(np.log(2e3), np.log(3e4)))), 2.0
    is_night = may_be_night and rng.random() < config.night_share
    if is_night:
        light, gain = _night(light, config, rng)
        electrons, read_noise = float(np.exp(rng.uniform(np.log(8e2), np.log(1e4)))), 3.0
    if rng.random() < config.blur_share:
        sigma = float(rng.uniform(0.4, 1.3))
        light = cv2.GaussianBlur(light, (0, 0), sigma)
    if rng.random() < config.motion_blur_share:
        light = cv2.filter2D(light, -1, _motion_kernel(rng))
    light = _expose(light, electrons, read_noise, rng)
    if is_night:
        light = light * np.float32(gain)
    out = encode(light)
    if not is_night:
        # How cameras render tones differs.
        table = (np.arange(256) / 255) ** float(np.exp(rng.uniform(-0.35, 0.35)))
        low, high = float(rng.uniform(0, 0.08)), float(rng.uniform(0.9, 1.0))
        table = np.rint(255 * (low + (high - low) * table)).astype(np.uint8)
        out = np.asarray(cv2.LUT(out, table), np.uint8)
    if rng.random() < config.jpeg_share:
        out = jpeg(out, int(rng.integers(35, 92)))
    return out


def jpeg(image: Image, quality: int) -> Image:
    """Return the picture compressed and decompressed; quality 1 to 100."""
    packed = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)


def _expose(
    light: Float32, electrons: float, read_noise: float, rng: np.random.Generator
) -> Float32:
    """Add photon and read noise to linear light."""
    height, width = light.shape[:2]
    variance = np.maximum(light, 0) * np.float32(1 / electrons)
    variance += np.float32((read_noise / electrons) ** 2)
    return np.asarray(light + cv2.sqrt(variance) * noise(height, width, rng), np.float32)


def _night(light: Float32, config: LightConfig, rng: np.random.Generator) -> tuple[Float32, float]:
    """Light of a night and how much the camera lifts it after taking it."""
    height, width = light.shape[:2]
    share = float(np.exp(rng.uniform(np.log(config.darkest), np.log(config.brightest))))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    field = np.full((height, width, 3), share, np.float32)
    glare = np.zeros((height, width, 3), np.float32)
    for _ in range(int(rng.integers(0, 4))):
        at_x, at_y = rng.uniform(-0.2, 1.2, 2) * [width, height]
        reach = float(rng.uniform(0.15, 0.6)) * width
        color = np.array([1.0, rng.uniform(0.6, 1.0), rng.uniform(0.3, 1.0)], np.float32)
        distance = ((x - np.float32(at_x)) ** 2 + (y - np.float32(at_y)) ** 2) / reach**2
        lit = 1 / (1 + 4 * distance)
        strength = share * float(np.exp(rng.uniform(0.0, 2.5)))
        field += (strength * lit * lit)[..., None] * color
        if rng.random() < 0.5:
            size = float(rng.uniform(0.01, 0.05))
            spot = np.exp(-distance * np.float32(reach**2 / (size * width) ** 2))
            glare += (spot + 0.02 * lit)[..., None] * color * np.float32(rng.uniform(0.2, 1.5))
    dark = light * field + glare * np.float32(min(1.0, 4 * share))
    # Automatic exposure lifts some of the darkness, and the noise with it.
    lift = float(np.exp(rng.uniform(0.0, np.log(1 / share) * 0.6))) if rng.random() < 0.5 else 1.0
    return np.asarray(dark, np.float32), lift


def _shadow(height: int, width: int, rng: np.random.Generator) -> Float32:
    """Factors (H, W) on the light: a polygon in the shade, with a soft border."""
    mask = np.ones((height, width), np.float32)
    count = int(rng.integers(3, 7))
    corners = rng.uniform(-0.3, 1.3, (count, 2)) * [width, height]
    cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], float(rng.uniform(0.15, 0.7)))
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), float(rng.uniform(0.7, 6.0))), np.float32)


def _motion_kernel(rng: np.random.Generator) -> Float32:
    """A straight line of 3 to 9 pixels, weights of sum 1."""
    length, angle = float(rng.uniform(2, 8)), float(rng.uniform(0, np.pi))
    side = 11
    kernel: Any = np.zeros((side * 4, side * 4), np.float32)
    step = np.array([np.cos(angle), np.sin(angle)]) * length * 2
    start, end = side * 2 - step, side * 2 + step
    cv2.line(
        kernel, np.rint(start).astype(int).tolist(), np.rint(end).astype(int).tolist(), 1.0, 4
    )
    kernel = cv2.resize(kernel, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(kernel / kernel.sum(), np.float32)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Weather and time of day, what light they give, and the sky.

Light is linear RGB; 1 is a white wall that just does not saturate the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.config import Config, option
from feat_ros.town import paint

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

# Side of the sky picture: directions by (x, y) / (1 + z), so the horizon is the unit circle.
SKY_SIZE = 640
SKY_REACH = 1.15


# Of each weather, haze_m and veil of its light.
_AIR = {
    'clear': (1500.0, 0.02),
    'haze': (250.0, 0.57),
    'overcast': (700.0, 0.1),
    'rain': (220.0, 0.2),
}


@dataclass(frozen=True)
class Condition(Config):
    """What the world and the camera's exposure are like during a drive."""

    time: str = option('day', 'time of day', choices=('day', 'dusk', 'night'))
    weather: str = option('clear', 'weather', choices=('clear', 'haze', 'overcast', 'rain'))
    has_leaves: bool = option(True, 'whether trees have leaves')
    is_wet: bool = option(False, 'whether the ground mirrors')
    exposure_ev: float = option(0.0, 'stops above the right exposure', minimum=-8.0, maximum=8.0)
    shutter_s: float = option(0.0, 'time the shutter is open, blurs', minimum=0.0, maximum=0.2)
    noise: float = option(1.0, 'photon and read noise, 0 for none', minimum=0.0, maximum=20.0)


CONDITIONS: dict[str, Condition] = {
    'day': Condition(weather='haze'),
    'clear day': Condition(),
    'overcast': Condition(weather='overcast'),
    'winter': Condition(weather='overcast', has_leaves=False),
    'rain': Condition(weather='rain', is_wet=True),
    'dusk': Condition(time='dusk'),
    'night': Condition(time='night', shutter_s=0.01),
    'wet night': Condition(time='night', weather='rain', is_wet=True, shutter_s=0.01),
}


@dataclass(frozen=True, eq=False)
class Light:
    """Light of a condition.

    :ivar to_sun: (3,) unit vector.
    :ivar sun: (3,) on a surface that faces the sun, with sky (from above) and bounce (from below).
    :ivar lamp: strength of street lamps; glow of windows and signs likewise.
    :ivar haze_m: distance at which half of what is seen is haze.
    :ivar veil: share of the light in a picture that lens and windscreen strew all over it.
    :ivar electrons: how many a saturated pixel holds: the fewer, the noisier.
    :ivar sky_picture: (SKY_SIZE, SKY_SIZE, 3) float32.
    """

    to_sun: Float
    sun: Float
    sky: Float
    bounce: Float
    lamp: float
    glow: float
    haze: Float
    haze_m: float
    veil: float
    electrons: float
    sky_picture: Float32


def make_light(condition: Condition, day: int) -> Light:
    """Work out the light of one day; sun and clouds differ from day to day."""
    rng = np.random.default_rng([day, 77])
    elevation = np.radians(rng.uniform(36, 52) if condition.time == 'day' else 4.0)
    azimuth = np.radians(rng.uniform(215, 320))
    to_sun = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    is_clear = condition.weather in ('clear', 'haze')
    if condition.time == 'day':
        sun = np.array([1.0, 0.93, 0.8]) * (2.3 if is_clear else 0.0)
        sky = np.array([0.5, 0.56, 0.68]) if is_clear else np.array([0.98, 1.02, 1.08])
        lamp, glow, electrons = 0.0, 0.12, 9000.0
        if condition.weather == 'rain':
            sky = np.array([0.72, 0.77, 0.83])
    elif condition.time == 'dusk':
        sun = np.array([0.34, 0.15, 0.06]) * is_clear
        sky = np.array([0.24, 0.27, 0.4])
        lamp, glow, electrons = 0.3, 0.8, 2200.0
    else:
        sun, sky = np.zeros(3), np.array([0.024, 0.028, 0.044])
        lamp, glow, electrons = 1.0, 3.2, 2500.0
    bounce = (sky * 0.45 + sun * 0.22) * [1.0, 0.96, 0.9]
    picture, haze = _sky(condition, rng, to_sun, sky)
    haze_m, veil = _AIR[condition.weather]
    return Light(to_sun, sun, sky, bounce, lamp, glow, haze, haze_m, veil, electrons, picture)


def _sky(
    condition: Condition, rng: paint.Rng, to_sun: Float, ambient: Float
) -> tuple[Float32, Float]:
    axis = np.linspace(-SKY_REACH, SKY_REACH, SKY_SIZE)
    x, y = np.meshgrid(axis, axis)
    square = x * x + y * y
    z = (1 - square) / (1 + square)
    direction = np.stack([x * (1 + z), y * (1 + z), z], axis=2)
    up = np.clip(z, 0, 1)[..., None]
    if condition.time == 'day':
        top, low = np.array([0.2, 0.4, 0.86]), np.array([0.74, 0.84, 0.95])
    elif condition.time == 'dusk':
        top, low = np.array([0.1, 0.15, 0.36]), np.array([0.8, 0.42, 0.24])
    else:
        top, low = np.array([0.008, 0.012, 0.028]), np.array([0.07, 0.054, 0.044])
    sky = low + (top - low) * up**0.5
    cosine = np.clip(direction @ to_sun, 0, 1)[..., None]
    if condition.weather in ('clear', 'haze'):
        tint = np.array([1.0, 0.86, 0.66]) * (1.0 if condition.time != 'night' else 0.0)
        sky = sky + tint * (cosine**64 * 0.5 + (cosine > np.cos(np.radians(0.5))) * 25)
    cover = {'clear': 0.45, 'haze': 0.45, 'overcast': -0.9, 'rain': -1.2}[condition.weather]
    field = paint.noise(rng, SKY_SIZE, SKY_SIZE, 0.3 * SKY_SIZE, 8)
    # Clouds lie on a level sheet: they crowd together toward the horizon.
    reach = 0.3 / (np.clip(z, 0.0, 1) + 0.16)
    u = (direction[..., 0] * reach + 0.5) * SKY_SIZE
    v = (direction[..., 1] * reach + 0.5) * SKY_SIZE
    clouds = cv2.remap(
        field,
        u.astype(np.float32),
        v.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    amount = (np.clip((clouds - cover) * 1.6, 0, 1) * np.clip(z * 8, 0, 1))[..., None]
    shade = np.clip(1.05 - 0.3 * (clouds - cover), 0.55, 1.05)[..., None]
    is_grey = condition.weather in ('overcast', 'rain')
    white = ambient * (0.95 if is_grey else 1.6) * shade
    if condition.time == 'dusk':
        white = np.array([0.42, 0.3, 0.34]) * shade + np.array([0.4, 0.2, 0.1]) * cosine**2
    sky = sky * (1 - amount) + white * amount
    if is_grey:
        grey = ambient * 0.92
        sky = sky * 0.45 + grey * 0.55 if condition.time != 'night' else sky
    haze = sky[np.abs(z - 0.03) < 0.03].mean(axis=0)
    return sky.astype(np.float32), haze

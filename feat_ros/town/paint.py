# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of materials: noise, brick, plaster, stone, stains, cracks, posters, letters.

Pictures are float32 RGB (H, W, 3), 0 to 255, gamma-coded, until a texture is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.float32]
Rng = np.random.Generator
Rgb = Sequence[float] | npt.NDArray[Any]

# Contrast that sun and rain leave of what a material had when new.
_FADED = 0.4
_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)
_SYLLABLES = [consonant + vowel for consonant in 'BCDFGHJKLMNPRSTVZ' for vowel in 'AEIOU']
_TRADES = [
    *('CAFE', 'BAKERY', 'BOOKS', 'FLOWERS', 'PHARMACY', 'BIKES'),
    *('HAIR', 'OPTIC', 'PIZZA', 'WINE', 'SHOES', 'TAILOR'),
    *('MUSIC', 'FISH', 'TEA', 'BANK', 'HOTEL', 'BAR'),
    *('GRILL', 'TOYS', 'PRINT', 'KEYS', 'RADIO', 'FOTO'),
    *('COPY', 'SUSHI', 'KEBAB', 'MARKET', 'GALLERY', 'LAUNDRY'),
]


def canvas(height: int, width: int, rgb: Rgb) -> Picture:
    """Return a picture of one colour."""
    return np.full((height, width, 3), rgb, np.float32)


def noise(rng: Rng, height: int, width: int, cell: float, octaves: int = 4) -> Picture:
    """Fractal noise (H, W), about -1 to 1: random grids, cells halved per octave, summed."""
    total: Picture | None = None
    weight = 2.0
    for _ in range(octaves):
        shape = (int(height / cell) + 2, int(width / cell) + 2)
        grid = (rng.random(shape, np.float32) - np.float32(0.5)) * np.float32(weight)
        total = grid if total is None else grid + _stretched(total, *shape)
        weight *= 0.6
        cell /= 2
        if cell < 1:
            break
    assert total is not None
    return _stretched(total, height, width)


def _stretched(grid: Picture, height: int, width: int) -> Picture:
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def grain(rng: Rng, picture: Picture, amount: float) -> None:
    """Add grain of one texel and of three, in place."""
    # Whole numbers drawn evenly, of variance 1 after division: faster than a normal deviate.
    fine = rng.integers(-74, 75, picture.shape[:2], np.int8).astype(np.float32)
    fine *= np.float32(amount / 43.0)
    fine += cv2.GaussianBlur(fine, (7, 7), 1.5) * np.float32(4)
    picture += fine[..., None]


def fade(picture: Picture, texel_m: float) -> Picture:
    """Let materials differ from the square metre around them as little as weathered ones do."""
    side = max(3, round(1.0 / texel_m))
    around = cv2.blur(picture, (side, side))
    return np.asarray(cv2.addWeighted(picture, _FADED, around, 1 - _FADED, 0), np.float32)


def to_uint8(picture: Picture) -> npt.NDArray[np.uint8]:
    """Round and clip."""
    return np.asarray(cv2.add(picture, (0, 0, 0, 0), dtype=cv2.CV_8U), np.uint8)


def vary(rng: Rng, rgb: Rgb, amount: float) -> Picture:
    """Return a colour near another: brightness first, hue a third of it."""
    base = np.asarray(rgb, np.float32)
    shift = rng.normal(0, amount) + rng.normal(0, amount / 3, 3)
    return np.clip(base + shift, 4, 250).astype(np.float32)


def bricks(
    rng: Rng, height: int, width: int, texel_m: float, rgb: Rgb, size_m: tuple[float, float]
) -> Picture:
    """Courses of bricks (length, height in metres with the joint), every brick its own shade."""
    length, course = size_m[0] / texel_m, size_m[1] / texel_m
    y, x = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    row = np.floor(y / course).astype(np.int32)
    offset = np.where(row % 2 == 0, 0.0, 0.5) + rng.uniform(-0.04, 0.04, row[-1] + 1)[row]
    along = x[None, :] / length + offset[:, None].astype(np.float32)
    column = along.astype(np.int32)
    count = (int(row[-1]) + 1, int(width / length) + 3)
    shade, hue = rng.standard_normal((2, *count), np.float32)
    shade += np.float32(2.2) * (rng.random(count) < 0.06) * rng.choice([-1, 1], count)
    base = np.asarray(rgb, np.float32)
    tones = base + shade[..., None] * np.float32(11)
    tones += hue[..., None] * np.array([5, -2, -4], np.float32)
    picture = tones.reshape(-1, 3).take(row[:, None] * count[1] + column, axis=0)
    joint = 0.5 * max(1.0, 0.011 / texel_m)
    from_joint = np.minimum((along - column) * length, np.abs(y / course - row)[:, None] * course)
    mortar = base * np.float32(0.35) + np.float32(115 + rng.uniform(-35, 20))
    picture -= mortar
    picture *= np.clip(from_joint / joint - np.float32(0.4), 0, 1)[..., None]
    picture += mortar
    return np.asarray(picture, np.float32)


def plaster(rng: Rng, height: int, width: int, texel_m: float, rgb: Rgb) -> Picture:
    """Painted render: clouds of tone at all scales and a rough grain."""
    picture = canvas(height, width, rgb)
    picture += noise(rng, height, width, 2.5 / texel_m, 5)[..., None] * 7
    rough = noise(rng, height, width, 0.07 / texel_m, 3)
    picture += rough[..., None] * np.float32(rng.uniform(3, 8))
    return picture


def relief(picture: Picture, amount: float) -> None:
    """Light a picture from the top left by the brightness of its green, in place."""
    grey = cv2.GaussianBlur(picture[..., 1], (0, 0), 0.8)
    slope = np.zeros_like(grey)
    slope[1:, 1:] = grey[1:, 1:] - grey[:-1, :-1]
    picture += np.float32(amount) * slope[..., None]


def streaks(rng: Rng, picture: Picture, at: tuple[int, int], size: tuple[int, int]) -> None:
    """Let dirt run down from (x, y) over (width, height) texels, in place."""
    height, width = picture.shape[:2]
    x0, x1 = max(0, at[0]), min(width, at[0] + size[0])
    y0, y1 = max(0, at[1]), min(height, at[1] + size[1])
    if x1 - x0 < 3 or y1 - y0 < 3:
        return
    lines = noise(rng, 1, x1 - x0, max(2.0, (x1 - x0) / 9), 4)[0]
    fall = np.linspace(1, 0, y1 - y0, dtype=np.float32)[:, None] ** 1.5
    reach = np.clip(lines[None, :] + 0.2 + fall * 0.4, 0, 1) * fall
    edge = np.minimum(1, np.minimum(np.arange(x1 - x0), np.arange(x1 - x0)[::-1]) / 4)
    amount = reach * edge[None, :] * np.float32(rng.uniform(0.15, 0.5))
    picture[y0:y1, x0:x1] *= (1 - amount)[..., None]


def blot(rng: Rng, picture: Picture, texel_m: float, rgb: Rgb, strength: float) -> None:
    """Mix a colour in where noise is high (damp, moss, patched render), in place."""
    height, width = picture.shape[:2]
    field = noise(rng, height, width, rng.uniform(0.5, 2.0) / texel_m, 5)
    above = (field - np.float32(rng.uniform(0.3, 0.9))) * 4
    rows, columns = np.nonzero(above > 0)
    amount = np.minimum(above[rows, columns], 1)[:, None] * np.float32(strength)
    under = picture[rows, columns]
    picture[rows, columns] = under + amount * (np.asarray(rgb, np.float32) - under)


def crack(rng: Rng, picture: Picture, texel_m: float) -> None:
    """Draw a wandering crack, in place."""
    height, width = picture.shape[:2]
    steps = int(rng.integers(12, 50))
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.5, steps))
    step = 0.07 / texel_m
    path = np.stack([np.cos(heading), np.sin(heading)], axis=1).cumsum(axis=0) * step
    path += rng.uniform(0, 1, 2) * [width, height]
    shade = float(rng.uniform(0.3, 0.6)) * picture[::16, ::16].mean(axis=(0, 1))
    cv2.polylines(
        picture,
        [np.round(path * 8).astype(np.int32)],
        False,
        shade.tolist(),
        max(1, round(0.012 / texel_m)),
        cv2.LINE_AA,
        3,
    )


def shop_name(rng: Rng) -> str:
    """Return a name over a shop: two or three syllables, mostly with a trade."""
    name = ''.join(rng.choice(_SYLLABLES, int(rng.integers(2, 4))))
    if rng.random() < 0.8:
        name = f'{name} {rng.choice(_TRADES)}' if rng.random() < 0.5 else str(rng.choice(_TRADES))
    return name


def write(picture: Picture, text: str, where: Sequence[float], rgb: Rgb, font: int = 1) -> None:
    """Write text as large as fits, centred, into a box (x0, y0, x1, y1) in texels, in place."""
    x0, y0, x1, y1 = where
    face = _FONTS[font % len(_FONTS)]
    (width, height), base = cv2.getTextSize(text, face, 1.0, 2)
    scale = min((x1 - x0) / max(width, 1), (y1 - y0) / max(height + base, 1))
    if scale < 0.08:
        return
    thick = max(1, round(2.2 * scale))
    at = (
        round((x0 + x1 - width * scale) / 2),
        round((y0 + y1 + (height - base * 0.3) * scale) / 2),
    )
    # OpenCV 5 writes on bytes only.
    letters = np.zeros(picture.shape[:2], np.uint8)
    cv2.putText(letters, text, at, face, scale, 255, thick, cv2.LINE_8)
    picture[letters > 0] = rgb


def poster(rng: Rng, height: int, width: int) -> Picture:
    """A bill: ground, shapes, a headline and lines of small print."""
    ground = rng.uniform(40, 235)
    picture = canvas(height, width, vary(rng, (ground,) * 3, 40))
    picture += noise(rng, height, width, max(3.0, height / 3), 3)[..., None] * 14
    for _ in range(int(rng.integers(2, 7))):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        colour = rng.uniform(10, 250, 3).tolist()
        if rng.random() < 0.5:
            radius = int(rng.integers(2, max(3, height // 3)))
            cv2.circle(picture, centre, radius, colour, -1, cv2.LINE_AA)
        else:
            other = (int(rng.integers(0, width)), int(rng.integers(0, height)))
            cv2.rectangle(picture, centre, other, colour, -1)
    dark = float(picture.mean()) > 125
    ink = rng.uniform(0, 60, 3) if dark else rng.uniform(200, 255, 3)
    line = height / 9
    for row in range(int(rng.integers(2, 6))):
        top = line * (0.5 + 1.6 * row)
        box = (width * 0.06, top, width * 0.94, top + line * rng.uniform(0.8, 1.6))
        write(picture, shop_name(rng), box, ink, int(rng.integers(5)))
    cv2.rectangle(picture, (0, 0), (width - 1, height - 1), vary(rng, ink, 30).tolist(), 1)
    return picture


def paste(target: Any, patch: Any, x: int, y: int) -> None:
    """Copy a patch to (x, y), cut at the border, in place."""
    height, width = target.shape[:2]
    x0, y0 = max(0, x), max(0, y)
    x1, y1 = min(width, x + patch.shape[1]), min(height, y + patch.shape[0])
    if x1 > x0 and y1 > y0:
        target[y0:y1, x0:x1] = patch[y0 - y : y1 - y, x0 - x : x1 - x]


def scrawl(rng: Rng, picture: Picture, x: int, y: int, size: int) -> None:
    """Spray a tag of about ``size`` texels, in place."""
    count = int(rng.integers(7, 14))
    knots = np.cumsum(rng.normal(0, 0.33, (count, 2)), axis=0)
    knots[:, 0] += np.linspace(0, 1.6, count)
    fine = cv2.resize(knots.astype(np.float32), (2, count * 8), interpolation=cv2.INTER_CUBIC)
    points = np.round((fine * size + [x, y]) * 8).astype(np.int32)
    colour = rng.uniform(0, 230, 3).tolist()
    cv2.polylines(picture, [points], False, colour, max(1, size // 14), cv2.LINE_AA, 3)

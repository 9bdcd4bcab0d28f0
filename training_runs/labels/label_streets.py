# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stability groups of the street photographs ``lund`` and ``berlin``, for training.

python label_streets.py FOLDER writes NAME.group.png beside FOLDER/lund/*.jpg and
FOLDER/berlin/*.jpg. Cars and people were boxed by hand, and so was what colour says nothing about:
green paint, hedges in the shade (boxes.json: left, top, right, bottom as shares of the picture).
Sky and plants follow from colour, which these sunny pictures allow, and were looked at one by one.
What is near a border, or may be either, is unknown.
"""

from __future__ import annotations

import json
from pathlib import Path
import sys

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.semantics import StabilityGroup

Mask = npt.NDArray[np.bool_]


def main(folder: Path) -> None:
    """Write the labels of both sets."""
    boxes = json.loads((Path(__file__).parent / 'boxes.json').read_text(encoding='utf-8'))
    for name, found in boxes.items():
        path = folder / f'{name}.jpg'
        bgr = cv2.imread(str(path))
        if bgr is None:
            sys.exit(f'{path} cannot be read')
        group = label(np.asarray(bgr, np.uint8), found, has_sky=name.startswith('lund'))
        cv2.imwrite(str(path.with_suffix('')) + '.group.png', group)


def label(
    bgr: npt.NDArray[np.uint8], boxes: dict[str, list[list[float]]], *, has_sky: bool
) -> npt.NDArray[np.uint8]:
    """Return the groups (H, W) of one picture."""
    height, width = bgr.shape[:2]
    group = np.full((height, width), StabilityGroup.LONG_TERM, np.uint8)
    unsure = np.zeros((height, width), bool)
    if has_sky:
        plants, maybe_plants = find_plants(bgr)
        sky, maybe_sky = find_sky(bgr)
        group[plants] = StabilityGroup.SHORT_TERM
        group[sky] = StabilityGroup.VOLATILE
        unsure = maybe_plants | maybe_sky
    unsure |= borders(group, 4)
    for left, top, right, bottom in boxes.get('unknown', []):
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        unsure[rows, columns] |= group[rows, columns] != StabilityGroup.VOLATILE
    for left, top, right, bottom in boxes['moving']:
        center = round((left + right) / 2 * width), round((top + bottom) / 2 * height)
        half = (right - left) / 2 * width, (bottom - top) / 2 * height
        near, inside = (
            cv2.ellipse(
                np.zeros((height, width), np.uint8), center,
                (round(half[0] * grow) + extra, round(half[1] * grow) + extra), 0, 0, 360, 1, -1,
            ).astype(bool)
            for grow, extra in ((1.42, 6), (0.95, 0))
        )  # fmt: skip
        unsure |= near
        unsure &= ~inside
        group[inside] = StabilityGroup.DYNAMIC
    group[unsure] = StabilityGroup.UNKNOWN
    return group


def find_sky(bgr: npt.NDArray[np.uint8]) -> tuple[Mask, Mask]:
    """Return what is sky, and what may be: from the top of each column to its last blue pixel."""
    height = bgr.shape[0]
    smooth = cv2.GaussianBlur(bgr, (0, 0), 1.5).astype(int)
    blue, red = smooth[..., 0], smooth[..., 2]
    is_blue = (blue - red > 28) & (blue > 110)
    is_cloud = (smooth.min(axis=2) > 150) & (smooth.max(axis=2) - smooth.min(axis=2) < 60)
    # Blue is sky where it hangs together with the upper border: windows mirror it too.
    parts = cv2.connectedComponents(close(is_blue | is_cloud, 3).astype(np.uint8))[1]
    at_top = np.isin(parts, np.unique(parts[0][parts[0] > 0]))
    is_blue &= at_top
    rows = np.arange(height)[:, None]
    # Sky ends above the first pixel that is neither; clouds count as far as blue goes below them.
    blocked = np.where(~at_top, rows, height).min(axis=0)
    last_blue = np.where(is_blue & (rows < blocked), rows, -1).max(axis=0)
    sky = rows <= last_blue
    maybe = (at_top & ~sky) | (grow(sky, 6) & ~sky)
    return sky, maybe & (rows < height * 0.6)


def find_plants(bgr: npt.NDArray[np.uint8]) -> tuple[Mask, Mask]:
    """Return what is green, and its surroundings, where leaves are in the shade."""
    smooth = cv2.GaussianBlur(bgr, (0, 0), 2.5).astype(int)
    blue, green, red = smooth[..., 0], smooth[..., 1], smooth[..., 2]
    is_green = (green > red + 6) & (green > blue + 14) & (green > 35)
    is_green = grow(cv2.erode(is_green.astype(np.uint8), disk(3)).astype(bool), 3)
    plants = close(is_green, 9)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(plants.astype(np.uint8))
    large = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] > 600]
    kept = np.isin(parts, large)
    return kept, grow(plants, 12) & ~kept


def borders(group: npt.NDArray[np.uint8], width: int) -> Mask:
    """Return what is near another group."""
    return np.asarray(cv2.dilate(group, disk(width)) != cv2.erode(group, disk(width)))


def disk(radius: int) -> npt.NDArray[np.uint8]:
    """Return a disk for morphology."""
    side = 2 * radius + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)


def grow(mask: Mask, radius: int) -> Mask:
    """Return what is within a radius of a mask."""
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disk(radius)), bool)


def close(mask: Mask, radius: int) -> Mask:
    """Fill gaps of a mask."""
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, disk(radius))
    return np.asarray(closed, bool)


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

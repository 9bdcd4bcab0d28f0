# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Ground and street furniture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.town import paint
from feat_ros.town.mesh import box, Mesh, Quad, Texture
from feat_ros.town.paint import Picture, Rng

KERB_Y = 5.35
PARKING_Y = 3.25
HOUSE_Y = 8.35
KERB_Z = 0.12
_STEEL = (88, 92, 94)


def flat(
    x0: float, y0: float, x1: float, y1: float, z: float, texture: Texture, label: str
) -> Quad:
    """Return a level rectangle whose texture rows run along x, the first at y1."""
    return Quad((x0, y1, z), (x1 - x0, 0, 0), (0, y0 - y1, 0), texture, label)


def _asphalt(rng: Rng, h: int, w: int, m: float) -> Picture:
    picture = paint.canvas(h, w, paint.vary(rng, (92, 92, 94), 5))
    picture += paint.noise(rng, h, w, 3.0 / m, 6)[..., None] * 7
    for _ in range(int(rng.integers(1, 4))):
        x, y = int(rng.integers(0, w)), int(rng.integers(0, h))
        size = (int(rng.uniform(0.6, 5) / m), int(rng.uniform(0.5, 2) / m))
        area = np.s_[y : y + size[1], x : x + size[0]]
        picture[area] += rng.uniform(-11, 8)
        cv2.rectangle(picture, (x, y), (x + size[0], y + size[1]), (66, 66, 68), 1)
    paint.blot(rng, picture, m, (64, 63, 62), 0.5)
    for _ in range(int(rng.integers(3, 8))):
        paint.crack(rng, picture, m)
    speckle = rng.standard_normal((h, w), np.float32)
    picture += (speckle * 6)[..., None]
    picture += (cv2.GaussianBlur(speckle, (0, 0), 1.2) * 8)[..., None]
    for _ in range(int(rng.integers(3, 14))):
        centre = (int(rng.integers(0, w)), int(rng.integers(0, h)))
        size = (int(rng.uniform(0.03, 0.4) / m), int(rng.uniform(0.03, 0.3) / m))
        layer = picture.copy()
        cv2.ellipse(layer, centre, size, float(rng.uniform(0, 180)), 0, 360, (58, 57, 58), -1)
        picture += (layer - picture) * np.float32(rng.uniform(0.2, 0.7))
    return paint.fade(picture, m)


def _stripe(rng: Rng, picture: Picture, m: float, area: Sequence[float]) -> None:
    """Worn white paint on (x0, y0, x1, y1), metres from the picture's corner."""
    x0, y0, x1, y1 = (round(a / m) for a in area)
    part = picture[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
    if part.size == 0:
        return
    worn = paint.noise(rng, part.shape[0], part.shape[1], 0.4 / m, 5)
    cover = np.clip(0.85 - np.maximum(worn - 0.35, 0) * 3, 0.15, 0.85)[..., None]
    part += cover * (np.array([206, 205, 198], np.float32) - part)


def _iron(rng: Rng, picture: Picture, m: float) -> None:
    """Put a manhole cover or a drain into the road."""
    h, w = picture.shape[:2]
    x, y, r = int(rng.uniform(0.1, 0.9) * w), int(rng.uniform(0.25, 0.75) * h), round(0.32 / m)
    cv2.circle(picture, (x, y), r + 3, (58, 58, 58), -1, cv2.LINE_AA)
    cv2.circle(picture, (x, y), r, (96, 90, 84), -1, cv2.LINE_AA)
    step = max(3, round(float(rng.uniform(0.05, 0.09)) / m))
    for k in range(-r + step, r, step):
        half = int(np.sqrt(max(0, r * r - k * k))) - 3
        cv2.line(picture, (x - half, y + k), (x + half, y + k), (64, 60, 58), max(1, step // 3))
    paint.write(
        picture, str(rng.integers(100, 999)), (x - r / 2, y - 8, x + r / 2, y + 8), (40,) * 3
    )


def main_road(rng: Rng, x0: float, x1: float, m: float, has_crossing: str) -> Quad:
    """One piece of the main street; a zebra crossing at its 'L'eft or 'R'ight end."""
    w, h = round((x1 - x0) / m), round(2 * KERB_Y / m)
    picture = _asphalt(rng, h, w, m)
    track = np.abs(np.abs(np.abs((np.arange(h) - h / 2) * m) - 1.6) - 0.75)
    picture -= (np.exp(-((track / 0.28) ** 2)) * 7).astype(np.float32)[:, None, None]
    for x in np.arange(0.0, x1 - x0, 6.0):
        _stripe(rng, picture, m, (x, KERB_Y - 0.07, x + 3.0, KERB_Y + 0.07))
    for y in (KERB_Y - PARKING_Y, KERB_Y + PARKING_Y):
        for x in np.arange(0.0, x1 - x0, 1.0):
            _stripe(rng, picture, m, (x, y - 0.05, x + 0.5, y + 0.05))
    for x in np.arange(0.0, x1 - x0, 6.0):
        for y in (0.0, KERB_Y + PARKING_Y):
            _stripe(rng, picture, m, (x - 0.05, y, x + 0.05, y + KERB_Y - PARKING_Y))
    if has_crossing:
        start = 0.8 if has_crossing == 'L' else x1 - x0 - 3.8
        for y in np.arange(0.3, 2 * KERB_Y - 0.4, 1.0):
            _stripe(rng, picture, m, (start, y, start + 3.0, y + 0.5))
        stop = start + 4.2 if has_crossing == 'L' else start - 1.5
        low = KERB_Y if has_crossing == 'R' else KERB_Y - PARKING_Y
        _stripe(rng, picture, m, (stop, low, stop + 0.4, low + PARKING_Y))
    for _ in range(int(rng.integers(0, 3))):
        _iron(rng, picture, m)
    return flat(x0, -KERB_Y, x1, KERB_Y, 0.0, Texture.make(paint.to_uint8(picture)), 'road')


def plain_road(rng: Rng, area: Sequence[float], m: float) -> Quad:
    """Asphalt without markings on (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = area
    picture = _asphalt(rng, round((y1 - y0) / m), round((x1 - x0) / m), m)
    _iron(rng, picture, m)
    return flat(x0, y0, x1, y1, 0.0, Texture.make(paint.to_uint8(picture)), 'road')


def pavement(rng: Rng, area: Sequence[float], m: float, kerbs: str) -> list[Quad]:
    """Paving slabs on (x0, y0, x1, y1), with kerb stones on the named sides (x X y Y)."""
    x0, y0, x1, y1 = area
    h, w = round((y1 - y0) / m), round((x1 - x0) / m)
    size = ((0.5, 0.5), (0.3, 0.3), (0.6, 0.4), (0.22, 0.11))[int(rng.integers(4))]
    picture = paint.bricks(rng, h, w, m, paint.vary(rng, (140, 136, 128), 10), size)
    picture += paint.noise(rng, h, w, 2.0 / m, 6)[..., None] * 8
    paint.blot(rng, picture, m, (96, 94, 88), 0.5)
    for _ in range(int(rng.integers(15, 50))):
        centre = (int(rng.integers(0, w)), int(rng.integers(0, h)))
        tone = float(rng.uniform(50, 100))
        cv2.circle(picture, centre, max(1, round(rng.uniform(0.01, 0.05) / m)), (tone,) * 3, -1)
    edge = max(2, round(0.15 / m))
    sides: dict[str, Any] = {
        'x': np.s_[:, :edge],
        'X': np.s_[:, -edge:],
        'y': np.s_[-edge:],
        'Y': np.s_[:edge],
    }
    for side in kerbs:
        picture[sides[side]] = picture[sides[side]] * 0.3 + 118
        stones = picture[sides[side]]
        if side in 'yY':
            stones[:, :: max(2, round(1.0 / m))] = 70
        else:
            stones[:: max(2, round(1.0 / m))] = 70
    paint.grain(rng, picture, 2.5)
    out = [flat(x0, y0, x1, y1, KERB_Z, Texture.make(paint.to_uint8(picture)), 'pavement')]
    face = paint.canvas(max(2, round(KERB_Z / m)), w, (120, 118, 114))
    face += paint.noise(rng, face.shape[0], w, 1.0 / m, 6)[..., None] * 12
    texture = Texture.make(paint.to_uint8(face))
    return out + box((x0, y0, 0), (x1, y1, KERB_Z), texture, 'pavement', kerbs)


def _metal(rng: Rng, rgb: paint.Rgb = _STEEL) -> Texture:
    picture = paint.canvas(256, 16, paint.vary(rng, rgb, 10))
    picture += paint.noise(rng, 256, 16, 40, 5)[..., None] * 9
    picture[-24:] *= 0.7
    for _ in range(int(rng.integers(1, 5))):
        y = int(rng.integers(120, 236))
        picture[y : y + int(rng.integers(4, 14)), : int(rng.integers(6, 16))] = rng.uniform(
            20, 240, 3
        )
    return Texture.make(paint.to_uint8(picture))


def pole(rng: Rng, x: float, y: float, height: float, radius: float, label: str) -> list[Quad]:
    """An upright with stickers and rust."""
    low, high = (x - radius, y - radius, KERB_Z), (x + radius, y + radius, height)
    return box(low, high, _metal(rng), label, 'xXyY')


def lamp(rng: Rng, x: float, y: float) -> tuple[list[Quad], tuple[float, float, float]]:
    """A street lamp with an arm over the road; returns also where its light is."""
    toward = -np.sign(y)
    end = y + toward * 1.7
    steel = _metal(rng)
    low_y, high_y = min(y, end), max(y, end)
    quads = pole(rng, x, y, 6.4, 0.07, 'street lamp')
    quads += box((x - 0.04, low_y, 6.3), (x + 0.04, high_y, 6.4), steel, 'street lamp', 'xXyYzZ')
    head = (x - 0.16, end - 0.35, 6.22), (x + 0.16, end + 0.35, 6.36)
    quads += box(*head, steel, 'street lamp', 'xXyYZ')
    bulb = Texture.plain((255, 236, 200), 255)
    quads += box(*head, bulb, 'street lamp', 'z', glow=14.0)
    return quads, (x, float(end), 6.1)


def _lens(lit: int) -> Texture:
    h, w = 90, 32
    picture = paint.canvas(h, w, (26, 28, 28))
    glow = np.zeros((h, w), np.float32)
    for k, rgb in enumerate(((255, 50, 40), (255, 180, 40), (60, 255, 140))):
        centre = (w // 2, 15 + 30 * k)
        on = k == lit
        cv2.circle(picture, centre, 11, [c * (1.0 if on else 0.22) for c in rgb], -1, cv2.LINE_AA)
        if on:
            cv2.circle(glow, centre, 11, 255.0, -1, cv2.LINE_AA)
    return Texture.make(np.dstack([paint.to_uint8(picture), glow.astype(np.uint8)]))


def traffic_light(rng: Rng, x: float, y: float, facing: float) -> list[Quad]:
    """A signal on a pole, shown to who comes from the side ``facing`` (-1 or 1 along x)."""
    quads = pole(rng, x, y, 3.6, 0.06, 'traffic light')
    low, high = (x - 0.14, y - 0.16, 2.6), (x + 0.14, y + 0.16, 3.5)
    dark, lens = Texture.plain((30, 32, 32)), _lens(int(rng.integers(3)))
    shown = 'x' if facing < 0 else 'X'
    quads += box(low, high, dark, 'traffic light', 'xXyYzZ'.replace(shown, ''))
    return quads + box(low, high, lens, 'traffic light', shown, glow=3.0)


def _sign_picture(rng: Rng) -> npt.NDArray[np.uint8]:
    size, kind = 96, int(rng.integers(4))
    picture = paint.canvas(size, size, (235, 235, 232))
    alpha = np.zeros((size, size), np.uint8)
    middle = (size // 2, size // 2)
    if kind == 0:
        cv2.circle(alpha, middle, 47, 255, -1)
        cv2.circle(picture, middle, 43, (196, 24, 30), 9, cv2.LINE_AA)
        paint.write(picture, str(rng.integers(1, 9) * 10), (24, 28, 72, 68), (15, 15, 15))
    elif kind == 1:
        corners = np.array([[48, 4], [94, 88], [2, 88]], np.int32)
        cv2.fillPoly(alpha, [corners], 255)
        cv2.polylines(picture, [corners], True, (196, 24, 30), 16, cv2.LINE_AA)
        paint.write(picture, str(rng.choice(list('!KXTSY'))), (34, 34, 62, 82), (15, 15, 15))
    elif kind == 2:
        alpha[4:92, 4:92] = 255
        picture[:] = (24, 76, 160)
        paint.write(picture, str(rng.choice(list('PHMEZ'))), (22, 14, 74, 76), (245, 245, 245))
        paint.write(
            picture, f'{rng.integers(1, 24)}-{rng.integers(1, 24)}h', (16, 74, 80, 90), (240,) * 3
        )
    else:
        cv2.circle(alpha, middle, 47, 255, -1)
        picture[:] = (196, 24, 30)
        cv2.rectangle(picture, (14, 40), (82, 56), (240, 240, 240), -1)
    picture += paint.noise(rng, size, size, 40, 5)[..., None] * 8
    return np.dstack([paint.to_uint8(picture), alpha])


def traffic_sign(rng: Rng, x: float, y: float, facing: float) -> list[Quad]:
    """A round, three-cornered or square sign, its grey back, and a street name under it."""
    quads = pole(rng, x, y, 2.9, 0.03, 'pole')
    front = _sign_picture(rng)
    back = front.copy()
    back[..., :3] = 120
    name = paint.canvas(28, 128, (30, 60, 130))
    paint.write(name, f'{paint.shop_name(rng).split()[0]} ST', (4, 3, 124, 25), (240, 240, 240))
    half, at = 0.34, x + facing * 0.05
    for direction, picture in ((facing, front), (-facing, back)):
        for z, tall, wide, texture in (
            (2.85, 0.68, half, Texture.make(picture, is_cutout=True)),
            (
                2.12,
                0.16,
                0.36,
                Texture.make(paint.to_uint8(name if direction == facing else name * 0)),
            ),
        ):
            origin = (at, direction * -wide + y, z)
            quads.append(
                Quad(origin, (0, direction * 2 * wide, 0), (0, 0, -tall), texture, 'traffic sign')
            )
    return quads


def fence(rng: Rng, x0: float, x1: float, y: float) -> list[Quad]:
    """A railing along the kerb."""
    w = round((x1 - x0) * 60)
    rgba = np.zeros((66, w, 4), np.uint8)
    tone = paint.canvas(66, w, paint.vary(rng, (60, 74, 66), 14))
    tone += paint.noise(rng, 66, w, 50, 5)[..., None] * 14
    rgba[..., :3] = paint.to_uint8(tone)
    step = int(rng.integers(7, 12))
    for x in range(0, w, step):
        rgba[:, x : x + 2, 3] = 255
    for x in range(0, w, 90):
        rgba[:, x : x + 5, 3] = 255
    rgba[2:6, :, 3] = 255
    rgba[50:54, :, 3] = 255
    texture = Texture.make(rgba, is_cutout=True)
    start = (x0, y, 1.1 + KERB_Z)
    return [Quad(start, (x1 - x0, 0, 0), (0, 0, -1.1), texture, 'fence', is_two_sided=True)]


def cabinet(rng: Rng, x: float, y: float) -> list[Quad]:
    """A grey box with bills and tags on it."""
    size = rng.uniform([0.7, 0.3, 0.9], [1.3, 0.45, 1.4])
    picture = paint.canvas(96, 112, paint.vary(rng, (142, 146, 138), 14))
    picture += paint.noise(rng, 96, 112, 40, 5)[..., None] * 8
    for _ in range(int(rng.integers(1, 4))):
        bill = paint.poster(rng, int(rng.integers(18, 44)), int(rng.integers(14, 32)))
        paint.paste(picture, bill, int(rng.integers(0, 90)), int(rng.integers(0, 60)))
    paint.scrawl(rng, picture, 20, 60, 40)
    picture[:, 54:57] *= 0.6
    texture = Texture.make(paint.to_uint8(picture))
    low = (x - size[0] / 2, y - size[1] / 2, KERB_Z)
    return box(
        low, (x + size[0] / 2, y + size[1] / 2, KERB_Z + size[2]), texture, 'fence', 'xXyYZ'
    )


def bench(rng: Rng, x: float, y: float) -> list[Quad]:
    """Seat, back and two feet."""
    wood = paint.canvas(24, 120, paint.vary(rng, (130, 88, 52), 16))
    wood += paint.noise(rng, 24, 120, 20, 4)[..., None] * 12
    wood[::8] *= 0.5
    plank, foot = Texture.make(paint.to_uint8(wood)), Texture.plain((50, 50, 52))
    back = y + np.sign(y) * 0.22
    quads = box((x - 0.8, y - 0.2, 0.52), (x + 0.8, y + 0.2, 0.57), plank, 'bench')
    quads += box((x - 0.8, back - 0.02, 0.65), (x + 0.8, back + 0.02, 1.0), plank, 'bench')
    for end in (-0.65, 0.6):
        quads += box(
            (x + end, y - 0.2, KERB_Z), (x + end + 0.05, y + 0.2, 0.52), foot, 'bench', 'xXyY'
        )
    return quads


def furniture(rng: Rng, length: float, junction: tuple[float, float]) -> tuple[Mesh, Any]:
    """Everything on the pavements but trees; returns also the lamps (N, 3)."""
    quads: list[Quad] = []
    lamps = []
    for side in (-1.0, 1.0):
        y = side * (KERB_Y + 0.4)
        for x in np.arange(4.0 + 6 * (side > 0), length, 20.0):
            if not junction[0] - 1 < x < junction[1] + 1:
                more, light = lamp(rng, float(x), y)
                quads += more
                lamps.append(light)
        for x in np.arange(8.0, length, 15.0) + rng.uniform(-2, 2):
            if not junction[0] - 1 < x < junction[1] + 1:
                quads += traffic_sign(rng, float(x), y, -1.0 if rng.random() < 0.5 else 1.0)
        inner = side * (HOUSE_Y - 0.35)
        for x in rng.uniform(0, length, max(1, int(length / 22))):
            if not junction[0] < x < junction[1]:
                quads += cabinet(rng, float(x), inner)
        for x in rng.uniform(0, length, max(1, int(length / 40))):
            if not junction[0] < x < junction[1]:
                quads += bench(rng, float(x), side * (KERB_Y + 0.8))
        for x0, x1 in ((junction[0] - 8, junction[0] + 1.5), (junction[1] - 1.5, junction[1] + 8)):
            quads += fence(rng, x0, x1, side * (KERB_Y + 0.22))
    for x, side, facing in ((junction[0] + 1, -1.0, -1.0), (junction[1] - 1, 1.0, 1.0)):
        quads += traffic_light(rng, x, side * (KERB_Y + 0.45), facing)
        quads += traffic_light(rng, x, -side * (KERB_Y + 0.45), facing)
    return Mesh.of(quads), np.array(lamps, float).reshape(-1, 3)

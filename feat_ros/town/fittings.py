# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What stands out from a wall: balconies, shop signs, awnings, cornice, roof and gables."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from feat_ros.town import paint
from feat_ros.town.house import House, mottled, Opening, upright
from feat_ros.town.mesh import Quad, Texture
from feat_ros.town.paint import Rng


def balconies(house: House, openings: list[Opening]) -> list[Quad]:
    rng = house.rng
    if rng.random() < 0.4:
        return []
    windows = [o for o in openings if o.kind == 'window' and o.z > house.ground_floor]
    columns = sorted({o.x for o in windows})
    chosen = set(rng.choice(columns, max(1, len(columns) // 2), replace=False).tolist())
    quads: list[Quad] = []
    deep = float(rng.uniform(0.6, 1.1))
    railing = Texture.make(_railing(rng, round(deep * 60), 60), is_cutout=True)
    slab = Texture.make(mottled(house, 64, 96, house.rgb * 0.3 + 110))
    for o in windows:
        if o.x in chosen:
            quads += _balcony(house, o, deep, railing, slab)
    return quads


def _railing(rng: Rng, width: int, height: int) -> npt.NDArray[np.uint8]:
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[..., :3] = paint.vary(rng, (54, 56, 58), 18).astype(np.uint8)
    step = int(rng.integers(6, 10))
    for x in range(0, width, step):
        rgba[:, x : x + 2, 3] = 255
    rgba[:4, :, 3] = 255
    rgba[-4:, :, 3] = 255
    return rgba


def _balcony(house: House, o: Opening, deep: float, side: Texture, slab: Texture) -> list[Quad]:
    rng, wall = house.rng, house.wall
    x0, x1, z = o.x - 0.25, o.x + o.width + 0.25, o.z - 0.25
    w = x1 - x0
    if rng.random() < 0.6:
        rgba = _railing(rng, round(w * 60), 60)
        for _ in range(int(rng.integers(0, 4))):
            x = int(rng.integers(0, max(1, rgba.shape[1] - 16)))
            rgba[18:40, x : x + 16, 3] = 255
            rgba[18:40, x : x + 16, :3] = rng.integers(30, 210, 3)
        front = Texture.make(rgba, is_cutout=True)
    else:
        panel = paint.plaster(rng, 80, round(w * 80), 0.0125, paint.vary(rng, house.rgb, 25))
        paint.streaks(rng, panel, (0, 0), (panel.shape[1], 80))
        front = Texture.make(paint.to_uint8(panel))
    up = 1.0
    quads = [
        upright(house, x0, z, w, up, deep, front, 'balcony', is_two_sided=True),
        upright(house, x0, z - 0.15, w, 0.15, deep, slab, 'balcony'),
        Quad(wall.point(x0, z, 0), wall.step(w, 0, 0), wall.step(0, 0, deep), slab, 'balcony'),
        Quad(
            wall.point(x0, z - 0.15, deep),
            wall.step(w, 0, 0),
            wall.step(0, 0, -deep),
            slab,
            'balcony',
        ),
    ]
    for edge, start, across in ((x0, 0.0, deep), (x1, deep, -deep)):
        for top, tall, texture, both in ((z + up, up, side, True), (z, 0.15, slab, False)):
            quads.append(
                Quad(
                    wall.point(edge, top, start),
                    wall.step(0, 0, across),
                    wall.step(0, -tall, 0),
                    texture,
                    'balcony',
                    is_two_sided=both,
                )
            )
    return quads


def shop_boards(house: House, openings: list[Opening]) -> list[Quad]:
    """The board over the shop windows, an awning and a sign that stands out."""
    shops = [o for o in openings if o.kind == 'shop window']
    if not shops:
        return []
    rng, wall, m = house.rng, house.wall, house.texel_m
    quads = []
    left, right = min(o.x for o in shops), max(o.x + o.width for o in shops)
    z, tall = shops[0].z + shops[0].height + 0.1, 0.62
    board = _sign(rng, round(tall / m), round((right - left) / m), paint.shop_name(rng))
    texture = Texture.make(board)
    quads.append(upright(house, left, z, right - left, tall, 0.1, texture, 'shop sign', glow=0.5))
    under = Texture.plain((60, 58, 56))
    quads.append(
        Quad(
            wall.point(left, z, 0.1),
            wall.step(right - left, 0, 0),
            wall.step(0, 0, -0.1),
            under,
            'shop sign',
        )
    )
    if rng.random() < 0.5:
        o = shops[int(rng.integers(len(shops)))]
        cloth = _awning(rng, 110, round(o.width / m))
        quads.append(
            Quad(
                wall.point(o.x, z, 0.02),
                wall.step(o.width, 0, 0),
                wall.step(0, -0.5, 1.1),
                Texture.make(cloth),
                'shop sign',
                is_two_sided=True,
            )
        )
    if rng.random() < 0.7:
        x, z = rng.uniform(0.2, wall.width - 0.2), house.ground_floor + 0.1
        picture = _sign(rng, 64, 72, paint.shop_name(rng).split()[0][:6])
        for flip, start, across in ((1, 0.15, 0.8), (-1, 0.95, -0.8)):
            quads.append(
                Quad(
                    wall.point(x + 0.01 * flip, z + 0.7, start),
                    wall.step(0, 0, across),
                    wall.step(0, -0.7, 0),
                    Texture.make(picture),
                    'shop sign',
                    glow=0.4,
                )
            )
    return quads


def _sign(rng: Rng, h: int, w: int, text: str) -> npt.NDArray[np.uint8]:
    ground = rng.uniform(15, 235, 3)
    picture = paint.canvas(h, w, ground)
    picture += paint.noise(rng, h, w, h / 2, 4)[..., None] * 8
    ink = rng.uniform(215, 255, 3) if ground.mean() < 125 else rng.uniform(5, 70, 3)
    border = max(1, h // 16)
    for s in (np.s_[:border], np.s_[-border:], np.s_[:, :border], np.s_[:, -border:]):
        picture[s] = ink * 0.7 + ground * 0.3
    clean = picture.copy()
    paint.write(picture, text, (w * 0.05, h * 0.12, w * 0.95, h * 0.88), ink, int(rng.integers(5)))
    glow = np.where(np.abs(picture - clean).sum(axis=2) > 20, 255, 90).astype(np.uint8)
    paint.grain(rng, picture, 1.5)
    return np.dstack([paint.to_uint8(picture), glow])


def _awning(rng: Rng, h: int, w: int) -> npt.NDArray[np.uint8]:
    one, two = rng.uniform(30, 220, 3), rng.uniform(190, 240, 3)
    stripe = (np.arange(w) // int(rng.integers(14, 30))) % 2
    picture = np.where(stripe[None, :, None] == 0, one, two).astype(np.float32)
    picture = np.repeat(picture, h, axis=0)
    picture += paint.noise(rng, h, w, 40, 4)[..., None] * 10
    picture[-12:] *= 0.85
    return paint.to_uint8(picture)


def cornice_and_roof(house: House) -> list[Quad]:
    """Cornice and roof."""
    rng, wall, m = house.rng, house.wall, house.texel_m
    out, tall = float(rng.uniform(0.2, 0.5)), float(rng.uniform(0.25, 0.6))
    stone = paint.canvas(round(tall / m), house.width, house.rgb * 0.4 + 115)
    stone += paint.noise(rng, stone.shape[0], stone.shape[1], 0.6 / m, 5)[..., None] * 10
    pitch = max(8, round(rng.uniform(0.25, 0.5) / m))
    dentils = (np.arange(house.width) % pitch) < pitch // 2
    stone[stone.shape[0] // 2 :, dentils] *= 0.72
    front = Texture.make(paint.to_uint8(stone))
    under = Texture.make(mottled(house, max(1, round(out / m)), house.width // 2, (96, 92, 86)))
    quads = [
        upright(house, 0, house.top, wall.width, tall, out, front, 'building'),
        Quad(
            wall.point(0, house.top, out),
            wall.step(wall.width, 0, 0),
            wall.step(0, 0, -out),
            under,
            'building',
        ),
    ]
    for x, start, across in ((0.0, 0.0, out), (wall.width, out, -out)):
        quads.append(
            Quad(
                wall.point(x, house.top + tall, start),
                wall.step(0, 0, across),
                wall.step(0, -tall, 0),
                under,
                'building',
            )
        )
    slope = rng.uniform(0.45, 0.85)
    house.eaves, house.roof_top = house.top + tall, house.top + tall + (5 - out) * slope
    tiles = paint.bricks(
        rng, 240, round(wall.width * 40), 0.025, paint.vary(rng, (120, 66, 50), 30), (0.24, 0.3)
    )
    tiles += paint.noise(rng, tiles.shape[0], tiles.shape[1], 60, 5)[..., None] * 12
    texture, ridge = Texture.make(paint.to_uint8(tiles)), house.top + tall + 5 * slope
    for x, way in ((0.0, 1.0), (wall.width, -1.0)):
        quads.append(
            Quad(
                wall.point(x, ridge, out - 5.0),
                wall.step(way * wall.width, 0, 0),
                wall.step(0, -5 * slope, way * 5.0),
                texture,
                'building',
            )
        )
    return quads


def gables(house: House, corner: str) -> list[Quad]:
    """Side walls under the roof, 10 m deep; at a corner behind the next house's glass."""
    wall, m = house.wall, 4 * house.texel_m
    quads = []
    for end in 'LR':
        top = house.roof_top
        h, w = round(top / m), round(10 / m)
        picture = paint.plaster(house.rng, h, w, m, house.rgb * 0.9)
        for _ in range(3):
            paint.blot(house.rng, picture, m, house.rgb * house.rng.uniform(0.6, 1.2), 0.4)
            paint.crack(house.rng, picture, m)
        paint.grain(house.rng, picture, 2.5)
        roof = top - (top - house.eaves) * np.abs(np.arange(w) * m / 5 - 1)
        alpha = np.where((top - np.arange(h) * m)[:, None] <= roof[None, :], 255, 0)
        texture = Texture.make(
            np.dstack([paint.to_uint8(picture), alpha.astype(np.uint8)]), is_cutout=True
        )
        inset = 0.45 if end == corner else 0.0
        x, start, across = (inset, -10.0, 10.0) if end == 'L' else (wall.width - inset, 0.0, -10.0)
        quads.append(
            Quad(
                wall.point(x, top, start),
                wall.step(0, 0, across),
                wall.step(0, -top, 0),
                texture,
                'building',
            )
        )
    return quads

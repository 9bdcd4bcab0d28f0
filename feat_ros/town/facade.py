# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Houses: a wall with holes, the glass behind it, and what stands out from it.

One texture is the wall; a second one lies behind it and has the windows and doors; strips at right
angles join the two, so that recesses and balconies move as they should.
"""

from __future__ import annotations

import numpy as np

from feat_ros.town import paint
from feat_ros.town.fittings import balconies, cornice_and_roof, gables, shop_boards
from feat_ros.town.house import House, Opening, upright, Wall
from feat_ros.town.mesh import Mesh, Quad, Texture
from feat_ros.town.paint import Picture, Rng
from feat_ros.town.windows import glass, reveals

_WALLS = (
    (150, 78, 60),
    (126, 66, 52),
    (168, 120, 88),
    (196, 178, 146),
    (208, 196, 176),
    (182, 150, 112),
    (150, 154, 150),
    (202, 172, 132),
    (158, 166, 172),
    (188, 138, 118),
    (214, 206, 190),
    (170, 176, 150),
    (120, 104, 92),
)
_FRAMES = ((236, 234, 228), (70, 58, 48), (44, 60, 52), (60, 64, 70), (150, 120, 84))


def build_house(rng: Rng, wall: Wall, texel_m: float, corner: str) -> Mesh:
    """Make one house; no two calls draw the same picture.

    :param corner: 'L' or 'R' where another house's front begins at that end, else empty.
    """
    house = House(
        rng,
        wall,
        texel_m,
        float(rng.uniform(3.3, 4.2)),
        float(rng.uniform(2.9, 3.5)),
        float(rng.uniform(0.12, 0.3)),
        paint.vary(rng, _WALLS[int(rng.integers(len(_WALLS)))], 12),
        paint.vary(rng, _FRAMES[int(rng.integers(len(_FRAMES)))], 8),
    )
    openings = _layout(house)
    front = _paint_wall(house, openings)
    quads = [_front_quad(house, front, openings)]
    quads += glass(house, openings)
    quads += reveals(house, openings)
    quads += balconies(house, openings)
    quads += shop_boards(house, openings)
    quads += cornice_and_roof(house)
    quads += gables(house, corner)
    return Mesh.of(quads)


def _layout(house: House) -> list[Opening]:
    rng, wall = house.rng, house.wall
    columns = max(2, int(wall.width / rng.uniform(2.0, 2.9)))
    pitch = wall.width / columns
    width, height = pitch * rng.uniform(0.38, 0.58), house.floor * rng.uniform(0.5, 0.62)
    sill = house.floor * rng.uniform(0.22, 0.3)
    out = []
    for floor in range(wall.floors):
        base = house.ground_floor + floor * house.floor
        tall = height * (0.82 if floor == wall.floors - 1 else 1.0)
        out += [
            Opening((c + 0.5) * pitch - width / 2, base + sill, width, tall, 'window')
            for c in range(columns)
        ]
    door = int(rng.integers(columns))
    is_shop = rng.random() < 0.6
    for c in range(columns):
        left = c * pitch
        if c == door:
            w = min(1.25, pitch * 0.7)
            at = left + (pitch - w) / 2
            out.append(Opening(at, 0.13, w, house.ground_floor - 1.0, 'door'))
        elif is_shop:
            out.append(
                Opening(left + 0.14, 0.5, pitch - 0.28, house.ground_floor - 1.45, 'shop window')
            )
        else:
            bottom = rng.uniform(0.9, 1.2)
            tall = house.ground_floor - bottom - 0.8
            out.append(Opening(left + (pitch - width) / 2, bottom, width, tall, 'window'))
    snap = house.snap
    return [Opening(snap(o.x), snap(o.z), snap(o.width), snap(o.height), o.kind) for o in out]


def _paint_wall(house: House, openings: list[Opening]) -> Picture:
    rng, h, w, m = house.rng, house.height, house.width, house.texel_m
    kind = rng.integers(4)
    if kind == 0:
        picture = paint.bricks(rng, h, w, m, house.rgb, (0.25, 0.077))
    elif kind == 1:
        size = (rng.uniform(0.5, 0.9), rng.uniform(0.25, 0.4))
        picture = paint.bricks(rng, h, w, m, house.rgb, size)
    else:
        picture = paint.plaster(rng, h, w, m, house.rgb)
    picture += paint.noise(rng, h, w, 1.2 / m, 5)[..., None] * np.float32(rng.uniform(4, 9))
    _base_course(house, picture)
    for _ in range(int(rng.integers(1, 4))):
        mean = house.rgb.mean()
        paint.blot(rng, picture, m, house.rgb * rng.uniform(0.5, 1.25), min(0.6, 60 / mean))
    _bands(house, picture)
    for o in openings:
        _surround(house, picture, o)
    for _ in range(int(house.wall.width)):
        at = (int(rng.integers(0, w)), int(rng.integers(0, h // 2)))
        paint.streaks(rng, picture, at, (int(rng.uniform(0.1, 0.9) / m), int(3.0 / m)))
    for _ in range(int(rng.integers(4, 12))):
        paint.crack(rng, picture, m)
    _fixtures(house, picture, openings)
    paint.grain(rng, picture, 2.2)
    paint.relief(picture, 0.25)
    shade = np.linspace(1.03, 0.8, h, dtype=np.float32)[:, None, None]
    return paint.fade(picture * np.minimum(shade, np.float32(1.0)), m)


def _base_course(house: House, picture: Picture) -> None:
    rng, m = house.rng, house.texel_m
    top = rng.uniform(0.4, 0.9) if rng.random() < 0.6 else house.ground_floor - 0.15
    rows = house.rows(0, top)
    shape = picture[rows].shape
    rgb = paint.vary(rng, (134, 126, 116), 22)
    if rng.random() < 0.6:
        size = (rng.uniform(0.5, 1.1), rng.uniform(0.25, 0.45))
        picture[rows] = paint.bricks(rng, shape[0], shape[1], m, rgb, size)
    else:
        picture[rows] = paint.plaster(rng, shape[0], shape[1], m, rgb)
    picture[rows.start : rows.start + max(1, round(0.05 / m))] *= 0.7


def _bands(house: House, picture: Picture) -> None:
    rng = house.rng
    for floor in range(house.wall.floors + 1):
        z = house.ground_floor + floor * house.floor - 0.1
        if floor == 0 or rng.random() < 0.5:
            thick = rng.uniform(0.08, 0.3)
            rows = house.rows(z, z + thick)
            picture[rows] = picture[rows] * 0.4 + paint.vary(rng, (200, 192, 176), 25) * 0.6
            picture[house.rows(z - 0.04, z)] *= 0.55
            picture[house.rows(z + thick, z + thick + 0.02)] *= 1.12


def _surround(house: House, picture: Picture, o: Opening) -> None:
    rng, m = house.rng, house.texel_m
    edge = 0.06 + 0.1 * float(house.rgb[0] % 1)
    rows, columns = (
        house.rows(o.z - 0.02, o.z + o.height + edge),
        house.columns(o.x - edge, o.x + o.width + edge),
    )
    tone = paint.vary(rng, house.rgb * 0.4 + 120, 9)
    picture[rows, columns] = picture[rows, columns] * 0.3 + tone * 0.7
    if o.kind == 'window':
        lintel = house.rows(o.z + o.height + edge, o.z + o.height + edge + 0.12)
        picture[lintel, columns] = picture[lintel, columns] * 0.5 + tone * 0.45
        sill = house.rows(o.z - 0.09, o.z), house.columns(o.x - 0.1, o.x + o.width + 0.1)
        picture[sill] = tone * rng.uniform(1.0, 1.15)
        picture[house.rows(o.z - 0.16, o.z - 0.09), sill[1]] *= 0.6
        at = (house.column(o.x - 0.1), house.row(o.z - 0.1))
        paint.streaks(rng, picture, at, (int((o.width + 0.2) / m), int(rng.uniform(0.5, 1.6) / m)))


def _fixtures(house: House, picture: Picture, openings: list[Opening]) -> None:
    """Posters, tags, boxes, plates, pipes and vents on the lower wall."""
    rng, m = house.rng, house.texel_m
    for _ in range(int(rng.integers(3, 8))):
        high, wide = rng.uniform(0.25, 0.9), rng.uniform(0.2, 0.6)
        x, z = rng.uniform(0.1, house.wall.width - 0.7), rng.uniform(0.9, 2.4)
        bill = paint.poster(rng, max(6, int(high / m)), max(6, int(wide / m)))
        paint.paste(picture, bill, house.column(x), house.row(z))
    for _ in range(int(rng.integers(0, 4))):
        x, z = rng.uniform(0.2, house.wall.width - 1), rng.uniform(0.5, 1.7)
        size = int(rng.uniform(0.3, 0.8) / m)
        paint.scrawl(rng, picture, house.column(x), house.row(z), size)
    for _ in range(int(rng.integers(1, 5))):
        x, z = rng.uniform(0.1, house.wall.width - 0.5), rng.uniform(0.4, house.top - 0.6)
        area = (
            house.rows(z, z + rng.uniform(0.15, 0.5)),
            house.columns(x, x + rng.uniform(0.1, 0.4)),
        )
        picture[area] = paint.vary(rng, (128, 128, 124), 40)
        picture[area[0].start : area[0].stop : max(2, round(0.05 / m)), area[1]] *= 0.7
    door = next(o for o in openings if o.kind == 'door')
    x, z = door.x + door.width + 0.15, 1.9
    plate = (house.column(x), house.row(z + 0.22), house.column(x + 0.3), house.row(z))
    picture[plate[1] : plate[3], plate[0] : plate[2]] = (28, 52, 120)
    paint.write(picture, str(rng.integers(1, 99)), plate, (240, 240, 240))


def _front_quad(house: House, picture: Picture, openings: list[Opening]) -> Quad:
    alpha = np.full(picture.shape[:2], 255, np.uint8)
    for o in openings:
        alpha[house.area(o)] = 0
    texture = Texture.make(np.dstack([paint.to_uint8(picture), alpha]), is_cutout=True)
    return upright(house, 0.0, 0.0, house.wall.width, house.top, 0.0, texture, 'building')

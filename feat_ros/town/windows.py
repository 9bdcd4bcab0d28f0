# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Glass, frames and doors behind the holes of a wall, and the sides of the holes."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.town import paint
from feat_ros.town.house import House, mottled, Opening, upright
from feat_ros.town.mesh import Quad, Texture
from feat_ros.town.paint import Picture, Rng


def glass(house: House, openings: list[Opening]) -> list[Quad]:
    """One strip of glass per floor; doors and shop windows are in the strip of the ground."""
    quads = []
    for floor in range(-1, house.wall.floors):
        z0 = 0.0 if floor < 0 else house.ground_floor + floor * house.floor
        z1 = house.ground_floor + (floor + 1) * house.floor
        mine = [o for o in openings if z0 <= o.z < z1]
        bottom, top = min(o.z for o in mine), max(o.z + o.height for o in mine)
        shape = (round((top - bottom) / house.texel_m), house.width)
        strip = np.zeros((*shape, 4), np.float32)
        strip[..., :3] = house.rgb * 0.35 + 100
        for o in mine:
            cell = _paint_opening(house, o)
            paint.paste(
                strip, cell, house.column(o.x), round((top - o.z - o.height) / house.texel_m)
            )
        texture = Texture.make(np.clip(np.rint(strip), 0, 255).astype(np.uint8))
        label = 'window'
        quads.append(
            upright(
                house,
                0,
                bottom,
                house.wall.width,
                top - bottom,
                -house.recess,
                texture,
                label,
                glow=1.0,
            )
        )
    return quads


def _paint_opening(house: House, o: Opening) -> npt.NDArray[np.float32]:
    """Picture (h, w, 4) of a window or door; the fourth channel glows at night."""
    shape = (round(o.height / house.texel_m) + 1, round(o.width / house.texel_m) + 1)
    if o.kind == 'door':
        return _paint_door(house, shape)
    rng, m = house.rng, house.texel_m
    h, w = shape
    sky = np.linspace(rng.uniform(95, 150), rng.uniform(30, 70), h, dtype=np.float32)[
        :, None, None
    ]
    picture = sky * np.array([0.86, 0.95, 1.06], np.float32) + np.zeros((h, w, 1), np.float32)
    picture += paint.noise(rng, h, w, max(4.0, h / 3), 3)[..., None] * np.float32(14)
    if o.kind == 'shop window':
        _display(rng, picture)
    else:
        _curtains(rng, picture)
    light = 0.0
    if rng.random() < (0.75 if o.kind == 'shop window' else 0.4):
        light = rng.uniform(90, 255)
    glow = np.full((h, w), light, np.float32)
    _frame(house, picture, glow, o.kind, m)
    return np.dstack([paint.fade(picture, m), glow])


def _curtains(rng: Rng, picture: Picture) -> None:
    h, w = picture.shape[:2]
    style = rng.random()
    tone = paint.vary(rng, (205, 196, 180), 30)
    folds = paint.noise(rng, 1, w, max(2.0, w / 10), 3) * np.float32(16)
    if style < 0.45:
        reach = int(w * rng.uniform(0.12, 0.36))
        for side in (np.s_[:, :reach], np.s_[:, w - reach :]):
            picture[side] = picture[side] * 0.15 + tone * 0.8
            picture[side] += folds[:, side[1], None]
    elif style < 0.65:
        rows = np.s_[: int(h * rng.uniform(0.2, 0.95))]
        picture[rows] = tone * 0.8
        picture[rows][:: max(2, h // 24)] *= 0.75
    if rng.random() < 0.4:
        for _ in range(int(rng.integers(1, 4))):
            at, r = int(rng.integers(0, w)), max(2, int(w * rng.uniform(0.05, 0.12)))
            for _ in range(14):
                leaf = (int(at + rng.normal(0, 0.6) * r), int(h - r * rng.uniform(1.0, 3.2)))
                tone = paint.vary(rng, (64, 94, 46), 18).tolist()
                cv2.ellipse(picture, leaf, (r // 2 + 1, r // 4 + 1), 40, 0, 360, tone, -1)
            picture[h - r :, max(0, at - r) : at + r] = paint.vary(rng, (150, 84, 56), 25)


def _display(rng: Rng, picture: Picture) -> None:
    h, w = picture.shape[:2]
    picture *= 0.75
    shelf = h // int(rng.integers(2, 5))
    for bottom in range(h, shelf // 2, -shelf):
        x = int(rng.integers(2, 8))
        while x < w - 8:
            wide, high = int(rng.uniform(0.03, 0.16) * w) + 3, int(shelf * rng.uniform(0.3, 0.85))
            item = paint.poster(rng, max(6, high), wide) if rng.random() < 0.4 else None
            top = max(0, bottom - high)
            if item is None:
                picture[top:bottom, x : x + wide] = paint.vary(rng, (110, 104, 96), 45)
            else:
                paint.paste(picture, item, x, top)
            x += wide + int(rng.integers(2, max(3, w // 12)))
        picture[max(0, bottom - 3) : bottom] *= 0.5
    if rng.random() < 0.6:
        box = (w * 0.1, h * 0.05, w * 0.9, h * rng.uniform(0.14, 0.26))
        paint.write(picture, paint.shop_name(rng), box, rng.uniform(120, 255, 3))


def _frame(house: House, picture: Picture, glow: Picture, kind: str, m: float) -> None:
    rng = house.rng
    h, w = glow.shape
    t = max(2, round(rng.uniform(0.05, 0.07) / m))
    bars = [np.s_[:t, :], np.s_[h - t :, :], np.s_[:, :t], np.s_[:, w - t :]]
    style = int(house.rgb[1]) % 3 if kind == 'window' else 3
    if style != 2:
        bars.append(np.s_[:, w // 2 - t // 2 : w // 2 + t // 2 + 1])
    if style in (0, 3):
        at = round(h * 0.3)
        bars.append(np.s_[at : at + t, :])
    if style == 1 and w > 12 * t:
        bars += [np.s_[h * k // 3 : h * k // 3 + max(1, t // 2), :] for k in (1, 2)]
    for bar in bars:
        picture[bar] = paint.vary(rng, house.frame_rgb, 4)
        glow[bar] = 0
    for bar in bars[:1] + bars[2:3]:
        inner = tuple(
            slice(s.stop, s.stop + max(1, t // 2)) if s.stop is not None else s for s in bar
        )
        picture[inner] *= 0.55
    paint.grain(rng, picture, 1.2)


def _paint_door(house: House, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    rng, m = house.rng, house.texel_m
    h, w = shape
    rgb = paint.vary(
        rng, ((86, 52, 36), (40, 66, 56), (110, 36, 34), (52, 60, 84))[rng.integers(4)], 12
    )
    picture = paint.canvas(h, w, rgb)
    picture += paint.noise(rng, h, w, 0.6 / m, 4)[..., None] * 7
    glow = np.zeros((h, w), np.float32)
    light = round(h * 0.16)
    picture[:light] = (74, 84, 92)
    glow[:light] = rng.choice([0, 150])
    rows = int(rng.integers(2, 5))
    for row in range(rows):
        for column in range(2):
            y0 = light + round((h - light) * (row + 0.12) / rows)
            y1 = light + round((h - light) * (row + 0.9) / rows)
            x0, x1 = round(w * (column + 0.14) / 2), round(w * (column + 0.86) / 2)
            picture[y0:y1, x0:x1] *= 0.82
            picture[y0 : y0 + max(1, round(0.02 / m)), x0:x1] *= 0.6
            picture[y1 - max(1, round(0.02 / m)) : y1, x0:x1] *= 1.35
    picture[light : light + max(1, round(0.07 / m))] = rgb * 0.6
    y, x = light + round((h - light) * 0.5), round(w * 0.46)
    picture[y : y + max(2, round(0.12 / m)), x : x + max(2, round(0.04 / m))] = (190, 170, 110)
    paint.grain(rng, picture, 1.5)
    return np.dstack([picture, glow])


def reveals(house: House, openings: list[Opening]) -> list[Quad]:
    """Jambs, sills and lintels between the wall and the glass: one strip per line of edges."""
    wall, r, m = house.wall, house.recess, house.texel_m
    tone = np.rint(house.rgb * 0.35 + 110).astype(np.uint8)
    quads = []
    deep = max(1, round(r / m))
    for x, is_left in sorted(
        {(o.x, True) for o in openings} | {(o.x + o.width, False) for o in openings}
    ):
        mine = [o for o in openings if abs((o.x if is_left else o.x + o.width) - x) < 1e-9]
        rgba = np.zeros((house.height, deep, 4), np.uint8)
        rgba[..., :3] = mottled(house, house.height, deep, tone * 0.92)
        for o in mine:
            rgba[house.rows(o.z, o.z + o.height), :, 3] = 255
        z0, z1 = min(o.z for o in mine), max(o.z + o.height for o in mine)
        rgba = rgba[house.rows(z0, z1)]
        texture = Texture.make(rgba, is_cutout=True)
        if is_left:
            start, across = wall.point(x, z1, -0.0), wall.step(0, 0, -r)
        else:
            start, across = wall.point(x, z1, -r), wall.step(0, 0, r)
        quads.append(Quad(start, across, wall.step(0, z0 - z1, 0), texture, 'building'))
    levels = {(o.z, True) for o in openings} | {(o.z + o.height, False) for o in openings}
    for z, is_sill in sorted(levels):
        if is_sill and z > 3.0:
            continue
        mine = [o for o in openings if abs((o.z if is_sill else o.z + o.height) - z) < 1e-9]
        rgba = np.zeros((deep, house.width, 4), np.uint8)
        rgba[..., :3] = mottled(house, deep, house.width, tone * (1.0 if is_sill else 0.7))
        for o in mine:
            rgba[:, house.columns(o.x, o.x + o.width), 3] = 255
        texture = Texture.make(rgba, is_cutout=True)
        if is_sill:
            start, down = wall.point(0, z, -r), wall.step(0, 0, r)
        else:
            start, down = wall.point(0, z, 0), wall.step(0, 0, -r)
        quads.append(Quad(start, wall.step(wall.width, 0, 0), down, texture, 'building'))
    return quads

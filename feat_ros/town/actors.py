# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What moves or changes: cars, people, cyclists and trees.

Each is made standing at the origin, looking along +x, its foot at z = 0.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.town import paint
from feat_ros.town.mesh import box, Mesh, Quad, Texture
from feat_ros.town.paint import Rng

_CAR_COLOURS = (
    (176, 178, 182),
    (36, 38, 42),
    (224, 224, 222),
    (128, 22, 26),
    (34, 58, 112),
    (92, 98, 104),
    (40, 74, 58),
    (186, 148, 72),
)
# Outline from the rear bumper over the roof to the front, (x, z) as shares of length and height.
_OUTLINES = {
    'hatch': ((-0.5, 0.6), (-0.47, 0.66), (-0.38, 0.97), (0.08, 1.0), (0.27, 0.66), (0.48, 0.5)),
    'saloon': ((-0.5, 0.6), (-0.36, 0.66), (-0.2, 0.97), (0.06, 1.0), (0.24, 0.66), (0.48, 0.5)),
    'van': ((-0.5, 0.56), (-0.495, 0.6), (-0.48, 0.98), (0.22, 1.0), (0.37, 0.6), (0.48, 0.48)),
}
_SIZES = {'hatch': (3.9, 1.72, 1.5), 'saloon': (4.5, 1.78, 1.44), 'van': (4.9, 1.9, 1.95)}
_PER_M = 80
_TILT = 0.16


def car(rng: Rng) -> tuple[Mesh, tuple[float, float]]:
    """One car of its own colour and plate; returns also its length and width."""
    kind = str(rng.choice(list(_OUTLINES), p=(0.45, 0.4, 0.15)))
    size = np.array(_SIZES[kind]) * rng.uniform(0.96, 1.04)
    length, width, height = (float(v) for v in size)
    rgb = paint.vary(rng, _CAR_COLOURS[int(rng.integers(len(_CAR_COLOURS)))], 10)
    outline = np.array(_OUTLINES[kind]) * [length, height]
    belt = float(outline[1, 1])
    quads = _car_sides(rng, outline, (length, width, height), rgb, belt)
    quads += _car_strips(rng, outline, (length, width, height), rgb)
    return Mesh.of(quads), (length, width)


def _car_sides(
    rng: Rng, outline: Any, size: tuple[float, float, float], rgb: Any, belt: float
) -> list[Quad]:
    length, width, _ = size
    lower = Texture.make(_car_body(rng, outline, size, rgb, belt), is_cutout=True)
    upper_picture, (rear, front, top) = _car_glass(rng, outline, rgb, belt)
    upper = Texture.make(upper_picture, is_cutout=True)
    half = width / 2
    quads = []
    for side in (-1.0, 1.0):
        # Seen from -y the front is at the right; from +y the picture is mirrored about x.
        flip = -side
        x0 = -length / 2 * flip
        lowered = (flip * length, 0, 0), (0, 0, -belt)
        texture = lower if side < 0 else Texture.make(lower.levels[0][:, ::-1], is_cutout=True)
        quads.append(Quad((x0, side * half, belt), *lowered, texture, 'car'))
        texture = upper if side < 0 else Texture.make(upper.levels[0][:, ::-1], is_cutout=True)
        start = rear if flip > 0 else front
        quads.append(
            Quad(
                (start, side * (half - _TILT), top),
                (flip * (front - rear), 0, 0),
                (0, side * _TILT, belt - top),
                texture,
                'car',
            )
        )
    return quads


def _car_body(
    rng: Rng, outline: Any, size: tuple[float, float, float], rgb: Any, belt: float
) -> npt.NDArray[np.uint8]:
    length = size[0]
    h, w = round(belt * _PER_M), round(length * _PER_M)
    shade = np.interp(np.linspace(0, 1, h), [0, 0.25, 0.3, 0.75, 1], [1.1, 1.0, 0.78, 0.7, 0.5])
    picture = paint.canvas(h, w, rgb) * shade[:, None, None].astype(np.float32)
    picture += paint.noise(rng, h, w, 40, 3)[..., None] * 3
    alpha = np.zeros((h, w), np.uint8)
    sill = round((belt - 0.2) * _PER_M)
    hood = round((belt - float(outline[5, 1])) * _PER_M)
    scuttle = round((float(outline[4, 0]) / length + 0.5) * w)
    shape = [(0, 0), (scuttle, 0), (w - 6, hood), (w - 1, hood + 8), (w - 1, sill), (0, sill)]
    cv2.fillPoly(alpha, [np.array(shape, np.int32)], 255, cv2.LINE_AA)
    for x in (0.36, 0.56, 0.7):
        line = round(w * x)
        picture[2:sill, line : line + 1] *= 0.45
    for x in (0.4, 0.58):
        picture[round(h * 0.2) : round(h * 0.2) + 3, round(w * x) : round(w * x) + 12] *= 0.5
    picture[round(h * 0.62) : round(h * 0.66)] *= 0.6
    radius = round(0.31 * _PER_M)
    for x in (0.2, 0.81):
        centre = (round(w * x), h - radius)
        cv2.circle(picture, centre, radius + 5, (10, 10, 10), -1, cv2.LINE_AA)
        cv2.circle(alpha, centre, radius, 255, -1, cv2.LINE_AA)
        cv2.circle(picture, centre, radius, (30, 30, 31), -1, cv2.LINE_AA)
        cv2.circle(picture, centre, round(radius * 0.64), (150, 152, 156), -1, cv2.LINE_AA)
        spokes = int(rng.integers(5, 9))
        for k in range(spokes):
            a = 2 * np.pi * k / spokes
            at = (
                round(centre[0] + radius * 0.42 * np.cos(a)),
                round(centre[1] + radius * 0.42 * np.sin(a)),
            )
            cv2.circle(picture, at, max(2, radius // 8), (48, 48, 50), -1, cv2.LINE_AA)
    picture[round(h * 0.16) : round(h * 0.3), w - 22 : w - 2] = (225, 225, 215)
    picture[round(h * 0.1) : round(h * 0.34), 1:16] = (150, 20, 20)
    return np.dstack([paint.to_uint8(picture), alpha])


def _car_glass(
    rng: Rng, outline: Any, rgb: Any, belt: float
) -> tuple[npt.NDArray[np.uint8], tuple[float, float, float]]:
    rear, front = float(outline[0, 0]), float(outline[4, 0])
    top = float(outline[3, 1])
    h, w = round((top - belt) * _PER_M), round((front - rear) * _PER_M)
    picture = paint.canvas(h, w, rgb)
    alpha = np.zeros((h, w), np.uint8)
    corners = (outline[1:5] - [rear, belt]) * _PER_M
    corners[:, 1] = h - corners[:, 1]
    cv2.fillPoly(alpha, [np.round(corners).astype(np.int32)], 255, cv2.LINE_AA)
    middle = corners.mean(axis=0)
    pane = np.round(middle + (corners - middle) * [0.88, 0.74]).astype(np.int32)
    cv2.fillPoly(picture, [pane], (46, 52, 58), cv2.LINE_AA)
    shine = np.linspace(26, 0, h, dtype=np.float32)[:, None, None]
    is_pane = np.abs(picture - [46, 52, 58]).sum(axis=2) < 3
    picture += shine * is_pane[..., None]
    for x in (0.42, 0.7):
        picture[:, round(w * x) : round(w * x) + 5] = rgb * 0.35
    picture += paint.noise(rng, h, w, 20, 3)[..., None] * 3
    return np.dstack([paint.to_uint8(picture), alpha]), (rear, front, top)


def _car_strips(rng: Rng, outline: Any, size: tuple[float, float, float], rgb: Any) -> list[Quad]:
    """Front, rear and what lies between along the outline."""
    length, width, _ = size
    half = width / 2
    dark = np.array([40, 46, 52], np.float32)
    light = np.array(rgb) * 1.15
    quads = []
    for k, (low_rgb, pinch) in enumerate(
        ((rgb, ''), (dark, 'up'), (light, 'roof'), (dark, 'down'), (light, ''))
    ):
        a, b = outline[k], outline[k + 1]
        inner = half - _TILT if pinch == 'roof' else half
        w, h = round(2 * inner * 60), max(4, round(float(np.hypot(*(b - a))) * 60))
        picture = paint.canvas(h, w, low_rgb)
        picture += paint.noise(rng, h, w, 40, 4)[..., None] * 4
        alpha = np.full((h, w), 255, np.uint8)
        if pinch in ('up', 'down'):
            picture += np.linspace(34, 0, h, dtype=np.float32)[:, None, None]
            edge = max(2, h // 14)
            for bar in (np.s_[:edge], np.s_[-edge:]):
                picture[bar] = rgb
            # Texture rows run from b to a; the upper end is narrower, but overlaps the sides.
            share = np.linspace(0, 1, h) if pinch == 'down' else np.linspace(1, 0, h)
            cut = 0.9 * _TILT * 60 * share
            columns = np.arange(w)[None, :]
            inside = np.minimum(columns, w - 1 - columns)
            alpha[inside < cut[:, None]] = 0
            picture[(inside < cut[:, None] + 4)] = rgb
        texture = Texture.make(np.dstack([paint.to_uint8(picture), alpha]), is_cutout=True)
        quads.append(
            Quad(
                (b[0], inner, b[1]),
                (0, -2 * inner, 0),
                (a[0] - b[0], 0, a[1] - b[1]),
                texture,
                'car',
            )
        )
    front, rear = (
        _car_face(rng, width, float(outline[5, 1]), rgb, True),
        _car_face(rng, width, float(outline[0, 1]), rgb, False),
    )
    quads.append(
        Quad(
            (length / 2, -half, float(outline[5, 1])),
            (0, width, 0),
            (0, 0, 0.22 - float(outline[5, 1])),
            front,
            'car',
            glow=6.0,
        )
    )
    quads.append(
        Quad(
            (-length / 2, half, float(outline[0, 1])),
            (0, -width, 0),
            (0, 0, 0.22 - float(outline[0, 1])),
            rear,
            'car',
            glow=1.5,
        )
    )
    return quads


def _car_face(rng: Rng, width: float, top: float, rgb: Any, is_front: bool) -> Texture:
    h, w = round((top - 0.22) * _PER_M), round(width * _PER_M)
    shade = np.linspace(1.0, 0.6, h, dtype=np.float32)[:, None, None]
    picture = paint.canvas(h, w, rgb) * shade
    glow = np.zeros((h, w), np.float32)
    bright, wide = ((235, 235, 225), 0.2) if is_front else ((168, 24, 22), 0.16)
    rows = slice(round(h * 0.08), round(h * 0.36))
    for columns in (slice(4, round(w * wide)), slice(w - round(w * wide), w - 4)):
        picture[rows, columns] = bright
        glow[rows, columns] = 255
    if is_front:
        picture[round(h * 0.3) : round(h * 0.62), round(w * 0.3) : round(w * 0.7)] = (28, 28, 30)
    picture[round(h * 0.8) :] = (34, 34, 36)
    plate = (round(w * 0.35), round(h * 0.5), round(w * 0.65), round(h * 0.72))
    cv2.rectangle(picture, plate[:2], plate[2:], (232, 232, 226), -1)
    text = ''.join(rng.choice(list('ABCDEFHKLMNPRSTVWX'), 3)) + str(rng.integers(10, 999))
    paint.write(picture, text, plate, (20, 20, 24))
    return Texture.make(np.dstack([paint.to_uint8(picture), glow.astype(np.uint8)]))


def _limb(picture: Any, alpha: Any, a: Any, b: Any, thick: int, rgb: Any) -> None:
    start, end = tuple(int(v) for v in np.round(a)), tuple(int(v) for v in np.round(b))
    cv2.line(picture, start, end, [float(c) for c in rgb], thick, cv2.LINE_AA)
    cv2.line(alpha, start, end, 255, thick)


def person(rng: Rng) -> tuple[Texture, Texture]:
    """Two steps of a walker, 0.9 m wide and 1.8 m high."""
    looks = rng.uniform(25, 190, (3, 1)) + rng.normal(0, 22, (3, 3))
    skin = paint.vary(rng, (188, 140, 112), 30)
    seed = int(rng.integers(1 << 30))
    return _walker(seed, looks, skin, 1.0), _walker(seed, looks, skin, 0.25)


def _walker(seed: int, looks: Any, skin: Any, stride: float) -> Texture:
    rng = np.random.default_rng(seed)
    h, w = 216, 108
    coat, legs, hair = looks
    picture = paint.canvas(h, w, coat)
    alpha = np.zeros((h, w), np.uint8)
    x = w / 2
    step = 20 * stride
    for sign in (-1, 1):
        shade = 0.75 if sign < 0 else 1.0
        knee = (x + sign * step * 0.7, 162)
        foot = (x + sign * step * 1.1, 206)
        _limb(picture, alpha, (x, 116), knee, 19, legs * shade * 0.8)
        _limb(picture, alpha, knee, foot, 15, legs * shade * 0.8)
        _limb(picture, alpha, foot, (foot[0] + 8, 210), 9, (32, 28, 26))
    _limb(picture, alpha, (x - 3, 62), (x - step - 3, 110), 13, coat * 0.7)
    cv2.ellipse(picture, (54, 86), (20, 40), 0, 0, 360, coat.tolist(), -1, cv2.LINE_AA)
    cv2.ellipse(alpha, (54, 86), (20, 40), 0, 0, 360, 255, -1)
    _limb(picture, alpha, (x + 3, 62), (x + step + 3, 108), 13, coat * 0.85)
    _limb(picture, alpha, (x + step + 3, 108), (x + step + 5, 114), 10, skin)
    if rng.random() < 0.5:
        bag = rng.uniform(20, 200, 3)
        cv2.rectangle(picture, (26, 64), (42, 102), bag.tolist(), -1)
        cv2.rectangle(alpha, (26, 64), (42, 102), 255, -1)
    _limb(picture, alpha, (x, 40), (x, 50), 11, skin)
    cv2.ellipse(picture, (55, 26), (13, 17), 0, 0, 360, skin.tolist(), -1, cv2.LINE_AA)
    cv2.ellipse(alpha, (55, 26), (13, 17), 0, 0, 360, 255, -1)
    cv2.ellipse(picture, (53, 21), (14, 13), 0, 150, 400, (hair * 0.5).tolist(), -1, cv2.LINE_AA)
    fold = paint.noise(rng, h, w, 18, 4)[..., None] * 9
    return Texture.make(np.dstack([paint.to_uint8(picture + fold), alpha]), is_cutout=True)


def cyclist(rng: Rng) -> Mesh:
    """A bicycle with its rider: one picture along, one across."""
    h, w = 180, 180
    coat, legs, steel = rng.uniform(30, 220, (3, 3))
    skin = paint.vary(rng, (188, 140, 112), 30)
    picture, alpha = paint.canvas(h, w, coat), np.zeros((h, w), np.uint8)
    for x in (36, 144):
        for target, value in ((picture, [28.0] * 3), (alpha, 255)):
            cv2.circle(target, (x, 145), 32, value, 4, cv2.LINE_AA if target is picture else 8)
    for a, b in (
        ((36, 145), (70, 100)),
        ((70, 100), (130, 96)),
        ((36, 145), (84, 145)),
        ((84, 145), (66, 84)),
        ((84, 145), (130, 96)),
        ((144, 145), (126, 76)),
        ((126, 76), (138, 72)),
    ):
        _limb(picture, alpha, a, b, 4, steel)
    _limb(picture, alpha, (68, 82), (96, 112), 15, legs)
    _limb(picture, alpha, (96, 112), (86, 152), 12, legs)
    _limb(picture, alpha, (68, 82), (96, 38), 26, coat)
    _limb(picture, alpha, (96, 42), (130, 74), 10, coat * 0.8)
    cv2.circle(picture, (106, 18), 13, skin.tolist(), -1, cv2.LINE_AA)
    cv2.circle(alpha, (106, 18), 13, 255, -1)
    cv2.ellipse(picture, (105, 12), (15, 10), 0, 180, 360, (steel * 0.8).tolist(), -1)
    cv2.ellipse(alpha, (105, 12), (15, 10), 0, 180, 360, 255, -1)
    along = Texture.make(np.dstack([paint.to_uint8(picture), alpha]), is_cutout=True)
    front_picture, front_alpha = paint.canvas(h, 60, coat), np.zeros((h, 60), np.uint8)
    _limb(front_picture, front_alpha, (30, 110), (30, 176), 5, (28, 28, 28))
    _limb(front_picture, front_alpha, (22, 90), (20, 150), 12, legs)
    _limb(front_picture, front_alpha, (38, 90), (40, 140), 12, legs)
    _limb(front_picture, front_alpha, (30, 48), (30, 84), 30, coat)
    _limb(front_picture, front_alpha, (12, 74), (48, 74), 7, coat * 0.8)
    cv2.circle(front_picture, (30, 20), 13, skin.tolist(), -1, cv2.LINE_AA)
    cv2.circle(front_alpha, (30, 20), 13, 255, -1)
    across = Texture.make(np.dstack([paint.to_uint8(front_picture), front_alpha]), is_cutout=True)
    return Mesh.of(
        [
            Quad((-0.9, 0, 1.8), (1.8, 0, 0), (0, 0, -1.8), along, 'cyclist', is_two_sided=True),
            Quad(
                (0.05, -0.3, 1.8), (0, 0.6, 0), (0, 0, -1.8), across, 'cyclist', is_two_sided=True
            ),
        ]
    )


def tree(rng: Rng, day_rng: Rng, has_leaves: bool) -> Mesh:
    """A trunk and branches, mostly with clumps of leaves, which the day stirs and thins."""
    tall, radius = float(rng.uniform(6.5, 9.0)), float(rng.uniform(2.0, 2.8))
    bark = paint.canvas(256, 64, paint.vary(rng, (88, 76, 64), 12))
    bark += paint.noise(rng, 256, 64, 9, 3)[..., None] * 24
    bark *= np.linspace(0.7, 1.0, 256, dtype=np.float32)[::-1, None, None]
    texture = Texture.make(paint.to_uint8(bark))
    thick = float(rng.uniform(0.1, 0.16))
    fork = tall - 1.6 * radius
    quads = box((-thick, -thick, 0), (thick, thick, fork + 0.5), texture, 'tree', 'xXyY')
    turn = float(day_rng.uniform(-0.15, 0.15))
    branches = _branches(rng)
    spread = radius * (1.3 if has_leaves else 2.3)
    for k in range(3):
        a = np.pi * k / 3 + turn
        u = np.array([np.cos(a), np.sin(a), 0]) * spread
        v = np.array([0, 0, fork - 0.1 - tall])
        origin = np.array([0, 0, tall]) - u / 2
        quads.append(Quad(origin.tolist(), u, v, branches, 'tree', is_two_sided=True))
    if has_leaves:
        centre = np.array([0, 0, tall - radius * 0.75])
        quads += _crown(rng, day_rng, centre, radius)
    return Mesh.of(quads)


def _crown(rng: Rng, day_rng: Rng, centre: Any, radius: float) -> list[Quad]:
    leaves = [_leaves(rng), _leaves(rng)]
    quads = []
    for _ in range(11):
        out = rng.normal(0, 1, 3)
        clump = centre + out / np.linalg.norm(out) * radius * rng.uniform(0.35, 0.8) * [1, 1, 0.75]
        for k in range(3):
            normal, axis = rng.normal(0, 1, (2, 3)) + day_rng.normal(0, 0.2, (2, 3))
            u = np.cross(axis, normal)
            u /= np.linalg.norm(u)
            v = np.cross(normal / np.linalg.norm(normal), u)
            size = radius * rng.uniform(0.75, 1.05)
            at = clump + rng.normal(0, 0.22, 3) * radius + day_rng.normal(0, 0.05, 3)
            if day_rng.random() < 0.92:
                origin = at - (u + v) * size / 2
                quads.append(
                    Quad(
                        origin.tolist(),
                        u * size,
                        v * size,
                        leaves[k % 2],
                        'tree',
                        is_two_sided=True,
                    )
                )
    return quads


def _leaves(rng: Rng) -> Texture:
    size = 160
    base = paint.vary(rng, (96, 122, 60), 12)
    picture = paint.canvas(size, size, base * 0.75)
    alpha = np.zeros((size, size), np.uint8)
    count = 330
    twigs = rng.uniform(0.15, 0.85, (16, 2)) * size
    at = twigs[rng.integers(16, size=count)] + rng.normal(0, 0.1, (count, 2)) * size
    axes = np.column_stack([rng.integers(3, 8, count), rng.integers(2, 4, count)])
    angle = rng.uniform(0, 180, count)
    tone = base * rng.uniform(0.55, 1.45, (count, 1)) + rng.normal(0, 6, (count, 1))
    for k in np.flatnonzero(np.hypot(*(at - size / 2).T) <= size * 0.46):
        leaf = np.rint(at[k]).astype(int).tolist(), axes[k].tolist(), float(angle[k]), 0, 360
        cv2.ellipse(picture, *leaf, tone[k].tolist(), -1)
        cv2.ellipse(alpha, *leaf, 255, -1)
    return Texture.make(np.dstack([paint.to_uint8(picture), alpha]), is_cutout=True)


def _branches(rng: Rng) -> Texture:
    size = 320
    picture = paint.canvas(size, size, (84, 72, 60))
    picture += paint.noise(rng, size, size, 20, 4)[..., None] * 16
    alpha = np.zeros((size, size), np.uint8)

    at, heading = np.array([[size / 2, float(size)]]), np.array([np.pi / 2])
    length, thick = np.array([size * 0.24]), 7.0
    while len(at):
        step = np.stack([np.cos(heading), -np.sin(heading)], axis=1)
        end = at + length[:, None] * step
        lines = np.round(np.stack([at, end], axis=1) * 8).astype(np.int32)
        cv2.polylines(alpha, list(lines), False, 255, max(1, round(thick)), cv2.LINE_8, 3)
        on = np.repeat(np.flatnonzero(length > 12), 3)
        at, thick = end[on], thick * 0.66
        heading = heading[on] + rng.normal(0, 0.42, len(on))
        length = length[on] * rng.uniform(0.66, 0.84, len(on))
    return Texture.make(np.dstack([paint.to_uint8(picture), alpha]), is_cutout=True)

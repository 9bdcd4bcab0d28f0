# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the painters of one house share: its measures, and the frame of its wall.

A wall's frame: x along the wall to the viewer's right, z up, depth d toward the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.town import paint
from feat_ros.town.mesh import Quad, Texture
from feat_ros.town.paint import Picture, Rng


@dataclass(frozen=True)
class Opening:
    """A hole in a wall, metres: left, bottom, width, height; a shop window, window or door."""

    x: float
    z: float
    width: float
    height: float
    kind: str


@dataclass(frozen=True)
class Wall:
    """Size of a house front and where it stands.

    :ivar origin: map coordinates (x, y) of its left lower corner, seen from the street.
    :ivar along: unit vector (x, y) to the viewer's right; the street is on the viewer's side.
    """

    origin: tuple[float, float]
    along: tuple[float, float]
    width: float
    floors: int

    def point(self, x: float, z: float, d: float) -> tuple[float, float, float]:
        """Map coordinates of a point in the wall's frame."""
        ax, ay = self.along
        return (self.origin[0] + ax * x + ay * d, self.origin[1] + ay * x - ax * d, z)

    def step(self, x: float, z: float, d: float) -> tuple[float, float, float]:
        """Map vector of a step in the wall's frame."""
        ax, ay = self.along
        return (ax * x + ay * d, ay * x - ax * d, z)


@dataclass
class House:
    """What the drawing functions of one house share."""

    rng: Rng
    wall: Wall
    texel_m: float
    ground_floor: float
    floor: float
    recess: float
    rgb: Picture
    frame_rgb: Picture
    eaves: float = 0.0
    roof_top: float = 0.0

    def __post_init__(self) -> None:
        self.ground_floor = self.snap(self.ground_floor)
        self.floor = self.snap(self.floor)
        self.top = self.ground_floor + self.floor * self.wall.floors
        self.height = round(self.top / self.texel_m)
        self.width = round(self.wall.width / self.texel_m)

    def snap(self, metres: float) -> float:
        """The nearest border between texels, so that holes and what fills them meet."""
        return round(metres / self.texel_m) * self.texel_m

    def rows(self, z0: float, z1: float) -> slice:
        return slice(max(0, self.row(z1)), max(0, self.row(z0)))

    def row(self, z: float) -> int:
        return round((self.top - z) / self.texel_m)

    def columns(self, x0: float, x1: float) -> slice:
        return slice(max(0, self.column(x0)), max(0, self.column(x1)))

    def column(self, x: float) -> int:
        return round(x / self.texel_m)

    def area(self, o: Opening) -> tuple[slice, slice]:
        return self.rows(o.z, o.z + o.height), self.columns(o.x, o.x + o.width)


def upright(
    house: House,
    x: float,
    z: float,
    w: float,
    h: float,
    d: float,
    texture: Texture,
    label: str,
    **more: Any,
) -> Quad:
    wall = house.wall
    return Quad(
        wall.point(x, z + h, d), wall.step(w, 0, 0), wall.step(0, -h, 0), texture, label, **more
    )


def mottled(house: House, h: int, w: int, rgb: Any) -> npt.NDArray[np.uint8]:
    picture = paint.canvas(h, w, rgb)
    picture += paint.noise(house.rng, h, w, 0.5 / house.texel_m, 5)[..., None] * 12
    return paint.to_uint8(picture)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The town: what always stands there, and the scene of one day."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.errors import ConfigError
from feat_ros.town import actors, paint, street
from feat_ros.town.drive import Drive
from feat_ros.town.facade import build_house
from feat_ros.town.house import Wall
from feat_ros.town.light import Light, make_light
from feat_ros.town.mesh import Mesh, Quad, Texture
from feat_ros.town.raster import rasterize, View

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_LANE_Y = 1.6
_SLOT_M = 5.8
_MARGIN = 14.0
_ARM = 40.0
_PLAN_CELL = 0.1
_SHADOW_CELL = 0.05
# OpenCV's remap reads pictures of less than 2^15 pixels a side.
_MOST_CELLS = 32_000


class Town:
    """A street of houses with a junction in its middle, all of it from one seed.

    The map frame: x along the street from 0 to ``length_m``, y to the left, z up; the middle of
    the road is y = 0, its surface z = 0.

    :ivar mesh: what is always there.
    :ivar lamps: (N, 3) where the street lamps shine from.
    :raises ConfigError: a length or texel size out of range.
    """

    def __init__(self, seed: int, length_m: float = 110.0, texel_m: float = 0.015) -> None:
        if not 40 <= length_m <= 2500:
            raise ConfigError(f'a town of {length_m} m cannot be built: choose 40 to 2500')
        if not 0.005 <= texel_m <= 0.1:
            raise ConfigError(f'texel_m is {texel_m}: choose 0.005 to 0.1')
        self.seed, self.length_m, self.texel_m = int(seed), float(length_m), float(texel_m)
        middle = length_m / 2
        self.junction = (middle - 7.0, middle + 7.0)
        furniture, self.lamps = street.furniture(self.rng(1), length_m, self.junction)
        self.mesh = Mesh.join([self._houses(), self._ground(), furniture])
        self.tree_sites = self._tree_sites()
        self.slots = self._slots()

    def rng(self, *stream: int) -> np.random.Generator:
        """Random numbers of one part of the town."""
        return np.random.default_rng([self.seed, *stream])

    def scene(self, drive: Drive) -> Scene:
        """Set up the day of a drive: parked cars, leaves, light, shadows, traffic."""
        return Scene(self, drive)

    @property
    def nbytes(self) -> int:
        """Bytes of all textures."""
        return sum({id(t): t.nbytes for t in self.mesh.textures}.values())

    def _houses(self) -> Mesh:
        y, m = street.HOUSE_Y, self.texel_m
        low, high = -_MARGIN, self.length_m + _MARGIN
        j0, j1 = self.junction
        rows: list[tuple[tuple[float, float], tuple[float, float], float, float]] = [
            ((low, y), (1, 0), j0 - low, m),
            ((j1, y), (1, 0), high - j1, m),
            ((high, -y), (-1, 0), high - j1, m),
            ((j0, -y), (-1, 0), j0 - low, m),
            ((low, -y - 4), (0, 1), 2 * y + 8, 1.6 * m),
            ((high, y + 4), (0, -1), 2 * y + 8, 1.6 * m),
            ((j0, y), (0, 1), _ARM, 2 * m),
            ((j1, y + _ARM), (0, -1), _ARM, 2 * m),
            ((j0, -y - _ARM), (0, 1), _ARM, 2 * m),
            ((j1, -y), (0, -1), _ARM, 2 * m),
            ((j0 - 2, y + _ARM), (1, 0), 18.0, 2 * m),
            ((j1 + 2, -y - _ARM), (-1, 0), 18.0, 2 * m),
        ]
        meshes = []
        for number, (start, along, length, texel) in enumerate(rows):
            rng = self.rng(2, number)
            count = max(1, round(length / rng.uniform(9.5, 12.5)))
            cuts = np.linspace(0, length, count + 1)
            cuts[1:-1] += rng.uniform(-1.3, 1.3, count - 1)
            for k in range(count):
                at = (start[0] + along[0] * cuts[k], start[1] + along[1] * cuts[k])
                wall = Wall(at, along, float(cuts[k + 1] - cuts[k]), int(rng.integers(2, 5)))
                corner = ''
                if k == count - 1 and number in (0, 2, 7, 8):
                    corner = 'R'
                if k == 0 and number in (1, 3, 6, 9):
                    corner = 'L'
                meshes.append(build_house(self.rng(3, number, k), wall, texel, corner))
        return Mesh.join(meshes)

    def _ground(self) -> Mesh:
        k, y, m = street.KERB_Y, street.HOUSE_Y, self.texel_m
        j0, j1 = self.junction[0] + 2.5, self.junction[1] - 2.5
        rng = self.rng(4)
        quads: list[Quad] = []
        for low, high in ((-_MARGIN, j0), (j1, self.length_m + _MARGIN)):
            count = max(1, round((high - low) / 12))
            cuts = np.linspace(low, high, count + 1)
            for n in range(count):
                x0, x1 = float(cuts[n]), float(cuts[n + 1])
                crossing = 'R' if x1 == j0 else 'L' if x0 == j1 else ''
                quads.append(street.main_road(rng, x0, x1, 1.2 * m, crossing))
                end = {'R': 'X', 'L': 'x', '': ''}[crossing]
                quads += street.pavement(rng, (x0, k, x1, y), m, 'y' + end)
                quads += street.pavement(rng, (x0, -y, x1, -k), m, 'Y' + end)
        quads.append(street.plain_road(rng, (j0, -k, j1, k), 1.2 * m))
        far = y + _ARM
        for low, high in ((k, far), (-far, -k)):
            quads.append(street.plain_road(rng, (j0, low, j1, high), 2 * m))
        for low, high in ((y, far), (-far, -y)):
            quads += street.pavement(rng, (j0 - 2.5, low, j0, high), 2 * m, 'X')
            quads += street.pavement(rng, (j1, low, j1 + 2.5, high), 2 * m, 'x')
        return Mesh.of(quads)

    def _tree_sites(self) -> Float:
        rng = self.rng(5)
        sites = []
        for side in (-1.0, 1.0):
            for x in np.arange(12.0 - 5 * side, self.length_m, 14.0):
                if not self.junction[0] - 5 < x < self.junction[1] + 5 and rng.random() < 0.8:
                    sites.append((x + rng.uniform(-1, 1), side * (street.KERB_Y + 0.75)))
        return np.array(sites, float).reshape(-1, 2)

    def _slots(self) -> Float:
        """Parking places (N, 3): x, y and yaw."""
        y = (street.KERB_Y + street.PARKING_Y) / 2
        return np.array(
            [
                (x, side * y, 0.0 if side < 0 else np.pi)
                for side in (-1.0, 1.0)
                for x in np.arange(-6.0, self.length_m + 6, _SLOT_M)
                if not self.junction[0] - 7 < x < self.junction[1] + 7
            ]
        )


@dataclass(frozen=True, eq=False)
class _Mover:
    """Something that goes along x at constant speed, again from the start at the street's end."""

    mesh: Mesh | None
    walk: tuple[Texture, Texture] | None
    x: float
    y: float
    z: float
    speed: float
    size: tuple[float, float]


class Scene:
    """The town on the day of one drive.

    :ivar mesh: all that stands still.
    :ivar parked: (N,) number of the car in each parking slot, -1 where there is none.
    :ivar plan: ground occlusion by what stands on it, (H, W) float32, top view.
    :ivar wetness: mirroring of the ground, 0 to 1, (H, W) float32, top view, or None when dry.
    :ivar shadow: nearness to the sun, (H, W) float32, or None without sun.
    """

    def __init__(self, town: Town, drive: Drive) -> None:
        self.town, self.drive, self.condition = town, drive, drive.condition
        self.light: Light = make_light(self.condition, drive.day)
        self.parked = self._parked()
        meshes, footprints = self._cars()
        meshes += self._trees()
        self.mesh = Mesh.join([self._windows(town.mesh), *meshes])
        self._movers = self._traffic()
        self.plan = self._plan(footprints)
        self.wetness = self._wetness()
        self.shadow, self.shadow_matrix = self._shadow()

    def _windows(self, mesh: Mesh) -> Mesh:
        """Some floors are dark on some days."""
        rng = self.town.rng(20, self.drive.day)
        is_lit = (rng.random(len(mesh)) < 0.85) | (mesh.glow != 1.0)
        return replace(mesh, glow=mesh.glow * is_lit)

    def _parked(self) -> npt.NDArray[np.int64]:
        """Residents (their slot's number) are at home on half of the days."""
        count = len(self.town.slots)
        rng = self.town.rng(21, self.drive.day)
        kind, visitor = rng.random(count), rng.integers(1000, 1_000_000, count)
        is_resident = self.town.rng(22).random(count) < 0.85
        return np.where(
            (kind < 0.5) & is_resident, np.arange(count), np.where(kind < 0.78, visitor, -1)
        )

    def _cars(self) -> tuple[list[Mesh], list[tuple[float, float, float, float]]]:
        meshes, footprints = [], []
        for slot, number in zip(self.town.slots, self.parked, strict=True):
            if number < 0:
                continue
            rng = self.town.rng(23, int(number))
            mesh, size = actors.car(rng)
            x, y, yaw = slot + rng.normal(0, [0.25, 0.08, 0.015])
            # Nobody is in a parked car: its lamps are off.
            meshes.append(replace(mesh, glow=mesh.glow * 0).placed(x, y, 0, yaw))
            footprints.append((x, y, *size))
        return meshes, footprints

    def _trees(self) -> list[Mesh]:
        day = self.town.rng(24, self.drive.day)
        return [
            actors.tree(self.town.rng(25, k), day, self.condition.has_leaves).placed(
                x, y, street.KERB_Z, float(self.town.rng(26, k).uniform(0, 6))
            )
            for k, (x, y) in enumerate(self.town.tree_sites)
        ]

    def _traffic(self) -> list[_Mover]:
        rng = self.town.rng(27, self.drive.day)
        span = self.town.length_m + 40
        movers = []
        ego_y = -self.drive.direction * self.drive.lane_offset_m
        for way in (1, -1):
            y = -way * _LANE_Y
            if abs(ego_y - y) < _LANE_Y and way != self.drive.direction:
                continue
            starts = np.sort(rng.uniform(0, span, max(1, int(span / 45))))
            speed = float(rng.uniform(6, 9))
            if abs(ego_y - y) < _LANE_Y:
                gap = float(rng.uniform(16, 24))
                s = self.drive.start_m + gap
                starts = np.array([(s if way > 0 else self.town.length_m - s) + 20])
                speed = self.drive.speed_mps
            for start in starts:
                mesh, size = actors.car(rng)
                movers.append(_Mover(mesh, None, float(start), y, 0.0, way * speed, size))
            rider = actors.cyclist(rng)
            at = float(rng.uniform(0, span))
            movers.append(_Mover(rider, None, at, -way * 2.85, 0.0, way * 4.5, (1.6, 0.4)))
        for side in (-1, 1):
            for _ in range(int(self.town.length_m / 9)):
                walk = actors.person(rng)
                speed = float(rng.choice([-1.3, -1.1, 0.0, 1.2, 1.4]))
                y = side * float(rng.uniform(street.KERB_Y + 1.2, street.HOUSE_Y - 0.5))
                at = float(rng.uniform(0, span))
                movers.append(_Mover(None, walk, at, y, street.KERB_Z, speed, (0.4, 0.4)))
        return movers

    def moving(
        self, time_s: float, eye: Float
    ) -> tuple[Mesh, list[tuple[float, float, float, float]]]:
        """What moves, at a time, people turned to the eye (3,), and its footprints."""
        meshes, footprints = [], []
        people: list[Quad] = []
        for mover in self._movers:
            span = self.town.length_m + 40
            x = (mover.x + mover.speed * time_s) % span - 20
            # Who would stand in the camera's own car gives way.
            if abs(x - eye[0]) < 4 and abs(mover.y - eye[1]) < 1.2:
                continue
            footprints.append((x, mover.y, *mover.size))
            if mover.mesh is not None:
                yaw = 0.0 if mover.speed > 0 else np.pi
                meshes.append(mover.mesh.placed(x, mover.y, mover.z, yaw))
            if mover.walk is not None:
                people.append(_billboard(mover, x, time_s, eye))
        return Mesh.join([*meshes, Mesh.of(people)]), footprints

    def _plan(self, footprints: Any) -> Float32:
        size = self.plan_size
        free = np.ones((size[1], size[0]), np.float32)
        low = self.plan_pixel(np.array([-_MARGIN, -street.HOUSE_Y]))
        high = self.plan_pixel(np.array([self.town.length_m + _MARGIN, street.HOUSE_Y]))
        free[: int(low[1])] = 0
        free[int(high[1]) :] = 0
        free[:, : int(low[0])] = 0
        j0, j1 = (int(self.plan_pixel(np.array([x, 0]))[0]) for x in self.town.junction)
        free[:, j0:j1] = 1
        free = 0.45 + 0.55 * cv2.GaussianBlur(free, (0, 0), 6)
        return self.shaded(free, footprints)

    @property
    def plan_size(self) -> tuple[int, int]:
        """Width and height of the plan."""
        return round((self.town.length_m + 2 * _MARGIN) / _PLAN_CELL), 1000

    def plan_pixel(self, xy: Float) -> Float:
        """Plan coordinates of map coordinates (..., 2)."""
        return np.asarray((np.asarray(xy, float) + np.array([_MARGIN, 50.0])) / _PLAN_CELL)

    def shaded(self, plan: Float32, footprints: Any) -> Float32:
        """Darken the ground under vehicles and feet."""
        mask = np.ones_like(plan)
        boxes = []
        for x, y, length, width in footprints:
            low = self.plan_pixel(np.array([x - length / 2, y - width / 2]))
            high = self.plan_pixel(np.array([x + length / 2, y + width / 2]))
            a, b = np.round(low).astype(int), np.round(high).astype(int)
            cv2.rectangle(mask, a.tolist(), b.tolist(), 0.12, -1)
            boxes.append((a - 12, b + 12))
        out: Float32 = plan.copy()
        for a, b in boxes:
            x0, y0 = np.maximum(a, 0)
            x1, y1 = np.minimum(b, [plan.shape[1], plan.shape[0]])
            if x1 > x0 and y1 > y0:
                part = cv2.GaussianBlur(mask[y0:y1, x0:x1], (0, 0), 2.5)
                out[y0:y1, x0:x1] = np.minimum(out[y0:y1, x0:x1], plan[y0:y1, x0:x1] * part)
        return out

    def _wetness(self) -> Float32 | None:
        if not self.condition.is_wet:
            return None
        width, height = self.plan_size
        field = paint.noise(self.town.rng(28), height, width, 40, 4)
        mirror = np.clip(0.3 + np.maximum(field - 0.1, 0) * 2.5, 0, 0.95)
        return np.asarray(mirror, np.float32)

    def _shadow(self) -> tuple[Float32 | None, Float]:
        """Nearness to the sun of what it sees, drawn on the ground along its rays."""
        s = self.light.to_sun
        length_m = self.town.length_m + 2 * _MARGIN
        cell = max(_SHADOW_CELL, length_m / _MOST_CELLS)
        width, height = round(length_m / cell), round(64.0 / cell)
        projection = np.array(
            [
                [1, 0, -s[0] / s[2], _MARGIN],
                [0, 1, -s[1] / s[2], 32.0],
                [0, 0, 0, cell],
            ]
        )
        projection /= cell
        matrix = np.vstack([projection[:2], [*s, 0.0]])
        if not np.any(self.light.sun) or s[2] < 0.3:
            return None, matrix
        view = View(projection, (width, height), np.array([*s, 0.0]), np.array([*s, 0.0]))
        # Houses have no rear: what keeps the sun out is their fronts, seen from behind.
        solid = replace(self.mesh, is_two_sided=np.ones(len(self.mesh), bool))
        return rasterize(solid, view).key, matrix


def _billboard(mover: _Mover, x: float, time_s: float, eye: Float) -> Quad:
    assert mover.walk is not None
    toward = eye[:2] - [x, mover.y]
    toward = toward / max(float(np.linalg.norm(toward)), 1e-9)
    across = np.array([-toward[1], toward[0], 0.0])
    # Who walks to the left on the picture is shown mirrored.
    mirror = -1.0 if across[0] * mover.speed < 0 else 1.0
    step = int((time_s + mover.x) * 2.4) % 2 if mover.speed else 1
    origin = np.array([x, mover.y, mover.z + 1.8]) - across * 0.45 * mirror
    return Quad(
        origin.tolist(),
        (across * 0.9 * mirror).tolist(),
        (0, 0, -1.8),
        mover.walk[step],
        'person',
        is_two_sided=True,
    )

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Textured parallelograms: all that the town is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.town.classes import CLASS_ID

Rgba = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Texture:
    """An RGBA picture with its mip levels.

    :ivar levels: (H, W, 4) uint8, each half the size of the one before, colours gamma-coded.
    :ivar is_cutout: the fourth channel is coverage (tested against one half); otherwise it says
        how much of the colour glows when lit from within.
    """

    levels: tuple[Rgba, ...]
    is_cutout: bool

    @staticmethod
    def make(picture: npt.NDArray[Any], *, is_cutout: bool = False) -> Texture:
        """Build the levels of an RGB or RGBA uint8 picture by averaging over squares."""
        level = np.ascontiguousarray(picture, np.uint8)
        if picture.shape[2] == 3:
            level = np.asarray(cv2.cvtColor(level, cv2.COLOR_RGB2RGBA), np.uint8)
            level[..., 3] = 255 if is_cutout else 0
        coverage = float(np.mean(level[..., 3] > 127))
        levels = [level]
        while min(level.shape[:2]) > 1 and max(level.shape[:2]) > 4:
            size = (max(1, (level.shape[1] + 1) // 2), max(1, (level.shape[0] + 1) // 2))
            level = np.asarray(cv2.resize(level, size, interpolation=cv2.INTER_AREA), np.uint8)
            levels.append(_keep_coverage(level, coverage) if is_cutout else level)
        return Texture(tuple(levels), is_cutout)

    @staticmethod
    def plain(rgb: Sequence[float], glow: int = 0) -> Texture:
        """One colour."""
        return Texture((np.full((1, 1, 4), [*rgb, glow], np.uint8),), False)

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        return sum(level.nbytes for level in self.levels)


def _keep_coverage(level: Rgba, coverage: float) -> Rgba:
    """Scale the coverage so that as much passes the test as in the first level: leaves stay."""
    alpha = level[..., 3]
    below = np.cumsum(np.bincount(alpha.ravel(), minlength=256))
    limit = int(np.searchsorted(below, (1 - coverage) * alpha.size))
    if 8 < limit < 250:
        level = level.copy()
        level[..., 3] = np.minimum(alpha * (127.5 / limit), 255).astype(np.uint8)
    return level


@dataclass(frozen=True, eq=False)
class Quad:
    """One parallelogram, seen from the side where its texture reads the right way round.

    :ivar origin: (3,) the top-left corner of the texture, metres.
    :ivar edge_u: (3,) from there along a texture row.
    :ivar edge_v: (3,) from there down a texture column.
    """

    origin: Sequence[float] | Float
    edge_u: Sequence[float] | Float
    edge_v: Sequence[float] | Float
    texture: Texture
    label: str
    is_two_sided: bool = False
    glow: float = 0.0


@dataclass(frozen=True, eq=False)
class Mesh:
    """Quads as arrays of N rows.

    :ivar origin: (N, 3), with edge_u and edge_v as in :class:`Quad`.
    :ivar class_id: (N,) uint8, an index into the classes.
    :ivar glow: (N,) brightness of the glowing part.
    """

    origin: Float
    edge_u: Float
    edge_v: Float
    textures: tuple[Texture, ...]
    class_id: npt.NDArray[np.uint8]
    is_two_sided: npt.NDArray[np.bool_]
    glow: Float
    normal: Float = field(init=False)

    def __post_init__(self) -> None:
        """Compute the unit normals, out of the front sides."""
        normal = np.cross(self.edge_v, self.edge_u)
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        object.__setattr__(self, 'normal', normal / np.maximum(length, 1e-12))

    @staticmethod
    def of(quads: Iterable[Quad]) -> Mesh:
        """Stack quads."""
        rows = list(quads)
        return Mesh(
            np.array([q.origin for q in rows], float).reshape(-1, 3),
            np.array([q.edge_u for q in rows], float).reshape(-1, 3),
            np.array([q.edge_v for q in rows], float).reshape(-1, 3),
            tuple(q.texture for q in rows),
            np.array([CLASS_ID[q.label] for q in rows], np.uint8),
            np.array([q.is_two_sided for q in rows], bool),
            np.array([q.glow for q in rows], float),
        )

    @staticmethod
    def join(meshes: Sequence[Mesh]) -> Mesh:
        """Put meshes one behind the other."""
        return Mesh(
            np.concatenate([m.origin for m in meshes]),
            np.concatenate([m.edge_u for m in meshes]),
            np.concatenate([m.edge_v for m in meshes]),
            tuple(texture for m in meshes for texture in m.textures),
            np.concatenate([m.class_id for m in meshes]),
            np.concatenate([m.is_two_sided for m in meshes]),
            np.concatenate([m.glow for m in meshes]),
        )

    def __len__(self) -> int:
        """Return the number of quads."""
        return len(self.origin)

    def placed(self, x: float, y: float, z: float, yaw: float) -> Mesh:
        """Turn the mesh about the z axis by ``yaw`` radians, then move it."""
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
        return replace(
            self,
            origin=self.origin @ turn + np.array([x, y, z]),
            edge_u=self.edge_u @ turn,
            edge_v=self.edge_v @ turn,
        )


def box(
    low: Sequence[float],
    high: Sequence[float],
    texture: Texture,
    label: str,
    sides: str = 'xXyYzZ',
    glow: float = 0.0,
) -> list[Quad]:
    """Return the wanted sides of an axis-aligned box (lower case: the low side of that axis)."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    dx, dy, dz = x1 - x0, y1 - y0, z1 - z0
    edges = {
        'x': ((x0, y1, z1), (0, -dy, 0), (0, 0, -dz)),
        'X': ((x1, y0, z1), (0, dy, 0), (0, 0, -dz)),
        'y': ((x0, y0, z1), (dx, 0, 0), (0, 0, -dz)),
        'Y': ((x1, y1, z1), (-dx, 0, 0), (0, 0, -dz)),
        'z': ((x0, y0, z0), (dx, 0, 0), (0, dy, 0)),
        'Z': ((x0, y1, z1), (dx, 0, 0), (0, -dy, 0)),
    }
    return [Quad(*edges[side], texture, label, glow=glow) for side in sides]

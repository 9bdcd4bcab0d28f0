# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Draws textured parallelograms into a depth buffer, with NumPy and OpenCV alone.

A point of a quad is ``origin + s edge_u + t edge_v``, so a projection (3, 4) makes of (s, t, 1) a
pixel by one 3x3 matrix M. Its inverse gives for every pixel s/w, t/w and 1/w as linear functions
of the pixel (Heckbert, "Fundamentals of texture mapping and image warping", 1989, section 2.2);
1/w is the key of the depth test: the larger, the nearer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.town.mesh import Mesh, Texture

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
# Mip level, number of taps, long axis of a pixel in finest texels.
_Footprint = tuple[int, int, tuple[float, float]]

NEAR_M = 0.15
_MAX_TAPS = 2
_EDGE = 1e-5
# Up to this many pixels have one footprint; beyond it, every band of so many rows or columns.
_SMALL = 6144
_BAND = 32


@dataclass(frozen=True, eq=False)
class View:
    """A camera that maps straight lines to straight lines.

    :ivar projection: (3, 4), map coordinates to homogeneous pixels (centre of the top-left
        pixel at (0.5, 0.5)); the third row is the depth.
    :ivar min_thickness: pixels across below which a quad is left out.
    :ivar key_row: None for perspective; for a parallel projection (4,): the nearness of a point.
    :ivar eye: (4,) homogeneous: the centre of a perspective view, (direction, 0) of a
        parallel one.
    """

    projection: Float
    size_wh: tuple[int, int]
    eye: Float
    key_row: Float | None = None
    min_thickness: float = 1.6


@dataclass(frozen=True, eq=False)
class Layers:
    """What a view sees.

    :ivar color: (H, W, 4) uint8 texture values.
    :ivar key: (H, W) float32, one over depth (0 where there is nothing), or nearness.
    :ivar quad: (H, W) int32 row of the mesh, -1 where there is nothing.
    """

    color: npt.NDArray[np.uint8]
    key: Float32
    quad: npt.NDArray[np.int32]


def rasterize(mesh: Mesh, view: View) -> Layers:
    """Draw a mesh: front to back, one quad at a time, every quad vectorised over its pixels."""
    width, height = view.size_wh
    matrix, is_visible = _homographies(mesh, view)
    boxes, nearest, is_thin = _boxes(matrix, view)
    is_visible &= ~is_thin & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    inverse = np.zeros_like(matrix)
    inverse[is_visible] = np.linalg.inv(matrix[is_visible])
    empty = np.float32(0 if view.key_row is None else -1e9)
    layers = Layers(
        np.zeros((height, width, 4), np.uint8),
        np.full((height, width), empty, np.float32),
        np.full((height, width), -1, np.int32),
    )
    canvas = _Canvas(
        layers,
        np.arange(0.5, max(width, height)),
        np.empty(3 * width * height, np.float32),
        view.key_row is None,
    )
    planes = np.stack([inverse[:, 0], inverse[:, 1], _key_rows(mesh, view, inverse)], axis=1)
    candidates = np.flatnonzero(is_visible)
    for index in candidates[np.argsort(-nearest[candidates], kind='stable')].tolist():
        box, near = boxes[index].tolist(), float(nearest[index])
        _draw(canvas, index, planes[index], inverse[index], box, near, mesh.textures[index])
    return layers


@dataclass(frozen=True, eq=False)
class _Canvas:
    """What is drawn on.

    :ivar centres: coordinates of the pixels' centres along the longer side.
    :ivar scratch: room for three numbers a pixel, which need not be asked for again.
    """

    layers: Layers
    centres: Float
    scratch: Float32
    is_perspective: bool


def _homographies(mesh: Mesh, view: View) -> tuple[Float, npt.NDArray[np.bool_]]:
    basis = np.stack([mesh.edge_u, mesh.edge_v, mesh.origin], axis=2)
    matrix = view.projection[:, :3] @ basis
    matrix[:, :, 2] += view.projection[:, 3]
    toward_eye = view.eye[:3] - view.eye[3] * mesh.origin
    side = np.sum(mesh.normal * toward_eye, axis=1)
    distance = np.linalg.norm(toward_eye, axis=1)
    is_visible = mesh.is_two_sided | (side > 0)
    is_visible &= np.abs(side) > 1e-5 * distance
    area = np.linalg.norm(np.cross(mesh.edge_u, mesh.edge_v), axis=1)
    return matrix, is_visible & (area > 1e-9)


def _key_rows(mesh: Mesh, view: View, inverse: Float) -> Float:
    if view.key_row is None:
        return inverse[:, 2]
    row = view.key_row
    along = [mesh.edge_u @ row[:3], mesh.edge_v @ row[:3], mesh.origin @ row[:3] + row[3]]
    return np.asarray(np.einsum('nk,nkl->nl', np.stack(along, axis=1), inverse))


def _boxes(
    matrix: Float, view: View
) -> tuple[npt.NDArray[np.int64], Float, npt.NDArray[np.bool_]]:
    """Pixel boxes (x0, y0, x1, y1) of the part before the near plane, its largest key, and
    whether it is too thin to be seen.
    """
    corner = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], float)
    points = corner @ np.swapaxes(matrix, 1, 2)
    following = np.roll(points, -1, axis=1)
    near = NEAR_M if view.key_row is None else 0.5
    w, w_next = points[..., 2], following[..., 2]
    is_crossing = (w < near) != (w_next < near)
    share = (near - w) / np.where(is_crossing, w_next - w, 1.0)
    cut = points + share[..., None] * (following - points)
    every = np.concatenate([points, cut], axis=1)
    is_used = np.concatenate([w >= near, is_crossing], axis=1)
    z = np.where(is_used, every[..., 2], 1.0)
    pixels = every[..., :2] / z[..., None]
    low = np.where(is_used[..., None], pixels, np.inf).min(axis=1)
    high = np.where(is_used[..., None], pixels, -np.inf).max(axis=1)
    limit = np.array(view.size_wh, float)
    # A pixel belongs to a quad if its centre does.
    first = np.ceil(np.clip(low - 0.51, 0, limit))
    last = np.floor(np.clip(high - 0.49, -1, limit - 1)) + 1
    boxes = np.concatenate([first, last], axis=1).astype(np.int64)
    nearest = 1 / np.where(is_used, every[..., 2], np.inf).min(axis=1)
    x, y = np.moveaxis(pixels[:, :4], 2, 0)
    area = 0.5 * np.abs(np.sum(x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y, axis=1))
    with np.errstate(invalid='ignore'):
        thickness = area / np.maximum(np.hypot(*(high - low).T), 1e-9)
    is_thin = (w >= near).all(axis=1) & (thickness < view.min_thickness)
    return boxes, nearest, is_thin


def _draw(
    canvas: _Canvas,
    index: int,
    planes: Float,
    inverse: Float,
    box: list[int],
    nearest: float,
    texture: Texture,
) -> None:
    """Draw one quad into its box: ``planes @ (x, y, 1)`` are s, t (over depth) and the key."""
    layers, centres = canvas.layers, canvas.centres
    x0, y0, x1, y1 = box
    old_key = layers.key[y0:y1, x0:x1]
    if canvas.is_perspective and nearest <= old_key.min():
        return
    # The products in double precision, their sum in single.
    across = (planes[:, :1] * centres[x0:x1]).astype(np.float32)
    down = (planes[:, 1:2] * centres[y0:y1] + planes[:, 2:]).astype(np.float32)
    room = canvas.scratch[: 3 * old_key.size].reshape(3, *old_key.shape)
    s, t, key = np.add(across[:, None, :], down[:, :, None], out=room)
    shown = cv2.compare(key, old_key, cv2.CMP_GT)
    if canvas.is_perspective:
        if nearest > 0.99 / NEAR_M:
            shown[key >= 1 / NEAR_M] = 0
        cv2.divide(s, key, s)
        cv2.divide(t, key, t)
    shown &= cv2.inRange(s, -_EDGE, 1 + _EDGE)
    shown &= cv2.inRange(t, -_EDGE, 1 + _EDGE)
    left, top, width, height = cv2.boundingRect(shown)
    if width == 0:
        return
    # What is left after hidden parts and the corners of the box are cut off.
    part = np.s_[top : top + height, left : left + width]
    shown, key, s, t = shown[part], key[part], s[part], t[part]
    x0, y0 = x0 + left, y0 + top
    view = np.s_[y0 : y0 + height, x0 : x0 + width]
    color = _sample(texture, s, t, inverse, shown, (x0, y0))
    shown = shown & (color[..., 3] >> 7 if texture.is_cutout else 1)
    cv2.copyTo(color, shown, layers.color[view])
    cv2.copyTo(key, shown, layers.key[view])
    np.copyto(layers.quad[view], np.int32(index), where=shown.view(bool))


def _sample(
    texture: Texture,
    s: Float32,
    t: Float32,
    inverse: Float,
    shown: npt.NDArray[np.uint8],
    corner: tuple[int, int],
) -> npt.NDArray[np.uint8]:
    """Texture values (h, w, 4): mip level by the short axis of a pixel's footprint, several taps
    along its long axis, both constant over bands of rows or columns.
    """
    if texture.levels[0].size == 4:
        return np.tile(texture.levels[0], (*s.shape, 1))
    color = np.empty((*s.shape, 4), np.uint8)
    for band, footprint in _bands(texture, inverse, shown, corner):
        color[band] = _taps(texture, s[band], t[band], footprint)
    return color


def _jacobian(
    texture: Texture, inverse: Float, x: float, y: float
) -> tuple[float, float, float, float]:
    """Derivative of texel by pixel (x, y) at the finest level, row by row."""
    (sx, sy, s1), (tx, ty, t1), (wx, wy, w1) = inverse.tolist()
    w = abs(wx * x + wy * y + w1) + 1e-9
    height, width = texture.levels[0].shape[:2]
    s, t = (sx * x + sy * y + s1) / w, (tx * x + ty * y + t1) / w
    u, v = width / w, height / w
    return (sx - s * wx) * u, (sy - s * wy) * u, (tx - t * wx) * v, (ty - t * wy) * v


def _bands(
    texture: Texture, inverse: Float, shown: npt.NDArray[np.uint8], corner: tuple[int, int]
) -> Iterator[tuple[Any, _Footprint]]:
    """Strips of a box across the direction in which the depth changes, and their footprints."""
    size = shown.shape
    axis = 0 if abs(inverse[2, 1]) * size[0] > abs(inverse[2, 0]) * size[1] else 1
    step = _BAND if shown.size > _SMALL else size[axis]
    starts = [*range(0, size[axis], step), size[axis]]
    middle = [corner[1] + 0.5 * size[0], corner[0] + 0.5 * size[1]]
    prints = []
    for start, stop in pairwise(starts):
        middle[axis] = corner[1 - axis] + 0.5 * (start + stop)
        prints.append(_footprint(*_jacobian(texture, inverse, middle[1], middle[0])))
    first = 0
    for last, (now, following) in enumerate(pairwise([*prints, None])):
        if following is not None and now is not None and now[:2] == following[:2]:
            continue
        span = slice(starts[first], starts[last + 1])
        yield (span if axis == 0 else (slice(None), span)), prints[(first + last) // 2]
        first = last + 1


def _footprint(a: float, b: float, c: float, d: float) -> _Footprint:
    """Mip level, number of taps (1 or 2), and the long axis of a pixel in finest texels.

    Singular values of a 2x2 matrix in closed form, from the eigenvalues of J J^T.
    """
    p, q, r = a * a + b * b, a * c + b * d, c * c + d * d
    root = math.sqrt(max(0.25 * (p - r) ** 2 + q * q, 0.0))
    largest = 0.5 * (p + r) + root
    long = math.sqrt(max(largest, 1e-12))
    short = abs(a * d - b * c) / long
    size = max(short, long / _MAX_TAPS, 1e-6)
    level = max(0, math.floor(math.log2(size) + 0.5))
    ratio = long / 2**level
    taps = 1 if ratio < 1.5 else _MAX_TAPS
    axis = (largest - r, q) if p >= r else (q, largest - p)
    scale = long / max(math.hypot(*axis), 1e-12)
    return level, taps, (axis[0] * scale, axis[1] * scale)


def _taps(
    texture: Texture, s: Float32, t: Float32, footprint: _Footprint
) -> npt.NDArray[np.uint8]:
    level, taps, long_axis = footprint
    finest = texture.levels[0]
    picture = texture.levels[min(level, len(texture.levels) - 1)]
    height, width = picture.shape[:2]
    u, v = s * np.float32(width), t * np.float32(height)
    values = []
    for share in (0.0,) if taps == 1 else (-0.25, 0.25):
        du = np.float32(share * long_axis[0] * width / finest.shape[1] - 0.5)
        dv = np.float32(share * long_axis[1] * height / finest.shape[0] - 0.5)
        values.append(
            cv2.remap(picture, u + du, v + dv, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        )
    return np.asarray(
        values[0] if taps == 1 else cv2.addWeighted(values[0], 0.5, values[1], 0.5, 0), np.uint8
    )

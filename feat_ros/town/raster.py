# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Draws textured parallelograms into a depth buffer, with NumPy and OpenCV alone.

A point of a quad is ``origin + s edge_u + t edge_v``, so a projection (3, 4) makes of (s, t, 1) a
pixel by one 3x3 matrix M. Its inverse gives for every pixel s/w, t/w and 1/w as linear functions
of the pixel (Heckbert, "Fundamentals of texture mapping and image warping", 1989, section 2.2);
1/w is the key of the depth test: the larger, the nearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.town.mesh import Mesh, Texture

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

NEAR_M = 0.15
_MAX_TAPS = 4
_EDGE = 1e-5
# Grid on which the footprint of a large quad's pixels is looked at.
_CELL = 32
_FEW_CELLS = 6


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
    min_thickness: float = 1.2


@dataclass(frozen=True, eq=False)
class Layers:
    """What a view sees.

    :ivar color: (H, W, 4) uint8 texture values.
    :ivar key: (H, W) float32, one over depth (0 where there is nothing), or nearness.
    :ivar quad: (H, W) int32 row of the mesh, -1 where there is nothing.
    :ivar key_of_pixel: (N, 3) key of quad n at a pixel: ``key_of_pixel[n] @ (x, y, 1)``.
    """

    color: npt.NDArray[np.uint8]
    key: Float32
    quad: npt.NDArray[np.int32]
    key_of_pixel: Float


def rasterize(mesh: Mesh, view: View) -> Layers:
    """Draw a mesh: front to back, one quad at a time, every quad vectorised over its pixels."""
    width, height = view.size_wh
    matrix, is_visible = _homographies(mesh, view)
    boxes, nearest, is_thin = _boxes(matrix, view)
    is_visible &= ~is_thin & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    inverse = np.zeros_like(matrix)
    inverse[is_visible] = np.linalg.inv(matrix[is_visible])
    key_of_pixel = _key_rows(mesh, view, inverse)
    empty = np.float32(0 if view.key_row is None else -1e9)
    layers = Layers(
        np.zeros((height, width, 4), np.uint8),
        np.full((height, width), empty, np.float32),
        np.full((height, width), -1, np.int32),
        key_of_pixel,
    )
    candidates = np.flatnonzero(is_visible)
    for index in candidates[np.argsort(-nearest[candidates], kind='stable')]:
        _draw(
            layers,
            int(index),
            inverse[index],
            key_of_pixel[index],
            boxes[index],
            float(nearest[index]),
            mesh.textures[index],
            view.key_row is None,
        )
    return layers


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


def _plane(row: Float, xs: Float, ys: Float) -> Float32:
    """Return row @ (x, y, 1) for all pixels, the products in double precision."""
    across, down = (row[0] * xs).astype(np.float32), (row[1] * ys + row[2]).astype(np.float32)
    return np.asarray(across[None, :] + down[:, None])


def _draw(
    layers: Layers,
    index: int,
    inverse: Float,
    key_row: Float,
    bounds: npt.NDArray[np.int64],
    nearest: float,
    texture: Texture,
    is_perspective: bool,
) -> None:
    x0, y0, x1, y1 = bounds.tolist()
    view = np.s_[y0:y1, x0:x1]
    old_key = layers.key[view]
    if is_perspective and nearest <= old_key.min():
        return
    xs, ys = np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5
    key = _plane(key_row, xs, ys)
    is_shown = key > old_key
    if is_perspective:
        is_shown &= key < 1 / NEAR_M
    if not is_shown.any():
        return
    s, t = _plane(inverse[0], xs, ys), _plane(inverse[1], xs, ys)
    if is_perspective:
        scale = 1 / np.maximum(key, 1e-6)
        s *= scale
        t *= scale
    is_shown &= np.abs(s - 0.5) < 0.5 + _EDGE
    is_shown &= np.abs(t - 0.5) < 0.5 + _EDGE
    rows = np.asarray(is_shown.any(axis=1))
    columns = np.asarray(is_shown.any(axis=0))
    if not rows.any():
        return
    # What is left after hidden parts and the corners of the box are cut off.
    first, last = int(rows.argmax()), len(rows) - int(rows[::-1].argmax())
    left, right = int(columns.argmax()), len(columns) - int(columns[::-1].argmax())
    part = np.s_[first:last, left:right]
    is_shown, key, s, t = is_shown[part], key[part], s[part], t[part]
    x0, y0, x1, y1 = x0 + left, y0 + first, x0 + right, y0 + last
    view = np.s_[y0:y1, x0:x1]
    color = _sample(texture, s, t, inverse, is_shown, (x0, y0))
    if texture.is_cutout:
        is_shown &= color[..., 3] > 127
    mask = np.ascontiguousarray(is_shown).view(np.uint8)
    cv2.copyTo(color, mask, layers.color[view])
    cv2.copyTo(key, mask, layers.key[view])
    np.copyto(layers.quad[view], np.int32(index), where=is_shown)


def _sample(
    texture: Texture,
    s: Float32,
    t: Float32,
    inverse: Float,
    is_shown: npt.NDArray[np.bool_],
    corner: tuple[int, int],
) -> npt.NDArray[np.uint8]:
    """Texture values (h, w, 4): mip level by the short axis of a pixel's footprint, several taps
    along its long axis, both constant over bands of rows or columns.
    """
    height, width = s.shape
    color = np.empty((height, width, 4), np.uint8)
    if texture.levels[0].size == 4:
        color[:] = texture.levels[0][0, 0]
        return color
    for band, footprint in _bands(texture, inverse, is_shown, corner):
        color[band] = _taps(texture, s[band], t[band], footprint)
    return color


def _bands(
    texture: Texture, inverse: Float, is_shown: npt.NDArray[np.bool_], corner: tuple[int, int]
) -> list[tuple[Any, tuple[int, int, tuple[float, float]]]]:
    height, width = is_shown.shape
    rows, columns = -(-height // _CELL), -(-width // _CELL)
    if rows * columns <= _FEW_CELLS:
        jacobian = _jacobians(texture, inverse, corner[0] + 0.5 * width, corner[1] + 0.5 * height)
        return [(np.s_[:, :], _footprint(jacobian))]
    y = np.minimum(np.arange(rows) * _CELL + _CELL // 2, height - 1)
    x = np.minimum(np.arange(columns) * _CELL + _CELL // 2, width - 1)
    jacobians = _jacobians(
        texture, inverse, (corner[0] + x + 0.5)[None, :], (corner[1] + y + 0.5)[:, None]
    )
    by_rows = np.add.reduceat(is_shown, np.arange(rows) * _CELL, axis=0, dtype=np.int32)
    weight = np.add.reduceat(by_rows, np.arange(columns) * _CELL, axis=1).astype(float)
    lod = np.log2(np.maximum(np.linalg.norm(jacobians, axis=(2, 3)), 1e-3))
    by_row = _spread(lod, weight, 1) < _spread(lod, weight, 0)
    axis = 1 if by_row else 0
    total = weight.sum(axis=axis)
    mean = (jacobians * weight[..., None, None]).sum(axis=axis)
    mean = mean / np.maximum(total, 1e-9)[:, None, None]
    bands: list[tuple[Any, tuple[int, int, tuple[float, float]]]] = []
    start = 0
    prints = [_footprint(m) if w > 0 else None for m, w in zip(mean, total, strict=True)]
    for cell in range(1, len(prints) + 1):
        if cell < len(prints) and _same(prints[start], prints[cell]):
            continue
        first = prints[start]
        if first is not None:
            cells = np.asarray((weight if by_row else weight.T)[start:cell].any(axis=0))
            end = len(cells) - int(cells[::-1].argmax())
            span = slice(start * _CELL, cell * _CELL)
            across = slice(int(cells.argmax()) * _CELL, end * _CELL)
            middle = prints[(start + cell - 1) // 2] or first
            bands.append((np.s_[span, across] if by_row else np.s_[across, span], middle))
        start = cell
    return bands


def _same(
    a: tuple[int, int, tuple[float, float]] | None, b: tuple[int, int, tuple[float, float]] | None
) -> bool:
    if a is None or b is None:
        return a is b
    return a[:2] == b[:2]


def _spread(lod: Float, weight: Float, axis: int) -> float:
    """How much the level varies along one axis of the grid, where the quad is shown."""
    is_shown = weight > 0
    high = np.where(is_shown, lod, -np.inf).max(axis=axis)
    low = np.where(is_shown, lod, np.inf).min(axis=axis)
    used = is_shown.any(axis=axis)
    return float(np.max(high[used] - low[used])) if used.any() else 0.0


def _jacobians(texture: Texture, inverse: Float, x: Any, y: Any) -> Float:
    """Derivative of texel by pixel (..., 2, 2) at the finest level."""
    w = inverse[2, 0] * x + inverse[2, 1] * y + inverse[2, 2]
    w = np.where(np.abs(w) < 1e-4, 1e-4, w)
    size = texture.levels[0].shape[1::-1]
    out = np.empty((*np.shape(w), 2, 2))
    for k in range(2):
        value = (inverse[k, 0] * x + inverse[k, 1] * y + inverse[k, 2]) / w
        for axis in range(2):
            out[..., k, axis] = size[k] * (inverse[k, axis] - value * inverse[2, axis]) / w
    return out


def _footprint(jacobian: Float) -> tuple[int, int, tuple[float, float]]:
    """Mip level, number of taps (1, 2 or 4), and the long axis of a pixel in finest texels.

    Singular values of a 2x2 matrix in closed form, from the eigenvalues of J J^T.
    """
    (a, b), (c, d) = jacobian.tolist()
    p, q, r = a * a + b * b, a * c + b * d, c * c + d * d
    root = math.sqrt(max(0.25 * (p - r) ** 2 + q * q, 0.0))
    largest = 0.5 * (p + r) + root
    long = math.sqrt(max(largest, 1e-12))
    short = abs(a * d - b * c) / long
    size = max(short, long / _MAX_TAPS, 1e-6)
    level = max(0, math.floor(math.log2(size) + 0.5))
    ratio = long / 2**level
    taps = 1 if ratio < 1.5 else 2 if ratio < 3 else 4
    axis = (largest - r, q) if p >= r else (q, largest - p)
    scale = long / max(math.hypot(*axis), 1e-12)
    return level, taps, (axis[0] * scale, axis[1] * scale)


def _taps(
    texture: Texture, s: Float32, t: Float32, footprint: tuple[int, int, tuple[float, float]]
) -> npt.NDArray[np.uint8]:
    level, taps, long_axis = footprint
    finest = texture.levels[0]
    picture = texture.levels[min(level, len(texture.levels) - 1)]
    height, width = picture.shape[:2]
    u, v = s * np.float32(width), t * np.float32(height)
    values = []
    for tap in range(taps):
        share = (tap + 0.5) / taps - 0.5
        du = np.float32(share * long_axis[0] * width / finest.shape[1] - 0.5)
        dv = np.float32(share * long_axis[1] * height / finest.shape[0] - 0.5)
        values.append(
            cv2.remap(picture, u + du, v + dv, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        )
    while len(values) > 1:
        values = [
            cv2.addWeighted(x, 0.5, y, 0.5, 0)
            for x, y in zip(values[::2], values[1::2], strict=True)
        ]
    return np.asarray(values[0], np.uint8)

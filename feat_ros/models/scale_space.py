# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Keypoints from the image itself: extrema of a scale space of fixed filters, as one graph.

Differences of Gaussians as in Lowe, "Distinctive image features from scale-invariant keypoints",
IJCV 2004, sections 3 and 4, in operators that ONNX Runtime and TensorRT both run and with shapes
that follow from the size of the image only. Two octaves from the original resolution, without
doubling: where a point sits decides the centimetres of a pose, and these positions are unbiased.

What differs from Lowe. A point must be the largest of its 3x3 pixels on all levels that are
asked, whichever of the two middle ones it is on: one maximum over levels and one over pixels then
do. The finest level of the first octave is not asked: structure too small for it is repeated, and
placed, better than the points that it would leave (docs/models/sfd2_lite.md). Nothing is looked
for again where the refined position is nearer to another pixel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.models.keypoints import TOP_K_LIMIT

# Standard deviations of the Gaussians of an octave, in its pixels and on top of the camera's own
# blur. The middle one is halved in resolution and starts the next octave.
SIGMAS = (1.0, math.sqrt(2.0), 2.0, 2.0 * math.sqrt(2.0), 4.0)
LEVELS = len(SIGMAS) - 1
OCTAVES = 2
# Filters go to this many standard deviations.
_REACH = 3.0
# Rows are filtered as a product with blocks of this many pixels: convolutions over many channels
# run several times faster than over one.
_BLOCK = 16
# Pixels of the octave's own resolution at the border where nothing is found.
_BORDER = 4
# Largest ratio of the curvatures of a point that is not on an edge.
_EDGE_RATIO = 10.0
# How far, in pixels and levels, the top of the quadratic may be from the largest value.
_FARTHEST = 1.0
# Weakest response, where a quarter is the mean of the image.
_WEAKEST = 3e-4
# What of a point the networks are told; see Points.
POINT_FEATURES = 5


class Points(NamedTuple):
    """Points of a batch, strongest first; where there are none, response and rest are zero.

    ==============  ==========  =========================================================
    ``xy``          (B, N, 2)   pixels, the centre of the top-left one at (0.5, 0.5)
    ``sigma``       (B, N)      standard deviation of the blob, in pixels
    ``response``    (B, N)      absolute value of the extremum
    ``features``    (B, N, 5)   logarithm of the response, how edge-like, how sharp, octaves
                                of scale, and whether bright (-1) or dark (1)
    ==============  ==========  =========================================================
    """

    xy: Tensor
    sigma: Tensor
    response: Tensor
    features: Tensor


def gaussian(sigma: float, radius: int) -> Tensor:
    """Return the weights (2 radius + 1,) of a sampled Gaussian; their sum is 1."""
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (at / sigma) ** 2)
    return weights / weights.sum()


def top_k(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values (B, count) of each row of (B, M), at least zero, and where.

    In pieces that TensorRT takes; M must be at least ``count``.
    """
    first = min(count, TOP_K_LIMIT)
    found, at = torch.topk(values, first, dim=1)
    parts = [(found, at)]
    while first < count:
        values = values.scatter(1, at, -1.0)
        step = min(count - first, TOP_K_LIMIT)
        found, at = torch.topk(values, step, dim=1)
        parts.append((found, at))
        first += step
    if len(parts) == 1:
        return found, at
    return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)


class ScaleSpace(nn.Module):
    """Points of grey images; nothing in it is learned.

    ``forward(tones (B, 1, H, W) float32, valid_wh (B, 2) int32, count) -> Points`` with N = count.
    H and W are multiples of 32; tones have mean 0, and are 0 beyond ``valid_wh``.
    """

    def __init__(self) -> None:
        super().__init__()
        radius = math.ceil(_REACH * SIGMAS[-1])
        assert radius <= _BLOCK
        for octave in range(OCTAVES):
            rows, columns = self._filters(octave, radius)
            self.register_buffer(f'rows_{octave}', rows, persistent=False)
            self.register_buffer(f'columns_{octave}', columns, persistent=False)
        self._radius = radius

    @staticmethod
    def _filters(octave: int, radius: int) -> tuple[Tensor, Tensor]:
        """Weights of the convolution along rows (80, 16, 1, 3) and along columns (80, 1, n, 1)."""
        # The next octave's pixels are averages over 2x2 of a Gaussian of 2 pixels.
        known = 0.0 if octave == 0 else math.sqrt(SIGMAS[2] ** 2 + 0.25) / 2
        rows = torch.zeros(len(SIGMAS), _BLOCK, _BLOCK, 3, dtype=torch.float64)
        columns = torch.zeros(len(SIGMAS), 2 * radius + 1, dtype=torch.float64)
        for level, sigma in enumerate(SIGMAS):
            added = math.sqrt(max(sigma**2 - known**2, 0.0))
            weights = gaussian(max(added, 1e-3), radius)
            columns[level] = weights
            for target in range(_BLOCK):
                for distance in range(-radius, radius + 1):
                    block, source = divmod(target + distance, _BLOCK)
                    rows[level, target, source, block + 1] = weights[distance + radius]
        rows = rows.reshape(len(SIGMAS) * _BLOCK, _BLOCK, 1, 3)
        columns = columns.repeat_interleave(_BLOCK, dim=0)[:, None, :, None]
        return rows.float(), columns.float()

    def differences(self, tones: Tensor) -> list[list[Tensor]]:
        """Return the four differences of Gaussians of each octave, (B, 1, h, w) each."""
        found = []
        for octave in range(OCTAVES):
            batch, _, height, width = tones.shape
            tones = functional.pad(tones, (0, -width % _BLOCK))
            blocks = tones.reshape(batch, height, -1, _BLOCK).permute(0, 3, 1, 2)
            rows = functional.conv2d(blocks, getattr(self, f'rows_{octave}'), padding=(0, 1))
            blurred = functional.conv2d(
                rows, getattr(self, f'columns_{octave}'), padding=(self._radius, 0),
                groups=len(SIGMAS) * _BLOCK,
            )  # fmt: skip
            levels = blurred.reshape(batch, len(SIGMAS), _BLOCK, height, -1)
            levels = levels.permute(0, 1, 3, 4, 2).reshape(batch, len(SIGMAS), height, -1)
            gaussians = levels[..., :width].split(1, dim=1)
            found.append([gaussians[k + 1] - gaussians[k] for k in range(LEVELS)])
            tones = functional.avg_pool2d(gaussians[2], 2)
        return found

    def forward(self, tones: Tensor, valid_wh: Tensor, count: int) -> Points:
        """See the class."""
        differences = self.differences(tones)
        cells = [_maxima(each, valid_wh, octave) for octave, each in enumerate(differences)]
        # As many empty cells follow, so that an image too small for ``count`` has enough.
        response, cell = top_k(functional.pad(torch.cat(cells, 1), (0, count)), count)
        return _refine(differences, response, cell)


def _maxima(differences: list[Tensor], valid_wh: Tensor, octave: int) -> Tensor:
    """Largest extremum (B, h/2 * w/2) in each cell of 2x2 pixels of an octave, or 0."""
    batch, _, height, width = differences[0].shape
    inner = torch.maximum(differences[1].abs(), differences[2].abs())
    asked = torch.maximum(inner, differences[3].abs())
    if octave > 0:
        asked = torch.maximum(asked, differences[0].abs())
    largest = functional.max_pool2d(asked, 3, 1, 1)
    cells = functional.max_pool2d(inner * (inner >= largest).to(inner.dtype), 2)
    # Of a cell all four pixels must be inside.
    limit = torch.div(valid_wh, 2**octave, rounding_mode='floor') - _BORDER
    x = 2 * torch.arange(width // 2, device=inner.device)
    y = 2 * torch.arange(height // 2, device=inner.device)
    inside_x = (x >= _BORDER) & (x + 1 < limit[:, 0, None])
    inside_y = (y >= _BORDER) & (y + 1 < limit[:, 1, None])
    is_found = (cells > _WEAKEST) & inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return torch.where(is_found, cells, torch.zeros_like(cells)).reshape(batch, -1)


def _refine(differences: list[list[Tensor]], response: Tensor, cell: Tensor) -> Points:
    """Points (B, N) of cells: the pixel and level of each, its curvatures and offset."""
    batch, _, height, width = differences[0][0].shape
    num_cells = (height // 2) * (width // 2)
    is_coarse = cell >= num_cells
    # The cells of both octaves lie one after the other, and so do their differences in memory.
    per_image = LEVELS * (height * width + (height // 2) * (width // 2))
    levels = [level.reshape(batch, -1) for octave in differences for level in octave]
    flat = torch.cat(levels, 1).reshape(-1)
    row_length = torch.where(is_coarse, width // 2, width)
    level_length = torch.where(is_coarse, (height // 2) * (width // 2), height * width)
    start = torch.where(is_coarse, LEVELS * height * width, 0)
    start = start + per_image * torch.arange(batch, device=cell.device)[:, None]
    local = torch.where(is_coarse, cell - num_cells, cell)
    # Cells that only fill up the rows may lie beyond the last octave.
    local = torch.minimum(local, torch.div(level_length, 4, rounding_mode='floor') - 1)
    cell_width = torch.div(row_length, 2, rounding_mode='floor')
    cell_y = torch.div(local, cell_width, rounding_mode='floor')
    cell_x = local - cell_y * cell_width
    corner = start + level_length + 2 * cell_y * row_length + 2 * cell_x

    # Which of the cell's four pixels and of the two inner levels.
    pixels = torch.stack([corner, corner + 1, corner + row_length, corner + row_length + 1], -1)
    candidates = torch.cat([pixels, pixels + level_length[..., None]], -1)
    values = _take(flat, candidates).abs()
    chosen = torch.argmax(values, dim=-1)
    level_up = torch.div(chosen, 4, rounding_mode='floor')
    place = chosen - 4 * level_up
    step_y = torch.div(place, 2, rounding_mode='floor')
    step_x = place - 2 * step_y
    x, y = 2 * cell_x + step_x, 2 * cell_y + step_y
    center = corner + level_up * level_length + step_y * row_length + step_x

    # Points on the outermost rows and columns are zero rows only, but they too must be read.
    right = torch.where(x + 1 < row_length, 1, 0)
    left = torch.where(x > 0, 1, 0)
    column_length = torch.where(is_coarse, height // 2, height)
    down = torch.where(y + 1 < column_length, row_length, 0)
    up = torch.where(y > 0, row_length, 0)
    sides = (torch.zeros_like(left), -left, right, -up, down)
    around = torch.stack(
        [
            *(center + there for there in sides),
            center - up - left, center - up + right, center + down - left, center + down + right,
            *(center + step * level_length + there for step in (-1, 1) for there in sides),
        ],
        -1,
    )  # fmt: skip
    values = _take(flat, around)
    sign = torch.where(values[..., 0] >= 0, 1.0, -1.0)
    # Center, west, east, north, south and the corners; then the same of the level below, above.
    c, w, e, n, s, nw, ne, sw, se, cb, wb, eb, nb, sb, ca, wa, ea, na, sa = (
        values * sign[..., None]
    ).unbind(-1)
    gx, gy, gs = (e - w) / 2, (s - n) / 2, (ca - cb) / 2
    dxx, dyy, dss = e + w - 2 * c, n + s - 2 * c, (ca + cb - 2 * c).clamp(max=-1e-9)
    dxy, dxs, dys = (se - sw - ne + nw) / 4, (ea - wa - eb + wb) / 4, (sa - na - sb + nb) / 4
    determinant, trace = dxx * dyy - dxy * dxy, dxx + dyy
    edge = trace * trace / determinant.clamp(min=1e-12)
    is_blob = (determinant > 0) & (edge < (_EDGE_RATIO + 1) ** 2 / _EDGE_RATIO)
    is_point = is_blob & (response > 0)
    offset = _vertex(gx, gy, gs, dxx, dyy, dss, dxy, dxs, dys)

    unit = torch.where(is_coarse, 2.0, 1.0)
    xy = torch.stack([(x + 0.5 + offset[0]) * unit, (y + 0.5 + offset[1]) * unit], -1)
    octaves = torch.where(is_coarse, 1.0, 0.0) + (level_up + 1.5 + offset[2]) / 2
    kept = is_point.to(c.dtype)
    features = torch.stack(
        [
            torch.log(response.clamp(min=_WEAKEST)) + 5.0,
            torch.log(edge.clamp(4.0, 16.0)) - 1.6,
            -trace / c.clamp(min=_WEAKEST) / 4,
            octaves - 1.2,
            sign,
        ],
        -1,
    )
    return Points(
        xy * kept[..., None],
        torch.exp(octaves * math.log(2.0)) * kept,
        response * kept,
        features * kept[..., None],
    )


def _take(flat: Tensor, index: Tensor) -> Tensor:
    """Return ``flat[index]`` by the operator that runtimes have fast code for."""
    return flat.index_select(0, index.reshape(-1)).reshape(index.shape)


def _vertex(
    gx: Tensor, gy: Tensor, gs: Tensor,
    dxx: Tensor, dyy: Tensor, dss: Tensor,
    dxy: Tensor, dxs: Tensor, dys: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Where the quadratic of gradient g and Hessian d is largest: -d^-1 g by Cramer's rule.

    Lowe 2004, equation 3. Where that is not within a pixel, or no maximum, scale is taken apart.
    """
    minor_x, minor_y, minor_s = dyy * dss - dys * dys, dys * dxs - dxy * dss, dxy * dys - dyy * dxs
    determinant = dxx * minor_x + dxy * minor_y + dxs * minor_s
    safe = torch.where(determinant < 0, determinant, -torch.ones_like(determinant))
    x = -(minor_x * gx + minor_y * gy + minor_s * gs) / safe
    y = -(minor_y * gx + (dxx * dss - dxs * dxs) * gy + (dxy * dxs - dxx * dys) * gs) / safe
    s = -(minor_s * gx + (dxy * dxs - dxx * dys) * gy + (dxx * dyy - dxy * dxy) * gs) / safe
    is_near = torch.maximum(torch.maximum(x.abs(), y.abs()), s.abs()) < _FARTHEST
    is_near = is_near & (determinant < 0)
    plane = (dxx * dyy - dxy * dxy).clamp(min=1e-12)
    apart = (dxy * gy - dyy * gx) / plane, (dxy * gx - dxx * gy) / plane, -gs / dss
    found = (
        torch.where(is_near, together, alone.clamp(-0.6, 0.6))
        for together, alone in zip((x, y, s), apart, strict=True)
    )
    x, y, s = found
    return x, y, s

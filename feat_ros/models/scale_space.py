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
# run several times faster than over one, and ONNX Runtime keeps 16 channels of a place together,
# so that such blocks are pixels in order.
_BLOCK = 16
# Weights of a filter below this are lost in float32.
_NEGLIGIBLE = 1e-9
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

# Steps (x, y, level): over a cell's pixels on both inner levels, and to all that is read of a
# point.
_CELL = tuple((x, y, up) for up in (0, 1) for y in (0, 1) for x in (0, 1))
_PLUS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
_CORNERS = ((-1, -1), (1, -1), (-1, 1), (1, 1))
_AROUND = (
    *((x, y, 0) for x, y in (*_PLUS, *_CORNERS)),
    *((x, y, up) for up in (-1, 1) for x, y in _PLUS),
)
# Cofactors of the Hessian, each a b - c d.
_COFACTORS = {
    'xx': ('dyy', 'dss', 'dys', 'dys'),
    'xy': ('dys', 'dxs', 'dxy', 'dss'),
    'xs': ('dxy', 'dys', 'dyy', 'dxs'),
    'yy': ('dxx', 'dss', 'dxs', 'dxs'),
    'ys': ('dxy', 'dxs', 'dxx', 'dys'),
    'ss': ('dxx', 'dyy', 'dxy', 'dxy'),
}
# Numerators of Cramer's rule for x, y and s, then the determinant: a sum over the three lines of
# cofactor times factor.
_CRAMER = (
    (('xx', 'gx'), ('xy', 'gx'), ('xs', 'gx'), ('xx', 'dxx')),
    (('xy', 'gy'), ('yy', 'gy'), ('ys', 'gy'), ('xy', 'dxy')),
    (('xs', 'gs'), ('ys', 'gs'), ('ss', 'gs'), ('xs', 'dxs')),
)
# Numerators of x and y in the plane alone, and their denominator.
_IN_PLANE = (('dxy', 'gy', 'dyy', 'gx'), ('dxy', 'gx', 'dxx', 'gy'), _COFACTORS['ss'])


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
        for octave in range(OCTAVES):
            for level, (rows, columns) in enumerate(_filters(octave)):
                self.register_buffer(f'rows_{octave}_{level}', rows, persistent=False)
                self.register_buffer(f'columns_{octave}_{level}', columns, persistent=False)
        self.register_buffer('halving', _halving(), persistent=False)
        self.register_buffer('cell_steps', torch.tensor(_CELL).T.contiguous(), persistent=False)
        self.register_buffer(
            'around_steps', torch.tensor(_AROUND).T.contiguous(), persistent=False
        )
        self.register_buffer('derivatives', _derivatives(), persistent=False)
        limits = [-1e-9 if name == 'dss' else math.inf for name in _rows()]
        self.register_buffer('limits', torch.tensor(limits)[:, None], persistent=False)

    def differences(self, tones: Tensor) -> list[list[Tensor]]:
        """Return the four differences of Gaussians of each octave, (B, 1, h, w) each.

        The first and third are less the second and fourth: their sign is turned, which saves a
        pass over every level.
        """
        batch, _, height, width = tones.shape
        blocks = tones.reshape(batch, height, width // _BLOCK, _BLOCK).permute(0, 3, 1, 2)
        found: list[list[Tensor]] = []
        signed: list[Tensor] = []
        for octave in range(OCTAVES):
            if octave > 0:
                blocks = functional.conv2d(signed[2], self.halving, stride=2)
            signed = []
            for level in range(len(SIGMAS)):
                rows = getattr(self, f'rows_{octave}_{level}')
                columns = getattr(self, f'columns_{octave}_{level}')
                blurred = functional.conv2d(blocks, rows, padding=(0, 1))
                reach = columns.shape[2] // 2
                signed.append(
                    functional.conv2d(blurred, columns, padding=(reach, 0), groups=_BLOCK)
                )
            size = height >> octave, width >> octave
            found.append([_pixels(signed[k] + signed[k + 1], *size) for k in range(LEVELS)])
        return found

    def forward(self, tones: Tensor, valid_wh: Tensor, count: int) -> Points:
        """See the class."""
        differences = self.differences(tones)
        cells = [_maxima(each, valid_wh, octave) for octave, each in enumerate(differences)]
        # As many empty cells follow, so that an image too small for ``count`` has enough.
        response, cell = top_k(functional.pad(torch.cat(cells, 1), (0, count)), count)
        response = torch.where(response > _WEAKEST, response, torch.zeros_like(response))
        return self._refine(differences, response, cell)

    def _refine(self, differences: list[list[Tensor]], response: Tensor, cell: Tensor) -> Points:
        """Points of cells (B, N): the pixel and level of each, its curvatures and offset.

        Within, M = B N, and what a point has several of comes first: runtimes are slow where the
        last axis is short.
        """
        batch, _, height, width = differences[0][0].shape
        count = cell.shape[1]
        # The cells of both octaves lie one after the other, and so do their differences in memory.
        flat = torch.cat([level.reshape(batch, -1) for each in differences for level in each], 1)
        per_image = LEVELS * (height * width + (height // 2) * (width // 2))
        first = per_image * torch.arange(batch, device=cell.device)[:, None].expand(-1, count)
        first, cell, response = first.reshape(-1), cell.reshape(-1), response.reshape(-1)
        num_cells = (height // 2) * (width // 2)
        octave = (cell >= num_cells).to(torch.int64)
        row_length = width - octave * (width // 2)
        level_length = height * width - octave * (height * width - num_cells)
        start = first + octave * (LEVELS * height * width)
        # Cells that only fill up the rows may lie beyond the last octave.
        local = torch.minimum(cell - octave * num_cells, _divide(level_length, 4) - 1)
        cell_width = _divide(row_length, 2)
        cell_y = _divide(local, cell_width)
        x, y = 2 * (local - cell_y * cell_width), 2 * cell_y
        corner = start + level_length + y * row_length + x

        # Which of the cell's four pixels and of the two inner levels.
        across, down, up = self.cell_steps[..., None].unbind(0)
        candidates = corner + (down * row_length + up * level_length + across)
        chosen = torch.argmax(_take(flat, candidates).abs(), dim=0)
        step = self.cell_steps.index_select(1, chosen)
        step_x, step_y, level_up = step.unbind(0)
        center = torch.gather(candidates, 0, chosen[None])

        # Only of zero rows, which must be read too, can something lie outside.
        across, down, up = self.around_steps[..., None].unbind(0)
        around = center + (down * row_length + up * level_length + across)
        values = _take(flat, around.clamp(0, per_image * batch - 1))
        sign = torch.where(values[0] >= 0, 1.0, -1.0)
        parts = torch.minimum(self.derivatives @ (values * sign), self.limits)
        a, b, c, d, factor, value, gs, dxx, dyy, dss = parts.split((15,) * 4 + (12,) + (1,) * 5)
        numerators, in_plane, plane = (a * b - c * d).split((12, 2, 1))
        lines = (numerators * factor).split(4)
        numerator, determinant = (lines[0] + lines[1] + lines[2]).split((3, 1))
        trace, plane_area = dxx + dyy, plane.clamp(min=1e-12)
        edge = trace * trace / plane_area
        is_blob = (plane > 0) & (edge < (_EDGE_RATIO + 1) ** 2 / _EDGE_RATIO)
        kept = (is_blob & (response > 0)).to(value.dtype)

        # Lowe 2004, equation 3: where the quadratic is largest. Where that is not within a pixel,
        # or no maximum, scale is taken apart.
        together = -numerator / torch.where(determinant < 0, determinant, -1.0)
        is_near = (together.abs().amax(0, keepdim=True) < _FARTHEST) & (determinant < 0)
        alone = torch.cat([in_plane / plane_area, -gs / dss]).clamp(-0.6, 0.6)
        offset_xy, offset_s = torch.where(is_near, together, alone).split((2, 1))

        unit = (octave + 1).to(value.dtype)
        at = torch.stack([x + step_x, y + step_y]).to(value.dtype)
        xy = (at + 0.5 + offset_xy) * (unit * kept)
        octaves = unit - 1 + (level_up + 1.5 + offset_s) / 2
        strength = response.clamp(min=_WEAKEST)[None]
        features = torch.cat(
            [
                torch.log(strength) + 5.0,
                torch.log(edge.clamp(4.0, 16.0)) - 1.6,
                -trace / value.clamp(min=_WEAKEST) / 4,
                octaves - 1.2,
                # The second inner level is turned; see differences.
                (sign * (1 - 2 * level_up))[None],
            ]
        )
        sigma = torch.exp(octaves * math.log(2.0))
        return Points(
            xy.T.reshape(batch, count, 2),
            (sigma * kept).reshape(batch, count),
            (response * kept).reshape(batch, count),
            (features * kept).T.reshape(batch, count, POINT_FEATURES),
        )


def _filters(octave: int) -> list[tuple[Tensor, Tensor]]:
    """Weights of each level's convolution along rows (16, 16, 1, 3) and columns (16, 1, n, 1)."""
    # The next octave's pixels are averages over 2x2 of a Gaussian of 2 pixels.
    known = 0.0 if octave == 0 else math.sqrt(SIGMAS[2] ** 2 + 0.25) / 2
    found = []
    for level, sigma in enumerate(SIGMAS):
        added = math.sqrt(max(sigma**2 - known**2, 0.0))
        radius = math.ceil(_REACH * SIGMAS[-1])
        weights = gaussian(max(added, 1e-3), radius)
        while radius and weights[0] < _NEGLIGIBLE:
            weights, radius = weights[1:-1], radius - 1
        assert radius <= _BLOCK
        rows = torch.zeros(_BLOCK, _BLOCK, 1, 3, dtype=torch.float64)
        for target in range(_BLOCK):
            for distance in range(-radius, radius + 1):
                block, source = divmod(target + distance, _BLOCK)
                rows[target, source, 0, block + 1] = weights[distance + radius]
        turned = (-1) ** level * weights
        columns = turned[None, None, :, None].expand(_BLOCK, 1, -1, 1)
        found.append((rows.float(), columns.float().contiguous()))
    return found


def _halving() -> Tensor:
    """Weights (16, 16, 2, 2) that make the mean of 2x2 pixels of blocks, in blocks."""
    weights = torch.zeros(_BLOCK, _BLOCK, 2, 2)
    for target in range(_BLOCK):
        for source in (2 * target, 2 * target + 1):
            block, pixel = divmod(source, _BLOCK)
            weights[target, pixel, :, block] = 0.25
    return weights


def _pixels(blocks: Tensor, height: int, width: int) -> Tensor:
    return blocks.permute(0, 2, 3, 1).reshape(-1, 1, height, width)


def _rows() -> list[str]:
    """Which derivative each row that the refinement starts from holds."""
    cofactors = [_COFACTORS[name] for line in _CRAMER for name, _ in line]
    parts = [name for part in zip(*cofactors, *_IN_PLANE, strict=True) for name in part]
    factors = [name for line in _CRAMER for _, name in line]
    return [*parts, *factors, 'c', 'gs', 'dxx', 'dyy', 'dss']


def _derivatives() -> Tensor:
    """Weights (C, 19) that make :func:`_rows` of the values around a point."""
    at = {
        # Neighbouring levels are turned; see ScaleSpace.differences.
        step: functional.one_hot(torch.tensor(k), len(_AROUND)) * (-1.0) ** step[2]
        for k, step in enumerate(_AROUND)
    }
    one = {'x': (1, 0, 0), 'y': (0, 1, 0), 's': (0, 0, 1)}

    def value(plus: str, minus: str = '') -> Tensor:
        x, y, up = (sum(one[n][k] for n in plus) - sum(one[n][k] for n in minus) for k in range(3))
        return at[x, y, up]

    found = {'c': value('')}
    for i in one:
        found[f'g{i}'] = (value(i) - value('', i)) / 2
        found[f'd{i}{i}'] = value(i) + value('', i) - 2 * value('')
    for i, j in ('xy', 'xs', 'ys'):
        same, turned = value(i + j) + value('', i + j), value(i, j) + value(j, i)
        found[f'd{i}{j}'] = (same - turned) / 4
    return torch.stack([found[name] for name in _rows()])


def _maxima(differences: list[Tensor], valid_wh: Tensor, octave: int) -> Tensor:
    """Largest extremum (B, h/2 * w/2) in each cell of 2x2 pixels of an octave, or 0."""
    batch, _, height, width = differences[0].shape
    inner = torch.maximum(differences[1].abs(), differences[2].abs())
    asked = torch.maximum(inner, differences[3].abs())
    if octave > 0:
        asked = torch.maximum(asked, differences[0].abs())
    # At an extremum the difference is 0, elsewhere less. It can only be a cell's largest pixel,
    # for all four are neighbours.
    below = functional.max_pool2d(inner - functional.max_pool2d(asked, 3, 1, 1), 2)
    cells = functional.max_pool2d(inner, 2) * (below >= 0).to(inner.dtype)
    # Of a cell all four pixels must be inside.
    limit = _divide(valid_wh, 2**octave) - _BORDER
    x = 2 * torch.arange(width // 2, device=inner.device)
    y = 2 * torch.arange(height // 2, device=inner.device)
    inside_x = (x >= _BORDER) & (x + 1 < limit[:, 0, None])
    inside_y = (y >= _BORDER) & (y + 1 < limit[:, 1, None])
    cells = cells * inside_y[:, None, :, None].to(inner.dtype)
    return (cells * inside_x[:, None, None, :].to(inner.dtype)).reshape(batch, -1)


def _divide(values: Tensor, by: int | Tensor) -> Tensor:
    """Divide whole numbers that are not negative."""
    return torch.div(values, by, rounding_mode='trunc')


def _take(flat: Tensor, index: Tensor) -> Tensor:
    """Return ``flat[index]`` by the operator that runtimes have fast code for."""
    return flat.reshape(-1).index_select(0, index.reshape(-1)).reshape(index.shape)

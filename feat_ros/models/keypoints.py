# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From maps to keypoints inside the graph: operators that ONNX Runtime and TensorRT both run.

Places are (x, y) with the centre of the top-left pixel, or cell of a coarser map, at (0.5, 0.5):
a place of the image divided by the stride of a map is its place in that map. All shapes follow
from the size of the image and the number of keypoints, none from what the image shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# TensorRT's ITopKLayer takes no more.
TOP_K_LIMIT = 3840


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Return numbers as a tensor (N,), made where ``like`` is.

    A copy from the host could not be captured in a CUDA graph.
    """
    made = [torch.full((), value, dtype=like.dtype, device=like.device) for value in values]
    return torch.stack(made)


def normalise(
    image: Tensor, mean: tuple[float, float, float], deviation: tuple[float, float, float]
) -> Tensor:
    """Return an image (1, H, W, 3) uint8 as (1, 3, H, W) float32, 0 to 1, less the mean."""
    # TensorRT takes bytes as input, but only to convert them.
    planes = image.float().permute(0, 3, 1, 2) / 255
    shape = (1, 3, 1, 1)
    center, spread = (constants(each, planes).reshape(shape) for each in (mean, deviation))
    return (planes - center) / spread


def inside(height: int, width: int, valid_wh: Tensor, border: int) -> Tensor:
    """Whether each pixel (1, 1, H, W) is in the valid part, at least a border from its edges.

    :param valid_wh: int (2,), the width and height at the top left that are not padding.
    """
    x = torch.arange(width, device=valid_wh.device)
    y = torch.arange(height, device=valid_wh.device)
    inside_x = (x >= border) & (x < valid_wh[0] - border)
    inside_y = (y >= border) & (y < valid_wh[1] - border)
    return (inside_y[:, None] & inside_x[None, :])[None, None]


def window_maximum(values: Tensor, radius: int) -> Tensor:
    """Return the largest value in the square (2 radius + 1) around each pixel of (B, C, H, W)."""
    size = 2 * radius + 1
    rows = functional.max_pool2d(values, (1, size), stride=1, padding=(0, radius))
    return functional.max_pool2d(rows, (size, 1), stride=1, padding=(radius, 0))


def has_contrast(image: Tensor, radius: int) -> Tensor:
    """Whether anything (1, 1, H, W) is to be seen around a pixel: no keypoints in plain black.

    :param image: (1, H, W, 3) uint8.
    """
    grey = image.float().permute(0, 3, 1, 2).mean(1, keepdim=True)
    return window_maximum(grey, radius) > -window_maximum(-grey, radius)


def keep_maxima(score: Tensor, radius: int) -> Tensor:
    """Return a score map (1, 1, H, W) in which all but the maxima of their square are zero."""
    return torch.where(score == window_maximum(score, radius), score, torch.zeros_like(score))


def strongest(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values (count,) of a map of at least 0, and their flat places (count,).

    Where the map has fewer values the rest is zero, with the place of its last value.
    """
    flat = score.reshape(-1)
    last = flat.shape[0] - 1
    flat = torch.cat([flat, flat.new_zeros(count)])
    first = min(count, TOP_K_LIMIT)
    values, places = torch.topk(flat, first)
    found = [(values, places)]
    for start in range(first, count, TOP_K_LIMIT):
        flat = flat.scatter(0, places, torch.full_like(values, -1))
        values, places = torch.topk(flat, min(count - start, TOP_K_LIMIT))
        found.append((values, places))
    values = torch.cat([pair[0] for pair in found])
    places = torch.cat([pair[1] for pair in found])
    return values, places.clamp(max=last)


def split_places(places: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return column and row of flat places."""
    row = torch.div(places, width, rounding_mode='floor')
    return places - row * width, row


def take_pixels(values: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Return the values (N, C) of a map (1, C, H, W) at whole pixels (N,), clamped to the map."""
    _, channels, height, width = values.shape
    at = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    if channels == 1:
        return values.reshape(-1).index_select(0, at)[:, None]
    return values.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, at)


def sample_bilinear(values: Tensor, points: Tensor) -> Tensor:
    """Return the values (N, C) of a map (1, C, h, w) between the centres of its cells.

    :param points: (N, 2) in cells of the map; beyond the outer centres the edge goes on.
    """
    at = points - 0.5
    low = torch.floor(at)
    share = at - low
    column, row = low[:, 0].long(), low[:, 1].long()
    share_x, share_y = share[:, 0:1], share[:, 1:2]
    top = take_pixels(values, column, row) * (1 - share_x)
    top = top + take_pixels(values, column + 1, row) * share_x
    bottom = take_pixels(values, column, row + 1) * (1 - share_x)
    bottom = bottom + take_pixels(values, column + 1, row + 1) * share_x
    return top * (1 - share_y) + bottom * share_y


def quadratic_offset(score: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Return where the quadratic through 3x3 values is largest, as offsets (N, 2) of the centre.

    Gradient and curvature are central differences; each offset is at most half a pixel. Where
    the quadratic has no maximum, each axis has a parabola of its own.

    :param score: (1, 1, H, W); the pixels (N,) are maxima of their neighbours.
    """
    steps = torch.arange(-1, 2, device=score.device)
    columns = (column[:, None, None] + steps[None, None, :]).expand(-1, 3, 3)
    rows = (row[:, None, None] + steps[None, :, None]).expand(-1, 3, 3)
    around = take_pixels(score, columns.reshape(-1), rows.reshape(-1)).reshape(-1, 9)
    (
        top_left, top, top_right,
        left, center, right,
        bottom_left, bottom, bottom_right,
    ) = around.unbind(1)  # fmt: skip
    slope_x, slope_y = (right - left) / 2, (bottom - top) / 2
    bend_x, bend_y = left + right - 2 * center, top + bottom - 2 * center
    twist = (bottom_right - bottom_left - top_right + top_left) / 4
    determinant = bend_x * bend_y - twist * twist
    # A ridge has next to no curvature along itself: there noise would decide.
    is_peak = determinant > 0.01 * bend_x * bend_y
    safe = torch.where(is_peak, determinant, torch.ones_like(determinant))
    x = torch.where(is_peak, (twist * slope_y - bend_y * slope_x) / safe, _vertex(slope_x, bend_x))
    y = torch.where(is_peak, (twist * slope_x - bend_x * slope_y) / safe, _vertex(slope_y, bend_y))
    return torch.stack([x, y], 1).clamp(-0.5, 0.5)


def _vertex(slope: Tensor, bend: Tensor) -> Tensor:
    curved = bend < 0
    return torch.where(curved, -slope / torch.where(curved, bend, -torch.ones_like(bend)), 0.0)


def clear_rows(num: Tensor, values: Tensor) -> Tensor:
    """Return finite values (K, ...) with the rows from ``num`` on zero."""
    rows = torch.arange(values.shape[0], device=values.device)
    kept = (rows < num).to(values.dtype)
    return values * kept.reshape(-1, *(1,) * (values.dim() - 1))

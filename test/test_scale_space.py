# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The detector inside the graph, each piece beside a slow version that is obviously right."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from feat_ros.models import scale_space  # noqa: E402
from feat_ros.models.scale_space import LEVELS, ScaleSpace, SIGMAS, top_k  # noqa: E402

Float = npt.NDArray[np.float64]
COUNT = 60


@pytest.fixture(scope='module')
def detector() -> Any:
    return ScaleSpace()


def smooth(height: int, width: int, seed: int) -> Float:
    """Make a picture of blobs of several sizes, mean 0."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    picture = sum(
        gaussian_filter(rng.normal(size=(height, width)), sigma) * sigma
        for sigma in (1.0, 2.0, 4.0)
    )
    return np.asarray(0.1 * (picture - picture.mean()))


def blob(height: int, width: int, x: float, y: float, sigma: float, height_at: float) -> Float:
    """Make a Gaussian blob at (x, y), pixel centres at one half."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.asarray(height_at * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 2 / sigma**2))


def detect(
    detector: Any, picture: Float, valid_wh: tuple[int, int] | None = None, count: int = COUNT
) -> tuple[Float, Float, Float]:
    """Return positions, scales and responses of the points that were found."""
    height, width = picture.shape
    valid = torch.tensor([valid_wh or (width, height)], dtype=torch.int32)
    tones = torch.from_numpy(picture.astype(np.float32))[None, None]
    points = detector(tones, valid, count)
    found = points.response[0] > 0
    xy, sigma, response = (each[0][found].numpy().astype(float) for each in points[:3])
    return xy, sigma, response


def slow_differences(picture: Float) -> list[Float]:
    """Return both octaves (4, h, w), by SciPy's Gaussian filter."""
    from scipy.ndimage import gaussian_filter

    found, known = [], 0.0
    for _ in range(scale_space.OCTAVES):
        radius = int(np.ceil(3 * SIGMAS[-1]))
        levels = [
            gaussian_filter(
                picture, np.sqrt(max(s * s - known**2, 1e-9)), mode='constant', radius=radius
            )
            for s in SIGMAS
        ]
        found.append(np.diff(levels, axis=0))
        height, width = picture.shape
        picture = levels[2].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
        known = np.sqrt(SIGMAS[2] ** 2 + 0.25) / 2
    return found


def slow_cells(differences: Float, valid_wh: tuple[int, int], octave: int) -> Float:
    """Return the largest extremum of each 2x2 cell of an octave, by loops."""
    height, width = differences.shape[1:]
    strength = np.abs(differences)
    cells = np.zeros((height // 2, width // 2))
    limit_x, limit_y = (side // 2**octave - 4 for side in valid_wh)
    for y, x in itertools.product(range(height), range(width)):
        if min(x, y) < 4 or x | 1 >= limit_x or y | 1 >= limit_y:
            continue
        asked = strength[1 if octave == 0 else 0 :]
        window = asked[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        inner = strength[1:3, y, x].max()
        if inner >= window.max() and inner > 3e-4:
            cells[y // 2, x // 2] = max(cells[y // 2, x // 2], inner)
    return cells


@pytest.mark.parametrize('size', [(32, 64), (64, 96)])
def test_differences_are_those_of_gaussians(detector: Any, size: tuple[int, int]) -> None:
    picture = smooth(*size, seed=1)
    fast = detector.differences(torch.from_numpy(picture.astype(np.float32))[None, None])
    turned = np.array([-1.0, 1, -1, 1])[:, None, None]
    for octave, slow in zip(fast, slow_differences(picture), strict=True):
        assert_allclose(turned * torch.cat(octave, 1)[0].numpy(), slow, atol=2e-6)


@pytest.mark.parametrize('valid_wh', [(96, 64), (77, 41), (20, 64), (7, 7)])
def test_extrema_are_those_of_a_loop(valid_wh: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    valid = torch.tensor([valid_wh], dtype=torch.int32)
    for octave in range(2):
        differences = rng.normal(size=(LEVELS, 64 >> octave, 96 >> octave)).astype(np.float32)
        levels = [torch.from_numpy(each)[None, None] for each in differences]
        fast = scale_space._maxima(levels, valid, octave)[0].numpy()
        slow = slow_cells(differences.astype(float), valid_wh, octave)
        assert_allclose(fast, slow.reshape(-1))


def test_refinement_solves_the_quadratic(detector: Any) -> None:
    picture = smooth(64, 96, seed=3)
    xy, sigma, response = detect(detector, picture, count=400)
    octaves = slow_differences(picture)
    assert len(xy) > 40
    checked = 0
    for number, differences in enumerate(octaves):
        unit, (_, height, width) = 2**number, differences.shape
        inner = np.abs(differences[1:3]).max(axis=0)
        for y, x in itertools.product(range(4, height - 4), range(4, width - 4)):
            level = 1 + int(np.abs(differences[1:3, y, x]).argmax())
            row = np.flatnonzero(np.isclose(response, inner[y, x], rtol=1e-4))
            if len(row) != 1 or np.abs(xy[row[0]] / unit - (x + 0.5, y + 0.5)).max() > 1:
                continue
            cube = differences[level - 1 : level + 2, y - 1 : y + 2, x - 1 : x + 2]
            gradient, hessian = slow_derivatives(cube * np.sign(cube[1, 1, 1]))
            offset = -np.linalg.solve(hessian, gradient)
            if np.all(np.linalg.eigvalsh(hessian) < 0) and np.abs(offset).max() < 0.99:
                found = xy[row[0]] / unit - 0.5 - (x, y)
                assert_allclose(found, offset[:2], atol=2e-3)
                octave = number + (level + 0.5 + offset[2]) / 2
                assert_allclose(np.log2(sigma[row[0]]), octave, atol=2e-3)
                checked += 1
    assert checked > 20


def slow_derivatives(cube: Float) -> tuple[Float, Float]:
    """Return gradient and Hessian in (x, y, scale) of 3x3x3 values [scale, y, x]."""
    values = cube.transpose(2, 1, 0)
    gradient, hessian = np.zeros(3), np.zeros((3, 3))
    one = np.eye(3, dtype=int)

    def at(step: Any) -> float:
        return float(values[tuple(1 + np.asarray(step))])

    for i in range(3):
        gradient[i] = (at(one[i]) - at(-one[i])) / 2
        hessian[i, i] = at(one[i]) + at(-one[i]) - 2 * at([0, 0, 0])
        for j in range(i):
            near = at(one[i] + one[j]) + at(-one[i] - one[j])
            far = at(one[i] - one[j]) + at(one[j] - one[i])
            hessian[i, j] = hessian[j, i] = (near - far) / 4
    return gradient, hessian


@pytest.mark.parametrize('sigma', [1.5, 2.2, 3.5])
@pytest.mark.parametrize('height_at', [0.3, -0.3])
def test_a_blob_is_found_where_it_is(detector: Any, sigma: float, height_at: float) -> None:
    for x, y in ((31.5, 30.0), (32.13, 33.81), (30.77, 29.4)):
        xy, scale, _ = detect(detector, blob(64, 64, x, y, sigma, height_at))
        # A quadratic through the smallest blobs falls short between two pixels.
        assert_allclose(xy[0], (x, y), atol=0.07)
        assert 0.6 < scale[0] / sigma < 1.5


def test_an_edge_is_no_point(detector: Any) -> None:
    picture = np.zeros((64, 64))
    picture[:, 30:] = 0.2
    assert len(detect(detector, picture)[0]) == 0


def test_a_mirrored_picture_has_mirrored_points(detector: Any) -> None:
    picture = smooth(64, 96, seed=5)
    xy, _, response = detect(detector, picture, count=200)
    mirrored, _, other = detect(detector, picture[:, ::-1].copy(), count=200)
    mirrored[:, 0] = 96 - mirrored[:, 0]
    assert len(xy) == len(mirrored)
    nearest = np.linalg.norm(xy[:, None] - mirrored[None], axis=2).argmin(axis=1)
    assert_allclose(mirrored[nearest], xy, atol=0.01)
    assert_allclose(other[nearest], response, rtol=1e-3)


def test_nothing_is_found_near_the_border_of_the_valid_part(detector: Any) -> None:
    picture = smooth(64, 96, seed=6)
    xy, _, _ = detect(detector, picture, valid_wh=(70, 50), count=300)
    assert len(xy) > 10
    assert xy.min() > 3
    assert np.all(xy < (67, 47))


@pytest.mark.parametrize('count', [1, 5, 4000, 9000])
def test_more_points_than_there_can_be(detector: Any, count: int) -> None:
    picture = smooth(32, 32, seed=7)
    valid = torch.tensor([[32, 32]], dtype=torch.int32)
    points = detector(torch.from_numpy(picture.astype(np.float32))[None, None], valid, count)
    assert [tuple(each.shape[:2]) for each in points] == [(1, count)] * 4
    empty = points.response[0] == 0
    for each in points:
        assert torch.isfinite(each).all()
        assert not each[0][empty].any()
    assert bool(empty.any()) == (count > 5)


def test_a_batch_is_its_images(detector: Any) -> None:
    pictures = [smooth(32, 64, seed).astype(np.float32) for seed in (8, 9, 10)]
    valid = torch.tensor([[64, 32], [50, 32], [64, 30]], dtype=torch.int32)
    together = detector(torch.from_numpy(np.stack(pictures))[:, None], valid, 40)
    for number, picture in enumerate(pictures):
        alone = detector(
            torch.from_numpy(picture)[None, None], valid[number : number + 1], 40
        )  # fmt: skip
        for a, b in zip(together, alone, strict=True):
            assert_allclose(a[number].numpy(), b[0].numpy(), atol=1e-4)


@pytest.mark.parametrize('count', [1, 100, 3840, 3841, 7700, 8000])
def test_top_k_in_pieces_is_a_sort(count: int) -> None:
    values = np.random.default_rng(11).permutation(16_000).reshape(2, 8000).astype(np.float32)
    found, at = top_k(torch.from_numpy(values), count)
    assert_array_equal(found.numpy(), -np.sort(-values, axis=1)[:, :count])
    assert_array_equal(np.take_along_axis(values, at.numpy(), 1), found.numpy())

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The pieces inside the graph, each beside a slow loop that is obviously right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from feat_ros.models import keypoints as pieces  # noqa: E402

Float32 = npt.NDArray[np.float32]
SIZES = [(1, 1), (1, 7), (9, 2), (12, 17), (31, 23)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def tensor(array: npt.NDArray[Any]) -> Any:
    return torch.from_numpy(np.ascontiguousarray(array))


def as_map(array: Float32) -> Any:
    return tensor(array)[None, None]


def test_an_image_is_normalised_channel_by_channel(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (1, 5, 7, 3)).astype(np.uint8)
    mean, deviation = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    planes = pieces.normalise(tensor(image), mean, deviation).numpy()
    assert planes.shape == (1, 3, 5, 7)
    for channel in range(3):
        expected = (image[0, :, :, channel] / 255 - mean[channel]) / deviation[channel]
        assert_allclose(planes[0, channel], expected, atol=1e-5)


@pytest.mark.parametrize('valid_wh', [(9, 6), (5, 6), (9, 3), (4, 4), (0, 0)])
@pytest.mark.parametrize('border', [0, 2])
def test_inside_is_the_valid_part_less_its_border(valid_wh: tuple[int, int], border: int) -> None:
    found = pieces.inside(6, 9, torch.tensor(valid_wh, dtype=torch.int32), border)[0, 0].numpy()
    for y in range(6):
        for x in range(9):
            expected = (
                border <= x < valid_wh[0] - border and border <= y < valid_wh[1] - border
            )  # fmt: skip
            assert found[y, x] == expected


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('radius', [1, 2, 4])
def test_maxima_of_their_square_are_kept(
    rng: np.random.Generator, size: tuple[int, int], radius: int
) -> None:
    # Few values, so that some are equal: equal maxima all stay.
    score = rng.integers(0, 30, size).astype(np.float32)
    expected = np.zeros_like(score)
    for y, x in np.ndindex(*size):
        square = score[
            max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1
        ]  # fmt: skip
        if score[y, x] == square.max():
            expected[y, x] = score[y, x]
    assert_array_equal(pieces.keep_maxima(as_map(score), radius)[0, 0].numpy(), expected)


@pytest.mark.parametrize('limit', [3840, 7])
@pytest.mark.parametrize('count', [1, 6, 7, 8, 20, 90, 200])
def test_the_strongest_are_those_of_a_sort(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, count: int, limit: int
) -> None:
    """In parts of TensorRT's limit, and more of them than the map has pixels."""
    monkeypatch.setattr(pieces, 'TOP_K_LIMIT', limit)
    score = rng.permutation(99).astype(np.float32).reshape(9, 11) + 1
    values, places = (part.numpy() for part in pieces.strongest(as_map(score), count))
    order = np.argsort(-score.ravel())[:count]
    assert values.shape == places.shape == (count,)
    assert_array_equal(values[: len(order)], score.ravel()[order])
    assert_array_equal(places[: len(order)], order)
    assert not values[len(order) :].any()
    assert places.max() < score.size


def test_more_than_the_limit_of_tensorrt_at_once(rng: np.random.Generator) -> None:
    score = rng.permutation(10_000).astype(np.float32).reshape(100, 100)
    values, places = pieces.strongest(as_map(score), 9000)
    assert_array_equal(values.numpy(), np.arange(9999, 999, -1))
    assert_array_equal(score.ravel()[places.numpy()], values.numpy())


def test_flat_places_are_split() -> None:
    column, row = pieces.split_places(torch.arange(35), 7)
    assert_array_equal(column.numpy(), [x for _ in range(5) for x in range(7)])
    assert_array_equal(row.numpy(), [y for y in range(5) for _ in range(7)])


@pytest.mark.parametrize('channels', [1, 4])
def test_samples_lie_between_the_centres_of_cells(rng: np.random.Generator, channels: int) -> None:
    values = rng.normal(size=(channels, 5, 8)).astype(np.float32)
    points = rng.uniform([-1, -1], [9, 6], (200, 2)).astype(np.float32)
    found = pieces.sample_bilinear(tensor(values)[None], tensor(points)).numpy()
    for (x, y), sample in zip(points, found, strict=True):
        left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
        expected = np.zeros(channels)
        for row in (top, top + 1):
            for column in (left, left + 1):
                weight = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
                expected += weight * values[:, np.clip(row, 0, 4), np.clip(column, 0, 7)]
        assert_allclose(sample, expected, atol=1e-5)


def test_the_top_of_a_quadratic_is_found_where_it_is(rng: np.random.Generator) -> None:
    """Quadratics of any direction and eccentricity, whose tops are known."""
    y, x = np.mgrid[:9, :9]
    for _ in range(50):
        truth = rng.uniform(-0.45, 0.45, 2)
        factor = rng.normal(size=(2, 2)) + 1.5 * np.eye(2)
        bend = factor @ factor.T
        if np.linalg.det(bend) < 0.1 * bend[0, 0] * bend[1, 1]:
            continue
        dx, dy = x - 4 - truth[0], y - 4 - truth[1]
        score = 5 - bend[0, 0] * dx**2 - 2 * bend[0, 1] * dx * dy - bend[1, 1] * dy**2
        center = torch.tensor([4])
        offset = pieces.quadratic_offset(as_map(score.astype(np.float32)), center, center)
        assert_allclose(offset[0].numpy(), truth, atol=1e-3)


def test_offsets_agree_with_a_solver(rng: np.random.Generator) -> None:
    score = rng.normal(size=(40, 40)).astype(np.float32)
    peaks = pieces.keep_maxima(as_map(score - score.min()), 1)[0, 0].numpy()
    rows, columns = np.nonzero(peaks[1:-1, 1:-1])
    rows, columns = rows + 1, columns + 1
    found = pieces.quadratic_offset(as_map(score), tensor(columns), tensor(rows)).numpy()
    assert len(found) > 100
    for y, x, offset in zip(rows, columns, found, strict=True):
        s = score[y - 1 : y + 2, x - 1 : x + 2].astype(float)
        slope = np.array([s[1, 2] - s[1, 0], s[2, 1] - s[0, 1]]) / 2
        twist = (s[2, 2] - s[2, 0] - s[0, 2] + s[0, 0]) / 4
        bend = np.array(
            [[s[1, 0] + s[1, 2] - 2 * s[1, 1], twist], [twist, s[0, 1] + s[2, 1] - 2 * s[1, 1]]]
        )
        if np.linalg.det(bend) > 0.01 * bend[0, 0] * bend[1, 1]:
            expected = -np.linalg.solve(bend, slope)
        else:
            expected = -slope / np.diag(bend)
        assert_allclose(offset, np.clip(expected, -0.5, 0.5), atol=2e-3)


def test_ridges_and_plains_have_finite_offsets() -> None:
    ridge = np.zeros((5, 5), np.float32)
    ridge[2] = 1
    ridge[3] = 0.5
    center = torch.tensor([2])
    x, y = pieces.quadratic_offset(as_map(ridge), center, center)[0].tolist()
    assert x == 0
    assert y == pytest.approx(1 / 6)
    plain = pieces.quadratic_offset(as_map(np.ones((5, 5), np.float32)), center, center)
    assert_array_equal(plain.numpy(), [[0, 0]])


@pytest.mark.parametrize('axis', [0, 1])
def test_a_mirrored_map_has_mirrored_keypoints(rng: np.random.Generator, axis: int) -> None:
    score = rng.uniform(size=(37, 52)).astype(np.float32)
    extent = score.shape[axis]

    def find(values: Float32) -> Float32:
        peaks = pieces.keep_maxima(as_map(values), 2)
        _, places = pieces.strongest(peaks, 60)
        column, row = pieces.split_places(places, values.shape[1])
        offset = pieces.quadratic_offset(as_map(values), column, row)
        found: Float32 = (torch.stack([column, row], 1) + 0.5 + offset).numpy()
        return found

    mirrored = find(np.flip(score, axis))
    mirrored[:, 1 - axis] = extent - mirrored[:, 1 - axis]
    assert_allclose(mirrored, find(score), atol=1e-4)


def test_rows_from_num_on_are_cleared() -> None:
    values = torch.arange(1, 13).reshape(4, 3)
    for num in range(5):
        cleared = pieces.clear_rows(torch.tensor(num, dtype=torch.int32), values).numpy()
        assert_array_equal(cleared[:num], values[:num].numpy())
        assert not cleared[num:].any()

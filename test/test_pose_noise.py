# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Noise of given poses: known noise is found again, and none where there is none."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.testing import assert_allclose
import numpy.typing as npt
import pytest

from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.matching import mutual_nearest
from feat_ros.pnp import Observations, PnpConfig, solve_pnp
from feat_ros.pose_error import normalised_error_squared, pose_error
from feat_ros.pose_noise import (
    _block,
    _localize_left_out,
    check_left_out,
    fit_pose_noise,
    LeftOutCheck,
    stamps_of_names,
)
from feat_ros.sfm_map import PoseNoise
from feat_ros.triangulation import Structure, triangulate, TriangulationConfig
from feat_ros.types import Features

Float = npt.NDArray[np.float64]

CAMERA = Camera('PINHOLE', 640, 480, (420, 420, 320, 240))
# Every keypoint is of one of two kinds.
PIXEL_SIGMA = (0.25, 1.2)


def random_covariances(rng: np.random.Generator, count: int, scale: Float) -> Float:
    factor = rng.normal(size=(count, 6, 6)) * scale[:, None] / 2
    return np.asarray(factor @ np.swapaxes(factor, 1, 2) + np.diag((scale / 2) ** 2))


def draw(rng: np.random.Generator, covariances: Float) -> Float:
    noise = rng.normal(size=(len(covariances), 6, 1))
    return np.asarray((np.linalg.cholesky(covariances) @ noise)[..., 0])


SCALE = np.repeat([0.01, 0.002], 3)
# Of thirty images, four a second.
STAMPS_NS = np.arange(30) * 250_000_000


@pytest.mark.parametrize('noise', [(0.03, 0.004), (0.05, 0.0), (0.0, 0.01), (3e-3, 3e-2)])
def test_known_noise_is_found(noise: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    covariances = random_covariances(rng, 4000, SCALE)
    added = np.diag(np.repeat(np.square(noise), 3))
    found = fit_pose_noise(draw(rng, covariances + added), covariances)
    assert found.translation_m == pytest.approx(noise[0], rel=0.1, abs=1e-3)
    assert found.rotation_rad == pytest.approx(noise[1], rel=0.1, abs=3e-4)


def test_no_noise_where_the_covariance_explains_all() -> None:
    rng = np.random.default_rng(2)
    covariances = random_covariances(rng, 500, SCALE)
    assert fit_pose_noise(0.8 * draw(rng, covariances), covariances) == PoseNoise()
    assert fit_pose_noise(np.zeros((500, 6)), covariances) == PoseNoise()


def test_wrong_poses_are_not_noise() -> None:
    """Two of thirteen, as a receiver without a fix gives them."""
    rng = np.random.default_rng(6)
    covariances = random_covariances(rng, 13, SCALE)
    added = np.diag(np.repeat(np.square([0.03, 0.004]), 3))
    errors = draw(rng, covariances + added)
    errors[:2] += 1.0
    found = fit_pose_noise(errors, covariances)
    assert 0.02 < found.translation_m < 0.06
    assert 0.0025 < found.rotation_rad < 0.008


def test_no_errors_have_no_noise() -> None:
    assert fit_pose_noise(np.zeros((0, 6)), np.zeros((0, 6, 6))) == PoseNoise()


def test_a_few_failures_do_not_move_it() -> None:
    rng = np.random.default_rng(3)
    covariances = random_covariances(rng, 2000, SCALE)
    added = np.diag(np.repeat(np.square([0.03, 0.004]), 3))
    errors = draw(rng, covariances + added)
    errors[::50] = 100.0
    found = fit_pose_noise(errors, covariances)
    assert found.translation_m == pytest.approx(0.03, rel=0.2)
    assert found.rotation_rad == pytest.approx(0.004, rel=0.2)


def test_nine_in_ten_errors_are_inside_of_their_ellipsoid() -> None:
    """Heavy tails: one error in four is three times as large."""
    rng = np.random.default_rng(4)
    covariances = random_covariances(rng, 2000, SCALE)
    added = np.diag(np.repeat(np.square([0.03, 0.004]), 3))
    errors = draw(rng, covariances + added)
    errors[::4] *= 3
    found = fit_pose_noise(errors, covariances)
    variance = np.repeat(np.square([found.translation_m, found.rotation_rad]), 3)
    squared = normalised_error_squared(errors, covariances + np.diag(variance))
    assert np.quantile(squared, 0.9) == pytest.approx(10.645, rel=1e-3)


def test_tails_alone_are_no_noise() -> None:
    """More than half of the errors are explained, so that there is nothing to enlarge."""
    rng = np.random.default_rng(5)
    covariances = random_covariances(rng, 200, SCALE)
    errors = 0.5 * draw(rng, covariances)
    errors[::5] = 1.0
    assert fit_pose_noise(errors, covariances) == PoseNoise()


# ---------------------------------------------------------------- images left out

needs_pycolmap = pytest.mark.skipif(
    find_spec('pycolmap') is None, reason='pycolmap, which triangulates, is not installed'
)


def simulate(seed: int, jitter_m: float, jitter_rad: float) -> tuple[
    list[PosedImage], list[Features], dict[tuple[int, int], npt.NDArray[np.int64]]
]:  # fmt: skip
    """Thirty cameras around a cloud of points that are told apart by their descriptors.

    The keypoints are where the true cameras saw the points; the given poses are off.
    """
    rng = np.random.default_rng(seed)
    cloud = rng.uniform(-2, 2, (300, 3))
    names = rng.normal(size=(300, 16))
    images, features, seen = [], [], []
    for number in range(30):
        angle = number / 30 * 2 * np.pi
        rotation = so3_exp([0.1 * np.sin(3 * angle), 0, 0]) @ so3_exp([0, angle, 0])
        truth = Rigid3d(rotation, np.array([0, 0, 7.0]) + rng.normal(size=3) * 0.5)
        pixels = CAMERA.project(truth.apply(cloud))
        # Each point is missed now and then; of those behind the middle nothing is seen.
        in_front = truth.apply(cloud)[:, 2] < 7
        ids = np.flatnonzero(CAMERA.contains(pixels) & in_front & (rng.uniform(size=300) < 0.8))
        sigma = rng.choice(PIXEL_SIGMA, len(ids))
        noisy = pixels[ids] + rng.normal(size=(len(ids), 2)) * sigma[:, None]
        described = names[ids] + 0.1 * rng.normal(size=(len(ids), 16))
        described /= np.linalg.norm(described, axis=1, keepdims=True)
        features.append(
            Features(
                keypoints=noisy.astype(np.float32),
                scores=np.ones(len(ids), np.float32),
                descriptors=described.astype(np.float32),
                stability=np.ones(len(ids), np.float32),
                pixel_sigma=sigma.astype(np.float32),
            )
        )
        turn, shift = rng.normal(size=3) * jitter_rad, rng.normal(size=3) * jitter_m
        inverse = truth.inverse()
        given = Rigid3d(so3_exp(turn) @ inverse.rotation, inverse.translation + shift).inverse()
        images.append(PosedImage(f'{number:02d}.png', CAMERA, given, np.zeros(0, np.int64)))
        seen.append(ids)
    matches = {}
    for i in range(30):
        for j in range(i + 1, 30):
            common, at_i, at_j = np.intersect1d(seen[i], seen[j], return_indices=True)
            if len(common) > 15:
                matches[i, j] = np.column_stack([at_i, at_j])
    return images, features, matches


def check(
    folder: Path, jitter_m: float, jitter_rad: float, max_images: int = 200
) -> tuple[LeftOutCheck, Structure]:
    images, features, matches = simulate(6, jitter_m, jitter_rad)
    structure = triangulate(folder, images, features, matches, TriangulationConfig())
    descriptors = structure.mean_over_track(features, 'descriptors').astype(np.float32)
    progress: list[int] = []

    def count(items: list[int], step: str) -> list[int]:
        assert step == 'check'
        progress.extend(items)
        return items

    result = check_left_out(images, features, structure, descriptors, max_images, count)
    assert len(progress) == result.summary['num_images'] == min(max_images, 30)
    assert len(set(progress)) == len(progress)
    return result, structure


@needs_pycolmap
def test_exact_poses_have_no_noise(tmp_path: Path) -> None:
    result, structure = check(tmp_path, 0.0, 0.0)
    assert structure.noise_scale == pytest.approx(1, abs=0.1)
    assert result.summary['num_localized'] == 30
    assert result.summary['median_translation_error_m'] < 1e-2
    assert result.noise.translation_m < 2e-3
    assert result.noise.rotation_rad < 4e-4
    assert result.summary['share_inside_95'] >= 0.9


@needs_pycolmap
@pytest.mark.parametrize('jitter', [(0.012, 0.002), (0.03, 0.004)])
def test_the_jitter_of_poses_is_found(tmp_path: Path, jitter: tuple[float, float]) -> None:
    """A little more than the jitter, since that of the others bends the points too."""
    result, _ = check(tmp_path, *jitter)
    assert result.summary['num_localized'] >= 27
    assert 0.8 < result.noise.translation_m / jitter[0] < 2
    assert 0.8 < result.noise.rotation_rad / jitter[1] < 2
    assert result.summary['share_inside_95'] >= 0.85


def test_images_are_left_out_with_those_taken_within_a_second() -> None:
    """Of points that two others or more saw: five images, each of which saw all points."""
    everything = np.arange(10), np.arange(10)
    structure = Structure(np.zeros((10, 3)), np.zeros((10, 3, 3)), [everything] * 5, 1.0)
    stamps_ns = np.array([0.0, 0.9, 1.0, 2.0, 9.0]) * 1e9
    assert _block(1, structure, None)[0] == [1]
    for number, expected in ((0, [0, 1, 2]), (1, [1, 2, 0]), (2, [2, 1, 0]), (4, [4])):
        block, others = _block(number, structure, stamps_ns.astype(np.int64))
        assert block == expected
        assert set(others.tolist()) == {5 - len(block)}
    # With a third one left out, half of the points would be lost.
    few = Structure(structure.xyz, structure.information, [everything] * 4, 1.0)
    assert _block(1, few, stamps_ns[:4].astype(np.int64))[0] == [1, 2]


def test_stamps_are_told_from_counters() -> None:
    bag = ['1305031229696826935.jpg', '1305031229796826935.png']
    stamps_ns = stamps_of_names(bag)
    assert stamps_ns is not None
    assert stamps_ns.tolist() == [1305031229696826935, 1305031229796826935]
    for names in (['000002.png', '000004.png'], [*bag, 'a.jpg'], [*bag, '7.jpg'], [], ['9' * 40]):
        assert stamps_of_names(names) is None


@needs_pycolmap
def test_leaving_images_out_is_as_if_they_had_never_been(tmp_path: Path) -> None:
    """Their share is taken out of the points; the slow way is to triangulate without them."""
    images, features, matches = simulate(3, 0.0, 0.0)
    structure = triangulate(tmp_path, images, features, matches, TriangulationConfig())
    descriptors = structure.mean_over_track(features, 'descriptors').astype(np.float32)
    for left_out, stamps_ns in ((6, None), (12, None), (24, STAMPS_NS)):
        found = _localize_left_out(left_out, images, features, structure, descriptors, stamps_ns)
        assert found is not None
        error, covariance = found
        block, _ = _block(left_out, structure, stamps_ns)
        kept = {pair: rows for pair, rows in matches.items() if not set(block) & set(pair)}
        others = triangulate(tmp_path, images, features, kept, TriangulationConfig())
        described = others.mean_over_track(features, 'descriptors').astype(np.float32)
        own = features[left_out]
        rows, _ = mutual_nearest(own.descriptors, described)
        slow = solve_pnp(
            Observations(
                CAMERA,
                own.keypoints[rows[:, 0]].astype(float),
                others.xyz[rows[:, 1]],
                own.pixel_sigma[rows[:, 0]].astype(float),
                np.asarray(np.linalg.inv(others.information[rows[:, 1]]), float),
            ),
            PnpConfig(),
        )
        assert slow is not None
        sigma = np.sqrt(np.diag(slow.covariance))
        slow_error = pose_error(slow.cam_from_map, images[left_out].cam_from_map)
        assert_allclose(error / sigma, slow_error / sigma, atol=0.3)
        assert_allclose(np.sqrt(np.diag(covariance)) / sigma, 1, atol=0.02)


@needs_pycolmap
def test_a_pose_that_contradicts_the_others_is_named(tmp_path: Path) -> None:
    images, features, matches = simulate(6, 0.002, 0.0005)
    inverse = images[12].cam_from_map.inverse()
    off = Rigid3d(inverse.rotation, inverse.translation + np.array([0.3, -0.2, 0.4])).inverse()
    images[12] = replace(images[12], cam_from_map=off)
    structure = triangulate(tmp_path, images, features, matches, TriangulationConfig())
    descriptors = structure.mean_over_track(features, 'descriptors').astype(np.float32)
    result = check_left_out(images, features, structure, descriptors, 30, lambda items, _: items)
    assert result.wrong == ['12.png']
    assert result.noise.translation_m < 0.02


@needs_pycolmap
def test_at_most_so_many_images_are_left_out(tmp_path: Path) -> None:
    few, _ = check(tmp_path, 0.0, 0.0, max_images=5)
    assert few.summary['num_localized'] == 5
    none, _ = check(tmp_path, 0.0, 0.0, max_images=0)
    assert none.noise == PoseNoise()
    assert none.summary['median_translation_error_m'] is None
    assert none.summary['share_inside_95'] is None


@needs_pycolmap
def test_images_that_see_nothing_count_as_failures(tmp_path: Path) -> None:
    """Most of them: then no median is finite."""
    images, features, matches = simulate(7, 0.0, 0.0)
    kept = {pair: rows for pair, rows in matches.items() if max(pair) < 8}
    structure = triangulate(tmp_path, images, features, kept, TriangulationConfig())
    blind = [
        item if number < 8 else Features(**{k: v[:0] for k, v in vars(item).items()})
        for number, item in enumerate(features)
    ]
    descriptors = structure.mean_over_track(blind, 'descriptors').astype(np.float32)
    result = check_left_out(images, blind, structure, descriptors, 30, lambda items, _: items)
    assert result.summary['num_images'] == 30
    assert result.summary['num_localized'] == 8
    assert result.summary['median_translation_error_m'] is None
    assert result.summary['median_rotation_error_deg'] is None


@needs_pycolmap
def test_points_are_placed_as_exactly_as_their_covariance_says(tmp_path: Path) -> None:
    """Without jitter a point's error is 3 in squared standard deviations."""
    images, features, matches = simulate(8, 0.0, 0.0)
    structure = triangulate(tmp_path, images, features, matches, TriangulationConfig())
    cloud = np.random.default_rng(8).uniform(-2, 2, (300, 3))
    distance = np.linalg.norm(structure.xyz[:, None] - cloud[None], axis=2)
    error = structure.xyz - cloud[distance.argmin(axis=1)]
    squared = np.einsum('ni,nij,nj->n', error, structure.information, error)
    assert len(structure.xyz) == pytest.approx(300, abs=15)
    assert np.mean(squared) == pytest.approx(3, abs=0.5)
    counts = np.zeros(len(structure.xyz))
    for points, _ in structure.observed:
        for point in points:
            counts[point] += 1
    assert_allclose(structure.track_length, counts)


def test_pose_error_undoes_the_perturbation_that_covariances_speak_of() -> None:
    truth = Rigid3d(so3_exp([0.3, -1.2, 0.7]), np.array([1.0, 2.0, 3.0]))
    step = np.array([0.1, -0.2, 0.3, 0.01, 0.02, -0.03])
    inverse = truth.inverse()
    moved = Rigid3d(so3_exp(step[3:]) @ inverse.rotation, inverse.translation + step[:3])
    assert_allclose(pose_error(truth, moved.inverse()), step, atol=1e-12)
    assert_allclose(pose_error(truth, truth), 0, atol=1e-12)

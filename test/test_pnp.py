# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Poses from points: honest covariance, every camera, against SciPy, poselib and pycolmap."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

from feat_ros import pnp
from feat_ros.camera import Camera, MODELS
from feat_ros.errors import ConfigError
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.localizer import chance_inliers
from feat_ros.pnp import (
    _pose_covariance,
    _ransac,
    Observations,
    PnpConfig,
    PnpSolution,
    refine_pose,
    solve_pnp,
    solve_rig_pnp,
)
from feat_ros.pose_error import normalised_error_squared, pose_error

Float = npt.NDArray[np.float64]

DISTORTED = Camera('OPENCV', 640, 480, (420, 418, 322, 243, -0.28, 0.09, 0.001, -0.0008))
# 220 degrees across the image circle.
WIDE = Camera('OPENCV_FISHEYE', 1000, 1000, (250, 251, 503, 498, 0.01, -0.004, 0.001, -0.0002))
CAMERAS = {
    'SIMPLE_PINHOLE': Camera('SIMPLE_PINHOLE', 640, 480, (400, 318, 255)),
    'PINHOLE': Camera('PINHOLE', 640, 480, (400, 410, 318, 255)),
    'SIMPLE_RADIAL': Camera('SIMPLE_RADIAL', 1024, 768, (700, 508, 390, -0.05)),
    'RADIAL': Camera('RADIAL', 1024, 768, (700, 508, 390, 0.06, -0.11)),
    'OPENCV': DISTORTED,
    'FULL_OPENCV': Camera(
        'FULL_OPENCV',
        640,
        480,
        (517.3, 516.5, 318.6, 255.3, 0.26, -0.95, -0.005, 0.003, 1.16, 0.01, -0.02, 0.03),
    ),
    'OPENCV_FISHEYE': WIDE,
}
# As the errors of most simulations here are.
INDEPENDENT = PnpConfig(correlation=0)
ALL = pytest.mark.parametrize('camera', CAMERAS.values(), ids=CAMERAS)


def simulate(
    rng: np.random.Generator,
    camera: Camera,
    inliers: int,
    outlier_share: float = 0.0,
    pixel_sigma: float = 1.0,
    point_sigma: float = 0.01,
    at: Float | None = None,
) -> tuple[Rigid3d, Observations]:
    """Points seen all over an image, each with a covariance of its own, among wrong matches.

    :param at: where in the map the camera is, roughly.
    :returns: the true ``cam_from_map`` and what is known of it.
    """
    size = np.array(camera.size_wh)
    pixels, rays = _seen(rng, camera, inliers)
    in_cam = rays * rng.uniform(3, 15, (inliers, 1))
    rotation = so3_exp(rng.normal(size=3))
    center = rng.normal(size=3) * 5 + (0 if at is None else at)
    cam_from_map = Rigid3d(rotation, -rotation @ center)
    true_points = in_cam @ rotation + center
    sigma = pixel_sigma * rng.uniform(0.6, 1.6, inliers)
    factor = point_sigma * (rng.normal(size=(inliers, 3, 3)) / 2 + 0.3 * np.eye(3))
    points = true_points + np.einsum('nij,nj->ni', factor, rng.normal(size=(inliers, 3)))
    pixels = pixels + rng.normal(size=pixels.shape) * sigma[:, None]

    wrong = round(inliers * outlier_share / (1 - outlier_share))
    copied = rng.integers(0, inliers, wrong)
    order = rng.permutation(inliers + wrong)
    covariance = factor @ np.swapaxes(factor, 1, 2)
    everything = Observations(
        camera,
        np.concatenate([pixels, rng.uniform(0, size, (wrong, 2))]),
        np.concatenate([points, true_points[copied] + rng.normal(size=(wrong, 3))]),
        np.concatenate([sigma, sigma[copied]]),
        np.concatenate([covariance, covariance[copied]]),
    )
    return cam_from_map, everything.take(order)


def _seen(rng: np.random.Generator, camera: Camera, count: int) -> tuple[Float, Float]:
    """Random pixels that have a ray, and the rays."""
    pixels = rng.uniform(0, camera.size_wh, (2 * count + 20, 2))
    rays = camera.unproject(pixels)
    # The corners of a fisheye's image see nothing.
    good = np.flatnonzero(np.isfinite(rays).all(axis=1) & (rays[:, 2] > np.cos(np.radians(110))))
    return pixels[good[:count]], rays[good[:count]]


def solved(observations: Observations, config: PnpConfig | None = None) -> PnpSolution:
    solution = solve_pnp(observations, config or INDEPENDENT)
    assert solution is not None
    return solution


def squared_error(solution: PnpSolution, truth: Rigid3d) -> float:
    """Squared error of a pose in standard deviations; 6 in the mean if these are honest."""
    error = pose_error(solution.cam_from_map, truth)
    return float(normalised_error_squared(error, solution.covariance))


@pytest.mark.parametrize('outlier_share', [0.0, 0.5])
@pytest.mark.parametrize('inliers', [12, 30, 300])
def test_covariance_is_honest(inliers: int, outlier_share: float) -> None:
    """Lens distortion, map points with noise of their own, keypoints of different noise."""
    rng = np.random.default_rng(1)
    squared = []
    for _ in range(500):
        truth, observations = simulate(rng, DISTORTED, inliers, outlier_share)
        squared.append(squared_error(solved(observations), truth))
    assert np.mean(squared) == pytest.approx(6, abs=0.5)
    # 95 % of a chi-squared distribution with 6 degrees of freedom.
    assert np.mean(np.array(squared) < 12.59) == pytest.approx(0.95, abs=0.035)


def test_covariance_grows_with_noise_that_was_not_predicted() -> None:
    """Keypoints twice as noisy as they say."""
    rng = np.random.default_rng(2)
    squared, scales = [], []
    for _ in range(100):
        truth, observations = simulate(rng, DISTORTED, 200, 0.3, point_sigma=0.002)
        modest = replace(observations, pixel_sigma=observations.pixel_sigma / 2)
        solution = solved(modest)
        squared.append(squared_error(solution, truth))
        scales.append(solution.noise_scale)
    assert np.mean(scales) == pytest.approx(4, rel=0.1)
    assert np.mean(squared) == pytest.approx(6, abs=1.2)


def test_every_model_is_tried() -> None:
    assert CAMERAS.keys() == MODELS.keys()


@ALL
def test_exact_points_give_the_exact_pose(camera: Camera) -> None:
    rng = np.random.default_rng(3)
    truth, observations = simulate(rng, camera, 60, pixel_sigma=1e-9, point_sigma=0)
    exact = replace(observations, pixel_sigma=np.ones(60))
    solution = solved(exact)
    assert_allclose(pose_error(solution.cam_from_map, truth), 0, atol=1e-7)
    assert_array_equal(solution.inliers, np.arange(60))


@ALL
def test_noise_and_outliers_with_every_camera(camera: Camera) -> None:
    rng = np.random.default_rng(4)
    squared = []
    for _ in range(40):
        truth, observations = simulate(rng, camera, 80, 0.4)
        solution = solved(observations)
        squared.append(squared_error(solution, truth))
        assert 65 <= len(solution.inliers) <= 90
    assert np.mean(squared) == pytest.approx(6, abs=2)


def test_points_behind_a_fisheye_count() -> None:
    """Rays more than 90 degrees off the axis are inliers and sharpen the pose."""
    rng = np.random.default_rng(5)
    truth, observations = simulate(rng, WIDE, 300, 0.3)
    solution = solved(observations)
    depth = truth.apply(observations.points[solution.inliers])[:, 2]
    assert (depth < 0).sum() > 30
    assert squared_error(solution, truth) < 16.8
    in_front = np.flatnonzero(truth.apply(observations.points)[:, 2] > 0)
    without = solved(observations.take(in_front))
    assert np.trace(solution.covariance) < 0.95 * np.trace(without.covariance)


@pytest.mark.parametrize('at', [(4.5e5, 5.4e6, 230.0), (-1e6, 1e6, -1e6), (3e7, 3e7, 3e7)])
def test_far_from_the_origin(at: tuple[float, float, float]) -> None:
    """UTM coordinates and more: the same camera, the same points, the same answer."""
    for seed in range(5):
        near_truth, near = simulate(np.random.default_rng(seed), DISTORTED, 40, 0.3)
        far_truth, far = simulate(np.random.default_rng(seed), DISTORTED, 40, 0.3, at=np.array(at))
        near_solution, far_solution = solved(near), solved(far)
        assert_array_equal(near_solution.inliers, far_solution.inliers)
        assert_allclose(
            pose_error(far_solution.cam_from_map, far_truth),
            pose_error(near_solution.cam_from_map, near_truth),
            atol=1e-6,
        )
        assert_allclose(
            far_solution.covariance,
            near_solution.covariance,
            rtol=1e-4,
            atol=1e-4 * np.diag(near_solution.covariance).min(),
        )


def reprojection(observations: Observations, cam_from_map: Rigid3d, step: Float) -> Float:
    """Errors (N, 2) by OpenCV of a pose whose centre and axes were moved by a step (6,)."""
    inverse = cam_from_map.inverse()
    moved = Rigid3d(so3_exp(step[3:]) @ inverse.rotation, inverse.translation + step[:3]).inverse()
    camera = observations.camera
    matrix = np.diag([*camera.focal_xy, 1.0])
    matrix[:2, 2] = camera.center_xy
    pixels, _ = cv2.projectPoints(
        moved.apply(observations.points), np.zeros(3), np.zeros(3), matrix, camera.distortion
    )
    return np.asarray(pixels[:, 0] - observations.pixels)


def covariance_of_errors(observations: Observations, cam_from_map: Rigid3d) -> Float:
    """Covariance (N, 2, 2) of reprojection errors by moving every point a little."""
    slope = np.empty((len(observations), 2, 3))
    for axis in range(3):
        ahead, back = (
            replace(observations, points=observations.points + sign * 1e-5 * np.eye(3)[axis])
            for sign in (1, -1)
        )
        errors = (reprojection(part, cam_from_map, np.zeros(6)) for part in (ahead, back))
        slope[:, :, axis] = np.subtract(*errors) / 2e-5
    pixel = observations.pixel_sigma[:, None, None] ** 2 * np.eye(2)
    return slope @ observations.point_covariance @ np.swapaxes(slope, 1, 2) + pixel


def test_covariance_agrees_with_finite_differences() -> None:
    """The inverse of the sum of J^T C^-1 J, J by moving the camera along and about each axis."""
    apart = []
    for seed in range(40):
        _, observations = simulate(np.random.default_rng(seed), DISTORTED, 50, 0.2)
        solution = solved(observations)
        used = observations.take(solution.inliers)
        jacobian = np.empty((len(used), 2, 6))
        for axis in range(6):
            step = 1e-6 * np.eye(6)[axis]
            ahead, back = (reprojection(used, solution.cam_from_map, s) for s in (step, -step))
            jacobian[:, :, axis] = (ahead - back) / 2e-6
        covariance = covariance_of_errors(used, solution.cam_from_map)
        whitener = np.linalg.inv(np.linalg.cholesky(covariance))
        expected = covariance_by_pairs(
            whitener @ jacobian, whitener, used, solution.cam_from_map, solution.noise_scale
        )
        sigma = np.sqrt(np.diag(expected))
        apart.append((np.abs(solution.covariance - expected) / np.outer(sigma, sigma)).max())
    assert max(apart) < 1e-5


def covariance_by_pairs(
    design: Float, whitener: Float, used: Observations, cam_from_map: Rigid3d, noise: float
) -> Float:
    """Least squares whose errors have one correlation within each of 4x4 cells, pair by pair."""
    error = used.camera.project(cam_from_map.apply(used.points)) - used.pixels
    residual = np.einsum('nij,nj->ni', whitener, error)
    inverse = np.linalg.inv(np.einsum('nij,nik->jk', design, design))
    # The noise puts a keypoint beyond the border now and then.
    cell = [tuple(np.floor(4 * xy / used.camera.size_wh).clip(0, 3)) for xy in used.pixels]
    count = len(used)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j and cell[i] == cell[j]]
    alike = sum(residual[i] @ residual[j] for i, j in pairs)
    fitted = sum(np.trace(design[i] @ inverse @ design[j].T) for i, j in pairs)
    rho = min(0.9, max(0.0, (alike + noise * fitted) / (2 * noise * len(pairs))))
    middle = np.einsum('nij,nik->jk', design, design)
    middle = middle + rho * sum(design[i].T @ design[j] for i, j in pairs)
    return np.asarray(noise * inverse @ middle @ inverse)


def test_inliers_in_two_cells_have_a_covariance() -> None:
    """With the largest correlation that can be asked for, all directions are still known."""
    _, observations = simulate(np.random.default_rng(2), DISTORTED, 400, 0.0)
    column, row = (observations.pixels / DISTORTED.size_wh * 4).astype(int).T
    beside = observations.take(np.flatnonzero((row == 1) & (column < 3) & (column > 0)))
    assert len(beside) > 20
    solution = solve_pnp(beside, PnpConfig(correlation=0.9))
    assert solution is not None
    values = np.linalg.eigvalsh(solution.covariance)
    assert values[0] > 1e-9 * values[-1]
    with pytest.raises(ConfigError, match=r'correlation is 1\.0: it must be at most 0\.9'):
        PnpConfig(correlation=1.0)


def test_a_limit_is_not_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def recorded(observations: Observations, limit_px: float, config: PnpConfig) -> Rigid3d | None:
        limits.append(limit_px)
        return _ransac(observations, limit_px, config)

    monkeypatch.setattr(pnp, '_ransac', recorded)
    _, observations = simulate(np.random.default_rng(2), DISTORTED, 50, 0.2)
    for largest in (100.0, 1.0):
        assert solve_pnp(observations, PnpConfig(max_error_px=largest)) is not None
    sigma = float(np.median(observations.pixel_sigma))
    assert limits == [16 * sigma, 8 * sigma, 4 * sigma, 1.0]


def test_errors_that_are_alike_within_a_region_are_no_more_certain() -> None:
    """Each of 4x4 parts of the image is shifted by as much as its keypoints are noisy."""
    squared = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        truth, observations = simulate(rng, DISTORTED, 300, 0.0)
        shift = rng.normal(size=(16, 2)) * observations.pixel_sigma[0]
        column, row = (observations.pixels / DISTORTED.size_wh * 4).astype(int).T
        pixels = observations.pixels + shift[np.clip(row * 4 + column, 0, 15)]
        squared.append(squared_error(solved(replace(observations, pixels=pixels)), truth))

    # 6 is honest; as if all errors were independent it would be above 60.
    assert np.median(squared) < 12


def test_one_pair_that_is_alike_is_no_more_than_the_same() -> None:
    """Two of twelve keypoints share a cell, and an error that no correlation explains."""
    for seed in range(200):
        design = np.random.default_rng(seed).normal(size=(24, 6))
        whitened, cell = np.zeros((12, 2)), np.arange(12)
        whitened[-2:], cell[-1] = 3.0, cell[-2]
        covariance = _pose_covariance(design, design.T @ design, whitened, cell, 1.0, 0.1)
        assert np.linalg.eigvalsh(covariance)[0] > 0


@pytest.mark.parametrize('inliers', [30, 300])
def test_covariance_expects_a_correlation_that_no_residual_shows(inliers: int) -> None:
    rng = np.random.default_rng(11)
    rho, squared, alone = PnpConfig().correlation, [], []
    for _ in range(300):
        truth, exact = simulate(rng, DISTORTED, inliers, pixel_sigma=1e-9, point_sigma=0)
        column, row = np.clip((exact.pixels / DISTORTED.size_wh * 4).astype(int), 0, 3).T
        own, of_cell = rng.normal(size=(inliers, 2)), rng.normal(size=(16, 2))
        error = np.sqrt(1 - rho) * own + np.sqrt(rho) * of_cell[row * 4 + column]
        pixels, sigma = exact.pixels + error, np.ones(inliers)
        observations = replace(exact, pixels=pixels, pixel_sigma=sigma)
        squared.append(squared_error(solved(observations, PnpConfig()), truth))
        alone.append(squared_error(solved(observations), truth))
    assert np.mean(squared) == pytest.approx(6, abs=0.7)
    assert np.mean(alone) > np.mean(squared)


@pytest.mark.parametrize('point_sigma', [0.0, 0.01])
def test_agrees_with_the_optimum_of_scipy(point_sigma: float) -> None:
    """The least of the squared errors, weighted as at the solution, over the same inliers."""
    least_squares = pytest.importorskip('scipy.optimize').least_squares
    for seed in range(5):
        rng = np.random.default_rng(seed)
        _, observations = simulate(rng, DISTORTED, 60, 0.3, point_sigma=point_sigma)
        solution = solved(observations)
        used = observations.take(solution.inliers)
        covariance = covariance_of_errors(used, solution.cam_from_map)
        whitener = np.linalg.inv(np.linalg.cholesky(covariance))
        sigma = np.sqrt(np.diag(solution.covariance))

        def residuals(
            step: Float,
            used: Observations = used,
            solution: PnpSolution = solution,
            whitener: Float = whitener,
            sigma: Float = sigma,
        ) -> Float:
            error = reprojection(used, solution.cam_from_map, step * sigma)
            return np.asarray((whitener @ error[:, :, None]).ravel())

        best = least_squares(residuals, np.zeros(6), xtol=1e-12, ftol=1e-12, gtol=1e-12)
        assert np.abs(best.x).max() < 0.02


def test_agrees_with_poselib() -> None:
    """Equal noise in all pixels, exact points: what poselib assumes too."""
    poselib = pytest.importorskip('poselib')
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth, observations = simulate(rng, DISTORTED, 100, 0.3, point_sigma=0)
        observations = replace(observations, pixel_sigma=np.ones(len(observations)))
        solution = solved(observations)
        camera = {
            'model': 'OPENCV', 'width': 640, 'height': 480, 'params': list(DISTORTED.params),
        }  # fmt: skip
        pose, _ = poselib.estimate_absolute_pose(
            observations.pixels, observations.points, camera, {'max_reproj_error': 8.0}, {}
        )
        other = Rigid3d(np.array(pose.R), np.array(pose.t))
        difference = pose_error(solution.cam_from_map, other)
        assert normalised_error_squared(difference, solution.covariance) < 1
        assert squared_error(solution, truth) < 20


def test_agrees_with_pycolmap() -> None:
    """Which weights residuals otherwise (Cauchy's loss), so that the poses differ a little."""
    pycolmap = pytest.importorskip('pycolmap')
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, observations = simulate(rng, DISTORTED, 100, 0.3, point_sigma=0)
        observations = replace(observations, pixel_sigma=np.ones(len(observations)))
        solution = solved(observations)
        options = pycolmap.AbsolutePoseEstimationOptions()
        options.ransac.max_error = 8.0
        options.ransac.random_seed = 0
        found = pycolmap.estimate_and_refine_absolute_pose(
            observations.pixels,
            observations.points,
            pycolmap.Camera(model='OPENCV', width=640, height=480, params=DISTORTED.params),
            options,
        )
        pose = found['cam_from_world']
        other = Rigid3d(pose.rotation.matrix(), np.array(pose.translation))
        difference = pose_error(solution.cam_from_map, other)
        assert normalised_error_squared(difference, solution.covariance) < 12.6


def test_the_same_input_gives_the_same_bits() -> None:
    for seed in range(5):
        _, observations = simulate(np.random.default_rng(seed), DISTORTED, 40, 0.6)
        solutions = [solved(observations) for _ in range(3)]
        for other in solutions[1:]:
            assert other.cam_from_map.rotation.tobytes() == (
                solutions[0].cam_from_map.rotation.tobytes()
            )
            assert other.covariance.tobytes() == solutions[0].covariance.tobytes()
            assert_array_equal(other.inliers, solutions[0].inliers)


def test_input_is_left_alone() -> None:
    _, observations = simulate(np.random.default_rng(0), DISTORTED, 30, 0.3)
    names = ('pixels', 'points', 'pixel_sigma', 'point_covariance')
    before = {name: getattr(observations, name).copy() for name in names}
    for name in names:
        getattr(observations, name).setflags(write=False)
    solved(observations)
    for name in names:
        assert_array_equal(getattr(observations, name), before[name])


@pytest.mark.parametrize('count', [0, 1, 3])
def test_too_few_matches_have_no_pose(count: int) -> None:
    truth, observations = simulate(np.random.default_rng(6), DISTORTED, 30)
    few = observations.take(np.arange(count))
    assert solve_pnp(few, PnpConfig()) is None
    assert refine_pose(few, truth, PnpConfig()) is None


def test_pixels_that_no_ray_reaches_have_no_pose() -> None:
    """Strong distortion: the corners of the image are outside of the lens model."""
    camera = Camera('RADIAL', 640, 480, (300, 320, 240, -0.4, 0.02))
    corners = np.random.default_rng(7).uniform(0, 15, (40, 2))
    assert np.isnan(camera.unproject(corners)).all()
    points = np.random.default_rng(7).normal(size=(40, 3))
    observations = Observations(camera, corners, points, np.ones(40), np.zeros((40, 3, 3)))
    assert solve_pnp(observations, PnpConfig()) is None


def test_all_matches_at_one_place_have_no_pose() -> None:
    _, observations = simulate(np.random.default_rng(8), DISTORTED, 30)
    same = observations.take(np.zeros(30, np.intp))
    assert solve_pnp(same, PnpConfig()) is None


def test_points_on_one_line_do_not_fix_a_pose() -> None:
    """The camera may turn about the line."""
    rng = np.random.default_rng(12)
    truth, observations = simulate(rng, DISTORTED, 30, point_sigma=0)
    middle = np.array([0.0, 0.0, 6.0])
    on_line = truth.inverse().apply(middle + rng.uniform(-2, 2, (30, 1)) * np.array([1, 0.5, 0.2]))
    pixels = DISTORTED.project(truth.apply(on_line))
    line = replace(observations, points=on_line, pixels=pixels)
    assert refine_pose(line, truth, PnpConfig()) is None
    assert solve_pnp(line, PnpConfig()) is None


def test_too_few_of_the_near_matches_agree() -> None:
    """Two exact keypoints, three that are far off in terms of what they promise."""
    truth, observations = simulate(np.random.default_rng(13), DISTORTED, 5, point_sigma=0)
    pixels = DISTORTED.project(truth.apply(observations.points))
    pixels[2:] += 4
    promised = replace(observations, pixels=pixels, pixel_sigma=np.full(5, 0.1))
    assert refine_pose(promised, truth, PnpConfig()) is None


def test_no_pose_far_from_where_any_match_agrees() -> None:
    truth, observations = simulate(np.random.default_rng(9), DISTORTED, 30)
    behind = Rigid3d(np.diag([-1.0, 1.0, -1.0]) @ truth.rotation, -truth.translation)
    assert refine_pose(observations, behind, PnpConfig()) is None


def test_no_more_of_garbage_agrees_than_chance_explains() -> None:
    """Random pixels matched with random points: no pose, or one that is refused."""
    rng = np.random.default_rng(10)
    for _ in range(10):
        count = int(rng.integers(20, 300))
        observations = Observations(
            DISTORTED,
            rng.uniform(0, DISTORTED.size_wh, (count, 2)),
            rng.normal(size=(count, 3)) * 10,
            np.ones(count),
            np.full((count, 3, 3), 1e-4) * np.eye(3),
        )
        config = PnpConfig()
        solution = solve_pnp(observations, config)
        limit = chance_inliers(count, DISTORTED, config.max_error_px, config.max_iterations)
        assert solution is None or len(solution.inliers) < limit


def test_inliers_are_within_the_error_that_was_asked_for() -> None:
    _, observations = simulate(np.random.default_rng(11), DISTORTED, 200, 0.4, pixel_sigma=3)
    for limit in (3.0, 10.0):
        solution = solved(observations, PnpConfig(max_error_px=limit))
        error = reprojection(observations, solution.cam_from_map, np.zeros(6))
        assert np.linalg.norm(error[solution.inliers], axis=1).max() < limit + 0.1


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r'max_error_px is 0\.0: it must be at least 0\.1'):
        PnpConfig(max_error_px=0)


def test_a_rig_is_more_than_its_cameras() -> None:
    """Two cameras back to back: one pose of all matches, better than each alone."""
    rng = np.random.default_rng(12)
    camera = Camera('PINHOLE', 640, 480, (500.0, 500.0, 320.0, 240.0))
    config, errors, promised = PnpConfig(), [], []
    back = Rigid3d(so3_exp([0, np.pi, 0]), np.array([0.1, 0.0, 0.3]))
    for _ in range(40):
        rig_from_map = Rigid3d(so3_exp(rng.normal(0, 0.4, 3)), rng.normal(0, 2, 3))
        parts = []
        for cam_from_rig in (Rigid3d(), back):
            cam_from_map = cam_from_rig @ rig_from_map
            in_cam = np.column_stack([rng.uniform(-2, 2, (40, 2)), rng.uniform(3, 8, 40)])
            pixels = camera.project(in_cam) + rng.normal(0, 1.0, (40, 2))
            points = cam_from_map.inverse().apply(in_cam)
            points[:12] += rng.normal(0, 2, (12, 3))  # wrong matches
            observations = Observations(camera, pixels, points, np.ones(40), np.zeros((40, 3, 3)))
            parts.append((cam_from_rig, observations))
        joint = solve_rig_pnp(parts, config)
        alone = solve_pnp(parts[0][1], config)
        assert joint is not None and alone is not None
        assert len(joint.inliers) > len(alone.inliers) + 20
        truth = rig_from_map.inverse().translation
        found = [each.cam_from_map.inverse().translation - truth for each in (joint, alone)]
        errors.append([np.linalg.norm(each) for each in found])
        promised.append(found[0] @ np.linalg.solve(joint.covariance[:3, :3], found[0]))
        # Only the second camera sees anything: its matches alone give the body's pose.
        blind = (parts[0][0], parts[0][1].take(np.arange(0)))
        behind = solve_rig_pnp([blind, parts[1]], config)
        assert behind is not None
        assert np.linalg.norm(behind.cam_from_map.inverse().translation - truth) < 0.1
    joint_error, alone_error = np.median(errors, axis=0)
    assert joint_error < 0.6 * alone_error
    assert 2.0 < np.mean(promised) < 4.5

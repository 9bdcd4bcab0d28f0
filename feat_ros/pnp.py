# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera pose from pixels and map points: RANSAC, least squares, covariance.

Hypotheses come from OpenCV's P3P inside USAC, for any camera model: pixels become rays first.
What they are worth is judged here, in the pixels of the real camera, with the noise of keypoints
and map points; refinement and covariance are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.config import Config, option
from feat_ros.geometry import Rigid3d, skew, so3_exp

Float = npt.NDArray[np.float64]

# A residual is an inlier up to this squared Mahalanobis length: 99.9 % of two Gaussian axes.
_GATE = 13.816
# The scale of the noise is read off the best quarter of the residuals: learned descriptors of
# neighbours are alike, so that most matches nearby may be with neighbours of the right point.
_SCALE_QUANTILE, _CHI2_2_QUANTILE = 0.25, 0.5754
# Degrees of freedom that the predicted noise counts for beside the residuals of one image.
_NOISE_PRIOR_DOF = 20.0
# Standard deviations of a keypoint up to which hypotheses are judged, in turns.
_RANSAC_SIGMAS = (16.0, 8.0, 4.0)
# Most hypotheses with every limit but the first.
_FEW_ITERATIONS = 300
# What a proposal may cost beside the cheapest before it, to be refined.
_WORTH_REFINING = 1.05
# An image is divided into so many cells across and down, within which errors are alike; more alike
# than this, and inliers in one or two cells would say nothing of some direction at all.
_CELLS, _MOST_ALIKE = 4, 0.9
_MAX_NOISE_SCALE = 16.0
_MIN_POINTS = 4
# Where no step is the last, matches cross the gate to and fro: more would only waver.
_MAX_STEPS = 12
# Below this damping a step that was refused comes out the same again.
_LEAST_DAMPING = 0.1
# A step this short, squared and in standard deviations of the pose, is the last.
_CONVERGED = 1e-4
# OpenCV's solver works on a plane: rays further off the axis vote in the refinement only.
_MAX_SOLVER_TANGENT = 2.0


@dataclass(frozen=True)
class PnpConfig(Config):
    """Options of :func:`solve_pnp`."""

    max_error_px: float = option(
        8.0, 'largest reprojection error of an inlier, pixels', minimum=0.1, maximum=100.0
    )
    max_iterations: int = option(10_000, 'most RANSAC hypotheses', minimum=10, maximum=1_000_000)
    confidence: float = option(
        0.9999, 'probability of having drawn one sample without outliers', minimum=0.5, maximum=1.0
    )
    correlation: float = option(
        0.1,
        'least correlation of the errors of inliers in the same sixteenth of an image',
        minimum=0.0,
        maximum=_MOST_ALIKE,
    )


@dataclass(frozen=True, eq=False)
class PnpSolution:
    """A camera pose that a set of matches agrees with.

    :ivar covariance: (6, 6) of ``map_from_cam`` as in :class:`feat_ros.types.PoseEstimate`.
    :ivar inliers: rows of the matches that agree.
    :ivar noise_scale: variance of the inliers' residuals relative to the predicted one.
    """

    cam_from_map: Rigid3d
    covariance: Float
    inliers: npt.NDArray[np.intp]
    noise_scale: float


@dataclass(frozen=True, eq=False)
class Observations:
    """Pixels of one camera matched with map points.

    :ivar pixels: (N, 2).
    :ivar points: (N, 3) in the map, metres.
    :ivar pixel_sigma: (N,) standard deviation of a pixel coordinate.
    :ivar point_covariance: (N, 3, 3), square metres.
    """

    camera: Camera
    pixels: Float
    points: Float
    pixel_sigma: Float
    point_covariance: Float

    def __len__(self) -> int:
        """Return N."""
        return len(self.pixels)

    def take(self, rows: npt.NDArray[np.intp]) -> Observations:
        """Return the given rows."""
        return Observations(
            self.camera,
            self.pixels[rows],
            self.points[rows],
            self.pixel_sigma[rows],
            self.point_covariance[rows],
        )


# What each camera of a rig saw at one moment, and cam_from_rig.
Rig = Sequence[tuple[Rigid3d, Observations]]


def solve_pnp(observations: Observations, config: PnpConfig) -> PnpSolution | None:
    """Find the pose that most matches agree with; None if no pose does.

    Deterministic for the same input.
    """
    return solve_rig_pnp([(Rigid3d(), observations)], config)


def solve_rig_pnp(rig: Rig, config: PnpConfig) -> PnpSolution | None:
    """Find the pose of a body with several cameras that most matches of all of them agree with.

    Each camera proposes what its own matches agree with, all matches judge the proposals, and the
    best is refined on all of them (generalised PnP, with hypotheses of one camera each). This is
    done with limits from wide to narrow, and the refined pose that costs least is taken: a turn
    that makes up for a step to the side is nearly as good as the truth, and refinement does not
    get from one to the other.

    :returns: ``cam_from_map`` of the body, inliers in the order of the cameras; None if no pose.
    """
    # Two poses that cost the same agree with many matches: to find the other takes few tries.
    few = replace(config, max_iterations=min(_FEW_ITERATIONS, config.max_iterations))
    solutions: list[PnpSolution] = []
    most = np.inf
    before: list[float] = []
    rig = [part for part in rig if len(part[1])]
    for sigmas in _RANSAC_SIGMAS:
        limits = [
            min(config.max_error_px, sigmas * float(np.median(observations.pixel_sigma)))
            for _, observations in rig
        ]
        if limits == before:
            continue
        before = limits
        options = few if solutions else config
        starts = [
            cam_from_rig.inverse() @ cam_from_map
            for (cam_from_rig, observations), limit in zip(rig, limits, strict=True)
            if (cam_from_map := _ransac(observations, limit, options)) is not None
        ]
        costs = [_joint_cost(rig, start, _MAX_NOISE_SCALE, config) for start in starts]
        if not starts or min(costs) > most:
            continue
        best = starts[int(np.argmin(costs))]
        if (solution := refine_rig_pose(rig, best, config)) is not None:
            solutions.append(solution)
            most = min(most, _WORTH_REFINING * min(costs))
    return min(
        solutions,
        key=lambda solution: _joint_cost(rig, solution.cam_from_map, 1.0, config),
        default=None,
    )


def refine_pose(
    observations: Observations, cam_from_map: Rigid3d, config: PnpConfig
) -> PnpSolution | None:
    """Refine a pose of one camera; see :func:`refine_rig_pose`."""
    return refine_rig_pose([(Rigid3d(), observations)], cam_from_map, config)


def refine_rig_pose(rig: Rig, cam_from_map: Rigid3d, config: PnpConfig) -> PnpSolution | None:
    """Refine a pose on the matches that agree with it; None where fewer than four do.

    Levenberg-Marquardt on a truncated sum of squares: with every step the inliers are chosen anew,
    weighted by the pixel noise and the map points' covariance seen through the camera; the scale
    of the noise is estimated with the prediction as prior.

    :param cam_from_map: of the body that the cameras are mounted on.
    """
    points = np.concatenate([observations.points for _, observations in rig])
    pixel_sigma = np.concatenate([observations.pixel_sigma for _, observations in rig])
    covariance = np.concatenate([observations.point_covariance for _, observations in rig])
    scale, damping = _MAX_NOISE_SCALE, 1e-6
    error, slope = _project(rig, cam_from_map)
    is_last = False
    for number in range(_MAX_STEPS + 1):
        whitener = _whitener(pixel_sigma, covariance, slope)
        whitened, squared = _whiten(whitener, error, config)
        is_near = np.isfinite(squared)
        if is_near.sum() < _MIN_POINTS:
            return None
        best = float(np.quantile(squared[is_near], _SCALE_QUANTILE))
        scale = min(scale, max(1.0, best / _CHI2_2_QUANTILE))
        inliers = np.flatnonzero(squared < _GATE * scale)
        if len(inliers) < _MIN_POINTS:
            return None
        arm = points[inliers] - cam_from_map.inverse().translation
        design = _design(whitener[inliers], slope[inliers], arm)
        information, gradient = design.T @ design, design.T @ whitened[inliers].reshape(-1)
        # What is returned besides the pose is of the pose that is returned.
        if is_last or number == _MAX_STEPS:
            break
        damped = information + damping * np.diag(np.diag(information) + 1e-12)
        step = -np.linalg.solve(damped, gradient)
        moved = _moved(cam_from_map, step)
        moved_error, moved_slope = _project(rig, moved)
        _, moved_squared = _whiten(whitener, moved_error, config)
        is_last = bool(-gradient @ step < _CONVERGED)
        if is_last or _cost(moved_squared, scale) <= _cost(squared, scale):
            cam_from_map, error, slope = moved, moved_error, moved_slope
            damping *= 0.1
        else:
            damping = max(10 * damping, _LEAST_DAMPING)
    if not np.all(np.isfinite(information)) or np.linalg.cond(information) > 1e15:
        return None
    freedom = 2 * len(inliers) - 6
    noise = (_NOISE_PRIOR_DOF + squared[inliers].sum()) / (_NOISE_PRIOR_DOF + freedom)
    covariance = _pose_covariance(
        design, information, whitened[inliers], _cells(rig)[inliers], float(noise),
        config.correlation,
    )  # fmt: skip
    return PnpSolution(cam_from_map, covariance, inliers, float(noise))


def _cells(rig: Rig) -> npt.NDArray[np.intp]:
    """Return in which cell of which camera's image each keypoint (N,) is."""
    found, first = [], 0
    for _, observations in rig:
        share = observations.pixels / observations.camera.size_wh
        column, row = np.clip((share * _CELLS).astype(int), 0, _CELLS - 1).T
        found.append(first + row * _CELLS + column)
        first += _CELLS**2
    return np.concatenate(found)


def _pose_covariance(
    design: Float, information: Float, whitened: Float, cell: npt.NDArray[np.intp], noise: float,
    least_rho: float,
) -> Float:  # fmt: skip
    """Return the covariance (6, 6) of least squares whose errors are alike within a cell.

    Keypoints beside each other are of one surface in one light: what moves one moves the others,
    and a hundred of them do not tell ten times as much as one. Errors within a cell have the
    correlation rho, estimated from the residuals: the mean product of two of them, corrected for
    what the fit takes out of them. What is alike across the whole image (shadows have moved, all
    is seen from the other side) looks like another pose, and no residual shows it: so rho is
    never below ``least_rho``. Cluster-robust covariance (Liang and Zeger, "Longitudinal data
    analysis using generalized linear models", 1986) with one rho for all cells.

    :param design: J (2N, 6) and ``information`` J^T J; with ``whitened`` (N, 2) residuals and
        ``cell`` (N,).
    :param noise: variance of the residuals.
    """
    inverse = np.linalg.inv(information)
    _, cell, counts = np.unique(cell, return_inverse=True, return_counts=True)
    sums, designs = np.zeros((len(counts), 2)), np.zeros((len(counts), 2, 6))
    np.add.at(sums, cell, whitened)
    np.add.at(designs, cell, design.reshape(-1, 2, 6))
    together = designs.reshape(-1, 6)
    of_cells = together.T @ together
    fitted = np.trace(inverse @ of_cells) - 6
    products = (sums**2).sum() - (whitened**2).sum() + noise * fitted
    pairs = 2 * (counts * (counts - 1)).sum()
    rho = min(_MOST_ALIKE, max(least_rho, float(products / (noise * max(pairs, 1)))))
    spread = (1 - rho) * inverse + rho * inverse @ of_cells @ inverse
    return np.asarray(noise * spread)


def _cost(squared: Float, scale: float) -> float:
    return float(np.minimum(squared, _GATE * scale).sum())


def _joint_cost(rig: Rig, cam_from_map: Rigid3d, scale: float, config: PnpConfig) -> float:
    """What a pose costs all cameras."""
    total = 0.0
    for part in rig:
        error, slope = _project([part], cam_from_map)
        whitener = _whitener(part[1].pixel_sigma, part[1].point_covariance, slope)
        total += _cost(_whiten(whitener, error, config)[1], scale)
    return total


def _moved(cam_from_map: Rigid3d, step: Float) -> Rigid3d:
    """Move ``map_from_cam`` by (translation, rotation) about the map's axes."""
    map_from_cam = cam_from_map.inverse()
    return Rigid3d(
        so3_exp(step[3:]) @ map_from_cam.rotation, map_from_cam.translation + step[:3]
    ).inverse()


def _project(rig: Rig, rig_from_map: Rigid3d) -> tuple[Float, Float]:
    """Return reprojection errors (N, 2) and their slopes d pixel / d x_map (N, 2, 3).

    Points that their camera cannot see get an error of 1e6 pixels and no slope.
    """
    errors, slopes = [], []
    for cam_from_rig, observations in rig:
        cam_from_map = cam_from_rig @ rig_from_map
        in_cam = cam_from_map.apply(observations.points)
        pixels, pixel_by_cam = observations.camera.project_with_jacobian(in_cam)
        errors.append(pixels - observations.pixels)
        slopes.append((pixel_by_cam.reshape(-1, 3) @ cam_from_map.rotation).reshape(-1, 2, 3))
    error, slope = np.concatenate(errors), np.concatenate(slopes)
    blind = ~np.isfinite(error).all(axis=1)
    error[blind], slope[blind] = 1e6, 0.0
    return error, slope


def _design(whitener: Float, slope: Float, arm: Float) -> Float:
    """Return d whitened / d pose (2N, 6) of slopes (N, 2, 3) and arms x_map - c (N, 3).

    The pose's six parameters are those of its covariance: the camera's centre c and a rotation
    about the map's axes, ``x_cam = R (x_map - c)``, so d x_cam = R (-dc + (x_map - c) x d_theta).
    """
    pixel_by_pose = np.concatenate([-slope, slope @ skew(arm)], axis=2)
    return np.asarray((whitener @ pixel_by_pose).reshape(-1, 6))


def _whiten(whitener: Float, error: Float, config: PnpConfig) -> tuple[Float, Float]:
    """Return whitened errors (N, 2) and their squared lengths (N,), infinite where too far off."""
    whitened = (whitener @ error[:, :, None])[:, :, 0]
    squared = np.einsum('ni,ni->n', whitened, whitened)
    squared[np.einsum('ni,ni->n', error, error) >= config.max_error_px**2] = np.inf
    return whitened, squared


def _whitener(pixel_sigma: Float, point_covariance: Float, slope: Float) -> Float:
    """Inverse Cholesky factors (N, 2, 2) of the covariance of each reprojection error."""
    u, v = slope[:, 0], slope[:, 1]
    by_point = slope @ point_covariance
    variance = pixel_sigma**2
    a = np.einsum('ni,ni->n', by_point[:, 0], u) + variance
    b = np.einsum('ni,ni->n', by_point[:, 0], v)
    c = np.einsum('ni,ni->n', by_point[:, 1], v) + variance
    second = 1 / np.sqrt(c - b * b / a)
    out = np.zeros((len(a), 2, 2))
    out[:, 0, 0] = 1 / np.sqrt(a)
    out[:, 1, 0] = -b / a * second
    out[:, 1, 1] = second
    return out


def _ransac(observations: Observations, limit_px: float, config: PnpConfig) -> Rigid3d | None:
    """Best pose by P3P and MSAC on the plane z = 1 of the camera."""
    rays = observations.camera.unproject(observations.pixels)
    with np.errstate(invalid='ignore', divide='ignore'):
        plane = rays[:, :2] / rays[:, 2:]
        usable = (rays[:, 2] > 0) & (np.abs(plane) < _MAX_SOLVER_TANGENT).all(axis=1)
    if usable.sum() < _MIN_POINTS:
        return None
    focal = float(observations.camera.focal_xy.mean())
    points = np.ascontiguousarray(observations.points[usable])
    # Centred, since the solver's sums lose digits far from the origin (UTM coordinates).
    middle = np.median(points, axis=0)
    options = cv2.UsacParams()
    options.threshold = limit_px
    options.maxIterations = config.max_iterations
    options.confidence = config.confidence
    options.score = cv2.SCORE_METHOD_MSAC
    options.sampler = cv2.SAMPLING_UNIFORM
    # Refinement follows, on all cameras.
    options.loMethod = cv2.LOCAL_OPTIM_NULL
    try:
        found, _, rotation_vector, translation, _ = cv2.solvePnPRansac(
            points - middle, np.ascontiguousarray(plane[usable] * focal),
            np.diag([focal, focal, 1.0]), None, params=options,
        )  # fmt: skip
    except cv2.error:
        return None
    if not found or not (
        np.all(np.isfinite(rotation_vector)) and np.all(np.isfinite(translation))
    ):
        return None
    rotation = so3_exp(rotation_vector.ravel())
    return Rigid3d(rotation, translation.ravel() - rotation @ middle)

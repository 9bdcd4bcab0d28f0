# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera pose from pixels and map points: RANSAC, least squares, covariance.

Hypotheses come from OpenCV's P3P inside USAC, for any camera model: pixels become rays first.
What they are worth is judged here, in the pixels of the real camera, with the noise of keypoints
and map points; refinement and covariance are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.config import Config, option
from feat_ros.geometry import Rigid3d, skew, so3_exp

Float = npt.NDArray[np.float64]

# A residual is an inlier up to this squared Mahalanobis length: 99.9 % of two Gaussian axes.
_GATE = 13.816
_MEDIAN_CHI2_2 = 1.3863
# Degrees of freedom that the predicted noise counts for beside the residuals of one image.
_NOISE_PRIOR_DOF = 20.0
_MAX_NOISE_SCALE = 16.0
_MIN_POINTS = 4
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


def solve_pnp(observations: Observations, config: PnpConfig) -> PnpSolution | None:
    """Find the pose that most matches agree with; None if no pose does.

    Deterministic for the same input.
    """
    start = _ransac(observations, config)
    return None if start is None else refine_pose(observations, start, config)


def refine_pose(
    observations: Observations, cam_from_map: Rigid3d, config: PnpConfig
) -> PnpSolution | None:
    """Refine a pose on the matches that agree with it; None where fewer than four do.

    Rounds of least squares on the inliers and choice of the inliers anew, weighted by the pixel
    noise and the map points' covariance seen through the camera; the scale of the noise is
    estimated with the prediction as prior.
    """
    scale, inliers = _MAX_NOISE_SCALE, np.zeros(0, np.intp)
    for _ in range(5):
        error, whitened, _ = _residuals(observations, cam_from_map)
        near = np.sum(error * error, axis=1) < config.max_error_px**2
        squared = np.sum(whitened * whitened, axis=1)
        if near.sum() < _MIN_POINTS:
            return None
        robust = float(np.median(squared[near])) / _MEDIAN_CHI2_2
        scale = min(scale, max(1.0, robust))
        chosen = np.flatnonzero(near & (squared < _GATE * scale))
        if len(chosen) < _MIN_POINTS:
            return None
        if np.array_equal(chosen, inliers):
            break
        inliers = chosen
        cam_from_map = _least_squares(observations.take(inliers), cam_from_map)
    _, whitened, jacobian = _residuals(observations.take(inliers), cam_from_map)
    design = jacobian.reshape(-1, 6)
    information = design.T @ design
    if not np.all(np.isfinite(information)) or np.linalg.cond(information) > 1e15:
        return None
    freedom = 2 * len(inliers) - 6
    noise = (_NOISE_PRIOR_DOF + float(np.sum(whitened**2))) / (_NOISE_PRIOR_DOF + freedom)
    return PnpSolution(cam_from_map, np.linalg.inv(information) * noise, inliers, noise)


def _least_squares(observations: Observations, cam_from_map: Rigid3d) -> Rigid3d:
    """Levenberg-Marquardt on all the given matches."""
    _, residual, jacobian = _residuals(observations, cam_from_map)
    cost, damping = float(np.sum(residual**2)), 1e-6
    for _ in range(20):
        design = jacobian.reshape(-1, 6)
        information = design.T @ design
        gradient = design.T @ residual.reshape(-1)
        damped = information + damping * np.diag(np.diag(information) + 1e-12)
        step = -np.linalg.solve(damped, gradient)
        candidate = _moved(cam_from_map, step)
        _, residual_new, jacobian_new = _residuals(observations, candidate)
        cost_new = float(np.sum(residual_new**2))
        if not cost_new <= cost:
            damping *= 10
            if damping > 1e6:
                break
            continue
        converged = cost - cost_new <= 1e-9 * cost
        cam_from_map, residual, jacobian = candidate, residual_new, jacobian_new
        cost, damping = cost_new, damping * 0.1
        if converged:
            break
    return cam_from_map


def _moved(cam_from_map: Rigid3d, step: Float) -> Rigid3d:
    """Move ``map_from_cam`` by (translation, rotation) about the map's axes."""
    map_from_cam = cam_from_map.inverse()
    return Rigid3d(
        so3_exp(step[3:]) @ map_from_cam.rotation, map_from_cam.translation + step[:3]
    ).inverse()


def _residuals(observations: Observations, cam_from_map: Rigid3d) -> tuple[Float, Float, Float]:
    """Return reprojection errors (N, 2), the same whitened, and d whitened / d pose (N, 2, 6).

    The pose's six parameters are those of its covariance: the camera's centre c and a rotation
    about the map's axes, ``x_cam = R (x_map - c)``, so d x_cam = R (-dc + (x_map - c) x d_theta).
    Points that the camera cannot see get an error of 1e6 pixels and no slope.
    """
    rotation = cam_from_map.rotation
    in_cam = cam_from_map.apply(observations.points)
    pixels, pixel_by_cam = observations.camera.project_with_jacobian(in_cam)
    pixel_by_point = pixel_by_cam @ rotation
    error = pixels - observations.pixels
    blind = ~np.isfinite(error).all(axis=1)
    error[blind], pixel_by_point[blind] = 1e6, 0.0
    whitener = _whitener(observations, pixel_by_point)
    arm = observations.points - (-rotation.T @ cam_from_map.translation)
    pixel_by_pose = np.concatenate([-pixel_by_point, pixel_by_point @ skew(arm)], axis=2)
    whitened = np.einsum('nij,nj->ni', whitener, error)
    return error, whitened, whitener @ pixel_by_pose


def _whitener(observations: Observations, pixel_by_point: Float) -> Float:
    """Inverse Cholesky factors (N, 2, 2) of the covariance of each reprojection error."""
    covariance = pixel_by_point @ observations.point_covariance @ np.swapaxes(pixel_by_point, 1, 2)
    variance = observations.pixel_sigma**2
    a, b, c = covariance[:, 0, 0] + variance, covariance[:, 0, 1], covariance[:, 1, 1] + variance
    first = 1 / np.sqrt(a)
    second = 1 / np.sqrt(c - b * b / a)
    out = np.zeros((len(a), 2, 2))
    out[:, 0, 0] = first
    out[:, 1, 0] = -b / a * second
    out[:, 1, 1] = second
    return out


def _ransac(observations: Observations, config: PnpConfig) -> Rigid3d | None:
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
    options.threshold = config.max_error_px
    options.maxIterations = config.max_iterations
    options.confidence = config.confidence
    options.score = cv2.SCORE_METHOD_MSAC
    options.sampler = cv2.SAMPLING_UNIFORM
    options.loMethod = cv2.LOCAL_OPTIM_INNER_LO
    options.loIterations = 10
    options.loSampleSize = 14
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

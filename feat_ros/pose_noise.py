# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How far given poses are from what the images say: the part of the error no image shows.

The covariance of a camera pose that follows from pixel noise alone is honest only if the map is
exact. Poses from GPS, motion capture or a laser scan are not: the same few centimetres then come
back in every query. They are measured by leaving images out, and added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.colmap_files import PosedImage
from feat_ros.localizer import LocalizerConfig, needed_inliers
from feat_ros.matching import mutual_nearest
from feat_ros.pnp import Observations, solve_pnp
from feat_ros.pose_error import normalised_error_squared, pose_error
from feat_ros.sfm_map import PoseNoise
from feat_ros.triangulation import observation_information, Structure
from feat_ros.types import Features, Progress

Float = npt.NDArray[np.float64]

# Quantiles of the chi-squared distribution: median of 3 degrees of freedom, 90 % of 6.
_MEDIAN_CHI2_3 = 2.366
_P90_CHI2_6 = 10.645
_P95_CHI2_6 = 12.592
# An image is localized by what this many others saw that have most points in common with it.
_NEIGHBOURS = 20


def fit_pose_noise(errors: Float, covariances: Float) -> PoseNoise:
    """Find the noise of poses that explains errors beside their covariances.

    One standard deviation for the three axes of the position and one for the orientation, each
    by the median, which a few failures don't move; then both grow, if they must, until nine in
    ten errors lie within their 90 % ellipsoid.

    :param errors: (N, 6) as :func:`feat_ros.pose_error.pose_error` gives them.
    :param covariances: (N, 6, 6).
    """
    if len(errors) == 0:
        return PoseNoise()

    def median_excess(axes: slice) -> Callable[[float], float]:
        def excess(sigma: float) -> float:
            total = covariances[:, axes, axes] + sigma**2 * np.eye(3)
            squared = normalised_error_squared(errors[:, axes], total)
            return float(np.median(squared)) - _MEDIAN_CHI2_3

        return excess

    position = _smallest_root(median_excess(slice(0, 3)))
    rotation = _smallest_root(median_excess(slice(3, 6)))

    def joint_excess(factor: float) -> float:
        variance = np.repeat([position**2, rotation**2], 3) * (1 + factor) ** 2
        squared = normalised_error_squared(errors, covariances + np.diag(variance))
        return float(np.quantile(squared, 0.9)) - _P90_CHI2_6

    factor = 1 + _smallest_root(joint_excess)
    return PoseNoise(translation_m=position * factor, rotation_rad=rotation * factor)


def _smallest_root(decreasing: Callable[[float], float]) -> float:
    """Find where a decreasing function of [0, 1e6] falls to zero: 0 if it starts below."""
    if decreasing(0.0) <= 0:
        return 0.0
    low, high = 1e-9, 1e6
    if decreasing(high) > 0:
        return 0.0
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if decreasing(middle) > 0 else (low, middle)
    return high


@dataclass(frozen=True, eq=False)
class LeftOutCheck:
    """Result of :func:`check_left_out`.

    :ivar noise: what is added to the covariance of every pose.
    :ivar summary: figures for the manifest; a median is None where most images failed.
    """

    noise: PoseNoise
    summary: dict[str, Any]


def check_left_out(
    images: list[PosedImage],
    features: Sequence[Features],
    structure: Structure,
    descriptors: npt.NDArray[np.float32],
    max_images: int,
    progress: Progress,
) -> LeftOutCheck:
    """Localize images by what the others saw, and compare with the poses given for them.

    :param descriptors: (P, D) of the structure's points.
    :param max_images: at most so many, evenly spread over the images.
    """
    count = min(max_images, len(images))
    chosen = [int(number) for number in np.linspace(0, len(images) - 1, count).round()]
    results = [
        _localize_left_out(number, images[number], features[number], structure, descriptors)
        for number in progress(chosen, 'check')
    ]
    found = [result for result in results if result is not None]
    errors = np.array([error for error, _ in found]).reshape(-1, 6)
    covariances = np.array([covariance for _, covariance in found]).reshape(-1, 6, 6)
    noise = fit_pose_noise(errors, covariances)
    total = covariances + np.diag(np.repeat([noise.translation_m**2, noise.rotation_rad**2], 3))
    inside = normalised_error_squared(errors, total) < _P95_CHI2_6
    failed = np.full(len(chosen) - len(found), np.inf)
    position = np.concatenate([np.linalg.norm(errors[:, :3], axis=1), failed])
    rotation = np.concatenate([np.degrees(np.linalg.norm(errors[:, 3:], axis=1)), failed])
    return LeftOutCheck(
        noise,
        {
            'num_images': len(chosen),
            'num_localized': len(found),
            'median_translation_error_m': _finite_median(position),
            'median_rotation_error_deg': _finite_median(rotation),
            'share_inside_95': float(inside.mean()) if len(inside) else None,
        },
    )


def _finite_median(values: Float) -> float | None:
    median = float(np.median(values)) if len(values) else np.inf
    return median if np.isfinite(median) else None


def _localize_left_out(
    number: int,
    image: PosedImage,
    own: Features,
    structure: Structure,
    descriptors: npt.NDArray[np.float32],
) -> tuple[Float, Float] | None:
    """Error (6,) and covariance (6, 6) of an image without its own observations."""
    points, keypoints = structure.observed[number]
    others = structure.track_length.copy()
    others[points] -= 1
    shared = np.array([np.isin(seen, points).sum() for seen, _ in structure.observed])
    shared[number] = 0
    near = np.argsort(-shared, kind='stable')[:_NEIGHBOURS]
    seen = np.unique(np.concatenate([structure.observed[n][0] for n in near if shared[n]] or [[]]))
    candidates = seen[others[seen.astype(np.int64)] >= 2].astype(np.int64)
    matches, _ = mutual_nearest(own.descriptors, descriptors[candidates])
    matched = candidates[matches[:, 1]]

    # Take the image's own share out of the normal equations of the points that it saw.
    xyz, information = structure.xyz.copy(), structure.information.copy()
    left = others[points] >= 2
    part, slope, _ = observation_information(image, own, xyz[points[left]], keypoints[left])
    information[points[left]] -= part / structure.noise_scale
    step = np.linalg.solve(information[points[left]], slope[..., None])[..., 0]
    xyz[points[left]] += step / structure.noise_scale

    options = LocalizerConfig()
    solution = solve_pnp(
        Observations(
            image.camera,
            own.keypoints[matches[:, 0]].astype(float),
            xyz[matched],
            own.pixel_sigma[matches[:, 0]].astype(float),
            np.linalg.inv(information[matched]),
        ),
        options.pnp,
    )
    needed = needed_inliers(len(matches), image.camera, options)
    if solution is None or len(solution.inliers) < needed:
        return None
    return pose_error(solution.cam_from_map, image.cam_from_map), solution.covariance

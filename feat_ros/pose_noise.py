# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How far given poses are from what the images say: the part of the error no image shows.

The covariance of a camera pose that follows from pixel noise alone is honest only if the map is
exact. Poses from GPS, motion capture or a laser scan are not: the same few centimetres then come
back in every query. They are measured by leaving images out, and added. Neighbours in a video
share their error, so that they are left out together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.colmap_files import PosedImage
from feat_ros.localizer import LocalizerConfig, needed_inliers
from feat_ros.matching import dot_similarity, mutual_nearest, Similarity
from feat_ros.pnp import Observations, solve_pnp
from feat_ros.pose_error import normalised_error_squared, pose_error
from feat_ros.sfm_map import PoseNoise
from feat_ros.triangulation import observation_information, Structure
from feat_ros.types import Features, Progress

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

# Quantiles of the chi-squared distribution: median of 3 degrees of freedom, 90 % of 6.
_MEDIAN_CHI2_3 = 2.366
_P90_CHI2_6 = 10.645
_P95_CHI2_6 = 12.592
# An image is localized by what this many others saw that have most points in common with it.
_NEIGHBOURS = 20
# Poses so close in time share their error; of an image's points the others must keep a share.
_CORRELATED_NS, _KEPT_SHARE = 10**9, 0.5
# A smaller number in a name counts images: this is some days after 1970.
_LEAST_STAMP_NS = 10**15
# A pose further off than this many standard deviations is wrong, not noisy.
_WRONG_SIGMAS = 15.0


def fit_pose_noise(errors: Float, covariances: Float) -> PoseNoise:
    """Find the noise of poses that explains errors beside their covariances.

    One standard deviation for the three axes of the position and one for the orientation, each
    by the median, which a few failures don't move; then both grow, if they must, until nine in
    ten errors, wrong ones set aside, lie within their 90 % ellipsoid.

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

    def squared(factor: float) -> Float:
        noise = PoseNoise(position * factor, rotation * factor)
        return normalised_error_squared(errors, covariances + _noise_covariance(noise))

    is_noise = squared(1.0) < _WRONG_SIGMAS**2

    def joint_excess(growth: float) -> float:
        return float(np.quantile(squared(1 + growth)[is_noise], 0.9)) - _P90_CHI2_6

    factor = 1 + _smallest_root(joint_excess)
    return PoseNoise(translation_m=position * factor, rotation_rad=rotation * factor)


def _noise_covariance(noise: PoseNoise) -> Float:
    return np.diag(np.repeat([noise.translation_m**2, noise.rotation_rad**2], 3))


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
    :ivar wrong: names of images whose given pose contradicts the others.
    :ivar summary: figures for the manifest; a median is None where most images failed.
    """

    noise: PoseNoise
    wrong: list[str]
    summary: dict[str, Any]


def check_left_out(
    images: list[PosedImage],
    features: Sequence[Features],
    structure: Structure,
    descriptors: npt.NDArray[np.float32],
    max_images: int,
    progress: Progress,
    similarity: Similarity = dot_similarity,
) -> LeftOutCheck:
    """Localize images by what the others saw, and compare with the poses given for them.

    Images that are named by their stamps, as those of a bag are, are left out with those that
    were taken within a second.

    :param descriptors: (P, D) of the structure's points.
    :param max_images: at most so many, evenly spread over the images.
    :param similarity: how descriptors are compared.
    """
    count = min(max_images, len(images))
    stamps_ns = stamps_of_names([image.name for image in images])
    chosen = [int(number) for number in np.linspace(0, len(images) - 1, count).round()]
    results = {
        images[number].name: _localize_left_out(
            number, images, features, structure, descriptors, stamps_ns, similarity
        )
        for number in progress(chosen, 'check')
    }
    found = {name: result for name, result in results.items() if result is not None}
    errors = np.array([error for error, _ in found.values()]).reshape(-1, 6)
    covariances = np.array([covariance for _, covariance in found.values()]).reshape(-1, 6, 6)
    noise = fit_pose_noise(errors, covariances)
    squared = normalised_error_squared(errors, covariances + _noise_covariance(noise))
    failed = np.full(len(chosen) - len(found), np.inf)
    position = np.concatenate([np.linalg.norm(errors[:, :3], axis=1), failed])
    rotation = np.concatenate([np.degrees(np.linalg.norm(errors[:, 3:], axis=1)), failed])
    return LeftOutCheck(
        noise,
        [name for name, far in zip(found, squared > _WRONG_SIGMAS**2, strict=True) if far],
        {
            'num_images': len(chosen),
            'num_localized': len(found),
            'median_translation_error_m': _finite_median(position),
            'median_rotation_error_deg': _finite_median(rotation),
            'share_inside_95': float(np.mean(squared < _P95_CHI2_6)) if len(found) else None,
        },
    )


def _finite_median(values: Float) -> float | None:
    median = float(np.median(values)) if len(values) else np.inf
    return median if np.isfinite(median) else None


def stamps_of_names(names: Sequence[str]) -> Ids | None:
    """Stamps (I,) that images of a bag are named by; None where the names are no stamps."""
    stems = [Path(name).stem for name in names]
    if not all(stem.isdecimal() and stem.isascii() and len(stem) <= 19 for stem in stems):
        return None
    stamps = np.array([int(stem) for stem in stems], np.int64)
    return stamps if len(stamps) and stamps.min() > _LEAST_STAMP_NS else None


def _block(number: int, structure: Structure, stamps_ns: Ids | None) -> tuple[list[int], Ids]:
    """Return an image and those that share its error, and how many others saw each point (P,)."""
    own, _ = structure.observed[number]
    block, others = [number], structure.track_length.copy()
    others[own] -= 1
    if stamps_ns is None:
        return block, others
    apart = np.abs(stamps_ns - stamps_ns[number])
    apart[number] = _CORRELATED_NS + 1
    for image in np.argsort(apart, kind='stable')[: np.sum(apart <= _CORRELATED_NS)].tolist():
        fewer = others.copy()
        fewer[structure.observed[image][0]] -= 1
        if np.sum(fewer[own] >= 2) < _KEPT_SHARE * len(own):
            break
        block, others = [*block, image], fewer
    return block, others


def _localize_left_out(
    number: int,
    images: list[PosedImage],
    features: Sequence[Features],
    structure: Structure,
    descriptors: npt.NDArray[np.float32],
    stamps_ns: Ids | None,
    similarity: Similarity = dot_similarity,
) -> tuple[Float, Float] | None:
    """Error (6,) and covariance (6, 6) of an image without the observations of its block."""
    image, own = images[number], features[number]
    points, _ = structure.observed[number]
    block, others = _block(number, structure, stamps_ns)
    shared = np.array([np.isin(seen, points).sum() for seen, _ in structure.observed])
    shared[block] = 0
    near = np.argsort(-shared, kind='stable')[:_NEIGHBOURS]
    seen = np.unique(np.concatenate([structure.observed[n][0] for n in near if shared[n]] or [[]]))
    candidates = seen[others[seen.astype(np.int64)] >= 2].astype(np.int64)
    matches, _ = mutual_nearest(own.descriptors, descriptors[candidates], similarity)
    matched = candidates[matches[:, 1]]

    # Take the share of the block out of the normal equations of the points.
    information, slope = structure.information.copy(), np.zeros_like(structure.xyz)
    for left_out in block:
        rows, keypoints = structure.observed[left_out]
        part, own_slope, _ = observation_information(
            images[left_out], features[left_out], structure.xyz[rows], keypoints
        )
        information[rows] -= part / structure.noise_scale
        slope[rows] += own_slope / structure.noise_scale
    step = np.linalg.solve(information[matched], slope[matched, :, None])[..., 0]

    options = LocalizerConfig()
    solution = solve_pnp(
        Observations(
            image.camera,
            own.keypoints[matches[:, 0]].astype(float),
            structure.xyz[matched] + step,
            own.pixel_sigma[matches[:, 0]].astype(float),
            np.linalg.inv(information[matched]),
        ),
        options.pnp,
    )
    needed = needed_inliers(len(matches), image.camera, options)
    if solution is None or len(solution.inliers) < needed:
        return None
    return pose_error(solution.cam_from_map, image.cam_from_map), solution.covariance

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pose estimates against ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feat_ros.errors import DataError
from feat_ros.geometry import Rigid3d
from feat_ros.pose_error import normalised_error_squared, pose_error
from feat_ros.types import JsonDict

Float = npt.NDArray[np.float64]

# Recall thresholds (metres, degrees): the three of visuallocalization.net and finer ones.
THRESHOLDS = ((0.01, 0.1), (0.05, 5.0), (0.10, 1.0), (0.25, 2.0), (0.5, 5.0), (5.0, 10.0))
_P95_CHI2_6 = 12.592


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """Errors of all queries with ground truth; a query without an estimate has infinite ones.

    :ivar names: N names.
    :ivar translation_m: (N,) distance of the camera centres.
    :ivar rotation_deg: (N,) angle between the orientations.
    :ivar errors: (N, 6) as :func:`feat_ros.pose_error.pose_error` gives them; NaN if none.
    """

    names: list[str]
    translation_m: Float
    rotation_deg: Float
    errors: Float


def compare_poses(
    estimates: Mapping[str, Rigid3d], ground_truth: Mapping[str, Rigid3d]
) -> PoseErrors:
    """Compare ``cam_from_map`` of each image with its true one.

    :raises DataError: no ground truth, or an estimate of an image that has none.
    """
    if not ground_truth:
        raise DataError('the ground truth has no pose')
    strangers = sorted(set(estimates) - set(ground_truth))
    if strangers:
        raise DataError(
            f'{len(strangers)} of {len(estimates)} estimates have no ground truth, the first is '
            f'{strangers[0]!r}: both files must use the same names'
        )
    errors = np.full((len(ground_truth), 6), np.nan)
    for row, (name, truth) in enumerate(ground_truth.items()):
        if name in estimates:
            errors[row] = pose_error(estimates[name], truth)
    length = [np.linalg.norm(errors[:, axes], axis=1) for axes in (slice(0, 3), slice(3, 6))]
    translation, rotation = (np.where(np.isnan(values), np.inf, values) for values in length)
    return PoseErrors(list(ground_truth), translation, np.degrees(rotation), errors)


def summarise(errors: PoseErrors) -> JsonDict:
    """Medians and recall over all queries with ground truth; a failure counts as infinite."""
    found = np.isfinite(errors.translation_m)
    return {
        'num_queries': len(errors.names),
        'num_localized': int(found.sum()),
        'median_translation_error_m': _median(errors.translation_m),
        'median_rotation_error_deg': _median(errors.rotation_deg),
        'recall': {
            f'{metres:g}m_{degrees:g}deg': float(
                np.mean((errors.translation_m <= metres) & (errors.rotation_deg <= degrees))
            )
            for metres, degrees in THRESHOLDS
        },
    }


def covariance_report(
    errors: PoseErrors,
    covariances: Mapping[str, Float],
    truth_sigma_m: float,
    truth_sigma_deg: float,
) -> JsonDict:
    """Are the covariances honest: how many errors lie inside the 95 % ellipsoid.

    :param covariances: (6, 6) of each localized image.
    :param truth_sigma_m: noise of the ground truth itself, a standard deviation of each axis.
    :param truth_sigma_deg: the same of the orientation.
    :raises DataError: a localized image without covariance.
    """
    truth = np.diag(np.repeat([truth_sigma_m**2, np.radians(truth_sigma_deg) ** 2], 3))
    squared = {}
    for name, error in zip(errors.names, errors.errors, strict=True):
        if not np.isfinite(error).all():
            continue
        if name not in covariances:
            raise DataError(f'no covariance of image {name!r}: give the JSON of the same run')
        squared[name] = float(normalised_error_squared(error, covariances[name] + truth))
    values = np.array(list(squared.values()))
    return {
        'num_poses': len(values),
        'share_inside_95': float(np.mean(values <= _P95_CHI2_6)) if len(values) else None,
        'mean_normalised_error_squared': float(values.mean()) if len(values) else None,
        'median_normalised_error_squared': _median(values),
        'outside_95': [name for name, value in squared.items() if value > _P95_CHI2_6],
    }


def latency_summary(stages: list[Mapping[str, float]]) -> JsonDict:
    """Percentiles 50 and 95 of the milliseconds of each stage, and of their sum as 'total'."""
    names = list(dict.fromkeys(name for ms in stages for name in ms))
    columns = {name: [ms[name] for ms in stages if name in ms] for name in names}
    columns['total'] = [sum(ms.values()) for ms in stages]
    return {
        name: {f'p{q}': float(np.percentile(values, q)) for q in (50, 95)}
        for name, values in columns.items()
        if values
    }


def _median(values: Float) -> float | None:
    median = float(np.median(values)) if len(values) else np.inf
    return median if np.isfinite(median) else None

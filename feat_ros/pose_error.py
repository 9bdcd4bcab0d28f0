# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The error of a pose in the terms of its covariance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from feat_ros.geometry import Rigid3d, so3_log

Float = npt.NDArray[np.float64]


def pose_error(estimate: Rigid3d, truth: Rigid3d) -> Float:
    """Error (6,) of a ``cam_from_map`` in the order and axes of a pose's covariance.

    ``true - estimate`` of the camera's centre, then ``log(R_true R_estimate^T)`` of
    ``map_from_cam``.
    """
    true, found = truth.inverse(), estimate.inverse()
    turn = so3_log(true.rotation @ found.rotation.T)
    return np.concatenate([true.translation - found.translation, turn])


def normalised_error_squared(error: Float, covariance: Float) -> Float:
    """Squared Mahalanobis lengths (...,) of errors (..., n); their mean is n if honest."""
    solved = np.linalg.solve(covariance, error[..., None])[..., 0]
    return np.asarray(np.sum(error * solved, axis=-1))

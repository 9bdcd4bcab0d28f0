# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The records that travel between the steps of localization."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.errors import ImageError
from feat_ros.geometry import Rigid3d

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Features:
    """Local features of one image, strongest first.

    ==============  ========  =========================================================
    ``keypoints``   (N, 2)    float32 (x, y) in pixels of the original image, the centre
                              of its top-left pixel at (0.5, 0.5)
    ``scores``      (N,)      float32, larger is stronger
    ``descriptors`` (N, D)    float32, unit length
    ``stability``   (N,)      float32 in [0, 1]: will it still be there next winter
    ``pixel_sigma`` (N,)      float32: standard deviation of each coordinate, in pixels
    ==============  ========  =========================================================
    """

    keypoints: Float32
    scores: Float32
    descriptors: Float32
    stability: Float32
    pixel_sigma: Float32

    def __post_init__(self) -> None:
        """Check that all arrays have one row a keypoint.

        :raises ValueError: shapes that do not agree.
        """
        shapes = {name: getattr(self, name).shape for name in self.__dataclass_fields__}
        rows, dim = shapes['keypoints'][:1], shapes['descriptors'][-1:]
        wanted = dict.fromkeys(shapes, rows) | {
            'keypoints': (*rows, 2),
            'descriptors': (*rows, *dim),
        }
        if shapes != wanted:
            raise ValueError(f'features have shapes {shapes}: they must be {wanted}')

    def __len__(self) -> int:
        """Return the number of keypoints."""
        return len(self.keypoints)


class FailureReason(str, Enum):
    """Why a frame was not localized; the names are published in diagnostics and reports."""

    BAD_IMAGE = 'BAD_IMAGE'
    NO_FEATURES = 'NO_FEATURES'
    NO_CANDIDATES = 'NO_CANDIDATES'
    MAP_DAMAGED = 'MAP_DAMAGED'
    TOO_FEW_MATCHES = 'TOO_FEW_MATCHES'
    PNP_FAILED = 'PNP_FAILED'
    TOO_FEW_INLIERS = 'TOO_FEW_INLIERS'
    DEGENERATE_SPREAD = 'DEGENERATE_SPREAD'
    COVARIANCE_TOO_LARGE = 'COVARIANCE_TOO_LARGE'
    ODOMETRY_DISAGREES = 'ODOMETRY_DISAGREES'


@dataclass(frozen=True, eq=False)
class PoseEstimate:
    """A camera's place in the map.

    :ivar cam_from_map: map coordinates to the camera's optical frame (x right, y down, z ahead).
    :ivar covariance: (6, 6) of ``map_from_cam``: x, y, z in metres, then rotation about the map's
        x, y, z in radians (ROS's PoseWithCovariance); errors are ``true - estimate`` and
        ``log(R_true R_estimate^T)``.
    :ivar mode: 'global' or 'prior', how the candidate points were found.
    :ivar inliers: rows of the matches that the pose agrees with.
    :ivar matches: (M, 2) int: query keypoint, map point.
    :ivar ms: milliseconds spent per stage.
    """

    cam_from_map: Rigid3d
    covariance: Float64
    num_matches: int
    num_inliers: int
    mode: str
    inliers: npt.NDArray[np.intp]
    matches: npt.NDArray[np.int64]
    ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PoseFailure:
    """Why there is no pose, with what is known about the attempt."""

    reason: FailureReason
    detail: str
    num_matches: int = 0
    num_inliers: int = 0
    mode: str = 'global'
    ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PosePrior:
    """Where the camera should be, from the last fix or odometry.

    :ivar cam_from_map: the predicted pose.
    :ivar radius_m: the position is within this distance of the prediction.
    :ivar angle_deg: the orientation is within this angle of the prediction.
    """

    cam_from_map: Rigid3d
    radius_m: float = 1.0
    angle_deg: float = 10.0


LocalizationResult = PoseEstimate | PoseFailure


@dataclass(frozen=True, eq=False)
class View:
    """What one camera of a body saw.

    :ivar image_rgb: (H, W, 3) uint8, of the camera's size; or its features.
    :ivar cam_from_rig: where the camera is mounted.
    :raises ImageError: the image is not of the camera's size.
    """

    image_rgb: npt.NDArray[np.uint8] | Features
    camera: Camera
    cam_from_rig: Rigid3d

    def __post_init__(self) -> None:
        """Check the size."""
        if isinstance(self.image_rgb, Features):
            return
        height, width = self.image_rgb.shape[:2]
        if (width, height) != self.camera.size_wh:
            raise ImageError(
                f'image is {width}x{height}, its camera {self.camera.width}x{self.camera.height}: '
                'give the calibration of this size'
            )

    @property
    def features(self) -> Features:
        """The features, where they are known."""
        assert isinstance(self.image_rgb, Features)
        return self.image_rgb


@dataclass(frozen=True, eq=False)
class FrameRecord:
    """What became of one frame of a stream; a row of ``frames.csv``.

    :ivar status: 'localized', 'refused', 'dropped' (a newer frame came first) or 'joined' (another
        camera's frame of the same moment has the pose of both).
    :ivar reason: why it was refused; None otherwise.
    :ivar map_from_base: the body's pose (the camera's where no base is known).
    :ivar covariance: (6, 6) of it, ordered as in :class:`PoseEstimate`.
    :ivar truth: ``map_from_base`` where ground truth is known.
    :ivar ms: milliseconds spent per stage.
    """

    stamp_ns: int
    status: str
    reason: FailureReason | None = None
    detail: str = ''
    mode: str = ''
    num_matches: int = 0
    num_inliers: int = 0
    map_from_base: Rigid3d | None = None
    covariance: Float64 | None = None
    truth: Rigid3d | None = None
    ms: dict[str, float] = field(default_factory=dict)


JsonDict = dict[str, Any]
# Shows the advance of a step: (items, what is done with each) -> the same items.
Progress = Callable[[list[Any], str], Iterable[Any]]

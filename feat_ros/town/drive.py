# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A drive through the town: which lane, which way, which day, how fast."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from feat_ros.config import Config, option
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.town.light import Condition

# The optical frame (x right, y down, z ahead) of a camera that looks along the map's x.
_OPTICAL_FROM_FORWARD = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])


@dataclass(frozen=True)
class Drive(Config):
    """One run along the main street."""

    lane_offset_m: float = option(
        1.6, 'distance from the middle of the road to its right', minimum=-3.0, maximum=3.0
    )
    direction: int = option(1, 'along x (1) or against it (-1)', choices=(1, -1))
    day: int = option(0, 'which cars are there and how leaves hang', minimum=0)
    speed_mps: float = option(6.0, 'speed', minimum=0.1, maximum=30.0)
    rate_hz: float = option(10.0, 'frames a second', minimum=0.1, maximum=200.0)
    start_m: float = option(0.0, 'distance from the near end of the street at time 0')
    length_m: float = option(50.0, 'distance driven', minimum=0.0)
    camera_height_m: float = option(1.5, 'height over the road', minimum=0.3, maximum=4.0)
    camera_yaw_deg: float = option(
        0.0, 'turn of the camera to the left', minimum=-180.0, maximum=180.0
    )
    condition: Condition = field(default_factory=Condition)

    def times_s(self) -> npt.NDArray[np.float64]:
        """Times of the frames (N,), seconds from the start."""
        count = int(self.length_m / self.speed_mps * self.rate_hz + 1e-9) + 1
        return np.asarray(np.arange(count) / self.rate_hz)

    def cam_from_map(self, time_s: float, street_m: float) -> Rigid3d:
        """Pose of the camera; the car sways and nods a little.

        :param street_m: length of the street, from whose far end a drive with direction -1 starts.
        """
        s = self.start_m + self.speed_mps * time_s
        x = s if self.direction > 0 else street_m - s
        phase = 1.7 * self.day
        y = -self.direction * self.lane_offset_m + 0.06 * np.sin(0.21 * s + phase)
        z = self.camera_height_m + 0.012 * np.sin(1.9 * s + phase)
        yaw = 0.0 if self.direction > 0 else np.pi
        yaw += np.radians(self.camera_yaw_deg) + self.direction * 0.0126 * np.cos(0.21 * s + phase)
        nod = 0.006 * np.sin(1.3 * s + 2 * phase)
        roll = 0.005 * np.sin(0.8 * s + 3 * phase)
        map_from_body = so3_exp([0, 0, yaw]) @ so3_exp([0, nod, 0]) @ so3_exp([roll, 0, 0])
        rotation = _OPTICAL_FROM_FORWARD @ map_from_body.T
        return Rigid3d(rotation, -rotation @ np.array([x, y, z]))

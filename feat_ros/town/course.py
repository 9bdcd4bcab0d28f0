# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The drives that the demo, the shipped map and the tests have in common."""

from __future__ import annotations

from dataclasses import replace

from feat_ros.camera import Camera
from feat_ros.town.drive import Drive
from feat_ros.town.light import CONDITIONS

STREET_M = 120.0
CAMERA = Camera('PINHOLE', 480, 300, (285.0, 285.0, 240.0, 150.0))

# A is what a map is made of; B goes beside it on another day, C comes the other way.
DRIVES = {
    'A': Drive(day=1, start_m=2.0, length_m=100.0, speed_mps=8.0, rate_hz=5.0),
    'B': Drive(day=2, lane_offset_m=-0.1, start_m=2.5, length_m=99.0, speed_mps=8.0, rate_hz=8.0),
    'C': Drive(day=3, direction=-1, start_m=16.0, length_m=100.0, speed_mps=8.0, rate_hz=8.0),
}


def drive(name: str, condition: str) -> Drive:
    """Return a drive of :data:`DRIVES` under one of the :data:`CONDITIONS`."""
    return replace(DRIVES[name], condition=CONDITIONS[condition])

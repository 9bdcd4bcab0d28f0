# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A procedural town: streets by day and night, rendered with exact depth, labels and poses.

town = Town(seed=1)
scene = town.scene(Drive(day=2, condition=CONDITIONS['dusk']))
frame = render(scene, camera, cam_from_map, np.random.default_rng(0))
"""

from feat_ros.town.classes import CLASS_ID, TOWN_LABELS
from feat_ros.town.drive import Drive
from feat_ros.town.light import Condition, CONDITIONS
from feat_ros.town.recording import frames, write_drive
from feat_ros.town.rendering import Frame, render
from feat_ros.town.world import Scene, Town

__all__ = [
    'CLASS_ID',
    'CONDITIONS',
    'TOWN_LABELS',
    'Condition',
    'Drive',
    'Frame',
    'Scene',
    'Town',
    'frames',
    'render',
    'write_drive',
]

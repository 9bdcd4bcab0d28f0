# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Build a map of a bag: ros2 launch feat_ros map.launch.py bag:=BAG image:=TOPIC ..."""

from launch import LaunchDescription

from feat_ros.nodes.launching import description, map_actions, MAP_ARGUMENTS


def generate_launch_description() -> LaunchDescription:
    """Return what is to run."""
    return description(__file__, MAP_ARGUMENTS, map_actions)

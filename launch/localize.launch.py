# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Localize a camera in a map: ros2 launch feat_ros localize.launch.py map:=MAP image:=TOPIC."""

from launch import LaunchDescription

from feat_ros.nodes.launching import description, localize_actions, LOCALIZE_ARGUMENTS


def generate_launch_description() -> LaunchDescription:
    """Return the nodes."""
    return description(__file__, LOCALIZE_ARGUMENTS, localize_actions)

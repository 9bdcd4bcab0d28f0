# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replay a bag through the nodes: ros2 launch feat_ros replay.launch.py bag:=BAG map:=MAP ..."""

from launch import LaunchDescription

from feat_ros.nodes.launching import description, replay_actions, REPLAY_ARGUMENTS


def generate_launch_description() -> LaunchDescription:
    """Return what is to run."""
    return description(__file__, REPLAY_ARGUMENTS, replay_actions)

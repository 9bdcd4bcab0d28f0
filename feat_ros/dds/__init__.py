# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The server on a live ROS 2 graph from any Python, through pip's cyclonedds; no ROS needed."""

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ROS 2 nodes: each callback converts, calls and publishes."""

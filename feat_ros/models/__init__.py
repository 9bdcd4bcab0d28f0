# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks, in torch: an image in, a fixed number of keypoints out, all inside one graph."""

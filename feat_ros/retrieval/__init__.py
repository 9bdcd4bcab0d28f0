# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Image retrieval: which images of the map look like this one."""

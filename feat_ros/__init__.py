# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Real-time visual localization with semantic-guided features."""

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Local features side by side: matching, localization by day and night, semantics, time."""

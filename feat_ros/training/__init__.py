# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training of the networks in :mod:`feat_ros.models`."""

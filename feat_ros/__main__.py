# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m feat_ros`` is the command ``feat_ros``."""

import sys

from feat_ros.cli import main

sys.exit(main())

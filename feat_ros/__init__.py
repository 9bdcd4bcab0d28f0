# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Real-time visual localization with semantic-guided features."""

import os

# Threads of OpenBLAS wait for the next product at full speed, for 20 ms and more, and take the
# cores from the network that runs next. It reads this when NumPy is imported; 4 is the least.
os.environ.setdefault('OPENBLAS_THREAD_TIMEOUT', '4')

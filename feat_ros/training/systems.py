# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks that can be trained, by name."""

from __future__ import annotations

from collections.abc import Mapping

from feat_ros.errors import ConfigError
from feat_ros.training import aislfd, hynet, lite, samfeat, sfd2
from feat_ros.training.run import System

SYSTEMS: Mapping[str, System] = {
    'sfd2_lite': lite.SYSTEM,
    'sfd2': sfd2.SYSTEM,
    'aislfd': aislfd.SYSTEM,
    'samfeat': samfeat.SYSTEM,
    'samfeat_base': samfeat.BASE_SYSTEM,
    'hynet': hynet.SYSTEM,
    'hynet_base': hynet.BASE_SYSTEM,
}


def get_system(name: str) -> System:
    """Return how a network is trained.

    :raises ConfigError: an unknown name; the known ones are listed.
    """
    if name not in SYSTEMS:
        raise ConfigError(f'unknown system {name!r}; choose one of: {", ".join(SYSTEMS)}')
    return SYSTEMS[name]

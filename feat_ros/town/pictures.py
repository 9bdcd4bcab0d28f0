# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures to check networks on, for who has no photographs."""

from __future__ import annotations

from feat_ros.camera import Camera
from feat_ros.image import Image
from feat_ros.town import Drive, frames, Town


def street_pictures() -> dict[str, Image]:
    """Return two pictures (480, 640, 3) of a made-up street, coarsely painted, by name."""
    camera = Camera('PINHOLE', 640, 480, (500.0, 500.0, 320.0, 240.0))
    scene = Town(seed=1, length_m=40.0, texel_m=0.05).scene(
        Drive(length_m=20.0, speed_mps=20.0, rate_hz=1.0)
    )
    return {f'street at {time_s:g} s': frame.image for time_s, frame in frames(scene, camera)}

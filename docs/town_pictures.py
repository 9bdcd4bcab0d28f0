# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The town by day, at dusk and by night: python docs/town_pictures.py writes docs/images/town.png.

Last the stability groups of the same pixels.
"""

from pathlib import Path

import cv2
import numpy as np

from feat_ros.image import write_png
from feat_ros.semantics import GROUP_COLOURS_RGB
from feat_ros.town import render, Town
from feat_ros.town.course import CAMERA, drive, STREET_M

_OUT = Path(__file__).parent / 'images' / 'town.png'
_SIZE = 360, 225
_TIME_S = 7.0


def main() -> None:
    """Render one place three times and put the pictures beside each other."""
    town = Town(1, STREET_M)
    columns = []
    for condition in ('day', 'dusk', 'night'):
        run = drive('B', condition)
        pose = run.cam_from_map(_TIME_S, STREET_M)
        rng = np.random.default_rng(0)
        frame = render(
            town.scene(run), CAMERA, pose, rng, time_s=_TIME_S, velocity=(run.speed_mps, 0, 0)
        )
        columns.append(cv2.resize(frame.image, _SIZE, interpolation=cv2.INTER_AREA))
    labels = cv2.resize(GROUP_COLOURS_RGB[frame.group], _SIZE, interpolation=cv2.INTER_NEAREST)
    rows = np.vstack([np.hstack(columns[:2]), np.hstack([columns[2], labels])])
    write_png(_OUT, np.ascontiguousarray(rows))


if __name__ == '__main__':
    main()

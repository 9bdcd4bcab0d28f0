# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sky and plants for the photographs of the LUMS Road Dataset, whose labels leave them out.

python label_campus.py FOLDER changes FOLDER/NAME.group.png in place. The data set labels roads,
people and vehicles; what it calls background is looked at by colour: under a bright even sky, what
is bright and hangs together with the upper border is sky, what is green is plants. The rest, and
what is near a border, stays unknown.
"""

from __future__ import annotations

from pathlib import Path
import sys

import cv2
from label_streets import borders, close, find_plants, grow
import numpy as np

from feat_ros.semantics import StabilityGroup

# Sky is at least so bright, in its darkest channel, and the picture's black corners at most so.
_BRIGHT, _BLACK = 150, 45


def main(folder: Path) -> None:
    """Add to the labels of all pictures."""
    for path in sorted(folder.glob('*.jpg')):
        bgr = cv2.imread(str(path))
        label_path = path.with_suffix('.group.png')
        group = cv2.imread(str(label_path), cv2.IMREAD_GRAYSCALE)
        if bgr is None or group is None:
            sys.exit(f'{path} or its labels cannot be read')
        height = group.shape[0]
        smooth = cv2.GaussianBlur(bgr, (0, 0), 1.0)
        rows = np.arange(height)[:, None]
        open_ground = (group == StabilityGroup.UNKNOWN) & (rows < 0.55 * height)
        is_bright = (smooth.min(axis=2) > _BRIGHT) & open_ground
        parts = cv2.connectedComponents(close(is_bright, 2).astype(np.uint8))[1]
        near_top = parts[: height // 4]
        sky = is_bright & np.isin(parts, np.unique(near_top[near_top > 0]))
        # Trees stand dark before the sky.
        is_dark = (smooth.max(axis=2) < 110) & (smooth.max(axis=2) > _BLACK) & open_ground
        above = np.minimum.accumulate(rows + np.where(group != 0, -height, 0), axis=0)
        plants = (find_plants(bgr)[0] | (is_dark & grow(sky, 25))) & open_ground & ~sky
        plants &= above > -height
        group = group.copy()
        group[sky] = StabilityGroup.VOLATILE
        group[plants] = StabilityGroup.SHORT_TERM
        unsure = borders(group, 2) & (rows < 0.55 * height)
        group[unsure & np.isin(group, (StabilityGroup.VOLATILE, StabilityGroup.SHORT_TERM))] = 0
        cv2.imwrite(str(label_path), group)


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

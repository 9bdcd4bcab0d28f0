# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files of where photographs have corners, by a checkpoint that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from feat_ros.training.corner_files import CornerFile, FILES, heat_size, write_corners
from feat_ros.training.magicpoint import (
    adapted_heat_map,
    MagicPoint,
    open_detector,
    random_views,
)
from feat_ros.training.pictures import read_photo
from feat_ros.training.teachers import checkpoint_sha256
from feat_ros.types import Progress

# Every picture has the same views, so that its file is a function of it and the checkpoint.
_SEED = 0


def write_corner_files(
    photos: Sequence[Path],
    checkpoint: Path,
    num_views: int,
    device: torch.device,
    progress: Progress,
) -> int:
    """Write the files of photographs that have none yet.

    :param checkpoint: of MagicPoint or of SuperPoint.
    :param num_views: how many views of a photograph are looked at, itself the first.
    :returns: how many were written.
    :raises NetworkError: the checkpoint is missing, damaged, or of another network.
    :raises DataError: a photograph cannot be read, a file not be written, or one that is there
        was made by another model.
    """
    kind, network = open_detector(checkpoint, device)
    model = f'{kind} {checkpoint_sha256(checkpoint)}, {num_views} views'
    missing = FILES.missing(photos, model)
    for photo in progress(missing, 'corners') if missing else ():
        heat = see(network, read_photo(photo).image, num_views, device)
        write_corners(photo, CornerFile(heat, model))
    return len(missing)


def see(
    network: MagicPoint, image: npt.NDArray[np.uint8], num_views: int, device: torch.device
) -> npt.NDArray[np.float16]:
    """Return the heat map (h, w) of an image (H, W, 3) uint8 RGB."""
    wh = heat_size((image.shape[1], image.shape[0]))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if wh != grey.shape[::-1]:
        grey = cv2.resize(grey, wh, interpolation=cv2.INTER_AREA)
    views = random_views(num_views - 1, wh, _SEED)
    heat = adapted_heat_map(network, torch.from_numpy(grey).float().to(device), views)
    return np.asarray(heat.cpu().numpy(), np.float16)

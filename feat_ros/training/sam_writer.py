# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files of what SAM sees in photographs, by its authors' package and a user's checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from feat_ros.training.pictures import read_photo
from feat_ros.training.sam_files import FILES, SamFile, write_sam
from feat_ros.training.teachers import checkpoint_sha256, open_sam
from feat_ros.types import Progress


def write_sam_files(
    photos: Sequence[Path], kind: str, checkpoint: Path, device: torch.device, progress: Progress
) -> int:
    """Write the files of photographs that have none yet.

    :param kind: the type of the checkpoint: ``vit_h``, ``vit_l`` or ``vit_b``.
    :returns: how many were written.
    :raises ConfigError: the package is missing, or the checkpoint is of another type.
    :raises NetworkError: the checkpoint is missing or damaged.
    :raises DataError: a photograph cannot be read, a file not be written, or one that is there
        was made by another model.
    """
    model = f'{kind} {checkpoint_sha256(checkpoint)}'
    missing = FILES.missing(photos, model)
    if not missing:
        return 0
    see = Eye(kind, checkpoint, device, model)
    for photo in progress(missing, 'sam'):
        write_sam(photo, see(read_photo(photo).image))
    return len(missing)


class Eye:
    """SAM, with the settings of its mask generator as its authors have them.

    :param model: what its files say made them: type and sha256 of the checkpoint.
    """

    def __init__(self, kind: str, checkpoint: Path, device: torch.device, model: str) -> None:
        sam = open_sam(kind, checkpoint, device)
        from segment_anything import SamAutomaticMaskGenerator

        self._model = model
        self._generator: Any = SamAutomaticMaskGenerator(sam)
        self._encoded: list[torch.Tensor] = []
        # The generator encodes the image and forgets it; to encode it twice takes twice as long.
        sam.image_encoder.register_forward_hook(
            lambda module, given, output: self._encoded.append(output)
        )

    def __call__(self, image: npt.NDArray[np.uint8]) -> SamFile:
        """Return what it sees.

        :param image: (H, W, 3) uint8 RGB.
        """
        scaling = self._generator.predictor.transform
        height, width = image.shape[:2]
        # SAM's input is no larger, and masks of 12 megapixels would take gigabytes.
        seen = scaling.apply_image(image) if max(height, width) > scaling.target_length else image
        self._encoded.clear()
        found = self._generator.generate(seen)
        ((features,),) = self._encoded
        cells = [
            -(-length * max(features.shape[1:]) // scaling.target_length)
            for length in scaling.get_preprocess_shape(height, width, scaling.target_length)
        ]
        return SamFile(
            numbered([each['segmentation'] for each in found], (width, height)),
            features[:, : cells[0], : cells[1]].half().cpu().numpy(),
            self._model,
        )


def numbered(
    masks: Sequence[npt.NDArray[np.bool_]], size_wh: tuple[int, int]
) -> npt.NDArray[np.uint16]:
    """Number masks from the largest, 1, on; a smaller one lies on top of a larger.

    :param masks: (h, w) each, of one size.
    :param size_wh: of the photograph, W and H.
    :returns: (H, W), 0 in none.
    """
    if not masks:
        return np.zeros(size_wh[::-1], np.uint16)
    numbers: npt.NDArray[np.uint16] = np.zeros(masks[0].shape, np.uint16)
    for number, mask in enumerate(sorted(masks, key=lambda mask: -int(mask.sum())), start=1):
        numbers[mask] = number
    # The pixel that the centre of each of the photograph's lies in.
    (width, height), (rows, columns) = size_wh, numbers.shape
    row = (2 * np.arange(height) + 1) * rows // (2 * height)
    column = (2 * np.arange(width) + 1) * columns // (2 * width)
    return np.asarray(numbers[row][:, column])

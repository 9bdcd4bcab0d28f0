# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where a photograph has corners, in the file ``NAME.corners.npz`` beside it, and views of it.

:mod:`feat_ros.training.corner_writer` makes such files. What they hold is the local reliability
S_rel of SFD2 (section 3.1), which its paper takes from SuperPoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.errors import DataError
from feat_ros.training.pictures import corners_path, Levels, Picture, SMALLEST_LEVEL
from feat_ros.training.side_files import SideFiles

# Longer side up to which a photograph is looked at as it is: at more, corners are of noise.
_LARGEST = 1024

FILES = SideFiles(corners_path, 'corners', 'corner-files')


class CornerFile(NamedTuple):
    """Corners of a photograph.

    ============  ==============  ======================================================
    ``heat``      (h, w) float16  probability that a corner is in a pixel, of the
                                  photograph scaled to at most 1024 pixels
    ``model``     str             what made it
    ============  ==============  ======================================================
    """

    heat: npt.NDArray[np.float16]
    model: str


def heat_size(size_wh: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of the heat map of a photograph."""
    width, height = size_wh
    scale = min(1.0, _LARGEST / max(size_wh))
    return max(1, round(width * scale)), max(1, round(height * scale))


def write_corners(photo: Path, found: CornerFile) -> None:
    """Write the file of a photograph, whole or not at all.

    :raises DataError: the heat map is none, or the disk is full or read-only.
    """
    if not ((found.heat >= 0) & (found.heat <= 1)).all():
        raise DataError(
            f'{corners_path(photo)} is not written: its probabilities are not in [0, 1]; is the '
            'checkpoint damaged?'
        )
    FILES.write(photo, found)


def read_corners(photo: Path, size_wh: tuple[int, int]) -> CornerFile:
    """Read the file of a photograph.

    :param size_wh: of the photograph, in pixels.
    :raises DataError: missing, damaged, or of a photograph of another size.
    """
    path = corners_path(photo)
    heat, model = FILES.read(photo, CornerFile._fields).values()
    is_whole = heat.dtype == np.float16 and heat.ndim == 2
    if not is_whole or not ((heat >= 0) & (heat <= 1)).all():
        raise DataError(f'{path} is damaged, or no file of corners: {FILES.again}')
    wanted = heat_size(size_wh)
    if heat.shape[::-1] != wanted:
        raise DataError(
            f'{path} is of {heat.shape[1]}x{heat.shape[0]} pixels, where {photo.name} has '
            f'{wanted[0]}x{wanted[1]}: {FILES.again}'
        )
    return CornerFile(heat, str(model))


def open_bank(
    photos: Sequence[Path], pictures: Sequence[Picture], device: torch.device
) -> CornerBank | None:
    """Read the files that there are.

    :param photos: where the first of the pictures come from; the others have no files.
    :returns: None where there is no file.
    :raises DataError: a file cannot be used.
    """
    has_file = [corners_path(photo).exists() for photo in photos]
    if not any(has_file):
        return None
    sizes_wh = [(picture.image.shape[1], picture.image.shape[0]) for picture in pictures]
    files = (
        read_corners(photo, size_wh) if has else None
        for photo, size_wh, has in zip(photos, sizes_wh, has_file, strict=False)
    )
    return CornerBank(files, sizes_wh, device)


class CornerBank:
    """Heat maps of the pictures that have one, on one device.

    At half the resolution a pixel has the largest probability of its four: a corner does not
    become less of one when the view shows more.

    :param files: of the first pictures, None for one without.
    :param sizes_wh: of all pictures.
    :raises DataError: files that different models made.
    """

    def __init__(
        self, files: Iterable[CornerFile | None], sizes_wh: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:  # fmt: skip
        # A picture without a file is one pixel of which nothing is known.
        nothing = np.full(1, np.nan, np.float16)
        heat, sizes, models = [], [], set()
        scale = np.ones((len(sizes_wh), 3, 1))
        found_of = dict(enumerate(files))
        for number, size_wh in enumerate(sizes_wh):
            found = found_of.get(number)
            if found is None:
                heat.append(nothing)
                sizes.append([(1, 1)])
                continue
            models.add(found.model)
            levels = _levels(found.heat)
            heat += [each.reshape(-1) for each in levels]
            sizes.append([(each.shape[1], each.shape[0]) for each in levels])
            scale[number, :2, 0] = np.array(sizes[-1][0]) / size_wh
        if len(models) > 1:
            raise DataError(
                f'the corners beside photographs are of {len(models)} models '
                f'({"; ".join(sorted(models))}): write them all with the same checkpoint'
            )
        self._levels = Levels(sizes, device)
        self._scale = torch.from_numpy(scale).to(device)
        self._heat = torch.from_numpy(np.concatenate(heat)).to(device)

    def views(self, picture: Tensor, source_from_view: Tensor, size: int) -> Tensor:
        """Cut square views out, as :meth:`feat_ros.training.pictures.PictureBank.views` does.

        :param picture: (V,) int64.
        :param source_from_view: (V, 3, 3), pixels of the full picture from those of the view.
        :param size: side S of a view in pixels.
        :returns: (V, 1, S, S) float32, NaN where a picture has no file.
        """
        taps = self._levels.taps(picture, self._scale[picture] * source_from_view, size)
        total = torch.zeros((), device=picture.device)
        for index, weight in taps:
            total = total + self._heat[index].float() * weight
        return total[:, None]


def _levels(heat: npt.NDArray[np.float16]) -> list[npt.NDArray[np.float16]]:
    levels = [heat]
    while min(levels[-1].shape) >= SMALLEST_LEVEL:
        finer = torch.from_numpy(levels[-1]).float()[None]
        levels.append(functional.max_pool2d(finer, 2)[0].half().numpy())
    return levels

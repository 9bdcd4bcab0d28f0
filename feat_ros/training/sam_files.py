# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What SAM sees in a photograph, in the file ``NAME.sam.npz`` beside it, and views cut from it.

:mod:`feat_ros.training.sam_writer` makes such files; another network's masks and features, written
by :func:`write_sam`, do as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feat_ros.errors import DataError
from feat_ros.training.configs import SamParts
from feat_ros.training.pictures import mirror, Picture, places, sam_path
from feat_ros.training.side_files import SideFiles

# Features are taken at cells of so many pixels of a view, where the student has its own.
_STRIDE = 8

FILES = SideFiles(sam_path, 'SAM', 'sam-files')


class SamFile(NamedTuple):
    """What SAM sees in a photograph of W x H pixels.

    ============  =================  ======================================================
    ``masks``     (H, W) uint16      number of the mask that a pixel is in, 0 in none
    ``features``  (C, h, w) float16  of the image encoder; the longer sides of photograph and
                                     features are equally long, the top left corners the same
    ``model``     str                what made them
    ============  =================  ======================================================
    """

    masks: npt.NDArray[np.uint16]
    features: npt.NDArray[np.float16]
    model: str


class SamViews(NamedTuple):
    """What SAM sees of views, as in :class:`feat_ros.training.pairs.Batch`."""

    masks: Tensor | None
    taught: Tensor | None
    is_taught: Tensor | None


NO_SAM = SamViews(None, None, None)


def write_sam(photo: Path, found: SamFile) -> None:
    """Write the file of a photograph, whole or not at all.

    :raises DataError: the features are not finite, or the disk is full or read-only.
    """
    if not np.isfinite(found.features).all():
        raise DataError(
            f'{sam_path(photo)} is not written: features of {photo.name} are not finite, or '
            'larger than half precision holds (65504); is the checkpoint damaged?'
        )
    FILES.write(photo, found)


def read_sam(photo: Path, size_wh: tuple[int, int]) -> SamFile:
    """Read the file of a photograph.

    :param size_wh: of the photograph, in pixels.
    :raises DataError: missing, damaged, or of a photograph of another size.
    """
    path = sam_path(photo)
    masks, features, model = FILES.read(photo, SamFile._fields).values()
    is_whole = masks.dtype == np.uint16 and masks.ndim == 2 and features.dtype == np.float16
    if not is_whole or features.ndim != 3 or not features.size or not np.isfinite(features).all():
        raise DataError(f'{path} is damaged, or no file of SAM: {FILES.again}')
    found = SamFile(masks, features, str(model))
    if masks.shape[::-1] != size_wh:
        raise DataError(
            f'{path} is of {masks.shape[1]}x{masks.shape[0]} pixels, {photo.name} of '
            f'{size_wh[0]}x{size_wh[1]}: {FILES.again}'
        )
    # Whole cells that cover the photograph; SAM rounds its shorter side.
    apart = np.array(features.shape[1:]) - np.array(masks.shape) / _cell_px(found)
    if np.abs(apart - 0.5).max() > 1:
        raise DataError(
            f'{path} has features of {features.shape[2]}x{features.shape[1]} cells, which is not '
            f'the shape of {photo.name}: {FILES.again}'
        )
    return found


def _cell_px(found: SamFile) -> float:
    """Side of a cell of the features in pixels of the photograph."""
    return float(max(found.masks.shape) / max(found.features.shape[1:]))


def open_bank(
    photos: Sequence[Path], pictures: Sequence[Picture], parts: SamParts, device: torch.device
) -> SamBank | None:
    """Read the files that there are.

    :param photos: where the first of the pictures come from; the others have no files.
    :returns: None where nothing is asked for, or there is no file.
    :raises DataError: a file cannot be used.
    """
    has_file = [sam_path(photo).exists() for photo in photos]
    if not any(parts) or not any(has_file):
        return None
    files = (
        read_sam(photo, (picture.image.shape[1], picture.image.shape[0])) if has else None
        for photo, picture, has in zip(photos, pictures, has_file, strict=False)
    )
    return SamBank(files, len(pictures), parts, device)


class SamBank:
    """Masks and features of the pictures that have them, on one device.

    :param files: of the first pictures, None for one without; no file is kept but its parts.
    :param count: P, of all pictures.
    :raises DataError: files that different models made.
    """

    def __init__(
        self, files: Iterable[SamFile | None], count: int, parts: SamParts, device: torch.device
    ) -> None:
        # A picture without a file is one pixel and one cell of nothing, the first.
        masks: list[npt.NDArray[np.uint16]] = [np.zeros(1, np.uint16)]
        features: list[npt.NDArray[np.float16]] = []
        sizes, cells = np.ones((count, 2), np.int64), np.ones((count, 2), np.int64)
        start, start_cell = np.zeros(count, np.int64), np.zeros(count, np.int64)
        cell_px, models = np.ones(count, np.float32), set()
        pixels = rows = 1
        for number, found in enumerate(files):
            if found is None:
                continue
            start[number], start_cell[number] = pixels, rows
            sizes[number], cells[number] = found.masks.shape[::-1], found.features.shape[:0:-1]
            cell_px[number] = _cell_px(found)
            if parts.masks:
                masks.append(found.masks.reshape(-1))
                pixels += found.masks.size
            if parts.features:
                models.add(f'{found.model}, {len(found.features)} channels')
                features.append(found.features.reshape(len(found.features), -1).T)
                rows += len(features[-1])
        if len(models) > 1:
            raise DataError(
                f'the features beside photographs are of {len(models)} models '
                f'({"; ".join(sorted(models))}): write them all with the same checkpoint'
            )
        self._parts = parts
        self._start, self._start_cell, self._size, self._cells, self._cell_px = (
            torch.from_numpy(each).to(device)
            for each in (start, start_cell, sizes, cells, cell_px)
        )
        if parts.masks:
            self._masks = torch.from_numpy(np.concatenate(masks).view(np.int16)).to(device)
        if parts.features:
            nothing = np.zeros((1, features[0].shape[1]), np.float16)
            self._features = torch.from_numpy(np.concatenate([nothing, *features])).to(device)

    def views(self, picture: Tensor, source_from_view: Tensor, size: int) -> SamViews:
        """Cut square views out, as :meth:`feat_ros.training.pictures.PictureBank.views` does.

        :param picture: (V,) int64.
        :param source_from_view: (V, 3, 3), pixels of the full picture from those of the view.
        :param size: side of a view in pixels.
        """
        given = picture, source_from_view, size
        masks = self._mask_views(*given) if self._parts.masks else None
        taught = self._feature_views(*given) if self._parts.features else (None, None)
        return SamViews(masks, *taught)

    def _mask_views(self, picture: Tensor, source_from_view: Tensor, size: int) -> Tensor:
        """Numbers (V, S, S), mirrored beyond borders as the pixels are."""
        x, y = places(source_from_view, size, size)
        width, height = (each[:, None, None] for each in self._size[picture].unbind(1))
        start = self._start[picture][:, None, None]
        column, row = mirror(x.floor().long(), width), mirror(y.floor().long(), height)
        # Numbers above 32767 are negative where they are kept.
        number = self._masks[start + row * width + column].int() & 0xFFFF
        return torch.where(start > 0, number, -1)

    def _feature_views(
        self, picture: Tensor, source_from_view: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Features between the centres of cells, and where the photograph has them."""
        x, y = places(source_from_view, size, size // _STRIDE)
        width, height = (each[:, None, None] for each in self._size[picture].unbind(1))
        start = self._start_cell[picture][:, None, None]
        is_known = (start > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        across, down = (each[:, None, None] for each in self._cells[picture].unbind(1))
        cell_px = self._cell_px[picture][:, None, None]
        left, top = x / cell_px - 0.5, y / cell_px - 0.5
        column, row = left.floor(), top.floor()
        total = torch.zeros((), device=x.device)
        for i, row_share in enumerate((1 - (top - row), top - row)):
            at = start + (row.long() + i).clamp(min=torch.zeros_like(down), max=down - 1) * across
            for j, share in enumerate((1 - (left - column), left - column)):
                k = (column.long() + j).clamp(min=torch.zeros_like(across), max=across - 1)
                total = total + self._features[at + k].float() * (row_share * share)[..., None]
        return (total * is_known[..., None]).permute(0, 3, 1, 2), is_known[:, None]

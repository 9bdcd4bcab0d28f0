# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""All pictures of a training run in the memory of its device, and views cut from them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import hashlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feat_ros.errors import DataError
from feat_ros.semantics import StabilityGroup

UInt8 = npt.NDArray[np.uint8]

_SUFFIXES = ('.jpg', '.jpeg', '.png')
_LABEL_SUFFIX, _SAM_SUFFIX, _CORNERS_SUFFIX = '.group.png', '.sam.npz', '.corners.npz'
# A picture with a shorter side than this is not halved.
SMALLEST_LEVEL = 256


class Picture(NamedTuple):
    """A picture ``image`` (H, W, 3) uint8 RGB and ``group`` (H, W) uint8, or None."""

    image: UInt8
    group: UInt8 | None


def find_photos(folders: list[str]) -> list[Path]:
    """List the photographs under folders; ``NAME.group.png`` are labels of ``NAME.*``.

    One that is in two of the folders, for one is in the other, is listed once.

    :raises DataError: a folder has none, or two with the same name, which would share the files
        beside them.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        paths = sorted(
            path
            for path in Path(folder).rglob('*')
            if path.suffix.lower() in _SUFFIXES and not path.name.endswith(_LABEL_SUFFIX)
        )
        if not paths:
            raise DataError(f'folder {folder} has no photographs: name one with .jpg or .png')
        for path in paths:
            name = path.parent.resolve() / path.stem
            other = found.setdefault(name, path)
            if other.name != path.name:
                raise DataError(
                    f'{other} and {path} would share the files beside them, '
                    f'{label_path(path).name} for one: rename or remove one of the two'
                )
    return list(found.values())


def held_out(photos: list[Path], every: int) -> list[Path]:
    """Return one in so many of the photographs: training does not see it."""
    return photos[every - 1 :: every]


def data_manifest(
    paths: list[Path], has_sam: bool = False, has_corners: bool = False
) -> list[dict[str, str]]:
    """Name, with the folder it is in, and sha256 of each file and of its labels.

    :param has_sam: with that of its file of SAM too.
    :param has_corners: with that of its file of corners too.
    """
    manifest = []
    for path in paths:
        files = {'sha256': path, 'labels_sha256': label_path(path)}
        if has_sam:
            files['sam_sha256'] = sam_path(path)
        if has_corners:
            files['corners_sha256'] = corners_path(path)
        hashes = {
            key: hashlib.sha256(file.read_bytes()).hexdigest()
            for key, file in files.items()
            if file.exists()
        }
        manifest.append({'file': f'{path.parent.name}/{path.name}', **hashes})
    return manifest


def label_path(path: Path) -> Path:
    """Return where the labels of a photograph are, if there are any."""
    return path.with_name(path.stem + _LABEL_SUFFIX)


def sam_path(photo: Path) -> Path:
    """Return where the file of SAM of a photograph is, if there is one."""
    return photo.with_name(photo.stem + _SAM_SUFFIX)


def corners_path(photo: Path) -> Path:
    """Return where the file of corners of a photograph is, if there is one."""
    return photo.with_name(photo.stem + _CORNERS_SUFFIX)


def read_photo(path: Path) -> Picture:
    """Read a photograph, and its labels where there are any.

    :raises DataError: not a picture, or labels of another size.
    """
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise DataError(f'{path} is no picture that OpenCV reads: remove it')
    image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    labels = label_path(path)
    group = None
    if labels.exists():
        found = cv2.imread(str(labels), cv2.IMREAD_GRAYSCALE)
        group = np.zeros((0, 0), np.uint8) if found is None else np.asarray(found, np.uint8)
        if group.shape != image.shape[:2] or group.max() >= len(StabilityGroup):
            raise DataError(f'{labels} is not a label image of {path}: size or ids differ')
    return Picture(image, group)


class PictureBank:
    """Pictures at full, half, quarter ... resolution, a pixel and its label in four bytes.

    :ivar size_wh: (P, 2) float64 numpy, of each picture at full resolution.
    """

    def __init__(self, pictures: Sequence[Picture], device: torch.device) -> None:
        packed = []
        sizes: list[list[tuple[int, int]]] = []
        for picture in pictures:
            sizes.append([])
            image = picture.image
            group = picture.group
            if group is None:
                group = np.zeros(image.shape[:2], np.uint8)
            labels = group
            while True:
                height, width = image.shape[:2]
                packed.append(np.dstack([image, labels]).reshape(-1, 4))
                sizes[-1].append((width, height))
                if min(width, height) < SMALLEST_LEVEL:
                    break
                half_wh = (width // 2, height // 2)
                image = np.asarray(cv2.resize(image, half_wh, interpolation=cv2.INTER_AREA))
                labels = np.asarray(cv2.resize(labels, half_wh, interpolation=cv2.INTER_NEAREST))
        self.size_wh = np.array([levels[0] for levels in sizes], np.float64)
        pixels = np.concatenate(packed)
        self._pixels = torch.from_numpy(pixels.view(np.int32).reshape(-1)).to(device)
        self._levels = Levels(sizes, device)

    def views(self, picture: Tensor, source_from_view: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Cut square views out of pictures, between pixels and with mirrors beyond borders.

        :param picture: (V,) int64.
        :param source_from_view: (V, 3, 3), pixels of the full picture from those of the view.
        :param size: side S of a view in pixels.
        :returns: (V, 3, S, S) float32 of 0 to 255, and groups (V, S, S) uint8.
        """
        taps = self._levels.taps(picture, source_from_view, size)
        total: Tensor | None = None
        for index, weight in taps:
            taken = self._pixels[index]
            rgb = torch.stack([(taken >> shift & 255) for shift in (0, 8, 16)], 1)
            part = rgb.float() * weight[:, None]
            total = part if total is None else total + part
        assert total is not None
        group = self._pixels[taps.nearest] >> 24
        return total, group.to(torch.uint8)


class Taps:
    """The four pixels around each place of views, one after the other, and their weights.

    :param start: (V, 1, 1) where the pictures begin.
    :param columns: the left and the right column (V, S, S); likewise ``rows``, each times the
        width.
    :param right_share: (V, S, S) weight of the right column; likewise ``down_share``.
    """

    def __init__(
        self, start: Tensor, columns: Sequence[Tensor], rows: Sequence[Tensor],
        right_share: Tensor, down_share: Tensor,
    ) -> None:  # fmt: skip
        self._start, self._columns, self._rows = start, columns, rows
        self._right_share, self._down_share = right_share, down_share

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels (V, S, S) int64, counted over all levels, and weights (V, S, S)."""
        for row, down in zip(self._rows, (1 - self._down_share, self._down_share), strict=True):
            shares = (1 - self._right_share, self._right_share)
            for column, right in zip(self._columns, shares, strict=True):
                yield self._start + row + column, down * right

    @property
    def nearest(self) -> Tensor:
        """The nearest pixel (V, S, S)."""
        column = torch.where(self._right_share < 0.5, *self._columns)
        row = torch.where(self._down_share < 0.5, *self._rows)
        return self._start + row + column


class Levels:
    """Where the pixels of pictures at full, half, quarter ... resolution lie, one after another.

    :param sizes_wh: of the levels of each picture.
    """

    def __init__(
        self, sizes_wh: Sequence[Sequence[tuple[int, int]]], device: torch.device
    ) -> None:
        counts = [len(levels) for levels in sizes_wh]
        sizes = np.array([wh for levels in sizes_wh for wh in levels], np.int64)
        first, start = (
            np.concatenate([[0], np.cumsum(each)[:-1]]) for each in (counts, sizes.prod(1))
        )
        self._first, self._num_levels, self._start, self._size = (
            torch.from_numpy(np.asarray(each, np.int64)).to(device)
            for each in (first, counts, start, sizes)
        )

    def taps(self, picture: Tensor, source_from_view: Tensor, size: int) -> Taps:
        """Return where the centres of the pixels of views are, with mirrors beyond borders.

        Of a picture the level is taken at which a pixel of the view is one to two of it.

        :param picture: (V,) int64.
        :param source_from_view: (V, 3, 3), pixels of the full picture from those of the view.
        :param size: side S of a view in pixels.
        """
        side = torch.tensor(
            [[0.0, 0, 1], [size, 0, 1], [size, size, 1], [0, size, 1]],
            device=picture.device, dtype=source_from_view.dtype,
        )  # fmt: skip
        corners = side @ source_from_view.transpose(1, 2)
        corners = corners[..., :2] / corners[..., 2:]
        step = (corners[:, 1] - corners[:, 0]).norm(dim=1)
        step = (step + (corners[:, 3] - corners[:, 0]).norm(dim=1)) / (2 * size)
        up = torch.log2(step.clamp(min=1.0)).long()
        level = self._first[picture] + torch.minimum(up, self._num_levels[picture] - 1)
        wh = self._size[level]
        shrink = wh / self._size[self._first[picture]]
        matrix = source_from_view.clone()
        matrix[:, :2] *= shrink[..., None]
        left, top = (each - 0.5 for each in places(matrix, size, size))
        width, height = (each[:, None, None] for each in wh.unbind(1))
        column, row = torch.floor(left), torch.floor(top)
        right_share, down_share = left - column, top - row
        columns = [mirror(column.long() + k, width) for k in (0, 1)]
        rows = [mirror(row.long() + k, height) * width for k in (0, 1)]
        return Taps(self._start[level][:, None, None], columns, rows, right_share, down_share)


def places(source_from_view: Tensor, size: int, side: int) -> tuple[Tensor, Tensor]:
    """Return x and y (V, side, side) in the source of the centres of a view's cells.

    :param source_from_view: (V, 3, 3).
    :param size: side of the view in pixels, which is cut into ``side`` cells each way.
    """
    at = torch.arange(side, device=source_from_view.device, dtype=torch.float32) + 0.5
    at = at * (size / side)
    m = source_from_view.float()[..., None, None]
    x, y = at[None, None, :], at[None, :, None]
    w = m[:, 2, 0] * x + m[:, 2, 1] * y + m[:, 2, 2]
    return (
        (m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2]) / w,
        (m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2]) / w,
    )


def mirror(index: Tensor, count: Tensor) -> Tensor:
    """Fold an index of any size back into 0 to count - 1, the border pixel twice."""
    folded = torch.remainder(index, 2 * count)
    return torch.minimum(folded, 2 * count - 1 - folded)

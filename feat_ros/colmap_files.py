# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The text files of localization: COLMAP models, query lists and pose lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera, MODELS
from feat_ros.errors import CameraError, DataError
from feat_ros.geometry import Rigid3d

# COLMAP's numbers of the camera models, and its row of a keypoint: number -1 has no 3D point.
_MODEL_NUMBERS = {
    0: 'SIMPLE_PINHOLE',
    1: 'PINHOLE',
    2: 'SIMPLE_RADIAL',
    3: 'RADIAL',
    4: 'OPENCV',
    5: 'OPENCV_FISHEYE',
    6: 'FULL_OPENCV',
}
_POINT_2D = np.dtype([('x', '<f8'), ('y', '<f8'), ('number', '<i8')])


@dataclass(frozen=True, eq=False)
class PosedImage:
    """One image of a COLMAP model.

    :ivar points: numbers of the model's 3D points that it saw; empty where only poses are known.
    """

    name: str
    camera: Camera
    cam_from_map: Rigid3d
    points: npt.NDArray[np.int64]


def read_colmap_model(folder: str | Path) -> list[PosedImage]:
    """Read the cameras and images of a COLMAP model, ordered by name.

    Text (``cameras.txt``, ``images.txt``), or binary where there is no text.

    :raises DataError: missing or cut files, missing or bad columns, with file and line.
    :raises CameraError: an unknown camera model or impossible parameters.
    """
    folder = Path(folder)
    if (folder / 'images.txt').is_file():
        images = list(_read_text_model(folder))
    elif (folder / 'images.bin').is_file():
        images = list(_read_binary_model(folder))
    else:
        raise DataError(
            f'no COLMAP model in {folder}: it needs cameras.txt and images.txt, or .bin'
        )
    if not images:
        raise DataError(f'the COLMAP model in {folder} has no images')
    by_name = {image.name: image for image in images}
    if len(by_name) < len(images):
        names = [image.name for image in images]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f'the COLMAP model in {folder} has image {twice!r} twice')
    return [by_name[name] for name in sorted(by_name)]


def _read_text_model(folder: Path) -> Iterator[PosedImage]:
    cameras = {}
    for where, line in _lines(folder / 'cameras.txt'):
        number, *words = line.split()
        cameras[number] = _camera(words, where)
    lines = (
        (f'{folder / "images.txt"}:{number}', line)
        for number, line in enumerate(_read_text(folder / 'images.txt').splitlines(), 1)
        if not line.startswith('#')
    )
    # An image is two lines; the second, of points, may be empty and is absent after the last.
    # Empty lines before an image mean nothing, as in COLMAP.
    for where, line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        if len(words) < 10:
            raise DataError(
                f'{where} has {len(words)} columns: an image needs ID QW QX QY QZ TX TY TZ '
                'CAMERA_ID NAME, and a line of points (or an empty one) after it'
            )
        if words[8] not in cameras:
            raise DataError(f'{where} names camera {words[8]}, which cameras.txt does not have')
        _, points = next(lines, ('', ''))
        yield PosedImage(
            name=words[9].strip(),
            camera=cameras[words[8]],
            cam_from_map=_pose(words[1:8], where),
            points=_point_numbers(points.split(), where),
        )


def _point_numbers(words: list[str], where: str) -> npt.NDArray[np.int64]:
    try:
        if len(words) % 3:
            raise ValueError('the last keypoint is not complete')
        numbers = np.array([int(word) for word in words[2::3]], np.int64)
    except (ValueError, OverflowError):
        raise DataError(
            f'the line after {where} is not a list of X Y POINT3D_ID: leave it empty or mend it'
        ) from None
    return np.unique(numbers[numbers >= 0])


def _read_binary_model(folder: Path) -> Iterator[PosedImage]:
    cameras = {}
    with _Binary.open(folder / 'cameras.bin') as binary:
        for _ in range(*binary.take('Q')):
            number, model, width, height = binary.take('IiQQ')
            if model not in _MODEL_NUMBERS:
                raise CameraError(
                    f'{binary.path} has camera model number {model}; known are: '
                    f'{", ".join(f"{n} {name}" for n, name in _MODEL_NUMBERS.items())}'
                )
            name = _MODEL_NUMBERS[model]
            params = binary.take(f'{len(MODELS[name])}d')
            words = [name, str(width), str(height), *map(repr, params)]
            cameras[number] = _camera(words, f'camera {number} of {binary.path}')
    with _Binary.open(folder / 'images.bin') as binary:
        for _ in range(*binary.take('Q')):
            number, *pose, camera = binary.take('I7dI')
            where = f'image {number} of {binary.path}'
            if camera not in cameras:
                raise DataError(f'{where} names camera {camera}, which cameras.bin does not have')
            yield PosedImage(
                name=binary.text(),
                camera=cameras[camera],
                cam_from_map=_pose(pose, where),
                points=np.unique(binary.point_numbers(*binary.take('Q'))),
            )


@dataclass
class _Binary:
    """A binary file of COLMAP, read from front to back; little endian."""

    path: Path
    data: bytes
    at: int = 0

    @staticmethod
    @contextmanager
    def open(path: Path) -> Iterator[_Binary]:
        """Give the content; there must be nothing left of it in the end."""
        try:
            binary = _Binary(path, path.read_bytes())
        except OSError as error:
            raise DataError(f'{path} cannot be read: {error.strerror or error}') from None
        yield binary
        left = len(binary.data) - binary.at
        if left:
            raise DataError(f'{path} has {left} bytes too many: write the model again')

    def _skip(self, size: int) -> int:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise DataError(f'{self.path} is cut off after {len(self.data)} bytes: copy it again')
        return start

    def take(self, layout: str) -> tuple[Any, ...]:
        """Read numbers; the layout is struct's."""
        return struct.unpack_from(
            '<' + layout, self.data, self._skip(struct.calcsize('<' + layout))
        )

    def text(self) -> str:
        """Read a name that ends with a zero."""
        end = self.data.find(0, self.at)
        size = (end if end >= 0 else len(self.data)) - self.at
        start = self._skip(size + 1)
        name = self.data[start : start + size]
        try:
            return name.decode()
        except UnicodeDecodeError:
            raise DataError(f'{self.path} has name {name!r}: it must be UTF-8') from None

    def point_numbers(self, count: int) -> npt.NDArray[np.int64]:
        """Read X Y POINT3D_ID; return the numbers of those that have a point."""
        rows = np.frombuffer(self.data, _POINT_2D, count, self._skip(count * _POINT_2D.itemsize))
        return rows['number'][rows['number'] >= 0]


def select_images(images: list[PosedImage], names: list[str], source: str) -> list[PosedImage]:
    """Return the named images of a model, in its order.

    :raises DataError: the model has no image of a name.
    """
    missing = sorted(set(names) - {image.name for image in images})
    if missing:
        raise DataError(
            f'{len(missing)} of {len(names)} listed images are not in {source}, the first is '
            f'{missing[0]!r}'
        )
    wanted = set(names)
    return [image for image in images if image.name in wanted]


def read_names(path: str | Path) -> list[str]:
    """Read a list of image names, one a line.

    :raises DataError: the file cannot be read or is empty.
    """
    names = [line for _, line in _lines(Path(path))]
    if not names:
        raise DataError(f'{path} names no image')
    return names


def read_queries(path: str | Path) -> dict[str, Camera]:
    """Read a query list: lines ``name MODEL width height params...``.

    :raises DataError: missing columns, a name twice, an empty or unreadable file.
    :raises CameraError: an unknown camera model or impossible parameters.
    """
    queries: dict[str, Camera] = {}
    for where, line in _lines(Path(path)):
        name, *words = line.split()
        if name in queries:
            raise DataError(f'{where} has query {name!r} a second time')
        queries[name] = _camera(words, where)
    if not queries:
        raise DataError(f'{path} has no query: write lines "name MODEL width height params..."')
    return queries


def read_poses(path: str | Path) -> dict[str, Rigid3d]:
    """Read ``cam_from_map`` of images: lines ``name qw qx qy qz tx ty tz``, or a COLMAP model.

    :raises DataError: missing columns, numbers that are none, a name twice, no such file.
    """
    path = Path(path)
    if path.is_dir():
        return {image.name: image.cam_from_map for image in read_colmap_model(path)}
    poses: dict[str, Rigid3d] = {}
    for where, line in _lines(path):
        name, *words = line.split()
        if name in poses:
            raise DataError(f'{where} has image {name!r} a second time')
        poses[name] = _pose(words, where)
    return poses


def format_poses(poses: Mapping[str, Rigid3d]) -> str:
    """Text of a pose list; the inverse of :func:`read_poses`."""
    lines = []
    for name, pose in poses.items():
        x, y, z, w = pose.quat_xyzw
        numbers = (w, x, y, z, *pose.translation)
        lines.append(' '.join([name, *(f'{number:.12g}' for number in numbers)]) + '\n')
    return ''.join(lines)


def _pose(words: Sequence[str | float], where: str) -> Rigid3d:
    if len(words) != 7:
        raise DataError(
            f'{where} has {len(words)} numbers of a pose: it needs QW QX QY QZ TX TY TZ'
        )
    try:
        w, x, y, z, *translation = (float(word) for word in words)
        if not np.all(np.isfinite(translation)):
            raise ValueError(f'translation {translation} is not finite')
        return Rigid3d.from_quat_xyzw([x, y, z, w], translation)
    except ValueError as error:
        raise DataError(f'{where} has a bad pose: {error}') from None


def _camera(words: list[str], where: str) -> Camera:
    try:
        return Camera.from_words(words)
    except CameraError as error:
        raise CameraError(f'{where}: {error}') from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file:line, text) of the lines that are neither empty nor comments."""
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.strip() and not line.startswith('#'):
            yield f'{path}:{number}', line.strip()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8')
    except UnicodeDecodeError:
        raise DataError(f'{path} is not a text file') from None
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}') from None

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The map folder: 3D points with descriptors and covariance, and the images that saw them.

``manifest.json`` lists immutable segments; each segment is a folder of plain ``.npy`` arrays that
are memory-mapped, so opening costs the same for any size. Manifest, shapes and file sizes are
checked on opening; the content of an array is checked by the hash of each 1 MiB block when that
block is first read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
import hashlib
import itertools
import json
import os
from pathlib import Path
import shutil
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.camera import Camera
from feat_ros.config import Config, option
from feat_ros.errors import CameraError, ConfigError, MapError, SegmentError
from feat_ros.geometry import Rigid3d, rotation_from_quat_xyzw

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

FORMAT = 'feat_ros map 2'
_BLOCK_BYTES = 1 << 20
# Segments whose files are open at once: a process may have some thousand.
_OPEN_SEGMENTS = 32

# Every array of a segment: type and shape for P points, I images, O observations and descriptors
# of D values. Names are UTF-8 bytes of any width.
ARRAYS: dict[str, tuple[str, tuple[int | str, ...]]] = {
    'points_xyz': ('<f4', ('P', 3)),
    'point_covariance': ('<f4', ('P', 6)),
    'point_descriptors': ('|i1', ('P', 'D')),
    'point_stability': ('<f4', ('P',)),
    'image_names': ('|S', ('I',)),
    'image_camera': ('<i4', ('I',)),
    'image_quat_xyzw': ('<f8', ('I', 4)),
    'image_translation': ('<f8', ('I', 3)),
    'observation_offsets': ('<i8', ('I+1',)),
    'observation_points': ('<i4', ('O',)),
    'observation_pixels': ('<f4', ('O', 2)),
}
# Upper triangle of a symmetric 3x3 matrix in the order of `point_covariance`, and back.
_TRIANGLE = np.triu_indices(3)
_FULL = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])


@dataclass(frozen=True)
class PoseNoise(Config):
    """What images alone don't know: how well the map's own poses agree with each other.

    It is measured when a map is built, by localizing its images without their own observations,
    and belongs into the covariance of every pose.
    """

    translation_m: float = option(0.0, 'standard deviation of each axis, map units', minimum=0.0)
    rotation_rad: float = option(0.0, 'standard deviation about each axis, radians', minimum=0.0)


@dataclass(frozen=True)
class ExtractorInfo(Config):
    """Which extractor a map was built with."""

    name: str = option('', 'name in the registry of extractors')
    descriptor_dim: int = option(0, 'length of a descriptor', minimum=1)
    weights_sha256: str = option('', 'hash of what it has learned')
    options: dict[str, Any] = option(dict, 'its configuration')


@dataclass(frozen=True)
class SegmentInfo(Config):
    """One segment of a map.

    The entries of ``arrays`` are ``{'dtype', 'shape', 'blocks': [hash of each MiB]}``.
    """

    name: str = option('', 'folder of the segment inside the map')
    num_points: int = option(0, 'P', minimum=1)
    num_images: int = option(0, 'I', minimum=1)
    num_observations: int = option(0, 'O', minimum=1)
    origin: list[float] = option(list, 'added to points_xyz: keeps float32 exact far from zero')
    descriptor_scale: float = option(1.0, 'unit descriptor = int8 value x this', minimum=1e-9)
    cameras: list[str] = option(list, 'MODEL width height params... of each camera')
    arrays: dict[str, dict[str, Any]] = option(dict, 'dtype, shape and block hashes by name')


@dataclass(frozen=True)
class Manifest(Config):
    """What ``manifest.json`` holds."""

    map_id: str = option('', 'hash of the content of all segments')
    frame_id: str = option('map', 'the ROS frame that coordinates are in')
    scale: str = option('metric', 'whether a unit is a metre', choices=('metric', 'unknown'))
    gravity: str = option('unknown', 'whether z points up', choices=('known', 'unknown'))
    extractor: ExtractorInfo = option(ExtractorInfo, 'what made the descriptors')
    pose_noise: PoseNoise = option(PoseNoise, 'measured by leaving images out')
    segments: list[dict[str, Any]] = option(list, 'the segments, in order of their points')
    retrieval: dict[str, Any] = option(dict, 'options, codebook and inverted files')
    measured: dict[str, Any] = option(dict, 'figures of the build')
    provenance: dict[str, Any] = option(dict, 'inputs, options and versions of the build')


@dataclass(frozen=True, eq=False)
class Segment:
    """The arrays of a new segment in memory; see :data:`ARRAYS` and :class:`SegmentInfo`.

    :ivar points_xyz: (P, 3) float64.
    :ivar point_covariance: (P, 3, 3) float64.
    :ivar point_descriptors: (P, D) float32, unit length.
    :ivar image_cam_from_map: I poses.
    :ivar image_observations: for each image its points and pixels: (n,) and (n, 2).
    :ivar descriptor_scale: of which descriptors are whole multiples, where they are read from a
        map: so they are written as they were.
    """

    points_xyz: Float
    point_covariance: Float
    point_descriptors: npt.NDArray[np.float32]
    point_stability: npt.NDArray[np.float32]
    image_names: list[str]
    image_camera: list[int]
    image_cam_from_map: list[Rigid3d]
    image_observations: list[tuple[Ids, npt.NDArray[np.float32]]]
    cameras: list[Camera]
    descriptor_scale: float | None = None


class CheckedArray:
    """Rows of a ``.npy`` file, memory-mapped; a block's hash is checked when it is first read.

    :param error: makes what is raised of its sentence.
    """

    def __init__(
        self, path: Path, entry: Mapping[str, Any], error: Callable[[str], MapError] = MapError
    ) -> None:
        self._path, self._error = path, error
        dtype, shape = np.dtype(entry['dtype']), tuple(entry['shape'])
        self.dtype, self.shape = dtype, shape
        try:
            self._rows = np.lib.format.open_memmap(path, mode='r')
        except FileNotFoundError:
            raise self._error(
                f'{path} is missing: copy the whole map again or rebuild it'
            ) from None
        except OSError as why:
            raise self._error(f'{path} cannot be read: {why.strerror or why}') from None
        except (ValueError, SyntaxError, TokenError) as why:  # what NumPy says of a bad header
            raise self._error(
                f'{path} is not the array it should be ({why}): rebuild it'
            ) from None
        if self._rows.dtype != dtype or self._rows.shape != shape:
            raise self._error(
                f'{path} holds {self._rows.dtype} {self._rows.shape}, its manifest says '
                f'{dtype} {shape}: copy the whole map again or rebuild it'
            )
        self._row_bytes = int(dtype.itemsize * np.prod(shape[1:], dtype=np.int64))
        self._bytes = self._rows.reshape(-1).view(np.uint8)
        self._hashes: list[str] = entry['blocks']
        if len(self._hashes) != -(-self._bytes.size // _BLOCK_BYTES):
            raise error(f'the manifest has too few block hashes for {path}: rebuild the map')
        self._checked = np.zeros(len(self._hashes), bool)
        self._all_checked = not self._hashes

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __getitem__(self, rows: slice) -> Array:
        """Return a slice of consecutive rows.

        :raises MapError: the content is not what was written.
        """
        start, stop, _ = rows.indices(len(self))
        if not self._all_checked and stop > start:
            self._check(
                np.arange(
                    start * self._row_bytes // _BLOCK_BYTES,
                    (stop * self._row_bytes - 1) // _BLOCK_BYTES + 1,
                )
            )
        return np.asarray(self._rows[start:stop])

    def take(self, rows: Ids) -> Array:
        """Return a copy of the given rows; errors as for a slice."""
        if not self._all_checked and len(rows):
            first = rows * self._row_bytes // _BLOCK_BYTES
            last = ((rows + 1) * self._row_bytes - 1) // _BLOCK_BYTES
            self._check(np.concatenate([first, last]))
        return np.asarray(self._rows[rows])

    def checked(self, starts: Ids, stops: Ids) -> Array:
        """Return all rows, of which those of the given runs are checked; errors as for a slice."""
        if not self._all_checked and len(starts):
            first = starts * self._row_bytes // _BLOCK_BYTES
            counts = np.maximum(stops * self._row_bytes - 1, 0) // _BLOCK_BYTES - first + 1
            counts[stops <= starts] = 0
            ends = np.cumsum(counts)
            self._check(np.arange(ends[-1]) + np.repeat(first - ends + counts, counts))
        return np.asarray(self._rows)

    def verify(self) -> None:
        """Check every block; errors as for a slice."""
        self._check(np.arange(len(self._hashes)))

    def _check(self, blocks: Ids) -> None:
        wanted = np.zeros(len(self._checked), bool)
        wanted[blocks] = True
        for block in np.flatnonzero(wanted & ~self._checked):
            part = self._bytes[block * _BLOCK_BYTES : (block + 1) * _BLOCK_BYTES]
            if _hash(part) != self._hashes[block]:
                raise self._error(
                    f'{self._path} is damaged in block {block} (MiB): copy the map again, or '
                    'rebuild it; "feat_ros map info --verify" checks all of it'
                )
            self._checked[block] = True
        self._all_checked = bool(self._checked.all())


class _OpenSegment:
    """A segment's arrays and what is derived from them."""

    def __init__(
        self, folder: Path, info: SegmentInfo, descriptor_dim: int, number: int
    ) -> None:  # fmt: skip
        if set(info.arrays) != set(ARRAYS):
            odd = sorted(set(info.arrays) ^ set(ARRAYS))
            raise MapError(f'the manifest of {folder} is wrong about array {odd[0]!r}: rebuild it')
        self.info = info
        self.origin = np.array(info.origin, float)
        self.cameras = tuple(Camera.from_words(words.split()) for words in info.cameras)
        size = {
            'P': info.num_points,
            'I': info.num_images,
            'I+1': info.num_images + 1,
            'O': info.num_observations,
            'D': descriptor_dim,
        }
        self.arrays: dict[str, CheckedArray] = {}
        for name, (dtype, dims) in ARRAYS.items():
            entry = info.arrays[name]
            shape = [size[n] if isinstance(n, str) else n for n in dims]
            if entry['shape'] != shape or not str(entry['dtype']).startswith(dtype):
                raise MapError(
                    f'the manifest gives {folder / name}.npy as {entry["dtype"]} '
                    f'{entry["shape"]}, it should be {dtype} {shape}: rebuild the map'
                )
            self.arrays[name] = CheckedArray(
                folder / f'{name}.npy', entry, partial(SegmentError, segment=number)
            )


class SfmMap:
    """An opened map; points and images of all segments are numbered through.

    All segments are checked when the map is opened; the files of those that are not used are
    closed again, and opened when something of them is asked for.

    :ivar path: the folder.
    :ivar manifest: see :class:`Manifest`.
    :raises MapError: nothing there, half-written, cut, of another version; in one sentence.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        dim = self.manifest.extractor.descriptor_dim
        try:
            self._infos = [config.from_dict(SegmentInfo, e) for e in self.manifest.segments]

            def open_segment(number: int) -> _OpenSegment:
                info = self._infos[number]
                return _OpenSegment(self.path / info.name, info, dim, number)

            self._segment = lru_cache(maxsize=_OPEN_SEGMENTS)(open_segment)
            for number in range(len(self._infos)):
                self._segment(number)
        except (ConfigError, CameraError, KeyError, TypeError) as error:
            raise MapError(
                f'manifest of map {self.path} is damaged ({error}): rebuild it'
            ) from None
        self._point_start = _starts([info.num_points for info in self._infos])
        self._image_start = _starts([info.num_images for info in self._infos])

    @property
    def num_points(self) -> int:
        """Number of 3D points."""
        return int(self._point_start[-1])

    @property
    def num_images(self) -> int:
        """Number of images."""
        return int(self._image_start[-1])

    @property
    def num_observations(self) -> int:
        """Number of keypoints that saw a point."""
        return sum(info.num_observations for info in self._infos)

    def _split(self, ids: Ids, starts: Ids) -> Iterator[tuple[_OpenSegment, Array, Ids]]:
        """Yield each segment with the positions in ``ids`` that are its, and their own numbers."""
        owner = np.searchsorted(starts, ids, side='right') - 1
        for number in np.unique(owner):
            at = np.flatnonzero(owner == number)
            yield self._segment(int(number)), at, ids[at] - starts[number]

    def points(self, ids: Ids) -> tuple[Float, Float]:
        """Coordinates (N, 3) and covariances (N, 3, 3) of points (N,), metres."""
        xyz, covariance = np.empty((len(ids), 3)), np.empty((len(ids), 3, 3))
        for segment, at, local in self._split(ids, self._point_start):
            xyz[at] = segment.arrays['points_xyz'].take(local) + segment.origin
            covariance[at] = segment.arrays['point_covariance'].take(local)[:, _FULL]
        return xyz, covariance

    def stability(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Stability (N,) of points (N,)."""
        out = np.empty(len(ids), np.float32)
        for segment, at, local in self._split(ids, self._point_start):
            out[at] = segment.arrays['point_stability'].take(local)
        return out

    def descriptors(self, ids: Ids) -> PointDescriptors:
        """Descriptors of points (N,), read from the disk slice by slice."""
        return PointDescriptors(self, ids)

    def camera(self, image: int) -> Camera:
        """Camera of an image."""
        segment, row, _ = self._locate(image)
        return segment.cameras[int(segment.arrays['image_camera'][row : row + 1][0])]

    def image_name(self, image: int) -> str:
        """File name of an image."""
        segment, row, _ = self._locate(image)
        return bytes(segment.arrays['image_names'][row : row + 1][0]).decode()

    def image_poses(self) -> tuple[Float, Float]:
        """Rotations (I, 3, 3) and translations (I, 3) of ``cam_from_map`` of all images."""
        quats, translations = [], []
        for segment in map(self._segment, range(len(self._infos))):
            quats.append(segment.arrays['image_quat_xyzw'][:])
            translations.append(segment.arrays['image_translation'][:])
        return rotation_from_quat_xyzw(np.concatenate(quats)), np.concatenate(translations)

    def cam_from_map(self, image: int) -> Rigid3d:
        """Pose of an image."""
        segment, row, _ = self._locate(image)
        quat = segment.arrays['image_quat_xyzw'][row : row + 1][0]
        return Rigid3d.from_quat_xyzw(quat, segment.arrays['image_translation'][row : row + 1][0])

    def observations(self, image: int) -> tuple[Ids, npt.NDArray[np.float32]]:
        """Points (n,) that an image saw, and the pixels (n, 2) where."""
        segment, row, first_point = self._locate(image)
        start, stop = segment.arrays['observation_offsets'][row : row + 2]
        points = segment.arrays['observation_points'][start:stop].astype(np.int64) + first_point
        return points, np.asarray(segment.arrays['observation_pixels'][start:stop])

    def points_of_images(self, images: Ids) -> Ids:
        """Points (N,) that any of the images saw, ascending."""
        if len(images) == self.num_images:
            return np.arange(self.num_points)
        seen = [self.observations(int(image))[0] for image in images]
        return np.unique(np.concatenate(seen)) if seen else np.zeros(0, np.int64)

    def segments_of_images(self) -> Ids:
        """Segment (I,) that each image belongs to."""
        return np.repeat(np.arange(len(self._infos)), np.diff(self._image_start))

    def read_segment(self, number: int) -> Segment:
        """Read a whole segment.

        :raises MapError: see :class:`CheckedArray`.
        """
        segment, first = self._segment(number), int(self._image_start[number])
        arrays = {name: array[:] for name, array in segment.arrays.items()}
        starts = arrays['observation_offsets'].tolist()
        runs = [slice(*bounds) for bounds in itertools.pairwise(starts)]
        scale = np.float32(segment.info.descriptor_scale)
        return Segment(
            points_xyz=arrays['points_xyz'] + segment.origin,
            point_covariance=arrays['point_covariance'][:, _FULL].astype(float),
            point_descriptors=arrays['point_descriptors'] * scale,
            point_stability=arrays['point_stability'],
            image_names=[self.image_name(first + n) for n in range(segment.info.num_images)],
            image_camera=arrays['image_camera'].tolist(),
            image_cam_from_map=[
                self.cam_from_map(first + n) for n in range(segment.info.num_images)
            ],
            image_observations=[
                (arrays['observation_points'][run].astype(np.int64),
                 arrays['observation_pixels'][run])
                for run in runs
            ],
            cameras=list(segment.cameras),
            descriptor_scale=segment.info.descriptor_scale,
        )  # fmt: skip

    def _locate(self, image: int) -> tuple[_OpenSegment, int, int]:
        """Return an image's segment, its number in it, and the segment's first point."""
        number = int(np.searchsorted(self._image_start, image, side='right')) - 1
        first = int(self._point_start[number])
        return self._segment(number), image - int(self._image_start[number]), first

    def verify(self) -> None:
        """Read and check all content.

        :raises MapError: names the first damaged file.
        """
        for segment in map(self._segment, range(len(self._infos))):
            for array in segment.arrays.values():
                array.verify()
        retrieval, folder = self.manifest.retrieval, self.path / 'retrieval'
        for part in (retrieval, *retrieval.get('files', [])):
            for array in open_arrays(
                folder / part.get('name', ''), part.get('arrays', {})
            ).values():
                array.verify()

    def check_extractor(self, name: str, weights_sha256: str | None = None) -> None:
        """Check that features of this extractor can be matched with the map.

        :param weights_sha256: hash of its weights, where they are known already.
        :raises MapError: the map was built with another one, or with other weights.
        """
        built = self.manifest.extractor
        if name != built.name:
            raise MapError(
                f'map {self.path} was built with extractor {built.name!r}, not {name!r}: leave '
                f'--extractor away, or rebuild it with "feat_ros map build --extractor {name}"'
            )
        if weights_sha256 not in (None, built.weights_sha256):
            raise MapError(
                f'map {self.path} was built with weights {built.weights_sha256[:12]!r} of '
                f'{name!r}, not {weights_sha256[:12]!r}: name those with the option model, or '
                'build the map again'
            )


class PointDescriptors:
    """Descriptors (N, D) of some points of a map, float32, read by slices."""

    def __init__(self, sfm_map: SfmMap, ids: Ids) -> None:
        self._map, self._ids = sfm_map, ids

    def __len__(self) -> int:
        """Return N."""
        return len(self._ids)

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
        """Return the descriptors (rows, D)."""
        ids = self._ids[rows]
        out = np.empty((len(ids), self._map.manifest.extractor.descriptor_dim), np.float32)
        for segment, at, local in self._map._split(ids, self._map._point_start):
            values = segment.arrays['point_descriptors'].take(local)
            out[at] = values * np.float32(segment.info.descriptor_scale)
        return out


def open_arrays(folder: Path, entries: Mapping[str, Any]) -> dict[str, CheckedArray]:
    """Open the arrays of a folder by the entries that :func:`write_arrays` returned.

    :raises MapError: a missing or cut file.
    """
    return {name: CheckedArray(folder / f'{name}.npy', entry) for name, entry in entries.items()}


def read_manifest(path: Path) -> Manifest:
    """Read and check ``manifest.json`` of a map.

    :raises MapError: in one sentence.
    """
    file = path / 'manifest.json'
    try:
        data = json.loads(file.read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError):
        if partial_path(path).exists():
            raise MapError(
                f'map {path} is half-written ({partial_path(path).name} is there): run the same '
                '"feat_ros map build" again, it resumes'
            ) from None
        what = 'has no manifest.json' if path.exists() else 'does not exist'
        raise MapError(f'map {path} {what}: build one with "feat_ros map build"') from None
    except OSError as error:
        raise MapError(f'map {path} cannot be read: {error.strerror or error}') from None
    except ValueError as error:
        raise MapError(f'{file} is not JSON ({error}): rebuild the map') from None
    if not isinstance(data, dict) or data.get('format') != FORMAT:
        found = data.get('format') if isinstance(data, dict) else data
        raise MapError(f'{file} has format {found!r}, this version reads {FORMAT!r}: rebuild it')
    checksum = data.pop('checksum', None)
    if checksum != _checksum(data):
        raise MapError(f'{file} was changed or damaged (checksum differs): rebuild the map')
    del data['format']
    try:
        return config.from_dict(Manifest, data)
    except (ConfigError, TypeError) as error:
        raise MapError(f'{file} is wrong: {error}; rebuild the map') from None


def partial_path(path: Path) -> Path:
    """Where a map is put together before it takes its name."""
    return path.with_name(path.name + '.partial')


def write_segment(folder: Path, segment: Segment) -> SegmentInfo:
    """Write the arrays of a segment into a new folder and return its entry for the manifest.

    :raises MapError: the disk is full or read-only.
    """
    counts = [len(points) for points, _ in segment.image_observations]
    origin = np.round(np.median(segment.points_xyz, axis=0))
    scale = segment.descriptor_scale or float(np.abs(segment.point_descriptors).max()) / 127
    names = np.array([name.encode() for name in segment.image_names])
    arrays = {
        'points_xyz': segment.points_xyz - origin,
        'point_covariance': segment.point_covariance[:, _TRIANGLE[0], _TRIANGLE[1]],
        'point_descriptors': np.round(segment.point_descriptors / scale),
        'point_stability': segment.point_stability,
        'image_names': names,
        'image_camera': segment.image_camera,
        'image_quat_xyzw': [pose.quat_xyzw for pose in segment.image_cam_from_map],
        'image_translation': [pose.translation for pose in segment.image_cam_from_map],
        'observation_offsets': np.concatenate([[0], np.cumsum(counts)]),
        'observation_points': np.concatenate([p for p, _ in segment.image_observations]),
        'observation_pixels': np.concatenate([xy for _, xy in segment.image_observations]),
    }
    typed = {
        name: np.asarray(values, names.dtype if name == 'image_names' else ARRAYS[name][0])
        for name, values in arrays.items()
    }
    return SegmentInfo(
        name=folder.name,
        num_points=len(segment.points_xyz),
        num_images=len(names),
        num_observations=int(sum(counts)),
        origin=origin.tolist(),
        descriptor_scale=scale,
        cameras=[camera.to_words() for camera in segment.cameras],
        arrays=write_arrays(folder, typed),
    )


def write_arrays(folder: Path, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Write arrays into a new folder; return their entries for the manifest.

    :raises MapError: the disk is full or read-only.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return {n: write_array(folder / f'{n}.npy', array) for n, array in arrays.items()}


def write_array(path: Path, array: Array) -> dict[str, Any]:
    """Write one array to disk and return its entry: type, shape, block hashes."""
    array = np.ascontiguousarray(array)
    data = array.reshape(-1).view(np.uint8)
    with path.open('wb') as file:
        # Not np.save: it loses the last bytes of an array on a full disk and does not say so.
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(data.data)
        file.flush()
        os.fsync(file.fileno())
    blocks = [_hash(data[at : at + _BLOCK_BYTES]) for at in range(0, data.size, _BLOCK_BYTES)]
    return {'dtype': array.dtype.str, 'shape': list(array.shape), 'blocks': blocks}


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` into a map folder, atomically; the map id is computed here."""
    content = [
        entry['blocks']
        for info in manifest.segments
        for _, entry in sorted(info['arrays'].items())
    ]
    manifest = replace(manifest, map_id=_hash(json.dumps(content).encode()))
    data = {'format': FORMAT, **config.to_dict(manifest)}
    text = json.dumps({**data, 'checksum': _checksum(data)}, indent=1)
    write_text(folder / 'manifest.json', text)
    return manifest


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all.

    :raises MapError: the disk is full or read-only.
    """
    temporary = path.with_name(path.name + '.tmp')
    with writing(path):
        with temporary.open('w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def publish(partial: Path, path: Path) -> None:
    """Give a finished folder its name; an older map of that name goes only then.

    :raises MapError: it cannot be renamed.
    """
    old = path.with_name(path.name + '.old')
    with writing(path):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        try:
            os.rename(partial, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failing disk into one sentence.

    :raises MapError: what the operating system said.
    """
    try:
        yield
    except OSError as error:
        raise MapError(
            f'{path} cannot be written ({error.strerror or error}): free some space or choose '
            'another folder; what was there before is untouched'
        ) from None


def copy_file(source: str, target: str) -> None:
    """Copy a file for ``shutil.copytree``, which goes on after an OSError and names all in one.

    :raises MapError: the target cannot be written.
    """
    with writing(Path(target)):
        shutil.copyfile(source, target)


def _starts(counts: list[int]) -> Ids:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _hash(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _checksum(data: Mapping[str, Any]) -> str:
    return _hash(json.dumps(data, sort_keys=True).encode())

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A map gets scale, frame and gravity from what is known of it: distances, poses, points, GNSS.

Every function that estimates gives an :class:`Alignment`: the similarity ``new_from_old`` and how
far, in metres, each thing known lies from where the aligned map has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
import itertools
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.camera import Camera
from feat_ros.errors import DataError, MapError
from feat_ros.geometry import Rigid3d, Sim3d, so3_log, umeyama
from feat_ros.sfm_map import (
    CheckedArray,
    copy_file,
    PoseNoise,
    publish,
    SegmentInfo,
    SfmMap,
    write_arrays,
    write_manifest,
    writing,
)
from feat_ros.types import JsonDict, Progress

Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Fit = Callable[[npt.NDArray[np.intp]], Sim3d]

# What positions, as a share of their spread, and orientations are trusted to before anything is
# known of them; from so many poses on their variances are estimated, in so many rounds.
_POSITION_SHARE, _ORIENTATION_RAD = 0.01, 0.02
_ENOUGH_POSES, _VARIANCE_ROUNDS = 5, 10
# Positions that spread less than this share across their longest extent are on a line.
_LINE_SHARE = 1e-4
_MAX_SAMPLES = 500
# A residual is an outlier beyond this many robust standard deviations.
_OUTLIER_SIGMAS = 3.0
# Median of the length of a vector of three unit Gaussians.
_MEDIAN_LENGTH = 1.538
# WGS84: half the longer axis in metres, and flattening.
_WGS84_A, _WGS84_F = 6_378_137.0, 1 / 298.257_223_563


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where a map belongs.

    :ivar new_from_old: from the map's coordinates to the known ones, metres.
    :ivar names: what was known: N names.
    :ivar residual_m: (N,) metres between what was known and the aligned map.
    :ivar is_used: (N,) False for those that were left aside as outliers.
    :ivar noise: how well poses and positions that were used agree with the map, metric.
    """

    new_from_old: Sim3d
    names: list[str]
    residual_m: Float
    is_used: Mask
    noise: PoseNoise = field(default_factory=PoseNoise)

    def summary(self) -> JsonDict:
        """Return figures for people and manifests; residuals of those that were used."""
        used = self.residual_m[self.is_used]
        return {
            'scale': self.new_from_old.scale,
            'num_known': len(self.names),
            'num_used': int(self.is_used.sum()),
            'median_residual_m': float(np.median(used)),
            'rms_residual_m': float(np.sqrt(np.mean(used**2))),
            'max_residual_m': float(used.max()),
        }

    def worst(self, count: int) -> list[tuple[str, float, bool]]:
        """Return the largest residuals: name, metres and whether it was used."""
        order = np.argsort(-self.residual_m, kind='stable')[:count]
        return [(self.names[n], float(self.residual_m[n]), bool(self.is_used[n])) for n in order]


def align_by_distances(sfm_map: SfmMap, distances: Sequence[tuple[str, str, float]]) -> Alignment:
    """Scale a map by distances between camera centres; place and orientation stay.

    :param distances: rows (image, image, metres); of several the median scale is taken.
    :raises DataError: an unknown image, twice the same, a distance that is not positive, images
        at one place of the map.
    """
    centers = image_centers(sfm_map)
    lengths = []
    for a, b, metres in distances:
        _check_names(sfm_map, [a, b])
        if not (np.isfinite(metres) and metres > 0):
            raise DataError(f'the distance of {a!r} and {b!r} is {metres:g}: it must be positive')
        lengths.append(float(np.linalg.norm(centers[a] - centers[b])))
        if lengths[-1] < 1e-6 * _extent(np.array(list(centers.values()))):
            raise DataError(f'images {a!r} and {b!r} are at one place: choose two further apart')
    known, found = np.array([metres for *_, metres in distances]), np.array(lengths)
    scale = float(np.median(known / found))
    return Alignment(
        Sim3d(scale, np.eye(3), np.zeros(3)),
        [f'{a} to {b}' for a, b, _ in distances],
        np.abs(scale * found - known),
        np.ones(len(known), bool),
    )


def align_by_poses(sfm_map: SfmMap, cam_from_new: Mapping[str, Rigid3d]) -> Alignment:
    """Find the similarity that takes the map's images to known poses.

    :raises DataError: fewer than two images of the map have a known pose, or all are at one
        place; an unknown image.
    """
    _check_names(sfm_map, list(cam_from_new))
    old_poses = map_from_images(sfm_map)
    names = list(cam_from_new)
    return fit_poses(
        names, [old_poses[n] for n in names], [cam_from_new[n].inverse() for n in names]
    )


def fit_poses(
    names: list[str], old_from_cam: Sequence[Rigid3d], new_from_cam: Sequence[Rigid3d]
) -> Alignment:
    """Find the similarity between two sets of poses of the same cameras.

    :raises DataError: fewer than two poses, or all at one place.
    """
    if len(names) < 2:
        raise DataError(f'{len(names)} known pose(s) of images in the map: at least 2 are needed')
    old, new = (
        np.stack([pose.translation for pose in poses]) for poses in (old_from_cam, new_from_cam)
    )
    for which, centers in (('map', old), ('known poses', new)):
        if _extent(centers) < 1e-9:
            raise DataError(
                f'the {len(names)} images are at one place in the {which}: a scale needs images '
                'that are apart'
            )

    def fit(rows: npt.NDArray[np.intp]) -> Sim3d:
        return similarity_from_poses(
            [old_from_cam[row] for row in rows], [new_from_cam[row] for row in rows]
        )

    found = _robust(names, old, new, fit, sample_size=2)
    turned = so3_log([
        b.rotation.T @ found.new_from_old.rotation @ a.rotation
        for a, b in zip(old_from_cam, new_from_cam, strict=True)
    ])  # fmt: skip
    return _with_noise(found, float(np.sqrt(np.mean(turned[found.is_used] ** 2))))


def _with_noise(found: Alignment, rotation_rad: float) -> Alignment:
    translation_m = float(np.sqrt(np.mean(found.residual_m[found.is_used] ** 2) / 3))
    return replace(found, noise=PoseNoise(translation_m, rotation_rad))


def similarity_from_poses(
    old_from_cam: Sequence[Rigid3d], new_from_cam: Sequence[Rigid3d]
) -> Sim3d:
    """Least-squares similarity ``new_from_old`` of poses of the same cameras, at least two.

    Umeyama's rotation (:func:`feat_ros.geometry.umeyama`) from the sum of two correlation
    matrices: of the centres and of the orientations, each divided by its variance. Those are
    estimated from the residuals where there are poses enough. It is defined for cameras on a
    line, and right for cameras that turn more than they move.

    :raises ValueError: all centres at one place, or they contradict the orientations.
    """
    x, y = (np.stack([p.translation for p in poses]) for poses in (old_from_cam, new_from_cam))
    turns = np.stack(
        [new.rotation @ old.rotation.T
         for old, new in zip(old_from_cam, new_from_cam, strict=True)]
    )  # fmt: skip
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    xc, yc = x - x_mean, y - y_mean
    size = float(np.linalg.norm(xc)), float(np.linalg.norm(yc))
    if min(size) < 1e-12:
        raise ValueError('all centres are at one place')
    least_position = _POSITION_SHARE * size[1] / np.sqrt(len(x))
    position, orientation = least_position, _ORIENTATION_RAD
    for _ in range(_VARIANCE_ROUNDS if len(x) >= _ENOUGH_POSES else 1):
        correlation = yc.T @ xc * (size[1] / size[0] / position**2)
        rotation = _nearest_rotation(correlation + turns.sum(axis=0) / orientation**2)
        scale = float(np.sum(yc * (xc @ rotation.T))) / size[0] ** 2
        apart = yc - scale * xc @ rotation.T
        turned = so3_log(turns @ rotation.T)
        position = max(float(np.sqrt(np.mean(apart**2))), 1e-3 * least_position)
        orientation = max(float(np.sqrt(np.mean(turned**2))), 1e-3 * _ORIENTATION_RAD)
    if scale <= 0:
        raise ValueError('the centres contradict the orientations')
    return Sim3d(scale, rotation, y_mean - scale * rotation @ x_mean)


def _nearest_rotation(matrix: Float) -> Float:
    u, _, vt = np.linalg.svd(matrix)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    return np.asarray((u * sign) @ vt)


def align_by_positions(sfm_map: SfmMap, new_centers: Mapping[str, Float]) -> Alignment:
    """Find the similarity that takes the map's camera centres to known positions (3,).

    :raises DataError: fewer than three images of the map have one, or they are on a line.
    """
    _check_names(sfm_map, list(new_centers))
    centers = image_centers(sfm_map)
    names = list(new_centers)
    old = np.reshape([centers[name] for name in names], (-1, 3))
    new = np.reshape([new_centers[name] for name in names], (-1, 3))
    return _with_noise(fit_points(names, old, new, 'positions'), 0.0)


def fit_points(names: list[str], old: Float, new: Float, what: str) -> Alignment:
    """Find the similarity between two sets of points (N, 3).

    :param what: what the error calls them.
    :raises DataError: fewer than three, or on one line.
    """
    if len(names) < 3:
        raise DataError(f'{len(names)} known {what}: at least 3 are needed, not on one line')
    for points in (old, new):
        spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
        if spread[1] <= _LINE_SHARE * spread[0] or spread[0] == 0:
            raise DataError(
                f'the {len(names)} known {what} lie on one line: a turn about it stays unknown, '
                'add one beside it or give poses'
            )

    def fit(rows: npt.NDArray[np.intp]) -> Sim3d:
        return umeyama(old[rows], new[rows])

    return _robust(names, old, new, fit, sample_size=3)


def _robust(names: list[str], old: Float, new: Float, fit: Fit, sample_size: int) -> Alignment:
    """Least median of squares (Rousseeuw 1984), then least squares over those that agree.

    No threshold is needed and half of what is known may be wrong. With one more than a sample
    needs nothing can be told apart, and all are used.
    """
    everyone = np.arange(len(names))
    used = np.ones(len(names), bool)
    if len(names) > sample_size + 1:
        best, least = None, np.inf
        for rows in _samples(len(names), sample_size):
            try:
                candidate = fit(rows)
            except ValueError:  # the sample is on a line or at a place
                continue
            median = float(np.median(_residuals(candidate, old, new)))
            if median < least:
                best, least = candidate, median
        if best is not None:
            sigma = least / _MEDIAN_LENGTH * (1 + 5 / (len(names) - sample_size))
            limit = max(_OUTLIER_SIGMAS * sigma * np.sqrt(3), 1e-9 * _extent(new))
            used = _residuals(best, old, new) <= limit
    try:
        new_from_old = fit(everyone[used])
    except ValueError as error:
        raise DataError(
            f'the known poses cannot be used: {error}; check their convention'
        ) from None
    return Alignment(new_from_old, names, _residuals(new_from_old, old, new), used)


def _samples(count: int, size: int) -> list[npt.NDArray[np.intp]]:
    """Return all samples where they are few, else some drawn with a fixed seed."""
    every = list(itertools.islice(itertools.combinations(range(count), size), _MAX_SAMPLES + 1))
    if len(every) <= _MAX_SAMPLES:
        return [np.array(rows) for rows in every]
    rng = np.random.default_rng(0)
    return [rng.choice(count, size, replace=False) for _ in range(_MAX_SAMPLES)]


def _residuals(new_from_old: Sim3d, old: Float, new: Float) -> Float:
    return np.asarray(np.linalg.norm(new_from_old.apply(old) - new, axis=1))


def _extent(points: Float) -> float:
    return float(np.linalg.norm(np.ptp(points, axis=0)))


@dataclass(frozen=True)
class KnownPoint:
    """A pixel of an image and the known place (3,), metres, that it shows."""

    image: str
    pixel: tuple[float, float]
    xyz: tuple[float, float, float]


def align_by_points(sfm_map: SfmMap, known: Sequence[KnownPoint]) -> Alignment:
    """Find the similarity that takes points marked in images to their known places.

    Every point must be marked in at least two images; it is triangulated from them.

    :raises DataError: an unknown image, fewer than three points, points on a line, a point
        marked once or in images that see it in one direction.
    """
    _check_names(sfm_map, [point.image for point in known])
    numbers = _image_numbers(sfm_map)
    marks: dict[tuple[float, float, float], list[KnownPoint]] = {}
    for point in known:
        marks.setdefault(point.xyz, []).append(point)
    names = [' '.join(f'{value:g}' for value in xyz) for xyz in marks]
    old = []
    for name, points in zip(names, marks.values(), strict=True):
        images = [numbers[point.image] for point in points]
        for image, point in zip(images, points, strict=True):
            _check_pixel(sfm_map.camera(image), point)
        if len(set(images)) < 2:
            raise DataError(f'point {name} is marked in one image: mark it in two or more')
        old.append(
            _intersect(
                [sfm_map.camera(image) for image in images],
                [sfm_map.cam_from_map(image).inverse() for image in images],
                [point.pixel for point in points],
                name,
            )
        )
    return fit_points(names, np.reshape(old, (-1, 3)), np.array(list(marks)), 'points')


def _check_pixel(camera: Camera, point: KnownPoint) -> None:
    inside = np.all((np.array(point.pixel) >= 0) & (np.array(point.pixel) <= camera.size_wh))
    if not (inside and np.isfinite(camera.unproject([point.pixel])).all()):
        raise DataError(
            f'image {point.image!r} is {camera.width}x{camera.height} and does not show pixel '
            f'({point.pixel[0]:g}, {point.pixel[1]:g}): give x and y of the original image'
        )


def _intersect(
    cameras: list[Camera],
    map_from_cam: list[Rigid3d],
    pixels: list[tuple[float, float]],
    name: str,
) -> Float:
    """Return the point (3,) nearest to all rays."""
    rays = np.stack(
        [
            pose.rotation @ camera.unproject([pixel])[0]
            for camera, pose, pixel in zip(cameras, map_from_cam, pixels, strict=True)
        ]
    )
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    across = np.eye(3) - rays[:, :, None] * rays[:, None]
    centers = np.stack([pose.translation for pose in map_from_cam])
    normal = across.sum(axis=0)
    # The smallest eigenvalue is the sum of squared sines to the mean direction.
    if np.linalg.eigvalsh(normal)[0] < np.radians(0.5) ** 2:
        raise DataError(
            f'point {name} is seen in nearly one direction by all its images: mark it in images '
            'further apart'
        )
    point = np.linalg.solve(normal, np.einsum('nij,nj->i', across, centers))
    if np.any(np.sum((point - centers) * rays, axis=1) <= 0):
        raise DataError(f'the rays of point {name} meet behind a camera: check its pixels')
    return np.asarray(point)


def east_north_up(latitude_deg: Float, longitude_deg: Float, altitude_m: Float) -> Float:
    """Metres (N, 3) east, north and up of the first of N places given in WGS84."""
    lat, lon = np.radians(latitude_deg), np.radians(longitude_deg)
    e2 = _WGS84_F * (2 - _WGS84_F)
    normal = _WGS84_A / np.sqrt(1 - e2 * np.sin(lat) ** 2)
    earth = np.stack(
        [
            (normal + altitude_m) * np.cos(lat) * np.cos(lon),
            (normal + altitude_m) * np.cos(lat) * np.sin(lon),
            (normal * (1 - e2) + altitude_m) * np.sin(lat),
        ],
        axis=1,
    )
    sin_lat, cos_lat, sin_lon, cos_lon = (
        function(angle[0]) for angle in (lat, lon) for function in (np.sin, np.cos)
    )
    local_from_earth = np.array(
        [
            [-sin_lon, cos_lon, 0],
            [-sin_lat * cos_lon, -sin_lat * sin_lon, cos_lat],
            [cos_lat * cos_lon, cos_lat * sin_lon, sin_lat],
        ]
    )
    return np.asarray((earth - earth[0]) @ local_from_earth.T)


def read_known_points(path: str | Path) -> list[KnownPoint]:
    """Read lines ``image u v x y z``; empty lines and those with ``#`` in front are skipped.

    :raises DataError: no such file, another number of columns, a number that is none.
    """
    try:
        text = Path(path).read_text(encoding='utf-8')
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}') from None
    except UnicodeDecodeError:
        raise DataError(f'{path} is not a text file') from None
    points = []
    for number, line in enumerate(text.splitlines(), 1):
        name, *words = line.split() or ['#']
        if name.startswith('#'):
            continue
        try:
            u, v, x, y, z = (float(word) for word in words)
        except ValueError:
            raise DataError(f'{path}:{number} is not "image u v x y z": {line!r}') from None
        if not np.isfinite([u, v, x, y, z]).all():
            raise DataError(f'{path}:{number} has a number that is not finite: {line!r}')
        points.append(KnownPoint(name, (u, v), (x, y, z)))
    return points


def image_names(sfm_map: SfmMap) -> list[str]:
    """Names of all images of a map."""
    return [sfm_map.image_name(image) for image in range(sfm_map.num_images)]


def _image_numbers(sfm_map: SfmMap) -> dict[str, int]:
    return {name: number for number, name in enumerate(image_names(sfm_map))}


def map_from_images(sfm_map: SfmMap) -> dict[str, Rigid3d]:
    """Return ``map_from_cam`` of every image by name."""
    rotations, translations = sfm_map.image_poses()
    return {
        name: Rigid3d(rotation, translation).inverse()
        for name, rotation, translation in zip(
            image_names(sfm_map), rotations, translations, strict=True
        )
    }


def image_centers(sfm_map: SfmMap) -> dict[str, Float]:
    """Camera centres (3,) of every image by name."""
    return {name: pose.translation for name, pose in map_from_images(sfm_map).items()}


def _check_names(sfm_map: SfmMap, names: list[str]) -> None:
    known = image_names(sfm_map)
    strangers = [name for name in names if name not in set(known)]
    if strangers:
        raise DataError(
            f'map {sfm_map.path} has no image {strangers[0]!r}: its images are named like '
            f'{known[0]!r}'
        )


def apply_alignment(
    path: str | Path,
    alignment: Alignment,
    *,
    frame_id: str | None = None,
    gravity: str | None = None,
    note: JsonDict | None = None,
    progress: Progress | None = None,
) -> SfmMap:
    """Rewrite a map in its new coordinates; it takes the old one's place when it is complete.

    Points, covariances, poses, the pose noise and the model in ``sfm`` change; the map
    gets a new id and its provenance says what was done.

    :param frame_id: the new frame; None leaves it.
    :param gravity: 'known' where the new z points up, 'unknown', or None to leave it.
    :param note: goes into the provenance beside the alignment's summary.
    :raises MapError: the map is damaged, or the disk is full; the map is as it was then.
    """
    progress = progress or (lambda items, _: items)
    path = Path(path)
    manifest, sim = SfmMap(path).manifest, alignment.new_from_old
    done = {**(note or {}), **alignment.summary(), 'new_from_old': _as_list(sim)}
    noise, added = manifest.pose_noise, alignment.noise
    changes: dict[str, Any] = {
        'frame_id': frame_id or manifest.frame_id,
        'scale': 'metric',
        'gravity': gravity or manifest.gravity,
        # The map is as exact as before, but now its poses speak of what it was aligned with.
        'pose_noise': PoseNoise(
            float(np.hypot(noise.translation_m * sim.scale, added.translation_m)),
            float(np.hypot(noise.rotation_rad, added.rotation_rad)),
        ),
        'measured': _scaled_figures(manifest.measured, sim.scale),
        'provenance': {
            **manifest.provenance,
            'alignments': [*manifest.provenance.get('alignments', []), done],
        },
    }
    # Not MAP.partial, where an interrupted build may be.
    partial = path.with_name(path.name + '.aligned')
    try:
        with writing(partial):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(path, partial, copy_function=copy_file)
        segments = [
            config.to_dict(_align_segment(partial, config.from_dict(SegmentInfo, entry), sim))
            for entry in progress(manifest.segments, 'align')
        ]
        _align_model(partial / 'sfm', sim)
        write_manifest(partial, replace(manifest, segments=segments, **changes))
        publish(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return SfmMap(path)


def _scaled_figures(measured: JsonDict, scale: float) -> JsonDict:
    left_out = dict(measured.get('left_out', {}))
    if left_out.get('median_translation_error_m') is None:
        return measured
    left_out['median_translation_error_m'] *= scale
    return {**measured, 'left_out': left_out}


def _as_list(sim: Sim3d) -> JsonDict:
    return {
        'scale': sim.scale,
        'rotation': sim.rotation.tolist(),
        'translation': sim.translation.tolist(),
    }


def _align_segment(partial: Path, info: SegmentInfo, sim: Sim3d) -> SegmentInfo:
    """Rewrite those arrays of a segment that have coordinates."""
    folder = partial / info.name

    def read(name: str) -> npt.NDArray[Any]:
        return np.array(CheckedArray(folder / f'{name}.npy', info.arrays[name])[:])

    xyz = sim.apply(read('points_xyz').astype(float) + info.origin)
    origin = np.round(np.median(xyz, axis=0))
    upper = np.triu_indices(3)
    full = np.zeros((len(xyz), 3, 3))
    full[:, upper[0], upper[1]] = full[:, upper[1], upper[0]] = read('point_covariance')
    turned = sim.scale**2 * sim.rotation @ full @ sim.rotation.T
    poses = [
        sim.apply_to_pose(Rigid3d.from_quat_xyzw(quat, translation).inverse()).inverse()
        for quat, translation in zip(
            read('image_quat_xyzw'), read('image_translation'), strict=True
        )
    ]
    arrays = {
        'points_xyz': (xyz - origin).astype('<f4'),
        'point_covariance': turned[:, upper[0], upper[1]].astype('<f4'),
        'image_quat_xyzw': np.array([pose.quat_xyzw for pose in poses]),
        'image_translation': np.array([pose.translation for pose in poses]),
    }
    entries = write_arrays(folder, arrays)
    return replace(info, origin=origin.tolist(), arrays={**info.arrays, **entries})


def _align_model(folder: Path, sim: Sim3d) -> None:
    """Rewrite the COLMAP model for other tools, if the map has one."""
    if not folder.is_dir():
        return
    import pycolmap

    try:
        model = pycolmap.Reconstruction(folder)
        model.transform(
            pycolmap.Sim3d(sim.scale, pycolmap.Rotation3d(sim.rotation), sim.translation)
        )
        model.write(folder)
    except (ValueError, RuntimeError, OSError) as error:
        raise MapError(f'the COLMAP model in {folder} cannot be rewritten: {error}') from None

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Verified matches between posed images become 3D points: tracks by pycolmap, weights by us."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage
from feat_ros.config import Config, option
from feat_ros.sfm_map import writing
from feat_ros.types import Features

Ids = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

_CALIBRATED = 2  # COLMAP's two-view configuration: relative pose known
# What pycolmap's limits of plausible intrinsics are set to: those given are taken as they are.
UNLIMITED = 1e9
# A direction that observations don't fix gets a standard deviation of this many map units.
_UNKNOWN_SIGMA = 1e3
# Quantiles of the squared length of two normal numbers. The lower quarter of the errors says how
# large they usually are: a third of the matches may be wrong.
_QUARTER, _CHI2_2_QUARTER, _CHI2_2_999 = 0.25, 0.575, 13.8
# How often observations that do not agree are left out, and the least noise that they are held
# against, relative to the predicted variance: leaving out makes what is left look better.
_ROUNDS, _LEAST_SCALE = 3, 0.7


@dataclass(frozen=True)
class TriangulationConfig(Config):
    """Options of :func:`triangulate`."""

    min_angle_deg: float = option(
        0.3, 'smallest angle between the rays of a point', minimum=0.01, maximum=90.0
    )
    max_reprojection_error_px: float = option(
        4.0, 'largest reprojection error of a point, pixels', minimum=0.1, maximum=100.0
    )


@dataclass(frozen=True, eq=False)
class Structure:
    """Triangulated points and the keypoints that saw them.

    :ivar xyz: (P, 3) in the map.
    :ivar information: (P, 3, 3) inverse covariance.
    :ivar observed: for each image the points (n,) that it saw and its keypoints (n,).
    :ivar noise_scale: variance of the reprojection errors relative to the predicted one.
    """

    xyz: Float
    information: Float
    observed: list[tuple[Ids, Ids]]
    noise_scale: float

    @cached_property
    def track_length(self) -> Ids:
        """Number (P,) of images that saw each point."""
        return np.bincount(
            np.concatenate([points for points, _ in self.observed]), minlength=len(self.xyz)
        )

    def mean_over_track(self, features: Sequence[Features], name: str) -> Float:
        """Mean (P, ...) of an array of the features over the keypoints of each point."""
        total: Float | None = None
        for number, (points, keypoints) in enumerate(self.observed):
            rows = getattr(features[number], name)[keypoints]
            if total is None:
                total = np.zeros((len(self.xyz), *rows.shape[1:]))
            np.add.at(total, points, rows)
        assert total is not None, 'there is at least one image'
        return total / self.track_length.reshape(-1, *[1] * (total.ndim - 1))


def triangulate(
    folder: Path,
    images: list[PosedImage],
    features: Sequence[Features],
    matches: Mapping[tuple[int, int], Ids],
    config: TriangulationConfig,
) -> Structure:
    """Triangulate points from verified matches.

    pycolmap makes the tracks (and leaves its model in ``folder/sfm`` for other tools); positions
    and covariances then follow from least squares with every keypoint's own noise.

    :param matches: for each pair of images (i, j) rows (keypoint of i, keypoint of j).
    :returns: a structure of no points where none could be triangulated.
    """
    model = track_points(folder, images, features, matches, config)
    xyz = np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
    tracks: list[list[tuple[int, int]]] = [[] for _ in images]
    for row, point in enumerate(model.points3D.values()):
        for element in point.track.elements:
            tracks[element.image_id - 1].append((row, element.point2D_idx))
    pairs = [np.array(track, np.int64).reshape(-1, 2) for track in tracks]
    observed = [(pair[:, 0], pair[:, 1]) for pair in pairs]
    if len(xyz) == 0:
        return Structure(xyz, np.zeros((0, 3, 3)), observed, 1.0)
    tracked = observed
    xyz = _least_squares(images, features, xyz, observed)
    for _ in range(_ROUNDS):
        kept = _agreeing(images, features, xyz, observed)
        if not any(len(points) for points, _ in kept):
            break
        observed = kept
        xyz = _least_squares(images, features, xyz, observed)
    is_seen = np.zeros(len(xyz), bool)
    for points, _ in observed:
        is_seen[points] = True
    _leave_out_of(model, folder / 'sfm', tracked, observed, is_seen)
    number = np.cumsum(is_seen) - 1
    xyz, observed = xyz[is_seen], [(number[points], rows) for points, rows in observed]
    information, _, squared = _normal_equations(images, features, xyz, observed)
    freedom = 2 * len(squared) - 3 * len(xyz)
    noise_scale = float(squared.sum()) / max(freedom, 1)
    return Structure(xyz, information / noise_scale, observed, noise_scale)


def _least_squares(
    images: list[PosedImage],
    features: Sequence[Features],
    start: Float,
    observed: list[tuple[Ids, Ids]],
) -> Float:
    """Move points (P, 3) to where their keypoints see them, each with its own noise."""
    xyz = start
    for _ in range(3):
        information, gradient, squared = _normal_equations(images, features, xyz, observed)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        # Where a step leaves its own ellipsoid the equations are not linear: pycolmap's stays.
        inside = np.sum(step * gradient, axis=1) < 9 * max(1.0, squared.sum() / len(xyz))
        xyz = xyz - np.where(inside[:, None], step, 0.0)
    information, _, _ = _normal_equations(images, features, xyz, observed)
    # A step may take them behind a camera that saw them.
    is_lost = np.asarray(~np.isfinite(information).all(axis=(1, 2)))
    return np.where(is_lost[:, None], start, xyz)


def _agreeing(
    images: list[PosedImage],
    features: Sequence[Features],
    xyz: Float,
    observed: list[tuple[Ids, Ids]],
) -> list[tuple[Ids, Ids]]:
    """Leave out observations whose error is not of the usual size, and points with one left.

    What is usual depends on the extractor and on the given poses: the lower quarter says, over
    points with three observations or more, since two always agree. Cameras that drive ahead match
    wrongly along the road, and no coarse limit sees it.
    """
    _, _, squared = _normal_equations(images, features, xyz, observed)
    points = np.concatenate([points for points, _ in observed])
    counts = np.bincount(points, minlength=len(xyz))
    is_judge = counts[points] >= 3
    if not is_judge.any():
        return observed
    # Three numbers of each point are fitted: its errors are smaller than the noise.
    share = 1 - 1.5 * np.count_nonzero(counts >= 3) / np.count_nonzero(is_judge)
    quarter = float(np.quantile(squared[is_judge], _QUARTER)) / _CHI2_2_QUARTER
    scale = max(quarter / share, _LEAST_SCALE)
    kept = squared <= _CHI2_2_999 * scale
    # Any two agree: of a point that lost some, three that do are needed.
    left = np.bincount(points[kept], minlength=len(xyz))
    kept &= ((left == counts) | (left >= 3))[points]
    ends = np.cumsum([len(points) for points, _ in observed])[:-1]
    return [
        (rows[0][keep], rows[1][keep])
        for rows, keep in zip(observed, np.split(kept, ends), strict=True)
    ]


def _leave_out_of(
    model: Any, folder: Path, tracked: list[tuple[Ids, Ids]], kept: list[tuple[Ids, Ids]],
    is_seen: npt.NDArray[np.bool_],
) -> None:  # fmt: skip
    """Take what was left out of pycolmap's model too, and write it again.

    :param tracked: for each image points and keypoints of the model; ``kept`` those that stay.
    :param is_seen: (P,) points that stay.
    """
    left_out = [
        keypoints[is_seen[points] & ~np.isin(keypoints, rows)]
        for (points, keypoints), (_, rows) in zip(tracked, kept, strict=True)
    ]
    if is_seen.all() and not any(len(keypoints) for keypoints in left_out):
        return
    import pycolmap

    manager = pycolmap.ObservationManager(model)
    for point, stays in zip(list(model.points3D), is_seen, strict=True):
        if not stays:
            manager.delete_point3D(point)
    for number, keypoints in enumerate(left_out, start=1):
        for keypoint in keypoints.tolist():
            manager.delete_observation(number, keypoint)
    model.write(str(folder))


def _normal_equations(
    images: list[PosedImage],
    features: Sequence[Features],
    xyz: Float,
    observed: list[tuple[Ids, Ids]],
) -> tuple[Float, Float, Float]:
    """Sums over all observations of what :func:`observation_information` says.

    Of r^T r each one's is returned, image after image.
    """
    information = np.broadcast_to(np.eye(3) / _UNKNOWN_SIGMA**2, (len(xyz), 3, 3)).copy()
    gradient, costs = np.zeros((len(xyz), 3)), []
    for number, (points, keypoints) in enumerate(observed):
        part, slope, squared = observation_information(
            images[number], features[number], xyz[points], keypoints
        )
        np.add.at(information, points, part)
        np.add.at(gradient, points, slope)
        costs.append(squared)
    return information, gradient, np.concatenate(costs)


def observation_information(
    image: PosedImage, features: Features, xyz: Float, keypoints: Ids
) -> tuple[Float, Float, Float]:
    """What one image says of points (n, 3): J^T J (n, 3, 3), J^T r (n, 3) and r^T r (n,).

    J is the derivative of the pixel by the point and r the reprojection error, both divided by
    the keypoint's standard deviation.
    """
    pixels, by_cam = image.camera.project_with_jacobian(image.cam_from_map.apply(xyz))
    sigma = features.pixel_sigma[keypoints].astype(float)
    jacobian = by_cam @ image.cam_from_map.rotation / sigma[:, None, None]
    error = (pixels - features.keypoints[keypoints]) / sigma[:, None]
    transposed = np.swapaxes(jacobian, 1, 2)
    slope = (transposed @ error[..., None])[..., 0]
    return transposed @ jacobian, slope, np.sum(error**2, axis=1)


def track_points(
    folder: Path,
    images: list[PosedImage],
    features: Sequence[Features],
    matches: Mapping[tuple[int, int], Ids],
    config: TriangulationConfig,
) -> Any:
    """Return pycolmap's reconstruction of posed images; its image ids are our numbers plus one.

    It is left in ``folder/sfm`` too.
    """
    import pycolmap

    sfm = folder / 'sfm'
    with writing(sfm):
        shutil.rmtree(sfm, ignore_errors=True)
        sfm.mkdir()
    model = pycolmap_model(images, features)
    with new_database(folder / 'sfm.db', model, features) as database:
        for (i, j), rows in matches.items():
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = _CALIBRATED
            geometry.inlier_matches = rows.astype(np.uint32)
            database.write_matches(i + 1, j + 1, rows.astype(np.uint32))
            database.write_two_view_geometry(i + 1, j + 1, geometry)
    options = pipeline_options()
    options.triangulation.min_angle = config.min_angle_deg
    options.mapper.filter_min_tri_angle = config.min_angle_deg
    options.triangulation.merge_max_reproj_error = config.max_reprojection_error_px
    options.triangulation.complete_max_reproj_error = config.max_reprojection_error_px
    options.mapper.filter_max_reproj_error = config.max_reprojection_error_px
    model = pycolmap.triangulate_points(
        model, str(folder / 'sfm.db'), str(folder), str(sfm), options=options
    )
    (folder / 'sfm.db').unlink()
    _drop_last_digits(model)
    model.write(str(sfm))
    return model


def _drop_last_digits(model: Any) -> None:
    """Round points to a millionth of their spread, so that the same input gives the same map.

    What is dropped depends on where in memory pycolmap's arrays happened to be.
    """
    points = list(model.points3D.values())
    xyz = np.array([point.xyz for point in points]).reshape(-1, 3)
    spread = np.median(np.abs(xyz - np.median(xyz, axis=0))) if len(xyz) else 0.0
    # A power of two, which is the same for nearly the same spread.
    unit = 2.0 ** np.floor(np.log2(max(spread, 1e-6) * 1e-6))
    for point, rounded in zip(points, np.rint(xyz / unit) * unit, strict=True):
        point.xyz = rounded
        point.error = round(point.error, 6)


def pipeline_options() -> Any:
    """Return pycolmap's options of mapping: fixed seeds, intrinsics taken as they are."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.extract_colors = False
    for part in (options, options.mapper, options.triangulation):
        part.random_seed = 0
        # pycolmap drops all images of a camera that exceeds these, without a word.
        part.max_extra_param = part.max_focal_length_ratio = UNLIMITED
        part.min_focal_length_ratio = 1 / UNLIMITED
    options.triangulation.ignore_two_view_tracks = False
    return options


@contextmanager
def new_database(path: Path, model: Any, features: Sequence[Features]) -> Iterator[Any]:
    """Open a new database of pycolmap with the cameras, images and keypoints of a model."""
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    with writing(path):
        for old in path.parent.glob(path.name + '*'):
            old.unlink()
    with pycolmap.Database.open(str(path)) as database:
        for camera in model.cameras.values():
            database.write_camera(camera, use_camera_id=True)
        for rig in model.rigs.values():
            database.write_rig(rig, use_rig_id=True)
        for number in range(len(features)):
            image = model.image(number + 1)
            database.write_frame(model.frame(image.frame_id), use_frame_id=True)
            database.write_image(image, use_image_id=True)
            database.write_keypoints(number + 1, features[number].keypoints)
        yield database


def pycolmap_model(images: list[PosedImage], features: Sequence[Features]) -> Any:
    """Return a reconstruction of pycolmap with the images and no points."""
    import pycolmap

    model = pycolmap.Reconstruction()
    camera_ids: dict[Camera, int] = {}
    for number, image in enumerate(images):
        camera = image.camera
        if camera not in camera_ids:
            camera_ids[camera] = len(camera_ids) + 1
            model.add_camera_with_trivial_rig(pycolmap_camera(camera, camera_ids[camera]))
        pose = image.cam_from_map
        model.add_image_with_trivial_frame(
            pycolmap.Image(
                name=image.name,
                keypoints=features[number].keypoints.astype(float),
                camera_id=camera_ids[camera],
                image_id=number + 1,
            ),
            pycolmap.Rigid3d(pycolmap.Rotation3d(pose.rotation), pose.translation),
        )
    return model


def pycolmap_camera(camera: Camera, number: int) -> Any:
    """Return a camera as pycolmap has it."""
    import pycolmap

    return pycolmap.Camera(
        camera_id=number,
        model=camera.model,
        width=camera.width,
        height=camera.height,
        params=camera.params,
        has_prior_focal_length=True,
    )

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera poses from the images alone, by pycolmap.

Two-view geometry of likely pairs, then structure from motion; scale, place and orientation of the
result are what they happen to be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
import hashlib
import itertools
import json
import logging
from pathlib import Path
import shutil
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.build_folder import BuildFolder, FeatureStore, save_arrays
from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage
from feat_ros.config import Config, option
from feat_ros.errors import MapError
from feat_ros.geometry import Rigid3d
from feat_ros.retrieval.asmk import AsmkConfig, AsmkIndex, RETRIEVAL_FEATURES, train_codebook
from feat_ros.sfm_map import writing
from feat_ros.triangulation import (
    new_database,
    pipeline_options,
    pycolmap_camera,
    pycolmap_model,
    UNLIMITED,
)
from feat_ros.types import Progress

Ids = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)

# Images that follow each other in a list are matched up to this far apart.
_NEXT_IMAGES = 3
# OpenCV's solver works on a plane: rays further off the axis vote later only.
_MAX_TANGENT = 2.0
_MIN_POINTS = 8
# Half of the pairs see half of their points from directions further apart, or there is no depth.
_LEAST_ANGLE_RAD = 0.002


@dataclass(frozen=True)
class ReconstructionConfig(Config):
    """Options of :func:`estimate_poses`."""

    mapper: str = option(
        'global',
        'all poses at once, or one image after the other: slower, try it where global fails',
        choices=('global', 'incremental'),
    )
    all_pairs_up_to: int = option(
        60, 'images of which every pair is matched; of more, the most similar', minimum=2
    )
    pairs_per_image: int = option(
        20, 'most similar images that each is matched with', minimum=1, maximum=10_000
    )
    max_error_px: float = option(
        4.0, 'largest reprojection error, pixels', minimum=0.1, maximum=100.0
    )
    min_matches: int = option(15, 'verified matches that a pair of images needs', minimum=15)
    refine_intrinsics: bool = option(
        False, 'whether focal length and distortion are estimated too, not taken as given'
    )


def estimate_poses(
    folder: BuildFolder,
    cameras: Mapping[str, Camera],
    features: FeatureStore,
    options: ReconstructionConfig,
    progress: Progress,
) -> list[PosedImage]:
    """Find the poses of images by structure from motion.

    Scale, place and orientation of the result are arbitrary. It is kept in the folder: asked
    again for the same images and options, the same poses are returned.

    :param cameras: by name, in the order of the features.
    :returns: those images that could be registered, with the points they saw.
    :raises MapError: no two images could be registered.
    """
    done = folder.path / 'reconstruction'
    asked = [list(cameras), [c.to_words() for c in cameras.values()],
             [path.name for path in features.paths], config.to_dict(options)]  # fmt: skip
    key = hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest()
    kept = done / f'{key}.npz'
    if kept.exists():
        return _load_poses(kept)
    with writing(done):
        shutil.rmtree(done, ignore_errors=True)
        (done / 'models').mkdir(parents=True)
    images = [PosedImage(n, c, Rigid3d(), np.zeros(0, np.int64)) for n, c in cameras.items()]
    pairs = _likely_pairs(features, options)
    geometries = verify_two_views(folder, images, features, pairs, options, progress)
    if not geometries:
        raise MapError(
            f'no two of the {len(images)} images have {options.min_matches} matches that fit a '
            'rigid scene: take pictures that overlap by half or more, and check the camera '
            f'"{images[0].camera.to_words()}"'
        )
    angles = [geometry.tri_angle for geometry in geometries.values()]
    if np.median(angles) < _LEAST_ANGLE_RAD:
        raise MapError(
            f'the camera only turned between the {len(images)} images, which gives no depth: move '
            'it sideways'
        )
    model = _run_mapper(done, images, features, geometries, options, progress)
    posed = _posed_images(model, images)
    _save_poses(kept, posed)
    left_out = sorted(set(cameras) - {image.name for image in posed})
    if left_out:
        logger.warning(
            '%d of %d images could not be registered and are left out: %s',
            len(left_out), len(cameras), ', '.join(left_out),
        )  # fmt: skip
    return posed


def _likely_pairs(features: FeatureStore, options: ReconstructionConfig) -> list[tuple[int, int]]:
    """Return all pairs of few images; of many the most similar and those that follow others."""
    count = len(features)
    if count <= options.all_pairs_up_to:
        return list(itertools.combinations(range(count), 2))
    strongest = [item.descriptors[:RETRIEVAL_FEATURES] for item in features]
    asmk = AsmkConfig()
    codebook = train_codebook(np.concatenate(strongest), asmk.num_words, asmk.seed)
    index = AsmkIndex.build(codebook, strongest, asmk)
    pairs = {(i, j) for i in range(count) for j in range(i + 1, min(i + 1 + _NEXT_IMAGES, count))}
    for i in range(count):
        similar, _ = index.search(strongest[i], options.pairs_per_image + 1)
        pairs |= {(min(i, int(j)), max(i, int(j))) for j in similar if j != i}
    return sorted(pairs)


def verify_two_views(
    folder: BuildFolder,
    images: list[PosedImage],
    features: FeatureStore,
    pairs: Iterable[tuple[int, int]],
    options: ReconstructionConfig,
    progress: Progress,
) -> dict[tuple[int, int], Any]:
    """Return pycolmap's two-view geometry of those pairs that have one; poses are not used.

    OpenCV says in milliseconds which matches fit an essential matrix; pycolmap, which is slow
    where most matches are wrong, sees those only.
    """
    import pycolmap

    how = pycolmap.TwoViewGeometryOptions()
    how.min_num_inliers = options.min_matches
    how.ransac.max_error = options.max_error_px
    how.ransac.random_seed = 0
    how.compute_relative_pose = True
    cameras = [pycolmap_camera(image.camera, 1) for image in images]
    out = {}
    for (i, j), rows in folder.match(features, pairs, progress):
        pixels = [features[i].keypoints[rows[:, 0]], features[j].keypoints[rows[:, 1]]]
        fits = _fit_essential_matrix(images[i].camera, images[j].camera, pixels, options)
        if fits.sum() < max(options.min_matches, _chance_matches(len(rows), images[j], options)):
            continue
        geometry = pycolmap.estimate_two_view_geometry(
            cameras[i], features[i].keypoints.astype(float),
            cameras[j], features[j].keypoints.astype(float),
            rows[fits].astype(np.uint32), how,
        )  # fmt: skip
        if len(geometry.inlier_matches) >= options.min_matches:
            out[i, j] = geometry
    return out


def _fit_essential_matrix(
    camera_a: Camera, camera_b: Camera, pixels: list[Any], options: ReconstructionConfig
) -> npt.NDArray[np.bool_]:
    """Which matches (M,) fit the essential matrix that most of them fit."""
    rays = [
        camera.unproject(at.astype(float))
        for camera, at in zip((camera_a, camera_b), pixels, strict=True)
    ]
    with np.errstate(divide='ignore', invalid='ignore'):
        planes = [ray[:, :2] / ray[:, 2:] for ray in rays]
    usable = np.all(
        [(ray[:, 2] > 0) & (np.abs(plane).max(axis=1) < _MAX_TANGENT)
         for ray, plane in zip(rays, planes, strict=True)], axis=0,
    )  # fmt: skip
    out = np.zeros(len(usable), bool)
    if usable.sum() < _MIN_POINTS:
        return out
    focal = min(camera_a.focal_xy.mean(), camera_b.focal_xy.mean())
    _, mask = cv2.findEssentialMat(
        planes[0][usable], planes[1][usable], np.eye(3), cv2.USAC_FAST, 0.999,
        options.max_error_px / focal, 2000,
    )  # fmt: skip
    if mask is not None:
        out[usable] = mask.reshape(-1) > 0
    return out


def _chance_matches(count: int, image: PosedImage, options: ReconstructionConfig) -> float:
    """How many of some wrong matches lie along the epipolar lines of a wrong geometry.

    A match does with the share of the image that is nearer to a line than the limit; eight
    determine the geometry; six standard deviations are left for the best of all hypotheses.
    """
    width, height = image.camera.size_wh
    rate = count * min(1.0, 2 * options.max_error_px * np.hypot(width, height) / (width * height))
    return float(rate + 6 * np.sqrt(rate) + 8)


def _run_mapper(
    work: Path,
    images: list[PosedImage],
    features: FeatureStore,
    geometries: Mapping[tuple[int, int], Any],
    options: ReconstructionConfig,
    progress: Progress,
) -> Any:
    """Return the largest of pycolmap's reconstructions; its image ids are ours plus one."""
    path = work / 'sfm.db'
    with new_database(path, pycolmap_model(images, features), features) as database:
        for (i, j), geometry in geometries.items():
            database.write_matches(i + 1, j + 1, geometry.inlier_matches)
            database.write_two_view_geometry(i + 1, j + 1, geometry)
    models = MAPPERS[options.mapper](path, work / 'models', len(images), options, progress)
    path.unlink()
    sizes = sorted((model.num_reg_images() for model in models.values()), reverse=True)
    if not sizes or sizes[0] < 2:
        raise MapError(
            f'none of the {len(images)} images could be registered: the camera must move '
            'sideways between them, with half of the picture in common, and its focal length '
            f'must be right ("{images[0].camera.to_words()}"); or try the other '
            'reconstruction.mapper'
        )
    if len(sizes) > 1:
        logger.warning(
            'the images fall into %d pieces of %s images, the largest is used: add pictures '
            'between them',
            len(sizes), ', '.join(map(str, sizes)),
        )  # fmt: skip
    return max(models.values(), key=lambda model: model.num_reg_images())


def _map_incrementally(
    database: Path, out: Path, count: int, options: ReconstructionConfig, progress: Progress
) -> Any:
    """Schoenberger and Frahm, "Structure-from-Motion Revisited", CVPR 2016."""
    import pycolmap

    how = pipeline_options()
    how.min_model_size = 2
    how.ba_refine_focal_length = how.ba_refine_extra_params = options.refine_intrinsics
    how.mapper.abs_pose_refine_focal_length = options.refine_intrinsics
    how.mapper.abs_pose_refine_extra_params = options.refine_intrinsics
    how.mapper.filter_max_reproj_error = options.max_error_px
    bar = iter(progress(list(range(count)), 'register'))
    next(bar, None)
    models = pycolmap.incremental_mapping(
        str(database),
        str(out),
        str(out),
        how,
        next_image_callback=lambda: next(bar, None) and None,
    )
    deque(bar, maxlen=0)
    return models


def _map_globally(
    database: Path, out: Path, count: int, options: ReconstructionConfig, progress: Progress
) -> Any:
    """Pan et al., "Global Structure-from-Motion Revisited", ECCV 2024; it has no steps to show."""
    import pycolmap

    # It says on standard error what our caller says in a sentence.
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    how = pycolmap.GlobalPipelineOptions()
    how.random_seed = 0
    how.min_model_size = 2
    retriangulation = how.mapper.retriangulation
    retriangulation.max_extra_param = retriangulation.max_focal_length_ratio = UNLIMITED
    retriangulation.min_focal_length_ratio = 1 / UNLIMITED
    adjustment = how.mapper.bundle_adjustment
    adjustment.refine_focal_length = adjustment.refine_extra_params = options.refine_intrinsics
    for _ in progress([count], 'register'):
        models = pycolmap.global_mapping(str(database), str(out), str(out), how)
    return models


MAPPERS = {'global': _map_globally, 'incremental': _map_incrementally}


def _posed_images(model: Any, images: list[PosedImage]) -> list[PosedImage]:
    out = []
    for number, image in enumerate(images):
        if not model.exists_image(number + 1) or not model.image(number + 1).has_pose:
            continue
        found = model.image(number + 1)
        camera = model.cameras[found.camera_id]
        points = [p.point3D_id for p in found.points2D if p.has_point3D()]
        out.append(
            replace(
                image,
                camera=replace(image.camera, params=tuple(camera.params)),
                cam_from_map=_rigid(found.cam_from_world()),
                points=np.unique(np.array(points, np.int64)),
            )
        )
    return out


def _rigid(pose: Any) -> Rigid3d:
    return Rigid3d(pose.rotation.matrix(), np.array(pose.translation))


def _save_poses(path: Path, images: list[PosedImage]) -> None:
    save_arrays(
        path,
        names=np.array([image.name.encode() for image in images]),
        cameras=np.array([image.camera.to_words().encode() for image in images]),
        rotations=np.array([image.cam_from_map.rotation for image in images]),
        translations=np.array([image.cam_from_map.translation for image in images]),
        counts=np.array([len(image.points) for image in images]),
        points=np.concatenate([image.points for image in images]),
    )


def _load_poses(path: Path) -> list[PosedImage]:
    with np.load(path, allow_pickle=False) as arrays:
        points = np.split(arrays['points'], np.cumsum(arrays['counts'])[:-1])
        rows = zip(
            arrays['names'], arrays['cameras'], arrays['rotations'], arrays['translations'],
            points, strict=True,
        )  # fmt: skip
        return [
            PosedImage(
                bytes(name).decode(), Camera.from_words(bytes(camera).decode().split()),
                Rigid3d(rotation, translation), seen,
            )
            for name, camera, rotation, translation, seen in rows
        ]  # fmt: skip

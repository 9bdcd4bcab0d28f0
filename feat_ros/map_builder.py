# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Images, with poses or without, become a map folder.

extract -> poses, where they are unknown -> pairs -> mutual nearest neighbours ->
verification by the poses -> triangulation (pycolmap) -> points with descriptors and covariance
-> how well the poses agree.
Everything is put together in ``MAP.partial``; a build that was killed resumes from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
import logging
from pathlib import Path
import platform
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.build_folder import BuildFolder, FeatureStore
from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage
from feat_ros.config import Config, option
from feat_ros.errors import DataError, MapError
from feat_ros.extractors import Extractor
from feat_ros.geometry import skew
from feat_ros.map_index import write_index
from feat_ros.pose_noise import check_left_out
from feat_ros.reconstruction import estimate_poses, ReconstructionConfig
from feat_ros.retrieval.asmk import AsmkConfig, AsmkIndex, RETRIEVAL_FEATURES, train_codebook
from feat_ros.sfm_map import (
    ExtractorInfo,
    Manifest,
    PoseNoise,
    publish,
    Segment,
    SfmMap,
    write_manifest,
    write_segment,
)
from feat_ros.triangulation import Structure, triangulate, TriangulationConfig
from feat_ros.types import Progress
from feat_ros.workers import Workers

Ids = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)

# Right poses agree with two thirds of the matches, poses off by a degree with a quarter.
_DOUBTFUL_SHARE = 0.2


@dataclass(frozen=True)
class BuildConfig(Config):
    """Options of :func:`build_map`."""

    pairs_per_image: int = option(
        20, 'images that each image is matched with', minimum=1, maximum=10_000
    )
    max_epipolar_error_px: float = option(
        4.0, 'largest distance of a match to its epipolar line, pixels', minimum=0.1, maximum=100.0
    )
    min_matches: int = option(15, 'verified matches that a pair of images needs', minimum=1)
    reconstruction: ReconstructionConfig = option(
        ReconstructionConfig, 'poses from the images, where none are given'
    )
    triangulation: TriangulationConfig = option(TriangulationConfig, 'points from matches')
    retrieval: AsmkConfig = option(AsmkConfig, 'image retrieval')
    left_out_images: int = option(
        200, 'images that are localized without themselves, to measure the pose noise', minimum=0
    )
    frame_id: str = option('map', 'the ROS frame that the poses are in')
    scale: str = option('metric', 'whether a unit is a metre', choices=('metric', 'unknown'))
    gravity: str = option('unknown', 'whether z points up', choices=('known', 'unknown'))


def build_map(
    out: str | Path,
    image_folder: str | Path,
    images: list[PosedImage] | Mapping[str, Camera],
    extractor: Extractor,
    build_config: BuildConfig | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    provenance: dict[str, Any] | None = None,
    words_of: AsmkIndex | None = None,
    workers: Workers | None = None,
) -> SfmMap:
    """Build a map folder from images, with poses or without.

    :param out: the map folder; it appears when it is complete.
    :param image_folder: where the images' files are.
    :param images: names, cameras and ``cam_from_map``; or only cameras by name: then the poses
        are estimated, and the map's scale and gravity are unknown.
    :param overwrite: replace a map of that name, at the moment the new one is complete.
    :param words_of: the index whose visual words are used, instead of ones made of the images.
    :param workers: processes that extract and match; the map is the same to the byte.
    :raises MapError: the map exists, cannot be written, or no point could be triangulated.
    :raises DataError, ImageError, CameraError: the input cannot be used.
    """
    options = build_config or BuildConfig()
    progress = progress or (lambda items, _: items)
    out, image_folder = Path(out), Path(image_folder)
    check_out(out, overwrite=overwrite)
    if len(images) < 2:
        raise DataError(f'{len(images)} image(s) cannot make a map: at least 2 are needed')
    names = list(images) if isinstance(images, Mapping) else [image.name for image in images]
    cameras = list(images.values() if isinstance(images, Mapping) else [i.camera for i in images])
    paths = _check_files(image_folder, names)
    folder = BuildFolder(out, workers)
    partial = folder.path

    features = folder.extract(paths, cameras, extractor, progress)
    if isinstance(images, Mapping):
        images = estimate_poses(folder, images, features, options.reconstruction, progress)
        features = features.take(names.index(image.name) for image in images)
        options = replace(options, scale='unknown', gravity='unknown')
    matches = _match_all(folder, images, features, options, progress)
    structure = _triangulate(partial, images, features, matches, options, progress)
    descriptors = _point_descriptors(structure, features)
    check = check_left_out(
        images, features, structure, descriptors, options.left_out_images, progress,
        features.similarity,
    )  # fmt: skip
    if 2 * check.summary['num_localized'] < check.summary['num_images']:
        logger.warning(
            'only %d of %d images are localized by what the others saw: the map is sparse, or its '
            'poses are wrong',
            check.summary['num_localized'], check.summary['num_images'],
        )  # fmt: skip
    if check.wrong:
        logger.warning(
            'the given poses of %d images contradict those of the others, the first is %s: leave '
            'them out with --list, or mend them',
            len(check.wrong), check.wrong[0],
        )  # fmt: skip
    segment = _segment(images, features, structure, descriptors)
    manifest = Manifest(
        frame_id=options.frame_id,
        scale=options.scale,
        gravity=options.gravity,
        extractor=ExtractorInfo(
            extractor.name,
            extractor.descriptor_dim,
            extractor.weights_sha256,
            config.to_dict(extractor.config),
        ),
        pose_noise=config.from_dict(PoseNoise, _rounded(config.to_dict(check.noise))),
        segments=[config.to_dict(write_segment(partial / 'segment-0000', segment))],
        retrieval=_index_images(partial, features, options.retrieval, words_of),
        measured={
            'num_keypoints': sum(features.counts),
            'num_pairs': len(matches),
            'mean_track_length': float(structure.track_length.mean()),
            'reprojection_noise_scale': structure.noise_scale,
            'left_out': _rounded(check.summary),
        },
        provenance={
            **(provenance or {}),
            'build': config.to_dict(options),
            'versions': _versions(),
        },
    )
    folder.clean()
    write_manifest(partial, manifest)
    publish(partial, out)
    return SfmMap(out)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Check that a map may be built there.

    :raises MapError: a map is there that must not be replaced, or something else is.
    """
    if out.exists() and not overwrite:
        raise MapError(f'{out} exists: choose another --out, or replace it with --overwrite')
    if out.exists() and not (out / 'manifest.json').is_file():
        raise MapError(f'{out} is not a map and is not replaced: choose another --out')


def _check_files(image_folder: Path, names: list[str]) -> list[Path]:
    if not image_folder.is_dir():
        raise DataError(f'image folder {image_folder} does not exist')
    paths = [image_folder / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f'{len(missing)} of {len(paths)} images are missing, the first is {missing[0]}: give '
            'the folder with --images, or list those that exist with --list'
        )
    return paths


def _index_images(
    partial: Path, features: FeatureStore, options: AsmkConfig, words_of: AsmkIndex | None
) -> dict[str, Any]:
    """Write the retrieval index of all images; return its entry for the manifest."""
    strongest = [item.descriptors[:RETRIEVAL_FEATURES] for item in features]
    if words_of is None:
        codebook = train_codebook(np.concatenate(strongest), options.num_words, options.seed)
        index = AsmkIndex.build(codebook, strongest, options)
    else:
        index = replace(words_of, files=()).with_images(strongest)
    return write_index(partial / 'retrieval', index)


def choose_pairs(images: list[PosedImage], pairs_per_image: int) -> list[tuple[int, int]]:
    """Choose pairs of images that probably see the same things.

    By points in common where the model has points; by distance and angle between the cameras
    otherwise.

    :returns: ordered pairs (i, j), i < j, without repetition.
    """
    seen = any(len(image.points) for image in images)
    affinity = _shared_points(images) if seen else _closeness(images)
    np.fill_diagonal(affinity, -np.inf)
    pairs = set()
    for i, row in enumerate(affinity):
        best = np.argsort(-row, kind='stable')[:pairs_per_image]
        pairs |= {(min(i, int(j)), max(i, int(j))) for j in best if row[j] > -np.inf}
    return sorted(pairs)


def _shared_points(images: list[PosedImage]) -> Float:
    """Count (I, I) of points that two images share; -inf where none."""
    from scipy.sparse import csr_array

    counts = [len(image.points) for image in images]
    _, columns = np.unique(np.concatenate([image.points for image in images]), return_inverse=True)
    rows = np.repeat(np.arange(len(images)), counts)
    seen = csr_array((np.ones(len(rows)), (rows, columns.reshape(-1))))
    shared = (seen @ seen.T).toarray()
    return np.where(shared > 0, shared, -np.inf)


def _closeness(images: list[PosedImage]) -> Float:
    """Minus the distance (I, I) between cameras, in steps and in half fields of view.

    A step is the median distance to the nearest other camera; images turned away by more than a
    field of view (at least 60 degrees) have -inf.
    """
    rotations = np.stack([image.cam_from_map.rotation for image in images])
    centers = np.stack([image.cam_from_map.inverse().translation for image in images])
    distance = np.linalg.norm(centers[:, None] - centers[None], axis=2)
    others = distance + np.diag(np.full(len(images), np.inf))
    step = max(float(np.median(others.min(axis=1))), 1e-9)
    axis = rotations[:, 2]
    angle = np.degrees(np.arccos(np.clip(axis @ axis.T, -1, 1)))
    field_of_view = np.array([_field_of_view_deg(image.camera) for image in images])
    closeness = -(distance / (10 * step) + angle / (field_of_view[:, None] / 2))
    closeness[angle > np.maximum(field_of_view, 60.0)[:, None]] = -np.inf
    return np.asarray(closeness)


def _field_of_view_deg(camera: Camera) -> float:
    middle = camera.height / 2
    left, right = camera.unproject([[0.5, middle], [camera.width - 0.5, middle]])
    cosine = float(left @ right)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) if np.isfinite(cosine) else 180.0


def epipolar_error_px(a: PosedImage, b: PosedImage, pixels_a: Float, pixels_b: Float) -> Float:
    """Distance (N,) in pixels of matches to their epipolar planes under the given poses.

    The angle between each ray and the plane of the baseline and the other ray, times the focal
    length; the larger of the two directions. Exact for every camera model. Without a baseline
    there is no plane: then the angle between the rays themselves. Rays outside of the camera
    model have infinite error.
    """
    b_from_a = b.cam_from_map @ a.cam_from_map.inverse()
    rays_a, rays_b = a.camera.unproject(pixels_a), b.camera.unproject(pixels_b)
    turned = rays_a @ b_from_a.rotation.T
    focal = float(max(a.camera.focal_xy.mean(), b.camera.focal_xy.mean()))
    baseline = float(np.linalg.norm(b_from_a.translation))
    if baseline < 1e-9:
        error = np.linalg.norm(np.cross(turned, rays_b), axis=1)
    else:
        epipole = b_from_a.translation / baseline
        volume = np.abs(np.sum(turned @ skew(epipole).T * rays_b, axis=1))
        sines = [np.linalg.norm(rays @ skew(epipole).T, axis=1) for rays in (turned, rays_b)]
        error = volume / np.maximum(np.minimum(*sines), 1e-12)
    return np.where(np.isfinite(error), error, np.inf) * focal


def _match_all(
    folder: BuildFolder,
    images: list[PosedImage],
    features: FeatureStore,
    options: BuildConfig,
    progress: Progress,
) -> dict[tuple[int, int], Ids]:
    """Verified matches (M, 2) of every pair that has enough of them."""
    pairs = choose_pairs(images, options.pairs_per_image)
    if not pairs:
        raise MapError('no two images look in the same direction: are the poses cam_from_map?')
    out: dict[tuple[int, int], Ids] = {}
    num_raw = num_verified = 0
    for (i, j), rows in folder.match(features, pairs, progress):
        pixels = [
            features[number].keypoints[rows[:, side]].astype(float)
            for side, number in enumerate((i, j))
        ]
        error = epipolar_error_px(images[i], images[j], *pixels)
        verified = rows[error < options.max_epipolar_error_px]
        num_raw += len(rows)
        num_verified += len(verified)
        if len(verified) >= options.min_matches:
            out[i, j] = verified
    if not out:
        raise MapError(
            f'no pair of images has {options.min_matches} matches that agree with the poses '
            f'({num_verified} of {num_raw} are within max_epipolar_error_px='
            f'{options.max_epipolar_error_px:g}): check that the poses are cam_from_map and the '
            f'focal length of camera "{_commonest_camera(images)}", or raise that option'
        )
    if num_verified < _DOUBTFUL_SHARE * num_raw:
        logger.warning(
            'only %d %% of the matches agree with the poses within max_epipolar_error_px=%g: '
            'check that the poses are cam_from_map and the focal length of camera "%s"',
            100 * num_verified // num_raw,
            options.max_epipolar_error_px,
            _commonest_camera(images),
        )  # fmt: skip
    return out


def _commonest_camera(images: list[PosedImage]) -> str:
    words = [image.camera.to_words() for image in images]
    return max(set(words), key=words.count)


def _triangulate(
    partial: Path,
    images: list[PosedImage],
    features: FeatureStore,
    matches: dict[tuple[int, int], Ids],
    options: BuildConfig,
    progress: Progress,
) -> Structure:
    # It is one call, of minutes where there are many images: the bar says what takes so long.
    [structure] = [
        triangulate(partial, each, features, matches, options.triangulation)
        for each in progress([images], 'triangulate')
    ]
    if len(structure.xyz) == 0:
        limits = options.triangulation
        raise MapError(
            f'none of the matches of {len(matches)} pairs of images could be triangulated within '
            f'min_angle_deg={limits.min_angle_deg:g} and max_reprojection_error_px='
            f'{limits.max_reprojection_error_px:g}: lower the first or raise the second, or check '
            f'camera "{_commonest_camera(images)}"'
        )
    return structure


def _point_descriptors(structure: Structure, features: FeatureStore) -> npt.NDArray[np.float32]:
    """Unit descriptors (P, D): the mean direction of each point's keypoints."""
    mean = structure.mean_over_track(features, 'descriptors')
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)


def _segment(
    images: list[PosedImage],
    features: FeatureStore,
    structure: Structure,
    descriptors: npt.NDArray[np.float32],
) -> Segment:
    cameras = list(dict.fromkeys(image.camera for image in images))
    stability = structure.mean_over_track(features, 'stability')
    return Segment(
        points_xyz=structure.xyz,
        point_covariance=np.asarray(np.linalg.inv(structure.information), float),
        point_descriptors=descriptors,
        point_stability=stability.astype(np.float32),
        image_names=[image.name for image in images],
        image_camera=[cameras.index(image.camera) for image in images],
        image_cam_from_map=[image.cam_from_map for image in images],
        image_observations=[
            (points, features[number].keypoints[keypoints])
            for number, (points, keypoints) in enumerate(structure.observed)
        ],
        cameras=cameras,
    )


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    """Keep four digits: the last ones of a fit depend on where in memory its arrays are."""
    return {k: float(f'{v:.4g}') if isinstance(v, float) else v for k, v in figures.items()}


def _versions() -> dict[str, str]:
    out = {'python': platform.python_version()}
    for name in ('numpy', 'opencv-python-headless', 'pycolmap'):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out

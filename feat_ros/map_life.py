# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What becomes of a map after it was built: it is added to, merged, split and pruned.

Segments are never changed. Adding and merging put more of them beside those that are there, so
that no pose that was found before moves; splitting and pruning write a new map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import shutil

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.alignment import align_by_poses, Alignment, image_names, map_from_images
from feat_ros.errors import MapError
from feat_ros.extractors import create_extractor
from feat_ros.localizer import create_retriever, Localizer, LocalizerConfig
from feat_ros.map_index import open_index, write_file, write_index
from feat_ros.retrieval.inverted_file import whole
from feat_ros.sfm_map import (
    copy_file,
    Manifest,
    PoseNoise,
    publish,
    Segment,
    SegmentInfo,
    SfmMap,
    write_manifest,
    write_segment,
    writing,
)
from feat_ros.types import Features, JsonDict, PoseEstimate, Progress

Ids = npt.NDArray[np.int64]

# Of a map whose images are localized in another one, so many, evenly spread.
_TRIED_IMAGES = 200
# Standard deviation, in pixels, of keypoints whose own is not kept in a map.
_PIXEL_SIGMA = 1.0
# An image is divided into so many cells each way, to keep points of all its parts.
_CELLS = 4


def features_of_image(sfm_map: SfmMap, image: int) -> Features:
    """Return what an image saw of its map as features, with the descriptors of the points."""
    points, pixels = sfm_map.observations(image)
    return Features(
        keypoints=pixels,
        scores=np.ones(len(points), np.float32),
        descriptors=sfm_map.descriptors(points)[:],
        stability=sfm_map.stability(points),
        pixel_sigma=np.full(len(points), _PIXEL_SIGMA, np.float32),
    )


def localize_map(sfm_map: SfmMap, other: SfmMap, progress: Progress) -> dict[str, PoseEstimate]:
    """Localize images of one map in another by what they saw of their own.

    :param other: the map whose images are localized, at most 200 of them.
    :returns: by the image's name.
    :raises MapError: the maps are of different extractors or weights.
    """
    check_same_features(sfm_map, other)
    options = LocalizerConfig()
    built = sfm_map.manifest.extractor
    localizer = Localizer(
        sfm_map, create_extractor(built.name, **built.options),
        create_retriever(sfm_map, options), options,
    )  # fmt: skip
    count = min(_TRIED_IMAGES, other.num_images)
    found = {}
    for image in progress(np.linspace(0, other.num_images - 1, count).round().astype(int), 'fit'):
        features = features_of_image(other, int(image))
        result = localizer.localize(features, other.camera(int(image)))
        if isinstance(result, PoseEstimate):
            found[other.image_name(int(image))] = result
    return found


def check_same_features(sfm_map: SfmMap, other: SfmMap) -> None:
    """Check that what one map holds can be matched with the other.

    :raises MapError: another extractor or other weights.
    """
    theirs = other.manifest.extractor
    try:
        sfm_map.check_extractor(theirs.name, theirs.weights_sha256)
    except MapError as error:
        raise MapError(f'{other.path} does not go with {sfm_map.path}: {error}') from None


def offset_between(sfm_map: SfmMap, other: SfmMap, found: dict[str, PoseEstimate]) -> float:
    """Median distance of the centres of another map's images from where this map sees them."""
    theirs = map_from_images(other)
    return float(np.median([
        np.linalg.norm(
            theirs[name].translation - estimate.cam_from_map.inverse().translation
        )
        for name, estimate in found.items()
    ]))  # fmt: skip


def fit_to(sfm_map: SfmMap, other: SfmMap, found: dict[str, PoseEstimate]) -> Alignment:
    """Return the alignment that puts another map into this one's frame.

    :param found: see :func:`localize_map`.
    :raises MapError: too few images of it are seen by this map.
    """
    if len(found) < 3:
        raise MapError(
            f'{len(found)} of the images of {other.path} are localized in {sfm_map.path}, 3 are '
            'needed to fit one to the other: take pictures of places that both show'
        )
    return align_by_poses(other, {name: each.cam_from_map for name, each in found.items()})


def add_map(path: str | Path, other: SfmMap, note: JsonDict | None = None) -> SfmMap:
    """Put the segments of another map, which is in the same frame, beside those of a map.

    What was there is not written again: poses found before stay where they were. A map that is
    open meanwhile, in a node for instance, goes on as it was.

    :param note: goes into the provenance.
    :raises MapError: other features, frame or scale; an image of the same name; a full disk: the
        map is then as it was.
    """
    sfm_map = SfmMap(path)
    manifest = _append(sfm_map.path, sfm_map, other, note or {})
    write_manifest(sfm_map.path, manifest)
    return SfmMap(path)


def merge_maps(out: str | Path, maps: Sequence[SfmMap], note: JsonDict | None = None) -> SfmMap:
    """Write a new map of the segments of several, which are in one frame.

    :param out: must not exist.
    :raises MapError: see :func:`add_map`.
    """
    first, *others = maps
    with _new_map(Path(out)) as partial:
        with writing(partial):
            shutil.copytree(first.path, partial, copy_function=copy_file, dirs_exist_ok=True)
        for other in others:
            write_manifest(partial, _append(partial, SfmMap(partial), other, note or {}))
    return SfmMap(out)


def _append(folder: Path, sfm_map: SfmMap, other: SfmMap, note: JsonDict) -> Manifest:
    """Copy what another map has into a map's folder; return the manifest of both."""
    ours, theirs = sfm_map.manifest, other.manifest
    check_same_features(sfm_map, other)
    for name in ('frame_id', 'scale'):
        if getattr(ours, name) != getattr(theirs, name):
            raise MapError(
                f'{name} of {other.path} is {getattr(theirs, name)!r}, that of {sfm_map.path} '
                f'{getattr(ours, name)!r}: fit it with --align, or "feat_ros map align" both'
            )
    if ours.scale == 'unknown':
        raise MapError(
            f'the scale of {sfm_map.path} is unknown, so that nothing can be put beside it: give '
            'it one with "feat_ros map align"'
        )
    twice = sorted({*image_names(sfm_map)} & {*image_names(other)})
    if twice:
        raise MapError(
            f'{len(twice)} images are in {sfm_map.path} already, the first is {twice[0]!r}: '
            'rename those that are new, or leave them out with --list'
        )
    segments = []
    for number, entry in enumerate(theirs.segments, len(ours.segments)):
        name = f'segment-{number:04}'
        with writing(folder):
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(other.path / entry['name'], folder / name, copy_function=copy_file)
            if (other.path / 'sfm').is_dir() and number == len(ours.segments):
                target = folder / 'sfm' / name
                shutil.copytree(
                    other.path / 'sfm', target, copy_function=copy_file, dirs_exist_ok=True
                )
        segments.append({**entry, 'name': name})
    noises = [config.to_dict(each.pose_noise) for each in (ours, theirs)]
    return replace(
        ours,
        gravity='known' if (ours.gravity, theirs.gravity) == ('known', 'known') else 'unknown',
        segments=[*ours.segments, *segments],
        retrieval=_append_index(folder, sfm_map, other),
        pose_noise=PoseNoise(**{name: max(each[name] for each in noises) for name in noises[0]}),
        measured={**ours.measured, 'added': [*ours.measured.get('added', []), theirs.measured]},
        provenance={
            **ours.provenance,
            'added': [*ours.provenance.get('added', []), {**theirs.provenance, **note}],
        },
    )


def _append_index(folder: Path, sfm_map: SfmMap, other: SfmMap) -> JsonDict:
    """Write the inverted files of another map's images; return the entry of both."""
    index, theirs = open_index(sfm_map), open_index(other)
    if index is None:
        return {}
    entry = sfm_map.manifest.retrieval
    has_our_words = theirs is not None and np.array_equal(
        whole(index.codebook), whole(theirs.codebook)
    )
    if has_our_words:
        files = list(theirs.files)  # type: ignore[union-attr]
    else:
        # Words of ours for what the images saw of their map, which is what they are matched by.
        seen = (
            other.descriptors(other.observations(image)[0])[:] for image in range(other.num_images)
        )
        files = list(replace(index, files=()).with_images(seen).files)
    written = []
    for number, file in enumerate(files, len(entry['files'])):
        name = f'file-{number:04}'
        with writing(folder):
            shutil.rmtree(folder / 'retrieval' / name, ignore_errors=True)
        written.append(write_file(folder / 'retrieval', name, file))
    return {**entry, 'files': [*entry['files'], *written]}


def split_map(out: str | Path, sfm_map: SfmMap, tile_m: float, progress: Progress) -> SfmMap:
    """Write a map anew in segments by place, so that only those around the robot are held open.

    An image belongs to the tile that its camera is in, and takes all points along that it saw:
    at a border they are in both segments, and nothing is lost there.

    :param out: must not exist.
    :param tile_m: side of a tile in the map's units, along its two longest axes.
    """
    rotations, translations = sfm_map.image_poses()
    centers = -np.einsum('nji,nj->ni', rotations, translations)
    axes = np.sort(np.argsort(-np.ptp(centers, axis=0), kind='stable')[:2])
    low = centers[:, axes].min(axis=0)
    tiles = np.floor((centers[:, axes] - low) / tile_m).astype(np.int64)
    segment_of = sfm_map.segments_of_images()
    _, group = np.unique(np.c_[segment_of, tiles], axis=0, return_inverse=True)
    group = group.reshape(-1)

    def parts(segment: Segment, images: Ids) -> Iterator[tuple[Segment, Ids]]:
        for tile in np.unique(group[images]):
            chosen = np.flatnonzero(group[images] == tile)
            yield _part(segment, chosen), images[chosen]

    note = {'split': {'tile_m': tile_m, 'map_id': sfm_map.manifest.map_id}}
    return _rewrite(Path(out), sfm_map, parts, note, progress)


def prune_map(out: str | Path, sfm_map: SfmMap, share: float, progress: Progress) -> SfmMap:
    """Write a map anew with a share of its points: stable, much seen, all over each image.

    Points are taken in the order of their best rank in any cell of any image that saw them, and
    among equals by how stable they are and how many images saw them: first the best of every
    cell, then the second best, until there are enough.

    :param out: must not exist.
    :param share: of the points of each segment that stay, above 0 and at most 1.
    """

    def parts(segment: Segment, images: Ids) -> Iterator[tuple[Segment, Ids]]:
        count = max(1, round(share * len(segment.points_xyz)))
        kept = np.sort(best_points(segment)[:count])
        yield _part(segment, np.arange(len(images)), kept), images

    note = {'prune': {'share': share, 'map_id': sfm_map.manifest.map_id}}
    return _rewrite(Path(out), sfm_map, parts, note, progress)


def best_points(segment: Segment) -> Ids:
    """Order the points (P,) of a segment by what they are worth; see :func:`prune_map`."""
    points = np.concatenate([points for points, _ in segment.image_observations])
    num_views = np.bincount(points, minlength=len(segment.points_xyz))
    value = segment.point_stability * np.log1p(num_views)
    cells = np.concatenate([
        _cells(pixels, segment.cameras[camera].size_wh) + _CELLS**2 * number
        for number, ((_, pixels), camera) in enumerate(
            zip(segment.image_observations, segment.image_camera, strict=True)
        )
    ])  # fmt: skip
    order = np.lexsort((-value[points], cells))
    starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    best = np.full(len(value), len(order))
    np.minimum.at(best, points[order], rank)
    return np.lexsort((-value, best))


def _cells(pixels: npt.NDArray[np.float32], size_wh: tuple[int, int]) -> Ids:
    place = np.clip(pixels / np.array(size_wh) * _CELLS, 0, _CELLS - 1).astype(np.int64)
    return np.asarray(place[:, 0] + _CELLS * place[:, 1])


def _part(segment: Segment, images: Ids, points: Ids | None = None) -> Segment:
    """Return some images of a segment with the points they saw, or with some of all points."""
    seen = [segment.image_observations[image] for image in images.tolist()]
    if points is None:
        points = np.unique(np.concatenate([each for each, _ in seen]))
    number = np.full(len(segment.points_xyz), -1)
    number[points] = np.arange(len(points))
    return replace(
        segment,
        points_xyz=segment.points_xyz[points],
        point_covariance=segment.point_covariance[points],
        point_descriptors=segment.point_descriptors[points],
        point_stability=segment.point_stability[points],
        image_names=[segment.image_names[image] for image in images.tolist()],
        image_camera=[segment.image_camera[image] for image in images.tolist()],
        image_cam_from_map=[segment.image_cam_from_map[image] for image in images.tolist()],
        image_observations=[
            (number[each[kept]], pixels[kept])
            for each, pixels in seen
            for kept in [number[each] >= 0]
        ],
    )


def _rewrite(
    out: Path,
    sfm_map: SfmMap,
    parts: Callable[[Segment, Ids], Iterator[tuple[Segment, Ids]]],
    note: JsonDict,
    progress: Progress,
) -> SfmMap:
    """Write a map of the parts that each segment is divided into.

    :param parts: of a segment and the numbers of its images in the map: the parts and theirs.
    """
    manifest, segment_of = sfm_map.manifest, sfm_map.segments_of_images()
    infos: list[SegmentInfo] = []
    order: list[Ids] = []
    with _new_map(out) as partial:
        for number in progress(list(range(len(manifest.segments))), 'write'):
            images = np.flatnonzero(segment_of == number)
            for part, members in parts(sfm_map.read_segment(number), images):
                if len(part.points_xyz):
                    name = f'segment-{len(infos):04}'
                    infos.append(write_segment(partial / name, part))
                    order.append(members)
        numbers = np.full(sfm_map.num_images, -1)
        numbers[np.concatenate(order)] = np.arange(sum(map(len, order)))
        index = open_index(sfm_map)
        retrieval = {}
        if index is not None:
            renumbered = index.renumbered(numbers, int(numbers.max()) + 1)
            retrieval = write_index(partial / 'retrieval', renumbered)
        changed = replace(
            manifest,
            segments=[config.to_dict(info) for info in infos],
            retrieval=retrieval,
            provenance={**manifest.provenance, **note},
        )
        write_manifest(partial, changed)
    return SfmMap(out)


@contextmanager
def _new_map(out: Path) -> Iterator[Path]:
    """Give a folder that takes its name when all went well.

    :raises MapError: something has that name, or it cannot be written.
    """
    if out.exists():
        raise MapError(f'{out} exists: choose another --out')
    # Not MAP.partial, which is an interrupted build's.
    partial = out.with_name(out.name + '.new')
    try:
        with writing(partial):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        yield partial
        publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

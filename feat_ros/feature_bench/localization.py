# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How well features localize: a map of daylight pictures, queries by day and in made-up night."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage, read_colmap_model, read_names, select_images
from feat_ros.errors import DataError, FeatRosError
from feat_ros.evaluation import compare_poses
from feat_ros.extractors import Extractor
from feat_ros.geometry import Rigid3d
from feat_ros.image import Image, read_image
from feat_ros.localizer import Localizer
from feat_ros.map_builder import build_map
from feat_ros.sfm_map import SfmMap
from feat_ros.types import JsonDict, LocalizationResult, PoseEstimate

Float = npt.NDArray[np.float64]
# Finds the pose of an image in a map.
Localize = Callable[[Image, Camera], LocalizationResult]

# Light of each condition, as a share of daylight.
LIGHT = {'day': 1.0, 'night 5 %': 0.05, 'night 2 %': 0.02, 'night 0.5 %': 0.005}
# Electrons of a white pixel by day, and the noise of reading one: a small industrial camera.
_WHITE_ELECTRONS, _READ_ELECTRONS = 10_000.0, 5.0
_GAMMA = 2.2
# Metres and degrees; recall is also summed up by the area under its curve to 10 cm.
_FINE, _COARSE, _AREA_M = (0.05, 5.0), (0.25, 2.0), 0.1


@dataclass(frozen=True, eq=False)
class PosedSet:
    """Pictures with known poses: those of the map, and queries."""

    name: str
    folder: Path
    mapping: list[PosedImage]
    queries: list[PosedImage]


def read_posed_set(folder: Path) -> PosedSet:
    """Read ``images/``, a COLMAP model in ``colmap/``, and ``mapping.txt`` and ``query.txt``.

    Without the two lists every second image is a query.

    :raises DataError: the folder is not like that.
    """
    images = read_colmap_model(folder / 'colmap')
    if (folder / 'mapping.txt').exists():
        mapping, queries = (
            select_images(images, read_names(folder / f'{part}.txt'), str(folder))
            for part in ('mapping', 'query')
        )
    else:
        mapping, queries = images[::2], images[1::2]
    if len(mapping) < 2 or not queries:
        raise DataError(f'{folder} has {len(images)} images: at least 2 and a query are needed')
    return PosedSet(folder.name, folder / 'images', mapping, queries)


def read_posed_sets(folders: Sequence[Path]) -> list[PosedSet]:
    """Read several, see :func:`read_posed_set`.

    :raises DataError: a folder is not like that, or two have the same name.
    """
    sets = [read_posed_set(folder) for folder in folders]
    names = [each.name for each in sets]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f'two posed sets are called {name!r}: rename one of the folders')
    return sets


def darken(image: Image, light: float, seed: str) -> Image:
    """Take a picture again with a share of the light: fewer electrons, their noise and reading.

    :param seed: what fixes the noise.
    """
    if light == 1:
        return image
    rng = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    electrons = (image / 255.0) ** _GAMMA * light * _WHITE_ELECTRONS
    counted = rng.poisson(electrons) + rng.normal(0, _READ_ELECTRONS, image.shape)
    encoded = np.clip(counted / _WHITE_ELECTRONS, 0, 1) ** (1 / _GAMMA)
    return np.round(255 * encoded).astype(np.uint8)


def among_all_points(sfm_map: SfmMap, extractor: Extractor) -> Localize:
    """Return what localizes without retrieval, which would be judged too."""
    return Localizer(sfm_map, extractor).localize


def localize_sets(
    sets: Sequence[PosedSet],
    make: Callable[[], Extractor],
    work: Path,
    open_map: Callable[[SfmMap, Extractor], Localize] = among_all_points,
) -> dict[str, dict[str, Float]]:
    """Build a map of each set and localize its queries in every light.

    :param work: an empty folder for the maps.
    :param open_map: makes of a map and its extractor what localizes.
    :returns: errors (N, 2) of each set and light: metres (or the set's units) and degrees,
        infinite where a query was not localized.
    """
    errors: dict[str, dict[str, Float]] = {}
    for each in sets:
        extractor = make()
        truth = {image.name: image.cam_from_map for image in each.queries}
        try:
            sfm_map = build_map(work / each.name, each.folder, each.mapping, extractor)
        except FeatRosError:
            errors[each.name] = {name: np.full((len(truth), 2), np.inf) for name in LIGHT}
            continue
        localize = open_map(sfm_map, extractor)
        errors[each.name] = {}
        for condition, light in LIGHT.items():
            found: dict[str, Rigid3d] = {}
            for query in each.queries:
                image = darken(read_image(each.folder / query.name), light, query.name)
                result = localize(image, query.camera)
                if isinstance(result, PoseEstimate):
                    found[query.name] = result.cam_from_map
            compared = compare_poses(found, truth)
            errors[each.name][condition] = np.column_stack(
                [compared.translation_m, compared.rotation_deg]
            )
    return errors


def localization_rows(
    found: Mapping[str, Mapping[str, Mapping[str, Float]]],
) -> dict[str, list[JsonDict]]:
    """Return a table for each light, all sets pooled, and one of the medians of each set."""
    tables: dict[str, list[JsonDict]] = {}
    for condition in LIGHT:
        tables[f'localization: {condition}'] = [
            {'name': extractor}
            | _summary(np.concatenate([sets[name][condition] for name in sets]))
            for extractor, sets in found.items()
        ]
    medians: dict[str, dict[str, float]] = {
        extractor: {
            name[:13]: 1e3 * float(np.median(each['day'][:, 0])) for name, each in sets.items()
        }
        for extractor, sets in found.items()
    }
    tables['localization: median error by day, mm (thousandths where there is no scale)'] = [
        {'name': extractor} | {name: value for name, value in row.items() if np.isfinite(value)}
        for extractor, row in medians.items()
    ]
    return tables


def area_under_recall(metres: Float, limit: float = _AREA_M) -> float:
    """Return the mean recall over all limits from 0 to one."""
    return float(np.mean(np.clip(1 - metres / limit, 0, 1)))


def _summary(errors: Float) -> dict[str, float]:
    metres, degrees = errors.T
    recall = {
        f'{100 * limit:g}cm_{angle:g}deg': float(np.mean((metres <= limit) & (degrees <= angle)))
        for limit, angle in (_FINE, _COARSE)
    }
    return {**recall, 'auc_10cm': area_under_recall(metres), 'queries': len(errors)}

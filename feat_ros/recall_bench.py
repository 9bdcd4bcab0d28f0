# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How often retrieval finds an image that sees the same: on a map's images, by day and night."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feat_ros.errors import DataError
from feat_ros.extractors import create_extractor, Extractor
from feat_ros.feature_bench.localization import darken, LIGHT
from feat_ros.image import Image, read_image
from feat_ros.map_index import open_index
from feat_ros.retrieval.asmk import AsmkIndex, RETRIEVAL_FEATURES, train_codebook
from feat_ros.sfm_map import SfmMap
from feat_ros.types import Features, Float32, JsonDict, Progress

Ids = npt.NDArray[np.int64]
# Returns the images of the database most like some features, best first.
Search = Callable[[Features], Ids]

# Images that share so many points of the map see the same.
_SHARED_POINTS = 15
_PLACES = (1, 5, 10)


def bench_recall(
    maps: Sequence[tuple[SfmMap, Path]],
    models: Mapping[str, str],
    progress: Progress,
) -> JsonDict:
    """Search the other images of maps with each, and count where one of the first sees the same.

    Two images see the same where they share points of the map. Queries by night are the same
    pictures taken again with a share of the light; the database stays by day.

    :param maps: with the folder of each one's images.
    :param models: extractors for retrieval beside the map's own, and the model of each; empty for
        the package's.
    :raises DataError: a map has no retrieval index, or no two images share points.
    :raises MapError, ImageError, NetworkError: what is read is damaged or missing.
    """
    hits: dict[tuple[str, str], list[list[bool]]] = {}
    counts = []
    for sfm_map, folder in maps:
        index = open_index(sfm_map)
        if index is None:
            raise DataError(f'map {sfm_map.path} has no retrieval index: rebuild it')
        names = [sfm_map.image_name(number) for number in range(sfm_map.num_images)]
        images = [read_image(folder / name) for name in names]
        same = _see_same(sfm_map)
        queries = np.flatnonzero(same.any(axis=1))
        if not len(queries):
            raise DataError(f'no two images of map {sfm_map.path} share {_SHARED_POINTS} points')
        counts.append((len(names), len(queries)))
        built = sfm_map.manifest.extractor
        extractors = {built.name: create_extractor(built.name, **built.options)}
        for name, model in models.items():
            extractors[name] = create_extractor(
                name, model=model, max_keypoints=RETRIEVAL_FEATURES
            )
        for name, extractor in extractors.items():
            own = index if name == built.name else None
            for method, search in _searches(name, extractor, images, own, progress).items():
                for light, share in LIGHT.items():
                    found_same = hits.setdefault((method, light), [])
                    for query in queries.tolist():
                        image = darken(images[query], share, names[query])
                        found = search(extractor(image))
                        found = found[found != query][: max(_PLACES)]
                        found_same.append(same[query, found].tolist())
    rows = [
        {'name': method}
        | {
            f'{light.removeprefix("night ")} @{place}': float(
                np.mean([any(row[:place]) for row in hits[method, light]])
            )
            for light in LIGHT
            for place in _PLACES
        }
        for method in dict.fromkeys(method for method, _ in hits)
    ]
    return {
        'num_images': sum(count for count, _ in counts),
        'num_queries': sum(count for _, count in counts),
        'tables': {'recall of an image that sees the same, by light': rows},
        'checks': [],
    }


def _see_same(sfm_map: SfmMap) -> npt.NDArray[np.bool_]:
    """Whether each two images (I, I) of a map see the same; no image sees what it does itself."""
    seen = np.zeros((sfm_map.num_images, sfm_map.num_points), bool)
    for number, row in enumerate(seen):
        row[sfm_map.observations(number)[0]] = True
    same = np.array([np.sum(seen & row, axis=1) >= _SHARED_POINTS for row in seen])
    np.fill_diagonal(same, False)
    return same


def _searches(
    name: str,
    extractor: Extractor,
    images: Sequence[Image],
    own: AsmkIndex | None,
    progress: Progress,
) -> dict[str, Search]:
    """Index images by an extractor; return how they are searched, by name.

    :param own: the map's index, if the extractor is the map's.
    """
    features = [extractor(image) for image in progress(list(images), f'index by {name}')]
    strongest = [each.descriptors[:RETRIEVAL_FEATURES] for each in features]
    if own is not None:
        index = replace(own, files=()).with_images(strongest)
    else:
        index = AsmkIndex.build(train_codebook(np.concatenate(strongest)), strongest)
    count = max(_PLACES) + 1
    searches: dict[str, Search] = {
        f'ASMK of {name}': lambda query: index.search(
            query.descriptors[:RETRIEVAL_FEATURES], count
        )[0]
    }
    if own is None:
        database = np.stack([spoc(each) for each in features])
        searches[f'SPoC of {name}'] = lambda query: np.argsort(
            -(database @ spoc(query)), kind='stable'
        )[:count]
    return searches


def spoc(features: Features) -> Float32:
    """Return the global descriptor (D,) of HOW's features: equation 8 over those kept."""
    total = features.scores @ features.descriptors
    return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), np.float32)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``MAP.partial``: where a map is put together, and what a killed build need not do again.

Features are kept under the hash of the image file and the extractor, matches under those of
their two images: whatever else changed, what is found there is right.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.camera import Camera
from feat_ros.errors import ImageError, MapError
from feat_ros.extractors import Extractor
from feat_ros.image import read_image
from feat_ros.matching import dot_similarity, mutual_nearest, Similarity, similarity_of
from feat_ros.sfm_map import partial_path, writing
from feat_ros.types import Features, Progress

Ids = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)

# Folders that a finished map is without.
_SCRATCH = ('features', 'matches', 'images', 'reconstruction')


class FeatureStore(Sequence[Features]):
    """The features of all images, on disk; the last used are kept in memory.

    :ivar counts: the number of keypoints of each image.
    :ivar similarity: how their descriptors are compared.
    """

    def __init__(self, paths: list[Path], similarity: Similarity = dot_similarity) -> None:
        self.paths, self.similarity = paths, similarity
        self._load = lru_cache(maxsize=128)(_load_features)
        self.counts = [len(self[number]) for number in range(len(paths))]

    def __getitem__(self, number: Any) -> Any:
        """Return the features of an image."""
        return self._load(self.paths[number])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def take(self, numbers: Iterable[int]) -> FeatureStore:
        """Return the store of some of the images."""
        return FeatureStore([self.paths[number] for number in numbers], self.similarity)


def _load_features(path: Path) -> Features:
    arrays = _load_arrays(path)
    return Features(**{name: arrays[name] for name in Features.__dataclass_fields__})


class BuildFolder:
    """The folder that a build works in.

    :param out: the map that is built.
    :raises MapError: the disk is full or read-only.
    """

    def __init__(self, out: Path) -> None:
        self.path = partial_path(out)
        with writing(self.path):
            if any((self.path / 'features').glob('*.npz')):
                logger.warning('resuming the interrupted build in %s', self.path)
            for folder in ('features', 'matches'):
                (self.path / folder).mkdir(parents=True, exist_ok=True)

    def extract(
        self,
        files: Sequence[Path],
        cameras: Sequence[Camera],
        extractor: Extractor,
        progress: Progress,
    ) -> FeatureStore:
        """Extract the features of image files; those that are there already are taken.

        :raises ImageError: an image cannot be read or is not of its camera's size.
        :raises MapError: no image gave a keypoint; the disk is full.
        """
        how = json.dumps(
            [extractor.name, extractor.weights_sha256, config.to_dict(extractor.config)]
        ).encode()
        stored = []
        for file, camera in progress(list(zip(files, cameras, strict=True)), 'extract'):
            stored.append(self._extract(file, how, extractor))
            width, height = _load_arrays(stored[-1])['size_wh'].tolist()
            if (width, height) != camera.size_wh:
                raise ImageError(
                    f'image {file} is {width}x{height}, its camera {camera.width}x'
                    f'{camera.height}: use the images that the model was made from'
                )
        features = FeatureStore(stored, similarity_of(extractor.name))
        if not any(features.counts):
            raise MapError(
                f'no image gave a keypoint with extractor {extractor.name!r}: are the pictures '
                'blank?'
            )
        return features

    def _extract(self, file: Path, how: bytes, extractor: Extractor) -> Path:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ImageError(f'image {file} cannot be read: {error.strerror or error}') from None
        key = hashlib.blake2b(content + how, digest_size=16).hexdigest()
        stored = self.path / 'features' / f'{key}.npz'
        if not stored.exists():
            rgb = read_image(file)
            size_wh = np.array([rgb.shape[1], rgb.shape[0]])
            save_arrays(stored, **vars(extractor(rgb)), size_wh=size_wh)
        return stored

    def match(
        self, features: FeatureStore, pairs: Iterable[tuple[int, int]], progress: Progress
    ) -> Iterator[tuple[tuple[int, int], Ids]]:
        """Yield pairs of images (i, j) and their mutual nearest neighbours (M, 2).

        :raises MapError: the disk is full.
        """
        partners: dict[int, list[int]] = {}
        for i, j in pairs:
            partners.setdefault(i, []).append(j)
        for i in progress(list(partners), 'match'):
            stored = self.path / 'matches' / features.paths[i].name
            keys = {j: features.paths[j].stem for j in partners[i]}
            known = _load_arrays(stored) if stored.exists() else {}
            missing = [j for j, key in keys.items() if key not in known]
            for j in missing:
                rows, _ = mutual_nearest(
                    features[i].descriptors, features[j].descriptors, features.similarity
                )
                known[keys[j]] = rows.astype(np.int32)
            if missing:
                save_arrays(stored, **known)
            for j, key in keys.items():
                yield (i, j), known[key].astype(np.int64)

    def clean(self) -> None:
        """Remove what a finished map is without."""
        with writing(self.path):
            for folder in _SCRATCH:
                shutil.rmtree(self.path / folder, ignore_errors=True)


def _load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, BadZipFile):
        raise MapError(f'{path} is damaged: remove {path.parents[1]} and build again') from None


def save_arrays(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write an ``.npz`` file that is there whole or not at all.

    :raises MapError: the disk is full or read-only.
    """
    temporary = path.with_name(path.name + '.tmp')
    with writing(path):
        with temporary.open('wb') as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

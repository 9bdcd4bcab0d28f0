# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``MAP.partial``: where a map is put together, and what a killed build need not do again.

Features are kept under the hash of the image file and the extractor, matches under those of
their two images: whatever else changed, what is found there is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
import hashlib
import json
import logging
import os
from pathlib import Path
import shutil
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.camera import Camera
from feat_ros.errors import ImageError, MapError
from feat_ros.extractors import create_extractor, Extractor
from feat_ros.image import read_image
from feat_ros.matching import dot_similarity, mutual_nearest, Similarity, similarity_of
from feat_ros.sfm_map import partial_path, writing
from feat_ros.types import Features, Progress
from feat_ros.workers import Workers

Ids = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]

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
    :param workers: what extracts and matches, instead of this process.
    :raises MapError: the disk is full or read-only.
    """

    def __init__(self, out: Path, workers: Workers | None = None) -> None:
        self.path, self._workers = partial_path(out), workers
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
        options = json.dumps(config.to_dict(extractor.config))
        how = json.dumps([extractor.name, extractor.weights_sha256, json.loads(options)]).encode()
        stored = [self._place(file, how) for file in files]
        # Two files may be the same.
        missing = dict(zip(stored, files, strict=True))
        todo = [file for place, file in missing.items() if not place.exists()]
        if self._workers is None:
            made: Iterator[Arrays] = (_extract(extractor, file) for file in todo)
        else:
            made = self._workers.map(_extraction, (extractor.name, options), todo)
        for place, file, camera in progress(
            list(zip(stored, files, cameras, strict=True)), 'extract'
        ):
            if not place.exists():
                save_arrays(place, **next(made))
            width, height = _load_arrays(place)['size_wh'].tolist()
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

    def _place(self, file: Path, how: bytes) -> Path:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ImageError(f'image {file} cannot be read: {error.strerror or error}') from None
        key = hashlib.blake2b(content + how, digest_size=16).hexdigest()
        return self.path / 'features' / f'{key}.npz'

    def match(
        self, features: FeatureStore, pairs: Iterable[tuple[int, int]], progress: Progress
    ) -> Iterator[tuple[tuple[int, int], Ids]]:
        """Yield pairs of images (i, j) and their mutual nearest neighbours (M, 2).

        :raises MapError: the disk is full.
        """
        partners: dict[int, list[int]] = {}
        for i, j in pairs:
            partners.setdefault(i, []).append(j)
        known, missing = {}, {}
        for i, others in partners.items():
            stored = self.path / 'matches' / features.paths[i].name
            known[i] = _load_arrays(stored) if stored.exists() else {}
            todo = [j for j in others if features.paths[j].stem not in known[i]]
            if todo:
                missing[i] = todo
        if self._workers is None:
            made: Iterator[list[Ids]] = (
                [_match(features[i], features[j], features.similarity) for j in todo]
                for i, todo in missing.items()
            )
        else:
            paths = (
                (features.paths[i], [features.paths[j] for j in todo])
                for i, todo in missing.items()
            )
            made = self._workers.map(_matching, (features.similarity,), paths)
        for i in progress(list(partners), 'match'):
            if i in missing:
                rows = zip(missing[i], next(made), strict=True)
                known[i] |= {features.paths[j].stem: each for j, each in rows}
                save_arrays(self.path / 'matches' / features.paths[i].name, **known[i])
            for j in partners[i]:
                yield (i, j), known[i][features.paths[j].stem].astype(np.int64)
            del known[i]

    def clean(self) -> None:
        """Remove what a finished map is without."""
        with writing(self.path):
            for folder in _SCRATCH:
                shutil.rmtree(self.path / folder, ignore_errors=True)


def _extract(extractor: Extractor, file: Path) -> Arrays:
    rgb = read_image(file)
    return {**vars(extractor(rgb)), 'size_wh': np.array([rgb.shape[1], rgb.shape[0]])}


def _extraction(name: str, options: str) -> Callable[[Path], Arrays]:
    """Make what extracts in a worker."""
    return partial(_extract, create_extractor(name, **json.loads(options)))


def _match(first: Features, second: Features, similarity: Similarity) -> Ids:
    rows, _ = mutual_nearest(first.descriptors, second.descriptors, similarity)
    return rows.astype(np.int32)


def _matching(similarity: Similarity) -> Callable[[tuple[Path, list[Path]]], list[Ids]]:
    """Make what matches an image with others in a worker."""
    load = lru_cache(maxsize=64)(_load_features)

    def match(paths: tuple[Path, list[Path]]) -> list[Ids]:
        return [_match(load(paths[0]), load(other), similarity) for other in paths[1]]

    return match


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

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The map that comes with feat_ros, ``maps/town_small``: drive A of town 1, always the same."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from feat_ros.colmap_files import read_colmap_model
from feat_ros.extractors import create_extractor
from feat_ros.map_builder import build_map, BuildConfig
from feat_ros.retrieval.asmk import AsmkConfig
from feat_ros.sfm_map import SfmMap
from feat_ros.town.course import CAMERA, drive, STREET_M
from feat_ros.town.recording import write_drive
from feat_ros.town.world import Town
from feat_ros.types import Progress

SEED = 1
_MAX_KEYPOINTS = 2048
_RETRIEVAL_WORDS = 1024


def build_small_map(
    out: str | Path, *, street_m: float = STREET_M, progress: Progress | None = None
) -> SfmMap:
    """Build the map; a map of that name is replaced when the new one is complete.

    Its bytes depend on nothing but the versions that its manifest names and the kind of processor.

    :param street_m: length of the street; the shipped map has the default.
    """
    scene = Town(SEED, street_m).scene(drive('A', 'day'))
    with TemporaryDirectory() as scratch:
        folder = write_drive(Path(scratch) / 'drive', scene, CAMERA, progress=progress)
        return build_map(
            out,
            folder / 'images',
            read_colmap_model(folder / 'sparse'),
            create_extractor('sift', max_keypoints=_MAX_KEYPOINTS),
            BuildConfig(gravity='known', retrieval=AsmkConfig(num_words=_RETRIEVAL_WORDS)),
            overwrite=True,
            progress=progress,
            provenance={'town': SEED, 'drive': 'A', 'condition': 'day', 'street_m': street_m},
        )

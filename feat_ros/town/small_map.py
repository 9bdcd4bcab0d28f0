# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The map that comes with feat_ros, ``maps/town_small``: drive A of town 1, always the same."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

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
DRIVE_M = 40.0
_MAX_KEYPOINTS = 2048
_RETRIEVAL_WORDS = 1024


def build_small_map(
    out: str | Path, *, drive_m: float = DRIVE_M, progress: Progress | None = None
) -> SfmMap:
    """Build the map; a map of that name is replaced when the new one is complete.

    The same versions on the same kind of processor, both of which the manifest names under
    ``provenance``, give the same bytes. Other ones round otherwise.

    :param drive_m: how much of the drive is mapped; the shipped map has the default.
    """
    run = replace(drive('A', 'day'), length_m=drive_m)
    with TemporaryDirectory() as scratch:
        folder = write_drive(
            Path(scratch) / 'drive', Town(SEED, STREET_M).scene(run), CAMERA, progress=progress
        )
        return build_map(
            out,
            folder / 'images',
            read_colmap_model(folder / 'sparse'),
            create_extractor('sift', max_keypoints=_MAX_KEYPOINTS),
            BuildConfig(gravity='known', retrieval=AsmkConfig(num_words=_RETRIEVAL_WORDS)),
            overwrite=True,
            progress=progress,
            provenance={'town': SEED, 'drive': 'A', 'drive_m': drive_m, 'processor': processor()},
        )


def processor() -> str:
    """Return the kind of processor and what of it NumPy uses, on which its last digits depend."""
    try:
        found = np.show_config(mode='dicts')['SIMD Extensions'].get('found', [])
    except TypeError:  # NumPy before 1.25 only prints it
        found = []
    return ' '.join([platform.machine(), *found])

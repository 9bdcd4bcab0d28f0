# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The map that comes with feat_ros, ``maps/town_small``: drive A of town 1, always the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import os
from pathlib import Path
import platform
import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import TypeVar

from feat_ros.colmap_files import read_colmap_model
from feat_ros.errors import FeatRosError, MapError
from feat_ros.extractors import create_extractor
from feat_ros.map_builder import build_map, BuildConfig, check_out
from feat_ros.retrieval.asmk import AsmkConfig
from feat_ros.sfm_map import SfmMap
from feat_ros.town.course import CAMERA, drive, STREET_M
from feat_ros.town.recording import write_drive
from feat_ros.town.world import Town

SEED = 1
DRIVE_M = 40.0
_MAX_KEYPOINTS = 2048
_RETRIEVAL_WORDS = 1024
# Libraries choose their code by the processor, and every choice rounds otherwise. With these, all
# x86-64 processors that have AVX2 (since 2013) run the same.
_ONE_KIND_OF_PROCESSOR = {
    'NPY_DISABLE_CPU_FEATURES': (
        'X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR'
    ),
    'OPENBLAS_CORETYPE': 'Haswell',
    'OPENCV_CPU_DISABLE': 'AVX512-COMMON,AVX512-SKX,AVX512-CNL,AVX512-CLX,AVX512-ICL',
    'OPENCV_IPP': 'disabled',
    'OPENCV_LOG_LEVEL': 'ERROR',
    'PYTHONHASHSEED': '0',
}
_Item = TypeVar('_Item')


def build_small_map(out: str | Path) -> SfmMap:
    """Build the map; a map of that name is replaced when the new one is complete.

    The same versions of Python, NumPy, OpenCV and pycolmap, which the manifest names, give the
    same bytes on every x86-64 processor with AVX2. It is done by a Python of its own, which shows
    on standard error how far it is.

    :raises MapError: the folder holds something else or cannot be written.
    """
    check_out(Path(out), overwrite=True)
    package = Path(__file__).parents[2]
    paths = [str(package), *filter(None, [os.environ.get('PYTHONPATH')])]
    done = subprocess.run(
        [sys.executable, '-m', __name__, str(Path(out).absolute())],
        env={**os.environ, **_ONE_KIND_OF_PROCESSOR, 'PYTHONPATH': os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        reason = done.stdout.strip() or f'it ended with {done.returncode}'
        raise MapError(f'the small map was not built: {reason}')
    return SfmMap(out)


def _build(out: Path) -> None:
    run = replace(drive('A', 'day'), length_m=DRIVE_M)
    with TemporaryDirectory() as scratch:
        folder = write_drive(
            Path(scratch) / 'drive', Town(SEED, STREET_M).scene(run), CAMERA, progress=_tell
        )
        build_map(
            out,
            folder / 'images',
            read_colmap_model(folder / 'sparse'),
            create_extractor('sift', max_keypoints=_MAX_KEYPOINTS),
            BuildConfig(gravity='known', retrieval=AsmkConfig(num_words=_RETRIEVAL_WORDS)),
            overwrite=True,
            progress=_tell,
            provenance={
                'town': SEED, 'drive': 'A', 'drive_m': DRIVE_M, 'machine': platform.machine()
            },
        )  # fmt: skip


def _tell(items: Sequence[_Item], what: str) -> Sequence[_Item]:
    print(f'{what}: {len(items)}', file=sys.stderr, flush=True)
    return items


if __name__ == '__main__':
    # The order in which threads add up would show too.
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    try:
        _build(Path(sys.argv[1]))
    except FeatRosError as error:
        print(error)
        sys.exit(1)

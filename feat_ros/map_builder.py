# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Images with known poses become a map folder.

extract -> pairs -> mutual nearest neighbours -> verification by the poses -> triangulation
(pycolmap) -> points with descriptors and covariance -> how well do the poses agree.
Everything is put together in ``MAP.partial``; a build that was killed resumes from there.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage
from feat_ros.config import Config, option
from feat_ros.errors import DataError, ImageError, MapError
from feat_ros.extractors import Extractor
from feat_ros.geometry import Rigid3d, rotation_angle_deg, skew
from feat_ros.image import read_image
from feat_ros.localizer import Localizer
from feat_ros.matching import mutual_nearest
from feat_ros.pose_noise import measure_pose_noise
from feat_ros.sfm_map import (
    ExtractorInfo,
    Manifest,
    PoseNoise,
    Segment,
    SfmMap,
    partial_path,
    publish,
    write_manifest,
    write_segment,
    write_text,
    writing,
)
from feat_ros.types import Features

T = TypeVar('T')
# Shows the advance of a step: (items, what is being done, how many) -> the same items.
Progress = Callable[[Iterable[T], str, int], Iterable[T]]
Pairs = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]

# pycolmap drops all images of a camera whose distortion exceeds its limit without a word.
_ANY_DISTORTION = 1e9
_ESSENTIAL = 2

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Speed beside named baselines, measured in the same run, and that both give the same result.

Contenders take turns (A B A B ...), so that a machine that slows down slows all of them; each is
run once before the clock starts. What a scene looks like was taken from photographs: half of the
keypoints of an image have a 3D point, a point is seen by three of ten images, and descriptors
have the spread of RootSIFT (dot products about 0.64 between strangers, 0.95 between two views).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.camera import Camera
from feat_ros.errors import DataError
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.localizer import Localizer
from feat_ros.matching import mutual_nearest
from feat_ros.pnp import Observations, PnpConfig, solve_pnp
from feat_ros.pose_error import normalised_error_squared, pose_error
from feat_ros.sfm_map import (
    ExtractorInfo,
    Manifest,
    Segment,
    SfmMap,
    write_manifest,
    write_segment,
)
from feat_ros.types import Features, JsonDict, PoseEstimate

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

OURS = 'feat_ros'
_TORCH = 'torch product, row and column maxima, per database image; pycolmap PnP'
_BF = 'cv2.BFMatcher(crossCheck=True) per database image; pycolmap PnP'
_CDIST = 'torch.cdist with both argmins'
_LOAD = 'np.load of every array'

# Threads that the last contender left spinning would take a core from the next one.
_PAUSE_S = 0.03
_CAMERA = Camera('OPENCV', 640, 480, (420, 418, 322, 243, -0.28, 0.09, 1e-3, -8e-4))
_DIM = 128
_BASELINE_MAX_ERROR_PX = 12.0
_RECALL = (0.05, 5.0)
_SUCCESS = (0.25, 2.0)


@dataclass(frozen=True)
class Samples:
    """What one contender took.

    :ivar ms: of each repetition.
    :ivar cores: processor time by wall-clock time, how many cores it kept busy.
    """

    ms: list[float]
    cores: float


def interleave(
    contenders: Mapping[str, Callable[[], Any]], repeat: int, pause_s: float = _PAUSE_S
) -> tuple[dict[str, Samples], dict[str, Any]]:
    """Time contenders in turns; return their samples and what each returned last."""
    results = {name: run() for name, run in contenders.items()}
    ms: dict[str, list[float]] = {name: [] for name in contenders}
    busy = dict.fromkeys(contenders, 0.0)
    for _ in range(repeat):
        for name, run in contenders.items():
            time.sleep(pause_s)
            wall, cpu = time.perf_counter(), time.process_time()
            results[name] = run()
            busy[name] += (time.process_time() - cpu) * 1e3
            ms[name].append((time.perf_counter() - wall) * 1e3)
    return {n: Samples(ms[n], busy[n] / sum(ms[n])) for n in contenders}, results


def same_threads() -> JsonDict:
    """Let OpenCV and torch use as many threads as NumPy's OpenBLAS does; return the numbers."""
    words = (os.environ.get(f'{name}_NUM_THREADS', '') for name in ('OPENBLAS', 'GOTO', 'OMP'))
    cores = len(os.sched_getaffinity(0))
    blas = next((min(int(word), cores) for word in words if word.isdigit()), cores)
    cv2.setNumThreads(blas)
    threads = {'cores': cores, 'numpy': blas, 'opencv': cv2.getNumThreads()}
    if find_spec('torch') is not None:
        torch = import_module('torch')
        torch.set_num_threads(blas)
        threads['torch'] = torch.get_num_threads()
    return threads


def _missing(*packages: str) -> str | None:
    """Return how to install what a baseline needs, or None where it is there."""
    absent = [package for package in packages if find_spec(package) is None]
    return f'not installed: pip install {" ".join(absent)}' if absent else None


def _rows(
    samples: Mapping[str, Samples],
    extra: Mapping[str, JsonDict] | None = None,
    missing: Mapping[str, str | None] | None = None,
) -> list[JsonDict]:
    """Rows of a table; ``times_ours`` is how many times longer the median is than ours."""
    ours = float(np.median(samples[OURS].ms))
    rows: list[JsonDict] = [
        {
            'name': name,
            'median_ms': float(np.median(taken.ms)),
            'min_ms': min(taken.ms),
            'max_ms': max(taken.ms),
            'times_ours': float(np.median(taken.ms)) / ours,
            'cores': taken.cores,
            **(extra or {}).get(name, {}),
        }
        for name, taken in samples.items()
    ]
    return rows + [{'name': n, 'missing': why} for n, why in (missing or {}).items() if why]


def _check(what: str, value: float, wanted: str, ok: bool) -> JsonDict:
    return {'what': what, 'value': value, 'wanted': wanted, 'ok': bool(ok)}


def format_report(report: JsonDict) -> str:
    """Return the tables and checks of a report as text."""
    threads = ', '.join(f'{name} {count}' for name, count in report['threads'].items())
    lines = [f'threads: {threads}']
    for title, rows in report['tables'].items():
        columns = list(dict.fromkeys(k for row in rows for k in row if k not in _NO_COLUMN))
        width = max(len(row['name']) for row in rows)
        lines += ['', title, ' ' * width + ''.join(f'{column:>13}' for column in columns)]
        for row in rows:
            cells = ''.join(f'{_cell(row.get(column)):>13}' for column in columns)
            lines.append(f'{row["name"]:<{width}}{cells if "missing" not in row else ""}')
            if 'missing' in row:
                lines[-1] += f'  {row["missing"]}'
    lines.append('')
    for check in report['checks']:
        verdict = 'ok  ' if check['ok'] else 'FAIL'
        lines.append(f'{verdict} {check["what"]}: {check["value"]:.4g} ({check["wanted"]})')
    return '\n'.join(lines)


_NO_COLUMN = ('name', 'missing')


def _cell(value: Any) -> str:
    return '' if value is None else f'{value:.4g}'


# ---- a scene ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DatabaseImage:
    """An image of the map with all of its keypoints.

    :ivar descriptors: (K, 128).
    :ivar points: (K,) the 3D point of each keypoint, -1 where it has none.
    """

    descriptors: Float32
    points: Ids


@dataclass(frozen=True, eq=False)
class Query:
    """An image to localize, and where it really is."""

    features: Features
    camera: Camera
    cam_from_map: Rigid3d


@dataclass(frozen=True, eq=False)
class Scene:
    """A map on disk, its images with all of their keypoints, and queries."""

    map: SfmMap
    images: list[DatabaseImage]
    queries: list[Query]


def synthetic_scene(
    folder: Path,
    *,
    num_images: int = 10,
    num_queries: int = 50,
    keypoints: int = 2048,
    num_points: int = 3500,
    seed: int = 0,
) -> Scene:
    """Make a map of a street corner 16 m wide, seen through a distorting camera, and queries.

    Half of the keypoints of a database image are strangers without a 3D point. The queries
    become harder from the first, which sees a third of its keypoints in the map, to the last,
    which sees one in a hundred.
    """
    rng = np.random.default_rng(seed)
    xyz = rng.uniform([-8, -3, 4], [8, 2, 14], (num_points, 3))
    histograms = _histograms(rng, num_points)
    poses = [_street_pose(rng, x) for x in np.linspace(-2.25, 2.25, num_images)]
    seen = [_observe(rng, xyz, pose, keypoints // 2) for pose in poses]
    times = np.bincount(np.concatenate([ids for ids, _ in seen]), minlength=num_points)
    number = np.where(times >= 2, np.cumsum(times >= 2) - 1, -1)
    images, sums = [], np.zeros((num_points, _DIM))
    for ids, _ in seen:
        descriptors = _views(rng, np.concatenate([histograms[ids], _strangers(rng, keypoints, ids)]))
        sums[ids] += descriptors[: len(ids)]
        points = np.concatenate([number[ids], np.full(keypoints - len(ids), -1)])
        images.append(DatabaseImage(descriptors, points))
    kept = np.flatnonzero(number >= 0)
    # Points of a model are surest across the street, least sure along it.
    sigma = np.array([0.005, 0.005, 0.03])
    mean = sums[kept] / np.linalg.norm(sums[kept], axis=1, keepdims=True)
    segment = _segment(
        xyz[kept] + sigma * rng.normal(size=(len(kept), 3)),
        np.diag(sigma**2),
        mean.astype(np.float32),
        poses,
        [(number[ids][number[ids] >= 0], pixels[number[ids] >= 0]) for ids, pixels in seen],
    )
    difficulty = np.geomspace(1 / 3, 0.01, num_queries)
    queries = [_query(rng, xyz, histograms, keypoints, share) for share in difficulty]
    return Scene(_write_map(folder, segment), images, queries)


def _query(
    rng: np.random.Generator, xyz: Float, histograms: Float, keypoints: int, share: float
) -> Query:
    pose = _street_pose(rng, rng.uniform(-2.5, 2.5))
    ids, pixels = _observe(rng, xyz, pose, round(keypoints * share))
    others = keypoints - len(ids)
    anywhere = rng.uniform(0, _CAMERA.size_wh, (others, 2))
    order = rng.permutation(keypoints)
    descriptors = _views(rng, np.concatenate([histograms[ids], _strangers(rng, keypoints, ids)]))
    features = Features(
        keypoints=np.concatenate([pixels, anywhere])[order].astype(np.float32),
        scores=np.ones(keypoints, np.float32),
        descriptors=descriptors[order],
        stability=np.ones(keypoints, np.float32),
        pixel_sigma=np.ones(keypoints, np.float32),
    )
    return Query(features, _CAMERA, pose)


def _street_pose(rng: np.random.Generator, x: float) -> Rigid3d:
    """Return cam_from_map of a camera that looks along z, give or take."""
    center = np.array([x, rng.normal() * 0.1, rng.uniform(-1, 1)])
    rotation = so3_exp(rng.normal(size=3) * np.radians([3, 8, 3]))
    return Rigid3d(rotation, -rotation @ center)


def _observe(
    rng: np.random.Generator, xyz: Float, pose: Rigid3d, count: int
) -> tuple[Ids, Float32]:
    """Return some of the points in view, and where they are seen, give or take a pixel."""
    pixels = _CAMERA.project(pose.apply(xyz))
    visible = np.flatnonzero(_CAMERA.contains(pixels))
    ids = rng.permutation(visible)[:count]
    noisy = pixels[ids] + rng.normal(size=(len(ids), 2))
    return ids, noisy.astype(np.float32)


def _histograms(rng: np.random.Generator, count: int) -> Float:
    """Histograms (count, 128) of gradients: some of the 16 cells and 8 directions stand out."""
    cells, directions = rng.gamma(3, size=(count, 16, 1)), rng.gamma(1.5, size=(count, 1, 8))
    return np.asarray((rng.exponential(size=(count, 16, 8)) * cells * directions).reshape(-1, _DIM))


def _strangers(rng: np.random.Generator, keypoints: int, ids: Ids) -> Float:
    return _histograms(rng, keypoints - len(ids))


def _views(rng: np.random.Generator, histograms: Float) -> Float32:
    """RootSIFT (N, 128) of histograms as one image sees them: most alike, some hardly."""
    blur = 0.45 * rng.gamma(2, 0.5, size=(len(histograms), 1))
    seen = histograms * np.exp(blur * rng.normal(size=histograms.shape))
    seen /= seen.sum(axis=1, keepdims=True)
    seen += rng.exponential(0.03 / _DIM, size=seen.shape)
    return np.sqrt(seen / seen.sum(axis=1, keepdims=True)).astype(np.float32)


def _segment(
    xyz: Float,
    covariance: Float,
    descriptors: Float32,
    poses: Sequence[Rigid3d],
    observations: list[tuple[Ids, Float32]],
) -> Segment:
    return Segment(
        points_xyz=xyz,
        point_covariance=np.broadcast_to(covariance, (len(xyz), 3, 3)),
        point_descriptors=descriptors,
        point_stability=np.ones(len(xyz), np.float32),
        image_names=[f'{number:06d}.png' for number in range(len(poses))],
        image_camera=[0] * len(poses),
        image_cam_from_map=list(poses),
        image_observations=observations,
        cameras=[_CAMERA],
    )


def _write_map(folder: Path, segment: Segment) -> SfmMap:
    info = write_segment(folder / 'segment-0000', segment)
    manifest = Manifest(
        extractor=ExtractorInfo('sift', _DIM, {}), segments=[config.to_dict(info)]
    )
    write_manifest(folder, manifest)
    return SfmMap(folder)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Speed beside named baselines, measured in the same run, and whether both find the same.

Contenders take turns (A B A B ...), so that a machine that slows down slows all of them; each
runs once before the clock starts. The made-up scenes have the statistics of photographs: half of
an image's keypoints have a 3D point, three of ten images see a point, and descriptors spread as
RootSIFT does (dot products about 0.64 between strangers, 0.96 between two views of a point).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
import json
import os
from pathlib import Path
import subprocess
import sys
from tempfile import TemporaryDirectory
import time
import tracemalloc
from typing import Any, Generic, TypeVar

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
Input = TypeVar('Input')
Result = TypeVar('Result')

OURS = 'feat_ros'
PER_IMAGE = 'torch product and maxima per image, pycolmap'
BF_PER_IMAGE = 'cv2.BFMatcher per image, pycolmap'
CDIST = 'torch.cdist and both argmins'
BF = 'cv2.BFMatcher, crossCheck'
LOAD = 'np.load of every array'

# Threads that one contender leaves spinning would take a core from the next.
_PAUSE_S = 0.03
_CAMERA = Camera('OPENCV', 640, 480, (420, 418, 322, 243, -0.28, 0.09, 1e-3, -8e-4))
_DIM = 128
_PNP = PnpConfig()
# Options of pycolmap: hloc's threshold, all else its default; and as ours for bare PnP.
_HLOC_RANSAC = {'max_error': 12.0}
_OUR_RANSAC = {
    'max_error': _PNP.max_error_px,
    'max_num_trials': _PNP.max_iterations,
    'min_inlier_ratio': 0.01,
}
# Columns that a comparison has in one line; of a load's times the extremes say nothing more.
_TIMES = ('median_ms', 'min_ms', 'max_ms', 'times_ours')
# Metres and degrees.
_RECALL = (0.05, 5.0)
_SUCCESS = (0.25, 2.0)


@dataclass(frozen=True, eq=False)
class Runs(Generic[Result]):
    """What one contender took and found.

    :ivar ms: milliseconds of each run.
    :ivar results: what each run returned.
    :ivar cores: processor time by wall-clock time: how many cores were busy.
    """

    ms: list[float]
    results: list[Result]
    cores: float


def take_turns(
    contenders: Mapping[str, Callable[[Input], Result]], inputs: Sequence[Input]
) -> dict[str, Runs[Result]]:
    """Run every contender on each input, in turns."""
    for run in contenders.values():
        run(inputs[0])
    taken: dict[str, list[tuple[float, float, Result]]] = {name: [] for name in contenders}
    for item in inputs:
        for name, run in contenders.items():
            time.sleep(_PAUSE_S)
            wall, busy = time.perf_counter(), time.process_time()
            result = run(item)
            busy, wall = time.process_time() - busy, time.perf_counter() - wall
            taken[name].append((wall * 1e3, busy * 1e3, result))
    runs = {}
    for name, samples in taken.items():
        ms, busy_ms, results = map(list, zip(*samples, strict=True))
        runs[name] = Runs(ms, results, sum(busy_ms) / sum(ms))
    return runs


def same_threads() -> dict[str, int]:
    """Give OpenCV and torch as many threads as NumPy's OpenBLAS has; return the numbers."""
    cores = len(os.sched_getaffinity(0))
    words = [os.environ.get(f'{name}_NUM_THREADS', '') for name in ('OPENBLAS', 'GOTO', 'OMP')]
    blas = next((min(int(word), cores) for word in words if word.isdigit()), cores)
    cv2.setNumThreads(blas)
    threads = {'cores': cores, 'numpy': blas, 'opencv': cv2.getNumThreads()}
    if find_spec('torch') is not None:
        torch = import_module('torch')
        torch.set_num_threads(blas)
        threads['torch'] = torch.get_num_threads()
    return threads


def missing_packages(*packages: str) -> str | None:
    """Return how to install what a baseline needs, or None where all of it is there."""
    absent = [package for package in packages if find_spec(package) is None]
    return f'not installed: pip install {" ".join(absent)}' if absent else None


def table_rows(
    ms: Mapping[str, list[float]],
    missing: Mapping[str, str | None],
    extra: Mapping[str, JsonDict],
) -> list[JsonDict]:
    """Rows of a table; ``times_ours`` compares medians."""
    ours = float(np.median(ms[OURS]))
    rows: list[JsonDict] = [
        {
            'name': name,
            'median_ms': float(np.median(values)),
            'min_ms': min(values),
            'max_ms': max(values),
            'times_ours': float(np.median(values)) / ours,
            **extra.get(name, {}),
        }
        for name, values in ms.items()
    ]
    return rows + [{'name': name, 'missing': why} for name, why in missing.items() if why]


def check(what: str, value: float, wanted: str, ok: bool) -> JsonDict:
    return {'what': what, 'value': float(value), 'wanted': wanted, 'ok': bool(ok)}


def format_report(report: JsonDict) -> str:
    """Return the tables, notes and checks of a report as text."""
    threads = ', '.join(f'{name} {count}' for name, count in report['threads'].items())
    lines = [f'threads: {threads}', '']
    for title, rows in report['tables'].items():
        lines += [title, *_table(rows), '']
    lines += report.get('notes', [])
    for check in report['checks']:
        verdict = 'met    ' if check['ok'] else 'NOT MET'
        lines.append(f'{verdict}  {check["what"]}: {check["value"]:.4g} ({check["wanted"]})')
    return '\n'.join(lines)


def merge_reports(reports: Mapping[str, JsonDict], notes: Sequence[str]) -> JsonDict:
    """Return one report with the tables, notes and checks of several, named by their benches."""
    return {
        'threads': {k: v for each in reports.values() for k, v in each['threads'].items()},
        'tables': {
            f'{name}: {title}': rows
            for name, each in reports.items()
            for title, rows in each['tables'].items()
        },
        'notes': [
            *notes, *(f'{n}: {note}' for n, r in reports.items() for note in r.get('notes', [])),
        ],
        'checks': [
            each | {'what': f'{name}: {each["what"]}'}
            for name, report in reports.items()
            for each in report['checks']
        ],
    }  # fmt: skip


def read_report(path: Path) -> JsonDict:
    """Read what ``feat_ros bench --json`` wrote.

    :raises DataError: the file is missing or something else.
    """
    try:
        report = json.loads(path.read_text('utf-8'))
        for rows in report['tables'].values():
            for row in rows:
                str(row['name'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path} is not a report that "feat_ros bench --json" wrote: {error}'
        ) from None
    return dict(report)


def compare_reports(now: JsonDict, then: JsonDict) -> Iterator[str]:
    """Yield what two reports share: medians with the baseline's ratio, then all other numbers.

    Medians of two runs differ with the machine's load; how many times as long as ours a baseline
    takes hardly does. A line of its own ends in the name of its column, and is of its unit.
    """
    yield f'{"":<48}{"then, ms":>12}{"now, ms":>12}{"then, times":>14}{"now, times":>14}'
    for title, rows in now['tables'].items():
        earlier = {row['name']: row for row in then['tables'].get(title, [])}
        lines = [line for row in rows for line in _compared(row, earlier.get(row['name'], {}))]
        yield from [title, *lines] if lines else [f'{title}: not in the earlier report']


def _compared(now: JsonDict, then: JsonDict) -> Iterator[str]:
    shared = {
        key: (then[key], value)
        for key, value in now.items()
        if isinstance(value, int | float) and isinstance(then.get(key), int | float)
    }
    if 'median_ms' in shared:
        times = ''.join(f'{value:14.4g}' for value in shared.get('times_ours', ()))
        yield f'  {now["name"]:<46}{_two(shared["median_ms"])}{times}'
    for key, values in shared.items():
        if key not in _TIMES:
            yield f'  {now["name"] + ", " + key:<46}{_two(values)}'


def _two(values: tuple[float, float]) -> str:
    return ''.join(f'{value:12.4g}' for value in values)


def _table(rows: list[JsonDict]) -> Iterator[str]:
    columns = [key for key in dict.fromkeys(chain(*rows)) if key not in ('name', 'missing')]
    width = max(len(row['name']) for row in rows)
    yield ' ' * width + ''.join(f'{column:>14}' for column in columns)
    for row in rows:
        cells = (f'{row[key]:14.4g}' if key in row else f'{"-":>14}' for key in columns)
        yield f'{row["name"]:<{width}}' + (
            f'  {row["missing"]}' if 'missing' in row else ''.join(cells)
        )


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
    which sees one in fifty.
    """
    rng = np.random.default_rng(seed)
    xyz = rng.uniform([-8, -3, 4], [8, 2, 14], (num_points, 3))
    shapes = histograms(rng, num_points)
    poses = [_street_pose(rng, x) for x in np.linspace(-2.25, 2.25, num_images)]
    seen = [_observe(rng, xyz, pose, keypoints // 2) for pose in poses]
    times = np.bincount(np.concatenate([ids for ids, _ in seen]), minlength=num_points)
    number = np.where(times >= 2, np.cumsum(times >= 2) - 1, -1)
    images, sums = [], np.zeros((num_points, _DIM))
    for ids, _ in seen:
        descriptors = views(rng, _among_strangers(rng, shapes[ids], keypoints))
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
    difficulty = np.geomspace(1 / 3, 0.02, num_queries)
    queries = [_query(rng, xyz, shapes, keypoints, share) for share in difficulty]
    return Scene(_write_map(folder, segment), images, queries)


def _query(
    rng: np.random.Generator, xyz: Float, shapes: Float, keypoints: int, share: float
) -> Query:
    pose = _street_pose(rng, rng.uniform(-2.5, 2.5))
    ids, pixels = _observe(rng, xyz, pose, round(keypoints * share))
    anywhere = rng.uniform(0, _CAMERA.size_wh, (keypoints - len(ids), 2))
    order = rng.permutation(keypoints)
    descriptors = views(rng, _among_strangers(rng, shapes[ids], keypoints))
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


def histograms(rng: np.random.Generator, count: int) -> Float:
    """Histograms (count, 128) of gradients: some of the 16 cells and 8 directions stand out."""
    cells, directions = rng.gamma(3, size=(count, 16, 1)), rng.gamma(1.5, size=(count, 1, 8))
    return np.asarray(
        (rng.exponential(size=(count, 16, 8)) * cells * directions).reshape(-1, _DIM)
    )


def _among_strangers(rng: np.random.Generator, seen: Float, total: int) -> Float:
    return np.concatenate([seen, histograms(rng, total - len(seen))])


def views(rng: np.random.Generator, histograms: Float) -> Float32:
    """RootSIFT (N, 128) of histograms as one image sees them: most alike, some hardly."""
    blur = 0.45 * rng.gamma(2, 0.5, size=(len(histograms), 1))
    seen = histograms * np.exp(blur * rng.normal(size=histograms.shape))
    seen /= seen.sum(axis=1, keepdims=True)
    seen += rng.exponential(0.03 / _DIM, size=seen.shape)
    unit: Float32 = np.sqrt(seen / seen.sum(axis=1, keepdims=True)).astype(np.float32)
    return unit


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
    manifest = Manifest(extractor=ExtractorInfo('sift', _DIM), segments=[config.to_dict(info)])
    write_manifest(folder, manifest)
    return SfmMap(folder)


# ---- the whole query ----------------------------------------------------------------------------

Attempt = tuple[Rigid3d | None, dict[str, float]]
# (database image, descriptors of the query) -> keypoints of both that match.
Matcher = Callable[[int, Float32], tuple[Ids, Ids]]


def bench_localize(
    repeat: int = 1, num_queries: int = 50, keypoints: int = 2048, num_points: int = 3500
) -> JsonDict:
    """Localize queries in a map of ten images; extraction, the same for all, is left out.

    :param repeat: how often every query is localized.
    """
    threads = same_threads()
    missing = {
        PER_IMAGE: missing_packages('torch', 'pycolmap'),
        BF_PER_IMAGE: missing_packages('pycolmap'),
    }
    with TemporaryDirectory() as folder:
        scene = synthetic_scene(
            Path(folder), num_queries=num_queries, keypoints=keypoints, num_points=num_points
        )
        localizer = Localizer(scene.map, create_extractor('sift', max_keypoints=keypoints))
        contenders: dict[str, Callable[[Query], Attempt]] = {
            OURS: lambda query: _localize_ours(localizer, query)
        }
        if missing[PER_IMAGE] is None:
            contenders[PER_IMAGE] = _localize_per_image(scene, _torch_matcher(scene))
        if missing[BF_PER_IMAGE] is None:
            contenders[BF_PER_IMAGE] = _localize_per_image(scene, _opencv_matcher(scene))
        queries = scene.queries * repeat
        runs = take_turns(contenders, queries)
        extract_ms = _extraction_ms(localizer)
    recall = {name: _recall(taken.results, queries) for name, taken in runs.items()}
    tables = {
        stage: table_rows(
            {n: [ms[stage] for _, ms in r.results] for n, r in runs.items()}, missing, {}
        )
        for stage in ('match', 'pnp')
    }
    tables['match and pnp'] = table_rows(
        {name: taken.ms for name, taken in runs.items()},
        missing,
        {name: {'cores': r.cores, 'recall_%': 100 * recall[name]} for name, r in runs.items()},
    )
    share = extract_ms / (extract_ms + tables['match and pnp'][0]['median_ms'])
    return {
        'threads': threads,
        'tables': tables,
        'notes': [
            f'{len(scene.queries)} queries, {keypoints} keypoints; map of {len(scene.images)} '
            f'images, {scene.map.num_points} points, {scene.map.num_observations} observations',
            f'recall within {_RECALL[0] * 100:g} cm and {_RECALL[1]:g} deg',
            f'extraction (sift, 640x480): {extract_ms:.1f} ms, {100 * share:.0f} % of a query '
            'of ours',
        ],
        'extract_ms': extract_ms,
        'checks': _localize_checks(tables, recall),
    }


def _localize_checks(
    tables: Mapping[str, list[JsonDict]], recall: Mapping[str, float]
) -> list[JsonDict]:
    checks = []
    if PER_IMAGE in recall:
        for stage, wanted in (('match', 5), ('match and pnp', 3)):
            times = _times_ours(tables[stage], PER_IMAGE)
            what = f'{stage}, times faster than "{PER_IMAGE}"'
            checks.append(check(what, times, f'at least {wanted}', times >= wanted))
    for name, reached in recall.items():
        if name != OURS:
            lost = 100 * (reached - recall[OURS])
            what = f'points of recall lost to "{name}"'
            checks.append(check(what, lost, 'at most 1', lost <= 1))
    return checks


def _times_ours(rows: list[JsonDict], name: str) -> float:
    return next(float(row['times_ours']) for row in rows if row['name'] == name)


def _localize_ours(localizer: Localizer, query: Query) -> Attempt:
    result = localizer.localize(query.features, query.camera)
    pose = result.cam_from_map if isinstance(result, PoseEstimate) else None
    ms = result.ms
    return pose, {'match': ms['retrieve'] + ms['match'], 'pnp': ms.get('pnp', 0.0)}


def _localize_per_image(scene: Scene, match: Matcher) -> Callable[[Query], Attempt]:
    """Localize in the usual way: match image by image, merge the 2D-3D pairs, pycolmap."""

    def localize(query: Query) -> Attempt:
        start = time.perf_counter()
        found = []
        for number, image in enumerate(scene.images):
            keypoints, others = match(number, query.features.descriptors)
            points = image.points[others]
            found.append(np.column_stack([keypoints, points])[points >= 0])
        pairs = np.unique(np.concatenate(found), axis=0)
        matched = time.perf_counter()
        pixels = query.features.keypoints[pairs[:, 0]].astype(float)
        xyz, _ = scene.map.points(pairs[:, 1])
        pose = _solve_with_pycolmap(query.camera, pixels, xyz, _HLOC_RANSAC)
        end = time.perf_counter()
        return pose, {'match': (matched - start) * 1e3, 'pnp': (end - matched) * 1e3}

    return localize


def _torch_matcher(scene: Scene) -> Matcher:
    torch = import_module('torch')
    database = [torch.from_numpy(image.descriptors) for image in scene.images]

    def match(number: int, descriptors: Float32) -> tuple[Ids, Ids]:
        products = torch.from_numpy(descriptors) @ database[number].T
        best, back = products.max(dim=1).indices, products.max(dim=0).indices
        mutual = back[best] == torch.arange(len(best))
        return np.flatnonzero(mutual.numpy()), best[mutual].numpy()

    return match


def _opencv_matcher(scene: Scene) -> Matcher:
    def match(number: int, descriptors: Float32) -> tuple[Ids, Ids]:
        pairs = _match_with_opencv(descriptors, scene.images[number].descriptors)
        return pairs[:, 0], pairs[:, 1]

    return match


def _recall(attempts: Sequence[Attempt], queries: Sequence[Query]) -> float:
    pairs = zip(attempts, queries, strict=True)
    return float(np.mean([_within(pose, q.cam_from_map, _RECALL) for (pose, _), q in pairs]))


def _within(pose: Rigid3d | None, truth: Rigid3d, limits: tuple[float, float]) -> bool:
    if pose is None:
        return False
    metres, radians = np.linalg.norm(pose_error(pose, truth).reshape(2, 3), axis=1)
    return bool(metres <= limits[0] and np.degrees(radians) <= limits[1])


def _extraction_ms(localizer: Localizer) -> float:
    """Median of the extractor on a picture of noise at every scale: more than enough corners."""
    rng = np.random.default_rng(0)
    grey = np.full((480, 640), 128.0)
    for step in (2, 4, 8, 16, 32):
        noise = rng.normal(0, 25, (480 // step, 640 // step))
        grey += cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    image = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return float(np.median(take_turns({OURS: localizer.extractor}, [image] * 5)[OURS].ms))


# ---- matching -----------------------------------------------------------------------------------


def bench_match(repeat: int = 5, num_query: int = 2048, num_reference: int = 20_000) -> JsonDict:
    """Find mutual nearest neighbours among descriptors of 128 values."""
    threads = same_threads()
    query, reference = descriptor_sets(num_query, num_reference)
    missing = {CDIST: missing_packages('torch')}
    contenders: dict[str, Callable[[None], Ids]] = {
        OURS: lambda _: mutual_nearest(query, reference)[0]
    }
    if missing[CDIST] is None:
        contenders[CDIST] = lambda _: _match_with_cdist(query, reference)
    contenders[BF] = lambda _: _match_with_opencv(query, reference)
    runs = take_turns(contenders, [None] * repeat)
    rows = table_rows(
        {name: taken.ms for name, taken in runs.items()},
        missing,
        {n: {'cores': r.cores, 'pairs': len(r.results[-1])} for n, r in runs.items()},
    )
    ours = set(map(tuple, runs.pop(OURS).results[-1].tolist()))
    checks = []
    for name, taken in runs.items():
        differing = len(ours ^ set(map(tuple, taken.results[-1].tolist())))
        checks.append(check(f'pairs that "{name}" has not', differing, 'none', differing == 0))
    if CDIST in runs:
        times = _times_ours(rows, CDIST)
        checks.append(check(f'times faster than "{CDIST}"', times, 'at least 2', times >= 2))
    for size in (num_reference, 10 * num_reference):
        megabytes = _peak_megabytes(*descriptor_sets(num_query, size))
        what = f'peak memory at {num_query} x {size}, MB'
        checks.append(check(what, megabytes, 'under 64', megabytes < 64))
    title = f'mutual nearest neighbours, {num_query} x {num_reference} x {_DIM}'
    return {'threads': threads, 'tables': {title: rows}, 'checks': checks}


def match_curve(
    sizes: Sequence[int] = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000),
    num_query: int = 2048,
    repeat: int = 3,
) -> dict[str, list[float]]:
    """Median milliseconds of each contender by size of the map, under ``'sizes'``."""
    same_threads()
    contenders: dict[str, Callable[[tuple[Float32, Float32]], Any]] = {
        OURS: lambda sets: mutual_nearest(*sets)
    }
    if missing_packages('torch') is None:
        contenders[CDIST] = lambda sets: _match_with_cdist(*sets)
    curve: dict[str, list[float]] = {'sizes': list(sizes), **{name: [] for name in contenders}}
    for size in sizes:
        runs = take_turns(contenders, [descriptor_sets(num_query, size)] * repeat)
        for name, taken in runs.items():
            curve[name].append(float(np.median(taken.ms)))
    return curve


def plot_match_curve(path: Path, curve: Mapping[str, list[float]]) -> None:
    """Draw what :func:`match_curve` returned.

    :raises DataError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    for name, ms in curve.items():
        if name != 'sizes':
            axes.loglog(curve['sizes'], ms, 'o-', label=name)
    axes.set(xlabel='points of the map', ylabel='milliseconds')
    axes.set_title('mutual nearest neighbours of one image')
    axes.grid(alpha=0.3, which='both')
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise DataError(f'{path} cannot be written: {error}') from None


def descriptor_sets(num_query: int, num_reference: int) -> tuple[Float32, Float32]:
    """Descriptors of an image that sees some of a map's points, and of those points."""
    rng = np.random.default_rng(0)
    seen = histograms(rng, num_query // 3)
    query = views(rng, _among_strangers(rng, seen, num_query))
    # Unseen points a part at a time, since histograms are large.
    rest = np.diff([*range(0, num_reference - len(seen), 10_000), num_reference - len(seen)])
    parts = [views(rng, histograms(rng, int(count))) for count in rest]
    reference = np.concatenate([views(rng, seen), *parts])
    return query, reference[rng.permutation(num_reference)]


def _match_with_cdist(query: Float32, reference: Float32) -> Ids:
    torch = import_module('torch')
    distance = torch.cdist(torch.from_numpy(query), torch.from_numpy(reference))
    best, back = distance.argmin(dim=1), distance.argmin(dim=0)
    rows = torch.nonzero(back[best] == torch.arange(len(best)))[:, 0]
    return np.asarray(torch.stack([rows, best[rows]], dim=1).numpy())


def _match_with_opencv(query: Float32, reference: Float32) -> Ids:
    found = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(query, reference)
    return np.array([(m.queryIdx, m.trainIdx) for m in found], np.int64).reshape(-1, 2)


def _peak_megabytes(query: Float32, reference: Float32) -> float:
    tracemalloc.start()
    mutual_nearest(query, reference)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6


# ---- PnP ----------------------------------------------------------------------------------------

# A pose, and its covariance from those who give one.
Solved = tuple[Rigid3d | None, Float | None]


def bench_pnp(
    repeat: int = 20,
    sizes: Sequence[int] = (200, 1000, 3000),
    inlier_ratios: Sequence[float] = (0.9, 0.5, 0.2, 0.05),
) -> JsonDict:
    """Solve for the pose of scenes with one pixel of noise and points known to centimetres.

    :param repeat: scenes of each number of matches and ratio.
    """
    threads = same_threads()
    solvers: dict[str, Callable[[Observations], Solved]] = {
        OURS: _solve_with_ours,
        'pycolmap': lambda o: (
            _solve_with_pycolmap(o.camera, o.pixels, o.points, _OUR_RANSAC),
            None,
        ),
        'poselib': lambda o: (_solve_with_poselib(o), None),
    }
    missing = {name: missing_packages(name) for name in solvers if name != OURS}
    tables = {}
    for size in sizes:
        for ratio in inlier_ratios:
            rng = np.random.default_rng(size)
            truths, matches = zip(
                *(pnp_scene(rng, size, ratio) for _ in range(repeat)), strict=True
            )
            runs = take_turns({n: s for n, s in solvers.items() if not missing.get(n)}, matches)
            tables[f'{size} matches, {100 * ratio:g} % inliers'] = table_rows(
                {name: taken.ms for name, taken in runs.items()},
                missing,
                {name: _pose_figures(taken.results, truths) for name, taken in runs.items()},
            )
    notes = [
        f'success: within {_SUCCESS[0]:g} m and {_SUCCESS[1]:g} deg; error: median over the '
        'successes; nees: mean normalised error squared of the successes, 6 if honest'
    ]
    return {'threads': threads, 'tables': tables, 'notes': notes, 'checks': []}


def _pose_figures(solved: Sequence[Solved], truths: Sequence[Rigid3d]) -> JsonDict:
    good = [
        (pose_error(pose, truth), covariance)
        for (pose, covariance), truth in zip(solved, truths, strict=True)
        if pose is not None and _within(pose, truth, _SUCCESS)
    ]
    figures: JsonDict = {'success_%': 100 * len(good) / len(truths)}
    if good:
        figures['error_mm'] = 1e3 * float(np.median([np.linalg.norm(e[:3]) for e, _ in good]))
    nees = [float(normalised_error_squared(e, c)) for e, c in good if c is not None]
    if nees:
        figures['nees'] = float(np.mean(nees))
    return figures


def pnp_scene(
    rng: np.random.Generator, num_matches: int, inlier_ratio: float
) -> tuple[Rigid3d, Observations]:
    """Make a pose and matches of which a share agrees with it."""
    in_image = rng.uniform(0, _CAMERA.size_wh, (num_matches, 2))
    rays = _CAMERA.unproject(in_image)
    in_cam = rays / rays[:, 2:] * rng.uniform(3, 15, (num_matches, 1))
    cam_from_map = Rigid3d(so3_exp(rng.normal(size=3)), rng.normal(size=3) * 5)
    pixels = in_image + rng.normal(size=in_image.shape)
    is_wrong = rng.random(num_matches) >= inlier_ratio
    pixels[is_wrong] = rng.uniform(0, _CAMERA.size_wh, (int(is_wrong.sum()), 2))
    sigma = rng.uniform(0.002, 0.02, (num_matches, 3))
    points = cam_from_map.inverse().apply(in_cam) + sigma * rng.normal(size=sigma.shape)
    covariance = sigma[:, :, None] ** 2 * np.eye(3)
    return cam_from_map, Observations(_CAMERA, pixels, points, np.ones(num_matches), covariance)


def _solve_with_ours(observations: Observations) -> Solved:
    solution = solve_pnp(observations, _PNP)
    return (None, None) if solution is None else (solution.cam_from_map, solution.covariance)


def _solve_with_pycolmap(
    camera: Camera, pixels: Float, points: Float, ransac: Mapping[str, float]
) -> Rigid3d | None:
    pycolmap = import_module('pycolmap')
    found = pycolmap.estimate_and_refine_absolute_pose(
        pixels,
        points,
        pycolmap.Camera(
            model=camera.model, width=camera.width, height=camera.height, params=camera.params
        ),
        estimation_options={'ransac': dict(ransac)},
    )
    if found is None:
        return None
    matrix = found['cam_from_world'].matrix()
    return Rigid3d(matrix[:, :3], matrix[:, 3])


def _solve_with_poselib(observations: Observations) -> Rigid3d | None:
    camera = observations.camera
    pose, found = import_module('poselib').estimate_absolute_pose(
        observations.pixels,
        observations.points,
        {
            'model': camera.model,
            'width': camera.width,
            'height': camera.height,
            'params': list(camera.params),
        },
        {'max_reproj_error': _PNP.max_error_px, 'max_iterations': _PNP.max_iterations},
    )
    return Rigid3d(pose.R, pose.t) if found['num_inliers'] else None


# ---- opening a map ------------------------------------------------------------------------------

# Runs in a process of its own, as a robot that starts; what is imported is not counted.
_OPEN = """
import json, sys, time
from pathlib import Path
import numpy as np
from feat_ros.sfm_map import SfmMap

def anonymous_kb():
    for line in Path('/proc/self/smaps_rollup').read_text().splitlines():
        if line.startswith('Anonymous:'):
            return int(line.split()[1])

way, folder = sys.argv[1], Path(sys.argv[2])
before, start = anonymous_kb(), time.perf_counter()
if way == 'open':
    opened = SfmMap(folder)
else:
    opened = [np.load(path) for path in sorted(folder.glob('*/*.npy'))]
ms = (time.perf_counter() - start) * 1e3
print(json.dumps({'ms': ms, 'mb': (anonymous_kb() - before) / 1024}))
"""


def bench_map_open(repeat: int = 7, num_points: int = 1_000_000) -> JsonDict:
    """Open a large map, its files in the page cache, in a fresh process each time.

    :raises DataError: not Linux, where memory can be read from ``/proc``.
    """
    if not Path('/proc/self/smaps_rollup').exists():
        raise DataError('bench map-open reads /proc/self/smaps_rollup: run it on Linux')
    with TemporaryDirectory() as folder:
        _large_map(Path(folder), num_points)
        on_disk = sum(path.stat().st_size for path in Path(folder).glob('*/*.npy')) / 1e6
        runs = take_turns(
            {OURS: lambda _: _opened('open', folder), LOAD: lambda _: _opened('load', folder)},
            [None] * repeat,
        )
    rows = table_rows(
        {name: [result['ms'] for result in taken.results] for name, taken in runs.items()},
        {},
        {
            name: {'anonymous_MB': float(np.median([r['mb'] for r in taken.results]))}
            for name, taken in runs.items()
        },
    )
    ms, megabytes = rows[0]['median_ms'], rows[0]['anonymous_MB']
    return {
        'threads': same_threads(),
        'tables': {f'opening a map of {num_points} points, {on_disk:.0f} MB': rows},
        'checks': [
            check('milliseconds to open', ms, 'under 50', ms < 50),
            check('anonymous memory, MB', megabytes, 'under 20', megabytes < 20),
        ],
    }


def _opened(way: str, folder: str) -> dict[str, float]:
    process = subprocess.run(
        [sys.executable, '-c', _OPEN, way, folder], check=True, capture_output=True, text=True
    )
    return dict(json.loads(process.stdout))


def _large_map(folder: Path, num_points: int) -> None:
    """Write a map of an image every thousand points, each point seen three times."""
    rng = np.random.default_rng(0)
    num_images = max(2, num_points // 1000)
    descriptors = rng.random((num_points, _DIM), np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    pixels = np.zeros((3000, 2), np.float32)
    segment = _segment(
        rng.uniform(-500, 500, (num_points, 3)),
        np.eye(3) * 1e-4,
        descriptors,
        [Rigid3d()] * num_images,
        [(rng.integers(0, num_points, len(pixels)), pixels) for _ in range(num_images)],
    )
    _write_map(folder, segment)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""All the comparisons in one report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from feat_ros.bench import same_threads, take_turns
from feat_ros.camera import Camera
from feat_ros.errors import DataError
from feat_ros.extractors import create_extractor, Extractor, extractor_config
from feat_ros.feature_bench.localization import (
    Float,
    LIGHT,
    localization_rows,
    Localize,
    localize_sets,
    read_posed_sets,
)
from feat_ros.feature_bench.matching import (
    accuracy_curve,
    ANGLES_DEG,
    ERRORS_PX,
    match_sets,
    match_turned,
    matching_rows,
    read_homography_sets,
)
from feat_ros.feature_bench.semantics import label_keypoints, read_labelled, semantic_rows
from feat_ros.image import Image, read_image
from feat_ros.localizer import create_retriever, Localizer, LocalizerConfig
from feat_ros.matching import similarity_of
from feat_ros.runtimes import WEIGHTS
from feat_ros.semantics import get_label_table
from feat_ros.sfm_map import SfmMap
from feat_ros.types import JsonDict, LocalizationResult

logger = logging.getLogger(__name__)

# Makes an extractor of so many keypoints.
Make = Callable[[int], Extractor]

_TIMED_WH = (640, 480)
# Of fewer keypoints the 1000 strongest would be nearly all: nothing would be said of the ranking.
_LEAST_RANKED = 2048
_STAGES = ('extract', 'retrieve', 'match', 'pnp')
# Where curves of recall may end, metres.
_LIMITS_M = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class FeatureData:
    """What there is to compare on; a part without data is left out of the report.

    :ivar homographies: a folder of sets, see :func:`read_homography_sets`.
    :ivar posed: folders, see :func:`read_posed_set`.
    :ivar labelled: a folder, see :func:`read_labelled`, with ids of ``label_table``.
    """

    homographies: Path | None = None
    posed: Sequence[Path] = field(default_factory=tuple)
    labelled: Path | None = None
    label_table: str = 'camvid'


def make_extractor(name: str, max_keypoints: int, max_size: int, xfeat: Path | None) -> Extractor:
    """Return an extractor with what of the options it has; ``xfeat`` from its weights.

    It gets as many threads of the CPU as :func:`feat_ros.bench.same_threads` says.

    :raises ConfigError, NetworkError: it cannot be made.
    """
    options: dict[str, Any] = {'max_keypoints': max_keypoints, 'max_image_size': max_size}
    if name == 'xfeat':
        from feat_ros.feature_bench.xfeat import XFeatConfig, XFeatExtractor

        if xfeat is None:
            raise DataError(
                'xfeat is a competitor without weights of its own: name them (--xfeat)'
            )
        return XFeatExtractor(XFeatConfig(weights=str(xfeat), **options))
    options['threads'] = same_threads()['numpy']
    known = {each.name for each in fields(extractor_config(name))}
    return create_extractor(name, **{key: options[key] for key in options if key in known})


def compare_features(
    make: Mapping[str, Make], data: FeatureData, keypoints: int = 2048, repeat: int = 10
) -> JsonDict:
    """Compare extractors on all the data there is.

    :param make: how to make each.
    :param keypoints: most of an image; what the strongest sit on is asked of 2048 at least.
    :param repeat: how often each is timed, in turns.
    :returns: ``tables`` of rows for :func:`feat_ros.bench.format_report`, ``curves`` for
        :func:`plot_comparison`, and under ``notes`` what was left out and why.
    :raises DataError: data that is there but cannot be read.
    """
    threads = same_threads()
    extractors = {name: one(keypoints) for name, one in make.items()}
    tables: dict[str, list[JsonDict]] = {}
    curves: JsonDict = {'errors_px': list(ERRORS_PX), 'angles_deg': list(ANGLES_DEG)}
    notes: list[str] = []
    timed: Image | None = None
    if homographies := _existing(data.homographies, 'matching', notes):
        sets = read_homography_sets(homographies)
        timed = read_image(sets[0].images[0])
        found = {
            name: match_sets(sets, extract, similarity_of(name))
            for name, extract in extractors.items()
        }
        tables |= matching_rows(found)
        curves['accuracy'] = {name: accuracy_curve(each) for name, each in found.items()}
        turned = {
            name: match_turned(sets, extract, similarity_of(name))
            for name, extract in extractors.items()
        }
        curves['turned'] = {name: list(each.values()) for name, each in turned.items()}
        tables['matching: share within 3 px of the image turned by degrees'] = [
            {'name': name} | {f'{angle}': share for angle, share in each.items()}
            for name, each in turned.items()
        ]
    posed = [folder for folder in data.posed if _existing(folder, 'localization', notes)]
    if posed:
        posed_sets = read_posed_sets(posed)
        with TemporaryDirectory() as work:
            errors = {}
            for number, (name, one) in enumerate(make.items()):
                logger.info('localization: %s', name)
                errors[name] = localize_sets(
                    posed_sets, partial(one, keypoints), Path(work) / str(number)
                )
        tables |= localization_rows(errors)
        curves['errors_m'] = {name: _pooled(sets) for name, sets in errors.items()}
    elif not data.posed:
        _existing(None, 'localization', notes)
    if labelled_folder := _existing(data.labelled, 'semantics', notes):
        table, pictures = get_label_table(data.label_table), read_labelled(labelled_folder)
        timed = read_image(pictures[0].image) if timed is None else timed
        labelled = {
            name: label_keypoints(pictures, table, one(max(keypoints, _LEAST_RANKED)))
            for name, one in make.items()
        }
        tables['semantics: of the 1000 strongest'] = semantic_rows(labelled, table)
    tables['milliseconds, 640x480'] = _time_rows(extractors, timed, repeat)
    return {
        'threads': threads, 'tables': tables, 'curves': curves, 'notes': notes, 'checks': [],
    }  # fmt: skip


def compare_localization(
    make: Mapping[str, Make], folders: Sequence[Path], keypoints: int = 2048
) -> JsonDict:
    """Localize the queries of posed sets as a robot would, with retrieval, and take the time.

    :param make: how to make each extractor.
    :param folders: see :func:`read_posed_sets`.
    :param keypoints: most of an image.
    :returns: a report for :func:`feat_ros.bench.format_report`.
    :raises DataError: a folder is no posed set.
    """
    threads = same_threads()
    sets = read_posed_sets(folders)
    errors, rows = {}, []
    with TemporaryDirectory() as work:
        for number, (name, one) in enumerate(make.items()):
            logger.info('localization: %s', name)
            taken: list[Mapping[str, float]] = []
            errors[name] = localize_sets(
                sets, partial(one, keypoints), Path(work) / str(number),
                partial(_open_timed, taken),
            )  # fmt: skip
            rows.append({'name': name} | _stage_medians(taken))
    tables = localization_rows(errors)
    tables['milliseconds a query, medians over every light'] = rows
    notes = [
        f'{each.name}: {len(each.mapping)} images, {len(each.queries)} queries' for each in sets
    ]
    return {'threads': threads, 'tables': tables, 'notes': notes, 'checks': []}


def _open_timed(
    taken: list[Mapping[str, float]], sfm_map: SfmMap, extractor: Extractor
) -> Localize:
    """Return what localizes with retrieval and adds what the stages took to a list."""
    config = LocalizerConfig()
    localizer = Localizer(sfm_map, extractor, create_retriever(sfm_map, config), config)

    def localize(image: Image, camera: Camera) -> LocalizationResult:
        result = localizer.localize(image, camera)
        taken.append(result.ms)
        return result

    return localize


def _stage_medians(taken: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each stage that was reached, and of their sum."""
    by_stage = {stage: [ms[stage] for ms in taken if stage in ms] for stage in _STAGES}
    by_stage['total'] = [sum(ms.values()) for ms in taken]
    return {stage: float(np.median(values)) for stage, values in by_stage.items() if values}


def plot_comparison(path: str | Path, curves: JsonDict) -> None:
    """Draw matching accuracy, rotation, and recall by day and night (PNG).

    :raises DataError: nothing to draw, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    panels: list[tuple[str, str, list[float], dict[str, list[float]]]] = []
    if 'accuracy' in curves:
        panels.append(('matches within', 'pixels', curves['errors_px'], curves['accuracy']))
        panels.append(
            ('matches within 3 px', 'turned by degrees', curves['angles_deg'], curves['turned'])
        )
    limits = np.linspace(0, recall_limit(curves.get('errors_m', {})), 51)
    for light in LIGHT if 'errors_m' in curves else ():
        recall = {
            name: [float(np.mean(np.array(each[light], float) <= limit)) for limit in limits]
            for name, each in curves['errors_m'].items()
        }
        panels.append((f'localized, {light}', 'metres', limits.tolist(), recall))
    if not panels:
        raise DataError('there is no curve to draw: name data for matching or localization')
    rows = -(-len(panels) // 3)
    columns = -(-len(panels) // rows)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows + 0.5), constrained_layout=True)
    above, below = figure.subfigures(2, 1, height_ratios=(3.4 * rows, 0.5))
    every = above.subplots(rows, columns, squeeze=False).ravel()
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, unit, at, lines) in zip(every, panels, strict=False):
        for name, values in lines.items():
            axes.plot(at, values, label=name)
        axes.set(title=title, xlabel=unit, ylim=(0, 1))
        axes.grid(alpha=0.3)
    # One for all, below: inside a panel it would lie on the curves.
    below.legend(*every[0].get_legend_handles_labels(), loc='center', ncol=len(panels[0][3]))
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise DataError(f'picture {path} cannot be written: {error}') from None


def recall_limit(errors_m: Mapping[str, Mapping[str, Sequence[float | None]]]) -> float:
    """Return up to how many metres recall is drawn: where the last curve ends, rounded up.

    :param errors_m: of each extractor and light; None where there is no pose.
    """
    errors = [each for lights in errors_m.values() for light in lights.values() for each in light]
    largest = max((each for each in errors if each is not None), default=0.0)
    return next((limit for limit in _LIMITS_M if limit >= largest), _LIMITS_M[-1])


def _pooled(sets: Mapping[str, Mapping[str, Float]]) -> dict[str, list[float | None]]:
    """Return the errors in metres of all sets in each light; None where there is no pose."""
    pooled = {
        light: np.concatenate([each[light][:, 0] for each in sets.values()]) for light in LIGHT
    }
    return {
        light: [float(value) if np.isfinite(value) else None for value in values]
        for light, values in pooled.items()
    }


def _existing(folder: Path | None, part: str, notes: list[str]) -> Path | None:
    if folder is not None and folder.is_dir():
        return folder
    why = 'no folder was named' if folder is None else f'{folder} does not exist'
    notes.append(f'{part} left out: {why}')
    return None


def _time_rows(
    extractors: Mapping[str, Extractor], photograph: Image | None, repeat: int
) -> list[JsonDict]:
    if photograph is None:
        noise = np.random.default_rng(0).normal(size=(*_TIMED_WH[::-1], 3))
        smooth = cv2.GaussianBlur(noise, (0, 0), 2)
        photograph = np.clip(128 + 200 * smooth, 0, 255).astype(np.uint8)
    image = np.asarray(cv2.resize(photograph, _TIMED_WH, interpolation=cv2.INTER_AREA), np.uint8)
    runs = take_turns(dict(extractors), [image] * repeat)
    shipped = _shipped_mb()
    rows = []
    for name, taken in runs.items():
        row: JsonDict = {
            'name': name,
            'median_ms': float(np.median(taken.ms)),
            'min_ms': min(taken.ms),
            'keypoints': len(taken.results[0]),
        }
        learned = extractors[name].weights_sha256
        rows.append(row | ({'MB': shipped[learned]} if learned in shipped else {}))
    return rows


def _shipped_mb() -> dict[str, float]:
    """Return the size of each of the package's files of weights by the hash of what it holds."""
    sizes = {}
    for path in WEIGHTS.glob('*.npz'):
        with np.load(path, allow_pickle=False) as stored:
            manifest = json.loads(str(stored['manifest.json']))
        sizes[manifest['sha256']] = path.stat().st_size / 1e6
    return sizes

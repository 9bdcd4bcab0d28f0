# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How the parts of a frame grow: with keypoints, points of the map and images of the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from feat_ros.bench import descriptor_sets, match_curve, OURS, same_threads, take_turns
from feat_ros.errors import DataError
from feat_ros.extractors import create_extractor
from feat_ros.matching import mutual_nearest
from feat_ros.retrieval.words import VisualWords
from feat_ros.retrieval_bench import draw_words, made_up_index, word_frequencies
from feat_ros.town.pictures import street_pictures
from feat_ros.types import JsonDict

Input = TypeVar('Input')

KEYPOINTS = (512, 1024, 2048, 4096)
POINTS = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
IMAGES = (100, 1_000, 10_000, 30_000)
# Points of the map that keypoints are matched with while their number grows.
_MATCHED_POINTS = 20_000
_WORDS_PER_IMAGE, _DIM = 300, 128


def bench_scaling(
    repeat: int = 5,
    keypoints: Sequence[int] = KEYPOINTS,
    points: Sequence[int] = POINTS,
    images: Sequence[int] = IMAGES,
    num_words: int = 65_536,
) -> JsonDict:
    """Measure each part of a frame while one thing grows and the rest stays.

    :returns: ``curves``: by what grows, its ``sizes`` and the median milliseconds of each part.
    """
    threads = same_threads()
    curves = {
        'keypoints of the image': _by_keypoints(keypoints, repeat),
        'points of the map': match_curve(points, repeat=repeat),
        'images of the database': _by_images(images, num_words, repeat),
    }
    tables = {
        f'milliseconds by {grows}': [
            {
                'name': name,
                **{str(size): ms for size, ms in zip(curve['sizes'], each, strict=True)},
            }
            for name, each in curve.items()
            if name != 'sizes'
        ]
        for grows, curve in curves.items()
    }
    return {'threads': threads, 'tables': tables, 'checks': [], 'curves': curves}


def plot_scaling(path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw what :func:`bench_scaling` measured.

    :raises DataError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout='constrained')
    for axes, (grows, curve) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        for name, ms in curve.items():
            if name != 'sizes':
                axes.loglog(curve['sizes'], ms, 'o-', label=name)
        axes.set(xlabel=grows, ylabel='milliseconds')
        axes.grid(alpha=0.3, which='both')
        axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise DataError(f'{path} cannot be written: {error}') from None


def _by_keypoints(sizes: Sequence[int], repeat: int) -> dict[str, list[float]]:
    pictures = list(street_pictures().values())
    query, reference = descriptor_sets(max(sizes), _MATCHED_POINTS)
    extract, match = 'extract (sfd2_lite, 640x480)', f'match with {_MATCHED_POINTS} points'
    curve: dict[str, list[float]] = {'sizes': list(sizes), extract: [], match: []}
    # Sizes take turns, so that a machine that slows down slows all of them.
    extracted = take_turns(
        {str(k): create_extractor('sfd2_lite', max_keypoints=k) for k in sizes},
        [pictures[k % len(pictures)] for k in range(repeat)],
    )
    matched = take_turns(
        {str(k): partial(mutual_nearest, query[:k]) for k in sizes}, [reference] * repeat
    )
    for size in map(str, sizes):
        curve[extract].append(float(np.median(extracted[size].ms)))
        curve[match].append(float(np.median(matched[size].ms)))
    return curve


def _by_images(sizes: Sequence[int], num_words: int, repeat: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(num_words, _DIM)).astype(np.float32)
    words = VisualWords.divide(unit / np.linalg.norm(unit, axis=1, keepdims=True))
    share = word_frequencies(rng, num_words)
    queries = [draw_words(rng, share, _WORDS_PER_IMAGE) for _ in range(repeat)]
    searched: list[float] = []
    for size in sizes:
        index = made_up_index(rng, words, share, size, _WORDS_PER_IMAGE)

        def search(query: Any, index: Any = index) -> Any:
            return index.score(*query, 10)

        searched.append(_median_ms(search, queries, repeat))
    return {'sizes': list(sizes), 'search': searched}


def _median_ms(run: Callable[[Input], object], inputs: Sequence[Input], repeat: int) -> float:
    taken = take_turns({OURS: run}, [inputs[k % len(inputs)] for k in range(repeat)])
    return float(np.median(taken[OURS].ms))

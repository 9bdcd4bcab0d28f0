# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which pairs of patches show the same: the false positive rate at 95 % recall (FPR95).

Brown, Hua and Winder, "Discriminative learning of local image descriptors", PAMI 2011 (UBC
PhotoTour); Balntas et al., "HPatches", CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

from feat_ros.bench import same_threads
from feat_ros.errors import DataError
from feat_ros.image import read_image, to_grey
from feat_ros.models.hynet import PATCH_SIZE, PatchNetwork
from feat_ros.models.weights import build_network, load_weights
from feat_ros.types import JsonDict

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Patches = npt.NDArray[np.uint8]
# (N, 32, 32) patches to (N, D) unit descriptors.
Describe = Callable[[Patches], Float32]

_RECALL = 0.95
# UBC: patches of 64 pixels, 16 rows of 16 in a file; HPatches: of 65, one below the other.
_UBC_SIDE, _UBC_ROWS = 64, 16
_HPATCHES_SIDE = 65
# Easy, hard and tough views of HPatches, and of light (i_) or place (v_) a sequence.
_HPATCHES_VIEWS = tuple(f'{kind}{number}' for kind in 'eht' for number in range(1, 6))
# 6 diameters of a point are the width of SIFT's sixteen histograms.
_SIFT_DIAMETERS = 6.0
_BATCH = 256


class PatchPairs(NamedTuple):
    """Patches (N, 32, 32) uint8 and pairs of them.

    ``first`` and ``second`` (M,) int64 are places in ``patches``; ``is_same`` (M,) bool.
    """

    patches: Patches
    first: Ids
    second: Ids
    is_same: npt.NDArray[np.bool_]


def read_phototour(folder: Path) -> PatchPairs:
    """Read a scene of UBC PhotoTour: ``patches*.bmp``, ``info.txt`` and one ``m50_*.txt``.

    Of several lists of pairs the longest name counts, which is the longest list.

    :raises DataError: a file that is missing or does not fit the others.
    """
    lists = sorted(folder.glob('m50_*.txt'), key=lambda path: (len(path.name), path.name))
    sheets = sorted(folder.glob('patches*.bmp'))
    if not lists or not sheets:
        raise DataError(f'{folder} is no scene of PhotoTour: it has no m50_*.txt or patches*.bmp')
    pairs = _read_numbers(lists[-1])
    points = _read_numbers(folder / 'info.txt')[:, 0]
    if pairs.shape[1] < 5:
        raise DataError(f'{lists[-1]} has lines of less than five numbers')
    used, places = np.unique(pairs[:, [0, 3]], return_inverse=True)
    if len(used) == 0 or used[0] < 0 or used[-1] >= len(points):
        raise DataError(f'{lists[-1]} names patches that {folder / "info.txt"} does not have')
    on_sheet = _UBC_ROWS**2
    patches = np.empty((len(used), PATCH_SIZE, PATCH_SIZE), np.uint8)
    for number in np.unique(used // on_sheet):
        if number >= len(sheets):
            raise DataError(f'{folder} has {len(sheets)} files patches*.bmp, not {number + 1}')
        sheet = _read_grey(sheets[number])
        if min(sheet.shape) < _UBC_ROWS * _UBC_SIDE:
            raise DataError(f'{sheets[number]} is smaller than 1024x1024')
        for at in np.flatnonzero(used // on_sheet == number):
            row, column = divmod(int(used[at]) % on_sheet, _UBC_ROWS)
            patches[at] = _shrink(sheet[_UBC_SIDE * row :, _UBC_SIDE * column :], _UBC_SIDE)
    first, second = places.reshape(-1, 2).T
    return PatchPairs(patches, first, second, pairs[:, 1] == pairs[:, 4])


def read_hpatches(folder: Path, seed: int = 0) -> PatchPairs:
    """Read sequences of HPatches: every ``ref.png`` beside its easy, hard and tough views.

    Each patch of a reference is paired with the same of each view, and with another patch of
    that view; the benchmark's own lists of pairs are not read.

    :param seed: of which other patch.
    :raises DataError: no sequence, or files of one that do not fit each other.
    """
    rng, patches, first, second, is_same, start = (
        np.random.default_rng(seed), [], [], [], [], 0
    )  # fmt: skip
    for path in sorted(folder.glob('*/ref.png')):
        reference = _read_strip(path)
        count = len(reference)
        views = [path.with_name(f'{name}.png') for name in _HPATCHES_VIEWS]
        strips = [_read_strip(view) for view in views if view.exists()]
        if any(len(strip) != count for strip in strips) or count < 2:
            raise DataError(f'{path.parent} has views of different numbers of patches, or of one')
        patches += [reference, *strips]
        index = np.arange(count)
        for number in range(1, len(strips) + 1):
            other = (index + rng.integers(1, count, count)) % count
            for partner in (index, other):
                first.append(start + index)
                second.append(start + number * count + partner)
                is_same.append(partner == index)
        start += (1 + len(strips)) * count
    if not first:
        raise DataError(f'{folder} has no folder with ref.png and e1.png, h1.png or t1.png')
    return PatchPairs(*(np.concatenate(each) for each in (patches, first, second, is_same)))


def describe_with(path: Path) -> Describe:
    """Return how weights of HyNet, or of what it is compared with, describe patches.

    :raises NetworkError: they cannot be read.
    """
    network: PatchNetwork = build_network(load_weights(path, 'hynet'), 1)

    def describe(patches: Patches) -> Float32:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(patches), _BATCH):
                part = torch.from_numpy(patches[start : start + _BATCH])[:, None].float()
                rows.append(network.describe(part).numpy())
        return np.concatenate(rows)

    return describe


def rootsift(patches: Patches) -> Float32:
    """Return RootSIFT (N, 128) of patches, of which the sixteen histograms take all."""
    sift = cv2.SIFT_create()
    middle = (PATCH_SIZE - 1) / 2
    point = cv2.KeyPoint(middle, middle, PATCH_SIZE / _SIFT_DIAMETERS, 0)
    rows = np.concatenate([sift.compute(patch, [point])[1] for patch in patches])
    rows = np.maximum(rows, 0)
    return np.asarray(np.sqrt(rows / np.maximum(rows.sum(1, keepdims=True), 1e-12)), np.float32)


def fpr95(distance: Float32, is_same: npt.NDArray[np.bool_]) -> float:
    """Return the share of different pairs as near as the nearest 95 % of the same ones.

    :param distance: (M,) of pairs, ``is_same`` (M,) of which both kinds are there.
    """
    same = np.sort(distance[is_same])
    limit = same[int(np.ceil(_RECALL * len(same))) - 1]
    return float((distance[~is_same] <= limit).mean())


def bench_patches(sets: Mapping[str, PatchPairs], models: Mapping[str, Path]) -> JsonDict:
    """Compare descriptors of patches, RootSIFT first.

    :param sets: pairs by name.
    :param models: weights of HyNet by name.
    :returns: a report for :func:`feat_ros.bench.format_report`.
    :raises DataError: a set whose pairs are all the same or all different.
    """
    describers = {'rootsift': rootsift} | {n: describe_with(path) for n, path in models.items()}
    for name, pairs in sets.items():
        if pairs.is_same.all() or not pairs.is_same.any():
            raise DataError(f'{name} has only pairs of one kind: same and different are needed')
    rows = []
    for name, describe in describers.items():
        row: JsonDict = {'name': name}
        for title, pairs in sets.items():
            found = describe(pairs.patches)
            gap = np.linalg.norm(found[pairs.first] - found[pairs.second], axis=1)
            row[title] = round(100 * fpr95(gap, pairs.is_same), 2)
        rows.append(row)
    notes = [
        f'{name}: {len(pairs.patches)} patches, {pairs.is_same.sum()} pairs the same, '
        f'{(~pairs.is_same).sum()} different'
        for name, pairs in sets.items()
    ]
    title = 'different pairs taken for the same at 95 % recall (FPR95), per cent'
    return {'threads': same_threads(), 'tables': {title: rows}, 'notes': notes, 'checks': []}


def _read_numbers(path: Path) -> Ids:
    """Read lines of whole numbers, all with as many."""
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
        rows = [[int(word) for word in line.split()] for line in lines if line.strip()]
        return np.array(rows, np.int64).reshape(len(rows), -1)
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}') from None
    except ValueError:
        raise DataError(f'{path} does not hold lines of as many whole numbers each') from None


def _read_strip(path: Path) -> Patches:
    strip = _read_grey(path)
    side = _HPATCHES_SIDE
    if strip.shape[1] != side or len(strip) % side:
        raise DataError(f'{path} is {strip.shape[1]}x{len(strip)}: patches of 65x65 are expected')
    return np.stack([_shrink(strip[y:], side) for y in range(0, len(strip), side)])


def _read_grey(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(to_grey(read_image(path)), np.uint8)


def _shrink(values: npt.NDArray[np.uint8], side: int) -> Patches:
    """Return the first ``side`` rows and columns as a patch; bilinear, as the authors do it."""
    patch = np.ascontiguousarray(values[:side, :side])
    return np.asarray(cv2.resize(patch, (PATCH_SIZE, PATCH_SIZE)), np.uint8)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What features sit on: pictures with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.errors import DataError
from feat_ros.feature_bench.matching import Extract
from feat_ros.image import Image, read_image
from feat_ros.semantics import (
    groups_from_labels,
    LabelTable,
    stability_from_groups,
    StabilityGroup,
)
from feat_ros.types import JsonDict

Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]

_STRONGEST = 1000
# Half the width of the band at the borders of labels, where people's strokes are not exact.
_BAND_PX = 3
_BINS = 10
_UNSTABLE = (StabilityGroup.VOLATILE, StabilityGroup.DYNAMIC)


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """A picture and its label ids (H, W)."""

    image: Path
    labels: Path


@dataclass(frozen=True, eq=False)
class LabelledKeypoints:
    """The keypoints of all pictures.

    :ivar label: (N,) id under each.
    :ivar group: (N,) its stability group.
    :ivar is_strong: (N,) whether it is among the 1000 strongest of its picture.
    :ivar is_in_band: (N,) whether another label is within 3 px.
    :ivar stability: (N,) what the extractor says.
    """

    label: npt.NDArray[np.int64]
    group: npt.NDArray[np.uint8]
    is_strong: Bool
    is_in_band: Bool
    stability: Float32


def read_labelled(folder: Path) -> list[LabelledPicture]:
    """Pair ``images/NAME.*`` with ``labels/NAME.png``.

    :raises DataError: no such pair.
    """
    images = sorted((folder / 'images').glob('*')) if folder.is_dir() else []
    labels = {path.stem: path for path in (folder / 'labels').glob('*.png')}
    pairs = [LabelledPicture(path, labels[path.stem]) for path in images if path.stem in labels]
    if not pairs:
        raise DataError(f'{folder} has no images/NAME.* with labels/NAME.png')
    return pairs


def label_keypoints(
    pictures: Sequence[LabelledPicture], table: LabelTable, extract: Extract
) -> LabelledKeypoints:
    """Extract features of every picture and look up what they sit on.

    :raises DataError: labels of another size or with unknown ids.
    """
    parts = []
    for picture in pictures:
        image, labels = read_image(picture.image), _read_labels(picture.labels)
        if image.shape[:2] != labels.shape:
            raise DataError(f'{picture.labels} is not of the size of {picture.image}')
        features = extract(image)
        column, row = np.minimum(
            features.keypoints.astype(np.int64), np.array(labels.shape[::-1]) - 1
        ).T
        parts.append(
            LabelledKeypoints(
                labels[row, column].astype(np.int64),
                groups_from_labels(labels, table)[row, column],
                np.arange(len(features)) < _STRONGEST,
                near_border(labels)[row, column],
                features.stability,
            )
        )
    return LabelledKeypoints(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in LabelledKeypoints.__dataclass_fields__
        )
    )


def near_border(labels: Image) -> Bool:
    """Whether another label (H, W) is within 3 px along both axes."""
    square = np.ones((2 * _BAND_PX + 1,) * 2, np.uint8)
    return np.asarray(cv2.dilate(labels, square) != cv2.erode(labels, square))


def semantic_rows(found: Mapping[str, LabelledKeypoints], table: LabelTable) -> list[JsonDict]:
    """Return a row an extractor.

    Percent of the 1000 strongest on each unstable class; how well its stability tells long-term
    from unstable (AUC); how far it is from what is there (:func:`expected_calibration_error`).
    """
    classes = {
        name: number for number, (name, group) in table.classes.items() if group in _UNSTABLE
    }  # fmt: skip
    rows = []
    for extractor, points in found.items():
        strong = points.is_strong
        inner = strong & ~points.is_in_band
        unstable = np.isin(points.group, _UNSTABLE)
        row: JsonDict = {'name': extractor}
        row |= {
            f'{name}_%': 100 * _share(points.label[strong] == number)
            for name, number in classes.items()
        }
        row['unstable_%'] = 100 * _share(unstable[strong])
        row['inner_%'] = 100 * _share(unstable[inner])
        is_long = points.group == StabilityGroup.LONG_TERM
        for key, kept in (('auc', is_long | unstable), ('inner_auc', ~points.is_in_band)):
            chosen = kept & (is_long | unstable)
            area = separation(points.stability[chosen], is_long[chosen])
            if area is not None:
                row[key] = area
        if 'auc' in row:
            row['ece'] = expected_calibration_error(points.stability, points.group)
        rows.append(row)
    return rows


def separation(values: Float32, is_positive: Bool) -> float | None:
    """Return the chance that a positive has the larger value, ties half (area under the ROC).

    None where all values are equal or one kind is missing.
    """
    num_positive = int(is_positive.sum())
    num_negative = len(values) - num_positive
    if not num_positive or not num_negative or values.min() == values.max():
        return None
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    above = rank[is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def expected_calibration_error(stability: Float32, group: npt.NDArray[np.uint8]) -> float:
    """Return the mean distance between what is said of keypoints and what is there.

    The expected calibration error of Naeini, Cooper and Hauskrecht, AAAI 2015, for the value of a
    stability group: keypoints of known group are put into ten bins by their stability; of each
    bin the mean stability is compared with the mean value of the groups.
    """
    value = stability_from_groups(group)
    is_known = ~np.isnan(value)
    said, value = stability[is_known], value[is_known]
    place = np.minimum((said * _BINS).astype(np.int64), _BINS - 1)
    apart = np.bincount(place, said.astype(np.float64) - value)
    return float(np.abs(apart).sum() / max(len(said), 1))


def _share(is_there: Bool) -> float:
    return float(np.mean(is_there)) if len(is_there) else 0.0


def _read_labels(path: Path) -> Image:
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        raise DataError(f'{path} is not an image of one 8-bit label a pixel')
    return np.asarray(labels, np.uint8)

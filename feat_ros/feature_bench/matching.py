# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How well features match: pictures whose homography is known.

Mikolajczyk et al., "A comparison of affine region detectors", IJCV 2005: the sets of images and
repeatability; Dusmanu et al., "D2-Net", CVPR 2019: mean matching accuracy (MMA).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.errors import DataError
from feat_ros.image import Image, read_image
from feat_ros.matching import dot_similarity, mutual_nearest, Similarity
from feat_ros.types import Features, JsonDict

Float = npt.NDArray[np.float64]
Extract = Callable[[Image], Features]

# Errors in pixels up to which matches are counted; those of the table and of the homographies.
ERRORS_PX = tuple(range(1, 11))
_MMA_PX, _CORNER_PX, _REPEAT_PX = (1, 3, 5), (3, 5), 3.0
_RANSAC_PX = 3.0
ANGLES_DEG = (0, 15, 30, 45, 60, 75, 90, 120, 150, 180)


@dataclass(frozen=True, eq=False)
class HomographySet:
    """Pictures of one flat scene.

    :ivar images: the files; the first is the reference.
    :ivar from_first: (3, 3) of each other one: pixels, centres at halves, of the first to its.
    """

    name: str
    images: list[Path]
    from_first: list[Float]


@dataclass(frozen=True, eq=False)
class PairScores:
    """What one pair of images gave.

    :ivar accuracy: (10,) share of the matches within 1 to 10 px.
    :ivar corner_px: mean error of the corners under the homography of the matches; infinite
        where none was found.
    :ivar repeatability: share of the keypoints seen by both that have one of the other near.
    """

    accuracy: Float
    num_correct: int
    corner_px: float
    repeatability: float


def read_homography_sets(folder: Path) -> list[HomographySet]:
    """Read every sub-folder with ``img1.*`` to ``imgN.*`` and ``H1toNp`` (OpenCV's XML or text).

    The homographies are taken to have pixel centres at whole numbers, as Oxford's.

    :raises DataError: no such sub-folder, or a homography that cannot be read.
    """
    sets = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        images = sorted(path.glob('img[0-9].*'))
        if len(images) < 2 or images[0].stem != 'img1':
            continue
        numbers = [image.stem.removeprefix('img') for image in images[1:]]
        found = [_read_homography(path, number) for number in numbers]
        sets.append(HomographySet(path.name, images, found))
    if not sets:
        raise DataError(f'{folder} has no folder with img1, img2, ... and H1to2p, ...')
    return sets


def match_sets(
    sets: Sequence[HomographySet], extract: Extract, similarity: Similarity = dot_similarity
) -> dict[str, list[PairScores]]:
    """Match the first image of each set with every other."""
    found = {}
    for each in sets:
        images = [read_image(path) for path in each.images]
        features = [extract(image) for image in images]
        found[each.name] = [
            score_pair(features[0], other, homography, images[0], image, similarity)
            for other, image, homography in zip(
                features[1:], images[1:], each.from_first, strict=True
            )
        ]
    return found


def match_turned(
    sets: Sequence[HomographySet], extract: Extract, similarity: Similarity = dot_similarity
) -> dict[int, float]:
    """Turn the first image of each set: mean share of matches within 3 px for each angle."""
    shares: dict[int, list[float]] = {angle: [] for angle in ANGLES_DEG}
    for each in sets:
        image = read_image(each.images[0])
        features = extract(image)
        for angle in ANGLES_DEG:
            turned, homography = turn(image, angle)
            scores = score_pair(features, extract(turned), homography, image, turned, similarity)
            shares[angle].append(float(scores.accuracy[2]))
    return {angle: float(np.mean(values)) for angle, values in shares.items()}


def turn(image: Image, angle_deg: float) -> tuple[Image, Float]:
    """Turn an image about its centre and keep all of it; return it and its homography."""
    height, width = image.shape[:2]
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    size = np.ceil([abs(cos) * width + abs(sin) * height, abs(sin) * width + abs(cos) * height])
    to_center, from_center = np.eye(3), np.eye(3)
    to_center[:2, 2] = -width / 2, -height / 2
    from_center[:2, 2] = size / 2
    homography = from_center @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ to_center
    half = np.eye(3)
    half[:2, 2] = 0.5
    with_whole_centres = np.linalg.inv(half) @ homography @ half
    turned = cv2.warpPerspective(image, with_whole_centres, [int(side) for side in size])
    return np.asarray(turned, np.uint8), homography


def score_pair(
    first: Features, second: Features, homography: Float, image: Image, other: Image,
    similarity: Similarity = dot_similarity,
) -> PairScores:  # fmt: skip
    """Match two images by mutual nearest neighbours, and judge by the true homography."""
    pairs, _ = mutual_nearest(first.descriptors, second.descriptors, similarity)
    source = first.keypoints[pairs[:, 0]].astype(np.float64)
    target = second.keypoints[pairs[:, 1]].astype(np.float64)
    error = np.linalg.norm(apply_homography(homography, source) - target, axis=1)
    accuracy = [float(np.mean(error <= limit)) if len(error) else 0.0 for limit in ERRORS_PX]
    return PairScores(
        np.array(accuracy),
        int(np.sum(error <= _MMA_PX[1])),
        _corner_error(source, target, homography, image),
        repeatability(first, second, homography, image, other),
    )


def apply_homography(homography: Float, points: Float) -> Float:
    """Return points (N, 2) under a homography (3, 3)."""
    mapped = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return np.asarray(mapped[:, :2] / mapped[:, 2:])


def repeatability(
    first: Features, second: Features, homography: Float, image: Image, other: Image
) -> float:
    """Share of the keypoints that both images see which have one of the other within 3 px.

    Of both directions the mean; distances are measured in the second image.
    """
    there = apply_homography(homography, first.keypoints.astype(np.float64))
    inverse = np.asarray(np.linalg.inv(homography), np.float64)
    back = apply_homography(inverse, second.keypoints.astype(np.float64))
    there = there[_is_inside(there, other)]
    seen = second.keypoints[_is_inside(back, image)].astype(float)
    if not len(there) or not len(seen):
        return 0.0
    near_there, near_seen = np.zeros(len(there), bool), np.zeros(len(seen), bool)
    for start in range(0, len(there), 512):
        rows = slice(start, start + 512)
        close = np.linalg.norm(there[rows, None] - seen[None], axis=2) <= _REPEAT_PX
        near_there[rows] = close.any(axis=1)
        near_seen |= close.any(axis=0)
    return float((near_there.mean() + near_seen.mean()) / 2)


def matching_rows(
    found: Mapping[str, Mapping[str, list[PairScores]]],
) -> dict[str, list[JsonDict]]:
    """Return a table for each set and one of all: a row an extractor."""
    names = list(dict.fromkeys(name for sets in found.values() for name in sets))
    tables = {}
    for title in (*names, 'all sets'):
        tables[f'matching: {title}'] = [
            {'name': extractor}
            | _summary(list(_pairs(sets, None if title == 'all sets' else title)))
            for extractor, sets in found.items()
        ]
    return tables


def accuracy_curve(sets: Mapping[str, list[PairScores]]) -> list[float]:
    """Return the mean share of matches within 1 to 10 px, over all pairs."""
    curve = np.mean([pair.accuracy for pair in _pairs(sets, None)], axis=0)
    return [float(value) for value in curve]


def _pairs(sets: Mapping[str, list[PairScores]], name: str | None) -> Iterator[PairScores]:
    for each, pairs in sets.items():
        if name in (None, each):
            yield from pairs


def _summary(pairs: list[PairScores]) -> dict[str, float]:
    accuracy = np.mean([pair.accuracy for pair in pairs], axis=0)
    corners = np.array([pair.corner_px for pair in pairs])
    return {
        **{f'mma_{limit}px': float(accuracy[limit - 1]) for limit in _MMA_PX},
        **{f'homog_{limit}px': float(np.mean(corners <= limit)) for limit in _CORNER_PX},
        'repeatab': float(np.mean([pair.repeatability for pair in pairs])),
        'correct': float(np.mean([pair.num_correct for pair in pairs])),
    }


def _corner_error(source: Float, target: Float, homography: Float, image: Image) -> float:
    if len(source) < 4:
        return np.inf
    cv2.setRNGSeed(0)
    estimate, _ = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, _RANSAC_PX, maxIters=10_000, confidence=0.9999
    )
    if estimate is None:
        return np.inf
    height, width = image.shape[:2]
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float64)
    apart = apply_homography(np.asarray(estimate), corners) - apply_homography(homography, corners)
    return float(np.linalg.norm(apart, axis=1).mean())


def _is_inside(points: Float, image: Image) -> npt.NDArray[np.bool_]:
    return np.asarray(((points >= 0) & (points < image.shape[1::-1])).all(axis=1))


def _read_homography(folder: Path, number: str) -> Float:
    path = folder / f'H1to{number}p.xml'
    try:
        if path.exists():
            text = next(ElementTree.parse(path).iter('data')).text or ''
        else:
            path = folder / f'H1to{number}p'
            text = path.read_text()
        matrix = np.array(text.split(), np.float64).reshape(3, 3)
    except (OSError, ValueError, StopIteration, ElementTree.ParseError):
        raise DataError(f'{path} is not a homography of 3x3 numbers') from None
    half = np.eye(3)
    half[:2, 2] = 0.5
    return np.asarray(half @ matrix @ np.linalg.inv(half))

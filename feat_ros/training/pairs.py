# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of views with known correspondence, points detected in each view by itself.

A pair is one photograph through two homographies, or two frames of a town, which differ by real
motion, other cars and other light. Each pair is a function of (seed, step, number): a run that is
resumed sees what it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from feat_ros.config import Config, option
from feat_ros.errors import DataError
from feat_ros.models.scale_space import Points, ScaleSpace
from feat_ros.models.sfd2_lite import GROUPS, tones
from feat_ros.semantics import StabilityGroup
from feat_ros.training.augment import change_light, LightConfig
from feat_ros.training.town_cache import project, TownCache

Float = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]

_SUFFIXES = ('.jpg', '.jpeg', '.png')
_LABEL_SUFFIX = '.group.png'
# Pixels: a match is nearer than the first, a point without partner farther than the second.
_MATCH_PX, _NO_MATCH_PX = 1.5, 3.0
# Of 64 places of a town frame, how many the other must see, and how often that is tried.
_TOWN_SEEN, _TOWN_TRIES = 28, 12
# Mean grey level from which a frame of the town was taken by day.
_DAY_MEAN = 60.0
# What the network's stability outputs stand for; -1 where nobody knows.
_OUTPUT_OF_GROUP = np.full(len(StabilityGroup), -1, np.int64)
_OUTPUT_OF_GROUP[[int(group) for group in GROUPS]] = range(len(GROUPS))
_OUTPUT_OF_GROUP[StabilityGroup.DYNAMIC] = GROUPS.index(StabilityGroup.VOLATILE)
# Maps points of the first view to the second: places, and 1 visible, 0 not, -1 gone.
Transfer = Callable[[Float], tuple[Float, Any]]


@dataclass(frozen=True)
class PairConfig(Config):
    """How pairs are made."""

    pairs: int = option(6, 'pairs a step', minimum=1)
    size: int = option(256, 'side of a view in pixels', minimum=64, maximum=1024)
    points: int = option(384, 'strongest points of a view', minimum=8)
    town_share: float = option(0.25, 'pairs from the town', minimum=0.0, maximum=1.0)
    turned_share: float = option(0.6, 'pairs turned against each other', minimum=0, maximum=1)
    turned_deg: float = option(30.0, 'largest such turn', minimum=0.0, maximum=180.0)
    upended_share: float = option(
        0.12, 'pairs turned by any angle to 180 degrees', minimum=0.0, maximum=1.0
    )
    smallest_scale: float = option(0.6, 'of the second view', minimum=0.2, maximum=1.0)
    largest_scale: float = option(1.5, 'of the second view', minimum=1.0, maximum=5.0)
    corner_jitter: float = option(
        0.22, 'how far corners move, as a share of the side', minimum=0.0, maximum=0.4
    )
    light: LightConfig = field(default_factory=LightConfig)


class Batch(NamedTuple):
    """One step's pairs: P pairs, N points a view; the first views come first.

    ============  ================  ======================================================
    ``images``    (2P, S, S, 3)     uint8 RGB
    ``points``    (2P, N, ...)      points of each view
    ``partner``   (P, N) int64      the second view's point of each of the first's, or -1
    ``target``    (2P, N) int64     1 has a partner, 0 has none though its place is seen,
                                    -1 nothing is known
    ``group``     (2P, N) int64     output of the stability head, -1 unknown
    ============  ================  ======================================================
    """

    images: Tensor
    points: Points
    partner: Tensor
    target: Tensor
    group: Tensor


class View(NamedTuple):
    """One picture of a pair; ``group`` (S, S) uint8, ``view_from_source`` 3x3."""

    image: Image
    group: npt.NDArray[np.uint8]
    view_from_source: Float


# Two views and where the points of each lie in the other.
Pair = tuple[View, View, tuple[Transfer, Transfer]]


class Photo(NamedTuple):
    """A photograph at full, half, quarter ... resolution, and its labels if it has any."""

    levels: list[Image]
    group: npt.NDArray[np.uint8] | None


def find_photos(folders: list[str]) -> list[Path]:
    """List the photographs under folders; ``NAME.group.png`` are labels of ``NAME.*``.

    :raises DataError: a folder has none.
    """
    found = []
    for folder in folders:
        paths = sorted(
            path
            for path in Path(folder).rglob('*')
            if path.suffix.lower() in _SUFFIXES and not path.name.endswith(_LABEL_SUFFIX)
        )
        if not paths:
            raise DataError(f'folder {folder} has no photographs: name one with .jpg or .png')
        found += paths
    return found


def data_manifest(paths: list[Path]) -> list[dict[str, str]]:
    """Name, with the folder it is in, and sha256 of each file and of its labels."""
    manifest = []
    for path in paths:
        files = {'sha256': path, 'labels_sha256': _label_path(path)}
        hashes = {
            key: hashlib.sha256(file.read_bytes()).hexdigest()
            for key, file in files.items()
            if file.exists()
        }
        manifest.append({'file': f'{path.parent.name}/{path.name}', **hashes})
    return manifest


def _label_path(path: Path) -> Path:
    return path.with_name(path.stem + _LABEL_SUFFIX)


def read_photo(path: Path) -> Photo:
    """Read a photograph, and its labels where there are any.

    :raises DataError: not a picture, or labels of another size.
    """
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise DataError(f'{path} is no picture that OpenCV reads: remove it')
    levels = [np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)]
    while min(levels[-1].shape[:2]) >= 256:
        height, width = levels[-1].shape[:2]
        half = cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(half, np.uint8))
    label_path = _label_path(path)
    group = None
    if label_path.exists():
        found = cv2.imread(str(label_path), cv2.IMREAD_GRAYSCALE)
        group = np.zeros((0, 0), np.uint8) if found is None else np.asarray(found, np.uint8)
        if group.shape != levels[0].shape[:2] or group.max() >= len(StabilityGroup):
            raise DataError(f'{label_path} is not a label image of {path}: size or ids differ')
    return Photo(levels, group)


class PairMaker(Dataset[Batch]):
    """Batches by step number.

    :param photos: files; drawn in proportion to the square root of their area.
    :param town: None for photographs only.
    """

    def __init__(
        self, config: PairConfig, photos: list[Path], town: TownCache | None, seed: int
    ) -> None:
        self.config, self.seed, self.town = config, seed, town
        self._photos = [read_photo(path) for path in photos]
        weight = np.sqrt([photo.levels[0][..., 0].size for photo in self._photos])
        self._share = weight / weight.sum()
        self._detector = ScaleSpace()

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of a step."""
        views: list[View] = []
        second: list[View] = []
        transfers: list[tuple[Transfer, Transfer]] = []
        for number in range(self.config.pairs):
            rng = np.random.default_rng([self.seed, step, number])
            is_town = self.town is not None and rng.random() < self.config.town_share
            made = self._town_pair(rng) if is_town else self._photo_pair(rng)
            views.append(made[0])
            second.append(made[1])
            transfers.append(made[2])
        return self._batch(views + second, transfers)

    def _batch(self, views: list[View], transfers: list[tuple[Transfer, Transfer]]) -> Batch:
        images = torch.from_numpy(np.stack([view.image for view in views]))
        size = self.config.size
        with torch.no_grad():
            valid_wh = torch.full((len(views), 2), size, dtype=torch.int32)
            points = self._detector(tones(images, valid_wh).grey, valid_wh, self.config.points)
        xy = points.xy.numpy().astype(float)
        is_point = points.response.numpy() > 0
        count = len(transfers)
        partner = np.full((count, xy.shape[1]), -1, np.int64)
        target = np.full(xy.shape[:2], -1, np.int64)
        for i, transfer in enumerate(transfers):
            j = count + i
            partner[i], target[i], target[j] = correspond(
                xy[i], is_point[i], xy[j], is_point[j], transfer, size
            )
        group = np.full(xy.shape[:2], -1, np.int64)
        for i, view in enumerate(views):
            at = np.clip(xy[i].astype(int), 0, size - 1)
            group[i] = _OUTPUT_OF_GROUP[view.group[at[:, 1], at[:, 0]]]
        group[~is_point] = -1
        return Batch(
            images, points, torch.from_numpy(partner), torch.from_numpy(target),
            torch.from_numpy(group),
        )  # fmt: skip

    def _photo_pair(self, rng: np.random.Generator) -> Pair:
        photo = self._photos[int(rng.choice(len(self._photos), p=self._share))]
        height, width = photo.levels[0].shape[:2]
        size = self.config.size
        largest = max(min(height, width) / size, 1.0)
        scale = float(np.exp(rng.uniform(np.log(min(0.8, largest)), np.log(largest))))
        reach = 0.5 * scale * size
        center = np.array(
            [_between(rng, reach, width - reach), _between(rng, reach, height - reach)]
        )
        turn = float(rng.normal(0, 4.0))
        first = self._quad(rng, center, scale, turn)
        shift = rng.uniform(-0.2, 0.2, 2) * size * scale
        low, high = np.log(self.config.smallest_scale), np.log(self.config.largest_scale)
        scale = scale * float(np.exp(rng.uniform(low, high)))
        second = self._quad(rng, center + shift, scale, turn + self._turn(rng))
        if rng.random() < 0.5:
            first, second = second, first
        a = self._photo_view(photo, first, rng, may_be_night=False)
        b = self._photo_view(photo, second, rng, may_be_night=True)
        b_from_a = b.view_from_source @ np.linalg.inv(a.view_from_source)
        transfers = _homography_transfer(b_from_a), _homography_transfer(np.linalg.inv(b_from_a))
        return a, b, transfers

    def _turn(self, rng: np.random.Generator) -> float:
        """Turn of the second view in degrees."""
        kind = rng.random()
        if kind < self.config.upended_share:
            return float(rng.uniform(-180, 180))
        if kind < self.config.upended_share + self.config.turned_share:
            return float(rng.uniform(-1, 1)) * self.config.turned_deg
        return 0.0

    def _quad(
        self, rng: np.random.Generator, center: Float, scale: float, turn_deg: float
    ) -> Float:
        """Corners (4, 2) in the source of a view."""
        size, angle = self.config.size, np.radians(turn_deg)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (size / 2)
        jitter = rng.uniform(-0.5, 0.5, (4, 2)) * self.config.corner_jitter * size
        return np.asarray(center + scale * (corners + jitter) @ turn.T)

    def _view_from(self, quad: Float) -> Float:
        size = self.config.size
        corners = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
        return np.asarray(
            cv2.getPerspectiveTransform(quad.astype(np.float32), corners), np.float64
        )

    def _photo_view(
        self, photo: Photo, quad: Float, rng: np.random.Generator, *, may_be_night: bool
    ) -> View:
        view_from_source = self._view_from(quad)
        # The level at which a pixel of the view is one to two of the photograph's.
        step = float(np.linalg.norm(quad[1] - quad[0]) + np.linalg.norm(quad[3] - quad[0])) / 2
        level = int(np.clip(np.log2(max(step / self.config.size, 1.0)), 0, len(photo.levels) - 1))
        source = photo.levels[level]
        height, width = photo.levels[0].shape[:2]
        shrink = np.diag([width / source.shape[1], height / source.shape[0], 1.0])
        # Beyond its border a photograph goes on as its mirror image, the same for both views.
        image = self._warp(source, view_from_source @ shrink, cv2.INTER_LINEAR)
        group = np.zeros(image.shape[:2], np.uint8)
        if photo.group is not None:
            group = self._warp(photo.group, view_from_source, cv2.INTER_NEAREST)
        image = change_light(image, self.config.light, rng, may_be_night=may_be_night)
        return View(image, group, view_from_source)

    def _warp(self, source: Image, view_from_source: Float, interpolation: int) -> Image:
        """Warp with pixel centres at one half, where OpenCV has them at whole numbers."""
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        matrix = np.linalg.inv(half) @ view_from_source @ half
        size = (self.config.size, self.config.size)
        warped = cv2.warpPerspective(
            source, matrix, size, flags=interpolation, borderMode=cv2.BORDER_REFLECT
        )
        return np.asarray(warped, np.uint8)

    def _town_pair(self, rng: np.random.Generator) -> Pair:
        assert self.town is not None
        size = self.config.size
        for _ in range(_TOWN_TRIES):
            first, second = rng.permutation(self.town.pairs[rng.integers(len(self.town.pairs))])
            a, b = self.town[int(first)], self.town[int(second)]
            width, height = a.camera.size_wh
            largest = min(width, height) / size
            scale, other = np.exp(rng.uniform(np.log(0.8), np.log(largest), 2)).tolist()
            reach = 0.5 * scale * size
            center = rng.uniform([reach, reach], [width - reach, height - reach])
            # The second view looks at what both see of the first.
            seen_xy, seen = project(a, b, center + rng.uniform(-reach, reach, (64, 2)))
            if (seen == 1).sum() >= _TOWN_SEEN:
                break
        else:
            return self._photo_pair(rng)
        target = np.median(seen_xy[seen == 1], axis=0) + rng.uniform(-0.15, 0.15, 2) * size * other
        reach = 0.5 * other * size
        target = np.clip(target, [reach, reach], [width - reach, height - reach])
        turn = self._turn(rng) if rng.random() < 0.3 else float(rng.normal(0, 3.0))
        views: list[View] = []
        for frame, quad in (
            (a, self._quad(rng, center, scale, 0.0)), (b, self._quad(rng, target, other, turn))
        ):  # fmt: skip
            view_from_source = self._view_from(quad)
            image = self._warp(frame.image, view_from_source, cv2.INTER_LINEAR)
            may_be_night = bool(views) and image.mean() > _DAY_MEAN
            image = change_light(image, self.config.light, rng, may_be_night=may_be_night)
            group = self._warp(frame.group, view_from_source, cv2.INTER_NEAREST)
            views.append(View(image, group, view_from_source))

        def transfer(source: Any, target: Any, source_view: View, target_view: View) -> Transfer:
            inverse = np.asarray(np.linalg.inv(source_view.view_from_source), float)

            def apply(points: Float) -> tuple[Float, Any]:
                pixels = _apply(inverse, points)
                width, height = source.camera.size_wh
                is_inside = np.all((pixels >= 0) & (pixels < [width, height]), axis=1)
                projected, status = project(source, target, pixels)
                # Beyond its border a frame is a mirror image, which is nowhere in the other.
                return _apply(target_view.view_from_source, projected), status * is_inside

            return apply

        both = (transfer(a, b, *views), transfer(b, a, *views[::-1]))
        return views[0], views[1], both


def correspond(
    xy_a: Float,
    is_point_a: npt.NDArray[np.bool_],
    xy_b: Float,
    is_point_b: npt.NDArray[np.bool_],
    transfer: tuple[Transfer, Transfer],
    size: int,
) -> tuple[Any, Any, Any]:
    """Find which points of two views are the same.

    :param xy_a: (N, 2), of which only ``is_point_a`` (N,) count; likewise b.
    :param transfer: from a to b, and from b to a.
    :param size: side of the views.
    :returns: partner (N,) and the targets (N,) of both views, see :class:`Batch`.
    """
    in_b, seen_b = _transferred(xy_a, transfer[0], size)
    in_a, seen_a = _transferred(xy_b, transfer[1], size)
    distance, back = _squared_distance(in_b, xy_b), _squared_distance(xy_a, in_a)
    both = np.maximum(distance, back)
    both[~((seen_b == 1) & is_point_a)] = np.inf
    both[:, ~((seen_a == 1) & is_point_b)] = np.inf
    nearest_b, nearest_a = both.argmin(axis=1), both.argmin(axis=0)
    rows = np.arange(len(xy_a))
    is_match = (nearest_a[nearest_b] == rows) & (both[rows, nearest_b] < _MATCH_PX**2)
    partner = np.where(is_match, nearest_b, -1)
    targets = []
    for seen, is_point, gap, other_is_point in (
        (seen_b, is_point_a, distance, is_point_b),
        (seen_a, is_point_b, back.T, is_point_a),
    ):
        closest = gap[:, other_is_point].min(axis=1, initial=np.inf)
        is_alone = ((seen == 1) & (closest > _NO_MATCH_PX**2)) | (seen == -1)
        targets.append(np.where(is_point & is_alone, 0, -1))
    targets[0][is_match] = 1
    targets[1][partner[is_match]] = 1
    return partner, targets[0], targets[1]


def _squared_distance(a: Float, b: Float) -> npt.NDArray[np.float32]:
    """Return (N, M) float32 of points (N, 2) and (M, 2)."""
    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    across = a32[:, :1] - b32[:, 0]
    down = a32[:, 1:] - b32[:, 1]
    across *= across
    down *= down
    across += down
    return across


def _transferred(xy: Float, transfer: Transfer, size: int) -> tuple[Float, Any]:
    """Where points lie in the other view; seen only where the detector looks."""
    border = 8
    places, seen = transfer(xy)
    is_inside = np.all((places >= border) & (places <= size - border), axis=1)
    return places, np.where((seen == 1) & ~is_inside, 0, seen)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number between two, or their mean where the first is the larger."""
    return float(rng.uniform(low, high)) if low < high else (low + high) / 2


def _apply(homography: Float, points: Float) -> Float:
    mapped = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return np.asarray(mapped[:, :2] / mapped[:, 2:])


def _homography_transfer(homography: Float) -> Transfer:
    def apply(points: Float) -> tuple[Float, Any]:
        return _apply(homography, points), np.ones(len(points), int)

    return apply

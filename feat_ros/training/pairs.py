# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of views with known correspondence, points detected in each view by itself.

A pair is one photograph through two homographies, or two frames of a town, which differ by real
motion, other cars and other light. All pairs of a step are made at once, on the device that holds
the pictures, and are a function of (seed, step): a run that is resumed sees what it would have
seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.backends import cudnn
from torch.utils.data import Dataset

from feat_ros.models.scale_space import Points, ScaleSpace
from feat_ros.models.sfd2_lite import GROUPS, tones
from feat_ros.semantics import StabilityGroup
from feat_ros.training import corner_files
from feat_ros.training.augment import change_light
from feat_ros.training.configs import PairConfig, SamParts
from feat_ros.training.pictures import Picture, PictureBank, read_photo
from feat_ros.training.sam_files import NO_SAM, open_bank
from feat_ros.training.town_cache import TownCache, TownViews

Float = npt.NDArray[np.float64]

# Pixels: a match is nearer than the first, a point without partner farther than the second.
_MATCH_PX, _NO_MATCH_PX = 1.5, 3.0
# Pixels at the border of a view where nothing is detected.
_BORDER = 8
# Cuts of a town pair that are tried, the one with most in common is taken; by so many places.
_TOWN_TRIES, _TOWN_PLACES = 12, 64
# Mean grey level from which a frame of the town was taken by day.
_DAY_MEAN = 60.0
_NO_PARTS = SamParts()
# What the network's stability outputs stand for; -1 where nobody knows.
OUTPUT_OF_GROUP = np.full(len(StabilityGroup), -1, np.int64)
OUTPUT_OF_GROUP[[int(group) for group in GROUPS]] = range(len(GROUPS))
OUTPUT_OF_GROUP[StabilityGroup.DYNAMIC] = GROUPS.index(StabilityGroup.VOLATILE)


class Batch(NamedTuple):
    """One step's pairs: P pairs, N points a view; the first views come first.

    ============  ================  ======================================================
    ``images``    (2P, S, S, 3)     uint8 RGB
    ``points``    (2P, N, ...)      points of each view
    ``partner``   (P, N) int64      the second view's point of each of the first's, or -1
    ``target``    (2P, N) int64     1 has a partner, 0 has none though its place is seen,
                                    -1 nothing is known
    ``group``     (2P, N) int64     output of the stability head, -1 unknown
    ``groups``    (2P, S, S) int64  likewise of every pixel
    ``masks``     (2P, S, S) int32  SAM's mask of every pixel: its number, 0 in none, -1 unknown
    ``taught``    (2P, C, s, s)     SAM's features at cells of 8x8 pixels, s = S / 8
    ``is_taught`` (2P, 1, s, s)     where they are known, bool
    ``corners``   (2P, 1, S, S)     probability of a corner in every pixel, NaN unknown
    ============  ================  ======================================================

    The last four are None where they are not asked for, or no photograph has them.
    """

    images: Tensor
    points: Points
    partner: Tensor
    target: Tensor
    group: Tensor
    groups: Tensor
    masks: Tensor | None = None
    taught: Tensor | None = None
    is_taught: Tensor | None = None
    corners: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        points = Points(*(each.to(device) for each in self.points))
        return self._replace(
            points=points,
            **{
                name: each.to(device)
                for name, each in self._asdict().items()
                if isinstance(each, Tensor)
            },
        )


class Cut(NamedTuple):
    """Views cut out of pictures: ``picture`` (V,) int64, ``source_from_view`` (V, 3, 3) f8."""

    picture: Tensor
    source_from_view: Tensor


class Seen(NamedTuple):
    """Points of views and where they lie in their partner.

    ============  ================  =====================================================
    ``xy``        (P, N, 2)         pixels
    ``is_point``  (P, N) bool       which of them there are
    ``there``     (P, N, 2)         their places in the other view
    ``status``    (P, N) int64      1 seen there, 0 not, -1 gone
    ============  ================  =====================================================
    """

    xy: Tensor
    is_point: Tensor
    there: Tensor
    status: Tensor


class PairMaker(Dataset[Batch]):
    """Batches by step number.

    :param photos: files; drawn in proportion to the square root of their area.
    :param town: None for photographs only.
    :param device: where pictures lie and pairs are made.
    :param sam_parts: what is read of SAM's files beside photographs.
    :param reads_corners: whether the files of corners are read.
    :raises DataError: a file cannot be used.
    """

    def __init__(
        self,
        config: PairConfig,
        photos: list[Path],
        town: TownCache | None,
        seed: int,
        device: torch.device | str = 'cpu',
        sam_parts: SamParts = _NO_PARTS,
        reads_corners: bool = False,
    ) -> None:
        self.config, self.seed, self.device = config, seed, torch.device(device)
        pictures = [read_photo(path) for path in photos]
        self._num_photos = len(pictures)
        self._town_share = 0.0
        if town is not None:
            self._town_share = config.town_share
            frames = [town[number] for number in range(len(town))]
            pictures += [Picture(frame.image, frame.group) for frame in frames]
            self._town_views = TownViews(frames, self.device)
            self._town_pairs = town.pairs
        self._bank = PictureBank(pictures, self.device)
        self._sam_bank = open_bank(photos, pictures, sam_parts, self.device)
        self._corner_bank = None
        if reads_corners:
            self._corner_bank = corner_files.open_bank(photos, pictures, self.device)
        weight = np.sqrt(self._bank.size_wh[: self._num_photos].prod(axis=1))
        self._share = weight / weight.sum()
        self._detector = ScaleSpace().to(self.device)
        self._output_of_group = torch.from_numpy(OUTPUT_OF_GROUP).to(self.device)

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of a step."""
        rng = np.random.default_rng([self.seed, step])
        count = self.config.pairs
        is_town = rng.random(count) < self._town_share
        a, b = self._photo_cuts(rng, count)
        if is_town.any():
            town_a, town_b = self._town_cuts(rng, count)
            a, b = (_choose(is_town, of_town, of_photo) for of_town, of_photo in
                    ((town_a, a), (town_b, b)))  # fmt: skip
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        return self._batch(a, b, torch.from_numpy(is_town).to(self.device), generator)

    def _batch(self, a: Cut, b: Cut, is_town: Tensor, generator: torch.Generator) -> Batch:
        size, count = self.config.size, len(is_town)
        both = Cut(*(torch.cat(pair) for pair in zip(a, b, strict=True)))
        views, groups = self._bank.views(both.picture, both.source_from_view, size)
        second = torch.arange(2 * count, device=self.device) >= count
        by_day = ~is_town.repeat(2) | (views.mean((1, 2, 3)) > _DAY_MEAN)
        views = change_light(views, self.config.light, generator, second & by_day)
        images = views.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
        valid_wh = torch.full((2 * count, 2), size, dtype=torch.int32, device=self.device)
        # Differences of Gaussians drown in TensorFloat-32.
        with torch.no_grad(), cudnn.flags(enabled=True, allow_tf32=False):
            points = self._detector(tones(images, valid_wh).grey, valid_wh, self.config.points)
        is_point = points.response > 0
        seen_a, seen_b = (
            Seen(
                points.xy[part],
                is_point[part],
                *self._transfer(points.xy[part], here, there, is_town),
            )
            for part, here, there in ((slice(count), a, b), (slice(count, None), b, a))
        )
        partner, target_a, target_b = correspond(seen_a, seen_b, size)
        outputs = self._output_of_group[groups.long()]
        column, row = points.xy.long().clamp(0, size - 1).unbind(-1)
        group = torch.gather(outputs.flatten(1), 1, row * size + column)
        group = torch.where(is_point, group, -1)
        corners = None
        if self._corner_bank is not None:
            corners = self._corner_bank.views(both.picture, both.source_from_view, size)
        sam = NO_SAM
        if self._sam_bank is not None:
            sam = self._sam_bank.views(both.picture, both.source_from_view, size)
        target = torch.cat([target_a, target_b])
        return Batch(images, points, partner, target, group, outputs, *sam, corners)

    def _transfer(
        self, xy: Tensor, here: Cut, there: Cut, is_town: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where points (P, N, 2) of views lie in their partners, and whether they are seen."""
        view_from_source = torch.linalg.inv_ex(there.source_from_view)[0]
        found = apply_homography(view_from_source @ here.source_from_view, xy)
        status = torch.ones_like(xy[..., 0], dtype=torch.int64)
        if self._town_share:
            pixels = apply_homography(here.source_from_view, xy)
            source, target = (
                (cut.picture - self._num_photos).clamp(min=0) for cut in (here, there)
            )
            projected, seen = self._town_views.project(source, target, pixels)
            limits = pixels.new_tensor([self._town_views.width, self._town_views.height])
            # Beyond its border a frame is a mirror image, which is nowhere in the other.
            seen = seen * ((pixels >= 0) & (pixels < limits)).all(-1)
            moved = apply_homography(view_from_source, projected)
            found = torch.where(is_town[:, None, None], moved, found)
            status = torch.where(is_town[:, None], seen, status)
        return found, status

    def _photo_cuts(self, rng: np.random.Generator, count: int) -> tuple[Cut, Cut]:
        size, config = self.config.size, self.config
        picture = rng.choice(self._num_photos, count, p=self._share)
        wh = self._bank.size_wh[picture]
        largest = np.log(np.maximum(wh.min(1) / size, 1.0))
        scale = np.exp(rng.uniform(np.minimum(np.log(0.8), largest), largest))
        center = _between(rng, 0.5 * scale[:, None] * size, wh - 0.5 * scale[:, None] * size)
        turn = rng.normal(0, 4.0, count)
        first = self._quads(rng, center, scale, turn)
        shift = rng.uniform(-0.2, 0.2, (count, 2)) * size * scale[:, None]
        low, high = np.log(config.smallest_scale), np.log(config.largest_scale)
        scale = scale * np.exp(rng.uniform(low, high, count))
        second = self._quads(rng, center + shift, scale, turn + self._turns(rng, count))
        is_swapped = (rng.random(count) < 0.5)[:, None, None]
        chosen = torch.from_numpy(picture).to(self.device)
        a, b = (
            Cut(chosen, homographies(torch.from_numpy(quads).to(self.device), size))
            for quads in (
                np.where(is_swapped, second, first), np.where(is_swapped, first, second)
            )
        )  # fmt: skip
        return a, b

    def _turns(self, rng: np.random.Generator, count: int) -> Float:
        """Turns of second views in degrees."""
        kind, turn = rng.random(count), rng.uniform(-1, 1, count)
        upended, turned = self.config.upended_share, self.config.turned_share
        mild = np.where(kind < upended + turned, turn * self.config.turned_deg, 0.0)
        return np.where(kind < upended, turn * 180.0, mild)

    def _quads(
        self, rng: np.random.Generator, center: Float, scale: Float, turn_deg: Float
    ) -> Float:
        """Corners (P, 4, 2) in the source of views, from the top left clockwise."""
        size, angle = self.config.size, np.radians(turn_deg)
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (size / 2)
        jitter = rng.uniform(-0.5, 0.5, (len(center), 4, 2)) * self.config.corner_jitter * size
        turned = (corners + jitter) @ turn.transpose(0, 2, 1)
        return np.asarray(center[:, None] + scale[:, None, None] * turned)

    def _town_cuts(self, rng: np.random.Generator, count: int) -> tuple[Cut, Cut]:
        """Cuts of two frames that show the same surfaces."""
        size, tries = self.config.size, _TOWN_TRIES
        wh = np.array([self._town_views.width, self._town_views.height], float)
        pairs = self._town_pairs[rng.integers(len(self._town_pairs), size=count * tries)]
        pairs = rng.permuted(pairs, axis=1)
        largest = max(np.log(wh.min() / size), np.log(0.8))
        scale, other = np.exp(rng.uniform(np.log(0.8), largest, (2, count * tries)))
        reach = 0.5 * scale[:, None] * size
        center = _between(rng, np.broadcast_to(reach, (len(reach), 2)), wh - reach)
        places = (
            center[:, None] + rng.uniform(-1, 1, (len(reach), _TOWN_PLACES, 2)) * reach[:, None]
        )
        first, second, places_on_device = (
            torch.from_numpy(np.ascontiguousarray(each)).to(self.device)
            for each in (pairs[:, 0], pairs[:, 1], places)
        )
        seen_xy, status = self._town_views.project(first, second, places_on_device.float())
        # The second view looks at what both see of the first.
        seen_xy = torch.where((status == 1)[..., None], seen_xy, torch.nan)
        target = torch.nanmedian(seen_xy, dim=1).values
        best = (status == 1).sum(1).reshape(count, tries).argmax(1)
        best = best + torch.arange(count, device=self.device) * tries
        target = torch.nan_to_num(target, nan=0.0).double()
        shift = rng.uniform(-0.15, 0.15, target.shape) * size * other[:, None]
        reach = 0.5 * other[:, None] * size
        low, high = np.minimum(reach, wh / 2), np.maximum(wh - reach, wh / 2)
        shift, low, high = (torch.from_numpy(each).to(self.device) for each in (shift, low, high))
        target = torch.minimum(torch.maximum(target + shift, low), high)
        turn = np.where(
            rng.random(len(pairs)) < 0.3,
            self._turns(rng, len(pairs)),
            rng.normal(0, 3.0, len(pairs)),
        )
        quads_a = self._quads(rng, center, scale, np.zeros(len(pairs)))
        quads_b = self._quads(rng, np.zeros_like(center), other, turn)
        cuts = []
        for frame, quads, middle in ((first, quads_a, None), (second, quads_b, target)):
            corners = torch.from_numpy(quads).to(self.device)
            corners = corners if middle is None else corners + middle[:, None]
            cuts.append(Cut(self._num_photos + frame[best], homographies(corners[best], size)))
        return cuts[0], cuts[1]


def _choose(is_first: npt.NDArray[np.bool_], first: Cut, second: Cut) -> Cut:
    chosen = torch.from_numpy(is_first).to(first.picture.device)
    return Cut(
        torch.where(chosen, first.picture, second.picture),
        torch.where(chosen[:, None, None], first.source_from_view, second.source_from_view),
    )


def homographies(quads: Tensor, size: int) -> Tensor:
    """Return what takes a square of ``size`` pixels to quadrilaterals, (V, 3, 3).

    Heckbert, "Fundamentals of texture mapping and image warping", 1989, section 2.2.3.

    :param quads: (V, 4, 2) corners, from the top left clockwise.
    """
    p0, p1, p2, p3 = quads.unbind(1)
    d1, d2, s = p1 - p2, p3 - p2, p0 - p1 + p2 - p3
    determinant = d1[:, 0] * d2[:, 1] - d2[:, 0] * d1[:, 1]
    g = ((s[:, 0] * d2[:, 1] - d2[:, 0] * s[:, 1]) / determinant)[:, None]
    h = ((d1[:, 0] * s[:, 1] - s[:, 0] * d1[:, 1]) / determinant)[:, None]
    affine = torch.stack([p1 - p0 + g * p1, p3 - p0 + h * p3, p0], -1)
    last = torch.stack([g, h, torch.ones_like(g)], -1)
    unit = torch.cat([affine, last], 1)
    return unit * quads.new_tensor([1 / size, 1 / size, 1.0])


def apply_homography(matrix: Tensor, points: Tensor) -> Tensor:
    """Return points (B, N, 2) through matrices (B, 3, 3)."""
    matrix = matrix.to(points.dtype)
    mapped = points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]
    return mapped[..., :2] / mapped[..., 2:]


def correspond(a: Seen, b: Seen, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find which points of two views are the same.

    :param size: side of the views.
    :returns: partner (P, N) and the targets (P, N) of both views, see :class:`Batch`.
    """
    seen_b, seen_a = _within(a, size), _within(b, size)
    gap, back = _squared_distance(a.there, b.xy), _squared_distance(a.xy, b.there)
    both = torch.maximum(gap, back)
    both = both.masked_fill(~((seen_b == 1) & a.is_point)[:, :, None], torch.inf)
    both = both.masked_fill(~((seen_a == 1) & b.is_point)[:, None, :], torch.inf)
    distance, nearest_b = both.min(2)
    nearest_a = both.argmin(1)
    rows = torch.arange(a.xy.shape[1], device=a.xy.device)
    is_match = (torch.gather(nearest_a, 1, nearest_b) == rows) & (distance < _MATCH_PX**2)
    partner = torch.where(is_match, nearest_b, -1)
    is_matched_b = torch.zeros_like(partner).scatter_add(1, nearest_b, is_match.long()) > 0
    targets = []
    for here, seen, apart, other_is_point, is_matched in (
        (a, seen_b, gap, b.is_point[:, None, :], is_match),
        (b, seen_a, back.transpose(1, 2), a.is_point[:, None, :], is_matched_b),
    ):
        closest = apart.masked_fill(~other_is_point, torch.inf).amin(2)
        is_alone = ((seen == 1) & (closest > _NO_MATCH_PX**2)) | (seen == -1)
        target = torch.where(here.is_point & is_alone, 0, -1)
        targets.append(torch.where(is_matched, 1, target))
    return partner, targets[0], targets[1]


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return (P, N, M) of points (P, N, 2) and (P, M, 2)."""
    across = a[:, :, None, 0] - b[:, None, :, 0]
    down = a[:, :, None, 1] - b[:, None, :, 1]
    return across * across + down * down


def _within(points: Seen, size: int) -> Tensor:
    """Status of points; seen only where the detector of the other view looks."""
    there = points.there
    is_inside = ((there >= _BORDER) & (there <= size - _BORDER)).all(-1)
    return torch.where((points.status == 1) & ~is_inside, 0, points.status)


def _between(rng: np.random.Generator, low: Float, high: Float) -> Float:
    """Return numbers between two, or their mean where the first is the larger."""
    middle = (low + high) / 2
    is_empty = low >= high
    return rng.uniform(np.where(is_empty, middle, low), np.where(is_empty, middle, high))

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One image in, one pose out, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
import logging
from pathlib import Path
import threading
import time

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.config import Config, option
from feat_ros.errors import SegmentError
from feat_ros.extractors import create_extractor, Extractor, parse_extractor_options
from feat_ros.geometry import Rigid3d, rotation_angle_deg
from feat_ros.image import Image
from feat_ros.map_index import open_index
from feat_ros.matching import Matcher, mutual_nearest, similarity_of
from feat_ros.pnp import Observations, PnpConfig, PnpSolution, Rig, solve_rig_pnp
from feat_ros.retrieval.asmk import RETRIEVAL_FEATURES
from feat_ros.runtimes import open_matcher
from feat_ros.sfm_map import SfmMap
from feat_ros.types import (
    FailureReason,
    Features,
    LocalizationResult,
    PoseEstimate,
    PoseFailure,
    PosePrior,
    View,
)

Ids = npt.NDArray[np.int64]
# Returns the map's images most like the given features, best first.
Retriever = Callable[[Features], Ids]

logger = logging.getLogger(__name__)

# Expected number of false poses among this many images that the least number of inliers allows.
_FALSE_POSES = 1e-6


@dataclass(frozen=True)
class LocalizerConfig(Config):
    """Options of :class:`Localizer`."""

    pnp: PnpConfig = option(PnpConfig, 'RANSAC and refinement')
    min_inliers: int = option(12, 'matches that must agree with a pose', minimum=4)
    min_spread: float = option(
        0.02,
        'least standard deviation of the inliers across their narrow direction, as a share of '
        'the image diagonal',
        minimum=0.0,
        maximum=0.5,
    )
    max_position_sigma_m: float = option(
        0.5, 'largest standard deviation of the position by the image alone, metres', minimum=0.0
    )
    max_rotation_sigma_deg: float = option(
        5.0, 'largest standard deviation of the orientation by the image alone', minimum=0.0
    )
    retrieved_images: int = option(
        10, 'most similar images whose points are matched', minimum=1, maximum=10_000
    )
    prior_images: int = option(
        20, 'images near a prior whose points are matched', minimum=1, maximum=1000
    )
    matching: str = option(
        'auto', 'auto: by torch on a GPU, where there are both; cpu', choices=('auto', 'cpu')
    )


def open_localizer(
    map_path: str | Path,
    options: LocalizerConfig | None = None,
    extractor: str | None = None,
    extractor_options: Sequence[str] = (),
) -> Localizer:
    """Open a map with the extractor it was built with.

    :param extractor: its name, where that is to be checked.
    :param extractor_options: ``NAME=VALUE`` words that change how it was made.
    :raises MapError: the map cannot be used, or was built with another extractor.
    :raises ConfigError: an unknown option, or a value out of range.
    """
    options = options or LocalizerConfig()
    sfm_map = SfmMap(map_path)
    built = sfm_map.manifest.extractor
    name = extractor or built.name
    sfm_map.check_extractor(name)
    chosen = {**built.options, **parse_extractor_options(name, extractor_options)}
    return Localizer(
        sfm_map, create_extractor(name, **chosen), create_retriever(sfm_map, options), options,
        open_matcher(options.matching),
    )  # fmt: skip


def create_retriever(sfm_map: SfmMap, config: LocalizerConfig) -> Retriever | None:
    """Open the retrieval index of a map.

    :returns: None where all images are candidates anyway, or the map has no index.
    :raises MapError: the index is damaged.
    """
    index = open_index(sfm_map)
    if index is None or sfm_map.num_images <= config.retrieved_images:
        return None

    def retrieve(features: Features) -> Ids:
        strongest = features.descriptors[:RETRIEVAL_FEATURES]
        return index.search(strongest, config.retrieved_images)[0]

    return retrieve


class Localizer:
    """Localizes images in a map; everything it uses is passed in.

    :param sfm_map: the map.
    :param extractor: the extractor that the map was built with.
    :param retriever: finds the map's images that look like the query; without one all points
        of the map are candidates.
    :param matcher: see :func:`feat_ros.runtimes.open_matcher`.
    :raises MapError: the map was built with another extractor or other weights.
    """

    def __init__(
        self,
        sfm_map: SfmMap,
        extractor: Extractor,
        retriever: Retriever | None = None,
        config: LocalizerConfig | None = None,
        matcher: Matcher = mutual_nearest,
    ) -> None:
        sfm_map.check_extractor(extractor.name, extractor.weights_sha256)
        self.map = sfm_map
        self.extractor = extractor
        self.retriever = retriever
        self.config = config or LocalizerConfig()
        self._matcher = matcher
        self._extracting = threading.Lock()
        self._rotations, translations = sfm_map.image_poses()
        self._centers = -np.einsum('nji,nj->ni', self._rotations, translations)
        # What segments that could not be read are left out for, by their number.
        self._left_out: dict[int, str] = {}
        self._is_usable = np.ones(sfm_map.num_images, bool)

    def localize(
        self, image_rgb: Image | Features, camera: Camera, prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Find the pose of an image.

        :param image_rgb: (H, W, 3) uint8, of the camera's size; or its features.
        :param camera: its calibration.
        :param prior: where the camera should be; a pose is looked for there first, then in the
            whole map, and the result's mode says which one found it.
        :raises ImageError: the image is not of the camera's size.
        """
        return self.localize_rig([View(image_rgb, camera, Rigid3d())], prior)

    def localize_rig(
        self, views: Sequence[View], prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Find the pose of a body by the images that its cameras took at one moment.

        :param prior: where the body should be; see :meth:`localize`.
        :returns: the body's pose, as if it were a camera; matches and inliers are those of the
            first view, then of the second, and so on.
        :raises MapError: what is needed of the map cannot be read; a SegmentError where that is
            in a segment that :meth:`leave_out` can do without.
        """
        ms: dict[str, float] = {}
        with _timed(ms, 'extract'):
            seen = [replace(view, image_rgb=self.features(view)) for view in views]
        count = sum(len(view.features) for view in seen)
        if count < self.config.min_inliers:
            return PoseFailure(
                FailureReason.NO_FEATURES,
                f'the image gave {count} keypoints, {self.config.min_inliers} are needed',
                ms=ms,
            )
        if prior is not None:
            with _timed(ms, 'retrieve'):
                candidates = [self._points_in_view(view, prior) for view in seen]
            result = self._localize_among(candidates, seen, 'prior', ms)
            if isinstance(result, PoseEstimate) and _agrees(result, prior):
                return result
        with _timed(ms, 'retrieve'):
            candidates = [self._retrieve(view.features) for view in seen]
        return self._localize_among(candidates, seen, 'global', ms)

    def leave_out(self, error: SegmentError) -> bool:
        """Do without a segment of the map that cannot be read; False if it was left out before.

        Failures name it from then on, for it may be why.
        """
        if error.segment in self._left_out:
            return False
        logger.error('%s; the rest of the map is used', error)
        self._left_out[error.segment] = str(error)
        self._is_usable &= self.map.segments_of_images() != error.segment
        return True

    def features(self, view: View) -> Features:
        """Return what is in an image, extracted if it has not been; from any thread."""
        if isinstance(view.image_rgb, Features):
            return view.image_rgb
        with self._extracting:
            return self.extractor(view.image_rgb)

    def _retrieve(self, features: Features) -> Ids:
        if self.retriever is None:
            return self.map.points_of_images(np.flatnonzero(self._is_usable))
        images = self.retriever(features)
        return self.map.points_of_images(images[self._is_usable[images]])

    def _points_in_view(self, view: View, prior: PosePrior) -> Ids:
        """Points that the images nearest to a prior saw and that project near its image."""
        camera, predicted = view.camera, view.cam_from_rig @ prior.cam_from_map
        center = predicted.inverse().translation
        # Turning the body swings a camera that is mounted away from its centre.
        lever = np.linalg.norm(view.cam_from_rig.translation)
        reach = prior.radius_m + float(np.radians(prior.angle_deg) * lever)
        distance = np.linalg.norm(self._centers - center, axis=1)
        turned = rotation_angle_deg(self._rotations, predicted.rotation)
        # An image turned away by more than a field of view shares no points.
        distance[(turned > 90.0 + prior.angle_deg) | ~self._is_usable] = np.inf
        nearest = np.argsort(distance, kind='stable')[: self.config.prior_images]
        points = self.map.points_of_images(nearest[np.isfinite(distance[nearest])])
        xyz, _ = self.map.points(points)
        in_cam = predicted.apply(xyz)
        depth = np.maximum(np.linalg.norm(in_cam, axis=1), 1e-9)
        margin = camera.focal_xy.max() * (
            np.radians(prior.angle_deg) + np.minimum(reach / depth, 1.0)
        )
        pixels = camera.project(in_cam)
        inside = (pixels > -margin[:, None]) & (
            pixels < np.array(camera.size_wh) + margin[:, None]
        )
        return np.asarray(points[inside.all(axis=1)])

    def _localize_among(
        self, candidates: list[Ids], views: list[View], mode: str, ms: dict[str, float]
    ) -> LocalizationResult:
        """Match, solve and check against some points of the map."""
        if not any(len(points) for points in candidates):
            detail = 'no image of the map looks like this one'
            detail = '; left out: '.join([detail, *self._left_out.values()])
            return PoseFailure(FailureReason.NO_CANDIDATES, detail, mode=mode, ms=ms)
        with _timed(ms, 'match'):
            matched = [
                self._match(view.features, points)
                for view, points in zip(views, candidates, strict=True)
            ]
        matches = np.concatenate(matched)
        failure = PoseFailure(FailureReason.PNP_FAILED, '', len(matches), mode=mode, ms=ms)
        if len(matches) < self.config.min_inliers:
            return replace(
                failure,
                reason=FailureReason.TOO_FEW_MATCHES,
                detail=f'{len(matches)} matches, {self.config.min_inliers} are needed',
            )
        with _timed(ms, 'pnp'):
            rig = [
                (view.cam_from_rig, self._observations(view, pairs))
                for view, pairs in zip(views, matched, strict=True)
            ]
            solution = solve_rig_pnp(rig, self.config.pnp)
        if solution is None:
            return replace(failure, detail=f'no pose agrees with the {len(matches)} matches')
        failure = replace(failure, num_inliers=len(solution.inliers))
        noise = self.map.manifest.pose_noise
        variance = np.repeat([noise.translation_m**2, noise.rotation_rad**2], 3)
        estimate = PoseEstimate(
            cam_from_map=solution.cam_from_map,
            covariance=solution.covariance + np.diag(variance),
            num_matches=len(matches),
            num_inliers=len(solution.inliers),
            mode=mode,
            inliers=solution.inliers,
            matches=matches,
            ms=ms,
        )
        refusal = self._refusal(estimate, solution, rig)
        if refusal is None:
            return estimate
        detail = '; left out: '.join([refusal[1], *self._left_out.values()])
        return replace(failure, reason=refusal[0], detail=detail)

    def _match(self, features: Features, points: Ids) -> Ids:
        """Return mutual nearest neighbours (M, 2): keypoint, map point."""
        if not len(points) or not len(features):
            return np.zeros((0, 2), np.int64)
        pairs, _ = self._matcher(
            features.descriptors, self.map.descriptors(points), similarity_of(self.extractor.name)
        )
        return np.column_stack([pairs[:, 0], points[pairs[:, 1]]])

    def _observations(self, view: View, matches: Ids) -> Observations:
        xyz, covariance = self.map.points(matches[:, 1])
        features = view.features
        return Observations(
            view.camera,
            features.keypoints[matches[:, 0]].astype(float),
            xyz,
            features.pixel_sigma[matches[:, 0]].astype(float),
            covariance,
        )

    def _refusal(
        self, estimate: PoseEstimate, solution: PnpSolution, rig: Rig
    ) -> tuple[FailureReason, str] | None:
        """Return why a pose must not be published, or None."""
        smallest = min((each.camera for _, each in rig), key=lambda each: each.width * each.height)
        needed = needed_inliers(estimate.num_matches, smallest, self.config)
        if estimate.num_inliers < needed:
            return (
                FailureReason.TOO_FEW_INLIERS,
                f'{estimate.num_inliers} of {estimate.num_matches} matches agree, {needed} are '
                'needed',
            )
        spread = _spread(rig, solution.inliers)
        if spread < self.config.min_spread:
            return (
                FailureReason.DEGENERATE_SPREAD,
                f'the inliers spread over {spread:.3f} of the image diagonal, '
                f'{self.config.min_spread} is needed',
            )
        # What this image fixed: the map's own noise is the same for all and known beforehand.
        position = np.sqrt(np.linalg.eigvalsh(solution.covariance[:3, :3])[-1])
        rotation = np.degrees(np.sqrt(np.linalg.eigvalsh(solution.covariance[3:, 3:])[-1]))
        is_metric = self.map.manifest.scale == 'metric'
        if (is_metric and position > self.config.max_position_sigma_m) or (
            rotation > self.config.max_rotation_sigma_deg
        ):
            return (
                FailureReason.COVARIANCE_TOO_LARGE,
                f'standard deviation of {position:.3g} m and {rotation:.3g} deg, at most '
                f'{self.config.max_position_sigma_m} m and '
                f'{self.config.max_rotation_sigma_deg} deg are allowed',
            )
        return None


def needed_inliers(num_matches: int, camera: Camera, config: LocalizerConfig) -> int:
    """Return how many matches must agree with a pose for it to be believed."""
    by_chance = chance_inliers(
        num_matches, camera, config.pnp.max_error_px, config.pnp.max_iterations
    )
    return max(config.min_inliers, by_chance)


def chance_inliers(num_matches: int, camera: Camera, radius_px: float, hypotheses: int) -> int:
    """Return how many inliers a wrong pose may have by chance, so that more are needed.

    A wrong match is within the radius with the probability of the disc's share of the image; the
    smallest n is returned for which ``hypotheses * P(Poisson >= n - 3)`` is below one in a
    million, three matches being those that the pose was made from.
    """
    rate = num_matches * min(1.0, np.pi * radius_px**2 / (camera.width * camera.height))
    term, tail, count = float(np.exp(-rate)), 1.0, 0
    while tail * hypotheses > _FALSE_POSES and count < num_matches:
        tail -= term
        count += 1
        term *= rate / count
    return count + 3


def _spread(rig: Rig, inliers: npt.NDArray[np.intp]) -> float:
    """Standard deviation of inliers across their narrow direction, by the image diagonal.

    That of the camera where it is largest.
    """
    spreads, start = [0.0], 0
    for _, observations in rig:
        rows = inliers[(inliers >= start) & (inliers < start + len(observations))] - start
        start += len(observations)
        if len(rows) > 1:
            narrow = np.linalg.eigvalsh(np.cov(observations.pixels[rows].T))[0]
            diagonal = np.hypot(*observations.camera.size_wh)
            spreads.append(float(np.sqrt(max(narrow, 0.0)) / diagonal))
    return max(spreads)


def _agrees(estimate: PoseEstimate, prior: PosePrior) -> bool:
    found, expected = estimate.cam_from_map.inverse(), prior.cam_from_map.inverse()
    return bool(
        np.linalg.norm(found.translation - expected.translation) <= prior.radius_m
        and rotation_angle_deg(found.rotation, expected.rotation) <= prior.angle_deg
    )


@contextmanager
def _timed(ms: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    ms[stage] = ms.get(stage, 0.0) + (time.perf_counter() - start) * 1e3

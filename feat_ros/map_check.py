# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where along a path would a robot be lost in a map, as far as the map itself can say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.geometry import Rigid3d, rotation_angle_deg
from feat_ros.localizer import LocalizerConfig
from feat_ros.pnp import Observations, refine_pose
from feat_ros.sfm_map import SfmMap
from feat_ros.types import Float64, JsonDict, Progress

Ids = npt.NDArray[np.int64]

# Images around a pose whose points it may see.
_NEIGHBOURS = 20
# A point looks as it did to an image that saw it from a direction less than this apart and from
# a distance that differs by less than this factor.
_SAME_LOOK_DEG, _SAME_LOOK_RATIO = 20.0, 1.4
# A robot counts as lost with fewer matches than so many times those that a pose needs: in other
# light and from another lane a third of what the map's own images show are found.
_RESERVE = 3.0
# Images from which the share of visible points that are matched is measured.
_SAMPLED_IMAGES = 50
_PIXEL_SIGMA = 0.5
# Points this close are one, map units.
_SAME_PLACE = 1e-4


@dataclass(frozen=True, eq=False)
class Place:
    """What a camera would find at a pose.

    :ivar center: (3,) of the camera, in the map.
    :ivar num_visible: points of the map that look there as they did to images around.
    :ivar num_matches: how many of them it would match.
    :ivar sigma_m: largest standard deviation of its position, map units; infinite without a pose.
    :ivar sigma_deg: largest of its orientation.
    :ivar is_lost: too few matches, or a pose that would be refused.
    """

    center: Float64
    num_visible: int
    num_matches: float
    sigma_m: float
    sigma_deg: float
    is_lost: bool

    def figures(self) -> JsonDict:
        """Return it for JSON; what is not finite is None."""
        sigmas = {'sigma_m': self.sigma_m, 'sigma_deg': self.sigma_deg}
        return {
            'center': self.center.tolist(),
            'num_visible': self.num_visible,
            'num_matches': self.num_matches,
            **{name: value if np.isfinite(value) else None for name, value in sigmas.items()},
            'is_lost': self.is_lost,
        }


def own_path(sfm_map: SfmMap) -> list[Rigid3d]:
    """Return ``map_from_cam`` of every image of a map."""
    return [sfm_map.cam_from_map(image).inverse() for image in range(sfm_map.num_images)]


def check_path(
    sfm_map: SfmMap,
    map_from_cams: Sequence[Rigid3d],
    *,
    leave_self_out: bool,
    progress: Progress | None = None,
) -> list[Place]:
    """Say what a camera would find at each pose of a path.

    What it would match is the points around that look the same from there, times the share of
    such points that the map's own images did match.

    :param map_from_cams: the path; the camera is that of the nearest image.
    :param leave_self_out: the path is :func:`own_path`: no image counts for itself.
    """
    viewer = _Viewer(sfm_map)
    share = viewer.matched_share()
    places = []
    poses = list(enumerate(map_from_cams))
    for number, pose in (progress or (lambda items, _: items))(poses, 'check'):
        points, camera = viewer.visible(pose, number if leave_self_out else None)
        places.append(_place(sfm_map, pose, camera, points, share))
    return places


def _place(
    sfm_map: SfmMap, map_from_cam: Rigid3d, camera: Camera, points: Ids, share: float
) -> Place:
    config = LocalizerConfig()
    count, sigma_m, sigma_deg = share * len(points), np.inf, np.inf
    if len(points) >= config.min_inliers:
        # As many as would be matched: errors of points beside each other are alike, so that the
        # covariance of all of them cannot be scaled.
        matched = np.linspace(0, len(points) - 1, max(round(count), config.min_inliers))
        xyz, covariance = sfm_map.points(points[matched.round().astype(int)])
        cam_from_map = map_from_cam.inverse()
        pixels = camera.project(cam_from_map.apply(xyz))
        sigma = np.full(len(xyz), _PIXEL_SIGMA)
        exact = Observations(camera, pixels, xyz, sigma, covariance)
        solution = refine_pose(exact, cam_from_map, config.pnp)
        if solution is not None:
            # As noisy as predicted.
            noise = solution.covariance / solution.noise_scale
            sigma_m = float(np.sqrt(np.linalg.eigvalsh(noise[:3, :3])[-1]))
            sigma_deg = float(np.degrees(np.sqrt(np.linalg.eigvalsh(noise[3:, 3:])[-1])))
    is_metric = sfm_map.manifest.scale == 'metric'
    is_lost = (
        count < _RESERVE * config.min_inliers
        or (is_metric and sigma_m > config.max_position_sigma_m)
        or sigma_deg > config.max_rotation_sigma_deg
    )
    return Place(map_from_cam.translation, len(points), count, sigma_m, sigma_deg, is_lost)


class _Viewer:
    """Finds the points of a map that a camera would see as images around it did."""

    def __init__(self, sfm_map: SfmMap) -> None:
        self._map = sfm_map
        self._rotations, translations = sfm_map.image_poses()
        self._centers = -np.einsum('nji,nj->ni', self._rotations, translations)

    def matched_share(self) -> float:
        """Median share of the visible points that the map's own images matched."""
        count = self._map.num_images
        sampled = np.linspace(0, count - 1, min(count, _SAMPLED_IMAGES)).round().astype(int)
        shares = []
        for image in np.unique(sampled).tolist():
            visible, _ = self.visible(self._map.cam_from_map(image).inverse(), image)
            if len(visible):
                own = self._keys(self._map.observations(image)[0])
                shares.append(np.isin(self._keys(visible), own).mean())
        return float(np.clip(np.median(shares), 1e-3, 1.0)) if shares else 1e-3

    def visible(self, map_from_cam: Rigid3d, without: int | None) -> tuple[Ids, Camera]:
        """Return the points that a camera would see, and the camera.

        :param without: an image that does not count.
        """
        center, rotation = map_from_cam.translation, map_from_cam.rotation.T
        distance = np.linalg.norm(self._centers - center, axis=1)
        camera = self._map.camera(int(np.argmin(distance)) if without is None else without)
        distance[rotation_angle_deg(self._rotations, rotation) > 90.0] = np.inf
        if without is not None:
            distance[without] = np.inf
        near = np.argsort(distance, kind='stable')[:_NEIGHBOURS]
        seen = [
            (self._map.observations(image)[0], image)
            for image in near[np.isfinite(distance[near])].tolist()
        ]
        if not seen:
            return np.zeros(0, np.int64), camera
        points = np.concatenate([each for each, _ in seen])
        observer = np.concatenate([np.full(len(each), image) for each, image in seen])
        xyz, _ = self._map.points(points)
        to_point, to_observer = xyz - center, xyz - self._centers[observer]
        far, far_then = np.linalg.norm(to_point, axis=1), np.linalg.norm(to_observer, axis=1)
        cosine = np.einsum('ni,ni->n', to_point, to_observer) / np.maximum(far * far_then, 1e-12)
        ratio = far / np.maximum(far_then, 1e-12)
        looks_same = (cosine > np.cos(np.radians(_SAME_LOOK_DEG))) & (
            np.abs(np.log(np.maximum(ratio, 1e-12))) < np.log(_SAME_LOOK_RATIO)
        )
        in_cam = to_point @ rotation.T
        pixels = camera.project(in_cam)
        inside = ((pixels > 0) & (pixels < np.array(camera.size_wh))).all(axis=1)
        points = np.unique(points[looks_same & inside & (in_cam[:, 2] > 0)])
        return points[np.unique(self._keys(points), return_index=True)[1]], camera

    def _keys(self, points: Ids) -> npt.NDArray[np.void]:
        """Return what the copies of a point in several segments have in common, its place."""
        places = np.round(self._map.points(points)[0] / _SAME_PLACE).astype(np.int64)
        return places.view(np.dtype((np.void, places.itemsize * 3)))[:, 0]

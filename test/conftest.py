# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A rendered room with known poses, a map of it, and maps made of random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
import resource
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from feat_ros import config
from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage
from feat_ros.errors import SegmentError
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.image import Image, write_png
from feat_ros.map_builder import build_map
from feat_ros.sfm_map import (
    ExtractorInfo,
    Manifest,
    Segment,
    SfmMap,
    write_manifest,
    write_segment,
)
from feat_ros.types import Features, View

Float = npt.NDArray[np.float64]

CAMERA = Camera('OPENCV', 320, 240, (262.0, 260.0, 161.5, 118.2, -0.21, 0.06, 0.0008, -0.0006))
# Far from zero, as maps of a city are.
ROOM_AT = np.array([1200.0, -340.0, 25.0])
# The room in metres, z up: (corner, along the texture's rows, down its columns), at right angles.
WALLS = [
    ((-4.0, 6.0, 3.0), (8.0, 0.0, 0.0), (0.0, 0.0, -4.0)),
    ((-4.0, 0.0, 3.0), (0.0, 6.0, 0.0), (0.0, 0.0, -4.0)),
    ((4.0, 6.0, 3.0), (0.0, -6.0, 0.0), (0.0, 0.0, -4.0)),
    ((-4.0, 6.0, -1.0), (8.0, 0.0, 0.0), (0.0, -6.0, 0.0)),
    ((-1.6, 4.4, 1.4), (1.4, -0.5, 0.0), (0.0, 0.0, -2.4)),
    ((0.6, 4.0, 0.9), (1.2, 0.7, 0.0), (0.0, 0.0, -1.9)),
]
_TEXELS_PER_METRE = 70


@dataclass(frozen=True, eq=False)
class Room:
    """Rectangles with random texture, one picture of each wall."""

    textures: list[Image]

    @staticmethod
    def make(seed: int) -> Room:
        """Paint the walls with blobs of several sizes."""
        rng = np.random.default_rng(seed)
        textures = []
        for _, across, down in WALLS:
            size = [round(np.linalg.norm(side) * _TEXELS_PER_METRE) for side in (down, across)]
            picture = np.zeros((*size, 3), np.float32)
            for sigma in (1.5, 3.0, 7.0, 20.0):
                layer = cv2.GaussianBlur(rng.normal(size=picture.shape), (0, 0), sigma)
                picture += (layer / layer.std()).astype(np.float32)
            textures.append(np.clip(128 + 28 * picture, 0, 255).astype(np.uint8))
        return Room(textures)

    def shoot(self, camera: Camera, cam_from_map: Rigid3d, seed: int = 0) -> Image:
        """Take a picture: the nearest wall along the ray of every pixel, and a little noise."""
        map_from_cam = cam_from_map.inverse()
        rays = _rays(camera) @ map_from_cam.rotation.T
        center = map_from_cam.translation - ROOM_AT
        nearest = np.full(len(rays), np.inf)
        colours = np.zeros((len(rays), 3), np.float32)
        for (corner, across, down), texture in zip(WALLS, self.textures, strict=True):
            normal = np.cross(across, down)
            depth = (np.array(corner) - center) @ normal / (rays @ normal)
            place = center + depth[:, None] * rays - corner
            a, b = (place @ side / np.dot(side, side) for side in (across, down))
            seen = (depth > 0) & (depth < nearest) & (a >= 0) & (a < 1) & (b >= 0) & (b < 1)
            height, width = texture.shape[:2]
            at = np.column_stack([a * width - 0.5, b * height - 0.5])
            at = np.where(seen[:, None], at, 0).astype(np.float32)
            at = at.reshape(camera.height, camera.width, 2)
            sampled = cv2.remap(texture, at, None, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
            colours[seen] = sampled.reshape(-1, 3)[seen]
            nearest[seen] = depth[seen]
        picture = colours.reshape(camera.height, camera.width, 3)
        noise = np.random.default_rng(seed).normal(0, 1.5, picture.shape)
        return np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)


@lru_cache
def _rays(camera: Camera) -> Float:
    """Return the rays (H * W, 3) of all pixels."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    return camera.unproject(np.column_stack([x.ravel(), y.ravel()]))


def looking_at(center: Sequence[float], target: Sequence[float]) -> Rigid3d:
    """Return ``cam_from_map`` of an upright camera; both places in the room, z up."""
    ahead = np.subtract(target, center) / np.linalg.norm(np.subtract(target, center))
    right = np.cross(ahead, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(ahead, right), ahead])
    return Rigid3d(rotation, -rotation @ (ROOM_AT + center))


def walk(count: int, shift: float = 0.0) -> list[Rigid3d]:
    """Poses on an arc through the room; a shift of 0.5 gives those between."""
    at = (np.arange(count) + shift) / 10
    return [
        looking_at(
            (-1.8 + 3.6 * s, 0.4 + 0.5 * np.sin(5 * s), 0.3 * np.cos(9 * s)), (1 - s, 5, 0.6)
        )
        for s in at
    ]


def write_pictures(
    folder: Path, room: Room, cameras: Sequence[Camera], poses: Sequence[Rigid3d], prefix: str
) -> list[PosedImage]:
    """Render images into a folder; return what a COLMAP model would say of them."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number, (camera, pose) in enumerate(zip(cameras, poses, strict=True)):
        image = PosedImage(f'{prefix}{number:02d}.png', camera, pose, np.zeros(0, np.int64))
        write_png(folder / image.name, room.shoot(camera, pose, number))
        images.append(image)
    return images


@dataclass(frozen=True, eq=False)
class Scene:
    """Pictures of the room: those of the map and those held out."""

    room: Room
    folder: Path
    images: list[PosedImage]
    queries: list[PosedImage]


@pytest.fixture(scope='session')
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Ten pictures of the room, and three between."""
    room, folder = Room.make(7), tmp_path_factory.mktemp('room')
    images = write_pictures(folder, room, [CAMERA] * 10, walk(10), 'map')
    queries = write_pictures(folder, room, [CAMERA] * 3, walk(9, 0.5)[::3], 'query')
    return Scene(room, folder, images, queries)


@pytest.fixture(scope='session')
def room_map(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> SfmMap:
    """Return the map of the room; tests that change it copy it first."""
    pytest.importorskip('pycolmap')
    out = tmp_path_factory.mktemp('maps') / 'room'
    return build_map(out, scene.folder, scene.images, create_extractor('sift', max_keypoints=600))


def random_segment(
    seed: int, num_points: int = 500, num_images: int = 7, dim: int = 16, at: float = 0.0
) -> Segment:
    """Random numbers in the shape of a map; the last image saw nothing."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(num_points, 3, 3)) * 0.01
    descriptors = rng.normal(size=(num_points, dim))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    seen = [rng.permutation(num_points)[: num_points // 3] for _ in range(num_images - 1)]
    seen.append(np.zeros(0, np.int64))
    return Segment(
        points_xyz=rng.normal(size=(num_points, 3)) * 20 + at,
        point_covariance=factor @ np.swapaxes(factor, 1, 2),
        point_descriptors=descriptors.astype(np.float32),
        point_stability=rng.uniform(size=num_points).astype(np.float32),
        image_names=[f'{seed}/picture {number}, früh.png' for number in range(num_images)],
        image_camera=[number % 2 for number in range(num_images)],
        image_cam_from_map=[
            Rigid3d(so3_exp(rng.normal(size=3)), rng.normal(size=3) + at)
            for _ in range(num_images)
        ],
        image_observations=[
            (points, rng.uniform(0, 300, (len(points), 2)).astype(np.float32)) for points in seen
        ],
        cameras=[CAMERA, Camera('PINHOLE', 640 + seed, 480, (500, 501, 320, 240))],
    )


class Whole:
    """Makes of a stand-in for a localizer one without eyes, and no segment to leave out."""

    def features(self, view: View) -> Features:
        """See nothing."""
        none = np.zeros(0, np.float32)
        empty = np.zeros((0, 2), np.float32), none, np.zeros((0, 4), np.float32), none, none
        return Features(*empty)

    def leave_out(self, error: SegmentError) -> bool:
        raise AssertionError(error)


def write_map(folder: Path, segments: Sequence[Segment], **manifest: Any) -> Path:
    """Write segments as a map."""
    dim = segments[0].point_descriptors.shape[1]
    infos = [
        config.to_dict(write_segment(folder / f'segment-{number:04d}', segment))
        for number, segment in enumerate(segments)
    ]
    extractor = ExtractorInfo('sift', dim, options={'max_keypoints': 500})
    write_manifest(folder, Manifest(extractor=extractor, segments=infos, **manifest))
    return folder


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Refuse to let any file grow beyond so many bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

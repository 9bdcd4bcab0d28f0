# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A small posed set of pictures for the tests: three textured walls of a room, drawn exactly."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage
from feat_ros.geometry import Rigid3d
from feat_ros.image import write_png

CAMERA = Camera('PINHOLE', 320, 240, (260.0, 262.0, 161.0, 119.0))
_TEXELS_PER_METRE = 100
# Each wall: a corner and the directions of its texture's columns and rows, metres.
_WALLS = (
    ((-3.0, -2.0, 4.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    ((-3.0, -2.0, -2.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    ((3.0, -2.0, -2.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    ((-3.0, 2.0, -2.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
)
_WALL_TEXELS = 600


def _texture(rng):
    """Random blobs of many sizes: keypoints at every scale."""
    total = np.zeros((_WALL_TEXELS, _WALL_TEXELS), np.float32)
    for size in (3, 8, 20, 50):
        noise = rng.normal(size=(_WALL_TEXELS, _WALL_TEXELS)).astype(np.float32)
        blurred = cv2.GaussianBlur(noise, (0, 0), size / 2)
        total += blurred / blurred.std()
    return np.clip(128 + 28 * total, 0, 255).astype(np.uint8)


def draw(cam_from_map, seed=0):
    """Draw the room as :data:`CAMERA` sees it, RGB (240, 320, 3)."""
    rng = np.random.default_rng(seed)
    width, height = 2 * CAMERA.width, 2 * CAMERA.height
    (fx, fy), (cx, cy) = CAMERA.focal_xy, CAMERA.center_xy
    # Twice the size, integer pixel centres, then area-averaged down.
    calibration = np.array([[2 * fx, 0, 2 * cx - 0.5], [0, 2 * fy, 2 * cy - 0.5], [0, 0, 1]])
    y, x = np.mgrid[0:height, 0:width]
    rays = np.linalg.inv(calibration) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    rays = cam_from_map.rotation.T @ rays
    center = cam_from_map.inverse().translation
    image = np.zeros(x.size, np.uint8)
    nearest = np.full(x.size, np.inf)
    for corner, along, down in _WALLS:
        texture = _texture(rng)
        normal = np.cross(along, down)
        with np.errstate(divide='ignore', invalid='ignore'):
            depth = (np.asarray(corner) - center) @ normal / (normal @ rays)
        hit = center[:, None] + depth * rays - np.asarray(corner)[:, None]
        u, v = (np.asarray(axis) @ hit * _TEXELS_PER_METRE for axis in (along, down))
        seen = (depth > 0) & (depth < nearest) & (u >= 0) & (v >= 0)
        seen &= (u < _WALL_TEXELS - 1) & (v < _WALL_TEXELS - 1)
        drawn = cv2.remap(
            texture, u.reshape(height, width).astype(np.float32),
            v.reshape(height, width).astype(np.float32), cv2.INTER_LINEAR,
        ).ravel()  # fmt: skip
        image[seen], nearest[seen] = drawn[seen], depth[seen]
    small = cv2.resize(image.reshape(height, width), CAMERA.size_wh, interpolation=cv2.INTER_AREA)
    return np.repeat(small[..., None], 3, axis=2)


def poses(count):
    """Camera poses on an arc in the room, looking at its far wall."""
    out = []
    for step in np.linspace(-1, 1, count):
        map_from_cam = Rigid3d.exp([0, 0, 0, 0.03 * step, -0.25 * step, 0.02])
        out.append(
            Rigid3d(map_from_cam.rotation, np.array([1.2 * step, 0.1 * step**2, 0.2])).inverse()
        )
    return out


def write_photographs(folder: Path, count=8):
    """Write ``images/``, ``colmap/``, ``mapping.txt``, ``query.txt`` and ``queries.txt``.

    :returns: the posed images; every third one is a query.
    """
    (folder / 'images').mkdir(parents=True)
    (folder / 'colmap').mkdir()
    images = []
    for number, pose in enumerate(poses(count)):
        name = f'{number:02d}.png'
        write_png(folder / 'images' / name, draw(pose))
        images.append(PosedImage(name, CAMERA, pose, np.zeros(0, np.int64)))
    (folder / 'colmap' / 'cameras.txt').write_text(f'1 {CAMERA.to_words()}\n')
    lines = []
    for number, image in enumerate(images, 1):
        qx, qy, qz, qw = image.cam_from_map.quat_xyzw
        numbers = [qw, qx, qy, qz, *image.cam_from_map.translation]
        lines.append(f'{number} {" ".join(map(repr, map(float, numbers)))} 1 {image.name}\n\n')
    (folder / 'colmap' / 'images.txt').write_text(''.join(lines))
    queries = [image.name for image in images[1::3]]
    mapping = [image.name for image in images if image.name not in queries]
    (folder / 'mapping.txt').write_text('\n'.join(mapping) + '\n')
    (folder / 'query.txt').write_text('\n'.join(queries) + '\n')
    (folder / 'queries.txt').write_text(''.join(f'{n} {CAMERA.to_words()}\n' for n in queries))
    return images

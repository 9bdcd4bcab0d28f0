# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A drive as a folder: images, a COLMAP model of their poses, and the truth of every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from feat_ros.camera import Camera
from feat_ros.errors import DataError
from feat_ros.image import write_png
from feat_ros.sfm_map import partial_path, publish, write_text, writing
from feat_ros.town.rendering import Frame, render
from feat_ros.town.world import Scene
from feat_ros.types import Progress


def frames(
    scene: Scene, camera: Camera, progress: Progress | None = None
) -> Iterator[tuple[float, Frame]]:
    """Render a scene's drive: time in seconds and frame.

    The noise of a frame depends on town, day and frame number only.
    """
    drive, street_m = scene.drive, scene.town.length_m
    numbered = list(enumerate(drive.times_s()))
    for number, time_s in progress(numbered, 'render') if progress else numbered:
        rng = scene.town.rng(40, drive.day, number)
        cam_from_map = drive.cam_from_map(float(time_s), street_m)
        velocity = (drive.direction * drive.speed_mps, 0.0, 0.0)
        frame = render(scene, camera, cam_from_map, rng, time_s=float(time_s), velocity=velocity)
        yield float(time_s), frame


def write_drive(
    folder: str | Path,
    scene: Scene,
    camera: Camera,
    *,
    has_truth: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write ``images/``, ``sparse/`` (COLMAP text model without points) and ``times.txt``.

    :param folder: must not exist; it appears when all is written.
    :param has_truth: also write ``truth/NAME.npz`` with depth, class_id, group and is_static.
    :raises DataError: the folder exists.
    :raises MapError: the disk is full or read-only.
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(f'folder {folder} exists: choose another name or remove it first')
    partial = partial_path(folder)
    with writing(partial):
        for name in ('images', 'sparse', *(['truth'] if has_truth else [])):
            (partial / name).mkdir(parents=True, exist_ok=True)
    poses, times = [], []
    for number, (time_s, frame) in enumerate(frames(scene, camera, progress), start=1):
        name = f'{number - 1:06d}.png'
        write_png(partial / 'images' / name, frame.image)
        x, y, z, w = frame.cam_from_map.quat_xyzw.tolist()
        tx, ty, tz = frame.cam_from_map.translation.tolist()
        poses.append(f'{number} {w!r} {x!r} {y!r} {z!r} {tx!r} {ty!r} {tz!r} 1 {name}\n\n')
        times.append(f'{name} {round(time_s * 1e9)}\n')
        if has_truth:
            with writing(partial):
                np.savez_compressed(
                    partial / 'truth' / f'{number - 1:06d}.npz',
                    depth=frame.depth,
                    class_id=frame.class_id,
                    group=frame.group,
                    is_static=frame.is_static,
                )
    write_text(partial / 'sparse' / 'cameras.txt', f'1 {camera.to_words()}\n')
    write_text(partial / 'sparse' / 'images.txt', ''.join(poses))
    write_text(partial / 'sparse' / 'points3D.txt', '')
    write_text(partial / 'times.txt', ''.join(times))
    publish(partial, folder)
    return folder

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of made-up towns, rendered once, for pairs with real 3-D motion.

A folder with ``frames/NNNNNN.npz`` (image, depth, group, is_static) and ``cache.json``: cameras,
poses, and which frames see the same place. Each town is driven along several times, on other
days and in other lights, in both directions and with the camera turned to the side.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.config import Config, option
from feat_ros.errors import DataError
from feat_ros.geometry import Rigid3d
from feat_ros.sfm_map import partial_path, publish, write_text, writing
from feat_ros.town.drive import Drive
from feat_ros.town.light import CONDITIONS
from feat_ros.town.rendering import render
from feat_ros.town.world import Town
from feat_ros.types import Progress

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

# Largest difference of a depth from what the other frame predicts, as a share of it.
_SAME_SURFACE = 0.02
# Frames are a pair when at least this share of a grid over each is seen in the other.
_MIN_OVERLAP = 0.25
_GRID_STEP = 16


@dataclass(frozen=True)
class TownCacheConfig(Config):
    """What a cache of town frames holds."""

    first_seed: int = option(9001, 'seed of the first town; the shipped map has seed 7', minimum=0)
    num_towns: int = option(8, 'how many towns', minimum=1)
    drives_per_town: int = option(8, 'drives along each of them', minimum=2)
    frames_per_drive: int = option(10, 'frames of each drive', minimum=1)
    street_m: float = option(60.0, 'length of the street', minimum=40.0, maximum=400.0)
    texel_m: float = option(
        0.0125, 'size of a texel of the streets, metres', minimum=0.005, maximum=0.1
    )
    width: int = option(512, 'width of a frame in pixels', minimum=64)
    height: int = option(384, 'height of a frame in pixels', minimum=64)


@dataclass(frozen=True, eq=False)
class TownFrame:
    """One frame of the cache; arrays as in :class:`feat_ros.town.rendering.Frame`."""

    image: npt.NDArray[np.uint8]
    depth: Float32
    group: npt.NDArray[np.uint8]
    is_static: npt.NDArray[np.bool_]
    camera: Camera
    cam_from_map: Rigid3d


class TownCache:
    """A folder that :func:`write_town_cache` has written.

    :ivar description: the configuration it was made with.
    :ivar pairs: (P, 2) int, frames that see the same place.
    :raises DataError: no such folder, or not complete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            description = json.loads((folder / 'cache.json').read_text(encoding='utf-8'))
        except (OSError, ValueError):
            raise DataError(
                f'{folder} is no cache of town frames: write one with "feat_ros train town-cache '
                '--out DIR"'
            ) from None
        self.description = description['config']
        self._frames = description['frames']
        self.pairs = np.array(description['pairs'], np.int64).reshape(-1, 2)
        if not len(self.pairs):
            raise DataError(f'{folder} has no two frames that see the same place: render more')

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._frames)

    def __getitem__(self, number: int) -> TownFrame:
        """Read a frame."""
        described = self._frames[number]
        with np.load(self.folder / 'frames' / f'{number:06d}.npz', allow_pickle=False) as arrays:
            loaded = dict(arrays)
        return TownFrame(
            **loaded,
            camera=Camera.from_words(described['camera'].split()),
            cam_from_map=_pose(described),
        )


def project(source: TownFrame, target: TownFrame, pixels: Float) -> tuple[Float, Any]:
    """Where surfaces seen in one frame lie in another of the same town.

    :param pixels: (N, 2) in the source frame.
    :returns: (N, 2) pixels in the target frame, and (N,) int: 1 seen there too, 0 hidden, outside
        or not known, -1 on something that moves, which is not there any more.
    """
    column, row = _index(pixels, source.depth.shape)
    depth = source.depth[row, column].astype(float)
    is_static, is_solid = source.is_static[row, column], np.isfinite(depth) & (depth > 0)
    rays = source.camera.unproject(pixels)
    rays = rays / rays[:, 2:]
    target_from_source = target.cam_from_map @ source.cam_from_map.inverse()
    points = target_from_source.apply(rays * np.where(is_solid, depth, 1.0)[:, None])
    is_ahead = points[:, 2] > 0.1
    points[~is_ahead] = [0, 0, 1]
    # A perspective camera has no image of what is far off its axis: NaN.
    projected = np.nan_to_num(target.camera.project(points), nan=-1.0)
    width, height = target.camera.size_wh
    is_inside = np.all((projected >= 0) & (projected < [width, height]), axis=1)
    column, row = _index(projected, target.depth.shape)
    found = target.depth[row, column].astype(float)
    with np.errstate(invalid='ignore'):
        is_same = np.abs(found - points[:, 2]) < _SAME_SURFACE * points[:, 2]
    seen = is_static & is_solid & is_ahead & is_inside & is_same & target.is_static[row, column]
    return projected, np.where(is_solid & ~is_static, -1, seen.astype(int))


def _index(pixels: Float, shape: tuple[int, ...]) -> tuple[Any, Any]:
    index = np.floor(pixels).astype(int)
    return np.clip(index[:, 0], 0, shape[1] - 1), np.clip(index[:, 1], 0, shape[0] - 1)


def write_town_cache(
    folder: Path, config: TownCacheConfig, progress: Progress | None = None
) -> Path:
    """Render the frames of a cache.

    :param folder: must not exist; it appears when all is written.
    :raises DataError: the folder exists.
    :raises MapError: the disk is full or read-only.
    """
    if folder.exists():
        raise DataError(f'folder {folder} exists: choose another name or remove it first')
    partial = partial_path(folder)
    with writing(partial):
        (partial / 'frames').mkdir(parents=True, exist_ok=True)
    described: list[dict[str, Any]] = []
    pairs: list[tuple[int, int]] = []
    seeds = list(range(config.first_seed, config.first_seed + config.num_towns))
    for seed in progress(seeds, 'town') if progress else seeds:
        first = len(described)
        for frame in _town_frames(seed, config):
            with writing(partial):
                np.savez(
                    partial / 'frames' / f'{len(described):06d}.npz',
                    image=frame.image,
                    depth=frame.depth,
                    group=frame.group,
                    is_static=frame.is_static,
                )
            described.append(
                {
                    'town': seed,
                    'camera': frame.camera.to_words(),
                    'quat_xyzw': frame.cam_from_map.quat_xyzw.tolist(),
                    'translation': frame.cam_from_map.translation.tolist(),
                }
            )
        pairs += _covisible(partial, described, first)
    content = {'config': asdict(config), 'frames': described, 'pairs': pairs}
    write_text(partial / 'cache.json', json.dumps(content))
    publish(partial, folder)
    return folder


def _town_frames(seed: int, config: TownCacheConfig) -> Any:
    """Yield the rendered frames of one town."""
    town = Town(seed, config.street_m, config.texel_m)
    rng = np.random.default_rng([seed, 90])
    lights = list(CONDITIONS)
    for number in range(config.drives_per_town):
        condition = CONDITIONS[lights[(number + seed) % len(lights)]]
        condition = replace(condition, exposure_ev=float(rng.uniform(-2.0, 0.7)))
        drive = Drive(
            day=int(rng.integers(1_000_000)),
            direction=1 if rng.random() < 0.75 else -1,
            lane_offset_m=float(rng.uniform(-1.8, 2.4)),
            camera_height_m=float(rng.uniform(0.6, 2.2)),
            camera_yaw_deg=float(rng.choice([0, 0, rng.uniform(20, 70), rng.uniform(-70, -20)])),
            speed_mps=1.0,
            start_m=0.0,
            length_m=config.street_m,
            condition=condition,
        )
        scene = town.scene(drive)
        focal = float(rng.uniform(0.55, 0.95)) * config.width
        camera = Camera(
            'PINHOLE',
            config.width,
            config.height,
            (focal, focal, config.width / 2, config.height / 2),
        )
        for time_s in np.sort(rng.uniform(2.0, config.street_m - 6.0, config.frames_per_drive)):
            pose = drive.cam_from_map(float(time_s), config.street_m)
            yield render(
                scene, camera, pose, rng, time_s=float(time_s),
                velocity=(drive.direction * rng.uniform(0, 8), 0.0, 0.0),
            )  # fmt: skip


def _pose(described: dict[str, Any]) -> Rigid3d:
    return Rigid3d.from_quat_xyzw(described['quat_xyzw'], described['translation'])


def _covisible(
    partial: Path, described: list[dict[str, Any]], first: int
) -> list[tuple[int, int]]:
    """Pairs of frames from number ``first`` on that see enough of each other."""
    frames = []
    for number, each in enumerate(described[first:], start=first):
        with np.load(partial / 'frames' / f'{number:06d}.npz', allow_pickle=False) as arrays:
            frames.append(
                TownFrame(
                    arrays['image'][:0], arrays['depth'], arrays['group'][:0],
                    arrays['is_static'], Camera.from_words(each['camera'].split()), _pose(each),
                )
            )  # fmt: skip
    height, width = frames[0].depth.shape
    steps = np.meshgrid(
        np.arange(_GRID_STEP / 2, width, _GRID_STEP), np.arange(_GRID_STEP / 2, height, _GRID_STEP)
    )
    grid = np.stack(steps, axis=-1).reshape(-1, 2)
    overlap = np.zeros((len(frames), len(frames)))
    for i, source in enumerate(frames):
        for j, target in enumerate(frames):
            if i != j:
                overlap[i, j] = (project(source, target, grid)[1] == 1).mean()
    enough = np.minimum(overlap, overlap.T) >= _MIN_OVERLAP
    return [(first + int(i), first + int(j)) for i, j in np.argwhere(np.triu(enough))]

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of made-up towns, rendered once, for pairs with real 3-D motion.

A folder with ``frames/NNNNNN.npz`` (image, depth, group, is_static) and ``cache.json``: cameras,
poses, and which frames see the same place. Each town is driven along several times, on other
days and in other lights, in both directions and with the camera turned to the side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
import json
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feat_ros.camera import Camera
from feat_ros.errors import DataError
from feat_ros.geometry import Rigid3d
from feat_ros.sfm_map import partial_path, publish, write_text, writing
from feat_ros.town.drive import Drive
from feat_ros.town.light import CONDITIONS
from feat_ros.town.rendering import render
from feat_ros.town.world import Town
from feat_ros.training.configs import TownCacheConfig
from feat_ros.types import Progress

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

# Largest difference of a depth from what the other frame predicts, as a share of it.
_SAME_SURFACE = 0.02
# Frames are a pair when at least this share of a grid over each is seen in the other.
_MIN_OVERLAP = 0.25
_GRID_STEP = 16


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

    def refuse_towns_of(self, other: TownCache) -> None:
        """Check that it shares no town with a cache, which would make its figures worthless.

        :raises DataError: it does.
        """
        shared = {each['town'] for each in self._frames} & {each['town'] for each in other._frames}
        if shared:
            raise DataError(
                f'{self.folder} has town {min(shared)}, as {other.folder} has: write another with '
                f'"--set first_seed={max(each["town"] for each in other._frames) + 1}"'
            )

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


class TownViews:
    """What is needed to find the surfaces of many frames in one another, on one device.

    :param frames: as :class:`TownCache` gives them, all of one size, cameras without distortion.
    """

    def __init__(self, frames: Iterable[TownFrame], device: torch.device) -> None:
        depth, static, cameras, poses = [], [], [], []
        for frame in frames:
            depth.append(frame.depth)
            static.append(frame.is_static)
            cameras.append(frame.camera.params)
            pose = np.eye(4)
            pose[:3, :3] = frame.cam_from_map.rotation
            pose[:3, 3] = frame.cam_from_map.translation
            poses.append(pose)
        self.height, self.width = depth[0].shape
        self._depth = torch.from_numpy(np.stack(depth)).to(device).reshape(-1)
        self._is_static = torch.from_numpy(np.stack(static)).to(device).reshape(-1)
        self._cameras = torch.tensor(np.array(cameras), device=device)
        self._cam_from_map = torch.tensor(np.array(poses), device=device)

    def project(self, source: Tensor, target: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Where surfaces seen in one frame lie in another of the same town.

        :param source: (B,) int64, numbers of frames, and ``target`` (B,).
        :param pixels: (B, N, 2) in the source frames.
        :returns: (B, N, 2) pixels in the target frames, and (B, N) int64: 1 seen there too, 0
            hidden, outside or not known, -1 on something that moves, which is not there any more.
        """
        at = self._index(source, pixels)
        depth, is_static = self._depth[at], self._is_static[at]
        is_solid = torch.isfinite(depth) & (depth > 0)
        depth = torch.where(is_solid, depth, 1.0)[..., None]
        camera = self._cameras[source][:, None].to(pixels.dtype)
        points = torch.cat([(pixels - camera[..., 2:]) / camera[..., :2] * depth, depth], -1)
        relative = self._cam_from_map[target] @ torch.linalg.inv_ex(self._cam_from_map[source])[0]
        relative = relative.to(pixels.dtype)
        points = points @ relative[:, :3, :3].transpose(1, 2) + relative[:, None, :3, 3]
        is_ahead = points[..., 2] > 0.1
        z = torch.where(is_ahead, points[..., 2], 1.0)
        camera = self._cameras[target][:, None].to(pixels.dtype)
        found = points[..., :2] / z[..., None] * camera[..., :2] + camera[..., 2:]
        limits = found.new_tensor([self.width, self.height])
        is_inside = ((found >= 0) & (found < limits)).all(-1)
        at = self._index(target, found)
        other = self._depth[at]
        is_same = (other - z).abs() < _SAME_SURFACE * z
        seen = is_static & is_solid & is_ahead & is_inside & is_same & self._is_static[at]
        return found, torch.where(is_solid & ~is_static, -1, seen.long())

    def _index(self, frame: Tensor, pixels: Tensor) -> Tensor:
        limits = pixels.new_tensor([self.width - 1, self.height - 1])
        column, row = (
            torch.floor(pixels).clamp(min=torch.zeros_like(limits), max=limits).unbind(-1)
        )
        return (frame[:, None] * self.height + row.long()) * self.width + column.long()


def write_town_cache(
    folder: Path, config: TownCacheConfig, progress: Progress | None = None, workers: int = 1
) -> Path:
    """Render the frames of a cache.

    :param folder: must not exist; it appears when all is written.
    :param workers: processes, each with a town of its own.
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
    towns = list(range(config.num_towns))
    with ProcessPoolExecutor(workers, get_context('spawn')) as pool:
        made = [pool.submit(_write_town, partial, config, number) for number in towns]
        for number in progress(towns, 'town') if progress else towns:
            with writing(partial):
                frames, seen = made[number].result()
            described += frames
            pairs += seen
    content = {'config': asdict(config), 'frames': described, 'pairs': pairs}
    write_text(partial / 'cache.json', json.dumps(content))
    publish(partial, folder)
    return folder


def _write_town(
    folder: Path, config: TownCacheConfig, number: int
) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """Write the frames of a town; return their descriptions and which see the same place."""
    torch.set_num_threads(1)
    first = number * config.drives_per_town * config.frames_per_drive
    described: list[dict[str, Any]] = []
    frames: list[Any] = []
    seed = config.first_seed + number
    for frame in _town_frames(seed, config):
        np.savez(
            folder / 'frames' / f'{first + len(frames):06d}.npz',
            image=frame.image, depth=frame.depth, group=frame.group, is_static=frame.is_static,
        )  # fmt: skip
        frames.append(frame)
        described.append(
            {
                'town': seed,
                'camera': frame.camera.to_words(),
                'quat_xyzw': frame.cam_from_map.quat_xyzw.tolist(),
                'translation': frame.cam_from_map.translation.tolist(),
            }
        )
    return described, [(first + i, first + j) for i, j in covisible(frames)]


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


def covisible(frames: Sequence[TownFrame]) -> list[tuple[int, int]]:
    """Pairs of frames that see enough of each other."""
    views = TownViews(frames, torch.device('cpu'))
    steps = np.meshgrid(
        np.arange(_GRID_STEP / 2, views.width, _GRID_STEP),
        np.arange(_GRID_STEP / 2, views.height, _GRID_STEP),
    )
    grid = torch.from_numpy(np.stack(steps, axis=-1).reshape(1, -1, 2))
    count = len(frames)
    overlap = torch.zeros(count, count)
    others = torch.arange(count)
    for i in range(count):
        source = torch.full_like(others, i)
        _, seen = views.project(source, others, grid.expand(count, -1, -1))
        overlap[i] = (seen == 1).float().mean(1)
    enough = torch.minimum(overlap, overlap.T) >= _MIN_OVERLAP
    return [(int(i), int(j)) for i, j in torch.nonzero(torch.triu(enough, diagonal=1))]

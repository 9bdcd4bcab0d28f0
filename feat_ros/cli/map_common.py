# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the actions of ``feat_ros map`` share: the images they are given, figures of a map."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from feat_ros import config
from feat_ros.bag_images import KeyframeConfig
from feat_ros.camera import Camera
from feat_ros.cli.common import ALL_IMAGES, camera_of_all, command_line, progress
from feat_ros.colmap_files import (
    PosedImage,
    read_colmap_model,
    read_names,
    read_queries,
    select_images,
)
from feat_ros.errors import DataError
from feat_ros.map_builder import BuildConfig
from feat_ros.sfm_map import partial_path, SfmMap
from feat_ros.workers import Workers

# Odometry and motion capture are off by pixels: options that suit them, where none are set.
ROBOT_POSES = ('max_epipolar_error_px=10', 'triangulation.max_reprojection_error_px=10')
# Tasks at once on a cluster, where nothing else is said.
_CLUSTER_TASKS = 64
_IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.pgm', '.tif', '.tiff', '.bmp', '.webp')


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add what names the images of a map: a folder or a bag."""
    parser.add_argument('--images', type=Path, metavar='DIR', help='image files')
    parser.add_argument(
        '--colmap', type=Path, metavar='MODEL',
        help='folder with cameras and images (.txt or .bin); its world is the map frame',
    )  # fmt: skip
    parser.add_argument(
        '--cameras', type=Path, metavar='FILE',
        help='lines "name MODEL width height params...", or one line "* MODEL ..." for all '
        'images; with --bag such a line in place of --info-topic',
    )  # fmt: skip
    parser.add_argument(
        '--list', type=Path, metavar='FILE', help='use only the images named here, one a line'
    )
    parser.add_argument('--bag', type=Path, metavar='BAG', help='ROS 1 or ROS 2 bag')
    parser.add_argument('--image-topic', metavar='T', help='images, raw or compressed')
    parser.add_argument('--info-topic', metavar='T', help='their CameraInfo')
    add_pose_source(parser)
    parser.add_argument(
        '--seconds', choices=('all', 'even', 'odd'), default='all',
        help='use the frames of these whole seconds since the first image; default: all',
    )  # fmt: skip
    parser.add_argument('--start', type=float, default=0.0, metavar='S', help='seconds from there')
    parser.add_argument('--end', type=float, default=float('inf'), metavar='S', help='until there')


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add what says where the work of a build is done."""
    parser.add_argument(
        '--workers', type=int, metavar='N',
        help='extract and match in so many processes, by Ray; default: in this one',
    )  # fmt: skip
    parser.add_argument(
        '--ray', metavar='ADDRESS',
        help='a Ray cluster, whose machines see the images and the map under the same paths',
    )  # fmt: skip


@contextmanager
def open_workers(args: argparse.Namespace) -> Iterator[Workers | None]:
    """Start the workers that were asked for."""
    if args.workers is not None and args.workers < 1:
        raise DataError(f'--workers is {args.workers}: at least 1 is needed')
    if args.workers is None and args.ray is None:
        yield None
        return
    with Workers(args.workers or _CLUSTER_TASKS, args.ray) as workers:
        yield workers


def add_pose_source(parser: argparse.ArgumentParser) -> None:
    """Add what names the poses of a bag's images."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        '--pose-topic', metavar='T',
        help='poses: Odometry, PoseStamped, PoseWithCovarianceStamped or TransformStamped',
    )  # fmt: skip
    source.add_argument('--tf', metavar='FRAME', help='poses of the camera in this frame, from TF')
    parser.add_argument(
        '--pose-frame', metavar='FRAME',
        help='the frame whose pose the topic gives. Odometry and TransformStamped name it; the '
        "others do not, and are taken to be of the camera's optical frame without this",
    )  # fmt: skip


def read_inputs(
    args: argparse.Namespace,
) -> tuple[Path, list[PosedImage] | dict[str, Camera], BuildConfig, dict[str, Any]]:
    """Return folder, images, options and provenance of what :func:`add_inputs` added."""
    own = [word for word in args.options if not word.startswith('keyframes.')]
    has_robot_poses = args.pose_topic is not None or args.tf is not None
    options = config.parse_options(BuildConfig, [*(ROBOT_POSES if has_robot_poses else ()), *own])
    source: dict[str, Any] = {'command': command_line()}
    if args.bag is not None:
        folder, images, options = _images_of_bag(args, options, source)
        return folder, images, options, source
    return *_images_of_folder(args, source), options, source


def _images_of_folder(
    args: argparse.Namespace, source: dict[str, Any]
) -> tuple[Path, list[PosedImage] | dict[str, Camera]]:
    """Return the folder and the images of ``--images``, with ``--colmap`` or ``--cameras``."""
    if args.images is None or (args.colmap is None) == (args.cameras is None):
        raise DataError('give --bag, or --images and one of --colmap and --cameras')
    _refuse(args, ['image_topic', 'info_topic', 'pose_topic', 'tf', 'pose_frame'], 'needs --bag')
    source['images'] = str(args.images)
    names = None if args.list is None else read_names(args.list)
    if args.colmap is not None:
        source['colmap'] = str(args.colmap)
        images = read_colmap_model(args.colmap)
        return args.images, (
            images if names is None else select_images(images, names, str(args.colmap))
        )
    source['cameras'] = str(args.cameras)
    cameras = read_queries(args.cameras)
    if ALL_IMAGES in cameras:
        names = names or _image_files(args.images)
        cameras = dict.fromkeys(names, camera_of_all(args.cameras))
    strangers = [name for name in names or [] if name not in cameras]
    if strangers:
        raise DataError(f'{args.cameras} has no camera of {strangers[0]!r}: add a line for it')
    return args.images, cameras if names is None else {name: cameras[name] for name in names}


def _image_files(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f'image folder {folder} does not exist')
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob('*')
        if path.suffix.lower() in _IMAGE_SUFFIXES
    )
    if not names:
        raise DataError(f'{folder} has no image ({", ".join(_IMAGE_SUFFIXES)})')
    return names


def _images_of_bag(
    args: argparse.Namespace, options: BuildConfig, source: dict[str, Any]
) -> tuple[Path, list[PosedImage] | dict[str, Camera], BuildConfig]:
    """Write the keyframes of ``--bag``; what they say of the frame goes into the options."""
    from feat_ros.bag_images import PoseSource, Window, write_keyframes
    from feat_ros.bags import Bag

    _refuse(args, ['images', 'colmap', 'list'], 'cannot be used with --bag')
    if args.image_topic is None or (args.info_topic is None) == (args.cameras is None):
        raise DataError('--bag needs --image-topic, and one of --info-topic and --cameras')
    words = [w.partition('.')[2] for w in args.options if w.startswith('keyframes.')]
    folder = partial_path(args.out) / 'images'
    poses = None
    if args.pose_topic is not None or args.tf is not None:
        poses = PoseSource(args.pose_topic, args.tf, args.pose_frame)
    elif args.pose_frame is not None:
        raise DataError('--pose-frame needs --pose-topic')
    with Bag(args.bag) as bag:
        if args.info_topic is not None:
            camera, _ = bag.camera_info(args.info_topic)
        else:
            camera = camera_of_all(args.cameras)
        keyframes = write_keyframes(
            bag, args.image_topic, camera, folder, poses,
            Window(args.start, args.end, args.seconds),
            config.parse_options(KeyframeConfig, words), progress,
        )  # fmt: skip
    print(', '.join(f'{name[4:]} {count}' for name, count in keyframes.counts.items()))
    source |= {'bag': str(args.bag), 'keyframes': keyframes.counts}
    if poses is not None:
        frame = keyframes.frame_id or options.frame_id
        options = replace(options, frame_id=frame, scale='metric', gravity='known')
    return folder, keyframes.images, options


def _refuse(args: argparse.Namespace, names: list[str], why: str) -> None:
    given = [name for name in names if getattr(args, name) is not None]
    if given:
        raise DataError(f'--{given[0].replace("_", "-")} {why}')


def describe_map(sfm_map: SfmMap) -> dict[str, Any]:
    """Return the figures of a map."""
    manifest = sfm_map.manifest
    size = sum(file.stat().st_size for file in sfm_map.path.rglob('*') if file.is_file())
    return {
        'map': str(sfm_map.path),
        'map_id': manifest.map_id,
        'num_points': sfm_map.num_points,
        'num_images': sfm_map.num_images,
        'num_observations': sfm_map.num_observations,
        'size_mb': round(size / 1e6, 2),
        'frame_id': manifest.frame_id,
        'scale': manifest.scale,
        'gravity': manifest.gravity,
        'extractor': manifest.extractor.name,
        'extractor_options': manifest.extractor.options,
        'pose_noise': asdict(manifest.pose_noise),
        'measured': manifest.measured,
        'provenance': manifest.provenance,
    }


def print_description(description: dict[str, Any]) -> None:
    """Print the figures of a map for people."""
    d = description
    unit = 'm' if d['scale'] == 'metric' else 'units'
    print(
        f'map {d["map"]}: {d["num_points"]} points, {d["num_images"]} images, '
        f'{d["num_observations"]} observations, {d["size_mb"]} MB'
    )
    print(
        f'  frame {d["frame_id"]!r}, scale {d["scale"]}, gravity {d["gravity"]}, '
        f'extractor {d["extractor"]}, id {d["map_id"]}'
    )
    left_out = d['measured'].get('left_out', {})
    if left_out.get('num_images'):
        position, rotation = (
            left_out['median_translation_error_m'], left_out['median_rotation_error_deg'],
        )  # fmt: skip
        accuracy = (
            f'median error {position:.3g} {unit}, {rotation:.3g} deg'
            if position is not None
            else 'most of them failed: the map is too sparse'
        )
        print(
            f'  without themselves, {left_out["num_localized"]} of {left_out["num_images"]} of '
            f'its images are localized; {accuracy}'
        )
    noise = d['pose_noise']
    if noise['translation_m'] or noise['rotation_rad']:
        print(
            f'  noise of its poses, part of every covariance: {noise["translation_m"]:.3g} '
            f'{unit}, {np.degrees(noise["rotation_rad"]):.3g} deg an axis'
        )
    if d.get('verified'):
        print('  every byte is as it was written')

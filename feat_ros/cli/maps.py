# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros map``: build maps and look at them."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from feat_ros import config
from feat_ros.alignment import Alignment
from feat_ros.bag_images import KeyframeConfig
from feat_ros.camera import Camera
from feat_ros.cli.common import (
    add_command,
    add_extractor_options,
    ALL_IMAGES,
    camera_of_all,
    check_writable,
    command_line,
    progress,
)
from feat_ros.colmap_files import (
    PosedImage,
    read_colmap_model,
    read_names,
    read_poses,
    read_queries,
    select_images,
)
from feat_ros.errors import DataError
from feat_ros.extractors import (
    create_extractor,
    DEFAULT_EXTRACTOR,
    EXTRACTORS,
    parse_extractor_options,
)
from feat_ros.map_builder import build_map, BuildConfig, check_out
from feat_ros.sfm_map import partial_path, SfmMap

# Odometry and motion capture are off by pixels: options that suit them, where none are set.
_ROBOT_POSES = ('max_epipolar_error_px=10', 'triangulation.max_reprojection_error_px=10')
_IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.pgm', '.tif', '.tiff', '.bmp', '.webp')


def add_parser(commands: Any) -> None:
    """Add ``map`` and its sub-commands."""
    parser = commands.add_parser('map', help='build maps, look at them, give them a scale')
    actions = parser.add_subparsers(metavar='ACTION', required=True)
    _add_build(actions)
    _add_info(actions)
    _add_align(actions)


def _add_build(actions: Any) -> None:
    build = add_command(
        actions,
        'build',
        'Build a map folder: from images with known poses (--colmap), from images of known '
        'cameras alone (--cameras; the scale stays unknown until "map align"), or from a bag '
        '(--bag; with the poses of a topic or of TF, or without). The poses of a bag are rough: '
        f'there {" and ".join(_ROBOT_POSES)} unless set otherwise.',
        'feat_ros map build --out office --images photos --colmap photos/sparse\n'
        '  feat_ros map build --out office --images photos --cameras cameras.txt\n'
        '  feat_ros map build --out office --bag drive --image-topic /camera/image_raw '
        '--info-topic /camera/camera_info --tf map',
        [*config.describe(BuildConfig), *config.describe(KeyframeConfig, 'keyframes.')],
    )
    build.add_argument('--out', type=Path, required=True, metavar='MAP', help='the map folder')
    build.add_argument('--images', type=Path, metavar='DIR', help='image files')
    build.add_argument(
        '--colmap', type=Path, metavar='MODEL',
        help='folder with cameras and images (.txt or .bin); its world is the map frame',
    )  # fmt: skip
    build.add_argument(
        '--cameras', type=Path, metavar='FILE',
        help='lines "name MODEL width height params...", or one line "* MODEL ..." for all '
        'images; with --bag such a line in place of --info-topic',
    )  # fmt: skip
    build.add_argument(
        '--list', type=Path, metavar='FILE', help='use only the images named here, one a line'
    )
    build.add_argument('--bag', type=Path, metavar='BAG', help='ROS 1 or ROS 2 bag')
    build.add_argument('--image-topic', metavar='T', help='images, raw or compressed')
    build.add_argument('--info-topic', metavar='T', help='their CameraInfo')
    _add_pose_source(build)
    build.add_argument(
        '--seconds', choices=('all', 'even', 'odd'), default='all',
        help='use the frames of these whole seconds since the first image; default: all',
    )  # fmt: skip
    build.add_argument('--start', type=float, default=0.0, metavar='S', help='seconds from there')
    build.add_argument('--end', type=float, default=float('inf'), metavar='S', help='until there')
    build.add_argument(
        '--extractor', default=DEFAULT_EXTRACTOR, metavar='NAME',
        help=f'one of {", ".join(EXTRACTORS)}; default: {DEFAULT_EXTRACTOR}',
    )  # fmt: skip
    add_extractor_options(build)
    build.add_argument(
        '--overwrite', action='store_true', help='replace a map of that name once this one is done'
    )
    build.set_defaults(run=run_build)


def _add_pose_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        '--pose-topic', metavar='T',
        help='poses: Odometry, PoseStamped, PoseWithCovarianceStamped or TransformStamped',
    )  # fmt: skip
    source.add_argument('--tf', metavar='FRAME', help='poses of the camera in this frame, from TF')
    parser.add_argument(
        '--pose-frame', metavar='FRAME',
        help='the frame whose pose the topic gives. Odometry and TransformStamped name it; the '
        'others do not, and are taken to be of the camera\'s optical frame without this',
    )  # fmt: skip


def _add_align(actions: Any) -> None:
    align = add_command(
        actions,
        'align',
        'Give a map its scale and frame from what is known: distances between its images, poses '
        'of some of them, points marked in them, or a bag. The map is replaced.',
        'feat_ros map align office --distance a.jpg b.jpg 2.35\n'
        '  feat_ros map align office --poses known.txt --z-up',
    )
    align.add_argument('map', type=Path, metavar='MAP', help='the map folder')
    align.add_argument(
        '--distance', nargs=3, action='append', default=[], metavar=('IMAGE', 'IMAGE', 'METRES'),
        help='between two camera centres; repeat for more (the median scale is taken)',
    )  # fmt: skip
    align.add_argument(
        '--poses', type=Path, metavar='FILE',
        help='lines "name qw qx qy qz tx ty tz" (cam_from_map) of two images or more',
    )  # fmt: skip
    align.add_argument(
        '--points', type=Path, metavar='FILE',
        help='lines "image u v x y z": the pixel of a known point; three points or more, each in '
        'two images or more; the centre of the top-left pixel is (0.5, 0.5)',
    )  # fmt: skip
    align.add_argument(
        '--bag', type=Path, metavar='BAG',
        help='poses or fixes at the stamps that the images of a map from a bag are named by',
    )  # fmt: skip
    _add_pose_source(align)
    align.add_argument(
        '--camera-frame', default='', metavar='FRAME',
        help="the camera's optical frame, where --tf or the topic's poses are not of it",
    )  # fmt: skip
    align.add_argument(
        '--navsat-topic', metavar='T',
        help='NavSatFix: the map becomes east-north-up of its first image that has a fix; the '
        'antenna is taken to be at the camera',
    )  # fmt: skip
    align.add_argument(
        '--max-gap', type=float, default=2.0, metavar='S',
        help='poses further apart are not interpolated between, seconds; default: 2',
    )  # fmt: skip
    align.add_argument(
        '--z-up', action='store_true',
        help='z of the --poses or --points is up (it is in those of a bag, by REP 103)',
    )  # fmt: skip
    align.add_argument('--frame-id', metavar='FRAME', help="the map's frame from now on")
    align.set_defaults(run=run_align)


def _add_info(actions: Any) -> None:
    info = add_command(
        actions,
        'info',
        'Show what is in a map.',
        'feat_ros map info office --verify --plot office.png',
    )
    info.add_argument('map', type=Path, metavar='MAP', help='the map folder')
    info.add_argument('--verify', action='store_true', help='read and check every byte')
    info.add_argument('--plot', type=Path, metavar='FILE', help='draw the map from above (PNG)')
    info.set_defaults(run=run_info)


def run_build(args: argparse.Namespace) -> dict[str, Any]:
    """Build a map; return its description."""
    from feat_ros.plots import plot_top_view

    own = [word for word in args.options if not word.startswith('keyframes.')]
    has_robot_poses = args.pose_topic is not None or args.tf is not None
    options = config.parse_options(BuildConfig, [*(_ROBOT_POSES if has_robot_poses else ()), *own])
    extractor = create_extractor(
        args.extractor, **parse_extractor_options(args.extractor, args.extractor_option)
    )
    check_out(args.out, overwrite=args.overwrite)
    source: dict[str, Any] = {'command': command_line()}
    if args.bag is not None:
        image_folder, images, options = _images_of_bag(args, options, source)
    else:
        image_folder, images = _images_of_folder(args, source)
    sfm_map = build_map(
        args.out, image_folder, images, extractor, options,
        overwrite=args.overwrite, progress=progress, provenance=source,
    )  # fmt: skip
    plot_top_view(args.out / 'top_view.png', sfm_map)
    description = describe_map(sfm_map)
    print_description(description)
    print(f'top view: {args.out / "top_view.png"}')
    return description


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


def run_align(args: argparse.Namespace) -> dict[str, Any]:
    """Align a map; return its new description and the residuals."""
    from feat_ros.alignment import apply_alignment
    from feat_ros.plots import plot_top_view

    sfm_map = SfmMap(args.map)
    alignment, frame_id, gravity = _find_alignment(args, sfm_map)
    sfm_map = apply_alignment(
        args.map, alignment, frame_id=args.frame_id or frame_id, gravity=gravity,
        note={'command': command_line()}, progress=progress,
    )  # fmt: skip
    plot_top_view(args.map / 'top_view.png', sfm_map)
    figures = alignment.summary()
    print(
        f'scale {figures["scale"]:.6g}, from {figures["num_used"]} of {figures["num_known"]} '
        f'known: residuals median {figures["median_residual_m"]:.3g} m, '
        f'rms {figures["rms_residual_m"]:.3g} m, worst:'
    )
    for name, metres, used in alignment.worst(5):
        print(f'  {metres:10.4f} m  {name}{"" if used else "  (left aside)"}')
    description = describe_map(sfm_map)
    print_description(description)
    return {**description, 'alignment': figures}


def _find_alignment(
    args: argparse.Namespace, sfm_map: SfmMap
) -> tuple[Alignment, str | None, str | None]:
    """Return the alignment, and the frame and gravity that it brings (None: as they were)."""
    from feat_ros import alignment

    given = [bool(args.distance), args.poses is not None, args.points is not None,
             args.bag is not None]  # fmt: skip
    if sum(given) != 1:
        raise DataError('give one of --distance, --poses, --points and --bag')
    gravity = 'known' if args.z_up else 'unknown'
    if args.distance:
        return alignment.align_by_distances(sfm_map, _distances(args.distance)), None, None
    if args.poses is not None:
        return alignment.align_by_poses(sfm_map, read_poses(args.poses)), None, gravity
    if args.points is not None:
        known = alignment.read_known_points(args.points)
        return alignment.align_by_points(sfm_map, known), None, gravity
    found, frame_id = _align_by_bag(args, sfm_map)
    return found, frame_id, 'known'


def _distances(rows: list[list[str]]) -> list[tuple[str, str, float]]:
    try:
        return [(a, b, float(metres)) for a, b, metres in rows]
    except ValueError as error:
        raise DataError(f'--distance needs two images and metres: {error}') from None


def _align_by_bag(args: argparse.Namespace, sfm_map: SfmMap) -> tuple[Alignment, str | None]:
    from feat_ros import alignment
    from feat_ros.bag_images import fixes_at_images, poses_at_images, PoseSource
    from feat_ros.bags import Bag

    sources = [args.pose_topic, args.tf, args.navsat_topic]
    if sum(source is not None for source in sources) != 1:
        raise DataError('--bag needs one of --pose-topic, --tf and --navsat-topic')
    if args.tf is not None and not args.camera_frame:
        raise DataError("--tf needs --camera-frame, the camera's optical frame")
    names = alignment.image_names(sfm_map)
    with Bag(args.bag) as bag:
        if args.navsat_topic is not None:
            fixes = fixes_at_images(bag, args.navsat_topic, names, args.max_gap)
            if not fixes:
                raise DataError(f'no image of {args.map} was taken while {args.bag} had a fix')
            places = alignment.east_north_up(*np.array(list(fixes.values())).T)
            known = dict(zip(fixes, places, strict=True))
            return alignment.align_by_positions(sfm_map, known), None
        source = PoseSource(args.pose_topic, args.tf, args.pose_frame)
        poses, frame = poses_at_images(bag, source, args.camera_frame, names, args.max_gap)
    return alignment.align_by_poses(sfm_map, poses), frame or None


def run_info(args: argparse.Namespace) -> dict[str, Any]:
    """Describe, check and draw a map."""
    if args.plot is not None:
        check_writable(args.plot)
    sfm_map = SfmMap(args.map)
    description = describe_map(sfm_map)
    if args.verify:
        sfm_map.verify()
        description['verified'] = True
    print_description(description)
    if args.plot is not None:
        from feat_ros.plots import plot_top_view

        plot_top_view(args.plot, sfm_map)
        print(f'top view: {args.plot}')
    return description


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

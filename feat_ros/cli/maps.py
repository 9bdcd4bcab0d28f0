# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros map``: build maps and look at them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from feat_ros import config
from feat_ros.alignment import Alignment
from feat_ros.bag_images import KeyframeConfig
from feat_ros.cli import map_life
from feat_ros.cli.common import (
    add_command,
    add_extractor_options,
    check_writable,
    command_line,
    progress,
)
from feat_ros.cli.map_common import (
    add_inputs,
    add_pose_source,
    add_workers,
    describe_map,
    open_workers,
    print_description,
    read_inputs,
    ROBOT_POSES,
)
from feat_ros.colmap_files import (
    read_poses,
)
from feat_ros.errors import DataError
from feat_ros.extractors import (
    create_extractor,
    DEFAULT_EXTRACTOR,
    EXTRACTORS,
    parse_extractor_options,
)
from feat_ros.map_builder import build_map, BuildConfig, check_out
from feat_ros.sfm_map import SfmMap


def add_parser(commands: Any) -> None:
    """Add ``map`` and its sub-commands."""
    parser = commands.add_parser('map', help='build maps, look at them, change them')
    actions = parser.add_subparsers(metavar='ACTION', required=True)
    _add_build(actions)
    _add_info(actions)
    _add_align(actions)
    map_life.add_actions(actions)


def _add_build(actions: Any) -> None:
    build = add_command(
        actions,
        'build',
        'Build a map folder: from images with known poses (--colmap), from images of known '
        'cameras alone (--cameras; the scale stays unknown until "map align"), or from a bag '
        '(--bag; with the poses of a topic or of TF, or without). The poses of a bag are rough: '
        f'there {" and ".join(ROBOT_POSES)} unless set otherwise.',
        'feat_ros map build --out office --images photos --colmap photos/sparse\n'
        '  feat_ros map build --out office --images photos --cameras cameras.txt\n'
        '  feat_ros map build --out office --bag drive --image-topic /camera/image_raw '
        '--info-topic /camera/camera_info --tf map',
        [*config.describe(BuildConfig), *config.describe(KeyframeConfig, 'keyframes.')],
    )
    build.add_argument('--out', type=Path, required=True, metavar='MAP', help='the map folder')
    add_inputs(build)
    add_workers(build)
    build.add_argument(
        '--extractor', default=DEFAULT_EXTRACTOR, metavar='NAME',
        help=f'one of {", ".join(EXTRACTORS)}; default: {DEFAULT_EXTRACTOR}',
    )  # fmt: skip
    add_extractor_options(build)
    build.add_argument(
        '--overwrite', action='store_true', help='replace a map of that name once this one is done'
    )
    build.set_defaults(run=run_build)


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
    add_pose_source(align)
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

    extractor = create_extractor(
        args.extractor, **parse_extractor_options(args.extractor, args.extractor_option)
    )
    check_out(args.out, overwrite=args.overwrite)
    image_folder, images, options, source = read_inputs(args)
    with open_workers(args) as workers:
        sfm_map = build_map(
            args.out, image_folder, images, extractor, options,
            overwrite=args.overwrite, progress=progress, provenance=source, workers=workers,
        )  # fmt: skip
    plot_top_view(args.out / 'top_view.png', sfm_map)
    description = describe_map(sfm_map)
    print_description(description)
    print(f'top view: {args.out / "top_view.png"}')
    return description


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

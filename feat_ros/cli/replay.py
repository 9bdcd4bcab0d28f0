# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros replay``: a recorded bag through the localization server."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feat_ros import config
from feat_ros.cli.common import (
    add_command,
    add_extractor_options,
    camera_of_all,
    command_line,
    progress,
)
from feat_ros.config import Config, option
from feat_ros.localizer import LocalizerConfig, open_localizer
from feat_ros.replay import replay, ReplaySource
from feat_ros.server import ServerConfig


@dataclass(frozen=True)
class ReplayOptions(Config):
    """What ``--set`` changes."""

    localizer: LocalizerConfig = option(LocalizerConfig, 'one image in a map')
    server: ServerConfig = option(ServerConfig, 'one frame after the other')


def add_parser(commands: Any) -> None:
    """Add ``replay``."""
    parser = add_command(
        commands,
        'replay',
        'Localize the images of a bag one after the other, every one or in real time with drops '
        'as on a robot. DIR gets trajectory.tum, frames.csv, summary.json and report.html.',
        'feat_ros replay --map office --bag drive --image-topic /camera/image_raw '
        '--info-topic /camera/camera_info --out result',
        config.describe(ReplayOptions),
    )
    parser.add_argument('--map', type=Path, required=True, metavar='MAP', help='the map folder')
    parser.add_argument(
        '--bag', type=Path, required=True, metavar='BAG', help='folder or file, ROS 1 or ROS 2'
    )
    parser.add_argument(
        '--image-topic', required=True, metavar='T', help='Image or CompressedImage'
    )
    camera = parser.add_mutually_exclusive_group(required=True)
    camera.add_argument('--info-topic', metavar='T', help='CameraInfo')
    camera.add_argument(
        '--cameras', type=Path, metavar='FILE',
        help='one line "* MODEL width height params..." (COLMAP\'s models), for a bag without',
    )  # fmt: skip
    parser.add_argument(
        '--ground-truth-topic', metavar='T', help="true poses in the map's frame, to compare with"
    )
    parser.add_argument(
        '--ground-truth-frame', metavar='FRAME',
        help="the frame that these are poses of; default: their messages' child frame, or the "
        "image's frame where they name none",
    )  # fmt: skip
    parser.add_argument(
        '--truth-sigma-m', type=float, default=0.0, metavar='M',
        help='noise of the ground truth itself, each axis; default 0',
    )  # fmt: skip
    parser.add_argument(
        '--truth-sigma-deg', type=float, default=0.0, metavar='DEG', help='the same for angles'
    )
    parser.add_argument(
        '--odometry-topic', metavar='T', help='poses that drift, for the prior and for gating'
    )
    parser.add_argument(
        '--base-frame', metavar='FRAME',
        help="whose poses are written, by TF; default: the odometry's child frame, or the "
        "image's frame",
    )  # fmt: skip
    parser.add_argument(
        '--start', type=float, default=0.0, metavar='S', help='seconds after the first image'
    )
    parser.add_argument('--end', type=float, metavar='S', help='seconds after the first image')
    parser.add_argument(
        '--seconds', choices=('all', 'even', 'odd'), default='all',
        help='only the images of every second second, counted from the first image: a map of the '
        'even ones is tested on the odd ones',
    )  # fmt: skip
    parser.add_argument(
        '--every', type=int, default=1, metavar='N', help='of what is left, every N-th image'
    )
    parser.add_argument(
        '--realtime', action='store_true',
        help='hand images over at the pace they were taken at; those that come while an older '
        'one is waiting replace it',
    )  # fmt: skip
    add_extractor_options(parser)
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='results go here')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace earlier results of that name'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Replay a bag; return the figures."""
    options = config.parse_options(ReplayOptions, args.options)
    source = ReplaySource(
        image_topic=args.image_topic,
        info_topic=args.info_topic,
        camera=None if args.cameras is None else camera_of_all(args.cameras).to_words(),
        ground_truth_topic=args.ground_truth_topic,
        ground_truth_frame=args.ground_truth_frame,
        odometry_topic=args.odometry_topic,
        base_frame=args.base_frame,
        start_s=args.start,
        end_s=args.end,
        seconds=args.seconds,
        every=args.every,
    )
    localizer = open_localizer(args.map, options.localizer, None, args.extractor_option)
    figures = replay(
        args.bag, localizer, args.out, source, options.server,
        realtime=args.realtime,
        truth_sigma_m=args.truth_sigma_m,
        truth_sigma_deg=args.truth_sigma_deg,
        overwrite=args.overwrite,
        progress=progress,
        provenance={'command': command_line()},
    )  # fmt: skip
    _print_figures(figures)
    print(f'report: {args.out / "report.html"}')
    return figures


def _print_figures(figures: dict[str, Any]) -> None:
    dropped = f', {figures["dropped"]} dropped' if figures['dropped'] else ''
    print(f'{figures["num_localized"]} of {figures["num_queries"]} localized{dropped}')
    for reason, count in figures['reasons'].items():
        print(f'  {count} {reason}')
    if figures['median_translation_error_m'] is not None:
        print(
            f'  median error {figures["median_translation_error_m"] * 100:.3g} cm, '
            f'{figures["median_rotation_error_deg"]:.3g} deg'
        )
    for threshold, share in figures['recall'].items():
        print(f'  within {threshold.replace("_", " and "):>15}: {100 * share:5.1f} %')
    covariance = figures['covariance'] or {}
    if covariance.get('num_poses'):
        print(f'  {100 * covariance["share_inside_95"]:.1f} % inside the 95 % ellipsoid')
    total = figures['latency_ms']['total']
    print(f'  {total["p50"]:.0f} ms a frame (median), {total["p95"]:.0f} ms (95 %)')

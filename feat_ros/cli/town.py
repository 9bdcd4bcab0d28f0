# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros town``: drives through a made-up town, with exact poses."""

from __future__ import annotations

import argparse
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from feat_ros import config
from feat_ros.camera import Camera
from feat_ros.cli.common import add_command, progress
from feat_ros.cli.map_common import describe_map, print_description
from feat_ros.errors import DataError
from feat_ros.town.course import CAMERA, drive, DRIVES, STREET_M
from feat_ros.town.drive import Drive
from feat_ros.town.light import CONDITIONS

_SUMMARY = 'Write a drive through a made-up town: images with exact poses, or a bag.'

_DESCRIPTION = f"""{_SUMMARY}

The same seed gives the same streets. Drive A is meant for a map; B runs beside it in another lane
on another day, when other cars are parked; C comes the other way; --set changes them (what it
lists are drive A's by day).

Without --bag, DIR holds images/ and sparse/ (a COLMAP model) for "feat_ros map build", times.txt
and, with --truth, depth and labels of every pixel. With it, DIR is a ROS 2 bag with the topics
  /camera/image_raw/compressed  /camera/camera_info  /odom (it drifts)  /tf  /tf_static
  /ground_truth (map from base_link)

With --small-map no drive is written but the map that comes with feat_ros (maps/town_small): the
same bytes on every x86-64 processor with AVX2, from the versions that its manifest names."""

_EXAMPLE = """feat_ros town --seed 7 --drive A --out drive_a
  feat_ros town --seed 7 --drive B --condition night --bag --out drive_b
  feat_ros map build --out town --images drive_a/images --colmap drive_a/sparse
  feat_ros replay --map town --bag drive_b --out result \\
      --image-topic /camera/image_raw/compressed --info-topic /camera/camera_info \\
      --odometry-topic /odom --ground-truth-topic /ground_truth"""


def add_parser(commands: Any) -> None:
    """Add ``town``."""
    town = add_command(commands, 'town', _SUMMARY, _EXAMPLE, config.describe(drive('A', 'day')))
    town.description = _DESCRIPTION
    what = town.add_mutually_exclusive_group(required=True)
    what.add_argument('--out', type=Path, metavar='DIR', help='the drive; must not exist')
    what.add_argument('--small-map', type=Path, metavar='MAP', help='rebuild maps/town_small')
    town.add_argument('--seed', type=int, default=1, metavar='N', help='which town; default 1')
    town.add_argument('--drive', choices=DRIVES, default='A', help='default: A')
    town.add_argument(
        '--condition', choices=CONDITIONS, default='day', help='light and weather; default: day'
    )
    town.add_argument('--bag', action='store_true', help='write a ROS 2 bag instead of images')
    town.add_argument(
        '--truth', action='store_true', help='write depth and labels too (not into a bag)'
    )
    town.add_argument(
        '--length', type=float, default=STREET_M, metavar='M',
        help=f'length of the street; default {STREET_M:g}',
    )  # fmt: skip
    town.add_argument(
        '--camera', default=CAMERA.to_words(), metavar='WORDS',
        help=f'"MODEL width height params..." as COLMAP has it; default "{CAMERA.to_words()}"',
    )  # fmt: skip
    town.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write one drive; return what it is."""
    from feat_ros.town import Town, write_drive
    from feat_ros.town.bag import write_drive_bag

    if args.small_map is not None:
        from feat_ros.town.small_map import build_small_map

        description = describe_map(build_small_map(args.small_map))
        print_description(description)
        return description
    if args.bag and args.truth:
        raise DataError('a bag has no place for depth and labels: leave out --truth or --bag')
    chosen = _changed(drive(args.drive, args.condition), Drive, args.options)
    end_m = chosen.start_m + chosen.length_m
    if not 0 <= chosen.start_m <= end_m <= args.length:
        raise DataError(
            f'the drive goes from {chosen.start_m:g} to {end_m:g} m, the street from 0 to '
            f'{args.length:g}: change --length, or --set start_m=... and length_m=...'
        )
    camera = Camera.from_words(args.camera.split())
    scene = Town(args.seed, args.length).scene(chosen)
    if args.bag:
        write_drive_bag(args.out, scene, camera, progress=progress)
    else:
        write_drive(args.out, scene, camera, has_truth=args.truth, progress=progress)
    count = len(chosen.times_s())
    print(f'{count} images of town {args.seed}, drive {args.drive}: {args.out}')
    return {'num_images': count, 'seed': args.seed, 'drive': config.to_dict(chosen)}


def _changed(preset: Any, kind: type[Any], pairs: list[str]) -> Any:
    """Return a preset with those options changed that ``name=value`` words name.

    :raises ConfigError: an unknown name or an unusable value.
    """
    made = config.parse_options(kind, pairs)
    named = {pair.partition('=')[0] for pair in pairs}
    changes: dict[str, Any] = {}
    for field in fields(kind):
        inner = [pair.partition('.')[2] for pair in pairs if pair.startswith(f'{field.name}.')]
        value = getattr(preset, field.name)
        if is_dataclass(value) and inner:
            changes[field.name] = _changed(value, type(value), inner)
        elif field.name in named:
            changes[field.name] = getattr(made, field.name)
    return replace(preset, **changes)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros demo``: a drive through a town becomes a map, another drive finds its way in it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import shutil
from typing import Any

import cv2
import numpy as np

from feat_ros.cli.common import add_command, command_line, progress, write_output
from feat_ros.errors import DataError
from feat_ros.extractors import create_extractor, DEFAULT_EXTRACTOR, EXTRACTORS
from feat_ros.image import write_png
from feat_ros.localizer import create_retriever, Localizer, LocalizerConfig
from feat_ros.sfm_map import SfmMap
from feat_ros.types import PoseEstimate

_SUMMARY = (
    'Drive through a made-up town and make a map; drive again beside it on another day, with '
    'other cars parked, and find every pose; needs no data and no network.'
)
_CONDITIONS = ('day', 'dusk', 'night')


def add_parser(commands: Any) -> None:
    """Add ``demo``."""
    demo = add_command(commands, 'demo', _SUMMARY, 'feat_ros demo --out demo_out')
    demo.add_argument(
        '--out', type=Path, required=True, metavar='DIR',
        help='drives, map and report go here; an earlier demo there is replaced',
    )  # fmt: skip
    demo.add_argument('--seed', type=int, default=1, metavar='N', help='which town; default 1')
    demo.add_argument(
        '--condition', choices=_CONDITIONS, default='day',
        help='light of the second drive; default: day',
    )  # fmt: skip
    demo.add_argument(
        '--extractor', choices=tuple(EXTRACTORS), default=DEFAULT_EXTRACTOR,
        help=f'which features; default: {DEFAULT_EXTRACTOR}',
    )  # fmt: skip
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the demo; return its figures."""
    from feat_ros.colmap_files import read_colmap_model
    from feat_ros.map_builder import build_map, BuildConfig
    from feat_ros.replay import replay, ReplaySource
    from feat_ros.town import bag, Town, write_drive
    from feat_ros.town.course import CAMERA, drive, STREET_M

    out = _prepare(args.out)
    print(f'1 of 4: town {args.seed}, and drive A through it by day, for the map', flush=True)
    town = Town(args.seed, STREET_M)
    first = write_drive(out / 'drive_a', town.scene(drive('A', 'day')), CAMERA, progress=progress)
    print('2 of 4: the map', flush=True)
    sfm_map = build_map(
        out / 'map', first / 'images', read_colmap_model(first / 'sparse'),
        create_extractor(args.extractor), BuildConfig(gravity='known'),
        overwrite=True, progress=progress, provenance={'command': command_line()},
    )  # fmt: skip
    print(f'3 of 4: drive B, another day, in another lane, light: {args.condition}', flush=True)
    scene = town.scene(drive('B', args.condition))
    second = bag.write_drive_bag(out / 'drive_b', scene, CAMERA, progress=progress)
    config = LocalizerConfig()
    localizer = Localizer(
        sfm_map, create_extractor(args.extractor), create_retriever(sfm_map, config), config
    )
    print('4 of 4: drive B in the map', flush=True)
    source = ReplaySource(
        image_topic=bag.IMAGE_TOPIC,
        info_topic=bag.INFO_TOPIC,
        odometry_topic=bag.ODOMETRY_TOPIC,
        ground_truth_topic=bag.TRUTH_TOPIC,
    )
    figures = replay(
        second, localizer, out / 'replay', source,
        overwrite=True, progress=progress, provenance={'command': command_line()},
    )  # fmt: skip
    _draw(out / 'demo.png', localizer, second)
    write_output(out / 'demo.json', json.dumps(figures, indent=1) + '\n')
    _print_figures(figures, sfm_map)
    print(f'picture: {out / "demo.png"}')
    print(f'report: {out / "replay" / "report.html"}')
    return figures


def _prepare(out: Path) -> Path:
    """Make the folder, an earlier demo's drives removed from it.

    :raises DataError: it holds something else, or cannot be made.
    """
    note = out / 'demo.json'
    if out.exists() and not (out.is_dir() and (note.is_file() or not any(out.iterdir()))):
        raise DataError(f'{out} holds something else than an earlier demo: choose another --out')
    try:
        out.mkdir(exist_ok=True)
        for name in ('drive_a', 'drive_b'):
            if (out / name).exists():
                shutil.rmtree(out / name)
    except OSError as error:
        raise DataError(f'{out} cannot be written: {error.strerror or error}') from None
    write_output(note, '{}\n')
    return out


def _print_figures(figures: dict[str, Any], sfm_map: SfmMap) -> None:
    print(
        f'{figures["num_localized"]} of {figures["num_queries"]} frames localized among '
        f'{sfm_map.num_points} points of {sfm_map.num_images} images'
    )
    if figures['median_translation_error_m'] is not None:
        print(
            f'  median error {100 * figures["median_translation_error_m"]:.1f} cm, '
            f'{figures["median_rotation_error_deg"]:.2f} deg; '
            f'{100 * figures["recall"]["0.1m_1deg"]:.0f} % within 10 cm and 1 deg'
        )
    total = figures['latency_ms']['total']
    print(f'  {total["p50"]:.0f} ms a frame (median), {total["p95"]:.0f} ms (95 %)')


def _draw(path: Path, localizer: Localizer, bag_path: Path) -> None:
    """Draw a frame of a drive with the keypoints that fixed it, and the map seen from above."""
    from feat_ros.bags import Bag
    from feat_ros.plots import plot_top_view
    from feat_ros.town import bag

    with Bag(bag_path) as reader:
        camera, _ = reader.camera_info(bag.INFO_TOPIC)
        images = [image.decode() for image in reader.images(bag.IMAGE_TOPIC)]
    # The first third has most of the street ahead.
    image = images[len(images) // 3]
    result = localizer.localize(image, camera)
    picture = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    poses = {}
    if isinstance(result, PoseEstimate):
        poses['drive B'] = result.cam_from_map
        used = localizer.extractor(image).keypoints[result.matches[result.inliers, 0]]
        for x, y in np.rint(2 * used - 0.5).astype(int).tolist():
            cv2.circle(picture, (x, y), 4, (0, 255, 120), 1, cv2.LINE_AA)
    plot_top_view(path, localizer.map, poses)
    # What matplotlib wrote has an opacity, which imread leaves out.
    seen = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    width = picture.shape[1]
    size = (width, round(seen.shape[0] * width / seen.shape[1]))
    seen = cv2.resize(seen, size, interpolation=cv2.INTER_AREA)
    write_png(path, np.vstack([picture, seen]).astype(np.uint8))

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros map``: build maps and look at them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from feat_ros import config
from feat_ros.cli.common import (
    add_command,
    add_extractor_options,
    check_writable,
    command_line,
    extractor_options,
    progress,
)
from feat_ros.extractors import create_extractor
from feat_ros.map_builder import build_map, BuildConfig
from feat_ros.sfm_map import SfmMap


def add_parser(commands: Any) -> None:
    """Add ``map`` and its sub-commands."""
    parser = commands.add_parser('map', help='build maps and look at them')
    actions = parser.add_subparsers(metavar='ACTION', required=True)

    build = add_command(
        actions,
        'build',
        'Build a map folder from images with known poses (a COLMAP model, text or binary).',
        'feat_ros map build --out office --images photos --colmap photos/sparse',
        config.describe(BuildConfig),
    )
    build.add_argument('--out', type=Path, required=True, metavar='MAP', help='the map folder')
    build.add_argument('--images', type=Path, required=True, metavar='DIR', help='image files')
    build.add_argument(
        '--colmap', type=Path, required=True, metavar='MODEL',
        help='folder with cameras and images (.txt or .bin); its world is the map frame',
    )  # fmt: skip
    build.add_argument(
        '--list', type=Path, metavar='FILE', help='use only the images named here, one a line'
    )
    build.add_argument('--extractor', default='sift', metavar='NAME', help='default: sift')
    add_extractor_options(build)
    build.add_argument(
        '--overwrite', action='store_true', help='replace a map of that name once this one is done'
    )
    build.set_defaults(run=run_build)

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
    from feat_ros.colmap_files import read_colmap_model, read_names, select_images
    from feat_ros.plots import plot_top_view

    options = config.parse_options(BuildConfig, args.options)
    extractor = create_extractor(
        args.extractor, **extractor_options(args.extractor, args.extractor_option)
    )
    images = read_colmap_model(args.colmap)
    if args.list is not None:
        images = select_images(images, read_names(args.list), str(args.colmap))
    sfm_map = build_map(
        args.out, args.images, images, extractor, options,
        overwrite=args.overwrite, progress=progress,
        provenance={
            'command': command_line(),
            'images': str(args.images),
            'colmap': str(args.colmap),
        },
    )  # fmt: skip
    plot_top_view(args.out / 'top_view.png', sfm_map)
    description = describe_map(sfm_map)
    print_description(description)
    print(f'top view: {args.out / "top_view.png"}')
    return description


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
            f'  left out one at a time, {left_out["num_localized"]} of {left_out["num_images"]} '
            f'of its images are localized; {accuracy}'
        )
    if d.get('verified'):
        print('  every byte is as it was written')

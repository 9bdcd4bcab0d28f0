# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros demo``: photographs -> map -> poses of other photographs -> figures and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from feat_ros.cli.common import add_command, check_writable, progress, write_output
from feat_ros.cli.localize import localization_figures, localize_all
from feat_ros.errors import DataError
from feat_ros.evaluation import compare_poses, summarise
from feat_ros.extractors import create_extractor
from feat_ros.image import read_image
from feat_ros.localizer import Localizer
from feat_ros.types import PoseEstimate

_DATA = Path('../shared/data/fountain_p11')


def add_parser(commands: Any) -> None:
    """Add ``demo``."""
    demo = add_command(
        commands,
        'demo',
        'Map some photographs of a posed set and localize the others.',
        'feat_ros demo --out demo_out --data photos',
    )
    demo.add_argument('--out', type=Path, required=True, metavar='DIR', help='results go here')
    demo.add_argument(
        '--data', type=Path, default=_DATA, metavar='DIR',
        help='folder with images/, colmap/, mapping.txt and query.txt; default: the eleven '
        f'photographs of a fountain in {_DATA}',
    )  # fmt: skip
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the demo; return its figures."""
    from feat_ros.colmap_files import format_poses, read_colmap_model, read_names, select_images
    from feat_ros.map_builder import build_map
    from feat_ros.plots import plot_matches, plot_top_view

    if not args.data.is_dir():
        raise DataError(
            f'the demo needs posed photographs and {args.data} does not exist: give a folder with '
            'images/, colmap/, mapping.txt and query.txt by --data'
        )
    check_writable(args.out / 'x' if args.out.is_dir() else args.out)
    args.out.mkdir(exist_ok=True)
    model = read_colmap_model(args.data / 'colmap')
    mapping = select_images(model, read_names(args.data / 'mapping.txt'), 'the model')
    queries = select_images(model, read_names(args.data / 'query.txt'), 'the model')
    images = args.data / 'images'

    sfm_map = build_map(
        args.out / 'map', images, mapping, create_extractor('sift'),
        overwrite=True, progress=progress,
    )  # fmt: skip
    localizer = Localizer(sfm_map, create_extractor('sift'))
    results = localize_all(localizer, images, {image.name: image.camera for image in queries})
    poses = {n: r.cam_from_map for n, r in results.items() if isinstance(r, PoseEstimate)}
    truth = {image.name: image.cam_from_map for image in queries}
    figures = {**localization_figures(results), **summarise(compare_poses(poses, truth))}

    write_output(args.out / 'poses.txt', format_poses(poses))
    plot_top_view(args.out / 'top_view.png', sfm_map, poses, truth)
    for image in queries:
        result = results[image.name]
        if isinstance(result, PoseEstimate):
            rgb = read_image(images / image.name)
            used = result.matches[result.inliers]
            features = localizer.extractor(rgb)
            projected = image.camera.project(
                result.cam_from_map.apply(sfm_map.points(used[:, 1])[0])
            )
            title = f'{image.name}: {result.num_inliers} of {result.num_matches} matches agree'
            pixels = features.keypoints[used[:, 0]].astype(float)
            plot_matches(args.out / 'query.png', rgb, pixels, projected, title)
            break
    print(
        f'{figures["num_localized"]} of {figures["num_queries"]} photographs localized among '
        f'{sfm_map.num_points} points of {sfm_map.num_images} others'
    )
    if figures['median_translation_error_m'] is not None:
        print(
            f'  median error {figures["median_translation_error_m"] * 1e3:.1f} mm, '
            f'{figures["median_rotation_error_deg"]:.3f} deg; '
            f'{100 * figures["recall"]["0.01m_0.1deg"]:.0f} % within 1 cm and 0.1 deg'
        )
    print(f'  look at {args.out / "top_view.png"} and {args.out / "query.png"}')
    return figures

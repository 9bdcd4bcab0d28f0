# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros map add|merge|split|prune|check``: what becomes of a map after it was built."""

from __future__ import annotations

import argparse
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from feat_ros import config
from feat_ros.bag_images import KeyframeConfig
from feat_ros.cli.common import add_command, check_writable, command_line, progress
from feat_ros.cli.map_common import (
    add_inputs,
    add_workers,
    describe_map,
    open_workers,
    print_description,
    read_inputs,
)
from feat_ros.errors import DataError, MapError
from feat_ros.extractors import create_extractor
from feat_ros.map_builder import build_map, BuildConfig
from feat_ros.sfm_map import copy_file, SfmMap
from feat_ros.types import JsonDict

# Images of one map further than this from where the other sees them are worth a word, metres.
_OFFSET_M = 0.1


def add_actions(actions: Any) -> None:
    """Add the sub-commands."""
    _add_add(actions)
    _add_merge(actions)
    _add_split(actions)
    _add_prune(actions)
    _add_check(actions)


def _add_add(actions: Any) -> None:
    add = add_command(
        actions, 'add',
        'Add new images to a map: a street that was not driven yet, or one in other light. '
        'Images are given as to "map build"; where their poses are not known, or with --align, '
        'they are fitted to the map by the images that it can localize. What was in the map is '
        'not touched: nothing that was localized before moves.',
        'feat_ros map add town --images street --cameras cameras.txt\n'
        '  feat_ros map add town --bag drive2 --image-topic /camera/image_raw '
        '--info-topic /camera/camera_info --tf map',
        [*config.describe(BuildConfig), *config.describe(KeyframeConfig, 'keyframes.')],
    )  # fmt: skip
    add.add_argument('map', type=Path, metavar='MAP', help='the map folder')
    add_inputs(add)
    add_workers(add)
    _add_align_option(add, 'the images')
    add.set_defaults(run=run_add)


def _add_align_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        '--align', action='store_true',
        help=f'fit {what} to the map by those that it localizes; default: their poses are '
        'already in its frame',
    )  # fmt: skip


def _add_merge(actions: Any) -> None:
    merge = add_command(
        actions, 'merge',
        'Make one map of several that were built with the same extractor. The first one gives '
        'the frame and the visual words.',
        'feat_ros map merge hall yard --align --out site',
    )  # fmt: skip
    merge.add_argument('maps', type=Path, nargs='+', metavar='MAP', help='two map folders or more')
    merge.add_argument('--out', type=Path, required=True, metavar='MAP', help='the new map')
    _add_align_option(merge, 'the other maps')
    merge.set_defaults(run=run_merge)


def _add_split(actions: Any) -> None:
    split = add_command(
        actions, 'split',
        'Write a map in segments by place, for sites larger than a building: a robot then holds '
        'open only what is around it. Points at a border are in both segments.',
        'feat_ros map split city --tile 100 --out city_tiles',
    )  # fmt: skip
    split.add_argument('map', type=Path, metavar='MAP', help='the map folder')
    split.add_argument('--out', type=Path, required=True, metavar='MAP', help='the new map')
    split.add_argument(
        '--tile', type=float, default=100.0, metavar='M', help='side of a tile; default: 100'
    )
    split.set_defaults(run=run_split)


def _add_prune(actions: Any) -> None:
    prune = add_command(
        actions, 'prune',
        'Write a smaller map with the points that are worth most: those that will still be there '
        'next winter (stability), that many images saw, and that are spread over all images.',
        'feat_ros map prune town --keep 0.1 --out town_small',
    )  # fmt: skip
    prune.add_argument('map', type=Path, metavar='MAP', help='the map folder')
    prune.add_argument('--out', type=Path, required=True, metavar='MAP', help='the new map')
    prune.add_argument(
        '--keep', type=float, default=0.1, metavar='SHARE', help='of the points; default: 0.1'
    )
    prune.set_defaults(run=run_prune)


def _add_check(actions: Any) -> None:
    check = add_command(
        actions, 'check',
        'Say where along a path a robot would be lost in this map: for each pose, how many '
        'matches it would find and how exact it would be, by what the images around it saw. '
        "Without --path that is asked for the map's own images, each without itself.",
        'feat_ros map check town --path drive.tum --plot coverage.png',
    )  # fmt: skip
    check.add_argument('map', type=Path, metavar='MAP', help='the map folder')
    check.add_argument(
        '--path', type=Path, metavar='FILE',
        help='lines "time x y z qx qy qz qw" of the camera (map_from_cam), as replay writes',
    )  # fmt: skip
    check.add_argument('--plot', type=Path, metavar='FILE', help='draw it from above (PNG)')
    check.set_defaults(run=run_check)


def run_add(args: argparse.Namespace) -> JsonDict:
    """Build a map of the new images beside the old one, and put its segments into it."""
    from feat_ros.map_index import open_index
    from feat_ros.map_life import add_map

    sfm_map = SfmMap(args.map)
    # Not MAP.partial, where an interrupted build may be.
    args.out = args.map.with_name(args.map.name + '.addition')
    image_folder, images, options, source = read_inputs(args)
    built = sfm_map.manifest.extractor
    with open_workers(args) as workers:
        addition = build_map(
            args.out, image_folder, images, create_extractor(built.name, **built.options),
            options, overwrite=True, progress=progress, provenance=source,
            words_of=open_index(sfm_map), workers=workers,
        )  # fmt: skip
    addition, fit = _fit(sfm_map, addition, args.align)
    sfm_map = add_map(args.map, addition, {'fit': fit})
    shutil.rmtree(args.out)
    description = describe_map(sfm_map)
    print_description(description)
    return {**description, 'fit': fit}


def run_merge(args: argparse.Namespace) -> JsonDict:
    """Merge maps."""
    from feat_ros.map_life import merge_maps

    if len(args.maps) < 2:
        raise DataError('one map cannot be merged: name two or more')
    first, *others = map(SfmMap, args.maps)
    fits, copies, fitted = [], [], []
    try:
        for number, other in enumerate(others):
            if args.align:
                copies.append(args.out.with_name(f'{args.out.name}.fitted-{number}'))
                shutil.rmtree(copies[-1], ignore_errors=True)
                shutil.copytree(other.path, copies[-1], copy_function=copy_file)
                other = SfmMap(copies[-1])
            other, fit = _fit(first, other, args.align)
            fitted.append(other)
            fits.append(fit)
        sfm_map = merge_maps(args.out, [first, *fitted], {'command': command_line()})
    finally:
        for copy in copies:
            shutil.rmtree(copy, ignore_errors=True)
    description = describe_map(sfm_map)
    print_description(description)
    return {**description, 'fits': fits}


def _fit(sfm_map: SfmMap, other: SfmMap, align: bool) -> tuple[SfmMap, JsonDict]:
    """Fit a map to another one if it must be; say how well they agree.

    :param other: which is changed, where it is fitted.
    """
    from feat_ros.alignment import apply_alignment
    from feat_ros.map_life import fit_to, localize_map, offset_between

    manifest = sfm_map.manifest
    if manifest.scale == 'unknown':
        raise MapError(
            f'the scale of {sfm_map.path} is unknown, so that nothing can be put beside it: give '
            'it one with "feat_ros map align"'
        )
    found = localize_map(sfm_map, other, progress)
    fit: JsonDict = {'num_localized': len(found), 'is_fitted': False}
    if align or other.manifest.scale == 'unknown':
        alignment = fit_to(sfm_map, other, found)
        other = apply_alignment(
            other.path, alignment, frame_id=manifest.frame_id, gravity=manifest.gravity,
            note={'command': command_line()}, progress=progress,
        )  # fmt: skip
        fit |= {'is_fitted': True, **alignment.summary()}
    if found:
        fit['median_offset_m'] = offset = offset_between(sfm_map, other, found)
        print(
            f'{len(found)} images of {other.path} are localized in {sfm_map.path}, '
            f'{offset:.3g} m (median) from their own poses'
        )
        if offset > _OFFSET_M:
            print('  that is much: fit them with --align, unless the poses are as rough as that')
    else:
        print(
            f'no image of {other.path} is localized in {sfm_map.path}: nothing but their poses '
            'says how they lie to each other'
        )
    return other, fit


def run_split(args: argparse.Namespace) -> JsonDict:
    """Split a map."""
    from feat_ros.map_life import split_map

    if not args.tile > 0:
        raise DataError(f'--tile is {args.tile:g}: it must be above 0')
    before = SfmMap(args.map)
    sfm_map = split_map(args.out, before, args.tile, progress)
    description = describe_map(sfm_map)
    print_description(description)
    more = sfm_map.num_points / before.num_points - 1
    count = len(sfm_map.manifest.segments)
    print(f'{count} segments; {100 * more:.1f} % of the points are in more than one')
    return {**description, 'num_segments': count, 'share_of_points_twice': more}


def run_prune(args: argparse.Namespace) -> JsonDict:
    """Prune a map."""
    from feat_ros.map_life import prune_map

    if not 0 < args.keep <= 1:
        raise DataError(f'--keep is {args.keep:g}: it must be above 0 and at most 1')
    description = describe_map(prune_map(args.out, SfmMap(args.map), args.keep, progress))
    print_description(description)
    return description


def run_check(args: argparse.Namespace) -> JsonDict:
    """Say where a robot would be lost."""
    from feat_ros.map_check import check_path, own_path
    from feat_ros.plots import plot_coverage
    from feat_ros.trajectory import read_tum

    if args.plot is not None:
        check_writable(args.plot)
    sfm_map = SfmMap(args.map)
    if args.path is None:
        path = own_path(sfm_map)
    else:
        read = read_tum(args.path)
        path = [read[number] for number in range(len(read))]
    places = check_path(sfm_map, path, leave_self_out=args.path is None, progress=progress)
    lost = [place for place in places if place.is_lost]
    unit = 'm' if sfm_map.manifest.scale == 'metric' else 'units'
    print(f'a robot would be lost at {len(lost)} of {len(places)} poses')
    for place in sorted(places, key=lambda each: each.num_matches)[: min(5, len(places))]:
        at = ', '.join(f'{x:.1f}' for x in place.center)
        print(
            f'  ({at}): {place.num_matches:.0f} matches expected of {place.num_visible} points, '
            f'sigma {place.sigma_m:.2g} {unit}{": lost" if place.is_lost else ""}'
        )
    if args.plot is not None:
        plot_coverage(
            args.plot, sfm_map, np.array([place.center for place in places]),
            np.array([place.num_matches for place in places]),
            np.array([place.is_lost for place in places]),
        )  # fmt: skip
        print(f'coverage: {args.plot}')
    return {
        'num_poses': len(places),
        'num_lost': len(lost),
        'share_lost': len(lost) / len(places),
        'places': [place.figures() for place in places],
    }

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros localize``, ``evaluate`` and ``extract``."""

from __future__ import annotations

import argparse
from collections import Counter
import json
from pathlib import Path
from typing import Any

import numpy as np

from feat_ros import config
from feat_ros.camera import Camera
from feat_ros.cli.common import (
    add_command,
    add_extractor_options,
    check_writable,
    progress,
    write_arrays,
    write_output,
)
from feat_ros.colmap_files import format_poses, read_poses, read_queries
from feat_ros.errors import DataError
from feat_ros.evaluation import compare_poses, covariance_report, latency_summary, summarise
from feat_ros.extractors import (
    create_extractor,
    DEFAULT_EXTRACTOR,
    EXTRACTORS,
    parse_extractor_options,
)
from feat_ros.image import read_image
from feat_ros.localizer import Localizer, LocalizerConfig, open_localizer
from feat_ros.types import LocalizationResult, PoseEstimate


def add_parser(commands: Any) -> None:
    """Add ``localize``, ``evaluate`` and ``extract``."""
    localize = add_command(
        commands,
        'localize',
        'Find the poses of images in a map. POSES has lines "name qw qx qy qz tx ty tz" '
        "(cam_from_map, COLMAP's convention); failures are left out and listed with their reason.",
        'feat_ros localize --map office --images photos --queries queries.txt --out poses.txt',
        config.describe(LocalizerConfig),
    )
    localize.add_argument('--map', type=Path, required=True, metavar='MAP', help='the map folder')
    localize.add_argument('--images', type=Path, required=True, metavar='DIR', help='image files')
    localize.add_argument(
        '--queries', type=Path, required=True, metavar='FILE',
        help='lines "name MODEL width height params...", COLMAP\'s camera models',
    )  # fmt: skip
    localize.add_argument('--out', type=Path, required=True, metavar='POSES', help='result file')
    localize.add_argument(
        '--extractor', metavar='NAME', help='default: the one the map was built with'
    )
    add_extractor_options(localize)
    localize.set_defaults(run=run_localize)

    evaluate = add_command(
        commands,
        'evaluate',
        'Compare poses with ground truth: medians and recall over all images that have ground '
        'truth, a missing estimate counting as infinitely wrong.',
        'feat_ros evaluate --estimate poses.txt --ground-truth photos/sparse --list query.txt',
    )
    evaluate.add_argument(
        '--estimate', type=Path, required=True, metavar='FILE', help='what "localize" wrote'
    )
    evaluate.add_argument(
        '--ground-truth', type=Path, required=True, metavar='FILE',
        help='lines "name qw qx qy qz tx ty tz", or the folder of a COLMAP model',
    )  # fmt: skip
    evaluate.add_argument(
        '--list', type=Path, metavar='FILE',
        help='only the images named first on each line here (a query file will do)',
    )  # fmt: skip
    evaluate.add_argument(
        '--covariances', type=Path, metavar='FILE',
        help='the JSON that the same "localize --json" wrote: are the covariances honest?',
    )  # fmt: skip
    evaluate.add_argument(
        '--truth-sigma-m', type=float, default=0.0, metavar='M',
        help='noise of the ground truth itself, each axis; default 0',
    )  # fmt: skip
    evaluate.add_argument(
        '--truth-sigma-deg', type=float, default=0.0, metavar='DEG', help='the same for angles'
    )
    evaluate.set_defaults(run=run_evaluate)

    extract = add_command(
        commands,
        'extract',
        'Extract features of images into one .npz file: arrays NUMBER/keypoints and so on, and '
        '"names".',
        'feat_ros extract street.jpg --out street.npz --plot street.png',
    )
    extract.add_argument('image', type=Path, nargs='+', metavar='IMAGE', help='image files')
    extract.add_argument(
        '--extractor', default=DEFAULT_EXTRACTOR, metavar='NAME',
        help=f'one of {", ".join(EXTRACTORS)}; default: {DEFAULT_EXTRACTOR}',
    )  # fmt: skip
    add_extractor_options(extract)
    extract.add_argument('--out', type=Path, required=True, metavar='FILE', help='the .npz file')
    extract.add_argument('--plot', type=Path, metavar='FILE', help='draw the keypoints (PNG)')
    extract.set_defaults(run=run_extract)


def run_localize(args: argparse.Namespace) -> dict[str, Any]:
    """Localize every query; return the figures."""
    check_writable(args.out)
    queries = read_queries(args.queries)
    if not args.images.is_dir():
        raise DataError(f'image folder {args.images} does not exist')
    localizer = open_localizer(
        args.map,
        config.parse_options(LocalizerConfig, args.options),
        args.extractor,
        args.extractor_option,
    )
    results = localize_all(localizer, args.images, queries)
    poses = {n: r.cam_from_map for n, r in results.items() if isinstance(r, PoseEstimate)}
    write_output(args.out, format_poses(poses))
    figures = localization_figures(results)
    print(f'{figures["num_localized"]} of {figures["num_queries"]} localized: {args.out}')
    for name, entry in figures['queries'].items():
        if 'reason' in entry:
            print(f'  {name}: {entry["reason"]}: {entry["detail"]}')
    total = figures['latency_ms']['total']
    print(f'  {total["p50"]:.0f} ms an image (median), {total["p95"]:.0f} ms (95 %)')
    return figures


def localize_all(
    localizer: Localizer, images: Path, queries: dict[str, Camera]
) -> dict[str, LocalizationResult]:
    """Localize every query, showing progress.

    :raises ImageError: an image cannot be read or is not of its camera's size.
    """
    return {
        name: localizer.localize(read_image(images / name), queries[name])
        for name in progress(list(queries), 'localize')
    }


def localization_figures(results: dict[str, LocalizationResult]) -> dict[str, Any]:
    """Return the figures of a run: counts, reasons, latency, and each query's own."""
    queries: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        entry: dict[str, Any] = {
            'mode': result.mode,
            'num_matches': result.num_matches,
            'num_inliers': result.num_inliers,
            'ms': result.ms,
        }
        if isinstance(result, PoseEstimate):
            entry['covariance'] = result.covariance.tolist()
        else:
            entry |= {'reason': result.reason.value, 'detail': result.detail}
        queries[name] = entry
    reasons = Counter(entry['reason'] for entry in queries.values() if 'reason' in entry)
    return {
        'num_queries': len(results),
        'num_localized': len(results) - sum(reasons.values()),
        'reasons': dict(reasons),
        'latency_ms': latency_summary([result.ms for result in results.values()]),
        'queries': queries,
    }


def run_evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Compare poses with ground truth; return the figures."""
    estimates, truth = read_poses(args.estimate), read_poses(args.ground_truth)
    if args.list is not None:
        truth = _listed(truth, args.list, args.ground_truth)
    errors = compare_poses(estimates, truth)
    figures = summarise(errors)
    print(f'{figures["num_localized"]} of {figures["num_queries"]} localized')
    if figures['median_translation_error_m'] is not None:
        print(
            f'  median error {figures["median_translation_error_m"] * 100:.3g} cm, '
            f'{figures["median_rotation_error_deg"]:.3g} deg'
        )
    for threshold, share in figures['recall'].items():
        print(f'  within {threshold.replace("_", " and "):>15}: {100 * share:5.1f} %')
    if args.covariances is not None:
        report = covariance_report(
            errors, _read_covariances(args.covariances), args.truth_sigma_m, args.truth_sigma_deg
        )
        figures['covariance'] = report
        if report['num_poses']:
            print(
                f'  {100 * report["share_inside_95"]:.1f} % of errors inside the 95 % ellipsoid, '
                f'normalised error squared {report["median_normalised_error_squared"]:.2f} '
                '(median; 5.35 if honest)'
            )
    return figures


def _listed(truth: dict[str, Any], path: Path, source: Path) -> dict[str, Any]:
    from feat_ros.colmap_files import read_names

    names = [line.split()[0] for line in read_names(path)]
    missing = [name for name in names if name not in truth]
    if missing:
        raise DataError(
            f'{len(missing)} of {len(names)} images in {path} have no ground truth in {source}, '
            f'the first is {missing[0]!r}'
        )
    return {name: truth[name] for name in names}


def _read_covariances(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
        return {
            name: np.array(entry['covariance'], float).reshape(6, 6)
            for name, entry in data['queries'].items()
            if 'covariance' in entry
        }
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}') from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path} is not what "feat_ros localize --json" writes ({error!r})'
        ) from None


def run_extract(args: argparse.Namespace) -> dict[str, Any]:
    """Extract features of images into one file."""
    from feat_ros.plots import plot_features

    for path in (args.out, args.plot):
        if path is not None:
            check_writable(path)
    extractor = create_extractor(
        args.extractor, **parse_extractor_options(args.extractor, args.extractor_option)
    )
    drawn = []
    arrays: dict[str, Any] = {}
    for number, path in enumerate(progress(args.image, 'extract')):
        image = read_image(path)
        features = extractor(image)
        arrays |= {f'{number}/{name}': array for name, array in vars(features).items()}
        drawn.append((path.name, image, features))
    write_arrays(args.out, names=np.array([str(path) for path in args.image]), **arrays)
    for name, _, features in drawn:
        print(f'{name}: {len(features)} keypoints')
    if args.plot is not None:
        plot_features(args.plot, drawn)
        print(f'picture: {args.plot}')
    return {'num_keypoints': {str(p): len(d[2]) for p, d in zip(args.image, drawn, strict=True)}}

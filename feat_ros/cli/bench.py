# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros bench``: how fast and how good, beside named baselines in the same run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from feat_ros.cli.common import add_command, check_writable, progress
from feat_ros.errors import DataError, FeatRosError
from feat_ros.extractors import Extractor, RETRIEVAL_EXTRACTORS

Run = Callable[[argparse.Namespace], dict[str, Any]]


def add_parser(commands: Any) -> None:
    """Add ``bench`` and its sub-commands."""
    parser = commands.add_parser('bench', help='how fast, beside named baselines in the same run')
    subjects = parser.add_subparsers(metavar='WHAT', required=True)
    localize = _add(
        subjects, 'localize', run_localize, 1,
        'times that each of 50 queries is localized in the made-up map',
        'Localize in a made-up map of ten images, beside torch or OpenCV matching image by image '
        'and pycolmap; or, with --extractors, the queries of posed sets by day and in made-up '
        'night: recall, and milliseconds of each stage.',
        'feat_ros bench localize --extractors sift,sfd2_lite --posed fountain',
    )  # fmt: skip
    _add_posed(localize)
    match = _add(
        subjects, 'match', run_match, 5, 'runs of each contender',
        'Match an image of 2048 keypoints with 20,000 points, beside torch.cdist and OpenCV.',
    )  # fmt: skip
    match.add_argument(
        '--plot', type=Path, metavar='FILE', help='also measure maps of 2k to 200k points and draw'
    )
    _add(
        subjects, 'pnp', run_pnp, 20, 'scenes of each size and share of inliers',
        'Solve for poses from 200 to 3000 matches of which 90 to 5 % are right, beside pycolmap '
        'and poselib.',
    )  # fmt: skip
    retrieval = _add(
        subjects, 'retrieval', run_retrieval, 20, 'queries',
        'Assign 1000 descriptors to 65,536 visual words beside NumPy and FLANN, and search 10,000 '
        'images beside plain evaluation of the kernel; or, with --map, count how often one of '
        'the first ten images found really sees the same.',
        'OPENBLAS_NUM_THREADS=1 feat_ros bench retrieval --json retrieval.json',
    )  # fmt: skip
    retrieval.add_argument(
        '--map', type=Path, action='append', default=[], metavar='MAP',
        help='search the images of this map; repeat for more',
    )  # fmt: skip
    retrieval.add_argument(
        '--images', type=Path, action='append', default=[], metavar='DIR',
        help="where that map's images are; one for each map",
    )  # fmt: skip
    retrieval.add_argument(
        '--sizes', type=int, nargs='+', default=[], metavar='N',
        help='search so many made-up images from the disk; a million take 5 GB',
    )  # fmt: skip
    retrieval.add_argument(
        '--plot', type=Path, metavar='FILE', help='draw how a search grows with --sizes (PNG)'
    )
    retrieval.add_argument(
        '--with', action='append', default=[], metavar='NAME[=MODEL]', dest='models',
        help="with --map, beside the map's own features: one of "
        f'{", ".join(RETRIEVAL_EXTRACTORS)}',
    )  # fmt: skip
    _add(
        subjects, 'map-open', run_map_open, 7, 'fresh processes that open the map',
        'Open a map of a million points, beside reading its arrays; writes 0.2 GB to a temporary '
        'folder.',
    )  # fmt: skip
    everything = add_command(
        subjects,
        'all',
        'Every bench that needs no data of its own, one after the other; what cannot run here is '
        'said.',
        'feat_ros bench all --compare before.json --json after.json',
    )
    _add_compare(everything, run_all)
    frame = _add(
        subjects, 'frame', run_frame, 20, 'queries',
        "A whole frame, from the picture to the pose, among a thousand images, beside XFeat's "
        'network alone; making the map takes a minute or two.',
    )  # fmt: skip
    frame.add_argument(
        '--gpu', action='store_true', help='sfd2 in half precision and matching by torch on a GPU'
    )
    frame.add_argument(
        '--threads', type=_count, default=2, metavar='N', help='of the networks; default 2'
    )
    scaling = _add(
        subjects, 'scaling', run_scaling, 5, 'runs of each part at each size',
        'How extraction, matching and retrieval grow with keypoints, points of the map and images '
        'of the database.',
        'feat_ros bench scaling --plot scaling.png --json scaling.json',
    )  # fmt: skip
    scaling.add_argument('--plot', type=Path, metavar='FILE', help='draw the curves (PNG)')
    extract = _add(
        subjects, 'extract', run_extract, 30, 'times that each extractor is timed',
        "Extract on the CPU at 640x480: sfd2_lite beside XFeat's network alone, sfd2 beside eager "
        'torch.',
    )  # fmt: skip
    extract.add_argument(
        '--threads', type=_count, default=2, metavar='N', help='of all contenders; default 2'
    )
    _add(
        subjects, 'cuda', run_cuda, 50, 'times that each is timed',
        'Extract with sfd2 on the GPU in half precision, beside eager float32 and what the GPU '
        'could do at best.',
    )  # fmt: skip
    features = _add(
        subjects, 'features', run_features, 10, 'times that each extractor is timed',
        'Compare extractors: matching of pictures with known homographies, localization by day '
        'and in made-up night, what they sit on, milliseconds. A part whose data is not named, '
        'or not there, is left out.',
        'feat_ros bench features --extractors sift,sfd2_lite --homographies oxford_affine '
        '--posed fountain --labelled camvid --plot features.png',
    )  # fmt: skip
    _add_posed(features, required=True)
    features.add_argument(
        '--homographies', type=Path, metavar='DIR',
        help='folder of folders with img1.*, img2.*, ... and H1to2p.xml, ... (Oxford)',
    )  # fmt: skip
    features.add_argument(
        '--labelled', type=Path, metavar='DIR', help='folder with images/ and labels/NAME.png'
    )
    features.add_argument(
        '--label-table', default='camvid', metavar='NAME', help='what the ids mean; default camvid'
    )
    features.add_argument('--plot', type=Path, metavar='FILE', help='draw the curves (PNG)')
    patches = add_command(
        subjects, 'patches',
        'Tell pairs of patches that show the same from others, beside RootSIFT: the false '
        'positive rate at 95 % recall.',
        'feat_ros bench patches --phototour liberty --hpatches hpatches-release --model mine.npz',
    )  # fmt: skip
    patches.add_argument(
        '--phototour', type=Path, action='append', default=[], metavar='DIR',
        help='a scene of UBC PhotoTour (patches*.bmp, info.txt, m50_*.txt); repeat for more',
    )  # fmt: skip
    patches.add_argument(
        '--hpatches', type=Path, action='append', default=[], metavar='DIR',
        help='folder of sequences with ref.png, e1.png, ...; repeat for more',
    )  # fmt: skip
    patches.add_argument(
        '--model', type=Path, action='append', default=[], metavar='FILE',
        help='weights of hynet or hynet_base (.npz, .pth); repeat for more',
    )  # fmt: skip
    _add_compare(patches, run_patches)


def _add_posed(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add which extractors are compared, how they are made, and on which posed sets."""
    parser.add_argument(
        '--extractors', required=required, metavar='A,B', help='names, and "xfeat" with --xfeat'
    )
    parser.add_argument(
        '--posed', type=Path, nargs='+', default=[], metavar='DIR',
        help='folders with images/, colmap/ and, for the split, mapping.txt and query.txt',
    )  # fmt: skip
    parser.add_argument(
        '--keypoints', type=_count, default=2048, metavar='K', help='most keypoints; default 2048'
    )
    parser.add_argument(
        '--max-size', type=_count, default=1024, metavar='PX',
        help='longer side above which images are scaled down; default 1024',
    )  # fmt: skip
    parser.add_argument('--xfeat', type=Path, metavar='FILE', help="XFeat's state dict")


def _add(
    subjects: Any, name: str, run: Run, repeat: int, repeated: str, summary: str, example: str = ''
) -> argparse.ArgumentParser:
    example = example or f'feat_ros bench {name} --json {name}.json'
    parser = add_command(subjects, name, summary, example)
    parser.add_argument(
        '--repeat', type=_count, default=repeat, metavar='N', help=f'{repeated}; default {repeat}'
    )
    _add_compare(parser, run)
    return parser


def _add_compare(parser: argparse.ArgumentParser, run: Run) -> None:
    parser.add_argument(
        '--compare', type=Path, metavar='FILE', help='also compare with what --json wrote before'
    )
    parser.set_defaults(run=partial(_run_compared, run))


def _run_compared(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Run a bench, and compare it with an earlier report where one is named."""
    from feat_ros.bench import compare_reports, read_report

    earlier = None if args.compare is None else read_report(args.compare)
    report = run(args)
    if earlier is not None:
        print('\n'.join(['', *compare_reports(report, earlier)]))
    return report


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f'{word!r} is not a number from 1')
    return int(word)


def run_localize(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the whole query, in a made-up map or on posed sets."""
    from feat_ros.bench import bench_localize

    if (args.extractors is None) == bool(args.posed):
        raise DataError('give --extractors and --posed together')
    if args.posed:
        from feat_ros.feature_bench.comparison import compare_localization

        return _show(compare_localization(_makers(args), args.posed, args.keypoints))
    return _show(bench_localize(args.repeat))


def run_match(args: argparse.Namespace) -> dict[str, Any]:
    """Measure matching, and draw how it grows with the map."""
    from feat_ros.bench import bench_match, match_curve, plot_match_curve

    if args.plot is not None:
        check_writable(args.plot)
    report = _show(bench_match(args.repeat))
    if args.plot is not None:
        report['curve'] = match_curve()
        plot_match_curve(args.plot, report['curve'])
        print(f'picture: {args.plot}')
    return report


def run_pnp(args: argparse.Namespace) -> dict[str, Any]:
    """Measure PnP."""
    from feat_ros.bench import bench_pnp

    return _show(bench_pnp(args.repeat))


def run_retrieval(args: argparse.Namespace) -> dict[str, Any]:
    """Measure retrieval, by itself or on the images of a map."""
    from feat_ros.recall_bench import bench_recall
    from feat_ros.retrieval_bench import bench_retrieval, bench_sizes, plot_sizes
    from feat_ros.sfm_map import SfmMap

    if len(args.map) != len(args.images):
        raise DataError('give --map and --images together')
    if args.sizes:
        if min(args.sizes) < 1:
            raise DataError('--sizes are numbers of images, at least 1')
        with TemporaryDirectory(prefix='feat_ros-bench-') as folder:
            report = bench_sizes(args.sizes, Path(folder), args.repeat)
        if args.plot is not None:
            plot_sizes(args.plot, report['curves'])
        return _show(report)
    if not args.map:
        return _show(bench_retrieval(args.repeat))
    maps = list(zip(map(SfmMap, args.map), args.images, strict=True))
    models = {word.partition('=')[0]: word.partition('=')[2] for word in args.models}
    figures = bench_recall(maps, models, progress)
    print(f'{figures["num_queries"]} of {figures["num_images"]} images share points with others')
    return _show({'threads': {}, **figures})


def run_map_open(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the opening of a map."""
    from feat_ros.bench import bench_map_open

    return _show(bench_map_open(args.repeat))


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that needs no data; return the tables of all under one report."""
    from feat_ros import bench
    from feat_ros.bench import merge_reports

    def extract() -> dict[str, Any]:
        from feat_ros.extraction_bench import bench_extract

        return bench_extract()

    def cuda() -> dict[str, Any]:
        from feat_ros.extraction_bench import bench_cuda

        return bench_cuda()

    def retrieval() -> dict[str, Any]:
        from feat_ros.retrieval_bench import bench_retrieval

        return bench_retrieval()

    def scaling() -> dict[str, Any]:
        from feat_ros.scaling_bench import bench_scaling

        return bench_scaling()

    def frame() -> dict[str, Any]:
        from feat_ros.frame_bench import bench_frame

        return bench_frame()

    benches: dict[str, Callable[[], dict[str, Any]]] = {
        'extract': extract, 'cuda': cuda, 'localize': bench.bench_localize,
        'match': bench.bench_match, 'pnp': bench.bench_pnp, 'retrieval': retrieval,
        'map-open': bench.bench_map_open, 'scaling': scaling, 'frame': frame,
    }  # fmt: skip
    reports, left_out = {}, []
    for name, run in benches.items():
        print(f'---- {name}')
        try:
            reports[name] = _show(run())
        except ModuleNotFoundError as error:
            left_out.append(f'{name} is left out: Python package {error.name!r} is not installed')
        except (FeatRosError, RuntimeError) as error:
            # torch has no memory left, for instance: what was measured before stays.
            reason, *_ = str(error).splitlines() or [type(error).__name__]
            left_out.append(f'{name} is left out: {reason}')
    print('\n'.join(left_out))
    return merge_reports(reports, left_out)


def run_frame(args: argparse.Namespace) -> dict[str, Any]:
    """Measure a whole frame."""
    from feat_ros.frame_bench import bench_frame

    return _show(bench_frame(args.repeat, args.threads, on_gpu=args.gpu))


def run_scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Measure how the parts of a frame grow."""
    from feat_ros.scaling_bench import bench_scaling, plot_scaling

    if args.plot is not None:
        check_writable(args.plot)
    report = _show(bench_scaling(args.repeat))
    if args.plot is not None:
        plot_scaling(args.plot, report['curves'])
        print(f'picture: {args.plot}')
    return report


def run_extract(args: argparse.Namespace) -> dict[str, Any]:
    """Measure extraction on the CPU."""
    from feat_ros.extraction_bench import bench_extract

    return _show(bench_extract(args.repeat, args.threads))


def run_cuda(args: argparse.Namespace) -> dict[str, Any]:
    """Measure extraction on the GPU."""
    from feat_ros.extraction_bench import bench_cuda

    return _show(bench_cuda(args.repeat))


def run_features(args: argparse.Namespace) -> dict[str, Any]:
    """Compare extractors."""
    from feat_ros.feature_bench.comparison import (
        compare_features,
        FeatureData,
        plot_comparison,
    )

    if args.plot is not None:
        check_writable(args.plot)
    data = FeatureData(args.homographies, args.posed, args.labelled, args.label_table)
    report = _show(compare_features(_makers(args), data, args.keypoints, args.repeat))
    if args.plot is not None:
        plot_comparison(args.plot, report['curves'])
        print(f'picture: {args.plot}')
    return report


def _makers(args: argparse.Namespace) -> dict[str, Callable[[int], Extractor]]:
    """Return how each of ``--extractors`` is made."""
    from feat_ros.feature_bench.comparison import make_extractor

    return {
        name: partial(make_extractor, name, max_size=args.max_size, xfeat=args.xfeat)
        for name in args.extractors.split(',')
    }


def run_patches(args: argparse.Namespace) -> dict[str, Any]:
    """Compare descriptors of patches."""
    from feat_ros.feature_bench.patches import bench_patches, read_hpatches, read_phototour

    if not args.phototour and not args.hpatches:
        raise DataError('there are no patches: name a folder with --phototour or --hpatches')
    sets = {path.name: read_phototour(path) for path in args.phototour}
    sets |= {path.name: read_hpatches(path) for path in args.hpatches}
    return _show(bench_patches(sets, {path.stem: path for path in args.model}))


def _show(report: dict[str, Any]) -> dict[str, Any]:
    from feat_ros.bench import format_report

    print(format_report(report))
    return report

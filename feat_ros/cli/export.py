# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros export``: a network as an ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path
import re
from typing import Any

from feat_ros.cli.common import add_command, check_writable
from feat_ros.errors import DataError
from feat_ros.runtimes.contract import PRECISIONS


def add_parser(commands: Any) -> None:
    """Add ``export``."""
    parser = add_command(
        commands,
        'export',
        'Export a network to ONNX, with its manifest beside it, and check on photographs that '
        'ONNX Runtime finds in them what torch does.',
        'feat_ros export --extractor sfd2_lite --size 640x480 --keypoints 1024 --photo yard.jpg '
        '--out lite.onnx',
    )
    parser.add_argument('--extractor', required=True, metavar='NAME', help='which network')
    parser.add_argument(
        '--weights', type=Path, metavar='FILE',
        help="its weights: .npz, or a checkpoint of torch (.pth); default: the package's own",
    )  # fmt: skip
    parser.add_argument(
        '--size', type=_size, metavar='WxH',
        help='the only size of its input, as TensorRT wants it; default: any',
    )  # fmt: skip
    parser.add_argument(
        '--keypoints', type=_count, default=2048, metavar='K', help='most keypoints; default 2048'
    )
    parser.add_argument(
        '--photo', type=Path, nargs='+', default=[], metavar='IMAGE',
        help='photographs, best of where it will be used, to check the export on; default: '
        'pictures of a made-up street',
    )  # fmt: skip
    parser.add_argument(
        '--shared-data', default='', metavar='NAME',
        help='put the weights into a file of this name beside it, which exports for other numbers '
        'of keypoints have in common',
    )  # fmt: skip
    parser.add_argument(
        '--precision', choices=PRECISIONS, default='fp32',
        help='of the dense part: fp16 for GPUs; int8 for CPUs, or with --size for engines of '
        'TensorRT, calibrated on the photographs and checked on them mirrored; default fp32',
    )  # fmt: skip
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='the .onnx file')
    parser.set_defaults(run=run_export)


def _size(word: str) -> tuple[int, int]:
    if not re.fullmatch('[1-9][0-9]{0,4}x[1-9][0-9]{0,4}', word):
        raise argparse.ArgumentTypeError(f'{word!r} is not a size such as 640x480')
    width, height = map(int, word.split('x'))
    return width, height


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f'{word!r} is not a number from 1')
    return int(word)


def run_export(args: argparse.Namespace) -> dict[str, Any]:
    """Export a network; return its manifest."""
    from feat_ros import config
    from feat_ros.export import export_network
    from feat_ros.image import read_image
    from feat_ros.models.weights import get_network, load_weights, trained_network
    from feat_ros.runtimes import WEIGHTS
    from feat_ros.runtimes.parity import NEAR_PX
    from feat_ros.town.pictures import street_pictures

    check_writable(args.out)
    get_network(args.extractor)
    packaged = WEIGHTS / f'{trained_network(args.extractor)}.npz'
    weights = load_weights(args.weights or packaged, args.extractor)
    photographs = {path.name: read_image(path) for path in args.photo} or street_pictures()
    if len(photographs) < len(args.photo):
        raise DataError('photographs of the same name cannot be told apart: rename some')
    manifest = export_network(
        args.out,
        weights,
        args.keypoints,
        photographs,
        args.size,
        args.shared_data,
        args.precision,
    )
    print(f'{args.out}: {args.extractor}, {args.keypoints} keypoints, opset {manifest.opset}')
    near_px = NEAR_PX[manifest.precision]
    for name, parity in manifest.parity.items():
        print(
            f'  {name}: {parity["num"][0]} keypoints, {100 * parity["near"]:.2f} % within '
            f'{near_px} px of those of torch in fp32, cosine of descriptors '
            f'{parity["cosine"]:.6f}'
        )
    for fault in manifest.tensorrt_faults:
        print(f'  TensorRT would not take {fault}')
    return config.to_dict(manifest)

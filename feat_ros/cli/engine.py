# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros engine``: TensorRT engines of exported networks, for the GPU at hand."""

from __future__ import annotations

import argparse
from pathlib import Path
import time
from typing import Any

import numpy as np

from feat_ros.cli.common import add_command
from feat_ros.errors import NetworkError

_ROUNDS = 50


def add_parser(commands: Any) -> None:
    """Add ``engine`` and its sub-commands."""
    parser = commands.add_parser('engine', help='TensorRT engines of exported networks')
    actions = parser.add_subparsers(metavar='WHAT', required=True)
    build = add_command(
        actions,
        'build',
        'Build the TensorRT engine of an exported network beside it, for this GPU, driver and '
        'TensorRT alone. Takes minutes on a Jetson.',
        'feat_ros engine build lite.onnx',
    )
    _add_file(build)
    build.set_defaults(run=run_build)
    verify = add_command(
        actions,
        'verify',
        'Build the engine if there is none that fits, compare what it finds in photographs with '
        'ONNX Runtime on the CPU, and measure both.',
        'feat_ros engine verify lite.onnx --photo yard.jpg --json verify.json',
    )
    _add_file(verify)
    verify.add_argument(
        '--photo', type=Path, nargs='+', default=[], metavar='IMAGE',
        help='photographs to compare on; default: pictures of a made-up street',
    )  # fmt: skip
    verify.set_defaults(run=run_verify)


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'model', type=Path, metavar='FILE.onnx', help='what "feat_ros export --size" wrote'
    )
    parser.add_argument(
        '--workspace-mb', type=_megabytes, default=1024, metavar='MB',
        help='GPU memory that TensorRT may try things with; default 1024',
    )  # fmt: skip


def _megabytes(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f'{word!r} is not a number from 1')
    return int(word)


def run_build(args: argparse.Namespace) -> dict[str, Any]:
    """Build an engine; return its manifest."""
    from feat_ros import config
    from feat_ros.runtimes.tensorrt import build_engine

    made = build_engine(args.model, args.workspace_mb)
    print(
        f'{args.model.with_suffix(".engine")}: {made.network.network}, '
        f'{made.network.precision}, TensorRT {made.tensorrt} on {made.gpu}'
    )
    return config.to_dict(made)


def run_verify(args: argparse.Namespace) -> dict[str, Any]:
    """Compare an engine with ONNX Runtime; return how they agree and how long each takes."""
    from feat_ros.extractors.learned import network_input
    from feat_ros.image import read_image
    from feat_ros.runtimes.contract import read_manifest, Runtime, RuntimeOptions
    from feat_ros.runtimes.onnx import OnnxRuntime
    from feat_ros.runtimes.parity import check_parity
    from feat_ros.runtimes.tensorrt import build_engine, TensorrtRuntime
    from feat_ros.town.pictures import street_pictures

    manifest = read_manifest(args.model)
    known = manifest.network, manifest.max_keypoints
    try:
        engine = TensorrtRuntime(args.model, *known)
    except NetworkError as error:
        print(f'building an engine: {error}')
        build_engine(args.model, args.workspace_mb)
        engine = TensorrtRuntime(args.model, *known)
    on_cpu = OnnxRuntime(args.model, *known, RuntimeOptions(provider='cpu'))
    photographs = {path.name: read_image(path) for path in args.photo} or street_pictures()
    inputs = {
        name: network_input(photograph, 8192, engine.size_multiple, engine.size_wh)
        for name, photograph in photographs.items()
    }
    image, valid_wh = next(iter(inputs.values()))
    # The second run is recorded, and what the record gives is compared. On another image, since a
    # record that does nothing leaves what the run before has found.
    for _ in range(2):
        engine(255 - image, valid_wh)
    parity = check_parity('the engine', on_cpu, engine, inputs, manifest.precision)
    for name, found in parity.items():
        print(
            f'{name}: {found["num"][0]} keypoints, {100 * found["near"]:.2f} % where ONNX Runtime '
            f'has them, cosine of descriptors {found["cosine"]:.6f}'
        )
    runs: dict[str, Runtime] = {'tensorrt': engine, 'onnx, cpu': on_cpu}
    ms: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run(image, valid_wh)
            ms[name].append((time.perf_counter() - start) * 1e3)
    table = {
        name: {'p50': float(np.median(each)), 'p95': float(np.percentile(each, 95))}
        for name, each in ms.items()
    }
    for name, row in table.items():
        print(f'{name:<10}  median {row["p50"]:8.2f} ms  95 % {row["p95"]:8.2f} ms')
    return {'parity': parity, 'latency_ms': table}

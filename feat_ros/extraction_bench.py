# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Speed of extraction: beside XFeat's network and eager torch, and what a GPU could do at best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import time
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn, Tensor

from feat_ros.bench import check, OURS, table_rows, take_turns
from feat_ros.errors import DataError
from feat_ros.export import quiet_exporter
from feat_ros.extractors import create_extractor
from feat_ros.feature_bench.xfeat import XFeat
from feat_ros.image import Image
from feat_ros.matching import mutual_nearest
from feat_ros.models.weights import build_network, load_weights
from feat_ros.runtimes import WEIGHTS
from feat_ros.runtimes.torch_matching import block_maxima, TorchMatcher
from feat_ros.town.pictures import street_pictures
from feat_ros.types import JsonDict

XFEAT = "XFeat's network alone, ONNX Runtime"
EAGER = 'torch, eager, channels last, fp32'
_SIZE_WH = (640, 480)
# What issue and paper ask for: of the networks' time, of the roofline, in milliseconds.
_MOST_OF_XFEAT, _LEAST_OF_EAGER = 1.2, 1.4
_MOST_OF_ROOFLINE, _LEAST_OF_EAGER_CUDA, _PAPER_MS, _MOST_NEAREST_MS = 3.0, 4.0, 33.2, 0.3


def bench_extract(repeat: int = 30, threads: int = 2, keypoints: int = 1024) -> JsonDict:
    """Extract on the CPU: sfd2_lite beside XFeat's network, sfd2 beside eager torch.

    Ours is the whole extractor, from an image to its features, by ONNX Runtime; XFeat's part is
    its network alone, on planes that are there, with random weights, for no time depends on them.
    """
    torch.set_num_threads(threads)
    pictures = list(street_pictures().values())
    images = [pictures[k % len(pictures)] for k in range(repeat)]
    options = {'max_keypoints': keypoints, 'provider': 'cpu', 'threads': threads}
    tables, checks = {}, []

    lite = create_extractor('sfd2_lite', runtime='onnx', **options)
    xfeat = xfeat_session(threads)
    runs: dict[str, Callable[[Image], Any]] = {
        OURS: lite,
        XFEAT: lambda image: xfeat.run(
            None, {'planes': image.transpose(2, 0, 1)[None].astype(np.float32)}
        ),
    }
    rows = _rows(runs, images)
    title = f'sfd2_lite, {keypoints} keypoints, 640x480, {threads} threads'
    tables[title] = rows
    ratio = 1 / rows[1]['times_ours']
    checks.append(
        check("sfd2_lite, times XFeat's network", ratio, 'at most 1.2', ratio <= _MOST_OF_XFEAT)
    )

    eager = create_extractor('sfd2', runtime='torch', **options)
    rows = _rows({OURS: create_extractor('sfd2', runtime='onnx', **options), EAGER: eager},
                 images[: max(3, repeat // 4)])  # fmt: skip
    tables[f'sfd2, {keypoints} keypoints, 640x480, {threads} threads'] = rows
    ratio = rows[1]['times_ours']
    checks.append(
        check('sfd2, eager torch by ours', ratio, 'at least 1.4', ratio >= _LEAST_OF_EAGER)
    )
    return {'threads': {'all': threads}, 'tables': tables, 'checks': checks}


def _rows(runs: Mapping[str, Callable[[Image], Any]], images: list[Image]) -> list[JsonDict]:
    # A thread pool that has just worked spins on: each runs once more before it is timed.
    warm = {name: _twice(run) for name, run in runs.items()}
    taken = take_turns(warm, images)
    ms = {name: [float(each) for each in run.results] for name, run in taken.items()}
    return table_rows(ms, {}, {})


def _twice(run: Callable[[Image], Any]) -> Callable[[Image], float]:
    def timed(image: Image) -> float:
        run(image)
        start = time.perf_counter()
        run(image)
        return (time.perf_counter() - start) * 1e3

    return timed


def xfeat_session(threads: int) -> Any:
    planes = torch.zeros(1, 3, _SIZE_WH[1], _SIZE_WH[0])
    torch.manual_seed(0)
    with quiet_exporter(), torch.inference_mode():
        program = torch.onnx.export(
            XFeat().eval(), (planes,), dynamo=True, input_names=['planes'], verbose=False
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    content = program.model_proto.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])


def bench_cuda(repeat: int = 50, keypoints: int = 1024) -> JsonDict:
    """Extract with sfd2 on the GPU beside eager float32, and beside what the GPU could do at best.

    The roofline is the larger of two times: multiply-adds of the network over the rate of a large
    matrix product in half precision, and bytes it must move over the rate of a copy, both
    measured here. Times are of the network on an image that is on the GPU.

    :raises DataError: torch finds no GPU.
    """
    if not torch.cuda.is_available():
        raise DataError('bench cuda needs a GPU that torch finds')
    device = torch.device('cuda')
    tables, checks = {}, []
    rate, bandwidth = _matrix_rate(device), _copy_rate(device)
    weights = load_weights(WEIGHTS / 'sfd2.npz', 'sfd2')
    for width, height in (_SIZE_WH, (1024, 1024)):
        image = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, device=device)
        valid = torch.tensor([width, height], dtype=torch.int32, device=device)
        eager = build_network(weights, keypoints).to(device)
        multiply_adds, num_bytes = network_cost(eager, image, valid)
        half = build_network(weights, keypoints)
        half.use_half()
        half = half.to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            captured = _captured(half, image, valid)
            ms = {
                OURS: _cuda_ms(captured, repeat),
                'eager fp32': _cuda_ms(lambda: eager(image, valid), repeat),  # noqa: B023
            }
        size = f'{width}x{height}'
        best = max(multiply_adds / rate, num_bytes / bandwidth) * 1e3
        rows = table_rows(ms, {}, {OURS: {'roofline_ms': best}})
        tables[f'sfd2, fp16 and a CUDA graph, {size}, {keypoints} keypoints'] = rows
        ours, ratio = rows[0]['median_ms'], rows[1]['times_ours']
        checks += [
            check(f'{size}, times the roofline', ours / best, 'at most 3',
                  ours / best <= _MOST_OF_ROOFLINE),
            check(f'{size}, eager by ours', ratio, 'at least 4', ratio >= _LEAST_OF_EAGER_CUDA),
        ]  # fmt: skip
    checks.append(check('1024x1024, ms (paper: 33.2)', ours, 'under 3.32', ours < _PAPER_MS / 10))
    rows = torch.randn(2, 4096, 128, device=device)
    query, reference = nn.functional.normalize(rows, dim=2)
    with torch.inference_mode():
        nearest = _cuda_ms(lambda: block_maxima(query, reference), repeat)
    matcher, on_cpu = TorchMatcher(), [each.cpu().numpy() for each in (query, reference)]
    runs = take_turns(
        {
            OURS: lambda _: matcher(*on_cpu),
            'feat_ros by NumPy': lambda _: mutual_nearest(*on_cpu),
        },
        range(repeat),
    )
    median = float(np.median(nearest))
    tables['largest products on the GPU, 4096 x 4096 x 128, fp32'] = table_rows(
        {OURS: nearest}, {}, {}
    )
    tables['mutual nearest of the same with copies'] = table_rows(
        {name: taken.ms for name, taken in runs.items()}, {}, {}
    )
    checks.append(check('mutual nearest, ms', median, 'at most 0.3', median <= _MOST_NEAREST_MS))
    return {
        'threads': {'torch': torch.get_num_threads()},
        'tables': tables,
        'notes': [
            f'{torch.cuda.get_device_name()}: {rate / 1e12:.1f} T multiply-adds a second in fp16, '
            f'copies {bandwidth / 1e9:.0f} GB/s (read and written)'
        ],
        'checks': checks,
    }


def network_cost(network: Any, image: Tensor, valid_wh: Tensor) -> tuple[int, int]:
    """Return multiply-adds of a network's convolutions and the bytes they must move in fp16.

    Every convolution reads its input and weights once and writes its output once.
    """
    multiply_adds = num_bytes = 0

    def count(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal multiply_adds, num_bytes
        multiply_adds += output.numel() * module.weight[0].numel()
        num_bytes += 2 * (inputs[0].numel() + output.numel() + module.weight.numel())

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.inference_mode():
        network(image, valid_wh)
    for hook in hooks:
        hook.remove()
    return multiply_adds, num_bytes


def _captured(network: Any, image: Tensor, valid_wh: Tensor) -> Callable[[], None]:
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            network(image, valid_wh)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        network(image, valid_wh)
    replay: Callable[[], None] = graph.replay
    return replay


def _cuda_ms(run: Callable[[], Any], repeat: int) -> list[float]:
    found = []
    for number in range(repeat + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if number >= 3:
            found.append(begin.elapsed_time(end))
    return found


def _matrix_rate(device: torch.device) -> float:
    """Multiply-adds a second of a large product in half precision."""
    side = 8192
    a = torch.randn(side, side, device=device, dtype=torch.float16)
    return side**3 / (min(_cuda_ms(lambda: a @ a, 10)) * 1e-3)


def _copy_rate(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(1 << 29, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    best_ms = min(_cuda_ms(lambda: target.copy_(source), 10))
    return 2 * (1 << 29) / (best_ms * 1e-3)

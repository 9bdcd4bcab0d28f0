# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A network by torch itself, on the GPU where there is one, there as a CUDA graph."""

from __future__ import annotations

from contextlib import suppress
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.backends import cudnn

from feat_ros.errors import NetworkError
from feat_ros.image import Image
from feat_ros.models.weights import build_network, load_weights
from feat_ros.runtimes.contract import NetworkOutput, output_from_arrays, RuntimeOptions

logger = logging.getLogger(__name__)

# Graphs of so many sizes of image are kept; a camera has one.
_MAX_GRAPHS = 4
_WARM_UP_RUNS = 3


class _Graph(NamedTuple):
    """A captured run with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    image: Tensor
    valid_wh: Tensor
    outputs: tuple[Tensor, ...]


class TorchRuntime:
    """See :class:`feat_ros.runtimes.Runtime`.

    :param path: weights, as :func:`feat_ros.models.weights.load_weights` reads them.
    :raises NetworkError: weights that are missing, damaged or of another network, or a GPU that
        is named and not there.
    """

    name = 'torch'
    size_wh: tuple[int, int] | None = None

    def __init__(
        self,
        path: Path,
        network: str,
        max_keypoints: int,
        options: RuntimeOptions = RuntimeOptions(),  # noqa: B008
    ) -> None:
        if options.provider in ('cuda', 'tensorrt') and not torch.cuda.is_available():
            raise NetworkError(f'torch {torch.__version__} finds no GPU: set provider=auto')
        use_gpu = options.provider != 'cpu' and torch.cuda.is_available()
        self.device = 'cuda' if use_gpu else 'cpu'
        if options.threads and not use_gpu:
            torch.set_num_threads(options.threads)
        weights = load_weights(path, network)
        made = build_network(weights, max_keypoints)
        try:
            self._network: Any = made.to(self.device, memory_format=torch.channels_last)
        except RuntimeError as error:
            raise _failure(error) from None
        if options.precision == 'fp16':
            self._network.use_half()
        self._graphs: dict[tuple[int, ...], _Graph] | None = {} if use_gpu else None
        self.max_keypoints = max_keypoints
        self.descriptor_dim: int = made.descriptor_dim
        self.weights_sha256 = weights.sha256
        self.size_multiple: int = made.size_multiple

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        """Run on an RGB (H, W, 3) uint8 image of which (width, height) is not padding.

        :raises NetworkError: it stopped working, for instance for want of GPU memory.
        """
        batch = torch.from_numpy(image)[None]
        valid = torch.tensor(valid_wh, dtype=torch.int32)
        try:
            with torch.inference_mode(), _all_bits():
                found = self._run(batch, valid)
                return output_from_arrays([part.cpu().numpy() for part in found])
        except RuntimeError as error:
            raise _failure(error) from None

    def close(self) -> None:
        """See :meth:`feat_ros.runtimes.Runtime.close`."""
        self._network = self._graphs = None
        # Of a GPU that is gone everything is lost anyway.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()

    def _run(self, batch: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        if self._graphs is not None:
            made = self._graphs.get(tuple(batch.shape)) or self._capture(batch, valid)
            if made is not None:
                made.image.copy_(batch)
                made.valid_wh.copy_(valid)
                made.graph.replay()
                return made.outputs
        outputs: tuple[Tensor, ...] = self._network(batch.to(self.device), valid.to(self.device))
        return outputs

    def _capture(self, batch: Tensor, valid: Tensor) -> _Graph | None:
        """Record a run on images of one size, or say why it stays eager."""
        assert self._graphs is not None
        image, valid_wh = batch.to(self.device), valid.to(self.device)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP_RUNS):
                self._network(image, valid_wh)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may match, or open the network of another map.
            with torch.cuda.graph(graph, capture_error_mode='thread_local'):
                outputs = self._network(image, valid_wh)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning('torch runs without a CUDA graph: %s', str(error).splitlines()[0])
            self._graphs = None
            return None
        while len(self._graphs) >= _MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        made = _Graph(graph, image, valid_wh, outputs)
        self._graphs[tuple(batch.shape)] = made
        return made


def _all_bits() -> Any:
    """Keep TensorFloat-32 off: of its ten bits convolutions leave too few for positions."""
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic,
        allow_tf32=False,
    )  # fmt: skip


def _failure(error: RuntimeError) -> NetworkError:
    return NetworkError(f'torch {torch.__version__} failed: {str(error).splitlines()[0]}')

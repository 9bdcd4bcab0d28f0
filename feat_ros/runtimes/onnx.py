# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An exported network by ONNX Runtime: on the CPU, or by its CUDA or TensorRT provider."""

from __future__ import annotations

from collections.abc import Mapping
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from feat_ros.errors import NetworkError
from feat_ros.image import Image
from feat_ros.runtimes.contract import (
    check_manifest,
    NetworkOutput,
    output_from_arrays,
    read_manifest,
    RuntimeOptions,
)

logger = logging.getLogger(__name__)

INPUTS = ('image', 'valid_wh')
OUTPUTS = ('keypoints', 'scores', 'descriptors', 'stability', 'num')
_CPU, _CUDA, _TENSORRT = (
    f'{name}ExecutionProvider' for name in ('CPU', 'CUDA', 'Tensorrt')
)  # fmt: skip
# What each choice of provider tries, the best first.
_PROVIDERS: Mapping[str, tuple[str, ...]] = {
    'auto': (_CUDA, _CPU),
    'cpu': (_CPU,),
    'cuda': (_CUDA, _CPU),
    'tensorrt': (_TENSORRT, _CUDA, _CPU),
}


class OnnxRuntime:
    """See :class:`feat_ros.runtimes.Runtime`.

    :param path: what ``feat_ros export`` wrote.
    :raises NetworkError: a file that is missing, damaged, of another network or of too few
        keypoints, or a provider that is named and not there.
    """

    name = 'onnx'

    def __init__(
        self,
        path: Path,
        network: str,
        max_keypoints: int,
        options: RuntimeOptions = RuntimeOptions(),  # noqa: B008
    ) -> None:
        manifest = read_manifest(path)
        check_manifest(path, manifest, network, max_keypoints)
        wanted = _PROVIDERS[options.provider]
        available = onnxruntime.get_available_providers()
        providers = [(p, _provider_options(p, path)) for p in wanted if p in available]
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 3
        session_options.intra_op_num_threads = options.threads
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), session_options, providers=providers
            )
        except Exception as error:
            # ONNX Runtime's own classes have no base but Exception.
            raise NetworkError(
                f'ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}'
            ) from None
        self.provider = self._session.get_providers()[0]
        if options.provider != 'auto' and self.provider != wanted[0]:
            raise NetworkError(
                f'ONNX Runtime has no working {wanted[0]} here ({self.provider} would run): '
                'install onnxruntime-gpu and the CUDA libraries it names, or set provider=auto'
            )
        if options.provider == 'auto' and _CUDA in available and self.provider == _CPU:
            logger.warning(
                '%s runs on the CPU: onnxruntime-gpu %s is installed and its %s does not start; '
                'install the CUDA libraries it names, or set provider=cpu',
                path.name, onnxruntime.__version__, _CUDA,
            )  # fmt: skip
        self.device = 'cpu' if self.provider == _CPU else 'cuda'
        self.max_keypoints = max_keypoints
        self.descriptor_dim = manifest.descriptor_dim
        self.weights_sha256 = manifest.weights_sha256
        self.size_multiple = manifest.size_multiple
        self.size_wh: tuple[int, int] | None = None
        if manifest.size_wh is not None:
            self.size_wh = manifest.size_wh[0], manifest.size_wh[1]

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        """Run on an RGB (H, W, 3) uint8 image of which (width, height) is not padding.

        :raises NetworkError: it stopped working, for instance for want of GPU memory.
        """
        inputs = (image[None], np.array(valid_wh, np.int32))
        try:
            *rows, num = self._session.run(OUTPUTS, dict(zip(INPUTS, inputs, strict=True)))
        except Exception as error:
            raise NetworkError(
                f'ONNX Runtime failed with {self.provider}: {_first_line(error)}'
            ) from None
        kept = [array[: self.max_keypoints] for array in rows]
        return output_from_arrays([*kept, np.minimum(num, self.max_keypoints)])

    def close(self) -> None:
        """See :meth:`feat_ros.runtimes.Runtime.close`."""
        self._session = None


def _provider_options(provider: str, path: Path) -> dict[str, Any]:
    if provider == _CUDA:
        # Ten bits of TF32 are too few for positions.
        return {'use_tf32': '0'}
    if provider == _TENSORRT:
        return {
            'trt_engine_cache_enable': '1',
            'trt_timing_cache_enable': '1',
            'trt_engine_cache_path': str(path.parent),
        }
    return {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An exported network by ONNX Runtime, on the GPU where its CUDA provider is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from feat_ros.errors import NetworkError
from feat_ros.image import Image
from feat_ros.runtimes.contract import NetworkOutput, output_from_arrays, read_manifest

INPUTS = ('image', 'valid_wh')
OUTPUTS = ('keypoints', 'scores', 'descriptors', 'stability', 'num')
_PROVIDERS = ('CUDAExecutionProvider', 'CPUExecutionProvider')


class OnnxRuntime:
    """See :class:`feat_ros.runtimes.Runtime`.

    :param path: what ``feat_ros export`` wrote.
    :raises NetworkError: a file that is missing, damaged, of another network or of too few
        keypoints.
    """

    name = 'onnx'

    def __init__(self, path: Path, network: str, max_keypoints: int) -> None:
        manifest = read_manifest(path)
        if manifest.network != network:
            raise NetworkError(f'{path} holds network {manifest.network!r}, not {network!r}')
        if manifest.max_keypoints < max_keypoints:
            raise NetworkError(
                f'{path} gives at most {manifest.max_keypoints} keypoints and {max_keypoints} '
                f'are asked for: set max_keypoints={manifest.max_keypoints}, or export it again '
                f'with --keypoints {max_keypoints}'
            )
        providers = [p for p in _PROVIDERS if p in onnxruntime.get_available_providers()]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            # ONNX Runtime's own classes have no base but Exception.
            raise NetworkError(
                f'ONNX Runtime {onnxruntime.__version__} cannot load {path}: '
                f'{str(error).splitlines()[0]}'
            ) from None
        self.max_keypoints = max_keypoints
        self.descriptor_dim = manifest.descriptor_dim
        self.weights_sha256 = manifest.weights_sha256
        self.size_multiple = manifest.size_multiple
        self.size_wh: tuple[int, int] | None = None
        if manifest.size_wh is not None:
            self.size_wh = manifest.size_wh[0], manifest.size_wh[1]

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        """Run on an RGB (H, W, 3) uint8 image of which (width, height) is not padding."""
        inputs = (image[None], np.array(valid_wh, np.int32))
        *rows, num = self._session.run(OUTPUTS, dict(zip(INPUTS, inputs, strict=True)))
        kept = [array[: self.max_keypoints] for array in rows]
        return output_from_arrays([*kept, np.minimum(num, self.max_keypoints)])

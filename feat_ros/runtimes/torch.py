# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A network by torch itself, on the GPU where there is one."""

from __future__ import annotations

from pathlib import Path

import torch

from feat_ros.image import Image
from feat_ros.models.weights import build_network, load_weights
from feat_ros.runtimes.contract import NetworkOutput, output_from_arrays


class TorchRuntime:
    """See :class:`feat_ros.runtimes.Runtime`.

    :param path: weights, as :func:`feat_ros.models.weights.load_weights` reads them.
    :raises NetworkError: weights that are missing, damaged or of another network.
    """

    name = 'torch'
    size_wh: tuple[int, int] | None = None

    def __init__(self, path: Path, network: str, max_keypoints: int) -> None:
        self._device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        weights = load_weights(path, network)
        made = build_network(weights, max_keypoints)
        self._network = made.to(self._device, memory_format=torch.channels_last)
        self.max_keypoints = max_keypoints
        self.descriptor_dim: int = made.descriptor_dim
        self.weights_sha256 = weights.sha256
        self.size_multiple: int = made.size_multiple

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        """Run on an RGB (H, W, 3) uint8 image of which (width, height) is not padding."""
        with torch.inference_mode():
            batch = torch.from_numpy(image).to(self._device)[None]
            valid = torch.tensor(valid_wh, dtype=torch.int32, device=self._device)
            found = self._network(batch, valid)
        return output_from_arrays([part.cpu().numpy() for part in found])

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Extractors that are networks: an image to the network's input, its output to ``Features``."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from feat_ros.config import Config, option
from feat_ros.image import check_image, Image
from feat_ros.runtimes import open_network, RUNTIMES
from feat_ros.runtimes.contract import padded_size, PROVIDERS, RuntimeOptions
from feat_ros.types import Features


@dataclass(frozen=True)
class LearnedConfig(Config):
    """Options of an extractor that is a network."""

    max_keypoints: int = option(2048, 'strongest keypoints kept', minimum=1, maximum=100_000)
    max_image_size: int = option(
        1024, 'longer side in pixels above which an image is scaled down first', minimum=64
    )
    runtime: str = option(
        'auto', 'what runs the network', choices=('auto', *RUNTIMES)
    )  # fmt: skip
    model: str = option(
        '',
        "an exported network (.onnx), its engine (.engine) or weights (.npz, .pth); the package's "
        'own where empty',
    )
    precision: str = option(
        'fp32',
        'of the dense part where torch runs it; a file has its own',
        choices=('fp32', 'fp16'),
    )
    provider: str = option(
        'auto', 'what of ONNX Runtime or torch computes; auto for a GPU', choices=PROVIDERS
    )
    threads: int = option(0, 'of the CPU; 0 for one a core', minimum=0)


@dataclass(frozen=True)
class HynetConfig(LearnedConfig):
    """Options of ``hynet``, which describes each keypoint by itself: fewer of them."""

    max_keypoints: int = option(1024, 'strongest keypoints kept', minimum=1, maximum=100_000)


class LearnedExtractor:
    """A network as an extractor; see :class:`feat_ros.extractors.Extractor`.

    :cvar pixel_sigma: position noise of its keypoints in pixels of its input.
    :raises NetworkError: nothing that is installed can run it, or its weights are missing.
    """

    name: str
    pixel_sigma: float

    def __init__(self, config: LearnedConfig) -> None:
        self.config = config
        self._network = open_network(
            self.name, config.max_keypoints, config.runtime, config.model,
            RuntimeOptions(config.precision, config.provider, config.threads),
        )  # fmt: skip
        self.descriptor_dim = self._network.descriptor_dim
        self.weights_sha256 = self._network.weights_sha256

    def __call__(self, image_rgb: Image) -> Features:
        """Extract features of an RGB (H, W, 3) uint8 image.

        :raises ImageError: not such an image.
        """
        image = check_image(image_rgb)
        network = self._network
        padded, valid_wh = network_input(
            image, self.config.max_image_size, network.size_multiple, network.size_wh
        )
        found = network(padded, valid_wh)
        size_wh = np.array([image.shape[1], image.shape[0]], np.float32)
        to_original = np.asarray(size_wh / np.array(valid_wh, np.float32), np.float32)
        rows = slice(found.num)
        sigma = np.float32(self.pixel_sigma) * to_original.mean()
        return Features(
            keypoints=found.keypoints[rows] * to_original,
            scores=found.scores[rows],
            descriptors=found.descriptors[rows],
            stability=found.stability[rows],
            pixel_sigma=np.full(found.num, sigma, np.float32),
        )


class Sfd2Extractor(LearnedExtractor):
    """The paper's network: for machines with a GPU."""

    name = 'sfd2'
    pixel_sigma = 0.7


class Sfd2LiteExtractor(LearnedExtractor):
    """Our small network: for machines without a GPU."""

    name = 'sfd2_lite'
    pixel_sigma = 0.5


class SamfeatExtractor(LearnedExtractor):
    """A small VGG that a segmentation model has taught."""

    name = 'samfeat'
    pixel_sigma = 0.7


class HynetExtractor(LearnedExtractor):
    """Patches of the scale space, described by HyNet."""

    name = 'hynet'
    pixel_sigma = 0.5


class HowExtractor(LearnedExtractor):
    """Local features for retrieval alone: places are those of cells of 16 or 32 pixels."""

    pixel_sigma = 8.0


class HowR18Extractor(HowExtractor):
    """HOW on ResNet-18."""

    name = 'how_r18'


class HowR50Extractor(HowExtractor):
    """HOW on ResNet-50 without its last block."""

    name = 'how_r50'


class HowSfd2Extractor(HowExtractor):
    """HOW on the encoder of ``sfd2_lite``."""

    name = 'how_sfd2'


class AislfdExtractor(LearnedExtractor):
    """Four descriptors of different invariance, fused into one."""

    name = 'aislfd'
    pixel_sigma = 0.5


class AislfdExactExtractor(LearnedExtractor):
    """The four descriptors, and what selects between them when two keypoints are compared."""

    name = 'aislfd_exact'
    pixel_sigma = 0.5


def network_input(
    image: Image, max_size: int, multiple: int, size_wh: tuple[int, int] | None
) -> tuple[Image, tuple[int, int]]:
    """Scale an image down to fit, aspect kept, and repeat its last row and column as padding.

    :param max_size: the longer side that it has at most.
    :param multiple: what width and height of the result are multiples of.
    :param size_wh: the size that the result must have, or None.
    :returns: the padded image, and the width and height of its part that is not padding. A place
        of the image is scaled by that over the image's size.
    """
    height, width = image.shape[:2]
    limits = [1.0, max_size / max(width, height)]
    if size_wh is not None:
        limits += [size_wh[0] / width, size_wh[1] / height]
    shrink = min(limits)
    valid_wh = max(1, round(width * shrink)), max(1, round(height * shrink))
    if shrink < 1:
        image = np.asarray(cv2.resize(image, valid_wh, interpolation=cv2.INTER_AREA), np.uint8)
    full = size_wh or padded_size(valid_wh, multiple)
    down, right = full[1] - valid_wh[1], full[0] - valid_wh[0]
    if down or right:
        padded = cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REPLICATE)
        image = np.asarray(padded, np.uint8)
    return np.ascontiguousarray(image), valid_wh

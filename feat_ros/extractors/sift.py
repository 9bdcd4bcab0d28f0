# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""RootSIFT through OpenCV, the baseline of every table.

Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 2004; the square root is
Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval",
CVPR 2012, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from feat_ros.config import Config, option
from feat_ros.image import check_image, Image, to_grey
from feat_ros.types import Features

# Position noise in pixels: a floor, and a share of the size of the region that fixed the point;
# between what reprojection errors of sharp photographs and of a driving camera's video show.
_SIGMA_FLOOR = np.float32(0.3)
_SIGMA_OF_SIZE = np.float32(0.1)


@dataclass(frozen=True)
class SiftConfig(Config):
    """Options of the ``sift`` extractor."""

    max_keypoints: int = option(4096, 'strongest keypoints kept', minimum=1, maximum=100_000)
    # OpenCV's own default, 0.04, finds next to nothing at night.
    contrast_threshold: float = option(
        0.004, 'weakest response in the scale space, 0 to 1', minimum=0.0, maximum=1.0
    )
    edge_threshold: float = option(10.0, 'largest ratio of curvatures', minimum=1.0)
    max_image_size: int = option(
        1600, 'longer side in pixels above which an image is scaled down first', minimum=64
    )


class SiftExtractor:
    """RootSIFT; see :class:`feat_ros.extractors.Extractor`."""

    name = 'sift'
    descriptor_dim = 128
    weights_sha256 = ''

    def __init__(self, config: SiftConfig) -> None:
        self.config = config
        options = {
            'nfeatures': config.max_keypoints,
            'contrastThreshold': config.contrast_threshold,
            'edgeThreshold': config.edge_threshold,
        }
        # What is added to OpenCV's positions, whose pixel centres are at whole numbers.
        self._offset = np.float32(0.5)
        try:
            self._sift = cv2.SIFT_create(**options, enable_precise_upscale=True)
        except cv2.error:
            # Before OpenCV 4.8 every position is a quarter of a pixel too far right and down.
            self._sift, self._offset = cv2.SIFT_create(**options), np.float32(0.25)

    def __call__(self, image_rgb: Image) -> Features:
        """Extract RootSIFT of an RGB (H, W, 3) uint8 image.

        :raises ImageError: not such an image.
        """
        grey = to_grey(check_image(image_rgb))
        height, width = grey.shape
        shrink = min(1.0, self.config.max_image_size / max(height, width))
        if shrink < 1:
            size = max(1, round(width * shrink)), max(1, round(height * shrink))
            grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
        points, sift = self._sift.detectAndCompute(grey, None)
        if not points:
            return _no_features()
        response = np.array([point.response for point in points], np.float32)
        order = np.argsort(-response, kind='stable')[: self.config.max_keypoints]
        positions = np.array([point.pt for point in points], np.float32)[order]
        to_original = np.array([width / grey.shape[1], height / grey.shape[0]], np.float32)
        sizes = np.array([point.size for point in points], np.float32)[order]
        # Arandjelovic and Zisserman: unit in L1, then the square root is unit in L2.
        descriptors = np.maximum(sift[order], 0).astype(np.float32)
        descriptors /= np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12)
        return Features(
            keypoints=(positions + self._offset) * to_original,
            scores=response[order],
            descriptors=np.sqrt(descriptors),
            stability=np.ones(len(order), np.float32),
            pixel_sigma=np.hypot(_SIGMA_FLOOR, _SIGMA_OF_SIZE * sizes) * to_original.mean(),
        )


def _no_features() -> Features:
    return Features(
        keypoints=np.zeros((0, 2), np.float32),
        scores=np.zeros(0, np.float32),
        descriptors=np.zeros((0, SiftExtractor.descriptor_dim), np.float32),
        stability=np.zeros(0, np.float32),
        pixel_sigma=np.zeros(0, np.float32),
    )

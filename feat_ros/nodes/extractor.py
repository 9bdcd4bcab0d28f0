# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The extractor node: the images of a camera in, their features out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
import sys
import time
from typing import Any

import cv2
import numpy as np
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions

from feat_ros import conversions
from feat_ros.bags import image_from_message, stamp_ns_of
from feat_ros.config import Config, option
from feat_ros.conversions import Values
from feat_ros.errors import FeatRosError
from feat_ros.extractors import (
    create_extractor,
    DEFAULT_EXTRACTOR,
    Extractor,
    EXTRACTORS,
    parse_extractor_options,
)
from feat_ros.image import Image
from feat_ros.nodes.messages import latched_qos, message_type, sensor_qos, to_message, trouble
from feat_ros.nodes.shell import run, Shell
from feat_ros.types import Features

_REPORT_S = 1.0
# What went wrong is news for so long.
_RECENT_S = 2.0
# Colours of a keypoint that will be gone soon and of one that stays, RGB.
_VOLATILE, _LASTING = np.array([255, 127, 14]), np.array([31, 119, 180])


@dataclass(frozen=True)
class ExtractorNodeConfig(Config):
    """Parameters of the node."""

    image_topic: str = option('image', 'Image, or CompressedImage where that is said')
    compressed: bool = option(False, 'the images are CompressedImage')
    extractor: str = option(DEFAULT_EXTRACTOR, 'which features', choices=tuple(EXTRACTORS))
    extractor_options: list[str] = option(
        list, 'NAME=VALUE words, for instance max_keypoints=1024; those of the map'
    )
    depth: int = option(1, 'images kept by the middleware while one is looked at', minimum=1)
    autostart: bool = option(
        True, 'configure and activate at the start; false where a life cycle manager does it'
    )

    @property
    def image_type(self) -> str:
        """Type of the images."""
        return f'sensor_msgs/msg/{"Compressed" * self.compressed}Image'


class ExtractorNode(Shell):
    """See docs/ros2.md for topics and parameters."""

    def __init__(self) -> None:
        super().__init__('extractor', ExtractorNodeConfig)
        self._extractor: Extractor | None = None
        self._offered: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._size_wh = 0, 0
        self._counts = Counter[str]()
        self._problem = -np.inf, ''
        self._image_s = self._took_ms = 0.0

    def configure(self) -> None:
        """Load the extractor; offer topics."""
        name = self.options.extractor
        chosen = parse_extractor_options(name, self.options.extractor_options)
        self._extractor = create_extractor(name, **chosen)
        self._size_wh = 0, 0
        outputs = {
            'features': ('~/features', 'sensor_msgs/msg/PointCloud2', QoSProfile(depth=5)),
            'info': ('~/features_info', 'diagnostic_msgs/msg/DiagnosticStatus', latched_qos()),
            'debug_image': ('~/debug_image', 'sensor_msgs/msg/Image', sensor_qos()),
            'diagnostics': ('/diagnostics', 'diagnostic_msgs/msg/DiagnosticArray', 10),
        }
        self._offered = {
            output: self.create_publisher(message_type(kind), topic, qos)
            for output, (topic, kind, qos) in outputs.items()
        }

    def activate(self) -> None:
        """Subscribe."""
        self._image_s = time.monotonic()
        options = self.options
        images = self.create_subscription(
            message_type(options.image_type), options.image_topic, self._on_image,
            sensor_qos(options.depth),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )  # fmt: skip
        self._inputs = [images, self.every(_REPORT_S, self._report)]

    def deactivate(self) -> None:
        """Listen no more."""
        self.let_go(self._inputs)

    def cleanup(self) -> None:
        """Let go of the extractor and the topics."""
        for publisher in self._offered.values():
            self.destroy_publisher(publisher)
        self._extractor, self._offered = None, {}

    def _on_image(self, message: Any) -> None:
        assert self._extractor is not None
        self._counts['images'] += 1
        started = self._image_s = time.monotonic()
        try:
            stamp_ns = stamp_ns_of(message.header, 'the camera')
            image = image_from_message(message, f'at {stamp_ns} ns')
            features = self._extractor(image)
        except FeatRosError as error:
            self._counts['refused'] += 1
            self._problem = started, str(error)
            return
        if self._size_wh != (image.shape[1], image.shape[0]):
            self._size_wh = image.shape[1], image.shape[0]
            self._publish('info', conversions.features_info(self._extractor, self._size_wh))
        frame_id = message.header.frame_id
        self._publish('features', conversions.features_cloud(features, stamp_ns, frame_id))
        self._took_ms = (time.monotonic() - started) * 1e3
        if self._offered['debug_image'].get_subscription_count():
            drawn = conversions.image(draw(image, features), stamp_ns, frame_id)
            self._publish('debug_image', drawn)

    def _publish(self, output: str, values: Values) -> None:
        publisher = self._offered[output]
        publisher.publish(to_message(publisher.msg_type, values))

    def _report(self) -> None:
        assert self._extractor is not None
        values = {**self._counts, 'extract (ms)': self._took_ms, 'extractor': self._extractor.name}
        status = conversions.diagnostic_status(
            f'{self.get_fully_qualified_name()}: features', self._extractor.name,
            list(self._problems()), values, is_error=False,
        )  # fmt: skip
        now = conversions.header(self.get_clock().now().nanoseconds, '')
        self._publish('diagnostics', {'header': now, 'status': [status]})

    def _problems(self) -> Iterator[str]:
        now_s = time.monotonic()
        problem = trouble(self, self.options.image_topic, self.options.image_type)
        if problem:
            yield problem
        if now_s - self._image_s > _REPORT_S:
            yield f'no image for {now_s - self._image_s:.1f} s'
        if now_s - self._problem[0] < _RECENT_S:
            yield self._problem[1]


def draw(image_rgb: Image, features: Features) -> Image:
    """Draw keypoints into a copy of an image, from orange, soon gone, to blue, here to stay."""
    drawn: Image = image_rgb.copy()
    colours = _VOLATILE + features.stability[:, None] * (_LASTING - _VOLATILE)
    radius = max(2, round(max(drawn.shape) / 320))
    for (x, y), colour in zip(features.keypoints - 0.5, colours, strict=True):
        center = round(float(x)), round(float(y))
        cv2.circle(drawn, center, radius, [int(c) for c in colour], 1, cv2.LINE_AA)
    return drawn


def main() -> None:
    """Run the node."""
    sys.exit(run(ExtractorNode))


if __name__ == '__main__':
    main()

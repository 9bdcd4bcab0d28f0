# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The localization server on a live ROS 2 graph: convert -> call -> publish, without ROS."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from feat_ros import conversions
from feat_ros.config import Config, option
from feat_ros.dds.graph import Graph
from feat_ros.errors import ConfigError
from feat_ros.geometry import Rigid3d
from feat_ros.intake import Intake, IntakeConfig
from feat_ros.localizer import Localizer
from feat_ros.monitor import Health, Monitor
from feat_ros.server import LocalizationServer, ServerConfig
from feat_ros.types import FrameRecord, JsonDict

_TICK_S = 0.05
_TRANSFORMS = 'tf2_msgs/msg/TFMessage'
_INFO = 'sensor_msgs/msg/CameraInfo'
_ODOMETRY = 'nav_msgs/msg/Odometry'


@dataclass(frozen=True)
class LiveConfig(Config):
    """Topics and frames of :func:`run_live`."""

    image_topic: str = option('', 'Image, or CompressedImage where that is said')
    info_topic: str = option('', 'CameraInfo')
    odometry_topic: str | None = option(None, 'Odometry, for the prior, gating and map -> odom')
    compressed: bool = option(False, 'the images are CompressedImage')
    base_frame: str | None = option(
        None, "whose poses are found, by TF; default: odometry's child, or the image's frame"
    )
    tf: str = option(
        'none',
        'what is broadcast: map -> odom, map -> base, or nothing',
        choices=('odom', 'base', 'none'),
    )
    tf_ahead_s: float = option(
        0.1, 'map -> odom is stamped so much ahead, for those who look it up', minimum=0.0
    )
    name: str = option('localizer', 'publishes on /NAME/pose; named so in diagnostics')
    depth: int = option(
        5, 'images kept while this process is busy; the newest is localized next', minimum=1
    )

    def __post_init__(self) -> None:
        """Check that what is broadcast can be known.

        :raises ConfigError: map -> odom without odometry.
        """
        super().__post_init__()
        if self.tf == 'odom' and self.odometry_topic is None:
            raise ConfigError('map -> odom needs odometry: name its topic, or broadcast the base')

    @property
    def image_type(self) -> str:
        """Type of the images."""
        return f'sensor_msgs/msg/{"Compressed" * self.compressed}Image'


def run_live(
    graph: Graph,
    localizer: Localizer,
    source: LiveConfig,
    server_config: ServerConfig | None = None,
    intake_config: IntakeConfig | None = None,
    *,
    is_over: Callable[[], bool],
    on_health: Callable[[Health], None] = lambda health: None,
) -> JsonDict:
    """Localize what comes until it is over; return the figures of the run.

    :param is_over: asked some twenty times a second.
    :param on_health: gets the state each second, as diagnostics do.
    :raises MapError: the scale of the map is unknown.
    """
    conversions.check_metric(localizer.map)
    return _Live(graph, localizer, source, server_config, intake_config).run(is_over, on_health)


class _Live:
    def __init__(
        self, graph: Graph, localizer: Localizer, source: LiveConfig,
        server_config: ServerConfig | None, intake_config: IntakeConfig | None,
    ) -> None:  # fmt: skip
        self._graph, self._source = graph, source
        self._map_frame = localizer.map.manifest.frame_id
        self._server = LocalizationServer(localizer, server_config)
        self._intake = Intake(
            self._server.submit, intake_config,
            base_frame=source.base_frame, has_odometry=source.odometry_topic is not None,
        )  # fmt: skip
        self._monitor = Monitor(localizer, self._server, self._intake)
        self._tf_problem = ''
        self._image_frame = ''
        self._broadcast_ns = 0
        self._unreadable = Counter[str]()
        pose_type = 'geometry_msgs/msg/PoseWithCovarianceStamped'
        self._pose = graph.writer(f'/{source.name}/pose', pose_type)
        self._diagnostics = graph.writer('/diagnostics', 'diagnostic_msgs/msg/DiagnosticArray')
        self._tf = graph.writer('/tf', _TRANSFORMS, depth=100)
        # What an image needs is subscribed to before the image.
        for topic, is_static in (('/tf_static', True), ('/tf', False)):
            take = partial(self._intake.transforms, is_static=is_static)
            graph.reader(topic, _TRANSFORMS, take, latched=is_static, depth=100)
        graph.reader(source.info_topic, _INFO, self._intake.camera_info, latched=True)
        self._inputs = {source.info_topic: _INFO, source.image_topic: source.image_type}
        if source.odometry_topic is not None:
            graph.reader(source.odometry_topic, _ODOMETRY, self._intake.odometry, depth=100)
            self._inputs[source.odometry_topic] = _ODOMETRY
        graph.reader(source.image_topic, source.image_type, self._on_image, depth=source.depth)

    def run(self, is_over: Callable[[], bool], on_health: Callable[[Health], None]) -> JsonDict:
        self._server.start(self._on_record)
        look_s = time.monotonic() + 1.0
        try:
            while not is_over():
                self._graph.spin(_TICK_S)
                self._intake.poll()
                self._broadcast_odom()
                if time.monotonic() >= look_s:
                    look_s += 1.0
                    self._report(on_health)
        finally:
            self._server.stop()
        unreadable = self._graph.unreadable(self._source.image_topic)
        return self._monitor.look().figures | {'unreadable': unreadable}

    def _on_image(self, message: Any) -> None:
        self._image_frame = message.header.frame_id.lstrip('/')
        self._intake.image(message)

    def _on_record(self, record: FrameRecord) -> None:
        self._monitor.record(record)
        if record.map_from_base is None:
            return
        self._pose.write(conversions.pose_with_covariance(record, self._map_frame))
        if self._source.tf == 'base':
            child = self._intake.base_frame(self._image_frame)
            self._broadcast(record.stamp_ns, child, record.map_from_base)

    def _broadcast_odom(self) -> None:
        """Say again where odom is, up to now: those who drive between two fixes look it up."""
        map_from_odom, newest_ns = self._server.map_from_odom, self._intake.newest_ns
        if self._source.tf == 'odom' and map_from_odom and newest_ns != self._broadcast_ns:
            self._broadcast_ns = newest_ns
            stamp_ns = newest_ns + round(self._source.tf_ahead_s * 1e9)
            self._broadcast(stamp_ns, self._intake.odom_frame, map_from_odom)

    def _broadcast(self, stamp_ns: int, child: str, map_from_child: Rigid3d) -> None:
        """Broadcast, unless the frame would get a second parent."""
        parents = self._intake.parents(child)
        self._tf_problem = ''
        if parents:
            self._tf_problem = (
                f'{child} has parent {" and ".join(parents)} from elsewhere: {self._map_frame} -> '
                f'{child} is not broadcast'
            )
            return
        transform = conversions.transform(stamp_ns, self._map_frame, child, map_from_child)
        self._tf.write({'transforms': [transform]})

    def _report(self, on_health: Callable[[Health], None]) -> None:
        health = self._monitor.look(list(self._problems()))
        name = self._source.name
        self._diagnostics.write(self._monitor.diagnostics(health, name, time.time_ns()))
        on_health(health)

    def _problems(self) -> Iterator[str]:
        for topic, kind in self._inputs.items():
            is_done = topic == self._source.info_topic and self._intake.has_camera
            trouble = '' if is_done else self._graph.trouble(topic, kind)
            if trouble:
                yield trouble
            count = self._graph.unreadable(topic)
            new, self._unreadable[topic] = count - self._unreadable[topic], count
            if new:
                yield f'{new} messages on {topic} are no {kind}: cut off or garbled'
        if self._tf_problem:
            yield self._tf_problem

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The localizer node: images or features in, the pose in the map out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
import sys
from typing import Any

from nav2_msgs.srv import LoadMap
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_srvs.srv import SetBool, Trigger

from feat_ros import conversions
from feat_ros.config import option
from feat_ros.conversions import Values
from feat_ros.driver import decode_image_message, Driver, LiveConfig, map_path, OUTPUTS
from feat_ros.errors import ConfigError, FeatRosError, MapError, MessageError
from feat_ros.image import Image
from feat_ros.intake import IntakeConfig
from feat_ros.localizer import create_retriever, Localizer, LocalizerConfig, open_localizer
from feat_ros.nodes.messages import latched_qos, message_type, sensor_qos, to_message, trouble
from feat_ros.nodes.shell import run, Shell
from feat_ros.runtimes import open_matcher
from feat_ros.server import ServerConfig
from feat_ros.sfm_map import SfmMap
from feat_ros.types import Features, FrameRecord

_TICK_S, _REPORT_S = 0.05, 1.0
_TRANSFORMS = OUTPUTS['tf']
_INFO, _ODOMETRY = 'sensor_msgs/msg/CameraInfo', 'nav_msgs/msg/Odometry'
_CLOUD, _STATUS = 'sensor_msgs/msg/PointCloud2', 'diagnostic_msgs/msg/DiagnosticStatus'
_POSE = OUTPUTS['pose']


@dataclass(frozen=True)
class LocalizerNodeConfig(LiveConfig):
    """Parameters of the node."""

    map: str = option('', 'the map folder')
    input: str = option(
        'images', "what image_topics carry: images, or the extractor node's features",
        choices=('images', 'features'),
    )  # fmt: skip
    extractor_options: list[str] = option(
        list, 'NAME=VALUE words that change how the extractor of the map was made'
    )
    path_length: int = option(1000, 'poses kept in ~/path', minimum=1)
    autostart: bool = option(
        True, 'configure and activate at the start; false where a life cycle manager does it'
    )
    localizer: LocalizerConfig = option(LocalizerConfig, 'one image in a map')
    server: ServerConfig = option(ServerConfig, 'one frame after the other')
    intake: IntakeConfig = option(IntakeConfig, 'what an image waits for')


@dataclass
class RemoteExtractor:
    """Stands for the extractor of another process, whose features come by topic."""

    name: str
    descriptor_dim: int
    weights_sha256: str
    config: Any = None

    def __call__(self, image_rgb: Image) -> Features:
        """Refuse: images do not come here.

        :raises ConfigError: always.
        """
        raise ConfigError('an image came where features are expected: set input to images')


class LocalizerNode(Shell):
    """See docs/ros2.md for topics, parameters and services."""

    def __init__(self) -> None:
        super().__init__('localizer', LocalizerNodeConfig)
        self._driver: Driver | None = None
        self._offered: dict[str, Any] = {}
        self._served: list[Any] = []
        self._inputs: list[Any] = []
        self._kinds: dict[str, str] = {}
        self._infos: dict[int, dict[str, str]] = {}
        self._path: deque[Any] = deque(maxlen=self.options.path_length)
        self._has_run = False

    def configure(self) -> None:
        """Open the map; offer topics and services."""
        self._driver = Driver(
            self._open(self.options.map), self.options, self.options.server,
            self.options.intake, self._publish, self._on_record,
            self._decode_features if self.options.input == 'features' else decode_image_message,
        )  # fmt: skip
        outputs = {
            'pose': ('~/pose', _POSE, 10),
            'tf': ('/tf', _TRANSFORMS, 100),
            'diagnostics': ('/diagnostics', OUTPUTS['diagnostics'], 10),
            'path': ('~/path', 'nav_msgs/msg/Path', 1),
            'markers': ('~/markers', 'visualization_msgs/msg/MarkerArray', 1),
            'map_points': ('~/map_points', _CLOUD, latched_qos()),
        }
        self._offered = {
            name: self.create_publisher(message_type(kind), topic, qos)
            for name, (topic, kind, qos) in outputs.items()
        }
        self._served = [
            self.create_service(kind, f'~/{name}', serve)
            for name, kind, serve in (
                ('relocalize', Trigger, self._relocalize),
                ('pause', SetBool, self._pause),
                ('load_map', LoadMap, self._load_map),
            )
        ]
        self._publish('map_points', conversions.map_points(self._driver.localizer.map))

    def activate(self) -> None:
        """Subscribe and localize."""
        driver = self._driver
        assert driver is not None
        if self._has_run:
            driver.server.reset('the node was activated again')
        self._has_run = True
        driver.start()
        # What an image needs is subscribed to before the image.
        self._kinds = {}
        take = partial(driver.transforms, is_static=True)
        # Bags that do not say how it was published are played without the promise of latched.
        for qos in (latched_qos(100), sensor_qos(100)):
            self._subscribe('/tf_static', _TRANSFORMS, take, qos)
        take = partial(driver.transforms, is_static=False)
        self._subscribe('/tf', _TRANSFORMS, take, sensor_qos(100))
        self._subscribe('/initialpose', _POSE, driver.initial_pose, QoSProfile(depth=1))
        options = self.options
        if options.odometry_topic:
            self._listen(options.odometry_topic, _ODOMETRY, driver.odometry, 100)
        for number, image in enumerate(options.image_topics):
            info, take_info = options.info_topics[number], partial(driver.camera_info, number)
            self._listen(info, _INFO, take_info, 1)
            self._subscribe(info, _INFO, take_info, latched_qos())
            self._listen(image, self._image_type(), partial(driver.image, number), options.depth)
            if options.input == 'features':
                take = partial(self._take_features_info, number)
                self._subscribe(f'{image}_info', _STATUS, take, latched_qos())
        self._inputs += [self.every(_TICK_S, driver.tick), self.every(_REPORT_S, self._report)]

    def deactivate(self) -> None:
        """Finish the last frame and listen no more."""
        self.let_go(self._inputs)
        if self._driver is not None:
            self._driver.stop()

    def cleanup(self) -> None:
        """Let go of map, topics and services."""
        for service in self._served:
            self.destroy_service(service)
        for publisher in self._offered.values():
            self.destroy_publisher(publisher)
        self._driver, self._offered, self._served = None, {}, []
        self._path.clear()

    def _open(self, url: str) -> Localizer:
        """Open a map with its extractor, or for the features of another process."""
        options = self.options
        path = map_path(url)
        if not url:
            raise MapError('no map is named: set the parameter "map", for instance -p map:=office')
        if options.input == 'images':
            return open_localizer(path, options.localizer, None, options.extractor_options)
        sfm_map = SfmMap(path)
        built = sfm_map.manifest.extractor
        remote = RemoteExtractor(built.name, built.descriptor_dim, built.weights_sha256)
        retriever = create_retriever(sfm_map, options.localizer)
        matcher = open_matcher(options.localizer.matching)
        return Localizer(sfm_map, remote, retriever, options.localizer, matcher)

    def _image_type(self) -> str:
        if self.options.input == 'features':
            return _CLOUD
        return f'sensor_msgs/msg/{"Compressed" * self.options.compressed}Image'

    def _listen(self, topic: str, kind: str, take: Any, depth: int) -> None:
        """Subscribe to an input, which diagnostics name while nobody publishes it."""
        self._kinds[topic] = kind
        self._subscribe(topic, kind, take, sensor_qos(depth), is_overridable=True)

    def _subscribe(
        self, topic: str, kind: str, take: Any, qos: QoSProfile, is_overridable: bool = False
    ) -> None:
        options = QoSOverridingOptions.with_default_policies() if is_overridable else None
        subscription = self.create_subscription(
            message_type(kind), topic, take, qos, qos_overriding_options=options
        )
        self._inputs.append(subscription)

    def _take_features_info(self, camera: int, message: Any) -> None:
        self._infos[camera] = {pair.key: pair.value for pair in message.values}

    def _decode_features(self, camera: int, message: Any, name: str) -> Features:
        """Read features, if they are of the extractor that the map was built with."""
        assert self._driver is not None
        info = self._infos.get(camera)
        if info is None:
            topic = f'{self.options.image_topics[camera]}_info'
            raise MessageError(f'whose features come is not known: nothing on {topic} yet')
        self._driver.localizer.map.check_extractor(info['extractor'], info['weights_sha256'])
        return conversions.features_from_cloud(message, name)

    def _publish(self, output: str, values: Values) -> None:
        publisher = self._offered[output]
        publisher.publish(to_message(publisher.msg_type, values))

    def _on_record(self, record: FrameRecord) -> None:
        """Show a fix to those who watch."""
        if record.map_from_base is None:
            return
        assert self._driver is not None
        frame = self._driver.map_frame
        stamped = conversions.pose_stamped(record, frame)
        self._path.append(to_message(message_type('geometry_msgs/msg/PoseStamped'), stamped))
        if self._offered['path'].get_subscription_count():
            path = self._offered['path'].msg_type(poses=list(self._path))
            path.header = self._path[-1].header
            self._offered['path'].publish(path)
        if self._offered['markers'].get_subscription_count():
            self._publish('markers', conversions.markers(record, frame))

    def _report(self) -> None:
        assert self._driver is not None
        now_ns = self.get_clock().now().nanoseconds
        self._driver.report(self.get_fully_qualified_name(), now_ns, list(self._problems()))

    def _problems(self) -> Iterator[str]:
        assert self._driver is not None
        done = {
            topic
            for topic, intake in zip(self.options.info_topics, self._driver.intakes, strict=True)
            if intake.has_camera
        }
        for topic, kind in self._kinds.items():
            problem = '' if topic in done else trouble(self, topic, kind)
            if problem:
                yield problem

    def _relocalize(self, request: Any, response: Any) -> Any:
        assert self._driver is not None
        self._driver.relocalize()
        response.success, response.message = True, 'the next image is searched in the whole map'
        return response

    def _pause(self, request: Any, response: Any) -> Any:
        assert self._driver is not None
        self._driver.is_paused = request.data
        response.success, response.message = True, 'paused' if request.data else 'going on'
        return response

    def _load_map(self, request: Any, response: Any) -> Any:
        """Go on in another map; the old one stays where the new one cannot be used."""
        assert self._driver is not None
        try:
            self._driver.set_map(self._open(request.map_url))
        except FeatRosError as error:
            is_there = Path(request.map_url.removeprefix('file://')).exists()
            response.result = (
                LoadMap.Response.RESULT_INVALID_MAP_DATA
                if is_there
                else LoadMap.Response.RESULT_MAP_DOES_NOT_EXIST
            )
            self.get_logger().error(f'the map stays what it was: {error}')
            return response
        self._path.clear()
        self._publish('map_points', conversions.map_points(self._driver.localizer.map))
        response.result = LoadMap.Response.RESULT_SUCCESS
        return response


def main() -> None:
    """Run the node."""
    sys.exit(run(LocalizerNode))


if __name__ == '__main__':
    main()

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The localization server on a live graph, whatever carries its messages: ROS nodes and DDS.

Messages go in as they come; what goes out is published as nested dicts with ROS's field names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from feat_ros import conversions
from feat_ros.bags import image_from_message
from feat_ros.config import Config, option
from feat_ros.conversions import Values
from feat_ros.errors import ConfigError, DataError, FeatRosError
from feat_ros.geometry import Rigid3d
from feat_ros.image import Image
from feat_ros.intake import Intake, IntakeConfig
from feat_ros.localizer import Localizer
from feat_ros.monitor import Health, Monitor
from feat_ros.server import LocalizationServer, ServerConfig
from feat_ros.types import Features, FrameRecord, PosePrior

# What is published, and its type; the names of the topics are the door's.
OUTPUTS = {
    'pose': 'geometry_msgs/msg/PoseWithCovarianceStamped',
    'tf': 'tf2_msgs/msg/TFMessage',
    'diagnostics': 'diagnostic_msgs/msg/DiagnosticArray',
}
Publish = Callable[[str, Values], None]

# Transforms sent that are remembered: they come back within so many.
_SENT = 200


@dataclass(frozen=True)
class LiveConfig(Config):
    """Topics and frames of a live localizer."""

    image_topics: list[str] = option(
        lambda: ['image'], 'Image of each camera; CompressedImage or features where that is said'
    )
    info_topics: list[str] = option(
        list, 'CameraInfo of each camera; none: "camera_info" beside each image topic'
    )
    odometry_topic: str = option('', 'Odometry, for the prior, gating and map -> odom; or empty')
    compressed: bool = option(False, 'the images are CompressedImage')
    base_frame: str = option(
        '', "whose poses are found, by TF; empty: odometry's child, or the image's frame"
    )
    tf: str = option(
        'auto',
        'what is broadcast: map -> odom, map -> base, nothing; auto: odom where there is odometry',
        choices=('auto', 'odom', 'base', 'none'),
    )
    tf_ahead_s: float = option(
        0.1, 'map -> odom is stamped so much ahead, for those who look it up', minimum=0.0
    )
    depth: int = option(
        1, 'images kept by the middleware while this process is busy; the newest is next',
        minimum=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check that what is broadcast can be known, and fill in what follows from the rest.

        :raises ConfigError: map -> odom without odometry, or not one CameraInfo a camera.
        """
        super().__post_init__()
        images, infos = self.image_topics, self.info_topics
        if not images or not all(images):
            raise ConfigError(f'image_topics is {images}: name at least one topic')
        if not infos:
            infos = [info_topic(topic) for topic in images]
            object.__setattr__(self, 'info_topics', infos)
        if len(infos) != len(images) or len(set(images)) != len(images):
            raise ConfigError(
                f'image_topics are {images} and info_topics {infos}: each camera needs one of both'
            )
        if self.tf == 'auto':
            object.__setattr__(self, 'tf', 'odom' if self.odometry_topic else 'none')
        if self.tf == 'odom' and not self.odometry_topic:
            raise ConfigError('map -> odom needs odometry: name its topic, or broadcast the base')


class Driver:
    """A localizer on a live graph; all methods may be called from any thread.

    A door (ROS node, DDS) hands over messages, calls :meth:`tick` some twenty times a second and
    :meth:`report` each second.

    :param publish: takes the name of one of :data:`OUTPUTS` and the values of its message.
    :param on_record: gets what became of each frame.
    :param decode: makes what is localized of an image message, with the number of its camera and
        a name for errors; images by default.
    :raises MapError: the scale of the map is unknown.
    """

    def __init__(
        self, localizer: Localizer, config: LiveConfig, server_config: ServerConfig | None,
        intake_config: IntakeConfig | None, publish: Publish,
        on_record: Callable[[FrameRecord], None] = lambda record: None,
        decode: Callable[[int, Any, str], Image | Features] | None = None,
    ) -> None:  # fmt: skip
        conversions.check_metric(localizer.map)
        self.config, self.localizer = config, localizer
        self.map_frame = localizer.map.manifest.frame_id
        self.is_paused = False
        self.server = LocalizationServer(localizer, server_config)
        self.intakes = [
            Intake(
                partial(self.server.submit, camera=number), intake_config,
                base_frame=config.base_frame, has_odometry=bool(config.odometry_topic),
                decode=partial(decode or decode_image_message, number),
            )
            for number in range(len(config.image_topics))
        ]  # fmt: skip
        self.monitor = Monitor(localizer, self.server, self.intakes)
        self._publish, self._on_record = publish, on_record
        self._image_frame = self._tf_problem = self._pose_problem = ''
        self._broadcast_ns = 0
        # Subscribers hear what their own process sends.
        self._sent: deque[tuple[int, str]] = deque(maxlen=_SENT)

    def start(self) -> None:
        """Begin to localize what comes."""
        self.server.start(self._take_record)

    def stop(self) -> None:
        """End; frames that were handed over are finished."""
        self.server.stop()

    def camera_info(self, camera: int, message: Any) -> None:
        """Take a sensor_msgs/CameraInfo of a camera."""
        self.intakes[camera].camera_info(message)

    def image(self, camera: int, message: Any) -> None:
        """Take a sensor_msgs/Image, CompressedImage, or features."""
        if not self.is_paused:
            self._image_frame = message.header.frame_id.lstrip('/')
            self.intakes[camera].image(message)

    def odometry(self, message: Any) -> None:
        """Take a nav_msgs/Odometry."""
        for intake in self.intakes:
            intake.odometry(message)

    def transforms(self, message: Any, *, is_static: bool) -> None:
        """Take a tf2_msgs/TFMessage."""
        others = [t for t in message.transforms if is_static or not self._is_ours(t)]
        for intake in self.intakes if others else ():
            intake.transforms(SimpleNamespace(transforms=others), is_static=is_static)

    def initial_pose(self, message: Any) -> None:
        """Take a geometry_msgs/PoseWithCovarianceStamped: where the base is, says a person."""
        self._pose_problem = ''
        try:
            map_from_base, sigma_m, sigma_deg = conversions.pose_of(message, self.map_frame)
        except FeatRosError as error:
            self._pose_problem = f'the initial pose is not used: {error}'
            return
        # What the camera sees from there is known where its place on the base is.
        cam_from_base = self.intakes[0].cam_from_base(self._image_frame) or Rigid3d()
        prior = PosePrior(cam_from_base @ map_from_base.inverse(), 3 * sigma_m, 3 * sigma_deg)
        self.server.relocalize(prior)

    def relocalize(self) -> None:
        """Forget the last fix; the next frames are searched in the whole map."""
        self.server.relocalize()

    def set_map(self, localizer: Localizer) -> None:
        """Go on in another map.

        :raises MapError: its scale is unknown; the old one stays.
        """
        conversions.check_metric(localizer.map)
        self.localizer, self.map_frame = localizer, localizer.map.manifest.frame_id
        self.server.set_map(localizer)
        self.monitor.set_map(localizer)

    def tick(self) -> None:
        """Go on with images that have waited long enough, and say again where odom is."""
        for intake in self.intakes:
            intake.poll()
        self._broadcast_odom()

    def report(self, name: str, stamp_ns: int, more_problems: Iterable[str] = ()) -> Health:
        """Publish diagnostics; return the state.

        :param name: of the localizer, in the diagnostics.
        :param more_problems: what the door knows.
        """
        problems = [*more_problems, *filter(None, (self._tf_problem, self._pose_problem))]
        if self.is_paused:
            problems = ['paused: call the service "pause" with false to go on', *problems]
        health = self.monitor.look(problems)
        self._publish('diagnostics', self.monitor.diagnostics(health, name, stamp_ns))
        return health

    def _take_record(self, record: FrameRecord) -> None:
        self.monitor.record(record)
        if record.map_from_base is not None:
            self._publish('pose', conversions.pose_with_covariance(record, self.map_frame))
            if self.config.tf == 'base':
                child = self.intakes[0].base_frame(self._image_frame)
                self._broadcast(record.stamp_ns, child, record.map_from_base)
        self._on_record(record)

    def _broadcast_odom(self) -> None:
        """Say again where odom is, up to now: those who drive between two fixes look it up."""
        intake, map_from_odom = self.intakes[0], self.server.map_from_odom
        newest_ns = intake.newest_ns
        if self.config.tf == 'odom' and map_from_odom and newest_ns != self._broadcast_ns:
            self._broadcast_ns = newest_ns
            stamp_ns = newest_ns + round(self.config.tf_ahead_s * 1e9)
            self._broadcast(stamp_ns, intake.odom_frame, map_from_odom)

    def _broadcast(self, stamp_ns: int, child: str, map_from_child: Rigid3d) -> None:
        """Broadcast, unless the frame would get a second parent."""
        parents = self.intakes[0].parents(child)
        self._tf_problem = ''
        if parents:
            self._tf_problem = (
                f'{child} has parent {" and ".join(parents)} from elsewhere: {self.map_frame} -> '
                f'{child} is not broadcast'
            )
            return
        transform = conversions.transform(stamp_ns, self.map_frame, child, map_from_child)
        self._sent.append((stamp_ns, child))
        self._publish('tf', {'transforms': [transform]})

    def _is_ours(self, transform: Any) -> bool:
        stamp = transform.header.stamp
        return (stamp.sec * 10**9 + stamp.nanosec, transform.child_frame_id) in self._sent


def decode_image_message(_: int, message: Any, name: str) -> Image:
    """Decode an image, whichever camera it is of; see :func:`image_from_message`."""
    return image_from_message(message, name)


def info_topic(image_topic: str) -> str:
    """Return where image_transport's publishers put the CameraInfo of an image topic."""
    folder, slash, _ = image_topic.removesuffix('/compressed').rpartition('/')
    return f'{folder}{slash}camera_info'


def map_path(url: str) -> Path:
    """Return the folder that a path or a ``file://`` address names.

    :raises DataError: another kind of address.
    """
    scheme, separator, rest = url.partition('://')
    if not separator:
        return Path(url)
    if scheme != 'file':
        raise DataError(f'map {url!r} is not on this machine: name its folder, or file:///folder')
    return Path(rest)

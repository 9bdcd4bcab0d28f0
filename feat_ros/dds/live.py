# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The localization server on a live ROS 2 graph: convert -> call -> publish, without ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
import time

from feat_ros.conversions import Values
from feat_ros.dds.graph import Graph
from feat_ros.driver import Driver, LiveConfig, OUTPUTS
from feat_ros.intake import IntakeConfig
from feat_ros.localizer import Localizer
from feat_ros.monitor import Health
from feat_ros.server import ServerConfig
from feat_ros.types import JsonDict

_TICK_S = 0.05
_TRANSFORMS = OUTPUTS['tf']
_INFO = 'sensor_msgs/msg/CameraInfo'
_ODOMETRY = 'nav_msgs/msg/Odometry'


def run_live(
    graph: Graph,
    localizer: Localizer,
    config: LiveConfig,
    server_config: ServerConfig | None = None,
    intake_config: IntakeConfig | None = None,
    *,
    name: str = 'localizer',
    is_over: Callable[[], bool],
    on_health: Callable[[Health], None] = lambda health: None,
) -> JsonDict:
    """Localize what comes until it is over; return the figures of the run.

    :param name: publishes on ``/NAME/pose``; named so in diagnostics.
    :param is_over: asked some twenty times a second.
    :param on_health: gets the state each second, as diagnostics do.
    :raises MapError: the scale of the map is unknown.
    """
    topics = {'pose': f'/{name}/pose', 'tf': '/tf', 'diagnostics': '/diagnostics'}
    depths = {'tf': 100}
    writers = {
        output: graph.writer(topic, OUTPUTS[output], depth=depths.get(output, 10))
        for output, topic in topics.items()
    }

    def publish(output: str, values: Values) -> None:
        writers[output].write(values)

    driver = Driver(localizer, config, server_config, intake_config, publish)
    inputs = _subscribe(graph, driver)
    seen = Counter[str]()
    driver.start()
    look_s = time.monotonic() + 1.0
    try:
        while not is_over():
            graph.spin(_TICK_S)
            driver.tick()
            if time.monotonic() >= look_s:
                look_s += 1.0
                problems = _problems(graph, driver, inputs, seen)
                on_health(driver.report(name, time.time_ns(), problems))
    finally:
        driver.stop()
    unreadable = sum(graph.unreadable(topic) for topic in config.image_topics)
    return driver.monitor.look().figures | {'unreadable': unreadable}


def _subscribe(graph: Graph, driver: Driver) -> dict[str, str]:
    """Subscribe to what the driver needs, and return the types by topic.

    What an image needs is subscribed to before the image.
    """
    config = driver.config
    for topic, is_static in (('/tf_static', True), ('/tf', False)):
        take = partial(driver.transforms, is_static=is_static)
        graph.reader(topic, _TRANSFORMS, take, latched=is_static, depth=100)
    inputs = {}
    if config.odometry_topic:
        graph.reader(config.odometry_topic, _ODOMETRY, driver.odometry, depth=100)
        inputs[config.odometry_topic] = _ODOMETRY
    image_type = f'sensor_msgs/msg/{"Compressed" * config.compressed}Image'
    cameras = zip(config.info_topics, config.image_topics, strict=True)
    for number, (info, image) in enumerate(cameras):
        graph.reader(info, _INFO, partial(driver.camera_info, number), latched=True)
        graph.reader(image, image_type, partial(driver.image, number), depth=config.depth)
        inputs |= {info: _INFO, image: image_type}
    return inputs


def _problems(
    graph: Graph, driver: Driver, inputs: dict[str, str], seen: Counter[str]
) -> Iterator[str]:
    """What is wrong with the topics now."""
    config = driver.config
    done = {
        topic
        for topic, intake in zip(config.info_topics, driver.intakes, strict=True)
        if intake.has_camera
    }
    for topic, kind in inputs.items():
        trouble = '' if topic in done else graph.trouble(topic, kind)
        if trouble:
            yield trouble
        count = graph.unreadable(topic)
        new, seen[topic] = count - seen[topic], count
        if new:
            yield f'{new} messages on {topic} are no {kind}: cut off or garbled'

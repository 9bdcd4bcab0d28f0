# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Values with ROS's field names to messages, and what is wrong with a topic."""

from __future__ import annotations

import array
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from feat_ros.conversions import Values


@lru_cache
def message_type(name: str) -> Any:
    """Return the class of ``package/msg/Name`` or ``package/Name``."""
    package, *middle, kind = name.split('/')
    return getattr(import_module('.'.join([package, *(middle or ['msg'])])), kind)


def to_message(kind: Any, values: Values) -> Any:
    """Make a message of nested values; fields that are not named keep their defaults."""
    return _fill(kind(), values)


def _fill(message: Any, values: Mapping[str, Any]) -> Any:
    for name, value in values.items():
        current = getattr(message, name)
        if isinstance(value, Mapping):
            _fill(current, value)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            element = message.get_fields_and_field_types()[name]
            inner = message_type(element.removeprefix('sequence<').removesuffix('>'))
            setattr(message, name, [_fill(inner(), each) for each in value])
        elif isinstance(current, array.array):
            # As an array the bytes are taken over without a look at each.
            setattr(message, name, array.array(current.typecode, value))
        elif isinstance(current, bytes):
            setattr(message, name, bytes([value]))
        else:
            setattr(message, name, value)
    return message


def sensor_qos(depth: int = 1) -> QoSProfile:
    """Return best effort and the newest only, as for sensor data."""
    return QoSProfile(
        depth=depth, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT
    )


def latched_qos(depth: int = 1) -> QoSProfile:
    """Return what late joiners get the last messages by: reliable, transient local."""
    return QoSProfile(
        depth=depth, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )  # fmt: skip


def trouble(node: Any, topic: str, kind: str) -> str:
    """Say why nothing comes from a topic; '' where someone publishes it for us."""
    endpoints = node.get_publishers_info_by_topic(topic)
    kinds = sorted({endpoint.topic_type for endpoint in endpoints})
    if not kinds:
        return f'nobody publishes {topic}'
    return (
        ''
        if kind in kinds
        else f'{topic} carries {" and ".join(kinds)}, not {kind}: choose another'
    )

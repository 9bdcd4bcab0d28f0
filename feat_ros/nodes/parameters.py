# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ROS parameters from the configuration dataclasses, which are the one table of defaults."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import typing
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

from feat_ros import config
from feat_ros.errors import ConfigError

T = TypeVar('T')

# What rclpy itself reads.
_OF_RCLPY = ('use_sim_time', 'start_type_description_service', 'qos_overrides.')
_LARGEST = float(2**31)
_SCALARS = (bool, int, float, str, type(None))


def read_parameters(node: Any, kind: type[T]) -> T:
    """Declare the options of a configuration as read-only parameters, and return their values.

    Groups are joined by dots, as in ``localizer.pnp.max_error_px``. The node must have been made
    with ``automatically_declare_parameters_from_overrides``.

    :raises ConfigError: an override that is unknown or out of range; rclpy would ignore the first.
    """
    overrides = {
        name: parameter.value
        for name, parameter in node.get_parameters_by_prefix('').items()
        if not name.startswith(_OF_RCLPY)
    }
    options = {name: field for name, field, _ in _options(kind)}
    unknown = sorted(set(overrides) - set(options))
    if unknown:
        raise ConfigError(
            f'{node.get_name()} has no parameter {unknown[0]!r}: it has {", ".join(options)}'
        )
    values = config.from_dict(kind, _nested(overrides))
    for name, field, value in _options(kind, values):
        if node.has_parameter(name):
            node.undeclare_parameter(name)
        kept = [''] if value == [] else value  # an empty list would have no type
        node.declare_parameter(name, kept, _descriptor(field, value), ignore_override=True)
    return values


def _options(kind: type[Any], values: Any = None, prefix: str = '') -> Iterator[Any]:
    """Yield name, field and value of each option, groups unfolded."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        value = None if values is None else getattr(values, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _options(hints[field.name], value, f'{prefix}{field.name}.')
        else:
            yield f'{prefix}{field.name}', field, value


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, name = path.split('.')
        inner = table
        for group in groups:
            inner = inner.setdefault(group, {})
        # ROS has no empty list with a type: a list of one empty word stands for it.
        inner[name] = value if isinstance(value, _SCALARS) else [v for v in value if v != '']
    return table


def _descriptor(field: Any, value: Any) -> ParameterDescriptor:
    data = field.metadata
    choices = f'one of {", ".join(map(str, data["choices"]))}' if data['choices'] else ''
    descriptor = ParameterDescriptor(
        description=data['description'], additional_constraints=choices, read_only=True
    )
    low, high = data['minimum'], data['maximum']
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (low, high) != (None,) * 2
    ):
        low = -_LARGEST if low is None else low
        high = max(_LARGEST, value) if high is None else high
        if isinstance(value, int):
            limits = IntegerRange(from_value=round(low), to_value=round(high))
            descriptor.integer_range = [limits]
        else:
            limits = FloatingPointRange(from_value=float(low), to_value=float(high))
            descriptor.floating_point_range = [limits]
    return descriptor

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ROS 2 messages as bytes: CDR (OMG's XCDR version 1, final types), as every ROS 2 RMW sends it.

Messages are written from nested dicts with ROS's field names and read into objects with the same
attributes as rclpy's. Arrays of numbers are NumPy views of the bytes: a picture is not copied.
"""

from __future__ import annotations

from collections.abc import Mapping
import re
import struct
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from feat_ros.errors import MessageError

# The standard messages that are spoken here, with the fields of common_interfaces.
_DEFINITIONS = """
builtin_interfaces/msg/Time: int32 sec, uint32 nanosec
std_msgs/msg/Header: Time stamp, string frame_id
rosgraph_msgs/msg/Clock: Time clock
geometry_msgs/msg/Point: float64 x, float64 y, float64 z
geometry_msgs/msg/Vector3: float64 x, float64 y, float64 z
geometry_msgs/msg/Quaternion: float64 x, float64 y, float64 z, float64 w
geometry_msgs/msg/Pose: Point position, Quaternion orientation
geometry_msgs/msg/PoseStamped: Header header, Pose pose
geometry_msgs/msg/PoseWithCovariance: Pose pose, float64[36] covariance
geometry_msgs/msg/PoseWithCovarianceStamped: Header header, PoseWithCovariance pose
geometry_msgs/msg/Twist: Vector3 linear, Vector3 angular
geometry_msgs/msg/TwistWithCovariance: Twist twist, float64[36] covariance
geometry_msgs/msg/Transform: Vector3 translation, Quaternion rotation
geometry_msgs/msg/TransformStamped: Header header, string child_frame_id, Transform transform
nav_msgs/msg/Odometry: Header header, string child_frame_id, PoseWithCovariance pose,
    TwistWithCovariance twist
tf2_msgs/msg/TFMessage: TransformStamped[] transforms
diagnostic_msgs/msg/KeyValue: string key, string value
diagnostic_msgs/msg/DiagnosticStatus: byte level, string name, string message,
    string hardware_id, KeyValue[] values
diagnostic_msgs/msg/DiagnosticArray: Header header, DiagnosticStatus[] status
sensor_msgs/msg/RegionOfInterest: uint32 x_offset, uint32 y_offset, uint32 height, uint32 width,
    bool do_rectify
sensor_msgs/msg/CameraInfo: Header header, uint32 height, uint32 width, string distortion_model,
    float64[] d, float64[9] k, float64[9] r, float64[12] p, uint32 binning_x, uint32 binning_y,
    RegionOfInterest roi
sensor_msgs/msg/Image: Header header, uint32 height, uint32 width, string encoding,
    uint8 is_bigendian, uint32 step, uint8[] data
sensor_msgs/msg/CompressedImage: Header header, string format, uint8[] data
sensor_msgs/msg/PointField: string name, uint32 offset, uint8 datatype, uint32 count
sensor_msgs/msg/PointCloud2: Header header, uint32 height, uint32 width, PointField[] fields,
    bool is_bigendian, uint32 point_step, uint32 row_step, uint8[] data, bool is_dense
"""

# How struct and NumPy call them; the size is also the alignment.
PRIMITIVES = {
    'bool': '?', 'byte': 'B', 'char': 'B', 'int8': 'b', 'uint8': 'B', 'int16': 'h', 'uint16': 'H',
    'int32': 'i', 'uint32': 'I', 'int64': 'q', 'uint64': 'Q', 'float32': 'f', 'float64': 'd',
}  # fmt: skip
# The representations of plain CDR: big and little endian, no options.
_HEADERS = {b'\x00\x00': '>', b'\x00\x01': '<'}
_HEADER_BYTES = 4


class Field(NamedTuple):
    """A field of a message; the length is None for one element, 0 for any number, N for N."""

    name: str
    kind: str
    length: int | None


Fields = tuple[Field, ...]


def _parse(text: str) -> dict[str, Fields]:
    full: dict[str, str] = {}
    messages: dict[str, Fields] = {}
    for name, fields in re.findall(r'^(\S+): (.*(?:\n +.*)*)', text, re.MULTILINE):
        full[name.rpartition('/')[2]] = name
        messages[name] = tuple(
            Field(field, full.get(kind, kind), None if not brackets else int(count or 0))
            for kind, brackets, count, field in re.findall(r'(\w+)(\[(\d*)\])? (\w+)', fields)
        )
    return messages


MESSAGES = _parse(_DEFINITIONS)


def encode(name: str, values: Mapping[str, Any]) -> bytearray:
    """Return a message in little endian CDR with its header of four bytes.

    :param name: ``package/msg/Name``, one of ``MESSAGES``.
    :param values: nested dicts; a field that is left out is zero or empty.
    :raises ValueError: an unknown field, or an array of the wrong length.
    """
    buffer = bytearray(b'\x00\x01\x00\x00')
    _put_message(buffer, name, values)
    return buffer


def _put_message(buffer: bytearray, name: str, values: Mapping[str, Any]) -> None:
    fields = MESSAGES[name]
    unknown = values.keys() - {field.name for field in fields}
    if unknown:
        raise ValueError(f'{name} has no field {", ".join(sorted(unknown))}')
    for field in fields:
        if field.length is None:
            _put(buffer, field.kind, values.get(field.name))
        else:
            _put_array(buffer, field, values.get(field.name, np.zeros(field.length)))


def _put(buffer: bytearray, kind: str, value: Any) -> None:
    if kind == 'string':
        data = (value or '').encode() + b'\0'
        _put(buffer, 'uint32', len(data))
        buffer += data
    elif kind in PRIMITIVES:
        _pad(buffer, kind)
        buffer += struct.pack(f'<{PRIMITIVES[kind]}', value or 0)
    else:
        _put_message(buffer, kind, value or {})


def _put_array(buffer: bytearray, field: Field, value: Any) -> None:
    is_numbers = field.kind in PRIMITIVES
    if is_numbers:
        dtype = f'<{PRIMITIVES[field.kind]}'
        if isinstance(value, bytes | bytearray | memoryview):
            value = np.frombuffer(value, dtype) if len(value) else ()
        value = np.asarray(value, dtype).reshape(-1)
    if field.length and len(value) != field.length:
        raise ValueError(f'{field.name} has {len(value)} elements: it must have {field.length}')
    if not field.length:
        _put(buffer, 'uint32', len(value))
    if not is_numbers:
        for element in value:
            _put(buffer, field.kind, element)
    elif len(value):
        _pad(buffer, field.kind)
        buffer += np.ascontiguousarray(value).data


def _pad(buffer: bytearray, kind: str) -> None:
    """Align what comes next; positions are counted behind the header."""
    buffer += bytes(-(len(buffer) - _HEADER_BYTES) % struct.calcsize(PRIMITIVES[kind]))


def decode(name: str, data: bytes | bytearray | memoryview) -> Any:
    """Return a message as an object with ROS's field names; bytes behind its end are ignored.

    :param name: ``package/msg/Name``, one of ``MESSAGES``.
    :raises MessageError: cut off, not plain CDR, or a text that does not end.
    """
    return _Reader(name, memoryview(data)).message(name)


class _Reader:
    """A place in the bytes of one message."""

    def __init__(self, name: str, data: memoryview) -> None:
        self._name, self._data, self._at = name, data, 0
        header = bytes(data[:2])
        if len(data) < _HEADER_BYTES or header not in _HEADERS:
            raise MessageError(
                f'a {name} of {len(data)} bytes begins with {header.hex()}: it must be plain CDR, '
                'as ROS 2 sends it'
            )
        self._order = _HEADERS[header]
        self._body = data[_HEADER_BYTES:]

    def message(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(**{field.name: self._field(field) for field in MESSAGES[name]})

    def _field(self, field: Field) -> Any:
        if field.length is None:
            return self._one(field.kind)
        count = field.length or self._one('uint32')
        if field.kind in PRIMITIVES:
            return self._numbers(field.kind, count)
        # Each takes at least a byte: a garbled count must not fill the memory.
        self._check(count)
        return [self._one(field.kind) for _ in range(count)]

    def _one(self, kind: str) -> Any:
        if kind in PRIMITIVES:
            return self._numbers(kind, 1)[0].item()
        if kind != 'string':
            return self.message(kind)
        length = self._one('uint32')
        # Some writers leave the closing zero of an empty text out.
        text = bytes(self._numbers('uint8', length))
        if length and text[-1]:
            raise MessageError(f'a {self._name} has a text without an end: it is garbled')
        return text[:-1].decode(errors='replace')

    def _numbers(self, kind: str, count: int) -> Any:
        dtype = np.dtype(f'{self._order}{PRIMITIVES[kind]}')
        if not count:
            return np.zeros(0, dtype)
        self._at += -self._at % dtype.itemsize
        self._check(count * dtype.itemsize)
        numbers = np.frombuffer(self._body, dtype, count, self._at)
        self._at += count * dtype.itemsize
        return numbers

    def _check(self, size: int) -> None:
        if self._at + size > len(self._body):
            raise MessageError(
                f'a {self._name} of {len(self._data)} bytes is cut off: {size} more are needed at '
                f'byte {self._at + _HEADER_BYTES}'
            )

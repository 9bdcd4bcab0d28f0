# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The bytes of messages, beside two independent libraries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rosbags.typesys import get_typestore, Stores
from test_bags import build

from feat_ros.dds.cdr import decode, encode, Field, MESSAGES, PRIMITIVES
from feat_ros.errors import MessageError

TOP = [
    'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/CameraInfo',
    'nav_msgs/msg/Odometry', 'geometry_msgs/msg/PoseWithCovarianceStamped',
    'geometry_msgs/msg/PoseStamped', 'tf2_msgs/msg/TFMessage',
    'diagnostic_msgs/msg/DiagnosticArray', 'sensor_msgs/msg/PointCloud2',
    'rosgraph_msgs/msg/Clock',
]  # fmt: skip
STORE = get_typestore(Stores.ROS2_HUMBLE)


def random_values(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Fill every field of a message; sequences have any length, zero too."""
    return {field.name: random_field(field, rng) for field in MESSAGES[name]}


def random_field(field: Field, rng: np.random.Generator) -> Any:
    length = field.length or int(rng.integers(0, 6))
    if field.length is not None and field.kind in PRIMITIVES:
        return random_numbers(field.kind, length, rng)
    if field.length is not None:
        return [random_values(field.kind, rng) for _ in range(length)]
    if field.kind == 'string':
        return ''.join(rng.choice(list('abü/_'), length))
    if field.kind in PRIMITIVES:
        return random_numbers(field.kind, 1, rng)[0].item()
    return random_values(field.kind, rng)


def random_numbers(kind: str, count: int, rng: np.random.Generator) -> Any:
    dtype = np.dtype(PRIMITIVES[kind])
    if dtype.kind == 'f':
        return rng.normal(size=count).astype(dtype)
    return rng.integers(0, 2 if dtype.kind == 'b' else 127, count).astype(dtype)


def assert_same(read: Any, written: Any) -> None:
    if isinstance(written, dict):
        assert isinstance(read, SimpleNamespace)
        assert read.__dict__.keys() == written.keys()
        for name, value in written.items():
            assert_same(getattr(read, name), value)
    elif isinstance(written, list):
        assert len(read) == len(written)
        for one, other in zip(read, written, strict=True):
            assert_same(one, other)
    elif isinstance(written, np.ndarray):
        np.testing.assert_array_equal(read, written)
    else:
        assert read == written and type(read) is type(written)


@pytest.mark.parametrize('name', TOP)
@pytest.mark.parametrize('seed', range(6))
def test_bytes_of_rosbags(name: str, seed: int) -> None:
    values = random_values(name, np.random.default_rng(seed))
    message = build(STORE, name, values)
    ours = encode(name, values)
    assert bytes(ours) == bytes(STORE.serialize_cdr(message, name))
    for data in (ours, STORE.serialize_cdr(message, name, little_endian=False)):
        assert_same(decode(name, data), values)
        assert_same(decode(name, bytes(data) + b'\0\0\0'), values)


@pytest.mark.parametrize('name', TOP)
def test_bytes_of_cyclone(name: str) -> None:
    pytest.importorskip('cyclonedds', reason='cyclonedds is not installed')
    from cyclonedds.idl._support import Endianness

    from feat_ros.dds.graph import idl_type

    def make(kind: str, values: dict[str, Any]) -> Any:
        """Make the library's own object; it takes lists only."""
        made = {}
        for field in MESSAGES[kind]:
            value = values[field.name]
            if isinstance(value, dict):
                value = make(field.kind, value)
            elif isinstance(value, list):
                value = [make(field.kind, element) for element in value]
            made[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return idl_type(kind, MESSAGES.__getitem__)(**made)

    for seed in range(3):
        values = random_values(name, np.random.default_rng(seed))
        sample = make(name, values)
        assert bytes(encode(name, values)) == sample.serialize(use_version_2=False)
        turned = sample.serialize(use_version_2=False, endianness=Endianness.Big)
        assert turned[:2] == b'\0\0'
        assert_same(decode(name, turned), values)


def test_what_is_left_out_is_zero() -> None:
    info = decode('sensor_msgs/msg/CameraInfo', encode('sensor_msgs/msg/CameraInfo', {'width': 7}))
    assert (info.width, info.height, info.distortion_model, len(info.d)) == (7, 0, '', 0)
    assert info.k.tolist() == [0] * 9 and info.header.stamp.sec == 0


def test_a_picture_is_not_copied() -> None:
    name, picture = 'sensor_msgs/msg/Image', np.arange(12, dtype=np.uint8)
    data = encode(name, {'data': picture.reshape(2, 6)})
    assert data == encode(name, {'data': picture.tobytes()})
    image = decode(name, data)
    np.testing.assert_array_equal(image.data, picture)
    assert decode(name, encode(name, {'data': b''})).data.size == 0
    data[-1] = 99
    assert image.data[-1] == 99


def test_an_empty_text_without_its_end() -> None:
    data = b'\x00\x01\x00\x00' + bytes(8) + bytes(4)
    assert decode('std_msgs/msg/Header', data).frame_id == ''


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'hight': 3}, 'sensor_msgs/msg/CameraInfo has no field hight'),
        ({'roi': {'x': 3}}, 'sensor_msgs/msg/RegionOfInterest has no field x'),
        ({'k': [0.0] * 8}, 'k has 8 elements: it must have 9'),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode('sensor_msgs/msg/CameraInfo', values)


@pytest.mark.parametrize('name', TOP)
def test_cut_off(name: str) -> None:
    """Wherever a message is cut, the error says so; nothing else is raised."""
    data = encode(name, random_values(name, np.random.default_rng(1)))
    for size in range(len(data)):
        with pytest.raises(MessageError, match=f'{name} of {size} bytes'):
            decode(name, data[:size])


@pytest.mark.parametrize('name', TOP)
def test_garbled(name: str) -> None:
    """Any bytes give a message or the error, and no more memory than they have."""
    rng = np.random.default_rng(5)
    good = encode(name, random_values(name, rng))
    for _ in range(100):
        data = good.copy()
        data[4 + int(rng.integers(len(data) - 4))] = int(rng.integers(256))
        for bytes_ in (data, b'\0\1\0\0' + rng.bytes(len(data))):
            try:
                decode(name, bytes_)
            except MessageError as error:
                assert name in str(error)


def test_other_encodings() -> None:
    with pytest.raises(MessageError, match='begins with 0007: it must be plain CDR'):
        decode('rosgraph_msgs/msg/Clock', b'\x00\x07\x00\x00' + bytes(8))
    with pytest.raises(MessageError, match='text without an end: it is garbled'):
        decode('std_msgs/msg/Header', b'\0\1\0\0' + bytes(8) + b'\3\0\0\0abc')

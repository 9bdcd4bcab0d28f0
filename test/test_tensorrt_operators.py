# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Graphs that TensorRT would not take are found out, node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip('onnx', reason='onnx is not installed')

from onnx import helper, TensorProto  # noqa: E402

from feat_ros.tensorrt_operators import (  # noqa: E402
    replace_whole_number_operators,
    tensorrt_faults,
)


def graph(*nodes: Any, **constants: Any) -> Any:
    """A model with inputs ``bytes``, ``floats`` and ``ints`` of (1, 1, 8, 8)."""
    kinds = {'bytes': TensorProto.UINT8, 'floats': TensorProto.FLOAT, 'ints': TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(n, kind, [1, 1, 8, 8]) for n, kind in kinds.items()]
    arrays = [onnx.numpy_helper.from_array(np.array(v), name) for name, v in constants.items()]
    output = helper.make_tensor_value_info('out', TensorProto.UNDEFINED, None)
    return helper.make_model(
        helper.make_graph(nodes, 'test', inputs, [output], arrays),
        opset_imports=[helper.make_opsetid('', 17)],
    )


@pytest.mark.parametrize(
    ('node', 'fault'),
    [
        (helper.make_node('Cast', ['bytes'], ['out'], 'n', to=TensorProto.FLOAT), None),
        (helper.make_node('Transpose', ['bytes'], ['out'], 'n'), 'Transpose n: bytes is UINT8'),
        (helper.make_node('Relu', ['floats'], ['out'], 'n'), None),
        (helper.make_node('Clip', ['ints'], ['out'], 'n'), 'Clip n: ints is INT64'),
        (helper.make_node('Add', ['ints', 'ints'], ['out'], 'n'), None),
        (helper.make_node('ReduceSum', ['ints'], ['out'], 'n'),
         'ReduceSum n: ints is INT64 (TensorRT 8.5, 8.6)'),
        (helper.make_node('Mod', ['ints', 'ints'], ['out'], 'n'),
         'Mod n: no such operator (TensorRT 8.5)'),
        (helper.make_node('AveragePool', ['ints'], ['out'], 'n', kernel_shape=[2, 2]),
         'AveragePool n: ints is INT64 (TensorRT 10.1)'),
        (helper.make_node('NonZero', ['floats'], ['out'], 'n'), 'NonZero n: no such operator'),
        (helper.make_node('TopK', ['floats', 'few'], ['out', 'i'], 'n', axis=3), None),
        (
            helper.make_node('TopK', ['floats', 'many'], ['out', 'i'], 'n', axis=3),
            'TopK n: its K is 3841, more than 3840',
        ),
        (
            helper.make_node('TopK', ['floats', 'ints'], ['out', 'i'], 'n', axis=3),
            'TopK n: its K is not constant',
        ),
        (
            helper.make_node('Resize', ['floats', '', 'scales'], ['out'], 'n', mode='cubic'),
            'Resize n: its mode is cubic',
        ),
        (helper.make_node('Resize', ['floats', '', 'scales'], ['out'], 'n', mode='linear'), None),
        (helper.make_node('QuantizeLinear', ['floats', 'scale', 'none'], ['out'], 'n'), None),
        (
            helper.make_node('QuantizeLinear', ['floats', 'scale'], ['out'], 'n'),
            'QuantizeLinear n: its zero point is no signed byte',
        ),
        (
            helper.make_node('QuantizeLinear', ['floats', 'scale', 'unsigned'], ['out'], 'n'),
            'QuantizeLinear n: its zero point is no signed byte',
        ),
        (
            helper.make_node('QuantizeLinear', ['floats', 'scale', 'some'], ['out'], 'n'),
            'QuantizeLinear n: its zero point is not 0',
        ),
        (helper.make_node('DequantizeLinear', ['some', 'scale', 'none'], ['out'], 'n'), None),
        (
            helper.make_node('DequantizeLinear', ['ints', 'scale', 'none'], ['out'], 'n'),
            'DequantizeLinear n: ints is INT64',
        ),
    ],
)  # fmt: skip
def test_each_node_is_judged(node: Any, fault: str | None) -> None:
    model = graph(
        node, few=[5], many=[3841], scales=np.array([1, 1, 2, 2], np.float32),
        scale=np.float32(0.1), none=np.int8(0), some=np.int8(3), unsigned=np.uint8(0),
    )  # fmt: skip
    assert tensorrt_faults(model) == ([fault] if fault else [])


def test_types_are_followed_through_the_graph() -> None:
    model = graph(
        helper.make_node('Equal', ['floats', 'floats'], ['same'], 'a'),
        helper.make_node('Not', ['same'], ['other'], 'b'),
        helper.make_node('Exp', ['other'], ['out'], 'c'),
    )
    assert tensorrt_faults(model) == ['Exp c: other is BOOL']


def test_whole_numbers_are_limited_and_summed_otherwise() -> None:
    """The same values as before, in operators that are in the table."""
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    model = graph(
        helper.make_node('Clip', ['ints', 'low', 'high'], ['both'], 'a'),
        helper.make_node('Clip', ['both', '', 'high'], ['one'], 'b'),
        helper.make_node('Clip', ['floats'], ['same'], 'c'),
        helper.make_node('ReduceSum', ['one', 'axes'], ['out'], 'd', keepdims=0),
        low=-3, high=5, axes=[2],
    )  # fmt: skip
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info('out', TensorProto.INT64, None))
    values = np.random.default_rng(0).integers(-9, 9, (1, 1, 8, 8))
    inputs = {
        'ints': values, 'floats': np.zeros((1, 1, 8, 8), np.float32),
        'bytes': np.zeros((1, 1, 8, 8), np.uint8),
    }  # fmt: skip
    assert len(tensorrt_faults(model)) == 6
    replace_whole_number_operators(model)
    assert tensorrt_faults(model) == []
    assert [node.op_type for node in model.graph.node] == [
        'Max', 'Min', 'Min', 'Clip', 'Cast', 'ReduceSum', 'Cast',
    ]  # fmt: skip
    model.ir_version = 8
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, inputs)
    np.testing.assert_array_equal(found, np.clip(values, -3, 5).sum(axis=2))

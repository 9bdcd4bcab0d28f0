# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What of an exported graph TensorRT would not take, read off its own table of operators.

Operators and types are those of docs/operators.md of onnx-tensorrt at release 8.5, the first
that reads opset 17 (commit 6d0ab7be324d02c7feb3a306b6fdbeae84f71ddc); later releases take more.
The limit of TopK and that bytes may only be converted are of NVIDIA's documentation of
ITopKLayer and of DataType.UINT8.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import helper

_TOP_K_LIMIT = 3840
_FLOAT, _INT, _BOOL = 'float', 'int', 'bool'
# 64-bit whole numbers become 32-bit ones there.
_KIND = {
    onnx.TensorProto.FLOAT: _FLOAT,
    onnx.TensorProto.FLOAT16: _FLOAT,
    onnx.TensorProto.INT32: _INT,
    onnx.TensorProto.INT64: _INT,
    onnx.TensorProto.BOOL: _BOOL,
}


def _operators(names: str, *kinds: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(names.split(), kinds)


_OPERATORS = {
    **_operators(
        """ArgMax BatchNormalization Clip ConstantOfShape Conv DepthToSpace Exp Floor Gemm
        GridSample LeakyRelu Log MatMul MaxPool Pow Reciprocal ReduceL2 ReduceMax ReduceMean
        ReduceMin ReduceSum Relu Resize Sigmoid Softmax Sqrt TopK""",
        _FLOAT,
    ),
    **_operators(
        """Abs Add AveragePool Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul
        Neg Pad Range ScatterElements ScatterND Sign Sub""",
        _FLOAT, _INT,
    ),
    **_operators('And Not Or Xor', _BOOL),
    **_operators(
        """Cast Concat Constant Expand Flatten Gather GatherElements GatherND Identity Reshape
        Shape Slice Split Squeeze Tile Transpose Unsqueeze Where""",
        _FLOAT, _INT, _BOOL,
    ),
}  # fmt: skip
# Inputs that say what to do and are not what is computed on, from this place on.
_PARAMETERS_FROM = {
    'ConstantOfShape': 0, 'Pad': 1, 'ReduceMax': 1, 'ReduceMean': 1, 'ReduceMin': 1,
    'ReduceL2': 1, 'ReduceSum': 1, 'Resize': 1, 'TopK': 1,
}  # fmt: skip


def tensorrt_faults(model: Any) -> list[str]:
    """Return one sentence for each node that TensorRT 8.5 would not take; none is good.

    :param model: an ``onnx.ModelProto`` with its large arrays inside or beside it.
    """
    types = _types(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        f'{node.op_type} {node.name}: {fault}'
        for node in model.graph.node
        for fault in _faults(node, types, constants)
    ]


def replace_whole_number_operators(model: Any) -> None:
    """Limit whole numbers by Max and Min, and sum them as floats, exact up to 2^24.

    TensorRT 8.5 has Clip and ReduceSum for floats only.
    """
    types, nodes = _types(model), []
    for node in model.graph.node:
        kind = types.get(node.input[0]) if node.input else None
        if _KIND.get(kind) == _INT and node.op_type == 'Clip':
            nodes += _limits(node)
        elif _KIND.get(kind) == _INT and node.op_type == 'ReduceSum':
            nodes += _float_sum(node, kind)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _limits(node: Any) -> list[Any]:
    limits = [(op, name) for op, name in zip(('Max', 'Min'), node.input[1:], strict=False) if name]
    source, made = node.input[0], []
    for number, (op, limit) in enumerate(limits, start=1):
        target = node.output[0] if number == len(limits) else f'{node.output[0]}_{op}'
        made.append(helper.make_node(op, [source, limit], [target], f'{node.name}_{op}'))
        source = target
    return made


def _float_sum(node: Any, kind: Any) -> list[Any]:
    source, target = f'{node.output[0]}_from', f'{node.output[0]}_sum'
    total = onnx.NodeProto()
    total.CopyFrom(node)
    total.input[0], total.output[0] = source, target
    return [
        helper.make_node(
            'Cast', [node.input[0]], [source], f'{node.name}_from', to=onnx.TensorProto.FLOAT
        ),
        total,
        helper.make_node('Cast', [target], [node.output[0]], f'{node.name}_to', to=kind),
    ]


def _types(model: Any) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for values in (graph.value_info, graph.input, graph.output)
        for value in values
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _faults(node: Any, types: dict[str, int], constants: dict[str, Any]) -> Iterator[str]:
    allowed = _OPERATORS.get(node.op_type)
    if allowed is None:
        yield 'no such operator'
        return
    computed_on = list(node.input)[: _PARAMETERS_FROM.get(node.op_type)]
    for name in filter(None, computed_on):
        data_type = types.get(name, onnx.TensorProto.UNDEFINED)
        if data_type == onnx.TensorProto.UINT8 and node.op_type == 'Cast':
            continue
        if _KIND.get(data_type) not in allowed:
            yield f'{name} is {onnx.TensorProto.DataType.Name(data_type)}'
    if node.op_type == 'TopK':
        count = constants.get(node.input[1])
        if count is None:
            yield 'its K is not constant'
        elif (k := int(onnx.numpy_helper.to_array(count).item())) > _TOP_K_LIMIT:
            yield f'its K is {k}, more than {_TOP_K_LIMIT}'
    if node.op_type == 'Resize':
        modes = [a.s.decode() for a in node.attribute if a.name == 'mode']
        if modes not in ([], ['nearest'], ['linear']):
            yield f'its mode is {modes[0]}'

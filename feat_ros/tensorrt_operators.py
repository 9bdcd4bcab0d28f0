# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What of an exported graph TensorRT would not take, read off its own tables of operators.

Operators and types are those of docs/operators.md of onnx-tensorrt at releases 8.5 (commit
3b008c466bcb7375aaf5cabf51b289fd34d40c44, the first that reads opset 17), 8.6
(6ba67d3428e05f690145373ca87fb8d32f98df45) and 10.1 (96e781103cfc4adf4a6bb557e94bac8e693f6f4c);
later ones are not published there. The rows of QuantizeLinear and DequantizeLinear were read at
10.1 and at 8.4 (009d6541b4ee1fa3f3150cd7cbabe7e56aa54840), which agree. The limit of TopK and that
bytes may only be converted are of NVIDIA's documentation of ITopKLayer and of DataType.UINT8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import helper

_TOP_K_LIMIT = 3840
_FLOAT, _INT, _BOOL, _BYTE = 'float', 'int', 'bool', 'byte'
# 64-bit whole numbers become 32-bit ones before TensorRT 10.
_KIND = {
    onnx.TensorProto.FLOAT: _FLOAT,
    onnx.TensorProto.FLOAT16: _FLOAT,
    onnx.TensorProto.INT32: _INT,
    onnx.TensorProto.INT64: _INT,
    onnx.TensorProto.BOOL: _BOOL,
    onnx.TensorProto.INT8: _BYTE,
}


def _operators(names: str, *kinds: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(names.split(), kinds)


_8_5 = {
    **_operators(
        """ArgMax BatchNormalization Clip ConstantOfShape Conv Exp Floor Gemm GridSample LeakyRelu
        Log MatMul MaxPool Pow Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu
        Resize Sigmoid Softmax Sqrt TopK""",
        _FLOAT,
    ),
    **_operators(
        """Abs Add AveragePool DepthToSpace Div Equal Greater GreaterOrEqual Less LessOrEqual Max
        Min Mul Neg Pad Range ScatterElements ScatterND Sign Sub""",
        _FLOAT, _INT,
    ),
    **_operators('QuantizeLinear', _FLOAT),
    **_operators('DequantizeLinear', _BYTE),
    **_operators('And Not Or Xor', _BOOL),
    **_operators(
        """Cast Concat Constant Expand Flatten Gather GatherElements GatherND Identity Reshape
        Shape Slice Split Squeeze Tile Transpose Unsqueeze Where""",
        _FLOAT, _INT, _BOOL,
    ),
}  # fmt: skip
_8_6 = {**_8_5, **_operators('ArgMax Mod TopK', _FLOAT, _INT)}
_10_1 = {
    **_8_6,
    **_operators('ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu', _FLOAT, _INT),
    **_operators('AveragePool', _FLOAT),
    **_operators('ConstantOfShape', _FLOAT, _INT, _BOOL),
}
_TABLES = {'8.5': _8_5, '8.6': _8_6, '10.1': _10_1}
# Inputs that say what to do and are not what is computed on, from this place on.
_PARAMETERS_FROM = {
    'ConstantOfShape': 0, 'Pad': 1, 'ReduceMax': 1, 'ReduceMean': 1, 'ReduceMin': 1,
    'ReduceL2': 1, 'ReduceSum': 1, 'Resize': 1, 'TopK': 1,
    'QuantizeLinear': 1, 'DequantizeLinear': 1,
}  # fmt: skip


def tensorrt_faults(model: Any) -> list[str]:
    """Return one sentence for each node that some TensorRT would not take; none is good.

    A fault that not all of the releases find names those that do.

    :param model: an ``onnx.ModelProto`` with its large arrays inside or beside it.
    """
    types = _types(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        for release, table in _TABLES.items():
            for fault in _faults(node, table, types, constants):
                found.setdefault(f'{node.op_type} {node.name}: {fault}', []).append(release)
    return [
        fault if len(releases) == len(_TABLES) else f'{fault} (TensorRT {", ".join(releases)})'
        for fault, releases in found.items()
    ]


def replace_whole_number_operators(model: Any) -> None:
    """Limit whole numbers by Max and Min, and sum them as floats, exact up to 2^24.

    Before 10 TensorRT has Clip and ReduceSum for floats only.
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


def _faults(
    node: Any,
    table: Mapping[str, tuple[str, ...]],
    types: dict[str, int],
    constants: dict[str, Any],
) -> Iterator[str]:
    allowed = table.get(node.op_type)
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
    if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
        offset = constants.get(node.input[2]) if node.input[2:] else None
        if offset is None or offset.data_type != onnx.TensorProto.INT8:
            yield 'its zero point is no signed byte'
        elif onnx.numpy_helper.to_array(offset).any():
            yield 'its zero point is not 0'
    if node.op_type == 'Resize':
        modes = [a.s.decode() for a in node.attribute if a.name == 'mode']
        if modes not in ([], ['nearest'], ['linear']):
            yield f'its mode is {modes[0]}'

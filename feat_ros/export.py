# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From torch to ONNX, with proof on photographs that both find the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
import hashlib
from importlib.metadata import version
import json
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
import warnings

import numpy as np
import onnx
from onnx.external_data_helper import set_external_data
import torch

from feat_ros import config
from feat_ros.errors import NetworkError
from feat_ros.extractors.learned import network_input
from feat_ros.image import Image
from feat_ros.models.weights import build_network, Weights
from feat_ros.runtimes.contract import NetworkManifest, NetworkOutput, output_from_arrays
from feat_ros.runtimes.onnx import INPUTS, OnnxRuntime, OUTPUTS
from feat_ros.runtimes.parity import check_parity
from feat_ros.tensorrt_operators import replace_whole_number_operators, tensorrt_faults

# What TensorRT 8.6 reads; torch itself exports the next one.
OPSET = 17
# Attributes of operators that opset 18 added, at the values that torch gives them without effect.
_NEW_ATTRIBUTES = {
    'Reduce': ('noop_with_empty_axes',),
    'Resize': ('antialias', 'axes', 'keep_aspect_ratio_policy'),
    'Split': ('num_outputs',),
}
# Filters of the scale space, and those of the first layer, have no more.
_FEW_CHANNELS = 16
# Channels that ONNX Runtime keeps together.
_GROUP_CHANNELS = 16
# Options of ONNX Runtime's quantizer that leave what TensorRT reads.
_SYMMETRIC = {'ActivationSymmetric': True, 'AddQDQPairToWeight': True, 'QuantizeBias': False}
# Constants of so many numbers are worth a node of their own.
_LARGE_CONSTANT, _HALF = 1024, '.half'
# Of a network of any size: the longer side of a parity photograph, and the largest input.
_PARITY_SIZE, _LARGEST = 640, 8192


def export_network(
    out: Path,
    weights: Weights,
    max_keypoints: int,
    photographs: Mapping[str, Image],
    size_wh: tuple[int, int] | None = None,
    shared_data: str = '',
    precision: str = 'fp32',
) -> NetworkManifest:
    """Write a network as ``.onnx`` and its manifest beside it as ``.json``.

    :param photographs: what torch and ONNX Runtime must agree on, by name.
    :param size_wh: the only size of its input, as TensorRT wants it; None for any.
    :param shared_data: name of a file beside it for the large arrays, which exports of the same
        weights for other numbers of keypoints have in common; empty for one file.
    :param precision: ``fp16`` computes the dense part in half precision, by casts in the graph;
        ``int8`` its convolutions in whole numbers, calibrated on the photographs and checked on
        them mirrored: of one size as TensorRT takes them, of any size as a CPU is fastest.
    :raises NetworkError: they do not agree, a size that is no multiple of the network's, or a
        file that cannot be written; nothing is left then.
    """
    network = build_network(weights, max_keypoints)
    multiple = network.size_multiple
    if not photographs:
        raise NetworkError('there are no photographs to check the export on: name some')
    if out.suffix != '.onnx':
        raise NetworkError(f'{out} must end in .onnx')
    if precision == 'int8' and shared_data:
        raise NetworkError('an export in int8 has weights of its own: leave out the shared data')
    if size_wh is not None and any(side % multiple for side in size_wh):
        raise NetworkError(
            f'size {size_wh[0]}x{size_wh[1]} does not fit {weights.network!r}: width and height '
            f'must be multiples of {multiple}'
        )
    with _writing(out), TemporaryDirectory(dir=out.parent, prefix='.export-') as folder:
        partial = Path(folder) / out.name
        exported_network = build_network(weights, max_keypoints)
        if precision == 'fp16':
            exported_network.use_half()
        model = _to_onnx(exported_network, multiple, size_wh)
        if precision == 'int8':
            inputs = _inputs(photographs, multiple, size_wh)
            model = _quantize(model, weights.network, inputs, Path(folder), size_wh is not None)
            photographs = {
                f'{name}, mirrored': np.ascontiguousarray(each[:, ::-1])
                for name, each in photographs.items()
            }
        faults = [] if size_wh is None else tensorrt_faults(model)
        if shared_data:
            for tensor in model.graph.initializer:
                if tensor.name.removesuffix(_HALF) in weights.arrays:
                    set_external_data(tensor, shared_data)
        onnx.save_model(model, str(partial))
        manifest = NetworkManifest(
            network=weights.network,
            max_keypoints=max_keypoints,
            descriptor_dim=network.descriptor_dim,
            size_multiple=multiple,
            size_wh=None if size_wh is None else list(size_wh),
            sha256={
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(Path(folder).iterdir())
            },
            weights_sha256=weights.sha256,
            provenance=weights.provenance,
            opset=OPSET,
            precision=precision,
            tensorrt_faults=faults,
            versions={name: version(name) for name in ('torch', 'onnx', 'onnxruntime')},
        )
        _write_manifest(partial, manifest)
        exported = OnnxRuntime(partial, weights.network, max_keypoints)
        parity = _check_parity(network, exported, photographs, precision)
        manifest = replace(manifest, parity=parity)
        _write_manifest(partial, manifest)
        # The manifest comes last: until then a file that was there before does not fit it.
        for path in (*map(Path(folder).joinpath, manifest.sha256), partial.with_suffix('.json')):
            path.chmod(0o644)
            os.replace(path, out.parent / path.name)
    return manifest


def _inputs(
    photographs: Mapping[str, Image], multiple: int, size_wh: tuple[int, int] | None
) -> dict[str, tuple[Image, tuple[int, int]]]:
    largest = _PARITY_SIZE if size_wh is None else _LARGEST
    return {
        name: network_input(photograph, largest, multiple, size_wh)
        for name, photograph in photographs.items()
    }


class _Calibration:
    """Hands the quantizer one input after the other, as its CalibrationDataReader does."""

    def __init__(self, inputs: Mapping[str, tuple[Image, tuple[int, int]]]) -> None:
        self._waiting = list(inputs.values())

    def get_next(self) -> dict[str, Any] | None:
        if not self._waiting:
            return None
        image, valid_wh = self._waiting.pop(0)
        return dict(zip(INPUTS, (image[None], np.array(valid_wh, np.int32)), strict=True))


def _quantize(
    model: Any, network: str, inputs: Mapping[str, tuple[Image, tuple[int, int]]], folder: Path,
    for_engine: bool,
) -> Any:  # fmt: skip
    """Return a model whose learned convolutions, but the first, compute in 8 bits.

    :param for_engine: by TensorRT, which has no offsets, quantizes weights and keeps biases.
    """
    from onnxruntime import quantization

    constants = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    learned = [
        node.name
        for node in model.graph.node
        if node.op_type == 'Conv' and min(constants.get(node.input[1], (0, 0))[:2]) > _FEW_CHANNELS
    ]
    if not learned:
        raise NetworkError(f'network {network!r} has no convolution that 8 bits would help')
    source, target = folder / 'float.onnx', folder / 'int8.onnx'
    onnx.save_model(model, str(source))
    with quiet_exporter():
        quantization.quantize_static(
            source, target, _Calibration(inputs),
            quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            # Processors without VNNI add products of 8 bits in 16, which overflow.
            reduce_range=True,
            activation_type=(
                quantization.QuantType.QInt8 if for_engine else quantization.QuantType.QUInt8
            ),
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=learned, op_types_to_quantize=['Conv'],
            extra_options=_SYMMETRIC if for_engine else {},
        )  # fmt: skip
    quantized = onnx.load(str(target))
    source.unlink()
    target.unlink()
    return quantized


def _check_parity(
    network: Any, exported: OnnxRuntime, photographs: Mapping[str, Image], precision: str
) -> dict[str, Any]:
    inputs = _inputs(photographs, exported.size_multiple, exported.size_wh)

    def reference(image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        with torch.inference_mode():
            arrays = network(torch.from_numpy(image)[None], torch.tensor(valid_wh).int())
        return output_from_arrays([array.numpy() for array in arrays])

    try:
        return check_parity('the exported network', reference, exported, inputs, precision)
    except NetworkError as error:
        raise NetworkError(f'{error}; nothing was written') from None


def _to_onnx(network: Any, multiple: int, size_wh: tuple[int, int] | None) -> Any:
    width, height = size_wh or (12 * multiple, 10 * multiple)
    shapes = None
    if size_wh is None:
        across, down = (
            torch.export.Dim(name, min=2, max=_LARGEST // multiple) for name in ('w', 'h')
        )
        shapes = {'image': {1: multiple * down, 2: multiple * across}, 'valid_wh': None}
    example = torch.zeros(1, height, width, 3, dtype=torch.uint8), torch.tensor([width, height])
    with quiet_exporter(), torch.inference_mode():
        program = torch.onnx.export(
            network, (example[0], example[1].int()), dynamo=True, dynamic_shapes=shapes,
            input_names=INPUTS, output_names=OUTPUTS, opset_version=OPSET + 1, verbose=False,
        )  # fmt: skip
    model = _without_traces(program.model_proto)
    _lower_opset(model)
    replace_whole_number_operators(model)
    _join_convolutions(model)
    _widen_groups(model)
    halve_constants(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _without_traces(model: Any) -> Any:
    """Return a model without what the exporter notes of itself, source paths among it."""
    for part in (model, model.graph, *model.graph.node):
        part.ClearField('doc_string')
        part.ClearField('metadata_props')
    for values in (model.graph.value_info, model.graph.input, model.graph.output):
        for value in values:
            value.ClearField('metadata_props')
    for tensor in model.graph.initializer:
        tensor.ClearField('metadata_props')
    return model


def _lower_opset(model: Any) -> None:
    """Make opset 17 of 18: drop attributes at their defaults, and put axes where they stood."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        is_reduction = node.op_type.startswith('Reduce') and node.op_type != 'ReduceSum'
        new = _NEW_ATTRIBUTES.get('Reduce' if is_reduction else node.op_type, ())
        kept = [attribute for attribute in node.attribute if attribute.name not in new]
        if is_reduction and node.input[1:]:
            axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
            kept.append(onnx.helper.make_attribute('axes', axes))
            del node.input[1:]
        del node.attribute[:]
        node.attribute.extend(kept)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid('', OPSET))


def _join_convolutions(model: Any) -> None:
    """Make one convolution of one and a 1x1 convolution that follows with nothing between."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    used = Counter(name for node in model.graph.node for name in node.input)
    used.update(output.name for output in model.graph.output)
    made_by = {name: node for node in model.graph.node for name in node.output}
    for second in list(model.graph.node):
        first = made_by.get(second.input[0]) if second.op_type == 'Conv' else None
        if first is None or first.op_type != 'Conv' or used[first.output[0]] > 1:
            continue
        names = [*first.input[1:], *second.input[1:]]
        if len(names) != 4 or any(used[name] > 1 or name not in constants for name in names):
            continue
        inner, inner_bias, outer, outer_bias = (
            onnx.numpy_helper.to_array(constants[name]).astype(np.float64) for name in names
        )
        options, own = (
            {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            for node in (first, second)
        )
        if (
            outer.shape[2:] != (1, 1)
            or options.get('group', 1) * own.get('group', 1) != 1
            or any(own.get('pads', ()))
            or any(stride != 1 for stride in own.get('strides', ()))
        ):
            continue
        # Padding stays right: what lies beyond the border is only the first one's concern.
        joined = (
            np.einsum('oi,ijyx->ojyx', outer[:, :, 0, 0], inner),
            outer[:, :, 0, 0] @ inner_bias + outer_bias,
        )
        for name, array in zip(names[:2], joined, strict=True):
            kind = onnx.helper.tensor_dtype_to_np_dtype(constants[name].data_type)
            constants[name].CopyFrom(onnx.numpy_helper.from_array(array.astype(kind), name))
        for name in names[2:]:
            model.graph.initializer.remove(constants[name])
        first.output[0] = second.output[0]
        made_by[second.output[0]] = first
        model.graph.node.remove(second)
        _forget_shapes(model, {*names, second.input[0]})


def _forget_shapes(model: Any, names: Iterable[str]) -> None:
    for value in [each for each in model.graph.value_info if each.name in names]:
        model.graph.value_info.remove(value)


def _widen_groups(model: Any) -> None:
    """Join groups of a convolution until they have 16 channels, with zeros between them.

    ONNX Runtime has fast code for multiples of 16 only; twice the products take half the time.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        group = next(
            (a for a in node.attribute if node.op_type == 'Conv' and a.name == 'group'), None
        )
        if group is None or group.i == 1 or node.input[1] not in constants:
            continue
        weights = onnx.numpy_helper.to_array(constants[node.input[1]])
        outputs, inputs = weights.shape[0] // group.i, weights.shape[1]
        joined = _GROUP_CHANNELS // inputs
        if inputs != outputs or inputs == 1 or _GROUP_CHANNELS % inputs or group.i % joined:
            continue
        wide = np.zeros((len(weights), _GROUP_CHANNELS, *weights.shape[2:]), weights.dtype)
        for row in range(len(weights)):
            first = row // outputs % joined * inputs
            wide[row, first : first + inputs] = weights[row]
        group.i //= joined
        constants[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(wide, node.input[1]))
        _forget_shapes(model, {node.input[1]})


def halve_constants(model: Any) -> None:
    """Keep constants as half-precision numbers where nothing is lost: half of the bytes.

    Runtimes turn them back once, when the model is loaded.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over='ignore'):
            halves = values.astype(np.float16)
        if values.size < _LARGE_CONSTANT or not np.array_equal(halves, values):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(halves, name + _HALF))
        casts.append(
            onnx.helper.make_node('Cast', [name + _HALF], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _write_manifest(path: Path, manifest: NetworkManifest) -> None:
    text = json.dumps(config.to_dict(manifest), indent=1) + '\n'
    path.with_suffix('.json').write_text(text, encoding='utf-8')


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Leave out what the exporter says of its own future, and its trace of every node."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NetworkError(f'{path} cannot be written: {error.strerror or error}') from None

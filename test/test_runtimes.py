# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Weights on disk, exported networks, and that every runtime finds what torch finds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
import hashlib
import json
from pathlib import Path
import pickle
import re
import shutil
import sys
from typing import Any

import cv2
import numpy as np
from numpy.testing import assert_array_equal
import pytest

from feat_ros.cli import main
from feat_ros.errors import ConfigError, NetworkError
from feat_ros.extractors import create_extractor
from feat_ros.image import Image, write_png
from feat_ros.runtimes import open_network, RUNTIMES
from feat_ros.runtimes.contract import (
    NetworkOutput,
    output_from_arrays,
    read_manifest,
    RuntimeOptions,
)

torch = pytest.importorskip('torch', reason='torch is not installed')
onnx = pytest.importorskip('onnx', reason='onnx is not installed')
onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

from torch import nn, Tensor  # noqa: E402

from feat_ros import runtimes  # noqa: E402
from feat_ros.export import export_network, halve_constants  # noqa: E402
from feat_ros.models import weights as store  # noqa: E402
from feat_ros.models.keypoints import (  # noqa: E402
    clear_rows,
    split_places,
    strongest,
    take_pixels,
)
from feat_ros.models.weights import (  # noqa: E402
    build_network,
    get_network,
    load_weights,
    NETWORKS,
    save_weights,
    trained_network,
    Weights,
    weights_of,
)
from feat_ros.runtimes.onnx import OnnxRuntime  # noqa: E402
from feat_ros.runtimes.parity import compare_outputs  # noqa: E402

K = 96


class Tiny(nn.Module):
    """The brightest pixels of one filter: a network that exports in a second."""

    descriptor_dim = 4
    weights_sha256 = 'ab' * 32
    size_multiple = 4
    published_options: Mapping[str, Any] = {}

    def __init__(self, max_keypoints: int, gain: float = 1.0) -> None:
        super().__init__()
        self.max_keypoints = max_keypoints
        self.gain = gain
        self.options = {'gain': gain}
        self.filter = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, image: Tensor, valid_wh: Tensor) -> tuple[Tensor, ...]:
        score = self.gain * self.filter(image.float().permute(0, 3, 1, 2)).abs()
        values, places = strongest(score, self.max_keypoints)
        column, row = split_places(places, image.shape[2])
        is_valid = (column < valid_wh[0]) & (row < valid_wh[1])
        num = (values > 0).sum().to(torch.int32)
        descriptors = torch.ones(self.max_keypoints, 4) / 2
        return (
            clear_rows(num, torch.stack([column, row], 1) + 0.5),
            clear_rows(num, values),
            clear_rows(num, descriptors),
            clear_rows(num, is_valid.float()),
            num,
        )


@pytest.fixture(scope='module')
def tiny() -> Iterator[Weights]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, 'NETWORKS', {**NETWORKS, 'tiny': Tiny})
        torch.manual_seed(0)
        yield weights_of(Tiny(5, gain=2.0), 'tiny', data=['a street'], seed=0)


@pytest.fixture(scope='module')
def tiny_export(tiny: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export of one size; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp('tiny')
    export_tiny(folder, tiny, size_wh=(32, 24))
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image:
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.asarray(np.clip(128 + 160 * smooth, 0, 255), np.uint8)


@pytest.fixture(scope='module')
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of SFD2 and their export for any size of image."""
    folder = tmp_path_factory.mktemp('exported')
    torch.manual_seed(1)
    network = get_network('sfd2')(K, stability_exponent=0.5)
    # As it comes, random, all scores are nearly equal and the weakest kept is anyone's.
    nn.init.normal_(network.convPb.weight, std=5.0)
    weights = weights_of(network, 'sfd2', seed=1)
    save_weights(folder / 'sfd2.npz', weights)
    export_network(folder / 'sfd2.onnx', weights, K, {'noise': picture(150, 100)})
    return folder


@pytest.fixture(scope='module', params=NETWORKS)
def files(request: pytest.FixtureRequest) -> dict[str, Path]:
    """Weights and an export of a network by runtime: the package's, or random ones."""
    name: str = request.param
    for count in (1024, 2048) if name != 'sfd2' else ():
        packaged = runtimes.WEIGHTS / f'{name}_{count}.onnx'
        if packaged.exists():
            return {'onnx': packaged, 'torch': runtimes.WEIGHTS / f'{trained_network(name)}.npz'}
    if name != 'sfd2':
        pytest.skip(f'the package has no export of {name}')
    folder: Path = request.getfixturevalue('exported')
    return {'onnx': folder / 'sfd2.onnx', 'torch': folder / 'sfd2.npz'}


# ---------------------------------------------------------------- parity


# TensorRT has a file of its own: test_tensorrt.py.
@pytest.mark.parametrize('runtime', [name for name in RUNTIMES if name != 'tensorrt'])
@pytest.mark.parametrize('size', [(64, 64), (160, 96), (96, 192)])
def test_every_runtime_finds_what_the_network_finds(
    files: dict[str, Path], runtime: str, size: tuple[int, int]
) -> None:
    """The network is called as it is, in eager float32; then the runtime with another K."""
    manifest = read_manifest(files['onnx'])
    name, count = manifest.network, manifest.max_keypoints
    weights = load_weights(files['torch'], name)
    assert weights.sha256 == manifest.weights_sha256
    image, valid_wh = picture(*size), (size[0] - 9, size[1] - 2)
    with torch.inference_mode():
        arrays = build_network(weights, count)(
            torch.from_numpy(image)[None], torch.tensor(valid_wh).int()
        )
    expected = output_from_arrays([array.numpy() for array in arrays])
    opened = open_network(name, count, runtime, str(files[runtime]))
    assert (opened.name, opened.size_wh) == (runtime, None)
    parity = compare_outputs(expected, opened(image, valid_wh))
    assert parity.num[0] == parity.num[1] > 8
    assert parity.near >= 0.995
    assert parity.cosine >= 0.9999
    assert parity.stability < 1e-3
    few = open_network(name, 8, runtime, str(files[runtime]))(image, valid_wh)
    assert few.num == 8
    assert [len(part) for part in few[:-1]] == [8] * 4


def test_torch_computes_with_all_its_bits(exported: Path) -> None:
    """TensorFloat-32 is off while a network runs, and afterwards as it was."""
    from torch.backends import cudnn

    opened: Any = open_network('sfd2', 8, 'torch', str(exported / 'sfd2.npz'))
    seen = []
    opened._network.register_forward_pre_hook(lambda *_: seen.append(cudnn.allow_tf32))
    with cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        opened(picture(64, 64), (64, 64))
        assert (seen, cudnn.allow_tf32, cudnn.benchmark) == ([False], True, True)


def test_parity_is_judged_as_it_says() -> None:
    rng = np.random.default_rng(0)
    descriptors = rng.normal(size=(700, 8)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    first = NetworkOutput(
        rng.uniform(0, 500, (700, 2)).astype(np.float32), np.ones(700, np.float32),
        descriptors, np.full(700, 0.5, np.float32), 690,
    )  # fmt: skip
    same = compare_outputs(first, first)
    assert (same.num, same.near, same.stability) == ((690, 690), 1, 0)
    assert same.cosine == pytest.approx(1)
    order = np.r_[rng.permutation(690), 690:700]
    turned = first._replace(
        keypoints=first.keypoints[order], descriptors=first.descriptors[order]
    )  # fmt: skip
    assert compare_outputs(first, turned).near == 1
    assert compare_outputs(first, turned).cosine == pytest.approx(1)
    moved = first._replace(
        keypoints=first.keypoints + np.where(np.arange(700) < 69, 0.02, 0)[:, None]
    )
    assert compare_outputs(first, moved).near == pytest.approx(0.9)
    other = first._replace(descriptors=-descriptors, num=600)
    assert compare_outputs(first, other).near == pytest.approx(600 / 690)
    assert compare_outputs(first, other).cosine == pytest.approx(-1)
    none = first._replace(num=0)
    assert compare_outputs(none, none).near == 1
    assert compare_outputs(first, none).near == 0
    assert compare_outputs(first, first._replace(keypoints=first.keypoints + 9)).near == 0


def test_a_runtime_is_an_extractor(exported: Path) -> None:
    """By name, through files: the same features whatever runs the network."""
    found = {}
    for runtime, suffix in (('onnx', '.onnx'), ('torch', '.npz')):
        model = str(exported / f'sfd2{suffix}')
        extractor = create_extractor('sfd2', max_keypoints=50, max_image_size=100, model=model)
        found[runtime] = extractor(picture(150, 90))
        assert extractor.descriptor_dim == found[runtime].descriptors.shape[1] == 128
    torch_found, onnx_found = found['torch'], found['onnx']
    assert len(torch_found) == len(onnx_found) > 10
    assert np.abs(torch_found.keypoints - onnx_found.keypoints).max() < 0.01


# ---------------------------------------------------------------- choice


def test_auto_takes_the_first_that_works(
    exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtimes, 'WEIGHTS', exported)
    caplog.set_level('INFO', 'feat_ros.runtimes')
    assert open_network('sfd2', 10).name == 'torch'
    assert 'sfd2 runs by torch on the cpu; not tensorrt: the package has no engine' in caplog.text
    assert '; not onnx: the package has no weights' in caplog.text
    for suffix in ('.onnx', '.json'):
        shutil.copy(exported / f'sfd2{suffix}', exported / f'sfd2_{K}{suffix}')
    with pytest.raises(NetworkError, match='describes'):
        open_network('sfd2', 10, 'onnx')
    beside = exported / f'sfd2_{K}.json'
    beside.write_text(beside.read_text().replace('sfd2.onnx', f'sfd2_{K}.onnx'))
    assert open_network('sfd2', 10).name == 'onnx'
    with pytest.raises(NetworkError, match=rf'at most {K} keypoints and 97 are asked for'):
        open_network('sfd2', K + 1, 'onnx')
    assert open_network('sfd2', K + 1).name == 'torch'
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    monkeypatch.delitem(sys.modules, 'feat_ros.runtimes.onnx')
    assert open_network('sfd2', 10).name == 'torch'
    assert "not onnx: Python package 'onnxruntime' is not installed" in caplog.text
    # What is only absent is no warning; that the package's export has too few keypoints is one.
    (loud,) = (record.message for record in caplog.records if record.levelname == 'WARNING')
    assert f'at most {K} keypoints and {K + 1} are asked for' in loud


@pytest.mark.parametrize('kind', [ImportError, OSError])
def test_a_library_that_does_not_load_is_passed_over(
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[Exception],
) -> None:
    def broken(*_: Any) -> Any:
        raise kind('libcudart.so.12: cannot open shared object file')

    monkeypatch.setattr(runtimes, 'WEIGHTS', exported)
    monkeypatch.setattr(runtimes, 'RUNTIMES', {**RUNTIMES, 'onnx': (broken, ('.onnx',))})
    assert open_network('sfd2', 10).name == 'torch'
    assert 'not onnx: libcudart.so.12: cannot open' in caplog.text
    with pytest.raises(NetworkError, match='onnx: libcudart'):
        open_network('sfd2', 10, 'onnx')


def test_without_weights_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, 'WEIGHTS', tmp_path)
    with pytest.raises(
        NetworkError, match=r"'sfd2' cannot run: tensorrt: .*; onnx: the package has no weights"
    ):
        create_extractor('sfd2')
    with pytest.raises(NetworkError, match=r'torch: weights .*sfd2\.npz do not exist'):
        create_extractor('sfd2', runtime='torch')
    with pytest.raises(NetworkError, match=r'must end in \.engine, \.onnx, \.npz'):
        create_extractor('sfd2', model='net.h5')
    with pytest.raises(NetworkError, match=r"'onnx' does not read net\.npz: 'torch' does"):
        create_extractor('sfd2', runtime='onnx', model='net.npz')
    with pytest.raises(ConfigError, match='choose one of auto, tensorrt, onnx, torch'):
        create_extractor('sfd2', runtime='tenosrrt')


# ---------------------------------------------------------------- weights


def test_weights_come_back_as_they_were(tmp_path: Path, tiny: Weights) -> None:
    save_weights(tmp_path / 'tiny.npz', tiny)
    assert [path.name for path in tmp_path.iterdir()] == ['tiny.npz']
    read = load_weights(tmp_path / 'tiny.npz', 'tiny')
    assert (read.network, read.options, read.provenance) == (
        'tiny', {'gain': 2.0}, {'data': ['a street'], 'seed': 0},
    )  # fmt: skip
    assert read.sha256 == tiny.sha256
    assert list(read.arrays) == ['filter.weight', 'filter.bias']
    network = build_network(read, 7)
    assert (network.max_keypoints, network.gain, network.training) == (7, 2.0, False)
    assert_array_equal(network.filter.weight.detach().numpy(), tiny.arrays['filter.weight'])


def test_weights_that_are_no_good(tmp_path: Path, tiny: Weights) -> None:
    path = tmp_path / 'tiny.npz'
    with pytest.raises(NetworkError, match='do not exist'):
        load_weights(path, 'tiny')
    with pytest.raises(NetworkError, match='cannot be written'):
        save_weights(tmp_path / 'nowhere' / 'tiny.npz', tiny)
    save_weights(path, tiny)
    with pytest.raises(NetworkError, match="holds weights of 'tiny', not of 'sfd2'"):
        load_weights(path, 'sfd2')
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays['filter.bias'] = arrays['filter.bias'] + 1
    np.savez(path, **arrays)
    with pytest.raises(NetworkError, match='their hash is wrong: copy them again'):
        load_weights(path, 'tiny')
    whole = path.read_bytes()
    for content in (b'', b'hello', whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(NetworkError, match='or is damaged: copy it again'):
            load_weights(path, 'tiny')
    np.savez(path, weight=np.array([{'code': 1}], object))
    with pytest.raises(NetworkError, match='or is damaged: copy it again'):
        load_weights(path, 'tiny')
    wrong = Weights('tiny', {'filter.weight': np.zeros((2, 2), np.float32)}, {}, {})
    with pytest.raises(NetworkError, match="weights do not fit network 'tiny': "):
        build_network(wrong, 3)
    with pytest.raises(ConfigError, match="unknown network 'sdf2'; choose one of: sfd2"):
        get_network('sdf2')


def wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    """As the authors save it: beside the weights the options of their command line."""
    return {'model': state, 'args': argparse.Namespace(network='ressegnetv2', lr=1e-4)}


@pytest.mark.parametrize(
    'wrap',
    [
        wrapped,
        dict,
        lambda state: {'state_dict': {f'module.{k}': v for k, v in state.items()}},
    ],
    ids=['with options', 'alone', 'DataParallel'],
)
def test_a_checkpoint_of_the_authors_loads_strictly(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]
) -> None:
    torch.manual_seed(2)
    state = get_network('sfd2')().state_dict()
    path = tmp_path / 'published.pth'
    torch.save(wrap(state), path)
    network = build_network(load_weights(path, 'sfd2'), 9)
    assert network.stability_exponent == 1
    for name, value in network.state_dict().items():
        assert_array_equal(value.numpy(), state[name].numpy())
    short = dict(state)
    del short['convPb.bias']
    torch.save(wrap(short), path)
    with pytest.raises(NetworkError, match=r'Missing key.*convPb\.bias'):
        build_network(load_weights(path, 'sfd2'), 9)


class Evil:
    """Runs code when a pickle with it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Say what is run."""
        return (exec, ('raise SystemExit("the checkpoint ran code")',))


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / 'evil.pth'
    torch.save({'model': {}, 'args': Evil()}, path)
    with pytest.raises(NetworkError, match='could run code: save its state dict alone'):
        load_weights(path, 'sfd2')
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(NetworkError, match=r'could run code|not a checkpoint'):
        load_weights(path, 'sfd2')
    path.write_bytes(b'hello')
    with pytest.raises(NetworkError, match='damaged'):
        load_weights(path, 'sfd2')
    torch.save({'model': {}}, path)
    with pytest.raises(NetworkError, match='holds no state dict'):
        load_weights(path, 'sfd2')
    torch.save([1, 2], path)
    with pytest.raises(NetworkError, match='holds no state dict'):
        load_weights(path, 'sfd2')
    torch.save({'epoch': 3}, path)
    with pytest.raises(NetworkError, match='more than tensors'):
        load_weights(path, 'sfd2')


# ---------------------------------------------------------------- export


def test_sfd2_is_what_tensorrt_takes(tmp_path: Path) -> None:
    """With more keypoints than its TopK gives at once, and the stability in the score."""
    weights = weights_of(get_network('sfd2')(4000, stability_exponent=1.0), 'sfd2')
    out, photograph = tmp_path / 'sfd2.onnx', {'noise': picture(96, 64)}
    manifest = export_network(out, weights, 4000, photograph, size_wh=(96, 64))
    assert manifest.tensorrt_faults == []


def export_tiny(folder: Path, tiny: Weights, name: str = 'tiny', **options: Any) -> Path:
    out = folder / f'{name}.onnx'
    export_network(out, tiny, 5, {'noise': picture(33, 21)}, **options)
    return out


def test_a_manifest_says_what_was_exported(tiny_export: Path, tiny: Weights) -> None:
    assert sorted(path.name for path in tiny_export.iterdir()) == ['tiny.json', 'tiny.onnx']
    out = tiny_export / 'tiny.onnx'
    manifest = read_manifest(out)
    assert (manifest.network, manifest.max_keypoints, manifest.size_wh) == ('tiny', 5, [32, 24])
    assert manifest.weights_sha256 == tiny.sha256
    assert manifest.provenance == tiny.provenance
    assert manifest.parity['noise']['near'] == 1
    assert manifest.tensorrt_faults == []
    assert [entry.version for entry in onnx.load(str(out)).opset_import] == [17]
    # No path of this machine, nor anything else of the source, is in the file.
    assert b'.py' not in out.read_bytes()
    assert open_network('tiny', 5, model=str(out)).size_wh == (32, 24)


def test_a_size_that_does_not_fit(tmp_path: Path, tiny: Weights) -> None:
    with pytest.raises(NetworkError, match='width and height must be multiples of 4'):
        export_tiny(tmp_path, tiny, size_wh=(30, 24))


def test_constants_in_half_precision_lose_nothing() -> None:
    """Those that are exact in half take half of the bytes; the others stay."""
    rng = np.random.default_rng(3)
    exact = rng.normal(size=(64, 64)).astype(np.float16).astype(np.float32)
    other = rng.normal(size=(64, 64)).astype(np.float32)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node('MatMul', ['x', 'exact'], ['y']),
                onnx.helper.make_node('MatMul', ['y', 'other'], ['z']),
            ],
            'graph',
            [onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [2, 64])],
            [onnx.helper.make_tensor_value_info('z', onnx.TensorProto.FLOAT, [2, 64])],
            [
                onnx.numpy_helper.from_array(array, name)
                for name, array in (('exact', exact), ('other', other))
            ],
        ),
        opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8,
    )  # fmt: skip
    before = model.SerializeToString()
    halve_constants(model)
    after = model.SerializeToString()
    onnx.checker.check_model(model, full_check=True)
    assert {tensor.name for tensor in model.graph.initializer} == {'exact.half', 'other'}
    assert len(before) - len(after) > 64 * 64 * 2 - 200
    x = {'x': rng.normal(size=(2, 64)).astype(np.float32)}
    found = [
        onnxruntime.InferenceSession(each, providers=['CPUExecutionProvider']).run(None, x)[0]
        for each in (before, after)
    ]
    assert_array_equal(*found)


def test_exports_share_their_weights(tmp_path: Path, tiny: Weights) -> None:
    first = export_tiny(tmp_path, tiny, 'tiny_5', size_wh=(32, 24), shared_data='tiny.data')
    second = export_tiny(tmp_path, tiny, 'tiny_6', size_wh=(32, 24), shared_data='tiny.data')
    names = [set(read_manifest(path).sha256) for path in (first, second)]
    assert names == [{'tiny_5.onnx', 'tiny.data'}, {'tiny_6.onnx', 'tiny.data'}]
    for path in (first, second):
        assert open_network('tiny', 5, model=str(path))(picture(32, 24), (32, 24)).num == 5
    (tmp_path / 'tiny.data').write_bytes(b'other')
    with pytest.raises(NetworkError, match=r'tiny\.data is missing, damaged or not the file'):
        open_network('tiny', 5, model=str(first))


def test_exported_files_that_are_no_good(tmp_path: Path, tiny_export: Path) -> None:
    out = shutil.copytree(tiny_export, tmp_path / 'copy') / 'tiny.onnx'
    beside, whole = out.with_suffix('.json'), out.read_bytes()

    def refused(match: str, max_keypoints: int = 5, network: str = 'tiny') -> None:
        with pytest.raises(NetworkError, match=match):
            open_network(network, max_keypoints, 'onnx', str(out))

    refused("holds network 'tiny', not 'sfd2'", network='sfd2')
    refused('gives at most 5 keypoints and 6 are asked for: set max_keypoints=5', 6)
    out.write_bytes(whole[:-1])
    refused('damaged or not the file that')
    manifest = json.loads(beside.read_text())
    out.write_bytes(b'hello')
    manifest['sha256'] = {'tiny.onnx': hashlib.sha256(b'hello').hexdigest()}
    beside.write_text(json.dumps(manifest))
    refused('cannot load')
    beside.write_text('{"network": 3}')
    refused('is not the manifest of a network')
    beside.unlink()
    refused('copy tiny.onnx and tiny.json together')


@pytest.mark.parametrize(
    ('what', 'reason'),
    [
        ('damaged', 'damaged or not the file that'),
        ('foreign', 'cannot load'),
        ('no manifest', r'copy tiny\.onnx and tiny\.json together'),
        ('too few', 'gives at most 5 keypoints and 6 are asked for'),
        ('missing', r'tiny\.onnx does not exist'),
    ],
)
def test_auto_goes_on_by_the_package_where_a_named_file_is_no_good(
    tmp_path: Path,
    tiny: Weights,
    tiny_export: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    reason: str,
) -> None:
    package = tmp_path / 'package'
    package.mkdir()
    torch.manual_seed(9)
    other = weights_of(Tiny(6), 'tiny')
    export_network(package / 'tiny_6.onnx', other, 6, {'noise': picture(33, 21)})
    monkeypatch.setattr(runtimes, 'WEIGHTS', package)
    out = shutil.copytree(tiny_export, tmp_path / 'copy') / 'tiny.onnx'
    if what in ('damaged', 'foreign'):
        out.write_bytes(b'hello')
    if what == 'foreign':
        manifest = json.loads(out.with_suffix('.json').read_text())
        manifest['sha256'] = {'tiny.onnx': hashlib.sha256(b'hello').hexdigest()}
        out.with_suffix('.json').write_text(json.dumps(manifest))
    elif what == 'no manifest':
        out.with_suffix('.json').unlink()
    elif what == 'missing':
        out.unlink()
    count = 6 if what == 'too few' else 5
    opened = open_network('tiny', count, model=str(out))
    # What they are is said, so that a map that was built with others refuses them.
    assert opened.weights_sha256 == other.sha256 != tiny.sha256
    assert opened(picture(32, 24), (32, 24)).num == count
    (said,) = (record.message for record in caplog.records if record.levelname == 'WARNING')
    assert f"by onnx on the cpu with the package's weights instead of {out}; " in said
    assert re.search(f'not onnx: .*{reason}', said)
    with pytest.raises(NetworkError, match=reason):
        open_network('tiny', count, 'onnx', str(out))
    with pytest.raises(NetworkError, match=f'onnx: .*{reason}.*torch: weights .* do not exist'):
        (package / 'tiny_6.onnx').unlink()
        open_network('tiny', count, model=str(out))


def lost_gpu(kind: Callable[[str], Exception]) -> Callable[..., Any]:
    def run(*_: Any) -> Any:
        raise kind('CUDA out of memory. Tried to allocate 2.00 GiB')

    return run


def test_onnx_runtime_that_runs_out_of_memory_is_replaced(
    tmp_path: Path,
    tiny: Weights,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    export_tiny(tmp_path, tiny, 'tiny_5')
    save_weights(tmp_path / 'tiny.npz', tiny)
    monkeypatch.setattr(runtimes, 'WEIGHTS', tmp_path)
    network: Any = open_network('tiny', 5)
    image = picture(32, 24)
    before, failing = network(image, (32, 24)), network._runtime
    kind = onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException
    failing._session = argparse.Namespace(run=lost_gpu(kind))
    after = network(image, (32, 24))
    assert (network.name, failing._session) == ('torch', None)
    np.testing.assert_allclose(before.keypoints, after.keypoints, atol=0.01)
    assert 'tiny stopped running by onnx: ONNX Runtime failed with CPU' in caplog.text
    assert 'Tried to allocate 2.00 GiB; it goes on by torch on the cpu' in caplog.text


@pytest.mark.parametrize('kind', [RuntimeError, torch.cuda.OutOfMemoryError])
def test_torch_that_loses_its_gpu_is_replaced(
    tmp_path: Path,
    tiny: Weights,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: Callable[[str], Exception],
) -> None:
    """A machine that says it has a GPU: torch goes first, and ONNX Runtime is what is left."""
    export_tiny(tmp_path, tiny, 'tiny_5')
    save_weights(tmp_path / 'tiny.npz', tiny)
    monkeypatch.setattr(runtimes, 'WEIGHTS', tmp_path)
    monkeypatch.setattr(runtimes, '_has_gpu', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(nn.Module, 'to', lambda self, *_, **__: self)
    network: Any = open_network('tiny', 5)
    assert (network.name, network.device) == ('torch', 'cuda')
    failing = network._runtime
    failing._network = lost_gpu(kind)
    monkeypatch.setattr(type(failing), '_capture', lambda self, *inputs: self._network(*inputs))
    assert network(picture(32, 24), (32, 24)).num == 5
    assert (network.name, network.device) == ('onnx', 'cpu')
    assert (failing._network, failing._graphs) == (None, None)
    assert 'Tried to allocate 2.00 GiB; it goes on by onnx on the cpu' in caplog.text


def test_a_cuda_provider_that_does_not_start_is_said(
    tiny_export: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As ONNX Runtime does it: the provider is known, and the session has only the CPU's."""
    session, cpu = onnxruntime.InferenceSession, 'CPUExecutionProvider'
    monkeypatch.setattr(
        onnxruntime, 'get_available_providers', lambda: ['CUDAExecutionProvider', cpu]
    )
    monkeypatch.setattr(
        onnxruntime, 'InferenceSession', lambda *given, providers: session(*given, providers=[cpu])
    )
    known = tiny_export / 'tiny.onnx', 'tiny', 5
    assert OnnxRuntime(*known, RuntimeOptions(provider='cpu')).device == 'cpu'
    assert not caplog.records
    assert OnnxRuntime(*known).device == 'cpu'
    assert 'its CUDAExecutionProvider does not start' in caplog.text


def test_an_export_that_is_off_is_not_written(
    tmp_path: Path, tiny: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NetworkError, match=r'must end in \.onnx'):
        export_network(tmp_path / 'tiny.engine', tiny, 5, {'noise': picture(9, 9)})
    with pytest.raises(NetworkError, match='no photographs'):
        export_network(tmp_path / 'tiny.onnx', tiny, 5, {})
    true_run = OnnxRuntime.__call__

    def shifted(self: Any, image: Image, valid_wh: tuple[int, int]) -> Any:
        found = true_run(self, image, valid_wh)
        return found._replace(keypoints=found.keypoints + 0.02)

    monkeypatch.setattr(OnnxRuntime, '__call__', shifted)
    with pytest.raises(NetworkError, match=r'off on noise: 0\.00 % of 5 keypoints'):
        export_tiny(tmp_path, tiny)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NetworkError, match='cannot be written'):
        export_tiny(tmp_path / 'nowhere', tiny)


def test_the_command(tmp_path: Path, tiny: Weights, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / 'tiny.npz', tiny)
    write_png(tmp_path / 'photo.png', picture(40, 30))
    photo, out = str(tmp_path / 'photo.png'), str(tmp_path / 'tiny.onnx')
    words = ['export', '--out', out, '--json', f'{out}.json', '--extractor']
    tiny_words = [*words, 'tiny', '--weights', str(tmp_path / 'tiny.npz')]
    tiny_words += ['--size', '32x24', '--keypoints', '6']
    assert main([*tiny_words, '--photo', photo]) == 0
    text = capsys.readouterr().out
    assert '6 keypoints, opset 17' in text
    assert 'photo.png: 6 keypoints, 100.00 % within 0.01 px' in text
    assert main(tiny_words) == 0
    assert 'street at 1 s: 6 keypoints, 100.00 % within 0.01 px' in capsys.readouterr().out
    assert json.loads(Path(f'{out}.json').read_text())['size_wh'] == [32, 24]
    assert main([*words, 'sfd3']) == 1
    assert "unknown network 'sfd3'" in capsys.readouterr().err
    assert main([*tiny_words, '--photo', photo, str(tmp_path / '.' / 'photo.png')]) == 1
    assert 'of the same name cannot be told apart' in capsys.readouterr().err
    for bad in (['--size', '640'], ['--keypoints', '0']):
        with pytest.raises(SystemExit):
            main([*tiny_words, *bad])


def output_of(model: Any, x: Any) -> Any:
    """Return y of a model by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider']
    )
    return session.run(['y'], {'x': x})[0]


def test_joined_groups_are_the_same_convolution() -> None:
    """8 channels in 4 groups become 16 of 2, with zeros between: ONNX Runtime is the judge."""
    from onnx import helper, numpy_helper, TensorProto

    from feat_ros.export import _widen_groups

    rng = np.random.default_rng(0)
    weights = rng.normal(size=(32, 8, 3, 3)).astype(np.float32)
    node = helper.make_node('Conv', ['x', 'w'], ['y'], group=4, pads=[1, 1, 1, 1])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 32, 5, 6]) for n in 'xy']
    graph = helper.make_graph(
        [node], 'g', values[:1], values[1:], [numpy_helper.from_array(weights, 'w')]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    x = rng.normal(size=(1, 32, 5, 6)).astype(np.float32)
    found = []
    for _ in range(2):
        found.append(output_of(model, x))
        _widen_groups(model)
    assert numpy_helper.to_array(model.graph.initializer[0]).shape == (32, 16, 3, 3)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize(
    ('between', 'outputs', 'group', 'count'),
    [
        ('', 'y', 1, 1),
        ('Relu', 'y', 1, 2),
        ('', 'y first', 1, 2),  # what lies between is wanted too
        ('', 'y', 2, 2),
    ],
)
def test_convolutions_with_nothing_between_become_one(
    between: str, outputs: str, group: int, count: int
) -> None:
    """A 3x3 convolution with stride and padding, then one of 1x1: ONNX Runtime is the judge."""
    from onnx import helper, numpy_helper, TensorProto

    from feat_ros.export import _join_convolutions

    rng = np.random.default_rng(0)
    arrays = {
        'w': rng.normal(size=(6, 4, 3, 3)), 'b': rng.normal(size=6),
        'v': rng.normal(size=(8, 6 // group, 1, 1)), 'c': rng.normal(size=8),
    }  # fmt: skip
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    kept = 'first'
    nodes = [helper.make_node('Conv', ['x', 'w', 'b'], [kept], pads=[1] * 4, strides=[2, 2])]
    if between:
        nodes.append(helper.make_node(between, [kept], ['bent']))
        kept = 'bent'
    nodes.append(helper.make_node('Conv', [kept, 'v', 'c'], ['y'], group=group))
    x, *found = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, *size])
        for name, channels, size in (('x', 4, (7, 9)), ('y', 8, (4, 5)), ('first', 6, (4, 5)))
        if name in f'x {outputs}'.split()
    )
    graph = helper.make_graph(nodes, 'g', [x], found, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    image = rng.normal(size=(1, 4, 7, 9)).astype(np.float32)
    results = []
    for _ in range(2):
        results.append(output_of(model, image))
        _join_convolutions(model)
    onnx.checker.check_model(model, full_check=True)
    assert sum(node.op_type == 'Conv' for node in model.graph.node) == count
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'count'), [({}, 1), ({'strides': [2, 2]}, 2), ({'pads': [1] * 4}, 2)]
)
def test_three_convolutions_in_a_row(options: dict[str, Any], count: int) -> None:
    """All become one, unless the last leaves places out or adds some."""
    from onnx import helper, numpy_helper, TensorProto

    from feat_ros.export import _join_convolutions

    rng = np.random.default_rng(1)
    shapes = {'w0': (6, 4, 3, 3), 'w1': (5, 6, 1, 1), 'w2': (3, 5, 1, 1)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays |= {f'b{k}': rng.normal(size=len(arrays[f'w{k}'])) for k in range(3)}
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    nodes = [
        helper.make_node('Conv', ['x', 'w0', 'b0'], ['m0'], pads=[1] * 4),
        helper.make_node('Conv', ['m0', 'w1', 'b1'], ['m1']),
        helper.make_node('Conv', ['m1', 'w2', 'b2'], ['y'], **options),
    ]
    x = helper.make_tensor_value_info('x', TensorProto.FLOAT, [1, 4, 6, 8])
    y = helper.make_tensor_value_info('y', TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, 'g', [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    image = rng.normal(size=(1, 4, 6, 8)).astype(np.float32)
    before = output_of(model, image)
    _join_convolutions(model)
    assert len(model.graph.node) == count
    np.testing.assert_allclose(output_of(model, image), before, atol=1e-4)


def test_half_precision_is_near(exported: Path, tmp_path: Path) -> None:
    """What is exported in half precision agrees with torch in float32, and with itself."""
    weights = load_weights(exported / 'sfd2.npz', 'sfd2')
    manifest = export_network(
        tmp_path / 'half.onnx', weights, K, {'noise': picture(96, 64)}, (96, 64), precision='fp16'
    )
    assert (manifest.precision, manifest.tensorrt_faults) == ('fp16', [])
    model = onnx.load(tmp_path / 'half.onnx')
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
    in_half = [types.get(node.input[1]) == onnx.TensorProto.FLOAT16 for node in convolutions]
    # All but the logits that places come from.
    assert (sum(in_half), len(in_half)) == (20, 21)
    image = picture(96, 64, seed=5)
    options = RuntimeOptions(precision='fp16')
    by_torch = open_network('sfd2', K, 'torch', str(exported / 'sfd2.npz'), options)
    by_onnx = open_network('sfd2', K, 'onnx', str(tmp_path / 'half.onnx'))
    parity = compare_outputs(by_torch(image, (96, 64)), by_onnx(image, (96, 64)), 0.05)
    assert parity.near >= 0.95
    assert parity.cosine >= 0.999


class Described(Tiny):
    """As Tiny, with descriptors of 32 numbers by two convolutions more."""

    descriptor_dim = 32

    def __init__(self, max_keypoints: int) -> None:
        super().__init__(max_keypoints)
        self.options = {}
        self.wide = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1))

    def forward(self, image: Tensor, valid_wh: Tensor) -> tuple[Tensor, ...]:
        keypoints, scores, _, stability, num = super().forward(image, valid_wh)
        maps = self.wide(image.float().permute(0, 3, 1, 2) / 255 - 0.5)
        column, row = (keypoints - 0.5).clamp(min=0).long().unbind(1)
        rows = nn.functional.normalize(take_pixels(maps, column, row), dim=1)
        return keypoints, scores, clear_rows(num, rows), stability, num


@pytest.mark.parametrize('size_wh', [(32, 24), None])
def test_whole_numbers_are_near(
    tmp_path: Path, tiny: Weights, monkeypatch: pytest.MonkeyPatch,
    size_wh: tuple[int, int] | None,
) -> None:  # fmt: skip
    """What is exported in 8 bits is checked on pictures that it was not calibrated on."""
    monkeypatch.setattr(store, 'NETWORKS', {**store.NETWORKS, 'described': Described})
    torch.manual_seed(0)
    weights = weights_of(Described(9), 'described')
    photographs = {'noise': picture(32, 24), 'more': picture(32, 24, seed=1)}
    out = tmp_path / 'int8.onnx'
    with pytest.raises(NetworkError, match='has weights of its own'):
        export_network(out, weights, 9, photographs, size_wh, 'shared.data', 'int8')
    with pytest.raises(NetworkError, match="'tiny' has no convolution that 8 bits would help"):
        export_network(out, tiny, 5, photographs, size_wh, precision='int8')
    manifest = export_network(out, weights, 9, photographs, size_wh, precision='int8')
    assert (manifest.precision, list(manifest.parity)) == (
        'int8', ['noise, mirrored', 'more, mirrored'],
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ['int8.json', 'int8.onnx']
    model = onnx.load(out)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made = [node for node in model.graph.node if node.op_type == 'DequantizeLinear']
    offsets = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name.endswith('zero_point')
    }
    if size_wh is None:
        assert sum(types.get(node.input[0]) == onnx.TensorProto.INT8 for node in made) == 1
        assert onnx.TensorProto.UINT8 in {types[name] for name in offsets}
    else:
        # As TensorRT reads it: no offsets, weights and biases as they are.
        assert not any(types.get(node.input[0]) for node in made)
        assert {types[name] for name in offsets} == {onnx.TensorProto.INT8}
        assert not any(each.any() for each in offsets.values())
        assert not [fault for fault in manifest.tensorrt_faults if 'quantize' in fault.lower()]
    image = picture(32, 24, seed=7)
    found = open_network('described', 9, 'onnx', str(out))(image, (32, 24))
    with torch.inference_mode():
        arrays = build_network(weights, 9)(torch.from_numpy(image)[None], torch.tensor([32, 24]))
    parity = compare_outputs(output_from_arrays([each.numpy() for each in arrays]), found)
    assert parity.near == 1
    assert 0.999 < parity.cosine < 0.9999999

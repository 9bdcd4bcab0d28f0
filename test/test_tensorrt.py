# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Engines: all but NVIDIA's own code, which a stand-in takes the place of.

TensorRT cannot be had where these tests run. The stand-in has only the calls of its documented
Python API that we make; its "engine" is the exported network, run by ONNX Runtime on the memory
at the addresses it is given, when the stream gets to it. What a GPU does with an engine is not
tested here: ``feat_ros engine verify`` does that on the machine that has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import ctypes
import enum
from functools import partial
import json
from pathlib import Path
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.testing import assert_array_equal
import pytest

pytest.importorskip('torch', reason='torch is not installed')
pytest.importorskip('onnx', reason='onnx is not installed')
ort = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

from test_runtimes import picture, Tiny  # noqa: E402

from feat_ros.cli import main  # noqa: E402
from feat_ros.errors import NetworkError  # noqa: E402
from feat_ros.export import export_network  # noqa: E402
from feat_ros.image import write_png  # noqa: E402
from feat_ros.models import weights as store  # noqa: E402
from feat_ros.models.weights import NETWORKS, weights_of  # noqa: E402
from feat_ros.runtimes import cuda_driver, open_network, tensorrt  # noqa: E402
from feat_ros.runtimes.cuda_driver import CudaDriver  # noqa: E402
from feat_ros.runtimes.onnx import OnnxRuntime  # noqa: E402

K, SIZE = 5, (32, 24)
Work = Callable[[], Any]


class StandInDriver:
    """As CudaDriver, on memory of the host; what is begun is done when it is waited for."""

    streams: Mapping[int, StandInDriver] = {}
    gpu, version = 'Orin (8.7)', '12.6'

    def __init__(self) -> None:
        self.begun: list[Work] = []
        self.recorded: list[Work] | None = None
        self.memory: list[Any] = []
        self.failure = ''
        self.can_capture = True
        self.launched = 0
        self.stream = id(self)
        StandInDriver.streams = {**StandInDriver.streams, self.stream: self}

    def begin(self, work: Work) -> None:
        (self.begun if self.recorded is None else self.recorded).append(work)

    def activate(self) -> None:
        pass

    def on_device(self, num_bytes: int) -> int:
        self.memory.append((ctypes.c_uint8 * num_bytes)())
        return ctypes.addressof(self.memory[-1])

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.zeros(shape, dtype)

    def to_device(self, address: int, values: Any) -> None:
        self.begin(partial(ctypes.memmove, address, values.ctypes.data, values.nbytes))

    def to_host(self, values: Any, address: int) -> None:
        self.begin(partial(ctypes.memmove, values.ctypes.data, address, values.nbytes))

    def synchronize(self) -> None:
        if self.failure:
            raise NetworkError(f'CUDA failed in cuStreamSynchronize: {self.failure}')
        for work in self.begun:
            work()
        self.begun = []

    def begin_capture(self) -> None:
        self.recorded = []

    def end_capture(self) -> Any:
        recorded, self.recorded = self.recorded, None
        if not self.can_capture:
            raise NetworkError('CUDA failed in cuStreamEndCapture: not permitted (900)')
        return recorded

    def launch(self, executable: list[Work]) -> None:
        self.launched += 1
        self.begun += executable

    def close(self) -> None:
        self.memory = []


class Flags(enum.IntEnum):
    """Members of three enumerations, by their names."""

    EXPLICIT_BATCH, STRONGLY_TYPED = 0, 1
    WORKSPACE = 10
    TF32, FP16, OBEY_PRECISION_CONSTRAINTS = 20, 21, 22


class StandInLayer:
    """A layer with one output."""

    num_outputs = 1

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.precision = ''

    def get_output(self, number: int) -> Any:
        return SimpleNamespace(dtype=self.dtype)


class StandInNetwork:
    """What a parser fills."""

    num_layers = 2

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.content = b''
        self.layers = [StandInLayer('float32'), StandInLayer('float16')]

    def get_layer(self, number: int) -> StandInLayer:
        return self.layers[number]


class StandInParser:
    """Reads the file as it is."""

    errors: tuple[str, ...] = ()

    def __init__(self, network: StandInNetwork, log: Any) -> None:
        self.network = network
        self.num_errors = len(self.errors)

    def parse_from_file(self, path: str) -> bool:
        self.network.content = Path(path).read_bytes()
        return not self.errors

    def get_error(self, number: int) -> Any:
        return SimpleNamespace(desc=lambda: self.errors[number])


class StandInConfig:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.flags, self.cleared, self.cache = set[Flags](), set[Flags](), b''

    def set_memory_pool_limit(self, pool: Flags, num_bytes: int) -> None:
        assert (pool, num_bytes) == (Flags.WORKSPACE, 1 << 30)

    def set_flag(self, flag: Flags) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Flags) -> None:
        self.cleared.add(flag)

    def create_timing_cache(self, content: bytes) -> Any:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return not cache.startswith(b'foreign')

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b'+')


class StandInContext:
    """Runs the exported network when the stream gets to it."""

    def __init__(self, session: Any) -> None:
        self.session, self.addresses = session, dict[str, int]()

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        StandInDriver.streams[stream].begin(self._run)
        return True

    def _at(self, value: Any) -> Any:
        dtype = {'tensor(uint8)': np.uint8, 'tensor(int32)': np.int32}.get(value.type, np.float32)
        count = int(np.prod(value.shape, dtype=int)) * np.dtype(dtype).itemsize
        content = (ctypes.c_uint8 * count).from_address(self.addresses[value.name])
        return np.ndarray(value.shape, dtype, memoryview(content))

    def _run(self) -> None:
        inputs = {value.name: self._at(value).copy() for value in self.session.get_inputs()}
        outputs = self.session.get_outputs()
        for value, found in zip(outputs, self.session.run(None, inputs), strict=True):
            self._at(value)[...] = found


class StandInEngine:
    """A network with named tensors."""

    def __init__(self, content: bytes) -> None:
        self.session = ort.InferenceSession(content, providers=['CPUExecutionProvider'])
        self.values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.values)

    def get_tensor_name(self, number: int) -> str:
        return str(self.values[number].name)

    def _value(self, name: str) -> Any:
        return next(value for value in self.values if value.name == name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._value(name).shape)

    def get_tensor_dtype(self, name: str) -> Any:
        names = {'tensor(uint8)': 'UINT8', 'tensor(int32)': 'INT32', 'tensor(float)': 'FLOAT'}
        return SimpleNamespace(name=names[self._value(name).type])

    def create_execution_context(self) -> StandInContext:
        return StandInContext(self.session)


class StandInBuilder:
    """Its plan is the network's file."""

    networks: tuple[StandInNetwork, ...] = ()
    configs: tuple[StandInConfig, ...] = ()
    can_build = True

    def __init__(self, log: Any) -> None:
        pass

    def create_network(self, flags: int) -> StandInNetwork:
        made = StandInNetwork(flags)
        StandInBuilder.networks = (*StandInBuilder.networks, made)
        return made

    def create_builder_config(self) -> StandInConfig:
        made = StandInConfig()
        StandInBuilder.configs = (*StandInBuilder.configs, made)
        return made

    def build_serialized_network(self, network: StandInNetwork, made: Any) -> bytes | None:
        return b'plan' + network.content if self.can_build else None


def load_plan(content: bytes) -> StandInEngine | None:
    return StandInEngine(content[4:]) if content.startswith(b'plan') else None


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = SimpleNamespace(
        __version__='10.3.0',
        Logger=type('Logger', (), {'WARNING': 2, '__init__': lambda self, level: None}),
        Builder=StandInBuilder,
        OnnxParser=StandInParser,
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=load_plan),
        NetworkDefinitionCreationFlag=Flags,
        MemoryPoolType=Flags,
        BuilderFlag=Flags,
        float32='float32',
    )
    monkeypatch.setitem(sys.modules, 'tensorrt', module)
    monkeypatch.setattr(tensorrt, 'CudaDriver', StandInDriver)
    monkeypatch.setattr(StandInBuilder, 'networks', ())
    monkeypatch.setattr(StandInBuilder, 'configs', ())
    return module


@pytest.fixture(scope='module')
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with exports of one size and of any; tests copy it."""
    import torch

    folder = tmp_path_factory.mktemp('exported')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, 'NETWORKS', {**NETWORKS, 'tiny': Tiny})
        torch.manual_seed(0)
        weights = weights_of(Tiny(K), 'tiny')
        photographs = {'noise': picture(*SIZE)}
        export_network(folder / 'tiny.onnx', weights, K, photographs, size_wh=SIZE)
        export_network(folder / 'any.onnx', weights, K, photographs)
        yield folder


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / 'models')
    return tmp_path / 'models' / 'tiny.onnx'


def changed(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def test_an_engine_finds_what_its_network_finds(model: Path, trt: Any) -> None:
    made = tensorrt.build_engine(model)
    assert (made.tensorrt, made.gpu, made.driver) == ('10.3.0', 'Orin (8.7)', '12.6')
    engine: Any = open_network('tiny', 4, 'tensorrt', str(model))
    reference = OnnxRuntime(model, 'tiny', 4)
    assert (engine.name, engine.device, engine.size_wh) == ('tensorrt', 'cuda', SIZE)
    kept = []
    # Plain, captured, launched twice; results stay what they were.
    for seed, valid_wh in enumerate([SIZE, (20, 10), SIZE, (7, 24)]):
        image = picture(*SIZE, seed=seed)
        kept.append((engine(image, valid_wh), reference(image, valid_wh)))
    assert engine._driver.launched == 3
    for found, expected in kept:
        for ours, theirs in zip(found, expected, strict=True):
            assert_array_equal(ours, theirs)


def test_networks_are_strongly_typed(model: Path, trt: Any) -> None:
    changed(model.with_suffix('.json'), precision='fp16')
    tensorrt.build_engine(model)
    network, options = StandInBuilder.networks[-1], StandInBuilder.configs[-1]
    assert network.flags == 1 << Flags.STRONGLY_TYPED
    assert (options.flags, options.cleared) == (set(), {Flags.TF32})
    # 8.6 has weak types: float32 of the file is held.
    trt.__version__ = '8.6.2'
    tensorrt.build_engine(model)
    network, options = StandInBuilder.networks[-1], StandInBuilder.configs[-1]
    assert network.flags == 1 << Flags.EXPLICIT_BATCH
    assert options.flags == {Flags.FP16, Flags.OBEY_PRECISION_CONSTRAINTS}
    assert [layer.precision for layer in network.layers] == ['float32', '']


def test_timings_are_kept_for_the_next_build(model: Path, trt: Any) -> None:
    timing = model.with_suffix('.timing')
    tensorrt.build_engine(model)
    assert timing.read_bytes() == b'+'
    tensorrt.build_engine(model)
    assert timing.read_bytes() == b'++'
    timing.write_bytes(b'foreign')
    tensorrt.build_engine(model)
    assert timing.read_bytes() == b'+'


def test_what_cannot_be_built_is_said(
    model: Path, trt: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NetworkError, match=r'any size: export it again with --size'):
        tensorrt.build_engine(model.with_name('any.onnx'))
    with monkeypatch.context() as patch:
        patch.setattr(StandInParser, 'errors', ('no TopK', 'no Abs'))
        with pytest.raises(NetworkError, match=r'10\.3\.0 cannot read .*: no TopK; no Abs'):
            tensorrt.build_engine(model)
    with monkeypatch.context() as patch:
        patch.setattr(StandInBuilder, 'can_build', False)
        with pytest.raises(NetworkError, match=r'10\.3\.0 cannot build'):
            tensorrt.build_engine(model)
    beside = model.with_suffix('.json')
    changed(beside, tensorrt_faults=['Einsum node_7: no such operator'])
    with pytest.raises(NetworkError, match=r'would not take .*: Einsum node_7'):
        tensorrt.build_engine(model)
    changed(beside, tensorrt_faults=[])
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    assert main(['engine', 'build', str(model)]) == 1
    assert 'install python3-libnvinfer' in capsys.readouterr().err
    assert not model.with_suffix('.engine').exists()


def build_other(model: Path) -> Path:
    """Build the engine of the same network with other weights."""
    other = model.with_name('other.onnx')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, 'NETWORKS', {**NETWORKS, 'tiny': Tiny})
        weights = weights_of(Tiny(K), 'tiny')
        export_network(other, weights, K, {'noise': picture(*SIZE)}, size_wh=SIZE)
    tensorrt.build_engine(other)
    return other.with_suffix('.engine')


@pytest.mark.parametrize(
    ('what', 'reason'),
    [
        ('version', r'made for TensorRT 10\.3\.0, here is 10\.7\.0: run "feat_ros engine build'),
        ('gpu', r'made for GPU Orin \(8\.7\), here is Thor \(11\.0\)'),
        ('driver', r'made for driver 12\.6, here is 13\.0'),
        ('damaged', r'is damaged: run "feat_ros engine build'),
        ('foreign', 'cannot load'),
        ('stale', r'tiny\.onnx is newer than .*tiny\.engine'),
        ('other network', r'tiny\.onnx is not what was built into .*tiny\.engine: run "feat_ros'),
        ('no manifest', 'is not the manifest of an engine'),
        (
            'no size',
            r'not the manifest of an engine \(size_wh is None, not a width and a height\)',
        ),
        ('no engine', 'there is no .*: run "feat_ros engine build'),
        ('too few', 'at most 5 keypoints and 6 are asked for'),
        ('no package', "TensorRT's Python package is not installed"),
    ],
)
def test_an_engine_that_does_not_fit_is_passed_over(
    model: Path,
    trt: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    reason: str,
) -> None:
    tensorrt.build_engine(model)
    engine, count = model.with_suffix('.engine'), K
    beside = engine.with_name('tiny.engine.json')
    if what == 'version':
        trt.__version__ = '10.7.0'
    elif what == 'gpu':
        monkeypatch.setattr(StandInDriver, 'gpu', 'Thor (11.0)')
    elif what == 'driver':
        monkeypatch.setattr(StandInDriver, 'version', '13.0')
    elif what == 'damaged':
        engine.write_bytes(engine.read_bytes()[:-9])
    elif what == 'foreign':
        monkeypatch.setattr(trt, 'Runtime', lambda log: SimpleNamespace(
            deserialize_cuda_engine=lambda content: None
        ))  # fmt: skip
    elif what == 'stale':
        changed(beside, onnx_sha256={'tiny.onnx': '0' * 64})
    elif what == 'other network':
        other = build_other(model)
        shutil.copy(other, engine)
        shutil.copy(f'{other}.json', beside)
        # What it was built from is not there: then its manifest names nothing to compare with.
        other.with_suffix('.onnx').unlink()
    elif what == 'no manifest':
        beside.write_text('{')
    elif what == 'no size':
        network = json.loads(beside.read_text())['network']
        changed(beside, network={**network, 'size_wh': None})
    elif what == 'no engine':
        engine.unlink()
    elif what == 'too few':
        count = K + 1
    else:
        monkeypatch.setitem(sys.modules, 'tensorrt', None)
    with pytest.raises(NetworkError, match=reason):
        open_network('tiny', count, 'tensorrt', str(model))
    if what == 'too few':
        return
    caplog.set_level('INFO', 'feat_ros.runtimes')
    assert open_network('tiny', count, 'auto', str(model)).name == 'onnx'
    assert 'tiny runs by onnx on the cpu; not tensorrt: ' in caplog.text
    # An engine that is there and is not used is worth a warning.
    assert caplog.records[-1].levelname == ('INFO' if what == 'no engine' else 'WARNING')


def no_cuda_provider(*_: Any) -> Any:
    raise NetworkError('no provider')


def no_cuda(*_: Any) -> Any:
    raise TypeError('pybind11::init(): factory function returned nullptr')


def lacking(message: str) -> Any:
    """Return an importer that finds every ``tensorrt`` to lack a library."""

    def find_spec(name: str, *_: Any) -> None:
        if name == 'tensorrt':
            raise ImportError(message)

    return SimpleNamespace(find_spec=find_spec)


@pytest.mark.parametrize(
    ('what', 'reason'),
    [
        ('library', r'does not load \(libnvinfer\.so\.10: cannot open'),
        ('runtime', r'failed to load .*tiny\.engine: pybind11::init'),
        ('context', r'failed to load .*tiny\.engine: MemoryError'),
    ],
)
def test_a_tensorrt_that_is_broken_is_passed_over(
    model: Path, trt: Any, monkeypatch: pytest.MonkeyPatch, what: str, reason: str
) -> None:
    def no_memory(self: Any) -> None:
        raise MemoryError

    tensorrt.build_engine(model)
    if what == 'library':
        monkeypatch.delitem(sys.modules, 'tensorrt')
        lacks = lacking('libnvinfer.so.10: cannot open shared object file')
        monkeypatch.setattr(sys, 'meta_path', [lacks, *sys.meta_path])
    elif what == 'runtime':
        monkeypatch.setattr(trt, 'Runtime', no_cuda)
    else:
        monkeypatch.setattr(StandInEngine, 'create_execution_context', no_memory)
    with pytest.raises(NetworkError, match=reason):
        open_network('tiny', K, 'tensorrt', str(model))
    assert open_network('tiny', K, 'auto', str(model)).name == 'onnx'


def test_a_build_or_a_run_that_raises_is_a_sentence(
    model: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt.build_engine(model)
    engine: Any = open_network('tiny', K, 'tensorrt', str(model))
    monkeypatch.setattr(engine._context, 'execute_async_v3', no_cuda, raising=False)
    with pytest.raises(NetworkError, match='TensorRT failed to run the engine: pybind11'):
        engine(picture(*SIZE), SIZE)
    monkeypatch.setattr(trt, 'Builder', no_cuda)
    with pytest.raises(NetworkError, match=r'TensorRT failed to build .*tiny\.onnx: pybind11'):
        tensorrt.build_engine(model)


def test_a_gpu_that_goes_away_is_replaced(
    model: Path, trt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tensorrt.build_engine(model)
    network: Any = open_network('tiny', K, 'auto', str(model.with_suffix('.engine')))
    assert network.name == 'tensorrt'
    image = picture(*SIZE)
    before = network(image, SIZE)
    failing = network._runtime
    failing._driver.failure = 'out of memory (2)'
    after = network(image, SIZE)
    assert (failing._driver.memory, failing._engine, failing._context) == ([], None, None)
    assert (network.name, network.device) == ('onnx', 'cpu')
    assert_array_equal(before.keypoints, after.keypoints)
    assert 'tiny stopped running by tensorrt: CUDA failed in cuStreamSync' in caplog.text
    assert 'it goes on by onnx on the cpu' in caplog.text
    only: Any = open_network('tiny', K, 'tensorrt', str(model))
    only._driver.failure = 'out of memory (2)'
    with pytest.raises(NetworkError, match='out of memory'):
        only(image, SIZE)


def test_one_that_failed_is_tried_again_where_nothing_else_works(
    model: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt.build_engine(model)
    network: Any = open_network('tiny', K, 'auto', str(model))
    image, failing = picture(*SIZE), network._runtime
    before = network(image, SIZE)
    failing._driver.failure = 'out of memory (2)'
    monkeypatch.setattr(OnnxRuntime, '__init__', no_cuda_provider)
    with pytest.raises(NetworkError, match=r'by tensorrt: CUDA failed .*; onnx: no provider'):
        network(image, SIZE)
    assert failing._driver.memory == []
    assert_array_equal(network(image, SIZE).keypoints, before.keypoints)
    assert (network.name, network._runtime is failing) == ('tensorrt', False)


def test_one_with_other_weights_is_closed_again(model: Path, trt: Any) -> None:
    tensorrt.build_engine(model)
    network: Any = open_network('tiny', K, 'auto', str(model))
    other = build_other(model)
    network._waiting = [network._candidate._replace(path=other), *network._waiting]
    network._runtime._driver.failure = 'out of memory (2)'
    network(picture(*SIZE), SIZE)
    assert network.name == 'onnx'
    assert [driver.memory for driver in StandInDriver.streams.values()][-3:] == [[], [], []]


def test_without_graphs_it_still_runs(
    model: Path, trt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tensorrt.build_engine(model)
    engine: Any = open_network('tiny', K, 'tensorrt', str(model))
    engine._driver.can_capture = False
    found = [engine(picture(*SIZE), SIZE) for _ in range(3)]
    assert engine._driver.launched == 0
    assert_array_equal(found[0].keypoints, found[2].keypoints)
    assert caplog.text.count('runs without a CUDA graph: CUDA failed in cuStreamEndCapture') == 1


def test_a_capture_that_does_not_begin_is_done_without(
    model: Path, trt: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Any) -> None:
        raise NetworkError('CUDA failed in cuStreamBeginCapture_v2: not permitted (900)')

    monkeypatch.setattr(StandInDriver, 'begin_capture', refuse)
    tensorrt.build_engine(model)
    engine: Any = open_network('tiny', K, 'tensorrt', str(model))
    found = [engine(picture(*SIZE), SIZE) for _ in range(3)]
    assert engine._driver.launched == 0
    assert_array_equal(found[0].keypoints, found[2].keypoints)
    assert 'without a CUDA graph: CUDA failed in cuStreamBeginCapture' in caplog.text


def test_verify_builds_compares_and_measures(
    model: Path, trt: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / 'verify.json'
    assert main(['engine', 'verify', str(model), '--json', str(figures)]) == 0
    report = json.loads(figures.read_text())
    assert {found['near'] for found in report['parity'].values()} == {1.0}
    assert set(report['latency_ms']) == {'tensorrt', 'onnx, cpu'}
    assert 'building an engine: there is no' in capsys.readouterr().out
    assert main(['engine', 'build', str(model)]) == 0
    assert 'tiny, fp32, TensorRT 10.3.0 on Orin (8.7)' in capsys.readouterr().out


def test_verify_compares_what_the_graph_gives(
    model: Path,
    trt: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One photograph is enough, and a recorded run that gives nothing new is found out."""
    write_png(tmp_path / 'photo.png', picture(*SIZE))
    words = ['engine', 'verify', str(model), '--photo', str(tmp_path / 'photo.png')]
    assert main(words) == 0

    def launch(self: StandInDriver, executable: list[Work]) -> None:
        """All of it but the copy of the places."""
        self.begun += [*executable[:3], *executable[4:]]

    monkeypatch.setattr(StandInDriver, 'launch', launch)
    assert main(words) == 1
    assert 'the engine is off on photo.png' in capsys.readouterr().err


class OldCuda:
    """The driver's library as far as its version."""

    @staticmethod
    def cuDriverGetVersion(value: Any) -> int:
        value._obj.value = 12020
        return 0


def test_the_version_of_the_driver_is_its_own_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two drivers of one CUDA are two: an engine fits only one of them."""
    driver = CudaDriver.__new__(CudaDriver)
    driver._library = OldCuda()
    monkeypatch.setattr(cuda_driver, '_PROC', tmp_path / 'version')
    assert driver.version == '12.2'
    for line, own in (
        ('UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023', '535.129.03'),
        ('UNIX Open Kernel Module for aarch64  540.3.0  Release Build  (root)', '540.3.0'),
    ):
        text = f'NVRM version: NVIDIA {line}\nGCC version:  gcc version 12.3.0\n'
        (tmp_path / 'version').write_text(text)
        assert driver.version == f'12.2, {own}'


def test_the_driver_moves_memory_as_it_is_told() -> None:
    """On a GPU; without one, that there is none is said."""
    try:
        driver = CudaDriver()
    except NetworkError as error:
        assert str(error) in (
            'there is no CUDA driver (libcuda.so.1)', 'the CUDA driver finds no GPU',
        )  # fmt: skip
        pytest.skip(f'{error}')
    try:
        sent, received = driver.pinned((3, 5), np.float32), driver.pinned((3, 5), np.float32)
        address = driver.on_device(sent.nbytes)
        driver.begin_capture()
        driver.to_device(address, sent)
        driver.to_host(received, address)
        graph = driver.end_capture()
        for value in (1.0, 2.0):
            sent[:] = value
            driver.launch(graph)
            driver.synchronize()
            assert_array_equal(received, sent)
        assert driver.gpu.endswith(')')
        with pytest.raises(NetworkError, match=r'CUDA failed in cuMemAlloc_v2: out of memory'):
            driver.on_device(1 << 50)
    finally:
        driver.close()

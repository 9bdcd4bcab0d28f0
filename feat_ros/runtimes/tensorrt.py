# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An exported network as a TensorRT engine, made on the machine that runs it.

Written against NVIDIA's documentation of the Python API, releases 8.6, 10 and 11: networks are
strongly typed, so precision is what the ONNX file says. 11 has no other kind, 10 has a flag for
it; 8.6 has only weak types, where every layer that is float32 in the file is held to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.config import Config, option
from feat_ros.errors import AbsentNetworkError, ConfigError, FeatRosError, NetworkError
from feat_ros.image import Image
from feat_ros.runtimes.contract import (
    check_manifest,
    NetworkManifest,
    NetworkOutput,
    output_from_arrays,
    read_manifest,
    RuntimeOptions,
)
from feat_ros.runtimes.cuda_driver import CudaDriver

logger = logging.getLogger(__name__)

_INPUTS = ('image', 'valid_wh')
_OUTPUTS = ('keypoints', 'scores', 'descriptors', 'stability', 'num')
_WORKSPACE_MB = 1024
# Members of DataType that the contract has; nptype of 8.6 fails with NumPy 1.24 and later.
_NUMPY = {'UINT8': np.uint8, 'INT32': np.int32, 'FLOAT': np.float32}


@dataclass(frozen=True)
class EngineManifest(Config):
    """What lies beside an engine as ``NAME.engine.json``; an engine fits nothing else."""

    onnx: str = option('', 'name of the exported network it was built from')
    onnx_sha256: dict[str, str] = option(dict, 'hash of that file and of what it reads')
    network: NetworkManifest = option(NetworkManifest, 'its manifest')
    tensorrt: str = option('', 'version of TensorRT')
    gpu: str = option('', 'name and compute capability of the GPU')
    driver: str = option('', 'newest CUDA that the driver supports, and its own version')
    sha256: str = option('', 'hash of the engine')


class _Tensor(NamedTuple):
    """An input or output: its memory here, and its address on the GPU."""

    host: npt.NDArray[Any]
    address: int


def engine_of(path: Path) -> Path:
    """Return the engine of an exported network, which lies beside it, or the engine itself.

    :raises NetworkError: there is none.
    """
    engine = path.with_suffix('.engine')
    if not engine.is_file():
        raise AbsentNetworkError(f'there is no {engine}: run "feat_ros engine build {path}"')
    return engine


def source_of(engine: Path) -> Path:
    """Return the exported network that an engine was built from.

    :raises NetworkError: the engine has no manifest.
    """
    return engine.with_name(_read_engine_manifest(engine).onnx)


def build_engine(path: Path, workspace_mb: int = _WORKSPACE_MB) -> EngineManifest:
    """Build the engine of an exported network and write it beside it, for this GPU only.

    What TensorRT measures is kept in ``NAME.timing``, so that the next build is faster.

    :param path: what ``feat_ros export --size`` wrote.
    :raises NetworkError: no TensorRT, no GPU, a network of any size, or TensorRT refused.
    """
    manifest = read_manifest(path)
    if manifest.size_wh is None:
        raise NetworkError(
            f'{path} takes images of any size: export it again with --size, for instance 640x480'
        )
    if manifest.tensorrt_faults:
        raise NetworkError(f'TensorRT would not take {path}: {manifest.tensorrt_faults[0]}')
    trt, driver = _tensorrt(), CudaDriver()
    with closing(driver), _sentences(f'build {path}'):
        log = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(log)
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(path)):
            errors = [parser.get_error(k).desc() for k in range(parser.num_errors)]
            raise NetworkError(
                f'TensorRT {trt.__version__} cannot read {path}: {"; ".join(errors)}'
            )
        build_config = builder.create_builder_config()
        build_config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
        # Ten bits of TF32 are too few for positions.
        build_config.clear_flag(trt.BuilderFlag.TF32)
        if _major(trt) < 9 and manifest.precision == 'fp16':
            _hold_precision(trt, network, build_config)
        timing = path.with_suffix('.timing')
        known = timing.read_bytes() if timing.is_file() else b''
        cache = build_config.create_timing_cache(known)
        if not build_config.set_timing_cache(cache, False):
            build_config.set_timing_cache(build_config.create_timing_cache(b''), False)
        plan = builder.build_serialized_network(network, build_config)
        if plan is None:
            raise NetworkError(
                f'TensorRT {trt.__version__} cannot build {path}: what it logged says why'
            )
        engine = bytes(plan)
        made = EngineManifest(
            onnx=path.name,
            onnx_sha256=manifest.sha256,
            network=manifest,
            tensorrt=trt.__version__,
            gpu=driver.gpu,
            driver=driver.version,
            sha256=hashlib.sha256(engine).hexdigest(),
        )
        _write(timing, bytes(build_config.get_timing_cache().serialize()))
    target = path.with_suffix('.engine')
    _write(target, engine)
    # The manifest comes last: until then an engine that was there before does not fit it.
    _write(_beside(target), json.dumps(config.to_dict(made), indent=1).encode() + b'\n')
    return made


class TensorrtRuntime:
    """See :class:`feat_ros.runtimes.Runtime`.

    :param path: what :func:`build_engine` wrote, or the exported network that it was given: then
        the engine beside it must be that network's.
    :raises NetworkError: no TensorRT or GPU, or an engine that is damaged, of another network, or
        made for another GPU, driver, TensorRT or export than there is now.
    """

    name = 'tensorrt'
    device = 'cuda'

    def __init__(
        self,
        path: Path,
        network: str,
        max_keypoints: int,
        options: RuntimeOptions = RuntimeOptions(),  # noqa: B008
    ) -> None:
        named, path = path, engine_of(path)
        made = _read_engine_manifest(path)
        manifest = made.network
        check_manifest(path, manifest, network, max_keypoints)
        if options.provider == 'cpu':
            raise NetworkError('TensorRT does not run on the CPU')
        _check_source(path, made, named)
        trt = _tensorrt()
        self._driver = CudaDriver()
        try:
            _check_place(path, made, trt, self._driver)
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != made.sha256:
                raise NetworkError(f'{path} is damaged: {_rebuild(path, made)}')
            with _sentences(f'load {path}'):
                self._engine, self._context = _deserialize(trt, content, path)
                self._tensors = self._allocate()
        except BaseException:
            self._driver.close()
            raise
        self._graph: Any = None
        self._runs = 0
        self.max_keypoints = max_keypoints
        self.descriptor_dim = manifest.descriptor_dim
        self.weights_sha256 = manifest.weights_sha256
        self.size_multiple = manifest.size_multiple
        assert manifest.size_wh is not None
        self.size_wh: tuple[int, int] | None = (manifest.size_wh[0], manifest.size_wh[1])

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        """Run on an RGB (H, W, 3) uint8 image of which (width, height) is not padding.

        :raises NetworkError: the GPU failed.
        """
        self._driver.activate()
        self._tensors['image'].host[:] = image[None]
        self._tensors['valid_wh'].host[:] = valid_wh
        # TensorRT wants one plain run before it is captured.
        if self._runs == 1:
            self._capture()
        self._runs += 1
        if self._graph is None:
            self._begin()
        else:
            self._driver.launch(self._graph)
        self._driver.synchronize()
        *rows, num = (self._tensors[name].host for name in _OUTPUTS)
        kept = [np.array(array[: self.max_keypoints]) for array in rows]
        return output_from_arrays([*kept, np.minimum(num, self.max_keypoints)])

    def close(self) -> None:
        """See :meth:`feat_ros.runtimes.Runtime.close`."""
        self._context = self._engine = self._graph = None
        self._tensors = {}
        self._driver.close()

    def _allocate(self) -> dict[str, _Tensor]:
        tensors = {}
        for number in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(number)
            shape = tuple(self._engine.get_tensor_shape(name))
            host = self._driver.pinned(shape, _NUMPY[self._engine.get_tensor_dtype(name).name])
            tensors[name] = _Tensor(host, self._driver.on_device(host.nbytes))
            self._context.set_tensor_address(name, tensors[name].address)
        if set(tensors) != {*_INPUTS, *_OUTPUTS}:
            raise NetworkError(f'the engine has tensors {", ".join(sorted(tensors))}')
        return tensors

    def _begin(self) -> None:
        for name in _INPUTS:
            self._driver.to_device(self._tensors[name].address, self._tensors[name].host)
        with _sentences('run the engine'):
            is_begun = self._context.execute_async_v3(self._driver.stream)
        if not is_begun:
            raise NetworkError('TensorRT did not run the engine: what it logged says why')
        for name in _OUTPUTS:
            self._driver.to_host(self._tensors[name].host, self._tensors[name].address)

    def _capture(self) -> None:
        failure = None
        try:
            self._driver.begin_capture()
            self._begin()
        except NetworkError as error:
            failure = error
        try:
            graph = self._driver.end_capture()
        except NetworkError as error:
            failure = failure or error
        if failure is None:
            self._graph = graph
        else:
            logger.warning('the engine runs without a CUDA graph: %s', failure)


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ModuleNotFoundError:
        raise NetworkError(
            "TensorRT's Python package is not installed: on a Jetson install python3-libnvinfer "
            'and use a virtual environment with --system-site-packages, elsewhere run '
            '"pip install tensorrt"'
        ) from None
    except (ImportError, OSError) as error:
        raise NetworkError(
            f'TensorRT is installed and does not load ({error}): install what it lacks'
        ) from None
    return tensorrt


@contextmanager
def _sentences(doing: str) -> Iterator[None]:
    """Say in a sentence what TensorRT raises: of any class, without CUDA a TypeError."""
    try:
        yield
    except FeatRosError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NetworkError(f'TensorRT failed to {doing}: {reason}') from None


def _major(trt: Any) -> int:
    return int(str(trt.__version__).split('.')[0])


def _network_flags(trt: Any) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.EXPLICIT_BATCH if _major(trt) < 9 else flags.STRONGLY_TYPED)


def _hold_precision(trt: Any, network: Any, build_config: Any) -> None:
    """Let TensorRT 8 use half precision only where the file has it."""
    build_config.set_flag(trt.BuilderFlag.FP16)
    build_config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        outputs = [layer.get_output(k) for k in range(layer.num_outputs)]
        if any(output is not None and output.dtype == trt.float32 for output in outputs):
            layer.precision = trt.float32


def _deserialize(trt: Any, content: bytes, path: Path) -> tuple[Any, Any]:
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(content)
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        raise NetworkError(
            f'TensorRT {trt.__version__} cannot load {path}: what it logged says why'
        )
    return engine, context


def _check_place(path: Path, made: EngineManifest, trt: Any, driver: CudaDriver) -> None:
    """Check that an engine was made for what there is now."""
    now = {'TensorRT': trt.__version__, 'GPU': driver.gpu, 'driver': driver.version}
    then = {'TensorRT': made.tensorrt, 'GPU': made.gpu, 'driver': made.driver}
    differ = [
        f'{name} {then[name]}, here is {now[name]}' for name in now if now[name] != then[name]
    ]
    if differ:
        raise NetworkError(f'{path} was made for {", ".join(differ)}: {_rebuild(path, made)}')


def _check_source(path: Path, made: EngineManifest, named: Path) -> None:
    """Check that an engine was built from the export that is named, or from the one beside it."""
    source = path.with_name(made.onnx) if named == path else named
    if named == path and not source.is_file():
        return
    if read_manifest(source).sha256 != made.onnx_sha256:
        what = 'is newer than' if source.name == made.onnx else 'is not what was built into'
        raise NetworkError(f'{source} {what} {path}: run "feat_ros engine build {source}"')


def _rebuild(path: Path, made: EngineManifest) -> str:
    return f'run "feat_ros engine build {path.with_name(made.onnx)}"'


def _beside(path: Path) -> Path:
    return path.with_name(path.name + '.json')


def _read_engine_manifest(path: Path) -> EngineManifest:
    try:
        content = json.loads(_beside(path).read_text('utf-8'))
        made = config.from_dict(EngineManifest, content)
        if len(made.network.size_wh or ()) != 2:
            raise ValueError(f'size_wh is {made.network.size_wh}, not a width and a height')
        return made
    except (OSError, ValueError, ConfigError) as error:
        raise NetworkError(
            f'{_beside(path)} is not the manifest of an engine ({error}): build it again with '
            '"feat_ros engine build"'
        ) from None


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + '.tmp')
    try:
        with temporary.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise NetworkError(f'{path} cannot be written: {error.strerror or error}') from None

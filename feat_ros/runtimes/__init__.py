# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The same network by several runtimes: one contract, an image in and a few arrays out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from feat_ros.errors import FeatRosError, NetworkError
from feat_ros.image import Image
from feat_ros.runtimes.contract import NetworkOutput, Runtime, RuntimeOptions

# Weights and exported networks that come with the package.
WEIGHTS = Path(__file__).parents[1] / 'weights'

logger = logging.getLogger(__name__)

_Open = Callable[[str, int, Path | None, RuntimeOptions], Runtime]


def _open_tensorrt(
    network: str, max_keypoints: int, path: Path | None, options: RuntimeOptions
) -> Runtime:
    from feat_ros.runtimes.tensorrt import TensorrtRuntime

    if path is None:
        raise NetworkError('the package has no engine, which only its GPU can make')
    return TensorrtRuntime(path, network, max_keypoints, options)


def _open_onnx(
    network: str, max_keypoints: int, path: Path | None, options: RuntimeOptions
) -> Runtime:
    from feat_ros.runtimes.onnx import OnnxRuntime

    path = path or _packaged_onnx(network, max_keypoints)
    if path.suffix == '.engine':
        from feat_ros.runtimes.tensorrt import source_of

        path = source_of(path)
    return OnnxRuntime(path, network, max_keypoints, options)


def _open_torch(
    network: str, max_keypoints: int, path: Path | None, options: RuntimeOptions
) -> Runtime:
    from feat_ros.models.weights import trained_network
    from feat_ros.runtimes.torch import TorchRuntime

    path = path or WEIGHTS / f'{trained_network(network)}.npz'
    return TorchRuntime(path, network, max_keypoints, options)


# In the order in which 'auto' tries them, with the files each reads.
RUNTIMES: Mapping[str, tuple[_Open, tuple[str, ...]]] = {
    'tensorrt': (_open_tensorrt, ('.engine', '.onnx')),
    'onnx': (_open_onnx, ('.onnx', '.engine')),
    'torch': (_open_torch, ('.npz', '.pth', '.pt')),
}


class _Candidate(NamedTuple):
    """A runtime that may be tried, and on what."""

    name: str
    path: Path | None
    options: RuntimeOptions


class FallingBack:
    """A runtime that is followed by the next one when it stops working."""

    def __init__(self, first: Runtime, network: str, waiting: list[_Candidate]) -> None:
        self._waiting = waiting
        self._network = network
        self._use(first)

    def _use(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name, self.device = runtime.name, runtime.device
        self.max_keypoints, self.descriptor_dim = runtime.max_keypoints, runtime.descriptor_dim
        self.weights_sha256 = runtime.weights_sha256
        self.size_multiple, self.size_wh = runtime.size_multiple, runtime.size_wh

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        """Run, by the next runtime where this one fails.

        :raises NetworkError: none is left.
        """
        while True:
            try:
                return self._runtime(image, valid_wh)
            except NetworkError as error:
                self._use(self._next(error, (image.shape[1], image.shape[0])))

    def _next(self, failure: NetworkError, size_wh: tuple[int, int]) -> Runtime:
        failed = f'{self._network} stopped running by {self.name}: {failure}'
        reasons: list[str] = []
        while self._waiting:
            candidate = self._waiting.pop(0)
            opened = _try(self._network, self.max_keypoints, candidate, reasons)
            if opened is None:
                continue
            if opened.weights_sha256 != self.weights_sha256:
                reasons.append(f'{candidate.name}: it has other weights')
            elif opened.size_wh not in (None, size_wh):
                reasons.append(f'{candidate.name}: it takes another size of image')
            else:
                logger.warning(
                    '%s; it goes on by %s on the %s', failed, opened.name, opened.device
                )
                return opened
        raise NetworkError('; '.join([failed, *reasons])) from None


def open_network(
    network: str,
    max_keypoints: int,
    runtime: str = 'auto',
    model: str = '',
    options: RuntimeOptions = RuntimeOptions(),  # noqa: B008
) -> Runtime:
    """Open a network by the first runtime that works, or by the one that is named.

    With ``auto``, a runtime that computes on a GPU goes before one that does not, and where one
    stops working the next goes on.

    :param network: its name.
    :param max_keypoints: K; a file exported for more is cut to it.
    :param runtime: a key of :data:`RUNTIMES`, or ``auto``.
    :param model: an exported network, an engine or weights; those of the package where empty.
    :param options: see :class:`~feat_ros.runtimes.contract.RuntimeOptions`.
    :raises NetworkError: nothing that is installed can run it; the message says why for each.
    """
    path = Path(model) if model else None
    names = list(RUNTIMES) if runtime == 'auto' else [runtime]
    if path is not None:
        readers = [name for name, (_, suffixes) in RUNTIMES.items() if path.suffix in suffixes]
        if not readers:
            suffixes = (suffix for _, each in RUNTIMES.values() for suffix in each)
            raise NetworkError(
                f'model {path} is of no known kind: it must end in '
                f'{", ".join(dict.fromkeys(suffixes))}'
            )
        names = [name for name in names if name in readers]
        if not names:
            raise NetworkError(f'runtime {runtime!r} does not read {path}: {readers[-1]!r} does')
    reasons: list[str] = []
    waiting = [_Candidate(name, path, options) for name in names]
    found: Runtime | None = None
    slower: list[_Candidate] = []
    while waiting:
        candidate = waiting.pop(0)
        opened = _try(network, max_keypoints, candidate, reasons)
        if opened is None:
            continue
        if found is None or opened.device == 'cuda':
            found, slower = opened, [*slower, candidate]
        # On a machine without a GPU nothing after the first can be faster.
        if found.device == 'cuda' or not _has_gpu():
            break
    if found is None:
        raise NetworkError(f'network {network!r} cannot run: {"; ".join(reasons)}')
    logger.info(
        '%s runs by %s on the %s%s',
        network, found.name, found.device, ''.join(f'; not {r}' for r in reasons),
    )  # fmt: skip
    if runtime != 'auto':
        return found
    rest = [each for each in (*slower, *waiting) if each.name != found.name]
    if found.device == 'cuda':
        # The same file on the CPU, where the GPU itself has gone.
        on_cpu = options._replace(provider='cpu', precision='fp32')
        rest += [
            _Candidate(name, path, on_cpu) for name in names if name != 'tensorrt'
        ]  # fmt: skip
    return FallingBack(found, network, rest) if rest else found


def _try(
    network: str, max_keypoints: int, candidate: _Candidate, reasons: list[str]
) -> Runtime | None:
    """Open one, or add why not to the reasons."""
    name, path, options = candidate
    try:
        return RUNTIMES[name][0](network, max_keypoints, path, options)
    except ModuleNotFoundError as error:
        reasons.append(f'{name}: Python package {error.name!r} is not installed')
    except (FeatRosError, ImportError, OSError) as error:
        # A library that is installed may lack another: libcudart, libnvinfer.
        reasons.append(f'{name}: {error}')
    return None


def _has_gpu() -> bool:
    from feat_ros.runtimes.cuda_driver import CudaDriver

    try:
        return CudaDriver.device_count() > 0
    except NetworkError:
        return False


def _packaged_onnx(network: str, max_keypoints: int) -> Path:
    """Return the package's export with the fewest keypoints that are enough."""
    exported = {
        int(path.stem.rpartition('_')[2]): path
        for path in WEIGHTS.glob(f'{network}_*.onnx')
        if path.stem.rpartition('_')[2].isdecimal() and path.stem.rpartition('_')[0] == network
    }
    if not exported:
        raise NetworkError(
            f'the package has no weights of {network!r}: name a file with the option model '
            '("feat_ros export" and "feat_ros train" write some)'
        )
    enough = [count for count in exported if count >= max_keypoints]
    if not enough:
        raise NetworkError(
            f'the package exports {network!r} with at most {max(exported)} keypoints and '
            f'{max_keypoints} are asked for: run "feat_ros export --keypoints {max_keypoints}" '
            'and name the file with the option model'
        )
    return exported[min(enough)]

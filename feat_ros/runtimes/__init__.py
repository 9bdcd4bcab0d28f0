# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The same network by several runtimes: one contract, an image in and a few arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import logging
from pathlib import Path
from typing import NamedTuple

from feat_ros.errors import AbsentNetworkError, FeatRosError, NetworkError
from feat_ros.image import Image
from feat_ros.matching import Matcher, mutual_nearest
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
        raise AbsentNetworkError('the package has no engine, which only its GPU can make')
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

    def __init__(
        self, first: Runtime, candidate: _Candidate, network: str, waiting: list[_Candidate]
    ) -> None:
        self._network = network
        self._waiting = waiting
        self._failed = ''
        self._use(first, candidate)

    def _use(self, runtime: Runtime, candidate: _Candidate) -> None:
        self._runtime: Runtime | None = runtime
        self._candidate = candidate
        self.name, self.device = runtime.name, runtime.device
        self.max_keypoints, self.descriptor_dim = runtime.max_keypoints, runtime.descriptor_dim
        self.weights_sha256 = runtime.weights_sha256
        self.size_multiple, self.size_wh = runtime.size_multiple, runtime.size_wh

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        """Run, by the next runtime where this one fails.

        :raises NetworkError: none is left.
        """
        while True:
            runtime = self._runtime or self._next((image.shape[1], image.shape[0]))
            try:
                return runtime(image, valid_wh)
            except NetworkError as error:
                self._failed = f'{self._network} stopped running by {self.name}: {error}'
                if not self._waiting:
                    raise NetworkError(self._failed) from None
            # After the handler, whose traceback holds what the run had on the GPU.
            self.close()

    def close(self) -> None:
        """See :meth:`Runtime.close`."""
        if self._runtime is not None:
            self._runtime.close()
        self._runtime = None

    def _next(self, size_wh: tuple[int, int]) -> Runtime:
        reasons: dict[str, bool] = {}
        while self._waiting:
            candidate = self._waiting.pop(0)
            opened = _try(self._network, self.max_keypoints, candidate, reasons)
            if opened is None:
                continue
            if opened.weights_sha256 != self.weights_sha256:
                reasons[f'{candidate.name}: it has other weights'] = True
            elif opened.size_wh not in (None, size_wh):
                reasons[f'{candidate.name}: it takes another size of image'] = True
            else:
                logger.warning(
                    '%s; it goes on by %s on the %s', self._failed, opened.name, opened.device
                )
                self._use(opened, candidate)
                return opened
            opened.close()
        # By the next image there may be memory again for the one that failed.
        self._waiting = [self._candidate]
        raise NetworkError('; '.join([self._failed, *reasons]))


def open_network(
    network: str,
    max_keypoints: int,
    runtime: str = 'auto',
    model: str = '',
    options: RuntimeOptions = RuntimeOptions(),  # noqa: B008
) -> Runtime:
    """Open a network by the first runtime that works, or by the one that is named.

    With ``auto``, a runtime that computes on a GPU goes before one that does not, where one
    stops working the next goes on, and where nothing can run the model that is named the
    package's own is taken, with a warning.

    :param network: its name.
    :param max_keypoints: K; a file exported for more is cut to it.
    :param runtime: a key of :data:`RUNTIMES`, or ``auto``.
    :param model: an exported network, an engine or weights; those of the package where empty.
    :param options: see :class:`~feat_ros.runtimes.contract.RuntimeOptions`.
    :raises NetworkError: nothing that is installed can run it; the message says why for each.
    """
    path = Path(model) if model else None
    groups = [_candidates(runtime, path, options)]
    if runtime == 'auto' and path is not None:
        groups.append(_candidates('auto', None, options))
    reasons: dict[str, bool] = {}
    opened = None
    for group in groups:
        opened = opened or _open_first(network, max_keypoints, group, reasons)
    if opened is None:
        raise NetworkError(f'network {network!r} cannot run: {"; ".join(reasons)}')
    found, candidate, rest = opened
    instead = '' if candidate.path == path else f" with the package's weights instead of {path}"
    logger.log(
        logging.WARNING if instead or any(reasons.values()) else logging.INFO,
        '%s runs by %s on the %s%s%s',
        network, found.name, found.device, instead, ''.join(f'; not {r}' for r in reasons),
    )  # fmt: skip
    if runtime != 'auto':
        return found
    if found.device == 'cuda':
        # The same weights on the CPU, where the GPU itself has gone.
        on_cpu = options._replace(provider='cpu', precision='fp32')
        rest += [
            each._replace(options=on_cpu)
            for group in groups
            for each in group
            if each.name != 'tensorrt'
        ]
    return FallingBack(found, candidate, network, rest) if rest else found


def open_matcher(matching: str = 'auto') -> Matcher:
    """Return what finds mutual nearest neighbours: torch where it has a GPU, or NumPy.

    :param matching: ``auto``, or ``cpu`` for NumPy.
    """
    if matching == 'auto' and _has_gpu():
        try:
            from feat_ros.runtimes.torch_matching import TorchMatcher

            return TorchMatcher()
        except ModuleNotFoundError:
            logger.info('matching runs on the CPU: torch is not installed')
        except (NetworkError, ImportError, OSError) as error:
            logger.warning('matching runs on the CPU: %s', error)
    return mutual_nearest


def _candidates(runtime: str, path: Path | None, options: RuntimeOptions) -> list[_Candidate]:
    """Return what may run a file, or the package's own where none is named."""
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
    return [_Candidate(name, path, options) for name in names]


def _open_first(
    network: str, max_keypoints: int, candidates: list[_Candidate], reasons: dict[str, bool]
) -> tuple[Runtime, _Candidate, list[_Candidate]] | None:
    """Open the first that computes on a GPU, or else the first; return those that may follow."""
    found: tuple[Runtime, _Candidate] | None = None
    others: list[_Candidate] = []
    for number, candidate in enumerate(candidates, 1):
        opened = _try(network, max_keypoints, candidate, reasons)
        if opened is None:
            continue
        unused: tuple[Runtime, _Candidate] | None = opened, candidate
        if found is None or opened.device == 'cuda':
            found, unused = unused, found
        if unused is not None:
            unused[0].close()
            others.append(unused[1])
        # On a machine without a GPU nothing after the first can be faster.
        if opened.device == 'cuda' or not _has_gpu():
            others += candidates[number:]
            break
    return found and (*found, others)


def _try(
    network: str, max_keypoints: int, candidate: _Candidate, reasons: dict[str, bool]
) -> Runtime | None:
    """Open one, or add why not to the reasons, and whether anything that is there is at fault."""
    name, path, options = candidate
    try:
        return RUNTIMES[name][0](network, max_keypoints, path, options)
    except ModuleNotFoundError as error:
        reasons[f'{name}: Python package {error.name!r} is not installed'] = False
    except (FeatRosError, ImportError, OSError) as error:
        # A library that is installed may lack another: libcudart, libnvinfer.
        reasons[f'{name}: {error}'] = not isinstance(error, AbsentNetworkError)
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
        raise AbsentNetworkError(
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

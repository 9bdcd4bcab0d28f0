# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The same network by several runtimes: one contract, an image in and a few arrays out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from feat_ros.errors import FeatRosError, NetworkError
from feat_ros.runtimes.contract import Runtime

# Weights and exported networks that come with the package.
WEIGHTS = Path(__file__).parents[1] / 'weights'

logger = logging.getLogger(__name__)


def _open_onnx(network: str, max_keypoints: int, path: Path | None) -> Runtime:
    from feat_ros.runtimes.onnx import OnnxRuntime

    return OnnxRuntime(path or _packaged_onnx(network, max_keypoints), network, max_keypoints)


def _open_torch(network: str, max_keypoints: int, path: Path | None) -> Runtime:
    from feat_ros.runtimes.torch import TorchRuntime

    return TorchRuntime(path or WEIGHTS / f'{network}.npz', network, max_keypoints)


# In the order in which 'auto' tries them, with the files each reads.
RUNTIMES: Mapping[str, tuple[Callable[[str, int, Path | None], Runtime], tuple[str, ...]]] = {
    'onnx': (_open_onnx, ('.onnx',)),
    'torch': (_open_torch, ('.npz', '.pth', '.pt')),
}


def open_network(
    network: str, max_keypoints: int, runtime: str = 'auto', model: str = ''
) -> Runtime:
    """Open a network by the first runtime that works, or by the one that is named.

    :param network: its name.
    :param max_keypoints: K; a file exported for more is cut to it.
    :param runtime: a key of :data:`RUNTIMES`, or ``auto``.
    :param model: an exported network or weights; those of the package where empty.
    :raises NetworkError: nothing that is installed can run it; the message says why for each.
    """
    path = Path(model) if model else None
    names = list(RUNTIMES) if runtime == 'auto' else [runtime]
    if path is not None:
        readers = [name for name, (_, suffixes) in RUNTIMES.items() if path.suffix in suffixes]
        if not readers:
            known = ', '.join(suffix for _, each in RUNTIMES.values() for suffix in each)
            raise NetworkError(f'model {path} is of no known kind: it must end in {known}')
        names = [name for name in names if name in readers]
        if not names:
            raise NetworkError(f'runtime {runtime!r} does not read {path}: {readers[0]!r} does')
    reasons = []
    for name in names:
        try:
            opened = RUNTIMES[name][0](network, max_keypoints, path)
        except ModuleNotFoundError as error:
            reasons.append(f'{name}: Python package {error.name!r} is not installed')
        except FeatRosError as error:
            reasons.append(f'{name}: {error}')
        else:
            logger.info('%s runs by %s%s', network, name, ''.join(f'; not {r}' for r in reasons))
            return opened
    raise NetworkError(f'network {network!r} cannot run: {"; ".join(reasons)}')


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

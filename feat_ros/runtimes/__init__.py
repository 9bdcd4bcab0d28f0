# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The same network by several runtimes: one contract, an image in and a few arrays out."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.config import Config, option
from feat_ros.errors import ConfigError, FeatRosError, NetworkError
from feat_ros.image import Image
from feat_ros.types import Float32

# Weights and exported networks that come with the package.
WEIGHTS = Path(__file__).parents[1] / 'weights'

logger = logging.getLogger(__name__)


class NetworkOutput(NamedTuple):
    """What a network finds in an image; rows from ``num`` on are zero.

    ===============  ======  ==============================================================
    ``keypoints``    (K, 2)  (x, y) in pixels of the network's input, centres at halves
    ``scores``       (K,)    the strongest first
    ``descriptors``  (K, D)  unit length
    ``stability``    (K,)    in [0, 1]
    ``num``          int     how many there are
    ===============  ======  ==============================================================
    """

    keypoints: Float32
    scores: Float32
    descriptors: Float32
    stability: Float32
    num: int


class Runtime(Protocol):
    """A network, ready to run.

    :ivar name: its key in :data:`RUNTIMES`.
    :ivar max_keypoints: K.
    :ivar descriptor_dim: D.
    :ivar size_multiple: what width and height of its input are a multiple of.
    :ivar size_wh: the only size of its input, or None where any will do.
    """

    name: str
    max_keypoints: int
    descriptor_dim: int
    size_multiple: int
    size_wh: tuple[int, int] | None

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        """Run on an RGB (H, W, 3) uint8 image of which (width, height) is not padding."""
        ...


@dataclass(frozen=True)
class NetworkManifest(Config):
    """What lies beside an exported network as ``.json``.

    One export may read the large arrays of another: then ``sha256`` names both files.
    """

    network: str = option('', 'name of the network')
    max_keypoints: int = option(0, 'K', minimum=1)
    descriptor_dim: int = option(0, 'D', minimum=1)
    size_multiple: int = option(1, 'what width and height are a multiple of', minimum=1)
    size_wh: list[int] | None = option(None, 'the only size of its input; none for any')
    sha256: dict[str, str] = option(dict, 'hash of the exported file and of what it reads')
    weights_sha256: str = option('', 'hash of the weights it was exported with')
    provenance: dict[str, Any] = option(dict, 'how the weights came to be')
    opset: int = option(0, "version of ONNX's operators")
    precision: str = option('fp32', 'type of its numbers', choices=('fp32',))
    versions: dict[str, Any] = option(dict, 'of the packages that exported it')
    parity: dict[str, Any] = option(dict, 'how it agrees with the network in torch')


def read_manifest(path: Path) -> NetworkManifest:
    """Return what lies beside an exported network, after checking the file against it.

    :param path: the exported file.
    :raises NetworkError: the file or its manifest is missing, damaged or of another file.
    """
    beside = path.with_suffix('.json')
    for part in (path, beside):
        if not part.is_file():
            raise NetworkError(
                f'exported network {part} does not exist: copy {path.name} and {beside.name} '
                'together, or run "feat_ros export" again'
            )
    try:
        manifest = config.from_dict(NetworkManifest, json.loads(beside.read_text('utf-8')))
    except (OSError, ValueError, ConfigError) as error:
        raise NetworkError(f'{beside} is not the manifest of a network: {error}') from None
    if path.name not in manifest.sha256:
        raise NetworkError(f'{beside} describes {" and ".join(manifest.sha256)}, not {path.name}')
    for name, sha256 in manifest.sha256.items():
        part = path.with_name(name)
        if not part.is_file() or hashlib.sha256(part.read_bytes()).hexdigest() != sha256:
            raise NetworkError(
                f'{part} is missing, damaged or not the file that {beside.name} describes: copy '
                'all of them again'
            )
    return manifest


def padded_size(size_wh: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the next larger width and height that are multiples."""
    width, height = (-(-side // multiple) * multiple for side in size_wh)
    return width, height


def output_from_arrays(arrays: list[npt.NDArray[Any]]) -> NetworkOutput:
    """Make the output of the five arrays that every exported network returns."""
    keypoints, scores, descriptors, stability, num = arrays
    return NetworkOutput(keypoints, scores, descriptors, stability, int(np.asarray(num).item()))


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

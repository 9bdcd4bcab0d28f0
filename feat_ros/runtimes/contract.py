# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every runtime takes and gives, and the manifest of what it reads."""

from __future__ import annotations

from dataclasses import dataclass
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from feat_ros import config
from feat_ros.config import Config, option
from feat_ros.errors import ConfigError, NetworkError
from feat_ros.image import Image
from feat_ros.types import Float32

PRECISIONS = ('fp32', 'fp16', 'int8')
PROVIDERS = ('auto', 'cpu', 'cuda', 'tensorrt')


class RuntimeOptions(NamedTuple):
    """How a network is run.

    :ivar precision: of the dense part where torch runs it; exported files have their own.
    :ivar provider: what of ONNX Runtime or torch computes; ``auto`` for a GPU where it works.
    :ivar threads: of the CPU; 0 for one a core.
    """

    precision: str = 'fp32'
    provider: str = 'auto'
    threads: int = 0


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
    :ivar device: ``cpu`` or ``cuda``.
    :ivar max_keypoints: K.
    :ivar descriptor_dim: D.
    :ivar weights_sha256: hash of what it has learned.
    :ivar size_multiple: what width and height of its input are a multiple of.
    :ivar size_wh: the only size of its input, or None where any will do.
    """

    name: str
    device: str
    max_keypoints: int
    descriptor_dim: int
    weights_sha256: str
    size_multiple: int
    size_wh: tuple[int, int] | None

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        """Run on an RGB (H, W, 3) uint8 image of which (width, height) is not padding.

        :raises NetworkError: it stopped working, for instance for want of GPU memory.
        """
        ...

    def close(self) -> None:
        """Give back the GPU's memory, once; it cannot run any more."""
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
    precision: str = option('fp32', 'type of its dense part', choices=PRECISIONS)
    versions: dict[str, Any] = option(dict, 'of the packages that exported it')
    tensorrt_faults: list[str] = option(list, 'nodes that TensorRT would not take; of one size')
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


def check_manifest(
    path: Path, manifest: NetworkManifest, network: str, max_keypoints: int
) -> None:
    """Check that a file holds a network with enough keypoints.

    :raises NetworkError: it does not.
    """
    if manifest.network != network:
        raise NetworkError(f'{path} holds network {manifest.network!r}, not {network!r}')
    if manifest.max_keypoints < max_keypoints:
        raise NetworkError(
            f'{path} gives at most {manifest.max_keypoints} keypoints and {max_keypoints} '
            f'are asked for: set max_keypoints={manifest.max_keypoints}, or export it again '
            f'with --keypoints {max_keypoints}'
        )


def padded_size(size_wh: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the next larger width and height that are multiples."""
    width, height = (-(-side // multiple) * multiple for side in size_wh)
    return width, height


def output_from_arrays(arrays: list[npt.NDArray[Any]]) -> NetworkOutput:
    """Make the output of the five arrays that every exported network returns."""
    keypoints, scores, descriptors, stability, num = arrays
    return NetworkOutput(keypoints, scores, descriptors, stability, int(np.asarray(num).item()))

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Weights on disk: plain arrays and what is known of them in one ``.npz`` file, no pickle."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
import hashlib
import json
import os
from pathlib import Path
import pickle
from typing import Any
import warnings
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from feat_ros.errors import ConfigError, NetworkError
from feat_ros.models.aislfd import Aislfd, AislfdExact
from feat_ros.models.how import HowR18, HowR50, HowSfd2
from feat_ros.models.hynet import HyNet
from feat_ros.models.samfeat import SamFeat
from feat_ros.models.sfd2 import Sfd2
from feat_ros.models.sfd2_lite import Sfd2Lite

Arrays = Mapping[str, npt.NDArray[Any]]

NETWORKS: Mapping[str, type[Any]] = {
    'sfd2': Sfd2,
    'sfd2_lite': Sfd2Lite,
    'how_r18': HowR18,
    'how_r50': HowR50,
    'how_sfd2': HowSfd2,
    'samfeat': SamFeat,
    'hynet': HyNet,
    'aislfd': Aislfd,
    'aislfd_exact': AislfdExact,
}
# Networks that give something else of what another has learned.
_SAME_WEIGHTS = {'aislfd_exact': 'aislfd'}
# Entry of the file beside the arrays; no parameter of a network is called so.
_MANIFEST = 'manifest.json'


@dataclass(frozen=True, eq=False)
class Weights:
    """What a network has learned.

    :ivar network: its key in :data:`NETWORKS`.
    :ivar arrays: its state dict.
    :ivar options: what its class is made with beside the number of keypoints.
    :ivar provenance: how it was trained, on what, under which licences; plain values.
    """

    network: str
    arrays: Arrays
    options: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def sha256(self) -> str:
        """The hash of names, types, shapes and values."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            digest.update(f'{name} {array.dtype.str} {array.shape}\n'.encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def get_network(name: str) -> type[Any]:
    """Return the class of a network.

    :raises ConfigError: an unknown name; the known ones are listed.
    """
    if name not in NETWORKS:
        raise ConfigError(f'unknown network {name!r}; choose one of: {", ".join(NETWORKS)}')
    return NETWORKS[name]


def trained_network(name: str) -> str:
    """Return the network whose weights a network reads: most often itself."""
    return _SAME_WEIGHTS.get(name, name)


def weights_of(network: nn.Module, name: str, **provenance: Any) -> Weights:
    """Return the weights of a network as they are now."""
    arrays = {key: value.detach().cpu().numpy() for key, value in network.state_dict().items()}
    return Weights(name, arrays, dict(network.options), provenance)


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights so that the file is there whole or not at all.

    :raises NetworkError: the file cannot be written.
    """
    manifest = {
        'network': weights.network,
        'sha256': weights.sha256,
        'options': weights.options,
        'provenance': weights.provenance,
    }
    temporary = path.with_name(path.name + '.tmp')
    try:
        with temporary.open('wb') as file:
            arrays = {**weights.arrays, _MANIFEST: np.array(json.dumps(manifest))}
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise NetworkError(f'{path} cannot be written: {error.strerror or error}') from None


def load_weights(path: Path, name: str) -> Weights:
    """Read what :func:`save_weights` wrote, or a checkpoint of torch (``.pth``, ``.pt``).

    A checkpoint is a state dict, or a dict with one under ``model`` or ``state_dict``; of other
    types only argparse's Namespace is let in, where the authors of SFD2 keep their options.

    :param name: the network that the weights must be of.
    :raises NetworkError: missing, damaged, of another network, or not plain numbers.
    """
    if not path.is_file():
        raise NetworkError(f'weights {path} do not exist')
    if path.suffix in ('.pth', '.pt'):
        options = dict(get_network(name).published_options)
        return Weights(name, read_checkpoint(path), options, {'file': path.name})
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        manifest = json.loads(str(arrays.pop(_MANIFEST)))
        weights = Weights(
            manifest['network'], arrays, manifest['options'], manifest['provenance']
        )  # fmt: skip
        wanted = manifest['sha256']
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile, EOFError):
        raise NetworkError(
            f'{path} does not hold the weights of a network, or is damaged: copy it again'
        ) from None
    if weights.sha256 != wanted:
        raise NetworkError(f'weights {path} are damaged, their hash is wrong: copy them again')
    if trained_network(weights.network) != trained_network(name):
        raise NetworkError(f'{path} holds weights of {weights.network!r}, not of {name!r}')
    return replace(weights, network=name)


def build_network(weights: Weights, max_keypoints: int) -> Any:
    """Return a network with weights, ready to extract.

    :raises NetworkError: names or shapes that are not those of the network.
    """
    try:
        network = get_network(weights.network)(max_keypoints, **weights.options)
        network.load_state_dict(
            {key: torch.from_numpy(np.array(value)) for key, value in weights.arrays.items()}
        )
    except (RuntimeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise NetworkError(
            f'weights do not fit network {weights.network!r}: {" ".join(lines[-2:])}'
        ) from None
    return network.eval()


def read_checkpoint(path: Path) -> Arrays:
    """Read the state dict of a checkpoint of torch, as :func:`load_weights` does.

    :raises NetworkError: damaged, or not plain numbers.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # Of another version of pickle it warns, then refuses all the same.
            warnings.simplefilter('ignore', UserWarning)
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        raise NetworkError(
            f'checkpoint {path} is damaged, or holds objects that could run code: save its state '
            'dict alone'
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError):
        raise NetworkError(f'{path} is not a checkpoint of torch, or is damaged') from None
    for key in ('model', 'state_dict'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise NetworkError(f'checkpoint {path} holds no state dict')
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise NetworkError(f'checkpoint {path} holds more than tensors in its state dict')
    # What DataParallel puts before every name.
    return {key.removeprefix('module.'): value.numpy() for key, value in content.items()}

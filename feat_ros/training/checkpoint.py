# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a training run as plain arrays: resumed exactly, nothing in it can be executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
import json
import os
from pathlib import Path
import secrets
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import nn, Tensor

from feat_ros import config as configs
from feat_ros.errors import DataError

Arrays = dict[str, npt.NDArray[Any]]

_PART_BYTES = 15_000_000
# Entry of a file that has others beside it.
_PARTS = 'parts'


def to_arrays(tensors: Mapping[str, Tensor], prefix: str) -> Arrays:
    """Copy tensors to arrays named ``prefix.name``."""
    return {f'{prefix}.{name}': each.detach().cpu().numpy() for name, each in tensors.items()}


def from_arrays(arrays: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of arrays named ``prefix.name``."""
    start = f'{prefix}.'
    return {
        name[len(start) :]: torch.from_numpy(np.array(each))
        for name, each in arrays.items()
        if name.startswith(start)
    }


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> Arrays:
    """Return an optimizer's state as arrays ``optimizer.NUMBER.NAME``."""
    state = optimizer.state_dict()['state']
    return {
        f'optimizer.{number}.{name}': value.detach().cpu().numpy()
        for number, values in state.items()
        for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, arrays: Mapping[str, Any]) -> None:
    """Put back what :func:`optimizer_arrays` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in from_arrays(arrays, 'optimizer').items():
        number, _, key = name.partition('.')
        state.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()['param_groups']
    optimizer.load_state_dict({'state': state, 'param_groups': groups})


def save_in_parts(path: Path, arrays: Arrays, largest: int = _PART_BYTES) -> None:
    """Write arrays to ``path``, and what is more than that holds to ``NAME.TOKEN.NUMBER.npz``.

    A run that is carried from machine to machine in pieces has no file that is too large for the
    way. ``path`` is written last and names the others, so that what is there is always whole;
    :func:`load` reads them all.

    :param largest: bytes of a file, unless one array alone is larger.
    :raises DataError: the disk is full or read-only.
    """
    parts: list[Arrays] = [{}]
    room = largest
    for name, each in arrays.items():
        # An entry of the archive has a header of some hundred bytes.
        size = each.nbytes + 1024
        if size > room and parts[-1]:
            parts.append({})
            room = largest
        parts[-1][name] = each
        room -= size
    token = secrets.token_hex(4)
    for number, part in enumerate(parts[1:], 1):
        save(_part(path, token, number), part)
    save(path, parts[0] | {_PARTS: np.array([token, str(len(parts) - 1)])})
    for old in path.parent.glob(f'{path.stem}.*.*.npz'):
        if not old.name.startswith(f'{path.stem}.{token}.'):
            old.unlink()


def _part(path: Path, token: str, number: int) -> Path:
    return path.with_name(f'{path.stem}.{token}.{number}.npz')


def save(path: Path, arrays: Mapping[str, npt.NDArray[Any]], is_packed: bool = False) -> None:
    """Write arrays so that the file is there whole or not at all.

    :param is_packed: in less space, which takes longer.
    :raises DataError: the disk is full or read-only.
    """
    with whole_file(path) as file:
        (np.savez_compressed if is_packed else np.savez)(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is at ``path`` when all is written, or not at all.

    :raises DataError: the disk is full or read-only.
    """
    temporary = path.with_name(path.name + '.tmp')
    try:
        with temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f'{path} cannot be written: {error.strerror or error}') from None


def load(
    path: Path,
    names: Sequence[str] | None = None,
    *,
    missing: str = 'does not exist',
    damaged: str = 'is damaged: take an older checkpoint',
) -> Arrays:
    """Read what :func:`save` or :func:`save_in_parts` wrote.

    :param names: which arrays there must be and are read; None for all that there are.
    :param missing: what is said of a file that is not there, with the way out; likewise
        ``damaged``.
    :raises DataError: missing or damaged.
    """
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in (stored if names is None else names)}
        token, count = arrays.pop(_PARTS, ('', '0'))
        for number in range(1, int(count) + 1):
            arrays |= load(_part(path, token, number))
        return arrays
    except DataError:  # of a part
        raise
    except FileNotFoundError:
        raise DataError(f'{path} {missing}') from None
    # NumPy and zipfile have no common error for bytes that are not theirs: a header may ask for
    # more memory than there is, a packed part be none.
    except Exception:
        raise DataError(f'{path} {damaged}') from None


def keep_config(folder: Path, config: Any, may_change: Set[str]) -> None:
    """Write ``config.json`` of a run, which must be that of the run that is in the folder.

    Options that are newer than that run had their defaults.

    :param config: a configuration, see :class:`feat_ros.config.Config`.
    :param may_change: options of where and how fast a run goes on.
    :raises DataError: another option differs.
    """
    path, described = folder / 'config.json', configs.to_dict(config)
    if path.exists():
        written = json.loads(path.read_text(encoding='utf-8'))
        before = configs.to_dict(configs.from_dict(type(config), written))
        changed = sorted(k for k in described if described[k] != before[k])
        if set(changed) - may_change:
            raise DataError(
                f'{folder} holds a run with other {", ".join(changed)}: name another '
                'folder, or go on with its own config.json'
            )
    path.write_text(json.dumps(described, indent=2) + '\n', encoding='utf-8')


class Average:
    """The moving average of a module's weights and statistics, which is what is shipped."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: each.detach().clone() for name, each in module.state_dict().items()}

    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module; what is counted is copied.

        :param step: how many updates there were: the first weigh more, for what a run starts with
            is soon to be forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        current = module.state_dict()
        floats = [name for name, each in self.values.items() if each.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(
                [self.values[name] for name in floats],
                [current[name] for name in floats],
                1 - decay,
            )
        for name in self.values.keys() - set(floats):
            self.values[name].copy_(current[name])

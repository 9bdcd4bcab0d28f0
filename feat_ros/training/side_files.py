# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files beside photographs that hold what a network sees in them, and which network it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feat_ros.errors import DataError
from feat_ros.training import checkpoint


@dataclass(frozen=True)
class SideFiles:
    """Files of one kind.

    :ivar path: where the file of a photograph is, if there is one.
    :ivar what: what they are of.
    :ivar command: the sub-command of ``feat_ros train`` that writes them.
    """

    path: Callable[[Path], Path]
    what: str
    command: str

    @property
    def again(self) -> str:
        """The way out of a file that cannot be used."""
        return f'remove it and write it again with "feat_ros train {self.command}"'

    def read(self, photo: Path, names: Sequence[str]) -> checkpoint.Arrays:
        """Read arrays of the file of a photograph.

        :raises DataError: missing or damaged.
        """
        return checkpoint.load(
            self.path(photo), names,
            missing=f'does not exist: write it with "feat_ros train {self.command}"',
            damaged=f'is damaged, or no file of {self.what}: {self.again}',
        )  # fmt: skip

    def write(self, photo: Path, found: NamedTuple) -> None:
        """Write the file of a photograph, whole or not at all.

        :raises DataError: the disk is full or read-only.
        """
        arrays = {name: np.asarray(value) for name, value in found._asdict().items()}
        checkpoint.save(self.path(photo), arrays, is_packed=True)

    def model_of(self, photo: Path) -> str:
        """Return which network made the file of a photograph.

        :raises DataError: missing or damaged.
        """
        return str(self.read(photo, ['model'])['model'])

    def missing(self, photos: Sequence[Path], model: str) -> list[Path]:
        """Return the photographs that have no file yet.

        :raises DataError: a file is damaged, or another network made it.
        """
        without = []
        for photo in photos:
            if not self.path(photo).exists():
                without.append(photo)
            elif (made_by := self.model_of(photo)) != model:
                raise DataError(
                    f'{self.path(photo)} was made by {made_by}, not by {model}: remove it, or '
                    'name that checkpoint'
                )
        return without

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The course of a training run: lines of JSON, pictures of them, and TensorBoard if installed."""

from __future__ import annotations

from collections.abc import Mapping
import importlib.util
import json
from pathlib import Path
from typing import Any

from feat_ros.errors import DataError

# What is drawn, where a run has it.
_TITLES = {
    'matched_right': 'matches found right',
    'match_loss': 'loss of the matches',
    'matchability_loss': 'loss of matchability',
    'detection_loss': 'loss of the detection',
    'stability_loss': 'loss of the stability groups',
    'group_right': 'stability groups right',
    'loss': 'loss',
    'distillation_loss': 'loss of the relations',
    'inter_class_loss': 'loss between classes',
    'intra_class_loss': 'loss within classes',
    'consistency_loss': 'distance to the teacher',
    'grouping_loss': 'loss of the groups',
    'edge_loss': 'loss of the edges',
    'localized': 'frames of a town within 0.25 m and 2 deg',
    'localized_area': 'area under the share within up to 0.25 m',
    'recall_1': 'finds what sees the same first',
    'night_recall_1': 'and in little light',
}


class Curves:
    """Appends to ``log.jsonl`` and ``validation.jsonl`` of a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._board: Any = None

    def add(self, name: str, line: Mapping[str, float]) -> None:
        """Append figures of a step to ``NAME.jsonl``; the key ``step`` says which.

        :raises DataError: the disk is full or read-only.
        """
        path = self.folder / f'{name}.jsonl'
        try:
            with path.open('a', encoding='utf-8') as file:
                file.write(json.dumps(dict(line)) + '\n')
        except OSError as error:
            raise DataError(f'{path} cannot be written: {error.strerror or error}') from None
        if self._board is None and importlib.util.find_spec('tensorboard'):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / 'tensorboard'))
        if self._board is not None:
            for key, value in line.items():
                self._board.add_scalar(f'{name}/{key}', value, int(line['step']))

    def truncate(self, step: int) -> None:
        """Drop what was written after a step: a run goes on from its last checkpoint."""
        for name in ('log', 'validation'):
            path = self.folder / f'{name}.jsonl'
            if path.exists():
                lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
                kept = [line for line in lines if json.loads(line)['step'] <= step]
                if len(kept) < len(lines):
                    path.write_text(''.join(kept), encoding='utf-8')

    def draw(self) -> None:
        """Draw ``curves.png``, where matplotlib is installed."""
        if not importlib.util.find_spec('matplotlib'):
            return
        from matplotlib.figure import Figure

        training, validation = (self.read(name) for name in ('log', 'validation'))
        keys = [key for key in _TITLES if any(key in line for line in training + validation)]
        rows = -(-max(len(keys), 1) // 2)
        figure = Figure(figsize=(10, 3 * rows), layout='constrained')
        axes = figure.subplots(rows, 2, squeeze=False)
        for axis in axes.flat[len(keys) :]:
            axis.set_axis_off()
        for axis, key in zip(axes.flat, keys, strict=False):
            for lines, label in ((training, 'training'), (validation, 'held-out photographs')):
                found = [(line['step'], line[key]) for line in lines if key in line]
                if found:
                    axis.plot(*zip(*found, strict=True), label=label, marker='.', markersize=3)
            axis.set_title(_TITLES[key], fontsize=10)
            axis.set_xlabel('step')
            axis.grid(alpha=0.3)
        if training:
            axes.flat[0].legend()
        figure.savefig(self.folder / 'curves.png', dpi=90)

    def read(self, name: str) -> list[dict[str, float]]:
        """Return the lines of ``NAME.jsonl``."""
        path = self.folder / f'{name}.jsonl'
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The retrieval index in a map folder: a codebook and inverted files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feat_ros import config
from feat_ros.retrieval.asmk import AsmkConfig, AsmkIndex
from feat_ros.retrieval.inverted_file import InvertedFile
from feat_ros.sfm_map import open_arrays, SfmMap, write_arrays


def write_index(folder: Path, index: AsmkIndex) -> dict[str, Any]:
    """Write an index into the new folder ``retrieval``; return its entry for the manifest.

    :raises MapError: the disk is full or read-only.
    """
    return {
        'options': config.to_dict(index.config),
        'arrays': write_arrays(folder, index.arrays()),
        'files': [
            write_file(folder, f'file-{number:04}', file)
            for number, file in enumerate(index.files)
        ],
    }


def write_file(folder: Path, name: str, file: InvertedFile) -> dict[str, Any]:
    """Write an inverted file into ``retrieval``; return its entry for the manifest.

    :raises MapError: the disk is full or read-only.
    """
    return {'name': name, 'arrays': write_arrays(folder / name, file.arrays())}


def open_index(sfm_map: SfmMap) -> AsmkIndex | None:
    """Open the index of a map, which is read as it is searched; None where it has none.

    :raises MapError: a file that is missing or does not fit the others.
    """
    entry = sfm_map.manifest.retrieval
    return read_index(sfm_map.path, entry) if entry else None


def read_index(path: Path, entry: Mapping[str, Any]) -> AsmkIndex:
    """Open the index that is in the folder ``retrieval`` of a map; errors as above.

    :param entry: of :func:`write_index`.
    """
    folder = path / 'retrieval'
    files = [
        InvertedFile.from_arrays(open_arrays(folder / file['name'], file['arrays']))
        for file in entry['files']
    ]
    options = config.from_dict(AsmkConfig, entry['options'])
    return AsmkIndex.from_arrays(open_arrays(folder, entry['arrays']), files, options)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands share: arguments, progress bars, writing of results."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import shlex
import sys
from typing import Any, cast, IO

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.colmap_files import read_queries
from feat_ros.errors import DataError

# The name that stands for all images in a file of cameras.
ALL_IMAGES = '*'

_open_bars: list[Any] = []


def add_command(
    commands: Any, name: str, summary: str, example: str, options: list[str] | None = None
) -> argparse.ArgumentParser:
    """Add a sub-command whose ``--help`` shows an example and its ``--set`` options."""
    epilog = f'example:\n  {example}'
    if options:
        epilog += '\n\noptions of --set, with their defaults:\n  ' + '\n  '.join(options)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary.replace('%', '%%'),
        description=summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if options:
        parser.add_argument(
            '--set', action='append', default=[], metavar='NAME=VALUE', dest='options',
            help='change an option listed below; repeat for more',
        )  # fmt: skip
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures as JSON')
    return parser


def add_extractor_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--extractor-option``."""
    parser.add_argument(
        '--extractor-option', action='append', default=[], metavar='NAME=VALUE',
        help='an option of the extractor, for instance max_keypoints=2048; repeat for more',
    )  # fmt: skip


def camera_of_all(path: Path) -> Camera:
    """Read the camera of a file with one line "* MODEL width height params...".

    :raises DataError: another line, or none.
    """
    cameras = read_queries(path)
    if list(cameras) != [ALL_IMAGES]:
        raise DataError(f'{path} must have one line, "{ALL_IMAGES} MODEL width height params..."')
    return cameras[ALL_IMAGES]


def progress(items: list[Any], what: str) -> Iterable[Any]:
    """Show a bar on standard error while the items are used, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return items
    bar = tqdm(items, desc=what, unit='image', file=sys.stderr, dynamic_ncols=True)
    _open_bars.append(bar)
    return cast(Iterable[Any], bar)


def close_bars() -> None:
    """End the line of a bar that an error left unfinished."""
    while _open_bars:
        _open_bars.pop().close()


def write_output(path: Path, text: str) -> None:
    """Write a text so that it is there whole or not at all.

    :raises DataError: the folder is missing, the disk is full or read-only.
    """
    with _replacing(path) as file:
        file.write(text.encode())


def write_arrays(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write an ``.npz`` file as :func:`write_output` writes a text."""
    with _replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    temporary = path.with_name(path.name + '.tmp')
    try:
        with temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f'{path} cannot be written: {error.strerror or error}') from None


def check_writable(path: Path) -> None:
    """Check before long work that its result can be written.

    :raises DataError: the folder is missing or the path is a folder.
    """
    if path.is_dir():
        raise DataError(f'{path} is a folder: name a file')
    if not path.absolute().parent.is_dir():
        raise DataError(f'{path} cannot be written: folder {path.parent} does not exist')


def command_line() -> str:
    """Return the command as it was typed, for manifests."""
    return shlex.join(['feat_ros', *sys.argv[1:]])

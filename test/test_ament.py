# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The linters of ament, as packages of ROS 2 are expected to pass them.

All but ament_copyright, which does not know the SPDX lines that this package has instead.
"""

from __future__ import annotations

from pathlib import Path
import socket

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [str(ROOT / name) for name in ('feat_ros', 'launch', 'test', 'setup.py')]


# What Black's formatting, imports behind importorskip (I100 too), and fields named as in ROS need.
_FLAKE8 = 'A003,A005,E203,E402,B902,C816,D,I202'
# As in pyproject.toml: the first line says what a thing is, and ends without a rule for its form.
_PEP257 = ['D203', 'D205', 'D212', 'D213', 'D400', 'D401', 'D402', 'D403', 'D404', 'D415']
_SCHEMAS = 'download.ros.org', 80


def test_flake8(tmp_path: Path) -> None:
    linter = pytest.importorskip('ament_flake8.main', reason='ament_flake8 is not there')
    config = tmp_path / 'flake8.ini'
    config.write_text(
        f'[flake8]\nextend-ignore = {_FLAKE8}\nmax-line-length = 99\n'
        'import-order-style = google\napplication-import-names = feat_ros\n'
        f'per-file-ignores = {ROOT}/test/*: I100\n'
    )
    assert linter.main(argv=['--config', str(config), *SOURCES]) == 0


def test_pep257() -> None:
    linter = pytest.importorskip('ament_pep257.main', reason='ament_pep257 is not there')
    ignored = ['D100', 'D101', 'D102', 'D103', 'D104', 'D105', 'D106', 'D107', *_PEP257]
    assert linter.main(argv=['--ignore', *ignored, '--', *SOURCES]) == 0


def test_xmllint() -> None:
    linter = pytest.importorskip('ament_xmllint.main', reason='ament_xmllint is not there')
    try:
        socket.create_connection(_SCHEMAS, timeout=5).close()
    except OSError:
        pytest.skip('the schema of package.xml is on a network that is not there')
    assert linter.main(argv=[str(ROOT / 'package.xml')]) == 0

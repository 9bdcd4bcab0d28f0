# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Install the PyTorch that the [train] extra names, for the CPU.

PyTorch's own CPU index is asked first, then the index pip is set up with. Either answer is
looked at before anything is fetched, and refused where it would bring CUDA: gigabytes that no
target of the Makefile uses. Whoever trains on a GPU installs feat_ros[train] with pip itself.
"""

import argparse
from importlib.metadata import requires
import json
from pathlib import Path
import subprocess
import sys
import tempfile

CPU_INDEX = 'https://download.pytorch.org/whl/cpu'


def pinned_torch() -> str:
    """Return the requirement of the [train] extra, ``torch==<version>``."""
    lines = (line.partition(';') for line in requires('feat_ros') or [])
    (torch,) = [name.strip() for name, _, _ in lines if name.startswith('torch')]
    return torch


def pip_install(*arguments: str, silent: bool = False) -> int:
    """Run ``pip install`` in this environment and return its exit status."""
    command = [sys.executable, '-m', 'pip', 'install', *arguments]
    return subprocess.run(command, capture_output=silent).returncode


def planned_packages(requirement: str, source: list[str]) -> list[str] | None:
    """Return the names that pip would install from a source; None where it finds no answer."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.json'
        plan_only = ['--dry-run', '--report', str(report)]
        if pip_install(*plan_only, *source, requirement, silent=True):
            return None
        plan = json.loads(report.read_text(encoding='utf-8'))
    return [item['metadata']['name'] for item in plan['install']]


def main() -> int:
    """Install from the first source that offers a CPU wheel."""
    parser = argparse.ArgumentParser(description='Install PyTorch for the CPU.')
    parser.add_argument('--cpu-index', default=CPU_INDEX, help='index asked first (%(default)s)')
    cpu_index = parser.parse_args().cpu_index
    requirement = pinned_torch()
    refused = []
    for source in (['--retries', '1', '--index-url', cpu_index], []):
        packages = planned_packages(requirement, source)
        where = source[-1] if source else "pip's index"
        if packages is None:
            refused.append(f'{where} does not have it')
        elif cuda := [name for name in packages if name.lower().startswith('nvidia-')]:
            refused.append(f'{where} would bring {cuda[0]}')
        else:
            return pip_install(*source, requirement)
    print(
        f'no {requirement} without CUDA: {"; ".join(refused)}; name an index of CPU wheels with '
        '--cpu-index, or install it by hand',
        file=sys.stderr,
    )
    return 1


if __name__ == '__main__':
    sys.exit(main())

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Check that a robot can install what it needs: wheels for 64-bit ARM, for each ROS release.

The base requirements and the [onnx] extra are resolved under each profile beside this file, for
that release's Python. Only metadata is fetched. pip reads environment markers
(``python_version < "3.11"``) as those of the machine it runs on.
"""

import argparse
from importlib.metadata import requires
import json
from pathlib import Path
import subprocess
import sys
import tempfile

PYTHON_OF = {'humble': '3.10', 'jazzy': '3.12', 'lyrical': '3.14'}
# What wheels are built for and Ubuntu 22.04 can run; pip does not infer the older names.
PLATFORMS = ('manylinux_2_28', 'manylinux_2_27', 'manylinux_2_17', 'manylinux2014')


def robot_requirements() -> list[str]:
    """Return the base requirements and those of the [onnx] extra."""
    lines = [line.replace("'", '"') for line in requires('feat_ros') or []]
    parts = (line.partition(';') for line in lines)
    return [
        name.strip() for name, _, marker in parts if 'extra' not in marker or '"onnx"' in marker
    ]


def dry_run(*arguments: str) -> tuple[list[str], str]:
    """Return what pip would install, as ``name version``, and what it says on failure."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.json'
        command = [sys.executable, '-m', 'pip', 'install', '--dry-run']
        command += ['--only-binary=:all:', '--ignore-installed', '--target', folder]
        command += ['--report', str(report), *arguments]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            return [], run.stdout + run.stderr
        items = [item['metadata'] for item in json.loads(report.read_text())['install']]
    return sorted(f'{item["name"]} {item["version"]}' for item in items), ''


def resolve(release: str) -> tuple[list[str], str]:
    """Resolve a robot's requirements for one ROS release on 64-bit ARM."""
    target = [word for name in PLATFORMS for word in ('--platform', f'{name}_aarch64')]
    target += ['--python-version', PYTHON_OF[release], '--implementation', 'cp']
    profile = Path(__file__).with_name(f'robot-{release}.txt')
    return dry_run(*target, '--constraint', str(profile), *robot_requirements())


def main() -> int:
    """Print the packages of each release; exit 1 where one cannot be installed."""
    parser = argparse.ArgumentParser(description='Resolve the robot profiles for 64-bit ARM.')
    parser.add_argument('releases', nargs='*', metavar='RELEASE', help=', '.join(PYTHON_OF))
    releases = parser.parse_args().releases or list(PYTHON_OF)
    if unknown := sorted(set(releases) - set(PYTHON_OF)):
        parser.error(f'no profile {unknown[0]!r}: choose from {", ".join(PYTHON_OF)}')
    if not dry_run('--no-deps', '--retries', '1', 'numpy')[0]:
        print('resolve: skipped, because the package index cannot be reached')
        return 0
    status = 0
    for release in releases:
        packages, error = resolve(release)
        if packages:
            print(f'resolve: {release}, Python {PYTHON_OF[release]}: {", ".join(packages)}')
        else:
            print(f'resolve: {release} cannot be installed on 64-bit ARM:\n{error}', end='')
            status = 1
    return status


if __name__ == '__main__':
    sys.exit(main())

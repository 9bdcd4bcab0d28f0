# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The package as colcon builds it: launch files, nodes by ros2 run, a life from outside."""

from __future__ import annotations

from importlib.metadata import distribution, PackageNotFoundError
import json
import os
from pathlib import Path
import shutil
import subprocess
from typing import Any

import numpy as np
from packaging.requirements import Requirement
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not sourced: there is no rclpy')
pytest.importorskip('launch_testing', reason='launch_testing is not installed')
if shutil.which('colcon') is None:
    pytest.skip('colcon is not installed', allow_module_level=True)

from conftest import CAMERA, Scene, walk
from test_dds import free_domain
from test_replay import IMAGES, INFO, ODOMETRY, TRUTH, write_recording

from feat_ros.sfm_map import SfmMap

ROOT = Path(__file__).parents[1]
PATIENCE_S = 240.0
_NOT_OURS = ('VIRTUAL_ENV', 'PYTEST_CURRENT_TEST', 'COVERAGE_PROCESS_START')
_LEFT_OUT = ('.*', '__pycache__', 'training_runs', 'demo_out', '*.egg-info')


@pytest.fixture(scope='module')
def recording(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures on the walk, with odometry."""
    poses = walk(9, 0.5)
    images = [scene.room.shoot(CAMERA, pose, 70 + n) for n, pose in enumerate(poses)]
    return write_recording(tmp_path_factory.mktemp('bags') / 'walk', images, poses)


def link_libraries(folder: Path) -> None:
    """Give ROS's Python what a robot has from apt or pip: here it is in this environment."""
    waiting, seen = ['feat_ros'], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        wanted = [Requirement(line) for line in found.requires or []]
        extras = ('', 'map') if name == 'feat_ros' else ('',)
        waiting += [
            each.name for each in wanted
            if each.marker is None or any(each.marker.evaluate({'extra': e}) for e in extras)
        ]  # fmt: skip
        if name != 'feat_ros':
            for part in {file.parts[0] for file in found.files or [] if file.parts[0] != '..'}:
                source, target = Path(str(found.locate_file(part))), folder / part
                if source.exists() and not target.exists():
                    target.symlink_to(source)


class Workspace:
    """What colcon has built, and commands in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = folder / 'src' / 'feat_ros'
        shutil.copytree(
            ROOT, source,
            ignore=shutil.ignore_patterns(*_LEFT_OUT),
        )  # fmt: skip
        self.libraries = folder / 'libraries'
        self.libraries.mkdir()
        link_libraries(self.libraries)
        self.run('colcon', 'build', is_built=False)

    def run(self, *words: Any, is_built: bool = True, **extra: str) -> tuple[int, str]:
        """Run a command; return its exit code and what it said."""
        setup = 'source install/setup.bash && ' if is_built else ''
        # Tools of the project's own environment are not those of ROS.
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(('VIRTUAL_ENV', 'COV_'))
        }
        path = [p for p in os.environ['PATH'].split(':') if '.venv' not in p]
        done = subprocess.run(
            ['bash', '-c', setup + 'exec "$@"', 'bash', *map(str, words)],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            env={
                **environment, 'PATH': ':'.join(path), 'OMP_NUM_THREADS': '1',
                'PYTHONPATH': os.pathsep.join(
                    filter(None, [environment.get('PYTHONPATH'), str(self.libraries)])
                ),
                'ROS_DOMAIN_ID': str(free_domain()),
                'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', **extra,
            },
        )  # fmt: skip
        if not is_built:
            assert done.returncode == 0, done.stdout
        return done.returncode, done.stdout


@pytest.fixture(scope='module')
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp('workspace'))


def test_localize(workspace: Workspace, room_map: SfmMap, recording: Path) -> None:
    """Poses, transforms, diagnostics, points: launch_localize.py says which."""
    code, said = workspace.run(
        'launch_test', ROOT / 'test' / 'launch' / 'launch_localize.py',
        MAP=str(room_map.path), BAG=str(recording),
    )  # fmt: skip
    assert code == 0, said


def test_replay(
    workspace: Workspace, room_map: SfmMap, recording: Path, tmp_path: Path
) -> None:  # fmt: skip
    """The exit code is the verdict; extractor and localizer as two processes."""
    words = [
        'ros2', 'launch', 'feat_ros', 'replay.launch.py', f'bag:={recording}',
        f'map:={room_map.path}', f'image:={IMAGES}', f'camera_info:={INFO}',
        f'odom:={ODOMETRY}', 'rate:=0.3', f'out:={tmp_path / "out"}',
    ]  # fmt: skip
    code, said = workspace.run(*words, 'min_poses:=5', 'split:=true')
    assert code == 0, said
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert summary['num_poses'] >= 5 and summary['problems'] == []
    assert len(np.loadtxt(tmp_path / 'out' / 'trajectory.tum')) == summary['num_poses']
    code, said = workspace.run(*words, 'min_poses:=1000')
    assert code != 0 and 'poses came, 1000 are needed' in said, said


def test_map_of_a_bag(workspace: Workspace, recording: Path, tmp_path: Path) -> None:
    words = ['ros2', 'launch', 'feat_ros', 'map.launch.py']
    code, said = workspace.run(*words)
    assert code != 0 and 'bag is not named: add bag:=...' in said, said
    script = workspace.folder / 'install' / 'feat_ros' / 'lib' / 'feat_ros' / 'feat_ros'
    python = script.read_text().splitlines()[0].removeprefix('#!').split()
    if workspace.run(*python, '-c', 'import pycolmap, rosbags')[0]:
        pytest.skip("ROS's Python has no pycolmap or rosbags: no map can be built with it")
    code, said = workspace.run(
        *words, f'bag:={recording}', f'image:={IMAGES}', f'camera_info:={INFO}',
        f'poses:={TRUTH}', f'out:={tmp_path / "map"}', 'extractor:=sift',
    )  # fmt: skip
    assert code == 0, said
    assert SfmMap(tmp_path / 'map').num_images > 2


def test_arguments(workspace: Workspace) -> None:
    for name in ('localize', 'replay', 'map'):
        code, said = workspace.run(
            'ros2', 'launch', 'feat_ros', f'{name}.launch.py', '--show-args'
        )
        assert code == 0 and "'image':" in said, said
    words = ['ros2', 'launch', 'feat_ros', 'localize.launch.py']
    code, said = workspace.run(*words, 'mapp:=x')
    assert code != 0 and "there is no argument 'mapp': there are map, image" in said, said
    code, said = workspace.run(*words, 'tf:=earth')
    assert code != 0 and 'earth' in said, said


def test_executables(workspace: Workspace) -> None:
    code, said = workspace.run('ros2', 'pkg', 'executables', 'feat_ros')
    assert code == 0
    assert {line.split()[1] for line in said.splitlines()} == {
        'feat_ros', 'localizer', 'extractor', 'recorder',
    }  # fmt: skip

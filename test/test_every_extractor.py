# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every extractor from pictures to poses: a map of the room, and a bag replayed in it."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
from typing import Any

from conftest import CAMERA, Scene, walk
import pytest
from test_replay import IMAGES, INFO, TRUTH, write_recording

from feat_ros.cli import main
from feat_ros.extractors import create_extractor, EXTRACTORS
from feat_ros.map_builder import build_map
from feat_ros.town import course

# What torch runs: of the one there is no export, that of the other describes 1024 keypoints
# however few are asked for.
_BY_TORCH = ('aislfd_exact', 'hynet')


@pytest.fixture(scope='module')
def recording(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures on the walk."""
    poses = walk(3, 2.5)
    images = [scene.room.shoot(CAMERA, pose, 40 + n) for n, pose in enumerate(poses)]
    return write_recording(tmp_path_factory.mktemp('bags') / 'walk', images, poses)


@pytest.mark.parametrize('name', EXTRACTORS)
def test_a_bag_in_the_map_of_a_room(
    scene: Scene, recording: Path, tmp_path: Path, name: str
) -> None:
    libraries = ['pycolmap', 'rosbags']
    options: dict[str, Any] = {'max_keypoints': 250}
    if name != 'sift':
        options['runtime'] = 'torch' if name in _BY_TORCH else 'onnx'
        libraries.append('torch' if name in _BY_TORCH else 'onnxruntime')
    for library in libraries:
        pytest.importorskip(library, reason=f'{library} is not installed, which {name} needs here')
    extractor = create_extractor(name, **options)
    sfm_map = build_map(tmp_path / 'map', scene.folder, scene.images[2:6], extractor)
    words = ['replay', '--map', str(sfm_map.path), '--bag', str(recording)]
    words += ['--image-topic', IMAGES, '--info-topic', INFO, '--ground-truth-topic', TRUTH]
    assert main([*words, '--out', str(tmp_path / 'out')]) == 0
    figures = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert figures['num_queries'] == 3
    assert figures['num_localized'] >= 2
    assert figures['recall']['0.25m_2deg'] >= 2 / 3


def test_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Along nine metres of a short street."""
    for library in ('pycolmap', 'rosbags', 'matplotlib'):
        pytest.importorskip(library, reason=f'{library} is not installed')
    monkeypatch.setattr(course, 'STREET_M', 40.0)
    for name, drive in course.DRIVES.items():
        monkeypatch.setitem(course.DRIVES, name, replace(drive, length_m=9.0))
    out = tmp_path / 'demo'
    assert main(['demo', '--extractor', 'sift', '--out', str(out)]) == 0
    figures = json.loads((out / 'demo.json').read_text())
    assert figures['num_queries'] == 10
    assert figures['num_localized'] >= 5
    assert figures['recall']['0.25m_2deg'] >= 0.5
    assert (out / 'demo.png').read_bytes().startswith(b'\x89PNG')
    assert f'report: {out / "replay" / "report.html"}' in capsys.readouterr().out

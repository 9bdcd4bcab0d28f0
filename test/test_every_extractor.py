# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every extractor from pictures to poses: a map of the room, and a bag replayed in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CAMERA, Scene, walk
from test_replay import IMAGES, INFO, TRUTH, write_recording

from feat_ros.cli import main
from feat_ros.extractors import create_extractor, EXTRACTORS
from feat_ros.map_builder import build_map

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

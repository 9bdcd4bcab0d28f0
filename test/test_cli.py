# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The commands as a user types them, from pictures to figures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
from pathlib import Path
import sys

from conftest import CAMERA, Scene
import cv2
import numpy as np
import pytest

from feat_ros.cli import build_parser, main
from feat_ros.colmap_files import format_poses, read_poses
from feat_ros.extractors import create_extractor
from feat_ros.image import read_image
from feat_ros.sfm_map import SfmMap


def _leaves(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[list[str]]:
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in actions:
        for name, child in action.choices.items():
            yield from _leaves(child, [*words, name])
    if not actions:
        yield words


@pytest.mark.parametrize('words', list(_leaves(build_parser(), [])), ids=' '.join)
def test_help_has_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, '--help'])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f'feat_ros {" ".join(words)}' in text.partition('example:')[2]
    assert '--json' in text


def _picture_size(path: Path) -> tuple[int, ...]:
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.std() > 5
    return tuple(picture.shape)


def test_localize_evaluate_and_info(
    scene: Scene, room_map: SfmMap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = tmp_path / 'queries.txt'
    queries.write_text(''.join(f'{q.name} {CAMERA.to_words()}\n' for q in scene.queries))
    truth = tmp_path / 'truth.txt'
    truth.write_text(format_poses({q.name: q.cam_from_map for q in scene.queries}))
    run, poses, figures = tmp_path / 'run.json', tmp_path / 'poses.txt', tmp_path / 'eval.json'

    localize = ['localize', '--map', f'{room_map.path}', '--images', f'{scene.folder}']
    localize += ['--queries', f'{queries}', '--out', f'{poses}', '--json', f'{run}']
    assert main(localize) == 0
    assert set(read_poses(poses)) == {q.name for q in scene.queries}
    result = json.loads(run.read_text())
    assert result['num_localized'] == result['num_queries'] == len(scene.queries)
    assert set(result['latency_ms']) == {'extract', 'retrieve', 'match', 'pnp', 'total'}

    evaluate = ['evaluate', '--estimate', f'{poses}', '--ground-truth', f'{truth}']
    evaluate += ['--list', f'{queries}', '--covariances', f'{run}', '--json', f'{figures}']
    assert main([*evaluate, '--truth-sigma-m', '0.001']) == 0
    report = json.loads(figures.read_text())
    assert report['recall']['0.05m_5deg'] == 1.0
    assert report['median_translation_error_m'] < 0.01
    assert report['covariance']['num_poses'] == len(scene.queries)
    assert '95 % ellipsoid' in capsys.readouterr().out

    picture = tmp_path / 'map.png'
    assert main(['map', 'info', f'{room_map.path}', '--verify', '--plot', f'{picture}']) == 0
    out = capsys.readouterr().out
    assert f'{room_map.num_points} points' in out
    assert 'every byte is as it was written' in out
    assert _picture_size(picture)[0] > 300


def test_failures_are_listed_and_counted(
    scene: Scene, room_map: SfmMap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A blank picture is a named failure; evaluate counts it as infinitely wrong."""
    (tmp_path / 'images').mkdir()
    blank = np.full((CAMERA.height, CAMERA.width), 90, np.uint8)
    cv2.imwrite(str(tmp_path / 'images/blank.png'), blank)
    (tmp_path / 'queries.txt').write_text(f'blank.png {CAMERA.to_words()}\n')
    truth = tmp_path / 'truth.txt'
    truth.write_text(format_poses({'blank.png': scene.queries[0].cam_from_map}))
    run, poses, figures = tmp_path / 'run.json', tmp_path / 'poses.txt', tmp_path / 'eval.json'
    words = ['localize', '--map', f'{room_map.path}', '--images', f'{tmp_path}/images']
    words += ['--queries', f'{tmp_path}/queries.txt', '--out', f'{poses}', '--json', f'{run}']
    assert main(words) == 0
    assert json.loads(run.read_text())['reasons'] == {'NO_FEATURES': 1}
    assert 'blank.png: NO_FEATURES: the image gave 0 keypoints' in capsys.readouterr().out
    words = ['evaluate', '--estimate', f'{poses}', '--ground-truth', f'{truth}']
    assert main([*words, '--json', f'{figures}']) == 0
    report = json.loads(figures.read_text())
    assert report['median_translation_error_m'] is None
    assert set(report['recall'].values()) == {0.0}


def test_extract_writes_what_the_extractor_gives(scene: Scene, tmp_path: Path) -> None:
    images = [scene.folder / scene.images[n].name for n in (0, 1)]
    out, plot = tmp_path / 'features.npz', tmp_path / 'features.png'
    words = ['extract', '--extractor', 'sift', '--extractor-option', 'max_keypoints=50']
    words += [*map(str, images), '--out', f'{out}', '--plot', f'{plot}']
    assert main(words) == 0
    expected = create_extractor('sift', max_keypoints=50)(read_image(images[1]))
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays['names'].tolist() == [str(path) for path in images]
        np.testing.assert_array_equal(arrays['1/keypoints'], expected.keypoints)
        np.testing.assert_array_equal(arrays['1/descriptors'], expected.descriptors)
    assert _picture_size(plot)[1] > 300


def test_missing_package_is_one_sentence(
    room_map: SfmMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A robot has no matplotlib."""
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    words = ['map', 'info', f'{room_map.path}', '--plot', f'{tmp_path}/map.png']
    assert main(words) == 1
    assert "needs the Python package 'matplotlib" in capsys.readouterr().err

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every kind of bad input: one sentence with the value and the way out, exit 1, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from typing import Any

from conftest import CAMERA, Scene
import cv2
import numpy as np
import pytest

from feat_ros.cli import main


@pytest.fixture(scope='module')
def room(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pictures with a COLMAP model, a map of some of them and an earlier result."""
    folder = tmp_path_factory.mktemp('room')
    (folder / 'images').mkdir()
    (folder / 'colmap').mkdir()
    chosen = [*scene.images[:4], *scene.queries[:2]]
    lines = []
    for number, image in enumerate(chosen, 1):
        shutil.copy(scene.folder / image.name, folder / 'images')
        pose = image.cam_from_map
        qx, qy, qz, qw = pose.quat_xyzw
        numbers = ' '.join(str(float(v)) for v in (qw, qx, qy, qz, *pose.translation))
        lines.append(f'{number} {numbers} 1 {image.name}\n\n')
    (folder / 'colmap/cameras.txt').write_text(f'1 {CAMERA.to_words()}\n')
    (folder / 'colmap/images.txt').write_text(''.join(lines))
    (folder / 'mapping.txt').write_text('\n'.join(image.name for image in chosen[:4]))
    queries = ''.join(f'{image.name} {CAMERA.to_words()}\n' for image in chosen[4:])
    (folder / 'queries.txt').write_text(queries)
    assert main([*_build(folder), '--set', 'left_out_images=0']) == 0
    assert main(_localize(folder)) == 0
    return folder


@pytest.fixture
def work(room: Any, tmp_path: Any) -> Any:
    """A copy to damage."""
    shutil.copytree(room, tmp_path / 'room')
    return tmp_path / 'room'


def _build(folder: Any, out: Any = 'map') -> Any:
    return [
        'map', 'build', '--out', f'{folder}/{out}', '--images', f'{folder}/images',
        '--colmap', f'{folder}/colmap', '--list', f'{folder}/mapping.txt',
        '--extractor-option', 'max_keypoints=500',
    ]  # fmt: skip


def _localize(folder: Any) -> Any:
    return [
        'localize', '--map', f'{folder}/map', '--images', f'{folder}/images',
        '--queries', f'{folder}/queries.txt', '--out', f'{folder}/poses.txt',
    ]  # fmt: skip


def _rewrite(path: Any, old: Any, new: Any) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _edit_manifest(folder: Any, **changes: Any) -> None:
    path = folder / 'map' / 'manifest.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _flip_bit(path: Any) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(bytes(data))


def _cut(path: Any, share: Any = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _image(work: Any) -> Any:
    return work / 'images' / (work / 'queries.txt').read_text().split()[0]


def _png(work: Any, array: Any) -> None:
    cv2.imwrite(str(_image(work)), array)


def _jpeg(work: Any) -> Any:
    array = np.random.default_rng(0).integers(0, 255, (CAMERA.height, CAMERA.width, 3), np.uint8)
    return cv2.imencode('.jpg', array)[1].tobytes()


def _pickle(work: Any) -> None:
    np.save(
        work / 'map/segment-0000/points_xyz.npy', np.array([{'a': 1}], object), allow_pickle=True
    )


def _array(work: Any, name: Any) -> Any:
    return work / 'map' / 'segment-0000' / f'{name}.npy'


def _cases(table: Any) -> Any:
    return [pytest.param(*case[1:], id=case[0]) for case in table]


# Name, what is damaged, the sentence that must come. All of them are found by "localize".
LOCALIZE = [
    ('truncated jpeg', lambda w: _image(w).write_bytes(_jpeg(w)[:-500]), r'cut off after \d+ byt'),
    ('truncated png', lambda w: _cut(_image(w)), r'cut off after \d+ bytes: copy it again'),
    ('empty image', lambda w: _image(w).write_bytes(b''), r'is empty: copy it again'),
    ('not an image', lambda w: _image(w).write_bytes(b'hello' * 99), r'cannot be decoded'),
    ('16-bit', lambda w: _png(w, np.zeros((240, 320), np.uint16)), r'uint16: convert it to 8 bit'),
    ('alpha', lambda w: _png(w, np.zeros((240, 320, 4), np.uint8)), r'alpha channel: save it as'),
    ('other size', lambda w: _png(w, np.zeros((100, 90, 3), np.uint8)), r'image is 90x100, its c'),
    ('image is gone', lambda w: _image(w).unlink(), r'cannot be read: No such file'),
    ('image folder gone', lambda w: shutil.rmtree(w / 'images'), r'folder .* does not exist'),
    ('NaN focal', lambda w: _rewrite(w / 'queries.txt', ' 260.0 ', ' nan '), r'fy is nan: it mus'),
    ('zero focal', lambda w: _rewrite(w / 'queries.txt', ' 260.0 ', ' 0 '), r'fy is 0.0: it must'),
    ('unknown model', lambda w: _rewrite(w / 'queries.txt', 'OPENCV', 'OPENCW'), r"'OPENCW'; "),
    ('missing column', lambda w: _rewrite(w / 'queries.txt', ' -0.0006', ''), r'txt:1: camera'),
    ('not a number', lambda w: _rewrite(w / 'queries.txt', '-0.0006', 'x'), r"txt:1: .*: 'x'"),
    ('zero size', lambda w: _rewrite(w / 'queries.txt', ' 320 ', ' 0 '), r'size 0x240 is not pos'),
    ('no queries', lambda w: (w / 'queries.txt').write_text('# none\n'), r'has no query: '),
    ('query twice', lambda w: (w / 'queries.txt').write_text(
        (w / 'queries.txt').read_text() * 2), r'a second time'),
    ('binary queries', lambda w: (w / 'queries.txt').write_bytes(b'\xff\xfe\0'), r'not a text'),
    ('queries a folder', lambda w: (
        (w / 'queries.txt').unlink(), (w / 'queries.txt').mkdir()), r'cannot be read: Is'),
    ('no map', lambda w: shutil.rmtree(w / 'map'), r'does not exist: build one with "feat_'),
    ('half-written map', lambda w: (w / 'map').rename(w / 'map.partial'), r'half-written .*resu'),
    ('no manifest', lambda w: (w / 'map/manifest.json').unlink(), r'has no manifest.json: build'),
    ('cut manifest', lambda w: _cut(w / 'map/manifest.json'), r'is not JSON .*: rebuild'),
    ('edited manifest', lambda w: _edit_manifest(w, scale='unknown'), r'changed or damaged'),
    ('newer map', lambda w: _edit_manifest(w, format='feat_ros map 99'), r"format 'feat_ros"),
    ('missing array', lambda w: _array(w, 'points_xyz').unlink(), r'xyz.npy is missing: co'),
    ('cut array', lambda w: _cut(_array(w, 'point_descriptors')), r'descriptors.npy is n'),
    ('flipped bit', lambda w: _flip_bit(_array(w, 'points_xyz')), r'damaged in block 0 .*rebui'),
    ('pickle', _pickle, r'points_xyz.npy is not the array it should be'),
    ('array a folder', lambda w: (_array(w, 'image_names').unlink(),
                                  _array(w, 'image_names').mkdir()), r'names.npy cannot be r'),
]  # fmt: skip


@pytest.mark.parametrize(('damage', 'sentence'), _cases(LOCALIZE))
def test_localize_refuses(work: Any, capsys: Any, damage: Any, sentence: Any) -> None:
    """The result of the run before stays as it was."""
    before = (work / 'poses.txt').read_bytes()
    damage(work)
    assert main(_localize(work)) == 1
    _assert_one_sentence(capsys, sentence)
    assert (work / 'poses.txt').read_bytes() == before
    assert not list(work.glob('*.tmp'))


def _without_second_lines(work: Any) -> None:
    path = work / 'colmap/images.txt'
    path.write_text('\n'.join(line for line in path.read_text().splitlines() if line))


def _scaled_translations(work: Any) -> None:
    """Poses of another world: every camera is where none of its matches agrees."""
    path = work / 'colmap/images.txt'
    lines = [line.split() for line in path.read_text().splitlines() if line]
    rng = np.random.default_rng(1)
    for words in lines:
        words[1:8] = [str(value) for value in rng.normal(size=7)]
    path.write_text('\n\n'.join(' '.join(words) for words in lines) + '\n\n')


def _blank(work: Any) -> None:
    for path in (work / 'images').iterdir():
        cv2.imwrite(str(path), np.full((240, 320), 128, np.uint8))


BUILD = [
    ('no model', lambda w: shutil.rmtree(w / 'colmap'), r'no COLMAP model in'),
    ('no cameras', lambda w: (w / 'colmap/cameras.txt').unlink(), r'cameras.txt cannot be read'),
    ('unknown camera', lambda w: _rewrite(w / 'colmap/cameras.txt', '1 O', '7 O'), r'names camer'),
    ('missing column', lambda w: _rewrite(w / 'colmap/images.txt', ' 1 map00.png', ' map00.png'),
     r'images.txt:1 has 9 columns: an image needs'),
    ('missing point lines', _without_second_lines, r'is not a list of X Y POINT3D_ID'),
    ('NaN pose', lambda w: _rewrite(w / 'colmap/images.txt', ' 1 map00.png', 'nan 1 map00.png'),
     r'images.txt:1 has a bad pose'),
    ('unlisted image', lambda w: (w / 'mapping.txt').write_text('99.png'), r"first is '99.png'"),
    ('empty list', lambda w: (w / 'mapping.txt').write_text(''), r'names no image'),
    ('one image', lambda w: (w / 'mapping.txt').write_text('map00.png'), r'at least 2 are'),
    ('missing image', lambda w: (w / 'images/map00.png').unlink(), r'first is .*map00.png: gi'),
    ('other camera size', lambda w: _rewrite(w / 'colmap/cameras.txt', ' 240 ', ' 480 '),
     r'is 320x240, its camera 320x480: use the images'),
    ('blank images', _blank, r'no image gave a keypoint'),
    ('wrong poses', _scaled_translations, r'check that the poses are cam_from_map|same direction'),
]  # fmt: skip


@pytest.mark.parametrize(('damage', 'sentence'), _cases(BUILD))
def test_build_refuses(work: Any, capsys: Any, damage: Any, sentence: Any) -> None:
    """The map that exists is untouched even where it was to be replaced."""
    before = _content(work / 'map')
    damage(work)
    assert main([*_build(work), '--overwrite']) == 1
    _assert_one_sentence(capsys, sentence)
    assert _content(work / 'map') == before


OPTIONS = [
    ('unknown option', ['--set', 'min_match=3'], r"no option 'min_match': it has pairs_per_image"),
    ('unknown nested', ['--set', 'triangulation.angle=3'], r"no option 'angle': it has min_angle"),
    ('unknown group', ['--set', 'pnp.x=3'], r"no group 'pnp' of options"),
    ('option out of range', ['--set', 'min_matches=0'], r'is 0: it must be at least 1'),
    ('option of wrong type', ['--set', 'min_matches=many'], r"is 'many': it must be int"),
    ('option without value', ['--set', 'min_matches'], r'write it as name=value'),
    ('bad choice', ['--set', 'scale=feet'], r"is 'feet': choose one of metric, unknown"),
    ('unknown extractor', ['--extractor', 'surf'], r"extractor 'surf'; choose one of: sift"),
    ('extractor option', ['--extractor-option', 'max_keypoints=0'], r'it must be at least 1'),
]  # fmt: skip


@pytest.mark.parametrize(('words', 'sentence'), _cases(OPTIONS))
def test_build_refuses_options(work: Any, capsys: Any, words: Any, sentence: Any) -> None:
    assert main([*_build(work, 'other'), *words]) == 1
    _assert_one_sentence(capsys, sentence)
    assert not (work / 'other').exists()


def test_map_exists(work: Any, capsys: Any) -> None:
    before = _content(work / 'map')
    assert main(_build(work)) == 1
    _assert_one_sentence(capsys, r'map exists: choose another --out, or replace it with --overwr')
    assert _content(work / 'map') == before


def test_map_of_another_extractor(work: Any, capsys: Any, monkeypatch: Any) -> None:
    """A second extractor is registered, since the package's own may have none yet."""
    from feat_ros import extractors
    from feat_ros.extractors.sift import SiftConfig, SiftExtractor

    class Other(SiftExtractor):
        name = 'other'

    registry = {**extractors.EXTRACTORS, 'other': (Other, SiftConfig)}
    monkeypatch.setattr(extractors, 'EXTRACTORS', registry)
    assert main([*_localize(work), '--extractor', 'other']) == 1
    _assert_one_sentence(
        capsys, r"was built with extractor 'sfd2_lite', not 'other': .*rebuild it"
    )


@pytest.mark.parametrize('command', ['build', 'localize', 'json'])
def test_full_disk(work: Any, capsys: Any, monkeypatch: Any, command: Any) -> None:
    """What a full disk says reaches the user, and what was there stays."""
    before = _content(work / 'map'), (work / 'poses.txt').read_bytes()

    def full(_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    words = {
        'build': [*_build(work), '--overwrite'],
        'localize': _localize(work),
        'json': ['map', 'info', f'{work}/map', '--json', f'{work}/info.json'],
    }[command]
    assert main(words) == 1
    _assert_one_sentence(capsys, r'cannot be written.*No space left on device')
    assert (_content(work / 'map'), (work / 'poses.txt').read_bytes()) == before
    assert not (work / 'info.json').exists()


def test_result_folder_is_missing(work: Any, capsys: Any) -> None:
    words = _localize(work)
    words[-1] = f'{work}/nowhere/poses.txt'
    assert main(words) == 1
    _assert_one_sentence(capsys, r'folder .*nowhere does not exist')


def test_read_only_device(work: Any, capsys: Any) -> None:
    """/proc takes no files, whoever asks."""
    words = _build(work)
    words[3] = '/proc/map'
    assert main(words) == 1
    _assert_one_sentence(capsys, r'/proc/map.* cannot be written .*choose another folder')


def test_evaluate_refuses_strangers(work: Any, capsys: Any) -> None:
    (work / 'truth.txt').write_text('99.png 1 0 0 0 0 0 0\n')
    words = ['evaluate', '--estimate', f'{work}/poses.txt', '--ground-truth', f'{work}/truth.txt']
    assert main(words) == 1
    _assert_one_sentence(capsys, r'have no ground truth, the first is')


def test_evaluate_refuses_other_json(work: Any, capsys: Any) -> None:
    (work / 'other.json').write_text('{"queries": [1]}')
    words = ['evaluate', '--estimate', f'{work}/poses.txt', '--ground-truth', f'{work}/colmap']
    assert main([*words, '--covariances', f'{work}/other.json']) == 1
    _assert_one_sentence(capsys, r'is not what "feat_ros localize --json" writes')


def test_usage_is_exit_code_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main(['localize'])
    assert stop.value.code == 2


def test_killed_build_resumes(work: Any) -> None:
    """A build killed with SIGKILL leaves no map; the same command then resumes and completes."""
    command = [sys.executable, '-m', 'feat_ros', *_build(work, 'killed')]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    features = work / 'killed.partial' / 'features'
    deadline = time.monotonic() + 60
    while not list(features.glob('*.npz')) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert list(features.glob('*.npz'))
    assert not (work / 'killed').exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 'resuming the interrupted build' in done.stderr
    assert not (work / 'killed.partial').exists()
    assert main(['map', 'info', '--verify', f'{work}/killed']) == 0


def _content(folder: Any) -> Any:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def _assert_one_sentence(capsys: Any, sentence: Any) -> None:
    """The last line of standard error is ours; before it only progress bars and warnings."""
    err = capsys.readouterr().err.replace('\r', '\n')
    assert 'Traceback' not in err
    lines = [line for line in err.splitlines() if line.startswith('feat_ros: ')]
    assert len(lines) == 1, err
    assert err.rstrip().endswith(lines[0])
    assert re.search(sentence, lines[0]), lines[0]

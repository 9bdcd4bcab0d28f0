# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Patch sets as their authors lay them out, and the rate that tells how well pairs are told."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from numpy.testing import assert_array_equal
import numpy.typing as npt
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from feat_ros.cli import main  # noqa: E402
from feat_ros.errors import DataError  # noqa: E402
from feat_ros.feature_bench.patches import (  # noqa: E402
    bench_patches,
    describe_with,
    fpr95,
    read_hpatches,
    read_phototour,
    rootsift,
)
from feat_ros.models.hynet import HyNet  # noqa: E402
from feat_ros.models.weights import save_weights, weights_of  # noqa: E402

Patches = npt.NDArray[np.uint8]


def textures(count: int, side: int, seed: int = 0) -> Patches:
    noise = np.random.default_rng(seed).normal(size=(count, side, side))
    smooth = np.stack([cv2.GaussianBlur(each, (0, 0), side / 16) for each in noise])
    return np.asarray(np.clip(128 + 40 * smooth / smooth.std(), 0, 255), np.uint8)


def again(patches: Patches, seed: int) -> Patches:
    """The same patches, less bright and a little noisier."""
    noise = np.random.default_rng(seed).normal(0, 4, patches.shape)
    return np.asarray(np.clip(0.7 * patches + 20 + noise, 0, 255), np.uint8)


@pytest.fixture
def phototour(tmp_path: Path) -> Path:
    """300 patches on two sheets, patch k of point k // 2; a short list of pairs and a long one."""
    folder = tmp_path / 'liberty'
    folder.mkdir()
    patches = np.empty((300, 64, 64), np.uint8)
    patches[::2] = textures(150, 64)
    patches[1::2] = again(patches[::2], 1)
    for number in range(2):
        sheet = np.zeros((1024, 1024), np.uint8)
        for place, patch in enumerate(patches[256 * number : 256 * (number + 1)]):
            y, x = 64 * (place // 16), 64 * (place % 16)
            sheet[y : y + 64, x : x + 64] = patch
        cv2.imwrite(str(folder / f'patches{number:04}.bmp'), sheet)
    (folder / 'info.txt').write_text(''.join(f'{k // 2} 0\n' for k in range(300)))
    same = [f'{k} {k // 2} 0 {k + 1} {k // 2} 0 0\n' for k in range(0, 300, 2)]
    other = [f'{k} {k // 2} 0 {299 - k} {(299 - k) // 2} 0 0\n' for k in range(0, 120, 2)]
    (folder / 'm50_9_9_0.txt').write_text(same[0] + other[0])
    (folder / 'm50_100_100_0.txt').write_text(''.join(same + other))
    np.save(tmp_path / 'patches.npy', patches)
    return folder


@pytest.fixture
def hpatches(tmp_path: Path) -> Path:
    folder = tmp_path / 'hpatches'
    for number, name in enumerate(('i_hall', 'v_yard')):
        (folder / name).mkdir(parents=True)
        patches = textures(20, 65, number + 7)
        cv2.imwrite(str(folder / name / 'ref.png'), patches.reshape(-1, 65))
        for view, seed in (('e1', 2), ('t3', 3)):
            strip = again(patches, 10 * number + seed).reshape(-1, 65)
            cv2.imwrite(str(folder / name / f'{view}.png'), strip)
    return folder


def test_phototour_is_read_as_it_is_laid_out(phototour: Path, tmp_path: Path) -> None:
    pairs, patches = read_phototour(phototour), np.load(tmp_path / 'patches.npy').astype(float)
    assert (len(pairs.is_same), pairs.is_same.sum()) == (210, 150)
    # Of 64 pixels, bilinear at half the size is the mean of 2x2.
    halves = patches.reshape(300, 32, 2, 32, 2).mean((2, 4))
    lines = (phototour / 'm50_100_100_0.txt').read_text().splitlines()
    for k, line in enumerate(lines):
        first, point, _, second, other = (int(word) for word in line.split()[:5])
        assert np.abs(pairs.patches[pairs.first[k]] - halves[first]).max() <= 0.5
        assert np.abs(pairs.patches[pairs.second[k]] - halves[second]).max() <= 0.5
        assert pairs.is_same[k] == (point == other)


def test_hpatches_is_read_as_it_is_laid_out(hpatches: Path) -> None:
    pairs = read_hpatches(hpatches)
    assert (len(pairs.patches), pairs.is_same.sum(), (~pairs.is_same).sum()) == (120, 80, 80)
    third = cv2.imread(str(hpatches / 'v_yard' / 't3.png'), cv2.IMREAD_GRAYSCALE)[65 * 5 : 65 * 6]
    # Second sequence, after reference and e1.
    assert_array_equal(pairs.patches[60 + 40 + 5], cv2.resize(third, (32, 32)))
    sequence, in_view = divmod(pairs.first, 60)
    view, patch = divmod(pairs.second % 60, 20)
    assert_array_equal(pairs.second // 60, sequence)
    assert in_view.max() < 20
    assert set(view) == {1, 2}
    assert_array_equal(patch == in_view, pairs.is_same)
    assert_array_equal(read_hpatches(hpatches).second, pairs.second)


@pytest.mark.parametrize('count', [7, 20, 41])
def test_the_rate_is_that_of_a_slow_search(count: int) -> None:
    rng = np.random.default_rng(count)
    is_same = np.arange(3 * count) < count
    distance = (rng.normal(size=3 * count) + 1.5 * ~is_same).astype(np.float32)
    rates = [
        (distance[~is_same] <= limit).mean()
        for limit in np.sort(distance)
        if (distance[is_same] <= limit).sum() >= 0.95 * count
    ]
    assert fpr95(distance, is_same) == rates[0] > 0


def test_descriptors_of_patches_tell_them_apart(phototour: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = HyNet(1).eval()
    path = tmp_path / 'random.npz'
    save_weights(path, weights_of(network, 'hynet'))
    pairs = read_phototour(phototour)
    found = describe_with(path)(pairs.patches)
    # More than a batch, each as it is by itself.
    assert len(found) > 256
    for k in (0, 255, 256, len(found) - 1):
        alone = network.describe(torch.from_numpy(pairs.patches[k][None, None]).float())
        np.testing.assert_allclose(found[k], alone.detach().numpy()[0], atol=1e-4)
    rows = rootsift(pairs.patches)
    np.testing.assert_allclose((rows**2).sum(1), 1, atol=1e-5)
    report = bench_patches({'liberty': pairs}, {'random': path})
    (table,) = report['tables'].values()
    rates = {row['name']: row['liberty'] for row in table}
    assert set(rates) == {'rootsift', 'random'}
    assert rates['rootsift'] < 5
    for name, each in (('rootsift', rows), ('random', found)):
        gap = np.linalg.norm(each[pairs.first] - each[pairs.second], axis=1)
        assert rates[name] == pytest.approx(100 * fpr95(gap, pairs.is_same), abs=0.01)


def test_sift_sees_all_of_a_patch_and_its_middle() -> None:
    """A gradient in one quarter alone fills the four histograms there."""
    for row in range(2):
        for column in range(2):
            patch = np.full((32, 32), 100, np.uint8)
            y, x = 16 * row + 3, 16 * column + 3
            patch[y : y + 10, x : x + 10] = textures(1, 10, 4)[0]
            power = (rootsift(patch[None])[0] ** 2).reshape(2, 2, 2, 2, 8).sum((1, 3, 4))
            assert power[row, column] > 0.75


def test_the_command(
    phototour: Path, hpatches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'report.json'
    words = ['--phototour', str(phototour), '--hpatches', str(hpatches), '--json', str(out)]
    assert main(['bench', 'patches', *words]) == 0
    (table,) = json.loads(out.read_text())['tables'].values()
    assert [set(row) for row in table] == [{'name', 'liberty', 'hpatches'}]
    assert 'liberty: 300 patches, 150 pairs the same, 60 different' in capsys.readouterr().out
    assert main(['bench', 'patches']) == 1
    assert 'name a folder with --phototour or --hpatches' in capsys.readouterr().err


def test_sets_that_do_not_fit(phototour: Path, hpatches: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='is no scene of PhotoTour'):
        read_phototour(tmp_path)
    with pytest.raises(DataError, match='has no folder with ref'):
        read_hpatches(tmp_path)
    (hpatches / 'v_yard' / 'ref.png').write_bytes((hpatches / 'v_yard' / 'e1.png').read_bytes())
    cv2.imwrite(str(hpatches / 'v_yard' / 'e1.png'), np.zeros((65, 65), np.uint8))
    with pytest.raises(DataError, match='views of different numbers of patches'):
        read_hpatches(hpatches)
    cv2.imwrite(str(hpatches / 'v_yard' / 'e1.png'), np.zeros((66, 65), np.uint8))
    with pytest.raises(DataError, match='patches of 65x65 are expected'):
        read_hpatches(hpatches)
    pairs = read_phototour(phototour)
    alike = pairs._replace(is_same=np.ones_like(pairs.is_same))
    with pytest.raises(DataError, match='liberty has only pairs of one kind'):
        bench_patches({'liberty': alike}, {})
    long = phototour / 'm50_100_100_0.txt'
    lines = long.read_text()
    long.write_text('300 1 0 3 1 0 0\n')
    with pytest.raises(DataError, match='names patches that'):
        read_phototour(phototour)
    long.write_text('1 2\n1\n')
    with pytest.raises(DataError, match='does not hold lines of as many whole numbers'):
        read_phototour(phototour)
    long.write_text('1 2 3\n')
    with pytest.raises(DataError, match='lines of less than five numbers'):
        read_phototour(phototour)
    long.write_text(lines)
    (phototour / 'patches0001.bmp').unlink()
    with pytest.raises(DataError, match='has 1 files patches'):
        read_phototour(phototour)

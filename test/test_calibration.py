# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The stability is made right on photographs that training has not seen."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from feat_ros.cli import main  # noqa: E402
from feat_ros.models.sfd2_lite import Sfd2Lite  # noqa: E402
from feat_ros.models.weights import load_weights, Weights  # noqa: E402
from feat_ros.semantics import StabilityGroup  # noqa: E402
from feat_ros.training.calibration import fit_bias, points_of  # noqa: E402
from feat_ros.training.pictures import read_photo  # noqa: E402

SIDE = 192


def photographs(folder: Path, labelled_rows: int) -> Path:
    """Two pictures; the second, which is held out, with three stripes of labels from the top."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        noise = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE, 3)), (0, 0), 2.0)
        cv2.imwrite(str(folder / f'{number}.png'), np.clip(120 + 45 * noise / noise.std(), 0, 255))
    group = np.zeros((SIDE, SIDE), np.uint8)
    stripes = (StabilityGroup.DYNAMIC, StabilityGroup.SHORT_TERM, StabilityGroup.LONG_TERM)
    for left, right, each in zip((0, 40, 100), (40, 100, SIDE), stripes, strict=True):
        group[:labelled_rows, left:right] = each
    cv2.imwrite(str(folder / '1.group.png'), group)
    return folder


def train(photos: Path, out: Path) -> None:
    words = [f'photos={photos}', 'holdout_every=2', 'steps=1', 'workers=0', 'pair.pairs=1']
    words += ['pair.size=64', 'pair.points=20']
    told = [each for word in words for each in ('--set', word)]
    assert main(['train', 'sfd2_lite', '--out', str(out), *told]) == 0


def shares(weights: Weights, picture: Path) -> tuple[np.ndarray, np.ndarray]:
    """How often each group is said of the points of a picture, and how often it is there."""
    network = Sfd2Lite(1024)
    network.load_state_dict({name: torch.tensor(each) for name, each in weights.arrays.items()})
    logits, group = points_of(network.eval(), read_photo(picture))
    said = torch.softmax(logits, 1).mean(0).numpy()
    return said, np.bincount(group.numpy(), minlength=3) / len(group)


def test_after_the_fit_groups_are_said_as_often_as_they_are_there() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 3, generator=generator) + torch.tensor([1.0, -2.0, 0.5])
    group = torch.multinomial(torch.tensor([0.1, 0.3, 0.6]), 4000, True, generator=generator)
    bias = fit_bias(logits, group)
    assert bias[2] == 0
    said = torch.softmax(logits + bias, 1).mean(0).numpy()
    assert_allclose(said, np.bincount(group.numpy()) / 4000, atol=1e-3)


def test_weights_are_calibrated_on_what_was_held_out(tmp_path: Path) -> None:
    photos = photographs(tmp_path / 'photos', SIDE)
    train(photos, tmp_path / 'run')
    plain, calibrated = (tmp_path / name for name in ('plain.npz', 'calibrated.npz'))
    command = ['train', 'weights', '--run', str(tmp_path / 'run'), '--out']
    assert main([*command, str(plain)]) == 0
    assert main([*command, str(calibrated), '--calibrate']) == 0
    before, after = (load_weights(each, 'sfd2_lite') for each in (plain, calibrated))
    changed = [
        name
        for name, each in before.arrays.items()
        if not np.array_equal(each, after.arrays[name])
    ]
    assert changed == ['network.rank_head.2.bias']
    first, second = (each.arrays[changed[0]] for each in (before, after))
    assert_array_equal(first[[0, 3]], second[[0, 3]])
    said, there = shares(before, photos / '1.png')
    assert np.abs(said - there).max() > 0.05
    said, there = shares(after, photos / '1.png')
    assert_allclose(said, there, atol=2e-3)
    found = after.provenance['calibration']
    assert found['photos'] == 1
    assert found['cross_entropy'][1] < found['cross_entropy'][0]


def test_nothing_to_calibrate_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = photographs(tmp_path / 'photos', SIDE // 2)
    train(photos, tmp_path / 'run')
    out = tmp_path / 'weights.npz'
    command = ['train', 'weights', '--run', str(tmp_path / 'run'), '--out', str(out)]
    assert main([*command, '--calibrate']) == 1
    assert 'have labels of at least 75%' in capsys.readouterr().err
    assert not out.exists()

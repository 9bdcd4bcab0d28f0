# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs with known correspondence, and runs that go on where they were left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_allclose, assert_array_equal

torch = pytest.importorskip('torch', reason='torch is not installed')

from feat_ros.cli import main  # noqa: E402
from feat_ros.errors import ConfigError, DataError  # noqa: E402
from feat_ros.extractors import create_extractor  # noqa: E402
from feat_ros.models.weights import load_weights  # noqa: E402
from feat_ros.semantics import StabilityGroup  # noqa: E402
from feat_ros.training import augment, checkpoint, pairs  # noqa: E402
from feat_ros.training.lite import learning_rate, LiteConfig, Run  # noqa: E402
from feat_ros.training.pairs import PairConfig, PairMaker  # noqa: E402
from feat_ros.training.town_cache import (  # noqa: E402
    project,
    TownCache,
    TownCacheConfig,
    write_town_cache,
)

Float = npt.NDArray[np.float64]
PLAIN = augment.LightConfig(
    night_share=0.0, shadow_share=0.0, motion_blur_share=0.0, blur_share=0.0, jpeg_share=0.0
)
SMALL = PairConfig(pairs=2, size=96, points=50, town_share=0.0)


def textured(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 2.0)
    return np.asarray(np.clip(120 + 45 * noise / noise.std(), 0, 255), np.uint8)


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs, the first with labels: left half sky, right half building."""
    folder = tmp_path_factory.mktemp('photos')
    for number in range(4):
        cv2.imwrite(str(folder / f'{number}.png'), textured(150, 220 + 40 * number, number))
    group = np.full((150, 220), StabilityGroup.LONG_TERM, np.uint8)
    group[:, :110] = StabilityGroup.VOLATILE
    cv2.imwrite(str(folder / '0.group.png'), group)
    return folder


@pytest.fixture(scope='module')
def town(tmp_path_factory: pytest.TempPathFactory) -> TownCache:
    folder = tmp_path_factory.mktemp('town') / 'cache'
    options = {
        'num_towns': 1, 'drives_per_town': 2, 'frames_per_drive': 4, 'street_m': 40.0,
        'texel_m': 0.1, 'width': 160, 'height': 120,
    }  # fmt: skip
    words = [word for pair in options.items() for word in ('--set', '{}={}'.format(*pair))]
    assert main(['train', 'town-cache', '--out', str(folder), *words]) == 0
    return TownCache(folder)


def test_a_night_is_darker_and_noisier() -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    config = replace(PLAIN, night_share=1.0, darkest=0.05, brightest=0.05)
    nights = [
        augment.change_light(image, config, np.random.default_rng(seed), may_be_night=True)
        for seed in range(12)
    ]
    days = [
        augment.change_light(image, config, np.random.default_rng(seed), may_be_night=False)
        for seed in range(12)
    ]
    assert np.median([each.mean() for each in nights]) < 120 < np.min([d.mean() for d in days])
    assert np.median([each.std() for each in nights]) > 2 * np.median([d.std() for d in days])


def test_a_change_of_light_moves_nothing(photos: Path) -> None:
    image = cv2.imread(str(photos / '0.png'))[:96, :96]
    config = replace(augment.LightConfig(), night_share=1.0, darkest=0.3, brightest=0.7)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        view = augment.change_light(image, config, rng, may_be_night=True)
        again = augment.change_light(
            image, config, np.random.default_rng(seed), may_be_night=True
        )  # fmt: skip
        assert view.dtype == np.uint8
        assert_array_equal(view, again)
        a, b = (cv2.GaussianBlur(each.astype(float).mean(2), (0, 0), 2) for each in (image, view))
        shift, _ = cv2.phaseCorrelate(a - a.mean(), b - b.mean())
        assert np.abs(shift).max() < 0.35


def test_noise_is_of_unit_deviation() -> None:
    piece = augment.noise(200, 300, np.random.default_rng(1))
    assert piece.shape == (200, 300, 3)
    assert_allclose([piece.mean(), piece.std()], [0, 1], atol=0.02)
    assert augment.noise(30, 1100, np.random.default_rng(1)).shape == (30, 1100, 3)


def test_both_views_show_the_same_place(photos: Path) -> None:
    maker = PairMaker(
        replace(SMALL, light=PLAIN), [photos / '1.png', photos / '2.png'], None, seed=3
    )
    for step in range(4):
        a, b, (to_b, to_a) = maker._photo_pair(np.random.default_rng(step))
        places = np.random.default_rng(9).uniform(20, 76, (200, 2))
        there, seen = to_b(places)
        assert np.all(seen == 1)
        assert_allclose(to_a(there)[0], places, atol=1e-6)
        inside = np.all((there > 2) & (there < 94), axis=1)
        grey_a, grey_b = (view.image.astype(np.float32).mean(2) for view in (a, b))
        value_a = at(grey_a, places[inside])
        value_b = at(grey_b, there[inside])
        assert inside.sum() > 15
        assert np.corrcoef(value_a, value_b)[0, 1] > 0.9


def at(image: npt.NDArray[np.float32], xy: Float) -> Any:
    """Read an image between its pixels, whose centres are at one half."""
    x, y = (xy.T - 0.5).astype(np.float32)
    return cv2.remap(image, x[None], y[None], cv2.INTER_LINEAR)[0]


def test_labels_go_with_the_picture(photos: Path) -> None:
    maker = PairMaker(replace(SMALL, light=PLAIN), [photos / '0.png'], None, seed=4)
    known = 0
    for step in range(3):
        batch = maker[step]
        for view in range(4):
            group = batch.group[view][batch.points.response[view] > 0]
            assert set(group.tolist()) <= {0, 2}
            known += len(group)
        assert set(batch.group[batch.points.response == 0].tolist()) <= {-1}
    assert known > 100


def test_a_step_is_a_function_of_its_number(photos: Path) -> None:
    makers = [PairMaker(SMALL, pairs.find_photos([str(photos)]), None, s) for s in (5, 5, 6)]
    first, same, other = (maker[7] for maker in makers)
    for a, b in zip(flat(first), flat(same), strict=True):
        assert_array_equal(a.numpy(), b.numpy())
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, makers[0][8].images)


def flat(batch: Any) -> list[Any]:
    return [batch.images, *batch.points, batch.partner, batch.target, batch.group]


def test_correspondence_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(6)
    size, count = 100, 60
    xy_a = rng.uniform(0, size, (count, 2))
    xy_b = xy_a[rng.permutation(count)] + rng.normal(0, 0.8, (count, 2)) + [3.0, -2.0]
    is_a, is_b = rng.random(count) < 0.8, rng.random(count) < 0.8
    gone = rng.random(count) < 0.2

    shift = np.array([3.0, -2.0])

    def to_b(points: Float) -> tuple[Float, Any]:
        return points + shift, np.where(gone, -1, 1)

    def to_a(points: Float) -> tuple[Float, Any]:
        return points - shift, np.ones(count, int)

    partner, target_a, target_b = pairs.correspond(xy_a, is_a, xy_b, is_b, (to_b, to_a), size)
    moved, back = xy_a + shift, xy_b - shift
    in_b, in_a = (np.all((each >= 8) & (each <= 92), axis=1) for each in (moved, back))
    sees_a = [is_a[i] and not gone[i] and in_b[i] for i in range(count)]
    sees_b = [is_b[j] and in_a[j] for j in range(count)]
    distance = np.linalg.norm(moved[:, None] - xy_b[None], axis=2)
    for i in range(count):
        candidates = [j for j in range(count) if sees_b[j]] if sees_a[i] else []
        expected = -1
        if candidates:
            j = min(candidates, key=lambda j: distance[i, j])
            rivals = [k for k in range(count) if sees_a[k]]
            if distance[i, j] < 1.5 and min(rivals, key=lambda k: distance[k, j]) == i:
                expected = j
        assert partner[i] == expected
        alone = is_a[i] and (gone[i] or (sees_a[i] and distance[i, is_b].min() > 3))
        assert target_a[i] == (1 if expected >= 0 else 0 if alone else -1)
    assert (partner >= 0).sum() > 8
    assert_array_equal(np.flatnonzero(target_b == 1), np.sort(partner[partner >= 0]))


def test_photographs_that_cannot_be_used(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(DataError, match='has no photographs'):
        pairs.find_photos([str(tmp_path)])
    (tmp_path / 'a.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match='no picture that OpenCV reads'):
        pairs.read_photo(tmp_path / 'a.png')
    cv2.imwrite(str(tmp_path / 'a.png'), textured(40, 50, 0))
    cv2.imwrite(str(tmp_path / 'a.group.png'), np.zeros((40, 51), np.uint8))
    with pytest.raises(DataError, match='size or ids differ'):
        pairs.read_photo(tmp_path / 'a.png')
    (tmp_path / 'a.group.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match='size or ids differ'):
        pairs.read_photo(tmp_path / 'a.png')


def test_town_frames_agree_on_their_surfaces(town: TownCache) -> None:
    assert len(town) == 8
    rng = np.random.default_rng(7)
    pixels = rng.uniform([0, 0], [160, 120], (400, 2))
    for i, j in town.pairs[:4]:
        a, b = town[int(i)], town[int(j)]
        there, seen = project(a, b, pixels)
        assert (seen == 1).mean() > 0.15
        assert set(seen.tolist()) <= {-1, 0, 1}
        back, seen_back = project(b, a, there[seen == 1])
        assert (seen_back == 1).mean() > 0.7
        gap = np.linalg.norm(back - pixels[seen == 1], axis=1)
        assert np.median(gap) < 0.3
        same = a.group[pixels[:, 1].astype(int), pixels[:, 0].astype(int)][seen == 1]
        other = b.group[there[seen == 1][:, 1].astype(int), there[seen == 1][:, 0].astype(int)]
        assert (same == other).mean() > 0.85


def test_pairs_of_the_town(town: TownCache, photos: Path) -> None:
    config = replace(SMALL, town_share=1.0, light=PLAIN)
    maker = PairMaker(config, [photos / '1.png'], town, seed=8)
    batches = [maker[step] for step in range(3)]
    assert sum(int((batch.partner >= 0).sum()) for batch in batches) > 0
    assert all((batch.group >= 0).any() for batch in batches)


def test_a_cache_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='is no cache of town frames'):
        TownCache(tmp_path)
    with pytest.raises(DataError, match='exists'):
        write_town_cache(tmp_path, TownCacheConfig())
    (tmp_path / 'cache.json').write_text('{"config": {}, "frames": [], "pairs": []}')
    with pytest.raises(DataError, match='no two frames'):
        TownCache(tmp_path)


def run_config(photos: Path, **changes: Any) -> LiteConfig:
    options: dict[str, Any] = {
        'photos': [str(photos)], 'holdout_every': 4, 'steps': 6, 'warmup_steps': 2, 'workers': 0,
        'log_every': 1, 'checkpoint_every': 2, 'validate_every': 4, 'validation_batches': 1,
        'pair': replace(SMALL, pairs=1, size=64, points=20),
    }  # fmt: skip
    return LiteConfig(**options | changes)


def test_a_run_in_pieces_is_a_run_in_one(tmp_path: Path, photos: Path) -> None:
    config = run_config(photos)
    assert Run(config, tmp_path / 'one').train() == 6
    assert Run(config, tmp_path / 'pieces').train(last_step=2) == 2
    assert Run(replace(config, workers=1), tmp_path / 'pieces').train(last_step=5) == 5
    assert Run(config, tmp_path / 'pieces').train() == 6
    one, pieces = (checkpoint.load(tmp_path / name / 'last.npz') for name in ('one', 'pieces'))
    assert one.keys() == pieces.keys()
    for name in one:
        assert_array_equal(one[name], pieces[name], err_msg=name)
    lines = (tmp_path / 'pieces' / 'log.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
    validation = (tmp_path / 'one' / 'validation.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in validation] == [4]
    assert (tmp_path / 'one' / 'weights_best.npz').exists()
    assert (tmp_path / 'one' / 'curves.png').stat().st_size > 5000
    data = json.loads((tmp_path / 'one' / 'data.json').read_text())
    assert [set(each) for each in data['training']] == [
        {'file', 'sha256', 'labels_sha256'}, {'file', 'sha256'}, {'file', 'sha256'},
    ]  # fmt: skip
    assert len(data['validation']) == 1


def test_a_killed_run_logs_no_step_twice(tmp_path: Path, photos: Path) -> None:
    Run(run_config(photos), tmp_path).train(last_step=2)
    with (tmp_path / 'log.jsonl').open('a') as file:
        file.write('{"step": 3}\n')
    run = Run(run_config(photos), tmp_path)
    assert [line['step'] for line in run.curves.read('log')] == [1, 2]


def test_a_checkpoint_is_small(tmp_path: Path, photos: Path) -> None:
    Run(run_config(photos), tmp_path).train(last_step=1)
    assert (tmp_path / 'last.npz').stat().st_size < 15e6
    assert (tmp_path / 'weights_last.npz').stat().st_size < 4e6


def test_a_run_does_not_change_its_mind(tmp_path: Path, photos: Path) -> None:
    Run(run_config(photos), tmp_path)
    Run(run_config(photos, log_every=7), tmp_path)
    with pytest.raises(DataError, match='a run with other learning_rate'):
        Run(run_config(photos, learning_rate=1.0), tmp_path)
    with pytest.raises(DataError, match='leave none for validation'):
        Run(run_config(photos, holdout_every=5), tmp_path / 'other')
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used"):
        Run(run_config(photos, device='abacus'), tmp_path / 'other')
    (tmp_path / 'last.npz').write_bytes(b'half a')
    with pytest.raises(DataError, match='is damaged'):
        Run(run_config(photos, log_every=7), tmp_path)


def test_the_learning_rate_rises_and_falls() -> None:
    config = LiteConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(101)]
    assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert_allclose(rates[55], 0.5)
    assert rates[100] == 0
    assert np.all(np.diff(rates[10:]) < 0)


def test_the_average_follows_slowly() -> None:
    module = torch.nn.BatchNorm1d(2)
    average = checkpoint.Average(module, 0.75)
    with torch.no_grad():
        module.weight += 4.0
        module.num_batches_tracked += 3
    average.update(module, step=100)
    assert_allclose(average.values['weight'].numpy(), [2.0, 2.0])
    average.update(module, step=0)
    assert_allclose(average.values['weight'].numpy(), [4.7, 4.7])
    assert average.values['num_batches_tracked'].item() == 3


def test_the_command(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / 'lite.json'
    options: dict[str, Any] = {
        'photos': [str(photos)], 'holdout_every': 4, 'steps': 1, 'workers': 0,
        'pair': {'pairs': 1, 'size': 64, 'points': 20},
    }  # fmt: skip
    command = ['train', 'sfd2_lite', '--config', str(config), '--out', str(tmp_path / 'run')]
    assert main(command) == 1
    assert 'lite.json cannot be read' in capsys.readouterr().err
    config.write_text('[1')
    assert main(command) == 1
    assert 'is not JSON' in capsys.readouterr().err
    config.write_text('[]')
    assert main(command) == 1
    assert 'must hold one JSON object' in capsys.readouterr().err
    config.write_text(json.dumps({**options, 'stpes': 3}))
    assert main(command) == 1
    assert "no option 'stpes'" in capsys.readouterr().err
    config.write_text(json.dumps(options))
    assert main(command) == 0
    assert '1 of 1 steps' in capsys.readouterr().out
    about = tmp_path / 'about.json'
    about.write_text('{"licence": "mine"}')
    out = tmp_path / 'mine.npz'
    command = ['train', 'weights', '--run', str(tmp_path / 'run'), '--out', str(out)]
    assert main([*command, '--about', str(about)]) == 0
    weights = load_weights(out, 'sfd2_lite')
    assert weights.provenance['licence'] == 'mine'
    assert (weights.provenance['step'], weights.provenance['steps']) == (1, 1)
    last = load_weights(tmp_path / 'run' / 'weights_last.npz', 'sfd2_lite')
    assert weights.sha256 == last.sha256
    features = create_extractor('sfd2_lite', max_keypoints=50, runtime='torch', model=str(out))(
        textured(64, 96, 1)
    )
    assert 5 < len(features) <= 50
    assert main(['train', 'weights', '--run', str(tmp_path), '--out', str(out)]) == 1
    assert 'last.npz does not exist' in capsys.readouterr().err

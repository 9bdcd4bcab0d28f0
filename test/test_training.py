# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs with known correspondence, and runs that go on where they were left."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
import itertools
import json
import math
from pathlib import Path
import shutil
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from feat_ros.cli import main  # noqa: E402
from feat_ros.errors import ConfigError, DataError, NetworkError  # noqa: E402
from feat_ros.extractors import create_extractor  # noqa: E402
from feat_ros.models.weights import load_weights, save_weights  # noqa: E402
from feat_ros.runtimes import WEIGHTS  # noqa: E402
from feat_ros.semantics import get_label_table, StabilityGroup  # noqa: E402
from feat_ros.training import augment, checkpoint, lite, pairs, pictures  # noqa: E402
from feat_ros.training import run as run_module  # noqa: E402
from feat_ros.training.configs import (  # noqa: E402
    LightConfig,
    LiteConfig,
    PairConfig,
    Sfd2Config,
    TownCacheConfig,
)
from feat_ros.training.label_writer import write_label_files  # noqa: E402
from feat_ros.training.pairs import PairMaker  # noqa: E402
from feat_ros.training.run import learning_rate, Run, Trainee  # noqa: E402
from feat_ros.training.sfd2 import cell_targets  # noqa: E402
from feat_ros.training.systems import get_system, SYSTEMS  # noqa: E402
from feat_ros.training.town_cache import TownCache, TownViews, write_town_cache  # noqa: E402
from feat_ros.training.validation import localize_town  # noqa: E402

ROOT = Path(__file__).parents[1]
Float = npt.NDArray[np.float64]
PLAIN = LightConfig(
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


def lit(image: npt.NDArray[np.uint8], config: LightConfig, seed: int, *, night: bool) -> Any:
    """Twelve views of one picture in other light, (12, S, S, 3)."""
    planes = torch.from_numpy(image).permute(2, 0, 1).float().expand(12, -1, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    found = augment.change_light(planes, config, generator, torch.full((12,), night))
    return found.permute(0, 2, 3, 1).numpy()


def test_a_night_is_darker_and_noisier() -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    config = replace(PLAIN, night_share=1.0, darkest=0.05, brightest=0.05)
    nights, days = (lit(image, config, 1, night=night) for night in (True, False))
    assert np.median(nights.mean((1, 2, 3))) < 120 < np.min(days.mean((1, 2, 3)))
    assert np.median(nights.std((1, 2, 3))) > 2 * np.median(days.std((1, 2, 3)))


def test_a_change_of_light_moves_nothing(photos: Path) -> None:
    image = cv2.imread(str(photos / '0.png'))[:96, :96]
    config = LightConfig(night_share=1.0, darkest=0.3, brightest=0.7)
    views = lit(image, config, 2, night=True)
    assert_array_equal(views, lit(image, config, 2, night=True))
    assert_array_equal(views, np.rint(views).clip(0, 255))
    for view in views:
        a, b = (cv2.GaussianBlur(each.astype(float).mean(2), (0, 0), 2) for each in (image, view))
        shift, _ = cv2.phaseCorrelate(a - a.mean(), b - b.mean())
        assert np.abs(shift).max() < 0.35


def test_jpeg_is_that_of_the_library(photos: Path) -> None:
    image = cv2.imread(str(photos / '1.png'))[:96, :96]
    planes = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float()
    for quality in (20, 50, 90):
        packed = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        expected = cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1].astype(float)
        found = augment.jpeg(planes[None], torch.tensor([float(quality)]))[0]
        gap = np.abs(found.permute(1, 2, 0).numpy() - expected).mean()
        lost = np.abs(expected - image[..., ::-1]).mean()
        assert gap < min(0.2 * lost, 1.5)


def test_a_shadow_is_a_polygon() -> None:
    config = replace(PLAIN, shadow_share=1.0)
    mask = augment._shadows(64, config, augment.Dice(40, torch.Generator().manual_seed(3)))
    assert mask.shape == (40, 1, 64, 64)
    assert 0.15 <= mask.min() < 0.7 < mask.max() <= 1.0001
    assert (mask.amin((1, 2, 3)) < 0.71).float().mean() > 0.8
    lit_up = augment._shadows(64, PLAIN, augment.Dice(5, torch.Generator().manual_seed(3)))
    assert_allclose(lit_up.numpy(), 1, atol=1e-5)


def test_views_are_those_of_opencv(photos: Path) -> None:
    """Between pixels, beyond borders and at coarser levels, labels with them."""
    picture = pictures.read_photo(photos / '0.png')
    large = pictures.Picture(textured(700, 900, 5), None)
    bank = pictures.PictureBank([large, picture], torch.device('cpu'))
    quads = np.array(
        [
            [[20, 10], [130, 30], [120, 140], [10, 120]],
            [[-60, -20], [80, -30], [90, 90], [-40, 100]],
            [[40, 60], [500, 90], [520, 560], [30, 540]],
        ],
        float,
    )
    source_from_view = pairs.homographies(torch.from_numpy(quads), 96)
    index = torch.tensor([1, 1, 0])
    views, groups = bank.views(index, source_from_view, 96)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    quarter = cv2.resize(
        cv2.resize(large.image, (450, 350), interpolation=cv2.INTER_AREA), (225, 175),
        interpolation=cv2.INTER_AREA,
    )  # fmt: skip
    for number, (source, shrink) in enumerate(
        ((picture.image, 1), (picture.image, 1), (quarter, 4))
    ):
        matrix = np.diag([1 / shrink, 1 / shrink, 1]) @ source_from_view[number].numpy()
        matrix = np.linalg.inv(half) @ np.linalg.inv(matrix) @ half
        expected = cv2.warpPerspective(
            source, matrix, (96, 96), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        gap = np.abs(views[number].permute(1, 2, 0).numpy() - expected)
        assert gap.mean() < 0.8
    assert picture.group is not None
    corners = np.array([[0, 0], [96, 0], [96, 96], [0, 96]], np.float32)
    for quad, found in zip(quads[:2], groups[:2], strict=True):
        matrix = cv2.getPerspectiveTransform(quad.astype(np.float32), corners)
        expected = cv2.warpPerspective(
            picture.group, np.linalg.inv(half) @ matrix @ half, (96, 96),
            flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT,
        )  # fmt: skip
        assert (found.numpy() == expected).mean() > 0.98
    assert not groups[2].any()


def test_both_views_show_the_same_place(photos: Path) -> None:
    config = replace(SMALL, pairs=6, light=PLAIN)
    maker = PairMaker(config, [photos / '1.png', photos / '2.png'], None, seed=3)
    a, b = maker._photo_cuts(np.random.default_rng(1), 6)
    views = [maker._bank.views(*cut, 96)[0].mean(1).numpy() for cut in (a, b)]
    rng = np.random.default_rng(9)
    places = torch.from_numpy(rng.uniform(20, 76, (6, 200, 2)))
    is_town = torch.zeros(6, dtype=torch.bool)
    there, status = maker._transfer(places, a, b, is_town)
    back, _ = maker._transfer(there, b, a, is_town)
    assert (status == 1).all()
    assert_allclose(back, places, atol=1e-6)
    inside = ((there > 2) & (there < 94)).all(-1).numpy()
    assert inside.sum(1).min() > 15
    for number in range(6):
        value_a = at(views[0][number], places[number].numpy()[inside[number]])
        value_b = at(views[1][number], there[number].numpy()[inside[number]])
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


def test_cells_share_out_their_points(photos: Path) -> None:
    maker = PairMaker(replace(SMALL, light=PLAIN), [photos / '0.png'], None, seed=4)
    batch = maker[0]
    target, is_known = cell_targets(batch)
    assert target.shape == (4, 65, 12, 12)
    assert_allclose(target.sum(1).numpy(), 1, atol=1e-5)
    assert target.min() >= 0
    stability = {-1: 1.0, 0: 0.1, 1: 0.5, 2: 1.0}
    for view in range(4):
        heat = np.zeros((98, 98))
        unknown = np.zeros((12, 12), bool)
        for (x, y), goal, group, response in zip(
            batch.points.xy[view].tolist(), batch.target[view].tolist(),
            batch.group[view].tolist(), batch.points.response[view].tolist(), strict=True,
        ):  # fmt: skip
            left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
            if goal == 1:
                for column, row in (
                    (left, top),
                    (left + 1, top),
                    (left, top + 1),
                    (left + 1, top + 1),
                ):
                    share = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
                    heat[row, column] += share * stability[group]
            elif goal == -1 and response > 0:
                unknown[int(y // 8), int(x // 8)] = True
        cells = heat[:96, :96].reshape(12, 8, 12, 8).transpose(0, 2, 1, 3).reshape(12, 12, 64)
        total = cells.sum(-1)
        cells /= np.maximum(total, 1)[..., None]
        assert_allclose(target[view, :64].permute(1, 2, 0).numpy(), cells, atol=1e-5)
        assert_array_equal(is_known[view].numpy(), ~unknown | (total > 0))
    assert target[:, :64].sum() > 10


@pytest.mark.parametrize('changes', [{}, {'match': 0.0, 'inter_class': 1.0, 'intra_class': 0.5}])
def test_sfd2_learns(tmp_path: Path, photos: Path, changes: dict[str, Any]) -> None:
    config = Sfd2Config(
        photos=[str(photos)], holdout_every=4, steps=2, warmup_steps=1, workers=0, log_every=1,
        validate_every=2, validation_batches=1, pair=replace(SMALL, pairs=1, size=64, points=20),
        **changes,
    )  # fmt: skip
    run = Run(SYSTEMS['sfd2'], config, tmp_path)
    before = {name: each.clone() for name, each in run.trainee.named_parameters()}
    assert run.train() == 2
    still = [
        name for name, each in run.trainee.named_parameters()
        if torch.equal(each, before[name]) and 'log_scale' not in name
    ]  # fmt: skip
    assert still == []
    weights = load_weights(tmp_path / 'weights_last.npz', 'sfd2')
    assert weights.options == {'stability_exponent': 0.5, 'tones': 'adapted'}
    assert (tmp_path / 'curves.png').stat().st_size > 5000


def test_a_step_is_a_function_of_its_number(photos: Path) -> None:
    makers = [PairMaker(SMALL, pictures.find_photos([str(photos)]), None, s) for s in (5, 5, 6)]
    first, same, other = (maker[7] for maker in makers)
    for a, b in zip(flat(first), flat(same), strict=True):
        assert_array_equal(a.numpy(), b.numpy())
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, makers[0][8].images)


def flat(batch: Any) -> list[Any]:
    return [batch.images, *batch.points, *(each for each in batch[2:] if each is not None)]


def test_correspondence_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(6)
    size, count = 100, 60
    xy_a = rng.uniform(0, size, (count, 2))
    xy_b = xy_a[rng.permutation(count)] + rng.normal(0, 0.8, (count, 2)) + [3.0, -2.0]
    is_a, is_b = rng.random(count) < 0.8, rng.random(count) < 0.8
    gone = rng.random(count) < 0.2

    shift = np.array([3.0, -2.0])

    status_a = np.where(gone, -1, 1)
    partner, target_a, target_b = (
        each[0].numpy()
        for each in pairs.correspond(
            seen(xy_a, is_a, xy_a + shift, status_a),
            seen(xy_b, is_b, xy_b - shift, np.ones(count, int)),
            size,
        )
    )
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


def seen(xy: Float, is_point: Any, there: Float, status: Any) -> pairs.Seen:
    return pairs.Seen(*(torch.from_numpy(each)[None] for each in (xy, is_point, there, status)))


def test_photographs_that_cannot_be_used(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(DataError, match='has no photographs'):
        pictures.find_photos([str(tmp_path)])
    (tmp_path / 'a.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match='no picture that OpenCV reads'):
        pictures.read_photo(tmp_path / 'a.png')
    cv2.imwrite(str(tmp_path / 'a.png'), textured(40, 50, 0))
    cv2.imwrite(str(tmp_path / 'a.group.png'), np.zeros((40, 51), np.uint8))
    with pytest.raises(DataError, match='size or ids differ'):
        pictures.read_photo(tmp_path / 'a.png')
    (tmp_path / 'a.group.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match='size or ids differ'):
        pictures.read_photo(tmp_path / 'a.png')


def test_photographs_do_not_share_what_is_beside_them(tmp_path: Path) -> None:
    for name in ('a.jpg', 'a.group.png', 'b/a.png', 'b/c.PNG'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), textured(40, 50, 0))
    names = ['a.jpg', 'b/a.png', 'b/c.PNG']
    assert pictures.find_photos([str(tmp_path)]) == [tmp_path / name for name in names]
    (tmp_path / 'link').symlink_to(tmp_path / 'b')
    overlapping = [str(tmp_path / name) for name in ('b', '', 'link', 'b/../b')]
    found = pictures.find_photos(overlapping)
    assert found == [tmp_path / name for name in ('b/a.png', 'b/c.PNG', 'a.jpg')]
    cv2.imwrite(str(tmp_path / 'b' / 'a.jpeg'), textured(40, 50, 0))
    with pytest.raises(
        DataError, match=r'b/a\.jpeg and .*b/a\.png would share .* a\.group\.png for one: rename'
    ):
        pictures.find_photos([str(tmp_path)])


def test_town_frames_agree_on_their_surfaces(town: TownCache) -> None:
    assert len(town) == 8
    frames = [town[number] for number in range(8)]
    views = TownViews(frames, torch.device('cpu'))
    rng = np.random.default_rng(7)
    first, second = (torch.from_numpy(each) for each in town.pairs[:4].T.copy())
    pixels = torch.from_numpy(rng.uniform([0, 0], [160, 120], (len(first), 400, 2)))
    there, status = views.project(first, second, pixels)
    back, status_back = views.project(second, first, there)
    assert set(status.unique().tolist()) <= {-1, 0, 1}
    for number, (i, j) in enumerate(town.pairs[:4]):
        a, b = frames[i], frames[j]
        is_seen = (status[number] == 1).numpy()
        assert is_seen.mean() > 0.15
        assert (status_back[number].numpy()[is_seen] == 1).mean() > 0.7
        at_a, at_b = pixels[number].numpy()[is_seen], there[number].numpy()[is_seen]
        gap = np.linalg.norm(back[number].numpy()[is_seen] - at_a, axis=1)
        assert np.median(gap) < 0.3
        # The cameras' own functions agree.
        column, row = at_a.astype(int).T
        rays = a.camera.unproject(at_a)
        points = rays / rays[:, 2:] * a.depth[row, column, None]
        moved = (b.cam_from_map @ a.cam_from_map.inverse()).apply(points)
        assert_allclose(b.camera.project(moved), at_b, atol=1e-3)
        same = a.group[row, column] == b.group[tuple(at_b.astype(int).T[::-1])]
        assert same.mean() > 0.85


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


LITE = get_system('sfd2_lite')


def run_config(photos: Path, **changes: Any) -> LiteConfig:
    options: dict[str, Any] = {
        'photos': [str(photos)], 'holdout_every': 4, 'steps': 6, 'warmup_steps': 2, 'workers': 0,
        'log_every': 1, 'checkpoint_every': 2, 'validate_every': 4, 'validation_batches': 1,
        'pair': replace(SMALL, pairs=1, size=64, points=20),
    }  # fmt: skip
    return LiteConfig(**options | changes)


def test_a_run_in_pieces_is_a_run_in_one(tmp_path: Path, photos: Path) -> None:
    config = run_config(photos)
    assert Run(LITE, config, tmp_path / 'one').train() == 6
    assert Run(LITE, config, tmp_path / 'pieces').train(last_step=2) == 2
    assert Run(LITE, replace(config, workers=1), tmp_path / 'pieces').train(last_step=5) == 5
    assert Run(LITE, config, tmp_path / 'pieces').train() == 6
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


@pytest.fixture
def segmenter(tmp_path: Path) -> Any:
    """Write a network of the kind that Hugging Face has, of so many classes; return its folder."""
    transformers = pytest.importorskip('transformers')

    def write(num_classes: int) -> Path:
        torch.manual_seed(3)
        layout = transformers.SegformerConfig(
            num_labels=num_classes, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4,
            decoder_hidden_size=16, depths=[1] * 4,
        )  # fmt: skip
        folder = tmp_path / f'{num_classes}_classes'
        transformers.SegformerForSemanticSegmentation(layout).save_pretrained(folder)
        processor = transformers.SegformerImageProcessorPil(size={'height': 64, 'width': 96})
        processor.save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize(('count', 'table'), [(150, 'ade20k'), (19, 'cityscapes_train')])
def test_labels_by_a_network(
    tmp_path: Path, segmenter: Any, capsys: pytest.CaptureFixture[str], count: int, table: str
) -> None:
    import transformers

    folder = segmenter(count)
    photo, labels = tmp_path / 'photos' / 'a.png', tmp_path / 'photos' / 'a.group.png'
    photo.parent.mkdir()
    cv2.imwrite(str(photo), textured(70, 100, 1))
    command = ['train', 'label-files', str(photo.parent), '--model', str(folder)]
    assert main(command) == 0
    assert '1 files written, 0 were there' in capsys.readouterr().out

    # By hand: normalised, the largest of the logits after bilinear interpolation.
    image = cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB)
    processor = transformers.SegformerImageProcessorPil.from_pretrained(folder)
    given = processor(images=image, return_tensors='pt')['pixel_values']
    network = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = network(given).logits
    logits = torch.nn.functional.interpolate(logits, (70, 100), mode='bilinear')
    classes = get_label_table(table).classes
    first = 1 if table == 'ade20k' else 0
    wanted = [[classes[int(k) + first][1] for k in row] for row in logits[0].argmax(0)]
    found = cv2.imread(str(labels), cv2.IMREAD_UNCHANGED)
    assert_array_equal(found, wanted)
    assert len(np.unique(found)) > 1

    stamp = labels.stat().st_mtime_ns
    assert main(command) == 0
    assert '0 files written, 1 were there' in capsys.readouterr().out
    assert labels.stat().st_mtime_ns == stamp


def test_labels_that_nobody_knows(
    tmp_path: Path, segmenter: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [photos / '1.png']
    cpu = torch.device('cpu')
    with pytest.raises(ConfigError, match='knows 7 classes: take one that was trained on ADE20K'):
        write_label_files(alone, str(segmenter(7)), cpu, lambda items, _: items)
    with pytest.raises(ConfigError, match=r'cannot be used: .*; name a network for semantic'):
        write_label_files(alone, str(tmp_path / 'nothing'), cpu, lambda items, _: items)
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ConfigError, match=r'pip install "feat_ros\[label\]"'):
        write_label_files(alone, 'any', cpu, lambda items, _: items)
    assert not (photos / '1.group.png').exists()


def test_localization_in_a_town(town: TownCache) -> None:
    shipped = load_weights(WEIGHTS / 'sfd2_lite.npz', 'sfd2_lite')
    found = localize_town(shipped, town, torch.device('cpu'))
    assert found['localized'] >= 0.75
    assert 0.5 < found['localized_area'] <= found['localized']
    # As if each frame stood where the next one of its pairs stands.
    elsewhere = copy.copy(town)
    elsewhere._frames = [*town._frames[1:], town._frames[0]]
    assert localize_town(shipped, elsewhere, torch.device('cpu'))['localized'] <= 0.25


def test_a_run_keeps_what_localizes_best(
    tmp_path: Path, photos: Path, town: TownCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    areas = iter([0.25, 0.5, 0.25])

    def localized(weights: Any, cache: TownCache, device: Any) -> dict[str, float]:
        assert cache.folder == town.folder
        area = next(areas)
        return {**localize_town(weights, cache, device), 'localized_area': area}

    monkeypatch.setattr(run_module, 'localize_town', localized)
    config = run_config(
        photos, steps=3, log_every=7, validate_every=1, validation_town=str(town.folder)
    )
    Run(LITE, config, tmp_path).train()
    lines = [json.loads(line) for line in (tmp_path / 'validation.jsonl').read_text().splitlines()]
    assert [line['localized_area'] for line in lines] == [0.25, 0.5, 0.25]
    assert all(0 <= line['localized'] <= 1 for line in lines)
    assert load_weights(tmp_path / 'weights_best.npz', 'sfd2_lite').provenance['step'] == 2
    data = json.loads((tmp_path / 'data.json').read_text())
    assert data['validation_town']['num_towns'] == 1
    with pytest.raises(DataError, match=r'has town 9001, as .*first_seed=9002'):
        Run(LITE, replace(config, town=str(town.folder)), tmp_path / 'other')


def test_two_processes_take_a_step_together(tmp_path: Path, photos: Path) -> None:
    """The mean of the gradients of two batches; one process does not go on with such a run."""
    config = run_config(photos, steps=2, warmup_steps=0)
    run = Run(LITE, config, tmp_path / 'by_hand')
    maker = PairMaker(config.pair, run.photos, None, config.seed)
    gradients = []
    run.trainee.train()
    for number in (0, 1):
        torch.manual_seed(config.seed + number)
        run.trainee.zero_grad()
        LITE.losses(run.trainee, maker[number], config)[0].backward()
        gradients.append([each.grad for each in run.trainee.parameters()])
    for parameter, *both in zip(run.trainee.parameters(), *gradients, strict=True):
        parameter.grad = None if both[0] is None else torch.stack(both).mean(0)
    torch.nn.utils.clip_grad_norm_(run.trainee.parameters(), 10.0)
    run.optimizer.step()

    (tmp_path / 'config.json').write_text(json.dumps(asdict(config)))
    command = [
        sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2',
        '-m', 'feat_ros', 'train', 'sfd2_lite', '--config', str(tmp_path / 'config.json'),
        '--out', str(tmp_path / 'run'),
    ]  # fmt: skip
    subprocess.run([*command, '--minutes', '1e-9'], check=True, cwd=ROOT, timeout=300)
    last = checkpoint.load(tmp_path / 'run' / 'last.npz')
    assert last['step'] == 1
    for name, each in run.trainee.named_parameters():
        assert_allclose(last[f'model.{name}'], each.detach().numpy(), atol=2e-6, err_msg=name)
    subprocess.run(command, check=True, cwd=ROOT, timeout=300)
    assert checkpoint.load(tmp_path / 'run' / 'last.npz')['step'] == 2
    lines = (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [1, 2]
    with pytest.raises(DataError, match=r'in 2 processes, not of .* in 1 process: go on as'):
        Run(LITE, config, tmp_path / 'run')


def test_a_killed_run_logs_no_step_twice(tmp_path: Path, photos: Path) -> None:
    Run(LITE, run_config(photos), tmp_path).train(last_step=2)
    with (tmp_path / 'log.jsonl').open('a') as file:
        file.write('{"step": 3}\n')
    run = Run(LITE, run_config(photos), tmp_path)
    assert [line['step'] for line in run.curves.read('log')] == [1, 2]


def test_a_checkpoint_in_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / 'last.npz'
    arrays: dict[str, Any] = {str(k): rng.normal(size=3000) for k in range(10)}
    arrays['large'] = rng.normal(size=20_000)
    for _ in range(2):
        checkpoint.save_in_parts(path, arrays, largest=100_000)
        files = sorted(tmp_path.iterdir())
        assert [each.stat().st_size > 100_000 for each in files].count(True) == 1
        assert len(files) == 5
        found = checkpoint.load(path)
        assert found.keys() == arrays.keys()
        assert all((found[name] == each).all() for name, each in arrays.items())
    files[0].unlink()
    with pytest.raises(DataError, match='does not exist'):
        checkpoint.load(path)
    checkpoint.save_in_parts(path, {'step': np.array(3)})
    assert [each.name for each in tmp_path.iterdir()] == ['last.npz']
    assert checkpoint.load(path).keys() == {'step'}


def test_a_checkpoint_is_small(tmp_path: Path, photos: Path) -> None:
    Run(LITE, run_config(photos), tmp_path).train(last_step=1)
    assert (tmp_path / 'last.npz').stat().st_size < 15e6
    assert (tmp_path / 'weights_last.npz').stat().st_size < 4e6


def test_what_is_not_finite_is_left_out(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoilt(numbers: range) -> Any:
        count = itertools.count()

        def losses(trainee: Any, batch: Any, config: Any) -> Any:
            total, logged = LITE.losses(trainee, batch, config)
            return total * (float('nan') if next(count) in numbers else 1.0), logged

        return replace(LITE, losses=losses)

    config = run_config(photos, checkpoint_every=1, validate_every=100)
    run = Run(spoilt(range(1, 2)), config, tmp_path / 'one')
    assert run.train() == 6
    assert 'step 1 is left out' in caplog.text
    assert all(bool(each.isfinite().all()) for each in run.average.values.values())
    longer = replace(config, steps=20)
    with pytest.raises(DataError, match='no finite gradient in the 10 steps up to 11: start anew'):
        Run(spoilt(range(2, 20)), longer, tmp_path / 'lost').train()
    last = checkpoint.load(tmp_path / 'lost' / 'last.npz')
    assert all(np.isfinite(each).all() for each in last.values() if each.dtype.kind == 'f')


def test_a_step_that_is_left_out_leaves_nothing_behind(tmp_path: Path, photos: Path) -> None:
    """Not in the statistics of a batch norm, nor in the average, nor in the log."""
    config = run_config(photos, log_every=2)
    run = Run(LITE, config, tmp_path)
    assert run.train(last_step=1) == 1
    before = {name: each.clone() for name, each in run.trainee.state_dict().items()}
    average = {name: each.clone() for name, each in run.average.values.items()}
    first = next(each for each in run.trainee.modules() if isinstance(each, torch.nn.BatchNorm2d))
    spoil = first.register_forward_pre_hook(lambda module, given: (given[0] * float('nan'),))
    assert run.train(last_step=2) == 2
    spoil.remove()
    assert first.running_mean.isfinite().all()
    for name, each in run.trainee.state_dict().items():
        assert_array_equal(each.numpy(), before[name].numpy(), err_msg=name)
    for name, each in run.average.values.items():
        assert_array_equal(each.numpy(), average[name].numpy(), err_msg=name)
    assert run.train() == 6
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [4, 6]
    assert all(math.isfinite(line['loss']) for line in lines)


def test_a_run_is_not_gone_on_with_as_another_system(tmp_path: Path, photos: Path) -> None:
    config = run_config(photos, log_every=7)
    Run(LITE, config, tmp_path)
    described = (tmp_path / 'data.json').read_bytes()
    for other in (replace(LITE, network='sfd2'), replace(LITE, options={'tones': 'raw'})):
        with pytest.raises(DataError, match=r'holds a run of sfd2_lite .* name another folder'):
            Run(other, config, tmp_path)
    assert (tmp_path / 'data.json').read_bytes() == described


def test_a_run_says_what_taught_it(tmp_path: Path, photos: Path) -> None:
    config = run_config(photos, consistency=1.0, steps=1)
    Run(LITE, config, tmp_path).train()
    shipped = load_weights(WEIGHTS / 'sfd2_lite.npz', 'sfd2_lite')
    teacher = {'name': 'sfd2_lite', 'sha256': shipped.sha256}
    path = tmp_path / 'data.json'
    data = json.loads(path.read_text())
    assert data['teacher'] == teacher
    weights = load_weights(tmp_path / 'weights_last.npz', 'sfd2_lite')
    assert weights.provenance['teacher'] == teacher
    path.write_text(json.dumps(data | {'teacher': {**teacher, 'sha256': 'of another'}}))
    with pytest.raises(
        DataError, match=r'taught by .*of another.*, not by .*: put that file back'
    ):
        Run(LITE, config, tmp_path)
    del data['teacher']  # as it was before runs said so
    path.write_text(json.dumps(data))
    assert Run(LITE, config, tmp_path).step == 1
    Run(LITE, run_config(photos), tmp_path / 'untaught')
    assert json.loads((tmp_path / 'untaught' / 'data.json').read_text())['teacher'] is None


def test_a_run_starts_from_weights(tmp_path: Path, photos: Path) -> None:
    shutil.copy(WEIGHTS / 'sfd2_lite.npz', tmp_path / 'first.npz')
    config = run_config(photos, steps=2, start_from=str(tmp_path / 'first.npz'))
    run = Run(LITE, config, tmp_path / 'run')
    shipped = load_weights(WEIGHTS / 'sfd2_lite.npz', 'sfd2_lite')
    for name, value in run.trainee.network.state_dict().items():
        np.testing.assert_array_equal(value, shipped.arrays[f'network.{name}'])
        np.testing.assert_array_equal(value, run.average.values[f'network.{name}'])
    assert 50 < float(run.trainee.log_scale.exp().detach()) < config.largest_scale
    run.train(last_step=1)
    # Once begun it needs them no more.
    (tmp_path / 'first.npz').unlink()
    again = Run(LITE, config, tmp_path / 'run')
    assert again.step == 1
    again.train()
    weights = load_weights(tmp_path / 'run' / 'weights_last.npz', 'sfd2_lite')
    assert weights.provenance['start_from'] == shipped.sha256
    with pytest.raises(NetworkError, match=r'first\.npz do not exist'):
        Run(LITE, config, tmp_path / 'other')
    save_weights(tmp_path / 'first.npz', replace(shipped, arrays={'a': np.zeros(1, np.float32)}))
    with pytest.raises(NetworkError, match=r'first\.npz does not fit: .*"a"'):
        Run(LITE, config, tmp_path / 'other')
    save_weights(tmp_path / 'first.npz', replace(shipped, options={'tones': 'raw'}))
    with pytest.raises(NetworkError, match=r"of a network with \{'tones': 'raw'\}, this one has"):
        Run(LITE, config, tmp_path / 'other')
    # What is mended is begun in the same folder; once begun it may lie elsewhere.
    other = run_config(photos, steps=2, start_from='package')
    Run(LITE, other, tmp_path / 'other').train(last_step=1)
    assert Run(LITE, config, tmp_path / 'other').step == 1


def test_a_run_does_not_change_its_mind(tmp_path: Path, photos: Path) -> None:
    Run(LITE, run_config(photos), tmp_path)
    Run(LITE, run_config(photos, log_every=7), tmp_path)
    with pytest.raises(DataError, match='a run with other learning_rate'):
        Run(LITE, run_config(photos, learning_rate=1.0), tmp_path)
    path = tmp_path / 'config.json'
    older = json.loads(path.read_text())
    del older['inter_class']
    path.write_text(json.dumps(older))
    with pytest.raises(DataError, match='a run with other inter_class'):
        Run(LITE, run_config(photos, log_every=7, inter_class=1.0), tmp_path)
    Run(LITE, run_config(photos, log_every=7), tmp_path)
    with pytest.raises(DataError, match='leave none for validation'):
        Run(LITE, run_config(photos, holdout_every=5), tmp_path / 'other')
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used"):
        Run(LITE, run_config(photos, device='abacus'), tmp_path / 'other')
    (tmp_path / 'last.npz').write_bytes(b'half a')
    with pytest.raises(DataError, match='is damaged'):
        Run(LITE, run_config(photos, log_every=7), tmp_path)


def lite_loss(batch: pairs.Batch, **changes: Any) -> tuple[float, dict[str, float], Any]:
    """Loss of an untrained network, what is logged, and its gradients by name."""
    torch.manual_seed(1)
    trainee = Trainee(LITE.make()).train()
    torch.manual_seed(2)
    total, logged = LITE.losses(trainee, batch, LiteConfig(**changes))
    total.backward()
    gradients = {name: each.grad for name, each in trainee.named_parameters()}
    return float(total.detach()), {name: float(each) for name, each in logged.items()}, gradients


def labelled_batch(photos: Path) -> pairs.Batch:
    return PairMaker(replace(SMALL, light=PLAIN), [photos / '0.png'], None, seed=4)[0]


def test_what_is_shipped_knows_no_term_of_the_paper(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lite, 'create_teacher', None)
    total, logged, _ = lite_loss(labelled_batch(photos))
    match, matchability, stability = (
        np.float32(logged[f'{name}_loss']) for name in ('match', 'matchability', 'stability')
    )
    assert total == match + np.float32(0.5) * matchability + stability
    assert not {'inter_class_loss', 'intra_class_loss', 'consistency_loss'} & set(logged)


def test_the_terms_of_the_paper_are_added(photos: Path) -> None:
    batch = labelled_batch(photos)
    plain, before, _ = lite_loss(batch, group_weight=0.0)
    for changes, name, weight in (
        ({'inter_class': 2.0}, 'inter_class_loss', 2.0),
        ({'intra_class': 0.5}, 'intra_class_loss', 0.5),
        ({'intra_class': 0.5, 'intra_kind': 'triplet'}, 'intra_class_loss', 0.5),
        ({'consistency': 3.0}, 'consistency_loss', 3.0),
    ):
        total, logged, gradients = lite_loss(batch, group_weight=0.0, **changes)
        assert logged[name] > 0
        assert total == pytest.approx(plain + weight * logged[name], rel=1e-5)
        assert {key: logged[key] for key in before} == before
        assert all(each.isfinite().all() for each in gradients.values() if each is not None)


def test_no_semantics_without_weights(photos: Path) -> None:
    """The base of Table 6: the stability outputs and what labels say have no say."""
    batch = labelled_batch(photos)
    total, _, gradients = lite_loss(batch, group_weight=0.0)
    blind, _, same = lite_loss(
        batch._replace(group=torch.full_like(batch.group, -1)), group_weight=0.0
    )
    assert total == blind
    for name, each in gradients.items():
        assert_array_equal(each.numpy(), same[name].numpy(), err_msg=name)
    assert not gradients['network.rank_head.2.weight'][1:].any()


def test_the_pupil_of_equation_5_is_the_map_of_its_teacher(photos: Path) -> None:
    """The shipped network as its own pupil is consistent with itself."""
    batch = labelled_batch(photos)
    trainee = Trainee(LITE.make())
    shipped = load_weights(WEIGHTS / 'sfd2_lite.npz', 'sfd2_lite')
    own = {
        name.removeprefix('network.'): torch.from_numpy(np.array(each))
        for name, each in shipped.arrays.items()
        if name.startswith('network.')
    }
    trainee.network.load_state_dict(own)
    trainee.eval()
    _, logged = LITE.losses(trainee, batch, LiteConfig(consistency=1.0))
    assert float(logged['consistency_loss']) < 1e-5
    trainee.train()
    _, logged = LITE.losses(trainee, batch, LiteConfig(consistency=1.0))
    assert float(logged['consistency_loss']) > 1e-3


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
    assert main([*command, '--set', 'pair.light.night_share=7']) == 1
    assert 'night_share is 7.0: it must be at most 1' in capsys.readouterr().err
    assert main([*command, '--set', 'pair.light.night_share=0.25']) == 0
    written = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert written['pair']['light']['night_share'] == 0.25
    assert written['pair']['points'] == 20
    assert '1 of 1 steps' in capsys.readouterr().out
    words = [f'photos={photos}', 'holdout_every=4', 'steps=1', 'workers=0', 'pair.pairs=1']
    words += ['pair.size=64', 'pair.points=20']
    told = [each for word in words for each in ('--set', word)]
    command = ['train', 'sfd2_lite', '--out', str(tmp_path / 'told')]
    assert main(command) == 1
    assert 'no folder of photographs is named' in capsys.readouterr().err
    assert main([*command, *told]) == 0
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


@pytest.mark.parametrize(
    ('system', 'options', 'losses'),
    [
        ('hynet_base', {'norm': 'batch'}, {'is_plain': True}),
        ('samfeat_base', {'guided': False}, {'distillation': 0.0, 'grouping': 0.0, 'edge': 0.0}),
    ],
)
def test_weights_of_what_a_network_is_compared_with(
    tmp_path: Path, photos: Path, system: str, options: dict[str, Any], losses: dict[str, Any]
) -> None:
    """By the configuration of the network itself, its losses are those of the comparison."""
    config, run, out = tmp_path / 'base.json', str(tmp_path / 'run'), tmp_path / 'base.npz'
    small: dict[str, Any] = {
        'photos': [str(photos)], 'holdout_every': 4, 'steps': 1, 'workers': 0, 'log_every': 1,
        'pair': {'pairs': 1, 'size': 64, 'points': 20},
    }  # fmt: skip
    # The second time as it had to be written before these were the defaults: the run goes on.
    for given in (small, small | losses):
        config.write_text(json.dumps(given))
        assert main(['train', system, '--config', str(config), '--out', run]) == 0
    written = json.loads((Path(run) / 'config.json').read_text())
    assert written.items() >= losses.items()
    logged = json.loads((Path(run) / 'log.jsonl').read_text())
    assert not logged.keys() & {'distillation_loss', 'grouping_loss', 'edge_loss'}
    assert logged.get('norm_loss', 0) == 0
    assert main(['train', 'weights', '--run', run, '--out', str(out)]) == 0
    network = system.removesuffix('_base')
    weights = load_weights(out, network)
    assert weights.sha256 == load_weights(Path(run) / 'weights_last.npz', network).sha256
    assert weights.options.items() >= options.items()
    features = create_extractor(network, max_keypoints=20, runtime='torch', model=str(out))(
        textured(64, 96, 1)
    )
    assert len(features) > 5

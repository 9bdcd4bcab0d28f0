# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where photographs have corners: found, written, read, cut into views and learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

pytest.importorskip('torch', reason='torch is not installed')

import torch

from feat_ros.cli import main
from feat_ros.errors import DataError, NetworkError
from feat_ros.models.weights import load_weights
from feat_ros.semantics import StabilityGroup
from feat_ros.training import checkpoint, magicpoint
from feat_ros.training.configs import LightConfig, LiteConfig, PairConfig, Sfd2Config
from feat_ros.training.corner_files import (
    CornerBank,
    CornerFile,
    FILES,
    heat_size,
    read_corners,
    write_corners,
)
from feat_ros.training.corner_writer import see, write_corner_files
from feat_ros.training.magicpoint import MagicPoint, open_detector
from feat_ros.training.pairs import apply_homography, homographies, PairMaker
from feat_ros.training.pictures import corners_path, find_photos
from feat_ros.training.run import Run, Trainee
from feat_ros.training.sfd2 import corner_loss
from feat_ros.training.systems import get_system

Array = npt.NDArray[Any]
CPU = torch.device('cpu')
SHARED = Path(__file__).parents[2] / 'shared'
PUBLISHED = SHARED / 'teachers' / 'magicpoint.pt'
PHOTO = SHARED / 'data' / 'oxford_affine' / 'graf' / 'img1.png'
PLAIN = LightConfig(
    night_share=0.0, shadow_share=0.0, motion_blur_share=0.0, blur_share=0.0, jpeg_share=0.0
)
SMALL = PairConfig(pairs=2, size=96, points=50, town_share=0.0)
SFD2 = get_system('sfd2')


def write_photos(folder: Path, count: int = 2, wh: tuple[int, int] = (60, 41)) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        noise = cv2.GaussianBlur(
            np.random.default_rng(number).normal(size=(wh[1], wh[0], 3)), (0, 0), 2.0
        )
        picture = np.clip(120 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f'{number}.png'), picture)
    return find_photos([str(folder)])


def random_detector(seed: int = 1) -> Any:
    """Of random weights and statistics, sure of few pixels."""
    torch.manual_seed(seed)
    network = MagicPoint().eval()
    with torch.no_grad():
        for name, each in network.state_dict().items():
            if 'bn' in name and each.is_floating_point():
                each.copy_(torch.rand_like(each) + (0.5 if name.endswith('var') else 0.0))
        network.detector[1].bn.weight *= 20
    return network


def save(network: torch.nn.Module, path: Path) -> Path:
    """As the checkpoint at hand is: without counts of batches."""
    state = network.state_dict()
    torch.save({n: each for n, each in state.items() if 'num_batches' not in n}, path)
    return path


# ---------------------------------------------------------------- the network


def slow_logits(state: Mapping[str, Array], image: Array) -> Array:
    """The network one output pixel at a time, (65, H/8, W/8) of an image (H, W)."""

    def unit(x: Array, name: str, *, is_rectified: bool) -> Array:
        weight = state[f'{name}.conv.weight']
        side = weight.shape[2]
        padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2))
        out = np.empty((len(weight), *x.shape[1:]))
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                window = padded[:, row : row + side, column : column + side]
                found = (weight * window).sum((1, 2, 3)) + state[f'{name}.conv.bias']
                if is_rectified:
                    found = np.maximum(found, 0)
                if f'{name}.bn.weight' in state:
                    found = found - state[f'{name}.bn.running_mean']
                    found = found / np.sqrt(state[f'{name}.bn.running_var'] + 1e-3)
                    found = found * state[f'{name}.bn.weight'] + state[f'{name}.bn.bias']
                out[:, row, column] = found
        return out

    x = image[None].astype(float)
    for stage in range(4):
        if stage:
            _, height, width = x.shape
            x = x.reshape(len(x), height // 2, 2, width // 2, 2).max((2, 4))
        for layer in range(2):
            x = unit(x, f'backbone.{stage}.{layer}', is_rectified=True)
    x = unit(x, 'detector.0', is_rectified=True)
    return unit(x, 'detector.1', is_rectified=False)


def slow_heat(logits: Array) -> Array:
    _, rows, columns = logits.shape
    heat = np.empty((8 * rows, 8 * columns))
    for row in range(rows):
        for column in range(columns):
            each = np.exp(logits[:, row, column] - logits[:, row, column].max())
            cell = each[:64] / each.sum()
            heat[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = cell.reshape(8, 8)
    return heat


def test_the_network_is_that_of_a_slow_reference() -> None:
    network = random_detector()
    image = np.random.default_rng(2).integers(0, 256, (16, 24)).astype(np.float32)
    state = {name: each.double().numpy() for name, each in network.state_dict().items()}
    expected = slow_logits(state, image)
    grey = torch.from_numpy(image)[None, None]
    with torch.no_grad():
        assert_allclose(network(grey)[0], expected, rtol=1e-3, atol=1e-3)
    heat = magicpoint.heat_map(network, grey)[0, 0].numpy()
    assert heat.max() > 0.2
    assert_allclose(heat, slow_heat(expected), atol=1e-4)
    # Of a side that is no multiple of 8 the last pixels go on.
    cut = magicpoint.heat_map(network, grey[:, :, :13, :22])[0, 0].numpy()
    padded = np.pad(image[:13, :22], ((0, 3), (0, 2)), mode='edge')
    assert_allclose(cut, slow_heat(slow_logits(state, padded))[:13, :22], atol=1e-4)


def test_the_layout_of_superpoint(tmp_path: Path) -> None:
    """Other names, no batch norm, white is 1, and descriptors that are not looked at."""
    rng = np.random.default_rng(3)
    layers = [(1, 64), (64, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 128)]
    names = [f'conv{stage}{letter}' for stage in range(1, 5) for letter in 'ab']
    shapes: dict[str, tuple[int, ...]] = {
        name: (after, before, 3, 3) for name, (before, after) in zip(names, layers, strict=True)
    }
    shapes |= {
        'convPa': (256, 128, 3, 3), 'convPb': (65, 256, 1, 1),
        'convDa': (256, 128, 3, 3), 'convDb': (256, 256, 1, 1),
    }  # fmt: skip
    state = {}
    for name, shape in shapes.items():
        weight = rng.normal(size=shape) / math.sqrt(math.prod(shape[1:]) / 2)
        state[f'{name}.weight'] = torch.tensor(weight, dtype=torch.float32)
        state[f'{name}.bias'] = torch.tensor(rng.normal(size=shape[0]), dtype=torch.float32)
    path = tmp_path / 'superpoint.pth'
    torch.save(state, path)
    kind, network = open_detector(path, CPU)
    assert kind == 'superpoint'
    ours = {}
    for name, each in state.items():
        layer, _, what = name.partition('.')
        if layer in names:
            stage, letter = int(layer[4]) - 1, 'ab'.index(layer[5])
            ours[f'backbone.{stage}.{letter}.conv.{what}'] = each.double().numpy()
        elif layer.startswith('convP'):
            ours[f'detector.{"ab".index(layer[5])}.conv.{what}'] = each.double().numpy()
    image = rng.integers(0, 256, (16, 16)).astype(np.float32)
    with torch.no_grad():
        found = network(torch.from_numpy(image)[None, None])[0]
    expected = slow_logits(ours, image / 255)
    assert np.ptp(expected, axis=(1, 2)).min() > 1e-2
    assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    del state['convPb.bias']
    torch.save(state, path)
    with pytest.raises(NetworkError, match=r'neither of MagicPoint nor of SuperPoint'):
        open_detector(path, CPU)


def peaks(heat: Array) -> Array:
    """Places (N, 2), x and y, of corners, the surest first."""
    is_peak = (heat == cv2.dilate(heat, np.ones((9, 9)))) & (heat > 0.05)
    row, column = np.nonzero(is_peak)
    order = np.argsort(-heat[row, column])
    row, column = row[order], column[order]
    return np.stack([column + 0.5, row + 0.5], 1)


def test_the_checkpoint_at_hand_finds_corners() -> None:
    """Those of a drawing where they are, those of a photograph again when it is turned."""
    if not (PUBLISHED.exists() and PHOTO.exists()):
        pytest.skip(f'no {PUBLISHED} or no {PHOTO}')
    kind, network = open_detector(PUBLISHED, CPU)
    assert kind == 'magicpoint'
    drawing = np.full((120, 160, 3), 90, np.uint8)
    cv2.rectangle(drawing, (40, 30), (119, 89), (200, 200, 200), -1)
    found = peaks(see(network, cv2.GaussianBlur(drawing, (0, 0), 1), 1, CPU).astype(np.float32))
    corners = [(40, 30), (120, 30), (120, 90), (40, 90)]
    apart = np.linalg.norm(found[:, None] - np.array(corners, float), axis=2)
    assert apart[:4].min(0).max() < 2 > apart[:4].min(1).max()
    bgr = cv2.imread(str(PHOTO))[200:392, 250:458]
    photo = np.ascontiguousarray(bgr[..., ::-1])
    turned = np.ascontiguousarray(np.rot90(photo))
    first, second = (
        peaks(see(network, each, 4, CPU).astype(np.float32)) for each in (photo, turned)
    )
    assert min(len(first), len(second)) > 30
    back = np.stack([photo.shape[1] - second[:, 1], second[:, 0]], 1)
    apart = np.linalg.norm(first[:, None] - back, axis=2).min(1)
    by_chance = len(second) * math.pi * 2**2 / (photo.shape[0] * photo.shape[1])
    assert (apart < 2).mean() > max(0.6, 5 * by_chance)


# ---------------------------------------------------------------- homographic adaptation


def bilinear(values: Array, x: float, y: float) -> float:
    """Between pixels, whose centres are at halves; the border goes on."""
    height, width = values.shape
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    total = 0.0
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        share = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
        inside = values[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
        total += share * float(inside)
    return total


def test_homographic_adaptation_is_that_of_a_loop() -> None:
    network = random_detector()
    grey = np.random.default_rng(4).integers(0, 256, (29, 37)).astype(np.float32)
    grey = cv2.GaussianBlur(grey, (0, 0), 1.5)
    views = magicpoint.random_views(3, (37, 29), seed=7)
    found = magicpoint.adapted_heat_map(network, torch.from_numpy(grey), views).numpy()

    def heat_of(image: Array) -> Array:
        given = torch.from_numpy(image.astype(np.float32))[None, None]
        return np.asarray(magicpoint.heat_map(network, given)[0, 0].numpy())

    def through(matrix: Array, x: float, y: float) -> tuple[float, float]:
        a, b, w = matrix @ [x, y, 1.0]
        return a / w, b / w

    total, count = heat_of(grey).astype(float), np.ones(grey.shape)
    for source_from_view in views.numpy():
        view = np.empty_like(grey)
        for row, column in np.ndindex(*grey.shape):
            view[row, column] = bilinear(grey, *through(source_from_view, column + 0.5, row + 0.5))
        heat = heat_of(view)
        view_from_source = np.linalg.inv(source_from_view)
        for row, column in np.ndindex(*grey.shape):
            x, y = through(view_from_source, column + 0.5, row + 0.5)
            if 4 <= x <= 37 - 4 and 4 <= y <= 29 - 4:
                total[row, column] += bilinear(heat, x, y)
                count[row, column] += 1
    assert set(np.unique(count)) >= {1, 2} and count.mean() > 1.5
    assert_allclose(found, total / count, atol=2e-3)
    plain = magicpoint.adapted_heat_map(network, torch.from_numpy(grey), views[:0])
    assert_allclose(plain, heat_of(grey), atol=1e-6)
    assert np.abs(found - heat_of(grey)).max() > 0.05


def test_views_are_turned_scaled_and_moved() -> None:
    views = magicpoint.random_views(200, (200, 100), seed=0)
    assert_array_equal(views, magicpoint.random_views(200, (200, 100), seed=0))
    corners = torch.tensor([[0.0, 0], [200, 0], [200, 100], [0, 100]]).double()
    quads = apply_homography(views, corners.expand(200, 4, 2)).numpy()
    areas = [cv2.contourArea(quad.astype(np.float32)) / (200 * 100) for quad in quads]
    assert 0.1 < min(areas) < 0.4 and 0.9 < max(areas) < 2.5
    side = quads[:, 1] - quads[:, 0]
    turns = np.degrees(np.arctan2(side[:, 1], side[:, 0]))
    assert turns.min() < -60 and turns.max() > 60
    middles = quads.mean(1) / [200, 100]
    assert np.all(middles.min(0) < 0.35) and np.all(middles.max(0) > 0.65)
    assert all(cv2.isContourConvex(quad.astype(np.float32)) for quad in quads)


# ---------------------------------------------------------------- the file


def corner_file(wh: tuple[int, int], seed: int = 3) -> CornerFile:
    heat = np.random.default_rng(seed).random((wh[1], wh[0]))
    return CornerFile(heat.astype(np.float16), 'a test')


def test_what_is_written_is_read(tmp_path: Path) -> None:
    photo = write_photos(tmp_path, 1)[0]
    written = corner_file((60, 41))
    write_corners(photo, written)
    assert corners_path(photo) == tmp_path / '0.corners.npz'
    assert find_photos([str(tmp_path)]) == [photo]
    read = read_corners(photo, (60, 41))
    assert_array_equal(read.heat, written.heat)
    assert read.heat.dtype == np.float16
    assert read.model == FILES.model_of(photo) == 'a test'
    assert [heat_size(wh) for wh in ((1024, 700), (2048, 1000), (10, 4096))] == [
        (1024, 700), (1024, 500), (2, 1024),
    ]  # fmt: skip
    for bad in (np.nan, np.inf, 1.01, -0.1):
        heat = written.heat.copy()
        heat[3, 4] = bad
        with pytest.raises(DataError, match=r'0\.corners\.npz is not written: its probabilities'):
            write_corners(photo, CornerFile(heat, 'a test'))
    assert_array_equal(read_corners(photo, (60, 41)).heat, written.heat)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    photo = write_photos(tmp_path, 1)[0]
    path, good = corners_path(photo), corner_file((60, 41))
    missing = r'0\.corners\.npz does not exist: write it with "feat_ros train corner-files"'
    with pytest.raises(DataError, match=missing):
        read_corners(photo, (60, 41))
    write_corners(photo, good)
    with pytest.raises(DataError, match=r'is of 60x41 pixels, where 0\.png has 41x60: remove it'):
        read_corners(photo, (41, 60))
    content = path.read_bytes()
    damaged: list[bytes | dict[str, Any]] = [
        content[:200], content[:-30], b'', b'no arrays',
        {'heat': good.heat.astype(np.float32), 'model': 'a'}, {'heat': good.heat[0], 'model': 'a'},
        {'heat': good.heat * np.float16(2), 'model': 'a'}, {'heat': good.heat},
        {'heat': np.full_like(good.heat, np.nan), 'model': 'a'},
    ]  # fmt: skip
    for each in damaged:
        if isinstance(each, bytes):
            path.write_bytes(each)
        else:
            np.savez(path, **each)
        with pytest.raises(
            DataError, match=r'0\.corners\.npz is damaged, or no file of corners: remove it and'
        ):
            read_corners(photo, (60, 41))


# ---------------------------------------------------------------- the command


def command(folder: Path, checkpoint: Path, *words: str) -> list[str]:
    start = ['train', 'corner-files', str(folder), '--checkpoint', str(checkpoint)]
    return [*start, '--homographies', '3', *words]


def test_the_command_writes_what_the_detector_says(tmp_path: Path) -> None:
    folder, network = tmp_path / 'photos', random_detector()
    photos = write_photos(folder, 2)
    path = save(network, tmp_path / 'magicpoint.pt')
    figures = tmp_path / 'figures.json'
    assert main(command(folder, path, '--json', str(figures))) == 0
    assert json.loads(figures.read_text()) == {'written': 2, 'kept': 0}
    assert sorted(each.name for each in folder.glob('*.npz*')) == [
        '0.corners.npz', '1.corners.npz',
    ]  # fmt: skip
    for photo in photos:
        grey = cv2.imread(str(photo), cv2.IMREAD_GRAYSCALE)
        views = magicpoint.random_views(2, (60, 41), seed=0)
        expected = magicpoint.adapted_heat_map(network, torch.from_numpy(grey).float(), views)
        found = read_corners(photo, (60, 41)).heat
        # A grey level more or less between two ways to read grey is little.
        assert np.abs(found - expected.numpy()).mean() < 0.02 * found.std()
        assert found.max() > 0.1


def test_what_was_interrupted_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'photos'
    photos = write_photos(folder, 3)
    path = save(random_detector(), tmp_path / 'magicpoint.pt')

    def stopped(items: list[Any], what: str) -> Any:
        yield items[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corner_files(photos, path, 3, CPU, stopped)
    assert [corners_path(photo).exists() for photo in photos] == [True, False, False]
    before = corners_path(photos[0]).stat()
    assert main(command(folder, path)) == 0
    assert '2 files written, 1 were there' in capsys.readouterr().out
    after = corners_path(photos[0]).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert main(command(folder, path)) == 0
    assert '0 files written, 3 were there' in capsys.readouterr().out
    other = save(random_detector(2), tmp_path / 'other.pt')
    assert main(command(folder, other)) == 1
    assert '0.corners.npz was made by magicpoint ' in capsys.readouterr().err
    assert main([*command(folder, path)[:-1], '4']) == 1
    assert ', 3 views, not by ' in capsys.readouterr().err
    corners_path(photos[1]).write_bytes(b'half a')
    assert main(command(folder, path)) == 1
    error = capsys.readouterr().err
    assert '1.corners.npz is damaged' in error and error.count('\n') == 1


def test_checkpoints_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / 'photos', 1)
    path = tmp_path / 'magicpoint.pt'

    def fails(match: str, *words: str) -> None:
        assert main(command(tmp_path / 'photos', path, *words)) == 1
        error = capsys.readouterr().err.splitlines()
        assert match in error[-1] and error[-1].startswith('feat_ros: ')
        assert not any('Traceback' in line for line in error)

    fails('magicpoint.pt does not exist')
    path.write_bytes(b'no checkpoint')
    fails('magicpoint.pt is')
    torch.save({'conv.weight': torch.zeros(3)}, path)
    fails('magicpoint.pt is neither of MagicPoint nor of SuperPoint')
    torch.save(print, path)
    fails('magicpoint.pt is damaged, or holds objects that could run code')
    save(random_detector(), path)
    fails('--homographies is 0: it must be at least 1', '--homographies', '0')
    network = random_detector()
    with torch.no_grad():
        network.detector[1].conv.bias += float('nan')
    save(network, path)
    fails('0.corners.npz is not written: its probabilities are not in [0, 1]')
    assert not corners_path(photos[0]).exists()


# ---------------------------------------------------------------- views

QUADS = np.array(
    [
        [[20, 10], [130, 30], [120, 140], [10, 120]],
        [[-60, -20], [80, -30], [90, 90], [-40, 100]],
        [[20, 10], [130, 30], [120, 140], [10, 120]],
    ],
    float,
)


def warped(heat: Array, source_from_view: Array, size: int) -> Array:
    """A view of a heat map by OpenCV."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ np.linalg.inv(source_from_view) @ half
    return np.asarray(
        cv2.warpPerspective(
            heat.astype(np.float32), matrix, (size, size), flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
    )  # fmt: skip


def test_corners_go_with_the_pixels() -> None:
    """Mirrored beyond borders; of a picture without a file nothing is known."""
    found = corner_file((220, 150))
    smooth = cv2.GaussianBlur(found.heat.astype(np.float32), (0, 0), 2).astype(np.float16)
    source_from_view = homographies(torch.from_numpy(QUADS), 96)
    bank = CornerBank([None, CornerFile(smooth, 'a test')], [(40, 30), (220, 150), (9, 9)], CPU)
    views = bank.views(torch.tensor([1, 1, 0]), source_from_view, 96)
    assert views.shape == (3, 1, 96, 96)
    for number in (0, 1):
        expected = warped(smooth, source_from_view[number].numpy(), 96)
        assert expected.std() > 0.01
        # OpenCV's places are rounded to 1/32 of a pixel.
        assert_allclose(views[number, 0], expected, atol=0.02)
    assert views[2].isnan().all()
    assert bank.views(torch.tensor([2]), source_from_view[:1], 96).isnan().all()


def test_corners_of_a_photograph_that_was_scaled_down() -> None:
    """And of a view of all of it, at a quarter of the map's resolution: the surest of 4x4."""
    heat = np.zeros((768, 1024), np.float16)
    rng = np.random.default_rng(5)
    places = rng.integers(0, [768, 1024], (80, 2))
    heat[places[:, 0], places[:, 1]] = rng.uniform(0.2, 1, 80)
    bank = CornerBank([CornerFile(heat, 'a test')], [(2048, 1536)], CPU)
    scale = 1536 / 192
    source_from_view = torch.tensor([[[scale, 0, 64], [0, scale, 0], [0, 0, 1]]]).double()
    view = bank.views(torch.tensor([0]), source_from_view, 192)[0, 0].numpy()
    coarse = heat.reshape(192, 4, 256, 4).max((1, 3))
    assert_allclose(view, coarse[:, 8:200], atol=1e-6)
    assert (view > 0).sum() > 40


def test_both_views_know_the_same_corners(tmp_path: Path) -> None:
    photos = write_photos(tmp_path, 2, (220, 150))
    config = replace(SMALL, pairs=6, light=PLAIN)
    plain = PairMaker(config, photos, None, 1)[0]
    assert PairMaker(config, photos, None, 1, reads_corners=True)[0].corners is None
    smooth = cv2.GaussianBlur(corner_file((220, 150)).heat.astype(np.float32), (0, 0), 3)
    write_corners(photos[0], CornerFile(smooth.astype(np.float16), 'a test'))
    batch = PairMaker(config, photos, None, 1, reads_corners=True)[0]
    assert_array_equal(batch.images, plain.images)
    assert plain.corners is None and batch.corners is not None
    assert batch.corners.shape == (12, 1, 96, 96)
    is_known = ~batch.corners.isnan().all(3).all(2)[:, 0]
    assert_array_equal(is_known[:6], is_known[6:])
    assert 0 < is_known.sum() < 12
    found = []
    for pair in range(6):
        rows = torch.nonzero(batch.partner[pair] >= 0)[:, 0]
        if is_known[pair]:
            for view, xy in (
                (pair, batch.points.xy[pair, rows]),
                (6 + pair, batch.points.xy[6 + pair, batch.partner[pair, rows]]),
            ):
                maps = batch.corners[view, 0].numpy()
                found.append([bilinear(maps, *place) for place in xy.tolist()])
    first, second = (np.concatenate(found[k::2]) for k in (0, 1))
    assert len(first) > 20
    assert np.corrcoef(first, second)[0, 1] > 0.9


def test_corners_of_two_models(tmp_path: Path) -> None:
    photos = write_photos(tmp_path, 2)
    write_corners(photos[0], corner_file((60, 41)))
    write_corners(photos[1], corner_file((60, 41))._replace(model='another'))
    with pytest.raises(DataError, match=r'of 2 models \(a test; another\): write them all with'):
        PairMaker(SMALL, photos, None, 1, reads_corners=True)


# ---------------------------------------------------------------- equation 1


def labelled_photos(folder: Path, count: int = 4) -> list[Path]:
    """The left third unknown, then sky, then building; corners beside all but the last two."""
    photos = write_photos(folder, count, (220, 150))
    group = np.full((150, 220), StabilityGroup.LONG_TERM, np.uint8)
    group[:, :150], group[:, :70] = StabilityGroup.VOLATILE, StabilityGroup.UNKNOWN
    for number, photo in enumerate(photos):
        cv2.imwrite(str(photo.with_suffix('.group.png')), group)
        if number < count - 2:
            write_corners(photo, corner_file((220, 150), number))
    return photos


def test_equation_1_of_files_is_that_of_a_loop(tmp_path: Path) -> None:
    photos = labelled_photos(tmp_path)
    config = replace(SMALL, pairs=6, size=64, light=PLAIN)
    batch = PairMaker(config, photos, None, 2, reads_corners=True)[0]
    assert batch.corners is not None
    logits = torch.randn(12, 65, 8, 8, generator=torch.Generator().manual_seed(1))
    total = count = 0.0
    for view in range(12):
        score = slow_heat(logits[view].double().numpy())
        for row, column in np.ndindex(64, 64):
            corner = float(batch.corners[view, 0, row, column])
            group = int(batch.groups[view, row, column])
            if group >= 0 and not math.isnan(corner):
                wanted = corner * [0.1, 0.5, 1.0][group]
                s = score[row, column]
                total -= wanted * math.log(s) + (1 - wanted) * math.log(1 - s)
                count += 1
    assert 0 < count < 12 * 64 * 64
    assert (batch.corners.isnan()[:, 0] & (batch.groups >= 0)).any()
    assert (~batch.corners.isnan()[:, 0] & (batch.groups < 0)).any()
    assert float(corner_loss(logits, batch)) == pytest.approx(total / count, rel=1e-4)
    assert float(corner_loss(logits, batch._replace(corners=None))) == 0


def paper_config(folder: Path, **changes: Any) -> Sfd2Config:
    """The recipe of the paper, small."""
    options: dict[str, Any] = {
        'photos': [str(folder)], 'holdout_every': 4, 'steps': 2, 'warmup_steps': 0, 'workers': 0,
        'log_every': 1, 'validate_every': 2, 'validation_batches': 1, 'corners': 'files',
        'match': 0.0, 'inter_class': 1.0, 'intra_class': 0.5, 'consistency': 1.0,
        'stability': 0.0, 'weight_decay': 0.0, 'pair': replace(SMALL, pairs=4, size=64, points=20),
    }  # fmt: skip
    return Sfd2Config(**options | changes)


def test_the_recipe_of_the_paper_learns(tmp_path: Path) -> None:
    """All but the stability head, which is not the paper's; in pieces as in one."""
    folder = tmp_path / 'photos'
    labelled_photos(folder)
    config = paper_config(folder)
    run = Run(SFD2, config, tmp_path / 'one')
    before = {name: each.clone() for name, each in run.trainee.named_parameters()}
    assert run.train() == 2
    still = {
        name.removeprefix('network.')
        for name, each in run.trainee.named_parameters()
        if torch.equal(each, before[name])
    }
    assert still == {'log_scale', 'ConvSta.weight', 'ConvSta.bias'}
    log = [json.loads(line) for line in (tmp_path / 'one' / 'log.jsonl').read_text().splitlines()]
    for line in log:
        parts = [line[f'{n}_loss'] for n in ('detection', 'inter_class', 'consistency')]
        assert min(parts) > 0
        total = sum(parts) + 0.5 * line['intra_class_loss']
        assert line['loss'] == pytest.approx(total, abs=5e-5)
    weights = load_weights(tmp_path / 'one' / 'weights_last.npz', 'sfd2')
    assert weights.options == {'stability_exponent': 0.0, 'tones': 'adapted'}
    data = json.loads((tmp_path / 'one' / 'data.json').read_text())
    assert data['options'] == weights.options
    assert data['teacher']['name'] == 'sfd2_lite'
    assert ['corners_sha256' in each for each in data['training']] == [True, True, False]
    assert Run(SFD2, config, tmp_path / 'pieces').train(last_step=1) == 1
    assert Run(SFD2, replace(config, workers=1), tmp_path / 'pieces').train() == 2
    one, pieces = (checkpoint.load(tmp_path / n / 'last.npz') for n in ('one', 'pieces'))
    for name in one:
        assert_array_equal(one[name], pieces[name], err_msg=name)
    with pytest.raises(DataError, match=r'holds a run with other corners'):
        Run(SFD2, replace(config, corners='extrema'), tmp_path / 'one')


def test_what_ships_knows_no_corners(tmp_path: Path) -> None:
    """By default neither files nor teacher are read, and the options are those of before."""
    labelled_photos(tmp_path)
    config = Sfd2Config()
    assert (config.reads_corners, config.taught_by, any(config.sam_parts)) == (False, None, False)
    assert not LiteConfig().reads_corners
    config = replace(
        paper_config(tmp_path), corners='extrema', consistency=0.0, match=1.0, stability=0.3
    )
    run = Run(SFD2, config, tmp_path / 'run')
    assert run.system.options == {'stability_exponent': 0.5, 'tones': 'adapted'}
    data = json.loads((tmp_path / 'run' / 'data.json').read_text())
    assert not any('corners_sha256' in each for each in data['training'])
    assert data['teacher'] is None


def test_a_run_without_corners_or_labels(tmp_path: Path) -> None:
    folder = tmp_path / 'photos'
    photos = write_photos(folder, 4, (220, 150))
    config = paper_config(folder)
    with pytest.raises(
        DataError, match=r'none of 3 photographs has a file of corners \(0\.corners\.npz\): write'
    ):
        Run(SFD2, config, tmp_path / 'run')
    write_corners(photos[1], corner_file((220, 150)))
    with pytest.raises(
        DataError, match=r'none of the 1 photographs .* has labels \(1\.group\.png\): equation 1'
    ):
        Run(SFD2, config, tmp_path / 'run')


def test_descriptors_learn_from_equation_3_however_small_s_is(tmp_path: Path) -> None:
    photos = labelled_photos(tmp_path)
    batch = PairMaker(replace(SMALL, pairs=4, light=PLAIN), photos, None, 2)[0]
    slopes, costs = [], []
    for bias in (0.0, 30.0):  # of "none of them"
        torch.manual_seed(1)
        trainee = Trainee(SFD2.make()).eval()
        with torch.no_grad():
            trainee.network.convPb.bias[64] += bias
        config = replace(paper_config(tmp_path), detection=0.0, inter_class=0.0, consistency=0.0)
        total, logged = SFD2.losses(trainee, batch, config)
        total.backward()
        slopes.append(float(trainee.network.convDb.weight.grad.norm()))
        costs.append(float(logged['intra_class_loss']))
    # Of S = 1 / 65 the weight is 0.56, of S = 0 it is 0.5: the costs are 1/2 - weight (AP - 1/2).
    assert slopes[1] / slopes[0] == pytest.approx(0.5 / (0.5 + 4 / 65), rel=0.1)
    assert slopes[1] > 0
    assert (costs[0] - 0.5) / (costs[1] - 0.5) == pytest.approx((0.5 + 4 / 65) / 0.5, rel=0.1)


# ---------------------------------------------------------------- equation 5


def test_targets_of_equation_5_can_be_reached() -> None:
    """What the network's own batch norm and ReLU make of a fixed mixture of the teacher's."""
    from feat_ros.training.sfd2 import reachable

    features = torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(3)) * 4 + 10
    found = reachable(features, None, 12)
    mixing = torch.randn(12, 7, generator=torch.Generator().manual_seed(5))
    mixed = torch.nn.functional.conv2d(features, mixing[:, :, None, None])
    norm = torch.nn.BatchNorm2d(12, affine=False).train()
    assert_allclose(found, torch.relu(norm(mixed)), atol=1e-4)
    is_known = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(4)) < 0.6
    known = reachable(torch.where(is_known, features, 1e3), is_known, 12)
    columns = mixed.movedim(1, -1)[is_known[:, 0]].numpy()
    expected = np.maximum((columns - columns.mean(0)) / columns.std(0), 0)
    assert_allclose(known.movedim(1, -1)[is_known[:, 0]], expected, atol=1e-3)


@pytest.mark.parametrize('teacher', ['sfd2_lite', 'files'])
def test_equation_5_is_added(tmp_path: Path, teacher: str) -> None:
    from feat_ros.training.sam_files import SamFile, write_sam

    photos = labelled_photos(tmp_path)
    rng = np.random.default_rng(8)
    features = rng.normal(size=(5, 44, 64)).astype(np.float16)
    write_sam(photos[0], SamFile(np.zeros((150, 220), np.uint16), features, 'a test'))
    config = replace(
        paper_config(tmp_path), corners='extrema', inter_class=0.0, intra_class=0.0, match=1.0,
        teacher=teacher,
    )  # fmt: skip
    batch = PairMaker(config.pair, photos[:1], None, 3, sam_parts=config.sam_parts)[0]
    totals = []
    for weight in (0.0, 3.0):
        torch.manual_seed(1)
        trainee = Trainee(SFD2.make()).train()
        total, logged = SFD2.losses(trainee, batch, replace(config, consistency=weight))
        totals.append(float(total.detach()))
    assert float(logged['consistency_loss']) > 0.1
    assert totals[1] == pytest.approx(totals[0] + 3 * float(logged['consistency_loss']), rel=1e-5)
    (logged['match_loss'] * 0 + total).backward()
    assert trainee.network.conv1a[0].weight.grad.isfinite().all()
    unseen = batch._replace(taught=None, is_taught=None)
    _, logged = SFD2.losses(trainee, unseen, config)
    assert (float(logged['consistency_loss']) == 0) == (teacher == 'files')

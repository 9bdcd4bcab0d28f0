# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Extractors side by side: each figure on pictures for which it is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
import json
from pathlib import Path
from typing import Any

from conftest import Scene as Pictures
import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

from feat_ros.bench import format_report
from feat_ros.cli import main
from feat_ros.errors import DataError, NetworkError
from feat_ros.extractors import create_extractor, Extractor
from feat_ros.feature_bench import matching, semantics
from feat_ros.feature_bench.comparison import (
    compare_features,
    FeatureData,
    make_extractor,
    plot_comparison,
    recall_limit,
)
from feat_ros.feature_bench.localization import (
    area_under_recall,
    darken,
    LIGHT,
    localization_rows,
    localize_sets,
    PosedSet,
    read_posed_set,
    read_posed_sets,
)
from feat_ros.feature_bench.matching import apply_homography, HomographySet, score_pair, turn
from feat_ros.image import Image, read_image, write_png
from feat_ros.runtimes import WEIGHTS
from feat_ros.semantics import get_label_table
from feat_ros.types import Features

Float = npt.NDArray[np.float64]
XFEAT = Path(__file__).parents[2] / 'shared' / 'teachers' / 'xfeat_backbone.pt'
IMAGE = np.zeros((100, 200, 3), np.uint8)


def features_at(points: Float, descriptors: Float | None = None) -> Features:
    count = len(points)
    rows = np.eye(max(count, 1))[:count] if descriptors is None else descriptors
    ones = np.ones(count, np.float32)
    return Features(points.astype(np.float32), ones, rows.astype(np.float32), ones, ones)


# ---------------------------------------------------------------- matching


def write_homography_set(folder: Path, image: Image, suffix: str = '.xml') -> Float:
    """Write an image and itself turned by 20 degrees, Oxford's way; return the homography."""
    folder.mkdir(parents=True)
    turned, homography = turn(image, 20)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    whole = np.linalg.inv(half) @ homography @ half
    write_png(folder / 'img1.png', image)
    write_png(folder / 'img2.png', turned)
    if suffix:
        storage = cv2.FileStorage(str(folder / f'H1to2p{suffix}'), cv2.FILE_STORAGE_WRITE)
        storage.write('H12', whole)
        storage.release()
    else:
        np.savetxt(folder / 'H1to2p', whole)
    return homography


@pytest.mark.parametrize('suffix', ['.xml', ''])
def test_homographies_are_read_with_centres_at_halves(tmp_path: Path, suffix: str) -> None:
    homography = write_homography_set(tmp_path / 'wall', IMAGE, suffix)
    (tmp_path / 'notes').mkdir()
    (one,) = matching.read_homography_sets(tmp_path)
    assert (one.name, [path.name for path in one.images]) == ('wall', ['img1.png', 'img2.png'])
    assert_allclose(one.from_first[0], homography, atol=1e-9)


def test_homographies_that_are_no_good(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='has no folder with img1'):
        matching.read_homography_sets(tmp_path / 'nowhere')
    write_homography_set(tmp_path / 'wall', IMAGE)
    for content in ('<?xml version="1.0"?><opencv_storage></opencv_storage>', 'hello', None):
        path = tmp_path / 'wall' / 'H1to2p.xml'
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(DataError, match='is not a homography of 3x3 numbers'):
            matching.read_homography_sets(tmp_path)


@pytest.mark.parametrize('angle', matching.ANGLES_DEG)
def test_a_turned_picture_is_where_its_homography_says(angle: int) -> None:
    image = np.zeros((90, 130, 3), np.uint8)
    image[20:24, 100:104] = 255
    turned, homography = turn(image, angle)
    y, x = np.mgrid[: turned.shape[0], : turned.shape[1]] + 0.5
    weight = turned[:, :, 0] / turned[:, :, 0].sum()
    (expected,) = apply_homography(homography, np.array([[102.0, 22.0]]))
    assert_allclose([(x * weight).sum(), (y * weight).sum()], expected, atol=0.1)


def test_errors_of_matches_are_counted() -> None:
    """Half of the matches are exact, a quarter 1.9 px off, a quarter 6.9."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, [150, 100], (80, 2))
    shift = np.array([[1, 0, 20], [0, 1, 0], [0, 0, 1.0]])
    off = np.repeat([0.0, 0.0, 1.9, 6.9], 20)
    other = points + np.column_stack([np.full(80, 20.0), off])
    found = score_pair(features_at(points), features_at(other), shift, IMAGE, IMAGE)
    assert_allclose(found.accuracy, [0.5, 0.75, 0.75, 0.75, 0.75, 0.75, 1, 1, 1, 1])
    assert found.num_correct == 60
    assert found.corner_px < 1
    nothing = score_pair(features_at(points[:0]), features_at(other), shift, IMAGE, IMAGE)
    assert (nothing.num_correct, nothing.corner_px, nothing.repeatability) == (0, np.inf, 0)
    assert not nothing.accuracy.any()


def test_repeatability_counts_what_both_see() -> None:
    """Two of three that the second sees are near one of its four, of which two are seen back."""
    shift = np.array([[1, 0, 50], [0, 1, 0], [0, 0, 1.0]])
    first = features_at(np.array([[10.0, 10], [40, 50], [90, 90], [180, 20]]))
    second = features_at(np.array([[61.0, 11], [90, 52], [140, 20], [20, 20]]))
    found = matching.repeatability(first, second, shift, IMAGE, IMAGE)
    assert found == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_tables_pool_pairs() -> None:
    def pair(share: float, corner: float) -> matching.PairScores:
        return matching.PairScores(np.full(10, share), int(100 * share), corner, share / 2)

    found = {'a': {'wall': [pair(0.2, 9), pair(0.4, 4)], 'yard': [pair(0.9, 1)]}}
    tables = matching.matching_rows(found)
    assert list(tables) == ['matching: wall', 'matching: yard', 'matching: all sets']
    (wall,), (pooled,) = tables['matching: wall'], tables['matching: all sets']
    assert (wall['mma_3px'], wall['homog_3px'], wall['homog_5px']) == pytest.approx((0.3, 0, 0.5))
    assert (pooled['mma_1px'], pooled['homog_5px']) == pytest.approx((0.5, 2 / 3))
    assert (pooled['repeatab'], pooled['correct']) == pytest.approx((0.25, 50))
    assert matching.accuracy_curve(found['a']) == pytest.approx([0.5] * 10)


# ---------------------------------------------------------------- localization


def test_night_has_the_light_and_the_noise_it_says() -> None:
    grey = np.full((100, 100, 3), 186, np.uint8)
    assert darken(grey, 1.0, 'a') is grey
    linear = (186 / 255) ** 2.2
    for light in (0.05, 0.02):
        dark = (darken(grey, light, 'a') / 255.0) ** 2.2
        assert dark.mean() == pytest.approx(light * linear, rel=0.01)
        electrons = light * linear * 10_000
        # Poisson and reading; and what rounding to 8 bits adds.
        noise = np.sqrt(electrons + 25) / 10_000
        assert 0.95 * noise < dark.std() < 1.3 * noise
    assert_array_equal(darken(grey, 0.05, 'a'), darken(grey, 0.05, 'a'))
    assert (darken(grey, 0.05, 'a') != darken(grey, 0.05, 'b')).any()


def test_recall_has_an_area() -> None:
    assert area_under_recall(np.array([0.0, 0.05, 0.1, np.inf])) == pytest.approx(1.5 / 4)


def write_posed(folder: Path, names: list[str]) -> Path:
    (folder / 'colmap').mkdir(parents=True)
    (folder / 'colmap' / 'cameras.txt').write_text('1 PINHOLE 320 240 262 260 160 120\n')
    lines = [f'{i} 1 0 0 0 {i} 0 0 1 {name}\n\n' for i, name in enumerate(names, start=1)]
    (folder / 'colmap' / 'images.txt').write_text(''.join(lines))
    return folder


def test_posed_sets_are_split_by_their_lists(tmp_path: Path) -> None:
    folder = write_posed(tmp_path / 'yard', [f'{i}.png' for i in range(5)])
    whole = read_posed_set(folder)
    assert [image.name for image in whole.mapping] == ['0.png', '2.png', '4.png']
    assert [image.name for image in whole.queries] == ['1.png', '3.png']
    (folder / 'mapping.txt').write_text('3.png\n4.png\n')
    (folder / 'query.txt').write_text('0.png\n')
    split = read_posed_set(folder)
    assert [image.name for image in split.mapping] == ['3.png', '4.png']
    assert [image.name for image in split.queries] == ['0.png']
    with pytest.raises(DataError, match='at least 2 and a query are needed'):
        read_posed_set(write_posed(tmp_path / 'one', ['a.png']))
    with pytest.raises(DataError, match="two posed sets are called 'yard': rename"):
        read_posed_sets([folder, folder])


def write_room(folder: Path, scene: Pictures) -> Path:
    """Write the pictures of the room as a posed set: six for the map, all queries."""
    folder.mkdir()
    (folder / 'images').symlink_to(scene.folder)
    (folder / 'colmap').mkdir()
    parts = {'mapping': scene.images[::2] + scene.images[9:], 'query': scene.queries}
    lines: list[str] = []
    for part, images in parts.items():
        (folder / f'{part}.txt').write_text(''.join(f'{image.name}\n' for image in images))
        for image in images:
            x, y, z, w = image.cam_from_map.quat_xyzw
            numbers = [w, x, y, z, *image.cam_from_map.translation]
            words = [len(lines) + 1, *map(float, numbers), 1, image.name]
            lines.append(' '.join(map(str, words)) + '\n\n')
    camera = scene.queries[0].camera.to_words()
    (folder / 'colmap' / 'cameras.txt').write_text(f'1 {camera}\n')
    (folder / 'colmap' / 'images.txt').write_text(''.join(lines))
    return folder


def test_a_posed_set_by_the_command(
    scene: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ('pycolmap', 'onnxruntime'):
        pytest.importorskip(library, reason=f'{library} is not installed')
    room = str(write_room(tmp_path / 'room', scene))
    words = ['bench', 'localize', '--extractors', 'sift,sfd2_lite', '--keypoints', '300']
    out = tmp_path / 'room.json'
    assert main([*words, '--posed', room, '--max-size', '320', '--json', str(out)]) == 0
    assert 'room: 6 images, 3 queries' in capsys.readouterr().out
    tables = json.loads(out.read_text())['tables']
    day, dark = tables['localization: day'], tables['localization: night 0.5 %']
    assert [row['name'] for row in day] == ['sift', 'sfd2_lite']
    assert [row['25cm_2deg'] for row in day] == [1, 1]
    assert [row['queries'] for row in day + dark] == [3] * 4
    assert dark[0]['auc_10cm'] < day[0]['auc_10cm'] > 0.5
    rows = tables['milliseconds a query, medians over every light']
    assert [row['name'] for row in rows] == ['sift', 'sfd2_lite']
    for row in rows:
        stages = [row[stage] for stage in ('extract', 'retrieve', 'match', 'pnp')]
        assert 0 < min(stages) < max(stages) < row['total']
    # Blind by night or not, both took their time to extract.
    assert all(row['extract'] > row['retrieve'] for row in rows)


def test_a_posed_set_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['bench', 'localize', '--extractors', 'sift']
    for some in (words, ['bench', 'localize', '--posed', str(tmp_path)]):
        assert main(some) == 1
        assert 'give --extractors and --posed together' in capsys.readouterr().err
    assert main([*words, '--posed', str(tmp_path / 'gone')]) == 1
    assert 'gone' in capsys.readouterr().err
    words[-1] = 'sifd'
    assert main([*words, '--posed', str(write_posed(tmp_path / 'yard', ['a', 'b', 'c']))]) == 1
    assert "unknown extractor 'sifd'; choose one of: sift" in capsys.readouterr().err


def test_a_room_is_localized_by_day_and_less_well_by_night(
    scene: Pictures, tmp_path: Path
) -> None:
    pytest.importorskip('pycolmap', reason='pycolmap is not installed')
    posed = PosedSet('room', scene.folder, scene.images, scene.queries[:2])
    blank = PosedSet('blank', scene.folder, scene.images[:2], scene.queries[:1])
    make = partial(create_extractor, 'sift', max_keypoints=400)
    found = localize_sets([posed], make, tmp_path)
    errors = found['room']
    assert list(errors) == list(LIGHT)
    assert [each.shape for each in errors.values()] == [(2, 2)] * len(LIGHT)
    assert errors['day'].max() < 0.3
    assert np.median(errors['night 0.5 %'][:, 0]) > np.median(errors['day'][:, 0])
    # A map that cannot be built localizes nothing.
    nothing = localize_sets([blank], lambda: _Blind(), tmp_path / 'blind')
    assert np.isinf(nothing['blank']['day']).all()
    both = {'sift': {**found, 'blank': errors}, 'blind': {'blank': nothing['blank']}}
    tables = localization_rows(both)
    day = tables['localization: day']
    assert [row['queries'] for row in day] == [4, 1]
    assert day[0]['25cm_2deg'] == 1
    assert (day[1]['25cm_2deg'], day[1]['auc_10cm']) == (0, 0)
    medians = next(rows for title, rows in tables.items() if 'median' in title)
    assert medians[0]['room'] == pytest.approx(1e3 * np.median(errors['day'][:, 0]))
    assert medians[1] == {'name': 'blind'}


class _Blind:
    """Finds nothing."""

    name = 'sift'
    descriptor_dim = 128
    weights_sha256 = ''
    config = create_extractor('sift').config

    def __call__(self, image_rgb: Image) -> Features:
        return features_at(np.zeros((0, 2)), np.zeros((0, 128)))


# ---------------------------------------------------------------- semantics


def test_keypoints_are_judged_by_what_they_sit_on(tmp_path: Path) -> None:
    """Sky above, a car in a building's wall below; the stability knows the car but not the sky."""
    for part in ('images', 'labels'):
        (tmp_path / part).mkdir()
    labels = np.ones((60, 80), np.uint8)
    labels[:20], labels[40:52, 30:50] = 0, 8
    cv2.imwrite(str(tmp_path / 'labels' / 'a.png'), labels)
    write_png(tmp_path / 'images' / 'a.png', np.zeros((60, 80, 3), np.uint8))
    write_png(tmp_path / 'images' / 'without.png', np.zeros((60, 80, 3), np.uint8))
    sky, border, wall, car = [40, 5], [40, 21], [10, 45], [40, 46]
    points = np.array([sky, border, wall, wall, car], float) + 0.5
    stability = np.array([0.9, 0.9, 0.8, 0.9, 0.1], np.float32)
    table = get_label_table('camvid')
    pictures = semantics.read_labelled(tmp_path)
    assert [picture.image.name for picture in pictures] == ['a.png']
    found = semantics.label_keypoints(
        pictures * 2, table, lambda _: replace(features_at(points), stability=stability)
    )
    assert found.label.tolist() == [0, 1, 1, 1, 8] * 2
    assert found.is_in_band.tolist() == [False, True, False, False, False] * 2
    (row,) = semantics.semantic_rows({'sift': found}, table)
    assert (row['sky_%'], row['car_%'], row['pedestrian_%']) == pytest.approx((20, 20, 0))
    assert (row['unstable_%'], row['inner_%']) == pytest.approx((40, 50))
    # Of pairs (long-term, unstable): won, lost or tied.
    assert row['auc'] == pytest.approx((1 + 0.5 + 1 + 0.5 + 1 + 0) / 6)
    assert row['inner_auc'] == pytest.approx((1 + 0.5 + 1 + 0) / 4)


def test_calibration_error_is_what_bins_are_off_by() -> None:
    group = np.array([4, 4, 3, 1, 2, 0], np.uint8)
    stability = np.array([0.92, 0.98, 0.98, 0.14, 0.25, 0.5], np.float32)
    # Bin 0.9: 0.96 is said, (1 + 1 + 0.5) / 3 is there; bins 0.1 and 0.2: 0.1 is.
    wanted = (abs(3 * 0.96 - 2.5) + 0.04 + 0.15) / 5
    assert semantics.expected_calibration_error(stability, group) == pytest.approx(
        wanted, abs=1e-6
    )
    assert (
        semantics.expected_calibration_error(np.ones(2, np.float32), np.array([4, 4], np.uint8))
        == 0
    )


def test_separation_is_the_chance_to_rank_right() -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 9, 60).astype(np.float32)
    is_positive = rng.uniform(size=60) < 0.4
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in values[is_positive]
        for b in values[~is_positive]
    ]
    assert semantics.separation(values, is_positive) == pytest.approx(np.mean(pairs))
    assert semantics.separation(np.ones(60, np.float32), is_positive) is None
    assert semantics.separation(values, np.ones(60, bool)) is None


def test_labels_that_are_no_good(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='has no images/NAME'):
        semantics.read_labelled(tmp_path)
    for part in ('images', 'labels'):
        (tmp_path / part).mkdir()
    write_png(tmp_path / 'images' / 'a.png', np.zeros((6, 8, 3), np.uint8))
    label = tmp_path / 'labels' / 'a.png'
    table = get_label_table('camvid')

    def look(match: str) -> None:
        with pytest.raises(DataError, match=match):
            semantics.label_keypoints(
                semantics.read_labelled(tmp_path), table, lambda _: features_at(np.ones((1, 2)))
            )

    write_png(label, np.zeros((6, 8, 3), np.uint8))
    look('is not an image of one 8-bit label a pixel')
    cv2.imwrite(str(label), np.zeros((6, 9), np.uint8))
    look('is not of the size of')
    cv2.imwrite(str(label), np.full((6, 8), 77, np.uint8))
    look('label of camvid is 77')


# ---------------------------------------------------------------- all together


def test_the_command(scene: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = read_image(scene.folder / scene.images[0].name)
    write_homography_set(tmp_path / 'flat' / 'wall', picture)
    out = tmp_path / 'figures.json'
    words = ['bench', 'features', '--extractors', 'sift', '--keypoints', '200', '--repeat', '1']
    words += ['--json', str(out)]
    homographies = ['--homographies', str(tmp_path / 'flat')]
    plot = ['--plot', str(tmp_path / 'curves.png')]
    assert main([*words, *homographies, '--posed', str(tmp_path / 'gone'), *plot]) == 0
    text = capsys.readouterr().out
    assert f'localization left out: {tmp_path / "gone"} does not exist' in text
    assert 'semantics left out: no folder was named' in text
    report = json.loads(out.read_text())
    (row,) = report['tables']['matching: wall']
    assert row['mma_3px'] > 0.8
    assert row['homog_3px'] == 1
    turned = report['curves']['turned']['sift']
    assert len(turned) == len(matching.ANGLES_DEG)
    assert turned[0] > 0.99
    assert min(turned) > 0.7
    assert report['tables']['milliseconds, 640x480'][0]['keypoints'] == 200
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
    assert main([*words, *plot]) == 1
    assert 'no curve to draw' in capsys.readouterr().err
    assert main([*words[:3], 'xfeat']) == 1
    assert 'name them (--xfeat)' in capsys.readouterr().err


def test_curves_of_localization_are_drawn(tmp_path: Path) -> None:
    errors = {light: [0.01, 0.2, None] for light in LIGHT}
    plot_comparison(tmp_path / 'recall.png', {'errors_m': {'sift': errors}})
    assert (tmp_path / 'recall.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(DataError, match='cannot be written'):
        plot_comparison(tmp_path / 'nowhere' / 'x.png', {'errors_m': {'sift': errors}})
    assert recall_limit({'sift': errors}) == 0.2
    assert recall_limit({'sift': errors, 'far': {'day': [7.0]}}) == 0.5
    assert recall_limit({'sift': {'day': [0.011, None]}}) == 0.02
    assert recall_limit({}) == 0.01


def test_all_parts_in_one_report(
    scene: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that are tested above, wired together."""
    from feat_ros.feature_bench import comparison

    def localized(sets: Any, make: Any, work: Path) -> dict[str, dict[str, Float]]:
        return {'yard': {light: np.array([[0.02, 0.1]]) for light in LIGHT}}

    monkeypatch.setattr(comparison, 'localize_sets', localized)
    posed = write_posed(tmp_path / 'yard', ['a.png', 'b.png', 'c.png'])
    for part in ('images', 'labels'):
        (tmp_path / 'street' / part).mkdir(parents=True)
    picture = scene.folder / scene.images[0].name
    write_png(tmp_path / 'street' / 'images' / 'a.png', read_image(picture))
    cv2.imwrite(str(tmp_path / 'street' / 'labels' / 'a.png'), np.ones((240, 320), np.uint8))
    asked = []

    def make(count: int) -> Extractor:
        asked.append(count)
        return make_extractor('sift', count, 320, None)

    data = FeatureData(None, [posed], tmp_path / 'street')
    report = compare_features({'sift': make}, data, keypoints=100, repeat=1)
    # A thousand strongest are sought among more.
    assert asked == [100, 2048]
    assert report['notes'] == ['matching left out: no folder was named']
    (row,) = report['tables']['localization: night 5 %']
    assert (row['5cm_5deg'], row['auc_10cm']) == (1, pytest.approx(0.8))
    assert report['tables']['semantics: of the 1000 strongest'][0]['unstable_%'] == 0
    assert report['curves']['errors_m']['sift']['day'] == [0.02]


def test_the_size_of_what_was_learned() -> None:
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    names = ['sift', 'sfd2_lite']
    make = {name: partial(make_extractor, name, max_size=320, xfeat=None) for name in names}
    report = compare_features(make, FeatureData(), keypoints=50, repeat=1)
    sift, lite = report['tables']['milliseconds, 640x480']
    assert 'MB' not in sift
    assert lite['MB'] == pytest.approx((WEIGHTS / 'sfd2_lite.npz').stat().st_size / 1e6)
    assert 'sift' in (line := format_report(report).splitlines()[4]) and line.endswith(' -')


# ---------------------------------------------------------------- xfeat


def test_xfeat_finds_the_same_in_a_turned_copy(scene: Pictures) -> None:
    pytest.importorskip('torch', reason='torch is not installed')
    if not XFEAT.exists():
        pytest.skip(f'no weights of XFeat at {XFEAT}')
    image = read_image(scene.folder / scene.images[0].name)
    extractor = make_extractor('xfeat', 300, 320, XFEAT)
    features = extractor(image)
    assert features.descriptors.shape == (len(features), 64)
    assert len(features) > 100
    assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)
    turned, homography = turn(image, 5)
    found = score_pair(features, extractor(turned), homography, image, turned)
    assert found.accuracy[2] > 0.6
    assert found.corner_px < 3


def test_weights_that_are_not_xfeat_s(tmp_path: Path) -> None:
    torch = pytest.importorskip('torch', reason='torch is not installed')
    path = tmp_path / 'x.pt'
    with pytest.raises(NetworkError, match='cannot be read as XFeat'):
        make_extractor('xfeat', 10, 320, path)
    torch.save({'a': torch.ones(2)}, path)
    with pytest.raises(NetworkError, match='is not the state dict of XFeat'):
        make_extractor('xfeat', 10, 320, path)


def test_homography_sets_are_matched(scene: Pictures, tmp_path: Path) -> None:
    picture = read_image(scene.folder / scene.images[0].name)
    homography = write_homography_set(tmp_path / 'wall', picture)
    one = HomographySet('wall', sorted((tmp_path / 'wall').glob('*.png')), [homography])
    found = matching.match_sets([one], create_extractor('sift', max_keypoints=200))
    assert found['wall'][0].accuracy[2] > 0.8
    assert found['wall'][0].repeatability > 0.5

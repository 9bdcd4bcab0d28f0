# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Maps that are added to, merged, split, pruned and checked, on photographs of a made-up room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import json
from pathlib import Path
import shutil
from typing import Any

from conftest import CAMERA, full_disk, random_segment, Scene, walk, write_map, write_pictures
import numpy as np
import pytest

from feat_ros.cli import main
from feat_ros.colmap_files import PosedImage
from feat_ros.errors import MapError, SegmentError
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.localizer import LocalizerConfig, open_localizer
from feat_ros.map_builder import build_map
from feat_ros.map_check import check_path, own_path
from feat_ros.map_index import open_index
from feat_ros.map_life import (
    add_map,
    best_points,
    features_of_image,
    merge_maps,
    prune_map,
    split_map,
)
from feat_ros.retrieval.inverted_file import whole
from feat_ros.sfm_map import Segment, SfmMap
from feat_ros.types import PoseEstimate

pytest.importorskip('pycolmap')


def silent(items: list[Any], _: str) -> list[Any]:
    return items


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob('*')) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope='module')
def street(
    scene: Scene, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[PosedImage]]:
    """Eight more pictures of the room, between those of its map."""
    folder = tmp_path_factory.mktemp('street')
    return folder, write_pictures(folder, scene.room, [CAMERA] * 8, walk(8, 0.25), 'street')


@pytest.fixture
def copy(room_map: SfmMap, tmp_path: Path) -> SfmMap:
    """Return a copy to change."""
    return SfmMap(shutil.copytree(room_map.path, tmp_path / 'room'))


@pytest.fixture(scope='module')
def addition(
    street: tuple[Path, list[PosedImage]],
    room_map: SfmMap,
    tmp_path_factory: pytest.TempPathFactory,
) -> SfmMap:
    """Return the map of the street, with words of the room's."""
    folder, images = street
    return build_map(
        tmp_path_factory.mktemp('maps') / 'street', folder, images,
        create_extractor('sift', max_keypoints=600), words_of=open_index(room_map),
    )  # fmt: skip


def errors_m(sfm_map: SfmMap, scene: Scene) -> list[float]:
    """How far the pictures between are localized from where they were taken."""
    localizer = open_localizer(sfm_map.path, LocalizerConfig(retrieved_images=4))
    found = []
    for query in scene.queries:
        image = next(scene.folder.rglob(query.name))
        result = localizer.localize(read(image), query.camera)
        assert isinstance(result, PoseEstimate), result
        center = result.cam_from_map.inverse().translation
        found.append(float(np.linalg.norm(center - query.cam_from_map.inverse().translation)))
    return found


def read(path: Path) -> Any:
    from feat_ros.image import read_image

    return read_image(path)


# ---------------------------------------------------------------- adding and merging


def test_what_was_there_stays_byte_for_byte(copy: SfmMap, addition: SfmMap, scene: Scene) -> None:
    before = content(copy.path)
    both = add_map(copy.path, addition, {'why': 'a test'})
    after = content(copy.path)
    assert {name for name in before if after[name] != before[name]} == {'manifest.json'}
    assert both.num_images == copy.num_images + 8
    assert both.num_points == copy.num_points + addition.num_points
    assert both.manifest.provenance['added'][0]['why'] == 'a test'
    both.verify()
    for image in range(8):
        assert both.image_name(copy.num_images + image) == addition.image_name(image)
    assert max(errors_m(both, scene)) < 0.02


def test_added_images_are_found(copy: SfmMap, addition: SfmMap, street: Any) -> None:
    both = add_map(copy.path, addition)
    index, extractor = open_index(both), create_extractor('sift', max_keypoints=600)
    assert index is not None and len(index.files) == 2
    for number in range(8):
        features = extractor(read(next(street[0].rglob(addition.image_name(number)))))
        ids, _ = index.search(features.descriptors, 1)
        assert ids.tolist() == [copy.num_images + number]


def test_a_map_with_words_of_its_own_is_indexed_by_ours(
    copy: SfmMap, addition: SfmMap, street: Any, tmp_path: Path
) -> None:
    own = build_map(
        tmp_path / 'own', street[0], street[1], create_extractor('sift', max_keypoints=600)
    )
    index = open_index(merge_maps(tmp_path / 'both', [copy, own]))
    ours = open_index(copy)
    assert index is not None and ours is not None
    assert np.array_equal(whole(index.codebook), whole(ours.codebook))
    for number in range(8):
        ids, _ = index.search(features_of_image(own, number).descriptors, 1)
        assert ids.tolist() == [copy.num_images + number]
    assert content(tmp_path / 'room') == content(copy.path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'frame_id': 'odom'}, r"frame_id of .* is 'odom', that of .* 'map': fit it with --align"),
        ({'scale': 'unknown'}, r"scale of .* is 'unknown', that of .* 'metric'"),
    ],
)
def test_maps_that_do_not_go_together(copy: SfmMap, change: dict[str, str], message: str) -> None:
    other = SfmMap(write_map(copy.path.parent / 'other', [random_segment(1, dim=128)], **change))
    before = content(copy.path)
    with pytest.raises(MapError, match=message):
        add_map(copy.path, other)
    assert content(copy.path) == before


def test_images_that_are_there_already(copy: SfmMap, room_map: SfmMap) -> None:
    with pytest.raises(MapError, match=r'10 images are in .* already, the first is .*: rename'):
        add_map(copy.path, room_map)


def test_an_interrupted_addition_leaves_the_map_as_it_was(
    copy: SfmMap, addition: SfmMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the manifest was written; what lies about is written over the next time."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('feat_ros.map_life.write_manifest', killed)
        with pytest.raises(KeyboardInterrupt):
            add_map(copy.path, addition)
    assert SfmMap(copy.path).num_images == 10
    (copy.path / 'segment-0001' / 'points_xyz.npy').write_bytes(b'half')
    add_map(copy.path, addition).verify()


@pytest.mark.parametrize('limit', [0, 5000, 20_000, 65_536])
def test_no_room_for_an_addition(copy: SfmMap, addition: SfmMap, scene: Scene, limit: int) -> None:
    before = content(copy.path)
    with full_disk(limit), pytest.raises(MapError, match=r'cannot be written \(File too large\)'):
        add_map(copy.path, addition)
    assert {name: content(copy.path)[name] for name in before} == before
    SfmMap(copy.path).verify()
    both = add_map(copy.path, addition)
    both.verify()
    assert both.num_images == copy.num_images + 8


# ---------------------------------------------------------------- splitting


def test_nothing_is_lost_at_borders(room_map: SfmMap, tmp_path: Path, scene: Scene) -> None:
    """Every image sees the same points at the same pixels, in whatever segments they are."""
    split = split_map(tmp_path / 'tiles', room_map, 0.6, silent)
    assert len(split.manifest.segments) > 2
    split.verify()
    by_name = {room_map.image_name(n): n for n in range(room_map.num_images)}
    assert sorted(by_name) == sorted(split.image_name(n) for n in range(10))
    for number in range(10):
        old = by_name[split.image_name(number)]
        (points, pixels), (old_points, old_pixels) = (
            split.observations(number), room_map.observations(old),
        )  # fmt: skip
        assert np.array_equal(pixels, old_pixels)
        assert np.array_equal(split.descriptors(points)[:], room_map.descriptors(old_points)[:])
        for part, before in zip(split.points(points), room_map.points(old_points), strict=True):
            np.testing.assert_allclose(part, before, atol=1e-6)
        assert split.camera(number) == room_map.camera(old)
        assert np.array_equal(
            split.cam_from_map(number).translation, room_map.cam_from_map(old).translation
        )
    whole, tiles = open_index(room_map), open_index(split)
    assert whole is not None and tiles is not None
    query = features_of_image(room_map, 4).descriptors
    found, scores = tiles.search(query, 10)
    wanted, wanted_scores = whole.search(query, 10)
    assert [split.image_name(n) for n in found] == [room_map.image_name(n) for n in wanted]
    assert np.array_equal(scores, wanted_scores)
    np.testing.assert_allclose(errors_m(split, scene), errors_m(room_map, scene), atol=2e-3)


def test_a_segment_that_is_gone_is_left_out_and_named(
    room_map: SfmMap, tmp_path: Path, scene: Scene
) -> None:
    path = split_map(tmp_path / 'tiles', room_map, 0.6, silent).path
    localizer = open_localizer(path, LocalizerConfig(retrieved_images=4))
    localizer.map._segment.cache_clear()
    shutil.rmtree(path / 'segment-0001')
    results = []
    for query in scene.queries:
        image = read(next(scene.folder.rglob(query.name)))
        while True:
            try:
                results.append(localizer.localize(image, query.camera))
                break
            except SegmentError as error:
                assert error.segment == 1
                assert localizer.leave_out(error)
                assert not localizer.leave_out(error)
    assert any(isinstance(result, PoseEstimate) for result in results)
    for result in results:
        if not isinstance(result, PoseEstimate):
            assert 'left out: ' in result.detail and 'segment-0001' in result.detail


# ---------------------------------------------------------------- pruning


def made_segment(stability: list[float], seen: list[list[tuple[int, float, float]]]) -> Segment:
    """A segment of points with these stabilities, that images saw at these pixels of 320x240."""
    segment = random_segment(1, len(stability), len(seen))
    return replace(
        segment,
        point_stability=np.array(stability, np.float32),
        cameras=[CAMERA], image_camera=[0] * len(seen),
        image_observations=[
            (np.array([p for p, _, _ in each], np.int64),
             np.array([(x, y) for _, x, y in each], np.float32).reshape(-1, 2))
            for each in seen
        ],
    )  # fmt: skip


def test_the_best_of_every_part_of_an_image_come_first() -> None:
    """Points 0 to 2 share a cell; 3 is alone in its own; 4 is seen twice; 5 is not seen."""
    segment = made_segment(
        [0.9, 0.8, 0.7, 0.1, 0.5, 1.0],
        [[(0, 10, 10), (1, 12, 10), (2, 14, 10), (3, 300, 200), (4, 200, 20)], [(4, 10, 10)]],
    )
    # 0.9 log 2, 0.5 log 3, 0.1 log 2 lead a cell each; then the second, the third; then none.
    assert best_points(segment).tolist() == [0, 4, 3, 1, 2, 5]


def test_a_pruned_map_localizes(room_map: SfmMap, tmp_path: Path, scene: Scene) -> None:
    pruned = prune_map(tmp_path / 'pruned', room_map, 0.5, silent)
    assert pruned.num_points == round(0.5 * room_map.num_points)
    assert pruned.num_images == 10
    pruned.verify()
    assert max(errors_m(pruned, scene)) < 0.03
    xyz, _ = pruned.points(np.arange(pruned.num_points))
    before, _ = room_map.points(np.arange(room_map.num_points))
    distance = np.linalg.norm(xyz[:, None] - before[None], axis=2)
    assert distance.min(axis=1).max() < 1e-6


# ---------------------------------------------------------------- checking


def test_lost_where_nothing_was_seen(room_map: SfmMap) -> None:
    """On the walk it is not; turned to the wall behind, or far away, it is."""
    there = check_path(room_map, own_path(room_map), leave_self_out=True)
    assert not any(place.is_lost for place in there)
    turned = [pose @ Rigid3d(so3_exp([0, np.pi, 0]), np.zeros(3)) for pose in own_path(room_map)]
    far = [Rigid3d(pose.rotation, pose.translation + 50) for pose in own_path(room_map)]
    for poses in (turned, far):
        places = check_path(room_map, poses, leave_self_out=False)
        assert all(place.is_lost and not np.isfinite(place.sigma_m) for place in places)


def test_as_many_matches_as_really_are(room_map: SfmMap, scene: Scene) -> None:
    """Within a factor of two, and the position's sigma within three."""
    localizer = open_localizer(room_map.path)
    poses = [query.cam_from_map.inverse() for query in scene.queries]
    for query, place in zip(
        scene.queries, check_path(room_map, poses, leave_self_out=False), strict=True
    ):
        result = localizer.localize(read(next(scene.folder.rglob(query.name))), query.camera)
        assert isinstance(result, PoseEstimate)
        assert 0.5 < place.num_matches / result.num_inliers < 2
        sigma = np.sqrt(np.linalg.eigvalsh(result.covariance[:3, :3])[-1])
        assert 1 / 3 < place.sigma_m / sigma < 3


# ---------------------------------------------------------------- commands


def test_add_by_command(copy: SfmMap, street: Any, scene: Scene, tmp_path: Path) -> None:
    """Images of known cameras alone: they are fitted to what the map shows of them."""
    words = ' '.join(CAMERA.to_words().split())
    (tmp_path / 'cameras.txt').write_text(f'* {words}\n')
    out = tmp_path / 'figures.json'
    code = main([
        'map', 'add', str(copy.path), '--images', str(street[0]),
        '--cameras', str(tmp_path / 'cameras.txt'), '--json', str(out),
    ])  # fmt: skip
    assert code == 0
    figures = json.loads(out.read_text())
    assert figures['fit']['is_fitted'] and figures['fit']['median_offset_m'] < 0.02
    both = SfmMap(copy.path)
    assert both.num_images > copy.num_images + 5
    truth = {image.name: image.cam_from_map.inverse() for image in street[1]}
    for number in range(copy.num_images, both.num_images):
        wanted = truth[both.image_name(number)].translation
        assert np.linalg.norm(both.cam_from_map(number).inverse().translation - wanted) < 0.03
    assert not list(tmp_path.glob('room.*'))


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def test_merge_split_prune_and_check_by_command(
    copy: SfmMap, addition: SfmMap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / 'figures.json'
    both, tiles, pruned = tmp_path / 'both', tmp_path / 'tiles', tmp_path / 'pruned'
    with full_disk(5000):
        assert run('map', 'merge', copy.path, addition.path, '--align', '--out', both) == 1
    assert 'cannot be written (File too large)' in capsys.readouterr().err
    assert not list(tmp_path.glob('both*'))
    assert (
        run('map', 'merge', copy.path, addition.path, '--align', '--out', both, '--json', figures)
        == 0
    )
    fit = json.loads(figures.read_text())['fits'][0]
    assert fit['num_localized'] >= 7 and abs(fit['scale'] - 1) < 0.01
    assert run('map', 'split', both, '--tile', 0.6, '--out', tiles, '--json', figures) == 0
    assert json.loads(figures.read_text())['num_segments'] > 3
    assert run('map', 'prune', tiles, '--keep', 0.5, '--out', pruned) == 0
    assert run('map', 'check', pruned, '--plot', tmp_path / 'x.png', '--json', figures) == 0
    checked = json.loads(figures.read_text())
    assert checked['num_poses'] == 18 and checked['num_lost'] == 0
    assert 'lost at 0 of 18 poses' in capsys.readouterr().out
    assert (tmp_path / 'x.png').stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        'both', 'pruned', 'room', 'tiles',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (lambda m: ['merge', m, '--out', 'x'], 'one map cannot be merged'),
        (lambda m: ['split', m, '--tile', '0', '--out', 'x'], '--tile is 0: it must be above 0'),
        (lambda m: ['prune', m, '--keep', '1.5', '--out', 'x'], '--keep is 1.5: it must be'),
        (lambda m: ['split', m, '--out', m], 'exists: choose another --out'),
        (lambda m: ['check', m, '--path', 'none.tum'], r'none.tum'),
    ],
)
def test_commands_refuse(
    room_map: SfmMap, words: Callable[[str], list[str]], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run('map', *words(str(room_map.path))) == 1
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1

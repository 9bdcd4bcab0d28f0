# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Maps of images without poses."""

from __future__ import annotations

from collections.abc import Iterator
import logging
from pathlib import Path
import shutil
from typing import Any

from conftest import CAMERA, Room, Scene, walk, write_pictures
import numpy as np
import numpy.typing as npt
import pytest

from feat_ros.alignment import align_by_distances, apply_alignment
from feat_ros.build_folder import BuildFolder, FeatureStore
from feat_ros.camera import Camera
from feat_ros.cli import main
from feat_ros.colmap_files import PosedImage, read_colmap_model
from feat_ros.errors import MapError
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d, umeyama
from feat_ros.image import read_image, write_png
from feat_ros.localizer import Localizer
from feat_ros.map_builder import build_map, BuildConfig
from feat_ros.reconstruction import estimate_poses, ReconstructionConfig, verify_two_views
from feat_ros.sfm_map import SfmMap
from feat_ros.types import PoseEstimate

pytest.importorskip('pycolmap')

DATA = Path(__file__).parents[2] / 'shared' / 'data'
Float = npt.NDArray[np.float64]


def no_bar(items: list[Any], what: str) -> list[Any]:
    return items


def cameras_of(images: list[PosedImage]) -> dict[str, Camera]:
    return {image.name: image.camera for image in images}


def relative_errors(found: list[PosedImage], true: list[PosedImage]) -> Float:
    """Distances of the centres after a similarity, as a share of their extent."""
    truth = {image.name: image.cam_from_map.inverse().translation for image in true}
    x = np.array([image.cam_from_map.inverse().translation for image in found])
    y = np.array([truth[image.name] for image in found])
    extent = np.linalg.norm(np.ptp(np.array(list(truth.values())), axis=0))
    return np.asarray(np.linalg.norm(umeyama(x, y).apply(x) - y, axis=1) / extent)


def extracted(folder: BuildFolder, at: Path, images: list[PosedImage]) -> FeatureStore:
    extractor = create_extractor('sift', max_keypoints=600)
    files = [at / image.name for image in images]
    return folder.extract(files, [image.camera for image in images], extractor, no_bar)


@pytest.fixture(scope='module')
def work(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a map's name for which features and matches are there."""
    out = tmp_path_factory.mktemp('work') / 'map'
    folder = BuildFolder(out)
    features = extracted(folder, scene.folder, scene.images)
    pairs = [(i, j) for i in range(10) for j in range(i + 1, 10)]
    assert len(list(folder.match(features, pairs, no_bar))) == 45
    return out


@pytest.mark.parametrize('mapper', ['incremental', 'global'])
def test_the_poses_are_those_of_the_pictures(scene: Scene, work: Path, mapper: str) -> None:
    folder = BuildFolder(work)
    features = extracted(folder, scene.folder, scene.images)
    options = ReconstructionConfig(mapper=mapper)
    found = estimate_poses(folder, cameras_of(scene.images), features, options, no_bar)
    assert [image.name for image in found] == [image.name for image in scene.images]
    assert [image.camera for image in found] == [CAMERA] * 10
    assert relative_errors(found, scene.images).max() < 0.005
    again = estimate_poses(folder, cameras_of(scene.images), features, options, no_bar)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.cam_from_map.rotation, other.cam_from_map.rotation)
        np.testing.assert_array_equal(one.cam_from_map.translation, other.cam_from_map.translation)
        np.testing.assert_array_equal(one.points, other.points)
        assert one.camera == other.camera


def test_a_wrong_focal_length_can_be_refined(scene: Scene, work: Path) -> None:
    folder = BuildFolder(work)
    wrong = Camera('SIMPLE_RADIAL', 320, 240, (280.0, 161.5, 118.2, -0.15))
    features = extracted(folder, scene.folder, scene.images)
    found = estimate_poses(
        folder, dict.fromkeys(cameras_of(scene.images), wrong), features,
        ReconstructionConfig(refine_intrinsics=True), no_bar,
    )  # fmt: skip
    assert len({image.camera for image in found}) == 1
    assert found[0].camera.params[0] == pytest.approx(261, abs=5)
    assert relative_errors(found, scene.images).max() < 0.02


def test_verified_matches_agree_with_the_true_poses(scene: Scene, work: Path) -> None:
    """And nothing is verified between pictures that have nothing in common."""
    from feat_ros.map_builder import epipolar_error_px

    folder = BuildFolder(work)
    features = extracted(folder, scene.folder, scene.images)
    options = ReconstructionConfig()
    found = verify_two_views(
        folder, scene.images, features, [(0, 1), (0, 9), (3, 5)], options, no_bar
    )
    assert {(0, 1), (3, 5)} <= set(found)
    for (i, j), geometry in found.items():
        rows = geometry.inlier_matches
        error = epipolar_error_px(
            scene.images[i], scene.images[j],
            features[i].keypoints[rows[:, 0]].astype(float),
            features[j].keypoints[rows[:, 1]].astype(float),
        )  # fmt: skip
        assert len(rows) > 50
        assert np.mean(error < 4) > 0.9


def test_many_images_are_paired_by_what_they_show(scene: Scene, work: Path) -> None:
    folder = BuildFolder(work)
    features = extracted(folder, scene.folder, scene.images)
    options = ReconstructionConfig(all_pairs_up_to=5, pairs_per_image=3)
    found = estimate_poses(folder, cameras_of(scene.images), features, options, no_bar)
    assert relative_errors(found, scene.images).max() < 0.005


# ---------------------------------------------------------------- the whole build


class Interrupting:
    """A progress that is interrupted at the first item of a step."""

    def __init__(self, step: str) -> None:
        self.step = step

    def __call__(self, items: list[Any], what: str) -> Iterator[Any]:
        for item in items:
            if what == self.step:
                raise KeyboardInterrupt
            yield item


def test_a_map_of_images_without_poses(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted once; a blank picture is left out; the scale comes from one distance."""
    caplog.set_level(logging.WARNING)
    pictures, out = tmp_path / 'pictures', tmp_path / 'map'
    shutil.copytree(scene.folder, pictures)
    write_png(pictures / 'blank.png', np.full((240, 320, 3), 90, np.uint8))
    cameras = {**cameras_of(scene.images), 'blank.png': CAMERA}
    extractor = create_extractor('sift', max_keypoints=600)
    with pytest.raises(KeyboardInterrupt):
        build_map(out, pictures, cameras, extractor, progress=Interrupting('check'))
    assert '1 of 11 images could not be registered and are left out: blank.png' in caplog.text
    (poses,) = out.with_name('map.partial').glob('reconstruction/*.npz')
    before = poses.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build_map(out, pictures, cameras, extractor, progress=Interrupting('check'))
    assert poses.read_bytes() == before
    built = build_map(out, pictures, cameras, extractor, BuildConfig(gravity='known'))
    assert (built.manifest.scale, built.manifest.gravity) == ('unknown', 'unknown')
    assert built.num_images == 10
    assert sorted(path.name for path in out.iterdir()) == [
        'manifest.json', 'retrieval', 'segment-0000', 'sfm',
    ]  # fmt: skip

    a, b = scene.images[0], scene.images[9]
    metres = np.linalg.norm(
        a.cam_from_map.inverse().translation - b.cam_from_map.inverse().translation
    )
    alignment = align_by_distances(built, [(a.name, b.name, float(metres))])
    localizer = Localizer(apply_alignment(out, alignment), extractor)
    first, last = (
        localizer.localize(read_image(pictures / query.name), query.camera)
        for query in (scene.queries[0], scene.queries[-1])
    )
    assert isinstance(first, PoseEstimate)
    assert isinstance(last, PoseEstimate)
    found = first.cam_from_map @ last.cam_from_map.inverse()
    true = scene.queries[0].cam_from_map @ scene.queries[-1].cam_from_map.inverse()
    np.testing.assert_allclose(found.translation, true.translation, atol=0.03)
    np.testing.assert_allclose(found.rotation, true.rotation, atol=0.01)


def test_pictures_of_different_places(tmp_path: Path) -> None:
    images = [
        write_pictures(tmp_path, Room.make(seed), [CAMERA], walk(1), f'room{seed}-')[0]
        for seed in (1, 2, 3)
    ]
    with pytest.raises(MapError, match='no two of the 3 images have 15 matches that fit a rigid'):
        build_map(
            tmp_path / 'map', tmp_path, cameras_of(images),
            create_extractor('sift', max_keypoints=300),
        )  # fmt: skip


def test_pictures_from_one_place(scene: Scene, tmp_path: Path) -> None:
    """A camera that only turned gives no depth."""
    turned = [
        Rigid3d(np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]]))
        @ walk(1)[0]
        for a in (0.0, 0.06, 0.12)
    ]
    images = write_pictures(tmp_path, scene.room, [CAMERA] * 3, turned, 'turned')
    with pytest.raises(MapError, match='only turned between the 3 images, which gives no depth'):
        build_map(
            tmp_path / 'map', tmp_path, cameras_of(images),
            create_extractor('sift', max_keypoints=300),
        )  # fmt: skip


def test_the_command_with_a_file_of_cameras(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for image in scene.images[:6]:
        shutil.copy(scene.folder / image.name, pictures)
    cameras = tmp_path / 'cameras.txt'
    cameras.write_text(f'* {CAMERA.to_words()}\n')
    words = ['map', 'build', '--out', str(tmp_path / 'map'), '--images', str(pictures)]
    few = ['--extractor-option', 'max_keypoints=600']
    assert main([*words, *few, '--cameras', str(cameras)]) == 0
    built = SfmMap(tmp_path / 'map')
    assert (built.num_images, built.manifest.scale) == (6, 'unknown')
    ends = [scene.images[0].name, scene.images[5].name]
    assert main(['map', 'align', str(tmp_path / 'map'), '--distance', *ends, '1.5']) == 0
    aligned = SfmMap(tmp_path / 'map')
    assert aligned.manifest.scale == 'metric'
    centers = [aligned.cam_from_map(number).inverse().translation for number in (0, 5)]
    assert np.linalg.norm(centers[0] - centers[1]) == pytest.approx(1.5)
    for arguments, message in (
        (words, 'give --bag, or --images and one of --colmap and --cameras'),
        ([*words, '--cameras', str(cameras), '--tf', 'map'], '--tf needs --bag'),
        (['map', 'align', str(tmp_path / 'map')], 'give one of --distance, --poses, --points'),
    ):
        assert main([*arguments, '--overwrite'] if 'build' in arguments else arguments) == 1
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not (DATA / 'lund_door').is_dir(), reason='no shared/data/lund_door here')
def test_lund_door_without_poses(tmp_path: Path) -> None:
    """Twelve photographs: all are registered, within half a percent of the model's poses."""
    true = read_colmap_model(DATA / 'lund_door' / 'colmap')
    folder = BuildFolder(tmp_path / 'map')
    extractor = create_extractor('sift', max_keypoints=1200)
    files = [DATA / 'lund_door' / 'images' / image.name for image in true]
    features = folder.extract(files, [image.camera for image in true], extractor, no_bar)
    found = estimate_poses(folder, cameras_of(true), features, ReconstructionConfig(), no_bar)
    assert len(found) == 12
    assert relative_errors(found, true).max() < 0.005

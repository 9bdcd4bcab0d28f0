# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Maps of the rendered room: right, resumable, and only in the end in an old map's place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
import logging
from pathlib import Path
import shutil
from types import SimpleNamespace
from typing import Any

from conftest import CAMERA, Room, ROOM_AT, Scene, walk, WALLS, write_pictures
import numpy as np
import numpy.typing as npt
import pytest

from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage
from feat_ros.errors import DataError, ImageError, MapError
from feat_ros.extractors import create_extractor, Extractor
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.image import Image, read_image, write_png
from feat_ros.localizer import Localizer
from feat_ros.map_builder import build_map, BuildConfig, choose_pairs, epipolar_error_px
from feat_ros.pose_error import pose_error
from feat_ros.sfm_map import partial_path, SfmMap
from feat_ros.triangulation import triangulate, TriangulationConfig
from feat_ros.types import Features, PoseEstimate

Float = npt.NDArray[np.float64]

pytestmark = pytest.mark.skipif(
    find_spec('pycolmap') is None, reason='pycolmap, which triangulates, is not installed'
)

FAST = BuildConfig(left_out_images=3)
FISHEYE = Camera('OPENCV_FISHEYE', 300, 260, (150, 151, 152, 128, -0.01, 0.02, -0.01, 0.002))
# The lens of a well-known handheld camera: k3 is beyond what pycolmap takes unasked.
STRONG = Camera(
    'FULL_OPENCV',
    320,
    240,
    (258.6, 258.2, 159.3, 127.6, 0.26, -0.95, -0.005, 0.003, 1.16, 0.01, -0.02, 0.03),
)


class Counting:
    """An extractor that counts its calls, and is interrupted after some."""

    def __init__(self, interrupt_after: int | None = None, **options: Any) -> None:
        self._inner = create_extractor('sift', **{'max_keypoints': 300, **options})
        self.name, self.descriptor_dim = self._inner.name, self._inner.descriptor_dim
        self.weights_sha256 = self._inner.weights_sha256
        self.config = self._inner.config
        self.calls, self.interrupt_after = 0, interrupt_after

    def __call__(self, image_rgb: Image) -> Features:
        if self.calls == self.interrupt_after:
            raise KeyboardInterrupt
        self.calls += 1
        return self._inner(image_rgb)


def interrupt_at(step: str, count: int) -> Any:
    """Return a progress that is interrupted in a step, after some items."""

    def progress(items: list[Any], what: str) -> Iterator[Any]:
        for number, item in enumerate(items):
            if (what, number) == (step, count):
                raise KeyboardInterrupt
            yield item

    return progress


def content(folder: Path) -> dict[str, bytes]:
    """All files of a map; pycolmap's model, which is not ours, by its size."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.parent.name != 'sfm'
    }


@pytest.fixture(scope='module')
def six(scene: Scene) -> list[PosedImage]:
    return scene.images[:6]


@pytest.fixture(scope='module')
def fresh(
    scene: Scene, six: list[PosedImage], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Return the content of a map that was built without an interruption."""
    extractor = Counting()
    out = tmp_path_factory.mktemp('fresh') / 'map'
    build_map(out, scene.folder, six, extractor, FAST)
    assert extractor.calls == 6
    return content(out)


# ---------------------------------------------------------------- what is built


def distance_to_walls(xyz: Float) -> Float:
    """Distance (N,) to the nearest wall."""
    distances = []
    for corner, across, down in WALLS:
        place = xyz - ROOM_AT - corner
        inside = [np.clip(place @ s / np.dot(s, s), 0, 1)[:, None] * s for s in (across, down)]
        distances.append(np.linalg.norm(place - sum(inside), axis=1))
    return np.asarray(np.min(distances, axis=0))


def test_points_are_on_the_walls(room_map: SfmMap) -> None:
    xyz, covariance = room_map.points(np.arange(room_map.num_points))
    distance = distance_to_walls(xyz)
    assert room_map.num_points > 800
    assert np.median(distance) < 0.01
    assert np.mean(distance < 0.1) > 0.9
    # As far as they say: within three standard deviations of their worst direction, nearly all.
    sigma = np.sqrt(np.linalg.eigvalsh(covariance)[:, -1])
    assert np.mean(distance < 3 * sigma) > 0.93
    assert np.median(sigma) < 0.05


def test_what_a_map_says_of_its_build(room_map: SfmMap, scene: Scene) -> None:
    manifest = room_map.manifest
    assert [room_map.image_name(n) for n in range(10)] == [image.name for image in scene.images]
    for number, image in enumerate(scene.images):
        assert room_map.camera(number) == image.camera
        np.testing.assert_allclose(
            room_map.cam_from_map(number).translation, image.cam_from_map.translation
        )
        points, pixels = room_map.observations(number)
        projected = CAMERA.project(image.cam_from_map.apply(room_map.points(points)[0]))
        assert len(points) > 150
        assert np.linalg.norm(projected - pixels, axis=1).max() < 5
    assert manifest.extractor.name == 'sift'
    assert manifest.extractor.options['max_keypoints'] == 600
    assert manifest.measured['num_keypoints'] == 6000
    assert manifest.measured['num_pairs'] == 45
    assert manifest.measured['left_out']['num_localized'] == 10
    assert manifest.measured['left_out']['median_translation_error_m'] < 0.01
    assert manifest.provenance['build']['min_matches'] == 15
    assert 'numpy' in manifest.provenance['versions']
    assert manifest.pose_noise.translation_m < 0.005
    room_map.verify()
    assert {path.name for path in room_map.path.iterdir()} == {
        'manifest.json', 'segment-0000', 'retrieval', 'sfm',
    }  # fmt: skip


def test_the_model_for_other_tools(room_map: SfmMap) -> None:
    pycolmap = pytest.importorskip('pycolmap')
    model = pycolmap.Reconstruction(room_map.path / 'sfm')
    assert model.num_points3D() == room_map.num_points
    assert model.compute_num_observations() == room_map.num_observations
    assert model.num_reg_images() == 10


def test_options_go_into_the_manifest(scene: Scene, six: list[PosedImage], tmp_path: Path) -> None:
    options = replace(FAST, frame_id='world', scale='unknown', gravity='known')
    built = build_map(
        tmp_path / 'map', scene.folder, six, Counting(), options, provenance={'from': 'a test'}
    )
    manifest = built.manifest
    assert (manifest.frame_id, manifest.scale, manifest.gravity) == ('world', 'unknown', 'known')
    assert manifest.provenance['from'] == 'a test'
    assert manifest.provenance['build']['left_out_images'] == 3
    assert manifest.measured['left_out']['num_images'] == 3


def test_two_cameras(tmp_path: Path) -> None:
    """Every other picture from a fisheye of another size; a query from either."""
    poses = walk(10)[:6]
    cameras = [CAMERA, FISHEYE] * 3
    room = Room.make(7)
    images = write_pictures(tmp_path / 'images', room, cameras, poses, 'x')
    extractor = Counting(max_keypoints=500)
    built = build_map(tmp_path / 'map', tmp_path / 'images', images, extractor, FAST)
    assert [built.camera(number) for number in range(6)] == cameras
    assert all(len(built.observations(number)[0]) > 60 for number in range(6))
    pose = walk(9, 0.5)[2]
    for camera in (CAMERA, FISHEYE):
        result = Localizer(built, extractor).localize(room.shoot(camera, pose), camera)
        assert isinstance(result, PoseEstimate)
        assert np.linalg.norm(pose_error(result.cam_from_map, pose)[:3]) < 0.02


def test_a_camera_with_strong_distortion_is_not_dropped(tmp_path: Path) -> None:
    poses = walk(10)[:5]
    room = Room.make(7)
    images = write_pictures(tmp_path / 'images', room, [STRONG] * 5, poses, 'x')
    extractor = Counting()
    built = build_map(tmp_path / 'map', tmp_path / 'images', images, extractor, FAST)
    assert all(len(built.observations(number)[0]) > 60 for number in range(5))
    xyz, _ = built.points(np.arange(built.num_points))
    assert np.median(distance_to_walls(xyz)) < 0.02
    pose = walk(9, 0.5)[1]
    result = Localizer(built, extractor).localize(room.shoot(STRONG, pose), STRONG)
    assert isinstance(result, PoseEstimate)
    assert np.linalg.norm(pose_error(result.cam_from_map, pose)[:3]) < 0.02


def test_one_blank_picture_among_others(
    scene: Scene, six: list[PosedImage], tmp_path: Path
) -> None:
    images = copied(scene, six, tmp_path)
    write_png(tmp_path / images[2].name, np.full((240, 320, 3), 90, np.uint8))
    built = build_map(tmp_path / 'map', tmp_path, images, Counting(), BuildConfig())
    assert [len(built.observations(number)[0]) > 50 for number in range(6)] == [
        number != 2 for number in range(6)
    ]
    assert built.manifest.measured['left_out']['num_localized'] == 5


def test_points_of_a_model_choose_the_pairs(
    scene: Scene, six: list[PosedImage], tmp_path: Path
) -> None:
    """Only neighbours share points: only they are matched."""
    pytest.importorskip('scipy')
    images = [
        replace(image, points=np.array([number, number + 1])) for number, image in enumerate(six)
    ]
    built = build_map(tmp_path / 'map', scene.folder, images, Counting(), FAST)
    assert built.manifest.measured['num_pairs'] == 5


# ---------------------------------------------------------------- interruptions


def build(
    scene: Scene, images: list[PosedImage], out: Path, extractor: Extractor, **changes: Any
) -> SfmMap:
    arguments: dict[str, Any] = {'build_config': FAST, **changes}
    return build_map(out, scene.folder, images, extractor, **arguments)


def test_an_interrupted_build_goes_on_where_it_was(
    scene: Scene,
    six: list[PosedImage],
    fresh: dict[str, bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Interrupted four times, in every step; no image is extracted twice."""
    out = tmp_path / 'map'
    extractor = Counting(interrupt_after=2)
    with pytest.raises(KeyboardInterrupt):
        build(scene, six, out, extractor)
    assert extractor.calls == 2
    assert not out.exists()
    with pytest.raises(MapError, match='half-written'):
        SfmMap(out)
    assert caplog.text == ''
    extractor.interrupt_after = None
    for step, count in (('match', 0), ('match', 2), ('check', 1)):
        with pytest.raises(KeyboardInterrupt):
            build(scene, six, out, extractor, progress=interrupt_at(step, count))
        assert extractor.calls == 6
        assert not out.exists()
    assert f'resuming the interrupted build in {partial_path(out)}' in caplog.text
    build(scene, six, out, extractor)
    assert extractor.calls == 6
    assert content(out) == fresh
    assert not partial_path(out).exists()


def test_what_an_interrupted_build_lost_is_made_again(
    scene: Scene, six: list[PosedImage], fresh: dict[str, bytes], tmp_path: Path
) -> None:
    """Some of its files are gone, and half of one was being written."""
    out = tmp_path / 'map'
    with pytest.raises(KeyboardInterrupt):
        build(scene, six, out, Counting(), progress=interrupt_at('check', 0))
    features = sorted((partial_path(out) / 'features').glob('*.npz'))
    assert len(features) == 6
    for path in features[1:3]:
        path.with_name(path.name + '.tmp').write_bytes(path.read_bytes()[:100])
        path.unlink()
    for path in sorted((partial_path(out) / 'matches').glob('*.npz'))[:2]:
        path.unlink()
    extractor = Counting()
    build(scene, six, out, extractor)
    assert extractor.calls == 2
    assert content(out) == fresh


def test_other_options_than_those_of_the_interrupted_build(
    scene: Scene,
    six: list[PosedImage],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The map is that of the new options; what does not depend on them is not made again."""
    options = replace(FAST, max_epipolar_error_px=1.0, min_matches=30)
    expected = build(scene, six, tmp_path / 'expected', Counting(), build_config=options)
    out = tmp_path / 'map'
    with pytest.raises(KeyboardInterrupt):
        build(scene, six, out, Counting(), progress=interrupt_at('check', 0))
    caplog.clear()
    extractor = Counting()
    build(scene, six, out, extractor, build_config=options)
    assert extractor.calls == 0
    assert f'resuming the interrupted build in {partial_path(out)}' in caplog.text
    assert content(out) == content(expected.path)


def test_another_extractor_or_picture_than_that_of_the_interrupted_build(
    scene: Scene, six: list[PosedImage], fresh: dict[str, bytes], tmp_path: Path
) -> None:
    images = copied(scene, six, tmp_path)
    out = tmp_path / 'map'
    with pytest.raises(KeyboardInterrupt):
        build_map(
            out, tmp_path, images, Counting(max_keypoints=100), FAST,
            progress=interrupt_at('match', 2),
        )  # fmt: skip
    extractor = Counting(interrupt_after=3)
    write_png(tmp_path / images[1].name, scene.room.shoot(CAMERA, images[5].cam_from_map))
    with pytest.raises(KeyboardInterrupt):
        build_map(out, tmp_path, images, extractor, FAST)
    # Of the three that were extracted one is a picture that is there no more.
    shutil.copy(scene.folder / images[1].name, tmp_path)
    extractor = Counting()
    build_map(out, tmp_path, images, extractor, FAST)
    assert extractor.calls == 4
    assert content(out) == fresh


def test_a_map_is_not_replaced_unasked(
    scene: Scene, six: list[PosedImage], tmp_path: Path
) -> None:
    out = tmp_path / 'map'
    out.mkdir()
    (out / 'precious').write_text('work')
    extractor = Counting()
    with pytest.raises(MapError, match=r'map exists: choose another --out, or replace it with --'):
        build(scene, six, out, extractor)
    assert content(out) == {'precious': b'work'}
    assert extractor.calls == 0
    assert not partial_path(out).exists()


def test_the_old_map_stays_until_the_new_one_is_complete(
    scene: Scene, six: list[PosedImage], fresh: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / 'map'
    build(scene, scene.images[4:7], out, Counting(max_keypoints=250))
    before = content(out)
    assert before != fresh
    for step in ('extract', 'match', 'check'):
        with pytest.raises(KeyboardInterrupt):
            build(scene, six, out, Counting(), overwrite=True, progress=interrupt_at(step, 1))
        assert content(out) == before
        SfmMap(out).verify()
    build(scene, six, out, Counting(), overwrite=True)
    assert content(out) == fresh
    assert [path.name for path in tmp_path.iterdir()] == ['map']


def test_a_full_disk_keeps_the_old_map(
    scene: Scene, six: list[PosedImage], fresh: dict[str, bytes], tmp_path: Path
) -> None:
    """/dev/full is a disk without any space; it stands for the last file that is written."""
    out = tmp_path / 'map'
    build(scene, six, out, Counting())

    def fill(items: list[Any], step: str) -> Iterable[Any]:
        if step == 'check':
            (partial_path(out) / 'manifest.json.tmp').symlink_to('/dev/full')
        return items

    with pytest.raises(MapError, match=r'manifest\.json cannot be written \(No space left on dev'):
        build(scene, six, out, Counting(), overwrite=True, progress=fill)
    assert content(out) == fresh
    SfmMap(out).verify()


# ---------------------------------------------------------------- input that cannot be used


def copied(scene: Scene, images: list[PosedImage], folder: Path) -> list[PosedImage]:
    """Copy pictures, their times too, to where a test may change them."""
    for image in images:
        shutil.copy2(scene.folder / image.name, folder)
    return images


def refuses(error: type[Exception], match: str) -> Any:
    return pytest.raises(error, match=match)


def test_a_single_picture(scene: Scene, six: list[PosedImage], tmp_path: Path) -> None:
    for count in (0, 1):
        with refuses(DataError, rf'{count} image\(s\) cannot make a map: at least 2 are needed'):
            build(scene, six[:count], tmp_path / 'map', Counting())


def test_missing_pictures(scene: Scene, six: list[PosedImage], tmp_path: Path) -> None:
    images = [*six, replace(six[0], name='gone.png'), replace(six[0], name='lost.png')]
    with refuses(DataError, r'2 of 8 images are missing, the first is .*gone\.png: give the fold'):
        build(scene, images, tmp_path / 'map', Counting())
    with refuses(DataError, r'image folder .*nowhere does not exist'):
        build_map(tmp_path / 'map', tmp_path / 'nowhere', six, Counting())
    assert not partial_path(tmp_path / 'map').exists()


def test_a_picture_of_another_size(scene: Scene, six: list[PosedImage], tmp_path: Path) -> None:
    images = copied(scene, six, tmp_path)
    picture = read_image(tmp_path / images[3].name)
    write_png(tmp_path / images[3].name, picture[:, :300])
    with refuses(ImageError, r'map03\.png is 300x240, its camera 320x240: use the images that'):
        build_map(tmp_path / 'map', tmp_path, images, Counting())


def test_a_picture_that_is_cut_off(scene: Scene, six: list[PosedImage], tmp_path: Path) -> None:
    images = copied(scene, six, tmp_path)
    path = tmp_path / images[3].name
    path.write_bytes(path.read_bytes()[:5000])
    with refuses(ImageError, r'map03\.png is cut off after 5000 bytes'):
        build_map(tmp_path / 'map', tmp_path, images, Counting())


def test_blank_pictures(scene: Scene, six: list[PosedImage], tmp_path: Path) -> None:
    for image in six:
        write_png(tmp_path / image.name, np.full((240, 320, 3), 127, np.uint8))
    with refuses(MapError, r"no image gave a keypoint with extractor 'sift': are the pictures bl"):
        build_map(tmp_path / 'map', tmp_path, six, Counting())


@pytest.mark.parametrize('wrong', ['inverse', 'other'])
def test_wrong_poses(scene: Scene, six: list[PosedImage], tmp_path: Path, wrong: str) -> None:
    """The option is named with its value, and the camera; with the right poses there is a map."""
    options = replace(FAST, min_matches=60, max_epipolar_error_px=1.5, left_out_images=0)
    rng = np.random.default_rng(1)
    images = []
    for image in six:
        pose = image.cam_from_map
        move = Rigid3d(so3_exp(rng.normal(size=3) * 0.3), rng.normal(size=3))
        changed = pose.inverse() if wrong == 'inverse' else move @ pose
        images.append(replace(image, cam_from_map=changed))
    with refuses(
        MapError,
        r'no pair of images has 60 matches that agree with the poses \(\d+ of \d+ are within '
        r'max_epipolar_error_px=1\.5\): check that the poses are cam_from_map and the focal '
        r'length of camera "OPENCV 320 240 262\.0 .*", or raise that option',
    ):
        build(scene, images, tmp_path / 'map', Counting(), build_config=options)
    assert build(scene, six, tmp_path / 'map', Counting(), build_config=options).num_points > 100


def test_cameras_that_look_away_from_each_other(
    scene: Scene, six: list[PosedImage], tmp_path: Path
) -> None:
    away = Rigid3d(np.diag([-1.0, 1.0, -1.0]), np.zeros(3))
    images = [six[0], replace(six[1], cam_from_map=away @ six[1].cam_from_map)]
    with refuses(MapError, r'no two images look in the same direction: are the poses cam_from_m'):
        build(scene, images, tmp_path / 'map', Counting())


def test_no_angle_is_wide_enough(scene: Scene, six: list[PosedImage], tmp_path: Path) -> None:
    options = replace(FAST, triangulation=replace(FAST.triangulation, min_angle_deg=89.0))
    with refuses(
        MapError,
        r'none of the matches of 15 pairs of images could be triangulated within min_angle_deg=89 '
        r'and max_reprojection_error_px=4: lower the first or raise the second, or check camera "',
    ):
        build(scene, six, tmp_path / 'map', Counting(), build_config=options)


def test_where_no_map_can_be_written(scene: Scene, six: list[PosedImage], tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('not a folder')
    with refuses(MapError, r'cannot be written .*free some space or choose another folder'):
        build(scene, six, tmp_path / 'file' / 'map', Counting())


def test_left_overs_in_the_folder_of_an_interrupted_build(
    scene: Scene, six: list[PosedImage], fresh: dict[str, bytes], tmp_path: Path
) -> None:
    """Interrupted while the map itself was written: every file of it is written again."""
    out = tmp_path / 'map'
    with pytest.raises(KeyboardInterrupt):
        build(scene, six, out, Counting(), progress=interrupt_at('check', 2))
    for name in (
        'segment-0000/points_xyz.npy',
        'retrieval/file-0000/signatures.npy',
        'sfm.db',
        'sfm/images.bin',
    ):
        path = partial_path(out) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'half')
    (partial_path(out) / 'manifest.json.tmp').write_text('{')
    build(scene, six, out, Counting())
    assert content(out) == fresh


# ---------------------------------------------------------------- pairs and epipolar planes


def posed(camera: Camera, pose: Rigid3d, points: Iterable[int] = ()) -> PosedImage:
    return PosedImage('x.png', camera, pose, np.array([*points], np.int64))


def test_pairs_by_points_in_common() -> None:
    pytest.importorskip('scipy')
    rng = np.random.default_rng(0)
    seen = [set(rng.integers(0, 60, 12).tolist()) for _ in range(9)] + [set(), {1000}]
    images = [posed(CAMERA, Rigid3d(), sorted(points)) for points in seen]
    expected = set()
    for i in range(len(seen)):
        common = [(-len(seen[i] & seen[j]), j) for j in range(len(seen)) if j != i]
        best = [j for count, j in sorted(common)[:3] if count < 0]
        expected |= {(min(i, j), max(i, j)) for j in best}
    assert choose_pairs(images, 3) == sorted(expected)
    assert all(9 not in pair and 10 not in pair for pair in expected)


def test_pairs_by_distance_and_angle() -> None:
    """Cameras on a line: the nearest; none that looks the other way, however near."""
    turned = Rigid3d(np.diag([-1.0, 1.0, -1.0]), np.zeros(3))
    images = [posed(CAMERA, Rigid3d(np.eye(3), np.array([-float(n), 0, 0]))) for n in range(6)]
    assert choose_pairs(images, 1) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert len(choose_pairs(images, 100)) == 15
    facing = [replace(i, cam_from_map=turned @ i.cam_from_map) for i in images[:3]]
    pairs = choose_pairs(images + facing, 100)
    assert len(pairs) == 15 + 3
    assert all((i < 6) == (j < 6) for i, j in pairs)


def test_pairs_of_cameras_at_one_place() -> None:
    """A rotating camera: the nearest by angle."""
    images = [
        posed(CAMERA, Rigid3d(so3_exp([0, np.radians(20 * n), 0]), np.zeros(3))) for n in range(18)
    ]
    pairs = choose_pairs(images, 2)
    assert pairs == sorted([*((n, n + 1) for n in range(17)), (0, 17)])


def test_a_wide_camera_matches_across_a_wide_angle() -> None:
    wide = Camera('OPENCV_FISHEYE', 400, 400, (120, 120, 200, 200, 0, 0, 0, 0))
    turned = Rigid3d(so3_exp([0, np.radians(100), 0]), np.zeros(3))
    assert choose_pairs([posed(wide, Rigid3d()), posed(wide, turned)], 5) == [(0, 1)]
    assert choose_pairs([posed(CAMERA, Rigid3d()), posed(CAMERA, turned)], 5) == []
    # Beyond its model the edge of an image has no ray: then it may see everything.
    beyond = Camera('OPENCV_FISHEYE', 400, 400, (40, 40, 200, 200, 0, 0, 0, 0))
    assert choose_pairs([posed(beyond, Rigid3d()), posed(beyond, turned)], 5) == [(0, 1)]


@pytest.mark.parametrize('camera_b', [CAMERA, FISHEYE, STRONG])
def test_points_are_on_their_epipolar_planes(camera_b: Camera) -> None:
    rng = np.random.default_rng(2)
    points = np.column_stack([rng.uniform(-1, 1, (200, 2)), rng.uniform(3, 9, 200)])
    a = posed(CAMERA, Rigid3d())
    b = posed(camera_b, Rigid3d(so3_exp([0.05, -0.1, 0.2]), np.array([0.5, 0.1, -0.05])))
    pixels_a, pixels_b = (i.camera.project(i.cam_from_map.apply(points)) for i in (a, b))
    assert np.isfinite(pixels_b).all()
    assert epipolar_error_px(a, b, pixels_a, pixels_b).max() < 1e-6
    assert epipolar_error_px(b, a, pixels_b, pixels_a).max() < 1e-6
    off = epipolar_error_px(a, b, pixels_a, pixels_b + rng.normal(size=(200, 2)) * 50)
    assert np.mean(off > 4) > 0.8


def test_epipolar_error_of_a_sideways_step_is_the_difference_of_rows() -> None:
    """Two cameras side by side, near the axis: the distance of the lines in pixels."""
    camera = Camera('SIMPLE_PINHOLE', 640, 480, (500, 320, 240))
    a, b = posed(camera, Rigid3d()), posed(camera, Rigid3d(np.eye(3), np.array([0.3, 0, 0])))
    rng = np.random.default_rng(3)
    pixels_a = rng.uniform(-20, 20, (50, 2)) + 320 * np.array([1, 0.75])
    rows = rng.uniform(-9, 9, 50)
    pixels_b = pixels_a + np.column_stack([rng.uniform(5, 30, 50), rows])
    error = epipolar_error_px(a, b, pixels_a, pixels_b)
    np.testing.assert_allclose(error, np.abs(rows), rtol=0.02)


def test_epipolar_error_without_a_baseline_is_the_angle() -> None:
    camera = Camera('SIMPLE_PINHOLE', 640, 480, (500, 320, 240))
    a, b = posed(camera, Rigid3d()), posed(camera, Rigid3d())
    pixels = np.array([[320.0, 240], [330, 240], [320, 250]])
    shifted = pixels + np.array([[3, 4], [0, 0], [6, 8]])
    np.testing.assert_allclose(epipolar_error_px(a, b, pixels, shifted), [5, 0, 10], rtol=0.01)


def test_pixels_without_a_ray_are_infinitely_far() -> None:
    strong = Camera('RADIAL', 640, 480, (300, 320, 240, -0.4, 0.02))
    a, b = posed(strong, Rigid3d()), posed(strong, Rigid3d(np.eye(3), np.array([0.3, 0, 0])))
    pixels = np.array([[1.0, 1.0], [320.0, 240.0]])
    assert np.isinf(epipolar_error_px(a, b, pixels, pixels)).tolist() == [True, False]


def test_the_log_is_silent_on_a_build_that_is_not_interrupted(
    scene: Scene, six: list[PosedImage], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    steps: list[str] = []

    def progress(items: list[Any], step: str) -> list[Any]:
        steps.append(step)
        return items

    build(scene, six[:3], tmp_path / 'map', Counting(), progress=progress)
    assert steps == ['extract', 'match', 'triangulate', 'check']
    assert caplog.text == ''


def test_only_a_map_is_replaced(scene: Scene, tmp_path: Path) -> None:
    """A folder of something else stays, even with overwrite."""
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes/mine.txt').write_text('keep')
    extractor = create_extractor('sift', max_keypoints=100)
    with pytest.raises(MapError, match='is not a map and is not replaced: choose another --out'):
        build_map(tmp_path / 'notes', scene.folder, scene.images, extractor, overwrite=True)
    assert (tmp_path / 'notes/mine.txt').read_text() == 'keep'


def test_inverted_poses_are_doubted(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Poses of the wrong direction agree with few matches; the warning names the way out."""
    middle = np.mean([image.cam_from_map.inverse().translation for image in scene.images], axis=0)
    to_middle = Rigid3d(np.eye(3), -middle)
    inverted = [
        replace(image, cam_from_map=(to_middle @ image.cam_from_map.inverse()))
        for image in scene.images
    ]
    extractor = create_extractor('sift', max_keypoints=600)
    build_map(tmp_path / 'map', scene.folder, inverted, extractor)
    assert 'of the matches agree with the poses' in caplog.text
    assert 'check that the poses are cam_from_map' in caplog.text


def test_damaged_scratch_file_is_named(scene: Scene, tmp_path: Path) -> None:
    """What a disk fault left of a killed build is one sentence."""
    extractor = create_extractor('sift', max_keypoints=600)

    def stop(items: list[Any], what: str) -> Any:
        if what == 'match':
            raise KeyboardInterrupt
        return items

    with pytest.raises(KeyboardInterrupt):
        build_map(tmp_path / 'map', scene.folder, scene.images, extractor, progress=stop)
    stored = sorted((tmp_path / 'map.partial/features').glob('*.npz'))[0]
    stored.write_bytes(stored.read_bytes()[:-300])
    with pytest.raises(MapError, match=r'is damaged: remove .*map\.partial and build again'):
        build_map(tmp_path / 'map', scene.folder, scene.images, extractor)


def test_point_that_a_step_takes_behind_a_camera_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = Camera('PINHOLE', 640, 480, (500, 500, 320, 240))
    nothing = np.zeros(0, np.int64)
    # The point is 10 cm before the second camera and close to the way to it: 3 px are a step of
    # 12 cm.
    poses = [Rigid3d(), Rigid3d(np.eye(3), np.array([0, 0, -2.0]))]
    images = [PosedImage(str(k), camera, pose, nothing) for k, pose in enumerate(poses)]
    xyz = np.array([[0.0, 0.0005, 2.1], [0.5, 0.3, 8.0]])
    pixels = [camera.project(image.cam_from_map.apply(xyz)) for image in images]
    pixels[1][0, 1] += 3.0
    features = [
        Features(p.astype(np.float32), *(np.ones((2, *s), np.float32) for s in ((), (8,), (), ())))
        for p in pixels
    ]
    tracks = [[SimpleNamespace(image_id=k + 1, point2D_idx=n) for k in range(2)] for n in range(2)]
    points = {
        n: SimpleNamespace(xyz=xyz[n], track=SimpleNamespace(elements=tracks[n])) for n in range(2)
    }
    model = SimpleNamespace(points3D=points)
    monkeypatch.setattr('feat_ros.triangulation.track_points', lambda *_: model)
    structure = triangulate(tmp_path, images, features, {}, TriangulationConfig())
    assert np.allclose(structure.xyz, xyz, atol=0.01)
    assert np.isfinite(structure.information).all() and np.isfinite(structure.noise_scale)

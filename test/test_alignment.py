# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scale, frame and gravity of a map from what is known of it."""

from __future__ import annotations

from pathlib import Path
import shutil

from conftest import full_disk, Scene
import numpy as np
import numpy.typing as npt
import pytest

from feat_ros.alignment import (
    align_by_distances,
    align_by_points,
    align_by_poses,
    align_by_positions,
    Alignment,
    apply_alignment,
    east_north_up,
    fit_points,
    fit_poses,
    image_centers,
    image_names,
    KnownPoint,
    read_known_points,
    similarity_from_poses,
)
from feat_ros.errors import DataError, MapError
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d, rotation_angle_deg, Sim3d, so3_exp
from feat_ros.image import read_image
from feat_ros.localizer import Localizer
from feat_ros.sfm_map import SfmMap
from feat_ros.types import PoseEstimate

Float = npt.NDArray[np.float64]

SIM = Sim3d(0.37, so3_exp([0.4, -1.1, 2.0]), np.array([12.0, -7.0, 3.5]))


def random_poses(count: int, seed: int, spread: Float | None = None) -> list[Rigid3d]:
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(count, 3)) * ([3.0, 3.0, 3.0] if spread is None else spread)
    return [Rigid3d(so3_exp(rng.normal(size=3)), place) for place in places]


def assert_same(found: Sim3d, expected: Sim3d, tolerance: float) -> None:
    assert found.scale == pytest.approx(expected.scale, rel=tolerance)
    assert rotation_angle_deg(found.rotation, expected.rotation) < np.degrees(tolerance)
    np.testing.assert_allclose(found.translation, expected.translation, atol=20 * tolerance)


# ---------------------------------------------------------------- estimation


@pytest.mark.parametrize('count', [2, 3, 4, 5, 30])
def test_exact_poses_give_the_similarity(count: int) -> None:
    old = random_poses(count, count)
    found = similarity_from_poses(old, [SIM.apply_to_pose(pose) for pose in old])
    assert_same(found, SIM, 1e-9)


def test_cameras_on_a_line_are_aligned_by_their_orientations() -> None:
    old = random_poses(12, 1, np.array([5.0, 0.0, 0.0]))
    alignment = fit_poses([*'abcdefghijkl'], old, [SIM.apply_to_pose(pose) for pose in old])
    assert_same(alignment.new_from_old, SIM, 1e-9)
    with pytest.raises(DataError, match='lie on one line: a turn about it stays unknown'):
        places = np.array([pose.translation for pose in old])
        fit_points([*'abcdefghijkl'], places, SIM.apply(places), 'positions')


def noisy(pose: Rigid3d, rng: np.random.Generator, metres: float, radians: float) -> Rigid3d:
    turn = so3_exp(rng.normal(0, radians, 3))
    return Rigid3d(turn @ pose.rotation, pose.translation + rng.normal(0, metres, 3))


@pytest.mark.parametrize(
    ('metres', 'radians'), [(0.02, 0.2), (0.5, 0.002)], ids=['good positions', 'good orientations']
)
def test_the_better_of_positions_and_orientations_decides(metres: float, radians: float) -> None:
    rng = np.random.default_rng(3)
    old = random_poses(60, 4, np.array([4.0, 4.0, 1.0]))
    new = [noisy(SIM.apply_to_pose(pose), rng, metres * SIM.scale, radians) for pose in old]
    found = similarity_from_poses(old, new)
    # Alone the worse of the two would be off by several degrees here.
    assert rotation_angle_deg(found.rotation, SIM.rotation) < 0.4


@pytest.mark.parametrize('what', ['poses', 'points'])
def test_a_third_may_be_wrong(what: str) -> None:
    rng = np.random.default_rng(5)
    old = random_poses(30, 6)
    new = [noisy(SIM.apply_to_pose(pose), rng, 0.002, 0.002) for pose in old]
    wrong = rng.choice(30, 10, replace=False)
    for row in wrong:
        new[row] = noisy(new[row], rng, 5.0, 1.0)
    names = [str(number) for number in range(30)]
    if what == 'poses':
        alignment = fit_poses(names, old, new)
        assert alignment.noise.translation_m == pytest.approx(0.002, rel=0.3)
        assert alignment.noise.rotation_rad == pytest.approx(0.002, rel=0.3)
    else:
        before, after = (np.array([pose.translation for pose in poses]) for poses in (old, new))
        alignment = fit_points(names, before, after, 'points')
    np.testing.assert_array_equal(np.flatnonzero(~alignment.is_used), np.sort(wrong))
    assert_same(alignment.new_from_old, SIM, 5e-3)
    summary = alignment.summary()
    assert (summary['num_known'], summary['num_used']) == (30, 20)
    assert summary['max_residual_m'] < 0.01
    name, metres, used = alignment.worst(1)[0]
    assert int(name) in wrong
    assert metres > 1 and not used


def test_east_north_up_of_known_places() -> None:
    # A degree along the meridian at the equator is 110,574 m, along the equator 111,320 m.
    lat, lon = np.array([0.0, 1e-3, 0.0, 0.0]), np.array([10.0, 10.0, 10.001, 10.0])
    expected = np.array([[0, 0, 0], [0, 110.574, 0], [111.320, 0, 0], [0, 0, 25.0]])
    found = east_north_up(lat, lon, np.array([0.0, 0.0, 0.0, 25.0]))
    np.testing.assert_allclose(found, expected, atol=2e-3)


# ---------------------------------------------------------------- maps


@pytest.fixture
def scaled_map(room_map: SfmMap, tmp_path: Path) -> SfmMap:
    """Return the room in units and axes that have nothing to do with metres."""
    shutil.copytree(room_map.path, tmp_path / 'room')
    odd = Alignment(SIM.inverse(), ['x'], np.zeros(1), np.ones(1, bool))
    return apply_alignment(tmp_path / 'room', odd, gravity='unknown')


def true_poses(scene: Scene) -> dict[str, Rigid3d]:
    return {image.name: image.cam_from_map for image in scene.images}


def test_poses_bring_the_map_back(scaled_map: SfmMap, room_map: SfmMap, scene: Scene) -> None:
    """Points, covariances, images and pose noise are those of before, within float32."""
    alignment = align_by_poses(scaled_map, true_poses(scene))
    assert alignment.residual_m.max() < 1e-6
    back = apply_alignment(scaled_map.path, alignment, frame_id='hall', gravity='known')
    everyone = np.arange(room_map.num_points)
    xyz, covariance = back.points(everyone)
    expected_xyz, expected_covariance = room_map.points(everyone)
    np.testing.assert_allclose(xyz, expected_xyz, atol=5e-6)
    size = np.abs(expected_covariance).max(axis=(1, 2))[:, None, None]
    np.testing.assert_allclose(covariance / size, expected_covariance / size, atol=1e-5)
    for name, pose in true_poses(scene).items():
        found = back.cam_from_map(image_names(back).index(name))
        np.testing.assert_allclose(found.rotation, pose.rotation, atol=1e-9)
        np.testing.assert_allclose(found.translation, pose.translation, atol=1e-5)
    noise = back.manifest.pose_noise
    assert noise.translation_m == pytest.approx(room_map.manifest.pose_noise.translation_m)
    assert noise.rotation_rad == pytest.approx(room_map.manifest.pose_noise.rotation_rad)
    assert (back.manifest.frame_id, back.manifest.gravity) == ('hall', 'known')
    assert len(back.manifest.provenance['alignments']) == 2
    back.verify()


def test_what_the_map_was_aligned_with_has_noise_too(scaled_map: SfmMap, scene: Scene) -> None:
    """The covariance speaks of the known poses from then on."""
    rng = np.random.default_rng(8)
    known = {
        name: noisy(pose.inverse(), rng, 0.05, 0.01).inverse()
        for name, pose in true_poses(scene).items()
    }
    alignment = align_by_poses(scaled_map, known)
    before = scaled_map.manifest.pose_noise
    after = apply_alignment(scaled_map.path, alignment).manifest.pose_noise
    assert alignment.noise.translation_m == pytest.approx(0.05, rel=0.5)
    assert alignment.noise.rotation_rad == pytest.approx(0.01, rel=0.5)
    old_m = before.translation_m * alignment.new_from_old.scale
    assert after.translation_m == pytest.approx(np.hypot(old_m, alignment.noise.translation_m))
    assert after.rotation_rad == pytest.approx(
        np.hypot(before.rotation_rad, alignment.noise.rotation_rad)
    )


def test_no_room_for_an_aligned_map(scaled_map: SfmMap, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    alignment = Alignment(SIM, ['x'], np.zeros(1), np.ones(1, bool))
    with (
        full_disk(5000),
        pytest.raises(MapError, match=r'\w+ cannot be written \(File too large\): free'),
    ):
        apply_alignment(scaled_map.path, alignment)
    assert sorted(tmp_path.iterdir()) == before
    SfmMap(scaled_map.path).verify()


def test_an_aligned_map_localizes_in_the_new_frame(
    scaled_map: SfmMap, room_map: SfmMap, scene: Scene
) -> None:
    extractor = create_extractor('sift', max_keypoints=600)
    query = scene.queries[0]
    picture = read_image(scene.folder / query.name)
    before = Localizer(room_map, extractor).localize(picture, query.camera)
    after = Localizer(scaled_map, extractor).localize(picture, query.camera)
    assert isinstance(before, PoseEstimate)
    assert isinstance(after, PoseEstimate)
    moved = SIM.apply_to_pose(after.cam_from_map.inverse())
    expected = before.cam_from_map.inverse()
    np.testing.assert_allclose(moved.translation, expected.translation, atol=1e-3)
    turn = np.kron(np.diag([SIM.scale, 1]), SIM.rotation)
    np.testing.assert_allclose(
        turn @ after.covariance @ turn.T, before.covariance, rtol=0.05,
        atol=0.02 * np.abs(before.covariance).max(),
    )  # fmt: skip


def test_the_id_changes_with_the_frame(scaled_map: SfmMap, room_map: SfmMap) -> None:
    assert scaled_map.manifest.map_id != room_map.manifest.map_id
    assert not list(scaled_map.path.parent.glob('room.*'))


def test_the_model_for_other_tools_follows(scaled_map: SfmMap, scene: Scene) -> None:
    pycolmap = pytest.importorskip('pycolmap')
    back = apply_alignment(scaled_map.path, align_by_poses(scaled_map, true_poses(scene)))
    model = pycolmap.Reconstruction(back.path / 'sfm')
    for image in model.images.values():
        np.testing.assert_allclose(
            image.cam_from_world().translation, true_poses(scene)[image.name].translation,
            atol=1e-5,
        )  # fmt: skip


def test_two_distances_give_the_scale(scaled_map: SfmMap, scene: Scene) -> None:
    center = {name: pose.inverse().translation for name, pose in true_poses(scene).items()}
    first, second, third = (scene.images[number].name for number in (0, 5, 9))
    rows = [(a, b, float(np.linalg.norm(center[a] - center[b])))
            for a, b in ((first, second), (second, third))]  # fmt: skip
    alignment = align_by_distances(scaled_map, rows)
    assert alignment.new_from_old.scale == pytest.approx(SIM.scale, rel=1e-6)
    found = image_centers(apply_alignment(scaled_map.path, alignment))
    for a, b, metres in rows:
        assert np.linalg.norm(found[a] - found[b]) == pytest.approx(metres, rel=1e-6)


def test_of_three_distances_one_may_be_wrong(scaled_map: SfmMap, scene: Scene) -> None:
    center = {name: pose.inverse().translation for name, pose in true_poses(scene).items()}
    names = [image.name for image in scene.images]
    rows = [(names[0], b, float(np.linalg.norm(center[names[0]] - center[b])))
            for b in names[4:7]]  # fmt: skip
    rows[1] = (*rows[1][:2], 10 * rows[1][2])
    alignment = align_by_distances(scaled_map, rows)
    assert alignment.new_from_old.scale == pytest.approx(SIM.scale, rel=1e-6)
    assert alignment.worst(1)[0][0] == f'{names[0]} to {names[5]}'


def known_points(scene: Scene, count: int) -> list[KnownPoint]:
    """Return pixels of places in the room, each in two pictures."""
    rng = np.random.default_rng(2)
    out: list[KnownPoint] = []
    while len(out) < 2 * count:
        a, b = (scene.images[number] for number in rng.choice(10, 2, replace=False))
        in_a = np.array([*rng.uniform(-1, 1, 2), 1.0]) * rng.uniform(2, 5)
        xyz = a.cam_from_map.inverse().apply(in_a)
        pixels = [image.camera.project(image.cam_from_map.apply(xyz[None]))[0] for image in (a, b)]
        if all(np.all((p > 0) & (p < (320, 240))) for p in pixels) and (
            np.linalg.norm(
                a.cam_from_map.inverse().translation - b.cam_from_map.inverse().translation
            )
            > 1
        ):
            place = (float(xyz[0]), float(xyz[1]), float(xyz[2]))
            out += [KnownPoint(image.name, (float(p[0]), float(p[1])), place)
                    for image, p in zip((a, b), pixels, strict=True)]  # fmt: skip
    return out


def test_points_marked_in_two_images(scaled_map: SfmMap, scene: Scene) -> None:
    alignment = align_by_points(scaled_map, known_points(scene, 4))
    assert_same(alignment.new_from_old, SIM, 1e-5)
    assert alignment.residual_m.max() < 1e-4


def test_positions_alone(scaled_map: SfmMap, scene: Scene) -> None:
    places = {name: pose.inverse().translation for name, pose in true_poses(scene).items()}
    assert_same(align_by_positions(scaled_map, places).new_from_old, SIM, 1e-5)


# ---------------------------------------------------------------- what cannot be used


def test_distances_that_say_nothing(room_map: SfmMap) -> None:
    a, b = image_names(room_map)[:2]
    for rows, message in (
        ([(a, b, 0.0)], 'is 0: it must be positive'),
        ([(a, b, float('nan'))], 'is nan: it must be positive'),
        ([(a, a, 1.0)], 'are at one place: choose two further apart'),
        ([(a, 'moon.jpg', 1.0)], "has no image 'moon.jpg': its images are named like 'map00.png'"),
    ):
        with pytest.raises(DataError, match=message):
            align_by_distances(room_map, rows)


def test_poses_that_say_nothing(room_map: SfmMap, scene: Scene) -> None:
    poses = true_poses(scene)
    name = image_names(room_map)[0]
    with pytest.raises(DataError, match=r'1 known pose\(s\) of images in the map: at least 2'):
        align_by_poses(room_map, {name: poses[name]})
    with pytest.raises(DataError, match=r"has no image 'moon\.jpg'"):
        align_by_poses(room_map, {'moon.jpg': Rigid3d()})
    with pytest.raises(DataError, match='the 10 images are at one place in the known poses'):
        align_by_poses(room_map, dict.fromkeys(poses, Rigid3d()))


def test_points_that_say_nothing(room_map: SfmMap, scene: Scene) -> None:
    known = known_points(scene, 3)
    with pytest.raises(DataError, match='2 known points: at least 3 are needed'):
        align_by_points(room_map, known[:4])
    with pytest.raises(DataError, match='is marked in one image: mark it in two or more'):
        align_by_points(room_map, known[:5])
    twice = [KnownPoint(p.image, p.pixel, (float(n // 2), 0.0, 0.0)) for n, p in enumerate(known)]
    with pytest.raises(DataError, match='the 3 known points lie on one line'):
        align_by_points(room_map, twice)


def test_files_of_points(tmp_path: Path) -> None:
    path = tmp_path / 'points.txt'
    path.write_text('# image u v x y z\n\na.jpg 10.5 20 1 2 -3\n')
    assert read_known_points(path) == [KnownPoint('a.jpg', (10.5, 20.0), (1.0, 2.0, -3.0))]
    for text, message in (
        ('a.jpg 1 2 3 4\n', r'points.txt:1 is not "image u v x y z"'),
        ('a.jpg 1 2 3 4 x\n', r'points.txt:1 is not "image u v x y z"'),
        ('a.jpg 1 2 3 4 inf\n', r'points.txt:1 has a number that is not finite'),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_known_points(path)
    with pytest.raises(DataError, match='cannot be read'):
        read_known_points(tmp_path / 'nowhere')


def test_a_damaged_map_stays_as_it_is(room_map: SfmMap, tmp_path: Path, scene: Scene) -> None:
    shutil.copytree(room_map.path, tmp_path / 'room')
    path = next((tmp_path / 'room').rglob('point_covariance.npy'))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(MapError, match='is damaged in block'):
        apply_alignment(tmp_path / 'room', align_by_poses(room_map, true_poses(scene)))
    assert path.read_bytes() == bytes(data)
    assert [item.name for item in tmp_path.iterdir()] == ['room']
    with pytest.raises(DataError, match='at one place'):
        fit_poses(['a', 'b'], [Rigid3d()] * 2, random_poses(2, 0))


def test_a_point_that_is_not_in_the_picture(room_map: SfmMap) -> None:
    point = KnownPoint(image_names(room_map)[0], (1e6, 12.0), (0.0, 0.0, 0.0))
    other = KnownPoint(image_names(room_map)[1], (20.0, 12.0), (0.0, 0.0, 0.0))
    with pytest.raises(
        DataError, match=r"'map00\.png' is 320x240 and does not show pixel \(1e\+06"
    ):
        align_by_points(room_map, [point, other])

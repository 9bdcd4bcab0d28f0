# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of the rendered room: a pose near the truth, or the right reason why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
import re
import shutil
from typing import Any

from conftest import CAMERA, Room, Scene, walk, write_map
import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

from feat_ros.camera import Camera
from feat_ros.errors import ImageError, MapError
from feat_ros.extractors import create_extractor, Extractor
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.image import Image, read_image
from feat_ros.localizer import (
    chance_inliers,
    create_retriever,
    Localizer,
    LocalizerConfig,
    needed_inliers,
    open_localizer,
)
from feat_ros.pose_error import normalised_error_squared, pose_error
from feat_ros.sfm_map import PoseNoise, read_manifest, Segment, SfmMap, write_manifest
from feat_ros.types import (
    FailureReason,
    Features,
    LocalizationResult,
    PoseEstimate,
    PoseFailure,
    PosePrior,
)

Ids = npt.NDArray[np.int64]


@pytest.fixture(scope='module')
def extractor() -> Extractor:
    return create_extractor('sift', max_keypoints=600)


@pytest.fixture(scope='module')
def localizer(room_map: SfmMap, extractor: Extractor) -> Localizer:
    return Localizer(room_map, extractor)


@pytest.fixture(scope='module')
def query(scene: Scene) -> Image:
    """Return a picture that the map was not built from."""
    return read_image(scene.folder / scene.queries[1].name)


@pytest.fixture(scope='module')
def truth(scene: Scene) -> Rigid3d:
    return scene.queries[1].cam_from_map


def found(result: LocalizationResult) -> PoseEstimate:
    assert isinstance(result, PoseEstimate), result
    return result


def refused(result: LocalizationResult) -> PoseFailure:
    assert isinstance(result, PoseFailure)
    return result


def changed_map(room_map: SfmMap, folder: Path, **changes: Any) -> SfmMap:
    """Copy a map and change its manifest."""
    shutil.copytree(room_map.path, folder)
    write_manifest(folder, replace(read_manifest(folder), **changes))
    return SfmMap(folder)


def chosen(features: Features, rows: npt.NDArray[Any]) -> Features:
    return Features(**{name: array[rows] for name, array in vars(features).items()})


# ---------------------------------------------------------------- poses


def test_pictures_between_those_of_the_map(localizer: Localizer, scene: Scene) -> None:
    for image in scene.queries:
        picture = read_image(scene.folder / image.name)
        result = found(localizer.localize(picture, image.camera))
        error = pose_error(result.cam_from_map, image.cam_from_map)
        assert np.linalg.norm(error[:3]) < 0.005
        assert np.degrees(np.linalg.norm(error[3:])) < 0.05
        # 99.9 % of a chi-squared distribution with 6 degrees of freedom.
        assert normalised_error_squared(error, result.covariance) < 22.5
        assert result.mode == 'global'
        assert set(result.ms) == {'extract', 'retrieve', 'match', 'pnp'}


def test_the_matches_of_a_pose(
    localizer: Localizer, extractor: Extractor, query: Image, truth: Rigid3d
) -> None:
    """Query keypoint and map point: the inliers are where the true camera sees the points."""
    result = found(localizer.localize(query, CAMERA))
    assert result.matches.shape == (result.num_matches, 2)
    assert len(result.inliers) == result.num_inliers > 300
    keypoints = extractor(query).keypoints[result.matches[result.inliers, 0]]
    xyz, _ = localizer.map.points(result.matches[result.inliers, 1])
    distance = np.linalg.norm(CAMERA.project(truth.apply(xyz)) - keypoints, axis=1)
    assert np.median(distance) < 1
    assert distance.max() < 10


def test_the_same_picture_gives_the_same_pose(localizer: Localizer, query: Image) -> None:
    first, second = (found(localizer.localize(query, CAMERA)) for _ in range(2))
    assert first.cam_from_map.rotation.tobytes() == second.cam_from_map.rotation.tobytes()
    assert_array_equal(first.covariance, second.covariance)
    assert_array_equal(first.matches, second.matches)


def test_another_camera_than_the_map_was_built_with(localizer: Localizer, scene: Scene) -> None:
    camera = Camera('OPENCV_FISHEYE', 400, 360, (170, 171, 203, 178, -0.01, 0.02, -0.01, 0.002))
    pose = scene.images[4].cam_from_map
    result = found(localizer.localize(scene.room.shoot(camera, pose), camera))
    assert np.linalg.norm(pose_error(result.cam_from_map, pose)[:3]) < 0.02


def test_noise_of_the_poses_is_added(
    room_map: SfmMap, extractor: Extractor, query: Image, tmp_path: Path
) -> None:
    noise = PoseNoise(0.7, 0.2)
    noisy = changed_map(room_map, tmp_path / 'noisy', pose_noise=noise)
    exact = changed_map(room_map, tmp_path / 'exact', pose_noise=PoseNoise())
    results = [found(Localizer(m, extractor).localize(query, CAMERA)) for m in (exact, noisy)]
    added = results[1].covariance - results[0].covariance
    assert_allclose(added, np.diag(np.repeat([0.49, 0.04], 3)), atol=1e-12)


# ---------------------------------------------------------------- a prior


def prior_near(truth: Rigid3d, shift: float, turn_deg: float, **limits: float) -> PosePrior:
    """Return a prior whose camera is off by so many metres and degrees."""
    true = truth.inverse()
    turned = so3_exp([0, 0, np.radians(turn_deg)]) @ true.rotation
    center = true.translation + np.array([shift, 0, 0])
    return PosePrior(Rigid3d(turned, center).inverse(), **limits)


def test_a_good_prior_finds_the_pose_by_itself(
    localizer: Localizer, query: Image, truth: Rigid3d
) -> None:
    prior = prior_near(truth, 0.3, 4, radius_m=0.5, angle_deg=6)
    result = found(localizer.localize(query, CAMERA, prior))
    assert result.mode == 'prior'
    assert np.linalg.norm(pose_error(result.cam_from_map, truth)[:3]) < 0.005


@pytest.mark.parametrize(
    ('shift', 'turn_deg'), [(0.6, 0), (0, 7), (500, 0), (0, 180)],
    ids=['a little too far', 'turned a little too far', 'elsewhere', 'looking back'],
)  # fmt: skip
def test_a_bad_prior_is_given_up(
    localizer: Localizer, query: Image, truth: Rigid3d, shift: float, turn_deg: float
) -> None:
    prior = prior_near(truth, shift, turn_deg, radius_m=0.5, angle_deg=6)
    result = found(localizer.localize(query, CAMERA, prior))
    assert result.mode == 'global'
    assert np.linalg.norm(pose_error(result.cam_from_map, truth)[:3]) < 0.005


def test_a_picture_of_nothing_fails_with_a_prior_too(
    localizer: Localizer, scene: Scene, truth: Rigid3d
) -> None:
    other = Room.make(99).shoot(CAMERA, truth)
    result = refused(localizer.localize(other, CAMERA, prior_near(truth, 0, 0)))
    assert (result.reason, result.mode) == (FailureReason.TOO_FEW_INLIERS, 'global')


def test_a_prior_matches_what_its_nearest_images_saw(
    room_map: SfmMap, extractor: Extractor, query: Image, truth: Rigid3d
) -> None:
    localizer = Localizer(room_map, extractor, config=LocalizerConfig(prior_images=2))
    result = found(localizer.localize(query, CAMERA, prior_near(truth, 0, 0)))
    assert result.mode == 'prior'
    centers = [room_map.cam_from_map(n).inverse().translation for n in range(10)]
    distance = np.linalg.norm(np.array(centers) - truth.inverse().translation, axis=1)
    seen = room_map.points_of_images(np.argsort(distance)[:2])
    assert set(result.matches[:, 1].tolist()) <= set(seen.tolist())


def test_a_narrow_prior_matches_what_is_in_view(
    room_map: SfmMap, extractor: Extractor, query: Image, truth: Rigid3d
) -> None:
    """Within two degrees and a centimetre, points far outside of the image are no candidates."""
    localizer = Localizer(room_map, extractor)
    prior = prior_near(truth, 0, 0, radius_m=0.01, angle_deg=2)
    result = found(localizer.localize(query, CAMERA, prior))
    assert result.mode == 'prior'
    xyz, _ = room_map.points(result.matches[:, 1])
    pixels = CAMERA.project(truth.apply(xyz))
    margin = 262 * (np.radians(2) + 0.01 / 1)
    assert (pixels > -margin).all() and (pixels < np.array(CAMERA.size_wh) + margin).all()
    everywhere = found(localizer.localize(query, CAMERA))
    xyz, _ = room_map.points(everywhere.matches[:, 1])
    outside = ~CAMERA.contains(CAMERA.project(truth.apply(xyz)))
    assert outside.sum() > 5
    assert result.num_matches < everywhere.num_matches


def test_an_image_that_looks_back_is_not_near(tmp_path: Path, extractor: Extractor) -> None:
    """It stands where the prior is, and what it saw lies behind the camera."""
    rng = np.random.default_rng(0)
    ahead = rng.uniform([-3, -2, 5], [3, 2, 9], (80, 3))
    behind = ahead * [1, 1, -1]
    descriptors = rng.normal(size=(160, 128))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    back = Rigid3d(np.diag([-1.0, 1.0, -1.0]), np.zeros(3))
    beside = Rigid3d(np.eye(3), np.array([0.4, 0.0, 0.0]))
    pixels = [CAMERA.project(back.apply(behind)), CAMERA.project(beside.apply(ahead))]
    segment = Segment(
        points_xyz=np.concatenate([behind, ahead]),
        point_covariance=np.full((160, 3, 3), 1e-6) * np.eye(3),
        point_descriptors=descriptors.astype(np.float32),
        point_stability=np.ones(160, np.float32),
        image_names=['back.png', 'beside.png'],
        image_camera=[0, 0],
        image_cam_from_map=[back, beside],
        image_observations=[
            (np.arange(80) + first, seen.astype(np.float32))
            for first, seen in zip((0, 80), pixels, strict=True)
        ],
        cameras=[CAMERA],
    )
    query = Features(
        keypoints=CAMERA.project(ahead).astype(np.float32),
        scores=np.ones(80, np.float32),
        descriptors=descriptors[80:].astype(np.float32),
        stability=np.ones(80, np.float32),
        pixel_sigma=np.full(80, 0.1, np.float32),
    )
    localizer = Localizer(
        SfmMap(write_map(tmp_path / 'map', [segment])),
        extractor,
        config=LocalizerConfig(prior_images=1),
    )
    result = found(localizer.localize(query, CAMERA, PosePrior(Rigid3d())))
    assert result.mode == 'prior'
    assert_allclose(result.cam_from_map.translation, 0, atol=1e-3)


# ---------------------------------------------------------------- retrieval


def test_retrieval_finds_the_nearest_images(
    room_map: SfmMap, extractor: Extractor, scene: Scene
) -> None:
    """Each query is halfway between two neighbours of the walk: 0 and 1, 3 and 4, 6 and 7."""
    config = LocalizerConfig(retrieved_images=3)
    retriever = create_retriever(room_map, config)
    assert retriever is not None
    localizer = Localizer(room_map, extractor, retriever, config)
    for number, image in enumerate(scene.queries):
        picture = read_image(scene.folder / image.name)
        images = retriever(extractor(picture))
        assert len(images) == 3
        assert {3 * number, 3 * number + 1} <= set(images.tolist())
        result = found(localizer.localize(picture, CAMERA))
        assert np.linalg.norm(pose_error(result.cam_from_map, image.cam_from_map)[:3]) < 0.01
        assert set(result.matches[:, 1].tolist()) <= set(
            room_map.points_of_images(images).tolist()
        )


def test_retrieval_is_left_away_where_it_is_of_no_use(room_map: SfmMap, tmp_path: Path) -> None:
    assert create_retriever(room_map, LocalizerConfig(retrieved_images=10)) is None
    without = changed_map(room_map, tmp_path / 'without', retrieval={})
    assert create_retriever(without, LocalizerConfig(retrieved_images=3)) is None


def test_a_damaged_index_is_refused(room_map: SfmMap, query: Image, tmp_path: Path) -> None:
    """When the damaged part is read, which at the size of a city is not when it is opened."""
    shutil.copytree(room_map.path, tmp_path / 'map')
    path = tmp_path / 'map' / 'retrieval' / 'file-0000' / 'signatures.npy'
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    localizer = open_localizer(tmp_path / 'map', LocalizerConfig(retrieved_images=3))
    with pytest.raises(MapError, match=r'signatures\.npy is damaged in block 0'):
        localizer.localize(query, CAMERA)


# ---------------------------------------------------------------- reasons


def test_a_blank_picture_has_no_features(localizer: Localizer) -> None:
    result = refused(localizer.localize(np.full((240, 320, 3), 127, np.uint8), CAMERA))
    assert result.reason is FailureReason.NO_FEATURES
    assert result.detail == 'the image gave 0 keypoints, 12 are needed'
    assert 'extract' in result.ms


def test_no_image_looks_like_the_picture(
    room_map: SfmMap, extractor: Extractor, query: Image
) -> None:
    nothing = Localizer(room_map, extractor, lambda features: np.zeros(0, np.int64))
    result = refused(nothing.localize(query, CAMERA))
    assert result.reason is FailureReason.NO_CANDIDATES
    assert result.detail == 'no image of the map looks like this one'


def test_a_pattern_of_equal_dots_has_too_few_matches(localizer: Localizer) -> None:
    """All keypoints are the same few, so that hardly one is somebody's nearest."""
    dots = np.full((240, 320, 3), 255, np.uint8)
    for x in range(20, 320, 25):
        for y in range(20, 240, 25):
            cv2.circle(dots, (x, y), 6, (0, 0, 0), -1, cv2.LINE_AA)
    result = refused(localizer.localize(dots, CAMERA))
    assert result.reason is FailureReason.TOO_FEW_MATCHES
    assert result.num_matches < 12
    assert result.detail == f'{result.num_matches} matches, 12 are needed'


@pytest.mark.parametrize(
    'camera',
    [
        Camera('RADIAL', 320, 240, (260, 160, 700, -0.4, 0.02)),
        Camera('OPENCV_FISHEYE', 320, 240, (9, 9, 160, -100, 0, 0, 0, 0)),
    ],
    ids=['outside of the lens model', 'all behind the camera'],
)
def test_no_pose_agrees_under_an_impossible_calibration(
    localizer: Localizer, query: Image, camera: Camera
) -> None:
    result = refused(localizer.localize(query, camera))
    assert result.reason is FailureReason.PNP_FAILED
    assert result.num_matches > 300
    assert result.detail == f'no pose agrees with the {result.num_matches} matches'


def test_another_room_has_too_few_inliers(localizer: Localizer, truth: Rigid3d) -> None:
    for seed in (99, 100):
        result = refused(localizer.localize(Room.make(seed).shoot(CAMERA, truth), CAMERA))
        assert result.reason is FailureReason.TOO_FEW_INLIERS
        assert 0 < result.num_inliers < result.num_matches
        needed = needed_inliers(result.num_matches, CAMERA, localizer.config)
        assert result.num_inliers < needed
        assert f'matches agree, {needed} are needed' in result.detail


def test_a_narrow_strip_of_the_picture_is_degenerate(localizer: Localizer, query: Image) -> None:
    strip = query.copy()
    strip[:, :150], strip[:, 190:] = 0, 0
    result = refused(localizer.localize(strip, CAMERA))
    assert result.reason is FailureReason.DEGENERATE_SPREAD
    assert result.num_inliers >= 12
    assert '0.02 is needed' in result.detail


def test_a_pose_that_is_not_certain_enough(
    room_map: SfmMap, extractor: Extractor, query: Image, tmp_path: Path
) -> None:
    position = LocalizerConfig(max_position_sigma_m=1e-4)
    rotation = LocalizerConfig(max_rotation_sigma_deg=1e-4)
    for config in (position, rotation):
        result = refused(Localizer(room_map, extractor, config=config).localize(query, CAMERA))
        assert result.reason is FailureReason.COVARIANCE_TOO_LARGE
        assert re.search(r'standard deviation of 0\.001\d* m and 0\.01\d* deg', result.detail)
        assert result.num_inliers > 300
    # Metres mean nothing where the scale is unknown; degrees do.
    unknown = changed_map(room_map, tmp_path / 'unknown', scale='unknown')
    found(Localizer(unknown, extractor, config=position).localize(query, CAMERA))
    result = refused(Localizer(unknown, extractor, config=rotation).localize(query, CAMERA))
    assert result.reason is FailureReason.COVARIANCE_TOO_LARGE


def test_few_keypoints(localizer: Localizer, extractor: Extractor, query: Image) -> None:
    """The strongest 11 are not enough for a pose, the strongest 100 are."""
    features = extractor(query)
    few = refused(localizer.localize(chosen(features, np.arange(11)), CAMERA))
    assert few.reason is FailureReason.NO_FEATURES
    result = found(localizer.localize(chosen(features, np.arange(100)), CAMERA))
    assert result.num_matches <= 100


# ---------------------------------------------------------------- errors


def test_a_picture_of_another_size(localizer: Localizer, query: Image) -> None:
    with pytest.raises(ImageError, match=r'image is 300x240, its camera 320x240: give the calib'):
        localizer.localize(query[:, :300], CAMERA)


def test_another_extractor(room_map: SfmMap) -> None:
    class Other:
        name, descriptor_dim, weights_sha256, config = 'other', 128, '', None

        def __call__(self, image_rgb: Image) -> Features:
            raise AssertionError('it must not get that far')

    with pytest.raises(MapError, match=r"built with extractor 'sift', not 'other'"):
        Localizer(room_map, Other())


# ---------------------------------------------------------------- chance


@pytest.mark.parametrize('hypotheses', [10, 10_000, 1_000_000])
@pytest.mark.parametrize('radius_px', [2.0, 8.0, 20.0])
def test_chance_inliers_against_the_poisson_distribution(
    radius_px: float, hypotheses: int
) -> None:
    """The least n for which hypotheses * P(X >= n - 3) is at most one in a million."""
    poisson = pytest.importorskip('scipy.stats').poisson
    for num_matches in (12, 100, 1000, 5000):
        rate = num_matches * np.pi * radius_px**2 / (640 * 480)
        camera = Camera('SIMPLE_PINHOLE', 640, 480, (500, 320, 240))
        needed = chance_inliers(num_matches, camera, radius_px, hypotheses)

        def false_poses(count: int, rate: float = rate) -> float:
            return hypotheses * float(poisson.sf(count - 1, rate))

        if needed - 3 < num_matches:
            assert false_poses(needed - 3) <= 1e-6
        assert false_poses(needed - 4) > 1e-6


def test_needed_inliers_is_the_larger_of_the_two() -> None:
    camera = Camera('SIMPLE_PINHOLE', 640, 480, (500, 320, 240))
    config = LocalizerConfig(min_inliers=20)
    by_chance = chance_inliers(5000, camera, config.pnp.max_error_px, config.pnp.max_iterations)
    assert by_chance > 20
    assert needed_inliers(5000, camera, config) == by_chance
    assert needed_inliers(50, camera, config) == 20


def test_the_queries_are_where_they_should_be(scene: Scene) -> None:
    """What the tests of retrieval rely on."""
    between = walk(9, 0.5)[::3]
    for image, pose in zip(scene.queries, between, strict=True):
        assert_array_equal(image.cam_from_map.translation, pose.translation)


def test_matching_by_torch_gives_the_same_pose(room_map: SfmMap, scene: Scene) -> None:
    pytest.importorskip('torch', reason='torch is not installed')
    from feat_ros.runtimes.torch_matching import TorchMatcher

    extractor = create_extractor('sift', max_keypoints=600)
    image = scene.queries[0]
    picture = scene.room.shoot(CAMERA, image.cam_from_map)
    by_torch = Localizer(room_map, extractor, matcher=TorchMatcher('cpu'))
    results = [
        found(each.localize(picture, CAMERA))
        for each in (Localizer(room_map, extractor), by_torch)
    ]
    np.testing.assert_array_equal(results[0].matches, results[1].matches)
    np.testing.assert_allclose(results[0].covariance, results[1].covariance)

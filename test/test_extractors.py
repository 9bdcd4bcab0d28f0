# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of every extractor, and RootSIFT against OpenCV and known blobs."""

from __future__ import annotations

from typing import Any

from conftest import CAMERA, Room, walk
import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

from feat_ros.errors import ConfigError, ImageError, NetworkError
from feat_ros.extractors import create_extractor, Extractor, extractor_config, EXTRACTORS, learned
from feat_ros.extractors.learned import Sfd2Extractor
from feat_ros.extractors.sift import SiftConfig, SiftExtractor
from feat_ros.image import Image, to_grey
from feat_ros.runtimes.contract import NetworkOutput
from feat_ros.types import Features

Float = npt.NDArray[np.float64]


@pytest.fixture(scope='module')
def picture() -> Image:
    return Room.make(3).shoot(CAMERA, walk(10)[4])


@pytest.fixture(scope='module', params=EXTRACTORS)
def extractor(request: pytest.FixtureRequest) -> Extractor:
    return create_or_skip(request.param)


def create_or_skip(name: str) -> Extractor:
    try:
        return create_extractor(name)
    except NetworkError as error:
        pytest.skip(str(error))


def assert_contract(features: Features, extractor: Extractor, image: Image) -> None:
    height, width = image.shape[:2]
    count = len(features)
    shapes = {name: array.shape for name, array in vars(features).items()}
    assert shapes == {
        'keypoints': (count, 2),
        'scores': (count,),
        'descriptors': (count, extractor.descriptor_dim),
        'stability': (count,),
        'pixel_sigma': (count,),
    }
    assert {array.dtype for array in vars(features).values()} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in vars(features).values())
    assert (features.keypoints >= 0).all()
    assert (features.keypoints <= [width, height]).all()
    assert (np.diff(features.scores) <= 0).all()
    assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-3)
    assert ((features.stability >= 0) & (features.stability <= 1)).all()
    assert (features.pixel_sigma > 0).all()


# ---------------------------------------------------------------- every extractor


def test_the_contract_on_a_picture(extractor: Extractor, picture: Image) -> None:
    before = picture.copy()
    features = extractor(picture)
    assert len(features) > 300
    assert_contract(features, extractor, picture)
    assert_array_equal(picture, before)


@pytest.mark.parametrize(
    'size', [(1, 1), (1, 9), (2, 300), (16, 16), (33, 31), (3, 3000), (3000, 3)]
)
def test_the_contract_on_small_and_narrow_pictures(
    extractor: Extractor, size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    assert_contract(extractor(image), extractor, image)


@pytest.mark.parametrize('value', [0, 127, 255])
def test_a_blank_picture_has_no_keypoints(extractor: Extractor, value: int) -> None:
    image = np.full((120, 160, 3), value, np.uint8)
    features = extractor(image)
    assert len(features) == 0
    assert_contract(features, extractor, image)


def test_the_same_picture_gives_the_same_features(extractor: Extractor, picture: Image) -> None:
    """In another process, after other pictures, in memory of another layout."""
    second = create_extractor(extractor.name)
    second(picture[:100, :90])
    expected = vars(extractor(picture))
    for image in (picture, np.asfortranarray(picture), np.repeat(picture, 2, 1)[:, ::2]):
        for key, array in vars(second(image)).items():
            assert_array_equal(array, expected[key])


@pytest.mark.parametrize('axis', [0, 1])
def test_a_mirrored_picture_has_mirrored_keypoints(
    extractor: Extractor, picture: Image, axis: int
) -> None:
    """Pixel centres lie at halves: the mirror of x is width - x."""
    mirrored = extractor(np.ascontiguousarray(np.flip(picture, axis))).keypoints.astype(float)
    mirrored[:, 1 - axis] = picture.shape[axis] - mirrored[:, 1 - axis]
    if extractor.name in ('sfd2', 'samfeat'):
        # A learned heat map is not symmetric: half of its keypoints are there again, unshifted.
        assert_near(extractor(picture).keypoints, mirrored, 1.0, 0.5)
    else:
        assert_near(extractor(picture).keypoints, mirrored, 0.1)


def assert_near(keypoints: Any, others: Any, radius_px: float, share: float = 0.9) -> None:
    """Most keypoints have another near, and on the average they are not shifted."""
    difference = keypoints[:, None] - others[None]
    distance = np.linalg.norm(difference, axis=2)
    nearest = distance.argmin(axis=1)
    near = distance.min(axis=1) < radius_px
    assert near.mean() > share
    shift = difference[np.arange(len(keypoints)), nearest][near].mean(axis=0)
    assert np.abs(shift).max() < radius_px / 10


@pytest.mark.parametrize(
    ('image', 'match'),
    [
        (np.zeros((10, 10), np.uint8), r'shape \(10, 10\) and type uint8: it must be \(H, W, 3\)'),
        (np.zeros((10, 10, 4), np.uint8), r'shape \(10, 10, 4\)'),
        (np.zeros((10, 10, 3), np.float32), 'type float32'),
        (np.zeros((0, 10, 3), np.uint8), 'it has no pixels'),
    ],
)
def test_what_is_not_a_picture(extractor: Extractor, image: Any, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        extractor(image)


def test_the_registry_names_what_it_has(extractor: Extractor) -> None:
    _, options = EXTRACTORS[extractor.name]
    assert extractor.config == options() == extractor_config(extractor.name)()
    for ask in (create_extractor, extractor_config):
        with pytest.raises(ConfigError, match="unknown extractor 'surf'; choose one of: sift"):
            ask('surf')


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'max_keypoint': 5}, "SiftConfig has no option 'max_keypoint': it has max_keypoints, "),
        ({'max_keypoints': 0}, 'max_keypoints is 0: it must be at least 1'),
        ({'max_keypoints': 2.5}, 'max_keypoints is 2.5: it must be int'),
        ({'contrast_threshold': 2}, 'contrast_threshold is 2.0: it must be at most 1'),
    ],
)
def test_options_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        create_extractor('sift', **options)


# ---------------------------------------------------------------- networks


class Brightest:
    """A runtime whose network finds the middle of the light and that of the valid part."""

    name, max_keypoints, descriptor_dim, size_multiple = 'brightest', 4, 3, 32
    weights_sha256 = ''

    def __init__(self, size_wh: tuple[int, int] | None) -> None:
        self.size_wh = size_wh
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, image: Image, valid_wh: tuple[int, int]) -> NetworkOutput:
        self.seen.append((*image.shape[1::-1], *valid_wh))
        light = image[: valid_wh[1], : valid_wh[0], 0].astype(float)
        light = np.maximum(light - 45, 0)
        y, x = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
        keypoints = np.zeros((4, 2), np.float32)
        keypoints[0] = (x * light).sum() / light.sum(), (y * light).sum() / light.sum()
        keypoints[1] = valid_wh[0] / 2, valid_wh[1] / 2
        rows = np.eye(4, 3, dtype=np.float32)
        ones = np.array([1, 0.5, 0, 0], np.float32)
        return NetworkOutput(keypoints, ones, rows, ones, 2)


@pytest.mark.parametrize(
    ('size_wh', 'max_size', 'seen'),
    [
        (None, 1024, (160, 128, 160, 120)),
        (None, 101, (128, 96, 101, 76)),
        ((96, 96), 1024, (96, 96, 96, 72)),
        ((640, 64), 1024, (640, 64, 85, 64)),
    ],
    ids=['as it is', 'scaled down', 'fixed size', 'fixed height'],
)
def test_keypoints_of_a_network_are_of_the_original_image(
    monkeypatch: pytest.MonkeyPatch,
    size_wh: tuple[int, int] | None,
    max_size: int,
    seen: tuple[int, ...],
) -> None:
    """Scaled with aspect kept and padded, there; the centre of the light is where it was, back."""
    network = Brightest(size_wh)
    monkeypatch.setattr(learned, 'open_network', lambda *_: network)
    for center in ((80.3, 60.7), (50.4, 35.3)):
        image = blob(center, 6)
        extractor = create_extractor('sfd2', max_image_size=max_size)
        features = extractor(image)
        assert network.seen[-1] == seen
        assert_allclose(features.keypoints[0], center, atol=0.2)
        assert_allclose(features.keypoints[1], (80, 60), atol=1e-4)
        assert_contract(features, extractor, image)
        scale = (160 / seen[2] + 120 / seen[3]) / 2
        assert_allclose(features.pixel_sigma, Sfd2Extractor.pixel_sigma * scale, rtol=1e-5)


def test_padding_repeats_the_edge() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    padded, valid_wh = learned.network_input(image, 64, 8, None)
    assert (padded.shape, valid_wh) == ((8, 8, 3), (7, 5))
    assert_array_equal(padded[:5, :7], image)
    assert_array_equal(padded[5:, :7], np.repeat(image[4:], 3, axis=0))
    assert_array_equal(padded[:5, 7], image[:, 6])


# ---------------------------------------------------------------- sift


def blob(center: tuple[float, float], sigma: float) -> Image:
    """A round hill of light around a place, pixel centres at halves."""
    x, y = np.meshgrid(np.arange(160) + 0.5, np.arange(120) + 0.5)
    square = (x - center[0]) ** 2 + (y - center[1]) ** 2
    grey = np.round(40 + 180 * np.exp(-square / (2 * sigma**2))).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize('sigma', [2.0, 4.0, 9.0])
@pytest.mark.parametrize('center', [(80, 60), (80.3, 60.7), (50.4, 35.3), (101.75, 70.1)])
def test_a_blob_is_found_where_it_is(center: tuple[float, float], sigma: float) -> None:
    features = create_extractor('sift')(blob(center, sigma))
    assert_allclose(features.keypoints[0], center, atol=0.06)


def test_the_place_is_the_same_with_an_older_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV before 4.8 knows no precise upscaling; its own positions are off by a quarter."""
    create = cv2.SIFT_create

    def older(**options: Any) -> Any:
        if 'enable_precise_upscale' in options:
            raise cv2.error('invalid keyword argument')
        return create(**options)

    monkeypatch.setattr(cv2, 'SIFT_create', older)
    for center in ((80.0, 60.0), (80.3, 60.7), (50.5, 33.25)):
        features = create_extractor('sift')(blob(center, 4))
        assert_allclose(features.keypoints[0], center, atol=0.06)


def test_descriptors_are_the_roots_of_opencv_s(picture: Image) -> None:
    """The same keypoints, described by OpenCV; L1 norm, then the square root, in float64."""
    extractor = SiftExtractor(SiftConfig(max_keypoints=200))
    features = extractor(picture)
    points, sift = extractor._sift.detectAndCompute(to_grey(picture), None)
    root = np.sqrt(sift.astype(float) / sift.astype(float).sum(axis=1, keepdims=True))
    described = {
        (np.float32(p.response), tuple(d)) for p, d in zip(points, root.round(4), strict=True)
    }
    assert len(features) == 200
    for score, descriptor in zip(features.scores, features.descriptors, strict=True):
        assert min(
            np.abs(np.array(other) - descriptor).max()
            for response, other in described
            if response == score
        ) < 1e-3  # fmt: skip


def test_the_strongest_are_kept(picture: Image) -> None:
    many, few = (create_extractor('sift', max_keypoints=n)(picture) for n in (5000, 50))
    assert len(few) == 50 < len(many)
    assert_array_equal(few.scores, many.scores[:50])
    everywhere = {tuple(place) for place in many.keypoints[many.scores >= few.scores[-1]]}
    assert {tuple(place) for place in few.keypoints} <= everywhere


def test_a_large_picture_is_scaled_down_and_its_keypoints_back(picture: Image) -> None:
    """Twice the pixels of a picture, taken back to its size: the same keypoints, twice as far."""
    large = np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1)
    plain = create_extractor('sift')(picture)
    scaled = create_extractor('sift', max_image_size=320)(large)
    assert len(scaled) == len(plain)
    assert_allclose(scaled.keypoints, 2 * plain.keypoints, atol=1e-4)
    assert_allclose(scaled.pixel_sigma, 2 * plain.pixel_sigma, rtol=1e-5)
    assert_array_equal(scaled.descriptors, plain.descriptors)


def test_an_odd_size_is_scaled_along_each_axis(picture: Image) -> None:
    """A size that does not divide: places agree with those of the picture as it is."""
    image = picture[:, :317]
    scaled = create_extractor('sift', max_image_size=211)(image)
    for center in ((80.3, 60.7), (120.0, 90.5)):
        features = create_extractor('sift', max_image_size=101)(blob(center, 6))
        assert_allclose(features.keypoints[0], center, atol=0.15)
    assert_contract(scaled, create_extractor('sift'), image)


def test_a_low_threshold_finds_more(picture: Image) -> None:
    faint = np.clip(picture / 8 + 100, 0, 255).astype(np.uint8)
    counts = [
        len(create_extractor('sift', contrast_threshold=t)(faint)) for t in (0.04, 0.01, 0.004)
    ]
    assert counts[0] < counts[1] < counts[2]


def test_larger_regions_are_less_certain(picture: Image) -> None:
    """The floor, and a tenth of the diameter that OpenCV gives."""
    extractor = SiftExtractor(SiftConfig(max_keypoints=5000))
    features = extractor(picture)
    points = extractor._sift.detect(to_grey(picture), None)
    expected = np.sort([np.hypot(0.3, 0.1 * point.size) for point in points])
    assert_allclose(np.sort(features.pixel_sigma), expected, rtol=1e-5)
    assert features.pixel_sigma.min() >= 0.3


def test_features_of_shapes_that_do_not_agree() -> None:
    one = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=r'features have shapes .*they must be'):
        Features(np.zeros((1, 2), np.float32), one, np.zeros((2, 8), np.float32), one, one)

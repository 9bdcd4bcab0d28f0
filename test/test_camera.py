# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every camera model against itself, finite differences, OpenCV and COLMAP."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.testing import assert_allclose
import numpy.typing as npt
import pytest

from feat_ros.camera import Camera, MODELS
from feat_ros.errors import CameraError

Float = npt.NDArray[np.float64]

# Parameters as calibrations have them.
CAMERAS = {
    'SIMPLE_PINHOLE': Camera('SIMPLE_PINHOLE', 640, 480, (400, 318.6, 255.3)),
    'PINHOLE': Camera('PINHOLE', 640, 480, (400, 410, 318.6, 255.3)),
    'SIMPLE_RADIAL': Camera('SIMPLE_RADIAL', 1024, 768, (700, 508, 390, -0.05)),
    'RADIAL': Camera('RADIAL', 1024, 768, (700, 508, 390, 0.06, -0.11)),
    'OPENCV': Camera('OPENCV', 640, 480, (400, 410, 318.6, 255.3, -0.28, 0.07, 1e-3, -5e-4)),
    'FULL_OPENCV': Camera(
        'FULL_OPENCV',
        640,
        480,
        (517.3, 516.5, 318.6, 255.3, 0.26, -0.95, -0.005, 0.003, 1.16, 0.01, -0.02, 0.03),
    ),
    'OPENCV_FISHEYE': Camera(
        'OPENCV_FISHEYE', 848, 800, (286, 287, 420, 400, -0.006, 0.049, -0.046, 0.009)
    ),
}
ALL = pytest.mark.parametrize('camera', CAMERAS.values(), ids=CAMERAS)
PERSPECTIVE = [camera for name, camera in CAMERAS.items() if name != 'OPENCV_FISHEYE']


def _pixels(camera: Camera) -> Float:
    """Return pixels all over the image with its corners and centre."""
    x, y = np.meshgrid(np.linspace(0, camera.width, 41), np.linspace(0, camera.height, 31))
    return np.vstack([np.column_stack([x.ravel(), y.ravel()]), camera.center_xy])


def _points(camera: Camera) -> Float:
    """Return points in front of the camera that its image shows, 0.3 to 30 m away."""
    rays = camera.unproject(_pixels(camera))
    distance = np.random.default_rng(0).uniform(0.3, 30, (len(rays), 1))
    return np.asarray(distance * rays)


def _intrinsics(camera: Camera, shift: float = 0.0) -> Float:
    k = np.diag([*camera.focal_xy, 1.0])
    k[:2, 2] = camera.center_xy + shift
    return k


def test_every_model_is_tried() -> None:
    assert CAMERAS.keys() == MODELS.keys()
    assert all(camera.model == name for name, camera in CAMERAS.items())


@ALL
def test_project_undoes_unproject(camera: Camera) -> None:
    pixels = _pixels(camera)
    rays = camera.unproject(pixels)
    assert_allclose(np.linalg.norm(rays, axis=1), 1, rtol=1e-14)
    assert_allclose(camera.project(3.7 * rays), pixels, rtol=0, atol=1e-9)


@ALL
def test_jacobian_agrees_with_finite_differences(camera: Camera) -> None:
    near_axis = np.array([[0, 0, 2], [1e-12, -1e-12, 2], [1e-7, 0, 2]])
    points = np.vstack([_points(camera), near_axis])
    pixels, jacobian = camera.project_with_jacobian(points)
    assert (pixels == camera.project(points)).all()
    numeric = np.empty((len(points), 2, 3))
    step = 1e-6 * np.linalg.norm(points, axis=1, keepdims=True)
    for i in range(3):
        moved = step * np.eye(3)[i]
        difference = camera.project(points + moved) - camera.project(points - moved)
        numeric[:, :, i] = difference / (2 * step)
    # Both scaled by the distance, so that near and far points count alike.
    scale = (step / 1e-6)[..., None]
    assert_allclose(jacobian * scale, numeric * scale, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize('camera', PERSPECTIVE, ids=lambda camera: camera.model)
def test_perspective_models_agree_with_opencv(camera: Camera) -> None:
    """OpenCV counts from the middle of the first pixel, we from its corner."""
    points = _points(camera)
    zero = np.zeros(3)
    opencv, _ = cv2.projectPoints(
        points, zero, zero, _intrinsics(camera, shift=-0.5), camera.distortion
    )
    assert_allclose(camera.project(points), opencv[:, 0] + 0.5, rtol=0, atol=1e-9)


def test_the_fisheye_agrees_with_opencv() -> None:
    camera = CAMERAS['OPENCV_FISHEYE']
    points = _points(camera)
    points = points[points[:, 2] > 1e-3]
    zero = np.zeros(3)
    opencv, _ = cv2.fisheye.projectPoints(
        points[:, None], zero, zero, _intrinsics(camera, shift=-0.5), camera.distortion
    )
    assert_allclose(camera.project(points), opencv[:, 0] + 0.5, rtol=0, atol=1e-9)


@ALL
def test_all_models_agree_with_colmap_both_ways(camera: Camera) -> None:
    pycolmap = pytest.importorskip('pycolmap')
    width, height = camera.size_wh
    theirs = pycolmap.Camera(
        model=camera.model, width=width, height=height, params=list(camera.params)
    )
    points = _points(camera)
    points = points[points[:, 2] > 0.1]
    pixels = camera.project(points)
    assert_allclose(pixels, theirs.img_from_cam(points), rtol=0, atol=1e-9)
    rays = camera.unproject(pixels)
    # COLMAP stops its inversion at about this error.
    assert_allclose(rays[:, :2] / rays[:, 2:], theirs.cam_from_img(pixels), rtol=0, atol=1e-6)


def test_the_first_pixel_has_its_centre_at_one_half() -> None:
    """Mirror the image of an ideal camera: x becomes width - x, for pixel centres too."""
    camera, mirrored = (Camera('SIMPLE_PINHOLE', 7, 5, (4, cx, 2.5)) for cx in (3, 7 - 3))
    pixels = np.array([[0.5, 0.5], [6.5, 4.5]])
    rays = camera.unproject(pixels)
    assert_allclose(mirrored.project(rays * [-1, 1, 1]), [[6.5, 0.5], [0.5, 4.5]], atol=1e-12)


@ALL
def test_what_cannot_be_imaged_is_nan(camera: Camera) -> None:
    nan, inf = np.nan, np.inf
    bad = [[0.0, 0, 0], [0, 0, -1], [nan, 0, 1], [0, nan, 1], [0, 0, nan]]
    if not camera.is_fisheye:
        bad += [[0, 0, -1e-9], [1, 2, -3], [1, 1, 0], [1, 0, 1e-12], [inf, 0, 1]]
    pixels, jacobian = camera.project_with_jacobian(np.array([*bad, [0, 0, 1]]))
    assert np.isnan(pixels[:-1]).all()
    assert_allclose(pixels[-1], camera.center_xy)
    assert np.isfinite(jacobian[-1]).all()
    cx, cy = camera.center_xy
    rays = camera.unproject(np.array([[nan, 3], [3, nan], [cx, cy]]))
    assert np.isnan(rays[:2]).any(axis=1).all()
    assert rays[2].tolist() == [0, 0, 1]


def test_the_fisheye_sees_behind_itself_but_not_straight_back() -> None:
    camera = Camera('OPENCV_FISHEYE', 2000, 2000, (300, 300, 1000, 1000, 0, 0, 0, 0))
    angle = np.radians([30, 90, 135, 179])
    points = np.column_stack([np.sin(angle), np.zeros(4), np.cos(angle)])
    # Equidistant: the radius is the angle.
    assert_allclose(camera.project(points), np.column_stack([1000 + 300 * angle, np.full(4, 1e3)]))
    assert_allclose(camera.unproject(camera.project(points)), points, atol=1e-12)
    assert np.isnan(camera.project([[0, 0, -2]])).all()
    assert np.isnan(camera.unproject([[1000 + 300 * 3.2, 1000]])).all()


def test_a_strongly_distorted_model_does_not_fold_over() -> None:
    """With k1 = -0.3 the radius r - 0.3 r^3 grows until r^2 = 1 / 0.9, then comes back."""
    camera = Camera('RADIAL', 640, 480, (300, 320, 240, -0.3, 0))
    limit = np.sqrt(1 / 0.9)
    points = np.array([[0.99 * limit, 0, 1], [1.01 * limit, 0, 1], [0, -1.5, 1], [1.8, 0, 1]])
    zero = np.zeros(3)
    opencv = cv2.projectPoints(points, zero, zero, _intrinsics(camera), camera.distortion)[0][:, 0]
    # The formula itself would show all four.
    assert camera.contains(opencv).all()
    assert np.isnan(camera.project(points)).any(axis=1).tolist() == [False, True, True, True]
    largest = 300 * limit * (1 - 0.3 * limit**2)
    rays = camera.unproject([[320 + 0.999 * largest, 240], [320 + 1.001 * largest, 240]])
    assert np.isnan(rays).any(axis=1).tolist() == [False, True]
    assert_allclose(camera.project(rays[:1]), [[320 + 0.999 * largest, 240]], atol=1e-9)


def test_a_strongly_distorted_fisheye_does_not_fold_over() -> None:
    camera = Camera('OPENCV_FISHEYE', 640, 480, (300, 300, 320, 240, -0.1, 0, 0, 0))
    limit = np.sqrt(1 / 0.3)
    angle = limit * np.array([0.99, 1.01, 1.3])
    points = np.column_stack([np.zeros(3), np.sin(angle), np.cos(angle)])
    assert np.isnan(camera.project(points)).any(axis=1).tolist() == [False, True, True]
    largest = 300 * limit * (1 - 0.1 * limit**2)
    pixels = np.array([[320, 240 + f * largest] for f in (0.9999, 1.001)])
    rays = camera.unproject(pixels)
    assert np.isnan(rays).any(axis=1).tolist() == [False, True]
    assert_allclose(camera.project(rays[:1]), pixels[:1], atol=1e-9)


def test_a_rational_model_ends_at_its_pole() -> None:
    """With k4 = -1 the radius r / (1 - r^2) is infinite at one and negative behind."""
    camera = Camera('FULL_OPENCV', 640, 480, (30, 30, 320, 240, 0, 0, 0, 0, 0, -1, 0, 0))
    pixels = camera.project(np.array([[0.5, 0, 1], [1.01, 0, 1], [2, 0, 1]]))
    assert_allclose(pixels[0], [320 + 30 * 0.5 / 0.75, 240])
    assert np.isnan(pixels[1:]).all()
    grid = _pixels(camera)
    assert_allclose(camera.project(camera.unproject(grid)), grid, rtol=0, atol=1e-9)


def test_a_model_that_shrinks_from_the_start_images_only_its_axis() -> None:
    camera = Camera('SIMPLE_RADIAL', 640, 480, (300, 320, 240, -1e9))
    pixels = camera.project(np.array([[0, 0, 1], [0.01, 0, 1]]))
    assert pixels[0].tolist() == [320, 240]
    assert np.isnan(pixels[1]).all()


@pytest.mark.parametrize(
    'params', [(300, 300, 320, 240, *k) for k in [(5, 0, 0, 0), (-1, 0.5, 0.02, 0.02)]]
)
def test_newton_never_returns_a_wrong_ray(params: tuple[float, ...]) -> None:
    camera = Camera('OPENCV', 640, 480, params)
    pixels = _pixels(camera)
    rays = camera.unproject(pixels)
    found = ~np.isnan(rays).any(axis=1)
    assert found.mean() > 0.9
    assert_allclose(camera.project(rays[found]), pixels[found], rtol=0, atol=1e-6)


def test_a_pinhole_stops_where_it_projects_no_more() -> None:
    """At 88 degrees a pixel spans metres; both directions leave such rays out."""
    camera = Camera('SIMPLE_PINHOLE', 640, 480, (10, 320, 240))
    assert np.isnan(camera.unproject([[0, 240]])).all()
    assert np.isnan(camera.project([[-32, 0, 1]])).all()
    assert_allclose(camera.unproject([[320 - 100, 240]])[0], np.array([-10, 0, 1]) / 101**0.5)


@ALL
def test_no_points_are_no_error(camera: Camera) -> None:
    pixels, jacobian = camera.project_with_jacobian(np.zeros((0, 3)))
    assert (pixels.shape, jacobian.shape) == ((0, 2), (0, 2, 3))
    assert camera.unproject(np.zeros((0, 2))).shape == (0, 3)
    assert camera.contains(np.zeros((0, 2))).shape == (0,)


@ALL
def test_inputs_are_left_alone(camera: Camera) -> None:
    points, pixels = _points(camera), _pixels(camera)
    points.flags.writeable = pixels.flags.writeable = False
    camera.project(points)
    camera.unproject(pixels)


def test_the_image_ends_before_its_last_border() -> None:
    camera = CAMERAS['PINHOLE']
    inside = np.array([[0, 0], [639.5, 479.5]])
    outside = np.array([[640, 5], [5, 480], [-0.1, 5], [5, -0.1], [np.nan, 5], [5, np.nan]])
    assert camera.contains(inside).all()
    assert not camera.contains(outside).any()


@ALL
def test_words_and_back(camera: Camera) -> None:
    again = Camera.from_words(camera.to_words().split())
    assert again == camera
    assert hash(again) == hash(camera)


def test_a_line_of_colmap() -> None:
    camera = Camera.from_words(['PINHOLE', '1226', '370', '707.1', '708.2', '601.9', '183.1'])
    assert camera == Camera('PINHOLE', 1226, 370, (707.1, 708.2, 601.9, 183.1))
    assert camera.focal_xy.tolist() == [707.1, 708.2]
    assert camera.center_xy.tolist() == [601.9, 183.1]
    assert camera.size_wh == (1226, 370)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('', "camera '' is cut short: write MODEL width height params..."),
        ('PINHOLE 640 480', "camera 'PINHOLE 640 480' is cut short"),
        ('PINHOLE 640 480 a b c d', 'has a bad number: could not convert string to float'),
        ('PINHOLE 640.5 480 1 1 1 1', 'has a bad number: invalid literal for int()'),
        (
            'PINHOEL 640 480 1 1 1 1',
            "unknown camera model 'PINHOEL'; choose one of: SIMPLE_PINHOLE, PINHOLE, ",
        ),
        (
            'PINHOLE 640 480 400 320 240',
            'camera model PINHOLE has 3 parameters: it needs 4 (fx fy cx cy)',
        ),
        ('PINHOLE 0 480 1 1 1 1', 'camera size 0x480 is not positive'),
        ('PINHOLE 640 -1 1 1 1 1', 'camera size 640x-1 is not positive'),
        ('PINHOLE 640 480 400 400 nan 240', 'camera parameter cx is nan: it must be finite'),
        ('RADIAL 640 480 400 320 240 inf 0', 'camera parameter k1 is inf: it must be finite'),
        ('PINHOLE 640 480 400 0 320 240', 'focal length fy is 0.0: it must be positive'),
        ('RADIAL 640 480 -400 320 240 0 0', 'focal length f is -400.0: it must be positive'),
    ],
)
def test_a_camera_that_cannot_be_is_refused(words: str, message: str) -> None:
    with pytest.raises(CameraError) as error:
        Camera.from_words(words.split())
    assert message in str(error.value)


@pytest.mark.parametrize('params', [[400, 400, 320, 240], np.array([400, 400, 320, 240])])
def test_parameters_may_come_as_any_sequence(params: Any) -> None:
    camera = Camera('PINHOLE', 640, 480, params)
    assert camera == Camera('PINHOLE', 640, 480, (400.0, 400.0, 320.0, 240.0))
    assert camera.to_words() == 'PINHOLE 640 480 400.0 400.0 320.0 240.0'

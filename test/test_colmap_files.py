# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""COLMAP models, query lists and pose lists: what pycolmap writes, and what people write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import struct
from typing import Any

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from feat_ros.camera import Camera, MODELS
from feat_ros.colmap_files import (
    format_poses,
    PosedImage,
    read_colmap_model,
    read_names,
    read_poses,
    read_queries,
    select_images,
)
from feat_ros.errors import CameraError, DataError, FeatRosError
from feat_ros.geometry import Rigid3d, so3_exp

CAMERAS = '# cameras\n1 PINHOLE 640 480 400 410 320 240\n7 SIMPLE_PINHOLE 320 240 200 160 120\n'
IMAGES = """# Image list with two lines of data per image:
#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME
2 1 0 0 0 0.5 -1 2 1 b.png
10.5 20.5 4 11 21 -1 12 22 3 13 23 4
1 0 1 0 0 1 2 3 7 a.png

"""


def write_model(folder: Path, cameras: str = CAMERAS, images: str = IMAGES) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / 'cameras.txt').write_text(cameras)
    (folder / 'images.txt').write_text(images)
    return folder


def assert_same(images: list[PosedImage], others: list[PosedImage]) -> None:
    assert [image.name for image in images] == [image.name for image in others]
    for image, other in zip(images, others, strict=True):
        assert image.camera == other.camera
        assert_allclose(image.cam_from_map.rotation, other.cam_from_map.rotation, atol=1e-14)
        assert_array_equal(image.cam_from_map.translation, other.cam_from_map.translation)
        assert_array_equal(image.points, other.points)
        assert image.points.dtype == other.points.dtype == np.int64


def test_what_every_column_means(tmp_path: Path) -> None:
    a, b = read_colmap_model(str(write_model(tmp_path)))
    assert (a.name, b.name) == ('a.png', 'b.png')
    assert a.camera == Camera('SIMPLE_PINHOLE', 320, 240, (200, 160, 120))
    assert b.camera == Camera('PINHOLE', 640, 480, (400, 410, 320, 240))
    assert a.cam_from_map.rotation.tolist() == [[1, 0, 0], [0, -1, 0], [0, 0, -1]]
    assert b.cam_from_map.translation.tolist() == [0.5, -1, 2]
    assert (a.points.tolist(), b.points.tolist()) == ([], [3, 4])


LAYOUTS = 'lines-after cut-end lines-before lines-between comment crlf tabs wide'


@pytest.mark.parametrize(
    'change',
    [
        lambda text: text + '\n\n',
        lambda text: text.rstrip('\n'),
        lambda text: '\n\n\n' + text,
        lambda text: text.replace('1 0 1 0', '\n\n1 0 1 0'),
        lambda text: text.replace('1 0 1 0', '# a comment\n1 0 1 0'),
        lambda text: text.replace('\n', '\r\n'),
        lambda text: text.replace(' ', '\t'),
        lambda text: text.replace('2 1 0', '2  1   0'),
    ],
    ids=LAYOUTS.split(),
)
def test_the_same_model_in_other_layouts(tmp_path: Path, change: Callable[[str], str]) -> None:
    expected = read_colmap_model(write_model(tmp_path / 'plain'))
    text = change(IMAGES)
    assert text != IMAGES
    assert_same(read_colmap_model(write_model(tmp_path / 'other', images=text)), expected)


def test_images_without_points_between_empty_lines(tmp_path: Path) -> None:
    images = '\n'.join(f'{n} 1 0 0 0 {n} 0 0 1 {n}.png\n\n\n' for n in range(1, 6))
    found = read_colmap_model(write_model(tmp_path, images=images))
    assert [image.name for image in found] == [f'{n}.png' for n in range(1, 6)]


def test_names_may_have_spaces_and_folders(tmp_path: Path) -> None:
    images = '1 1 0 0 0 0 0 0 1 day 1/left camera/übung 1.png\n\n'
    (image,) = read_colmap_model(write_model(tmp_path, images=images))
    assert image.name == 'day 1/left camera/übung 1.png'


# ---------------------------------------------------------------- pycolmap


@pytest.fixture(scope='module')
def reconstruction() -> Any:
    pycolmap = pytest.importorskip('pycolmap')
    options = pycolmap.SyntheticDatasetOptions()
    options.num_frames_per_rig, options.num_points3D = 4, 40
    options.num_points2D_without_point3D = 5
    return pycolmap.synthesize_dataset(options)


def test_pycolmap_writes_the_same_as_text_and_binary(tmp_path: Path, reconstruction: Any) -> None:
    for kind in ('text', 'binary'):
        (tmp_path / kind).mkdir()
        getattr(reconstruction, f'write_{kind}')(tmp_path / kind)
    text, binary = (read_colmap_model(tmp_path / kind) for kind in ('text', 'binary'))
    assert_same(text, binary)
    images = sorted(reconstruction.images.values(), key=lambda image: image.name)
    for image, theirs in zip(text, images, strict=True):
        pose, camera = theirs.cam_from_world(), theirs.camera
        assert image.name == theirs.name
        assert_allclose(image.cam_from_map.rotation, pose.rotation.matrix(), atol=1e-14)
        assert_allclose(image.cam_from_map.translation, pose.translation, atol=1e-14)
        assert (image.camera.model, image.camera.size_wh) == (
            camera.model.name,
            (camera.width, camera.height),
        )
        assert_array_equal(image.camera.params, camera.params)
        seen = {p.point3D_id for p in theirs.points2D if p.has_point3D()}
        assert set(image.points.tolist()) == seen
        assert len(seen) < len(theirs.points2D)


@pytest.mark.parametrize('model', MODELS)
def test_every_camera_model_by_its_number(tmp_path: Path, model: str) -> None:
    """Binary files name a camera model by a number; the image has no keypoints at all."""
    pycolmap = pytest.importorskip('pycolmap')
    params = [300.0 + n for n in range(len(MODELS[model]))]
    reconstruction = pycolmap.Reconstruction()
    reconstruction.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=3, model=model, width=640, height=480, params=params)
    )
    reconstruction.add_image_with_trivial_frame(
        pycolmap.Image(name='one image.png', camera_id=3, image_id=5),
        pycolmap.Rigid3d(pycolmap.Rotation3d([0.1, 0.2, 0.3, 0.9]), [1, 2, 3]),
    )
    reconstruction.write_binary(tmp_path)
    (image,) = read_colmap_model(tmp_path)
    assert image.camera == Camera(model, 640, 480, tuple(params))
    assert image.name == 'one image.png'
    assert image.cam_from_map.translation.tolist() == [1, 2, 3]
    assert len(image.points) == 0


@pytest.mark.parametrize('name', ['cameras.bin', 'images.bin'])
def test_a_binary_file_that_was_cut_anywhere(
    tmp_path: Path, reconstruction: Any, name: str
) -> None:
    reconstruction.write_binary(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for length in {*range(0, 200, 7), len(whole) // 2, len(whole) - 1} & {*range(len(whole))}:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf'{name} is cut off after {length} bytes: copy it'):
            read_colmap_model(tmp_path)
    path.write_bytes(whole + b'12')
    with pytest.raises(DataError, match=f'{name} has 2 bytes too many'):
        read_colmap_model(tmp_path)


def binary_model(
    folder: Path,
    camera: bytes = struct.pack('<IiQQ4d', 1, 1, 64, 48, 40, 41, 32, 24),
    image: bytes = struct.pack('<I7dI', 2, 1, 0, 0, 0, 0.5, -1, 2, 1),
    name: bytes = b'a.png',
) -> Path:
    one = struct.pack('<Q', 1)
    (folder / 'cameras.bin').write_bytes(one + camera)
    points = struct.pack('<Qddqddq', 2, 1.5, 2.5, 9, 3.5, 4.5, -1)
    (folder / 'images.bin').write_bytes(one + image + name + b'\0' + points)
    return folder


def test_binary_model_byte_by_byte(tmp_path: Path) -> None:
    (image,) = read_colmap_model(binary_model(tmp_path))
    assert image.camera == Camera('PINHOLE', 64, 48, (40, 41, 32, 24))
    assert image.cam_from_map.translation.tolist() == [0.5, -1, 2]
    assert (image.name, image.points.tolist()) == ('a.png', [9])


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        ({'camera': struct.pack('<IiQQ', 1, 8, 64, 48)}, CameraError,
         r'cameras\.bin has camera model number 8; known are: 0 SIMPLE_PINHOLE, 1 PINHOLE'),
        ({'camera': struct.pack('<IiQQ3d', 1, 0, 64, 48, -5, 1, 1)}, CameraError,
         r'camera 1 of .*cameras\.bin: focal length f is -5\.0'),
        ({'image': struct.pack('<I7dI', 2, 1, 0, 0, 0, 0, 0, 0, 4)}, DataError,
         r'image 2 of .*images\.bin names camera 4, which cameras\.bin does not have'),
        ({'image': struct.pack('<I7dI', 2, 0, 0, 0, 0, 0, 0, 0, 1)}, DataError,
         r'image 2 of .*images\.bin has a bad pose: quaternion'),
        ({'name': b'\xff\xfe.png'}, DataError, r"has name b'\\xff\\xfe\.png': it must be UTF-8"),
    ],
)  # fmt: skip
def test_impossible_binary_models(
    tmp_path: Path, change: dict[str, bytes], error: type[FeatRosError], match: str
) -> None:
    binary_model(tmp_path, **change)
    with pytest.raises(error, match=match):
        read_colmap_model(tmp_path)


def test_binary_model_without_cameras(tmp_path: Path) -> None:
    (binary_model(tmp_path) / 'cameras.bin').unlink()
    with pytest.raises(DataError, match=r'cameras\.bin cannot be read: No such file'):
        read_colmap_model(tmp_path)


# ---------------------------------------------------------------- malformed text

IMAGE = '1 1 0 0 0 0 0 0 1 a.png\n\n'


@pytest.mark.parametrize(
    ('cameras', 'images', 'match'),
    [
        (CAMERAS, '', 'has no images'),
        (CAMERAS, '# only\n# comments\n', 'has no images'),
        (CAMERAS, '1 1 0 0 0 0 0 0 1\n\n', r'images\.txt:1 has 9 columns: an image needs ID QW'),
        (CAMERAS, '#\n\n1 1 0 0\n', r'images\.txt:3 has 4 columns'),
        (CAMERAS, '1 1 0 0 0 0 0 0 5 a.png\n\n', r'images\.txt:1 names camera 5, which cameras'),
        (CAMERAS, '1 1 0 x 0 0 0 0 1 a.png\n\n', r"images\.txt:1 has a bad pose: .*'x'"),
        (CAMERAS, '1 0 0 0 0 0 0 0 1 a.png\n\n', r'images\.txt:1 has a bad pose: quaternion'),
        (CAMERAS, '1 nan 0 0 0 0 0 0 1 a.png\n\n', r'images\.txt:1 has a bad pose: quaternion'),
        (CAMERAS, '1 1 0 0 0 0 inf 0 1 a.png\n\n', r'images\.txt:1 has a bad pose: translation'),
        (CAMERAS, IMAGE.strip() + '\n1 2\n', r'the line after .*images\.txt:1 is not a list'),
        (CAMERAS, IMAGE.strip() + '\n2 1 0 0.5 0 0 0 0 1 b.png\n',
         r'the line after .*images\.txt:1 is not a list of X Y POINT3D_ID: leave it empty or'),
        (CAMERAS, IMAGE.strip() + '\n1 2 18446744073709551615\n', r'the line after .*:1 is not'),
        (CAMERAS, IMAGE + '2' + IMAGE[1:], r"has image 'a\.png' twice"),
        ('1\n', IMAGE, r'cameras\.txt:1: camera .* is cut short: write MODEL width height'),
        ('1 PINHOLE 640 480 1 2 3\n', IMAGE, r'cameras\.txt:1: camera model PINHOLE has 3 param'),
        ('\n1 FOV 640 480 1 2 3\n', IMAGE, r"cameras\.txt:2: unknown camera model 'FOV'; choose"),
        ('1 PINHOLE 640 480 0 1 2 3\n', IMAGE, r'cameras\.txt:1: focal length fx is 0\.0'),
        ('1 PINHOLE a 480 0 1 2 3\n', IMAGE, r"cameras\.txt:1: .* bad number: .*'a'"),
    ],
)  # fmt: skip
def test_malformed_models(tmp_path: Path, cameras: str, images: str, match: str) -> None:
    with pytest.raises((DataError, CameraError), match=match) as caught:
        read_colmap_model(write_model(tmp_path, cameras, images))
    assert '\n' not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'no COLMAP model in .*nowhere: it needs cameras\.txt'):
        read_colmap_model(tmp_path / 'nowhere')
    write_model(tmp_path)
    (tmp_path / 'images.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match=r'images\.txt is not a text file'):
        read_colmap_model(tmp_path)
    write_model(tmp_path)
    (tmp_path / 'cameras.txt').unlink()
    with pytest.raises(DataError, match=r'cameras\.txt cannot be read: No such file'):
        read_colmap_model(tmp_path)
    (tmp_path / 'cameras.txt').mkdir()
    with pytest.raises(DataError, match=r'cameras\.txt cannot be read: Is a directory'):
        read_colmap_model(tmp_path)


# ---------------------------------------------------------------- lists


def test_select_images_keeps_the_order_of_the_model(tmp_path: Path) -> None:
    images = read_colmap_model(write_model(tmp_path))
    chosen = select_images(images, ['b.png', 'a.png', 'b.png'], 'the model')
    assert [image.name for image in chosen] == ['a.png', 'b.png']
    assert [image.name for image in select_images(images, ['b.png'], 'it')] == ['b.png']
    with pytest.raises(DataError, match=r"2 of 3 listed images are not in it, .* 'c\.png'"):
        select_images(images, ['d.png', 'a.png', 'c.png'], 'it')


def test_names(tmp_path: Path) -> None:
    path = tmp_path / 'names.txt'
    path.write_text('# a list\n\n b/1.png \nwith space.png\n')
    assert read_names(path) == ['b/1.png', 'with space.png']
    path.write_text('# nothing\n')
    with pytest.raises(DataError, match=r'names\.txt names no image'):
        read_names(path)
    with pytest.raises(DataError, match=r'nowhere cannot be read: No such file'):
        read_names(tmp_path / 'nowhere')


def test_queries(tmp_path: Path) -> None:
    path = tmp_path / 'queries.txt'
    path.write_text('# queries\nb.png PINHOLE 64 48 40 41 32 24\n\na.png SIMPLE_PINHOLE 2 1 3 1 0')
    assert read_queries(path) == {
        'b.png': Camera('PINHOLE', 64, 48, (40, 41, 32, 24)),
        'a.png': Camera('SIMPLE_PINHOLE', 2, 1, (3, 1, 0)),
    }
    assert list(read_queries(path)) == ['b.png', 'a.png']


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('', r'has no query: write lines "name MODEL width height params'),
        ('a.png\n', r'queries\.txt:1: camera .* is cut short'),
        ('\na.png PINHOLE 64 48 1 2\n', r'queries\.txt:2: camera model PINHOLE has 2 parameters'),
        ('a PINHOLE 4 4 1 1 1 1\na PINHOLE 4 4 1 1 1 1', r"queries\.txt:2 has query 'a' a second"),
        ('a PINHOLE 4 4 nan 1 1 1\n', r'queries\.txt:1: camera parameter fx is nan'),
    ],
)
def test_malformed_queries(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / 'queries.txt'
    path.write_text(text)
    with pytest.raises(FeatRosError, match=match):
        read_queries(path)


def test_poses_come_back(tmp_path: Path) -> None:
    """Also from far away: a map in UTM coordinates keeps its micrometres."""
    rng = np.random.default_rng(0)
    poses = {
        f'{n}.png': Rigid3d(so3_exp(rng.normal(size=3) * 2), rng.normal(size=3) * 10.0**n)
        for n in range(7)
    }
    path = tmp_path / 'poses.txt'
    path.write_text(format_poses(poses))
    again = read_poses(path)
    assert list(again) == list(poses)
    for name, pose in poses.items():
        assert_allclose(again[name].rotation, pose.rotation, atol=1e-11)
        assert_allclose(again[name].translation, pose.translation, rtol=1e-11)


def test_columns_of_a_pose_list(tmp_path: Path) -> None:
    path = tmp_path / 'poses.txt'
    path.write_text('# name qw qx qy qz tx ty tz\na.png 0 2 0 0 1 2 3\n')
    pose = read_poses(path)['a.png']
    assert pose.rotation.tolist() == [[1, 0, 0], [0, -1, 0], [0, 0, -1]]
    assert format_poses({'a.png': pose}) == 'a.png 0 1 0 0 1 2 3\n'
    assert format_poses({}) == ''


def test_poses_of_a_model(tmp_path: Path) -> None:
    poses = read_poses(write_model(tmp_path))
    assert poses.keys() == {'a.png', 'b.png'}
    assert poses['b.png'].translation.tolist() == [0.5, -1, 2]


@pytest.mark.parametrize(
    ('line', 'match'),
    [
        ('a.png 1 0 0 0 1 2', r'poses\.txt:2 has 6 numbers of a pose: it needs QW QX QY QZ TX'),
        ('a.png 1 0 0 0 1 2 3 4', r'poses\.txt:2 has 8 numbers'),
        ('a.png', r'poses\.txt:2 has 0 numbers'),
        ('a.png 1 0 0 0 1 2 z', r"poses\.txt:2 has a bad pose: .*'z'"),
        ('a.png 1 0 0 0 nan 2 3', r'poses\.txt:2 has a bad pose: translation .*nan'),
        ('first.png 1 0 0 0 0 0 0', r"poses\.txt:2 has image 'first\.png' a second time"),
    ],
)
def test_malformed_poses(tmp_path: Path, line: str, match: str) -> None:
    path = tmp_path / 'poses.txt'
    path.write_text(f'first.png 1 0 0 0 0 0 0\n{line}\n')
    with pytest.raises(DataError, match=match):
        read_poses(path)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding against PNG bytes written by hand, and every kind of image that is refused."""

from __future__ import annotations

from pathlib import Path
import struct
from typing import Any
import zlib

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from feat_ros.errors import ImageError
from feat_ros.image import check_image, decode_image, read_image, to_grey, write_png
from feat_ros.types import Features

UInt8 = npt.NDArray[np.uint8]


def _picture(height: int = 40, width: int = 60) -> UInt8:
    """Return colours that JPEG keeps: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, np.full_like(x, 30)], axis=-1).astype(np.uint8)


def _png(pixels: npt.NDArray[Any], colour_type: int) -> bytes:
    """Write a PNG as its specification says, without OpenCV."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack('>I', zlib.crc32(kind + body))
        return struct.pack('>I', len(body)) + kind + body + crc

    height, width = pixels.shape[:2]
    bits = 8 * pixels.dtype.itemsize
    header = struct.pack('>IIBBBBB', width, height, bits, colour_type, 0, 0, 0)
    rows = pixels.astype(pixels.dtype.newbyteorder('>')).reshape(height, -1)
    scanlines = b''.join(b'\0' + row.tobytes() for row in rows)
    chunks = (
        chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(scanlines)) + chunk(b'IEND', b'')
    )
    return b'\x89PNG\r\n\x1a\n' + chunks


def _jpeg(image: UInt8, *options: int) -> bytes:
    return bytes(
        cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95, *options])[1]
    )


def _with_segment(jpeg: bytes, body: bytes) -> bytes:
    """Put an application segment where EXIF stands, right behind the start."""
    return jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(body) + 2) + body + jpeg[2:]


def _exif(orientation: int, thumbnail: bytes = b'') -> bytes:
    entry = struct.pack('>HHIHH', 0x0112, 3, 1, orientation, 0)
    return b'Exif\0\0MM\0*\0\0\0\x08\0\x01' + entry + b'\0\0\0\0' + thumbnail


def test_channels_are_red_green_blue() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    decoded = decode_image(_png(image, 2), 'x')
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image)


def test_a_jpeg_keeps_its_colours() -> None:
    image = _picture()
    progressive = _jpeg(image, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    for data in (_jpeg(image), progressive):
        assert np.abs(decode_image(data, 'x').astype(int) - image).mean() < 3


def test_grey_becomes_three_equal_channels() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (7, 5), np.uint8)
    decoded = decode_image(_png(grey, 0), 'x')
    np.testing.assert_array_equal(decoded, np.stack([grey] * 3, axis=-1))
    assert decode_image(bytes(cv2.imencode('.jpg', grey)[1]), 'x').shape == (7, 5, 3)


def test_every_grey_survives_the_way_to_rgb_and_back() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(to_grey(decode_image(_png(grey, 0), 'x')), grey)


def test_grey_is_luma() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    expected = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_grey(image) - expected).max() < 0.51


def test_exif_orientation_is_not_applied() -> None:
    image = _picture(40, 60)
    turned = _with_segment(_jpeg(image), _exif(orientation=6))
    # OpenCV turns it when asked for colour, so the tag is a real one.
    opencv = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert opencv.shape == (60, 40, 3)
    np.testing.assert_array_equal(decode_image(turned, 'x'), decode_image(_jpeg(image), 'x'))


def test_an_end_inside_a_thumbnail_is_not_the_end() -> None:
    thumbnail = _jpeg(_picture(8, 8))
    whole = _with_segment(_jpeg(_picture()), _exif(1, thumbnail))
    assert decode_image(whole, 'x').shape == (40, 60, 3)
    for length in (len(whole) - 1, len(whole) // 2 + len(thumbnail) // 2, len(thumbnail) + 60):
        assert b'\xff\xd9' in whole[:length]
        with pytest.raises(ImageError, match=f'image x is cut off after {length} bytes'):
            decode_image(whole[:length], 'x')


@pytest.mark.parametrize('num_fill', [1, 2, 3])
def test_fill_bytes_before_a_segment_are_stepped_over(num_fill: int) -> None:
    jpeg = _with_segment(_jpeg(_picture()), _exif(1, _jpeg(_picture(8, 8))))
    filled = jpeg[:2] + num_fill * b'\xff' + jpeg[2:]
    np.testing.assert_array_equal(decode_image(filled, 'x'), decode_image(jpeg, 'x'))
    with pytest.raises(ImageError, match='cut off'):
        decode_image(filled[:-30], 'x')


@pytest.mark.parametrize('options', [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_a_jpeg_cut_anywhere_is_refused(options: tuple[int, ...]) -> None:
    jpeg = _jpeg(_picture(), *options)
    for length in [*range(2, len(jpeg), 41), len(jpeg) - 1]:
        with pytest.raises(ImageError, match=f'image x is cut off after {length} bytes: copy it'):
            decode_image(jpeg[:length], 'x')


def test_a_png_cut_anywhere_is_refused() -> None:
    png = _png(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8), 2)
    for length in [*range(8, len(png), 41), len(png) - 1]:
        with pytest.raises(ImageError, match=f'image x is cut off after {length} bytes: copy it'):
            decode_image(png[:length], 'x')


@pytest.mark.parametrize('make', [lambda: _png(_picture(), 2), lambda: _jpeg(_picture())])
def test_what_follows_the_end_does_not_matter(make: Any) -> None:
    data = make()
    longer = decode_image(data + bytes(10_000), 'x')
    np.testing.assert_array_equal(longer, decode_image(data, 'x'))


@pytest.mark.parametrize('extension', ['.bmp', '.ppm', '.tiff'])
def test_formats_without_loss_are_read_too(extension: str) -> None:
    image = _picture()
    data = bytes(cv2.imencode(extension, image[..., ::-1])[1])
    np.testing.assert_array_equal(decode_image(data, 'x'), image)


COLOUR = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'image x is empty: copy it again'),
        (b'not an image at all', 'image x cannot be decoded: it must be a JPEG, PNG or the like'),
        (b'\xff\xd8 neither this', 'image x cannot be decoded'),
        # OpenCV raises by itself on so many pixels.
        (b'P5 1000000 1000000 255\n0', 'image x cannot be decoded'),
        (_png(COLOUR.astype(np.uint16), 2), 'image x is uint16: convert it to 8 bits a channel'),
        (_png(COLOUR[..., 0].astype(np.uint16), 0), 'image x is uint16: convert it to 8 bits'),
        (
            bytes(cv2.imencode('.tiff', COLOUR.astype(np.float32))[1]),
            'image x is float32: convert it to 8 bits',
        ),
        (
            _png(np.zeros((4, 6, 4), np.uint8), 6),
            'image x has an alpha channel: save it as RGB or grey',
        ),
        (_png(np.zeros((4, 6, 2), np.uint8), 4), 'image x has an alpha channel'),
    ],
    ids=['empty', 'text', 'marker', 'huge', 'rgb16', 'grey16', 'float', 'rgba', 'grey+alpha'],
)
def test_what_cannot_be_used_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError) as error:
        decode_image(data, 'x')
    assert message in str(error.value)


def test_a_damaged_png_is_refused() -> None:
    png = bytearray(_png(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8), 2))
    png[len(png) // 2] ^= 0xFF
    with pytest.raises(ImageError, match='image x cannot be decoded'):
        decode_image(bytes(png), 'x')


def test_write_and_read(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (31, 17, 3), np.uint8)
    write_png(tmp_path / 'a.png', image)
    np.testing.assert_array_equal(read_image(tmp_path / 'a.png'), image)
    np.testing.assert_array_equal(read_image(str(tmp_path / 'a.png')), image)


def test_a_written_file_has_its_channels_in_order(tmp_path: Path) -> None:
    """OpenCV's own reader returns blue first."""
    write_png(tmp_path / 'a.png', _picture())
    bgr = cv2.imread(str(tmp_path / 'a.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(bgr[..., ::-1], _picture())


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r'missing\.jpg cannot be read: No such file'):
        read_image(tmp_path / 'missing.jpg')
    with pytest.raises(ImageError, match='cannot be read: Is a directory'):
        read_image(tmp_path)
    with pytest.raises(ImageError, match=r'no/a\.png cannot be written: No such file'):
        write_png(tmp_path / 'no' / 'a.png', _picture())
    (tmp_path / 'empty.jpg').touch()
    with pytest.raises(ImageError, match=r'image .*/empty\.jpg is empty'):
        read_image(tmp_path / 'empty.jpg')
    (tmp_path / 'cut.jpg').write_bytes(_jpeg(_picture())[:100])
    with pytest.raises(ImageError, match=r'image .*/cut\.jpg is cut off after 100 bytes'):
        read_image(tmp_path / 'cut.jpg')


def test_an_rgb_image_passes_the_check() -> None:
    image = _picture()
    assert check_image(image) is image


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((4, 5), np.uint8), r'shape \(4, 5\) and type uint8: it must be \(H, W, 3\)'),
        (np.zeros((4, 5, 4), np.uint8), r'shape \(4, 5, 4\) and type uint8'),
        (np.zeros((1, 4, 5, 3), np.uint8), r'shape \(1, 4, 5, 3\) and type uint8'),
        (np.zeros((4, 5, 3), np.float32), r'shape \(4, 5, 3\) and type float32'),
        ([[1, 2, 3]], r'shape None and type None'),
        (np.zeros((0, 5, 3), np.uint8), r'shape \(0, 5, 3\): it has no pixels'),
    ],
)
def test_other_arrays_do_not_pass(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_image(image)


def _feature_arrays(num: int = 5, dim: int = 8) -> dict[str, Any]:
    arrays = {name: np.zeros(num, np.float32) for name in Features.__dataclass_fields__}
    return {
        **arrays,
        'keypoints': np.zeros((num, 2), np.float32),
        'descriptors': np.zeros((num, dim), np.float32),
    }


@pytest.mark.parametrize('num', [0, 1, 5])
def test_features_have_one_row_a_keypoint(num: int) -> None:
    assert len(Features(**_feature_arrays(num))) == num


@pytest.mark.parametrize('name', Features.__dataclass_fields__)
@pytest.mark.parametrize('shape', [(), (4,), (4, 8), (5, 1, 2), (4, 2), (0,)])
def test_features_whose_shapes_do_not_agree_are_refused(name: str, shape: tuple[int, ...]) -> None:
    arrays = {**_feature_arrays(), name: np.zeros(shape, np.float32)}
    with pytest.raises(ValueError, match='features have shapes'):
        Features(**arrays)


@pytest.mark.parametrize('name', ['scores', 'stability'])
def test_features_refuse_a_column_where_a_row_belongs(name: str) -> None:
    arrays = {**_feature_arrays(), name: np.zeros((5, 1), np.float32)}
    with pytest.raises(ValueError, match=rf"'{name}': \(5, 1\).* they must be .*'{name}': \(5,\)"):
        Features(**arrays)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Raw and compressed image messages against slow conversions written out pixel by pixel."""

from __future__ import annotations

from fractions import Fraction
import struct
import tracemalloc

import cv2
import numpy as np
import pytest

from feat_ros.errors import ImageError
from feat_ros.image import decode_compressed, decode_raw, Image

WIDTH, HEIGHT = 8, 6
PACKED = ['rgb', 'bgr', 'rgba', 'bgra', 'mono']
BAYER = ['rggb', 'bggr', 'gbrg', 'grbg']
YUV422 = {'uyvy': 'uyvy', 'yuv422': 'uyvy', 'yuyv': 'yuyv', 'yuv422_yuy2': 'yuyv'}


def random_samples(bits: int, channels: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**bits, (HEIGHT, WIDTH, channels))


def pad_rows(rows: list[bytes], padding: int) -> bytes:
    return b''.join(row + b'\xa5' * padding for row in rows)


def to_8_bits(value: int, bits: int) -> int:
    return value if bits == 8 else round(Fraction(value, 257))


def decode(
    rows: list[bytes],
    encoding: str,
    *,
    padding: int = 0,
    big: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Image:
    step = len(rows[0]) + padding
    data = pad_rows(rows, padding)
    return decode_raw(data, size[1], size[0], encoding, step, big, 'test')


@pytest.mark.parametrize('padding', [0, 1, 8])
@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('order', PACKED)
@pytest.mark.parametrize('big', [False, True])
def test_packed_encodings(order: str, bits: int, padding: int, big: bool) -> None:
    samples = random_samples(bits)
    names = ['m'] if order == 'mono' else list(order)
    code = 'B' if bits == 8 else '>H' if big else '<H'
    rows, expected = [], np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for y in range(HEIGHT):
        row = b''
        for x in range(WIDTH):
            pixel = dict(zip('rgba', samples[y, x].tolist(), strict=True))
            pixel['m'] = pixel['r']
            row += b''.join(struct.pack(code, pixel[name]) for name in names)
            colours = 'mmm' if order == 'mono' else 'rgb'
            expected[y, x] = [to_8_bits(pixel[name], bits) for name in colours]
        rows.append(row)
    image = decode(rows, f'{order}{bits}', padding=padding, big=big)
    np.testing.assert_array_equal(image, expected)


def test_padded_rows_are_copied_once() -> None:
    height, width, step = 240, 320, 320 * 3 + 64
    data = bytes(height * step)
    tracemalloc.start()
    try:
        image = decode_raw(data, height, width, 'rgb8', step, False, 'test')
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert image.flags.c_contiguous and image.flags.owndata
    assert image.nbytes < peak < 1.5 * image.nbytes


def test_opencv_types_are_grey_and_bgr() -> None:
    grey = random_samples(8, 1).astype(np.uint8)
    bgr = random_samples(8, 3).astype(np.uint8)
    image = decode([row.tobytes() for row in grey], '8UC1')
    np.testing.assert_array_equal(image, np.repeat(grey, 3, axis=2))
    image = decode([row.tobytes() for row in bgr], '8UC3')
    np.testing.assert_array_equal(image, bgr[:, :, ::-1])


def test_sixteen_bits_reach_both_ends() -> None:
    values = np.array([[0, 128, 129, 257, 65406, 65407, 65535, 32896]], '<u2')
    image = decode([values.tobytes()], 'mono16', size=(8, 1))
    assert image[0, :, 0].tolist() == [0, 0, 1, 1, 254, 255, 255, 128]


def slow_demosaic(mosaic: np.ndarray, pattern: str) -> np.ndarray:
    """Average the nearest samples of each colour, inside of the border."""
    y_at, x_at = np.indices((HEIGHT, WIDTH))
    colours = np.array(list(pattern))[2 * (y_at % 2) + x_at % 2]
    out = np.zeros((HEIGHT, WIDTH, 3))
    for y in range(1, HEIGHT - 1):
        for x in range(1, WIDTH - 1):
            for channel, colour in enumerate('rgb'):
                if colours[y, x] == colour:
                    out[y, x, channel] = mosaic[y, x]
                    continue
                near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                far = [(y - 1, x - 1), (y - 1, x + 1), (y + 1, x - 1), (y + 1, x + 1)]
                cells = [c for c in near if colours[c] == colour]
                cells = cells or [c for c in far if colours[c] == colour]
                out[y, x, channel] = np.mean([mosaic[c] for c in cells])
    return out


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', BAYER)
@pytest.mark.parametrize('padding', [0, 6])
def test_bayer(pattern: str, bits: int, padding: int) -> None:
    mosaic = random_samples(bits, 1)[:, :, 0]
    dtype = np.uint8 if bits == 8 else np.dtype('<u2')
    rows = [row.astype(dtype).tobytes() for row in mosaic]
    image = decode(rows, f'bayer_{pattern}{bits}', padding=padding)
    expected = slow_demosaic(mosaic, pattern) / (1 if bits == 8 else 257)
    inner = slice(1, -1)
    error = np.abs(image[inner, inner].astype(float) - expected[inner, inner])
    assert error.max() <= 0.51


@pytest.mark.parametrize('pattern', BAYER)
def test_bayer_of_one_colour_is_that_colour_up_to_the_border(pattern: str) -> None:
    colour = {'r': 200, 'g': 90, 'b': 20}
    rows = [
        bytes(colour[pattern[2 * (y % 2) + x % 2]] for x in range(WIDTH)) for y in range(HEIGHT)
    ]
    image = decode(rows, f'bayer_{pattern}8')
    assert np.unique(image.reshape(-1, 3), axis=0).tolist() == [[200, 90, 20]]


def rgb_of_ycbcr(y: float, cb: float, cr: float) -> list[float]:
    """ITU-R BT.601 from its luma weights, limited range."""
    luma = (y - 16) * 255 / 219
    red = luma + 2 * (1 - 0.299) * (cr - 128) * 255 / 224
    blue = luma + 2 * (1 - 0.114) * (cb - 128) * 255 / 224
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return [min(max(value, 0.0), 255.0) for value in (red, green, blue)]


def check_ycbcr(image: Image, luma: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> None:
    for y in range(HEIGHT):
        for x in range(WIDTH):
            expected = rgb_of_ycbcr(luma[y, x], cb[y, x], cr[y, x])
            assert image[y, x] == pytest.approx(expected, abs=1.6), (y, x)


@pytest.mark.parametrize('padding', [0, 4])
@pytest.mark.parametrize('encoding', YUV422)
def test_yuv422(encoding: str, padding: int) -> None:
    # Within the limited range, so that green is not found from a clipped red or blue.
    samples = random_samples(6, 3) + 100
    luma, cb, cr = np.moveaxis(samples, 2, 0)
    cb, cr = (np.repeat(plane[:, ::2], 2, axis=1) for plane in (cb, cr))
    rows = []
    for y in range(HEIGHT):
        row = b''
        for x in range(0, WIDTH, 2):
            lumas = iter(luma[y, x : x + 2].tolist())
            values = {'u': cb[y, x], 'v': cr[y, x]}
            row += bytes(
                int(next(lumas) if name == 'y' else values[name]) for name in YUV422[encoding]
            )
        rows.append(row)
    check_ycbcr(decode(rows, encoding, padding=padding), luma, cb, cr)


@pytest.mark.parametrize('padding', [0, 4])
@pytest.mark.parametrize('encoding', ['nv12', 'nv21', 'nv24'])
def test_planar_yuv(encoding: str, padding: int) -> None:
    samples = random_samples(6, 3) + 100
    luma, cb, cr = np.moveaxis(samples, 2, 0)
    every = 1 if encoding == 'nv24' else 2
    small = [plane[::every, ::every] for plane in (cb, cr)]
    cb, cr = (plane.repeat(every, axis=0).repeat(every, axis=1) for plane in small)
    step = WIDTH + padding
    data = pad_rows([bytes(row.tolist()) for row in luma], padding)
    for first, second in zip(*(small if encoding != 'nv21' else small[::-1]), strict=True):
        pairs = [int(v) for pair in zip(first, second, strict=True) for v in pair]
        data += bytes(pairs) + b'\xa5' * (padding * 2 // every)
    image = decode_raw(data, HEIGHT, WIDTH, encoding, step, False, 'test')
    check_ycbcr(image, luma, cb, cr)


@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview, np.uint8])
def test_any_bytes_are_taken_and_not_shared(kind: type) -> None:
    data = bytes(range(27))
    given = np.frombuffer(data, np.uint8).copy() if kind is np.uint8 else kind(data)
    image = decode_raw(given, 3, 3, 'rgb8', 9, False, 'test')
    assert image.tobytes() == data
    image[:] = 0
    assert bytes(given) == data


@pytest.mark.parametrize(
    ('encoding', 'size', 'step', 'length', 'message'),
    [
        ('rgb8', (0, 2), 6, 0, 'image cam of rgb8 has size 0x2: it has no pixels'),
        ('rgb8', (2, 0), 6, 0, 'size 2x0: it has no pixels'),
        ('rgb8', (2, 2), 5, 10, 'has step 5: 2 pixels of rgb8 need 6 bytes'),
        ('mono16', (2, 2), 3, 6, 'has step 3: 2 pixels of mono16 need 4 bytes'),
        ('nv12', (4, 2), 2, 6, 'has step 2: 4 pixels of nv12 need 4 bytes'),
        ('rgb8', (2, 2), 6, 11, r'has 11 bytes: 2 rows of step 6 \(2x2 rgb8\) are 12'),
        ('rgb8', (2, 2), 6, 13, 'has 13 bytes: 2 rows of step 6'),
        ('rgb8', (2, 2), 6, 0, 'has 0 bytes: 2 rows of step 6'),
        ('nv12', (4, 2), 4, 8, 'has 8 bytes: 3 rows of step 4'),
        ('nv24', (4, 2), 4, 12, 'has 12 bytes: 6 rows of step 4'),
        ('uyvy', (3, 2), 6, 12, 'uyvy has size 3x2: its width must be even'),
        ('nv21', (3, 2), 3, 9, 'nv21 has size 3x2: its width must be even'),
        ('nv21', (2, 3), 2, 9, 'nv21 has size 2x3: its height must be even'),
        ('bayer_rggb8', (2, 4), 2, 8, 'bayer_rggb8 has size 2x4: its colours need at least 3x3'),
        ('BGR8', (2, 2), 6, 12, "unknown encoding 'BGR8'; known are: rgb8, bgr8, rgba8"),
        ('', (2, 2), 6, 12, "unknown encoding ''; known are: rgb8"),
        ('16UC1', (2, 2), 4, 8, '16UC1, which is depth or plain numbers .* choose the topic'),
        ('32FC1', (2, 2), 8, 16, '32FC1, which is depth or plain numbers'),
    ],
)
def test_what_does_not_fit_is_refused(
    encoding: str, size: tuple[int, int], step: int, length: int, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        decode_raw(bytes(length), size[1], size[0], encoding, step, False, 'cam')


def encode(image: np.ndarray, suffix: str) -> bytes:
    done, data = cv2.imencode(suffix, image)
    assert done
    return bytes(data)


def smooth_rgb() -> np.ndarray:
    image = np.empty((32, 32, 3), np.uint8)
    image[:, :, 0] = np.linspace(200, 240, 32)[:, None]
    image[:, :, 1] = np.linspace(60, 100, 32)
    image[:, :, 2] = 30
    return image


@pytest.mark.parametrize(
    ('image_format', 'suffix', 'is_swapped'),
    [
        ('jpeg', '.jpg', False),
        ('jpg', '.jpg', False),
        ('png', '.png', False),
        ('', '.png', False),
        ('rgb8; jpeg compressed bgr8', '.jpg', False),
        ('bgr8; jpeg compressed bgr8', '.jpg', False),
        ('bgr8;jpeg compressed bgr8', '.jpg', False),
        ('rgb8; png compressed bgr8', '.png', False),
        ('rgba8; png compressed bgr8', '.png', False),
        ('yuv422; jpeg compressed bgr8', '.jpg', False),
        ('bgr8; tiff compressed ', '.tiff', False),
        # What OpenCV was given as BGR was RGB: the file's red is blue.
        ('rgb8; jpeg compressed rgb8', '.jpg', True),
        ('bgr8; jpeg compressed rgb8', '.jpg', True),
        ('rgb8; tiff compressed ', '.tiff', True),
    ],
)
def test_compressed_colours(image_format: str, suffix: str, is_swapped: bool) -> None:
    rgb = smooth_rgb()
    data = encode(rgb if is_swapped else rgb[:, :, ::-1], suffix)
    image = decode_compressed(data, image_format, 'test')
    tolerance = 6 if suffix == '.jpg' else 0
    assert np.abs(image.astype(int) - rgb).max() <= tolerance


@pytest.mark.parametrize(
    'image_format',
    [
        'jpeg',
        'mono8; jpeg compressed mono8',
        'mono8; jpeg compressed ',
        'bayer_rggb8; jpeg compressed mono8',
    ],
)
def test_compressed_grey_is_grey(image_format: str) -> None:
    grey = smooth_rgb()[:, :, 0]
    image = decode_compressed(encode(grey, '.jpg'), image_format, 'test')
    assert np.abs(image.astype(int) - grey[:, :, None]).max() <= 2


@pytest.mark.parametrize('pattern', BAYER)
def test_compressed_mosaic_is_demosaiced(pattern: str) -> None:
    mosaic = random_samples(8, 1)[:, :, 0].astype(np.uint8)
    image_format = f'bayer_{pattern}8; png compressed '
    image = decode_compressed(encode(mosaic, '.png'), image_format, 'test')
    expected = slow_demosaic(mosaic, pattern)[1:-1, 1:-1]
    assert np.abs(image[1:-1, 1:-1] - expected).max() <= 0.51


@pytest.mark.parametrize('source', ['mono16', 'rgb16', 'bgr16', 'rgba16'])
def test_compressed_sixteen_bits_are_scaled(source: str) -> None:
    channels = 1 if source == 'mono16' else 4 if source == 'rgba16' else 3
    samples = random_samples(16, channels).astype(np.uint16)
    target = 'bgr16' if channels == 3 else ''
    data = encode(samples, '.png' if channels < 4 else '.tiff')
    image = decode_compressed(data, f'{source}; png compressed {target}', 'test')
    scaled = np.vectorize(lambda value: to_8_bits(int(value), 16))(samples)
    expected = {1: np.repeat(scaled, 3, axis=2), 3: scaled[:, :, ::-1], 4: scaled[:, :, :3]}
    np.testing.assert_array_equal(image, expected[channels])


def test_compressed_alpha_is_dropped_only_where_it_is_announced() -> None:
    bgra = random_samples(8, 4).astype(np.uint8)
    data = encode(bgra, '.png')
    image = decode_compressed(data, 'bgra8; png compressed bgra8', 'test')
    np.testing.assert_array_equal(image, bgra[:, :, 2::-1])
    with pytest.raises(ImageError, match='image cam has an alpha channel'):
        decode_compressed(data, 'png', 'cam')
    with pytest.raises(ImageError, match='image cam has an alpha channel'):
        decode_compressed(data, 'rgb8; png compressed bgr8', 'cam')


@pytest.mark.parametrize(
    ('image_format', 'message'),
    [
        ('16UC1; compressedDepth', 'which is depth and not a picture: choose the topic'),
        ('16UC1; compressedDepth png', 'which is depth'),
        ('32FC1; compressedDepth rvl', 'which is depth'),
        ('16UC1; png compressed ', 'which is depth'),
        ('png', 'image cam is uint16: convert it to 8 bits'),
        ('h264', 'is a frame of h264 video, which cannot be decoded by itself: record JPEG'),
        ('HEVC', 'is a frame of HEVC video'),
    ],
)
def test_compressed_depth_is_refused(image_format: str, message: str) -> None:
    data = encode(random_samples(16, 1).astype(np.uint16), '.png')
    with pytest.raises(ImageError, match=message):
        decode_compressed(data, image_format, 'cam')


def test_compressed_floats_are_refused() -> None:
    data = encode(np.ones((4, 4), np.float32), '.tiff')
    with pytest.raises(ImageError, match='image cam is float32: send 8 or 16 bits'):
        decode_compressed(data, 'mono8; tiff compressed ', 'cam')


@pytest.mark.parametrize('image_format', ['jpeg', 'rgb8; jpeg compressed bgr8'])
def test_damaged_data_are_refused(image_format: str) -> None:
    data = encode(smooth_rgb(), '.jpg')
    with pytest.raises(ImageError, match='image cam is empty'):
        decode_compressed(b'', image_format, 'cam')
    with pytest.raises(ImageError, match=f'image cam is cut off after {len(data) - 9} bytes'):
        decode_compressed(data[:-9], image_format, 'cam')
    with pytest.raises(ImageError, match='image cam cannot be decoded'):
        decode_compressed(b'not an image at all', image_format, 'cam')


def test_tiny_compressed_mosaic_is_refused() -> None:
    data = encode(np.zeros((2, 2), np.uint8), '.png')
    with pytest.raises(ImageError, match='bayer_rggb8 has size 2x2: its colours need'):
        decode_compressed(data, 'bayer_rggb8; png compressed ', 'cam')

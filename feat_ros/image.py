# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding of images to RGB uint8, and the one place that knows OpenCV's channel order."""

from __future__ import annotations

from pathlib import Path
import re
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.errors import ImageError

Image = npt.NDArray[np.uint8]
ByteData = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

_JPEG_START = b'\xff\xd8'
_PNG_START = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xaeB`\x82'


class _Layout(NamedTuple):
    """How the samples of a ROS encoding lie in memory.

    ``code`` is OpenCV's conversion to RGB, None where the samples are RGB already;
    ``plane_rows`` is the number of rows of ``step`` bytes for two image rows.
    """

    sample_bytes: int
    channels: int
    code: int | None
    plane_rows: int = 2


# sensor_msgs/image_encodings.hpp; 8UC1 and 8UC3 are read as OpenCV means them, grey and BGR.
# OpenCV names a Bayer pattern by its second row and column, so that its BG is ROS's rggb.
_LAYOUTS: dict[str, _Layout] = {
    'rgb8': _Layout(1, 3, None),
    'bgr8': _Layout(1, 3, cv2.COLOR_BGR2RGB),
    'rgba8': _Layout(1, 4, cv2.COLOR_RGBA2RGB),
    'bgra8': _Layout(1, 4, cv2.COLOR_BGRA2RGB),
    'mono8': _Layout(1, 1, cv2.COLOR_GRAY2RGB),
    '8UC1': _Layout(1, 1, cv2.COLOR_GRAY2RGB),
    '8UC3': _Layout(1, 3, cv2.COLOR_BGR2RGB),
    'rgb16': _Layout(2, 3, None),
    'bgr16': _Layout(2, 3, cv2.COLOR_BGR2RGB),
    'rgba16': _Layout(2, 4, cv2.COLOR_RGBA2RGB),
    'bgra16': _Layout(2, 4, cv2.COLOR_BGRA2RGB),
    'mono16': _Layout(2, 1, cv2.COLOR_GRAY2RGB),
    'bayer_rggb8': _Layout(1, 1, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr8': _Layout(1, 1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': _Layout(1, 1, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg8': _Layout(1, 1, cv2.COLOR_BayerGB2RGB),
    'bayer_rggb16': _Layout(2, 1, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr16': _Layout(2, 1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg16': _Layout(2, 1, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg16': _Layout(2, 1, cv2.COLOR_BayerGB2RGB),
    'uyvy': _Layout(1, 2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422': _Layout(1, 2, cv2.COLOR_YUV2RGB_UYVY),
    'yuyv': _Layout(1, 2, cv2.COLOR_YUV2RGB_YUY2),
    'yuv422_yuy2': _Layout(1, 2, cv2.COLOR_YUV2RGB_YUY2),
    'nv12': _Layout(1, 1, cv2.COLOR_YUV2RGB_NV12, plane_rows=3),
    'nv21': _Layout(1, 1, cv2.COLOR_YUV2RGB_NV21, plane_rows=3),
    'nv24': _Layout(1, 1, None, plane_rows=6),
}
_NOT_A_PICTURE = re.compile(r'(8S|16U|16S|32S|32F|64F)C\d*')
_VIDEO = ('h264', 'h.264', 'avc', 'h265', 'h.265', 'hevc', 'vp8', 'vp9', 'av1', 'theora')
# ITU-R BT.601, luma 16..235, chroma 16..240: (Y, Cb, Cr, 1) to RGB.
_RGB_FROM_YCBCR = np.array(
    [
        [1.164383, 0.0, 1.596027, -222.921],
        [1.164383, -0.391762, -0.812968, 135.576],
        [1.164383, 2.017232, 0.0, -276.836],
    ]
)


def decode_image(data: bytes, name: str) -> Image:
    """Decode a compressed image (JPEG, PNG and what else OpenCV reads) to RGB (H, W, 3) uint8.

    Grey becomes three equal channels. An EXIF orientation is not applied: calibration and
    COLMAP speak of the pixels as stored.

    :param name: what the error calls it.
    :raises ImageError: empty, cut off, not an image, 16-bit, or with an alpha channel.
    """
    samples = _decode_file(data, name)
    if samples.dtype != np.uint8:
        raise ImageError(f'image {name} is {samples.dtype}: convert it to 8 bits a channel')
    return _file_to_rgb(samples, '', name)


def decode_compressed(data: bytes, image_format: str, name: str) -> Image:
    """Decode the data of a sensor_msgs/CompressedImage to RGB (H, W, 3) uint8.

    :param image_format: ``jpeg``, ``png`` or the like, decoded as :func:`decode_image` does; or
        image_transport's ``SOURCE; CODEC compressed TARGET``, where TARGET (SOURCE where it is
        absent) says what the file holds: channels in RGB order, a Bayer mosaic, 16 bits, alpha.
        16 bits are scaled as in :func:`decode_raw`; alpha is dropped.
    :param name: what the error calls it.
    :raises ImageError: a depth image, video, or what :func:`decode_image` refuses.
    """
    source, separator, how = image_format.partition(';')
    source = source.strip()
    if 'compresseddepth' in image_format.lower() or _NOT_A_PICTURE.fullmatch(source):
        raise ImageError(
            f'image {name} has format {image_format!r}, which is depth and not a picture: '
            'choose the topic of the colour or grey image'
        )
    if source.lower() in _VIDEO:
        raise ImageError(
            f'image {name} is a frame of {source} video, which cannot be decoded by itself: '
            'record JPEG or PNG'
        )
    if not separator:
        return decode_image(data, name)
    samples = _decode_file(data, name)
    if samples.dtype not in (np.uint8, np.uint16):
        raise ImageError(f'image {name} is {samples.dtype}: send 8 or 16 bits a channel')
    return _file_to_rgb(samples, how.rpartition('compressed')[2].strip() or source, name)


def decode_raw(
    data: ByteData,
    height: int,
    width: int,
    encoding: str,
    step: int,
    is_bigendian: bool,
    name: str,
) -> Image:
    """Decode the data of a sensor_msgs/Image to RGB (H, W, 3) uint8.

    All colour, mono, Bayer and YUV encodings of sensor_msgs/image_encodings.hpp. 16 bits are
    scaled by 1/257, so that 65535 becomes 255, as cv_bridge does: a 12-bit camera that does not
    fill its 16 bits looks dark here as there. Alpha is dropped. Bayer is interpolated
    bilinearly; YUV is BT.601 with limited range. 8UC1 and 8UC3 are read as grey and BGR.

    :param step: bytes from one row to the next, padding included; for ``nv12``, ``nv21`` and
        ``nv24`` those of the luma plane, whose chroma plane follows.
    :param name: what the error calls it.
    :raises ImageError: an unknown encoding, depth (16UC1, 32FC1), a size of zero or one that the
        encoding cannot have, a step too small, data of another length.
    """
    layout = _layout_of(encoding, name)
    _check_size(encoding, layout, height, width, name)
    row_bytes = width * layout.channels * layout.sample_bytes
    if step < row_bytes:
        raise ImageError(
            f'image {name} has step {step}: {width} pixels of {encoding} need {row_bytes} bytes'
        )
    num_rows = height * layout.plane_rows // 2
    if len(data) != num_rows * step:
        raise ImageError(
            f'image {name} has {len(data)} bytes: {num_rows} rows of step {step} '
            f'({width}x{height} {encoding}) are {num_rows * step}'
        )
    rows = np.frombuffer(data, np.uint8).reshape(num_rows, step)
    if encoding == 'nv24':
        return _nv24_to_rgb(rows, height, width)
    samples: npt.NDArray[np.generic] = rows[:, :row_bytes]
    if layout.sample_bytes == 2:
        samples = np.ascontiguousarray(samples).view('>u2' if is_bigendian else '<u2')
        samples = samples.astype(np.uint16, copy=False)
    if layout.channels > 1:
        samples = samples.reshape(num_rows, width, layout.channels)
    return _samples_to_rgb(samples, layout.code)


def read_image(path: str | Path) -> Image:
    """Read an image file as :func:`decode_image` does.

    :raises ImageError: a missing or unreadable file, or what :func:`decode_image` refuses.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f'image {path} cannot be read: {error.strerror or error}') from None
    return decode_image(data, str(path))


def write_png(path: str | Path, image_rgb: Image) -> None:
    """Write an RGB (H, W, 3) uint8 image as PNG.

    :raises ImageError: the file cannot be written.
    """
    _, data = cv2.imencode('.png', cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
    try:
        Path(path).write_bytes(data.tobytes())
    except OSError as error:
        raise ImageError(f'image {path} cannot be written: {error.strerror or error}') from None


def to_grey(image_rgb: Image) -> Image:
    """Luma (H, W) of an RGB image; a grey image made RGB comes back unchanged."""
    return np.asarray(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def check_image(image_rgb: npt.NDArray[np.generic]) -> Image:
    """Return the array if it is an RGB (H, W, 3) uint8 image.

    :raises ImageError: another shape, type or a size of zero.
    """
    shape, dtype = getattr(image_rgb, 'shape', None), getattr(image_rgb, 'dtype', None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
        raise ImageError(f'image has shape {shape} and type {dtype}: it must be (H, W, 3) uint8')
    if 0 in shape:
        raise ImageError(f'image has shape {shape}: it has no pixels')
    return np.asarray(image_rgb, np.uint8)


def _layout_of(encoding: str, name: str) -> _Layout:
    layout = _LAYOUTS.get(encoding)
    if layout is None and _NOT_A_PICTURE.fullmatch(encoding):
        raise ImageError(
            f'image {name} has encoding {encoding}, which is depth or plain numbers and not a '
            'picture: choose the topic of the colour or grey image'
        )
    if layout is None:
        raise ImageError(
            f'image {name} has unknown encoding {encoding!r}; known are: {", ".join(_LAYOUTS)}'
        )
    return layout


def _check_size(encoding: str, layout: _Layout, height: int, width: int, name: str) -> None:
    size = f'image {name} of {encoding} has size {width}x{height}'
    if height <= 0 or width <= 0:
        raise ImageError(f'{size}: it has no pixels')
    if encoding.startswith('bayer') and min(height, width) < 3:
        raise ImageError(f'{size}: its colours need at least 3x3')
    if (layout.channels == 2 or layout.plane_rows == 3) and width % 2:
        raise ImageError(f'{size}: its width must be even')
    if layout.plane_rows == 3 and height % 2:
        raise ImageError(f'{size}: its height must be even')


def _samples_to_rgb(samples: npt.NDArray[np.generic], code: int | None) -> Image:
    """Convert to RGB, then to 8 bits; the result owns its memory."""
    rgb = samples.copy() if code is None else cv2.cvtColor(samples, code)
    if rgb.dtype == np.uint16:
        rgb = cv2.convertScaleAbs(rgb, alpha=1 / 257)
    return np.asarray(rgb, np.uint8)


def _nv24_to_rgb(rows: Image, height: int, width: int) -> Image:
    """Convert a luma plane and a chroma plane of full size; OpenCV has no such conversion."""
    luma = rows[:height, :width]
    chroma = rows[height:].reshape(height, -1)[:, : 2 * width].reshape(height, width, 2)
    ycbcr = np.dstack([luma, chroma])
    return np.asarray(cv2.transform(ycbcr, _RGB_FROM_YCBCR), np.uint8)


def _decode_file(data: bytes, name: str) -> npt.NDArray[np.generic]:
    """Decode a compressed image to what it holds, colours in OpenCV's order."""
    if not data:
        raise ImageError(f'image {name} is empty: copy it again')
    if _is_cut(data):
        raise ImageError(f'image {name} is cut off after {len(data)} bytes: copy it again')
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None or image.size == 0:
        raise ImageError(f'image {name} cannot be decoded: it must be a JPEG, PNG or the like')
    return np.asarray(image)


def _file_to_rgb(samples: npt.NDArray[np.generic], encoding: str, name: str) -> Image:
    """Convert what a file holds: as the encoding says where it fits, else grey or BGR."""
    layout = _LAYOUTS.get(encoding)
    if samples.ndim == 2:
        if layout is None or not encoding.startswith('bayer'):
            return _samples_to_rgb(samples, cv2.COLOR_GRAY2RGB)
        _check_size(encoding, layout, samples.shape[0], samples.shape[1], name)
        return _samples_to_rgb(samples, layout.code)
    channels = samples.shape[2]
    if layout is not None and layout.channels == channels:
        return _samples_to_rgb(samples, layout.code)
    if channels == 4:
        raise ImageError(f'image {name} has an alpha channel: save it as RGB or grey')
    return _samples_to_rgb(samples, cv2.COLOR_BGR2RGB)


def _is_cut(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end; OpenCV would fill the rest with grey and say nothing.

    A JPEG's header segments are stepped over, since a thumbnail inside has an end of its own.
    """
    if data.startswith(_PNG_START):
        return _PNG_END not in data
    if not data.startswith(_JPEG_START):
        return False
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return data.find(b'\xff\xd9', at) < 0
        is_fill = marker == 0xFF
        at += 1 if is_fill else 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return at + 4 > len(data)

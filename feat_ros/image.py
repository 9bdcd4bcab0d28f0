# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding of images to RGB uint8, and the one place that knows OpenCV's channel order."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.errors import ImageError

Image = npt.NDArray[np.uint8]

_JPEG_START = b'\xff\xd8'
_PNG_START = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xaeB`\x82'


def decode_image(data: bytes, name: str) -> Image:
    """Decode a compressed image (JPEG, PNG and what else OpenCV reads) to RGB (H, W, 3) uint8.

    Grey becomes three equal channels. An EXIF orientation is not applied: calibration and
    COLMAP speak of the pixels as stored.

    :param name: what the error calls it.
    :raises ImageError: empty, cut off, not an image, 16-bit, or with an alpha channel.
    """
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
    if image.dtype != np.uint8:
        raise ImageError(f'image {name} is {image.dtype}: convert it to 8 bits a channel')
    if image.ndim == 3 and image.shape[2] == 4:
        raise ImageError(f'image {name} has an alpha channel: save it as RGB or grey')
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


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


def _is_cut(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end; OpenCV would fill the rest with grey and say nothing.

    A JPEG's header segments are stepped over, since a thumbnail inside has an end of its own.
    """
    if data.startswith(_PNG_START):
        return _PNG_END not in data[-4096:]
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

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera models with distortion both ways, vectorised.

Models, parameter order and pixel convention are COLMAP's: the centre of the top-left pixel is at
(0.5, 0.5). The camera frame is the optical frame: x right, y down, z ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.errors import CameraError

Float = npt.NDArray[np.float64]

# Parameter names of each model; perspective models are all special cases of FULL_OPENCV.
MODELS: dict[str, tuple[str, ...]] = {
    'SIMPLE_PINHOLE': ('f', 'cx', 'cy'),
    'PINHOLE': ('fx', 'fy', 'cx', 'cy'),
    'SIMPLE_RADIAL': ('f', 'cx', 'cy', 'k1'),
    'RADIAL': ('f', 'cx', 'cy', 'k1', 'k2'),
    'OPENCV': ('fx', 'fy', 'cx', 'cy', 'k1', 'k2', 'p1', 'p2'),
    'FULL_OPENCV': ('fx', 'fy', 'cx', 'cy', 'k1', 'k2', 'p1', 'p2', 'k3', 'k4', 'k5', 'k6'),
    'OPENCV_FISHEYE': ('fx', 'fy', 'cx', 'cy', 'k1', 'k2', 'k3', 'k4'),
}

# Perspective models are used up to this angle off the axis; a plane has no image beyond it.
_MAX_PERSPECTIVE_ANGLE = np.radians(85.0)
_NEWTON_STEPS = 12


@dataclass(frozen=True)
class Camera:
    """One calibrated camera.

    :ivar model: a key of :data:`MODELS`.
    :ivar width: image width in pixels.
    :ivar height: image height in pixels.
    :ivar params: as :data:`MODELS` names them; focal lengths and centre in pixels.
    :raises CameraError: unknown model, wrong number of parameters, values that cannot be.
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check every value; see the class."""
        names = MODELS.get(self.model)
        if names is None:
            raise CameraError(
                f'unknown camera model {self.model!r}; choose one of: {", ".join(MODELS)}'
            )
        object.__setattr__(self, 'params', tuple(float(p) for p in self.params))
        if len(self.params) != len(names):
            raise CameraError(
                f'camera model {self.model} has {len(self.params)} parameters: '
                f'it needs {len(names)} ({" ".join(names)})'
            )
        if self.width <= 0 or self.height <= 0:
            raise CameraError(f'camera size {self.width}x{self.height} is not positive')
        for name, value in zip(names, self.params, strict=True):
            if not np.isfinite(value):
                raise CameraError(f'camera parameter {name} is {value}: it must be finite')
            if name.startswith('f') and value <= 0:
                raise CameraError(f'focal length {name} is {value}: it must be positive')

    @staticmethod
    def from_words(words: Sequence[str]) -> Camera:
        """Make a camera from ``MODEL width height params...``, as COLMAP writes it.

        :raises CameraError: missing words, or words that are not numbers.
        """
        if len(words) < 4:
            raise CameraError(
                f'camera {" ".join(words)!r} is cut short: write MODEL width height params...'
            )
        try:
            width, height = int(words[1]), int(words[2])
            params = tuple(float(word) for word in words[3:])
        except ValueError as error:
            raise CameraError(f'camera {" ".join(words)!r} has a bad number: {error}') from None
        return Camera(words[0], width, height, params)

    def to_words(self) -> str:
        """Return ``MODEL width height params...``; the inverse of :meth:`from_words`."""
        return ' '.join([self.model, str(self.width), str(self.height), *map(repr, self.params)])

    @cached_property
    def _named(self) -> dict[str, float]:
        return dict(zip(MODELS[self.model], self.params, strict=True))

    @cached_property
    def focal_xy(self) -> Float:
        """Focal lengths (2,) in pixels."""
        named = self._named
        return np.array([named.get('fx', named.get('f')), named.get('fy', named.get('f'))], float)

    @cached_property
    def center_xy(self) -> Float:
        """Principal point (2,) in pixels."""
        return np.array([self._named['cx'], self._named['cy']])

    @property
    def size_wh(self) -> tuple[int, int]:
        """Image width and height in pixels."""
        return self.width, self.height

    @property
    def is_fisheye(self) -> bool:
        """Whether image radius is a function of the angle rather than of its tangent."""
        return self.model == 'OPENCV_FISHEYE'

    @cached_property
    def distortion(self) -> Float:
        """OpenCV's coefficients: (k1 k2 p1 p2 k3 k4 k5 k6), or the fisheye's (k1 k2 k3 k4)."""
        order = 'k1 k2 k3 k4' if self.is_fisheye else 'k1 k2 p1 p2 k3 k4 k5 k6'
        return np.array([self._named.get(name, 0.0) for name in order.split()])

    @cached_property
    def _radial_table(self) -> tuple[Float, Float]:
        """Undistorted and distorted radius (or angle), up to where the model stops growing."""
        if self.is_fisheye:
            radius = np.linspace(0, np.pi, 2048)
            distorted = radius * _fisheye_gain(radius**2, self.distortion)[0]
        else:
            radius = np.tan(np.linspace(0, _MAX_PERSPECTIVE_ANGLE, 2048))
            distorted = radius * _perspective_gain(radius**2, self.distortion)[0]
        # Behind the first maximum a far point would fold back into the image.
        stops = np.flatnonzero(~(np.diff(distorted) > 0))
        end = int(stops[0]) + 1 if len(stops) else len(radius)
        return radius[:end], distorted[:end]

    def project(self, points_in_cam: npt.ArrayLike) -> Float:
        """Project points (N, 3) in the camera frame to pixels (N, 2).

        A point that the model cannot image (behind, beyond its range) becomes NaN.
        """
        return self.project_with_jacobian(points_in_cam)[0]

    def project_with_jacobian(self, points_in_cam: npt.ArrayLike) -> tuple[Float, Float]:
        """Project points (N, 3); return pixels (N, 2) and d pixel / d point (N, 2, 3)."""
        points = np.asarray(points_in_cam, float).reshape(-1, 3)
        project = self._project_fisheye if self.is_fisheye else self._project_perspective
        with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
            plane, jacobian = project(points)
        pixels = plane * self.focal_xy + self.center_xy
        return pixels, jacobian * self.focal_xy[:, None]

    def _project_perspective(self, points: Float) -> tuple[Float, Float]:
        z = points[:, 2]
        depth = np.where(z > 0, z, np.nan)
        uv = points[:, :2] / depth[:, None]
        limit = self._radial_table[0][-1]
        uv[~(np.sum(uv * uv, axis=1) <= limit * limit)] = np.nan
        jacobian = np.zeros((len(points), 2, 3))
        jacobian[:, 0, 0] = jacobian[:, 1, 1] = 1 / depth
        jacobian[:, :, 2] = -uv / depth[:, None]
        if not np.any(self.distortion):
            return uv, jacobian
        distorted, inner = _distort(uv, self.distortion)
        return distorted, inner @ jacobian

    def _project_fisheye(self, points: Float) -> tuple[Float, Float]:
        x, y, z = points.T
        rho_squared = x * x + y * y
        rho, norm_squared = np.sqrt(rho_squared), rho_squared + z * z
        theta = np.arctan2(rho, z)
        theta = np.where((norm_squared > 0) & (theta <= self._radial_table[0][-1]), theta, np.nan)
        gain, slope = _fisheye_gain(theta**2, self.distortion)
        theta_d = theta * gain
        # Near the axis scale = theta_d / rho tends to 1 / z and its slope to zero; right behind
        # the camera, where it is infinite, a point has no direction in the image.
        near = (rho < 1e-9 * np.sqrt(norm_squared)) & (z > 0)
        safe_rho = np.where(near, 1.0, rho)
        scale = np.where(near, 1 / z, theta_d / safe_rho)
        theta_d_slope = gain + 2 * theta**2 * slope
        scale_by_rho = np.where(
            near, 0.0, (theta_d_slope * z / norm_squared - scale) / safe_rho**2
        )
        jacobian = np.empty((len(points), 2, 3))
        xy = points[:, :2]
        jacobian[:, :, :2] = scale_by_rho[:, None, None] * xy[:, :, None] * xy[:, None, :]
        jacobian[:, 0, 0] += scale
        jacobian[:, 1, 1] += scale
        jacobian[:, :, 2] = -xy * (theta_d_slope / norm_squared)[:, None]
        return xy * scale[:, None], jacobian

    def unproject(self, pixels: npt.ArrayLike) -> Float:
        """Unit rays (N, 3) in the camera frame of pixels (N, 2); NaN outside the model's range.

        The radial part is inverted by a table, the whole by Newton's method.
        """
        pixels = np.asarray(pixels, float).reshape(-1, 2)
        plane = (pixels - self.center_xy) / self.focal_xy
        if self.is_fisheye:
            return self._unproject_fisheye(plane)
        uv = self._undistort(plane) if np.any(self.distortion) else plane.copy()
        limit = self._radial_table[0][-1] * (1 + 1e-9)
        uv[~(np.sum(uv * uv, axis=1) <= limit * limit)] = np.nan
        rays = np.column_stack([uv, np.ones(len(uv))])
        return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))

    def _undistort(self, plane: Float) -> Float:
        radius, distorted = self._radial_table
        start = np.linalg.norm(plane, axis=1)
        scale = np.interp(start, distorted, radius) / np.where(start > 0, start, 1.0)
        uv = plane * scale[:, None]
        with np.errstate(invalid='ignore', over='ignore', divide='ignore'):
            for _ in range(_NEWTON_STEPS):
                value, jacobian = _distort(uv, self.distortion)
                step = _solve_2x2(jacobian, value - plane)
                uv = uv - step
                if not np.any(np.abs(step) > 1e-14):
                    break
            error = np.abs(_distort(uv, self.distortion)[0] - plane).max(axis=1, initial=0.0)
        uv[~(error < 1e-9)] = np.nan
        return np.asarray(uv)

    def _unproject_fisheye(self, plane: Float) -> Float:
        angle, distorted = self._radial_table
        theta_d = np.linalg.norm(plane, axis=1)
        theta = np.interp(theta_d, distorted, angle, right=np.nan)
        for _ in range(_NEWTON_STEPS):
            gain, slope = _fisheye_gain(theta**2, self.distortion)
            step = (theta * gain - theta_d) / (gain + 2 * theta**2 * slope)
            theta = theta - step
            if not np.any(np.abs(step) > 1e-14):
                break
        direction = plane / np.where(theta_d > 0, theta_d, 1.0)[:, None]
        return np.column_stack([direction * np.sin(theta)[:, None], np.cos(theta)])

    def contains(self, pixels: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether pixels (N, 2) lie inside the image; NaN does not."""
        p = np.asarray(pixels)
        inside = (p[:, 0] >= 0) & (p[:, 0] < self.width) & (p[:, 1] >= 0)
        return np.asarray(inside & (p[:, 1] < self.height))


def _perspective_gain(r2: Any, k: Float) -> tuple[Any, Any]:
    """Radial factor of the rational model and its derivative by r^2."""
    k1, k2, _, _, k3, k4, k5, k6 = k
    top = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    bottom = 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    top_slope = k1 + r2 * (2 * k2 + 3 * r2 * k3)
    bottom_slope = k4 + r2 * (2 * k5 + 3 * r2 * k6)
    return top / bottom, (top_slope * bottom - top * bottom_slope) / bottom**2


def _fisheye_gain(theta2: Any, k: Float) -> tuple[Any, Any]:
    """Factor theta_d / theta of the equidistant model and its derivative by theta^2."""
    k1, k2, k3, k4 = k
    gain = 1 + theta2 * (k1 + theta2 * (k2 + theta2 * (k3 + theta2 * k4)))
    slope = k1 + theta2 * (2 * k2 + theta2 * (3 * k3 + 4 * theta2 * k4))
    return gain, slope


def _distort(uv: Float, k: Float) -> tuple[Float, Float]:
    """Distort normalised coordinates (N, 2); return them and their Jacobian (N, 2, 2)."""
    u, v = uv.T
    p1, p2 = k[2], k[3]
    r2 = u * u + v * v
    gain, slope = _perspective_gain(r2, k)
    out = np.empty_like(uv)
    out[:, 0] = u * gain + 2 * p1 * u * v + p2 * (r2 + 2 * u * u)
    out[:, 1] = v * gain + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v
    jacobian = np.empty((len(uv), 2, 2))
    jacobian[:, 0, 0] = gain + 2 * u * u * slope + 2 * p1 * v + 6 * p2 * u
    jacobian[:, 1, 1] = gain + 2 * v * v * slope + 6 * p1 * v + 2 * p2 * u
    jacobian[:, 0, 1] = jacobian[:, 1, 0] = 2 * u * v * slope + 2 * p1 * u + 2 * p2 * v
    return out, jacobian


def _solve_2x2(a: Float, b: Float) -> Float:
    determinant = a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] * a[:, 1, 0]
    x = a[:, 1, 1] * b[:, 0] - a[:, 0, 1] * b[:, 1]
    y = a[:, 0, 0] * b[:, 1] - a[:, 1, 0] * b[:, 0]
    return np.asarray(np.column_stack([x, y]) / determinant[:, None])

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rigid and similarity transforms.

A transform is named ``target_from_source`` and takes ``x_in_source`` to
``x_in_target = rotation @ x_in_source + translation``; names cancel:
``a_from_c = a_from_b @ b_from_c``. Quaternions are ``xyzw`` with ``w >= 0``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]


def skew(vectors: npt.ArrayLike) -> Float:
    """Return cross-product matrices: (..., 3) to (..., 3, 3), ``skew(a) @ b = a x b``."""
    v = np.asarray(vectors, float)
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2] = -v[..., 2], v[..., 1]
    out[..., 1, 0], out[..., 1, 2] = v[..., 2], -v[..., 0]
    out[..., 2, 0], out[..., 2, 1] = -v[..., 1], v[..., 0]
    return out


def so3_exp(rotation_vectors: npt.ArrayLike) -> Float:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3) in radians (Rodrigues)."""
    w = np.asarray(rotation_vectors, float)
    angle_squared = np.sum(w * w, axis=-1)[..., None, None]
    a, b, _ = _series(angle_squared)
    k = skew(w)
    return np.asarray(np.eye(3) + a * k + b * (k @ k))


def so3_log(rotations: npt.ArrayLike) -> Float:
    """Rotation vectors (..., 3) in radians, of length at most pi, of matrices (..., 3, 3)."""
    quat = quat_xyzw_from_rotation(rotations)
    sine = np.linalg.norm(quat[..., :3], axis=-1)
    angle = 2 * np.arctan2(sine, quat[..., 3])
    small = sine < 1e-12
    factor = np.where(small, 2.0, angle / np.where(small, 1.0, sine))
    return np.asarray(quat[..., :3] * factor[..., None])


def _series(angle_squared: Float) -> tuple[Float, Float, Float]:
    """Return sin(x)/x, (1 - cos(x))/x^2 and (x - sin(x))/x^3 for x^2, exact to x = 0."""
    small = angle_squared < 1e-8
    square = np.where(small, 1.0, angle_squared)
    x = np.sqrt(square)
    a = np.where(small, 1 - angle_squared / 6, np.sin(x) / x)
    b = np.where(small, 0.5 - angle_squared / 24, 2 * (np.sin(x / 2) / x) ** 2)
    c = np.where(small, 1 / 6 - angle_squared / 120, (x - np.sin(x)) / (square * x))
    return a, b, c


def rotation_from_quat_xyzw(quat_xyzw: npt.ArrayLike) -> Float:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4), normalised here.

    :raises ValueError: a quaternion of zero length or with a value that is not finite.
    """
    q = np.asarray(quat_xyzw, float)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if not np.all(np.isfinite(norm)) or np.any(norm < 1e-9):
        raise ValueError(f'quaternion {q.tolist()} has no direction: its length must not be zero')
    x, y, z, w = np.moveaxis(q / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quat_xyzw_from_rotation(rotations: npt.ArrayLike) -> Float:
    """Unit quaternions (..., 4) with w >= 0 of rotation matrices (..., 3, 3).

    The largest of the four squared components is found first and divides the others, which is
    stable for every angle.
    """
    r = np.asarray(rotations, float)
    m = {(i, j): r[..., i, j] for i in range(3) for j in range(3)}
    xx, yy, zz = m[0, 0], m[1, 1], m[2, 2]
    candidates = np.stack(
        [
            _stack(1 + xx - yy - zz, m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]),
            _stack(m[0, 1] + m[1, 0], 1 - xx + yy - zz, m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]),
            _stack(m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1 - xx - yy + zz, m[1, 0] - m[0, 1]),
            _stack(m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + xx + yy + zz),
        ],
        axis=-2,
    )
    largest = np.argmax(np.diagonal(candidates, axis1=-2, axis2=-1), axis=-1)
    quat = np.take_along_axis(candidates, largest[..., None, None], axis=-2)[..., 0, :]
    quat = quat / np.linalg.norm(quat, axis=-1, keepdims=True)
    return np.asarray(np.where(quat[..., 3:] < 0, -quat, quat))


def _stack(*parts: Float) -> Float:
    return np.stack(parts, axis=-1)


def rotation_angle_deg(a: npt.ArrayLike, b: npt.ArrayLike) -> Float:
    """Angle in degrees between rotation matrices (..., 3, 3)."""
    relative = np.swapaxes(np.asarray(a, float), -1, -2) @ np.asarray(b, float)
    return np.asarray(np.degrees(np.linalg.norm(so3_log(relative), axis=-1)))


def _identity_rotation() -> Float:
    return np.eye(3)


def _zero_translation() -> Float:
    return np.zeros(3)


@dataclass(frozen=True, eq=False)
class Rigid3d:
    """A rigid transform ``target_from_source``.

    :ivar rotation: (3, 3).
    :ivar translation: (3,), metres.
    """

    rotation: Float = field(default_factory=_identity_rotation)
    translation: Float = field(default_factory=_zero_translation)

    @staticmethod
    def from_quat_xyzw(quat_xyzw: npt.ArrayLike, translation: npt.ArrayLike) -> Rigid3d:
        """Make one from a quaternion (4,) and a translation (3,)."""
        return Rigid3d(rotation_from_quat_xyzw(quat_xyzw), np.array(translation, float))

    @staticmethod
    def exp(twist: npt.ArrayLike) -> Rigid3d:
        """Return the exponential of a twist (6,): translation part first, then rotation."""
        v, w = np.split(np.asarray(twist, float), 2)
        _, b, c = (float(s[0]) for s in _series(np.array([w @ w])))
        k = skew(w)
        return Rigid3d(so3_exp(w), (np.eye(3) + b * k + c * (k @ k)) @ v)

    def log(self) -> Float:
        """Twist (6,) whose :meth:`exp` this is; the inverse of exp for angles under pi."""
        w = so3_log(self.rotation)
        _, b, c = (float(s[0]) for s in _series(np.array([w @ w])))
        k = skew(w)
        left_jacobian = np.eye(3) + b * k + c * (k @ k)
        return np.concatenate([np.linalg.solve(left_jacobian, self.translation), w])

    @property
    def quat_xyzw(self) -> Float:
        """Unit quaternion (4,) with w >= 0."""
        return quat_xyzw_from_rotation(self.rotation)

    def inverse(self) -> Rigid3d:
        """Return ``source_from_target``."""
        return Rigid3d(self.rotation.T, -self.rotation.T @ self.translation)

    def __matmul__(self, other: Rigid3d) -> Rigid3d:
        """Compose: ``a_from_b @ b_from_c = a_from_c``."""
        return Rigid3d(
            self.rotation @ other.rotation, self.rotation @ other.translation + self.translation
        )

    def apply(self, points: npt.ArrayLike) -> Float:
        """Transform points (..., 3) from source to target."""
        return np.asarray(np.asarray(points, float) @ self.rotation.T + self.translation)


@dataclass(frozen=True, eq=False)
class Sim3d:
    """A similarity ``target_from_source``: ``x_t = scale * rotation @ x_s + translation``."""

    scale: float
    rotation: Float
    translation: Float

    def apply(self, points: npt.ArrayLike) -> Float:
        """Transform points (..., 3) from source to target."""
        rotated = np.asarray(points, float) @ self.rotation.T
        return np.asarray(self.scale * rotated + self.translation)

    def apply_to_pose(self, source_from_body: Rigid3d) -> Rigid3d:
        """Return ``target_from_body``, the body's own scale left as it is."""
        return Rigid3d(
            self.rotation @ source_from_body.rotation, self.apply(source_from_body.translation)
        )

    def inverse(self) -> Sim3d:
        """Return ``source_from_target``."""
        rotation = self.rotation.T
        return Sim3d(1 / self.scale, rotation, -rotation @ self.translation / self.scale)


def umeyama(source: npt.ArrayLike, target: npt.ArrayLike, *, with_scale: bool = True) -> Sim3d:
    """Least-squares similarity ``target_from_source`` of points (N, 3).

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    PAMI 1991, equations 40 to 43.

    :raises ValueError: fewer than three points, or all on one line.
    """
    x, y = np.asarray(source, float), np.asarray(target, float)
    if x.shape != y.shape or x.ndim != 2 or x.shape[1] != 3 or len(x) < 3:
        raise ValueError(f'needs two (N, 3) arrays with N >= 3, not {x.shape} and {y.shape}')
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    xc, yc = x - x_mean, y - y_mean
    u, d, vt = np.linalg.svd(yc.T @ xc / len(x))
    if d[1] <= 1e-12 * max(d[0], 1e-300):
        raise ValueError('the points lie on one line: a rotation about it cannot be found')
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = float(d @ sign / np.mean(np.sum(xc * xc, axis=1))) if with_scale else 1.0
    return Sim3d(scale, rotation, y_mean - scale * rotation @ x_mean)


def transport_covariance(covariance: npt.ArrayLike, lever_in_map: npt.ArrayLike) -> Float:
    """Covariance (6, 6) of a body rigidly attached at ``lever_in_map`` (3,) from the first.

    Both covariances are ordered (x, y, z, rotation x, y, z) about the map's axes, as in ROS's
    PoseWithCovariance: an error d_theta moves the second body by ``d_theta x lever``.
    """
    jacobian = np.eye(6)
    jacobian[:3, 3:] = -skew(lever_in_map)
    return np.asarray(jacobian @ np.asarray(covariance, float) @ jacobian.T)

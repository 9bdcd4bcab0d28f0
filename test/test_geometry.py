# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Transforms against SciPy's matrix exponential, rotations and optimiser."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.testing import assert_allclose
import numpy.typing as npt
import pytest
from scipy.linalg import expm
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from feat_ros.geometry import (
    quat_xyzw_from_rotation,
    Rigid3d,
    rotation_angle_deg,
    rotation_from_quat_xyzw,
    Sim3d,
    skew,
    so3_exp,
    so3_log,
    transport_covariance,
    umeyama,
)

Float = npt.NDArray[np.float64]

# Every scale down to zero, and both sides of a half turn.
ANGLES = [
    0.0,
    1e-300,
    1e-15,
    1e-9,
    1e-5,
    0.99e-4,
    1.01e-4,
    1e-3,
    0.1,
    1.0,
    np.pi / 2,
    3.0,
    np.pi - 1e-5,
    np.pi - 1e-9,
    np.pi - 1e-13,
    np.pi,
]


def _axes() -> Float:
    rng = np.random.default_rng(0)
    axes = np.vstack([np.eye(3), -np.eye(3), [[1, 1, 0], [0, -1, 1]], rng.normal(size=(20, 3))])
    return np.asarray(axes / np.linalg.norm(axes, axis=1, keepdims=True))


def _rotation_vectors() -> Float:
    return np.concatenate([angle * _axes() for angle in ANGLES])


def _random_rotation(rng: np.random.Generator) -> Float:
    return np.asarray(Rotation.from_quat(rng.normal(size=4)).as_matrix())


def _random_rigid(rng: np.random.Generator) -> Rigid3d:
    return Rigid3d(_random_rotation(rng), rng.normal(size=3))


def _matrix(a_from_b: Rigid3d) -> Float:
    return np.vstack([np.column_stack([a_from_b.rotation, a_from_b.translation]), [0, 0, 0, 1]])


def test_skew_is_the_cross_product() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    assert_allclose((skew(a) @ b[..., None])[..., 0], np.cross(a, b), rtol=0, atol=1e-15)


@pytest.mark.parametrize('angle', ANGLES)
def test_exponential_and_logarithm_of_rotations(angle: float) -> None:
    vectors = angle * _axes()
    rotations = so3_exp(vectors)
    expected = np.array([expm(skew(v)) for v in vectors])
    assert_allclose(rotations, expected, rtol=0, atol=3e-15)
    logs = so3_log(rotations)
    # At half a turn the opposite axis is as good.
    flipped = (np.sum(logs * vectors, axis=1) < 0) & (angle > np.pi - 1e-7)
    logs[flipped] *= -1
    assert_allclose(logs, vectors, rtol=0, atol=2e-15 + (2e-13 if angle > 3.1 else 0))


def test_logarithm_is_never_longer_than_half_a_turn() -> None:
    lengths = np.linalg.norm(
        so3_log(so3_exp(np.linspace(0, 20, 101)[:, None] * [0, 0, 1])), axis=1
    )
    assert lengths.max() <= np.pi
    assert_allclose(lengths, np.abs((np.linspace(0, 20, 101) + np.pi) % (2 * np.pi) - np.pi))


def test_quaternions_at_every_angle() -> None:
    rotations = Rotation.from_rotvec(_rotation_vectors())
    expected = rotations.as_quat()
    quats = quat_xyzw_from_rotation(rotations.as_matrix())
    assert (quats[:, 3] >= 0).all()
    sign = np.sign(np.sum(quats * expected, axis=1, keepdims=True))
    assert_allclose(quats, sign * expected, rtol=0, atol=1e-15)
    assert_allclose(rotation_from_quat_xyzw(quats), rotations.as_matrix(), rtol=0, atol=2e-15)


def test_quaternions_of_every_batch_shape_and_length() -> None:
    rng = np.random.default_rng(0)
    quats = rng.normal(size=(2, 3, 4))
    rotations = rotation_from_quat_xyzw(7 * quats)
    assert rotations.shape == (2, 3, 3, 3)
    assert so3_log(rotations).shape == (2, 3, 3)
    for i, j in np.ndindex(2, 3):
        expected = Rotation.from_quat(quats[i, j])
        assert_allclose(rotations[i, j], expected.as_matrix(), atol=1e-15)
        assert_allclose(so3_log(rotations)[i, j], expected.as_rotvec(), atol=1e-14)


@pytest.mark.parametrize(
    'quat', [[0, 0, 0, 0], [0, 0, 0, 1e-12], [np.nan, 0, 0, 1], [0, np.inf, 0, 1]]
)
def test_a_quaternion_without_direction_is_refused(quat: list[float]) -> None:
    with pytest.raises(ValueError, match='has no direction: its length must not be zero'):
        rotation_from_quat_xyzw(np.array([[0, 0, 0, 1], quat]))


def test_rotation_angle() -> None:
    a, b = map(Rotation.from_quat, np.random.default_rng(0).normal(size=(2, 50, 4)))
    expected = np.degrees((a.inv() * b).magnitude())
    assert_allclose(rotation_angle_deg(a.as_matrix(), b.as_matrix()), expected, atol=1e-12)
    # An arc cosine of the trace would lose this one.
    assert_allclose(rotation_angle_deg(np.eye(3), so3_exp([1e-9, 0, 0])), np.degrees(1e-9))


@pytest.mark.parametrize('angle', ANGLES)
def test_exponential_and_logarithm_of_transforms(angle: float) -> None:
    for axis in _axes():
        twist = np.concatenate([[1.0, -2.0, 0.5], angle * axis])
        generator = np.zeros((4, 4))
        generator[:3] = np.column_stack([skew(twist[3:]), twist[:3]])
        transform = Rigid3d.exp(twist)
        assert_allclose(_matrix(transform), expm(generator), rtol=0, atol=3e-15)
        again = Rigid3d.exp(transform.log())
        assert_allclose(_matrix(again), _matrix(transform), rtol=0, atol=1e-14)
        if angle < np.pi - 1e-7:
            assert_allclose(transform.log(), twist, rtol=0, atol=2e-13)


def test_names_cancel() -> None:
    rng = np.random.default_rng(0)
    a_from_b, b_from_c = _random_rigid(rng), _random_rigid(rng)
    a_from_c = a_from_b @ b_from_c
    assert_allclose(_matrix(a_from_c), _matrix(a_from_b) @ _matrix(b_from_c), atol=1e-15)
    assert_allclose(_matrix(a_from_b.inverse()), np.linalg.inv(_matrix(a_from_b)), atol=1e-14)
    x_in_c = rng.normal(size=(4, 5, 3))
    assert_allclose(a_from_b.apply(b_from_c.apply(x_in_c)), a_from_c.apply(x_in_c), atol=1e-14)
    homogeneous = np.append(x_in_c[1, 2], 1)
    assert_allclose(a_from_c.apply(x_in_c)[1, 2], (_matrix(a_from_c) @ homogeneous)[:3])


def test_a_transform_made_from_a_quaternion() -> None:
    rotation = Rotation.from_quat([0.1, -0.7, 0.2, 0.4])
    target_from_source = Rigid3d.from_quat_xyzw(rotation.as_quat(), [1, 2, 3])
    assert_allclose(target_from_source.rotation, rotation.as_matrix(), atol=1e-15)
    assert target_from_source.translation.tolist() == [1.0, 2.0, 3.0]
    assert_allclose(target_from_source.quat_xyzw, rotation.as_quat(), atol=1e-15)


def test_the_default_transform_is_identity_and_not_shared() -> None:
    assert (_matrix(Rigid3d()) == np.eye(4)).all()
    assert not np.shares_memory(Rigid3d().rotation, Rigid3d().rotation)


def _random_sim(rng: np.random.Generator) -> Sim3d:
    return Sim3d(float(np.exp(rng.normal())), _random_rotation(rng), rng.normal(size=3))


def test_similarity_of_points_and_poses() -> None:
    rng = np.random.default_rng(0)
    target_from_source, source_from_body = _random_sim(rng), _random_rigid(rng)
    points = rng.normal(size=(7, 3))
    scaled = [
        target_from_source.scale * target_from_source.rotation @ p + target_from_source.translation
        for p in points
    ]
    assert_allclose(target_from_source.apply(points), scaled, atol=1e-14)
    back = target_from_source.inverse().apply(target_from_source.apply(points))
    assert_allclose(back, points, atol=1e-14)
    target_from_body = target_from_source.apply_to_pose(source_from_body)
    # The body's origin and the directions of its axes are carried along.
    origin = target_from_source.apply(source_from_body.apply([0, 0, 0]))
    assert_allclose(target_from_body.translation, origin, atol=1e-14)
    ahead = target_from_source.apply(source_from_body.apply([0, 0, 1])) - origin
    assert_allclose(target_from_body.rotation[:, 2], ahead / np.linalg.norm(ahead), atol=1e-14)


@pytest.mark.parametrize('num_points', [3, 4, 50])
def test_umeyama_finds_an_exact_similarity(num_points: int) -> None:
    rng = np.random.default_rng(num_points)
    for _ in range(20):
        truth, source = _random_sim(rng), rng.normal(size=(num_points, 3))
        found = umeyama(source, truth.apply(source))
        assert_allclose(found.scale, truth.scale, rtol=1e-12)
        assert_allclose(found.rotation, truth.rotation, atol=1e-12)
        assert_allclose(found.translation, truth.translation, atol=1e-12)


def test_umeyama_never_mirrors() -> None:
    source = np.random.default_rng(0).normal(size=(30, 3))
    found = umeyama(source, source * [1, 1, -1])
    assert_allclose(np.linalg.det(found.rotation), 1)
    assert_allclose(found.rotation @ found.rotation.T, np.eye(3), atol=1e-14)


@pytest.mark.parametrize('with_scale', [True, False])
@pytest.mark.parametrize('kind', ['noisy', 'flat', 'mirrored'])
def test_umeyama_is_the_least_squares_solution(with_scale: bool, kind: str) -> None:
    rng = np.random.default_rng(3)
    source = rng.normal(size=(40, 3)) * ([1, 1, 0] if kind == 'flat' else [1, 2, 0.7])
    target = _random_sim(rng).apply(source * ([1, 1, -1] if kind == 'mirrored' else 1))
    target += rng.normal(size=target.shape) * 0.1
    found = umeyama(source, target, with_scale=with_scale)
    if not with_scale:
        assert found.scale == 1.0

    def residuals(x: Any) -> Float:
        scale = np.exp(x[0]) if with_scale else 1.0
        moved = scale * Rotation.from_rotvec(x[1:4]).apply(source) + x[4:]
        return np.asarray(np.ravel(moved - target))

    found_cost = np.sum((found.apply(source) - target) ** 2) / 2
    starts = [np.concatenate([[0], v, [0, 0, 0]]) for v in [np.zeros(3), *2 * _axes()[:8]]]
    tight = {'ftol': 1e-15, 'xtol': 1e-15, 'gtol': 1e-15}
    best = min((least_squares(residuals, start, **tight) for start in starts), key=_cost)
    assert_allclose(found_cost, best.cost, rtol=1e-9)
    best_rotation = Rotation.from_rotvec(best.x[1:4]).as_matrix()
    assert rotation_angle_deg(found.rotation, best_rotation) < 1e-4
    assert_allclose(found.translation, best.x[4:], atol=1e-6)
    if with_scale:
        assert_allclose(found.scale, np.exp(best.x[0]), rtol=1e-6)


def _cost(result: Any) -> float:
    return float(result.cost)


@pytest.mark.parametrize(
    ('source_shape', 'target_shape'),
    [((2, 3), (2, 3)), ((5, 3), (4, 3)), ((5, 2), (5, 2)), ((3,), (3,)), ((0, 3), (0, 3))],
)
def test_umeyama_refuses_shapes(
    source_shape: tuple[int, ...], target_shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r'needs two \(N, 3\) arrays with N >= 3, not '):
        umeyama(np.zeros(source_shape), np.zeros(target_shape))


@pytest.mark.parametrize('offset', [0.0, 1e3])
def test_umeyama_refuses_points_on_a_line(offset: float) -> None:
    line = np.linspace(-1, 1, 9)[:, None] * [1.0, 2.0, -0.5] + offset
    with pytest.raises(ValueError, match='the points lie on one line'):
        umeyama(line, line + 1)
    with pytest.raises(ValueError, match='the points lie on one line'):
        umeyama(np.full((9, 3), offset), line)


def test_covariance_at_another_place_of_the_body() -> None:
    """Differentiate numerically where the second body goes when the first is moved."""
    rng = np.random.default_rng(0)
    map_from_a, a_from_b = _random_rigid(rng), _random_rigid(rng)
    map_from_b = map_from_a @ a_from_b
    root = rng.normal(size=(6, 6))
    covariance = root @ root.T

    def error_of_b(error_of_a: Float) -> Float:
        moved_a = Rigid3d(
            so3_exp(error_of_a[3:]) @ map_from_a.rotation, map_from_a.translation + error_of_a[:3]
        )
        moved_b = moved_a @ a_from_b
        return np.concatenate(
            [
                moved_b.translation - map_from_b.translation,
                so3_log(moved_b.rotation @ map_from_b.rotation.T),
            ]
        )

    step = 1e-6
    jacobian = np.column_stack(
        [(error_of_b(step * e) - error_of_b(-step * e)) / (2 * step) for e in np.eye(6)]
    )
    lever_in_map = map_from_b.translation - map_from_a.translation
    moved = transport_covariance(covariance, lever_in_map)
    assert_allclose(moved, jacobian @ covariance @ jacobian.T, rtol=1e-8, atol=1e-8)
    assert_allclose(transport_covariance(moved, -lever_in_map), covariance, atol=1e-12)


def test_a_longer_lever_turns_rotation_into_position_error() -> None:
    covariance = np.diag([0, 0, 0, 0, 0, 0.01**2])
    moved = transport_covariance(covariance, [2.0, 0.0, 0.0])
    assert_allclose(np.diag(moved), [0, 0.02**2, 0, 0, 0, 0.01**2])

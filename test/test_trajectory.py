# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feat_ros.errors import DataError
from feat_ros.geometry import Rigid3d, rotation_angle_deg, so3_exp, so3_log
from feat_ros.trajectory import interpolate_poses, read_tum, Trajectory

START = 1_305_031_229_433_099_985


def random_trajectory(n: int, seed: int = 0, step: float = 0.5) -> Trajectory:
    """Make a walk with gaps of 1 to 50 ms."""
    rng = np.random.default_rng(seed)
    stamps = START + np.cumsum(rng.integers(1_000_000, 50_000_000, n))
    poses = [Rigid3d(so3_exp(rng.normal(size=3)), rng.normal(size=3))]
    for _ in range(n - 1):
        turn = Rigid3d(so3_exp(step * rng.normal(size=3)), rng.normal(size=3))
        poses.append(poses[-1] @ turn)
    return Trajectory.from_poses(stamps, poses)


def slow_pose(trajectory: Trajectory, query: int, max_gap_ns: int) -> Rigid3d | None:
    """Look at every pair of neighbours; turn by a part of the rotation vector between them."""
    stamps = [int(stamp) for stamp in trajectory.stamps_ns]
    if query in stamps:
        return trajectory[stamps.index(query)]
    for i in range(len(stamps) - 1):
        if stamps[i] < query < stamps[i + 1] and stamps[i + 1] - stamps[i] <= max_gap_ns:
            part = (query - stamps[i]) / (stamps[i + 1] - stamps[i])
            a, b = trajectory[i], trajectory[i + 1]
            rotation = a.rotation @ so3_exp(part * so3_log(a.rotation.T @ b.rotation))
            return Rigid3d(rotation, a.translation + part * (b.translation - a.translation))
    return None


@pytest.mark.parametrize('step', [1.0, 1e-4, 1e-9])
def test_interpolation_agrees_with_a_slow_loop(step: float) -> None:
    trajectory = random_trajectory(30, step=step)
    rng = np.random.default_rng(1)
    low, high = int(trajectory.stamps_ns[0]), int(trajectory.stamps_ns[-1])
    between = rng.integers(low - 10_000_000, high + 10_000_000, 300)
    query = rng.permutation(np.concatenate([between, trajectory.stamps_ns]))
    max_gap_ns = 30_000_000
    rotations, translations = trajectory.interpolate(query, max_gap_ns)
    expected = [slow_pose(trajectory, int(stamp), max_gap_ns) for stamp in query]
    assert 50 < sum(pose is None for pose in expected) < 250
    for pose, rotation, translation in zip(expected, rotations, translations, strict=True):
        if pose is None:
            assert np.isnan(rotation).all() and np.isnan(translation).all()
        else:
            np.testing.assert_allclose(rotation, pose.rotation, atol=1e-12)
            np.testing.assert_allclose(translation, pose.translation, atol=1e-12)


def test_known_answer_takes_the_shorter_arc() -> None:
    # 170 and -170 degrees about z: 20 degrees apart through 180.
    quats = [[0, 0, np.sin(a / 2), np.cos(a / 2)] for a in np.radians([170, -170])]
    trajectory = Trajectory(np.array([10, 30]), np.array(quats), np.array([[0, 0, 0], [4, 0, 2]]))
    pose = trajectory.pose_at(15, 20)
    assert pose is not None
    expected = so3_exp([0, 0, np.radians(175)])
    assert rotation_angle_deg(pose.rotation, expected) == pytest.approx(0, abs=1e-10)
    assert pose.translation.tolist() == [1, 0, 0.5]


def test_ends_and_gaps() -> None:
    trajectory = Trajectory(np.array([10, 30, 100]), np.eye(4)[[3, 3, 3]], np.eye(3))
    known = [trajectory.pose_at(stamp, 20) is not None for stamp in (9, 10, 30, 31, 99, 100, 101)]
    assert known == [False, True, True, False, False, True, False]
    assert trajectory.pose_at(31, 70) is not None
    assert trajectory.pose_at(31, 69) is None


def test_interpolate_poses_and_empty_inputs() -> None:
    trajectory = random_trajectory(5)
    poses = [trajectory[i] for i in range(5)]
    middle = int(trajectory.stamps_ns[:2].mean())
    found = interpolate_poses(trajectory.stamps_ns, poses, [0, middle], 10**9)
    expected = slow_pose(trajectory, middle, 10**9)
    assert found[0] is None and found[1] is not None and expected is not None
    np.testing.assert_allclose(found[1].rotation, expected.rotation, atol=1e-12)
    assert interpolate_poses([], [], [5], 10**9) == [None]
    assert interpolate_poses(trajectory.stamps_ns, poses, [], 10**9) == []


def test_rows_are_normalised_and_indexed() -> None:
    quats = np.array([[0.1, 0.2, -0.3, -0.9274], [0, 0, 0, 1]])
    trajectory = Trajectory(np.array([1, 2]), quats, np.array([[1, 2, 3], [4, 5, 6]]))
    assert np.linalg.norm(trajectory.quats_xyzw, axis=1) == pytest.approx(1, abs=1e-15)
    assert trajectory.quats_xyzw[0] == pytest.approx(-quats[0], abs=1e-4)
    assert len(trajectory) == 2
    assert trajectory[1].translation.tolist() == [4, 5, 6]
    np.testing.assert_allclose(trajectory.rotations[0], trajectory[0].rotation)


def test_tum_round_trip_keeps_nanoseconds_and_digits(tmp_path: Path) -> None:
    trajectory = random_trajectory(20)
    path = tmp_path / 'walk.tum'
    path.write_text('# seconds tx ty tz qx qy qz qw\n\n' + trajectory.to_tum())
    again = read_tum(path)
    assert again.stamps_ns.tolist() == trajectory.stamps_ns.tolist()
    assert again.translations.tolist() == trajectory.translations.tolist()
    np.testing.assert_allclose(again.quats_xyzw, trajectory.quats_xyzw, atol=1e-15)


@pytest.mark.parametrize(
    ('word', 'stamp_ns'),
    [
        ('1305031229.433099985', 1305031229433099985),
        ('1305031229.4331', 1305031229433100000),
        ('1.305031229433099985e+09', 1305031229433099985),
        ('1305031229.43309998549', 1305031229433099985),
        ('7', 7_000_000_000),
        ('0', 0),
        ('9223372035.999999999', 9223372035999999999),
    ],
)
def test_tum_stamps_are_decimals(word: str, stamp_ns: int) -> None:
    trajectory = Trajectory.from_tum(f'{word} 1 2 3 0 0 0 1\n', 'file')
    assert trajectory.stamps_ns.tolist() == [stamp_ns]


def test_tum_text_of_a_known_pose() -> None:
    trajectory = Trajectory(np.array([1_000_000_002]), np.eye(4)[[3]], np.array([[0.5, -2, 0.1]]))
    assert trajectory.to_tum() == '1.000000002 0.5 -2.0 0.1 0.0 0.0 0.0 1.0\n'


def test_empty_text_is_an_empty_trajectory() -> None:
    empty = Trajectory.from_tum('# nothing was localized\n', 'file')
    assert len(empty) == 0
    assert empty.to_tum() == ''
    assert empty.pose_at(5, 10**9) is None


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('3 1 2 3 0 0 0', 'file line 4 has 7 words: it needs 8'),
        ('3 1 2 3 0 0 0 1 0', 'file line 4 has 9 words'),
        ('3,1,2,3,0,0,0,1', 'file line 4 has 1 words'),
        ('3 1 2 x 0 0 0 1', "file line 4 has a bad number: .*'x'"),
        ('t 1 2 3 0 0 0 1', "file line 4 has stamp 't': it must be seconds"),
        ('nan 1 2 3 0 0 0 1', 'file line 4 has stamp nan: it must be seconds from 0 on'),
        ('-3 1 2 3 0 0 0 1', 'file line 4 has stamp -3: it must be seconds from 0 on'),
        ('1e999999 1 2 3 0 0 0 1', 'file line 4 has stamp 1e999999'),
        ('9223372036 1 2 3 0 0 0 1', 'file line 4 has stamp 9223372036'),
        ('3 1 nan 3 0 0 0 1', 'file line 4 has a position that is not finite'),
        ('3 1 inf 3 0 0 0 1', 'file line 4 has a position that is not finite'),
        ('3 1 2 3 0 0 0 0', 'file line 4 has a quaternion not of length one'),
        ('3 1 2 3 0 0 nan 1', 'file line 4 has a quaternion not of length one'),
        ('3 1 2 3 0 0 0 1e300', 'file line 4 has a quaternion not of length one'),
        ('3 1 2 3 0 0 0 1.1', 'file line 4 has a quaternion not of length one'),
        ('2 1 2 3 0 0 0 1', 'file line 4 has a stamp that is not later than the one before'),
        ('1.5 1 2 3 0 0 0 1', 'file line 4 has a stamp that is not later: mend'),
    ],
)
def test_bad_lines_are_named(line: str, message: str) -> None:
    text = f'# header\n1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 1\n{line}\n5 0 0 0 0 0 0 1\n'
    with pytest.raises(DataError, match=message.replace(' later: mend', ' later than .*: mend')):
        Trajectory.from_tum(text, 'file')


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'trajectory .*none\.tum cannot be read: No such file'):
        read_tum(tmp_path / 'none.tum')
    (tmp_path / 'binary.tum').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='is not text: give a TUM file'):
        read_tum(tmp_path / 'binary.tum')


def test_bad_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r'needs shapes \(N,\), \(N, 4\) and \(N, 3\)'):
        Trajectory(np.array([1, 2]), np.eye(4)[[3]], np.zeros((2, 3)))
    with pytest.raises(ValueError, match='stamps have type float64'):
        Trajectory(np.array([1.0]), np.eye(4)[[3]], np.zeros((1, 3)))
    with pytest.raises(ValueError, match='stamps have type float64'):
        random_trajectory(3).interpolate([1.5], 10)
    with pytest.raises(DataError, match='row 1 of the trajectory has a stamp that is not later'):
        interpolate_poses([5, 5], [Rigid3d(), Rigid3d()], [5], 10)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The server's logic with scripted results, its threads, and a real localizer in the room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
import logging
import threading
import time
from typing import Any

from conftest import CAMERA, Scene, walk, Whole
import numpy as np
import pytest

from feat_ros.errors import ConfigError, ImageError, SegmentError
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d, rotation_angle_deg, so3_exp, so3_log
from feat_ros.image import Image
from feat_ros.localizer import Localizer
from feat_ros.server import _Submitted, Frame, LocalizationServer, ServerConfig
from feat_ros.sfm_map import SfmMap
from feat_ros.types import (
    FailureReason,
    Features,
    FrameRecord,
    LocalizationResult,
    PoseEstimate,
    PoseFailure,
    PosePrior,
    View,
)

SECOND = 10**9
START = 1_700_000_000 * SECOND
BLANK: Image = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
WAIT_S = 30.0
# Small beside everything that the tests look at.
COVARIANCE = np.diag([1e-6] * 3 + [1e-8] * 3)
ONE_BY_ONE, AHEAD = (ServerConfig(extract_ahead=is_ahead) for is_ahead in (False, True))
LOST = PoseFailure(FailureReason.TOO_FEW_MATCHES, 'it is dark', num_matches=3, ms={'match': 2.0})


class Script(Whole):
    """A localizer that says what it is told, and keeps what it was asked."""

    def __init__(self, *answers: LocalizationResult) -> None:
        self.answers = list(answers)
        self.priors: list[PosePrior | None] = []
        self.views: list[Sequence[View]] = []

    def localize_rig(
        self, views: Sequence[View], prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Give the next answer."""
        self.priors.append(prior)
        self.views.append(views)
        return self.answers.pop(0)


class Gate(Whole):
    """A localizer that waits in the middle until it is let go."""

    def __init__(self, answer: LocalizationResult) -> None:
        self.answer = answer
        self.entered, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def localize_rig(
        self, views: Sequence[View], prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Say that it was entered, then wait."""
        self.entered.release()
        assert self.go.acquire(timeout=WAIT_S)
        return self.answer


def estimate(map_from_cam: Rigid3d, covariance: Any = COVARIANCE) -> PoseEstimate:
    """Return a pose that a localizer found."""
    return PoseEstimate(
        cam_from_map=map_from_cam.inverse(),
        covariance=np.asarray(covariance, float),
        num_matches=50,
        num_inliers=40,
        mode='global',
        inliers=np.arange(40),
        matches=np.zeros((50, 2), np.int64),
        ms={'extract': 10.0, 'pnp': 5.0},
    )


def place(x: float, y: float = 0.0, yaw_deg: float = 0.0) -> Rigid3d:
    """Return a pose on the floor."""
    return Rigid3d(so3_exp([0, 0, np.radians(yaw_deg)]), np.array([x, y, 0.0]))


def frame(seconds: float, odom_from_base: Rigid3d | None = None, **more: Any) -> Frame:
    """Return a frame without anything to see."""
    stamp_ns = START + round(seconds * SECOND)
    return Frame(stamp_ns, BLANK, CAMERA, odom_from_base=odom_from_base, **more)


def assert_same(a: Rigid3d | None, b: Rigid3d | None, tolerance: float = 1e-9) -> None:
    """Compare two transforms."""
    assert a is not None and b is not None
    np.testing.assert_allclose(a.translation, b.translation, atol=tolerance)
    np.testing.assert_allclose(a.rotation, b.rotation, atol=tolerance)


CAM_FROM_BASE = Rigid3d(so3_exp([0.3, -1.2, 0.8]), np.array([0.4, -0.2, 1.1]))
ODOM_FROM_MAP = Rigid3d(so3_exp([0, 0, 2.0]), np.array([30.0, -7.0, 0.1]))


def test_pose_of_the_base() -> None:
    truth = place(3, 1, 40)
    server = LocalizationServer(Script(estimate(truth @ CAM_FROM_BASE.inverse())))
    assert server.map_from_odom is None
    odom_from_base = ODOM_FROM_MAP @ truth
    record = server.process(frame(0, odom_from_base, cam_from_base=CAM_FROM_BASE))
    assert (record.stamp_ns, record.status, record.reason) == (START, 'localized', None)
    assert (record.mode, record.num_matches, record.num_inliers) == ('global', 50, 40)
    # To what the localizer says comes what it took to look.
    assert list(record.ms) == ['extract', 'pnp']
    assert record.ms['extract'] > 10.0 and record.ms['pnp'] == 5.0
    assert_same(record.map_from_base, truth)
    assert_same(server.map_from_odom, ODOM_FROM_MAP.inverse())


def test_without_a_mount_the_camera_is_the_base() -> None:
    truth = place(3, 1, 40)
    record = LocalizationServer(Script(estimate(truth))).process(frame(0))
    assert_same(record.map_from_base, truth)
    np.testing.assert_array_equal(record.covariance, COVARIANCE)


def test_covariance_moves_with_the_lever() -> None:
    rng = np.random.default_rng(3)
    factor = rng.normal(size=(6, 6)) * 0.01
    covariance = factor @ factor.T
    map_from_cam = Rigid3d(so3_exp([0.5, 0.2, -2]), np.array([5.0, 6.0, 7.0]))
    record = LocalizationServer(Script(estimate(map_from_cam, covariance))).process(
        frame(0, cam_from_base=CAM_FROM_BASE)
    )
    assert record.covariance is not None and record.map_from_base is not None
    errors = []
    for error in rng.multivariate_normal(np.zeros(6), covariance, 20_000):
        rotation = so3_exp(error[3:]) @ map_from_cam.rotation
        true = Rigid3d(rotation, map_from_cam.translation + error[:3]) @ CAM_FROM_BASE
        turn = so3_log(true.rotation @ record.map_from_base.rotation.T)
        errors.append([*(true.translation - record.map_from_base.translation), *turn])
    sampled, scale = np.cov(np.array(errors).T), np.sqrt(np.diag(record.covariance))
    normalised = (sampled - record.covariance) / np.outer(scale, scale)
    assert np.abs(normalised).max() < 0.05


def test_failure_is_a_record_with_its_reason() -> None:
    server = LocalizationServer(Script(estimate(place(1)), LOST))
    server.process(frame(0, place(1)))
    before = server.map_from_odom
    record = server.process(frame(0.5, place(1)))
    assert (record.status, record.reason, record.detail, record.num_matches) == (
        'refused', FailureReason.TOO_FEW_MATCHES, 'it is dark', 3,
    )  # fmt: skip
    assert record.map_from_base is None and record.covariance is None
    assert server.map_from_odom is before
    snapshot = server.snapshot()
    assert (snapshot.frames, snapshot.localized, snapshot.refused) == (
        2,
        1,
        {'TOO_FEW_MATCHES': 1},
    )
    assert snapshot.last_problem == 'TOO_FEW_MATCHES: it is dark'
    assert snapshot.fix_age_s == 0.5
    assert server.snapshot(START + 3 * SECOND).fix_age_s == 3.0


def test_prior_without_odometry_is_the_last_fix_and_widens() -> None:
    config = ServerConfig(
        prior_radius_m=0.5, prior_angle_deg=10, max_speed_m_s=2, max_turn_deg_s=30,
        max_prior_radius_m=4,
    )  # fmt: skip
    script = Script(estimate(place(1, 2, 30), np.diag([1e-12] * 6)), LOST, LOST, LOST)
    server = LocalizationServer(script, config)
    for seconds in (0, 0.5, 1.5, 2.0):
        server.process(frame(seconds))
    first, *priors, too_old = script.priors
    assert first is None and too_old is None
    for prior, seconds in zip(priors, (0.5, 1.5), strict=True):
        assert prior is not None
        assert_same(prior.cam_from_map.inverse(), place(1, 2, 30))
        assert prior.radius_m == pytest.approx(0.5 + 2 * seconds, abs=1e-4)
        assert prior.angle_deg == pytest.approx(10 + 30 * seconds, abs=1e-3)


def test_a_prior_that_may_have_turned_away_is_none() -> None:
    script = Script(estimate(place(0)), LOST, LOST)
    config = ServerConfig(max_turn_deg_s=30, prior_angle_deg=10, max_prior_angle_deg=60)
    server = LocalizationServer(script, config)
    for seconds in (0, 1.5, 1.8):
        server.process(frame(seconds))
    assert [prior is None for prior in script.priors] == [True, False, True]


def test_an_uncertain_heading_is_a_lever() -> None:
    config = ServerConfig(
        odometry_m_per_m=0, odometry_m_per_s=0, odometry_deg_per_deg=0, odometry_deg_per_s=0
    )
    script = Script(estimate(place(0), np.diag([1e-12] * 5 + [0.01**2])), LOST)
    server = LocalizationServer(script, config)
    server.process(frame(0, place(0)))
    server.process(frame(1, place(100)))
    assert script.priors[1] is not None
    assert script.priors[1].radius_m == pytest.approx(0.3 + 3 * 0.01 * 100, rel=1e-4)


def test_prior_covers_the_covariance_and_the_swing_of_the_camera() -> None:
    covariance = np.diag([0.04, 0.01, 0.01, 1e-4, 4e-4, 1e-4])
    script = Script(estimate(place(0), covariance), LOST)
    server = LocalizationServer(script, ServerConfig(max_speed_m_s=0, max_turn_deg_s=0))
    server.process(frame(0))
    server.process(frame(1))
    assert script.priors[1] is not None
    assert script.priors[1].angle_deg == pytest.approx(5 + np.degrees(3 * 0.02))
    assert script.priors[1].radius_m == pytest.approx(0.3 + 3 * 0.2)
    mounted = Rigid3d(np.eye(3), np.array([3.0, 0, 4.0]))
    script = Script(estimate(mounted.inverse(), np.diag([1e-12] * 6)), LOST)
    server = LocalizationServer(script, ServerConfig(max_speed_m_s=0, max_turn_deg_s=0))
    server.process(frame(0, cam_from_base=mounted))
    server.process(frame(1, cam_from_base=mounted))
    assert script.priors[1] is not None
    # Five degrees, five metres away.
    assert script.priors[1].radius_m == pytest.approx(0.3 + np.radians(5) * 5, abs=1e-3)


def test_prior_by_odometry_is_where_the_robot_is() -> None:
    truth = [place(0), place(1, 0, 20), place(2, 0.5, 50), place(3, 2, 90)]
    first = estimate(truth[0] @ CAM_FROM_BASE.inverse())
    script = Script(first, LOST, LOST, estimate(truth[3] @ CAM_FROM_BASE.inverse()))
    server = LocalizationServer(script)
    for seconds, map_from_base in enumerate(truth):
        odom_from_base = ODOM_FROM_MAP @ map_from_base
        record = server.process(frame(seconds, odom_from_base, cam_from_base=CAM_FROM_BASE))
    assert record.status == 'localized'
    for prior, map_from_base in zip(script.priors[1:], truth[1:], strict=True):
        assert prior is not None
        assert_same(prior.cam_from_map, CAM_FROM_BASE @ map_from_base.inverse())
    radii = [prior.radius_m for prior in script.priors[1:] if prior is not None]
    angles = [prior.angle_deg for prior in script.priors[1:] if prior is not None]
    assert 0.3 < radii[0] < radii[1] < radii[2] < 5
    assert 5 < angles[0] < angles[1] < angles[2] < 90


def test_a_detour_counts_as_long_as_it_was() -> None:
    config = ServerConfig(
        odometry_m_per_m=0.1, odometry_m_per_s=0, odometry_deg_per_deg=0, odometry_deg_per_s=0
    )
    script = Script(estimate(place(0), np.diag([1e-12] * 6)), LOST, LOST, LOST)
    server = LocalizationServer(script, config)
    for seconds, x in enumerate((0.0, 2.0, 4.0, 0.0)):
        server.process(frame(seconds, place(x)))
    assert script.priors[3] is not None
    # There and back: eight metres, a tenth of them, three times.
    assert script.priors[3].radius_m == pytest.approx(0.3 + 3 * 0.8, abs=1e-3)
    assert_same(script.priors[3].cam_from_map, Rigid3d())


def test_drift_of_the_heading_displaces_as_in_a_simulation() -> None:
    config = ServerConfig(
        odometry_m_per_m=0, odometry_m_per_s=0, odometry_deg_per_deg=0, odometry_deg_per_s=0.2,
        prior_radius_m=0, prior_angle_deg=0,
    )  # fmt: skip
    script = Script(estimate(place(0), np.diag([1e-16] * 6)), LOST)
    server = LocalizationServer(script, config)
    server.process(frame(0, place(0)))
    server.process(frame(10, place(20)))
    prior = script.priors[1]
    assert prior is not None
    # Heading that wanders: after 10 s two degrees, a random walk in 200 steps.
    rng = np.random.default_rng(0)
    headings = np.cumsum(rng.normal(0, np.radians(2) / np.sqrt(200), (4000, 200)), axis=1)
    sideways = np.sin(headings).sum(axis=1) * 20 / 200
    assert prior.radius_m == pytest.approx(3 * sideways.std(), rel=0.05)
    assert np.radians(prior.angle_deg) == pytest.approx(3 * headings[:, -1].std(), rel=0.05)


def test_odometry_that_is_missing_at_times() -> None:
    truth = [place(0), place(1), place(2), place(3)]
    script = Script(estimate(truth[0]), LOST, LOST, estimate(truth[3]))
    server = LocalizationServer(script)
    known = [ODOM_FROM_MAP @ truth[0], None, None, ODOM_FROM_MAP @ truth[3]]
    for number, odom_from_base in enumerate(known):
        server.process(frame(0.2 * number, odom_from_base))
    assert [prior is None for prior in script.priors] == [True, False, False, False]
    assert script.priors[2] is not None and script.priors[3] is not None
    assert_same(script.priors[2].cam_from_map, truth[0].inverse())
    assert_same(script.priors[3].cam_from_map, truth[3].inverse())
    # The three metres are not forgotten.
    assert script.priors[3].radius_m > 0.3 + 3 * server.config.odometry_m_per_m * 3


def drive(server: LocalizationServer, count: int, start: int = 0) -> list[FrameRecord]:
    """Drive along x at 1 m/s with exact odometry."""
    return [
        server.process(frame(i, ODOM_FROM_MAP @ place(i))) for i in range(start, start + count)
    ]


def test_a_wild_fix_is_refused() -> None:
    script = Script(*(estimate(place(x)) for x in (0, 1, 2)), estimate(place(9, 4)),
                    estimate(place(4)))  # fmt: skip
    server = LocalizationServer(script)
    drive(server, 3)
    before = server.map_from_odom
    (wild,) = drive(server, 1, 3)
    assert (wild.status, wild.reason) == ('refused', FailureReason.ODOMETRY_DISAGREES)
    assert wild.map_from_base is None
    assert '7.21 m and 0 deg from where odometry leads' in wild.detail
    assert server.map_from_odom is before
    (good,) = drive(server, 1, 4)
    assert good.status == 'localized'
    assert server.snapshot().refused == {'ODOMETRY_DISAGREES': 1}


def test_a_turn_is_refused_too() -> None:
    server = LocalizationServer(Script(estimate(place(0)), estimate(place(1, 0, 60))))
    assert [record.status for record in drive(server, 2)] == ['localized', 'refused']


def test_what_covariance_and_drift_allow_is_believed() -> None:
    for sigma, status in ((0.01, 'refused'), (0.2, 'localized')):
        vague = estimate(place(1.6), np.diag([sigma**2] * 3 + [1e-4] * 3))
        server = LocalizationServer(Script(estimate(place(0)), vague))
        assert drive(server, 2)[1].status == status
    drifting = ServerConfig(odometry_m_per_m=0.2)
    server = LocalizationServer(Script(estimate(place(0)), estimate(place(1.6))), drifting)
    assert drive(server, 2)[1].status == 'localized'


def test_a_carried_robot_is_believed_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = [estimate(place(50 + x, -3)) for x in range(1, 6)]
    server = LocalizationServer(
        Script(estimate(place(0)), *elsewhere), ServerConfig(accept_after=4)
    )
    with caplog.at_level(logging.WARNING):
        records = drive(server, 6)
    assert [r.status for r in records] == ['localized', *['refused'] * 3, *['localized'] * 2]
    assert_same(records[4].map_from_base, place(54, -3))
    assert_same(server.map_from_odom, place(50, -3) @ ODOM_FROM_MAP.inverse())
    assert server.snapshot().reseats == 1
    assert '4 fixes in a row agree that the robot is elsewhere' in caplog.text


def test_wild_fixes_that_contradict_each_other_are_never_believed() -> None:
    wild = [estimate(place(x)) for x in (20, 40, 41, 90, 150, -30)]
    server = LocalizationServer(Script(estimate(place(0)), *wild))
    assert [record.status for record in drive(server, 7)] == ['localized', *['refused'] * 6]


def test_failures_between_do_not_make_a_carried_robot_unbelievable() -> None:
    away = [estimate(place(50 + x)) for x in range(6)]
    server = LocalizationServer(Script(away[0], LOST, *(
        answer for x in range(2, 5) for answer in (estimate(place(x)), LOST)
    )))  # fmt: skip
    records = drive(server, 8)
    # Odometry goes on by two metres between two fixes here, the fixes by one.
    assert {record.reason for record in records[2::2]} == {FailureReason.ODOMETRY_DISAGREES}
    server = LocalizationServer(Script(estimate(place(0)), LOST, *(
        answer for x in (2, 4, 6) for answer in (estimate(place(50 + x)), LOST)
    )))  # fmt: skip
    statuses = [record.status for record in drive(server, 8)]
    assert statuses == ['localized', *['refused'] * 5, 'localized', 'refused']


def test_an_accepted_fix_ends_the_row() -> None:
    answers = [place(0), place(51), place(52), place(3), place(54), place(55), place(56)]
    server = LocalizationServer(Script(*map(estimate, answers)))
    accepted = [record.status == 'localized' for record in drive(server, 7)]
    assert accepted == [True, False, False, True, False, False, True]


def test_no_gate_without_odometry() -> None:
    server = LocalizationServer(Script(estimate(place(0)), estimate(place(80))))
    assert [server.process(frame(i)).status for i in range(2)] == ['localized'] * 2
    assert server.map_from_odom is None


@pytest.mark.parametrize(
    ('seconds', 'words'), [(-5, 'the clock went back by 15 s'), (10, 'a stamp came twice')]
)
def test_a_clock_that_jumps_back_resets(
    seconds: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    # With the old state the fix at 80 m would be refused.
    script = Script(estimate(place(0)), estimate(place(80)), LOST)
    server = LocalizationServer(script)
    server.process(frame(10, place(0)))
    with caplog.at_level(logging.WARNING):
        record = server.process(frame(seconds, place(0)))
    assert record.status == 'localized'
    assert script.priors == [None, None]
    assert words in caplog.text
    server.process(frame(seconds + 1, place(0)))
    assert script.priors[2] is not None
    assert server.snapshot().resets == 1


def test_reset_forgets() -> None:
    script = Script(estimate(place(0)), estimate(place(80)))
    server = LocalizationServer(script)
    server.process(frame(0, place(0)))
    server.reset('the operator said so')
    assert server.map_from_odom is None
    snapshot = server.snapshot()
    assert (snapshot.resets, snapshot.fix_age_s, snapshot.localized) == (1, None, 1)
    assert server.process(frame(1, place(0))).status == 'localized'
    assert script.priors == [None, None]


def test_relocalize_near_a_hint_until_a_fix() -> None:
    script = Script(estimate(place(0)), LOST, estimate(place(80)), LOST)
    server = LocalizationServer(script)
    drive(server, 1)
    hint = PosePrior(place(79).inverse(), 3.0, 45.0)
    server.relocalize(hint)
    records = drive(server, 3, 1)
    assert script.priors[:3] == [None, hint, hint]
    assert records[1].status == 'localized'
    assert script.priors[3] is not None and script.priors[3] is not hint
    assert_same(script.priors[3].cam_from_map.inverse(), place(81))


def test_relocalize_in_the_whole_map() -> None:
    script = Script(estimate(place(0)), estimate(place(80)))
    server = LocalizationServer(script)
    drive(server, 1)
    server.relocalize()
    assert drive(server, 1, 1)[0].status == 'localized'
    assert script.priors == [None, None]


def test_latency_percentiles_of_the_last_frames() -> None:
    times = [7.0, 1.0, 2.0, 3.0, 40.0]
    answers = [
        PoseFailure(FailureReason.PNP_FAILED, '', ms={'pnp': t, 'match': 1.0}) for t in times
    ]
    server = LocalizationServer(Script(*answers), ServerConfig(latency_window=4))
    assert server.snapshot().latency_ms == {}
    records = [server.process(frame(number)) for number in range(5)]
    totals = [sum(record.ms.values()) for record in records]
    assert all(total > t + 1 for total, t in zip(totals, times, strict=True))
    latency = server.snapshot().latency_ms
    for q in (50, 95):
        assert latency['pnp'][f'p{q}'] == pytest.approx(np.percentile(times[1:], q))
        assert latency['total'][f'p{q}'] == pytest.approx(np.percentile(totals[1:], q))


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match='accept_after is 1: it must be at least 2'):
        ServerConfig(accept_after=1)


class Records:
    """Keeps records, and waits for them."""

    def __init__(self) -> None:
        self.all: list[FrameRecord] = []
        self.threads: set[int] = set()
        self._came = threading.Semaphore(0)

    def __call__(self, record: FrameRecord) -> None:
        """Take one."""
        self.all.append(record)
        self.threads.add(threading.get_ident())
        self._came.release()

    def wait(self, count: int) -> None:
        """Wait for so many more."""
        for _ in range(count):
            assert self._came.acquire(timeout=WAIT_S)


def test_the_newest_frame_wins() -> None:
    gate, records = Gate(estimate(place(0))), Records()
    server = LocalizationServer(gate)
    server.start(records)
    server.submit(frame(0))
    assert gate.entered.acquire(timeout=WAIT_S)
    for seconds in (1, 2, 3):
        server.submit(frame(seconds))
    # The lock is free while a frame is localized.
    assert server.snapshot().dropped == 2
    gate.go.release(2)
    server.stop()
    assert [(r.stamp_ns - START) // SECOND for r in records.all] == [0, 1, 2, 3]
    statuses = [record.status for record in records.all]
    assert statuses == ['localized', 'dropped', 'dropped', 'localized']
    assert [r.detail for r in records.all[1:3]] == ['a newer frame came first'] * 2
    assert list(records.all[3].ms) == ['wait', 'extract', 'pnp']
    assert records.threads.isdisjoint({threading.get_ident()}) and len(records.threads) == 1
    snapshot = server.snapshot()
    assert (snapshot.frames, snapshot.localized, snapshot.dropped) == (4, 2, 2)


def test_start_and_stop_again() -> None:
    records = Records()
    server = LocalizationServer(Script(*[estimate(place(0))] * 2))
    with pytest.raises(RuntimeError, match='start it first'):
        server.submit(frame(0))
    for number in range(2):
        server.start(records)
        with pytest.raises(RuntimeError, match='runs already'):
            server.start(records)
        server.submit(frame(number))
        server.stop()
        assert len(records.all) == number + 1
        with pytest.raises(RuntimeError, match='start it first'):
            server.submit(frame(5))
    server.stop()


def test_a_new_map_drops_the_frame_in_work() -> None:
    gate, records = Gate(estimate(place(0))), Records()
    server = LocalizationServer(gate)
    server.start(records)
    server.submit(frame(0, place(0)))
    assert gate.entered.acquire(timeout=WAIT_S)
    script = Script(estimate(place(33)))
    server.set_map(script)
    gate.go.release()
    records.wait(1)
    assert (records.all[0].status, records.all[0].detail) == ('dropped', 'a reset came first')
    assert server.map_from_odom is None
    server.submit(frame(1, place(0)))
    server.stop()
    assert_same(records.all[1].map_from_base, place(33))
    assert script.priors == [None]
    assert (server.snapshot().dropped, server.snapshot().localized) == (1, 1)


def rig_frame(seconds: float, x: float = 0.0, **changes: Any) -> Frame:
    """Return a frame of a camera that is mounted on a base."""
    mounted = replace(frame(seconds), cam_from_base=place(x).inverse())
    return Frame(**{**vars(mounted), **changes})


def test_cameras_of_one_moment_give_one_pose() -> None:
    """The body is localized as one; the other record says so, and nothing is lost."""
    script = Script(estimate(place(1)), estimate(place(2)))
    server = LocalizationServer(script)
    moment = {0: rig_frame(0), 1: rig_frame(0, 0.5)}
    first, second = server.process_moment(moment)
    assert (first.status, second.status) == ('localized', 'joined')
    assert second.map_from_base is None
    assert_same(first.map_from_base, place(1))
    left, right = script.views[0]
    assert_same(left.cam_from_rig, place(0))
    assert_same(right.cam_from_rig, place(-0.5))
    server.process_moment({0: rig_frame(0.1), 1: rig_frame(0.1, 0.5)})
    prior = script.priors[1]
    assert prior is not None
    assert_same(prior.cam_from_map, place(1).inverse())
    snapshot = server.snapshot()
    assert (snapshot.frames, snapshot.localized, snapshot.joined) == (4, 2, 2)
    assert snapshot.resets == 0


def test_cameras_are_waited_for_a_moment() -> None:
    script = Script(*[estimate(place(n)) for n in range(4)])
    records, server = Records(), LocalizationServer(script, ServerConfig(moment_wait_s=1.0))
    server.process(rig_frame(0), 0)
    server.process(rig_frame(0, 0.5), 1)
    server.start(records)
    server.submit(rig_frame(1), 0)
    server.submit(rig_frame(1, 0.5), 1)
    records.wait(2)
    server.submit(replace(rig_frame(2), cam_from_base=None), 0)
    records.wait(1)
    server.stop()
    assert [r.status for r in records.all] == ['localized', 'joined', 'localized']
    assert [len(views) for views in script.views] == [1, 1, 2, 1]


def test_a_bad_image_of_a_moment_does_not_cost_the_other() -> None:
    script = Script(estimate(place(0)))
    records, server = Records(), LocalizationServer(script)
    small = np.zeros((2, 2, 3), np.uint8)
    records_of = server._process_whatever(
        {
            0: _Submitted(rig_frame(0, image_rgb=small), 0.0),
            1: _Submitted(rig_frame(0, 0.5), 0.0),
        }
    )
    assert [r.status for r in records_of] == ['refused', 'localized']
    assert records_of[0].reason is FailureReason.BAD_IMAGE
    snapshot = server.snapshot()
    assert (snapshot.failed, snapshot.localized, snapshot.joined) == (1, 1, 0)
    assert not records.all


class Eyes(Gate):
    """A localizer behind a gate, whose eyes are ahead."""

    def __init__(self) -> None:
        super().__init__(estimate(place(0)))
        self.looked = threading.Semaphore(0)
        self.extracted: list[Features] = []
        self.localized: list[Any] = []
        self.error: Exception | None = None

    def features(self, view: View) -> Features:
        """Say that it has looked."""
        if self.error is not None:
            raise self.error
        self.extracted.append(super().features(view))
        self.looked.release()
        return self.extracted[-1]

    def localize_rig(
        self, views: Sequence[View], prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Keep what was seen, then wait."""
        self.localized.append(views[0].image_rgb)
        return super().localize_rig(views, prior)


@pytest.fixture
def eyes() -> Iterator[tuple[Eyes, LocalizationServer, Records]]:
    """A server that extracts ahead and has a frame in work, another one extracted."""
    localizer, records = Eyes(), Records()
    server = LocalizationServer(localizer, AHEAD)
    server.start(records)
    server.submit(frame(0))
    assert localizer.entered.acquire(timeout=WAIT_S)
    server.submit(frame(1))
    for _ in range(2):
        assert localizer.looked.acquire(timeout=WAIT_S)
    yield localizer, server, records


Ahead = tuple[Eyes, LocalizationServer, Records]


def test_the_next_frame_is_extracted_while_one_is_localized(eyes: Ahead) -> None:
    localizer, server, records = eyes
    assert not records.all
    # One that is extracted is not replaced any more.
    submitted_s = time.perf_counter()
    for seconds in (2, 3):
        server.submit(frame(seconds))
    localizer.go.release(3)
    server.stop()
    assert [(r.stamp_ns - START) // SECOND for r in records.all] == [0, 1, 2, 3]
    assert [r.status for r in records.all] == ['localized', 'localized', 'dropped', 'localized']
    assert localizer.localized == localizer.extracted and len(localizer.extracted) == 3
    assert len(records.threads) == 1
    ms = records.all[3].ms
    assert list(ms) == ['wait', 'extract', 'pnp']
    assert ms['wait'] >= 0 and ms['extract'] >= 10.0
    # What was extracted while it waited does not count twice.
    assert sum(ms.values()) <= (time.perf_counter() - submitted_s) * 1e3 + 15.0


def test_what_is_extracted_ahead_is_new_when_its_turn_comes(eyes: Ahead) -> None:
    """Localizing took ten minutes last time: until it is done newer frames may come."""
    localizer, server, records = eyes
    localizer.go.release()
    assert localizer.entered.acquire(timeout=WAIT_S)
    with server._changed:
        server._localize_s = 600.0
    for seconds in (2, 3):
        server.submit(frame(seconds))
    assert not localizer.looked.acquire(timeout=0.1)
    localizer.go.release(2)
    server.stop()
    assert [r.status for r in records.all] == ['localized', 'localized', 'dropped', 'localized']
    assert len(localizer.extracted) == 3


def test_features_of_another_map_are_not_used(eyes: Ahead) -> None:
    localizer, server, records = eyes
    script = Script(estimate(place(33)))
    server.set_map(script)
    localizer.go.release()
    server.stop()
    assert [r.status for r in records.all] == ['dropped', 'localized']
    assert len(localizer.extracted) == 2
    assert script.views[0][0].image_rgb not in localizer.extracted


def test_what_cannot_be_extracted_is_said_in_its_turn(eyes: Ahead) -> None:
    localizer, server, records = eyes
    localizer.error = ImageError('image is 2x2')
    small = np.zeros((2, 2, 3), np.uint8)
    localizer.go.release(2)
    records.wait(2)
    server.submit(replace(frame(2), image_rgb=lambda: small))
    server.stop()
    assert [(r.status, r.reason) for r in records.all[2:]] == [
        ('refused', FailureReason.BAD_IMAGE)
    ]
    assert 'image is 2x2' in records.all[2].detail


def test_a_bug_in_extraction_ends_both_threads(
    eyes: Ahead, caplog: pytest.LogCaptureFixture
) -> None:
    localizer, server, records = eyes
    localizer.error = ZeroDivisionError('oops')
    localizer.go.release(2)
    records.wait(2)
    server.submit(frame(2))
    with pytest.raises(RuntimeError, match='ended by a bug'):
        server.stop()
    assert len(records.all) == 2
    assert 'extraction thread ended by a bug' in caplog.text


def test_a_bug_in_what_takes_records_ends_both_threads() -> None:
    taken: list[FrameRecord] = []

    def take(record: FrameRecord) -> None:
        taken.append(record)
        raise ZeroDivisionError('oops')

    localizer = Eyes()
    server = LocalizationServer(localizer, AHEAD)
    server.start(take)
    for seconds in (0, 1):
        server.submit(frame(seconds))
        assert localizer.looked.acquire(timeout=WAIT_S)
    localizer.go.release()
    with pytest.raises(RuntimeError, match='ended by a bug'):
        server.stop()
    assert len(taken) == 1


def test_cameras_of_one_moment_are_extracted_ahead() -> None:
    script, records = Script(*[estimate(place(1))] * 2), Records()
    server = LocalizationServer(script, replace(AHEAD, moment_wait_s=1.0))
    server.process_moment({0: rig_frame(0), 1: rig_frame(0, 0.5)})
    server.start(records)
    server.submit(rig_frame(0.1), 0)
    server.submit(rig_frame(0.1, 0.5), 1)
    server.stop()
    assert [r.status for r in records.all] == ['localized', 'joined']
    left, right = script.views[1]
    assert_same(left.cam_from_rig, place(0))
    assert_same(right.cam_from_rig, place(-0.5))


class Broken(Whole):
    """A localizer that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def localize_rig(
        self, views: Sequence[View], prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Raise."""
        raise self.error


def test_an_unusable_image_does_not_end_the_thread() -> None:
    records, server = Records(), LocalizationServer(Broken(ImageError('image is 2x2')))
    with pytest.raises(ImageError, match='image is 2x2'):
        server.process(frame(0))
    server.start(records)
    for number in (1, 2):
        server.submit(frame(number))
        records.wait(1)
    server.stop()
    assert [(r.status, r.reason, r.detail) for r in records.all] == [
        ('refused', FailureReason.BAD_IMAGE, 'image is 2x2')
    ] * 2
    snapshot = server.snapshot()
    assert (snapshot.frames, snapshot.failed, snapshot.last_problem) == (3, 3, 'image is 2x2')


class Holed(Whole):
    """A localizer of a map whose segment 2 is gone; it is asked to do without once or not."""

    def __init__(self, can_do_without: bool) -> None:
        self.can_do_without = can_do_without
        self.left_out: list[int] = []

    def leave_out(self, error: SegmentError) -> bool:
        """Note it."""
        self.left_out.append(error.segment)
        return self.can_do_without and len(self.left_out) == 1

    def localize_rig(
        self, views: Sequence[View], prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Localize without the segment, if it can be done without."""
        if self.can_do_without and self.left_out:
            return estimate(place(0))
        raise SegmentError('segment-0002 is missing', 2)


@pytest.mark.parametrize('can_do_without', [True, False])
def test_a_segment_that_goes_is_done_without(can_do_without: bool) -> None:
    """Live; a replay stops there."""
    holed = Holed(can_do_without)
    records, server = Records(), LocalizationServer(holed)
    server.start(records)
    for number in (1, 2):
        server.submit(frame(number))
        records.wait(1)
    server.stop()
    snapshot = server.snapshot()
    if can_do_without:
        assert [record.status for record in records.all] == ['localized'] * 2
        assert (snapshot.localized, snapshot.failed, holed.left_out) == (2, 0, [2])
    else:
        assert [(r.reason, r.detail) for r in records.all] == [
            (FailureReason.MAP_DAMAGED, 'segment-0002 is missing')
        ] * 2
        assert snapshot.failed == 2
    with pytest.raises(SegmentError):
        LocalizationServer(Holed(True)).process(frame(3))


def test_what_is_known_stays_when_a_segment_goes() -> None:
    """The frame is not taken for a second one of its stamp."""
    holed, records = Holed(can_do_without=True), Records()
    holed.left_out.append(1)
    server = LocalizationServer(holed)
    server.start(records)
    server.submit(frame(0, place(0)))
    records.wait(1)
    holed.left_out.clear()
    server.submit(frame(1, place(0)))
    server.stop()
    assert [record.status for record in records.all] == ['localized'] * 2
    assert server.snapshot().resets == 0


def test_a_segment_is_left_out_of_the_map_it_is_of() -> None:
    server = LocalizationServer(Script())
    other = Script(estimate(place(0)))

    class Going(Holed):
        """Its map is replaced while it is read."""

        def localize_rig(
            self, views: Sequence[View], prior: PosePrior | None = None
        ) -> LocalizationResult:
            """Fail once."""
            server.set_map(other)
            return super().localize_rig(views, prior)

    going, records = Going(can_do_without=True), Records()
    server.set_map(going)
    server.start(records)
    server.submit(frame(0))
    server.stop()
    assert going.left_out == [2]
    assert records.all[0].detail == 'a reset came first'


def test_a_bug_is_not_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    server = LocalizationServer(Broken(ZeroDivisionError('oops')))
    server.start(Records())
    server.submit(frame(0))
    with pytest.raises(RuntimeError, match='ended by a bug') as caught:
        server.stop()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert 'oops' in caplog.text
    server.set_map(Script(estimate(place(0))))
    assert server.process(frame(1)).status == 'localized'


def run_threads(jobs: list[Callable[[], object]]) -> None:
    """Run all at once; fail where one raises or hangs."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not errors and not any(thread.is_alive() for thread in threads)


class Counting(Whole):
    """A localizer that checks that it is never entered twice."""

    def __init__(self) -> None:
        self.inside = self.most = self.calls = 0

    def localize_rig(
        self, views: Sequence[View], prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Give other threads a chance to come in too."""
        self.inside += 1
        self.calls += 1
        self.most = max(self.most, self.inside)
        threading.Event().wait(1e-4)
        self.inside -= 1
        return estimate(place(0)) if self.calls % 3 else LOST


@pytest.mark.parametrize('config', [ONE_BY_ONE, AHEAD])
def test_many_threads_at_once(config: ServerConfig) -> None:
    localizer, records = Counting(), Records()
    server = LocalizationServer(localizer, config)
    stamps = iter(range(1, 10**6))
    server.start(records)

    def process() -> None:
        for _ in range(50):
            server.process(frame(next(stamps)))

    def submit() -> None:
        for _ in range(100):
            server.submit(frame(next(stamps)))
            threading.Event().wait(1e-4)

    def meddle() -> None:
        for number in range(60):
            server.snapshot()
            if number % 20 == 0:
                server.reset('test')
                server.set_map(localizer)

    run_threads([process, process, submit, submit, meddle, meddle])
    server.stop()
    assert localizer.most == 1
    snapshot = server.snapshot()
    assert snapshot.frames == 300
    assert snapshot.frames == (
        snapshot.localized + snapshot.dropped + sum(snapshot.refused.values())
    )
    assert len(records.all) == 200
    assert snapshot.resets >= 12


@pytest.fixture(scope='module')
def real(room_map: SfmMap) -> Iterator[Localizer]:
    """A localizer in the room."""
    yield Localizer(room_map, create_extractor('sift', max_keypoints=600))


def test_a_walk_through_the_room(real: Localizer, scene: Scene) -> None:
    server = LocalizationServer(real, ServerConfig(max_turn_deg_s=20))
    records = []
    for number, query in enumerate(scene.queries):
        image = scene.room.shoot(CAMERA, query.cam_from_map, 90 + number)
        base_from_map = CAM_FROM_BASE.inverse() @ query.cam_from_map
        stamp_ns = START + number * SECOND
        odom_from_base = ODOM_FROM_MAP @ base_from_map.inverse()
        records.append(
            server.process(Frame(stamp_ns, image, CAMERA, CAM_FROM_BASE, odom_from_base))
        )
        found = records[-1].map_from_base
        assert found is not None
        assert np.linalg.norm(found.translation - base_from_map.inverse().translation) < 0.03
        assert rotation_angle_deg(found.rotation, base_from_map.inverse().rotation) < 0.5
    assert [record.mode for record in records] == ['global', 'prior', 'prior']
    assert server.map_from_odom is not None
    error = server.map_from_odom @ ODOM_FROM_MAP
    # The room is more than a kilometre from odometry's origin: a lever for the orientation.
    assert rotation_angle_deg(error.rotation, np.eye(3)) < 0.5


def test_a_carried_robot_in_the_room(real: Localizer, scene: Scene) -> None:
    """Odometry that never moved, pictures from elsewhere: found, refused, then believed."""
    server = LocalizationServer(real)
    poses = [walk(10)[1], *walk(10)[7:10]]
    images = [scene.room.shoot(CAMERA, pose, 50 + n) for n, pose in enumerate(poses)]
    still = [images[0], *[images[2]] * 3]
    records = [
        server.process(Frame(START + n * SECOND, image, CAMERA, None, Rigid3d()))
        for n, image in enumerate(still)
    ]
    assert [record.status for record in records] == [
        'localized', 'refused', 'refused', 'localized',
    ]  # fmt: skip
    assert records[1].reason == FailureReason.ODOMETRY_DISAGREES
    assert records[3].map_from_base is not None
    truth = poses[2].inverse().translation
    assert np.linalg.norm(records[3].map_from_base.translation - truth) < 0.03


def test_ahead_or_not_the_poses_are_the_same(real: Localizer, scene: Scene) -> None:
    found = []
    for config in (ONE_BY_ONE, AHEAD):
        server, records = LocalizationServer(real, config), Records()
        server.start(records)
        for number, query in enumerate(scene.queries):
            image = scene.room.shoot(CAMERA, query.cam_from_map, 90 + number)
            server.submit(Frame(START + number * SECOND, image, CAMERA, CAM_FROM_BASE))
            records.wait(1)
        server.stop()
        found.append([record.map_from_base for record in records.all])
    for a, b in zip(*found, strict=True):
        assert_same(a, b, 0.0)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The page that shows how a recording was localized."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
import re
from typing import Any
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from feat_ros import config, report
from feat_ros.camera import Camera
from feat_ros.errors import DataError
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.image import decode_image, Image
from feat_ros.report import ExampleFrame, write_report
from feat_ros.sfm_map import (
    ExtractorInfo,
    Manifest,
    Segment,
    SfmMap,
    write_manifest,
    write_segment,
)
from feat_ros.types import (
    FailureReason,
    Features,
    FrameRecord,
    JsonDict,
    LocalizationResult,
    PoseEstimate,
    PoseFailure,
)

Float = npt.NDArray[np.float64]

SUMMARY: JsonDict = {
    'num_queries': 361,
    'num_localized': 342,
    'median_translation_error_m': 0.0142,
    'median_rotation_error_deg': 0.6,
    'recall': {'0.05m_5deg': 0.96, '0.25m_2deg': 0.9999},
    'latency_ms': {
        'match': {'p50': 12.0, 'p95': 30.0},
        'total': {'p50': 48.2, 'p95': 60.0},
    },
}
SIGMA = np.array([0.01, 0.01, 0.01, 0.002, 0.002, 0.002])


def make_map(
    folder: Path, points: Float, *, gravity: str = 'known', scale: str = 'metric'
) -> SfmMap:
    """Write a map of given points, its cameras on the x axis."""
    folder.mkdir()
    num, camera = len(points), Camera('PINHOLE', 64, 48, (50.0, 50.0, 32.0, 24.0))
    facing_north = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    poses = [Rigid3d(facing_north, -facing_north @ [x, 0.0, 1.5]) for x in range(0, 50, 5)]
    segment = Segment(
        points_xyz=points,
        point_covariance=np.tile(np.eye(3) * 1e-4, (num, 1, 1)),
        point_descriptors=np.eye(4, dtype=np.float32)[np.arange(num) % 4],
        point_stability=np.ones(num, np.float32),
        image_names=[f'{n}.png' for n in range(len(poses))],
        image_camera=[0] * len(poses),
        image_cam_from_map=poses,
        image_observations=[(np.arange(1), np.zeros((1, 2), np.float32))] * len(poses),
        cameras=[camera],
    )
    info = write_segment(folder / 'segment-0000', segment)
    write_manifest(
        folder,
        Manifest(
            scale=scale,
            gravity=gravity,
            extractor=ExtractorInfo('sift', 4),
            segments=[config.to_dict(info)],
        ),
    )
    return SfmMap(folder)


@pytest.fixture(scope='module')
def town(tmp_path_factory: pytest.TempPathFactory) -> SfmMap:
    points = np.random.default_rng(1).uniform([-10, 3, 0], [60, 12, 8], (4000, 3))
    return make_map(tmp_path_factory.mktemp('maps') / 'town & <country>', points)


def make_records(count: int, *, truth: bool = True, lost: Sequence[int] = ()) -> list[FrameRecord]:
    """Make a straight drive with errors that the covariances predict, ten frames a second."""
    rng = np.random.default_rng(2)
    records = []
    for n in range(count):
        true = Rigid3d(so3_exp([0, 0, 0.01 * n % 3]), np.array([45.0 * n / count, 0.5, 1.5]))
        known = true if truth else None
        stamp_ns = 1_700_000_000_000_000_000 + n * 100_000_000
        if n in lost:
            reason = FailureReason.NO_CANDIDATES if n % 2 else FailureReason.TOO_FEW_INLIERS
            records.append(FrameRecord(stamp_ns, 'refused', reason, 'why', truth=known))
            continue
        error = rng.normal(size=6) * SIGMA
        found = Rigid3d(so3_exp(-error[3:]) @ true.rotation, true.translation - error[:3])
        records.append(
            FrameRecord(
                stamp_ns, 'localized', map_from_base=found, covariance=np.diag(SIGMA**2),
                truth=known, num_matches=5, num_inliers=3,
            )
        )  # fmt: skip
    return records


def make_example(record: FrameRecord, image: Image) -> ExampleFrame:
    """Make a frame of five keypoints, the first three of them inliers."""
    height, width = image.shape[:2]
    keypoints = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.5], [0.6, 0.7], [0.9, 0.8]])
    keypoints = (keypoints * [width, height]).astype(np.float32)
    ones = np.ones(5, np.float32)
    features = Features(
        keypoints, ones, np.eye(5, dtype=np.float32),
        np.array([1.0, 0.8, 0.5, 0.1, 0.0], np.float32), ones,
    )  # fmt: skip
    matches = np.column_stack([np.arange(5), np.arange(5)])
    result: LocalizationResult
    if record.map_from_base is None or record.covariance is None:
        result = PoseFailure(FailureReason.NO_CANDIDATES, 'why', 5, 0)
        return ExampleFrame(record, image, features, result, np.zeros((0, 2)))
    result = PoseEstimate(
        record.map_from_base.inverse(), record.covariance, 5, 3, 'global', np.arange(3), matches
    )
    return ExampleFrame(record, image, features, result, keypoints[:3] + np.array([2.0, -1.0]))


def soft_noise(width: int, height: int) -> Image:
    """Make a picture with about as much detail as a photograph."""
    noise = np.random.default_rng(3).normal(size=(height, width, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.asarray(np.clip(128 + 40 * soft / soft.std(), 0, 255), np.uint8)


class Page:
    """A written report, parsed; that it can be is the first test of each."""

    def __init__(self, path: Path) -> None:
        self.source = path.read_text(encoding='utf-8')
        self.root = ElementTree.fromstring(self.source)
        self.text = ' '.join(''.join(self.root.itertext()).split())
        self.cards = {str(figure.findtext('h2')): figure for figure in self.root.iter('figure')}

    @property
    def verdict(self) -> str:
        return str(self.root.findtext(".//p[@class='verdict']"))

    def path_numbers(self, card: str, css: str) -> Float:
        """Return the numbers of the last mark of a class on a card; samples come after."""
        marks = self.cards[card].findall(f".//svg[@role='img']//path[@class='{css}']")
        return np.array(re.findall(r'-?\d+\.\d', marks[-1].attrib['d']), float)

    def images(self, card: str) -> list[Any]:
        """Return the pictures on a card, decoded by OpenCV without conversion."""
        uris = [element.attrib['href'] for element in self.cards[card].iter('image')]
        files = [base64.b64decode(uri.partition('base64,')[2]) for uri in uris]
        return [cv2.imdecode(np.frombuffer(f, np.uint8), cv2.IMREAD_UNCHANGED) for f in files]


def write(
    tmp_path: Path,
    sfm_map: SfmMap,
    records: Sequence[FrameRecord],
    summary: JsonDict | None = None,
    examples: Sequence[ExampleFrame] = (),
    title: str = 'a drive',
) -> Page:
    path = tmp_path / 'report.html'
    write_report(path, title, sfm_map, records, SUMMARY if summary is None else summary, examples)
    return Page(path)


def test_the_page_is_one_well_formed_file_that_needs_nothing_else(
    tmp_path: Path, town: SfmMap
) -> None:
    records = make_records(50, lost=[7, 8])
    records[7] = replace(records[7], detail='2 < 3 & "few" \x00')
    examples = [make_example(records[n], soft_noise(320, 240)) for n in (0, 7)]
    page = write(tmp_path, town, records, examples=examples, title='<script>&amp; \x07\ud800 é')
    assert '<script>&amp; \ufffd\ufffd é' in page.text
    assert 'Map town & <country>: 4000 points seen by 10 images, sift features' in page.text
    assert '2 < 3 & "few" \ufffd' in page.text
    tags = {element.tag for element in page.root.iter()}
    assert tags & {'script', 'link', 'iframe', 'img', 'object'} == set()
    ids = [e.attrib['id'] for e in page.root.iter() if 'id' in e.attrib]
    links = [v for e in page.root.iter() for k, v in e.attrib.items() if k in ('href', 'src')]
    assert len(ids) == len(set(ids)) == 2
    assert all(v.startswith('data:image/') or v.removeprefix('#') in ids for v in links)
    assert not re.search(r'https?:|url\(|@import', page.source)
    assert not re.search(r'[ "M,](nan|-?inf)\b', page.source)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, town: SfmMap) -> None:
    records = make_records(30, lost=[3])
    examples = [make_example(records[0], soft_noise(160, 120))]
    first, second = (write(tmp_path, town, records, examples=examples).source for _ in 'ab')
    assert first == second


@pytest.mark.parametrize(
    ('changes', 'wanted'),
    [
        (
            {},
            '342 of 361 frames localized; median error 1.4 cm, 0.6 deg; '
            '96 % within 5 cm and 5 deg; 48 ms a frame.',
        ),
        (
            {'num_localized': 3, 'median_translation_error_m': None, 'latency_ms': {}},
            '3 of 361 frames localized; 96 % within 5 cm and 5 deg.',
        ),
        (
            {
                'num_queries': 1,
                'num_localized': 1,
                'median_translation_error_m': 0.0031,
                'recall': {'0.05m_5deg': 0.9996},
            },
            '1 of 1 frame localized; median error 3.1 mm, 0.6 deg; '
            '99.9 % within 5 cm and 5 deg; 48 ms a frame.',
        ),
    ],
)
def test_verdict(tmp_path: Path, town: SfmMap, changes: JsonDict, wanted: str) -> None:
    assert write(tmp_path, town, make_records(9), {**SUMMARY, **changes}).verdict == wanted


def test_without_ground_truth(tmp_path: Path, town: SfmMap) -> None:
    page = write(tmp_path, town, make_records(30, truth=False, lost=[4]))
    assert page.verdict == (
        '342 of 361 frames localized; no ground truth to compare with; 48 ms a frame.'
    )
    assert 'There is no ground truth, so recall is unknown.' in page.text
    assert 'There is no ground truth, so the error is unknown.' in page.text
    assert 'Without ground truth nobody can tell.' in page.text
    assert len(page.path_numbers('Trajectory', 'estimate dot')) == 2 * 29
    assert len(page.path_numbers('Trajectory', 'truth big')) == 0
    # What the covariances predict is known all the same: one dot a frame.
    assert len(page.path_numbers('Error over time', 'map small')) == 2 * 29


def test_without_ground_truth_and_covariance(tmp_path: Path, town: SfmMap) -> None:
    records = [replace(r, covariance=None) for r in make_records(5, truth=False)]
    page = write(tmp_path, town, records)
    assert 'There is neither ground truth nor a covariance.' in page.text


@pytest.mark.parametrize('truth', [True, False])
def test_nothing_localized(tmp_path: Path, town: SfmMap, truth: bool) -> None:
    summary = {**SUMMARY, 'num_localized': 0, 'median_translation_error_m': None}
    records = make_records(6, truth=truth, lost=range(6))
    page = write(tmp_path, town, records, summary)
    assert page.verdict.startswith('0 of 361 frames localized; ')
    assert 'Nothing was localized, so there is no error to show.' in page.text
    assert ('No frame with ground truth was localized: recall is 0 %.' in page.text) == truth
    assert len(page.path_numbers('Trajectory', 'lost')) == (2 * 6 if truth else 0)


def test_no_frame_at_all(tmp_path: Path, town: SfmMap) -> None:
    page = write(tmp_path, town, [], {})
    assert page.verdict == 'The recording has no frame.'
    for sentence in ('No frame was refused.', 'No stage was timed.', 'No frame was chosen'):
        assert sentence in page.text


def test_a_single_frame(tmp_path: Path, town: SfmMap) -> None:
    page = write(tmp_path, town, make_records(1))
    estimate, truth = (
        page.path_numbers('Trajectory', css) for css in ('estimate dot', 'truth big')
    )
    np.testing.assert_allclose(estimate, truth, atol=0.5)
    assert not re.search(r'[ "M,](nan|-?inf)\b', page.source)


def test_poses_without_error(tmp_path: Path, town: SfmMap) -> None:
    records = [replace(r, map_from_base=r.truth) for r in make_records(5)]
    page = write(tmp_path, town, records)
    assert '100 % of the errors lie inside their 95 % ellipsoid' in page.text
    assert not re.search(r'[ "M,](nan|-?inf)\b', page.source)


def test_top_view_has_equal_scales_and_north_up(tmp_path: Path) -> None:
    # Points of the map and true poses at three corners of a square, none in the north-west.
    corners = np.array([[0.0, 0, 0], [20, 0, 0], [20, 20, 0]])
    sfm_map = make_map(tmp_path / 'map', corners)
    records = [
        FrameRecord(n, 'localized', map_from_base=pose, truth=pose)
        for n, pose in enumerate(Rigid3d(np.eye(3), corner) for corner in corners)
    ]
    page = write(tmp_path, sfm_map, records)
    a, b, c = page.path_numbers('Trajectory', 'truth big').reshape(3, 2)
    assert b[0] > a[0] and c[1] < b[1]
    np.testing.assert_allclose(b - a, [b[0] - a[0], 0], atol=0.11)
    np.testing.assert_allclose(c - b, [0, a[0] - b[0]], atol=0.21)
    (density,) = page.images('Trajectory')
    rows, columns = np.nonzero(density[:, :, 3])
    drawn = sorted(zip(columns.tolist(), rows.tolist(), strict=True))
    wanted = sorted([tuple(a), tuple(b), tuple(c)])
    np.testing.assert_allclose(np.array(drawn) + 0.5, wanted, atol=1.2)


def test_unknown_gravity_and_scale(tmp_path: Path) -> None:
    points = np.random.default_rng(5).normal(size=(50, 3))
    sfm_map = make_map(tmp_path / 'map', points, gravity='unknown', scale='unknown')
    page = write(tmp_path, sfm_map, make_records(20))
    assert page.verdict == (
        '342 of 361 frames localized; median error 0.014 map units, 0.6 deg; 48 ms a frame.'
    )
    assert 'position error [map units]' in page.text
    assert not re.search(r' cm\b|\[m\]|\[cm\]', page.text)


def test_a_pose_far_away_is_counted_and_does_not_shrink_the_picture(
    tmp_path: Path, town: SfmMap
) -> None:
    records = make_records(300)
    usual = write(tmp_path, town, records)
    assert 'Poses outside of the picture' not in usual.text
    far = Rigid3d(np.eye(3), np.array([9e6, 0.0, 0.0]))
    page = write(tmp_path, town, [replace(records[0], map_from_base=far), *records[1:]])
    assert 'Poses outside of the picture: 1.' in page.text
    before, after = (p.path_numbers('Trajectory', 'truth big') for p in (usual, page))
    np.testing.assert_array_equal(before, after)
    # A line leads from it to the truth; the others are too short to be seen.
    assert len(page.path_numbers('Trajectory', 'estimate')) == 4
    assert len(usual.path_numbers('Trajectory', 'estimate')) == 0


def test_failures_are_counted_most_frequent_first(tmp_path: Path, town: SfmMap) -> None:
    records = make_records(20, lost=[1, 2, 3, 5])
    rows = [
        [' '.join(''.join(cell.itertext()).split()) for cell in row]
        for row in write(tmp_path, town, records).cards['Failures by reason'].iter('tr')
    ]
    assert [row[0].startswith(name) for row, name in zip(
        rows, ['no candidates', 'too few inliers'], strict=True
    )] == [True, True]  # fmt: skip
    assert [row[2] for row in rows] == ['3 (15 %)', '1 (5 %)']


def test_every_reason_has_words() -> None:
    assert set(report._REASONS) == set(FailureReason)


def test_dropped_frames_count_in_no_curve(tmp_path: Path, town: SfmMap) -> None:
    records = make_records(20)
    dropped = replace(records[3], status='dropped', map_from_base=None, covariance=None)
    page = write(tmp_path, town, [*records[:3], dropped, *records[4:]])
    (curve, _) = page.cards['Recall'].findall('.//polyline')
    # All others were found: the curve ends at the top.
    assert curve.attrib['points'].split()[-1].endswith(',0.0')
    assert 'frames dropped because a newer one had come: 1.' in page.text
    refused = replace(dropped, status='refused', reason=FailureReason.PNP_FAILED)
    page = write(tmp_path, town, [*records[:3], refused, *records[4:]])
    (curve, _) = page.cards['Recall'].findall('.//polyline')
    assert curve.attrib['points'].split()[-1].endswith(f',{150 / 20:.1f}')


def test_keypoints_by_stability(tmp_path: Path, town: SfmMap) -> None:
    records = make_records(10)
    image = np.zeros((500, 1000, 3), np.uint8)
    image[:, 500:] = (250, 120, 10)
    page = write(tmp_path, town, records, examples=[make_example(records[4], image)])
    (title,) = (name for name in page.cards if name.startswith('0.4 s: '))
    assert re.fullmatch(
        r'0\.4 s: localized by 3 of 5 matches, [\d.]+ (mm|cm) and [\d.e-]+ deg off', title
    )
    scale = np.array([800, 400])
    for css, wanted in (
        ('g4 keypoint', [[0.1, 0.2], [0.3, 0.4]]),
        ('g3 keypoint', [[0.5, 0.5]]),
        ('g2 keypoint', [[0.6, 0.7], [0.9, 0.8]]),
    ):
        np.testing.assert_allclose(
            page.path_numbers(title, css).reshape(-1, 2), wanted * scale, atol=0.06
        )
    assert 'lasting (2), for a season (1), passing (2)' in page.text
    # The picture is there once, scaled down, its colours in the right order.
    (element,) = page.cards[title].iter('image')
    uri = element.attrib['href']
    shown = decode_image(base64.b64decode(uri.removeprefix('data:image/jpeg;base64,')), 'shown')
    assert shown.shape == (400, 800, 3)
    np.testing.assert_allclose(shown[200, 600], image[0, 600], atol=8)


def test_matches_show_residuals_ten_times_too_long(tmp_path: Path, town: SfmMap) -> None:
    records = make_records(10)
    image = np.zeros((200, 400, 3), np.uint8)
    page = write(tmp_path, town, records, examples=[make_example(records[0], image)])
    (title,) = (name for name in page.cards if name.startswith('0.0 s: '))
    lines = page.path_numbers(title, 'agree tail').reshape(3, 4)
    pixels = np.array([[40, 40], [120, 80], [200, 100]])
    np.testing.assert_allclose(lines[:, :2], pixels * 2, atol=0.06)
    np.testing.assert_allclose(lines[:, 2:], pixels * 2 + [40, -20], atol=0.06)
    # The two others are crosses, drawn from their upper left.
    crosses = page.path_numbers(title, 'disagree').reshape(2, 2) + 4
    np.testing.assert_allclose(crosses, [[480, 280], [720, 320]], atol=0.06)


def test_a_refused_example_says_why(tmp_path: Path, town: SfmMap) -> None:
    records = make_records(10, lost=[5])
    example = make_example(records[5], np.zeros((48, 64, 3), np.uint8))
    page = write(tmp_path, town, records, examples=[example])
    card = page.cards['0.5 s: refused: no candidates']
    assert ''.join(card.itertext()).count('why. 5 keypoints by stability') == 1
    assert len(card.findall(".//svg[@role='img']")) == 1


def test_a_pose_that_odometry_contradicts_is_shown_as_refused(
    tmp_path: Path, town: SfmMap
) -> None:
    records = make_records(10)
    example = make_example(records[5], np.zeros((48, 64, 3), np.uint8))
    refused = replace(
        records[5], status='refused', reason=FailureReason.ODOMETRY_DISAGREES, detail='5 m off'
    )
    records[5] = refused
    page = write(tmp_path, town, records, examples=[replace(example, record=refused)])
    assert len(page.path_numbers('Trajectory', 'estimate dot')) == 2 * 9
    card = page.cards['0.5 s: refused: odometry disagrees']
    assert len(card.findall(".//svg[@role='img']")) == 2


def test_chi_squared_is_that_of_six_squared_normals() -> None:
    samples = np.sum(np.random.default_rng(6).normal(size=(200_000, 6)) ** 2, axis=1)
    for x in (0.5, 2.0, 5.348, 12.592, 20.0):
        assert report._chi2_6(np.array(x)) == pytest.approx(np.mean(samples <= x), abs=0.004)


def test_honest_covariances_follow_the_expected_curve(tmp_path: Path, town: SfmMap) -> None:
    records = make_records(2000)

    def gap(factor: float) -> float:
        """Return how far the measured curve lies above the expected one at the middle, in px."""
        changed = [
            replace(r, covariance=r.covariance * factor)
            for r in records if r.covariance is not None
        ]  # fmt: skip
        lines = write(tmp_path, town, changed).cards['Are the covariances honest?']
        expected, measured = (
            np.array([p.split(',') for p in line.attrib['points'].split()], float)
            for line in lines.findall('.//polyline')
        )
        middle = np.argmin(np.abs(expected[:, 1] - 105))
        x, y = expected[middle]
        return float(y - np.interp(x, measured[:, 0], measured[:, 1]))

    assert abs(gap(1.0)) < 10
    assert gap(4.0) > 40
    assert gap(0.25) < -40


def test_recall_curve_is_the_share_of_frames(tmp_path: Path) -> None:
    errors = np.array([0.3, np.inf, 0.1, 2.0, 0.1, np.inf])
    curve = report._cumulative(errors, (0.01, 10.0))
    for x in (0.05, 0.2, 0.31, 1.9, 2.1, 9.0):
        share = 100 * sum(error <= x for error in errors) / 6
        assert curve[curve[:, 0] <= x][-1, 1] == pytest.approx(share)
    many = np.random.default_rng(7).gamma(2.0, size=30_000)
    curve = report._cumulative(many, (1e-4, 50.0))
    assert len(curve) < 3000
    for x in (0.2, 1.0, 4.0):
        assert curve[curve[:, 0] <= x][-1, 1] == pytest.approx(100 * np.mean(many <= x), abs=0.2)


def test_thinning_keeps_the_worst() -> None:
    y = np.random.default_rng(8).random(10_001)
    y[777] = np.nan
    thin = report._worst(np.arange(10_001.0), y)
    assert len(thin) < 1500 and (np.diff(thin[:, 0]) > 0).all()
    for start in range(0, 10_000, 500):
        inside = (thin[:, 0] >= start) & (thin[:, 0] < start + 500)
        assert np.nanmax(y[start : start + 500]) == thin[inside, 1].max()


@pytest.mark.parametrize(
    ('low', 'high', 'log', 'names'),
    [
        (-60.0, 60.0, False, ['-60', '-40', '-20', '0', '20', '40', '60']),
        (0.0, 0.31, False, ['0', '0.1', '0.2', '0.3']),
        (4567890.0, 4567990.0, False, [f'{v}' for v in range(4567900, 4567991, 20)]),
        (-1.1, 2.1, True, ['0.1', '1', '10', '100']),
        (-1.0, 0.05, True, ['0.1', '0.2', '0.5', '1']),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, names: list[str]) -> None:
    ticks = report._ticks(low, high - low, log=log)
    assert [name for _, name in ticks] == names
    values = [10**value if log else value for value, _ in ticks]
    np.testing.assert_allclose(values, [float(name) for name in names], atol=1e-9)


def test_five_thousand_frames_and_five_examples_stay_small(tmp_path: Path, town: SfmMap) -> None:
    records = make_records(5000, lost=range(100, 300))
    image = soft_noise(1280, 960)
    examples = [make_example(records[n], image) for n in range(0, 5000, 1000)]
    assert len(write(tmp_path, town, records, examples=examples).source) < 3_000_000


def test_a_folder_that_is_missing(tmp_path: Path, town: SfmMap) -> None:
    with pytest.raises(DataError, match=r'report\.html cannot be written'):
        write_report(tmp_path / 'no' / 'report.html', 'x', town, [], {}, [])


def test_a_failed_write_leaves_the_older_report(
    tmp_path: Path, town: SfmMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write(tmp_path, town, make_records(3))

    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(DataError, match='No space left on device'):
        write(tmp_path, town, make_records(9), title='newer')
    assert (tmp_path / 'report.html').read_text(encoding='utf-8') == page.source

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A recorded bag through the localization server: every frame, or in real time with drops.

Every figure that is published comes from here. Results are a folder with ``trajectory.tum``
(``map_from_base`` of the localized frames), ``frames.csv`` (one row a frame), ``summary.json``,
``manifest.json`` (what was run on what) and ``report.html``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import csv
from dataclasses import dataclass, replace
from functools import cached_property
import io
import json
import logging
from pathlib import Path
import shutil
from tempfile import TemporaryFile
import threading
import time
from typing import Any, TextIO
from weakref import WeakKeyDictionary

import numpy as np

from feat_ros import config
from feat_ros.bags import Bag, StampedImage, StampedPoses, TransformBuffer
from feat_ros.camera import Camera
from feat_ros.config import Config, option
from feat_ros.errors import DataError, ImageError, SegmentError
from feat_ros.evaluation import compare_poses, covariance_report, latency_summary, summarise
from feat_ros.geometry import Rigid3d
from feat_ros.image import Image
from feat_ros.localizer import Localizer
from feat_ros.pose_error import pose_error
from feat_ros.report import ExampleFrame, write_report
from feat_ros.server import bad_image, Frame, LocalizationServer, ServerConfig
from feat_ros.sfm_map import partial_path, publish, write_text, writing
from feat_ros.trajectory import Trajectory
from feat_ros.types import (
    FailureReason,
    Features,
    FrameRecord,
    JsonDict,
    LocalizationResult,
    PoseEstimate,
    PosePrior,
    Progress,
    View,
)

_LOG = logging.getLogger(__name__)

FORMAT = 'feat_ros replay 1'
# Poses of a topic further apart than this are not interpolated between.
_MAX_GAP_NS = 250_000_000
# In real time the clock of a recording may not jump further than this, seconds.
_LONGEST_WAIT_S = 5.0
# When none of so many images at the start can be used, the rest is not tried.
_GIVE_UP_AFTER = 10


@dataclass(frozen=True)
class ReplaySource(Config):
    """What of a bag is replayed; seconds count from the stamp of the topic's first image."""

    image_topic: str = option('', 'Image or CompressedImage')
    info_topic: str | None = option(None, 'CameraInfo; its first message is used')
    camera: str | None = option(
        None, 'MODEL width height params... as COLMAP has them, for a bag without CameraInfo'
    )
    ground_truth_topic: str | None = option(None, 'poses to compare with')
    ground_truth_frame: str | None = option(
        None,
        'the frame whose poses the ground truth gives; default: the child frame of its messages, '
        "or the image's frame where they name none",
    )
    odometry_topic: str | None = option(None, 'poses in a frame that drifts')
    base_frame: str | None = option(
        None,
        "the robot's frame, found by TF; default: the child frame of the odometry, or the "
        "image's frame",
    )
    start_s: float = option(0.0, 'leave out what is earlier', minimum=0.0)
    end_s: float | None = option(None, 'leave out what is later', minimum=0.0)
    seconds: str = option(
        'all',
        'only images of the even (0, 2, ...) or the odd (1, 3, ...) seconds',
        choices=('all', 'even', 'odd'),
    )
    every: int = option(1, 'of the images that are left use every so many-th', minimum=1)

    def selects(self, elapsed_ns: int) -> bool:
        """Whether an image at this time after the first is wanted, ``every`` left aside."""
        if self.seconds != 'all' and (elapsed_ns // 10**9) % 2 != (self.seconds == 'odd'):
            return False
        late = self.end_s is not None and elapsed_ns > self.end_s * 1e9
        return elapsed_ns >= self.start_s * 1e9 and not late


def replay(
    bag_path: str | Path,
    localizer: Localizer,
    out: str | Path,
    source: ReplaySource,
    server_config: ServerConfig | None = None,
    *,
    realtime: bool = False,
    truth_sigma_m: float = 0.0,
    truth_sigma_deg: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
    provenance: JsonDict | None = None,
) -> JsonDict:
    """Localize the images of a bag and write the results; return what ``summary.json`` holds.

    :param out: the folder of results; it appears when they are complete.
    :param realtime: hand frames over at the pace of their stamps, so that some are dropped.
    :param truth_sigma_m: noise of the ground truth itself, a standard deviation of each axis.
    :param truth_sigma_deg: the same of the orientation.
    :param overwrite: replace earlier results of that name.
    :param provenance: is added to the manifest.
    :raises DataError: the folder exists, or nothing is selected.
    :raises CameraError: the camera cannot be used.
    :raises BagError, TransformError: the bag does not hold what is asked of it.
    :raises ImageError: none of its images can be used; a few that cannot are records.
    :raises MapError: the map is damaged, or the results cannot be written.
    """
    out = Path(out)
    _check_out(out, overwrite)
    observed = _Observed(localizer)
    server = LocalizationServer(observed, server_config)
    with _unfinished(out) as partial:
        with Bag(bag_path) as bag, TemporaryFile('w+', encoding='utf-8', dir=partial) as spool:
            recording = _Recording(bag, source, localizer.map.manifest.frame_id)
            log = _Log(recording, observed, spool, partial)
            run = _run_in_real_time if realtime else _run_all
            run(recording.images(progress or (lambda items, _: items)), recording, server, log)
            records = log.records()
        summary = summarise_records(records, truth_sigma_m, truth_sigma_deg)
        snapshot = server.snapshot()
        summary |= {'resets': snapshot.resets, 'reseats': snapshot.reseats}
        manifest = {
            'format': FORMAT,
            'bag': str(bag_path),
            'map': str(localizer.map.path),
            'map_id': localizer.map.manifest.map_id,
            'extractor': [localizer.extractor.name, config.to_dict(localizer.extractor.config)],
            'source': config.to_dict(source),
            'localizer': config.to_dict(localizer.config),
            'server': config.to_dict(server.config),
            'realtime': realtime,
            'provenance': provenance or {},
        }
        write_text(partial / 'trajectory.tum', _trajectory(records).to_tum())
        write_text(partial / 'frames.csv', format_records(records))
        write_text(partial / 'summary.json', json.dumps(summary, indent=1) + '\n')
        title = f'{Path(bag_path).name} in {localizer.map.path.name}'
        examples = [example.show(localizer, recording.camera) for example in log.examples()]
        write_report(partial / 'report.html', title, localizer.map, records, summary, examples)
        write_text(partial / 'manifest.json', json.dumps(manifest, indent=1) + '\n')
        publish(partial, out)
    return summary


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.absolute().parent.is_dir():
        raise DataError(f'{out} cannot be written: folder {out.parent} does not exist')
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not overwrite:
        raise DataError(f'{out} exists: choose another --out, or replace it with --overwrite')
    if out.exists() and not (out / 'frames.csv').is_file():
        raise DataError(f'{out} holds no earlier results of a replay: choose another --out')


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """Make the folder that results are put together in; it is gone if they don't get complete."""
    partial = partial_path(out)
    with writing(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Recording:
    """A bag, its images as frames for the server, and its ground truth."""

    def __init__(self, bag: Bag, source: ReplaySource, map_frame: str) -> None:
        self.source = source
        if source.camera is None:
            self.camera, _ = bag.camera_info(source.info_topic or '')
        else:
            self.camera = Camera.from_words(source.camera.split())
        self._bag = bag
        self._odometry = _poses(bag, source.odometry_topic)
        self._truth = _poses(bag, source.ground_truth_topic)
        if self._truth is not None and self._truth.parent_frame != map_frame:
            _LOG.warning(
                'the ground truth is in frame %r, the map in %r: errors mean nothing unless these '
                'are the same', self._truth.parent_frame, map_frame,
            )  # fmt: skip

    def images(self, progress: Progress) -> Iterator[StampedImage]:
        """Yield the selected images; of several with one stamp the first.

        :raises DataError: none is selected.
        """
        topic, first_ns, last_ns, count = self.source.image_topic, None, None, 0
        known = self._bag.topics.get(topic)
        steps = progress(list(range(known.count if known else 1)), 'replay')
        for _, image in zip(steps, self._bag.images(topic), strict=False):
            first_ns = first_ns or image.stamp_ns
            if image.stamp_ns == last_ns:
                _LOG.warning('%s is there twice: the second is left out', image.name)
                continue
            last_ns = image.stamp_ns
            if self.source.selects(image.stamp_ns - first_ns):
                if count % self.source.every == 0:
                    yield image
                count += 1
        if not count:
            raise DataError(
                f'no image of topic {topic} is within what was selected: change --start, --end or '
                '--seconds'
            )

    def frame(self, image: StampedImage) -> Frame:
        """Look up what was known of the robot when an image was taken."""
        base_frame = self._base_frame(image)
        odom_from_base = None
        if self._odometry is not None:
            child_from_base = self._lookup(
                self._odometry.child_frame or image.frame_id, base_frame, image.stamp_ns
            )
            odom_from_child = self._odometry.trajectory.pose_at(image.stamp_ns, _MAX_GAP_NS)
            odom_from_base = odom_from_child and odom_from_child @ child_from_base
        return Frame(
            image.stamp_ns,
            image.decode,
            self.camera,
            None
            if base_frame == image.frame_id
            else self._lookup(image.frame_id, base_frame, image.stamp_ns),
            odom_from_base,
        )

    def truth(self, image: StampedImage) -> Rigid3d | None:
        """Return the true ``map_from_base``, None where the ground truth has a gap."""
        if self._truth is None:
            return None
        frame = self.source.ground_truth_frame or self._truth.child_frame or image.frame_id
        body_from_base = self._lookup(frame, self._base_frame(image), image.stamp_ns)
        map_from_body = self._truth.trajectory.pose_at(image.stamp_ns, _MAX_GAP_NS)
        return map_from_body and map_from_body @ body_from_base

    def _base_frame(self, image: StampedImage) -> str:
        named = '' if self._odometry is None else self._odometry.child_frame
        return self.source.base_frame or named or image.frame_id

    def _lookup(self, target: str, source: str, stamp_ns: int) -> Rigid3d:
        if target == source:
            return Rigid3d()
        return self._transforms.lookup(target, source, stamp_ns)

    @cached_property
    def _transforms(self) -> TransformBuffer:
        return self._bag.transforms()


def _poses(bag: Bag, topic: str | None) -> StampedPoses | None:
    return None if topic is None else bag.poses(topic)


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A frame with what the localizer said of it."""

    record: FrameRecord
    image_rgb: Image
    result: LocalizationResult

    def show(self, localizer: Localizer, camera: Camera) -> ExampleFrame:
        """Return it for the report, the features extracted again."""
        projected = np.zeros((0, 2))
        if isinstance(self.result, PoseEstimate):
            points = localizer.map.points(self.result.matches[self.result.inliers, 1])[0]
            projected = camera.project(self.result.cam_from_map.apply(points))
        features = localizer.extractor(self.image_rgb)
        return ExampleFrame(self.record, self.image_rgb, features, self.result, projected)


class _Observed:
    """A localizer that keeps the last image and its result, for the examples of the report."""

    def __init__(self, localizer: Localizer) -> None:
        self._localizer = localizer
        self.last: tuple[Image, LocalizationResult] | None = None
        self._images = WeakKeyDictionary[Features, Image]()

    def localize_rig(
        self, views: Sequence[View], prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Find the pose of an image."""
        seen = views[0].image_rgb
        image_rgb = self._images[seen] if isinstance(seen, Features) else seen
        result = self._localizer.localize_rig(views, prior)
        self.last = image_rgb, result
        return result

    def features(self, view: View) -> Features:
        """Extract features, and remember of which image."""
        assert not isinstance(view.image_rgb, Features)  # a bag holds images
        features = self._localizer.features(view)
        self._images[features] = view.image_rgb
        return features

    def leave_out(self, error: SegmentError) -> bool:
        """Leave it out of the map."""
        return self._localizer.leave_out(error)


class _Log:
    """The records of a run with their ground truth, and the frames worth looking at.

    Records wait in a file, so that a run of hours takes no more memory than one of minutes.
    """

    def __init__(
        self, recording: _Recording, observed: _Observed, spool: TextIO, folder: Path
    ) -> None:
        self._recording, self._observed = recording, observed
        self._spool, self._folder = spool, folder
        self._truth: dict[int, Rigid3d | None] = {}
        self._examples: dict[str, tuple[float, _Attempt]] = {}
        self._lock = threading.Lock()
        self._num_tried = self._num_unusable = 0
        self._first_problem = ''

    def expect(self, image: StampedImage) -> None:
        """Look up the truth of an image before the server gets it."""
        self._truth[image.stamp_ns] = self._recording.truth(image)

    def take(self, record: FrameRecord) -> None:
        """Add what became of an image; from any thread."""
        record = replace(record, truth=self._truth.pop(record.stamp_ns))
        with self._lock:
            with writing(self._folder):
                self._spool.write(_to_line(record))
            if record.status == 'dropped':
                return
            self._num_tried += 1
            if record.reason is FailureReason.BAD_IMAGE:
                self._num_unusable += 1
                self._first_problem = self._first_problem or record.detail
                return
        assert self._observed.last is not None, 'a frame that was tried was observed'
        attempt = _Attempt(record, *self._observed.last)
        kind = record.reason.value if record.reason else record.status
        # The first of a kind, and of those localized also the worst.
        self._examples.setdefault(kind, (0.0, attempt))
        badness = _badness(record)
        if record.status == 'localized' and badness >= self._examples.get('worst', (badness,))[0]:
            self._examples['worst'] = badness, attempt

    def check_usable(self, enough: int) -> None:
        """Give up when of so many images none could be used.

        :raises ImageError: says what is wrong with the first.
        """
        if self._num_unusable >= enough and self._num_unusable == self._num_tried:
            raise ImageError(self._first_problem)

    def records(self) -> list[FrameRecord]:
        """Return all records in order of time.

        :raises ImageError: no image could be used.
        """
        self.check_usable(1)
        if self._num_unusable:
            _LOG.warning(
                '%d of %d images could not be used, the first: %s',
                self._num_unusable, self._num_tried, self._first_problem,
            )  # fmt: skip
        self._spool.seek(0)
        return sorted(map(_from_line, self._spool), key=lambda record: record.stamp_ns)

    def examples(self) -> list[_Attempt]:
        """Return the frames for the report in order of time, each once."""
        chosen = {attempt.record.stamp_ns: attempt for _, attempt in self._examples.values()}
        return [chosen[stamp_ns] for stamp_ns in sorted(chosen)]


def _to_line(record: FrameRecord) -> str:
    """Return a record as a line of JSON, every digit kept."""
    poses = {
        name: None if pose is None else [pose.rotation.tolist(), pose.translation.tolist()]
        for name, pose in (('map_from_base', record.map_from_base), ('truth', record.truth))
    }
    covariance = None if record.covariance is None else record.covariance.tolist()
    return json.dumps({**vars(record), **poses, 'covariance': covariance}) + '\n'


def _from_line(line: str) -> FrameRecord:
    values = json.loads(line)
    for name in ('map_from_base', 'truth'):
        if values[name] is not None:
            values[name] = Rigid3d(*map(np.array, values[name]))
    if values['covariance'] is not None:
        values['covariance'] = np.array(values['covariance'])
    if values['reason'] is not None:
        values['reason'] = FailureReason(values['reason'])
    return FrameRecord(**values)


def _badness(record: FrameRecord) -> float:
    """Return the position's error in metres, its standard deviation where the truth is unknown."""
    errors, sigma = _errors(record), _sigmas(record)
    return float((errors or sigma or (0.0,))[0])


def _run_all(
    images: Iterator[StampedImage], recording: _Recording, server: LocalizationServer, log: _Log
) -> None:
    for image in images:
        log.expect(image)
        try:
            record = server.process(recording.frame(image))
        except ImageError as error:
            record = bad_image(image.stamp_ns, error)
        log.take(record)
        log.check_usable(_GIVE_UP_AFTER)


def _run_in_real_time(
    images: Iterator[StampedImage], recording: _Recording, server: LocalizationServer, log: _Log
) -> None:
    """Hand every frame over when its time has come; a longer gap than some seconds is cut."""
    server.start(log.take)
    try:
        start_s, last_s = 0.0, -np.inf
        for image in images:
            stamp_s = image.stamp_ns / 1e9
            if stamp_s > last_s + _LONGEST_WAIT_S:
                start_s = time.monotonic() - stamp_s
            last_s = stamp_s
            time.sleep(max(0.0, start_s + stamp_s - time.monotonic()))
            log.expect(image)
            server.submit(recording.frame(image))
            log.check_usable(_GIVE_UP_AFTER)
    finally:
        server.stop()


def summarise_records(
    records: list[FrameRecord], truth_sigma_m: float = 0.0, truth_sigma_deg: float = 0.0
) -> JsonDict:
    """Return the figures of a run; see DESIGN.

    ``num_queries`` are the frames that were tried; dropped ones are counted apart. Medians and
    recall are over all of them that have ground truth, null and empty where none has.

    :param truth_sigma_m: noise of the ground truth, a standard deviation of each axis.
    """
    tried = [record for record in records if record.status != 'dropped']
    found = {str(r.stamp_ns): r for r in tried if r.map_from_base is not None}
    truth = {str(r.stamp_ns): r.truth.inverse() for r in tried if r.truth is not None}
    estimates = {
        name: record.map_from_base.inverse()
        for name, record in found.items()
        if record.map_from_base is not None and name in truth
    }
    figures: JsonDict = {
        'num_frames': len(records),
        'num_queries': len(tried),
        'num_localized': len(found),
        'num_with_ground_truth': len(truth),
        'dropped': len(records) - len(tried),
        'reasons': dict(Counter(r.reason.value for r in tried if r.reason is not None)),
        'modes': dict(Counter(record.mode for record in found.values())),
        'median_translation_error_m': None,
        'median_rotation_error_deg': None,
        'recall': {},
        'covariance': None,
        'latency_ms': latency_summary([record.ms for record in tried]),
    }
    if truth:
        errors = compare_poses(estimates, truth)
        covariances = {name: r.covariance for name, r in found.items() if r.covariance is not None}
        honesty = covariance_report(errors, covariances, truth_sigma_m, truth_sigma_deg)
        del honesty['outside_95']
        figures |= {
            k: v for k, v in summarise(errors).items() if k not in figures or not figures[k]
        }
        figures['covariance'] = honesty
    return figures


def _trajectory(records: list[FrameRecord]) -> Trajectory:
    found = [(r.stamp_ns, r.map_from_base) for r in records if r.map_from_base is not None]
    stamps = np.array([stamp_ns for stamp_ns, _ in found], np.int64)
    return Trajectory.from_poses(stamps, [pose for _, pose in found])


def format_records(records: list[FrameRecord]) -> str:
    """Return the text of ``frames.csv``: one row a frame, empty cells for what is not known."""
    stages = list(dict.fromkeys(stage for record in records for stage in record.ms))
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(
        [
            *('stamp_ns', 'status', 'reason', 'mode', 'num_matches', 'num_inliers'),
            *(f'{stage}_ms' for stage in stages),
            *('tx', 'ty', 'tz', 'qx', 'qy', 'qz', 'qw'),
            *('sigma_m', 'sigma_deg', 'translation_error_m', 'rotation_error_deg', 'detail'),
        ]
    )
    table.writerows(_row(record, stages) for record in records)
    return text.getvalue()


def _row(record: FrameRecord, stages: list[str]) -> list[Any]:
    pose: list[Any] = [''] * 7
    if record.map_from_base is not None:
        pose = [
            *record.map_from_base.translation.tolist(),
            *record.map_from_base.quat_xyzw.tolist(),
        ]
    return [
        record.stamp_ns,
        record.status,
        record.reason.value if record.reason else '',
        record.mode,
        record.num_matches,
        record.num_inliers,
        *(f'{record.ms[stage]:.3f}' if stage in record.ms else '' for stage in stages),
        *pose,
        *(_sigmas(record) or ('', '')),
        *(_errors(record) or ('', '')),
        record.detail,
    ]


def _sigmas(record: FrameRecord) -> tuple[float, float] | None:
    """Return the largest standard deviations of position and orientation, metres and degrees."""
    if record.covariance is None:
        return None
    position, rotation = (
        float(np.sqrt(np.linalg.eigvalsh(record.covariance[axes, axes])[-1]))
        for axes in (slice(0, 3), slice(3, 6))
    )
    return position, float(np.degrees(rotation))


def _errors(record: FrameRecord) -> tuple[float, float] | None:
    """Return the errors of position and orientation, metres and degrees."""
    if record.map_from_base is None or record.truth is None:
        return None
    error = pose_error(record.map_from_base.inverse(), record.truth.inverse())
    return float(np.linalg.norm(error[:3])), float(np.degrees(np.linalg.norm(error[3:])))

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What lives longer than one frame: the prior, map_from_odom, gating, counters, timings.

A driver (ROS node, replay, DDS) converts its messages to :class:`Frame` and gets a
:class:`FrameRecord` for each; either by :meth:`LocalizationServer.process`, every frame, or by
:meth:`LocalizationServer.start` and :meth:`LocalizationServer.submit`, where the newest wins.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
import logging
import threading
import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.config import Config, option
from feat_ros.errors import FeatRosError, MapError, SegmentError
from feat_ros.evaluation import latency_summary
from feat_ros.geometry import Rigid3d, rotation_angle_deg, transport_covariance
from feat_ros.image import Image
from feat_ros.pose_error import normalised_error_squared, pose_error
from feat_ros.types import (
    FailureReason,
    Features,
    FrameRecord,
    JsonDict,
    LocalizationResult,
    PoseEstimate,
    PoseFailure,
    PosePrior,
    View,
)

Float = npt.NDArray[np.float64]

_LOG = logging.getLogger(__name__)

# A prior covers this many standard deviations of where it was predicted.
_PRIOR_SIGMAS = 3.0


@dataclass(frozen=True)
class ServerConfig(Config):
    """Options of :class:`LocalizationServer`."""

    prior_radius_m: float = option(
        0.3, 'least radius around the predicted position that is searched first', minimum=0.0
    )
    prior_angle_deg: float = option(
        5.0, 'least angle around the predicted orientation', minimum=0.0, maximum=180.0
    )
    max_prior_radius_m: float = option(
        5.0, 'with a larger radius the whole map is searched; 0: always', minimum=0.0
    )
    max_prior_angle_deg: float = option(
        90.0, 'with a larger angle the whole map is searched', minimum=0.0, maximum=180.0
    )
    max_speed_m_s: float = option(
        2.0, 'how fast the base may move where there is no odometry', minimum=0.0
    )
    max_turn_deg_s: float = option(
        90.0, 'how fast the base may turn where there is no odometry', minimum=0.0
    )
    odometry_m_per_m: float = option(
        0.05, 'standard deviation of odometry, metres a metre driven', minimum=0.0
    )
    odometry_m_per_s: float = option(
        0.01, 'standard deviation of odometry, metres a second', minimum=0.0
    )
    odometry_deg_per_deg: float = option(
        0.05, 'standard deviation of odometry, degrees a degree turned', minimum=0.0
    )
    odometry_deg_per_s: float = option(
        0.1, 'standard deviation of odometry, degrees a second', minimum=0.0
    )
    gate_sigmas: float = option(
        6.0,
        'a fix further than this from where odometry leads is refused, standard deviations',
        minimum=1.0,
    )
    accept_after: int = option(
        3, 'fixes refused in a row that agree with each other and are then believed', minimum=2
    )
    same_moment_s: float = option(
        0.005, 'stamps of several cameras so near each other give one pose together', minimum=0.0
    )
    moment_wait_s: float = option(
        0.03, 'how long the other cameras of a moment are waited for', minimum=0.0, maximum=1.0
    )
    extract_ahead: bool = option(
        False,
        'extract the next frame while one is being localized: more poses a second where the '
        'extractor leaves a core free, by running on a GPU or with fewer threads than cores',
    )
    latency_window: int = option(
        300, 'frames that the percentiles of the latency are taken over', minimum=1
    )


@dataclass(frozen=True, eq=False)
class Frame:
    """One image and what was known of the robot when it was taken.

    :ivar stamp_ns: time of exposure.
    :ivar image_rgb: (H, W, 3) uint8, or its features; or what gives one of them, called when its
        turn has come, so that no work is done for a frame that a newer one replaces.
    :ivar cam_from_base: where the camera is mounted; None: the camera is the base.
    :ivar odom_from_base: the odometry at the stamp; None: unknown.
    """

    stamp_ns: int
    image_rgb: Image | Features | Callable[[], Image | Features]
    camera: Camera
    cam_from_base: Rigid3d | None = None
    odom_from_base: Rigid3d | None = None


@dataclass(frozen=True)
class ServerSnapshot:
    """The state of a server for diagnostics.

    :ivar frames: frames that came in: localized, refused, failed, dropped, or not yet done.
    :ivar refused: by reason.
    :ivar failed: frames whose image could not be used, see ``last_problem``.
    :ivar dropped: frames that a newer one replaced, or that a reset overtook.
    :ivar joined: frames that gave their pose together with another camera's.
    :ivar resets: how often clock, driver or a new map reset the state.
    :ivar reseats: how often a row of refused fixes was believed against odometry.
    :ivar fix_age_s: time since the last accepted fix; None before the first.
    :ivar last_problem: why the last frame without a fix had none.
    :ivar latency_ms: ``{stage: {p50, p95}}`` over the last frames.
    """

    frames: int
    localized: int
    refused: dict[str, int]
    failed: int
    dropped: int
    joined: int
    resets: int
    reseats: int
    fix_age_s: float | None
    last_problem: str
    latency_ms: JsonDict


class FrameLocalizer(Protocol):
    """What the server needs of :class:`feat_ros.localizer.Localizer`."""

    def localize_rig(
        self, views: Sequence[View], prior: PosePrior | None = None
    ) -> LocalizationResult:
        """Find the pose of a body by what its cameras saw at one moment."""
        ...

    def features(self, view: View) -> Features:
        """Return what is in an image, extracted if it has not been; from any thread."""
        ...

    def leave_out(self, error: SegmentError) -> bool:
        """Do without a segment of the map that cannot be read; False if it was left out before."""
        ...


@dataclass(frozen=True, eq=False)
class _Seen:
    """What was found in a frame.

    :ivar localizer: whose extractor it was.
    :ivar ms: how long it took.
    """

    features: Features
    localizer: FrameLocalizer
    ms: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Submitted:
    """A frame that waits, or whose turn it is.

    :ivar at_s: since when.
    :ivar seen: what was found in it, once it has been looked at.
    """

    frame: Frame
    at_s: float
    seen: _Seen | None = None


@dataclass(frozen=True, eq=False)
class _Moment:
    """What several cameras, by number, saw at one moment; empty at the end.

    :ivar replaced_ns: stamps of frames that newer ones have replaced.
    """

    frames: dict[int, _Submitted] = field(default_factory=dict)
    replaced_ns: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Waypoint:
    """A moment on the way.

    :ivar odom_from_base: the last known odometry.
    :ivar is_known: whether it is the odometry at the stamp.
    :ivar travelled_m: length of the way so far.
    :ivar turned_deg: all turns so far.
    """

    stamp_ns: int
    odom_from_base: Rigid3d | None
    is_known: bool
    travelled_m: float = 0.0
    turned_deg: float = 0.0

    def then(self, stamp_ns: int, odom_from_base: Rigid3d | None) -> _Waypoint:
        """Return the next one."""
        if odom_from_base is None:
            return replace(self, stamp_ns=stamp_ns, is_known=False)
        last = self.odom_from_base or odom_from_base
        step = last.inverse() @ odom_from_base
        return _Waypoint(
            stamp_ns,
            odom_from_base,
            True,
            self.travelled_m + float(np.linalg.norm(step.translation)),
            self.turned_deg + float(rotation_angle_deg(np.eye(3), step.rotation)),
        )


@dataclass(frozen=True, eq=False)
class _Fix:
    """A pose of the base, and when on the way it was found."""

    at: _Waypoint
    map_from_base: Rigid3d
    covariance: Float


class LocalizationServer:
    """Localizes the frames of one robot, one after the other.

    All methods may be called from any thread; a frame is localized outside of the lock.

    :param localizer: finds the pose of one image.
    """

    def __init__(self, localizer: FrameLocalizer, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self._localizer = localizer
        self._changed = threading.Condition()
        self._busy = False
        # Grows with every reset: what was begun before one must not change the state after it.
        self._epoch = 0
        self._way: _Waypoint | None = None
        self._fix: _Fix | None = None
        # Refused in a row since the last accepted one.
        self._refused_fixes: list[_Fix] = []
        self._hint: PosePrior | None = None
        self._map_from_odom: Rigid3d | None = None
        self._counts = Counter[str]()
        self._reasons = Counter[str]()
        self._last_problem = ''
        self._latencies: deque[dict[str, float]] = deque(maxlen=self.config.latency_window)
        self._threads: list[threading.Thread] = []
        # The newest frame of each camera that is waiting, in order of arrival.
        self._waiting: dict[int, _Submitted] = {}
        # What was extracted ahead, and how long that and all the rest took for the last frame.
        self._ready: _Moment | None = None
        self._is_idle = True
        self._extract_s = self._localize_s = self._began_s = 0.0
        self._camera_ns: dict[int, int] = {}
        self._replaced_ns: list[int] = []
        self._is_stopping = False
        self._bug: Exception | None = None

    @property
    def map_from_odom(self) -> Rigid3d | None:
        """What the last accepted fix says of odometry's frame; None before there is one."""
        with self._changed:
            return self._map_from_odom

    def process(self, frame: Frame, camera: int = 0) -> FrameRecord:
        """Localize a frame and return what became of it; waits while another is localized.

        :param camera: which of the robot's cameras took it.
        :raises ImageError: the image is not of the camera's size.
        """
        return self.process_moment({camera: frame})[0]

    def process_moment(self, frames: Mapping[int, Frame]) -> list[FrameRecord]:
        """Localize frames that several cameras, by number, took at one moment, as one.

        The record of the first has the pose, those of the others say 'joined'. Where there are
        several, each needs its ``cam_from_base``.

        :raises ImageError: an image is not of its camera's size.
        """
        with self._changed:
            self._counts['frames'] += len(frames)
        moment = {camera: _Submitted(frame, 0.0) for camera, frame in frames.items()}
        with self._turn() as localizer:
            try:
                for camera, submitted in moment.items():
                    moment[camera] = _look(submitted, localizer)
                return self._localize(moment, {}, is_live=False)
            except FeatRosError as error:
                self._count_failure(error, len(frames))
                raise

    def start(self, on_record: Callable[[FrameRecord], None]) -> None:
        """Start the thread that localizes what is submitted, and one that extracts ahead.

        :param on_record: called from the first with the record of every frame, in order.
        :raises RuntimeError: it runs already.
        """
        with self._changed:
            if self._threads:
                raise RuntimeError('the server runs already: stop it first')
            self._waiting, self._replaced_ns, self._ready = {}, [], None
            self._is_stopping, self._bug, self._is_idle = False, None, True
            take, jobs = self._take_moment, {}
            if self.config.extract_ahead:
                take, jobs['extraction'] = self._take_ready, self._extract_ahead
            jobs['localization'] = partial(self._work, take, on_record)
            self._threads = [
                threading.Thread(target=self._guarded, args=(job,), name=name, daemon=True)
                for name, job in jobs.items()
            ]
            for thread in self._threads:
                thread.start()

    def submit(self, frame: Frame, camera: int = 0) -> None:
        """Hand over a frame; one of the same camera that is still waiting is dropped for it.

        :raises RuntimeError: the server was not started, or ended by a bug.
        """
        with self._changed:
            self._check_bug()
            if not self._threads or self._is_stopping:
                raise RuntimeError('the server does not run: start it first')
            self._counts['frames'] += 1
            if camera in self._waiting:
                self._counts['dropped'] += 1
                self._replaced_ns.append(self._waiting[camera].frame.stamp_ns)
            self._waiting[camera] = _Submitted(frame, time.perf_counter())
            self._changed.notify_all()

    def stop(self) -> None:
        """Finish the frames handed over and end the threads.

        :raises RuntimeError: a thread had ended by a bug.
        """
        with self._changed:
            threads, self._is_stopping = self._threads, True
            self._changed.notify_all()
        for thread in threads:
            thread.join()
        with self._changed:
            self._threads = []
            self._check_bug()

    def reset(self, reason: str) -> None:
        """Forget the last fix and map_from_odom; counters go on.

        :param reason: is logged.
        """
        with self._changed:
            self._reset(reason)

    def relocalize(self, prior: PosePrior | None = None) -> None:
        """Forget the last fix and search the next frames near a prior, or in the whole map.

        The prior is used until a frame is localized. It was given by someone who knows better
        than odometry, so the first fix is not held against it.
        """
        with self._changed:
            self._reset('relocalization was asked for')
            self._hint = prior

    def set_map(self, localizer: FrameLocalizer) -> None:
        """Go on in another map; a frame that is being localized in the old one is dropped."""
        with self._changed:
            self._localizer = localizer
            self._reset('the map was changed')

    def snapshot(self, now_ns: int | None = None) -> ServerSnapshot:
        """Return the state for diagnostics.

        :param now_ns: when; the newest frame's stamp by default.
        """
        with self._changed:
            counts, latencies = self._counts.copy(), self._latencies.copy()
            refused, problem = dict(self._reasons), self._last_problem
            if now_ns is None and self._way is not None:
                now_ns = self._way.stamp_ns
            fixed_ns = None if self._fix is None else self._fix.at.stamp_ns
        return ServerSnapshot(
            frames=counts['frames'],
            localized=counts['localized'],
            refused=refused,
            failed=counts['failed'],
            dropped=counts['dropped'],
            joined=counts['joined'],
            resets=counts['resets'],
            reseats=counts['reseats'],
            fix_age_s=None if now_ns is None or fixed_ns is None else (now_ns - fixed_ns) / 1e9,
            last_problem=problem,
            latency_ms=latency_summary(list(latencies)),
        )

    def _check_bug(self) -> None:
        if self._bug is not None:
            raise RuntimeError('the localization thread ended by a bug') from self._bug

    def _guarded(self, job: Callable[[], None]) -> None:
        """Run a thread's work; a bug ends the other thread too."""
        try:
            job()
        except Exception as error:
            _LOG.exception('the %s thread ended by a bug', threading.current_thread().name)
            with self._changed:
                self._bug, self._is_stopping = error, True
                self._changed.notify_all()

    def _work(self, take: Callable[[], _Moment], on_record: Callable[[FrameRecord], None]) -> None:
        """Localize what is submitted until the server is stopped."""
        while True:
            moment = take()
            for stamp_ns in moment.replaced_ns:
                on_record(FrameRecord(stamp_ns, 'dropped', detail='a newer frame came first'))
            if not moment.frames:
                return
            for record in self._process_whatever(moment.frames):
                on_record(record)
            del moment

    def _extract_ahead(self) -> None:
        """Extract features of the newest frames, each time so late that they are new when used.

        A frame that cannot be looked at is looked at again in its turn, when it is said why.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready is None or self._bug)
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                wait_s = self._began_s + self._localize_s - self._extract_s - time.perf_counter()
                self._changed.wait_for(lambda: self._is_idle or self._is_stopping, wait_s)
                localizer = self._localizer
            moment = self._take_moment()
            began_s = time.perf_counter()
            for camera, submitted in moment.frames.items():
                with suppress(FeatRosError):
                    moment.frames[camera] = _look(submitted, localizer)
            with self._changed:
                self._extract_s = time.perf_counter() - began_s
                self._ready = moment
                self._changed.notify_all()
                if self._bug or not moment.frames:
                    return
            # Until another comes nothing of it, nor of a map that is left, is to be kept.
            del localizer, moment, submitted

    def _take_ready(self) -> _Moment:
        """Wait for what was extracted ahead."""
        with self._changed:
            if not self._is_idle:
                self._localize_s = time.perf_counter() - self._began_s
            self._is_idle = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ready is not None or self._bug)
            moment, self._ready = self._ready or _Moment(), None
            self._is_idle, self._began_s = False, time.perf_counter()
            self._changed.notify_all()
            return moment

    def _is_whole_moment(self) -> bool:
        """Whether no other camera's frame of the same moment is to be expected."""
        first = next(iter(self._waiting.values()), None)
        if self._is_stopping or first is None or first.frame.cam_from_base is None:
            return True
        # A camera that has been silent for long is not waited for.
        stamp_ns, within_ns = first.frame.stamp_ns, 10**9
        return all(
            camera in self._waiting or abs(stamp_ns - seen_ns) > within_ns
            for camera, seen_ns in self._camera_ns.items()
        )

    def _take_moment(self) -> _Moment:
        """Wait for frames; take the one that waited longest, and other cameras' of its moment."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopping)
            self._changed.wait_for(self._is_whole_moment, self.config.moment_wait_s)
            replaced_ns, self._replaced_ns = self._replaced_ns, []
            first = next(iter(self._waiting), None)
            if first is None:
                return _Moment({}, replaced_ns)
            frame = self._waiting[first].frame
            within_ns = self.config.same_moment_s * 1e9
            chosen = [
                camera
                for camera, other in self._waiting.items()
                if camera == first
                or (
                    frame.cam_from_base is not None
                    and other.frame.cam_from_base is not None
                    and abs(other.frame.stamp_ns - frame.stamp_ns) <= within_ns
                )
            ]
            return _Moment({camera: self._waiting.pop(camera) for camera in chosen}, replaced_ns)

    @contextmanager
    def _turn(self) -> Iterator[FrameLocalizer]:
        """Wait until no other frame is being localized, then keep others waiting."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._busy = True
            localizer = self._localizer
        try:
            yield localizer
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _process_whatever(self, moment: Mapping[int, _Submitted]) -> list[FrameRecord]:
        """Localize frames; images that cannot be used are records too, and cost no other."""
        records: dict[int, FrameRecord] = {}
        with self._turn() as localizer:
            waited_ms = (time.perf_counter() - min(each.at_s for each in moment.values())) * 1e3
            waited_ms -= sum(sum(each.seen.ms.values()) for each in moment.values() if each.seen)
            seen: dict[int, _Submitted] = {}
            for camera, submitted in moment.items():
                try:
                    seen[camera] = _look(submitted, localizer)
                except FeatRosError as error:
                    records[camera] = self._failed(submitted, error, waited_ms)
            try:
                if seen:
                    localized = self._localize(seen, {'wait': waited_ms}, is_live=True)
                    records |= zip(seen, localized, strict=True)
            except FeatRosError as error:
                records |= {n: self._failed(each, error, waited_ms) for n, each in seen.items()}
        return [records[camera] for camera in moment]

    def _failed(self, submitted: _Submitted, error: FeatRosError, waited_ms: float) -> FrameRecord:
        _LOG.debug('frame at %d ns: %s', submitted.frame.stamp_ns, error)
        self._count_failure(error, 1)
        return bad_image(submitted.frame.stamp_ns, error, {'wait': waited_ms})

    def _count_failure(self, error: FeatRosError, num_frames: int) -> None:
        with self._changed:
            self._counts['failed'] += num_frames
            self._last_problem = str(error)

    def _localize(
        self, moment: Mapping[int, _Submitted], ms: dict[str, float], *, is_live: bool
    ) -> list[FrameRecord]:
        """Localize frames that were looked at as one.

        :param ms: what they have taken so far besides.
        :param is_live: go on without what cannot be read of the map.
        """
        frames = {camera: submitted.frame for camera, submitted in moment.items()}
        first, *others = frames.values()
        # Several cameras give the pose of their body, as if it were a camera.
        whole = replace(first, cam_from_base=Rigid3d()) if others else first
        with self._changed:
            for camera, frame in [*frames.items()][::-1]:
                at = self._advance(frame, camera)
            localizer, epoch, prior = self._localizer, self._epoch, self._prior(whole, at)
        views = []
        for submitted in moment.values():
            # Once more after a change of the map, perhaps to one of other features.
            seen = _look(submitted, localizer).seen
            assert seen is not None
            _add(ms, seen.ms)
            mount = submitted.frame.cam_from_base if others else None
            views.append(View(seen.features, submitted.frame.camera, mount or Rigid3d()))
        while True:
            try:
                result = localizer.localize_rig(views, prior)
                break
            except SegmentError as error:
                if not (is_live and localizer.leave_out(error)):
                    raise
        _add(ms, result.ms)
        with self._changed:
            if self._epoch != epoch:
                record = FrameRecord(first.stamp_ns, 'dropped', detail='a reset came first')
            else:
                record = self._judge(whole, at, result)
            record = replace(record, ms=ms)
            self._count(record)
            status = 'dropped' if record.status == 'dropped' else 'joined'
            self._counts[status] += len(others)
        detail = f'see the frame at {at.stamp_ns} ns'
        joined = [FrameRecord(frame.stamp_ns, status, detail=detail) for frame in others]
        return [record, *joined]

    def _advance(self, frame: Frame, camera: int) -> _Waypoint:
        """Note the frame's stamp and odometry."""
        before_ns = self._camera_ns.get(camera, 0)
        if frame.stamp_ns <= before_ns:
            behind = (before_ns - frame.stamp_ns) / 1e9
            self._reset(f'the clock went back by {behind:g} s' if behind else 'a stamp came twice')
        self._camera_ns[camera] = frame.stamp_ns
        way = self._way or _Waypoint(frame.stamp_ns, None, False)
        if frame.stamp_ns < way.stamp_ns:  # another camera's image was taken later, and came first
            known, odometry = frame.odom_from_base is not None, frame.odom_from_base
            return replace(way, stamp_ns=frame.stamp_ns, odom_from_base=odometry, is_known=known)
        self._way = way.then(frame.stamp_ns, frame.odom_from_base)
        return self._way

    def _prior(self, frame: Frame, at: _Waypoint) -> PosePrior | None:
        """Where the camera should be by the last fix; None where nobody can say."""
        if self._hint is not None or self._fix is None:
            return self._hint
        fix, options = self._fix, self.config
        radius, angle = options.prior_radius_m, options.prior_angle_deg
        predicted = _predict(fix, at, options)
        if predicted is None:
            age = abs(at.stamp_ns - fix.at.stamp_ns) / 1e9
            radius += options.max_speed_m_s * age
            angle += options.max_turn_deg_s * age
            predicted = fix.map_from_base, fix.covariance
        map_from_base, covariance = predicted
        cam_from_base = frame.cam_from_base or Rigid3d()
        angle += np.degrees(_PRIOR_SIGMAS * _sigma(covariance[3:, 3:]))
        # Turning the base swings a camera that is mounted away from its centre.
        swing = np.radians(angle) * np.linalg.norm(cam_from_base.translation)
        radius += _PRIOR_SIGMAS * _sigma(covariance[:3, :3]) + float(swing)
        if radius > options.max_prior_radius_m or angle > options.max_prior_angle_deg:
            return None
        return PosePrior(cam_from_base @ map_from_base.inverse(), radius, float(angle))

    def _judge(self, frame: Frame, at: _Waypoint, result: LocalizationResult) -> FrameRecord:
        """Take over what the localizer found, unless odometry contradicts it."""
        record = FrameRecord(
            frame.stamp_ns,
            'refused',
            mode=result.mode,
            num_matches=result.num_matches,
            num_inliers=result.num_inliers,
        )
        if isinstance(result, PoseFailure):
            return replace(record, reason=result.reason, detail=result.detail)
        fix = _fix_of_base(frame, at, result)
        contradiction = self._contradiction(fix)
        if contradiction:
            reason = FailureReason.ODOMETRY_DISAGREES
            return replace(record, reason=reason, detail=contradiction)
        self._fix, self._refused_fixes, self._hint = fix, [], None
        if frame.odom_from_base is not None:
            self._map_from_odom = fix.map_from_base @ frame.odom_from_base.inverse()
        return replace(
            record,
            status='localized',
            map_from_base=fix.map_from_base,
            covariance=fix.covariance,
        )

    def _contradiction(self, fix: _Fix) -> str:
        """Say why a fix cannot be true after the last one; '' if it can.

        When several such fixes in a row agree with each other, it is odometry that was wrong, or
        the robot was carried.
        """
        if self._fix is None:
            return ''
        sigmas, words = _jump(self._fix, fix, self.config)
        if sigmas <= self.config.gate_sigmas:
            return ''
        agreeing = [
            refused
            for refused in self._refused_fixes
            if _jump(refused, fix, self.config)[0] <= self.config.gate_sigmas
        ]
        if len(agreeing) < len(self._refused_fixes):
            self._refused_fixes = []
        self._refused_fixes.append(fix)
        if len(self._refused_fixes) < self.config.accept_after:
            allowed = self.config.gate_sigmas
            return f'{words}: {sigmas:.3g} standard deviations, {allowed:g} are allowed'
        self._counts['reseats'] += 1
        _LOG.warning(
            '%d fixes in a row agree that the robot is elsewhere (%s): odometry was wrong or the '
            'robot was carried', len(self._refused_fixes), words,
        )  # fmt: skip
        return ''

    def _count(self, record: FrameRecord) -> None:
        if record.status == 'dropped':
            self._counts['dropped'] += 1
            return
        self._latencies.append(record.ms)
        if record.reason is None:
            self._counts['localized'] += 1
            return
        self._reasons[record.reason.value] += 1
        self._last_problem = f'{record.reason.value}: {record.detail}'

    def _reset(self, reason: str) -> None:
        _LOG.warning('localization starts anew: %s', reason)
        self._counts['resets'] += 1
        self._epoch += 1
        self._way = self._fix = self._hint = self._map_from_odom = None
        self._camera_ns = {}


def _look(submitted: _Submitted, localizer: FrameLocalizer) -> _Submitted:
    """Decode a frame and extract what is in it, unless that was done for the same localizer.

    :raises FeatRosError: its image cannot be used.
    """
    if submitted.seen is not None and submitted.seen.localizer is localizer:
        return submitted
    frame, ms = submitted.frame, {}
    image_rgb, started = frame.image_rgb, time.perf_counter()
    if callable(image_rgb):
        image_rgb = image_rgb()
        ms['decode'] = (time.perf_counter() - started) * 1e3
        started = time.perf_counter()
    features = localizer.features(View(image_rgb, frame.camera, Rigid3d()))
    ms['extract'] = (time.perf_counter() - started) * 1e3
    return replace(submitted, seen=_Seen(features, localizer, ms))


def _add(ms: dict[str, float], more: Mapping[str, float]) -> None:
    for stage, took in more.items():
        ms[stage] = ms.get(stage, 0.0) + took


def bad_image(
    stamp_ns: int, error: FeatRosError, ms: dict[str, float] | None = None
) -> FrameRecord:
    """Return the record of a frame whose image, or whose map, could not be used."""
    is_map = isinstance(error, MapError)
    reason = FailureReason.MAP_DAMAGED if is_map else FailureReason.BAD_IMAGE
    return FrameRecord(stamp_ns, 'refused', reason, detail=str(error), ms=ms or {})


def _fix_of_base(frame: Frame, at: _Waypoint, estimate: PoseEstimate) -> _Fix:
    map_from_cam = estimate.cam_from_map.inverse()
    if frame.cam_from_base is None:
        return _Fix(at, map_from_cam, estimate.covariance)
    map_from_base = map_from_cam @ frame.cam_from_base
    lever_in_map = map_from_base.translation - map_from_cam.translation
    return _Fix(at, map_from_base, transport_covariance(estimate.covariance, lever_in_map))


def _predict(fix: _Fix, at: _Waypoint, config: ServerConfig) -> tuple[Rigid3d, Float] | None:
    """Return ``map_from_base`` by odometry since a fix, and its covariance (6, 6).

    None where there is no odometry. The drift of the position is that of the wheels, and that of
    a heading which wanders along the way: a third of its variance times the way's length squared.
    """
    if not (fix.at.is_known and at.is_known):
        return None
    assert fix.at.odom_from_base is not None and at.odom_from_base is not None
    then_from_now = fix.at.odom_from_base.inverse() @ at.odom_from_base
    map_from_base = fix.map_from_base @ then_from_now
    age = (at.stamp_ns - fix.at.stamp_ns) / 1e9
    way, turned = at.travelled_m - fix.at.travelled_m, at.turned_deg - fix.at.turned_deg
    heading = np.radians(
        np.hypot(config.odometry_deg_per_deg * turned, config.odometry_deg_per_s * age)
    )
    position = np.hypot(config.odometry_m_per_m * way, config.odometry_m_per_s * age)
    variance = position**2 + (heading * way) ** 2 / 3, heading**2
    lever_in_map = map_from_base.translation - fix.map_from_base.translation
    covariance = transport_covariance(fix.covariance, lever_in_map)
    return map_from_base, covariance + np.diag(np.repeat(variance, 3))


def _jump(earlier: _Fix, later: _Fix, config: ServerConfig) -> tuple[float, str]:
    """How far a fix is from where odometry leads from an earlier one.

    :returns: standard deviations of all that is uncertain, zero without odometry; and words.
    """
    predicted = _predict(earlier, later.at, config)
    if predicted is None:
        return 0.0, ''
    expected, covariance = predicted
    error = pose_error(expected.inverse(), later.map_from_base.inverse())
    squared = float(normalised_error_squared(error, covariance + later.covariance))
    metres, degrees = np.linalg.norm(error[:3]), np.degrees(np.linalg.norm(error[3:]))
    return np.sqrt(squared), f'{metres:.3g} m and {degrees:.3g} deg from where odometry leads'


def _sigma(covariance: Float) -> float:
    """Return the largest standard deviation in any direction."""
    return float(np.sqrt(np.linalg.eigvalsh(covariance)[-1]))

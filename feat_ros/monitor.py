# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How a live localizer is doing: for diagnostics, for the terminal and for the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import threading
import time

import numpy as np

from feat_ros.conversions import diagnostic_status, header, Values
from feat_ros.intake import Intake, IntakeSnapshot
from feat_ros.localizer import Localizer
from feat_ros.server import LocalizationServer
from feat_ros.types import FailureReason, FrameRecord, JsonDict

# Without a fix for longer a robot is lost, and a refusal is news for so long.
LOST_AFTER_S = 2.0


@dataclass(frozen=True)
class Health:
    """The state of a live localizer at one moment.

    :ivar problems: what is wrong now, a sentence each; none: all is well.
    :ivar image_hz: images that came in since the last look.
    :ivar fix_hz: those of them that were localized.
    :ivar fix_age_s: since the newest fix was published; None before the first.
    :ivar sigma_m: largest standard deviation of its position.
    :ivar figures: counts and times since the start, with the keys of a replay's summary.
    """

    problems: tuple[str, ...]
    image_hz: float
    fix_hz: float
    fix_age_s: float | None
    sigma_m: float | None
    figures: JsonDict

    @property
    def is_lost(self) -> bool:
        """Whether there was no fix lately."""
        return self.fix_age_s is None or self.fix_age_s > LOST_AFTER_S

    def line(self) -> str:
        """Return the state in one line."""
        words = [f'{self.image_hz:.1f} images/s', f'{self.fix_hz:.1f} fixes/s']
        if self.fix_age_s is not None and self.sigma_m is not None:
            words.append(f'last fix {self.fix_age_s:.1f} s ago +- {100 * self.sigma_m:.2g} cm')
        if self.figures['latency_ms']:
            words.append(f'{self.figures["latency_ms"]["total"]["p50"]:.0f} ms a frame')
        return ', '.join(words) + (f' | {"; ".join(self.problems)}' if self.problems else '')


class Monitor:
    """Watches a server and what feeds it. All methods may be called from any thread."""

    def __init__(
        self, localizer: Localizer, server: LocalizationServer, intakes: Sequence[Intake],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._localizer, self._server, self._intakes = localizer, server, intakes
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = Counter[str]()
        self._seen = Counter[str]()
        self._looked_s = self._started_s = clock()
        self._fix: tuple[float, float] | None = None
        self._refusal = -np.inf, ''

    def set_map(self, localizer: Localizer) -> None:
        """Name another map from now on."""
        self._localizer = localizer

    def record(self, record: FrameRecord) -> None:
        """Note what became of a frame."""
        with self._lock:
            if record.status == 'localized' and record.covariance is not None:
                self._counts['fixes'] += 1
                sigma_m = float(np.sqrt(np.linalg.eigvalsh(record.covariance[:3, :3])[-1]))
                self._fix = self._clock(), sigma_m
            elif record.reason is not None:
                self._refusal = self._clock(), f'{record.reason.value}: {record.detail}'

    def look(self, more_problems: Sequence[str] = ()) -> Health:
        """Return the state; rates are since the last call.

        :param more_problems: what the driver knows.
        """
        intake = _together([each.snapshot() for each in self._intakes])
        server = self._server.snapshot()
        with self._lock:
            now_s, counts = self._clock(), self._counts + Counter(images=intake.images)
            passed_s = max(now_s - self._looked_s, 1e-3)
            image_hz, fix_hz = (
                (counts[name] - self._seen[name]) / passed_s for name in ('images', 'fixes')
            )
            self._looked_s, self._seen = now_s, counts
            fix, (refused_s, refusal) = self._fix, self._refusal
        problems = [*intake.problems, *more_problems]
        if now_s - refused_s < LOST_AFTER_S and (fix is None or fix[0] < refused_s):
            problems.append(refusal)
        if not problems and (fix is None or now_s - fix[0] > LOST_AFTER_S):
            problems.append('no fix')
        reasons = Counter(intake.refused) + Counter(server.refused)
        reasons += Counter({FailureReason.BAD_IMAGE.value: server.failed})
        figures: JsonDict = {
            'seconds': now_s - self._started_s,
            'num_images': intake.images,
            'num_queries': server.localized + sum(reasons.values()),
            'num_localized': server.localized,
            'dropped': intake.dropped + server.dropped,
            'reasons': dict(reasons),
            'resets': server.resets,
            'reseats': server.reseats,
            'clock_jumps': intake.jumps,
            'latency_ms': server.latency_ms,
        }
        return Health(
            tuple(problems),
            image_hz,
            fix_hz,
            None if fix is None else now_s - fix[0],
            None if fix is None else fix[1],
            figures,
        )

    def diagnostics(self, health: Health, name: str, stamp_ns: int) -> Values:
        """Return a diagnostic_msgs/DiagnosticArray.

        :param name: of the node.
        """
        sfm_map, extractor = self._localizer.map, self._localizer.extractor
        figures = health.figures
        values: dict[str, object] = {
            'images per second': health.image_hz,
            'fixes per second': health.fix_hz,
            'age of the last fix (s)': 'none' if health.fix_age_s is None else health.fix_age_s,
            'sigma of the last fix (m)': 'none' if health.sigma_m is None else health.sigma_m,
            **{key: figures[key] for key in ('num_images', 'num_localized', 'dropped')},
            **{key: figures[key] for key in ('resets', 'reseats', 'clock_jumps')},
            **{f'refused: {reason}': count for reason, count in figures['reasons'].items()},
            **{
                f'{stage} (ms, p50 p95)': f'{times["p50"]:.1f} {times["p95"]:.1f}'
                for stage, times in figures['latency_ms'].items()
            },
            'map': sfm_map.path.name,
            'map id': sfm_map.manifest.map_id,
            'extractor': extractor.name,
        }
        status = diagnostic_status(
            f'{name}: localization', sfm_map.manifest.map_id, health.problems, values,
            is_error=health.is_lost,
        )  # fmt: skip
        return {'header': header(stamp_ns, ''), 'status': [status]}


def _together(cameras: Sequence[IntakeSnapshot]) -> IntakeSnapshot:
    """Return the state of several cameras as one; what is wrong says with which."""
    if len(cameras) == 1:
        return cameras[0]
    ages = [each.image_age_s for each in cameras if each.image_age_s is not None]
    return IntakeSnapshot(
        images=sum(each.images for each in cameras),
        refused=dict(sum((Counter(each.refused) for each in cameras), Counter[str]())),
        dropped=sum(each.dropped for each in cameras),
        jumps=max(each.jumps for each in cameras),
        image_age_s=min(ages, default=None),
        problems=tuple(
            f'camera {number}: {problem}'
            for number, each in enumerate(cameras)
            for problem in each.problems
        ),
    )

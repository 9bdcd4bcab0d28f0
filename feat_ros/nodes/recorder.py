# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Writes down what a localizer publishes and compares it with the truth; for replay.launch.py."""

from __future__ import annotations

from dataclasses import dataclass
import json
from pathlib import Path
import sys
from typing import Any

import numpy as np

from feat_ros.bags import stamp_ns_of
from feat_ros.config import Config, option
from feat_ros.errors import ConfigError, FeatRosError
from feat_ros.evaluation import compare_poses, summarise
from feat_ros.geometry import Rigid3d
from feat_ros.nodes.messages import message_type
from feat_ros.nodes.shell import run, Shell
from feat_ros.sfm_map import write_text
from feat_ros.trajectory import Trajectory

_POSE, _ODOMETRY = 'geometry_msgs/msg/PoseWithCovarianceStamped', 'nav_msgs/msg/Odometry'
_KINDS = {'odometry': _ODOMETRY, 'pose': _POSE, 'stamped': 'geometry_msgs/msg/PoseStamped'}
# The truth is interpolated over gaps up to this.
_MAX_GAP_NS = 250_000_000
_POLL_S = 0.1
# The line that the launch file waits for.
READY = 'all topics are listened to'


@dataclass(frozen=True)
class RecorderConfig(Config):
    """Parameters of the node."""

    pose_topic: str = option('localizer/pose', 'PoseWithCovarianceStamped of the localizer')
    truth_topic: str = option('', 'the true pose of the same frame in the map; or empty')
    truth_kind: str = option('odometry', 'what the truth is published as', choices=tuple(_KINDS))
    out: str = option('', 'folder for trajectory.tum and summary.json')
    min_poses: int = option(1, 'fewer poses are a failure', minimum=0)
    max_error_m: float = option(0.0, 'a larger median error is a failure; 0: none is', minimum=0.0)
    wait_for: list[str] = option(
        list, 'topics that somebody must listen to before "ready" is printed'
    )
    autostart: bool = option(True, 'configure and activate at the start')


class RecorderNode(Shell):
    """Records until it is interrupted."""

    def __init__(self) -> None:
        super().__init__('recorder', RecorderConfig)
        if not self.options.out:
            raise ConfigError('no folder is named for the results: set the parameter "out"')
        self._poses: dict[int, Rigid3d] = {}
        self._truth: dict[int, Rigid3d] = {}
        self._inputs: list[Any] = []
        self._is_ready = False

    def activate(self) -> None:
        """Subscribe."""
        options = self.options
        topics = [(options.pose_topic, _POSE, self._poses)]
        if options.truth_topic:
            topics.append((options.truth_topic, _KINDS[options.truth_kind], self._truth))
        for topic, kind, poses in topics:
            self._inputs.append(
                self.create_subscription(
                    message_type(kind), topic, lambda m, poses=poses: _note(m, poses), 100
                )
            )
        self._inputs.append(self.every(_POLL_S, self._say_when_ready))

    def _say_when_ready(self) -> None:
        waited_for = self.options.wait_for
        if not self._is_ready and all(map(self.count_subscribers, waited_for)):
            self._is_ready = True
            print(READY, flush=True)

    def deactivate(self) -> None:
        """Listen no more."""
        self.let_go(self._inputs)

    def finish(self) -> int:
        """Write the results; return the exit code."""
        options, out = self.options, Path(self.options.out)
        summary: dict[str, Any] = {'num_poses': len(self._poses)}
        problems = []
        if len(self._poses) < options.min_poses:
            problems.append(f'{len(self._poses)} poses came, {options.min_poses} are needed')
        if options.truth_topic and self._poses:
            summary |= self._errors()
            error = summary['median_translation_error_m']
            if error is None or (options.max_error_m and error > options.max_error_m):
                problems.append(f'median error of {error} m, {options.max_error_m} is allowed')
        out.mkdir(parents=True, exist_ok=True)
        if self._poses:
            stamps = sorted(self._poses)
            poses = Trajectory.from_poses(np.array(stamps), [self._poses[s] for s in stamps])
            write_text(out / 'trajectory.tum', poses.to_tum())
        write_text(out / 'summary.json', json.dumps(summary | {'problems': problems}, indent=2))
        print(f'{len(self._poses)} poses: {out}', json.dumps(summary), *problems, sep='\n')
        return 1 if problems else 0

    def _errors(self) -> dict[str, Any]:
        stamps = sorted(self._truth)
        if not stamps:
            return {'median_translation_error_m': None}
        truth = Trajectory.from_poses(np.array(stamps), [self._truth[s] for s in stamps])
        known = {str(s): truth.pose_at(s, _MAX_GAP_NS) for s in self._poses}
        cam_from_map = {name: pose.inverse() for name, pose in known.items() if pose is not None}
        found = {str(s): pose.inverse() for s, pose in self._poses.items()}
        try:
            return summarise(
                compare_poses({n: p for n, p in found.items() if n in cam_from_map}, cam_from_map)
            )
        except FeatRosError as error:
            return {'median_translation_error_m': None, 'problem': str(error)}


def _note(message: Any, poses: dict[int, Rigid3d]) -> None:
    pose = message.pose if hasattr(message.pose, 'position') else message.pose.pose
    place, turn = pose.position, pose.orientation
    poses[stamp_ns_of(message.header, 'a pose')] = Rigid3d.from_quat_xyzw(
        [turn.x, turn.y, turn.z, turn.w], [place.x, place.y, place.z]
    )


def main() -> None:
    """Run the node."""
    sys.exit(run(RecorderNode))


if __name__ == '__main__':
    main()

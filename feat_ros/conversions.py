# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What goes out to ROS, as nested dicts with ROS's field names; for the nodes and for DDS.

This is the one place where our results become ROS's. The world of a COLMAP model is the ROS frame
that the map's manifest names, ``map`` by default: x, y, z stay what they are. The pose of child c
in parent p, and the transform with these names, are ``p_from_c``. The covariance of a pose has
ROS's order already: x, y, z, then rotations about the fixed axes of the parent frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feat_ros.errors import MapError
from feat_ros.geometry import Rigid3d
from feat_ros.sfm_map import SfmMap
from feat_ros.types import FrameRecord

Values = dict[str, Any]


def header(stamp_ns: int, frame_id: str) -> Values:
    """Return a std_msgs/Header."""
    return {'stamp': time(stamp_ns), 'frame_id': frame_id}


def time(stamp_ns: int) -> Values:
    """Return a builtin_interfaces/Time."""
    return {'sec': stamp_ns // 10**9, 'nanosec': stamp_ns % 10**9}


def check_metric(sfm_map: SfmMap) -> None:
    """Check that the coordinates of a map are metres, as all coordinates in ROS are.

    :raises MapError: its scale is unknown.
    """
    if sfm_map.manifest.scale != 'metric':
        raise MapError(
            f'map {sfm_map.path} has an unknown scale: give it one with "feat_ros map align"'
        )


def pose_with_covariance(record: FrameRecord, map_frame: str) -> Values:
    """Return a geometry_msgs/PoseWithCovarianceStamped at the stamp of the image.

    :param record: a frame that was localized.
    """
    assert record.map_from_base is not None and record.covariance is not None
    position, orientation = _parts(record.map_from_base)
    return {
        'header': header(record.stamp_ns, map_frame),
        'pose': {
            'pose': {'position': position, 'orientation': orientation},
            'covariance': record.covariance.ravel().tolist(),
        },
    }


def transform(stamp_ns: int, parent: str, child: str, parent_from_child: Rigid3d) -> Values:
    """Return a geometry_msgs/TransformStamped."""
    translation, rotation = _parts(parent_from_child)
    return {
        'header': header(stamp_ns, parent),
        'child_frame_id': child,
        'transform': {'translation': translation, 'rotation': rotation},
    }


def diagnostic_status(
    name: str, hardware_id: str, problems: Sequence[str], values: Mapping[str, object],
    *, is_error: bool,
) -> Values:  # fmt: skip
    """Return a diagnostic_msgs/DiagnosticStatus: OK without problems, else WARN or ERROR."""
    level = (2 if is_error else 1) if problems else 0
    return {
        'level': level,
        'name': name,
        'message': '; '.join(problems) or 'OK',
        'hardware_id': hardware_id,
        'values': [{'key': key, 'value': _word(value)} for key, value in values.items()],
    }


def _parts(pose: Rigid3d) -> tuple[Values, Values]:
    return (
        dict(zip('xyz', pose.translation.tolist(), strict=True)),
        dict(zip('xyzw', pose.quat_xyzw.tolist(), strict=True)),
    )


def _word(value: object) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)

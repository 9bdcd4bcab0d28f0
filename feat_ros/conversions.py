# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What goes out to ROS, as nested dicts with ROS's field names, and what comes back.

This is the one place where our results become ROS's. The world of a COLMAP model is the ROS frame
that the map's manifest names, ``map`` by default: x, y, z stay what they are. The pose of child c
in parent p, and the transform with these names, are ``p_from_c``. The covariance of a pose has
ROS's order already: x, y, z, then rotations about the fixed axes of the parent frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.errors import MapError, MessageError
from feat_ros.geometry import Rigid3d
from feat_ros.image import Image
from feat_ros.sfm_map import SfmMap
from feat_ros.types import Features, FrameRecord

Values = dict[str, Any]

# Descriptors travel as bytes: unit vectors times this.
_DESCRIPTOR_SCALE = 127
_FEATURE_FIELDS = ('u', 'v', 'score', 'stability', 'pixel_sigma')
# sensor_msgs/PointField
_INT8, _FLOAT32 = 1, 7
_POINT_FIELDS = {np.dtype('i1'): _INT8, np.dtype('<f4'): _FLOAT32}
# Points of a cloud for looking at.
_MAX_CLOUD = 200_000
# A normal error in three dimensions is within so many standard deviations in 95 % of cases.
_SIGMAS_95 = 2.796


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


def pose_of(message: Any, map_frame: str) -> tuple[Rigid3d, float, float]:
    """Read a geometry_msgs/PoseWithCovarianceStamped in the map.

    :returns: the pose, and its largest standard deviations in metres and degrees.
    :raises MessageError: in another frame, not a pose, or a covariance that is none.
    """
    frame = message.header.frame_id.lstrip('/')
    if frame != map_frame:
        raise MessageError(f'it is in frame {frame!r}: give it in {map_frame!r}')
    place, turn = message.pose.pose.position, message.pose.pose.orientation
    quat = np.array([turn.x, turn.y, turn.z, turn.w], float)
    covariance = np.asarray(message.pose.covariance, float).reshape(6, 6)
    if not (np.isfinite(quat).all() and 0.5 < np.linalg.norm(quat) < 2):
        raise MessageError(f'its orientation {quat.tolist()} is not a rotation')
    if not np.isfinite(covariance).all() or (np.diag(covariance) < 0).any():
        raise MessageError('its covariance has negative or infinite variances')
    pose = Rigid3d.from_quat_xyzw(quat, [place.x, place.y, place.z])
    sigma_m, sigma_rad = (
        float(np.sqrt(np.linalg.eigvalsh(block)[-1]))
        for block in (covariance[:3, :3], covariance[3:, 3:])
    )
    return pose, sigma_m, float(np.degrees(sigma_rad))


def point_cloud(frame_header: Values, points: npt.NDArray[Any]) -> Values:
    """Return a sensor_msgs/PointCloud2 of a structured array: the bytes go as they are."""
    assert points.dtype.fields is not None
    fields = []
    for name, (kind, offset, *_) in points.dtype.fields.items():
        base, shape = kind.subdtype or (kind, ())
        count = int(np.prod(shape, dtype=int))
        fields.append(
            {'name': name, 'offset': offset, 'datatype': _POINT_FIELDS[base], 'count': count}
        )
    return {
        'header': frame_header,
        'height': 1,
        'width': len(points),
        'fields': fields,
        'is_bigendian': False,
        'point_step': points.dtype.itemsize,
        'row_step': points.nbytes,
        'data': points.tobytes(),
        'is_dense': True,
    }


def features_cloud(features: Features, stamp_ns: int, frame_id: str) -> Values:
    """Return features as a sensor_msgs/PointCloud2, one point a keypoint.

    FLOAT32 ``u v score stability pixel_sigma`` and INT8 ``descriptor``, its length the count.
    """
    points = np.zeros(len(features), _feature_type(features.descriptors.shape[1]))
    points['u'], points['v'] = features.keypoints.T
    for name in ('score', 'stability', 'pixel_sigma'):
        points[name] = getattr(features, {'score': 'scores'}.get(name, name))
    points['descriptor'] = np.rint(features.descriptors * _DESCRIPTOR_SCALE)
    return point_cloud(header(stamp_ns, frame_id), points)


def features_from_cloud(message: Any, name: str) -> Features:
    """Read what :func:`features_cloud` writes.

    :param name: what the error calls it.
    :raises MessageError: other fields, or data that is cut off.
    """
    fields = {each.name: each for each in message.fields}
    dim = fields['descriptor'].count if 'descriptor' in fields else 0
    kind = _feature_type(dim)
    if tuple(fields) != (*_FEATURE_FIELDS, 'descriptor') or message.point_step != kind.itemsize:
        raise MessageError(f'features {name} have fields {", ".join(fields)}: they are not ours')
    count, data = message.width * message.height, memoryview(message.data)
    if len(data) != count * kind.itemsize:
        raise MessageError(f'features {name} are cut off: {len(data)} bytes of {count} keypoints')
    points = np.frombuffer(data, kind)
    descriptors = points['descriptor'].astype(np.float32)
    descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1.0)
    return Features(
        keypoints=np.stack([points['u'], points['v']], 1),
        scores=points['score'].copy(),
        descriptors=descriptors,
        stability=points['stability'].copy(),
        pixel_sigma=points['pixel_sigma'].copy(),
    )


def image(image_rgb: Image, stamp_ns: int, frame_id: str) -> Values:
    """Return an RGB (H, W, 3) uint8 image as a sensor_msgs/Image."""
    height, width = image_rgb.shape[:2]
    return {
        'header': header(stamp_ns, frame_id),
        'height': height,
        'width': width,
        'encoding': 'rgb8',
        'step': 3 * width,
        'data': image_rgb.tobytes(),
    }


def map_points(sfm_map: SfmMap) -> Values:
    """Return points of a map as a sensor_msgs/PointCloud2: x y z stability; not all of many."""
    ids = np.arange(0, sfm_map.num_points, 1 + sfm_map.num_points // _MAX_CLOUD)
    points = np.zeros(len(ids), [(name, '<f4') for name in ('x', 'y', 'z', 'stability')])
    xyz, _ = sfm_map.points(ids)
    points['x'], points['y'], points['z'] = xyz.T
    points['stability'] = sfm_map.stability(ids)
    return point_cloud(header(0, sfm_map.manifest.frame_id), points)


def pose_stamped(record: FrameRecord, map_frame: str) -> Values:
    """Return the pose of a localized frame as a geometry_msgs/PoseStamped."""
    stamped = pose_with_covariance(record, map_frame)
    return {'header': stamped['header'], 'pose': stamped['pose']['pose']}


def features_info(extractor: Any, size_wh: tuple[int, int]) -> Values:
    """Return whose features a topic carries as a diagnostic_msgs/DiagnosticStatus.

    :param extractor: an :class:`feat_ros.extractors.Extractor`.
    :param size_wh: of the images that they are of.
    """
    values = {
        'extractor': extractor.name,
        'weights_sha256': extractor.weights_sha256,
        'width': size_wh[0],
        'height': size_wh[1],
    }
    return diagnostic_status('features', extractor.name, [], values, is_error=False)


def markers(record: FrameRecord, map_frame: str) -> Values:
    """Return a visualization_msgs/MarkerArray: where the base is with 95 %, as an ellipsoid."""
    assert record.map_from_base is not None and record.covariance is not None
    variances, axes = np.linalg.eigh(record.covariance[:3, :3])
    axes = axes * np.sign(np.linalg.det(axes))
    position, orientation = _parts(Rigid3d(axes, record.map_from_base.translation))
    diameters = 2 * _SIGMAS_95 * np.sqrt(np.maximum(variances, 0))
    ellipsoid = {
        'header': header(record.stamp_ns, map_frame),
        'ns': 'position within 95 %',
        'type': 2,  # SPHERE
        'pose': {'position': position, 'orientation': orientation},
        'scale': dict(zip('xyz', np.maximum(diameters, 1e-3).tolist(), strict=True)),
        'color': {'r': 0.12, 'g': 0.47, 'b': 0.71, 'a': 0.6},
    }
    return {'markers': [ellipsoid]}


def _feature_type(dim: int) -> np.dtype[Any]:
    return np.dtype([*((name, '<f4') for name in _FEATURE_FIELDS), ('descriptor', 'i1', (dim,))])


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

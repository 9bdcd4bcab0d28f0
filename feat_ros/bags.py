# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded bags, ROS 1 and ROS 2, read through rosbags: no ROS is needed.

The conversions of single messages (:func:`image_from_message`, :func:`camera_from_info`,
:func:`stamp_ns_of`) and :class:`TransformBuffer` only look at attributes, so that they take live
messages too; rosbags is imported when a bag is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
import heapq
import itertools
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.errors import (
    BagError,
    CameraError,
    DataError,
    DisconnectedFramesError,
    OutsideTimeRangeError,
    TransformError,
    UnknownFrameError,
)
from feat_ros.geometry import Rigid3d
from feat_ros.image import decode_compressed, decode_raw, Image
from feat_ros.trajectory import Trajectory

_LOG = logging.getLogger(__name__)

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
INFO_TYPES = ('sensor_msgs/msg/CameraInfo',)
TRANSFORM_TYPES = ('tf2_msgs/msg/TFMessage', 'tf/msg/tfMessage')

# Type -> child frame, position and orientation; a type that names no child has ''.
_POSE_PARTS: dict[str, Callable[[Any], tuple[str, Any, Any]]] = {
    'nav_msgs/msg/Odometry': lambda m: (
        m.child_frame_id,
        m.pose.pose.position,
        m.pose.pose.orientation,
    ),
    'geometry_msgs/msg/PoseStamped': lambda m: ('', m.pose.position, m.pose.orientation),
    'geometry_msgs/msg/PoseWithCovarianceStamped': lambda m: (
        '',
        m.pose.pose.position,
        m.pose.pose.orientation,
    ),
    'geometry_msgs/msg/TransformStamped': lambda m: (
        m.child_frame_id,
        m.transform.translation,
        m.transform.rotation,
    ),
}
POSE_TYPES = tuple(_POSE_PARTS)

_VIDEO_TYPES = (
    'foxglove_msgs/msg/CompressedVideo',
    'ffmpeg_image_transport_msgs/msg/FFMPEGPacket',
    'theora_image_transport/msg/Packet',
)

_KINDS = {
    IMAGE_TYPES: 'image',
    INFO_TYPES: 'camera info',
    POSE_TYPES: 'pose',
    TRANSFORM_TYPES: 'transform',
}
# rosbags' types of ROS 1 are without tf's.
_TRANSFORM_DEFINITION = 'geometry_msgs/TransformStamped[] transforms\n'
_SUFFIXES = ('.bag', '.mcap', '.db3')
# Messages of one topic may overtake each other by this many places.
_REORDER_WINDOW = 8
# CameraInfo's names of the fisheye model of Kannala and Brandt.
_FISHEYE_MODELS = ('equidistant', 'fisheye', 'kannala_brandt', 'kannala_brandt4')
_PERSPECTIVE_MODELS = ('plumb_bob', 'rational_polynomial')


@dataclass(frozen=True)
class Topic:
    """What a bag holds on one topic: the message type (``package/msg/Name``) and the count."""

    type: str
    count: int


@dataclass(frozen=True, eq=False)
class StampedImage:
    """An image message, decoded when asked.

    :ivar stamp_ns: time of exposure, from the header.
    :ivar frame_id: the camera's optical frame.
    :ivar message: the message as recorded.
    :ivar name: topic and stamp, for errors.
    """

    stamp_ns: int
    frame_id: str
    message: Any
    name: str

    def decode(self) -> Image:
        """Return RGB (H, W, 3) uint8.

        :raises ImageError: see :func:`image_from_message`.
        """
        return image_from_message(self.message, self.name)


@dataclass(frozen=True, eq=False)
class StampedPoses:
    """The poses of a topic, ``parent_from_child``; ``child_frame`` is '' where none is named."""

    parent_frame: str
    child_frame: str
    trajectory: Trajectory


class Bag:
    """A recorded bag, open for reading.

    :param path: a ROS 1 ``.bag``, the folder of a ROS 2 bag (sqlite3 or mcap), or one of its
        ``.mcap`` or ``.db3`` files.
    :raises BagError: no such bag, a folder or file that is none, damaged, or without messages.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the bag; see the class."""
        self.path = Path(path)
        self._is_ros1 = self.path.suffix == '.bag' and not self.path.is_dir()
        self._stores: dict[tuple[str, Any], Any] = {}
        self._reader = self._open_reader()
        self._is_reading = False
        self.topics = self._list_topics()
        if not any(topic.count for topic in self.topics.values()):
            self.close()
            raise BagError(f'bag {path} has no messages: record it again')

    def __enter__(self) -> Bag:
        """Return the bag."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the bag."""
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._reader.close()

    def images(self, topic: str) -> Iterator[StampedImage]:
        """Yield the images of a topic in order of their header stamps.

        Messages that overtook each other by a few places are put in order on the way.

        :raises BagError: no such image topic (the image topics are listed), a stamp of zero,
            stamps that run back, a damaged bag.
        """
        window: list[tuple[int, int, StampedImage]] = []
        last = 0
        for index, (_, message) in enumerate(self._messages(topic, IMAGE_TYPES)):
            stamp_ns = stamp_ns_of(message.header, f'topic {topic}')
            frame_id = _frame(message.header.frame_id)
            image = StampedImage(stamp_ns, frame_id, message, f'{topic} at {stamp_ns} ns')
            if stamp_ns < last:
                raise BagError(
                    f'topic {topic}: the stamps run back by {(last - stamp_ns) / 1e9:g} s at '
                    f'image {index}: split the bag where time was reset'
                )
            heapq.heappush(window, (stamp_ns, index, image))
            if len(window) > _REORDER_WINDOW:
                last, _, first = heapq.heappop(window)
                yield first
        while window:
            yield heapq.heappop(window)[2]

    def camera_info(self, topic: str) -> tuple[Camera, str]:
        """Return the camera and its frame from the first CameraInfo of a topic.

        :raises BagError: no such topic (those that could be meant are listed).
        :raises CameraError: see :func:`camera_from_info`.
        """
        messages = self._messages(topic, INFO_TYPES)
        _, message = next(messages)
        messages.close()
        return camera_from_info(message, topic), _frame(message.header.frame_id)

    def poses(self, topic: str) -> StampedPoses:
        """Return the poses of a topic.

        Its type is Odometry, PoseStamped, PoseWithCovarianceStamped or TransformStamped. They
        are ordered by header stamp; of several with one stamp the first is kept.

        :raises BagError: no such pose topic (the pose topics are listed), a stamp of zero, more
            than one parent or child frame, a number that is not finite, a quaternion that is
            not unit.
        """
        samples = _Samples()
        frames = set()
        for kind, message in self._messages(topic, POSE_TYPES):
            child, position, orientation = _POSE_PARTS[kind](message)
            frames.add((_frame(message.header.frame_id), _frame(child)))
            samples.add(stamp_ns_of(message.header, f'topic {topic}'), position, orientation)
        if len(frames) > 1:
            pairs = ', '.join(f'{parent!r} <- {child!r}' for parent, child in sorted(frames))
            raise BagError(f'topic {topic} mixes the poses of several frames ({pairs}): use TF')
        parent, child = frames.pop()
        return StampedPoses(parent, child, samples.trajectory(f'topic {topic}'))

    def transforms(self, topics: Sequence[str] = ('/tf', '/tf_static')) -> TransformBuffer:
        """Return all transforms of the topics; those that end in ``tf_static`` hold for ever.

        :raises BagError: none of the topics is there (the transform topics are listed).
        """
        buffer = TransformBuffer()
        present = [topic for topic in topics if topic in self.topics]
        for topic in [t for t in present if self.topics[t].count] or present or topics:
            for _, message in self._messages(topic, TRANSFORM_TYPES):
                buffer.add(message.transforms, is_static=topic.endswith('tf_static'))
        return buffer

    def check_topics(self, topics: Iterable[str]) -> None:
        """Check that the bag has these topics.

        :raises BagError: one is not there (those that are there are listed).
        """
        for topic in topics:
            if topic not in self.topics:
                raise BagError(
                    f'bag {self.path} has no topic {topic!r}: its topics are '
                    f'{", ".join(self.topics)}'
                )

    def is_latched(self, topic: str) -> bool:
        """Whether late subscribers of a topic were given the last messages too."""
        for connection in self._reader.connections:
            profiles = getattr(connection.ext, 'offered_qos_profiles', ())
            if connection.topic == topic and (
                getattr(connection.ext, 'latching', False)
                or any(qos.durability.name == 'TRANSIENT_LOCAL' for qos in profiles)
            ):
                return True
        return topic.endswith('tf_static')

    def fields(self, kind: str) -> list[tuple[str, str, int | None]]:
        """Return name, type and count of the fields of a message type.

        :returns: the count is None for one element, 0 for any number, N for an array of N.
        :raises KeyError: no message of the bag is of the type, or has one inside.
        """
        for connection in self._reader.connections:
            store = self._ros2_store_of(connection, _full_type(connection.msgtype))
            if kind in store.fielddefs:
                return [(name, *_element(what)) for name, what in store.fielddefs[kind][1]]
        raise KeyError(kind)

    def cdr(self, topics: Sequence[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield topic, time of recording and CDR of the messages, as they were recorded.

        :raises BagError: a damaged bag.
        """
        raw_messages = self._raw_messages(
            [c for c in self._reader.connections if c.topic in topics]
        )
        while True:
            try:
                connection, recorded_ns, data = next(raw_messages)
                if self._is_ros1:
                    kind = _full_type(connection.msgtype)
                    data = self._ros2_store_of(connection, kind).ros1_to_cdr(data, kind)
            except StopIteration:
                return
            except BagError:
                raise
            except Exception as error:  # a damaged file raises whatever the parser stumbled over
                raise self._damaged(error) from error
            yield connection.topic, recorded_ns, data

    def _open_reader(self) -> Any:
        try:
            from rosbags.rosbag1 import Reader as Reader1
            from rosbags.rosbag2 import Reader as Reader2
        except ImportError:
            raise BagError(
                f"bag {self.path} needs the package rosbags: run 'pip install rosbags'"
            ) from None
        _check_path(self.path)
        try:
            reader = (Reader1 if self._is_ros1 else Reader2)(self.path)
            reader.open()
        except Exception as error:  # a damaged file raises whatever the parser stumbled over
            raise self._damaged(error) from error
        return reader

    def _damaged(self, error: Exception) -> BagError:
        words = str(error).split()
        # A KeyError says one word, an AssertionError none.
        reason = ' '.join(words if len(words) > 1 else [type(error).__name__, *words]).rstrip('.')
        repair = 'rosbag reindex' if self._is_ros1 else 'ros2 bag reindex'
        return BagError(
            f"bag {self.path} cannot be read ({reason}): copy it again or try '{repair}'"
        )

    def _list_topics(self) -> dict[str, Topic]:
        topics: dict[str, Topic] = {}
        for connection in sorted(self._reader.connections, key=lambda c: str(c.topic)):
            kind, count = _full_type(connection.msgtype), connection.msgcount
            known = topics.get(connection.topic)
            if known is not None:
                kind = kind if kind == known.type else f'{known.type} and {kind}'
                count += known.count
            topics[connection.topic] = Topic(kind, count)
        return topics

    def _find(self, topic: str, types: tuple[str, ...]) -> list[Any]:
        """Return the topic's connections that have one of the types."""
        connections = [
            connection
            for connection in self._reader.connections
            if connection.topic == topic and _full_type(connection.msgtype) in types
        ]
        if connections:
            return connections
        kind = _KINDS[types]
        fitting = [
            name
            for name, known in self.topics.items()
            if any(part in types for part in known.type.split(' and '))
        ]
        way_out = (
            f'its {kind} topics are {", ".join(fitting)}' if fitting else f'it has no {kind} topic'
        )
        found = self.topics.get(topic)
        if found is not None and found.type in _VIDEO_TYPES:
            way_out = f'video cannot be read, record Image or CompressedImage; {way_out}'
        problem = f'has no topic {topic!r}' if found is None else f'has {found.type} on {topic!r}'
        raise BagError(f'bag {self.path} {problem}: {way_out}')

    def _messages(self, topic: str, types: tuple[str, ...]) -> Any:
        """Yield (type, message) of a topic in the order of recording."""
        connections = self._find(topic, types)
        is_empty = True
        raw_messages = self._raw_messages(connections)
        while True:
            try:
                connection, _, data = next(raw_messages)
                kind = _full_type(connection.msgtype)
                store = self._store_of(connection, kind)
                read = store.deserialize_ros1 if self._is_ros1 else store.deserialize_cdr
                message = read(data, kind)
            except StopIteration:
                break
            except BagError:
                raise
            except Exception as error:  # a damaged file raises whatever the parser stumbled over
                raise self._damaged(error) from error
            is_empty = False
            yield kind, message
        if is_empty:
            raise BagError(f'bag {self.path} has no message on topic {topic!r}: record it again')

    def _raw_messages(self, connections: list[Any]) -> Iterator[tuple[Any, int, bytes]]:
        """Yield from the one reader, or from a new one while that is in use.

        A file without an index is read from one position: two loops over it would mix.
        """
        if self._is_reading:
            reader = self._open_reader()
            try:
                yield from reader.messages(connections)
            finally:
                reader.close()
            return
        self._is_reading = True
        try:
            yield from self._reader.messages(connections)
        finally:
            self._is_reading = False

    def _store_of(self, connection: Any, kind: str) -> Any:
        """Return the types to read a connection with: the bag's own, else those of a release.

        Only the types that are read are taken from the bag, so that an odd definition on some
        other topic does no harm.
        """
        key = (kind, connection.msgdef)
        if key not in self._stores:
            self._stores[key] = self._make_store(connection.msgdef, kind)
        return self._stores[key]

    def _ros2_store_of(self, connection: Any, kind: str) -> Any:
        """Return the same types as ROS 2 has them: its headers have no sequence number."""
        store, key = self._store_of(connection, kind), (f'{kind} in ROS 2', connection.msgdef)
        if not self._is_ros1 or 'std_msgs/msg/Header' not in store.fielddefs:
            return store
        if key not in self._stores:
            from rosbags.typesys import get_typestore, Stores

            constants, fields = store.fielddefs['std_msgs/msg/Header']
            without = constants, [field for field in fields if field[0] != 'seq']
            self._stores[key] = get_typestore(Stores.EMPTY)
            self._stores[key].register({**store.fielddefs, 'std_msgs/msg/Header': without})
        return self._stores[key]

    def _make_store(self, definition: Any, kind: str) -> Any:
        from rosbags.interfaces import MessageDefinitionFormat
        from rosbags.typesys import get_types_from_msg, get_typestore, Stores

        standard = get_typestore(Stores.ROS1_NOETIC if self._is_ros1 else Stores.LATEST)
        for name in set(TRANSFORM_TYPES) - standard.fielddefs.keys():
            standard.register(get_types_from_msg(_TRANSFORM_DEFINITION, name))
        # A definition in IDL can only be the generated twin of the standard one.
        if definition.format != MessageDefinitionFormat.MSG or not definition.data.strip():
            return standard
        own = get_typestore(Stores.EMPTY)
        own.register(get_types_from_msg(definition.data, kind))
        for name in own.fielddefs.keys() & standard.fielddefs.keys():
            have, need = (
                {(field.lower(), description) for field, description in store.fielddefs[name][1]}
                for store in (own, standard)
            )
            if need - have:
                fields = ', '.join(sorted(field for field, _ in need - have))
                raise BagError(
                    f'bag {self.path} defines {name} with {fields} missing or of another type: '
                    'it must be the standard message'
                )
        return own


class TransformBuffer:
    """The tree of frames and its transforms over time: tf2's lookup without ROS."""

    def __init__(self) -> None:
        """Make an empty buffer."""
        self._static: dict[str, dict[str, Rigid3d]] = {}
        self._moving: dict[str, dict[str, _Samples]] = {}
        self._trajectories: dict[tuple[str, str], Trajectory] = {}

    def add(self, transforms: Iterable[Any], *, is_static: bool) -> None:
        """Add geometry_msgs/TransformStamped messages; a newer static one replaces an older.

        :raises BagError: a static transform that is not finite or not a rotation.
        """
        for message in transforms:
            parent, child = _frame(message.header.frame_id), _frame(message.child_frame_id)
            transform = message.transform
            if is_static:
                samples = _Samples()
                samples.add(0, transform.translation, transform.rotation)
                trajectory = samples.trajectory(_edge_name(parent, child))
                self._static.setdefault(child, {})[parent] = trajectory[0]
                continue
            samples = self._moving.setdefault(child, {}).setdefault(parent, _Samples())
            stamp_ns = _nanoseconds(message.header.stamp)
            if stamp_ns == samples.last_ns:  # robots repeat what stands still
                continue
            samples.add(stamp_ns, transform.translation, transform.rotation)
            self._trajectories.pop((parent, child), None)

    def keep(self, first_ns: int, last_ns: int) -> None:
        """Forget what moving transforms were at other times; static ones stay."""
        for child, edges in list(self._moving.items()):
            for parent, samples in list(edges.items()):
                self._trajectories.pop((parent, child), None)
                if not samples.keep(first_ns, last_ns):
                    del edges[parent]
            if not edges:
                del self._moving[child]

    @property
    def frames(self) -> list[str]:
        """Names of all frames, sorted."""
        edges = [(c, p) for tree in (self._static, self._moving) for c in tree for p in tree[c]]
        return sorted({frame for edge in edges for frame in edge})

    def lookup(self, target: str, source: str, stamp_ns: int, max_gap_ns: int = 10**9) -> Rigid3d:
        """Return ``target_from_source`` at a stamp, interpolated along the chain of frames.

        :param max_gap_ns: samples further apart than this are not interpolated between.
        :raises UnknownFrameError: a frame that no transform names (the known ones are listed).
        :raises DisconnectedFramesError: no chain between the two.
        :raises OutsideTimeRangeError: a transform on the chain is not known at the stamp.
        :raises TransformError: frames in a loop, a frame with two parents, a stamp of zero.
        """
        target, source = _frame(target), _frame(source)
        up_target, up_source = self._ancestry(target), self._ancestry(source)
        common = next((frame for frame in up_source if frame in up_target), None)
        if common is None:
            raise DisconnectedFramesError(
                f'frames {target!r} (in the tree of {up_target[-1]!r}) and {source!r} (in the '
                f'tree of {up_source[-1]!r}) are not connected: publish a transform between them'
            )
        common_from_target = self._compose(up_target, common, stamp_ns, max_gap_ns)
        common_from_source = self._compose(up_source, common, stamp_ns, max_gap_ns)
        return common_from_target.inverse() @ common_from_source

    def _ancestry(self, frame: str) -> list[str]:
        """Return the frame, its parent, and so on to the root."""
        chain = [frame]
        while parents := self.parents(chain[-1]):
            if len(parents) > 1:
                raise TransformError(
                    f'frame {chain[-1]!r} has more than one parent, {", ".join(parents)}: '
                    'stop all but one of their publishers'
                )
            if parents[0] in chain:
                loop = ' <- '.join([parents[0], *reversed(chain)])
                raise TransformError(f'frames form a loop ({loop}): stop one of the publishers')
            chain.append(parents[0])
        if len(chain) == 1 and frame not in self.frames:
            raise UnknownFrameError(
                f'unknown frame {frame!r}; known are: {", ".join(self.frames) or "none"}'
            )
        return chain

    def parents(self, frame: str) -> list[str]:
        """Return the frames that transforms lead from to this one; more than one is a fault."""
        return sorted({*self._static.get(frame, {}), *self._moving.get(frame, {})})

    def _compose(self, chain: list[str], ancestor: str, stamp_ns: int, max_gap_ns: int) -> Rigid3d:
        """Return ``ancestor_from_frame`` for the first frame of its ancestry."""
        upper_from_frame = Rigid3d()
        for child, parent in itertools.pairwise(chain):
            if child == ancestor:
                break
            upper_from_frame = (
                self._parent_from_child(parent, child, stamp_ns, max_gap_ns) @ upper_from_frame
            )
        return upper_from_frame

    def _parent_from_child(
        self, parent: str, child: str, stamp_ns: int, max_gap_ns: int
    ) -> Rigid3d:
        if parent not in self._moving.get(child, {}):
            return self._static[child][parent]
        name = _edge_name(parent, child)
        trajectory = self._trajectories.get((parent, child))
        if trajectory is None:
            trajectory = self._moving[child][parent].trajectory(name)
            self._trajectories[parent, child] = trajectory
        first, last = trajectory.stamps_ns[[0, -1]]
        if first <= 0:
            raise TransformError(f'{name} has stamp {first}: its publisher must set the stamp')
        if not first <= stamp_ns <= last:
            raise OutsideTimeRangeError(
                f'{name} is known from {first} to {last} ns, not at {stamp_ns} ns: leave out '
                'what was recorded before or after'
            )
        pose = trajectory.pose_at(stamp_ns, max_gap_ns)
        if pose is None:
            raise OutsideTimeRangeError(
                f'{name} has a gap of more than {max_gap_ns / 1e9:g} s around {stamp_ns} ns: '
                'allow a larger one if it moves little'
            )
        return pose


class _Samples:
    """Stamps, positions and orientations as they come, in any order."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, tuple[float, ...]]] = []
        self.last_ns: int | None = None

    def add(self, stamp_ns: int, position: Any, orientation: Any) -> None:
        p, q = position, orientation
        self.last_ns = stamp_ns
        self._rows.append((stamp_ns, (p.x, p.y, p.z, q.x, q.y, q.z, q.w)))

    def keep(self, first_ns: int, last_ns: int) -> bool:
        """Forget other times; return whether something is left."""
        self._rows = [row for row in self._rows if first_ns <= row[0] <= last_ns]
        return bool(self._rows)

    def trajectory(self, name: str) -> Trajectory:
        """Order by stamp; of several rows with one stamp keep the first, as tf2 does."""
        stamps = np.array([stamp for stamp, _ in self._rows], np.int64)
        values = np.array([row for _, row in self._rows], float)
        stamps, first = np.unique(stamps, return_index=True)
        if len(stamps) < len(values):
            _LOG.warning('%s: %d repeated stamps dropped', name, len(values) - len(stamps))
        try:
            return Trajectory(stamps, values[first, 3:], values[first, :3])
        except DataError as error:
            raise BagError(f'{name}: {error}; mend its publisher') from None


def image_from_message(message: Any, name: str) -> Image:
    """Decode a sensor_msgs Image or CompressedImage to RGB (H, W, 3) uint8.

    :param name: what the error calls it.
    :raises ImageError: see :func:`feat_ros.image.decode_raw` and ``decode_compressed``.
    """
    if hasattr(message, 'encoding'):
        return decode_raw(
            message.data,
            message.height,
            message.width,
            message.encoding,
            message.step,
            bool(message.is_bigendian),
            name,
        )
    return decode_compressed(bytes(message.data), message.format, name)


def stamp_ns_of(header: Any, name: str) -> int:
    """Nanoseconds of a std_msgs Header's stamp.

    :param name: what the error calls it.
    :raises BagError: the stamp is zero or negative.
    """
    stamp_ns = _nanoseconds(header.stamp)
    if stamp_ns <= 0:
        raise BagError(f'{name} has a message with stamp {stamp_ns}: its publisher must set it')
    return stamp_ns


def camera_from_info(info: Any, name: str) -> Camera:
    """Make a camera from a sensor_msgs/CameraInfo, for the raw (not rectified) image.

    This is the one place where ROS's pixels, with centres at integers, become ours, with centres
    half a pixel further. Region of interest and binning are applied, in this order. ``plumb_bob``
    becomes OPENCV, or FULL_OPENCV where it has a k3; ``rational_polynomial`` FULL_OPENCV;
    ``equidistant`` OPENCV_FISHEYE; no coefficients at all PINHOLE.

    :param name: what the error calls it.
    :raises CameraError: not calibrated (K is zero), skewed pixels, an unknown distortion model
        or wrong number of coefficients, a region of interest outside of the image.
    """
    matrix = np.asarray(_calibration(info, 'k'), float).reshape(-1)
    if len(matrix) != 9 or not np.any(matrix):
        p = np.asarray(_calibration(info, 'p'), float)
        rectified = ', and its P is of the rectified image' if np.any(p) else ''
        raise CameraError(
            f'camera info {name} has a K of zeros{rectified}: calibrate the camera '
            '(camera_calibration), or describe it with --cameras'
        )
    fx, skew, cx, zero, fy, cy, *rest = matrix.tolist()
    if skew or zero or rest != [0, 0, 1]:
        raise CameraError(
            f'camera info {name} has K {matrix.tolist()}: only focal lengths, centre and a last '
            '1 can be used'
        )
    x_offset, y_offset, width, height = _region(info, name)
    x_binning, y_binning = max(int(info.binning_x), 1), max(int(info.binning_y), 1)
    pinhole = (
        fx / x_binning,
        fy / y_binning,
        (cx + 0.5 - x_offset) / x_binning,
        (cy + 0.5 - y_offset) / y_binning,
    )
    coefficients = np.asarray(_calibration(info, 'd'), float).reshape(-1)
    model, distortion = _distortion(info.distortion_model, coefficients, name)
    size = width // x_binning, height // y_binning
    try:
        return Camera(model, *size, (*pinhole, *distortion))
    except CameraError as error:
        raise CameraError(f'camera info {name} cannot be used: {error}') from None


def _region(info: Any, name: str) -> tuple[int, int, int, int]:
    """Return x, y, width and height of the part of the sensor that was read, unbinned."""
    roi = info.roi
    x, y, width, height = int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)
    if not any((x, y, width, height)):
        return 0, 0, int(info.width), int(info.height)
    if not width or not height or x + width > info.width or y + height > info.height:
        raise CameraError(
            f'camera info {name} has a region of interest of {width}x{height} at ({x}, {y}): it '
            f'must lie within the {info.width}x{info.height} of the sensor'
        )
    return x, y, width, height


def _distortion(
    model: str, d: npt.NDArray[np.float64], name: str
) -> tuple[str, tuple[float, ...]]:
    """Return our model and its coefficients after focal lengths and centre."""
    if not len(d) or (not model and not np.any(d)):
        return 'PINHOLE', ()
    if model in _FISHEYE_MODELS:
        if len(d) < 4 or np.any(d[4:]):
            raise CameraError(f'camera info {name} has {len(d)} coefficients: {model} needs 4')
        return 'OPENCV_FISHEYE', tuple(d[:4].tolist())
    if model not in _PERSPECTIVE_MODELS:
        known = ', '.join(_PERSPECTIVE_MODELS + _FISHEYE_MODELS)
        raise CameraError(
            f'camera info {name} has unknown distortion model {model!r}; known are: {known}'
        )
    if len(d) not in (4, 5, 8, 12, 14) or np.any(d[8:]):
        raise CameraError(
            f'camera info {name} has {len(d)} coefficients: {model} needs k1 k2 p1 p2 and, where '
            'there are more, k3 or k3 k4 k5 k6'
        )
    k1, k2, p1, p2, k3, k4, k5, k6 = np.append(d[:8], np.zeros(8 - len(d[:8]))).tolist()
    if model == 'plumb_bob' and not any((k3, k4, k5, k6)):
        return 'OPENCV', (k1, k2, p1, p2)
    return 'FULL_OPENCV', (k1, k2, p1, p2, k3, k4, k5, k6)


def _calibration(info: Any, field: str) -> Any:
    """Return D or K, which ROS 2 writes in lower case and ROS 1 in upper."""
    return getattr(info, field) if hasattr(info, field) else getattr(info, field.upper())


def _element(what: Any) -> tuple[str, int | None]:
    """Return the type of a field's elements and their count, from rosbags' description."""
    node, detail = what
    if node.name in ('ARRAY', 'SEQUENCE'):
        inner, count = detail
        return _element(inner)[0], count if node.name == 'ARRAY' else 0
    return (detail if node.name == 'NAME' else detail[0]), None


def _check_path(path: Path) -> None:
    """Refuse what is not a bag by its looks.

    :raises BagError: names what would be one.
    """
    if not path.exists():
        raise BagError(f'bag {path} does not exist: check the path')
    if not path.is_dir():
        if path.suffix not in _SUFFIXES:
            raise BagError(
                f'{path} is not a bag: give the folder of a ROS 2 bag or a file '
                f'{", ".join(_SUFFIXES)}'
            )
        return
    if not (path / 'metadata.yaml').exists():
        files = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
        way_out = f'give one of its files ({", ".join(files)})' if files else 'give another folder'
        raise BagError(f'folder {path} has no metadata.yaml and is not a ROS 2 bag: {way_out}')


def _full_type(name: str) -> str:
    """Return ``package/msg/Name`` for ``package/Name`` too."""
    package, _, message = name.rpartition('/')
    return name if package.endswith('/msg') or not package else f'{package}/msg/{message}'


def _frame(frame_id: str) -> str:
    """Return a frame without the slash that tf of ROS 1 put in front."""
    return frame_id.lstrip('/')


def _edge_name(parent: str, child: str) -> str:
    return f'transform {parent!r} <- {child!r}'


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)

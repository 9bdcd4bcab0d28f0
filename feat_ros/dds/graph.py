# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A ROS 2 graph by Cyclone DDS: ROS's names of topics and types, its QoS, its domain; raw CDR.

Samples are written and taken as bytes; the library's own serialisation would turn every picture
into a list of numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
import ctypes
from functools import lru_cache
import logging
import os
from pathlib import Path
import re
import tempfile
import time
from types import TracebackType
from typing import Any

from cyclonedds._clayer import ddspy_take, ddspy_write
from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication
from cyclonedds.core import (
    DDSException,
    InstanceState,
    Policy,
    Qos,
    ReadCondition,
    SampleState,
    ViewState,
    WaitSet,
)
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import make_idl_struct, types
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from feat_ros.dds.cdr import decode, encode, Fields, MESSAGES
from feat_ros.errors import ConfigError, GraphError, MessageError

_LOG = logging.getLogger(__name__)

# Fragments of a picture come faster than they are read: default buffers lose some, even when
# reliable, and fewer, larger packets are lost less.
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
_MAX_MESSAGE_BYTES = 65500
# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_RMEM_MAX = Path('/proc/sys/net/core/rmem_max')
_MAX_DOMAIN = 232
# A topic cannot be made at the moment when discovery looks at the same type.
_TOPIC_TRIES = 20
_MAX_TRACE_BYTES = 1 << 20
_ANY = SampleState.Any | ViewState.Any | InstanceState.Any
# The only sign that Cyclone gives of bytes that are no such message.
_NOT_READABLE = re.compile(r'deserialization (\S+)/\S+ failed')
_PRIMITIVES = {
    'bool': bool,
    'string': str,
    'byte': types.byte,
    'char': types.uint8,
    **{f'{sign}int{bits}': getattr(types, f'{sign}int{bits}')
       for sign in ('', 'u') for bits in (8, 16, 32, 64)},
    **{f'float{bits}': getattr(types, f'float{bits}') for bits in (32, 64)},
}  # fmt: skip

FieldsOf = Callable[[str], Fields]


class Graph:
    """A participant in a domain, with readers and writers; not a node: it has no name in ROS.

    The first of a process sets the domain up and is closed last. Writers may be used from any
    thread, :meth:`spin` from one.

    :param domain_id: default: ``ROS_DOMAIN_ID``, or 0.
    :raises GraphError: the domain cannot be joined.
    :raises ConfigError: ``ROS_DOMAIN_ID`` is not a number from 0 to 232.
    """

    def __init__(self, domain_id: int | None = None) -> None:
        """Join; see the class."""
        self.domain_id = ros_domain_id() if domain_id is None else domain_id
        self._readers: list[Reader] = []
        self._topics: dict[str, Any] = {}
        self._unreadable = Counter[str]()
        _keep_memory()
        self._warnings = _Warnings()
        # Of several configurations the later ones hold.
        config = f'{self._warnings.config},{os.environ.get("CYCLONEDDS_URI") or domain_config()}'
        self._domain: Any = None
        try:
            try:
                self._domain = Domain(self.domain_id, config)
            except DDSException as error:
                if error.code != DDSException.DDS_RETCODE_PRECONDITION_NOT_MET:
                    raise
            self._participant = DomainParticipant(self.domain_id)
        except DDSException as error:
            self._warnings.close()
            raise GraphError(
                f'DDS domain {self.domain_id} cannot be joined ({error.msg or error}): without a '
                'network set ROS_LOCALHOST_ONLY=1, else see what CYCLONEDDS_URI says'
            ) from None
        self._waitset = WaitSet(self._participant)
        self._publications = BuiltinDataReader(self._participant, BuiltinTopicDcpsPublication)

    def __enter__(self) -> Graph:
        """Return the graph."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave."""
        self.close()

    def close(self) -> None:
        """Leave the domain; all that was made in it goes with it."""
        for entity in (self._participant, self._domain):
            if entity is not None:
                entity._delete(entity._ref)
        self._warnings.close()

    def writer(
        self, topic: str, kind: str, *, latched: bool = False, depth: int = 10,
        fields_of: FieldsOf = MESSAGES.__getitem__,
    ) -> Writer:  # fmt: skip
        """Offer a topic: reliable, and latched (transient local) for those who come late.

        :param kind: ``package/msg/Name``.
        :param fields_of: the definitions of it and of the messages in it.
        """
        policies = [Policy.Reliability.Reliable(10**9), Policy.History.KeepLast(depth)]
        if latched:
            policies += [
                Policy.Durability.TransientLocal,
                Policy.DurabilityService(0, Policy.History.KeepLast(depth), -1, -1, -1),
            ]
        handle = self._topic(topic, kind, fields_of)
        return Writer(topic, kind, DataWriter(self._participant, handle, _qos(*policies)))

    def reader(
        self, topic: str, kind: str, on_message: Callable[[Any], None], *,
        latched: bool = False, depth: int = 1,
    ) -> None:  # fmt: skip
        """Subscribe as ROS's sensor data: best effort, the newest ones.

        :param on_message: called by :meth:`spin` with each message, see
            :func:`feat_ros.dds.cdr.decode`.
        :param latched: also what was sent before, where it is offered (reliable, transient
            local); a message may then come twice.
        """
        handle = self._topic(topic, kind, MESSAGES.__getitem__)
        wanted: list[list[Any]] = [[Policy.Reliability.BestEffort]]
        if latched:
            wanted.append([Policy.Reliability.Reliable(10**9), Policy.Durability.TransientLocal])
        for policies in wanted:
            qos = _qos(*policies, Policy.History.KeepLast(depth), Policy.IgnoreLocal.Participant)
            source = DataReader(self._participant, handle, qos)
            unread = ReadCondition(source, SampleState.NotRead | ViewState.Any | InstanceState.Any)
            self._waitset.attach(unread)
            self._readers.append(Reader(topic, kind, depth, source, unread, on_message))

    def spin(self, timeout_s: float) -> None:
        """Wait until there are messages, and hand over all that are there."""
        self._waitset.wait(round(timeout_s * 1e9))
        for line in self._warnings.take():
            self._hear(line)
        for reader in self._readers:
            try:
                reader.drain()
            except MessageError as error:
                _LOG.warning('topic %s: %s', reader.topic, error)
                self._unreadable[ros_topic(dds_topic(reader.topic))] += 1

    def unreadable(self, topic: str) -> int:
        """Return how many samples of a topic were not what its type says: cut off, garbled."""
        return self._unreadable[ros_topic(dds_topic(topic))]

    def trouble(self, topic: str, kind: str) -> str:
        """Say why nothing comes from a topic; '' where someone publishes it for us."""
        if any(r.topic == topic and r.source.get_matched_publications() for r in self._readers):
            return ''
        found = [
            endpoint
            for endpoint in self._publications.read(1000)
            if endpoint.sample_info.instance_state == InstanceState.Alive
            and endpoint.topic_name == dds_topic(topic)
        ]
        if not found:
            return f'nobody publishes {topic} in domain {self.domain_id}'
        kinds = sorted({ros_type(endpoint.type_name) for endpoint in found})
        if kind not in kinds:
            return f'{topic} carries {" and ".join(kinds)}, not {kind}: choose another'
        return f'the publisher of {topic} offers another QoS, or another definition of {kind}'

    def _topic(self, topic: str, kind: str, fields_of: FieldsOf) -> Any:
        if topic not in self._topics:
            try:
                self._topics[topic] = self._make_topic(dds_topic(topic), idl_type(kind, fields_of))
            except (DDSException, KeyError, TypeError) as error:
                raise GraphError(f'topic {topic} of {kind} cannot be used ({error})') from None
        return self._topics[topic]

    def _make_topic(self, name: str, data_type: Any) -> Any:
        for _ in range(_TOPIC_TRIES):
            try:
                return Topic(self._participant, name, data_type)
            except DDSException:
                time.sleep(0.02)
        return Topic(self._participant, name, data_type)

    def _hear(self, line: str) -> None:
        found = _NOT_READABLE.search(line)
        if found:
            self._unreadable[ros_topic(found[1])] += 1
        else:
            _LOG.warning('DDS: %s', line)


class Writer:
    """Publishes on one topic; see :meth:`Graph.writer`."""

    def __init__(self, topic: str, kind: str, sink: Any) -> None:
        self.topic, self.kind, self._sink = topic, kind, sink

    def write(self, values: Mapping[str, Any]) -> None:
        """Publish a message, see :func:`feat_ros.dds.cdr.encode`."""
        self.write_cdr(encode(self.kind, values))

    def write_cdr(self, data: bytes | bytearray | memoryview) -> None:
        """Publish a message in CDR with its header.

        :raises MessageError: the bytes are not a message of the type.
        """
        if len(data) % 4:
            data = bytes(data) + bytes(-len(data) % 4)
        code = ddspy_write(self._sink._ref, data)
        if code == DDSException.DDS_RETCODE_TIMEOUT:
            _LOG.warning('topic %s: a reader is too slow, a message is left out', self.topic)
        elif code:
            raise MessageError(
                f'topic {self.topic}: {len(data)} bytes are not a {self.kind}, or cannot be sent '
                f'({DDSException(code)})'
            )

    def has_readers(self) -> bool:
        """Whether someone subscribes."""
        return bool(self._sink.get_matched_subscriptions())

    def flush(self, timeout_s: float) -> None:
        """Wait until the reliable subscribers have all."""
        # The Python method stumbles over its own time-out.
        self._sink._wait_for_acks(self._sink._ref, round(timeout_s * 1e9))


class Reader:
    """Hands over what comes on one topic; see :meth:`Graph.reader`."""

    def __init__(
        self, topic: str, kind: str, depth: int, source: Any, unread: Any,
        on_message: Callable[[Any], None],
    ) -> None:  # fmt: skip
        self.topic, self.kind, self.source = topic, kind, source
        self._depth, self._unread, self._on_message = depth, unread, on_message

    def drain(self) -> None:
        """Take what is there.

        :raises MessageError: a message cannot be read; the next call goes on behind it.
        """
        while True:
            taken = ddspy_take(self.source._ref, _ANY, 1)
            if isinstance(taken, int):
                raise GraphError(f'topic {self.topic} cannot be read ({DDSException(taken)})')
            if not taken:
                return
            data, info = taken[0]
            if info.valid_data:
                self._on_message(decode(self.kind, data))


class _Warnings:
    """What the library has to say, through the only door there is: its trace file."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(buffering=0, prefix='feat_ros_')  # noqa: SIM115

    @property
    def config(self) -> str:
        return (
            '<CycloneDDS><Domain><Tracing><Verbosity>warning</Verbosity>'
            f'<OutputFile>{self._file.name}</OutputFile><AppendToFile>true</AppendToFile>'
            '</Tracing></Domain></CycloneDDS>'
        )

    def take(self) -> list[str]:
        """Return the lines since the last call."""
        lines = self._file.read().decode(errors='replace').splitlines()
        if self._file.tell() > _MAX_TRACE_BYTES:
            self._file.seek(0)
            self._file.truncate()
        return lines

    def close(self) -> None:
        self._file.close()


def _keep_memory() -> None:
    """Let the C library keep what it got for a picture for the next one.

    Given back and asked for anew, every page of it costs a fault: 2.5 ms a picture of 2.7 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:  # glibc has it
        for option, size in ((_M_MMAP_THRESHOLD, 2**25), (_M_TRIM_THRESHOLD, 2**28)):
            mallopt(option, size)


def ros_domain_id() -> int:
    """Return ``ROS_DOMAIN_ID``, or 0.

    :raises ConfigError: it is not a number from 0 to 232.
    """
    word = os.environ.get('ROS_DOMAIN_ID', '').strip() or '0'
    if not word.isdecimal() or int(word) > _MAX_DOMAIN:
        raise ConfigError(
            f'ROS_DOMAIN_ID is {word!r}: it must be a number from 0 to {_MAX_DOMAIN}'
        )
    return int(word)


def domain_config() -> str:
    """Return the XML for Cyclone: socket buffers for pictures, and this machine only if asked."""
    general, discovery = f'<MaxMessageSize>{_MAX_MESSAGE_BYTES}B</MaxMessageSize>', ''
    # Found by nodes under either setting: some look on the loopback, some among their peers.
    if (
        os.environ.get('ROS_LOCALHOST_ONLY') == '1'
        or os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE') == 'LOCALHOST'
    ):
        general += '<Interfaces><NetworkInterface address="127.0.0.1"/></Interfaces>'
        discovery = (
            '<ParticipantIndex>auto</ParticipantIndex>'
            '<MaxAutoParticipantIndex>32</MaxAutoParticipantIndex>'
            '<Peers><Peer address="localhost"/></Peers>'
        )
    return (
        f'<CycloneDDS><Domain><General>{general}</General><Discovery>{discovery}</Discovery>'
        f'<Internal><SocketReceiveBufferSize min="{_receive_buffer_bytes()}B"/></Internal>'
        '</Domain></CycloneDDS>'
    )


def _receive_buffer_bytes() -> int:
    """Return the size to ask for: Cyclone ends where the system does not give it."""
    try:
        allowed = int(_RMEM_MAX.read_text())
    except (OSError, ValueError):
        return _RECEIVE_BUFFER_BYTES
    if allowed < _RECEIVE_BUFFER_BYTES:
        _LOG.warning(
            'large images may be lost: sockets get %d bytes, run sysctl -w net.core.rmem_max=%d',
            allowed, _RECEIVE_BUFFER_BYTES,
        )  # fmt: skip
    return min(allowed, _RECEIVE_BUFFER_BYTES)


def dds_topic(topic: str) -> str:
    """Return DDS's name of a ROS topic: ``/tf`` is ``rt/tf``."""
    return f'rt/{topic.lstrip("/")}'


def ros_topic(name: str) -> str:
    """Return ROS's name of a DDS topic."""
    return name.removeprefix('rt')


def dds_type(kind: str) -> str:
    """Return DDS's name of a ROS type: ``std_msgs::msg::dds_::Header_``."""
    package, *middle, name = kind.split('/')
    return '::'.join([package, *middle, 'dds_', f'{name}_'])


def ros_type(name: str) -> str:
    """Return ROS's name of a DDS type, or the name itself."""
    return name.replace('::dds_::', '/').replace('::', '/').removesuffix('_')


@lru_cache
def idl_type(kind: str, fields_of: FieldsOf) -> Any:
    """Return what the library wants to know of a message, from its definition.

    :raises KeyError: a type without a definition.
    """
    members: dict[str, Any] = {}
    for name, element, length in fields_of(kind):
        member = _PRIMITIVES.get(element) or idl_type(element, fields_of)
        if length is not None:
            member = types.array[member, length] if length else types.sequence[member]
        members[name] = member
    name = kind.rpartition('/')[2]
    # Cyclone's Python writes the separators itself.
    return make_idl_struct(f'{name}_', dds_type(kind).replace('::', '.'), members)


def _qos(*policies: Any) -> Any:
    return Qos(*policies, Policy.DataRepresentation(use_cdrv0_representation=True))

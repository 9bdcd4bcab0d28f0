# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A recorded bag on a live ROS 2 graph, at the pace it was recorded with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
import logging
from pathlib import Path
import time

from feat_ros.bags import Bag
from feat_ros.conversions import time as time_values
from feat_ros.dds.cdr import Field, Fields, MESSAGES
from feat_ros.dds.graph import Graph, Writer
from feat_ros.errors import BagError, ConfigError, GraphError
from feat_ros.types import JsonDict

_LOG = logging.getLogger(__name__)

_CLOCK_S = 1 / 40
# A subscriber that is known here may not know of us yet.
_SETTLE_S = 1.0
# An interrupt is noticed so soon.
_NAP_S = 0.1
# Late joiners get the last message of these too, as from a real driver.
_LATCHED_TYPES = ('sensor_msgs/msg/CameraInfo',)


def play(
    graph: Graph,
    bag_path: str | Path,
    rate: float = 1.0,
    *,
    loop: bool = False,
    clock: bool = False,
    topics: Sequence[str] | None = None,
    wait_for: Sequence[str] = (),
    is_over: Callable[[], bool] = lambda: False,
) -> JsonDict:
    """Publish the messages of a bag; return how many of each topic.

    :param rate: how many times as fast as recorded.
    :param clock: publish the time of recording on ``/clock``.
    :param topics: only these; default all.
    :param wait_for: begin when each of these has a subscriber.
    :raises ConfigError: a rate that is not positive, or a topic waited for but not played.
    :raises BagError: the bag cannot be read, or has no such topic (its topics are listed).
    :raises GraphError: a topic cannot be offered.
    """
    if not 0 < rate < float('inf'):
        raise ConfigError(f'rate is {rate}: it must be a positive number')
    with Bag(bag_path) as bag:
        bag.check_topics([*(topics or ()), *wait_for])
        writers = _writers(graph, bag, topics)
        missing = [topic for topic in wait_for if topic not in writers]
        if missing:
            raise ConfigError(f'{missing[0]} is waited for but not played: choose it as a topic')
        clock_writer = graph.writer('/clock', 'rosgraph_msgs/msg/Clock') if clock else None
        player = _Player(writers, clock_writer, rate, is_over)
        while not (is_over() or all(writers[topic].has_readers() for topic in wait_for)):
            graph.spin(_CLOCK_S)
        time.sleep(_SETTLE_S if wait_for else 0.0)
        while not is_over():
            player.play_once(bag)
            if not loop:
                break
        for writer in writers.values():
            writer.flush(1.0)
    return {'messages': dict(player.counts)}


def _writers(graph: Graph, bag: Bag, topics: Sequence[str] | None) -> dict[str, Writer]:
    """Offer the topics; of a whole bag those that cannot be offered are left out."""

    def fields_of(kind: str) -> Fields:
        return MESSAGES.get(kind) or tuple(Field(*field) for field in bag.fields(kind))

    writers = {}
    for topic in bag.topics if topics is None else topics:
        kind, is_latched = bag.topics[topic].type, bag.is_latched(topic)
        try:
            writers[topic] = graph.writer(
                topic, kind,
                latched=is_latched or kind in _LATCHED_TYPES,
                # All that was latched is needed, of CameraInfo the last.
                depth=100 if is_latched else 10,
                fields_of=fields_of,
            )  # fmt: skip
        except (GraphError, BagError) as error:
            if topics is not None:
                raise
            _LOG.warning('left out: %s', error)
    return writers


class _Player:
    def __init__(
        self, writers: dict[str, Writer], clock: Writer | None, rate: float,
        is_over: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._writers, self._clock, self._rate, self._is_over = writers, clock, rate, is_over
        self.counts = Counter[str]()

    def play_once(self, bag: Bag) -> None:
        begun_s, first_ns = time.monotonic(), None
        for topic, recorded_ns, data in bag.cdr(list(self._writers)):
            first_ns = recorded_ns if first_ns is None else first_ns
            self._sleep(begun_s, first_ns, recorded_ns)
            if self._is_over():
                return
            self._writers[topic].write_cdr(data)
            self.counts[topic] += 1

    def _sleep(self, begun_s: float, first_ns: int, until_ns: int) -> None:
        """Wait until a time of recording has come, with the clock going on."""
        while not self._is_over():
            now_ns = first_ns + round((time.monotonic() - begun_s) * self._rate * 1e9)
            left_s = (until_ns - now_ns) / self._rate / 1e9
            if left_s <= 0:
                return
            if self._clock is not None:
                self._clock.write({'clock': time_values(now_ns)})
            time.sleep(min(left_s, _NAP_S if self._clock is None else _CLOCK_S))

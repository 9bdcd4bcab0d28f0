# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros live`` and ``feat_ros play``: a live ROS 2 graph without ROS installed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import logging
from pathlib import Path
import re
import shutil
import signal
import sys
import time
from typing import Any

from feat_ros import config
from feat_ros.cli.common import add_command, add_extractor_options, check_writable
from feat_ros.config import Config, option
from feat_ros.driver import LiveConfig
from feat_ros.intake import IntakeConfig
from feat_ros.localizer import LocalizerConfig, open_localizer
from feat_ros.monitor import Health
from feat_ros.server import ServerConfig

# Where nobody watches a line is written so often, and when the state changes.
_LINE_EVERY = 10


@dataclass(frozen=True)
class LiveOptions(Config):
    """What ``--set`` changes."""

    localizer: LocalizerConfig = option(LocalizerConfig, 'one image in a map')
    server: ServerConfig = option(ServerConfig, 'one frame after the other')
    intake: IntakeConfig = option(IntakeConfig, 'what an image waits for')


def add_parser(commands: Any) -> None:
    """Add ``live`` and ``play``."""
    live = add_command(
        commands,
        'live',
        'Localize the images of a running ROS 2 graph, from any Python: pip install cyclonedds is '
        'all it needs. Publishes /NAME/pose, /tf where asked, and /diagnostics each second, until '
        'it is interrupted.',
        'feat_ros live --map office --image-topic /camera/image_raw --info-topic '
        '/camera/camera_info --odom-topic /odom',
        config.describe(LiveOptions),
    )
    live.add_argument('--map', type=Path, required=True, metavar='MAP', help='the map folder')
    live.add_argument(
        '--image-topic', required=True, action='append', metavar='T', dest='image_topics',
        help='Image; repeat for more cameras',
    )  # fmt: skip
    live.add_argument('--compressed', action='store_true', help='the images are CompressedImage')
    live.add_argument(
        '--info-topic', action='append', metavar='T', dest='info_topics',
        help='CameraInfo of each; default: camera_info beside each image topic',
    )  # fmt: skip
    live.add_argument(
        '--odom-topic',
        metavar='T',
        default='',
        help='Odometry, for the prior, for gating and for map -> odom',
    )
    live.add_argument(
        '--base-frame', metavar='FRAME', default='',
        help="whose poses are published, by TF; default: the odometry's child frame, or the "
        "image's frame",
    )  # fmt: skip
    live.add_argument(
        '--tf', choices=('odom', 'base', 'none'), default='auto',
        help='what is broadcast: map -> odom, map -> base, nothing; default: odom where '
        'there is odometry',
    )  # fmt: skip
    live.add_argument(
        '--name', default='localizer', help='of the localizer in topics and diagnostics'
    )
    live.add_argument(
        '--depth', type=int, default=5, metavar='N',
        help="images kept while this process is busy, by ROS's sensor data profile 5; the newest "
        'is localized next',
    )  # fmt: skip
    live.add_argument(
        '--duration', type=float, metavar='S', help='end after so many seconds by itself'
    )
    add_extractor_options(live)
    live.set_defaults(run=run_live)

    play = add_command(
        commands,
        'play',
        'Publish a recorded bag, ROS 1 or ROS 2, on a ROS 2 graph at the pace and under the '
        'topics it was recorded with; the stamps of the messages stay what they are.',
        'feat_ros play drive --clock',
    )
    play.add_argument('bag', type=Path, metavar='BAG', help='folder or file, ROS 1 or ROS 2')
    play.add_argument(
        '--rate', type=float, default=1.0, metavar='X', help='so many times as fast; default 1'
    )
    play.add_argument('--loop', action='store_true', help='again and again')
    play.add_argument(
        '--clock', action='store_true', help='publish the time of recording on /clock, 40 Hz'
    )
    play.add_argument(
        '--topic', action='append', metavar='T', dest='topics',
        help='only this topic; repeat for more',
    )  # fmt: skip
    play.add_argument(
        '--wait-for', action='append', default=[], metavar='T',
        help='begin when someone subscribes to this topic; repeat for more',
    )  # fmt: skip
    play.set_defaults(run=run_play)


def run_live(args: argparse.Namespace) -> dict[str, Any]:
    """Localize until interrupted; return the figures."""
    from feat_ros.dds.graph import Graph
    from feat_ros.dds.live import run_live

    if args.json is not None:
        check_writable(args.json)
    options = config.parse_options(LiveOptions, args.options)
    topics = LiveConfig(
        image_topics=args.image_topics,
        info_topics=args.info_topics or [],
        odometry_topic=args.odom_topic,
        compressed=args.compressed,
        base_frame=args.base_frame,
        tf=args.tf,
        depth=args.depth,
    )
    localizer = open_localizer(args.map, options.localizer, None, args.extractor_option)
    show = _Show()
    with _until_interrupted(args.duration) as is_over, Graph() as graph:
        images = ', '.join(args.image_topics)
        print(f'domain {graph.domain_id}, {images} -> /{args.name}/pose', flush=True)
        figures = run_live(
            graph, localizer, topics, options.server, options.intake,
            name=args.name, is_over=is_over, on_health=show,
        )  # fmt: skip
    show.end()
    print(f'{figures["num_localized"]} of {figures["num_queries"]} localized')
    print(f'  of {figures["num_images"]} images {figures["dropped"]} were dropped')
    for reason, count in figures['reasons'].items():
        print(f'  {count} {reason}')
    return figures


def run_play(args: argparse.Namespace) -> dict[str, Any]:
    """Publish a bag; return the counts."""
    from feat_ros.dds.graph import Graph
    from feat_ros.dds.play import play

    with _until_interrupted(None) as is_over, Graph() as graph:
        counts = play(
            graph, args.bag, args.rate,
            loop=args.loop, clock=args.clock, topics=args.topics, wait_for=args.wait_for,
            is_over=is_over,
        )  # fmt: skip
    for topic, count in counts['messages'].items():
        print(f'{count} {topic}')
    return counts


@contextmanager
def _until_interrupted(duration_s: float | None) -> Iterator[Callable[[], bool]]:
    """Give what says whether it is over: interrupted, terminated, or long enough.

    An interrupt is how a run ends, not an error: the figures are still written.
    """
    is_over, end_s = [False], None if duration_s is None else time.monotonic() + duration_s
    before = {
        number: signal.signal(number, lambda *_: is_over.__setitem__(0, True))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: is_over[0] or (end_s is not None and time.monotonic() >= end_s)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Show:
    """One line on a terminal that is written anew each second; else a line now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        if self._is_terminal and sys.stderr.isatty():
            # Warnings take the place of the line, which is then written again.
            for handler in logging.getLogger().handlers:
                handler.setFormatter(logging.Formatter('\r\033[K%(message)s'))
        self._state = ''
        self._calls = 0

    def __call__(self, health: Health) -> None:
        line = health.line()
        # Times go on while the state stays.
        state = re.sub(r'[0-9.]+', '', '; '.join(health.problems))
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f'\r\033[K{line[:width]}', end='', flush=True)
        elif state != self._state or self._calls % _LINE_EVERY == 0:
            print(line, flush=True)
        self._state, self._calls = state, self._calls + 1

    def end(self) -> None:
        if self._is_terminal:
            print()

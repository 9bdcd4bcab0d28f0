# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the launch files are made of: arguments, refusals, parameters of the nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
import signal
import sys
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit, OnProcessIO
from launch.events import matches_action
from launch.events.process import SignalProcess
from launch_ros.actions import Node

from feat_ros.driver import info_topic, map_path
from feat_ros.errors import ConfigError
from feat_ros.extractors import extractor_config
from feat_ros.nodes.recorder import READY
from feat_ros.sfm_map import read_manifest

_YES_NO = ('true', 'false')
# Name: (default, description, choices). An empty default leaves the word to the parameter file,
# and to the node.
LOCALIZE_ARGUMENTS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    'map': ('', 'the map folder; default: the small town that comes with the package', ()),
    'image': ('image', 'topic of the images; several cameras: separated by commas', ()),
    'camera_info': ('', 'topic of CameraInfo; default: "camera_info" beside the images', ()),
    'odom': ('', 'topic of Odometry; without it no map -> odom is broadcast', ()),
    'base_frame': ('', "whose pose is found; default: odometry's child frame, or the camera", ()),
    'tf': ('', 'what is broadcast: map -> odom, map -> base, or nothing',
           ('', 'auto', 'odom', 'base', 'none')),
    'compressed': ('false', 'the images are CompressedImage', _YES_NO),
    'split': ('false', 'extractor and localizer as two processes', _YES_NO),
    'autostart': ('true', 'configure and activate at once', _YES_NO),
    'rviz': ('false', 'show map, pose and path in RViz', _YES_NO),
    'use_sim_time': ('false', 'the time is on /clock', _YES_NO),
    'log_level': ('info', 'of the nodes', ('debug', 'info', 'warn', 'error', 'fatal')),
    'namespace': ('', 'of the nodes', ()),
    'params_file': ('', 'a YAML file of parameters, for instance config/jetson.yaml', ()),
}  # fmt: skip
REPLAY_ARGUMENTS = {
    'bag': ('', 'a ROS 2 bag with images, CameraInfo and transforms', ()),
    'out': ('replay_out', 'folder for trajectory.tum and summary.json', ()),
    'rate': ('1.0', 'so many times as fast', ()),
    'truth': ('', 'topic with the true pose of the same frame in the map', ()),
    'truth_kind': ('odometry', 'its type', ('odometry', 'pose', 'stamped')),
    'min_poses': ('1', 'fewer poses are a failure', ()),
    'max_error_m': ('0.0', 'a larger median error is a failure; 0: none is', ()),
    **{name: value for name, value in LOCALIZE_ARGUMENTS.items() if name != 'use_sim_time'},
}
MAP_ARGUMENTS = {
    'out': ('', 'the map folder to write', ()),
    'bag': ('', 'a ROS 2 bag', ()),
    'image': ('', 'topic of the images', ()),
    'camera_info': ('', 'topic of CameraInfo', ()),
    'poses': ('', 'topic of the poses of the camera or base; default: made from the images', ()),
    'tf_frame': ('', 'the frame of TF that the map is in; instead of poses', ()),
    'extractor': ('', 'which features; default: that of "feat_ros map build"', ()),
}
Arguments = Mapping[str, tuple[str, str, tuple[str, ...]]]
# What is on its way when the bag ends is waited for.
_SETTLE_S = 3.0
# Nodes that do not listen by then have failed, and a bag that nobody hears shows it.
_PATIENCE_S = 60.0


def share(*parts: str) -> Path:
    """Return a path in what the package installs."""
    return Path(get_package_share_directory('feat_ros'), *parts)


def description(
    file: str, arguments: Arguments, actions: Callable[[dict[str, str]], list[Any]]
) -> LaunchDescription:
    """Declare arguments, refuse others where the file was started by name, and go on.

    :param actions: makes the actions of the arguments' values.
    """

    def go_on(context: Any) -> list[Any]:
        if any(Path(word).name == Path(file).name for word in sys.argv):
            given = [word.partition(':=')[0] for word in sys.argv if ':=' in word]
            refuse_unknown(given, arguments)
        return actions({name: context.launch_configurations[name] for name in arguments})

    declared = [
        DeclareLaunchArgument(
            name, default_value=default, description=words, choices=choices or None
        )
        for name, (default, words, choices) in arguments.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=go_on)])


def refuse_unknown(given: list[str], arguments: Arguments) -> None:
    """Refuse a misspelt argument, which launch itself ignores.

    :raises ConfigError: names it and lists the known ones.
    """
    for name in given:
        if name not in arguments:
            raise ConfigError(f'there is no argument {name!r}: there are {", ".join(arguments)}')


def localize_actions(values: Mapping[str, str]) -> list[Any]:
    """Return the nodes of ``localize.launch.py``."""
    where = values['map'] or str(share('maps', 'town_small'))
    images = values['image'].split(',')
    chosen: dict[str, Any] = {'map': where, 'image_topics': images}
    if values['camera_info']:
        chosen['info_topics'] = values['camera_info'].split(',')
    for name, parameter in (
        ('odom', 'odometry_topic'),
        ('base_frame', 'base_frame'),
        ('tf', 'tf'),
    ):
        if values[name]:
            chosen[parameter] = values[name]
    common = {name: values[name] == 'true' for name in ('use_sim_time', 'autostart')}
    is_compressed, is_split = values['compressed'] == 'true', values['split'] == 'true'
    nodes = []
    if is_split:
        if len(images) > 1:
            raise ConfigError(
                f'split:=true takes one camera, not {values["image"]}: start an extractor for '
                'each, and a localizer with input:=features'
            )
        if not values['camera_info']:
            chosen['info_topics'] = [info_topic(images[0])]
        chosen |= {'input': 'features', 'image_topics': ['extractor/features']}
        extractor = _extractor_parameters(where)
        extractor |= {'image_topic': images[0], 'compressed': is_compressed}
        nodes.append(_node('extractor', values, extractor | common))
    elif is_compressed:
        chosen['compressed'] = True
    nodes.append(_node('localizer', values, chosen | common))
    if values['rviz'] == 'true':
        view = ['-d', str(share('config', 'localize.rviz'))]
        nodes.append(Node(package='rviz2', executable='rviz2', arguments=view))
    return nodes


def replay_actions(values: Mapping[str, str]) -> list[Any]:
    """Return bag, nodes and recorder of ``replay.launch.py``; a failure is the exit code."""
    if not values['bag']:
        raise ConfigError('no bag is named: add bag:=FOLDER')
    recorder = _node(
        'recorder', {**values, 'params_file': ''},
        {
            'out': values['out'], 'truth_topic': values['truth'],
            'truth_kind': values['truth_kind'], 'min_poses': int(values['min_poses']),
            'max_error_m': float(values['max_error_m']),
            # They subscribe to what carries the images last.
            'wait_for': [
                *values['image'].split(','),
                *(['extractor/features'] if values['split'] == 'true' else []),
            ],
        },
    )  # fmt: skip
    # Before the first message the player must be found by those who listen.
    rate = ['--rate', values['rate'], '--delay', str(_SETTLE_S)]
    bag = ExecuteProcess(
        cmd=['ros2', 'bag', 'play', values['bag'], *rate, '--clock'], output='screen'
    )

    has_begun = False

    def begin(_: Any) -> list[Any]:
        nonlocal has_begun
        actions, has_begun = [] if has_begun else [bag], True
        return actions

    def listen(event: Any) -> list[Any]:
        return begin(event) if READY in event.text.decode(errors='replace') else []

    def conclude(event: Any, context: Any) -> list[Any]:
        if event.returncode:
            raise RuntimeError('the replay failed: see what the recorder says above')
        return [Shutdown(reason='the replay is over')]

    end = EmitEvent(
        event=SignalProcess(signal_number=signal.SIGINT, process_matcher=matches_action(recorder))
    )
    settle = [TimerAction(period=_SETTLE_S, actions=[end])]
    return [
        *localize_actions({**values, 'use_sim_time': 'true'}),
        recorder,
        # Nodes that are not there yet would miss the first images.
        RegisterEventHandler(OnProcessIO(target_action=recorder, on_stdout=listen)),
        TimerAction(period=_PATIENCE_S, actions=[OpaqueFunction(function=begin)]),
        RegisterEventHandler(OnProcessExit(target_action=bag, on_exit=settle)),
        RegisterEventHandler(OnProcessExit(target_action=recorder, on_exit=conclude)),
    ]


def map_actions(values: Mapping[str, str]) -> list[Any]:
    """Return the command of ``map.launch.py``."""
    missing = [name for name in ('bag', 'image', 'camera_info', 'out') if not values[name]]
    if missing:
        raise ConfigError(f'{missing[0]} is not named: add {missing[0]}:=...')
    command = ['ros2', 'run', 'feat_ros', 'feat_ros', 'map', 'build']
    command += ['--out', values['out'], '--bag', values['bag']]
    options = {
        'image': '--image-topic', 'camera_info': '--info-topic', 'poses': '--pose-topic',
        'tf_frame': '--tf', 'extractor': '--extractor',
    }  # fmt: skip
    for name, word in options.items():
        command += [word, values[name]] if values[name] else []
    return [ExecuteProcess(cmd=command, output='screen')]


def _node(name: str, values: Mapping[str, str], parameters: dict[str, Any]) -> Any:
    files = [values['params_file']] if values['params_file'] else []
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(f'params_file {file} does not exist: name a YAML file')
    return Node(
        package='feat_ros', executable=name, name=name, namespace=values['namespace'],
        parameters=[*files, parameters], output='screen',
        arguments=['--ros-args', '--log-level', values['log_level']],
    )  # fmt: skip


def _extractor_parameters(where: str) -> dict[str, Any]:
    """Return how the extractor of a map was made, for the extractor node."""
    built = read_manifest(map_path(where)).extractor
    defaults = extractor_config(built.name)()
    words = [
        f'{name}={value}'
        for name, value in built.options.items()
        if value != getattr(defaults, name)
    ]
    return {'extractor': built.name, **({'extractor_options': words} if words else {})}

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the launch files are made of: arguments, refusals, parameters of the nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from feat_ros.driver import info_topic, map_path
from feat_ros.errors import ConfigError
from feat_ros.extractors import extractor_config
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
Arguments = Mapping[str, tuple[str, str, tuple[str, ...]]]


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
    for name, parameter in (('odom', 'odometry_topic'), ('base_frame', 'base_frame'), ('tf', 'tf')):
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


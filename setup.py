# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The package, for pip and for colcon (ament_python)."""

import os
from pathlib import Path

from setuptools import find_packages, setup

NAME = 'feat_ros'

# Executables for ros2 run; where there is no ROS they would only be in the way.
NODES = ('localizer', 'extractor', 'recorder') if 'AMENT_PREFIX_PATH' in os.environ else ()
# With what runs the default extractor.
MAP = ['pycolmap>=4,<5', 'scipy', 'matplotlib', 'tqdm', 'rosbags>=0.11.6', 'onnxruntime']
# What torch exports with, and ONNX Runtime to check it.
EXPORT = ['onnx', 'onnxscript', 'onnxruntime']
LABEL = ['transformers', 'pillow']
TEST = ['pytest', 'pytest-cov']
# What tests compare with and talk through, and has no wheels for 64-bit ARM.
X86_ONLY = [f'{name}; platform_machine == "x86_64"' for name in ('poselib', 'cyclonedds')]


def data_files() -> list[tuple[str, list[str]]]:
    """Return what goes under ``share``: the ament marker and what nodes start with."""
    share = Path('share')
    installed = {
        share / 'ament_index' / 'resource_index' / 'packages': [f'resource/{NAME}'],
        share / NAME: ['package.xml'],
    }
    for folder in ('launch', 'config', 'maps'):
        for path in sorted(Path(folder).rglob('*')):
            if path.is_file() and '__pycache__' not in path.parts:
                installed.setdefault(share / NAME / path.parent, []).append(str(path))
    return [(str(target), paths) for target, paths in installed.items()]


setup(
    name=NAME,
    version='0.1.0',
    description='Visual localization with semantic-guided features, for ROS 2 and without it',
    author='The feat_ros authors',
    maintainer='The feat_ros authors',
    maintainer_email='maintainers@example.org',
    license='Apache-2.0',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['py.typed', 'weights/*']},
    data_files=data_files(),
    python_requires='>=3.10',
    # All that a robot needs beside one inference runtime; ROS brings both through apt.
    install_requires=['numpy>=1.21.6', 'opencv-python-headless>=4.5.4,<5'],
    extras_require={
        'map': MAP,
        'onnx': ['onnxruntime'],
        'export': EXPORT,
        # The one place that names the version; 'make torch' installs it without CUDA.
        'train': ['torch==2.13.0'],
        # What labels photographs for training.
        'label': LABEL,
        'dds': ['cyclonedds'],
        # Retrieval among a million images in a third of the time.
        'fast': ['numba'],
        # Maps built by several processes or machines.
        'ray': ['ray'],
        # colcon looks for pytest under this name.
        'test': TEST,
        'dev': [
            *MAP,
            *EXPORT,
            *LABEL,
            *TEST,
            'numba',
            'ray',
            'pytest-xdist',
            'ruff',
            'mypy',
            *X86_ONLY,
        ],
    },
    entry_points={
        'console_scripts': [
            f'{NAME} = {NAME}.cli:main',
            # Found by ros2 run.
            *(f'{node} = {NAME}.nodes.{node}:main' for node in NODES),
        ]
    },
    zip_safe=False,
)

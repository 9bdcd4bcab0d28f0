# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Localization on posed sets by day and in made-up night, with the weights of a run as it stands.

python localize_posed_sets.py DATA [--weights NETWORK=FILE ...] [--json FILE] maps
DATA/fountain_p11, kitti_seq1, lund_door and the bag fr1_rpy/bag_db3 (even seconds: map, odd
seconds: queries) with ``sift``, and with each network whose weights (.npz) or export (.onnx, of
any precision) is named, and localizes their queries. It is "feat_ros bench features --posed" with
a bag as one more set.
"""

from __future__ import annotations

import argparse
from functools import partial
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from feat_ros.bag_images import KeyframeConfig, PoseSource, stamp_of_name, write_keyframes
from feat_ros.bags import Bag
from feat_ros.extractors import create_extractor
from feat_ros.feature_bench.localization import LIGHT, localize_sets, PosedSet, read_posed_set

_FOLDERS = ('fountain_p11', 'kitti_seq1', 'lund_door')
OPTIONS = {'max_keypoints': 2048, 'max_image_size': 1024}
_LIMITS = ((0.05, 5.0), (0.25, 2.0))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path)
    parser.add_argument('--weights', action='append', default=[], metavar='NETWORK=FILE')
    parser.add_argument('--runtime', default='auto', help='of the networks; auto goes by the file')
    parser.add_argument('--precision', default='fp32', help='of what torch runs: fp32 or fp16')
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    makers: dict[str, Any] = {'sift': lambda: create_extractor('sift', **OPTIONS)}
    for word in args.weights:
        network, _, path = word.partition('=')
        makers[word] = partial(
            create_extractor, network, model=path, runtime=args.runtime, precision=args.precision,
            **OPTIONS,
        )  # fmt: skip
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        work = Path(folder)
        sets = posed_sets(args.data, work / 'fr1')
        for number, (name, make) in enumerate(makers.items()):
            (work / str(number)).mkdir()
            found[name] = show(name, localize_sets(sets, make, work / str(number)))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1), encoding='utf-8')


def posed_sets(data: Path, folder: Path) -> list[PosedSet]:
    """Return the sets of a data folder; the pictures of its bag are written to ``folder``."""
    sets = [read_posed_set(data / name) for name in _FOLDERS]
    return [*sets, bag_set(data / 'fr1_rpy' / 'bag_db3', folder)]


def bag_set(path: Path, folder: Path) -> PosedSet:
    """Return the keyframes of the recorded bag, split by their whole second."""
    with Bag(path) as bag:
        camera, _ = bag.camera_info('/camera/camera_info')
        keyframes = write_keyframes(
            bag, '/camera/image_raw/compressed', camera, folder,
            PoseSource(topic='/ground_truth/pose'), options=KeyframeConfig(),
        )  # fmt: skip
    images = list(keyframes.images)
    first = stamp_of_name(images[0].name)
    parts: list[list[Any]] = [[], []]
    for image in images:
        parts[(stamp_of_name(image.name) - first) // 10**9 % 2].append(image)
    return PosedSet('fr1_rpy', folder, parts[0], parts[1][::2])


def show(extractor: str, errors: dict[str, Any]) -> dict[str, Any]:
    """Print recall within 5 cm 5 deg and 25 cm 2 deg, and the median error, set by set."""
    rows: dict[str, Any] = {}
    for light in LIGHT:
        of_sets = {name: errors[name][light] for name in errors}
        of_sets['pooled'] = np.concatenate(list(of_sets.values()))
        for name, each in of_sets.items():
            shares = [
                100 * float(np.mean((each[:, 0] < far) & (each[:, 1] < turned)))
                for far, turned in _LIMITS
            ]
            area = float(np.mean(np.clip(1 - each[:, 0] / 0.1, 0, 1)))
            median_cm = 100 * float(np.median(each[:, 0]))
            rows[f'{name}, {light}'] = [len(each), *shares, area, median_cm]
            print(
                f'{Path(extractor).name:18s} {light:12s} {name:13s} {len(each):3d} queries  '
                f'{shares[0]:5.1f} {shares[1]:5.1f} %  area {area:.3f}  median {median_cm:.2f} cm',
                flush=True,
            )
    return rows


if __name__ == '__main__':
    main()

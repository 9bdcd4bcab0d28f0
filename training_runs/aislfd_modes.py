# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Equation 1 of AISLFD beside each of its descriptors: pictures turned, and in other light.

    python training_runs/aislfd_modes.py oxford_affine --weights aislfd.npz

Of the first picture of each set, and of it turned or darkened, the mean share of the mutual
nearest neighbours that are within 3 px, and below it how many these are.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feat_ros.extractors.learned import network_input
from feat_ros.feature_bench.localization import darken
from feat_ros.feature_bench.matching import read_homography_sets, score_pair, turn
from feat_ros.image import Image, read_image
from feat_ros.matching import dot_similarity, selected_similarity
from feat_ros.models.aislfd import VARIANCES
from feat_ros.models.weights import build_network, load_weights
from feat_ros.types import Features

ANGLES_DEG = (0, 30, 60, 90, 135, 180)
LIGHT = (0.05, 0.02, 0.005)


def relight(image: Image, seed: int) -> Image:
    """Put half of the picture into a tenth of the light, tint it and bend its tones."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    angle = rng.uniform(0, 2 * np.pi)
    across = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)
    light = (image / 255.0) ** 2.2 * np.where(across > 0, 0.1, 1.0)[..., None]
    light = light * rng.uniform(0.6, 1.0, 3)
    return np.round(255 * light ** (1 / rng.uniform(1.6, 3.0))).astype(np.uint8)


def extract(network: Any, image: Image, max_size: int) -> Features:
    padded, valid_wh = network_input(image, max_size, network.size_multiple, None)
    with torch.inference_mode():
        keypoints, scores, rows, stability, num = network(
            torch.from_numpy(padded)[None], torch.tensor(valid_wh, dtype=torch.int32)
        )
    scale = np.array(image.shape[1::-1], np.float32) / np.array(valid_wh, np.float32)
    count = int(num)
    return Features(
        keypoints[:count].numpy() * scale, scores[:count].numpy(), rows[:count].numpy(),
        stability[:count].numpy(), np.full(count, 0.5, np.float32),
    )  # fmt: skip


def modes(features: Features, fuse: torch.nn.Linear) -> dict[str, Features]:
    """Rows of the exact network, and what else they hold."""
    parts = features.descriptors.reshape(len(features), 8, -1) * np.float32(8**0.5)
    local = np.ascontiguousarray(parts[:, :4])
    with torch.inference_mode():
        fused = torch.nn.functional.normalize(fuse(torch.from_numpy(local).flatten(1)), dim=1)
    rows = {
        'equation 1': features.descriptors,
        'the four alike': local.reshape(len(features), -1) / 2,
        'fused': fused.numpy(),
    } | {name: np.ascontiguousarray(local[:, part]) for part, name in enumerate(VARIANCES)}
    return {name: replace(features, descriptors=each) for name, each in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path)
    parser.add_argument('--weights', type=Path, required=True)
    parser.add_argument('--keypoints', type=int, default=1000)
    parser.add_argument('--max-size', type=int, default=512)
    parser.add_argument('--window', type=int, nargs='+', default=[0])
    args = parser.parse_args()
    weights = load_weights(args.weights, 'aislfd_exact')
    for window in args.window:
        network = build_network(replace(weights, options={'window': window}), args.keypoints)
        found: dict[str, dict[str, list[tuple[float, int]]]] = {}
        for number, each in enumerate(read_homography_sets(args.data)):
            image = read_image(each.images[0])
            views = {f'{angle} deg': turn(image, angle) for angle in ANGLES_DEG}
            views |= {
                f'{light:.1%}': (darken(image, light, each.name), np.eye(3)) for light in LIGHT
            }
            views['relit'] = relight(image, number), np.eye(3)
            first = modes(extract(network, image, args.max_size), network.fuse)
            for view, (other, homography) in views.items():
                second = modes(extract(network, other, args.max_size), network.fuse)
                for name in first:
                    similarity = selected_similarity if name == 'equation 1' else dot_similarity
                    scores = score_pair(
                        first[name], second[name], homography, image, other, similarity
                    )
                    pair = float(scores.accuracy[2]), scores.num_correct
                    found.setdefault(name, {}).setdefault(view, []).append(pair)
        print(f'window {window}' + ''.join(f'{view:>9}' for view in views))
        for name, by_view in found.items():
            means = [np.mean(pairs, axis=0) for pairs in by_view.values()]
            print(f'{name:22}' + ''.join(f'{share:9.3f}' for share, _ in means))
            print(f'{"":22}' + ''.join(f'{count:9.0f}' for _, count in means))


if __name__ == '__main__':
    main()

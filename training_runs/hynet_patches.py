# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Patches of the photographs that a run of hynet holds out, in the layout of UBC PhotoTour.

python training_runs/hynet_patches.py --config run/config.json --out held_out
feat_ros bench patches --phototour held_out --model run/weights_last.npz
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from feat_ros import config
from feat_ros.models.hynet import cut_patches, luma, orientations, Pyramid
from feat_ros.training.configs import HynetConfig
from feat_ros.training.pairs import PairMaker
from feat_ros.training.pictures import find_photos

# Neither the training's nor the validation's pairs.
_SEED = 1234
_ROWS = 16


def main() -> None:
    """Write two patches of each point that two views share, and the list of pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', type=Path, required=True, help='config.json of a run')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--batches', type=int, default=40)
    args = parser.parse_args()
    options = config.from_dict(HynetConfig, json.loads(args.config.read_text(encoding='utf-8')))
    photos = find_photos(options.photos)[options.holdout_every - 1 :: options.holdout_every]
    maker = PairMaker(options.pair, photos, None, _SEED)
    patches, batch_of = [], []
    for number in range(args.batches):
        batch = maker[number]
        pair, row = torch.nonzero(batch.partner >= 0).unbind(1)
        places = ((pair, row), (pair + len(batch.partner), batch.partner[pair, row]))
        pyramid = Pyramid(luma(batch.images))
        both = []
        for view, at in places:
            xy, sigma = batch.points.xy[view, at], batch.points.sigma[view, at]
            axis = orientations(pyramid, xy, sigma, view)
            both.append(cut_patches(pyramid, xy, sigma, axis, view))
        patches.append(torch.stack(both, 1).flatten(0, 1)[:, 0].round().byte().numpy())
        batch_of.append(np.full(len(pair), number))
    write_phototour(args.out, np.concatenate(patches), np.concatenate(batch_of))


def write_phototour(folder: Path, patches: np.ndarray, batch_of: np.ndarray) -> None:
    """Write patches (2M, 32, 32), two of a point in a row; strangers are of another batch."""
    folder.mkdir(parents=True)
    sheet_size = _ROWS**2
    # Each pixel four times: what reads them halves them again, and nothing is lost.
    large = patches.repeat(2, 1).repeat(2, 2)
    for number in range(-(-len(large) // sheet_size)):
        part = large[number * sheet_size : (number + 1) * sheet_size]
        part = np.concatenate([part, np.zeros((sheet_size - len(part), 64, 64), np.uint8)])
        sheet = part.reshape(_ROWS, _ROWS, 64, 64).transpose(0, 2, 1, 3).reshape(1024, 1024)
        cv2.imwrite(str(folder / f'patches{number:04}.bmp'), sheet)
    points = np.arange(len(patches)) // 2
    (folder / 'info.txt').write_text(''.join(f'{point} 0\n' for point in points))
    rng, lines, count = np.random.default_rng(0), [], len(batch_of)
    for point in range(count):
        stranger = rng.choice(np.flatnonzero(batch_of != batch_of[point]))
        lines.append(f'{2 * point} {point} 0 {2 * point + 1} {point} 0 0\n')
        lines.append(f'{2 * point} {point} 0 {2 * stranger + 1} {stranger} 0 0\n')
    (folder / f'm50_{count}_{count}_0.txt').write_text(''.join(lines))
    print(f'{count} pairs of each kind: {folder}')


if __name__ == '__main__':
    main()

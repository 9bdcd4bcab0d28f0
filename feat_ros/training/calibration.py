# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How likely each stability group is, made right on photographs that training has not seen.

Photographs in which only what moves has labels teach a network that most things move. After
training two biases of the stability head are set so that it is right on fully labelled ones: Guo
et al., "On calibration of modern neural networks", ICML 2017, section 4.2, with biases only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.errors import DataError
from feat_ros.models.sfd2_lite import FlatPoints, GROUPS, Sfd2Lite, tones
from feat_ros.models.weights import Weights
from feat_ros.training.pairs import OUTPUT_OF_GROUP
from feat_ros.training.pictures import find_photos, held_out, Picture, read_photo

# The bias of the rank head; its outputs from 1 on are the stability groups.
_BIAS = 'network.rank_head.2.bias'
# Of the pixels of a photograph that counts, at least so many have labels.
_LABELLED = 0.75
_LONGER_SIDE, _POINTS = 640, 1024


def calibrate(weights: Weights, run: Path) -> Weights:
    """Return weights of ``sfd2_lite`` that are calibrated on the photographs a run held out.

    Of these only such count as are labelled in at least three quarters of their pixels. The
    provenance says how many they were, and their cross-entropy before and after.

    :param run: folder of the run.
    :raises DataError: not weights of ``sfd2_lite``, the folders that the run's configuration names
        are not here, or no such photograph has points of every group.
    """
    if weights.network != 'sfd2_lite':
        raise DataError(f'--calibrate is for sfd2_lite, not for {weights.network}: leave it out')
    network = Sfd2Lite(_POINTS, **weights.options)
    network.load_state_dict({name: torch.tensor(each) for name, each in weights.arrays.items()})
    network.eval()
    config: Mapping[str, Any] = json.loads((run / 'config.json').read_text(encoding='utf-8'))
    photos = find_photos(config['photos'])
    found = [
        points_of(network, picture)
        for picture in map(read_photo, held_out(photos, config['holdout_every']))
        if _is_full(picture)
    ]
    logits, group = (torch.cat(part) for part in zip(*found, strict=True)) if found else ((), ())
    if len(np.unique(group)) < len(GROUPS):
        raise DataError(
            f'of the photographs that {run} held out, {len(found)} have labels of at least '
            f'{_LABELLED:.0%} of their pixels, and no points of every stability group: add '
            'labels, or leave --calibrate out'
        )
    bias = fit_bias(logits, group)
    arrays = dict(weights.arrays)
    arrays[_BIAS] = arrays[_BIAS] + np.array([0, *bias], np.float32)
    loss = [float(functional.cross_entropy(each, group)) for each in (logits, logits + bias)]
    described = {
        'photos': len(found),
        'points': len(group),
        'bias': [round(float(each), 4) for each in bias],
        'cross_entropy': [round(each, 4) for each in loss],
    }
    return replace(
        weights, arrays=arrays, provenance=weights.provenance | {'calibration': described}
    )


def points_of(network: Sfd2Lite, picture: Picture) -> tuple[Tensor, Tensor]:
    """Return logits (M, 3) and group (M,) of the points of a picture whose group is known."""
    assert picture.group is not None
    shrink = min(1.0, _LONGER_SIDE / max(picture.group.shape))
    size = tuple(round(side * shrink) for side in picture.group.shape[::-1])
    image = cv2.resize(picture.image, size, interpolation=cv2.INTER_AREA)
    group = OUTPUT_OF_GROUP[cv2.resize(picture.group, size, interpolation=cv2.INTER_NEAREST)]
    with torch.no_grad():
        valid_wh = torch.tensor([size], dtype=torch.int32)
        adapted = tones(torch.from_numpy(image)[None], valid_wh)
        points = network.detector(adapted.grey, valid_wh, _POINTS)
        xy, sigma, response, features = (each[0] for each in points)
        flat = FlatPoints(xy, sigma, torch.zeros(len(xy), dtype=torch.int64))
        centers = network.network.centers(network.network.backbone(adapted.colors), flat)
        logits = network.network.rank(centers[1:], features).group_logits
    column, row = xy.long().unbind(1)
    there = torch.from_numpy(group)[row.clamp(max=size[1] - 1), column.clamp(max=size[0] - 1)]
    is_known = (response > 0) & (there >= 0)
    return logits[is_known], there[is_known]


def fit_bias(logits: Tensor, group: Tensor) -> Tensor:
    """Return what to add to logits (M, C) for the least cross-entropy with (M,); the last is 0."""
    bias = torch.zeros(logits.shape[1] - 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=100, line_search_fn='strong_wolfe')

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(logits + functional.pad(bias, (0, 1)), group)
        loss.backward()
        return loss

    optimizer.step(closure)
    return functional.pad(bias.detach(), (0, 1))


def _is_full(picture: Picture) -> bool:
    return picture.group is not None and float(np.mean(picture.group > 0)) >= _LABELLED

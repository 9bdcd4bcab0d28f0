# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a network is for, measured while it learns: frames of a made-up town are placed."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from feat_ros.extractors.learned import network_input
from feat_ros.matching import mutual_nearest, similarity_of
from feat_ros.models.weights import build_network, Weights
from feat_ros.pnp import Observations, PnpConfig, solve_pnp
from feat_ros.pose_error import pose_error
from feat_ros.training.town_cache import TownCache, TownFrame

# Pairs of frames at most, evenly of all, and keypoints of a frame.
_PAIRS, _KEYPOINTS = 24, 512
_WITHIN_M, _WITHIN_DEG = 0.25, 2.0
_PIXEL_SIGMA = 1.0


def localize_town(weights: Weights, town: TownCache, device: torch.device) -> dict[str, float]:
    """Place the second frame of pairs in what the first one sees, whose depth is known.

    By mutual nearest neighbours and PnP, as a localizer does.

    :returns: ``localized``, the share of frames within 0.25 m and 2 deg, and ``localized_area``,
        the area under that share as a function of the distance up to 0.25 m, 1 at best.
    """
    network = build_network(weights, _KEYPOINTS).to(device)
    similarity = similarity_of(weights.network)

    @cache
    def seen(number: int) -> tuple[TownFrame, np.ndarray, np.ndarray]:
        frame = town[number]
        size = max(frame.image.shape[:2])
        padded, valid_wh = network_input(frame.image, size, network.size_multiple, None)
        with torch.inference_mode():
            keypoints, _, descriptors, _, num = network(
                torch.from_numpy(padded)[None].to(device),
                torch.tensor(valid_wh, dtype=torch.int32, device=device),
            )
        count = int(num)
        return frame, keypoints[:count].cpu().numpy(), descriptors[:count].cpu().numpy()

    errors = []
    every = np.linspace(0, len(town.pairs) - 1, min(_PAIRS, len(town.pairs))).astype(int)
    for first, second in town.pairs[every].tolist():
        (known, xy, described), (frame, pixels, query) = seen(first), seen(second)
        column, row = xy.astype(int).T
        depth = known.depth[row, column]
        has_depth = np.isfinite(depth) & (depth > 0) & known.is_static[row, column]
        rays = known.camera.unproject(xy[has_depth].astype(np.float64))
        in_cam = rays / rays[:, 2:] * depth[has_depth, None]
        points = known.cam_from_map.inverse().apply(in_cam)
        pairs, _ = mutual_nearest(query, described[has_depth], similarity)
        observations = Observations(
            frame.camera,
            pixels[pairs[:, 0]].astype(np.float64),
            points[pairs[:, 1]],
            np.full(len(pairs), _PIXEL_SIGMA),
            np.zeros((len(pairs), 3, 3)),
        )
        solution = solve_pnp(observations, PnpConfig())
        error = np.inf
        if solution is not None:
            apart = pose_error(solution.cam_from_map, frame.cam_from_map)
            if np.rad2deg(np.linalg.norm(apart[3:])) < _WITHIN_DEG:
                error = float(np.linalg.norm(apart[:3]))
        errors.append(error)
    short = 1 - np.array(errors) / _WITHIN_M
    return {
        'localized': float(np.mean(short > 0)),
        'localized_area': float(np.mean(np.maximum(short, 0))),
    }

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Whether two runtimes find the same in an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from feat_ros.errors import NetworkError
from feat_ros.image import Image
from feat_ros.runtimes.contract import NetworkOutput

# A keypoint is the same within this many pixels, by precision; how many must be, and how alike
# descriptors are. In half precision the flattest peaks of a heat map move by more than 0.01 px.
NEAR_PX: Mapping[str, float] = {'fp32': 0.01, 'fp16': 0.05, 'int8': 0.05}
MIN_NEAR = 0.995
MIN_COSINE: Mapping[str, float] = {'fp32': 0.9999, 'fp16': 0.999, 'int8': 0.999}

Run = Callable[[Image, tuple[int, int]], NetworkOutput]


class Parity(NamedTuple):
    """How the outputs of two runtimes on one image agree.

    :ivar num: keypoints of both.
    :ivar near: share of the keypoints that the other has within :data:`NEAR_PX`.
    :ivar cosine: mean cosine of the descriptors of those.
    :ivar stability: largest difference of their stability.
    """

    num: tuple[int, int]
    near: float
    cosine: float
    stability: float


def compare_outputs(
    first: NetworkOutput, second: NetworkOutput, near_px: float = NEAR_PX['fp32']
) -> Parity:
    """Compare what two runtimes find in an image, whatever the order of equally strong ones."""
    num = first.num, second.num
    if 0 in num:
        return Parity(num, float(num[0] == num[1]), 1.0, 0.0)
    places, others = first.keypoints[: num[0]], second.keypoints[: num[1]]
    nearest = np.empty(num[0], np.int64)
    distance = np.empty(num[0])
    for start in range(0, num[0], 512):
        rows = slice(start, start + 512)
        apart = np.abs(places[rows, None] - others[None]).max(axis=2)
        nearest[rows], distance[rows] = apart.argmin(axis=1), apart.min(axis=1)
    near = np.flatnonzero(distance <= near_px)
    if not len(near):
        return Parity(num, 0.0, 0.0, 1.0)
    a, b = first.descriptors[near], second.descriptors[nearest[near]]
    # Descriptors of retrieval keep their length.
    cosine = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    stability = np.abs(first.stability[near] - second.stability[nearest[near]])
    return Parity(num, len(near) / max(num), float(cosine.mean()), float(stability.max()))


def check_parity(
    what: str,
    reference: Run,
    candidate: Run,
    inputs: Mapping[str, tuple[Image, tuple[int, int]]],
    precision: str,
) -> dict[str, Any]:
    """Run both on every input and return how they agree.

    :param what: the candidate's name in an error.
    :param inputs: image and size of its part that is not padding, by name.
    :raises NetworkError: they do not agree, or nothing was found that could.
    """
    found, near_px = {}, NEAR_PX[precision]
    for name, (image, valid_wh) in inputs.items():
        expected, other = reference(image, valid_wh), candidate(image, valid_wh)
        parity = compare_outputs(expected, other, near_px)
        if parity.near < MIN_NEAR or parity.cosine < MIN_COSINE[precision]:
            raise NetworkError(
                f'{what} is off on {name}: {100 * parity.near:.2f} % of {parity.num[0]} keypoints '
                f'within {near_px} px ({100 * MIN_NEAR} wanted), cosine of descriptors '
                f'{parity.cosine:.6f} ({MIN_COSINE[precision]} wanted)'
            )
        found[name] = parity._asdict() | {'num': list(parity.num)}
    if not any(parity['num'][0] for parity in found.values()):
        raise NetworkError(
            'the parity photographs gave no keypoints, so they prove nothing: name others'
        )
    return found

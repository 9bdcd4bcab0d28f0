# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What SAMFeat learns relations from: features of another network, on the views of a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.errors import ConfigError
from feat_ros.models.sfd2_lite import tones
from feat_ros.models.weights import build_network, load_weights
from feat_ros.runtimes import WEIGHTS

# RGB uint8 views (V, S, S, 3) to features (V, C, h, w).
Teacher = Callable[[Tensor], Tensor]

# The image encoder of SAM takes squares of so many pixels.
_SAM_SIZE = 1024


def create_teacher(name: str, device: torch.device) -> Teacher:
    """Make a teacher.

    :param name: ``sfd2_lite``, our own network, whose features tell what stays from what moves;
        or ``sam:TYPE:CHECKPOINT``, SAM itself by the package ``segment_anything``.
    :raises ConfigError: an unknown name, or the package or the checkpoint is missing.
    """
    if name == 'sfd2_lite':
        network = build_network(load_weights(WEIGHTS / 'sfd2_lite.npz', name), 1).to(device)

        def own(views: Tensor) -> Tensor:
            with torch.no_grad():
                valid_wh = torch.full((len(views), 2), views.shape[1], device=views.device)
                return torch.as_tensor(network.network.backbone(tones(views, valid_wh).colors)[3])

        return own
    kind, _, rest = name.partition(':')
    if kind != 'sam' or ':' not in rest:
        raise ConfigError(f'unknown teacher {name!r}; choose sfd2_lite or sam:TYPE:CHECKPOINT')
    model, _, checkpoint = rest.partition(':')
    return _sam(model, checkpoint, device)


def _sam(kind: str, checkpoint: str, device: torch.device) -> Teacher:
    try:
        from segment_anything import sam_model_registry
    except ModuleNotFoundError:
        raise ConfigError(
            'the teacher SAM needs the package of its authors: pip install '
            'git+https://github.com/facebookresearch/segment-anything'
        ) from None
    if kind not in sam_model_registry or not Path(checkpoint).is_file():
        raise ConfigError(
            f'teacher sam:{kind}:{checkpoint}: the type must be one of '
            f'{", ".join(sam_model_registry)} and the checkpoint a file'
        )
    sam = sam_model_registry[kind](checkpoint=checkpoint).to(device).eval()

    def features(views: Tensor) -> Tensor:
        with torch.no_grad():
            planes = functional.interpolate(
                views.float().permute(0, 3, 1, 2), (_SAM_SIZE, _SAM_SIZE), mode='bilinear'
            )
            return torch.cat([
                sam.image_encoder(sam.preprocess(plane)[None]) for plane in planes
            ])  # fmt: skip

    return features

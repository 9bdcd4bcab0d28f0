# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Features of another network, on the views of a batch, that SAMFeat and SFD2 learn from."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
import hashlib
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from feat_ros.errors import ConfigError, NetworkError
from feat_ros.models.sfd2_lite import tones
from feat_ros.models.weights import build_network, load_weights, read_checkpoint
from feat_ros.runtimes import WEIGHTS
from feat_ros.training.pairs import Batch

# RGB uint8 views (V, S, S, 3) to features (V, C, h, w).
Teacher = Callable[[Tensor], Tensor]


def features_of(batch: Batch, name: str) -> tuple[Tensor | None, Tensor | None]:
    """Return the teacher's features (2P, C, h, w) of a batch, and where they are known.

    :param name: as of :func:`create_teacher`, or ``files``, whose features come with the batch.
    :returns: None for features that no photograph has, and None where all are known.
    """
    if name == 'files':
        return batch.taught, batch.is_taught
    return create_teacher(name, batch.images.device)(batch.images), None


@lru_cache(maxsize=1)
def create_teacher(name: str, device: torch.device) -> Teacher:
    """Make a teacher; the last one is kept, for every step asks for it.

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
    sam = open_sam(*_type_and_checkpoint(name), device)
    side = sam.image_encoder.img_size

    def features(views: Tensor) -> Tensor:
        with torch.no_grad():
            planes = functional.interpolate(
                views.float().permute(0, 3, 1, 2), (side, side), mode='bilinear'
            )
            return torch.cat([
                sam.image_encoder(sam.preprocess(plane)[None]) for plane in planes
            ])  # fmt: skip

    return features


def describe_teacher(name: str) -> dict[str, str]:
    """Return the name of a teacher and the sha256 of what it has learned.

    :raises ConfigError: an unknown name.
    :raises NetworkError: its checkpoint cannot be read.
    """
    if name == 'sfd2_lite':
        return {'name': name, 'sha256': load_weights(WEIGHTS / 'sfd2_lite.npz', name).sha256}
    return {'name': name, 'sha256': checkpoint_sha256(_type_and_checkpoint(name)[1])}


def checkpoint_sha256(checkpoint: Path) -> str:
    """Return the hash of a file that a user names.

    :raises NetworkError: it cannot be read.
    """
    try:
        with (
            checkpoint.open('rb') as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return hashlib.sha256(content).hexdigest()
    except (OSError, ValueError):
        raise NetworkError(
            f'checkpoint {checkpoint} cannot be read: name a file that its authors give out'
        ) from None


def _type_and_checkpoint(name: str) -> tuple[str, Path]:
    kind, _, rest = name.partition(':')
    model, colon, checkpoint = rest.partition(':')
    if kind != 'sam' or not colon:
        raise ConfigError(
            f'unknown teacher {name!r}; choose sfd2_lite, files or sam:TYPE:CHECKPOINT'
        )
    return model, Path(checkpoint)


def open_sam(kind: str, checkpoint: Path, device: torch.device) -> Any:
    """Return SAM by its authors' package ``segment_anything``, with a user's checkpoint.

    :param kind: the type of the checkpoint: ``vit_h``, ``vit_l`` or ``vit_b``.
    :raises ConfigError: the package or the checkpoint is missing, or they do not fit.
    :raises NetworkError: the checkpoint is damaged.
    """
    try:
        from segment_anything import sam_model_registry
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'SAM needs the package of its authors, and torchvision (no {error.name!r} here): '
            'pip install torchvision git+https://github.com/facebookresearch/segment-anything'
        ) from None
    if kind not in sam_model_registry or not checkpoint.is_file():
        raise ConfigError(
            f'SAM of type {kind!r} from {checkpoint}: the type must be one of '
            f'{", ".join(sam_model_registry)} and the checkpoint a file'
        )
    # The package itself would read the checkpoint in a way that may run what is in it.
    state = read_checkpoint(checkpoint)
    sam = sam_model_registry[kind]()
    try:
        sam.load_state_dict({name: torch.from_numpy(each) for name, each in state.items()})
    except RuntimeError:
        raise ConfigError(
            f'checkpoint {checkpoint} is not of type {kind!r}: try another of '
            f'{", ".join(sam_model_registry)}'
        ) from None
    return sam.to(device).eval()

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Labels of photographs by a network for semantic segmentation that a user has or downloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from feat_ros.errors import ConfigError
from feat_ros.semantics import get_label_table, groups_from_labels
from feat_ros.training import checkpoint
from feat_ros.training.pictures import label_path, read_photo
from feat_ros.types import Progress

# Which labels the outputs of a network are, told by how many there are.
_TABLES: dict[int, tuple[str, npt.NDArray[np.int64]]] = {
    150: ('ade20k', np.arange(1, 151)),
    19: ('cityscapes_train', np.arange(19)),
}


def write_label_files(
    photos: Sequence[Path], model: str, device: torch.device, progress: Progress
) -> int:
    """Write ``NAME.group.png`` beside photographs that have none yet.

    :param model: a network for semantic segmentation of ADE20K or Cityscapes: a folder, or its
        name at Hugging Face, from where it is then downloaded.
    :returns: how many were written.
    :raises ConfigError: the package ``transformers`` or the network is missing, or its classes are
        of neither.
    :raises DataError: a photograph cannot be read, or a file not be written.
    """
    missing = [photo for photo in photos if not label_path(photo).exists()]
    if not missing:
        return 0
    see, processor = _open(model, device)
    table, labels = _TABLES[see.config.num_labels]
    for photo in progress(missing, 'labels'):
        image = read_photo(photo).image
        given = processor(images=image, return_tensors='pt').to(device)
        with torch.inference_mode():
            outputs = see(**given)
        (found,) = processor.post_process_semantic_segmentation(outputs, [image.shape[:2]])
        groups = groups_from_labels(labels[found.cpu().numpy()], get_label_table(table))
        with checkpoint.whole_file(label_path(photo)) as file:
            file.write(cv2.imencode('.png', groups)[1].tobytes())
    return len(missing)


def _open(model: str, device: torch.device) -> tuple[Any, Any]:
    try:
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'labels need the package transformers, and pillow (no {error.name!r} here): '
            'pip install "feat_ros[label]"'
        ) from None
    try:
        processor = AutoImageProcessor.from_pretrained(model)
        network = AutoModelForSemanticSegmentation.from_pretrained(model)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise ConfigError(
            f'model {model!r} cannot be used: {reason}; name a network for semantic segmentation '
            'at Hugging Face, or a folder with one'
        ) from None
    if network.config.num_labels not in _TABLES:
        raise ConfigError(
            f'model {model!r} knows {network.config.num_labels} classes: take one that was '
            "trained on ADE20K, which has 150, or on Cityscapes' 19"
        )
    return network.to(device).eval(), processor

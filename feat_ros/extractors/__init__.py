# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Feature extractors by name: one contract, an RGB uint8 image in and ``Features`` out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from feat_ros import config
from feat_ros.errors import ConfigError
from feat_ros.extractors.learned import (
    AislfdExactExtractor,
    AislfdExtractor,
    HowR18Extractor,
    HowR50Extractor,
    HowSfd2Extractor,
    HynetConfig,
    HynetExtractor,
    LearnedConfig,
    SamfeatExtractor,
    Sfd2Extractor,
    Sfd2LiteExtractor,
)
from feat_ros.extractors.sift import SiftConfig, SiftExtractor
from feat_ros.image import Image
from feat_ros.types import Features


class Extractor(Protocol):
    """What every extractor is.

    :ivar name: its key in :data:`EXTRACTORS`.
    :ivar descriptor_dim: D of its descriptors.
    :ivar weights_sha256: hash of what it has learned; empty where it learns nothing.
    """

    name: str
    descriptor_dim: int
    weights_sha256: str

    @property
    def config(self) -> Any:
        """The configuration dataclass it was made with."""
        ...

    def __call__(self, image_rgb: Image) -> Features:
        """Extract features of an RGB (H, W, 3) uint8 image."""
        ...


EXTRACTORS: Mapping[str, tuple[Callable[[Any], Extractor], type[Any]]] = {
    'sift': (SiftExtractor, SiftConfig),
    'sfd2_lite': (Sfd2LiteExtractor, LearnedConfig),
    'sfd2': (Sfd2Extractor, LearnedConfig),
    'samfeat': (SamfeatExtractor, LearnedConfig),
    'hynet': (HynetExtractor, HynetConfig),
    'aislfd': (AislfdExtractor, LearnedConfig),
    'aislfd_exact': (AislfdExactExtractor, LearnedConfig),
}


# For retrieval alone: their places are too coarse for a map to be made of.
RETRIEVAL_EXTRACTORS: Mapping[str, tuple[Callable[[Any], Extractor], type[Any]]] = {
    'how_sfd2': (HowSfd2Extractor, LearnedConfig),
    'how_r18': (HowR18Extractor, LearnedConfig),
    'how_r50': (HowR50Extractor, LearnedConfig),
}

# What maps are built with where nothing else is said.
DEFAULT_EXTRACTOR = 'sfd2_lite'


def extractor_config(name: str) -> type[Any]:
    """Return the configuration dataclass of an extractor.

    :raises ConfigError: an unknown name; the known ones are listed.
    """
    known = {**EXTRACTORS, **RETRIEVAL_EXTRACTORS}
    if name not in known:
        raise ConfigError(f'unknown extractor {name!r}; choose one of: {", ".join(known)}')
    return known[name][1]


def parse_extractor_options(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Return those options of an extractor that ``NAME=VALUE`` words set.

    :raises ConfigError: an unknown extractor or option, or a value out of range.
    """
    made = config.to_dict(config.parse_options(extractor_config(name), words))
    return {word.partition('=')[0]: made[word.partition('=')[0]] for word in words}


def create_extractor(name: str, **options: Any) -> Extractor:
    """Make an extractor.

    :param name: a key of :data:`EXTRACTORS`.
    :param options: fields of its configuration, for instance ``max_keypoints=2048``.
    :raises ConfigError: unknown name or option, wrong type or range.
    """
    options_type = extractor_config(name)
    make = {**EXTRACTORS, **RETRIEVAL_EXTRACTORS}[name][0]
    return make(config.from_dict(options_type, options))

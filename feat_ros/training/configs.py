# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The options of training; read by the command line, which must not wait for torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from feat_ros.config import Config, option


class SamParts(NamedTuple):
    """What a training reads of the files ``NAME.sam.npz`` beside photographs."""

    masks: bool = False
    features: bool = False


@dataclass(frozen=True)
class LightConfig(Config):
    """How pictures are changed; shares are probabilities a view."""

    night_share: float = option(0.5, 'second views at night', minimum=0.0, maximum=1.0)
    darkest: float = option(0.01, 'smallest share of the light at night', minimum=1e-4, maximum=1)
    brightest: float = option(0.7, 'largest share of the light at night', minimum=1e-4, maximum=1)
    shadow_share: float = option(0.35, 'views with a shadow', minimum=0.0, maximum=1.0)
    motion_blur_share: float = option(0.2, 'views with motion blur', minimum=0.0, maximum=1.0)
    blur_share: float = option(0.3, 'views out of focus', minimum=0.0, maximum=1.0)
    jpeg_share: float = option(0.5, 'views compressed by JPEG', minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class PairConfig(Config):
    """How pairs are made."""

    pairs: int = option(6, 'pairs a step', minimum=1)
    size: int = option(256, 'side of a view in pixels; a multiple of 32', minimum=64, maximum=1024)
    points: int = option(384, 'strongest points of a view', minimum=8)
    town_share: float = option(0.25, 'pairs from the town', minimum=0.0, maximum=1.0)
    turned_share: float = option(0.6, 'pairs turned against each other', minimum=0, maximum=1)
    turned_deg: float = option(30.0, 'largest such turn', minimum=0.0, maximum=180.0)
    upended_share: float = option(
        0.2, 'pairs turned by any angle to 180 degrees', minimum=0.0, maximum=1.0
    )
    smallest_scale: float = option(0.6, 'of the second view', minimum=0.2, maximum=1.0)
    largest_scale: float = option(1.5, 'of the second view', minimum=1.0, maximum=5.0)
    corner_jitter: float = option(
        0.22, 'how far corners move, as a share of the side', minimum=0.0, maximum=0.4
    )
    light: LightConfig = field(default_factory=LightConfig)


@dataclass(frozen=True)
class RunConfig(Config):
    """What every training run is told."""

    photos: list[str] = option(list, 'folders of photographs')
    town: str | None = option(None, 'folder of "feat_ros train town-cache", if any')
    validation_town: str | None = option(
        None, 'another one, of other towns, to measure localization in; its best weights are kept'
    )
    start_from: str | None = option(
        None, 'weights of the same network that it starts with, as "feat_ros train weights" '
        "writes them, or package: the package's own; none: it knows nothing",
    )  # fmt: skip
    holdout_every: int = option(16, 'one photograph in so many is for validation', minimum=2)
    seed: int = option(0, 'of weights and data', minimum=0)
    steps: int = option(60_000, 'steps of the whole schedule', minimum=1)
    learning_rate: float = option(2e-3, 'largest learning rate', minimum=0.0)
    warmup_steps: int = option(500, 'steps until it is reached', minimum=0)
    weight_decay: float = option(0.01, 'of AdamW', minimum=0.0)
    ema_decay: float = option(0.999, 'of the moving average of weights', minimum=0.0, maximum=1.0)
    largest_scale: float = option(60.0, 'bound of the learned inverse temperature', minimum=1.0)
    use_bfloat16: bool = option(False, 'convolutions in bfloat16')
    device: str = option('cpu', 'torch device')
    threads: int = option(1, 'of torch in the training process', minimum=1)
    workers: int = option(
        1, 'processes that make pairs on the CPU; 0 to make them on the device', minimum=0
    )
    log_every: int = option(50, 'steps between lines of the log', minimum=1)
    checkpoint_every: int = option(500, 'steps between checkpoints', minimum=1)
    validate_every: int = option(1000, 'steps between validations', minimum=1)
    validation_batches: int = option(8, 'batches of a validation', minimum=1)
    pair: PairConfig = field(default_factory=PairConfig)

    @property
    def sam_parts(self) -> SamParts:
        """What it reads of SAM's files."""
        return SamParts()

    @property
    def taught_by(self) -> str | None:
        """Which network is run on the views to be learned from, if any."""
        return None

    @property
    def reads_corners(self) -> bool:
        """Whether it learns from files of corners."""
        return False


@dataclass(frozen=True)
class LiteConfig(RunConfig):
    """A run that trains ``sfd2_lite``."""

    match_weight: float = option(0.5, 'of the matchability loss', minimum=0.0)
    group_weight: float = option(1.0, 'of the stability loss', minimum=0.0)
    group_dropout: float = option(
        0.2, 'share of what the stability head sees that is left out', minimum=0.0, maximum=0.9
    )
    inter_class: float = option(0.0, "w_inter of SFD2's equation 4", minimum=0.0)
    intra_class: float = option(0.0, "w_intra of SFD2's equation 4", minimum=0.0)
    intra_kind: str = option(
        'ranking', 'equation 3, or triplets with a margin', choices=('ranking', 'triplet')
    )
    consistency: float = option(
        0.0, "w_feat of SFD2's equation 6; its teacher is the sfd2_lite of the package",
        minimum=0.0,
    )  # fmt: skip

    @property
    def taught_by(self) -> str | None:
        """The cheapest network at hand that has learned from labels."""
        return 'sfd2_lite' if self.consistency > 0 else None


@dataclass(frozen=True)
class Sfd2Config(RunConfig):
    """A run that trains ``sfd2``: equations 4 and 6 of its paper, and what is ours beside."""

    learning_rate: float = option(1e-3, 'largest learning rate', minimum=0.0)
    detection: float = option(1.0, 'w_det of equation 6', minimum=0.0)
    match: float = option(1.0, 'of the dual softmax over all points, which is ours', minimum=0.0)
    inter_class: float = option(0.0, 'w_inter of equation 4', minimum=0.0)
    intra_class: float = option(0.0, 'w_intra of equation 4', minimum=0.0)
    stability: float = option(0.3, 'of the stability head', minimum=0.0)
    corners: str = option(
        'extrema', 'what the heat map learns: extrema that both views have, or equation 1 from '
        'files of "feat_ros train corner-files" and labels',
        choices=('extrema', 'files'),
    )  # fmt: skip
    consistency: float = option(0.0, 'w_feat of equation 6', minimum=0.0)
    teacher: str = option(
        'sfd2_lite', 'of equation 5; or files (NAME.sam.npz), or sam:TYPE:CHECKPOINT'
    )

    @property
    def sam_parts(self) -> SamParts:
        """Features, where they are its teacher."""
        return SamParts(features=self.consistency > 0 and self.teacher == 'files')

    @property
    def taught_by(self) -> str | None:
        """Its teacher, unless what that sees is in files."""
        return self.teacher if self.consistency > 0 and self.teacher != 'files' else None

    @property
    def reads_corners(self) -> bool:
        """For equation 1."""
        return self.corners == 'files'


@dataclass(frozen=True)
class HowConfig(Config):
    """A run that trains HOW on the images of maps; numbers of section 5.2 unless said."""

    maps: list[str] = option(list, 'map folders')
    images: list[str] = option(list, 'where the images of each map are')
    network: str = option(
        'how_sfd2', 'what is trained', choices=('how_sfd2', 'how_r18', 'how_r50')
    )
    weights: str | None = option(None, 'what it starts with; none: the encoder of sfd2_lite')
    size: int = option(1024, 'longer side above which an image is scaled down', minimum=64)
    min_shared_points: int = option(
        15, 'points that two images share that see the same', minimum=1
    )
    holdout_every: int = option(8, 'one image in so many starts no tuple (ours)', minimum=2)
    seed: int = option(0, 'of weights and tuples', minimum=0)
    epochs: int = option(20, 'of the whole run', minimum=1)
    tuples: int = option(2000, 'an epoch', minimum=1)
    negatives: int = option(5, 'of a tuple, the hardest', minimum=1)
    batch: int = option(5, 'tuples a step', minimum=1)
    margin: float = option(0.8, 'mu of the contrastive loss', minimum=0.0, maximum=2.0)
    # The paper's 5e-6 is for a network that starts from ImageNet.
    learning_rate: float = option(1e-4, 'of Adam (ours)', minimum=0.0)
    weight_decay: float = option(1e-4, 'of Adam', minimum=0.0)
    night_share: float = option(0.3, 'images in less light (ours)', minimum=0.0, maximum=1.0)
    darkest: float = option(0.02, 'smallest share of the light', minimum=1e-4, maximum=1.0)
    device: str = option('cpu', 'torch device')
    threads: int = option(1, 'of torch', minimum=1)


@dataclass(frozen=True)
class AislfdConfig(RunConfig):
    """A run that trains ``aislfd``: equations 2 to 7 of its paper, and what is ours beside."""

    learning_rate: float = option(1e-3, 'largest learning rate', minimum=0.0)
    margin: float = option(1.0, 'M of equations 3 and 5', minimum=0.0)
    apart_px: float = option(8.0, 'T of equation 2', minimum=0.0)
    fused: float = option(
        1.0, 'of the dual softmax of the fused descriptor, which is ours', minimum=0.0
    )
    is_single: bool = option(False, 'train only the descriptor that is invariant to both')


@dataclass(frozen=True)
class HynetConfig(RunConfig):
    """A run that trains ``hynet``: equations 5 to 7 of its paper."""

    learning_rate: float = option(1e-2, 'largest learning rate', minimum=0.0)
    matches: int = option(512, "pairs of patches a step, the paper's", minimum=2)
    alpha: float = option(2.0, 'of equation 6', minimum=0.0)
    margin: float = option(1.2, 'm of equation 6', minimum=0.0)
    gamma: float = option(0.1, 'of equation 7', minimum=0.0)
    is_plain: bool = option(False, 'the plain triplet loss with a margin of 1, to compare with')


@dataclass(frozen=True)
class HynetBaseConfig(HynetConfig):
    """A run that trains ``hynet_base``, what the paper compares with."""

    is_plain: bool = option(True, 'the plain triplet loss with a margin of 1')


@dataclass(frozen=True)
class SamfeatConfig(RunConfig):
    """A run that trains ``samfeat``: equation 14 of its paper, and what is ours beside."""

    learning_rate: float = option(1e-3, 'largest learning rate', minimum=0.0)
    match: float = option(1.0, 'of the dual softmax over all points, which is ours', minimum=0.0)
    distillation: float = option(1.0, 'of L_dis', minimum=0.0)
    grouping: float = option(1.0, 'of L_wsc', minimum=0.0)
    edge: float = option(1.0, 'of L_edge', minimum=0.0)
    teacher: str = option(
        'sfd2_lite', 'whose relations are learned; or files (of sam-files), or sam:TYPE:CHECKPOINT'
    )

    @property
    def sam_parts(self) -> SamParts:
        """What it reads of SAM's files."""
        return SamParts(
            masks=self.grouping > 0 or self.edge > 0,
            features=self.distillation > 0 and self.teacher == 'files',
        )

    @property
    def taught_by(self) -> str | None:
        """Its teacher, unless what that sees is in files."""
        return self.teacher if self.distillation > 0 and self.teacher != 'files' else None


@dataclass(frozen=True)
class SamfeatBaseConfig(SamfeatConfig):
    """A run that trains ``samfeat_base``: nothing is learned from SAM or in its place."""

    distillation: float = option(0.0, 'of L_dis', minimum=0.0)
    grouping: float = option(0.0, 'of L_wsc', minimum=0.0)
    edge: float = option(0.0, 'of L_edge', minimum=0.0)


@dataclass(frozen=True)
class TownCacheConfig(Config):
    """What a cache of town frames holds."""

    first_seed: int = option(9001, 'seed of the first town; the shipped map has seed 7', minimum=0)
    num_towns: int = option(8, 'how many towns', minimum=1)
    drives_per_town: int = option(8, 'drives along each of them', minimum=2)
    frames_per_drive: int = option(10, 'frames of each drive', minimum=1)
    street_m: float = option(60.0, 'length of the street', minimum=40.0, maximum=400.0)
    texel_m: float = option(
        0.0125, 'size of a texel of the streets, metres', minimum=0.005, maximum=0.1
    )
    width: int = option(512, 'width of a frame in pixels', minimum=64)
    height: int = option(384, 'height of a frame in pixels', minimum=64)

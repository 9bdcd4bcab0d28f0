# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How HOW is trained: tuples of an anchor, an image that sees the same, and others that do not.

Section 5.2 of the paper. Ours: what sees the same is read off the points that images of a map
share, so that any map is training data; a share of the images is darkened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import logging
import math
from pathlib import Path
import time
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feat_ros import config as configs
from feat_ros.errors import DataError
from feat_ros.feature_bench.localization import darken
from feat_ros.image import Image, read_image
from feat_ros.models.how import contrastive_loss, How, HowSfd2, whitening
from feat_ros.models.weights import get_network, load_weights, save_weights, Weights
from feat_ros.runtimes import WEIGHTS
from feat_ros.sfm_map import SfmMap
from feat_ros.training import checkpoint
from feat_ros.training.configs import HowConfig
from feat_ros.training.curves import Curves

Ids = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)

# What may differ when a run goes on.
_MACHINE = {'images', 'device', 'threads', 'epochs'}
# Local features of an image that whitening is made of.
_WHITENED_ROWS = 500


@dataclass(frozen=True, eq=False)
class Pool:
    """Images of maps, and which of them see the same.

    :ivar images: RGB uint8, scaled down.
    :ivar names: for darkness that repeats.
    :ivar shared: (I, I) points that two images share; 0 for those of two maps.
    """

    images: list[Image]
    names: list[str]
    shared: Ids


def read_pool(maps: Sequence[str], folders: Sequence[str], size: int) -> Pool:
    """Read the images of maps.

    :param folders: of each map's images.
    :param size: longer side above which an image is scaled down.
    :raises DataError: other numbers of maps and folders, or fewer than three images.
    :raises MapError, ImageError: a map or an image cannot be read.
    """
    if not maps or len(maps) != len(folders):
        raise DataError(
            f'{len(maps)} maps and {len(folders)} folders of images: give one for each'
        )
    images, names, blocks = [], [], []
    for path, folder in zip(maps, folders, strict=True):
        sfm_map = SfmMap(path)
        for number in range(sfm_map.num_images):
            name = sfm_map.image_name(number)
            image = read_image(Path(folder) / name)
            shrink = min(1.0, size / max(image.shape[:2]))
            wh = [max(1, round(side * shrink)) for side in image.shape[1::-1]]
            images.append(
                np.asarray(cv2.resize(image, wh, interpolation=cv2.INTER_AREA), np.uint8)
            )
            names.append(f'{path}/{name}')
        blocks.append(shared_points(sfm_map))
    if len(images) < 3:
        raise DataError(f'{len(images)} images make no tuples: add maps')
    shared = np.zeros((len(images), len(images)), np.int64)
    start = 0
    for block in blocks:
        shared[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return Pool(images, names, shared)


def shared_points(sfm_map: SfmMap) -> Ids:
    """Return how many points (I, I) each two images of a map share."""
    from scipy.sparse import csr_array

    # An image may have seen a point twice.
    seen = [np.unique(sfm_map.observations(image)[0]) for image in range(sfm_map.num_images)]
    points = np.concatenate(seen)
    images = np.repeat(np.arange(len(seen)), [len(each) for each in seen])
    shape = len(seen), sfm_map.num_points
    incidence = csr_array((np.ones(len(points), np.int64), (images, points)), shape=shape)
    return np.asarray((incidence @ incidence.T).toarray())


class HowRun:
    """A run in its folder; made anew, or taken up after its last whole epoch.

    The folder holds ``config.json``, ``log.jsonl``, ``validation.jsonl``, ``curves.png``,
    ``last.npz`` (all that is needed to go on), ``weights_last.npz`` and ``weights_best.npz``, the
    best by recall on the images that no tuple starts with.

    :raises DataError: the folder's run has another configuration, or no image sees what another
        does.
    """

    def __init__(self, config: HowConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.device = torch.device(config.device)
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.keep_config(folder, config, _MACHINE)
        self.pool = read_pool(config.maps, config.images, config.size)
        count = len(self.pool.images)
        sees_same = self.pool.shared >= config.min_shared_points
        np.fill_diagonal(sees_same, False)
        self._sees_same, self._sees_other = sees_same, self.pool.shared == 0
        has_pair = np.flatnonzero(sees_same.any(axis=1) & self._sees_other.any(axis=1))
        self.held_out = has_pair[:: config.holdout_every]
        self.anchors = np.setdiff1d(has_pair, self.held_out)
        if not len(self.anchors):
            raise DataError(
                f'none of {count} images shares {config.min_shared_points} points with another '
                'and nothing with a third: add a map of another place, or lower '
                'min_shared_points'
            )
        self.network: How = get_network(config.network)().to(self.device)
        self._start_weights()
        self.network.eval()  # statistics of batch norm stay as they are
        for part in self._fixed():
            part.requires_grad_(False)
        self.optimizer = torch.optim.Adam(
            [each for each in self.network.parameters() if each.requires_grad],
            lr=config.learning_rate, weight_decay=config.weight_decay,
        )  # fmt: skip
        self.epoch, self.best = 0, -1.0
        self.curves = Curves(folder)
        if (folder / 'last.npz').exists():
            self._load(checkpoint.load(folder / 'last.npz'))
            logger.warning('going on from epoch %d of %s', self.epoch, folder)
        else:
            self._whiten()
        self.curves.truncate(self.epoch)

    def _start_weights(self) -> None:
        if self.config.weights is not None:
            weights = load_weights(Path(self.config.weights), self.config.network)
            self.network.load_state_dict(
                {name: torch.from_numpy(np.array(a)) for name, a in weights.arrays.items()}
            )
        elif isinstance(self.network, HowSfd2):
            weights = load_weights(WEIGHTS / 'sfd2_lite.npz', 'sfd2_lite')
            start = 'network.backbone.stages.'
            encoder = self.network.features.get_submodule('encoder')
            encoder.load_state_dict({
                name: torch.from_numpy(np.array(weights.arrays[start + name], np.float32))
                for name in encoder.state_dict()
            })  # fmt: skip

    def _fixed(self) -> list[torch.nn.Module]:
        """Return what is not trained: the whitening, and the encoder that local features use."""
        fixed: list[torch.nn.Module] = [self.network.dim_reduction]
        if isinstance(self.network, HowSfd2):
            fixed.append(self.network.features.get_submodule('encoder'))
        return fixed

    def _planes(self, image: Image) -> Tensor:
        batch = torch.from_numpy(image)[None].to(self.device)
        wh = torch.tensor([image.shape[1], image.shape[0]], dtype=torch.int32, device=self.device)
        return self.network.prepare(batch, wh)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _whiten(self) -> None:
        """Set the reduction by the features that there are before training, section 5.2."""
        rng = np.random.default_rng(self.config.seed)
        rows = []
        for image in self.pool.images:
            found = self.network.features(self._planes(image))
            smooth = torch.nn.functional.avg_pool2d(found, 3, 1, 1, count_include_pad=False)
            flat, strength = smooth[0].flatten(1).T, found[0].flatten(1).norm(dim=0)
            rows.append(flat[strength.topk(min(_WHITENED_ROWS, len(flat))).indices])
        features = torch.cat(rows)
        drawn = rng.permutation(len(features))[: 200 * len(features[0])]
        weight, bias = whitening(features[torch.from_numpy(np.sort(drawn))])
        self.network.dim_reduction.weight.copy_(weight[..., None, None])
        self.network.dim_reduction.bias.copy_(bias)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def describe_all(self, light: float = 1.0) -> Tensor:
        """Return Z (I, 128) of all images, in a share of their light."""
        return torch.cat([
            self.network.describe(self._planes(darken(image, light, name)))
            for image, name in zip(self.pool.images, self.pool.names, strict=True)
        ])  # fmt: skip

    def recall(self, queries: Tensor, database: Tensor, count: int) -> float:
        """Share of the held-out images that find one that sees the same among the first."""
        similarity = (queries[self.held_out] @ database.T).cpu().numpy()
        similarity[np.arange(len(self.held_out)), self.held_out] = -np.inf
        best = np.argsort(-similarity, axis=1, kind='stable')[:, :count]
        return float(
            np.take_along_axis(self._sees_same[self.held_out], best, axis=1).any(1).mean()
        )

    def tuples(self, database: Tensor) -> list[tuple[int, int, list[int]]]:
        """Return the tuples of the next epoch: anchor, positive and the hardest negatives."""
        rng = np.random.default_rng([self.config.seed, self.epoch])
        count = min(self.config.tuples, len(self.anchors))
        chosen = rng.permutation(self.anchors)[:count]
        similarity = (database[chosen] @ database.T).cpu().numpy()
        out = []
        for anchor, row in zip(chosen.tolist(), similarity, strict=True):
            positive = int(rng.choice(np.flatnonzero(self._sees_same[anchor])))
            others = np.flatnonzero(self._sees_other[anchor])
            hardest = others[np.argsort(-row[others], kind='stable')][: self.config.negatives]
            out.append((anchor, positive, hardest.tolist()))
        return out

    def train(self, seconds: float = math.inf) -> int:
        """Train whole epochs until the end or until so much time is over; return the epoch."""
        end = time.monotonic() + seconds
        while self.epoch < self.config.epochs and time.monotonic() < end:
            database = self.describe_all()
            self._validate(database)
            loss = self._train_epoch(database)
            self.epoch += 1
            self.curves.add('log', {'step': self.epoch, 'loss': loss})
            self.save('weights_last.npz')
            self._save_state()
        if self.epoch >= self.config.epochs:
            self._validate(self.describe_all())
        self.curves.draw()
        return self.epoch

    def _train_epoch(self, database: Tensor) -> float:
        rng = np.random.default_rng([self.config.seed, self.epoch, 1])
        total, made = 0.0, self.tuples(database)
        for first in range(0, len(made), self.config.batch):
            batch = made[first : first + self.config.batch]
            self.optimizer.zero_grad()
            for anchor, positive, negatives in batch:
                images = [anchor, positive, *negatives]
                described = torch.cat([
                    self.network.describe(self._planes(self._lit(image, rng))) for image in images
                ])  # fmt: skip
                loss = contrastive_loss(
                    described[:1], described[1:2], described[None, 2:], self.config.margin
                )
                (loss / len(batch)).backward()
                total += float(loss.detach())
            self.optimizer.step()
        return total / len(made)

    def _lit(self, image: int, rng: np.random.Generator) -> Image:
        """Return an image, in less light for a share of them."""
        if rng.random() >= self.config.night_share:
            return self.pool.images[image]
        light = math.exp(rng.uniform(math.log(self.config.darkest), 0.0))
        return darken(self.pool.images[image], light, f'{self.epoch} {rng.integers(1 << 30)}')

    def _validate(self, database: Tensor) -> None:
        night = self.describe_all(self.config.darkest)
        figures = {
            'step': self.epoch,
            'recall_1': self.recall(database, database, 1),
            'recall_10': self.recall(database, database, 10),
            'night_recall_1': self.recall(night, database, 1),
            'night_recall_10': self.recall(night, database, 10),
        }
        self.curves.add('validation', figures)
        logger.info('epoch %d: %s', self.epoch, {k: round(v, 3) for k, v in figures.items()})
        score = figures['recall_1'] + figures['night_recall_1']
        if score > self.best:
            self.best = score
            self.save('weights_best.npz')

    def save(self, name: str) -> None:
        """Write the weights as they are."""
        arrays = {n: each.detach().cpu().numpy() for n, each in self.network.state_dict().items()}
        provenance: dict[str, Any] = {
            'epoch': self.epoch,
            'config': configs.to_dict(self.config),
            'num_images': len(self.pool.images),
        }
        weights = Weights(self.config.network, arrays, dict(self.network.options), provenance)
        save_weights(self.folder / name, weights)

    def _save_state(self) -> None:
        arrays = {
            **checkpoint.to_arrays(self.network.state_dict(), 'model'),
            **checkpoint.optimizer_arrays(self.optimizer),
            'epoch': np.array(self.epoch),
            'best': np.array(self.best),
        }
        checkpoint.save(self.folder / 'last.npz', arrays)

    def _load(self, arrays: checkpoint.Arrays) -> None:
        self.network.load_state_dict(checkpoint.from_arrays(arrays, 'model'))
        checkpoint.load_optimizer(self.optimizer, arrays)
        self.epoch, self.best = int(arrays['epoch']), float(arrays['best'])

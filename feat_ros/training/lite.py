# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Training of ``sfd2_lite``: no teacher, no labels needed, a CPU suffices.

A run is a folder: ``config.json``, ``data.json`` (name and sha256 of every photograph),
``log.jsonl`` (one line every so many steps), ``validation.jsonl``, ``curves.png``,
``tensorboard/``, ``last.npz`` (everything to go on from) and ``weights_last.npz``,
``weights_best.npz`` (the moving average, the best by validation on matching).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn, Tensor
from torch.utils.data import DataLoader

from feat_ros import config as configs
from feat_ros.config import Config, option
from feat_ros.errors import ConfigError, DataError
from feat_ros.models.scale_space import Points
from feat_ros.models.sfd2_lite import FlatPoints, Sfd2Lite, Sfd2LiteNetwork, tones
from feat_ros.models.weights import save_weights, Weights
from feat_ros.training import checkpoint
from feat_ros.training.curves import Curves
from feat_ros.training.losses import dual_softmax_loss, group_loss, matchability_loss
from feat_ros.training.pairs import (
    Batch,
    data_manifest,
    find_photos,
    PairConfig,
    PairMaker,
)
from feat_ros.training.town_cache import TownCache

logger = logging.getLogger(__name__)

# Pairs that the validation measures are made like those of the training, of photographs that it
# does not see, from this number of step on.
_VALIDATION_SEED = 77
# What is of the machine, and what besides does not change a single weight: these may differ when a
# run goes on elsewhere.
_MACHINE = {'photos', 'town', 'device', 'threads', 'workers'}
_FREE = _MACHINE | {'log_every', 'checkpoint_every', 'validate_every', 'validation_batches'}


@dataclass(frozen=True)
class LiteConfig(Config):
    """A training run of ``sfd2_lite``."""

    photos: list[str] = option(list, 'folders of photographs')
    town: str | None = option(None, 'folder of "feat_ros train town-cache", if any')
    holdout_every: int = option(16, 'one photograph in so many is for validation', minimum=2)
    seed: int = option(0, 'of weights and data', minimum=0)
    steps: int = option(60_000, 'steps of the whole schedule', minimum=1)
    learning_rate: float = option(2e-3, 'largest learning rate', minimum=0.0)
    warmup_steps: int = option(500, 'steps until it is reached', minimum=0)
    weight_decay: float = option(0.01, 'of AdamW', minimum=0.0)
    ema_decay: float = option(0.999, 'of the moving average of weights', minimum=0.0, maximum=1.0)
    match_weight: float = option(0.5, 'of the matchability loss', minimum=0.0)
    group_weight: float = option(1.0, 'of the stability loss', minimum=0.0)
    largest_scale: float = option(60.0, 'bound of the learned inverse temperature', minimum=1.0)
    use_bfloat16: bool = option(False, 'convolutions in bfloat16')
    device: str = option('cpu', 'torch device')
    threads: int = option(1, 'of torch in the training process', minimum=1)
    workers: int = option(1, 'processes that make pairs; 0 for none', minimum=0)
    log_every: int = option(50, 'steps between lines of the log', minimum=1)
    checkpoint_every: int = option(500, 'steps between checkpoints', minimum=1)
    validate_every: int = option(1000, 'steps between validations', minimum=1)
    validation_batches: int = option(8, 'batches of a validation', minimum=1)
    pair: PairConfig = field(default_factory=PairConfig)


class Trainee(nn.Module):
    """The network with the temperature that it is trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Sfd2LiteNetwork()
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))


def losses(trainee: Trainee, batch: Batch, config: LiteConfig) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch and what is logged of it."""
    device = trainee.log_scale.device
    batch = _to_device(batch, device)
    size = batch.images.shape[1]
    valid_wh = torch.full((len(batch.images), 2), size, dtype=torch.int32, device=device)
    colors = tones(batch.images, valid_wh).colors
    is_point = batch.points.response > 0
    image = torch.nonzero(is_point)[:, 0]
    points = FlatPoints(batch.points.xy[is_point], batch.points.sigma[is_point], image)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.use_bfloat16):
        maps = trainee.network.backbone(colors)
    centers, rings = trainee.network.samples(maps, points)
    descriptors = trainee.network.describe(centers, rings)
    ranking = trainee.network.rank(centers[1:], batch.points.features[is_point])

    # Every point of the first views against every point of the second views. A point's number in
    # the list is the count of points before it.
    pairs = len(batch.partner)
    number = (torch.cumsum(is_point.reshape(-1), 0) - 1).reshape(is_point.shape)
    num_first = int(is_point[:pairs].sum())
    pair, row = torch.nonzero(batch.partner >= 0, as_tuple=True)
    rows = number[pair, row]
    columns = number[pairs + pair, batch.partner[pair, row]] - num_first
    scale = trainee.log_scale.exp().clamp(max=config.largest_scale)
    match = dual_softmax_loss(
        descriptors[:num_first], descriptors[num_first:], scale, rows, columns
    )  # fmt: skip
    is_right = torch.cat([match.is_right_a, match.is_right_b])
    target, group = batch.target[is_point], batch.group[is_point]
    matchability = matchability_loss(ranking.match_logit, target, is_right)
    stability = group_loss(ranking.group_logits, group)
    total = match.loss + config.match_weight * matchability + config.group_weight * stability
    with torch.no_grad():
        is_labelled = group >= 0
        right_group = (ranking.group_logits.argmax(-1) == group) & is_labelled
        logged = {
            'loss': total.item(),
            'match_loss': match.loss.item(),
            'matchability_loss': matchability.item(),
            'stability_loss': stability.item(),
            'matches': len(rows),
            'matched_right': match.is_right_a.sum().item() / max(len(rows), 1),
            'group_right': right_group.sum().item() / max(int(is_labelled.sum()), 1),
            'scale': scale.item(),
        }
    return total, logged


def _to_device(batch: Batch, device: torch.device) -> Batch:
    points = Points(*(each.to(device) for each in batch.points))
    return Batch(
        batch.images.to(device), points, batch.partner.to(device), batch.target.to(device),
        batch.group.to(device),
    )  # fmt: skip


def learning_rate(config: LiteConfig, step: int) -> float:
    """Return the rate of a step: a linear warm-up, then half a cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


class Run:
    """A training run in its folder; made anew or taken up where it was left.

    :param folder: made if missing; if it holds a run, that one goes on.
    :raises DataError: the folder's run has another configuration, or there are no photographs.
    :raises ConfigError: there is no such device.
    """

    def __init__(self, config: LiteConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        _check_device(config.device)
        torch.set_num_threads(config.threads)
        cv2.setNumThreads(1)
        torch.manual_seed(config.seed)
        folder.mkdir(parents=True, exist_ok=True)
        self._check_config()
        photos = find_photos(config.photos)
        self.held_out = photos[config.holdout_every - 1 :: config.holdout_every]
        if not self.held_out:
            raise DataError(
                f'{len(photos)} photograph(s) leave none for validation: add some, or set '
                'holdout_every to less'
            )
        self.photos = [path for path in photos if path not in set(self.held_out)]
        self.town = None if config.town is None else TownCache(Path(config.town))
        self._write_manifest()
        self.trainee = Trainee().to(config.device)
        self.optimizer = torch.optim.AdamW(
            self.trainee.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.average = checkpoint.Average(self.trainee, config.ema_decay)
        self.step, self.best = 0, -1.0
        self.curves = Curves(folder)
        self._validation: list[Batch] = []
        if (folder / 'last.npz').exists():
            self._load(checkpoint.load(folder / 'last.npz'))
            logger.warning('going on from step %d of %s', self.step, folder)
        self.curves.truncate(self.step)

    def _check_config(self) -> None:
        path = self.folder / 'config.json'
        described = configs.to_dict(self.config)
        if path.exists():
            before = json.loads(path.read_text(encoding='utf-8'))
            changed = sorted(k for k in described if described[k] != before.get(k))
            if set(changed) - _FREE:
                raise DataError(
                    f'{self.folder} holds a run with other {", ".join(changed)}: name another '
                    'folder, or go on with its own config.json'
                )
        path.write_text(json.dumps(described, indent=2) + '\n', encoding='utf-8')

    def _write_manifest(self) -> None:
        manifest = {
            'feat_ros': version('feat_ros'),
            'python': platform.python_version(),
            'torch': torch.__version__,
            'numpy': np.__version__,
            'opencv': cv2.__version__,
            'training': data_manifest(self.photos),
            'validation': data_manifest(self.held_out),
            'town': None if self.town is None else self.town.description,
        }
        path = self.folder / 'data.json'
        path.write_text(json.dumps(manifest, indent=1) + '\n', encoding='utf-8')

    def _load(self, arrays: checkpoint.Arrays) -> None:
        self.trainee.load_state_dict(checkpoint.from_arrays(arrays, 'model'), strict=True)
        self.average.values = {
            name: each.to(self.config.device)
            for name, each in checkpoint.from_arrays(arrays, 'ema').items()
        }
        checkpoint.load_optimizer(self.optimizer, arrays)
        self.step, self.best = int(arrays['step']), float(arrays['best'])

    def save(self) -> None:
        """Write ``last.npz`` and ``weights_last.npz``."""
        arrays = {
            **checkpoint.to_arrays(self.trainee.state_dict(), 'model'),
            **checkpoint.to_arrays(self.average.values, 'ema'),
            **checkpoint.optimizer_arrays(self.optimizer),
            'step': np.array(self.step),
            'best': np.array(self.best),
        }
        checkpoint.save(self.folder / 'last.npz', arrays)
        self._save_weights('weights_last.npz')

    def _save_weights(self, name: str) -> None:
        arrays = checkpoint.to_arrays(self.average.values, 'ema')
        save_weights(self.folder / name, _weights(arrays, self.step, self.folder))

    def train(self, last_step: int | None = None, seconds: float = math.inf) -> int:
        """Go on until a step, the end of the schedule, or some seconds have passed.

        :returns: the number of steps done so far, all pieces together.
        """
        config = self.config
        last = config.steps if last_step is None else min(last_step, config.steps)
        maker = PairMaker(config.pair, self.photos, self.town, config.seed)
        loader = DataLoader(
            maker,
            sampler=range(self.step, last),
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            worker_init_fn=_start_worker,
        )
        start, first = time.monotonic(), self.step
        self.trainee.train()
        sums: dict[str, float] = {}
        count, waited, mark = 0, 0.0, time.monotonic()
        batches = iter(loader)
        while self.step < last and time.monotonic() - start < seconds:
            before = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - before
            for group in self.optimizer.param_groups:
                group['lr'] = learning_rate(config, self.step)
            total, logged = losses(self.trainee, batch, config)
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(self.trainee.parameters(), 10.0)
            self.optimizer.step()
            self.average.update(self.trainee, self.step)
            self.step += 1
            count += 1
            for name, value in logged.items():
                sums[name] = sums.get(name, 0.0) + value
            if self.step % config.log_every == 0:
                now = time.monotonic()
                self._log(sums, count, (now - mark) / count, waited / count, start, first, last)
                sums, count, waited, mark = {}, 0, 0.0, now
            if self.step % config.validate_every == 0:
                self._validate()
            if self.step % config.checkpoint_every == 0:
                self.save()
        self.save()
        return self.step

    def _log(
        self, sums: dict[str, float], count: int, each_s: float, waited_s: float,
        start: float, first: int, last: int,
    ) -> None:  # fmt: skip
        rate = (time.monotonic() - start) / max(self.step - first, 1)
        line: dict[str, Any] = {'step': self.step}
        line |= {name: round(value / count, 5) for name, value in sums.items()}
        line |= {
            'lr': round(learning_rate(self.config, self.step), 7),
            'step_s': round(each_s, 3),
            'data_wait_s': round(waited_s, 3),
            'eta_h': round(rate * (last - self.step) / 3600, 2),
        }
        self.curves.add('log', line)
        logger.info('%s', line)

    def _validate(self) -> None:
        """Measure matching on held-out photographs with the averaged weights."""
        config = self.config
        if not self._validation:
            maker = PairMaker(config.pair, self.held_out, None, _VALIDATION_SEED)
            self._validation = [maker[number] for number in range(config.validation_batches)]
        averaged = Trainee().to(config.device)
        averaged.load_state_dict(self.average.values, strict=True)
        averaged.eval()
        found: dict[str, float] = {}
        for batch in self._validation:
            with torch.no_grad():
                _, logged = losses(averaged, batch, config)
            for name in ('matched_right', 'match_loss', 'matchability_loss', 'group_right'):
                found[name] = found.get(name, 0.0) + logged[name] / len(self._validation)
        line = {'step': self.step} | {name: round(value, 5) for name, value in found.items()}
        self.curves.add('validation', line)
        self.curves.draw()
        logger.info('validation %s', line)
        if found['matched_right'] > self.best:
            self.best = found['matched_right']
            self._save_weights('weights_best.npz')


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise ConfigError(f'device {name!r} cannot be used here: choose cpu or cuda') from None


def averaged_weights(folder: Path, about: dict[str, Any] | None = None) -> Weights:
    """Return the averaged weights of a run as it stands.

    :param about: what is to be known of them besides: licence, data in words.
    :raises DataError: the folder holds no run.
    """
    arrays = checkpoint.load(folder / 'last.npz')
    weights = _weights(arrays, int(arrays['step']), folder)
    return replace(weights, provenance=weights.provenance | (about or {}))


def _weights(arrays: checkpoint.Arrays, step: int, folder: Path) -> Weights:
    described, data = (
        json.loads((folder / f'{name}.json').read_text(encoding='utf-8'))
        for name in ('config', 'data')
    )
    prefix = 'ema.network.'
    learned = {
        f'network.{name.removeprefix(prefix)}': value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    options = Sfd2Lite().options
    provenance = {
        'step': step,
        'steps': described['steps'],
        'config': {k: v for k, v in described.items() if k not in _MACHINE},
        'versions': {name: data[name] for name in ('feat_ros', 'torch', 'numpy', 'opencv')},
        'num_photos': len(data['training']),
        'data_sha256': hashlib.sha256(json.dumps(data['training']).encode()).hexdigest(),
        'town': data['town'],
    }
    return Weights('sfd2_lite', learned, options, provenance)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A training run in its folder, for every network that is trained on pairs of views.

The folder holds ``config.json``, ``data.json`` (name and sha256 of every photograph and teacher),
``log.jsonl`` (one line every so many steps), ``validation.jsonl``, ``curves.png``,
``tensorboard/``, ``last.npz`` (everything to go on from; ``last.*.npz`` beside it hold what is
more than 15 MB) and ``weights_last.npz``, ``weights_best.npz`` (the moving average; the best by
validation on localization where there is a town for it, else on matching).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
import hashlib
from importlib.metadata import version
import json
import logging
import math
from pathlib import Path
import platform
import time
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import nn, Tensor
from torch.utils.data import DataLoader

from feat_ros.errors import ConfigError, DataError, NetworkError
from feat_ros.models.weights import load_weights, save_weights, trained_network, Weights
from feat_ros.runtimes import WEIGHTS
from feat_ros.training import checkpoint
from feat_ros.training.configs import RunConfig
from feat_ros.training.curves import Curves
from feat_ros.training.losses import dual_softmax_loss, MatchLoss
from feat_ros.training.pairs import Batch, PairMaker
from feat_ros.training.pictures import (
    corners_path,
    data_manifest,
    find_photos,
    held_out,
    label_path,
    sam_path,
)
from feat_ros.training.teachers import describe_teacher
from feat_ros.training.team import join_team
from feat_ros.training.town_cache import TownCache
from feat_ros.training.validation import localize_town

logger = logging.getLogger(__name__)

# Where and how fast a run goes on may change between its pieces; nothing else may.
_MACHINE = {
    'photos', 'town', 'validation_town', 'device', 'threads', 'workers', 'log_every',
    'checkpoint_every', 'validate_every', 'validation_batches',
}  # fmt: skip
# What it started from is in it then.
_ONCE_BEGUN = _MACHINE | {'start_from'}
# Options of a network that change what it gives, not what its weights mean.
_AFTERWARDS = {'stability_exponent'}
# Pairs that the validation measures are made like those of the training, of photographs that it
# does not see, from this seed.
_VALIDATION_SEED = 77
# Temperatures end just below their bound.
_FINISHED = 0.93
# Steps in a row without a finite gradient that end a run.
_MOST_BAD = 10


class Trainee(nn.Module):
    """A network with the temperature that it is trained with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def start_from(self, weights: Weights, system: System, config: RunConfig) -> None:
        """Take over what was learned, and a temperature as when that was finished.

        :raises NetworkError: options, names or shapes that are not those of the network.
        """
        told, known = (
            {name: value for name, value in each.options.items() if name not in _AFTERWARDS}
            for each in (weights, system)
        )
        if told != known:
            raise NetworkError(
                f'start_from={config.start_from}: they are of a network with {told}, this one has '
                f'{known}'
            )
        learned = {
            name.removeprefix(system.prefix): torch.from_numpy(np.array(value, np.float32))
            for name, value in weights.arrays.items()
        }
        try:
            self.network.load_state_dict(learned)
        except RuntimeError as error:
            problem = str(error).splitlines()[-1].strip()
            raise NetworkError(f'start_from={config.start_from} does not fit: {problem}') from None
        with torch.no_grad():
            self.log_scale.fill_(math.log(_FINISHED * config.largest_scale))


class Contrast(NamedTuple):
    """What :func:`contrast` finds; ``logged`` is of it."""

    match: MatchLoss
    logged: dict[str, Tensor]


def contrast(trainee: Trainee, descriptors: Tensor, batch: Batch, config: RunConfig) -> Contrast:
    """Contrast every point of the first views with every point of the second views.

    :param descriptors: (2P N, D) of the batch's points, view by view; zero where there is none.
    """
    pairs, count = batch.partner.shape
    first = torch.arange(pairs, device=descriptors.device)[:, None] * count
    partner = torch.where(batch.partner >= 0, batch.partner + first, -1).reshape(-1)
    scale = trainee.log_scale.exp().clamp(max=config.largest_scale)
    middle = pairs * count
    match = dual_softmax_loss(descriptors[:middle], descriptors[middle:], scale, partner)
    matches = (partner >= 0).sum()
    logged = {
        'match_loss': match.loss.detach(),
        'matches': matches,
        'matched_right': match.is_right_a.sum() / matches.clamp(min=1),
        'scale': scale.detach(),
    }
    return Contrast(match, logged)


def share_right(logits: Tensor, wanted: Tensor) -> Tensor:
    """Share of the known classes (...), -1 for unknown, that logits (..., C) have right."""
    is_known = wanted >= 0
    return ((logits.argmax(-1) == wanted) & is_known).sum() / is_known.sum().clamp(min=1)


@dataclass(frozen=True)
class System:
    """What is trained and how.

    :ivar network: its key in :data:`feat_ros.models.weights.NETWORKS`.
    :ivar options: what the network is made with beside the number of keypoints.
    :ivar make: the part of it that learns.
    :ivar prefix: what goes before the names of that part's state dict in the network's.
    :ivar losses: the loss of a batch and what is logged of it, as tensors.
    :ivar changes: which of the options are others, from the configuration of a run.
    """

    network: str
    options: Mapping[str, Any]
    make: Callable[[], nn.Module]
    prefix: str
    losses: Callable[[Trainee, Batch, Any], tuple[Tensor, dict[str, Tensor]]]
    changes: Callable[[Any], Mapping[str, Any]] = lambda config: {}


def learning_rate(config: RunConfig, step: int) -> float:
    """Return the rate of a step: a linear warm-up, then half a cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


class Run:
    """A training run; made anew or taken up where it was left.

    Of several processes (:mod:`feat_ros.training.team`) each makes pairs of its own for every
    step, and all take it together with the mean of their gradients. What is logged, measured and
    kept of batch statistics is the first's.

    :param folder: made if missing; if it holds a run, that one goes on.
    :raises DataError: the folder's run is of another network, configuration or number of
        processes, or there are no photographs.
    :raises ConfigError: there is no such device.
    """

    def __init__(self, system: System, config: RunConfig, folder: Path) -> None:
        self.system = replace(system, options={**system.options, **system.changes(config)})
        self.config, self.folder = config, folder
        self.team, device = join_team(config.device)
        self.device = get_device(device)
        torch.set_num_threads(config.threads)
        cv2.setNumThreads(1)
        torch.manual_seed(config.seed)
        photos = find_photos(config.photos)
        self.held_out = held_out(photos, config.holdout_every)
        if not photos:
            raise DataError('no folder of photographs is named: --set photos=FOLDER')
        if not self.held_out:
            raise DataError(
                f'{len(photos)} photograph(s) leave none for validation: add some, or set '
                'holdout_every to less'
            )
        self.photos = [path for path in photos if path not in set(self.held_out)]
        if config.sam_parts.features and not any(sam_path(path).exists() for path in self.photos):
            raise DataError(
                f'teacher=files, but none of {len(self.photos)} photographs has a file of SAM '
                f'({sam_path(self.photos[0]).name}): write them with "feat_ros train sam-files"'
            )
        if config.reads_corners:
            _check_corners(self.photos)
        self.town, self.other_town = (
            None if folder is None else TownCache(Path(folder))
            for folder in (config.town, config.validation_town)
        )
        if self.town is not None and self.other_town is not None:
            self.other_town.refuse_towns_of(self.town)
        is_new = not (folder / 'last.npz').exists()
        start: Weights | None = None
        if config.start_from and is_new:
            own = WEIGHTS / f'{trained_network(system.network)}.npz'
            path = own if config.start_from == 'package' else Path(config.start_from)
            start = load_weights(path, system.network)
        self.trainee = Trainee(system.make())
        if start is not None:
            self.trainee.start_from(start, self.system, config)
        self.trainee.to(self.device)
        if self.team.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.keep_config(folder, config, _MACHINE if is_new else _ONCE_BEGUN)
            self._write_manifest(None if start is None else start.sha256)
        self.optimizer = torch.optim.AdamW(
            self.trainee.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay,
            fused=self.device.type == 'cuda',
        )  # fmt: skip
        self.average = checkpoint.Average(self.trainee, config.ema_decay)
        self.step, self.best = 0, -1.0
        self.curves = Curves(folder)
        self._validation: list[Batch] = []
        if not is_new:
            self._load(checkpoint.load(folder / 'last.npz'))
            if self.team.rank == 0:
                logger.warning('going on from step %d of %s', self.step, folder)
        if self.team.rank == 0:
            self.curves.truncate(self.step)

    def _write_manifest(self, started_with: str | None) -> None:
        path = self.folder / 'data.json'
        trained = {
            'network': self.system.network,
            'options': dict(self.system.options),
            'processes': self.team.size,
        }
        name = self.config.taught_by
        teacher = None if name is None else describe_teacher(name)
        if path.exists():
            written = {'processes': 1} | json.loads(path.read_text(encoding='utf-8'))
            before = {name: written.get(name) for name in trained}
            if before != trained:
                raise DataError(
                    f'{self.folder} holds a run of {_described(before)}, not of '
                    f'{_described(trained)}: go on as it was begun, or name another folder'
                )
            started_with = started_with or written.get('start_from')
            # Runs that are older do not say.
            taught = written.get('teacher', teacher)
            if taught != teacher:
                raise DataError(
                    f'{self.folder} holds a run that was taught by {taught}, not by {teacher}: '
                    'put that file back, or name another folder'
                )
        beside = any(self.config.sam_parts), self.config.reads_corners
        manifest = {
            **trained,
            'teacher': teacher,
            'start_from': started_with,
            'feat_ros': version('feat_ros'),
            'python': platform.python_version(),
            'torch': torch.__version__,
            'numpy': np.__version__,
            'opencv': cv2.__version__,
            'training': data_manifest(self.photos, *beside),
            'validation': data_manifest(self.held_out, *beside),
            'town': None if self.town is None else self.town.description,
            'validation_town': None if self.other_town is None else self.other_town.description,
        }
        path.write_text(json.dumps(manifest, indent=1) + '\n', encoding='utf-8')

    def _load(self, arrays: checkpoint.Arrays) -> None:
        self.trainee.load_state_dict(checkpoint.from_arrays(arrays, 'model'), strict=True)
        self.average.values = {
            name: each.to(self.device)
            for name, each in checkpoint.from_arrays(arrays, 'ema').items()
        }
        checkpoint.load_optimizer(self.optimizer, arrays)
        self.step, self.best = int(arrays['step']), float(arrays['best'])

    def save(self) -> None:
        """Write ``last.npz`` and ``weights_last.npz``."""
        if self.team.rank:
            return
        arrays = {
            **checkpoint.to_arrays(self.trainee.state_dict(), 'model'),
            **checkpoint.to_arrays(self.average.values, 'ema'),
            **checkpoint.optimizer_arrays(self.optimizer),
            'step': np.array(self.step),
            'best': np.array(self.best),
        }
        checkpoint.save_in_parts(self.folder / 'last.npz', arrays)
        self._save_weights('weights_last.npz')

    def _save_weights(self, name: str) -> None:
        arrays = checkpoint.to_arrays(self.average.values, 'ema')
        save_weights(self.folder / name, _weights(self.system, arrays, self.step, self.folder))

    def _batches(self, last: int) -> Any:
        config = self.config
        device = torch.device('cpu') if config.workers else self.device
        maker = PairMaker(
            config.pair, self.photos, self.town, config.seed, device, config.sam_parts,
            config.reads_corners,
        )  # fmt: skip
        numbers = self.team.numbers(self.step, last)
        if not config.workers:
            return (maker[number] for number in numbers)
        return iter(
            DataLoader(
                maker,
                sampler=numbers,
                batch_size=None,
                num_workers=config.workers,
                prefetch_factor=4,
                worker_init_fn=_start_worker,
            )
        )

    def train(self, last_step: int | None = None, seconds: float = math.inf) -> int:
        """Go on until a step, the end of the schedule, or some seconds have passed.

        A step without a finite gradient changes nothing, nor is it logged.

        :returns: the number of steps done so far, all pieces together.
        :raises DataError: no step has a finite gradient any more.
        """
        config = self.config
        last = config.steps if last_step is None else min(last_step, config.steps)
        batches = self._batches(last)
        start, first = time.monotonic(), self.step
        self.trainee.train()
        sums: dict[str, Tensor] = {}
        count, bad, waited, mark = 0, 0, 0.0, time.monotonic()
        is_time_up = seconds <= 0
        while self.step < last and not is_time_up:
            before = time.monotonic()
            batch = next(batches).to(self.device)
            waited += time.monotonic() - before
            for group in self.optimizer.param_groups:
                group['lr'] = learning_rate(config, self.step)
            # What a step leaves out by chance follows from its number, as its pairs do.
            torch.manual_seed(config.seed + self.team.numbers(self.step, last)[0])
            statistics = [each.clone() for each in self.trainee.buffers()]
            total, logged = self.system.losses(self.trainee, batch, config)
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            is_time_up = self.team.mean_gradients(
                self.trainee.parameters(), is_time_up=time.monotonic() - start >= seconds
            )
            norm = nn.utils.clip_grad_norm_(self.trainee.parameters(), 10.0)
            if torch.isfinite(norm):
                self.optimizer.step()
                self.average.update(self.trainee, self.step)
                bad, count = 0, count + 1
                for name, value in {'loss': total.detach(), **logged}.items():
                    sums[name] = sums[name] + value if name in sums else value
            else:
                for buffer, before_step in zip(self.trainee.buffers(), statistics, strict=True):
                    buffer.copy_(before_step)
                bad += 1
                logger.warning('step %d is left out: its gradient is not finite', self.step)
                if bad == _MOST_BAD:
                    raise DataError(
                        f'no finite gradient in the {bad} steps up to {self.step}: start anew '
                        'with a lower learning_rate; the last checkpoint stays'
                    )
            self.step += 1
            if self.team.rank:
                continue
            if self.step % config.log_every == 0 and count:
                means = {name: float(value) / count for name, value in sums.items()}
                now = time.monotonic()
                self._log(means, (now - mark) / count, waited / count, start, first, last)
                sums, count, waited, mark = {}, 0, 0.0, now
            if self.step % config.validate_every == 0:
                self._validate()
            if self.step % config.checkpoint_every == 0:
                self.save()
        self.save()
        return self.step

    def _log(
        self, means: dict[str, float], each_s: float, waited_s: float,
        start: float, first: int, last: int,
    ) -> None:  # fmt: skip
        rate = (time.monotonic() - start) / max(self.step - first, 1)
        line: dict[str, Any] = {'step': self.step}
        line |= {name: round(value, 5) for name, value in means.items()}
        line |= {
            'lr': round(learning_rate(self.config, self.step), 7),
            'step_s': round(each_s, 3),
            'data_wait_s': round(waited_s, 3),
            'eta_h': round(rate * (last - self.step) / 3600, 2),
        }
        self.curves.add('log', line)
        logger.info('%s', line)

    def _validate(self) -> None:
        """Measure the averaged weights: matching on held-out photographs, and localization."""
        config = self.config
        if not self._validation:
            maker = PairMaker(
                config.pair, self.held_out, None, _VALIDATION_SEED, self.device, config.sam_parts,
                config.reads_corners,
            )  # fmt: skip
            self._validation = [maker[number] for number in range(config.validation_batches)]
        averaged = Trainee(self.system.make()).to(self.device)
        averaged.load_state_dict(self.average.values, strict=True)
        averaged.eval()
        found: dict[str, float] = {}
        for batch in self._validation:
            with torch.no_grad():
                _, logged = self.system.losses(averaged, batch, config)
            for name, value in logged.items():
                found[name] = found.get(name, 0.0) + float(value) / len(self._validation)
        if self.other_town is not None:
            arrays = checkpoint.to_arrays(self.average.values, 'ema')
            weights = _weights(self.system, arrays, self.step, self.folder)
            found |= localize_town(weights, self.other_town, self.device)
        line = {'step': self.step} | {name: round(value, 5) for name, value in found.items()}
        self.curves.add('validation', line)
        self.curves.draw()
        logger.info('validation %s', line)
        score = found.get('localized_area', found['matched_right'])
        if score > self.best:
            self.best = score
            self._save_weights('weights_best.npz')


def get_device(name: str) -> torch.device:
    """Return a device of torch.

    :raises ConfigError: there is no such device.
    """
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError):
        raise ConfigError(f'device {name!r} cannot be used here: choose cpu or cuda') from None


def _check_corners(photos: list[Path]) -> None:
    with_file = [path for path in photos if corners_path(path).exists()]
    if not with_file:
        raise DataError(
            f'corners=files, but none of {len(photos)} photographs has a file of corners '
            f'({corners_path(photos[0]).name}): write them with "feat_ros train corner-files"'
        )
    if not any(label_path(path).exists() for path in with_file):
        raise DataError(
            f'corners=files, but none of the {len(with_file)} photographs with a file of corners '
            f'has labels ({label_path(with_file[0]).name}): equation 1 needs the stability of '
            'what a corner is on'
        )


def averaged_weights(system: System, folder: Path, about: dict[str, Any] | None = None) -> Weights:
    """Return the averaged weights of a run as it stands.

    :param about: what is to be known of them besides: licence, data in words.
    :raises DataError: the folder holds no run.
    """
    arrays = checkpoint.load(folder / 'last.npz')
    weights = _weights(system, arrays, int(arrays['step']), folder)
    return replace(weights, provenance=weights.provenance | (about or {}))


def network_of(folder: Path) -> str:
    """Return which network a run trains.

    :raises DataError: the folder holds no run.
    """
    path = folder / 'data.json'
    if not (folder / 'last.npz').exists() or not path.exists():
        raise DataError(f'{folder} holds no run: {folder / "last.npz"} does not exist')
    return str(json.loads(path.read_text(encoding='utf-8'))['network'])


def _weights(system: System, arrays: checkpoint.Arrays, step: int, folder: Path) -> Weights:
    described, data = (
        json.loads((folder / f'{name}.json').read_text(encoding='utf-8'))
        for name in ('config', 'data')
    )
    prefix = 'ema.network.'
    learned = {
        f'{system.prefix}{name.removeprefix(prefix)}': value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    provenance = {
        'step': step,
        'steps': described['steps'],
        'config': {k: v for k, v in described.items() if k not in _MACHINE},
        'versions': {name: data[name] for name in ('feat_ros', 'torch', 'numpy', 'opencv')},
        'num_photos': len(data['training']),
        'data_sha256': hashlib.sha256(json.dumps(data['training']).encode()).hexdigest(),
        'town': data['town'],
        'teacher': data.get('teacher'),
        'start_from': data.get('start_from'),
    }
    return Weights(system.network, learned, data['options'], provenance)


def _described(trained: Mapping[str, Any]) -> str:
    options, count = json.dumps(trained['options']), trained['processes']
    return f'{trained["network"]} {options} in {count} process{"es" if count > 1 else ""}'


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

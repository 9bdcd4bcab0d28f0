# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``feat_ros train``: networks of one's own, from photographs alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
import json
import logging
import math
from pathlib import Path
from typing import Any

from feat_ros import config
from feat_ros.cli.common import add_command, progress
from feat_ros.errors import ConfigError, DataError
from feat_ros.training.configs import (
    AislfdConfig,
    HowConfig,
    HynetBaseConfig,
    HynetConfig,
    LiteConfig,
    SamfeatBaseConfig,
    SamfeatConfig,
    Sfd2Config,
    TownCacheConfig,
)

Run = Callable[[argparse.Namespace], dict[str, Any]]

_EXAMPLE = """feat_ros train {0} --set photos=photographs --out run
  feat_ros train town-cache --out town_frames
  feat_ros train {0} --config {0}.json --out run
with {0}.json:
  {{"photos": ["photographs", "more"], "town": "town_frames"}}"""
_NETWORKS: Mapping[str, tuple[type[Any], str]] = {
    'sfd2_lite': (LiteConfig, 'a CPU trains it in a night, a GPU in minutes'),
    'sfd2': (Sfd2Config, 'it needs a GPU'),
    'aislfd': (AislfdConfig, 'a beginning takes a CPU minutes'),
    'samfeat': (SamfeatConfig, 'a CPU trains it in an hour'),
    'samfeat_base': (SamfeatBaseConfig, 'what samfeat is compared with'),
    'hynet': (HynetConfig, "small batches train on a CPU, its paper's need a GPU"),
    'hynet_base': (HynetBaseConfig, 'what hynet is compared with'),
}

_SAM_FILES = 'Write what SAM sees in photographs into files beside them, to train samfeat.'
_SAM_FILES_DESCRIPTION = f"""{_SAM_FILES}

NAME.sam.npz beside NAME.jpg holds the mask that each pixel is in, and the features of SAM's image
encoder. "feat_ros train samfeat" takes its groups and edges from the masks wherever there is such
a file, and with --set teacher=files it learns relations from the features. SAM itself then runs
once a photograph, not at every step. A file takes about 2 MB.

SAM is not part of feat_ros. You need its authors' package, and one of their checkpoints:
  pip install torchvision git+https://github.com/facebookresearch/segment-anything

Files that are there are kept: what was interrupted goes on with the next photograph."""

_CORNER_FILES = 'Write where photographs have corners into files beside them, to train sfd2.'
_CORNER_FILES_DESCRIPTION = f"""{_CORNER_FILES}

NAME.corners.npz beside NAME.jpg holds the probability that a corner is in a pixel: the mean of
what a detector says of the photograph and of random homographies of it, warped back. With --set
corners=files "feat_ros train sfd2" learns it, times the stability of the labels, by equation 1 of
its paper. The detector runs once a photograph, not at every step. A file takes about 1 MB.

No detector is part of feat_ros. The checkpoint is a state dict of MagicPoint with the names
backbone.0.0.conv.weight to detector.1.bn.running_var, or SuperPoint as its authors give it out
(superpoint_v1.pth), for who has it; its licence excludes commercial use.

Files that are there are kept: what was interrupted goes on with the next photograph."""


def add_parser(commands: Any) -> None:
    """Add ``train`` and its sub-commands."""
    train = commands.add_parser('train', help='train a network on photographs of your own')
    systems = train.add_subparsers(metavar='SYSTEM', required=True)
    for name, (options, remark) in _NETWORKS.items():
        system = add_command(
            systems, name,
            f'Train {name}; {remark}. Photographs are all it needs; NAME.group.png beside one '
            'holds labels. A folder that holds a run is gone on with, exactly where it was left.',
            _EXAMPLE.format(name), config.describe(options),
        )  # fmt: skip
        system.add_argument(
            '--config', type=Path, metavar='FILE', help='options as JSON; --set goes before them'
        )
        system.add_argument('--out', type=Path, required=True, metavar='DIR', help='the run')
        system.add_argument(
            '--minutes', type=float, default=math.inf, metavar='M',
            help='stop after so long, to be gone on with; default: train to the end',
        )  # fmt: skip
        system.set_defaults(run=run_system, system=name)
    how = add_command(
        systems, 'how',
        'Train HOW, which finds the images of a map that look like a query, on the images of '
        'maps: those that share points see the same. One map adapts it to a site.',
        'feat_ros train how --map office --images photos --out run\n'
        '  feat_ros train how --map office --images photos --set weights=how_sfd2.npz --out run',
        config.describe(HowConfig),
    )  # fmt: skip
    how.add_argument(
        '--map', action='append', default=[], metavar='MAP', help='a map; repeat for more'
    )
    how.add_argument(
        '--images', action='append', default=[], metavar='DIR',
        help="where that map's images are; one for each map",
    )  # fmt: skip
    how.add_argument('--out', type=Path, required=True, metavar='DIR', help='the run')
    how.add_argument(
        '--minutes', type=float, default=math.inf, metavar='M',
        help='stop after the epoch that is then under way, to be gone on with',
    )  # fmt: skip
    how.set_defaults(run=run_how)
    cache = add_command(
        systems, 'town-cache',
        'Render frames of made-up towns for pairs with real 3-D motion.',
        'feat_ros train town-cache --out town_frames', config.describe(TownCacheConfig),
    )  # fmt: skip
    cache.add_argument('--out', type=Path, required=True, metavar='DIR', help='must not exist')
    cache.add_argument(
        '--workers', type=int, default=1, metavar='N', help='processes, a town each; default: 1'
    )
    cache.set_defaults(run=run_town_cache)
    sam = _add_writer(
        systems, run_sam_files, 'sam-files', _SAM_FILES,
        'feat_ros train sam-files photographs --checkpoint sam_vit_h_4b8939.pth --type vit_h '
        '--device cuda\n'
        '  feat_ros train samfeat --config samfeat.json --set teacher=files --out run',
    )  # fmt: skip
    sam.description = _SAM_FILES_DESCRIPTION
    sam.add_argument(
        '--checkpoint', type=Path, required=True, metavar='FILE', help="of SAM's authors"
    )
    sam.add_argument(
        '--type', required=True, metavar='NAME', help="the checkpoint's: vit_h, vit_l or vit_b"
    )
    corners = _add_writer(
        systems, run_corner_files, 'corner-files', _CORNER_FILES,
        'feat_ros train corner-files photographs --checkpoint magicpoint.pt --device cuda\n'
        '  feat_ros train sfd2 --config sfd2.json --set corners=files --out run',
    )  # fmt: skip
    corners.description = _CORNER_FILES_DESCRIPTION
    corners.add_argument(
        '--checkpoint', type=Path, required=True, metavar='FILE', help='MagicPoint or SuperPoint'
    )
    corners.add_argument(
        '--homographies', type=int, default=100, metavar='N',
        help='views of a photograph, itself the first; default: 100',
    )  # fmt: skip
    labels = _add_writer(
        systems, run_label_files, 'label-files',
        'Write stability groups, NAME.group.png beside NAME.jpg, by a network for semantic '
        'segmentation that was trained on ADE20K or Cityscapes: a folder, or its name at Hugging '
        'Face, from where it is downloaded. It needs pip install "feat_ros[label]". Files that '
        'are there are kept: what was interrupted goes on with the next photograph.',
        'feat_ros train label-files photographs --model '
        'openmmlab/upernet-convnext-large --device cuda',
    )  # fmt: skip
    labels.add_argument('--model', required=True, metavar='NAME', help='a folder, or a name')
    weights = add_command(
        systems, 'weights',
        'Write the averaged weights of a run, as it stands, for an extractor: '
        '--extractor-option model=FILE.',
        'feat_ros train weights --run run --out mine.npz',
    )  # fmt: skip
    weights.add_argument('--run', type=Path, required=True, metavar='DIR', dest='folder')
    weights.add_argument('--out', type=Path, required=True, metavar='FILE', help='.npz')
    weights.add_argument(
        '--about', type=Path, metavar='FILE', help='JSON that the file is to hold: licence, data'
    )
    weights.add_argument(
        '--calibrate', action='store_true',
        help='make the stability right on the photographs that the run held out, those that have '
        'labels nearly everywhere (sfd2_lite)',
    )  # fmt: skip
    weights.set_defaults(run=run_weights)


def _add_writer(
    systems: Any, run: Run, name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a command that writes files beside photographs."""
    command = add_command(systems, name, summary, example)
    command.add_argument('photos', nargs='+', metavar='PHOTOS', help='folders of photographs')
    command.add_argument('--device', default='cpu', metavar='NAME', help='of torch; default: cpu')
    command.set_defaults(run=run)
    return command


def run_system(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on training, a network."""
    from feat_ros.training.run import Run
    from feat_ros.training.systems import get_system

    logging.getLogger('feat_ros').setLevel(logging.INFO)
    given = None if args.config is None else _read_json(args.config)
    options = config.parse_options(_NETWORKS[args.system][0], args.options, given)
    run = Run(get_system(args.system), options, args.out)
    step = run.train(seconds=60 * args.minutes)
    print(f'{step} of {run.config.steps} steps: {args.out}')
    return {'step': step, 'steps': run.config.steps}


def run_how(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or go on training, HOW."""
    from feat_ros.training.how import HowRun

    logging.getLogger('feat_ros').setLevel(logging.INFO)
    given = {'maps': args.map, 'images': args.images}
    run = HowRun(config.parse_options(HowConfig, args.options, given), args.out)
    epoch = run.train(60 * args.minutes)
    print(f'{epoch} of {run.config.epochs} epochs: {args.out}')
    return {'epoch': epoch, 'epochs': run.config.epochs}


def run_town_cache(args: argparse.Namespace) -> dict[str, Any]:
    """Render a cache of town frames."""
    from feat_ros.training.town_cache import TownCache, write_town_cache

    options = config.parse_options(TownCacheConfig, args.options)
    cache = TownCache(write_town_cache(args.out, options, progress, args.workers))
    print(f'{len(cache)} frames, {len(cache.pairs)} pairs: {args.out}')
    return {'num_frames': len(cache), 'num_pairs': len(cache.pairs)}


def run_sam_files(args: argparse.Namespace) -> dict[str, Any]:
    """Write the files of SAM of photographs."""
    from feat_ros.training.sam_writer import write_sam_files

    return _write_files(
        args,
        lambda photos, device: write_sam_files(
            photos, args.type, args.checkpoint, device, progress
        ),
    )


def run_corner_files(args: argparse.Namespace) -> dict[str, Any]:
    """Write the files of corners of photographs."""
    from feat_ros.training.corner_writer import write_corner_files

    if args.homographies < 1:
        raise ConfigError(f'--homographies is {args.homographies}: it must be at least 1')
    return _write_files(
        args,
        lambda photos, device: write_corner_files(
            photos, args.checkpoint, args.homographies, device, progress
        ),
    )


def run_label_files(args: argparse.Namespace) -> dict[str, Any]:
    """Write labels of photographs."""
    from feat_ros.training.label_writer import write_label_files

    return _write_files(
        args, lambda photos, device: write_label_files(photos, args.model, device, progress)
    )


def _write_files(
    args: argparse.Namespace, write: Callable[[list[Path], Any], int]
) -> dict[str, Any]:
    """Write the files beside photographs that are missing, and say how many they were."""
    from feat_ros.training.pictures import find_photos
    from feat_ros.training.run import get_device

    photos = find_photos(args.photos)
    written = write(photos, get_device(args.device))
    print(f'{written} files written, {len(photos) - written} were there')
    return {'written': written, 'kept': len(photos) - written}


def run_weights(args: argparse.Namespace) -> dict[str, Any]:
    """Write what a run has learned so far."""
    from feat_ros.models.weights import save_weights
    from feat_ros.training.calibration import calibrate
    from feat_ros.training.run import averaged_weights, network_of
    from feat_ros.training.systems import get_system

    about = None if args.about is None else _read_json(args.about)
    weights = averaged_weights(get_system(network_of(args.folder)), args.folder, about)
    if args.calibrate:
        weights = calibrate(weights, args.folder)
    save_weights(args.out, weights)
    step, steps = weights.provenance['step'], weights.provenance['steps']
    print(f'weights after {step} of {steps} steps: {args.out}')
    return {'step': step, 'steps': steps, 'sha256': weights.sha256}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror or error}') from None
    except ValueError as error:
        raise DataError(f'{path} is not JSON: {error}') from None
    if not isinstance(content, dict):
        raise DataError(f'{path} must hold one JSON object')
    return content

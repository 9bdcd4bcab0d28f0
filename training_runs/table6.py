# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Table 6 of SFD2's paper with sfd2_lite: what each of its terms does.

    python training_runs/table6.py DATA --config training_runs/table6/config.json --out table6

trains a row at a time into a folder, writes its weights, and measures them: localization as
``localize_posed_sets.py``, the share of the 1000 strongest keypoints that sit on what is volatile
or dynamic (DATA/camvid_val), and the share of matches within 3 px (DATA/oxford_affine). Given
again it goes on where it was left. It writes ``table.json``, ``table.md`` and ``table.png`` after
each row, of the rows that there are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from localize_posed_sets import OPTIONS, posed_sets, show
from matplotlib.figure import Figure
import numpy as np

from feat_ros import config
from feat_ros.extractors import create_extractor
from feat_ros.feature_bench.localization import LIGHT, localize_sets
from feat_ros.feature_bench.matching import match_sets, matching_rows, read_homography_sets
from feat_ros.feature_bench.semantics import label_keypoints, read_labelled, semantic_rows
from feat_ros.models.weights import load_weights, save_weights
from feat_ros.semantics import get_label_table
from feat_ros.training.configs import LiteConfig
from feat_ros.training.run import averaged_weights, Run
from feat_ros.training.sfd2_losses import Sfd2LossWeights
from feat_ros.training.systems import get_system

logger = logging.getLogger('table6')

_PAPER = Sfd2LossWeights()
# What the stability counts for in guided rows, whatever the package's own network has.
_EXPONENT = 1.5
_NO_SD: Mapping[str, Any] = {'group_weight': 0.0}
_SS: Mapping[str, Any] = {
    'inter_class': _PAPER.inter_class,
    'intra_class': _PAPER.intra_class,
}
_SF: Mapping[str, Any] = {'consistency': _PAPER.consistency}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    :ivar title: what the table calls it.
    :ivar changes: options other than those of the configuration.
    :ivar seed: added to that of the configuration.
    """

    title: str
    changes: Mapping[str, Any]
    seed: int = 0

    @property
    def is_guided(self) -> bool:
        """Whether the stability has a say in detection."""
        return 'group_weight' not in self.changes


ROWS: Mapping[str, Row] = {
    'base': Row('base', _NO_SD),
    'base_1': Row('base', _NO_SD, 1),
    'sd': Row('+SD', {}),
    'ss_triplet': Row('+SS (triplet)', {**_NO_SD, **_SS, 'intra_kind': 'triplet'}),
    'ss_ranking': Row('+SS (ranking)', {**_NO_SD, **_SS}),
    'sd_ss': Row('+SD+SS', _SS),
    'full': Row('full', {**_SS, **_SF}),
    'full_1': Row('full', {**_SS, **_SF}, 1),
}


def main() -> None:
    """Train, measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', type=Path, help='posed sets, camvid_val and oxford_affine')
    parser.add_argument('--config', type=Path, required=True, help='JSON, as of sfd2_lite')
    parser.add_argument('--out', type=Path, required=True, help='a folder; made or gone on with')
    parser.add_argument(
        '--set', action='append', default=[], metavar='NAME=VALUE', dest='options',
        help='an option of the configuration; repeat for more',
    )  # fmt: skip
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), help='default: all')
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    base = config.parse_options(
        LiteConfig, args.options, json.loads(args.config.read_text(encoding='utf-8'))
    )
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as work:
        sets = posed_sets(args.data, Path(work) / 'fr1')
        for number, key in enumerate(args.rows):
            logger.info('row %d of %d: %s', number + 1, len(args.rows), key)
            weights = train(ROWS[key], base, args.out / key)
            maps = Path(work) / key
            maps.mkdir()
            measure(ROWS[key], weights, args.data, sets, maps)
            write_table(args.out)


def train(row: Row, base: LiteConfig, folder: Path) -> Path:
    """Train a row to its end; return the file of its weights."""
    system = get_system('sfd2_lite')
    run = Run(system, replace(base, seed=base.seed + row.seed, **row.changes), folder)
    if run.step < run.config.steps:
        run.train()
    weights = averaged_weights(system, folder)
    exponent = _EXPONENT if row.is_guided else 0.0
    weights = replace(weights, options={'stability_exponent': exponent})
    path = folder / 'weights.npz'
    save_weights(path, weights)
    return path


def measure(row: Row, path: Path, data: Path, sets: Any, maps: Path) -> None:
    """Measure weights and write ``measured.json`` beside them, unless it is there."""
    weights = load_weights(path, 'sfd2_lite')
    out = path.with_name('measured.json')
    of_what = {
        'sha256': weights.sha256,
        'stability_exponent': weights.options['stability_exponent'],
    }
    if out.exists() and json.loads(out.read_text()).items() >= of_what.items():
        return
    make = partial(create_extractor, 'sfd2_lite', runtime='torch', model=str(path), **OPTIONS)
    extract = make()
    homographies = read_homography_sets(data / 'oxford_affine')
    matching = matching_rows({row.title: match_sets(homographies, extract)})
    table = get_label_table('camvid')
    labelled = label_keypoints(read_labelled(data / 'camvid_val'), table, extract)
    found = {
        'row': row.title,
        'seed': row.seed,
        **of_what,
        'step': weights.provenance['step'],
        'mma_3px': matching['matching: all sets'][0]['mma_3px'],
        'semantics': semantic_rows({row.title: labelled}, table)[0],
        'localization': show(row.title, localize_sets(sets, make, maps)),
    }
    temporary = out.with_suffix('.tmp')
    temporary.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    temporary.replace(out)


def write_table(folder: Path) -> None:
    """Write the rows that are measured as JSON, as Markdown and as a picture."""
    files = [folder / key / 'measured.json' for key in ROWS]
    rows = [json.loads(path.read_text(encoding='utf-8')) for path in files if path.exists()]
    (folder / 'table.json').write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')
    head = ['', *LIGHT, 'on volatile or dynamic', 'without the band', 'within 3 px']
    lines = [head, ['---'] * len(head)]
    for row in rows:
        title = row['row'] + (f', seed {row["seed"]}' if row['seed'] else '')
        lines.append([title])
        for light in LIGHT:
            _, fine, coarse, area, _ = row['localization'][f'pooled, {light}']
            lines[-1].append(f'{fine:.0f} / {coarse:.0f} % {area:.3f}'.replace(' 0.', ' .'))
        lines[-1] += [f'{row["semantics"][key]:.1f} %' for key in ('unstable_%', 'inner_%')]
        lines[-1].append(f'{row["mma_3px"]:.3f}'.removeprefix('0'))
    text = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
    (folder / 'table.md').write_text(text, encoding='utf-8')
    draw(rows, folder / 'table.png')


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw a dot for each run, runs that differ in their seed on one line."""
    titles = list(dict.fromkeys(row.title for row in ROWS.values()))
    nights = [light for light in LIGHT if light != 'day']
    panels = {
        'area under recall to 10 cm': {
            'day': lambda row: row['localization']['pooled, day'][3],
            'mean of the nights': lambda row: np.mean(
                [row['localization'][f'pooled, {light}'][3] for light in nights]
            ),
        },
        'of the 1000 strongest, % on volatile or dynamic': {
            'CamVid': lambda row: row['semantics']['unstable_%']
        },
        'share of matches within 3 px': {'Oxford': lambda row: row['mma_3px']},
    }
    figure = Figure(figsize=(12, 3.4), layout='constrained')
    for axes, (name, series) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for label, value in series.items():
            at = [titles.index(row['row']) for row in rows]
            axes.plot([value(row) for row in rows], at, 'o', label=label)
        axes.set(title=name, yticks=range(len(titles)), yticklabels=titles)
        axes.set_ylim(len(titles) - 0.5, -0.5)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncol=2, loc='upper center', bbox_to_anchor=(0.5, -0.1))
    figure.savefig(path, dpi=100)


if __name__ == '__main__':
    main()

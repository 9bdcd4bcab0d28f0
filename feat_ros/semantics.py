# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How long a thing stays where it is: class labels to stability groups and their values.

Groups and values are those of Xue et al., "SFD2: Semantic-guided Feature Detection and
Description", CVPR 2023, section 3.1 and supplement Table 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.errors import ConfigError, DataError

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class StabilityGroup(IntEnum):
    """The groups, with the ids that ``*.group.png`` label files use."""

    UNKNOWN = 0
    VOLATILE = 1
    DYNAMIC = 2
    SHORT_TERM = 3
    LONG_TERM = 4


# Nobody has said what an unknown pixel is, so it has no value: NaN cannot be mistaken for one,
# and a loss that forgets to leave such pixels out shows it at once.
STABILITY: Mapping[StabilityGroup, float] = {
    StabilityGroup.UNKNOWN: float('nan'),
    StabilityGroup.VOLATILE: 0.1,
    StabilityGroup.DYNAMIC: 0.1,
    StabilityGroup.SHORT_TERM: 0.5,
    StabilityGroup.LONG_TERM: 1.0,
}

# One RGB row a group, so that GROUP_COLOURS_RGB[group_image] is a picture. Okabe and Ito's
# colours: told apart with every kind of colour blindness.
GROUP_COLOURS_RGB: UInt8 = np.array(
    [(127, 127, 127), (86, 180, 233), (213, 94, 0), (240, 228, 66), (0, 114, 178)], np.uint8
)


@dataclass(frozen=True, eq=False)
class LabelTable:
    """What the ids in a data set's label images mean.

    :ivar name: its key in :data:`LABEL_TABLES`.
    :ivar classes: class name and group of each id.
    """

    name: str
    classes: Mapping[int, tuple[str, StabilityGroup]]

    @property
    def ids(self) -> str:
        """The known ids in words, such as ``0 to 18 and 255``."""
        known = sorted(self.classes)
        last = next(i for i in known if i + 1 not in self.classes)
        rest = ''.join(f' and {i}' for i in known if i > last)
        return f'{known[0]} to {last}{rest}'

    @cached_property
    def is_known(self) -> npt.NDArray[np.bool_]:
        """Whether each id from 0 to the largest one has a class."""
        return np.array([i in self.classes for i in range(max(self.classes) + 1)])

    @cached_property
    def group_by_id(self) -> UInt8:
        """Group of each id from 0 to the largest one; gaps hold 0."""
        groups = np.zeros(max(self.classes) + 1, np.uint8)
        for i, (_, group) in self.classes.items():
            groups[i] = group
        return groups


def groups_from_labels(labels: npt.NDArray[Any], table: LabelTable) -> UInt8:
    """Stability group (H, W) of each pixel of a label image (H, W) of any integer type.

    :raises DataError: not an image of integers, or an id that the table does not have.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise DataError(f'label image has shape {labels.shape}: it must be (H, W)')
    index = _checked_index(labels, table.is_known, f'label of {table.name}', table.ids)
    return np.asarray(table.group_by_id[index])


def stability_from_groups(groups: npt.NDArray[Any]) -> Float32:
    """Stability S_sta, float32 of the same shape, of group ids (...); NaN where unknown.

    :raises DataError: not integers, or an id that is not a group.
    """
    values = np.array([STABILITY[group] for group in StabilityGroup], np.float32)
    is_known = np.ones(len(values), bool)
    index = _checked_index(np.asarray(groups), is_known, 'stability group', '0 to 4')
    return np.asarray(values[index])


def get_label_table(name: str) -> LabelTable:
    """Return a table of :data:`LABEL_TABLES`.

    :raises ConfigError: unknown name; the known ones are listed.
    """
    if name not in LABEL_TABLES:
        raise ConfigError(
            f'unknown label table {name!r}; choose one of: {", ".join(LABEL_TABLES)}'
        )
    return LABEL_TABLES[name]


def _checked_index(
    ids: npt.NDArray[Any], is_known: npt.NDArray[np.bool_], what: str, known_ids: str
) -> npt.NDArray[np.intp]:
    if not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f'{what} has type {ids.dtype}: it must be an integer')
    index = ids.astype(np.intp)
    # Both neighbours of the range, -1 and its length, read the False at the end.
    padded = np.append(is_known, False)
    unknown = ids[~padded[np.clip(index, -1, len(is_known))]]
    if unknown.size:
        raise DataError(f'{what} is {unknown[0]}: it must be {known_ids}')
    return index


def _split(names: str) -> list[str]:
    return ' '.join(names.split()).split(', ')


def _label_table(name: str, names: str, groups: Mapping[StabilityGroup, str]) -> LabelTable:
    """Make a table from class names in the order of their ids; those in no group are long-term."""
    group_of = {each: group for group, text in groups.items() for each in _split(text)}
    classes = {
        i: (each, group_of.pop(each, StabilityGroup.LONG_TERM))
        for i, each in enumerate(_split(names))
    }
    assert not group_of, f'{name} has no class {group_of}'
    return LabelTable(name, classes)


# Ids as in the annotation files (0 is unlabelled, a network's output is id - 1), names the first
# of each line of objectInfo150.txt. Table 8 runs in the order of the ids, which settles its short
# names: automobile is car, stand is base (41), ground is earth (14), dirt is dirt track, land is
# "land, ground, soil" (95), light is 83, bike is bicycle; its two screens are 59 and 131. It
# leaves out desk, refrigerator, blind, coffee table, towel, microwave, pier, crt screen, radiator
# and one of table and pool table, all stable in the authors' published list of groups, and bus,
# animal and fan, dynamic there.
_ADE20K = _label_table(
    'ade20k',
    """other, wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet,
    sidewalk, person, earth, door, table, mountain, plant, curtain, chair, car, water, painting,
    sofa, shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp,
    bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
    skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
    arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle,
    buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
    swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
    step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag""",
    {
        StabilityGroup.UNKNOWN: 'other',
        StabilityGroup.VOLATILE: """sky, mountain, curtain, water, sea, mirror, rug, field,
            bathtub, base, sand, sink, river, hill, bench, light, dirt track, land, fountain,
            swimming pool, waterfall, lake""",
        StabilityGroup.DYNAMIC: 'person, car, boat, truck, bus, animal, fan',
        StabilityGroup.SHORT_TERM: """tree, grass, plant, flower, palm, airplane, van, ship,
            minibike, bicycle, shower""",
    },
)

# Not in Table 8: the own car's bonnet, caravan, trailer and train are dynamic like truck and bus;
# "static" is whatever else does not move, mountains (volatile) as well as lamps, so unknown;
# terrain is mostly grass; a rider moves, a parked motorcycle or bicycle is the table's bike.
_CITYSCAPES = _label_table(
    'cityscapes',
    """unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road,
    sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel, pole,
    polegroup, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck,
    bus, caravan, trailer, train, motorcycle, bicycle""",
    {
        StabilityGroup.UNKNOWN: 'unlabeled, rectification border, out of roi, static',
        StabilityGroup.VOLATILE: 'sky',
        StabilityGroup.DYNAMIC: """ego vehicle, dynamic, person, rider, car, truck, bus, caravan,
            trailer, train""",
        StabilityGroup.SHORT_TERM: 'vegetation, terrain, motorcycle, bicycle',
    },
)

# The label id behind each of the 19 train ids.
_CITYSCAPES_EVALUATED = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
_CITYSCAPES_TRAIN = LabelTable(
    'cityscapes_train',
    {
        **{i: _CITYSCAPES.classes[label] for i, label in enumerate(_CITYSCAPES_EVALUATED)},
        255: ('ignored', StabilityGroup.UNKNOWN),
    },
)

_CAMVID = _label_table(
    'camvid',
    'sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, cyclist, void',
    {
        StabilityGroup.UNKNOWN: 'void',
        StabilityGroup.VOLATILE: 'sky',
        StabilityGroup.DYNAMIC: 'car, pedestrian, cyclist',
        StabilityGroup.SHORT_TERM: 'tree',
    },
)

LABEL_TABLES: Mapping[str, LabelTable] = {
    'ade20k': _ADE20K,
    'camvid': _CAMVID,
    'cityscapes': _CITYSCAPES,
    'cityscapes_train': _CITYSCAPES_TRAIN,
}

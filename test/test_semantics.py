# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Label tables against their sources, and the mapping against a loop over pixels."""

from __future__ import annotations

import itertools
from pathlib import Path
import re
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from feat_ros.errors import ConfigError, DataError
from feat_ros.semantics import (
    get_label_table,
    GROUP_COLOURS_RGB,
    groups_from_labels,
    LABEL_TABLES,
    STABILITY,
    stability_from_groups,
    StabilityGroup,
)

SHARED = Path(__file__).parents[2] / 'shared'
ADE20K = SHARED / 'data' / 'ade20k_sample'
CAMVID = SHARED / 'data' / 'camvid_val'
PAPER = SHARED / 'papers' / 'sfd2.txt'


def _need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f'{path} is not here')
    return path


def _ade20k_synonyms() -> dict[int, list[str]]:
    rows = _need(ADE20K / 'objectInfo150.txt').read_text().splitlines()[1:]
    fields = [row.split('\t') for row in rows]
    return {int(row[0]): [name.strip() for name in row[4].split(',')] for row in fields}


def _names(table: str) -> dict[int, str]:
    return {i: name for i, (name, _) in LABEL_TABLES[table].classes.items()}


def _groups_by_name(table: str) -> dict[str, StabilityGroup]:
    return dict(LABEL_TABLES[table].classes.values())


def test_groups_have_the_ids_of_label_files_and_the_values_of_the_paper() -> None:
    assert {group.name: int(group) for group in StabilityGroup} == {
        'UNKNOWN': 0,
        'VOLATILE': 1,
        'DYNAMIC': 2,
        'SHORT_TERM': 3,
        'LONG_TERM': 4,
    }
    assert [STABILITY[StabilityGroup(i)] for i in (1, 2, 3, 4)] == [0.1, 0.1, 0.5, 1.0]
    assert np.isnan(STABILITY[StabilityGroup.UNKNOWN])


@pytest.mark.parametrize('name', LABEL_TABLES)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.int64, np.uint64])
def test_mapping_agrees_with_a_loop_over_pixels(name: str, dtype: Any) -> None:
    table = get_label_table(name)
    rng = np.random.default_rng(0)
    labels = rng.choice(sorted(table.classes), (17, 31)).astype(dtype)
    labels.flags.writeable = False
    groups = groups_from_labels(labels, table)
    stability = stability_from_groups(groups)
    assert groups.dtype == np.uint8
    assert stability.dtype == np.float32
    assert groups.shape == stability.shape == labels.shape
    for y, x in np.ndindex(labels.shape):
        group = table.classes[int(labels[y, x])][1]
        assert groups[y, x] == group
        np.testing.assert_equal(stability[y, x], np.float32(STABILITY[group]))


def test_stability_takes_groups_of_any_shape() -> None:
    np.testing.assert_array_equal(
        stability_from_groups(np.array([4, 0, 3])), np.array([1, np.nan, 0.5], np.float32)
    )
    assert stability_from_groups(np.zeros((0,), np.uint8)).shape == (0,)


@pytest.mark.parametrize(
    ('name', 'bad', 'known'),
    [
        ('ade20k', 151, '0 to 150'),
        ('ade20k', 255, '0 to 150'),
        ('ade20k', -1, '0 to 150'),
        ('camvid', 12, '0 to 11'),
        ('cityscapes', 34, '0 to 33'),
        ('cityscapes', -(2**40), '0 to 33'),
        ('cityscapes_train', 19, '0 to 18 and 255'),
        ('cityscapes_train', 254, '0 to 18 and 255'),
        ('cityscapes_train', 256, '0 to 18 and 255'),
    ],
)
def test_an_unknown_id_is_refused(name: str, bad: int, known: str) -> None:
    labels = np.zeros((4, 5), np.int64)
    labels[2, 3] = bad
    with pytest.raises(DataError, match=f'label of {name} is {bad}: it must be {known}$'):
        groups_from_labels(labels, get_label_table(name))


def test_what_is_not_a_label_image_is_refused() -> None:
    table = get_label_table('camvid')
    with pytest.raises(DataError, match=r'label image has shape \(4, 5, 3\): it must be \(H, W\)'):
        groups_from_labels(np.zeros((4, 5, 3), np.uint8), table)
    with pytest.raises(DataError, match='label of camvid has type float32: it must be an int'):
        groups_from_labels(np.zeros((4, 5), np.float32), table)
    with pytest.raises(DataError, match='stability group is 5: it must be 0 to 4'):
        stability_from_groups(np.array([[1, 5]], np.uint8))
    with pytest.raises(DataError, match='stability group has type bool'):
        stability_from_groups(np.array([[True]]))


def test_tables_are_known_by_name() -> None:
    assert all(get_label_table(name).name == name for name in LABEL_TABLES)
    with pytest.raises(
        ConfigError, match="unknown label table 'kitti'; choose one of: ade20k, camvid, cityscapes"
    ):
        get_label_table('kitti')


def test_ade20k_names_are_in_the_order_of_the_data_set() -> None:
    first = {i: names[0] for i, names in _ade20k_synonyms().items()}
    assert _names('ade20k') == {0: 'other', **first}
    assert len(first) == len(set(first.values())) == 150


def test_ade20k_groups_are_those_of_table_8() -> None:
    """Walk each list of the paper along the ids: both are in the same order."""
    synonyms = _ade20k_synonyms()
    row = re.compile(r'<b>(Volatile|Dynamic|Short-term|Long-term)</b>\t(.*)')
    expected: dict[int, StabilityGroup] = {}
    for group_name, text in row.findall(_need(PAPER).read_text(encoding='utf-8')):
        last = 0
        for name in text.split(', '):
            last = next(
                i
                for i in range(last + 1, 151)
                if any(re.search(rf'\b{name}\b', each) for each in synonyms[i])
            )
            expected[last] = StabilityGroup[group_name.upper().replace('-', '_')]
    classes = get_label_table('ade20k').classes
    assert {i: classes[i][1] for i in expected} == expected
    # Left out by the table: three that move by themselves, and furniture.
    rest = {classes[i] for i in classes if i not in expected}
    moving = {(name, StabilityGroup.DYNAMIC) for name in ('bus', 'animal', 'fan')}
    lasting = (
        'desk, refrigerator, table, blind, coffee table, towel, microwave, pier, crt screen, '
        'radiator'
    )
    assert rest == moving | {('other', StabilityGroup.UNKNOWN)} | {
        (name, StabilityGroup.LONG_TERM) for name in lasting.split(', ')
    }


def test_ade20k_has_known_examples() -> None:
    groups = _groups_by_name('ade20k')
    assert groups['sky'] == groups['water'] == groups['mountain'] == StabilityGroup.VOLATILE
    assert groups['car'] == groups['person'] == groups['bus'] == StabilityGroup.DYNAMIC
    assert groups['tree'] == groups['bicycle'] == groups['van'] == StabilityGroup.SHORT_TERM
    assert groups['building'] == groups['desk'] == groups['wall'] == StabilityGroup.LONG_TERM
    counts = np.bincount([group for _, group in get_label_table('ade20k').classes.values()])
    assert counts.tolist() == [1, 22, 7, 11, 110]


def test_ade20k_annotation_files_can_be_mapped() -> None:
    folder = _need(ADE20K) / 'sampleData' / 'annotations'
    synonyms = _ade20k_synonyms()
    for path in sorted(folder.glob('*.png')):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        groups = groups_from_labels(labels, get_label_table('ade20k'))
        sky = [i for i, names in synonyms.items() if 'sky' in names]
        buildings = [i for i, names in synonyms.items() if 'edifice' in names]
        assert (groups[np.isin(labels, sky)] == StabilityGroup.VOLATILE).all()
        assert (groups[np.isin(labels, buildings)] == StabilityGroup.LONG_TERM).all()
        assert ((groups == StabilityGroup.UNKNOWN) == (labels == 0)).all()


def test_cityscapes_has_the_standard_ids() -> None:
    names = _names('cityscapes')
    assert sorted(names) == list(range(34))
    # The official pairs of train id and name, and the label id each belongs to.
    evaluated = {
        'road': 7,
        'sidewalk': 8,
        'building': 11,
        'wall': 12,
        'fence': 13,
        'pole': 17,
        'traffic light': 19,
        'traffic sign': 20,
        'vegetation': 21,
        'terrain': 22,
        'sky': 23,
        'person': 24,
        'rider': 25,
        'car': 26,
        'truck': 27,
        'bus': 28,
        'train': 31,
        'motorcycle': 32,
        'bicycle': 33,
    }
    assert {name: i for i, name in names.items() if name in evaluated} == evaluated
    assert _names('cityscapes_train') == {**dict(enumerate(evaluated)), 255: 'ignored'}


def test_cityscapes_tables_give_the_same_groups() -> None:
    label_groups, train_groups = _groups_by_name('cityscapes'), _groups_by_name('cityscapes_train')
    assert train_groups.pop('ignored') == StabilityGroup.UNKNOWN
    assert train_groups == {name: label_groups[name] for name in train_groups}
    by_group = {
        group: {name for name, each in label_groups.items() if each == group}
        for group in StabilityGroup
    }
    moving = 'ego vehicle, dynamic, person, rider, car, truck, bus, caravan, trailer, train'
    assert by_group[StabilityGroup.VOLATILE] == {'sky'}
    assert by_group[StabilityGroup.DYNAMIC] == set(moving.split(', '))
    assert by_group[StabilityGroup.SHORT_TERM] == {
        'vegetation',
        'terrain',
        'motorcycle',
        'bicycle',
    }
    assert by_group[StabilityGroup.UNKNOWN] == {
        'unlabeled',
        'rectification border',
        'out of roi',
        'static',
    }
    assert len(by_group[StabilityGroup.LONG_TERM]) == 15


def test_camvid_groups() -> None:
    groups = [int(group) for _, group in get_label_table('camvid').classes.values()]
    assert groups == [1, 4, 4, 4, 4, 3, 4, 4, 2, 2, 2, 0]


def test_camvid_files_can_be_mapped_and_most_sky_is_above_the_road() -> None:
    path = sorted((_need(CAMVID) / 'labels').iterdir())[0]
    labels: npt.NDArray[np.uint8] = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    groups = groups_from_labels(labels, get_label_table('camvid'))
    rows = np.nonzero(groups == StabilityGroup.VOLATILE)[0]
    assert rows.size > 0
    assert rows.mean() < np.nonzero(labels == 3)[0].mean()


# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", 2009, severity 1.0, for linear RGB.
VISION = {
    'normal': np.eye(3),
    'protanopia': np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    'deuteranopia': np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    'tritanopia': np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


@pytest.mark.parametrize('vision', VISION)
def test_group_colours_can_be_told_apart(vision: str) -> None:
    assert GROUP_COLOURS_RGB.shape == (len(StabilityGroup), 3)
    linear = ((GROUP_COLOURS_RGB / 255 + 0.055) / 1.055) ** 2.4
    seen = np.clip(linear @ VISION[vision].T, 0, 1)
    srgb = 1.055 * np.maximum(seen, 0.0031308) ** (1 / 2.4) - 0.055
    lab = cv2.cvtColor(srgb[None].astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    # A difference of 2 is just noticeable.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 20

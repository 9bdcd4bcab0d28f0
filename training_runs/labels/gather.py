# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Photographs with labels of public collections, as training reads them.

python gather.py SOURCES OUT reads checkouts (which and of what commit: docs/models/sfd2_lite.md)

    SOURCES/building-facade-segmentation, coco_yolo, COCO-MINI, COCO_Tiny, mini-coco,
    debug_dataloader, DeepDataMiningLearning, tiny_coco, ATSS and LUMS-Road-Dataset

and writes OUT/facades, OUT/people, OUT/things and OUT/campus: NAME.jpg, at most 640 px, and
NAME.group.png; of people, things and OUT/coco128, which must be there, four in one at half the
size are OUT/small. Of COCO's pictures only those are taken whose own licence allows any use and
any change. What no one has labelled is unknown, and so is what is near the border of a label; the
sky above façades, which their labels leave out, is what is even and reaches the upper border.
"""

from __future__ import annotations

from collections.abc import Iterator
import itertools
import json
from pathlib import Path
import sys
from typing import Any
import zlib

import cv2
from label_streets import borders, close, disk, find_plants, grow
import numpy as np
import numpy.typing as npt

from feat_ros.semantics import StabilityGroup
from feat_ros.training.pictures import label_path

UInt8 = npt.NDArray[np.uint8]

_LONGER_SIDE = 640
# How often each picture comes among the small ones.
_SMALL_TURNS = 2
_RUN = Path(__file__).parents[1] / 'sfd2_lite_first'
# Of COCO's licences: attribution, attribution and share alike, no known restrictions, US works.
_FREE = {4, 5, 7, 8}
_MOVING = {'person', 'vehicle', 'animal', 'bicycle', 'car', 'motorcycle'}
# Small parts of COCO with all its instances, or those of people, or of people and vehicles.
_COCO = (
    'COCO-MINI', 'COCO_Tiny', 'mini-coco', 'debug_dataloader', 'DeepDataMiningLearning',
    'tiny_coco', 'ATSS',
)  # fmt: skip
# In the order of painting: a car stands before a hedge, a hedge before a façade.
_FACADES = {
    'facade': StabilityGroup.LONG_TERM,
    'street': StabilityGroup.LONG_TERM,
    'window': StabilityGroup.LONG_TERM,
    'balcony-fence': StabilityGroup.LONG_TERM,
    'shop': StabilityGroup.LONG_TERM,
    'fence': StabilityGroup.LONG_TERM,
    'non-building-infrastructure': StabilityGroup.LONG_TERM,
    'traffic-infrastructure': StabilityGroup.LONG_TERM,
    'vegetation': StabilityGroup.SHORT_TERM,
    'car': StabilityGroup.DYNAMIC,
}
# Background, obstacle, road, pavement, speed breaker.
_CAMPUS: UInt8 = np.array([0, 2, 4, 4, 4], np.uint8)


def main(sources: Path, out: Path) -> None:
    """Write all five."""
    facades(sources / 'building-facade-segmentation', out / 'facades')
    people(sources / 'coco_yolo', out / 'people')
    things([sources / name for name in _COCO], out / 'things')
    campus(sources / 'LUMS-Road-Dataset', out / 'campus')
    small([out / name for name in ('coco128', 'people', 'things')], out / 'small')


def facades(source: Path, out: Path) -> None:
    """Façades with all that stands before them; sky by how even it is."""
    for path in sorted(source.glob('*/_annotations.coco.json')):
        data = json.loads(path.read_text(encoding='utf-8'))
        names = {each['id']: each['name'] for each in data['categories']}
        of_image = _by_image(data)
        for image in data['images']:
            (file,) = path.parent.rglob(image['file_name'])
            bgr = cv2.imread(str(file))
            group, facade = np.zeros((2, *bgr.shape[:2]), np.uint8)
            for name, value in _FACADES.items():
                for each in of_image.get(image['id'], []):
                    if names[each['category_id']] == name:
                        _paint(group, each['segmentation'], value)
                        if name == 'facade':
                            _paint(facade, each['segmentation'], 1)
            # The outline of a bare tree holds more of the façade than of the tree.
            is_see_through = (group == StabilityGroup.SHORT_TERM) & (facade > 0)
            group[is_see_through & ~find_plants(bgr)[0]] = StabilityGroup.UNKNOWN
            group[_sky(bgr, group)] = StabilityGroup.VOLATILE
            group[borders(group, 3)] = StabilityGroup.UNKNOWN
            _write(out / image['file_name'].partition('.rf.')[0], bgr, group)


def people(source: Path, out: Path) -> None:
    """People: one polygon a picture."""
    path = source / 'coco' / 'annotations' / 'instances_val2017.json'
    data = json.loads(path.read_text(encoding='utf-8'))
    for image, found in _free_images(data):
        bgr = cv2.imread(str(source / 'coco' / 'images' / 'val2017' / image['file_name']))
        _write_moving(out, image, bgr, found)


def things(sources: list[Path], out: Path) -> None:
    """People, vehicles and animals, all of them in these pictures; the rest is unknown."""
    known = set()
    for path in (path for source in sources for path in sorted(source.rglob('instances*.json'))):
        source = next(each for each in sources if each in path.parents)
        data = json.loads(path.read_text(encoding='utf-8'))
        kinds = {
            each['id']: each.get('supercategory', each['name']) for each in data['categories']
        }
        for image, found in _free_images(data):
            files = list(source.rglob(image['file_name']))
            if image['id'] in known or not files:
                continue
            known.add(image['id'])
            moving = [
                each
                for each in found
                if kinds[each['category_id']] in _MOVING and isinstance(each['segmentation'], list)
            ]
            if moving:
                _write_moving(out, image, cv2.imread(str(files[0])), moving)


def small(folders: list[Path], out: Path) -> None:
    """Four pictures in one, each at half its size: people as a street shows them."""
    width, height = _LONGER_SIDE // 2, _LONGER_SIDE * 3 // 8
    paths = [path for folder in folders for path in sorted(folder.glob('*.jpg'))]
    rng = np.random.default_rng(0)
    for turn in range(_SMALL_TURNS):
        order = rng.permutation(len(paths))
        for number, four in enumerate(order[: len(order) // 4 * 4].reshape(-1, 4)):
            cells = [_cell(paths[each], width, height) for each in four]
            bgr, group = (
                np.vstack([np.hstack(row) for row in (part[:2], part[2:])])
                for part in zip(*cells, strict=True)
            )
            _write(out / f'{turn}_{number:03}', bgr, group)


def _cell(path: Path, width: int, height: int) -> tuple[UInt8, UInt8]:
    """Return the middle of a picture and of its labels at a size; its border is unknown."""
    bgr = np.asarray(cv2.imread(str(path)), np.uint8)
    group = np.asarray(cv2.imread(str(label_path(path)), cv2.IMREAD_GRAYSCALE), np.uint8)
    rows, columns = group.shape
    zoom = max(width / columns, height / rows)
    size = max(width, round(columns * zoom)), max(height, round(rows * zoom))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    part = slice(top, top + height), slice(left, left + width)
    bgr = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.uint8)[part]
    group = np.asarray(cv2.resize(group, size, interpolation=cv2.INTER_NEAREST), np.uint8)[part]
    cv2.rectangle(group, (0, 0), (width - 1, height - 1), int(StabilityGroup.UNKNOWN), 4)
    return bgr, group


def _free_images(data: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield the images that may be used for anything, with their annotations."""
    of_image = _by_image(data)
    for image in data['images']:
        if image['license'] in _FREE:
            yield image, of_image.get(image['id'], [])


def _write_moving(out: Path, image: dict[str, Any], bgr: Any, found: list[dict[str, Any]]) -> None:
    group = np.zeros(bgr.shape[:2], np.uint8)
    for each in found:
        _paint(group, each['segmentation'], StabilityGroup.DYNAMIC)
    group[borders(group, 2)] = StabilityGroup.UNKNOWN
    _write(out / Path(image['file_name']).stem, bgr, group)


def campus(source: Path, out: Path) -> None:
    """Roads, and what is on them; ``label_campus.py`` adds sky and plants.

    The collection's line-ending rule has taken a carriage return from each end of line that its
    files seem to have: these are the 85 pictures that had none.
    """
    known = json.loads((_RUN / 'data.json').read_text(encoding='utf-8'))
    files = [each['file'] for each in known['training'] + known['validation']]
    wanted = {file.partition('/')[2] for file in files if file.startswith('campus/')}
    for path in [*sorted(source.glob('valid/*.jpg')), *sorted(source.glob('test/*.jpg'))]:
        name, _, rest = path.stem.partition('_png.rf.')
        if f'{name}_{rest[:4]}.jpg' not in wanted:
            continue
        bgr = cv2.imread(str(path))
        mask = _mended(path.with_name(f'{path.stem}_mask.png').read_bytes())
        if mask is None:
            continue
        group = _CAMPUS[cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_GRAYSCALE)]
        group[borders(group, 2)] = StabilityGroup.UNKNOWN
        _write(out / f'{name}_{rest[:4]}', bgr, group)


def _mended(png: bytes) -> bytes | None:
    """Put carriage returns back into a PNG file of one IDAT, until its checksum is right."""
    head, tail = b'\x89PNG\r\n\x1a\n' + png[7:32], png[-12:]
    start = png.index(b'IDAT')
    length = int.from_bytes(png[start - 4 : start], 'big')
    body = png[start + 4 : -12]
    missing = length + 4 - len(body)
    ends = [at for at, value in enumerate(body) if value == 10]
    for chosen in itertools.combinations(ends, missing):
        parts = [body[a:b] for a, b in itertools.pairwise((0, *chosen, len(body)))]
        whole = b'\r'.join(parts)
        if zlib.crc32(b'IDAT' + whole[:-4]).to_bytes(4, 'big') == whole[-4:]:
            return head + png[32 : start + 4] + whole + tail
    return None


def _by_image(data: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for each in data['annotations']:
        found.setdefault(each['image_id'], []).append(each)
    return found


def _paint(group: UInt8, polygons: list[list[float]], value: int) -> None:
    corners = [np.round(np.reshape(each, (-1, 2))).astype(np.int32) for each in polygons]
    cv2.fillPoly(group, corners, int(value))


def _sky(bgr: Any, group: UInt8) -> npt.NDArray[np.bool_]:
    """Return what is even, unlabelled, and hangs together with the upper border."""
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    fine = cv2.GaussianBlur(grey, (0, 0), 2.0)
    spread = np.sqrt(np.maximum(cv2.GaussianBlur((grey - fine) ** 2, (0, 0), 4.0), 0))
    steps = np.hypot(
        cv2.Sobel(fine, -1, 1, 0, scale=0.125), cv2.Sobel(fine, -1, 0, 1, scale=0.125)
    )
    is_even = (spread < 9) & (steps < 4) & (group == StabilityGroup.UNKNOWN)
    is_even = cv2.erode(close(is_even, 2).astype(np.uint8), disk(4)).astype(bool)
    parts = cv2.connectedComponents(is_even.astype(np.uint8))[1]
    at_top = np.unique(parts[:12][parts[:12] > 0])
    sky = np.isin(parts, at_top) & (np.arange(len(parts))[:, None] < 0.7 * len(parts))
    return np.asarray(grow(sky, 3) & (group == StabilityGroup.UNKNOWN))


def _write(path: Path, bgr: Any, group: UInt8) -> None:
    shrink = min(1.0, _LONGER_SIDE / max(group.shape))
    size = tuple(round(side * shrink) for side in group.shape[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    image = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA) if shrink < 1 else bgr
    cv2.imwrite(f'{path}.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    labels = cv2.resize(group, size, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(f'{path}.group.png', labels)


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Maps on the disk: what was written comes back, and nothing that is damaged is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from conftest import full_disk, random_segment, write_map
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

from feat_ros.errors import MapError, SegmentError
from feat_ros.matching import mutual_nearest
from feat_ros.sfm_map import (
    ARRAYS,
    CheckedArray,
    open_arrays,
    partial_path,
    PoseNoise,
    publish,
    read_manifest,
    Segment,
    SfmMap,
    write_array,
    write_arrays,
    write_manifest,
    write_segment,
    write_text,
)

MIB = 1 << 20


def assert_holds(sfm_map: SfmMap, segments: list[Segment]) -> None:
    """All content of a map, read in pieces, is that of the segments one after the other."""
    num_points = [len(segment.points_xyz) for segment in segments]
    assert sfm_map.num_points == sum(num_points)
    assert sfm_map.num_images == sum(len(segment.image_names) for segment in segments)
    ids = np.random.default_rng(0).permutation(sfm_map.num_points)
    xyz, covariance = sfm_map.points(ids)
    assert_allclose(xyz, np.concatenate([s.points_xyz for s in segments])[ids], atol=1e-5)
    expected = np.concatenate([s.point_covariance for s in segments])[ids]
    assert_allclose(covariance, expected, rtol=1e-6, atol=1e-12)
    stability = np.concatenate([s.point_stability for s in segments])[ids]
    assert_array_equal(sfm_map.stability(ids), stability)
    descriptors = np.concatenate([s.point_descriptors for s in segments])[ids]
    lazy = sfm_map.descriptors(ids)
    assert len(lazy) == len(ids)
    read = np.concatenate([lazy[start : start + 100] for start in range(0, len(ids), 100)])
    assert read.dtype == np.float32
    assert_allclose(read, descriptors, atol=np.abs(descriptors).max() / 127 / 2 * 1.001)

    rotations, translations = sfm_map.image_poses()
    image, first_point, num_observations = 0, 0, 0
    for segment in segments:
        for number, (points, pixels) in enumerate(segment.image_observations):
            pose = segment.image_cam_from_map[number]
            assert sfm_map.image_name(image) == segment.image_names[number]
            assert sfm_map.camera(image) == segment.cameras[segment.image_camera[number]]
            assert_allclose(sfm_map.cam_from_map(image).rotation, pose.rotation, atol=1e-14)
            assert_array_equal(sfm_map.cam_from_map(image).translation, pose.translation)
            assert_allclose(rotations[image], pose.rotation, atol=1e-14)
            assert_array_equal(translations[image], pose.translation)
            read_points, read_pixels = sfm_map.observations(image)
            assert_array_equal(read_points, points + first_point)
            assert_array_equal(read_pixels, pixels)
            num_observations += len(points)
            image += 1
        first_point += len(segment.points_xyz)
    assert sfm_map.num_observations == num_observations


def test_a_map_comes_back(tmp_path: Path) -> None:
    segment = random_segment(1)
    path = write_map(tmp_path / 'map', [segment], frame_id='world', gravity='known')
    sfm_map = SfmMap(str(path))
    assert_holds(sfm_map, [segment])
    assert (sfm_map.manifest.frame_id, sfm_map.manifest.gravity) == ('world', 'known')
    assert sfm_map.manifest.extractor.options == {'max_keypoints': 500}
    sfm_map.verify()
    assert not list(path.rglob('*.tmp'))


def test_segments_are_numbered_through(tmp_path: Path) -> None:
    """Also where they are far from each other, with descriptors of another range."""
    segments = [random_segment(1), random_segment(2, 40, 3, at=5e5), random_segment(3, 900, 2)]
    small = segments[1].point_descriptors * np.float32(0.5)
    segments[1] = replace(segments[1], point_descriptors=small)
    sfm_map = SfmMap(write_map(tmp_path / 'map', segments))
    assert_holds(sfm_map, segments)
    images = np.array([7, 0, 11])
    seen = [sfm_map.observations(int(image))[0] for image in images]
    assert_array_equal(sfm_map.points_of_images(images), sorted({*np.concatenate(seen).tolist()}))
    everything = sfm_map.points_of_images(np.arange(sfm_map.num_images))
    assert_array_equal(everything, np.arange(sfm_map.num_points))
    assert len(sfm_map.points_of_images(np.zeros(0, np.int64))) == 0
    assert len(sfm_map.points_of_images(np.array([6]))) == 0


def test_matching_reads_descriptors_by_slices(tmp_path: Path) -> None:
    """Those of two segments in any order, as if they were in memory."""
    segments = [random_segment(1, 1700), random_segment(2, 900)]
    sfm_map = SfmMap(write_map(tmp_path / 'map', segments))
    ids = np.random.default_rng(1).permutation(2600)[:2300]
    stored = sfm_map.descriptors(np.arange(2600))[:][ids]
    query = random_segment(3, 200).point_descriptors
    expected, scores = mutual_nearest(query, stored)
    matches, lazy_scores = mutual_nearest(query, sfm_map.descriptors(ids))
    assert_array_equal(matches, expected)
    assert_array_equal(lazy_scores, scores)


def test_coordinates_far_from_zero_keep_their_millimetres(tmp_path: Path) -> None:
    segment = random_segment(4, at=5_400_000.0)
    sfm_map = SfmMap(write_map(tmp_path / 'map', [segment]))
    xyz, _ = sfm_map.points(np.arange(500))
    assert np.abs(xyz - segment.points_xyz).max() < 1e-5


def test_the_map_id_is_that_of_the_content(tmp_path: Path) -> None:
    first, same = (read_manifest(write_map(tmp_path / n, [random_segment(1)])) for n in 'ab')
    other = read_manifest(write_map(tmp_path / 'c', [random_segment(2)]))
    named = read_manifest(write_map(tmp_path / 'd', [random_segment(1)], frame_id='odom'))
    assert first.map_id == same.map_id == named.map_id
    assert first.map_id != other.map_id
    assert re.fullmatch('[0-9a-f]{32}', first.map_id)


def test_the_extractor_of_a_map_is_checked(tmp_path: Path) -> None:
    sfm_map = SfmMap(write_map(tmp_path / 'map', [random_segment(1)]))
    sfm_map.check_extractor('sift')
    with pytest.raises(MapError, match=r"built with extractor 'sift', not 'orb': leave .* away"):
        sfm_map.check_extractor('orb')
    sfm_map.check_extractor('sift', '')
    with pytest.raises(
        MapError, match=r"built with weights '' of 'sift', not 'abababababab': name"
    ):
        sfm_map.check_extractor('sift', 'ab' * 32)


def test_pose_noise_and_retrieval_come_back(tmp_path: Path) -> None:
    folder = tmp_path / 'map'
    arrays: dict[str, npt.NDArray[Any]] = {
        'words': np.arange(12).reshape(3, 4),
        'empty': np.zeros((0, 2), np.float32),
    }
    more = {'lists': np.arange(5, dtype=np.uint8)}
    retrieval = {
        'options': {'a': 1},
        'arrays': write_arrays(folder / 'retrieval', arrays),
        'files': [{'name': 'file-7', 'arrays': write_arrays(folder / 'retrieval/file-7', more)}],
    }
    noise = PoseNoise(0.02, 0.001)
    write_map(folder, [random_segment(1)], pose_noise=noise, retrieval=retrieval)
    sfm_map = SfmMap(folder)
    assert sfm_map.manifest.pose_noise == noise
    entry = sfm_map.manifest.retrieval
    for written, read in (
        (arrays, open_arrays(folder / 'retrieval', entry['arrays'])),
        (more, open_arrays(folder / 'retrieval' / 'file-7', entry['files'][0]['arrays'])),
    ):
        for name, array in written.items():
            assert_array_equal(read[name][:], array)
            assert read[name].dtype == array.dtype
    sfm_map.verify()
    for name in ('words', 'file-7/lists'):
        flip_bit(folder / 'retrieval' / f'{name}.npy')
        with pytest.raises(MapError, match=rf'{name}\.npy is damaged in block 0'):
            SfmMap(folder).verify()
        flip_bit(folder / 'retrieval' / f'{name}.npy')


def test_runs_of_rows_are_checked(tmp_path: Path) -> None:
    """Rows of 128 KiB, eight to a block."""
    rows = np.random.default_rng(0).integers(0, 256, (40, 1 << 17)).astype(np.uint8)
    path = tmp_path / 'rows.npy'
    entry = write_array(path, rows)
    flip_bit(path, 128 + 17 * (1 << 17))
    for starts, stops, is_damaged in [
        ([0, 24], [16, 40], False), ([0, 20], [17, 21], True), ([17], [17], False),
        ([30, 17], [31, 18], True), ([], [], False), ([23], [24], True),
    ]:  # fmt: skip
        array = CheckedArray(path, entry)
        with pytest.raises(MapError, match='block 2') if is_damaged else nullcontext():
            found = array.checked(np.array(starts, np.int64), np.array(stops, np.int64))
            for start, stop in zip(starts, stops, strict=True):
                assert_array_equal(found[start:stop], rows[start:stop])


def test_a_segment_comes_back(tmp_path: Path) -> None:
    """And is written again as it was, byte for byte but for the rounding of orientations."""
    write_map(tmp_path / 'map', [random_segment(1), random_segment(2, at=1e4)])
    sfm_map = SfmMap(tmp_path / 'map')
    for number in range(2):
        name = f'segment-{number:04}'
        write_segment(tmp_path / name, sfm_map.read_segment(number))
        again, before = content(tmp_path / name), content(tmp_path / 'map' / name)
        quats = [
            np.load(part / name / 'image_quat_xyzw.npy') for part in (tmp_path, tmp_path / 'map')
        ]
        assert_allclose(quats[0], quats[1], rtol=0, atol=1e-15)
        del again['image_quat_xyzw.npy'], before['image_quat_xyzw.npy']
        assert again == before


def test_more_segments_than_are_open_at_once(tmp_path: Path) -> None:
    segments = [random_segment(seed, 20, 2) for seed in range(40)]
    sfm_map = SfmMap(write_map(tmp_path / 'map', segments))
    assert_holds(sfm_map, segments)
    assert_array_equal(sfm_map.segments_of_images(), np.repeat(np.arange(40), 2))
    assert sfm_map._segment.cache_info().currsize == 32


def test_a_segment_that_goes_while_the_map_is_open(tmp_path: Path) -> None:
    """It is named, and only what is in it is lost."""
    segments = [random_segment(seed, 20, 2) for seed in range(40)]
    sfm_map = SfmMap(write_map(tmp_path / 'map', segments))
    shutil.rmtree(tmp_path / 'map' / 'segment-0003')
    with pytest.raises(SegmentError, match=r'segment-0003/.* is missing') as caught:
        sfm_map.observations(7)
    assert caught.value.segment == 3
    assert len(sfm_map.observations(8)[0])


# ---------------------------------------------------------------- damaged arrays


@pytest.fixture(scope='module')
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map whose descriptors fill two and a half blocks."""
    segment = random_segment(5, 20_000, 4, dim=128)
    return write_map(tmp_path_factory.mktemp('pristine') / 'map', [segment])


@pytest.fixture
def map_path(pristine: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / 'map'))


def array_path(map_path: Path, name: str) -> Path:
    return map_path / 'segment-0000' / f'{name}.npy'


def flip_bit(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob('*')) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize('name', ARRAYS)
def test_a_missing_array(map_path: Path, name: str) -> None:
    array_path(map_path, name).unlink()
    with pytest.raises(MapError, match=rf'{name}\.npy is missing: copy the whole map again'):
        SfmMap(map_path)


@pytest.mark.parametrize('name', ARRAYS)
def test_a_cut_array(map_path: Path, name: str) -> None:
    path = array_path(map_path, name)
    whole = path.read_bytes()
    for length in (0, 5, 60, 127, 128, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(MapError, match=rf'{name}\.npy is not the array it should be .*rebu'):
            SfmMap(map_path)


@pytest.mark.parametrize('name', ARRAYS)
def test_an_array_of_another_type_or_shape(map_path: Path, name: str) -> None:
    path = array_path(map_path, name)
    array = np.load(path)
    others = [array[:-1], array[None], np.zeros(array.shape, '<i2')]
    for other in others:
        np.save(path, other)
        with pytest.raises(MapError, match=rf'{name}\.npy holds .* its manifest says .*copy the'):
            SfmMap(map_path)


@pytest.mark.parametrize('name', ARRAYS)
def test_a_flipped_bit_is_found_when_it_is_read(map_path: Path, name: str) -> None:
    """Opening does not read the arrays; the first use of the damaged block does."""
    flip_bit(array_path(map_path, name))
    sfm_map = SfmMap(map_path)
    damaged = pytest.raises(MapError, match=rf'{name}\.npy is damaged in block \d .*--verify')
    with damaged:
        everything(sfm_map)
    with damaged:
        sfm_map.verify()
    with damaged:
        sfm_map.verify()


def everything(sfm_map: SfmMap) -> list[Any]:
    ids, images = np.arange(sfm_map.num_points), range(sfm_map.num_images)
    return [
        sfm_map.points(ids),
        sfm_map.stability(ids),
        sfm_map.descriptors(ids)[:],
        sfm_map.image_poses(),
        [sfm_map.cam_from_map(image) for image in images],
        [sfm_map.camera(image) for image in images],
        [sfm_map.image_name(image) for image in images],
        [sfm_map.observations(image) for image in images],
    ]


def test_only_the_damaged_block_is_refused(map_path: Path) -> None:
    """Rows of 128 bytes: 8192 of them in a block."""
    before = SfmMap(map_path).descriptors(np.arange(20_000))[:]
    flip_bit(array_path(map_path, 'point_descriptors'), 128 + MIB + 5)
    sfm_map = SfmMap(map_path)
    fine = np.r_[0:8192, 16384:20_000]
    assert_array_equal(sfm_map.descriptors(fine)[:], before[fine])
    for damaged in ([8192], [16383], [3, 10_000, 5]):
        with pytest.raises(MapError, match=r'point_descriptors\.npy is damaged in block 1'):
            sfm_map.descriptors(np.array(damaged))[:]
    assert_array_equal(sfm_map.descriptors(fine)[:], before[fine])
    with pytest.raises(MapError, match=r'point_descriptors\.npy is damaged in block 1'):
        sfm_map.verify()


def test_rows_across_two_blocks(tmp_path: Path) -> None:
    """Rows of 3 MB: each lies in several blocks, and damage in any of them counts."""
    rows = np.random.default_rng(0).integers(0, 256, (4, 3_000_000)).astype(np.uint8)
    path = tmp_path / 'rows.npy'
    entry = write_array(path, rows)
    assert len(entry['blocks']) == 12
    whole = CheckedArray(path, entry)
    assert len(whole) == 4
    assert_array_equal(whole[1:3], rows[1:3])
    assert_array_equal(whole.take(np.array([3, 0])), rows[[3, 0]])
    assert whole[2:2].shape == (0, 3_000_000)
    flip_bit(path, 128 + 2_999_999)
    damaged = pytest.raises(MapError, match='is damaged in block 2')
    with damaged:
        CheckedArray(path, entry)[0:1]
    with damaged:
        CheckedArray(path, entry).take(np.array([0]))
    with damaged:
        CheckedArray(path, entry)[:]
    assert_array_equal(CheckedArray(path, entry)[2:], rows[2:])


def test_every_bit_of_the_head_of_an_array(tmp_path: Path) -> None:
    """Whatever is flipped there: the same rows, or a sentence."""
    path = tmp_path / 'head.npy'
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype('<f4')
    entry = write_array(path, rows)
    good = path.read_bytes()
    refused = 0
    for bit in range(128 * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert_array_equal(CheckedArray(path, entry)[:], rows)
        except MapError as error:
            refused += 1
            assert str(error).startswith(f'{path} ') and '\n' not in str(error)
    assert refused > 1000


def test_what_numpy_writes_and_we_write_is_the_same(tmp_path: Path) -> None:
    for number, array in enumerate(
        [np.arange(7, dtype='<i8'), np.array([b'a', b'bcd']), np.zeros((0, 3)), np.eye(4, 6).T]
    ):
        path = tmp_path / f'{number}.npy'
        entry = write_array(path, array)
        again = np.load(path)
        assert_array_equal(again, array)
        assert (again.dtype.str, list(again.shape)) == (entry['dtype'], entry['shape'])
        hashed = [hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()]
        assert entry['blocks'] == (hashed if array.size else [])


def test_pickles_and_archives_are_refused(map_path: Path) -> None:
    """An array file that would run code when it is unpickled."""
    path = array_path(map_path, 'points_xyz')
    refused = pytest.raises(MapError, match=r'points_xyz\.npy is not the array it should be')
    np.save(path, np.array([Trap()], object), allow_pickle=True)
    with refused:
        SfmMap(map_path)
    with path.open('wb') as file:
        np.savez(file, points_xyz=np.zeros((20_000, 3), '<f4'))
    with refused:
        SfmMap(map_path)
    assert not Trap.sprung


class Trap:
    sprung = False

    def __reduce__(self) -> Any:
        return setattr, (Trap, 'sprung', True)


def test_an_array_that_cannot_be_read(map_path: Path) -> None:
    path = array_path(map_path, 'image_names')
    path.unlink()
    path.mkdir()
    with pytest.raises(MapError, match=r'image_names\.npy cannot be read: Is a directory'):
        SfmMap(map_path)


# ---------------------------------------------------------------- damaged manifests


def resigned(map_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a manifest and give it the checksum that belongs to it."""
    path = map_path / 'manifest.json'
    data = json.loads(path.read_text())
    del data['checksum']
    change(data)
    text = json.dumps(data, sort_keys=True).encode()
    data['checksum'] = hashlib.blake2b(text, digest_size=16).hexdigest()
    path.write_text(json.dumps(data))


def test_every_cut_of_a_manifest(map_path: Path) -> None:
    path = map_path / 'manifest.json'
    whole = path.read_text()
    for length in range(0, len(whole), len(whole) // 150):
        path.write_text(whole[:length])
        with pytest.raises(MapError, match=r'manifest\.json is not JSON .*: rebuild the map'):
            SfmMap(map_path)


@pytest.mark.parametrize(
    ('old', 'new'),
    [('"metric"', '"unknown"'), ('"translation_m": 0.0', '"translation_m": 0.5'),
     ('"frame_id": "map"', '"frame_id": "odom"'), ('"checksum": "', '"checksum": "0')],
)  # fmt: skip
def test_an_edited_manifest(map_path: Path, old: str, new: str) -> None:
    path = map_path / 'manifest.json'
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(MapError, match=r'manifest\.json was changed or damaged \(checksum'):
        SfmMap(map_path)


def test_manifests_of_other_kinds(map_path: Path) -> None:
    path = map_path / 'manifest.json'
    for data, match in [
        (b'{"format": "feat_ros map 99"}', r"has format 'feat_ros map 99', this version reads 'f"),
        (b'{}', r'has format None, this version reads'),
        (b'[1]', r'has format \[1\], this version reads'),
        (b'\xff\xfe', r'is not JSON .*: rebuild'),
    ]:
        path.write_bytes(data)
        with pytest.raises(MapError, match=match):
            SfmMap(map_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(MapError, match='cannot be read: Is a directory'):
        SfmMap(map_path)


SEGMENT_CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda s: s['arrays'].pop('points_xyz'), r"is wrong about array 'points_xyz': rebuild it"),
    (lambda s: s['arrays'].update(extra={}), r"is wrong about array 'extra'"),
    (lambda s: s.pop('num_points'), r'num_points is 0: it must be at least 1'),
    (lambda s: s.update(num_points=19_999), r'points_xyz\.npy as <f4 \[20000, 3\], it should be'),
    (lambda s: s.update(num_images=5), r'image_names\.npy as .* it should be \|S \[5\]'),
    (lambda s: s['arrays']['points_xyz'].update(dtype='<f8'), r'as <f8 .*, it should be <f4'),
    (lambda s: s['arrays']['points_xyz'].pop('shape'), r"is damaged \('shape'\): rebuild it"),
    (lambda s: s['arrays']['points_xyz'].pop('blocks'), r"is damaged \('blocks'\)"),
    (lambda s: s['arrays']['points_xyz'].update(blocks=[]), r'too few block hashes for .*xyz'),
    (lambda s: s['arrays'].update(points_xyz=3), r'is damaged \('),
    (lambda s: s.update(cameras=['PINHOLE 1 2 3']), r'camera model PINHOLE has 1 parameters'),
    (lambda s: s.update(colour=1), r"has no option 'colour'"),
    (lambda s: s.update(name='elsewhere'), r'elsewhere.*\.npy is missing'),
]


@pytest.mark.parametrize(('change', 'match'), SEGMENT_CHANGES)
def test_a_manifest_that_is_wrong_about_its_segment(
    map_path: Path, change: Callable[[dict[str, Any]], Any], match: str
) -> None:
    resigned(map_path, lambda data: change(data['segments'][0]))
    with pytest.raises(MapError, match=match):
        SfmMap(map_path)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda d: d.update(scale='feet'), r"scale is 'feet': choose one of metric, unknown; reb"),
        (lambda d: d.update(colour=1), r"Manifest has no option 'colour'"),
        (lambda d: d.update(segments=3), r'segments is 3: it must be list'),
        (lambda d: d.update(segments=[3]), r'SegmentInfo is 3: it must be a table of options'),
        (lambda d: d['extractor'].pop('descriptor_dim'), r'descriptor_dim is 0: it must be at le'),
    ],
)
def test_a_manifest_with_impossible_values(
    map_path: Path, change: Callable[[dict[str, Any]], Any], match: str
) -> None:
    resigned(map_path, change)
    with pytest.raises(MapError, match=match):
        SfmMap(map_path)


def test_places_without_a_map(map_path: Path, tmp_path: Path) -> None:
    build = 'build one with "feat_ros map build"'
    with pytest.raises(MapError, match=f'nowhere does not exist: {build}'):
        SfmMap(tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(MapError, match=rf'empty has no manifest\.json: {build}'):
        SfmMap(tmp_path / 'empty')
    with pytest.raises(MapError, match=rf'manifest\.json has no manifest\.json: {build}'):
        SfmMap(map_path / 'manifest.json')
    map_path.rename(partial_path(map_path))
    with pytest.raises(MapError, match=r'half-written \(map\.partial is there\): run the same'):
        SfmMap(map_path)


# ---------------------------------------------------------------- disks


@contextmanager
def as_nobody() -> Iterator[None]:
    """Obey the permissions of files, which root need not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_map(pristine: Path) -> Iterator[Path]:
    """A map in a folder that everyone may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(shutil.copytree(pristine, Path(folder) / 'map'))


def test_files_that_may_not_be_read(public_map: Path) -> None:
    array_path(public_map, 'points_xyz').chmod(0)
    with as_nobody(), pytest.raises(MapError, match=r'xyz\.npy cannot be read: Permission denied'):
        SfmMap(public_map)
    (public_map / 'manifest.json').chmod(0)
    with as_nobody(), pytest.raises(MapError, match=r'cannot be read: Permission denied'):
        SfmMap(public_map)


def test_a_folder_that_may_not_be_written(public_map: Path) -> None:
    public_map.chmod(0o555)
    public_map.parent.chmod(0o555)
    before, manifest = content(public_map), read_manifest(public_map)
    refused = pytest.raises(MapError, match=r'cannot be written \(Permission denied\): free some')
    with as_nobody():
        with refused:
            write_segment(public_map / 'segment-0001', random_segment(1))
        with refused:
            write_manifest(public_map, manifest)
        with refused:
            publish(public_map.with_name('new'), public_map)
    public_map.parent.chmod(0o755)
    assert content(public_map) == before
    SfmMap(public_map).verify()


@pytest.mark.parametrize('limit', [0, 100, 4096, 5000, 65536])
def test_no_room_for_an_array(map_path: Path, limit: int) -> None:
    before = content(map_path)
    with full_disk(limit), pytest.raises(MapError, match=r'cannot be written \(File too large\)'):
        write_segment(map_path.parent / 'segment-0001', random_segment(1, 20_000))
    assert content(map_path) == before
    SfmMap(map_path).verify()


@pytest.mark.parametrize('missing', [1, 8, 100, 3900, 4096])
def test_no_room_for_the_last_bytes_of_an_array(tmp_path: Path, missing: int) -> None:
    """The part of an array that stays in a buffer until the file is closed."""
    array = np.arange(2000, dtype='<f4')
    write_array(tmp_path / 'a.npy', array)
    size = (tmp_path / 'a.npy').stat().st_size
    with full_disk(size):
        write_array(tmp_path / 'fits.npy', array)
    with full_disk(size - missing), pytest.raises(OSError, match='File too large'):
        write_array(tmp_path / 'b.npy', array)


def test_no_space_for_the_manifest(map_path: Path) -> None:
    """/dev/full is a disk without any space."""
    before, manifest = content(map_path), read_manifest(map_path)
    (map_path / 'manifest.json.tmp').symlink_to('/dev/full')
    with pytest.raises(MapError, match=r'cannot be written \(No space left on device\): free som'):
        write_manifest(map_path, replace(manifest, frame_id='odom'))
    (map_path / 'manifest.json.tmp').unlink()
    assert content(map_path) == before
    SfmMap(map_path).verify()


def test_a_text_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / 'text.txt'
    write_text(path, 'earlier')
    with full_disk(100), pytest.raises(MapError, match='File too large'):
        write_text(path, 'x' * 1000)
    assert path.read_text() == 'earlier'
    write_text(path, 'später\n')
    assert path.read_bytes() == b'sp\xc3\xa4ter\n'
    with pytest.raises(MapError, match=r'cannot be written \(No such file or directory\)'):
        write_text(tmp_path / 'nowhere' / 'text.txt', 'x')


def test_publish_replaces_a_map_in_the_end(map_path: Path, tmp_path: Path) -> None:
    segment = random_segment(9)
    partial = write_map(partial_path(map_path), [segment])
    left_over = tmp_path / 'map.old'
    (left_over / 'deeper').mkdir(parents=True)
    publish(partial, map_path)
    assert_holds(SfmMap(map_path), [segment])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map']


def test_publish_puts_the_old_map_back_where_it_fails(map_path: Path, tmp_path: Path) -> None:
    before = content(map_path)
    with pytest.raises(MapError, match=r'map cannot be written .*there before is untouched'):
        publish(tmp_path / 'nothing', map_path)
    assert content(map_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map']


# ---------------------------------------------------------------- large maps

_MEASURE = """
import sys
import numpy as np
from feat_ros.sfm_map import SfmMap

def anonymous_kb():
    with open('/proc/self/smaps_rollup') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('Anonymous'))

before = anonymous_kb()
sfm_map = SfmMap(sys.argv[1])
opened = anonymous_kb()
ids = np.arange(0, sfm_map.num_points, 1000)
sfm_map.points(ids), sfm_map.descriptors(ids)[:]
print(sfm_map.num_points, opened - before, anonymous_kb() - before)
"""


@pytest.mark.skipif(
    not Path('/proc/self/smaps_rollup').exists(), reason='the kernel has no smaps_rollup'
)
def test_opening_a_million_points_takes_no_memory(tmp_path: Path) -> None:
    """60 MB on the disk; not even reading a point of every block takes them."""
    base = random_segment(1, 1000, 2)
    repeated: dict[str, Any] = {
        name: np.tile(getattr(base, name), (1000,) + (1,) * (getattr(base, name).ndim - 1))
        for name in ('points_xyz', 'point_covariance', 'point_descriptors', 'point_stability')
    }
    path = write_map(tmp_path / 'map', [replace(base, **repeated)])
    assert sum(file.stat().st_size for file in path.rglob('*.npy')) > 55e6
    done = subprocess.run(
        [sys.executable, '-c', _MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    num_points, opened_kb, read_kb = map(int, done.stdout.split())
    assert num_points == 1_000_000
    assert opened_kb < 5_000
    assert read_kb < 20_000

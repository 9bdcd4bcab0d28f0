# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Builds by several processes: the same bytes, and what happens to workers that die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import hashlib
import os
from pathlib import Path
from typing import Any

from conftest import Scene
import pytest

pytest.importorskip('ray', reason='Ray is not installed')
pytest.importorskip('pycolmap')

from feat_ros.cli import main
from feat_ros.errors import ConfigError, DataError, MapError
from feat_ros.extractors import create_extractor
from feat_ros.map_builder import build_map
from feat_ros.sfm_map import partial_path, SfmMap
from feat_ros.workers import Workers


@pytest.fixture(scope='module')
def workers() -> Iterator[Workers]:
    # The tasks below must be found by processes that are not pytest's.
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get('PYTHONPATH')])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join(paths))
        with Workers(2) as made:
            yield made


def hashes(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob('*')) if file.is_file()
    }  # fmt: skip


def build(scene: Scene, out: Path, **more: Any) -> SfmMap:
    extractor = create_extractor('sift', max_keypoints=600)
    return build_map(out, scene.folder, scene.images, extractor, **more)


def test_the_same_to_the_byte(
    scene: Scene, room_map: SfmMap, workers: Workers, tmp_path: Path
) -> None:
    assert hashes(build(scene, tmp_path / 'map', workers=workers).path) == hashes(room_map.path)


def test_a_stopped_build_goes_on_with_workers(
    scene: Scene, room_map: SfmMap, workers: Workers, tmp_path: Path
) -> None:
    """Begun by this process, ended by others: what was extracted is not extracted again."""

    def stop(items: list[Any], what: str) -> Iterator[Any]:
        for number, item in enumerate(items):
            if what == 'match' and number == 3:
                raise KeyboardInterrupt
            yield item

    out = tmp_path / 'map'
    with pytest.raises(KeyboardInterrupt):
        build(scene, out, progress=stop)
    kept = {path: path.stat().st_mtime_ns for path in partial_path(out).glob('features/*.npz')}
    assert len(kept) == 10
    again: list[dict[Path, int]] = []

    def look(items: list[Any], what: str) -> list[Any]:
        if what == 'match':
            again.append({path: path.stat().st_mtime_ns for path in kept})
        return items

    assert hashes(build(scene, out, progress=look, workers=workers).path) == hashes(room_map.path)
    assert again == [kept]


# ---------------------------------------------------------------- tasks


def squares(marker: str) -> Callable[[int], tuple[int, int]]:
    """Make squares; the process dies once over 5, leaving a marker."""

    def square(number: int) -> tuple[int, int]:
        if number == 5 and marker and not Path(marker).exists():
            Path(marker).touch()
            os._exit(1)
        return number**2, os.getpid()

    return square


def test_results_come_in_order_from_several_processes(workers: Workers) -> None:
    results = list(workers.map(squares, ('',), range(40)))
    assert [square for square, _ in results] == [n**2 for n in range(40)]
    assert os.getpid() not in {process for _, process in results}


def test_a_worker_that_dies_has_its_task_done_again(workers: Workers, tmp_path: Path) -> None:
    marker = tmp_path / 'died'
    results = list(workers.map(squares, (str(marker),), range(10)))
    assert marker.exists()
    assert [square for square, _ in results] == [n**2 for n in range(10)]


def deadly() -> Callable[[int], int]:
    return lambda number: os._exit(1)


def test_a_task_that_always_kills_is_named(workers: Workers) -> None:
    with pytest.raises(
        MapError, match=r'a worker died 4 times over 7 .*fewer --workers; the same'
    ):
        list(workers.map(deadly, (), [7]))


def refusing(message: str) -> Callable[[int], int]:
    def refuse(number: int) -> int:
        raise DataError(f'{message} {number}')

    return refuse


def test_the_error_of_a_task_is_its_own(workers: Workers) -> None:
    with pytest.raises(DataError, match=r'^no such picture 3$'):
        list(workers.map(refusing, ('no such picture',), [3, 4]))


def test_no_cluster(workers: Workers) -> None:
    with pytest.raises(ConfigError, match='there is no Ray cluster at'):
        Workers(2, 'nowhere:1')


def test_commands_refuse(capsys: pytest.CaptureFixture[str], scene: Scene, tmp_path: Path) -> None:
    (tmp_path / 'cameras.txt').write_text('* PINHOLE 320 240 260 260 160 120\n')
    code = main([
        'map', 'build', '--out', str(tmp_path / 'map'), '--images', str(scene.folder),
        '--cameras', str(tmp_path / 'cameras.txt'), '--workers', '0',
    ])  # fmt: skip
    assert code == 1
    assert '--workers is 0: at least 1 is needed' in capsys.readouterr().err

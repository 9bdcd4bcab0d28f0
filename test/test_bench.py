# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The benches measure what they say: true scenes, fair turns, the same results, honest memory."""

from __future__ import annotations

import argparse
from functools import partial
import json
from pathlib import Path
import sys
from typing import Any

from conftest import random_segment, Scene, write_map
import numpy as np
import pytest

from feat_ros import bench
from feat_ros.bench import (
    bench_localize,
    bench_map_open,
    bench_match,
    bench_pnp,
    BF,
    BF_PER_IMAGE,
    CDIST,
    compare_reports,
    format_report,
    LOAD,
    match_curve,
    missing_packages,
    OURS,
    PER_IMAGE,
    plot_match_curve,
    pnp_scene,
    synthetic_scene,
    table_rows,
    take_turns,
)
from feat_ros.cli import bench as command
from feat_ros.errors import DataError, NetworkError
from feat_ros.recall_bench import bench_recall
from feat_ros.retrieval_bench import (
    ALL_WORDS,
    bench_retrieval,
    FEWER,
    ONE_BY_ONE,
)
from feat_ros.scaling_bench import bench_scaling, plot_scaling
from feat_ros.sfm_map import SfmMap
from feat_ros.types import JsonDict


def _rows(report: JsonDict, title: str) -> dict[str, JsonDict]:
    return {row['name']: row for row in report['tables'][title]}


def test_contenders_take_turns_after_one_run_each_to_warm_up() -> None:
    calls = []

    def note(name: str, item: int) -> str:
        calls.append((name, item))
        return name * item

    runs = take_turns({'a': lambda i: note('a', i), 'b': lambda i: note('b', i)}, [2, 3])
    assert calls == [('a', 2), ('b', 2), ('a', 2), ('b', 2), ('a', 3), ('b', 3)]
    assert [runs[name].results for name in 'ab'] == [['aa', 'aaa'], ['bb', 'bbb']]
    assert all(len(taken.ms) == 2 and min(taken.ms) > 0 for taken in runs.values())


def test_the_scene_is_what_its_map_says(tmp_path: Path) -> None:
    scene = synthetic_scene(tmp_path, num_queries=2, keypoints=600, num_points=900)
    assert scene.map.num_images == len(scene.images) == 10
    similar, strange = [], []
    for number, image in enumerate(scene.images):
        known = image.points[image.points >= 0]
        observed, pixels = scene.map.observations(number)
        np.testing.assert_array_equal(observed, known)
        in_cam = scene.map.cam_from_map(number).apply(scene.map.points(known)[0])
        error = np.linalg.norm(scene.map.camera(number).project(in_cam) - pixels, axis=1)
        # A pixel of noise, and the points' centimetres from 5 to 15 m away.
        assert 0.5 < np.median(error) < 2.5
        assert 0.3 < len(known) / len(image.points) < 0.55
        np.testing.assert_allclose(np.linalg.norm(image.descriptors, axis=1), 1, atol=1e-5)
        assert image.descriptors.min() >= 0
        of_points = scene.map.descriptors(known)[:]
        mine = image.descriptors[image.points >= 0]
        similar += np.sum(mine * of_points, axis=1).tolist()
        strange += np.sum(mine * np.roll(of_points, 1, axis=0), axis=1).tolist()
    assert 0.93 < np.median(similar) < 0.99
    assert 0.55 < np.median(strange) < 0.75


@pytest.mark.parametrize('ratio', [0.9, 0.2])
def test_pnp_scenes_have_the_noise_and_the_inliers_they_claim(ratio: float) -> None:
    truth, matches = pnp_scene(np.random.default_rng(3), 4000, ratio)
    in_cam = truth.apply(matches.points)
    pixels, slope = matches.camera.project_with_jacobian(in_cam)
    slope = slope @ truth.rotation
    covariance = slope @ matches.point_covariance @ np.swapaxes(slope, 1, 2) + np.eye(2)
    error = (pixels - matches.pixels)[:, :, None]
    squared = (np.swapaxes(error, 1, 2) @ np.linalg.solve(covariance, error))[:, 0, 0]
    inliers = squared < 20
    assert inliers.mean() == pytest.approx(ratio, abs=0.03)
    # Two degrees of freedom each.
    assert squared[inliers].mean() == pytest.approx(2, abs=0.2)


def test_localize_finds_the_easy_queries_and_compares_recall() -> None:
    report = bench_localize(num_queries=4, keypoints=500, num_points=700)
    whole = _rows(report, 'match and pnp')
    assert whole[OURS]['recall_%'] >= 50
    assert whole[OURS]['times_ours'] == 1
    for name, packages in ((PER_IMAGE, ['torch', 'pycolmap']), (BF_PER_IMAGE, ['pycolmap'])):
        missing = missing_packages(*packages)
        if missing:
            assert whole[name] == {'name': name, 'missing': missing}
        else:
            assert whole[name]['recall_%'] >= 25
            assert f'points of recall lost to "{name}"' in str(report['checks'])
    for name, row in whole.items():
        if 'missing' not in row:
            parts = [_rows(report, stage)[name]['min_ms'] for stage in ('match', 'pnp')]
            assert row['max_ms'] >= sum(parts)
    json.dumps(report, allow_nan=False)


def test_every_matcher_finds_the_same_pairs() -> None:
    report = bench_match(repeat=1, num_query=300, num_reference=1500)
    rows = _rows(report, 'mutual nearest neighbours, 300 x 1500 x 128')
    assert rows[OURS]['pairs'] == rows[BF]['pairs'] > 80
    same = [check for check in report['checks'] if check['wanted'] == 'none']
    assert all(check['ok'] for check in same)
    missing = missing_packages('torch')
    assert len(same) == (1 if missing else 2)
    assert rows[CDIST].get('missing') == missing
    memory = [check for check in report['checks'] if check['what'].startswith('peak memory')]
    # The products of a block at least, whole matrices never: 300 x 15,000 float32 are 18 MB.
    assert all(0.3 < check['value'] < 5 for check in memory)


def test_solvers_of_pnp_agree_with_the_truth() -> None:
    report = bench_pnp(repeat=3, sizes=(150,), inlier_ratios=(0.8,))
    rows = _rows(report, '150 matches, 80 % inliers')
    assert set(rows) == {OURS, 'pycolmap', 'poselib'}
    for row in rows.values():
        if 'missing' not in row:
            assert row['success_%'] == 100
            assert 0.1 < row['error_mm'] < 60
    assert 0.5 < rows[OURS]['nees'] < 25


@pytest.mark.skipif(
    not Path('/proc/self/smaps_rollup').exists(), reason='memory is read from /proc: Linux'
)
def test_opening_a_map_leaves_its_arrays_on_the_disk() -> None:
    report = bench_map_open(repeat=1, num_points=50_000)
    ((title, _),) = report['tables'].items()
    rows = _rows(report, title)
    # 204 bytes a point and three observations of it.
    assert rows[LOAD]['anonymous_MB'] > 8
    assert rows[OURS]['anonymous_MB'] < 1


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    curve = match_curve(sizes=(300, 600), num_query=100, repeat=1)
    assert curve['sizes'] == [300, 600]
    assert len(curve[OURS]) == 2
    plot_match_curve(tmp_path / 'curve.png', curve)
    assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(DataError, match=r'nowhere/curve\.png cannot be written'):
        plot_match_curve(tmp_path / 'nowhere' / 'curve.png', curve)


def test_retrieval_finds_what_the_equations_say() -> None:
    report = bench_retrieval(repeat=2, num_words=5000, num_images=40, words_per_image=30)
    assignment, narrow, wide = report['tables'].values()
    recall = {row['name']: row['recall@1'] for row in assignment}
    assert recall[ALL_WORDS] == 1.0
    assert recall[OURS] > recall[FEWER] > 0.7
    assert {row['name'] for row in narrow} == {OURS, ONE_BY_ONE} == {row['name'] for row in wide}
    assert report['checks'][-1]['ok'] and report['checks'][-1]['value'] <= 1e-12


def test_images_of_a_map_find_others_that_see_the_same(
    scene: Scene, room_map: SfmMap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = _parse('retrieval', '--map', str(room_map.path), '--images', str(scene.folder))
    figures = args.run(args)
    assert figures['num_queries'] == figures['num_images'] == 10
    (row,) = figures['tables']['recall of an image that sees the same, by light']
    assert row['name'] == 'ASMK of sift'
    assert row['day @1'] >= 0.9 and row['day @10'] == 1.0
    assert 0 <= row['0.5 % @1'] <= row['0.5 % @5'] <= row['0.5 % @10'] <= 1
    assert 'day @1' in capsys.readouterr().out
    write_map(tmp_path / 'none', [random_segment(0, num_images=2)])
    with pytest.raises(DataError, match='has no retrieval index'):
        bench_recall([(SfmMap(tmp_path / 'none'), scene.folder)], {}, lambda items, _: items)
    with pytest.raises(DataError, match='give --map and --images together'):
        command.run_retrieval(_parse('retrieval', '--map', 'x'))


def test_retrieval_of_many_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / 'sizes.png'
    args = _parse(
        'retrieval', '--sizes', '30', '300', '--repeat', '2', '--plot', str(plot)
    )  # fmt: skip
    report = args.run(args)
    (rows,) = report['tables'].values()
    assert [row['name'] for row in rows] == ['30', '300']
    assert all(row['bytes'] > 17 and row['open ms'] > 0 for row in rows)
    assert plot.stat().st_size > 5000
    assert '5x cpu ms' in capsys.readouterr().out


def test_retrieval_by_how_beside_the_map(scene: Scene, room_map: SfmMap, tmp_path: Path) -> None:
    """Untrained: the numbers are whatever they are, but both ways to search are there."""
    torch = pytest.importorskip('torch', reason='torch is not installed')
    from feat_ros.models.how import HowSfd2
    from feat_ros.models.weights import save_weights, weights_of

    torch.manual_seed(0)
    save_weights(tmp_path / 'how.npz', weights_of(HowSfd2().eval(), 'how_sfd2'))
    report = bench_recall(
        [(room_map, scene.folder)], {'how_sfd2': str(tmp_path / 'how.npz')}, lambda items, _: items
    )
    (rows,) = report['tables'].values()
    assert [row['name'] for row in rows] == [
        'ASMK of sift', 'ASMK of how_sfd2', 'SPoC of how_sfd2',
    ]  # fmt: skip
    assert all(row['day @10'] > 0.5 for row in rows)


def test_a_missing_package_is_a_line_of_the_table() -> None:
    why = missing_packages('numpy', 'no_such_package')
    assert why == 'not installed: pip install no_such_package'
    assert missing_packages('numpy') is None
    report = {
        'threads': {'cores': 2},
        'tables': {'speed': [{'name': OURS, 'median_ms': 12.5}, {'name': 'x', 'missing': why}]},
        'notes': ['a note'],
        'checks': [bench.check('times', 2.5, 'at least 3', False)],
    }
    assert format_report(report).splitlines() == [
        'threads: cores 2',
        '',
        'speed',
        '             median_ms',
        'feat_ros          12.5',
        'x         not installed: pip install no_such_package',
        '',
        'a note',
        'NOT MET  times: 2.5 (at least 3)',
    ]


def test_all_benches_make_one_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small ones of the real benches; what needs a package or a GPU that is absent is said."""
    small = {
        'bench_localize': partial(bench_localize, num_queries=2, keypoints=300, num_points=500),
        'bench_match': partial(bench_match, 1, 100, 400),
        'bench_pnp': partial(bench_pnp, 1, (100,), (0.9,)),
        'bench_map_open': partial(bench_map_open, 1, 20_000),
    }
    for name, run in small.items():
        monkeypatch.setattr(bench, name, run)
    for module in ('extraction_bench', 'retrieval_bench', 'scaling_bench', 'frame_bench'):
        monkeypatch.setitem(sys.modules, f'feat_ros.{module}', None)
    args = _parse('all')
    report = args.run(args)
    assert {title.split(':')[0] for title in report['tables']} == {
        'localize', 'match', 'pnp', 'map-open',
    }  # fmt: skip
    absent = [note.split()[0] for note in report['notes'] if 'is left out' in note]
    assert absent == ['extract', 'cuda', 'retrieval', 'scaling', 'frame']
    assert 'cuda is left out' in capsys.readouterr().out
    assert 'map-open: milliseconds to open' in {each['what'] for each in report['checks']}


def test_a_bench_that_fails_does_not_lose_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> JsonDict:
        raise error

    def stand_in(name: str, run: Any) -> None:
        module, function = name.split('.')
        monkeypatch.setitem(
            sys.modules, f'feat_ros.{module}', argparse.Namespace(**{function: run})
        )  # fmt: skip

    report: JsonDict = {'threads': {}, 'tables': {'t': [{'name': OURS, 'x': 1.0}]}, 'checks': []}
    extraction = argparse.Namespace(
        bench_extract=lambda: report,
        bench_cuda=lambda: fail(RuntimeError('CUDA out of memory\nlong')),
    )
    monkeypatch.setitem(sys.modules, 'feat_ros.extraction_bench', extraction)
    stand_in('retrieval_bench.bench_retrieval', lambda: fail(NetworkError('no weights')))
    stand_in('scaling_bench.bench_scaling', lambda: fail(DataError('no disk')))
    stand_in('frame_bench.bench_frame', lambda: report)
    for name in ('localize', 'match', 'pnp', 'map_open'):
        monkeypatch.setattr(bench, f'bench_{name}', lambda: report)
    merged = _parse('all').run(_parse('all'))
    assert merged['notes'] == [
        'cuda is left out: CUDA out of memory',
        'retrieval is left out: no weights',
        'scaling is left out: no disk',
    ]
    assert list(merged['tables']) == [
        'extract: t', 'localize: t', 'match: t', 'pnp: t', 'map-open: t', 'frame: t',
    ]  # fmt: skip


def test_all_numbers_that_two_reports_share_are_compared() -> None:
    """Curves have no median, and the comparison of extractors no ratio to ours."""
    rows = [
        {'name': 'a', '32': 2.0, '64': 3, 'missing': 'no'},
        {'name': 'b', 'median_ms': 5.0, 'min_ms': 4.0, 'keypoints': 7},
    ]
    before = [
        {'name': 'a', '32': 1.0, '64': None},
        {'name': 'b', 'median_ms': 6.0, 'keypoints': 8, 'min_ms': 5.0},
    ]
    lines = compare_reports({'tables': {'t': rows}}, {'tables': {'t': before}})
    assert list(lines)[1:] == [
        't',
        f'  {"a, 32":<46}{1:12}{2:12}',
        f'  {"b":<46}{6:12}{5:12}',
        f'  {"b, keypoints":<46}{8:12}{7:12}',
    ]


def test_two_reports_are_compared_where_both_have_a_row() -> None:
    def report(ours: float, theirs: float) -> dict[str, Any]:
        rows = table_rows({OURS: [ours], 'x': [theirs]}, {'y': 'not installed'}, {})
        return {'tables': {'speed': rows}}

    now = report(12.0, 24.0)
    now['tables']['new'] = now['tables']['speed']
    lines = list(compare_reports(now, report(10.0, 15.0)))
    assert lines[1:] == [
        'speed',
        f'  {OURS:<46}{10:12}{12:12}{1:14}{1:14}',
        f'  {"x":<46}{15:12}{24:12}{1.5:14}{2:14}',
        'new: not in the earlier report',
    ]


def test_parts_grow_with_what_they_are_given(tmp_path: Path) -> None:
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    report = bench_scaling(1, (32, 64), (100, 200), (5, 10), num_words=600)
    sizes = {grows: curve['sizes'] for grows, curve in report['curves'].items()}
    assert list(sizes.values()) == [[32, 64], [100, 200], [5, 10]]
    for curve in report['curves'].values():
        assert all(len(ms) == 2 and min(ms) > 0 for ms in curve.values())
    assert [list(rows[0]) for rows in report['tables'].values()] == [
        ['name', *map(str, each)] for each in sizes.values()
    ]
    plot_scaling(tmp_path / 'scaling.png', report['curves'])
    assert (tmp_path / 'scaling.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(DataError, match='cannot be written'):
        plot_scaling(tmp_path / 'nowhere' / 'scaling.png', report['curves'])


def _parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(['bench', *words])


def test_the_command_shows_what_it_returns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = _parse('pnp', '--repeat', '1', '--json', str(tmp_path / 'pnp.json'))
    report = args.run(args)
    assert len(report['tables']) == 12
    assert capsys.readouterr().out == format_report(report) + '\n'
    (tmp_path / 'pnp.json').write_text(json.dumps(report, allow_nan=False))
    monkeypatch.setattr(bench, 'bench_pnp', lambda _: report)
    args.compare = tmp_path / 'pnp.json'
    args.run(args)
    text = capsys.readouterr().out
    assert 'now, times' in text
    assert text.count('\n200 matches, 50 % inliers\n') == 2
    for content in ('', '{}', '{"tables": {"a": [3]}}'):
        args.compare.write_text(content)
        with pytest.raises(DataError, match='is not a report that "feat_ros bench --json" wrote'):
            args.run(args)


def test_commands_and_their_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ('localize', 'match', 'pnp', 'retrieval', 'map-open'):
        assert _parse(name).run.args == (getattr(command, f'run_{name.replace("-", "_")}'),)
    with pytest.raises(SystemExit):
        _parse('match', '--repeat', '0')
    assert "'0' is not a number from 1" in capsys.readouterr().err
    args = _parse('match', '--plot', str(tmp_path / 'nowhere' / 'x.png'))
    with pytest.raises(DataError, match='does not exist'):
        args.run(args)

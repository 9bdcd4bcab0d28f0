# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Retrieval against a literal reading of the equations, hand-made cases and photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import importlib.util
import math
from pathlib import Path
from typing import Any

from conftest import random_segment, write_map
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from feat_ros.errors import ConfigError, MapError
from feat_ros.map_index import open_index, write_index
from feat_ros.retrieval import asmk, inverted_file
from feat_ros.retrieval.asmk import AsmkConfig, AsmkIndex, default_num_words, train_codebook
from feat_ros.retrieval.inverted_file import hamming, InvertedFile, whole
from feat_ros.retrieval.words import nearest_words, VisualWords
from feat_ros.sfm_map import SfmMap
from feat_ros.types import Float32

DATA = Path(__file__).parents[2] / 'shared' / 'data'

Rows = list[list[float]]
Words = dict[int, list[int]]
Photo = tuple[str, int, Float32]


# ---------------------------------------------------------------- the equations, word for word


def nearest(x: list[float], codebook: Rows, count: int) -> list[int]:
    distance = [sum((a - b) ** 2 for a, b in zip(x, c, strict=True)) for c in codebook]
    return sorted(range(len(codebook)), key=lambda w: (distance[w], w))[:count]


def aggregated(image: Rows, codebook: Rows, assignments: int) -> Words:
    """B(X_c) for every word c of an image."""
    out = {}
    for c in range(len(codebook)):
        members = [x for x in image if c in nearest(x, codebook, assignments)]
        if members:
            residual = [
                sum(x[d] - codebook[c][d] for x in members) for d in range(len(members[0]))
            ]
            out[c] = [1 if value > 0 else -1 for value in residual]
    return out


def kernel(a: list[int], b: list[int], alpha: float, tau: float) -> float:
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / len(a)
    return float(cosine**alpha) if cosine >= tau else 0.0


def similarity(x: Words, y: Words, alpha: float, tau: float) -> float:
    if not x or not y:
        return 0.0
    common = sorted(set(x) & set(y))
    return sum(kernel(x[c], y[c], alpha, tau) for c in common) / math.sqrt(len(x) * len(y))


def small_integers(rng: np.random.Generator, rows: int, dim: int) -> Float32:
    """Descriptors whose sums and distances are exact in float32, with many equal distances."""
    return rng.integers(-2, 3, (rows, dim)).astype(np.float32)


@pytest.mark.parametrize('dim', [8, 16, 24, 64])
@pytest.mark.parametrize(
    'config',
    [
        AsmkConfig(),
        AsmkConfig(query_assignments=1),
        AsmkConfig(query_assignments=99, alpha=1.0, tau=0.2),
        AsmkConfig(query_assignments=2, alpha=2.5, tau=0.25),
    ],
)
def test_scores_are_those_of_the_equations(dim: int, config: AsmkConfig) -> None:
    rng = np.random.default_rng(dim)
    codebook = small_integers(rng, 9, dim)
    images = [small_integers(rng, n, dim) for n in (12, 1, 0, 25, 3, 8, 8)]
    index = AsmkIndex.build(codebook, images, config)
    database = [aggregated(image.tolist(), codebook.tolist(), 1) for image in images]
    for query in [small_integers(rng, 10, dim), small_integers(rng, 1, dim), images[3]]:
        words = aggregated(query.tolist(), codebook.tolist(), config.query_assignments)
        wanted = [similarity(words, image, config.alpha, config.tau) for image in database]
        ids, scores = index.search(query, len(images))
        assert sorted(ids) == [i for i, score in enumerate(wanted) if score > 0]
        np.testing.assert_allclose(scores, [wanted[i] for i in ids], rtol=1e-12)
        assert np.all(np.diff(scores) <= 0)


def test_inverted_file_holds_the_words_of_every_image() -> None:
    rng = np.random.default_rng(5)
    codebook = small_integers(rng, 9, 16)
    images = [small_integers(rng, n, 16) for n in (12, 0, 25)]
    (file,) = AsmkIndex.build(codebook, images).files
    wanted = [aggregated(image.tolist(), codebook.tolist(), 1) for image in images]
    assert file.words_per_image.tolist() == [len(words) for words in wanted]
    words, ids, signatures = file.entries()
    signs = np.unpackbits(signatures, axis=1).astype(int) * 2 - 1
    found = {
        (w, i): s for w, i, s in zip(words.tolist(), ids.tolist(), signs.tolist(), strict=True)
    }
    assert found == {(w, i): s for i, image in enumerate(wanted) for w, s in image.items()}
    assert list(zip(words, ids, strict=True)) == sorted(found)


@pytest.mark.parametrize('num_images', [1, 255, 256, 257, 5000])
def test_lists_of_images_come_back(num_images: int) -> None:
    """Whatever gaps are between them, each list is what it was, for all words and for some."""
    rng = np.random.default_rng(num_images)
    lists = [
        np.flatnonzero(rng.random(num_images) < share).tolist()
        for share in (0, 0.001, 0.02, 0.5, 1, 0, 1 / num_images)
    ]
    words = np.repeat(np.arange(7), [len(images) for images in lists])
    ids = np.array([image for images in lists for image in images], np.int64)
    mixed = rng.permutation(len(ids))
    signatures = rng.integers(256, size=(len(ids), 2), dtype=np.uint8)
    file = InvertedFile.of_entries(7, num_images, words[mixed], ids[mixed], signatures[mixed])
    assert_same(file.entries(), (words, ids, signatures))
    for some in ([3], [1, 4], [0, 5], []):
        seen = file.similarities(
            np.array(some, np.int64), np.zeros((len(some), 2), np.uint8), np.ones(17)
        )
        assert seen.tolist() == [sum(i in lists[w] for w in some) for i in range(num_images)]


def test_images_in_several_files_are_numbered_through(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    codebook = small_integers(rng, 9, 16)
    images = [small_integers(rng, n, 16) for n in (12, 0, 25, 7, 30)]
    one = AsmkIndex.build(codebook, images)
    monkeypatch.setattr(asmk, 'MOST_IMAGES', 2)
    several = AsmkIndex.build(codebook, images)
    assert [file.num_images for file in several.files] == [2, 2, 1]
    for query in images:
        assert_same(several.search(query, 5), one.search(query, 5))


def assert_same(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.tolist() == theirs.tolist()


def test_adding_and_removing_are_as_building_anew() -> None:
    """A hundred steps; after each the scores are those of an index of what is there."""
    rng = np.random.default_rng(7)
    codebook = small_integers(rng, 9, 16)
    config = AsmkConfig(query_assignments=2)
    index = AsmkIndex.build(codebook, [], config)
    there: dict[int, Float32] = {}
    query = small_integers(rng, 15, 16)
    for step in range(100):
        if there and step % 3 == 0:
            gone = rng.choice(sorted(there), min(2, len(there)), replace=False)
            index = index.without_images(gone)
            there = {i: image for i, image in there.items() if i not in gone}
        elif step % 7 == 1:
            kept = sorted(there)
            numbers = np.full(index.num_images, -1)
            numbers[kept] = rng.permutation(len(kept) + 3)[: len(kept)]
            index = index.renumbered(numbers, len(kept) + 3)
            there = {int(numbers[i]): there[i] for i in kept}
            assert len(index.files) == 1
        else:
            new = [small_integers(rng, n, 16) for n in rng.integers(0, 20, rng.integers(1, 3))]
            there |= dict(enumerate(new, index.num_images))
            index = index.with_images(new)
        ids, scores = index.search(query, index.num_images)
        anew = AsmkIndex.build(codebook, [there[i] for i in sorted(there)], config)
        places, wanted = anew.search(query, len(there) + 1)
        assert ids.tolist() == [sorted(there)[place] for place in places]
        assert scores.tolist() == wanted.tolist()


def test_only_images_that_are_there_can_be_removed() -> None:
    index = AsmkIndex.build(ORIGIN, [ONE_NEGATIVE])
    for image in (-1, 1):
        with pytest.raises(MapError, match=rf'images \[{image}\] are not all among the 1'):
            index.without_images([image])


@pytest.mark.parametrize('dim', [64, 128, 256])
def test_all_ways_to_add_up_agree(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled or not, at once or in small runs, by one thread or three."""
    rng = np.random.default_rng(dim)
    index = AsmkIndex.build(
        rng.normal(size=(30, dim)).astype(np.float32),
        [rng.normal(size=(40, dim)) for _ in range(300)],
    )
    words, bits = index.assign(rng.normal(size=(25, dim)))
    monkeypatch.setattr(inverted_file, '_WORTH_COMPILING', 0)
    for compiled in (None, importlib.util.find_spec('numba')):
        monkeypatch.setattr(inverted_file, 'find_spec', lambda _, found=compiled: found)
        for at_once in (1, 100, 1 << 16):
            monkeypatch.setattr(inverted_file, '_ENTRIES_AT_ONCE', at_once)
            for threads in (1, 3):
                ids, scores = index.score(words, bits, 300, threads)
                wanted = [one_score(index, words, bits, image) for image in ids]
                np.testing.assert_allclose(scores, wanted, rtol=1e-12)
                assert len(ids) > 200


def one_score(index: AsmkIndex, words: Any, bits: Any, image: int) -> float:
    word, ids, signatures = index.files[0].entries()
    held = {
        w: np.unpackbits(s) for w, i, s in zip(word, ids, signatures, strict=True) if i == image
    }
    cosines = [
        1 - 2 * np.mean(held[w] != np.unpackbits(b))
        for w, b in zip(words, bits, strict=True)
        if w in held
    ]
    return float(sum(max(c, 0) ** 3 for c in cosines) / math.sqrt(len(held) * len(words)))


@pytest.mark.parametrize('top_k', [1, 7, 50, 3000])
def test_the_best_of_many_scores(top_k: int) -> None:
    """Many equal ones among them, and fewer above zero than are asked for."""
    rng = np.random.default_rng(top_k)
    for scores in (rng.integers(0, 40, 5000) / 40, rng.random(5000) * (rng.random(5000) < 0.01)):
        order = sorted(np.flatnonzero(scores), key=lambda i: (-scores[i], i))[:top_k]
        ids, best = asmk._best(scores, top_k)
        assert ids.tolist() == [int(i) for i in order]
        assert best.tolist() == scores[ids].tolist()


@pytest.mark.parametrize('compiled', [False, True])
def test_lists_that_do_not_fit_together_are_named(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled:
        pytest.importorskip('numba', reason='the extra fast is not installed')
    else:
        monkeypatch.setattr(inverted_file, 'find_spec', lambda _: None)
    monkeypatch.setattr(inverted_file, '_WORTH_COMPILING', 0)
    rng = np.random.default_rng(8)
    index = AsmkIndex.build(
        rng.normal(size=(3, 64)).astype(np.float32), [rng.normal(size=(9, 64)) for _ in range(5)]
    )
    arrays = index.files[0].arrays()
    for name, changed in [
        ('id_highs', arrays['id_highs'] * 0), ('id_highs', arrays['id_highs'] | 255),
        ('id_lows', arrays['id_lows'] | 255),
    ]:  # fmt: skip
        damaged = replace(index, files=(InvertedFile.from_arrays({**arrays, name: changed}),))
        with pytest.raises(MapError, match='lists of an inverted file do not fit together'):
            damaged.search(rng.normal(size=(9, 64)), 3)


# ---------------------------------------------------------------- cases worked out by hand

ORIGIN = np.zeros((1, 8), np.float32)
ALL_POSITIVE = np.ones((1, 8), np.float32)
ONE_NEGATIVE = np.array([[1, 1, 1, 1, 1, 1, 1, -1]], np.float32)


def test_similarity_is_the_cosine_to_the_power_alpha() -> None:
    index = AsmkIndex.build(ORIGIN, [ONE_NEGATIVE])
    _, scores = index.search(ALL_POSITIVE, 1)
    assert scores.tolist() == [0.75**3]


@pytest.mark.parametrize(('tau', 'found'), [(0.75, [0]), (0.76, [])])
def test_selectivity_drops_words_below_tau(tau: float, found: list[int]) -> None:
    index = AsmkIndex.build(ORIGIN, [ONE_NEGATIVE], AsmkConfig(tau=tau))
    assert index.search(ALL_POSITIVE, 1)[0].tolist() == found


def test_opposite_signs_do_not_match() -> None:
    index = AsmkIndex.build(ORIGIN, [-ALL_POSITIVE])
    assert index.search(ALL_POSITIVE, 1)[0].tolist() == []


@pytest.mark.parametrize(('assignments', 'found'), [(1, []), (2, [0])])
def test_a_query_descriptor_counts_for_its_next_words(assignments: int, found: list[int]) -> None:
    codebook = np.array([[0] * 8, [2] * 8], np.float32)
    config = AsmkConfig(query_assignments=assignments)
    index = AsmkIndex.build(codebook, [0.9 * ALL_POSITIVE], config)
    # Nearest to the second word by a little, and on the same side of the first one.
    assert index.search(1.1 * ALL_POSITIVE, 1)[0].tolist() == found


def test_repeated_descriptors_count_once() -> None:
    index = AsmkIndex.build(ORIGIN, [ONE_NEGATIVE, np.repeat(ONE_NEGATIVE, 50, axis=0)])
    assert index.search(ONE_NEGATIVE, 2)[1].tolist() == [1.0, 1.0]


def test_an_image_is_like_itself() -> None:
    rng = np.random.default_rng(1)
    codebook = rng.normal(size=(40, 32)).astype(np.float32)
    images = [rng.normal(size=(60, 32)) for _ in range(6)]
    index = AsmkIndex.build(codebook, images, AsmkConfig(query_assignments=1))
    for i, image in enumerate(images):
        ids, scores = index.search(image, 1)
        assert ids.tolist() == [i]
        assert scores[0] == pytest.approx(1, abs=1e-12)


def test_equal_scores_come_by_image_id() -> None:
    rng = np.random.default_rng(2)
    same, other = small_integers(rng, 20, 16), small_integers(rng, 20, 16)
    codebook = small_integers(rng, 10, 16)
    index = AsmkIndex.build(codebook, [other, same, other, same, same], AsmkConfig())
    for top_k, wanted in [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (4, [1, 3, 4, 0]), (9, None)]:
        ids, _ = index.search(same, top_k)
        assert ids.tolist() == (wanted or [1, 3, 4, 0, 2])


def test_words_never_used_match_nothing() -> None:
    codebook = np.stack([np.full(8, value, np.float32) for value in (0, 1000, 2000)])
    index = AsmkIndex.build(codebook, [ONE_NEGATIVE], AsmkConfig(query_assignments=1))
    assert index.files[0].word_starts.tolist() == [0, 1, 1, 1]
    assert index.search(1001 * ALL_POSITIVE, 1)[0].tolist() == []
    assert index.search(np.vstack([ONE_NEGATIVE, 1001 * ALL_POSITIVE]), 1)[0].tolist() == [0]


def test_nothing_is_found_without_features() -> None:
    none = np.zeros((0, 8), np.float32)
    with_empty = AsmkIndex.build(ORIGIN, [none, ONE_NEGATIVE])
    assert with_empty.num_images == 2
    assert with_empty.search(ONE_NEGATIVE, 2)[0].tolist() == [1]
    for index in [with_empty, AsmkIndex.build(ORIGIN, [none]), AsmkIndex.build(ORIGIN, [])]:
        ids, scores = index.search(none, 3)
        assert len(ids) == len(scores) == 0
    assert AsmkIndex.build(ORIGIN, []).search(ONE_NEGATIVE, 3)[0].tolist() == []


@pytest.mark.parametrize('num_bytes', [1, 2, 3, 8, 16, 48])
@pytest.mark.parametrize('native', [True, False])
def test_hamming_distance_counts_differing_bits(
    num_bytes: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:  # what NumPy before 2.0 lacks
        monkeypatch.delattr(np, 'bitwise_count', raising=False)
    rng = np.random.default_rng(num_bytes)
    a, b = rng.integers(0, 256, (2, 50, num_bytes), dtype=np.uint8)
    a[0], b[0] = 0, 255
    wanted = [
        sum(bin(x ^ y).count('1') for x, y in zip(p, q, strict=True))
        for p, q in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert hamming(a.copy(), b, np.ones(50, np.int64)).tolist() == wanted
    each = hamming(a.copy(), b[[0, 3]], np.array([20, 30])).tolist()
    assert each == hamming(a.copy(), b[np.repeat([0, 3], [20, 30])], np.ones(50, int)).tolist()


def test_assignment_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    codebook, rows = small_integers(rng, 11, 8), small_integers(rng, 23, 8)
    wanted = [nearest(x, codebook.tolist(), 4) for x in rows.tolist()]
    assert nearest_words(rows, codebook, 4).tolist() == wanted
    monkeypatch.setattr('feat_ros.retrieval.words._DISTANCES_AT_ONCE', 50)
    assert nearest_words(rows, codebook, 4).tolist() == wanted


def many_words(rng: np.random.Generator) -> tuple[Float32, Float32]:
    """More words than are compared one by one, in clusters, and descriptors beside them."""
    centres = rng.normal(size=(60, 16))
    codebook, rows = (
        (centres[rng.integers(60, size=n)] + 0.3 * rng.normal(size=(n, 16))).astype(np.float32)
        for n in (4200, 400)
    )
    return codebook, rows


def test_many_words_are_searched_in_parts() -> None:
    codebook, rows = many_words(np.random.default_rng(4))
    divided = VisualWords.divide(codebook)
    assert len(divided.part_centers) == len(divided.part_starts) - 1 == 65
    order = nearest_words(divided.words, codebook, 1)[:, 0]
    assert sorted(order.tolist()) == list(range(4200))
    exact = nearest_words(rows, divided.words, 5)
    assert np.array_equal(divided.nearest(rows, 5, 65), exact)
    found = divided.nearest(rows, 5, 8)
    assert np.mean(found[:, 0] == exact[:, 0]) >= 0.97
    distance = np.linalg.norm(rows[:, None] - divided.words[found], axis=2)
    assert np.all(np.diff(distance, axis=1) >= -1e-6)
    assert all(len(set(row)) == 5 for row in found.tolist())
    # As many parts as words asked for are looked through, since a part may have one word only.
    assert divided.nearest(rows, 12, 1).shape == (400, 12)
    assert divided.nearest(rows[:0], 5, 8).shape == (0, 5)


def test_few_words_stay_as_they_are() -> None:
    codebook = many_words(np.random.default_rng(4))[0][:4096]
    divided = VisualWords.divide(codebook)
    assert divided.words is codebook
    assert divided.part_starts.tolist() == [0, 4096]


def test_an_index_of_many_words_finds_what_all_distances_find() -> None:
    rng = np.random.default_rng(5)
    codebook, rows = many_words(rng)
    images = [rows[rng.permutation(400)[:60]] for _ in range(12)]
    index = AsmkIndex.build(codebook, images, AsmkConfig(probed_parts=99))
    query = aggregated_fast(images[3], whole(index.codebook), 5)
    wanted = [
        similarity(query, aggregated_fast(image, whole(index.codebook), 1), 3.0, 0.0)
        for image in images
    ]
    ids, scores = index.search(images[3], 12)
    np.testing.assert_allclose(scores, [wanted[i] for i in ids], rtol=1e-12)
    assert ids[0] == 3
    assert AsmkIndex.build(codebook, images).search(images[3], 3)[0][0] == 3


def aggregated_fast(image: Float32, codebook: Float32, assignments: int) -> Words:
    """As :func:`aggregated`, for many words."""
    near = nearest_words(image, codebook, assignments)
    return {
        int(c): [
            1 if value > 0 else -1
            for value in (image[(near == c).any(axis=1)] - codebook[c]).sum(axis=0)
        ]
        for c in np.unique(near)
    }


# ---------------------------------------------------------------- the codebook


def clusters(
    rng: np.random.Generator, num_clusters: int, per_cluster: int, dim: int, spread: float
) -> Float32:
    centres = rng.normal(size=(num_clusters, dim))
    rows = np.repeat(centres, per_cluster, axis=0)
    return (rows + spread * rng.normal(size=rows.shape)).astype(np.float32)


def quantisation_error(rows: Float32, codebook: Float32) -> float:
    return float(np.mean([np.min(np.sum((codebook - row) ** 2, axis=1)) for row in rows]))


def test_two_levels_quantise_nearly_as_well_as_one() -> None:
    rows = clusters(np.random.default_rng(4), 300, 12, 16, 1.0)
    words = train_codebook(rows, 100)
    assert words.shape == (100, 16) and words.dtype == np.float32
    stop = (cv2.TERM_CRITERIA_COUNT, 20, 0.0)
    cv2.setRNGSeed(0)
    _, _, flat = cv2.kmeans(rows, 100, None, stop, 3, cv2.KMEANS_PP_CENTERS)
    assert quantisation_error(rows, words) < 1.1 * quantisation_error(rows, flat)


def test_codebooks_with_a_known_answer() -> None:
    rows = clusters(np.random.default_rng(5), 6, 5, 8, 0.1)
    np.testing.assert_allclose(train_codebook(rows, 1), rows.mean(axis=0)[None], atol=1e-5)
    every = train_codebook(rows, len(rows))
    assert sorted(map(tuple, every.tolist())) == sorted(map(tuple, rows.tolist()))
    same = np.ones((50, 8), np.float32)
    assert train_codebook(same, 7).tolist() == [[1.0] * 8] * 7


def test_training_repeats_and_follows_only_its_seed() -> None:
    rows = clusters(np.random.default_rng(6), 40, 30, 8, 0.3)
    kept = rows.copy()
    cv2.setRNGSeed(1)
    first = train_codebook(rows, 16, seed=3)
    cv2.setRNGSeed(2)
    assert np.array_equal(first, train_codebook(rows, 16, seed=3))
    assert not np.array_equal(first, train_codebook(rows, 16, seed=4))
    assert np.array_equal(rows, kept)


def test_number_of_words_is_found_from_the_descriptors() -> None:
    assert [default_num_words(n) for n in (1, 80, 150_000, 20_000_000)] == [1, 10, 6197, 65_536]
    rows = clusters(np.random.default_rng(7), 20, 10, 8, 0.3)
    assert len(train_codebook(rows)) == 25


def test_parts_get_words_in_proportion_and_never_more_than_rows() -> None:
    rng = np.random.default_rng(8)
    for _ in range(50):
        sizes = rng.integers(0, 9, 12)
        total = int(rng.integers(1, max(2, sizes.sum() + 1)))
        if sizes.sum() < total:
            continue
        shares = asmk._shares(sizes, total)
        assert shares.sum() == total
        assert np.all(shares <= sizes)
        assert np.all(np.abs(shares - sizes * total / sizes.sum()) < 1)


# ---------------------------------------------------------------- files


def some_index() -> tuple[AsmkIndex, list[npt.NDArray[np.float64]]]:
    rng = np.random.default_rng(9)
    images = [rng.normal(size=(n, 16)) for n in (30, 0, 20, 25)]
    codebook = train_codebook(np.concatenate(images), 12)
    config = AsmkConfig(alpha=2.0, query_assignments=3)
    return AsmkIndex.build(codebook, images, config), images


def test_round_trip_through_a_map_folder(tmp_path: Path) -> None:
    index, images = some_index()
    index = index.with_images(images[:1])
    write_map(
        tmp_path / 'map',
        [random_segment(1)],
        retrieval=write_index(tmp_path / 'map' / 'retrieval', index),
    )
    again = open_index(SfmMap(tmp_path / 'map'))
    assert again is not None and again.config == index.config and again.num_images == 5
    for query in images:
        assert_same(again.search(query, 3), index.search(query, 3))


def test_a_damaged_list_is_found_when_it_is_read(tmp_path: Path) -> None:
    folder, (index, images) = tmp_path / 'map' / 'retrieval', some_index()
    write_map(tmp_path / 'map', [random_segment(1)], retrieval=write_index(folder, index))
    for name in ('signatures', 'id_lows', 'id_highs'):
        path = folder / 'file-0000' / f'{name}.npy'
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 8]))
        opened = open_index(SfmMap(tmp_path / 'map'))
        assert opened is not None
        with pytest.raises(MapError, match=rf'{name}\.npy is damaged in block 0'):
            opened.search(np.concatenate(images), 3)
        path.write_bytes(whole)


def test_a_map_without_an_index(tmp_path: Path) -> None:
    assert open_index(SfmMap(write_map(tmp_path / 'map', [random_segment(1)]))) is None


def test_building_repeats() -> None:
    first, second = some_index()[0], some_index()[0]
    for ours, theirs in ((first, second), (first.files[0], second.files[0])):
        for name, array in ours.arrays().items():
            assert np.array_equal(array, theirs.arrays()[name])


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        (
            'signatures',
            lambda a: a[:-1],
            r'array signatures is uint8 \(\d+, 2\), not uint8 \(\d+, 2\)',
        ),
        ('signatures', lambda a: a[:, :1], 'array signatures is uint8'),
        ('id_lows', lambda a: a.astype(np.int64), 'array id_lows is int64 .* not uint8'),
        ('id_lows', lambda a: a[:-1], 'array signatures'),
        ('id_highs', lambda a: a[:-1], 'high_starts does not divide'),
        ('high_starts', lambda a: a[:-1], 'array high_starts is int64'),
        ('word_starts', lambda a: a[:-1], 'array high_starts is int64'),
        ('word_starts', lambda a: a + 1, 'word_starts does not divide'),
        ('word_starts', lambda a: np.r_[a[0], a[-2:0:-1], a[-1]], 'word_starts does not divide'),
        ('part_starts', lambda a: a[:0], 'array part_starts is'),
        ('part_starts', lambda a: a + 1, 'part_starts does not divide 12 entries'),
        ('part_starts', lambda a: a.astype(np.int32), 'array part_starts is int32'),
        ('part_centers', lambda a: a[:, :8], 'array part_centers is float32'),
        ('words_per_image', lambda a: a[:, None], 'array words_per_image is int32'),
        ('codebook', lambda a: a.astype(float), 'array codebook is float64'),
        ('codebook', lambda a: a[:0], r'codebook is float32 \(0, 16\)'),
        ('codebook', lambda a: a[:, :12], 'descriptors have 12 dimensions'),
        ('codebook', lambda a: a[:, :8], 'array part_centers'),
    ],
)
def test_damaged_arrays_are_refused(name: str, change: Callable[[Any], Any], message: str) -> None:
    index, _ = some_index()
    codebook, file = index.arrays(), index.files[0].arrays()
    part = codebook if name in codebook else file
    part[name] = change(part[name])
    with pytest.raises(MapError, match=message):
        AsmkIndex.from_arrays(codebook, [InvertedFile.from_arrays(file)])


def test_files_of_another_codebook_are_refused() -> None:
    index, _ = some_index()
    codebook = whole(index.codebook)
    for other in (codebook[:-1], np.repeat(codebook, 2, axis=1)):
        with pytest.raises(MapError, match=r'array (word_starts|signatures) is'):
            replace(AsmkIndex.build(other, []), files=index.files)


def test_missing_and_unknown_arrays_are_refused() -> None:
    index, _ = some_index()
    arrays = index.files[0].arrays()
    with pytest.raises(MapError, match=r'retrieval needs the arrays codebook, .* got none'):
        AsmkIndex.from_arrays({}, [])
    with pytest.raises(MapError, match=r'retrieval needs .* got codebook, extra, part_centers'):
        AsmkIndex.from_arrays({**index.arrays(), 'extra': index.codebook}, [])
    with pytest.raises(MapError, match=r'inverted file needs the arrays word_starts.* got none'):
        InvertedFile.from_arrays({})
    with pytest.raises(MapError, match='got extra, high_starts'):
        InvertedFile.from_arrays({**arrays, 'extra': arrays['id_lows']})


# ---------------------------------------------------------------- input that cannot be used


@pytest.mark.parametrize('dim', [0, 12, 100])
def test_dimensions_must_fill_bytes(dim: int) -> None:
    rows = np.ones((20, dim), np.float32)
    message = f'descriptors have {dim} dimensions: retrieval needs a multiple of 8'
    with pytest.raises(MapError, match=message):
        train_codebook(rows)
    with pytest.raises(MapError, match=message):
        AsmkIndex.build(rows, [rows])


def test_descriptors_must_fit_the_codebook() -> None:
    index = AsmkIndex.build(ORIGIN, [ONE_NEGATIVE])
    for bad in [np.zeros((3, 16)), np.zeros(8)]:
        with pytest.raises(MapError, match=r'retrieval needs \(N, 8\)'):
            index.search(bad, 1)
        with pytest.raises(MapError, match=r'retrieval needs \(N, 8\)'):
            AsmkIndex.build(ORIGIN, [bad])
    with pytest.raises(MapError, match='not finite'):
        index.search(np.full((1, 8), np.nan), 1)
    with pytest.raises(ValueError, match='top_k is 0'):
        index.search(ONE_NEGATIVE, 0)


@pytest.mark.parametrize(('rows', 'words'), [(5, 6), (5, 0), (0, None)])
def test_a_codebook_needs_a_descriptor_a_word(rows: int, words: int | None) -> None:
    with pytest.raises(MapError, match=f'cannot be trained from {rows} descriptors'):
        train_codebook(np.ones((rows, 8)), words)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'AsmkConfig.tau is 1.5: it must be at most'):
        AsmkConfig(tau=1.5)
    with pytest.raises(ConfigError, match=r'AsmkConfig.query_assignments is 0'):
        AsmkConfig(query_assignments=0)


# ---------------------------------------------------------------- does it retrieve


def test_views_of_a_place_are_found_among_others() -> None:
    rng = np.random.default_rng(10)
    places = rng.normal(size=(40, 60, 32))

    def view(place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        seen = place[rng.permutation(60)[:40]] + 0.35 * rng.normal(size=(40, 32))
        return np.vstack([seen, rng.normal(size=(40, 32))])

    images = [view(place) for place in places for _ in range(3)]
    index = AsmkIndex.build(train_codebook(np.concatenate(images)), images)
    for i, place in enumerate(places):
        ids, scores = index.search(view(place), 3)
        assert sorted(ids) == [3 * i, 3 * i + 1, 3 * i + 2]
        assert np.all(np.diff(scores) <= 0)


def root_sift(path: Path) -> Float32:
    """At most 2048 descriptors of the image, its longer side at most 640 pixels."""
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    scale = min(1.0, 640 / max(grey.shape))
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    points, sift = cv2.SIFT_create(2048, contrastThreshold=0.004).detectAndCompute(grey, None)
    strongest = np.argsort([-point.response for point in points], kind='stable')[:2048]
    sift = sift[strongest] + 1e-9
    return np.asarray(np.sqrt(sift / sift.sum(axis=1, keepdims=True)), np.float32)


@pytest.fixture(scope='module')
def photographs() -> list[Photo]:
    """Name of the set, place in it and descriptors of every photograph."""
    oxford = [f'oxford_affine/{name}' for name in ('graf', 'boat', 'leuven', 'bikes')]
    folders = ['fountain_p11/images', 'kitti_seq1/images', 'lund_door/images', *oxford]
    missing = [folder for folder in folders if not (DATA / folder).is_dir()]
    if missing:
        pytest.skip(f'no photographs in {DATA}: {", ".join(missing)}')
    paths = [
        (folder, i, path)
        for folder in folders
        for i, path in enumerate(
            sorted(p for p in (DATA / folder).iterdir() if p.suffix.lower() in ('.png', '.jpg'))
        )
    ]
    return [(folder, i, root_sift(path)) for folder, i, path in paths]


@pytest.mark.parametrize('parity', [0, 1])
def test_photographs_find_their_own_set(photographs: list[Photo], parity: int) -> None:
    database = [photo for photo in photographs if photo[1] % 2 == parity]
    queries = [photo for photo in photographs if photo[1] % 2 != parity]
    codebook = train_codebook(np.concatenate([photo[2] for photo in database]))
    index = AsmkIndex.build(codebook, [photo[2] for photo in database])
    own = []
    for folder, number, descriptors in queries:
        found = [database[i] for i in index.search(descriptors, 3)[0]]
        assert found[0][0] == folder
        if 'kitti' in folder:  # the car's previous or next frame, not just any of the street
            assert abs(found[0][1] - number) == 1
        own += [photo[0] == folder for photo in found]
    # The third may be a graf seen from 60 degrees aside, which hardly shares a word.
    assert np.mean(own) >= 0.98

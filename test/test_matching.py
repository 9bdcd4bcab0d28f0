# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Mutual nearest neighbours against two loops over all pairs."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

from feat_ros import runtimes
from feat_ros.matching import dot_similarity, Matcher, mutual_nearest, selected_similarity

Float32 = npt.NDArray[np.float32]
Pairs = list[tuple[int, int]]

# Around the number of reference rows that are multiplied at once.
SIZES = [(1, 1), (1, 700), (700, 1), (3, 2), (40, 1023), (40, 1024), (40, 1025), (130, 2600)]


@pytest.fixture(params=['NumPy', 'cpu', 'cuda'])
def match(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Matcher:
    """By NumPy, and by torch, with as few rows at a time as in large maps."""
    if request.param == 'NumPy':
        return mutual_nearest
    torch = pytest.importorskip('torch')
    if request.param == 'cuda' and not torch.cuda.is_available():
        pytest.skip('torch finds no GPU')
    from feat_ros.runtimes import torch_matching

    monkeypatch.setattr(torch_matching, '_MAX_BLOCK_VALUES', 1 << 15)
    matcher: Matcher = torch_matching.TorchMatcher(request.param)
    return matcher


def unit(rng: np.random.Generator, rows: int, dim: int) -> Float32:
    values = rng.normal(size=(rows, dim))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


def double_argmax(query: Any, reference: Any) -> Pairs:
    """Rows that are each other's argmax; where values are equal the first counts."""
    dot = np.asarray(query, float) @ np.asarray(reference, float).T
    best_of_query = [max(range(len(reference)), key=lambda j: row[j]) for row in dot]
    best_of_reference = [max(range(len(query)), key=lambda i: column[i]) for column in dot.T]
    return [(i, j) for i, j in enumerate(best_of_query) if best_of_reference[j] == i]


def first_of_equals(query: Any, reference: Any) -> Pairs:
    """Each query's first best reference, if nothing is better for that and no query was before."""
    dot = np.asarray(query, float) @ np.asarray(reference, float).T
    taken, pairs = set(), []
    for i, row in enumerate(dot):
        j = max(range(len(row)), key=lambda j: row[j])
        if j not in taken and all(other <= row[j] for other in dot[:, j]):
            taken.add(j)
            pairs.append((i, j))
    return pairs


def as_pairs(matches: npt.NDArray[np.int64]) -> Pairs:
    return [(int(i), int(j)) for i, j in matches]


@pytest.mark.parametrize(('num_query', 'num_reference'), SIZES)
def test_random_rows(match: Matcher, num_query: int, num_reference: int) -> None:
    rng = np.random.default_rng(num_query + num_reference)
    query, reference = unit(rng, num_query, 16), unit(rng, num_reference, 16)
    matches, scores = match(query, reference, dot_similarity)
    expected = double_argmax(query, reference)
    assert as_pairs(matches) == expected
    assert matches.dtype == np.int64 and scores.dtype == np.float32
    products = [float(query[i].astype(float) @ reference[j]) for i, j in expected]
    assert_allclose(scores, products, atol=1e-6)


@pytest.mark.parametrize('seed', range(20))
def test_rows_with_many_equal_products(match: Matcher, seed: int) -> None:
    """Small whole numbers, whose products are exact."""
    rng = np.random.default_rng(seed)
    query = rng.integers(-2, 3, (60, 3)).astype(np.float32)
    reference = rng.integers(-2, 3, (1300, 3)).astype(np.float32)
    found = as_pairs(match(query, reference, dot_similarity)[0])
    assert found == first_of_equals(query, reference)
    assert set(found) >= set(double_argmax(query, reference))


def test_of_duplicated_rows_the_first_is_matched(match: Matcher) -> None:
    """Corners of a cube: unit length, and all products exact."""
    rows = np.random.default_rng(1).choice([-0.25, 0.25], (30, 16)).astype(np.float32)
    query = np.concatenate([rows, rows[::-1]])
    reference = np.concatenate([rows[::-1], *[rows] * 40])
    found = as_pairs(match(query, reference, dot_similarity)[0])
    assert found == [(i, 29 - i) for i in range(30)] == double_argmax(query, reference)


def test_all_products_negative(match: Matcher) -> None:
    query, reference = np.array([[1.0, 0.0]], np.float32), np.array([[-1.0, 0], [-0.5, 0]])
    matches, scores = match(query, reference, dot_similarity)
    assert as_pairs(matches) == [(0, 1)]
    assert scores.tolist() == [-0.5]


@pytest.mark.parametrize(('num_query', 'num_reference'), [(0, 5), (5, 0), (0, 0)])
def test_nothing_matches_an_empty_set(match: Matcher, num_query: int, num_reference: int) -> None:
    query, reference = np.ones((num_query, 8), np.float32), np.ones((num_reference, 8), np.float32)
    matches, scores = match(query, reference, dot_similarity)
    assert (matches.shape, scores.shape) == ((0, 2), (0,))
    assert matches.dtype == np.int64 and scores.dtype == np.float32


def test_more_queries_than_fit_into_a_product_of_many_columns(match: Matcher) -> None:
    """17,000 queries: fewer reference rows are multiplied at once."""
    rng = np.random.default_rng(2)
    reference = unit(rng, 1000, 8)
    at = rng.permutation(17_000)[:1000]
    query = unit(rng, 17_000, 8) * np.float32(0.1)
    query[at] = reference
    order = np.argsort(at)
    matches, _ = match(query, reference, dot_similarity)
    assert_array_equal(matches, np.column_stack([at[order], order]))


def test_other_layouts_and_types_of_the_same_numbers(match: Matcher) -> None:
    rng = np.random.default_rng(3)
    query, reference = unit(rng, 50, 16), unit(rng, 1600, 16)
    expected, scores = match(query, reference, dot_similarity)
    odd_query, odd_reference = np.asfortranarray(query), reference.astype(float)
    again, scores_again = match(odd_query, odd_reference, dot_similarity)
    assert_array_equal(again, expected)
    assert_allclose(scores_again, scores, rtol=1e-6)


class LazyRows:
    """Reference rows that exist only while they are read, as those of a map on the disk."""

    def __init__(self, length: int, planted: dict[int, Float32], dim: int) -> None:
        self.length, self.planted = length, planted
        self.noise = unit(np.random.default_rng(5), 1009, dim)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, rows: slice) -> Float32:
        numbers = range(self.length)[rows]
        part = self.noise[np.arange(numbers.start, numbers.stop) % len(self.noise)]
        for number in self.planted.keys() & set(numbers):
            part[number - numbers.start] = self.planted[number]
        return part


def test_memory_does_not_grow_with_the_map() -> None:
    """2048 queries and 200,000 rows, whose product alone would be 1.6 GB."""
    rng = np.random.default_rng(4)
    query = unit(rng, 2048, 32)
    places = rng.permutation(200_000)[:2048]
    reference = LazyRows(200_000, dict(zip(places.tolist(), query, strict=True)), 32)
    tracemalloc.start()
    try:
        matches, scores = mutual_nearest(query, reference)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_array_equal(matches, np.column_stack([np.arange(2048), places]))
    assert_allclose(scores, 1, atol=1e-5)
    assert peak < 64e6


def test_a_gpu_that_fails_leaves_matching_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip('torch')
    from feat_ros.runtimes import torch_matching

    calls = 0

    def fail(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')

    monkeypatch.setattr(torch_matching, 'block_maxima', fail)
    matcher = torch_matching.TorchMatcher('cpu')
    rng = np.random.default_rng(6)
    query, reference = unit(rng, 50, 16), unit(rng, 60, 16)
    for _ in range(2):
        assert_array_equal(matcher(query, reference)[0], mutual_nearest(query, reference)[0])
    assert calls == 1
    (record,) = caplog.records
    assert 'Tried to allocate 2.00 GiB; it goes on on the CPU' in record.message


def test_few_queries_do_not_take_the_whole_map_at_once() -> None:
    pytest.importorskip('torch')
    from feat_ros.runtimes.torch_matching import TorchMatcher

    asked: list[int] = []

    class Asked(LazyRows):
        """Rows that say how many are read."""

        def __getitem__(self, rows: slice) -> Float32:
            part = super().__getitem__(rows)
            asked.append(len(part))
            return part

    query = unit(np.random.default_rng(8), 3, 32)
    reference = Asked(1_200_000, {1_100_000: query[1]}, 32)
    matches, _ = TorchMatcher('cpu')(query, reference)
    assert (1, 1_100_000) in as_pairs(matches)
    assert max(asked) * 32 <= 1 << 24


def test_rows_that_cannot_be_written(match: Matcher) -> None:
    query, reference = (unit(np.random.default_rng(seed), 20, 16) for seed in (9, 10))
    expected = match(query, reference, dot_similarity)[0]
    for rows in (query, reference):
        rows.setflags(write=False)
    assert_array_equal(match(query, reference, dot_similarity)[0], expected)


def test_another_similarity_is_left_to_numpy() -> None:
    pytest.importorskip('torch')
    from feat_ros.runtimes.torch_matching import TorchMatcher

    rng = np.random.default_rng(7)
    query, reference = unit(rng, 20, 16), unit(rng, 30, 16)
    similarity = selected_similarity
    found = TorchMatcher('cpu')(query, reference, similarity)
    expected = mutual_nearest(query, reference, similarity)
    assert_array_equal(found[0], expected[0])
    assert_array_equal(found[1], expected[1])
    assert as_pairs(found[0]) != double_argmax(query, reference)


@pytest.mark.parametrize(
    ('matching', 'has_gpu', 'said'),
    [('auto', True, 'finds no GPU'), ('auto', False, ''), ('cpu', True, '')],
)
def test_without_a_gpu_of_torch_numpy_matches(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    matching: str,
    has_gpu: bool,
    said: str,
) -> None:
    torch = pytest.importorskip('torch')
    monkeypatch.setattr(runtimes, '_has_gpu', lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert runtimes.open_matcher(matching) is mutual_nearest
    assert said in caplog.text
    assert len(caplog.records) == bool(said)


def test_on_a_gpu_torch_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip('torch')
    from feat_ros.runtimes.torch_matching import TorchMatcher

    monkeypatch.setattr(runtimes, '_has_gpu', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'Stream', lambda: None)
    assert isinstance(runtimes.open_matcher('auto'), TorchMatcher)


def test_a_gpu_that_torch_cannot_use_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip('torch')

    def fail() -> Any:
        raise RuntimeError('CUDA error: out of memory')

    monkeypatch.setattr(runtimes, '_has_gpu', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'Stream', fail)
    assert runtimes.open_matcher('auto') is mutual_nearest
    assert 'on the CPU: torch: CUDA error: out of memory' in caplog.text

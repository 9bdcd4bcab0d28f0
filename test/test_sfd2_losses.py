# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Each loss of SFD2 beside a slow loop, and its gradient beside finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.testing import assert_array_equal
import numpy.typing as npt
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from torch.autograd import gradcheck  # noqa: E402

from feat_ros.training import sfd2_losses as losses  # noqa: E402
from feat_ros.training.sfd2_losses import Sfd2LossWeights, UNKNOWN  # noqa: E402

Float = npt.NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def units(rng: np.random.Generator, *shape: int) -> Float:
    values = rng.normal(size=shape)
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def tensor(array: npt.NDArray[Any], *, needs_grad: bool = False) -> Any:
    return torch.tensor(array, requires_grad=needs_grad)


def test_detection_is_cross_entropy_with_reliability_times_stability(
    rng: np.random.Generator,
) -> None:
    score, corner = rng.uniform(0.05, 0.95, (2, 2, 1, 4, 5))
    stability = rng.choice([0.1, 0.5, 1.0, np.nan], (2, 1, 4, 5))
    target = losses.global_reliability(tensor(corner), tensor(stability))
    cost = []
    for s, r, g in zip(score.flat, corner.flat, stability.flat, strict=True):
        if not np.isnan(g):
            cost.append(-(r * g * np.log(s) + (1 - r * g) * np.log(1 - s)))
    assert len(cost) < score.size
    assert float(losses.detection_loss(tensor(score), target)) == pytest.approx(np.mean(cost))
    assert gradcheck(lambda s: losses.detection_loss(s, target), tensor(score, needs_grad=True))
    unknown = torch.full_like(target, float('nan'))
    assert float(losses.detection_loss(tensor(score), unknown)) == 0


@pytest.mark.parametrize('margin', [0.2, 1.0])
def test_inter_class_runs_over_all_triplets(rng: np.random.Generator, margin: float) -> None:
    descriptors = units(rng, 14, 6)
    # One class has a single feature, which is no anchor; two features are of no class.
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, UNKNOWN, UNKNOWN, 1, 0])
    anchors = []
    for i in range(14):
        cost = [
            max(
                0.0,
                float(
                    np.linalg.norm(descriptors[i] - descriptors[j])
                    - np.linalg.norm(descriptors[i] - descriptors[k])
                    + margin
                ),
            )
            for j in range(14)
            for k in range(14)
            if i != j
            and labels[i] == labels[j] != labels[k]
            and UNKNOWN not in (labels[i], labels[k])
        ]
        if cost:
            anchors.append(np.mean(cost))
    assert len(anchors) == 11
    found = losses.inter_class_loss(tensor(descriptors), tensor(labels), margin)
    assert float(found) == pytest.approx(np.mean(anchors))

    def loss(raw: Any) -> Any:
        unit = torch.nn.functional.normalize(raw, dim=1)
        return losses.inter_class_loss(unit, tensor(labels), margin)

    assert gradcheck(loss, tensor(descriptors, needs_grad=True))
    one_class = torch.zeros(14, dtype=torch.int64)
    assert float(losses.inter_class_loss(tensor(descriptors), one_class)) == 0


@pytest.mark.parametrize('each', [70, 100, 191, 400])
def test_inter_class_of_some_takes_of_all_views_alike(rng: np.random.Generator, each: int) -> None:
    """Four views with as many labelled points each; those that are taken have a gradient."""
    is_labelled = np.tile(np.arange(500) < each, 4)
    labels = tensor(np.where(is_labelled, rng.integers(0, 3, 2000), UNKNOWN))
    descriptors = tensor(units(rng, 2000, 4)).requires_grad_()
    losses.inter_class_loss_of_some(descriptors, labels).backward()
    assert descriptors.grad is not None
    is_taken = descriptors.grad.abs().sum(1).reshape(4, 500) > 0
    assert_array_equal(is_taken.sum(1).numpy(), [64] * 4)
    at = [torch.nonzero(row)[:, 0].numpy() for row in is_taken]
    assert max(np.diff(row).max() for row in at) - min(np.diff(row).min() for row in at) <= 1


@pytest.mark.parametrize('count', [0, 20])
def test_inter_class_of_few_takes_all(rng: np.random.Generator, count: int) -> None:
    few = tensor(units(rng, count, 4)), tensor(rng.integers(-1, 3, count))
    assert float(losses.inter_class_loss_of_some(*few)) == pytest.approx(
        float(losses.inter_class_loss(*few))
    )


def test_average_precision_of_bins(rng: np.random.Generator) -> None:
    similarity = rng.uniform(-0.3, 1, (5, 30))
    is_positive = rng.uniform(size=(5, 30)) < 0.3
    is_used = rng.uniform(size=(5, 30)) < 0.8
    expected = []
    for row in range(5):
        right, all_ = np.zeros(20), np.zeros(20)
        for s, is_right, counts in zip(
            similarity[row], is_positive[row], is_used[row], strict=True
        ):
            for k in range(20):
                share = max(0.0, 1 - abs(max(s, 0) - (1 - k / 19)) * 19) * counts
                all_[k] += share
                right[k] += share * is_right
        total, precision = right.sum(), 0.0
        for k in range(20):
            precision += right[: k + 1].sum() / max(all_[: k + 1].sum(), 1e-12) * right[k] / total
        expected.append(precision)
    masks = tensor(is_positive), tensor(is_used)
    found = losses.average_precision(tensor(similarity), *masks)
    np.testing.assert_allclose(found.numpy(), expected)
    inner = tensor(np.clip(similarity, 0.02, 0.98), needs_grad=True)
    assert gradcheck(lambda s: losses.average_precision(s, *masks), inner)


def test_average_precision_of_many_bins_is_that_of_the_ranking(rng: np.random.Generator) -> None:
    similarity = rng.permutation(200).reshape(2, 100) / 200 + 0.001
    is_positive = rng.uniform(size=(2, 100)) < 0.2
    used = torch.ones(2, 100, dtype=torch.bool)
    found = losses.average_precision(tensor(similarity), tensor(is_positive), used, 20_001)
    for row in range(2):
        order = np.argsort(-similarity[row])
        hits = is_positive[row][order]
        precision = np.cumsum(hits) / np.arange(1, 101)
        assert float(found[row]) == pytest.approx(precision[hits].mean(), abs=2e-3)


def test_candidates_are_of_the_query_s_class(rng: np.random.Generator) -> None:
    queries, others = units(rng, 9, 4), np.moveaxis(units(rng, 12, 15, 4), 2, 0)
    labels, cells = rng.integers(0, 2, 9), rng.integers(0, 2, (12, 15))
    labels[4], cells[6:, 10:] = UNKNOWN, UNKNOWN
    places = rng.uniform(0, [15, 12], (9, 2))
    places[7] = 14.0, 11.5
    found = losses.class_candidates(
        *map(tensor, (queries, places, labels, others, cells)),
        positive_radius=2.0, negative_radius=3.5, negative_step=2,
    )  # fmt: skip
    similarity, is_positive, is_used = (part.numpy() for part in found)
    assert similarity.shape == (9, 1 + 6 * 8)
    for n in range(9):
        near, far = [], []
        for y, x in np.ndindex(12, 15):
            apart = np.hypot(places[n, 0] - x - 0.5, places[n, 1] - y - 0.5)
            if labels[n] == UNKNOWN or cells[y, x] != labels[n]:
                continue
            if apart <= 2:
                near.append(queries[n] @ others[:, y, x])
            if apart > 3.5 and x % 2 == y % 2 == 0:
                far.append(queries[n] @ others[:, y, x])
        assert is_used[n, 0] == is_positive[n, 0] == bool(near)
        assert not is_positive[n, 1:].any()
        if near:
            assert similarity[n, 0] == pytest.approx(max(near))
            assert sorted(similarity[n, 1:][is_used[n, 1:]]) == pytest.approx(sorted(far))
        else:
            assert not is_used[n].any()
    # Of no class, and without a cell of its class near.
    assert not is_used[4].any()
    assert not is_used[7].any()


def points_of_two_views(rng: np.random.Generator) -> tuple[Any, ...]:
    """Descriptors of 12 and 15 points, partners, labels of both, places of the second."""
    partner = np.full(12, -1)
    partner[:8] = rng.permutation(15)[:8]
    labels, other_labels = rng.integers(0, 3, 12), rng.integers(0, 3, 15)
    other_labels[partner[:6]] = labels[:6]
    labels[2], other_labels[partner[2]] = UNKNOWN, UNKNOWN
    other_labels[partner[7]] = (labels[7] + 1) % 3
    places = rng.uniform(0, 12, (15, 2))
    return units(rng, 12, 4), units(rng, 15, 4), partner, labels, other_labels, places


def test_point_candidates_are_of_the_query_s_class(rng: np.random.Generator) -> None:
    here, there, partner, labels, other_labels, places = points_of_two_views(rng)
    found = losses.point_candidates(
        *map(tensor, (here, there, partner, labels, other_labels, places)), apart_px=4.0
    )
    similarity, is_positive, is_used = (part.numpy() for part in found)
    near = 0
    for i, j in np.ndindex(12, 15):
        assert similarity[i, j] == pytest.approx(here[i] @ there[j])
        counts = partner[i] >= 0 and labels[i] == other_labels[partner[i]] == other_labels[j]
        counts = counts and labels[i] != UNKNOWN
        is_right = counts and j == partner[i]
        apart = np.hypot(*(places[j] - places[partner[i]]))
        near += counts and not is_right and apart <= 4
        assert is_positive[i, j] == is_right
        assert is_used[i, j] == (is_right or (counts and apart > 4))
    assert near > 0
    assert is_used.any(1).sum() >= 5
    # Of no class, a partner of another class, and no partner.
    assert not is_used[[2, 7, 9]].any()


def test_triplets_in_a_class_are_those_of_a_loop(rng: np.random.Generator) -> None:
    here, there, *rest = points_of_two_views(rng)
    labels = rest[1]

    def loss(ours: Any, theirs: Any) -> Any:
        ours, theirs = (torch.nn.functional.normalize(each, dim=1) for each in (ours, theirs))
        found = losses.point_candidates(ours, theirs, *map(tensor, rest), apart_px=2.0)
        return losses.intra_class_triplet_loss(*found, tensor(labels), 0.7)

    masks = losses.point_candidates(
        *map(tensor, (here, there, *rest)), apart_px=2.0
    )[1:]  # fmt: skip
    is_positive, is_used = (mask.numpy() for mask in masks)
    by_class: dict[int, list[float]] = {}
    for i in range(12):
        cost = []
        for j in range(15):
            if is_used[i, j] and not is_positive[i, j]:
                right = np.linalg.norm(here[i] - there[rest[0][i]])
                cost.append(max(0.0, float(right - np.linalg.norm(here[i] - there[j]) + 0.7)))
        if cost:
            by_class.setdefault(labels[i], []).append(float(np.mean(cost)))
    assert len(by_class) > 1
    expected = np.mean([np.mean(each) for each in by_class.values()])
    assert float(loss(tensor(here), tensor(there))) == pytest.approx(expected)
    assert gradcheck(loss, (tensor(here, needs_grad=True), tensor(there, needs_grad=True)))
    none = torch.full((12,), UNKNOWN)
    found = losses.point_candidates(*map(tensor, (here, there, *rest)))
    assert float(losses.intra_class_triplet_loss(*found, none)) == 0


def test_intra_class_is_a_mean_of_classes(rng: np.random.Generator) -> None:
    precision, reliability = rng.uniform(size=(2, 12))
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 3, 3, UNKNOWN, UNKNOWN, 5])
    classes = []
    for each in (0, 3, 5):
        cost = [
            1 - (reliability[i] * precision[i] + (1 - reliability[i]) * 0.5)
            for i in range(12)
            if labels[i] == each
        ]
        classes.append(np.mean(cost))
    found = losses.intra_class_loss(*map(tensor, (precision, reliability, labels)))
    assert float(found) == pytest.approx(np.mean(classes))
    assert gradcheck(
        lambda p, r: losses.intra_class_loss(p, r, tensor(labels)),
        (tensor(precision, needs_grad=True), tensor(reliability, needs_grad=True)),
    )
    none = torch.full((12,), UNKNOWN)
    assert float(losses.intra_class_loss(tensor(precision), tensor(reliability), none)) == 0


def test_ranking_in_a_class_ignores_the_others(rng: np.random.Generator) -> None:
    """The whole of equation 3: what another class looks like has no gradient, its own has."""
    queries = units(rng, 6, 4)
    others = tensor(np.moveaxis(units(rng, 10, 10, 4), 2, 0).copy(), needs_grad=True)
    cells = np.zeros((10, 10), int)
    cells[:, 5:] = 1
    labels = torch.zeros(6, dtype=torch.int64)
    places = tensor(rng.uniform(1, 4, (6, 2)))
    found = losses.class_candidates(
        tensor(queries), places, labels, others, tensor(cells), negative_step=1
    )
    precision = losses.average_precision(*found)
    losses.intra_class_loss(precision, torch.ones(6), labels).backward()
    assert others.grad[:, :, :5].abs().max() > 0
    assert others.grad[:, :, 5:].abs().max() == 0


def test_consistency_is_a_mean_of_both_maps(rng: np.random.Generator) -> None:
    ours = [rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(2, 5, 4, 6))]
    teacher = [rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(2, 5, 2, 3))]
    total = 0.0
    for mine, theirs in zip(ours, teacher, strict=True):
        step = mine.shape[2] // theirs.shape[2]
        apart = [
            abs(mine[b, c, y * step, x * step] - theirs[b, c, y, x])
            for b, c, y, x in np.ndindex(*theirs.shape)
        ]
        total += float(np.mean(apart)) / 2
    targets = [tensor(each) for each in teacher]
    found = losses.consistency_loss([tensor(each) for each in ours], targets)
    assert float(found) == pytest.approx(total)
    assert gradcheck(
        lambda a, b: losses.consistency_loss([a, b], targets),
        tuple(tensor(each, needs_grad=True) for each in ours),
    )


def test_consistency_counts_what_is_known(rng: np.random.Generator) -> None:
    ours = rng.normal(size=(2, 3, 4, 6))
    theirs = rng.normal(size=(2, 3, 2, 3))
    is_known = rng.random((2, 1, 2, 3)) < 0.5
    apart = [
        abs(ours[b, c, 2 * y, 2 * x] - theirs[b, c, y, x])
        for b, c, y, x in np.ndindex(*theirs.shape)
        if is_known[b, 0, y, x]
    ]
    assert 0 < len(apart) < theirs.size
    found = losses.consistency_loss([tensor(ours)], [tensor(theirs)], tensor(is_known))
    assert float(found) == pytest.approx(float(np.mean(apart)) / 2)
    nowhere = losses.consistency_loss([tensor(ours)], [tensor(theirs)], tensor(is_known & False))
    assert float(nowhere) == 0


def test_the_weights_are_those_of_the_paper() -> None:
    two, three, five = (torch.tensor(value) for value in (2.0, 3.0, 5.0))
    description = losses.description_loss(two, three, Sfd2LossWeights())
    assert float(description) == 1.0 * 2 + 0.5 * 3
    assert float(losses.total_loss(five, description, two, Sfd2LossWeights())) == 5 + 3.5 + 2
    only = Sfd2LossWeights(detection=0, description=2, consistency=0, inter_class=0)
    assert (
        float(losses.total_loss(five, losses.description_loss(two, three, only), two, only)) == 3
    )


def test_stability_is_cross_entropy_of_what_is_known(rng: np.random.Generator) -> None:
    logits, groups = rng.normal(size=(2, 3, 4, 5)), rng.integers(-1, 3, (2, 4, 5))
    cost = []
    for b, y, x in np.ndindex(*groups.shape):
        if groups[b, y, x] != UNKNOWN:
            weight = np.exp(logits[b, :, y, x])
            cost.append(-np.log(weight[groups[b, y, x]] / weight.sum()))
    found = losses.stability_loss(tensor(logits), tensor(groups))
    assert float(found) == pytest.approx(np.mean(cost))
    nothing = torch.full((2, 4, 5), UNKNOWN)
    assert float(losses.stability_loss(tensor(logits), nothing)) == 0
    assert gradcheck(
        lambda each: losses.stability_loss(each, tensor(groups)), tensor(logits, needs_grad=True)
    )

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of training, beside slow loops and finite differences."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from feat_ros.training import losses  # noqa: E402

ROWS, COLUMNS = [0, 2, 5], [3, 1, 4]
PARTNER = [3, -1, 1, -1, -1, 4]


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.normal(size=(count, 4))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_dual_softmax_is_two_cross_entropies() -> None:
    rng = np.random.default_rng(1)
    a, b, scale = unit(rng, 6), unit(rng, 5), 7.0
    found = losses.dual_softmax_loss(
        torch.from_numpy(a), torch.from_numpy(b), torch.tensor(scale, dtype=torch.float64),
        torch.tensor(PARTNER),
    )  # fmt: skip
    logits = scale * a @ b.T
    total = 0.0
    for i, j in zip(ROWS, COLUMNS, strict=True):
        total -= logits[i, j] - np.log(np.exp(logits[i]).sum())
        total -= logits[i, j] - np.log(np.exp(logits[:, j]).sum())
    assert_allclose(found.loss.item(), total / 3)
    right = [
        logits[i].argmax() == j and logits[:, j].argmax() == i
        for i, j in zip(ROWS, COLUMNS, strict=True)
    ]
    expected_a, expected_b = np.zeros(6, bool), np.zeros(5, bool)
    expected_a[ROWS], expected_b[COLUMNS] = right, right
    assert_array_equal(found.is_right_a.numpy(), expected_a)
    assert_array_equal(found.is_right_b.numpy(), expected_b)


def test_right_matches_are_right() -> None:
    rng = np.random.default_rng(2)
    a = torch.from_numpy(unit(rng, 6))
    order = torch.from_numpy(rng.permutation(6))
    found = losses.dual_softmax_loss(a[order], a, torch.tensor(50.0, dtype=torch.float64), order)
    assert found.is_right_a.all()
    assert found.is_right_b.all()


def test_the_gradient_of_dual_softmax() -> None:
    rng = np.random.default_rng(3)
    a, b = (torch.from_numpy(rng.normal(size=(n, 4))).requires_grad_() for n in (6, 5))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def loss(a: object, b: object, scale: object) -> object:
        return losses.dual_softmax_loss(a, b, scale, torch.tensor(PARTNER)).loss

    assert torch.autograd.gradcheck(loss, (a, b, scale))


def test_without_a_match_there_is_nothing_to_learn() -> None:
    a = torch.eye(4).requires_grad_()
    none = torch.full((4,), -1)
    found = losses.dual_softmax_loss(a, torch.eye(4), torch.tensor(5.0), none)
    found.loss.backward()
    assert found.loss.item() == 0
    assert not a.grad.any()


def test_matchability_asks_whether_a_point_is_matched_now() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, 1, 0, -1])
    is_right = torch.tensor([True, False, False, True])
    found = losses.matchability_loss(logits, target, is_right)
    share = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5])))
    expected = -(np.log(share[0]) + np.log(1 - share[1]) + np.log(1 - share[2])) / 3
    assert_allclose(found.item(), expected)
    found.backward()
    assert logits.grad[3] == 0


def test_groups_that_nobody_knows_are_left_out() -> None:
    logits = np.random.default_rng(4).normal(size=(4, 3))
    group = np.array([2, -1, 0, -1])
    found = losses.group_loss(torch.from_numpy(logits), torch.from_numpy(group))
    shares = [logits[i, g] - np.log(np.exp(logits[i]).sum()) for i, g in ((0, 2), (2, 0))]
    expected = -np.mean(shares)
    assert_allclose(found.item(), expected)
    nothing = losses.group_loss(torch.from_numpy(logits), torch.full((4,), -1))
    assert nothing.item() == 0

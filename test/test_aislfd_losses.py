# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Each equation of AISLFD beside a slow loop and finite differences, and training with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.testing import assert_allclose
import numpy.typing as npt
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from torch.autograd import gradcheck  # noqa: E402
from torch.nn import functional  # noqa: E402

from feat_ros.models.aislfd import VARIANCES  # noqa: E402
from feat_ros.models.weights import load_weights  # noqa: E402
from feat_ros.training import aislfd  # noqa: E402
from feat_ros.training import aislfd_losses as losses  # noqa: E402
from feat_ros.training.configs import AislfdConfig, PairConfig  # noqa: E402
from feat_ros.training.run import Run  # noqa: E402
from feat_ros.training.systems import get_system  # noqa: E402

Float = npt.NDArray[np.float64]
N, APART = 9, 8.0


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(21)


def units(rng: np.random.Generator, *shape: int) -> Float:
    values = rng.normal(size=shape)
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def tensor(array: npt.NDArray[Any], *, needs_grad: bool = False) -> Any:
    return torch.tensor(array, requires_grad=needs_grad)


def correspondences(rng: np.random.Generator) -> losses.Correspondences:
    """Places in two images, some nearer than T to each other, and which are used."""
    xy_q = rng.uniform(0, 30, (N, 2))
    xy_k = xy_q + rng.normal(0, 3, (N, 2))
    is_match = np.ones(N, bool)
    is_match[[2, 5]] = False
    return losses.Correspondences(tensor(xy_q), tensor(xy_k), tensor(is_match))


def slow_selected(local_q: Float, meta_q: Float, local_k: Float, meta_k: Float) -> Float:
    """Equation 1 of all points (4, n, D) with all, pair by pair."""
    found = np.zeros((local_q.shape[1], local_k.shape[1]))
    for i, j in np.ndindex(*found.shape):
        weights = [np.exp(meta_q[s, i] @ meta_k[s, j]) for s in range(4)]
        for s in range(4):
            apart = np.sqrt(((local_q[s, i] - local_k[s, j]) ** 2).sum())
            found[i, j] += weights[s] / sum(weights) * apart
    return found


def slow_triplet(distance: Float, points: losses.Correspondences, margin: float) -> float:
    """Equations 2 and 3."""
    xy_q, xy_k, is_match = (each.numpy() for each in points)
    cost = []
    for x in np.flatnonzero(is_match):
        of_k = [
            distance[x, y] for y in np.flatnonzero(is_match)
            if np.linalg.norm(xy_k[x] - xy_k[y]) > APART
        ]  # fmt: skip
        of_q = [
            distance[y, x] for y in np.flatnonzero(is_match)
            if np.linalg.norm(xy_q[x] - xy_q[y]) > APART
        ]  # fmt: skip
        negative = min([2.0, *of_k, *of_q])
        cost.append(max(0.0, distance[x, x] ** 2 - negative**2 + margin))
    return float(np.mean(cost))


def test_equation_1(rng: np.random.Generator) -> None:
    parts = [units(rng, 2, 4, n, 6) for n in (5, 5, 7, 7)]
    found = losses.selected_distances(*map(tensor, parts))
    assert found.shape == (2, 5, 7)
    for pair in range(2):
        assert_allclose(found[pair], slow_selected(*(each[pair] for each in parts)))

    def loss(*raw: Any) -> Any:
        return losses.selected_distances(*(functional.normalize(each, dim=-1) for each in raw))

    assert gradcheck(loss, tuple(tensor(each[:1, :, :3], needs_grad=True) for each in parts))


def test_equations_2_and_3(rng: np.random.Generator) -> None:
    points, distance = correspondences(rng), rng.uniform(0.1, 1.9, (N, N))
    negative = losses.negative_distances(tensor(distance), points, APART)
    positive = torch.diagonal(tensor(distance))
    found = losses.triplet_loss(positive, negative, points.is_match, 0.7)
    expected = slow_triplet(distance, points, 0.7)
    assert expected > 0
    assert float(found) == pytest.approx(expected)
    # Where all points are near each other none is wrong: 2 is as far as unit vectors get.
    near = points._replace(xy_q=0.01 * points.xy_q, xy_k=0.01 * points.xy_k)
    assert (losses.negative_distances(tensor(distance), near, APART) == 2).all()
    none = losses.triplet_loss(positive, negative, torch.zeros_like(points.is_match), 0.7)
    assert float(none) == 0


def test_equation_4(rng: np.random.Generator) -> None:
    local_a, points = units(rng, N, 6), correspondences(rng)
    local_i = local_a + 0.4 * rng.normal(size=local_a.shape)
    local_i /= np.linalg.norm(local_i, axis=1, keepdims=True)
    distance = np.linalg.norm(local_a[:, None] - local_i[None], axis=2)
    found = losses.invariant_loss(tensor(local_a), tensor(local_i), points, 0.6, APART)
    assert float(found) == pytest.approx(slow_triplet(distance, points, 0.6))

    def loss(a: Any, i: Any) -> Any:
        a, i = (functional.normalize(each, dim=-1) for each in (a, i))
        return losses.invariant_loss(a, i, points, 0.6, APART)

    inputs = tuple(tensor(each, needs_grad=True) for each in (local_a, local_i))
    assert gradcheck(loss, inputs)


def test_equation_5(rng: np.random.Generator) -> None:
    local = [units(rng, 2, 4, N, 6) for _ in range(3)]
    factor, used = rng.uniform(0, 1, (2, 4)), rng.random((2, 1, N)) < 0.7
    a, v, i = map(tensor, local)
    found = losses.variant_loss(a, v, i, tensor(factor), tensor(used), 0.9)
    for pair, part in np.ndindex(2, 4):
        cost = [
            max(
                0.0,
                sum((local[0][pair, part, x] - local[1][pair, part, x]) ** 2)
                - sum((local[0][pair, part, x] - local[2][pair, part, x]) ** 2)
                + factor[pair, part] * 0.9,
            )
            for x in np.flatnonzero(used[pair, 0])
        ]
        assert float(found[pair, part]) == pytest.approx(np.mean(cost))

    def loss(*raw: Any) -> Any:
        a, v, i = (functional.normalize(each, dim=-1) for each in raw)
        return losses.variant_loss(a, v, i, tensor(factor), tensor(used), 0.9)

    assert gradcheck(loss, tuple(tensor(each, needs_grad=True) for each in local))


def test_equation_6(rng: np.random.Generator) -> None:
    invariant, variant = rng.uniform(0, 1, (2, 3, 4))
    has_changed = rng.random((3, 4)) < 0.5
    found = losses.local_loss(tensor(invariant), tensor(variant), tensor(has_changed))
    for pair in range(3):
        chosen = [
            variant[pair, s] if has_changed[pair, s] else invariant[pair, s] for s in range(4)
        ]
        assert float(found[pair]) == pytest.approx(np.mean(chosen))


def test_equation_7(rng: np.random.Generator) -> None:
    local_a, meta_a, local_i, meta_i = (units(rng, 4, N, 6) for _ in range(4))
    points, selected = correspondences(rng), slow_selected(local_a, meta_a, local_i, meta_i)

    def loss(*raw: Any) -> Any:
        parts = (functional.normalize(each, dim=-1) for each in raw)
        return losses.meta_loss(losses.selected_distances(*parts), points, 0.8, APART)

    inputs = [tensor(each, needs_grad=True) for each in (local_a, meta_a, local_i, meta_i)]
    found = loss(*inputs)
    assert found.item() == pytest.approx(slow_triplet(selected, points, 0.8))
    assert gradcheck(loss, inputs)
    found.backward()
    assert all(float(each.grad.abs().max()) > 1e-4 for each in inputs)


# ---------------------------------------------------------------- what they are given


def test_a_turn_is_measured(rng: np.random.Generator) -> None:
    first = rng.uniform(0, 100, (5, 30, 2))
    turns = np.radians([0.0, 30.0, -75.0, 179.0, 90.0])
    second = np.empty_like(first)
    for pair, turn in enumerate(turns):
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        second[pair] = 1.3 * first[pair] @ rotation.T + [5, -80] + rng.normal(0, 0.5, (30, 2))
    used = rng.random((5, 30)) < 0.8
    second[~used] = 1e3
    found = losses_turn(first, second, used)
    assert_allclose(np.angle(np.exp(1j * (found - turns))), 0, atol=0.02)


def losses_turn(first: Any, second: Any, used: npt.NDArray[np.bool_]) -> Float:
    return np.asarray(aislfd.turn_between(tensor(first), tensor(second), tensor(used)).numpy())


def textured(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.asarray(np.clip(120 + 45 * smooth / smooth.std(), 0, 255), np.uint8)


def test_a_warp_takes_points_with_it(rng: np.random.Generator) -> None:
    """What is seen at a point is seen at its new place, and the turn is the one asked for."""
    torch.manual_seed(3)
    image, turns = textured(128, 128, 1), np.array([0.0, 1.2, -2.5])
    xy = rng.uniform(10, 118, (3, 80, 2)).astype(np.float32)
    images = torch.from_numpy(image).expand(3, -1, -1, -1)
    found = aislfd.warp(images, tensor(xy), tensor(turns.astype(np.float32)))
    used = found.is_inside.numpy()
    assert used.mean() > 0.5
    measured = losses_turn(xy, found.xy.numpy(), used)
    assert_allclose(np.angle(np.exp(1j * (measured - turns))), 0, atol=0.15)
    for pair in range(3):
        before = at(image, xy[pair][used[pair]])
        after = at(found.images[pair].numpy(), found.xy[pair].numpy()[used[pair]])
        assert np.corrcoef(before, after)[0, 1] > 0.95


def at(image: npt.NDArray[np.uint8], xy: npt.NDArray[np.float32]) -> Any:
    x, y = np.asarray(xy - 0.5, np.float32).T
    return cv2.remap(image.astype(np.float32).mean(2), x[None], y[None], cv2.INTER_LINEAR)[0]


@pytest.mark.parametrize('is_relit', [False, True])
def test_what_a_descriptor_varies_with(is_relit: bool) -> None:
    turns = torch.tensor(np.radians([0.0, -8.0, 30.0, -160.0]))
    has_changed, factor = aislfd.changes(turns, is_relit=is_relit)
    for pair, turn in enumerate([0.0, 8.0, 30.0, 160.0]):
        for part, name in enumerate(VARIANCES):
            illum, rot = name.split('_')[1], name.split('_')[3]
            by_light, by_turn = is_relit and illum == 'var', turn > 10 and rot == 'var'
            assert bool(has_changed[pair, part]) == (by_light or by_turn)
            if has_changed[pair, part]:
                expected = 1.0 if by_light else min(1, turn / 45)
                assert float(factor[pair, part]) == pytest.approx(expected)


@pytest.mark.parametrize('is_single', [False, True])
def test_shares_that_are_right(rng: np.random.Generator, is_single: bool) -> None:
    pairs, count = 3, 7
    local_a, meta_a = units(rng, 2, pairs, 4, count, 6)
    local_b = local_a + 0.5 * rng.normal(size=local_a.shape)
    local_b /= np.linalg.norm(local_b, axis=-1, keepdims=True)
    meta_b = units(rng, pairs, 4, count, 6)
    is_point = rng.random((2 * pairs, count)) < 0.8
    partner = np.where(is_point[:pairs] & is_point[pairs:], np.arange(count), -1)

    # All points of the batch one after the other, (4, 21, 6).
    flat = [
        each.swapaxes(0, 1).reshape(4, pairs * count, 6)
        for each in (local_a, meta_a, local_b, meta_b)
    ]
    distances = {
        name: np.linalg.norm(flat[0][part, :, None] - flat[2][part, None], axis=-1)
        for part, name in enumerate(VARIANCES)
    }
    distances['right'] = distances[VARIANCES[-1]] if is_single else slow_selected(*flat)
    first, second = (
        aislfd._Views(torch.zeros(pairs, count, 2), tensor(local), tensor(meta))
        for local, meta in ((local_a, meta_a), (local_b, meta_b))
    )
    config = AislfdConfig(is_single=is_single)
    found = aislfd._shares_right(first, second, tensor(is_point), tensor(partner), config)
    here, there = is_point[:pairs].ravel(), is_point[pairs:].ravel()
    matches = np.flatnonzero(partner.ravel() >= 0)
    for name, distance in distances.items():
        right = [
            x for x in matches
            if min((distance[x, y], y) for y in np.flatnonzero(there))[1] == x
            and min((distance[y, x], y) for y in np.flatnonzero(here))[1] == x
        ]  # fmt: skip
        assert 0 < len(right) < len(matches)
        assert float(found[f'matched_{name}']) == pytest.approx(len(right) / len(matches))


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('photos')
    for number in range(3):
        cv2.imwrite(str(folder / f'{number}.png'), textured(150, 220, number))
    return folder


def config_of(photos: Path, **changes: Any) -> AislfdConfig:
    options: dict[str, Any] = {
        'photos': [str(photos)], 'holdout_every': 3, 'steps': 2, 'warmup_steps': 1, 'workers': 0,
        'log_every': 1, 'validate_every': 2, 'validation_batches': 1, 'weight_decay': 0.0,
        'pair': PairConfig(pairs=1, size=64, points=30, town_share=0.0),
    }  # fmt: skip
    return AislfdConfig(**options | changes)


@pytest.mark.parametrize('is_single', [False, True])
def test_it_learns(tmp_path: Path, photos: Path, is_single: bool) -> None:
    run = Run(get_system('aislfd'), config_of(photos, is_single=is_single), tmp_path)
    before = {name: each.clone() for name, each in run.trainee.named_parameters()}
    assert run.train() == 2
    still = {
        name.removeprefix('network.')
        for name, each in run.trainee.named_parameters()
        if torch.equal(each, before[name]) and 'log_scale' not in name
    }
    others = {
        f'{part}.{kind}'
        for name in VARIANCES[:-1]
        for part in (f'conv_{name}_1', f'bn_{name}_1', f'conv_{name}_2')
        for kind in ('weight', 'bias')
    }
    assert still == (others if is_single else set())
    assert load_weights(tmp_path / 'weights_last.npz', 'aislfd_exact').network == 'aislfd_exact'


def test_one_batch_can_be_learned(tmp_path: Path, photos: Path) -> None:
    """The same pairs again and again: more and more of their matches are right, by equation 1."""
    config = config_of(photos, learning_rate=1e-3)
    config = replace(config, pair=replace(config.pair, size=96, points=60, upended_share=0.0))
    run = Run(get_system('aislfd'), config, tmp_path)
    batch = next(iter(run._batches(1)))
    right = []
    for step in range(16):
        torch.manual_seed(step)
        total, logged = aislfd.losses(run.trainee, batch, config)
        run.optimizer.zero_grad(set_to_none=True)
        total.backward()
        run.optimizer.step()
        right.append(float(logged['matched_right']))
    assert np.mean(right[-4:]) > 0.5 + np.mean(right[:4])

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The network that is ours: its contract, and its pieces beside slow loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')

from feat_ros.models import sfd2_lite  # noqa: E402
from feat_ros.models.sfd2_lite import sample, Sfd2Lite, tones  # noqa: E402

Image = npt.NDArray[np.uint8]


@pytest.fixture(scope='module')
def network() -> Any:
    torch.manual_seed(0)
    return Sfd2Lite(200).eval()


def picture(height: int, width: int, seed: int = 0) -> Image:
    """Paint rectangles, smoothed a little."""
    import cv2

    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 90, np.uint8)
    for _ in range(height * width // 150):
        x, y = rng.integers(0, [width, height])
        size = rng.integers(3, 12, 2)
        color = rng.integers(0, 256, 3).tolist()
        cv2.rectangle(image, (int(x), int(y)), (int(x + size[0]), int(y + size[1])), color, -1)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0), np.uint8)


def extract(network: Any, image: Image, valid_wh: tuple[int, int] | None = None) -> list[Any]:
    """Return keypoints, scores, descriptors, stability and num as arrays."""
    valid = torch.tensor(valid_wh or (image.shape[1], image.shape[0]), dtype=torch.int32)
    with torch.no_grad():
        return [each.numpy() for each in network(torch.from_numpy(image)[None], valid)]


def test_the_network_is_as_small_as_it_should_be(network: Any) -> None:
    assert sum(each.numel() for each in network.parameters()) <= 1.5e6
    products = 0

    def count(module: Any, _: Any, output: Any) -> None:
        nonlocal products
        per_output = module.weight[0].numel()
        products += output.numel() * per_output

    hooks = [
        module.register_forward_hook(count)
        for module in network.network.backbone.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        network.network.backbone(torch.zeros(1, 3, 480, 640))
    for hook in hooks:
        hook.remove()
    assert products <= 1.3e9


@pytest.mark.parametrize('size', [(64, 96), (61, 83), (33, 40)])
def test_the_contract(network: Any, size: tuple[int, int]) -> None:
    image = picture(*size)
    keypoints, scores, descriptors, stability, num = extract(network, image)
    assert [each.shape for each in (keypoints, scores, descriptors, stability, num)] == [
        (200, 2), (200,), (200, 128), (200,), (),
    ]  # fmt: skip
    assert num.dtype == np.int32
    assert 3 < num < 200
    for rows in (keypoints, scores, descriptors, stability):
        assert rows.dtype == np.float32
        assert not rows[num:].any()
    assert np.all(np.diff(scores[:num]) <= 0)
    assert np.all((keypoints[:num] > 3) & (keypoints[:num] < (size[1] - 3, size[0] - 3)))
    assert_allclose(np.linalg.norm(descriptors[:num], axis=1), 1, atol=1e-5)
    assert np.all((stability[:num] >= 0.1) & (stability[:num] <= 1))


@pytest.mark.parametrize('level', [0, 128, 255])
def test_a_plain_picture_has_no_keypoints(network: Any, level: int) -> None:
    found = extract(network, np.full((64, 64, 3), level, np.uint8))
    assert not any(each.any() for each in found)
    nothing = extract(network, picture(64, 64), valid_wh=(0, 0))
    assert not any(each.any() for each in nothing)


def test_what_is_padding_does_not_matter(network: Any) -> None:
    image = picture(50, 70)
    padded = np.full((64, 96, 3), 255, np.uint8)
    padded[:50, :70] = image
    plain = extract(network, image)
    for value in (0, 255):
        padded[50:], padded[:, 70:] = value, value
        for a, b in zip(plain, extract(network, padded, (70, 50)), strict=True):
            assert_allclose(a, b, atol=1e-4)


def test_the_keypoints_kept_are_the_best_of_more() -> None:
    torch.manual_seed(0)
    few, many = Sfd2Lite(10).eval(), Sfd2Lite(300).eval()
    few.load_state_dict(many.state_dict(), strict=True)
    image = picture(96, 96)
    kept, all_kept = extract(few, image), extract(many, image)
    # The detector's weaker points are not ranked by the network when few are wanted.
    assert kept[4] == 10
    places = {tuple(each) for each in all_kept[0].round(3).tolist()}
    assert all(tuple(each) in places for each in kept[0].round(3).tolist())


def test_the_exponent_of_stability_only_changes_scores(network: Any) -> None:
    plain = Sfd2Lite(200, stability_exponent=0.0).eval()
    plain.load_state_dict(network.state_dict(), strict=True)
    image = picture(64, 96)
    with_it, without = extract(network, image), extract(plain, image)
    assert with_it[4] == without[4]
    rows = {tuple(place): row for row, place in enumerate(without[0].tolist())}
    order = [rows[tuple(place)] for place in with_it[0][: with_it[4]].tolist()]
    expected = without[1][order] * without[3][order] ** network.stability_exponent
    assert_allclose(with_it[1][: with_it[4]], expected, rtol=1e-4)


def test_tones_forget_how_much_light_there_was() -> None:
    rng = np.random.default_rng(1)
    dim = rng.integers(20, 60, (1, 40, 33, 3)).astype(np.uint8)
    valid = torch.tensor([[33, 40]], dtype=torch.int32)
    once, fourfold = tones(torch.from_numpy(dim), valid), tones(torch.from_numpy(dim * 4), valid)
    assert tuple(once.colors.shape) == (1, 3, 64, 64)
    assert tuple(once.grey.shape) == (1, 1, 64, 64)
    for a, b in zip(once, fourfold, strict=True):
        assert_allclose(a.numpy(), b.numpy(), atol=0.02)
        assert not a[..., 40:, :].any()
        assert not a[..., 33:].any()
    mean = dim[0].mean(axis=(0, 1)) + 2
    expected = dim[0] / (dim[0] + mean) - 0.5
    assert_allclose(once.colors[0, :, :40, :33].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    luma = np.array([0.299, 0.587, 0.114])
    expected = (dim[0] @ luma / (mean @ luma) - 1) / 4
    assert_allclose(once.grey[0, 0, :40, :33].numpy(), expected, atol=1e-5)


def test_samples_are_bilinear() -> None:
    rng = np.random.default_rng(2)
    maps = rng.normal(size=(2, 3, 5, 7))
    xy = rng.uniform(-2, 9, (40, 2))
    image = rng.integers(0, 2, 40)
    taken = sample(torch.from_numpy(maps), torch.from_numpy(xy), torch.from_numpy(image)).numpy()
    for row, ((x, y), number) in enumerate(zip(xy, image, strict=True)):
        x, y = np.clip(x - 0.5, 0, 6), np.clip(y - 0.5, 0, 4)
        expected = sum(
            maps[number, :, j, i] * max(0.0, 1 - abs(x - i)) * max(0.0, 1 - abs(y - j))
            for j in range(5)
            for i in range(7)
        )
        assert_allclose(taken[row], expected, atol=1e-12)


def test_the_gradient_of_samples() -> None:
    maps = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    xy = torch.tensor([[1.2, 0.7], [2.4, 3.3], [0.1, 9.0]], dtype=torch.float64)
    image = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(lambda m: sample(m, xy, image), (maps,))


def test_stability_is_the_expected_value() -> None:
    logits = torch.tensor([[9.0, -9, -9], [-9, 9, -9], [-9, -9, 9], [0, 0, 0]])
    found = sfd2_lite.stability(logits).numpy()
    assert_allclose(found, [0.1, 0.5, 1.0, 1.6 / 3], atol=1e-4)


def test_rings_turn_and_grow_with_the_scale(network: Any) -> None:
    ramp = torch.arange(64.0).expand(64, 64)
    maps = [ramp.expand(1, 16, 64, 64), ramp.expand(1, 32, 64, 64)]
    points = sfd2_lite.FlatPoints(
        torch.tensor([[60.0, 60.0]]), torch.tensor([2.0]), torch.tensor([0])
    )
    centers = network.network.centers(maps, points)
    rings = network.network.rings(maps, points)
    assert_array_equal(centers[0][0].numpy(), np.full(16, 60 / 2 - 0.5, np.float32))
    ring = rings[0].reshape(8, 16)[:, 0].numpy() - 29.5
    assert_allclose(ring, 2.5 * 2.0 / 2 * np.cos(np.arange(8) * np.pi / 4), atol=1e-4)

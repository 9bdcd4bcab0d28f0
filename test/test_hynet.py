# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""HyNet against a literal reading of its paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip('torch', reason='torch is not installed')

import torch
from torch import Tensor

from feat_ros.errors import NetworkError
from feat_ros.models.hynet import (
    cut_patches,
    HyNet,
    luma,
    orientations,
    PATCH_SIZE,
    PatchNetwork,
    Pyramid,
)
from feat_ros.models.sfd2_lite import tones
from feat_ros.models.weights import build_network, load_weights, save_weights, weights_of
from feat_ros.runtimes import open_network
from feat_ros.runtimes.contract import output_from_arrays
from feat_ros.runtimes.parity import compare_outputs
from feat_ros.training import hynet_losses as losses
from feat_ros.training.configs import HynetConfig
from feat_ros.training.hynet import _choose, _is_apart
from feat_ros.training.hynet import losses as loss_of_batch

Array = npt.NDArray[np.float64]


def random_network(network: type[PatchNetwork] = PatchNetwork, **options: Any) -> Any:
    """A network with random weights, whose normalisations are not what they start with."""
    torch.manual_seed(4)
    made = network(**options).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith('tau'):
                value.uniform_(-1.5, 0.5)
            elif value.dim() == 4 and value.shape[2:] == (1, 1):
                value.normal_(0.3, 0.5)
        for name, value in made.named_buffers():
            if name.endswith('running_mean'):
                value.normal_(0, 0.5)
            elif name.endswith('running_var'):
                value.uniform_(0.5, 2)
    return made


# ---------------------------------------------------------------- section 3.3, word for word


def frn_tlu(x: Array, state: dict[str, Array], frn: str, tlu: str) -> Array:
    """Equation 8 of each channel, then the threshold."""
    out = np.empty_like(x)
    for c, f in enumerate(x):
        size = f.size
        length = math.sqrt((f**2).sum() + size * 1e-6)
        gamma, beta = state[f'{frn}.weight'][0, c, 0, 0], state[f'{frn}.bias'][0, c, 0, 0]
        out[c] = np.maximum(
            gamma * math.sqrt(size) * f / length + beta, state[f'{tlu}.tau'][0, c, 0, 0]
        )
    return out


def convolve(x: Array, weight: Array, bias: Array, stride: int, pad: int) -> Array:
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    size = weight.shape[2]
    rows = (padded.shape[1] - size) // stride + 1
    out = np.empty((len(weight), rows, rows))
    for row in range(rows):
        for column in range(rows):
            part = padded[:, row * stride : row * stride + size, column * stride :][:, :, :size]
            out[:, row, column] = np.tensordot(weight, part, 3) + bias
    return out


def test_descriptors_are_those_of_the_paper() -> None:
    made = random_network()
    state = {name: each.numpy().astype(float) for name, each in made.state_dict().items()}
    patches = np.random.default_rng(1).uniform(0, 255, (2, 1, 32, 32)).astype(np.float32)
    wanted = []
    for patch in patches.astype(float):
        x = frn_tlu(patch, state, 'layer1.0', 'layer1.1')
        for number, stride in ((1, 1), (2, 1), (3, 2), (4, 1), (5, 2), (6, 1)):
            at = 2 if number == 1 else 0
            names = [f'layer{number}.{at + k}' for k in range(3)]
            x = convolve(x, state[f'{names[0]}.weight'], state[f'{names[0]}.bias'], stride, 1)
            x = frn_tlu(x, state, names[1], names[2])
        x = convolve(x, state['layer7.1.weight'], np.zeros(128), 1, 0)[:, 0, 0]
        x = (x - state['layer7.2.running_mean']) / np.sqrt(state['layer7.2.running_var'] + 1e-5)
        wanted.append(x)
    with torch.no_grad():
        raw, unit = made.raw(torch.from_numpy(patches)), made.describe(torch.from_numpy(patches))
    np.testing.assert_allclose(raw, wanted, atol=2e-4 * np.abs(wanted).max())
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, np.array(wanted) / lengths, atol=2e-4)


def test_the_published_layout_loads_strictly(tmp_path: Path) -> None:
    made = random_network(HyNet)
    state = made.state_dict()
    assert (len(state), sum(each.numel() for each in made.parameters())) == (44, 1_336_355)
    assert list(state)[:4] == ['layer1.0.weight', 'layer1.0.bias', 'layer1.0.eps', 'layer1.1.tau']
    torch.save(state, tmp_path / 'HyNet_LIB.pth')
    again = build_network(load_weights(tmp_path / 'HyNet_LIB.pth', 'hynet'), 50)
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in state.items())
    torch.save({k: v for k, v in state.items() if k != 'layer3.2.tau'}, tmp_path / 'cut.pth')
    with pytest.raises(NetworkError, match='do not fit'):
        build_network(load_weights(tmp_path / 'cut.pth', 'hynet'), 50)
    with pytest.raises(NetworkError, match="unknown norm 'group'; choose one of: response, batch"):
        PatchNetwork('group')


# ---------------------------------------------------------------- patches


def smooth_picture(size: int = 160) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(2).uniform(0, 255, (size, size, 3))
    blurred = cv2.GaussianBlur(noise, (0, 0), 5)
    return np.asarray(np.clip((blurred - blurred.mean()) * 8 + 128, 0, 255), np.uint8)


@pytest.mark.parametrize('sigma', [1.0, 2.0, 4.3])
def test_patches_are_what_a_warp_gives(sigma: float) -> None:
    """OpenCV's warp of the level of the pyramid whose pixels are as far apart as the samples."""
    image = smooth_picture()
    grey = luma(torch.from_numpy(image)[None])
    np.testing.assert_allclose(grey[0, 0], image @ np.array([0.299, 0.587, 0.114]), atol=1e-3)
    xy, turn = torch.tensor([[80.3, 77.8], [91.0, 60.5]]), torch.tensor([0.0, 0.7])
    axis = torch.stack([turn.cos(), turn.sin()], 1)
    found = cut_patches(
        Pyramid(grey), xy, torch.full((2,), sigma), axis, torch.zeros(2, dtype=torch.int64)
    )
    level = max(0, round(math.log2(sigma / 2)))
    half = grey[0, 0].numpy()
    for _ in range(level):
        half = half.reshape(len(half) // 2, 2, len(half) // 2, 2).mean((1, 3))
    for number in range(2):
        (x, y), angle = xy[number].tolist(), float(turn[number])
        wanted = np.empty((PATCH_SIZE, PATCH_SIZE), np.float32)
        for row in range(PATCH_SIZE):
            for column in range(PATCH_SIZE):
                u, v = ((at + 0.5) / PATCH_SIZE - 0.5 for at in (column, row))
                px = x + 16 * sigma * (math.cos(angle) * u - math.sin(angle) * v)
                py = y + 16 * sigma * (math.sin(angle) * u + math.cos(angle) * v)
                at = np.array([[[px / 2**level - 0.5, py / 2**level - 0.5]]], np.float32)
                wanted[row, column] = cv2.remap(half, at, None, cv2.INTER_LINEAR)[0, 0]
        # OpenCV's bilinear weights have five bits.
        np.testing.assert_allclose(found[number, 0], wanted, atol=2.5)


def test_patches_turn_with_the_image() -> None:
    """A picture turned by a right angle gives the same patches, by itself and in a batch."""
    image = smooth_picture()
    turned = np.ascontiguousarray(np.rot90(image))
    grey = luma(torch.from_numpy(np.stack([image, turned])))
    xy = torch.tensor([[80.3, 77.8], [60.0, 90.5], [101.7, 64.2]])
    there = torch.stack([xy[:, 1], 160 - xy[:, 0]], 1)
    sigma = torch.tensor([1.5, 2.0, 3.0])
    pyramid, patches = Pyramid(grey), []
    for number, places in enumerate((xy, there)):
        image_of = torch.full((3,), number)
        axis = orientations(pyramid, places, sigma, image_of)
        patches.append(cut_patches(pyramid, places, sigma, axis, image_of))
    assert (patches[0] - patches[1]).abs().max() < 2.0
    assert patches[0].std() > 10


def test_orientation_points_to_the_bright_side() -> None:
    """A ramp of known direction; and a wall, where any direction will do."""
    at = torch.arange(96) + 0.5
    for angle in (0.0, 0.4, 2.0, -1.3):
        ramp = 120 + math.cos(angle) * at[None] + math.sin(angle) * at[:, None]
        axis = orientations(
            Pyramid(ramp[None, None]), torch.tensor([[48.0, 47.2]]), torch.tensor([2.0]),
            torch.zeros(1, dtype=torch.int64),
        )  # fmt: skip
        np.testing.assert_allclose(axis[0], [math.cos(angle), math.sin(angle)], atol=1e-3)
    wall = orientations(
        Pyramid(torch.full((1, 1, 96, 96), 90.0)), torch.tensor([[48.0, 47.2]]),
        torch.tensor([2.0]), torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    np.testing.assert_allclose(wall[0], [1, 0], atol=1e-6)


# ---------------------------------------------------------------- equations 4 to 7


def units(rng: np.random.Generator, count: int) -> Array:
    rows = rng.normal(size=(count, 6))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_losses_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(3)
    a, b = units(rng, 7), units(rng, 7)
    is_apart = ~np.eye(7, dtype=bool)
    is_apart[1, 4] = is_apart[4, 1] = False
    total = 0.0
    for i in range(7):
        cosines = []
        for j in range(7):
            if is_apart[i, j]:
                cosines += [a[i] @ b[j], b[i] @ a[j], a[i] @ a[j], b[i] @ b[j]]
        near, far = (
            2 * (1 - c) + math.sqrt(2 * (1 - c) + 1e-6) for c in (a[i] @ b[i], max(cosines))
        )
        total += max(0.0, 1.2 + near - far)
    first, second = tensor(a), tensor(b)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        negative = losses.hardest_negatives(first, second, torch.from_numpy(is_apart))
        near, far = (
            losses.hybrid_distance(each, 2.0) for each in ((first * second).sum(1), negative)
        )
        return losses.triplet_loss(near, far, 1.2)

    assert float(loss(first, second).detach()) == pytest.approx(total / 7, rel=1e-9)
    assert torch.autograd.gradcheck(loss, (first, second))


def test_the_norm_loss_is_equation_5() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 9, 5))
    wanted = np.mean((np.linalg.norm(x, axis=1) - np.linalg.norm(y, axis=1)) ** 2)
    assert float(losses.norm_loss(tensor(x), tensor(y)).detach()) == pytest.approx(
        wanted, rel=1e-5
    )
    assert torch.autograd.gradcheck(losses.norm_loss, (tensor(x), tensor(y)))


def test_no_more_pairs_than_wanted_and_none_that_are_alike() -> None:
    partner = torch.tensor([[3, -1, 0, 1], [-1, -1, 2, -1]])
    assert _choose(partner, 4).tolist() == [0, 2, 6]
    assert _choose(partner, 99).tolist() == [0, 2, 3, 6]
    xy = torch.tensor([[0.0, 0], [5, 0], [30, 0], [0, 0]])
    apart = _is_apart(xy, torch.tensor([1.0, 2, 1, 1]), torch.tensor([0, 0, 0, 1]))
    assert apart.tolist() == [
        [False, False, True, True], [False, False, True, True],
        [True, True, False, True], [True, True, True, False],
    ]  # fmt: skip


# ---------------------------------------------------------------- training and extraction


def test_a_few_steps_learn(tmp_path: Path) -> None:
    """On two pictures and one batch of pairs: the loss falls, with both losses."""
    from feat_ros.training.configs import PairConfig
    from feat_ros.training.pairs import PairMaker
    from feat_ros.training.run import Trainee

    for number in range(2):
        cv2.imwrite(str(tmp_path / f'{number}.png'), smooth_picture(256))
    options = HynetConfig(matches=40, pair=PairConfig(pairs=1, size=128, points=60))
    photos = sorted(tmp_path.glob('*.png'))
    batch = PairMaker(options.pair, photos, None, 0, torch.device('cpu'))[0]
    for is_plain in (False, True):
        torch.manual_seed(1)
        trainee = Trainee(PatchNetwork('batch' if is_plain else 'response'))
        optimizer = torch.optim.Adam(trainee.parameters(), 3e-3)
        config = HynetConfig(**{**vars(options), 'is_plain': is_plain})
        values = []
        for _ in range(8):
            total, logged = loss_of_batch(trainee, batch, config)
            assert logged['matches'] >= 4
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            values.append(float(total.detach()))
        assert np.mean(values[-2:]) < 0.9 * values[0]


def test_features_of_an_image(tmp_path: Path) -> None:
    from feat_ros.extractors import create_extractor

    save_weights(tmp_path / 'h.npz', weights_of(random_network(HyNet), 'hynet'))
    extract = create_extractor(
        'hynet', model=str(tmp_path / 'h.npz'), max_keypoints=60, runtime='torch'
    )
    image = smooth_picture(160)[:, :130]
    features = extract(np.ascontiguousarray(image))
    assert 5 < len(features) <= 60
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)
    assert (features.keypoints >= 0).all() and (features.keypoints <= [130, 160]).all()


def test_keypoints_are_the_strongest_that_are_no_edges() -> None:
    noise = np.random.default_rng(6).uniform(0, 255, (96, 96, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.2, sigmaY=3.0)
    image = np.clip(128 + 50 * (smooth - smooth.mean()) / smooth.std(), 0, 255).astype(np.uint8)
    network, sizes = random_network(HyNet, max_keypoints=40), torch.tensor([[96, 96]])
    with torch.inference_mode():
        keypoints, scores, rows, stability, num = network(
            torch.from_numpy(image)[None], sizes[0].int()
        )
        points = network.detector(tones(torch.from_numpy(image)[None], sizes).grey, sizes, 60)
    response = points.response[0]
    assert (response[:40] == 0).any() and (response > 0).sum() >= 40
    strongest = np.argsort(-response.numpy(), kind='stable')[:40]
    assert num == 40
    np.testing.assert_array_equal(scores, response[strongest])
    np.testing.assert_array_equal(keypoints, points.xy[0][strongest])
    assert (stability == 1).all()
    # Each described at its own scale and place.
    pyramid, first = Pyramid(luma(torch.from_numpy(image)[None])), torch.zeros(40).long()
    sigma = points.sigma[0][strongest].clamp(min=1.0)
    axis = orientations(pyramid, keypoints, sigma, first)
    patches = cut_patches(pyramid, keypoints, sigma, axis, first)
    np.testing.assert_allclose(rows, network.describe(patches).detach(), atol=1e-5)


def test_onnx_finds_what_torch_finds(tmp_path: Path) -> None:
    """In an image with padding; of a fixed size, which exports in half the time."""
    for library in ('onnx', 'onnxruntime'):
        pytest.importorskip(library, reason=f'{library} is not installed')
    from feat_ros.export import export_network

    weights, path = weights_of(random_network(HyNet), 'hynet', seed=4), tmp_path / 'hynet.onnx'
    check = {'picture': smooth_picture(160)[:, :128]}
    manifest = export_network(path, weights, 60, check, size_wh=(128, 160))
    assert (manifest.descriptor_dim, manifest.tensorrt_faults) == (128, [])
    noise = np.random.default_rng(8).uniform(0, 255, (160, 128, 3))
    image = np.clip(cv2.GaussianBlur(noise, (0, 0), 1.5) * 4 - 382, 0, 255).astype(np.uint8)
    with torch.inference_mode():
        arrays = build_network(weights, 60)(
            torch.from_numpy(image)[None], torch.tensor([107, 141]).int()
        )
    expected = output_from_arrays([each.numpy() for each in arrays])
    exported = open_network('hynet', 60, 'onnx', str(path))
    parity = compare_outputs(expected, exported(image, (107, 141)))
    assert parity.num[0] == parity.num[1] > 15
    assert parity.near == 1
    assert parity.cosine > 1 - 1e-5

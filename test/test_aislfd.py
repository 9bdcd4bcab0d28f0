# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The network of AISLFD beside slow loops, its two kinds of descriptors, and their matching."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

from feat_ros.build_folder import BuildFolder
from feat_ros.camera import Camera
from feat_ros.extractors.sift import SiftConfig
from feat_ros.image import Image, write_png
from feat_ros.localizer import Localizer
from feat_ros.matching import mutual_nearest, selected_similarity, similarity_of
from feat_ros.runtimes import open_network
from feat_ros.runtimes.contract import output_from_arrays
from feat_ros.runtimes.parity import compare_outputs
from feat_ros.types import Features

torch = pytest.importorskip('torch', reason='torch is not installed')

from torch.nn import functional  # noqa: E402

from feat_ros.errors import NetworkError  # noqa: E402
from feat_ros.extractors import create_extractor  # noqa: E402
from feat_ros.models.aislfd import Aislfd, AislfdExact, attend, VARIANCES  # noqa: E402
from feat_ros.models.scale_space import ScaleSpace  # noqa: E402
from feat_ros.models.sfd2_lite import tones  # noqa: E402
from feat_ros.models.weights import load_weights, save_weights, weights_of  # noqa: E402

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


def picture(width: int, height: int, seed: int = 0) -> Image:
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.asarray(np.clip(128 + 300 * smooth, 0, 255), np.uint8)


def made(kind: type[Any], window: int = 0, max_keypoints: int = 60) -> Any:
    """Random weights with the statistics of a picture, so that cells differ from their mean."""
    torch.manual_seed(5)
    network = kind(max_keypoints, window)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        valid = torch.tensor([[192, 128]])
        network.local_maps(tones(torch.from_numpy(picture(192, 128, 7))[None], valid).colors)
    return network.eval()


def run(network: Any, image: Image, valid_wh: tuple[int, int] | None = None) -> list[Any]:
    valid = torch.tensor(valid_wh or image.shape[1::-1], dtype=torch.int32)
    with torch.inference_mode():
        return [part.numpy() for part in network(torch.from_numpy(image)[None], valid)]


def test_the_four_heads_have_lisrd_s_names() -> None:
    shapes = {key: tuple(value.shape) for key, value in Aislfd().state_dict().items()}
    published = {
        f'{part}_illum_{illum}_rot_{rot}_{number}.{kind}'
        for illum in ('var', 'invar')
        for rot in ('var', 'invar')
        for part, number, kinds in (
            ('conv', 1, 'weight bias'),
            ('bn', 1, 'weight bias running_mean running_var num_batches_tracked'),
            ('conv', 2, 'weight bias'),
        )
        for kind in kinds.split()
    }
    assert published <= set(shapes)
    assert {shapes[name] for name in published if name.endswith('_2.bias')} == {(128,)}
    assert sum(parameter.numel() for parameter in Aislfd().parameters()) == 1_173_968


def slow_maps(network: Any, image: Image, valid_wh: tuple[int, int]) -> Float:
    """The four maps (4, 128, h, w), every layer named."""
    colors = tones(torch.from_numpy(image)[None], torch.tensor([valid_wh])).colors
    state = dict(network.state_dict())

    def conv(x: Any, name: str, padding: int) -> Any:
        return functional.conv2d(
            x, state[f'{name}.weight'], state[f'{name}.bias'], padding=padding
        )

    *_, eighth, sixteenth, last = network.backbone(colors)
    top = conv(last, 'lateral.2', 0)
    middle = conv(sixteenth, 'lateral.1', 0) + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine = conv(eighth, 'lateral.0', 0)
    fine = fine + middle.repeat_interleave(2, 2).repeat_interleave(2, 3)
    merged = conv(fine, 'merged', 1).clamp(min=0)
    maps = []
    for name in VARIANCES:
        x = conv(merged, f'conv_{name}_1', 1).clamp(min=0)
        mean, variance, gain, shift = (
            state[f'bn_{name}_1.{part}'][:, None, None]
            for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        x = (x - mean) / (variance + 1e-5).sqrt() * gain + shift
        maps.append(conv(x, f'conv_{name}_2', 0)[0])
    return np.asarray(torch.stack(maps).detach().double().numpy())


def slow_attention(values: Float, valid_wh: tuple[int, int], window: int) -> Float:
    """Every cell (C, h, w) looks at every valid one, of its own window where there are any."""
    channels, height, width = values.shape
    found = np.zeros_like(values)
    for y, x in np.ndindex(height, width):
        keys = [
            (v, u)
            for v, u in np.ndindex(height, width)
            if 8 * u < valid_wh[0] and 8 * v < valid_wh[1]
            and (not window or (u // window == x // window and v // window == y // window))
        ]  # fmt: skip
        if not keys:
            continue
        scores = np.array([values[:, y, x] @ values[:, v, u] for v, u in keys]) / np.sqrt(channels)
        weights = np.exp(scores - scores.max())
        for (v, u), weight in zip(keys, weights / weights.sum(), strict=True):
            found[:, y, x] += weight * values[:, v, u]
    return found


@pytest.mark.parametrize('window', [0, 3, 4, 9])
def test_attention_is_that_of_a_slow_loop(window: int) -> None:
    rng = np.random.default_rng(2)
    maps, sizes = 1.5 * rng.normal(size=(2, 4, 16, 5, 8)), [(61, 35), (40, 40)]
    found = attend(torch.from_numpy(maps), torch.tensor(sizes), window).numpy()
    for image, valid_wh in enumerate(sizes):
        for part in range(4):
            expected = slow_attention(maps[image, part], valid_wh, window)
            # What cells see that have no key in their window is nobody's business.
            is_seen = expected.any(0)
            assert is_seen.mean() > 0.6
            assert_allclose(found[image, part][:, is_seen], expected[:, is_seen], atol=1e-9)
    assert np.isfinite(found).all()


def between(values: Float, x: float, y: float) -> Float:
    """Bilinear in a map (C, h, w) of an eighth of the size, centres of cells at halves."""
    _, height, width = values.shape
    x, y = np.clip(x / 8 - 0.5, 0, width - 1), np.clip(y / 8 - 0.5, 0, height - 1)
    total = np.zeros(len(values))
    for row in range(height):
        for column in range(width):
            total += (
                max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row)) * values[:, row, column]
            )
    return total


def unit(values: Float, axis: int = 0) -> Float:
    return np.asarray(values / np.linalg.norm(values, axis=axis, keepdims=True))


@pytest.mark.parametrize('window', [0, 5])
def test_the_network_is_its_equations(window: int) -> None:
    image, valid_wh = picture(96, 64), (90, 60)
    exact, fused = made(AislfdExact, window), made(Aislfd, window)
    keypoints, scores, rows, stability, num = run(exact, image, valid_wh)
    assert rows.shape == (60, 1024)
    assert num > 15
    maps = slow_maps(exact, image, valid_wh)
    metas = [slow_attention(each, valid_wh, window) for each in maps]
    fuse = exact.fuse.weight.detach().double().numpy()
    points, sizes = ScaleSpace(), torch.tensor([valid_wh])
    detected = points(tones(torch.from_numpy(image)[None], sizes).grey, sizes, 90)
    response = detected.response[0].numpy()
    # Some of the strongest are edges, and dropped.
    assert (response[: (response > 0).sum()] == 0).any()
    strongest = np.argsort(-response, kind='stable')[:num]
    assert num == min(60, (response > 0).sum())
    assert_array_equal(keypoints[:num], detected.xy[0].numpy()[strongest])
    assert_array_equal(scores[:num], response[strongest])
    assert (stability[:num] == 1).all()
    of_fused = run(fused, image, valid_wh)
    assert_array_equal(of_fused[0], keypoints)
    for k in range(num):
        local = np.stack([unit(between(unit(each), *keypoints[k])) for each in maps])
        meta = np.stack([unit(between(unit(each), *keypoints[k])) for each in metas])
        expected = np.concatenate([local, meta]).ravel() / np.sqrt(8)
        assert_allclose(rows[k], expected, atol=2e-5)
        assert_allclose(of_fused[2][k], unit(fuse @ local.ravel()), atol=2e-5)
    for part in (keypoints, scores, rows, stability):
        assert not part[num:].any()


def test_attention_prefers_what_is_alike() -> None:
    """The test above would pass with uniform weights: here they are not."""
    network = made(AislfdExact)
    maps = torch.from_numpy(slow_maps(network, picture(96, 64), (96, 64)))[None]
    found = attend(maps, torch.tensor([[96, 64]]))
    mean = maps.mean((3, 4), keepdim=True)
    assert (found - mean).norm() > 0.2 * (maps - mean).norm()


@pytest.mark.parametrize('size', [(8, 8), (1, 1), (9, 70)])
@pytest.mark.parametrize('window', [0, 3])
def test_images_of_any_size(size: tuple[int, int], window: int) -> None:
    keypoints, scores, rows, stability, num = run(made(AislfdExact, window), picture(*size))
    for part in (keypoints, scores, rows, stability):
        assert part.dtype == np.float32
        assert np.isfinite(part).all()
        assert not part[num:].any()


def test_what_the_padding_holds_does_not_matter() -> None:
    network, image = made(AislfdExact, 5), picture(128, 96)
    found = [
        run(network, np.concatenate([image, np.full((96, 64, 3), grey, np.uint8)], 1), (128, 96))
        for grey in (0, 255)
    ]
    assert found[0][-1] > 30
    for dark, bright in zip(*found, strict=True):
        assert_array_equal(dark, bright)


def test_half_precision_moves_no_keypoint() -> None:
    image, found = picture(96, 64), []
    for is_half in (False, True):
        network = made(AislfdExact, 4)
        if is_half:
            network.use_half()
            assert network.backbone.stages[0][0].conv.weight.dtype == torch.float16
        found.append(run(network, image))
    for whole, half in zip(found[0][:2], found[1][:2], strict=True):
        assert_array_equal(whole, half)
    cosine = (found[0][2] * found[1][2]).sum(1)[: found[0][-1]]
    assert 0.999 < cosine.min() < 1 - 1e-7


def rows_of(rng: np.random.Generator, count: int) -> Float32:
    parts = unit(rng.normal(size=(count, 8, 16)), axis=2)
    return np.asarray(parts.reshape(count, -1) / np.sqrt(8), np.float32)


def slow_distance(query: Float32, reference: Float32) -> Float:
    """Equation 1, pair by pair, of meta descriptors of length sqrt(3)."""
    found = np.zeros((len(query), len(reference)))
    for i, j in np.ndindex(*found.shape):
        q, k = (each.astype(float).reshape(8, -1) for each in (query[i], reference[j]))
        q, k = unit(q, axis=1), unit(k, axis=1)
        weights = [np.exp(3 * q[4 + s] @ k[4 + s]) for s in range(4)]
        for s in range(4):
            found[i, j] += weights[s] / sum(weights) * np.linalg.norm(q[s] - k[s])
    return found


def test_equation_1_in_matching() -> None:
    rng = np.random.default_rng(3)
    query = rows_of(rng, 30)
    reference = np.concatenate([query[rng.permutation(30)], rows_of(rng, 20)])
    reference += 0.05 * rng.normal(size=reference.shape).astype(np.float32)
    expected = slow_distance(query, reference)
    found = np.empty(expected.shape, np.float32)
    selected_similarity(query, reference, found)
    assert_allclose(found, -expected, atol=2e-5)
    pairs, scores = mutual_nearest(query, reference, selected_similarity)
    wanted = [
        (i, int(row.argmin()))
        for i, row in enumerate(expected)
        if expected[:, row.argmin()].argmin() == i
    ]
    assert [tuple(pair) for pair in pairs.tolist()] == wanted
    assert len(wanted) > 20
    assert_allclose(scores, np.array([-expected[i, j] for i, j in wanted]), atol=2e-5)


def test_the_extractor_s_name_says_how_to_match() -> None:
    rng = np.random.default_rng(4)
    query, reference = rows_of(rng, 5), rows_of(rng, 6)
    found = np.empty((5, 6), np.float32)
    similarity_of('aislfd_exact')(query, reference, found)
    assert_allclose(found, -slow_distance(query, reference), atol=2e-5)
    for name in ('aislfd', 'sift'):
        similarity_of(name)(query, reference, found)
        assert_allclose(found, query @ reference.T, atol=1e-6)


def test_one_file_serves_both(tmp_path: Path) -> None:
    path = tmp_path / 'mine.npz'
    save_weights(path, weights_of(made(Aislfd, 4), 'aislfd', seed=5))
    features = {
        name: create_extractor(name, model=str(path), max_keypoints=40)(picture(96, 64))
        for name in ('aislfd', 'aislfd_exact')
    }
    assert features['aislfd'].descriptors.shape[1] == 128
    assert features['aislfd_exact'].descriptors.shape[1] == 1024
    assert_array_equal(features['aislfd'].keypoints, features['aislfd_exact'].keypoints)
    exact = load_weights(path, 'aislfd_exact')
    assert exact.network == 'aislfd_exact'
    assert exact.sha256 == load_weights(path, 'aislfd').sha256
    assert exact.options == {'window': 4}
    with pytest.raises(NetworkError, match="holds weights of 'aislfd', not of 'sfd2'"):
        load_weights(path, 'sfd2')


def quietly(items: list[Any], _: str) -> list[Any]:
    return items


class Rows:
    """An extractor that finds the rows it was given, image by image."""

    name, descriptor_dim, weights_sha256 = 'aislfd_exact', 128, ''
    config = SiftConfig()

    def __init__(self, rows: list[Float32]) -> None:
        self.waiting = list(rows)

    def __call__(self, image_rgb: Image) -> Features:
        return features_of(self.waiting.pop(0))


def features_of(rows: Float32) -> Features:
    ones = np.ones(len(rows), np.float32)
    return Features(np.ones((len(rows), 2), np.float32), ones, rows, ones, ones)


def test_maps_and_localizer_match_by_equation_1(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    query, reference = rows_of(rng, 40), rows_of(rng, 50)
    distance = slow_distance(query, reference)
    wanted = [
        [i, int(row.argmin())]
        for i, row in enumerate(distance)
        if distance[:, row.argmin()].argmin() == i
    ]
    assert mutual_nearest(query, reference)[0].tolist() != wanted

    for number in range(2):
        write_png(tmp_path / f'{number}.png', picture(64, 48, number))
    folder = BuildFolder(tmp_path / 'map')
    files, camera = (
        [tmp_path / '0.png', tmp_path / '1.png'],
        Camera('SIMPLE_PINHOLE', 64, 48, (50, 32, 24)),
    )
    stored = folder.extract(files, [camera] * 2, Rows([query, reference]), quietly)
    for kept in (stored, stored.take([0, 1])):
        ((_, found),) = folder.match(kept, [(0, 1)], quietly)
        assert found.tolist() == wanted

    standing_in: Any = SimpleNamespace(
        _matcher=mutual_nearest,
        extractor=SimpleNamespace(name='aislfd_exact'),
        map=SimpleNamespace(descriptors=lambda points: reference[points]),
    )
    found = Localizer._match(standing_in, features_of(query), np.arange(50))
    assert found.tolist() == wanted


def test_onnx_finds_what_torch_finds(tmp_path: Path) -> None:
    """All eight parts, with windows that do not divide the map and padding."""
    for library in ('onnx', 'onnxruntime'):
        pytest.importorskip(library, reason=f'{library} is not installed')
    from feat_ros.export import export_network

    network, path = made(AislfdExact, 5), tmp_path / 'exact.onnx'
    weights = weights_of(network, 'aislfd_exact', seed=5)
    manifest = export_network(path, weights, 60, {'noise': picture(96, 64)}, size_wh=(96, 64))
    assert (manifest.descriptor_dim, manifest.tensorrt_faults) == (1024, [])
    image, valid_wh = picture(96, 64, 9), (83, 61)
    exported = open_network('aislfd_exact', 60, 'onnx', str(path))
    parity = compare_outputs(
        output_from_arrays(run(network, image, valid_wh)), exported(image, valid_wh)
    )
    assert parity.num[0] == parity.num[1] > 15
    assert parity.near == 1
    assert parity.cosine > 1 - 1e-5

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The network of SFD2: the authors' names, and its keypoints beside slow loops."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

from feat_ros.errors import NetworkError
from feat_ros.image import Image

torch = pytest.importorskip('torch', reason='torch is not installed')

from feat_ros.models.keypoints import normalise, TOP_K_LIMIT  # noqa: E402
from feat_ros.models.sfd2 import expected_stability, reliability, Sfd2  # noqa: E402

Float = npt.NDArray[np.float64]


def published_entries() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' state dict, in its order."""
    entries: dict[str, tuple[int, ...]] = {}

    def conv(name: str, outputs: int, inputs: int, size: int, has_bias: bool = True) -> None:
        entries[f'{name}.weight'] = (outputs, inputs, size, size)
        if has_bias:
            entries[f'{name}.bias'] = (outputs,)

    def norm(name: str, channels: int, is_affine: bool = True) -> None:
        for part in (*(['weight', 'bias'] if is_affine else []), 'running_mean', 'running_var'):
            entries[f'{name}.{part}'] = (channels,)
        entries[f'{name}.num_batches_tracked'] = ()

    for number, (inputs, outputs) in enumerate([(3, 64), (64, 128), (128, 256)], start=1):
        conv(f'conv{number}a.0', outputs, inputs, 3)
        norm(f'conv{number}a.1', outputs, is_affine=False)
        conv(f'conv{number}b.0', outputs, outputs, 3)
        norm(f'bn{number}b.0', outputs, is_affine=False)
    for block in range(3):
        for part, (inputs, size) in enumerate([(256, 1), (8, 3), (256, 1)], start=1):
            conv(f'conv4.{block}.conv{part}', 256, inputs, size, has_bias=False)
            norm(f'conv4.{block}.bn{part}', 256)
    for head in ('convPa', 'convDa'):
        conv(f'{head}.0', 256, 256, 3)
        norm(f'{head}.1', 256)
        conv(f'{head}.3', 256, 256, 3)
    for head, outputs in (('convPb', 65), ('convDb', 128), ('ConvSta', 3)):
        conv(head, outputs, 256, 1)
    return entries


@pytest.fixture(scope='module')
def network() -> Any:
    """Random weights, with statistics that leave something to see in the maps."""
    torch.manual_seed(3)
    made = Sfd2(max_keypoints=40)
    with torch.no_grad():
        made.convPb.weight.mul_(60)
        made.ConvSta.weight.mul_(60)
    return made.eval()


def picture(width: int, height: int, seed: int = 0) -> Image:
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.asarray(np.clip(128 + 160 * smooth, 0, 255), np.uint8)


def run(network: Any, image: Image, valid_wh: tuple[int, int] | None = None) -> list[Any]:
    valid = torch.tensor(valid_wh or image.shape[1::-1], dtype=torch.int32)
    with torch.inference_mode():
        return [part.numpy() for part in network(torch.from_numpy(image)[None], valid)]


def test_the_state_dict_is_the_published_one() -> None:
    made = {key: tuple(value.shape) for key, value in Sfd2().state_dict().items()}
    assert list(made.items()) == list(published_entries().items())
    assert sum(parameter.numel() for parameter in Sfd2().parameters()) == 4_010_244


def test_the_maps_have_the_sizes_of_the_paper(network: Any) -> None:
    with torch.inference_mode():
        maps = network.dense(torch.zeros(2, 3, 64, 96))
    assert maps.cell_logits.shape == (2, 65, 8, 12)
    assert maps.descriptors.shape == (2, 128, 16, 24)
    assert maps.stability_logits.shape == (2, 3, 16, 24)
    assert [part.shape for part in maps.features] == [(2, 128, 16, 24), (2, 256, 16, 24)]
    assert all(part.min() >= 0 for part in maps.features)
    assert_allclose(torch.linalg.norm(maps.descriptors, dim=1).numpy(), 1, atol=1e-5)


def test_a_cell_s_pixels_run_row_by_row() -> None:
    logits = torch.randn(1, 65, 3, 4, generator=torch.Generator().manual_seed(1))
    score = reliability(logits)[0, 0].numpy()
    assert score.shape == (24, 32)
    for cell_y, cell_x in np.ndindex(3, 4):
        weight = np.exp(logits[0, :, cell_y, cell_x].double().numpy())
        for y, x in np.ndindex(8, 8):
            share = weight[8 * y + x] / weight.sum()
            assert score[8 * cell_y + y, 8 * cell_x + x] == pytest.approx(share, rel=1e-4)


def test_stability_is_the_mean_of_the_groups() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, -9.0, -9.0], [-9.0, -9.0, 9.0]])
    found = expected_stability(logits.T[None, :, :, None])[0, 0, :, 0].tolist()
    assert found == pytest.approx([1.6 / 3, 0.1, 1.0], abs=1e-6)


@pytest.mark.parametrize('exponent', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('size', [(96, 64), (90, 61)])
def test_the_keypoints_are_those_of_a_slow_loop(
    network: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], exponent: float
) -> None:
    monkeypatch.setattr(network, 'stability_exponent', exponent)
    image, valid_wh = picture(*size), (size[0] - 7, size[1] - 3)
    with torch.inference_mode():
        maps = network.dense(
            normalise(torch.from_numpy(image)[None], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        score = reliability(maps.cell_logits)[0, 0].double().numpy()[: size[1], : size[0]]
        groups = expected_stability(maps.stability_logits)[0, 0].double().numpy()
    descriptors = maps.descriptors[0].double().numpy()

    def between(values: Float, x: float, y: float) -> Any:
        """Bilinear in a map of a quarter of the size, centres of cells at halves."""
        height, width = values.shape[-2:]
        left, top = int(np.floor(x / 4 - 0.5)), int(np.floor(y / 4 - 0.5))
        total = np.zeros(values.shape[:-2])
        for row in (top, top + 1):
            for column in (left, left + 1):
                weight = (1 - abs(x / 4 - 0.5 - column)) * (1 - abs(y / 4 - 0.5 - row))
                inside = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
                total = total + weight * values[..., inside[0], inside[1]]
        return total

    for y, x in np.ndindex(*score.shape):
        score[y, x] *= between(groups, x + 0.5, y + 0.5) ** exponent
    expected = []
    for y, x in np.ndindex(*score.shape):
        square = score[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5]
        is_inside = 4 <= x < valid_wh[0] - 4 and 4 <= y < valid_wh[1] - 4
        if is_inside and score[y, x] == square.max() and score[y, x] > 0.001:
            expected.append((score[y, x], x, y))
    expected = sorted(expected, reverse=True)[:40]

    keypoints, scores, found, stability, num = run(network, image, valid_wh)
    assert len(expected) == num > 10
    for k, (value, x, y) in enumerate(expected):
        assert scores[k] == pytest.approx(value, rel=1e-4)
        assert np.abs(keypoints[k] - (x + 0.5, y + 0.5)).max() <= 0.5 + 1e-6
        descriptor = between(descriptors, *keypoints[k])
        assert_allclose(found[k], descriptor / np.linalg.norm(descriptor), atol=1e-4)
        assert stability[k] == pytest.approx(between(groups, *keypoints[k]), abs=1e-4)


@pytest.mark.parametrize('size', [(8, 8), (1, 1), (9, 70), (61, 93)])
def test_fewer_keypoints_than_rows(size: tuple[int, int]) -> None:
    """Of any size: rows from num on are zero, and keypoints keep away from the edge."""
    network = Sfd2(max_keypoints=TOP_K_LIMIT + 500).eval()
    keypoints, scores, descriptors, stability, num = run(network, picture(*size))
    assert keypoints.shape == (TOP_K_LIMIT + 500, 2)
    assert num.dtype == np.int32
    assert num < size[0] * size[1] / 16
    for rows in (keypoints, scores, descriptors, stability):
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()
        assert not rows[num:].any()
    assert (keypoints[:num] >= 3.9).all()
    assert (keypoints[:num] <= np.array(size) - 3.9).all()


@pytest.mark.parametrize('value', [0, 90, 255])
def test_nothing_is_found_where_nothing_is_seen(network: Any, value: int) -> None:
    """Random weights give every cell a maximum; a plain surface has none all the same."""
    image = np.full((64, 96, 3), value, np.uint8)
    assert run(network, image)[-1] == 0
    image[:, 48:] = picture(48, 64)
    keypoints, *_, num = run(network, image)
    assert num > 10
    assert (keypoints[:num, 0] > 43).all()


def test_padding_brings_no_keypoints(network: Any) -> None:
    image = picture(96, 64)
    keypoints, *_, num = run(network, image, (50, 40))
    assert num > 3
    assert (keypoints[:num] < (46, 36)).all()


def test_fewer_rows_are_the_strongest_of_many(network: Any) -> None:
    few = Sfd2(max_keypoints=7)
    few.load_state_dict(network.state_dict())
    many_found, few_found = run(network, picture(96, 64)), run(few.eval(), picture(96, 64))
    assert few_found[-1] == 7
    for many, kept in zip(many_found[:-1], few_found[:-1], strict=True):
        assert_array_equal(many[:7], kept)


def test_adapted_tones_forget_how_much_light_there_was(network: Any) -> None:
    """A factor on the light changes what ImageNet's tones show, and next to nothing here."""
    adapted = Sfd2(200, tones='adapted').eval()
    adapted.load_state_dict(network.state_dict(), strict=True)
    image = torch.from_numpy(picture(96, 64) // 2)[None]
    valid = torch.tensor([[96, 64]], dtype=torch.int32)
    gaps = {}
    for each in (adapted, network):
        dim, bright = (each.planes(factor * image, valid) for factor in (1, 2))
        gaps[each.tones] = float((dim - bright).abs().mean() / dim.std())
    assert gaps['adapted'] < 0.1 < 0.5 < gaps['imagenet']
    assert adapted.options == {'stability_exponent': 0.0, 'tones': 'adapted'}


def test_unknown_tones() -> None:
    with pytest.raises(NetworkError, match="unknown tones 'sepia'; choose one of: imagenet, adap"):
        Sfd2(10, tones='sepia')

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""HOW against a literal reading of its paper, and its training on a map of a made-up room."""

from __future__ import annotations

from collections.abc import Sequence
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip('torch', reason='torch is not installed')

from conftest import random_segment, Scene, write_map
import torch

from feat_ros.cli import main
from feat_ros.errors import DataError, NetworkError
from feat_ros.models.how import contrastive_loss, How, HowR18, HowR50, HowSfd2, whitening
from feat_ros.models.weights import build_network, load_weights, save_weights, weights_of
from feat_ros.sfm_map import SfmMap
from feat_ros.training.configs import HowConfig
from feat_ros.training.how import HowRun, read_pool, shared_points

Array = npt.NDArray[np.float64]


def small(network: type[How], count: int = 60, scales: Sequence[float] = (1.0, 0.5)) -> How:
    """A network with random weights whose batch norms are not the identity."""
    torch.manual_seed(3)
    made: How = network(count, scales).eval()
    for part in made.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, 0, 0.1)
    return made


def picture(height: int = 96, width: int = 128) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    return np.kron(rng.integers(0, 256, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(
        np.uint8
    )


# ---------------------------------------------------------------- the paper, word for word


def convolve(x: Array, state: dict[str, Array], name: str, stride: int, pad: int) -> Array:
    weight = state[f'{name}.weight']
    bias = state.get(f'{name}.bias', np.zeros(len(weight)))
    size = weight.shape[2]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    rows, columns = ((side - size) // stride + 1 for side in padded.shape[1:])
    out = np.empty((len(weight), rows, columns))
    for row in range(rows):
        for column in range(columns):
            part = padded[:, row * stride : row * stride + size, column * stride :][:, :, :size]
            out[:, row, column] = np.tensordot(weight, part, 3) + bias
    return out


def norm(x: Array, state: dict[str, Array], name: str) -> Array:
    mean, var, weight, bias = (
        state[f'{name}.{part}'][:, None, None]
        for part in ('running_mean', 'running_var', 'weight', 'bias')
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def max_pool(x: Array) -> Array:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    rows, columns = ((side - 3) // 2 + 1 for side in padded.shape[1:])
    return np.array([
        [[each[2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max() for c in range(columns)]
         for r in range(rows)]
        for each in padded
    ])  # fmt: skip


def residual(
    x: Array, state: dict[str, Array], name: str, kinds: Sequence[int], at: int, stride: int
) -> Array:
    """A block: convolutions of these sizes, that at one place strided, beside a shortcut."""
    y = x
    for number, size in enumerate(kinds, 1):
        step = stride if number == at else 1
        y = norm(
            convolve(y, state, f'{name}.conv{number}', step, size // 2),
            state,
            f'{name}.bn{number}',
        )
        y = relu(y) if number < len(kinds) else y
    if f'{name}.downsample.0.weight' in state:
        x = norm(
            convolve(x, state, f'{name}.downsample.0', stride, 0), state, f'{name}.downsample.1'
        )
    return relu(y + x)


def backbone(
    x: Array, state: dict[str, Array], kinds: Sequence[int], at: int, depths: Sequence[int]
) -> Array:
    x = max_pool(relu(norm(convolve(x, state, 'features.0', 2, 3), state, 'features.1')))
    for number, depth in enumerate(depths):
        for place in range(depth):
            stride = 2 if number and not place else 1
            x = residual(x, state, f'features.{4 + number}.{place}', kinds, at, stride)
    return x


def smooth(x: Array) -> Array:
    """Mean over the 3x3 cells around each, of those that there are."""
    out = np.empty_like(x)
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            part = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            out[:, row, column] = part.mean(axis=(1, 2))
    return out


@pytest.mark.parametrize(
    ('network', 'kinds', 'at', 'depths'),
    [(HowR18, (3, 3), 1, (2, 2, 2, 2)), (HowR50, (1, 3, 1), 2, (3, 4, 6))],
)
def test_local_and_global_descriptors_are_those_of_the_paper(
    network: type[How], kinds: Sequence[int], at: int, depths: Sequence[int]
) -> None:
    made = small(network)
    state = {name: each.numpy().astype(float) for name, each in made.state_dict().items()}
    image = picture(64, 96)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    planes = ((image / 255 - mean) / deviation).transpose(2, 0, 1)
    u = backbone(planes, state, kinds, at, depths)
    weight, bias = state['dim_reduction.weight'][:, :, 0, 0], state['dim_reduction.bias']
    o = np.einsum('dc,chw->dhw', weight, smooth(u)) + bias[:, None, None]
    w = np.sqrt((u**2).sum(axis=0))
    z = (o * w).sum(axis=(1, 2))
    with torch.no_grad():
        prepared = made.prepare(torch.from_numpy(image)[None], torch.tensor([96, 64]))
        descriptors, attention = made.local(prepared)
        whole = made.describe(prepared)
    np.testing.assert_allclose(attention[0, 0], w, rtol=2e-4)
    np.testing.assert_allclose(descriptors[0], o, atol=2e-4 * np.abs(o).max())
    np.testing.assert_allclose(whole[0], z / np.linalg.norm(z), atol=2e-4)


@pytest.mark.parametrize('network', [HowR18, HowSfd2])
def test_the_strongest_of_all_scales_are_kept(network: type[How]) -> None:
    made, image = small(network, 20), torch.from_numpy(picture(128, 128))[None]
    valid = torch.tensor([128, 100])
    with torch.no_grad():
        keypoints, scores, descriptors, stability, num = made(image, valid)
        planes, rows = made.prepare(image, valid), []
        for scale in made.scales:
            sized = planes if scale == 1 else torch.nn.functional.interpolate(
                planes, scale_factor=scale, mode='bilinear', recompute_scale_factor=True
            )  # fmt: skip
            o, w = made.local(sized)
            for row in range(o.shape[2]):
                for column in range(o.shape[3]):
                    x, y = (column + 0.5) * 128 / o.shape[3], (row + 0.5) * 128 / o.shape[2]
                    if y < 100:
                        rows.append((float(w[0, 0, row, column]), x, y, o[0, :, row, column]))
    rows.sort(key=lambda each: -each[0])
    kept = min(20, len(rows))
    assert int(num) == kept
    for number, (strength, x, y, o) in enumerate(rows[:kept]):
        assert scores[number] == pytest.approx(strength, rel=1e-5)
        assert keypoints[number].tolist() == pytest.approx([x, y])
        np.testing.assert_allclose(descriptors[number], o, atol=1e-4)
    assert not scores[kept:].any() and not descriptors[kept:].any()
    assert stability[:kept].tolist() == [1] * kept


@pytest.mark.parametrize(
    ('network', 'parameters', 'entries'), [(HowR18, 11_242_176, 122), (HowR50, 8_674_496, 260)]
)
def test_published_layouts_load_strictly(
    network: type[How], parameters: int, entries: int, tmp_path: Path
) -> None:
    made = small(network)
    state = made.state_dict()
    assert sum(each.numel() for each in made.parameters()) == parameters
    assert len(state) == entries
    name = {HowR18: 'how_r18', HowR50: 'how_r50'}[network]
    old = dict(state)
    old['whiten.weight'] = old.pop('dim_reduction.weight')[:, :, 0, 0]
    old['whiten.bias'] = old.pop('dim_reduction.bias')
    for number, layout in enumerate((state, old)):
        path = tmp_path / f'{number}.pth'
        torch.save({'state_dict': layout}, path)
        again = build_network(load_weights(path, name), 60)
        for key, value in again.state_dict().items():
            assert torch.equal(value, state[key])
    torch.save({'state_dict': {k: v for k, v in state.items() if 'conv1' not in k}}, path)
    with pytest.raises(NetworkError, match='weights do not fit'):
        build_network(load_weights(path, name), 60)


# ---------------------------------------------------------------- whitening and loss


def test_whitening_decorrelates() -> None:
    """And drops what varies least; directions in which nothing varies are left at rest."""
    torch.manual_seed(1)
    features = torch.randn(4000, 200) @ torch.diag(torch.linspace(3, 0.1, 200)) + 5
    weight, bias = whitening(features)
    white = features @ weight.T + bias
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    covariance = (white.T @ white / len(white)).numpy()
    np.testing.assert_allclose(covariance, np.eye(128), atol=1e-3)
    flat, _ = whitening(torch.cat([features[:, :60], torch.ones(4000, 140)], 1))
    assert torch.isfinite(flat).all() and not flat[60:].any()


def literal_loss(anchor: Any, positive: Any, negatives: Any, margin: float) -> float:
    total = 0.0
    for a, p, others in zip(anchor, positive, negatives, strict=True):
        total += 0.5 * sum((x - y) ** 2 for x, y in zip(a, p, strict=True))
        for n in others:
            distance = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, n, strict=True)))
            total += 0.5 * max(0.0, margin - distance) ** 2
    return total / len(anchor)


def test_contrastive_loss_is_that_of_the_paper() -> None:
    torch.manual_seed(2)
    anchor, positive = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in 'ab')
    negatives = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    for margin in (0.5, 3.0, 9.0):
        found = contrastive_loss(anchor, positive, negatives, margin)
        wanted = literal_loss(anchor.tolist(), positive.tolist(), negatives.tolist(), margin)
        assert float(found.detach()) == pytest.approx(wanted, rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda a, p, n: contrastive_loss(a, p, n, 3.0), (anchor, positive, negatives)
    )


# ---------------------------------------------------------------- training


def config_of(scene: Scene, room_map: SfmMap, **changes: Any) -> HowConfig:
    options: dict[str, Any] = {
        'maps': [str(room_map.path)], 'images': [str(scene.folder)], 'size': 96, 'epochs': 2,
        'tuples': 3, 'negatives': 2, 'min_shared_points': 100, 'holdout_every': 3, 'batch': 2,
    }  # fmt: skip
    return HowConfig(**{**options, **changes})


def sees_other(room_map: SfmMap, tmp_path: Path) -> Path:
    """A map of another place, whose images are of the room all the same."""
    path = tmp_path / 'other'
    segment = random_segment(1, num_images=3, dim=128)
    segment.image_names[:] = [room_map.image_name(n) for n in range(3)]
    return write_map(path, [segment])


def test_shared_points(room_map: SfmMap) -> None:
    shared = shared_points(room_map)
    for i, j in ((0, 1), (2, 7), (4, 4)):
        a, b = (set(room_map.observations(image)[0].tolist()) for image in (i, j))
        assert shared[i, j] == len(a & b)


def test_a_run_goes_on_exactly_where_it_was_left(
    scene: Scene, room_map: SfmMap, tmp_path: Path
) -> None:
    other = sees_other(room_map, tmp_path)
    options = config_of(
        scene, room_map, maps=[str(room_map.path), str(other)], images=[str(scene.folder)] * 2
    )
    whole = HowRun(options, tmp_path / 'whole')
    before = {n: each.clone() for n, each in whole.network.state_dict().items()}
    assert whole.train() == 2
    part = HowRun(options, tmp_path / 'part')
    part.train(seconds=0)
    part = HowRun(options, tmp_path / 'part')
    part.config = options
    for _ in range(2):
        part = HowRun(options, tmp_path / 'part')
        database = part.describe_all()
        part._train_epoch(database)
        part.epoch += 1
        part._save_state()
    fixed = ('dim_reduction', 'features.encoder')
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, part.network.state_dict()[name]), name
        is_fixed = name.startswith(fixed)
        assert torch.equal(value, before[name]) == is_fixed, name
    lines = (tmp_path / 'whole' / 'validation.jsonl').read_text().splitlines()
    assert len(lines) == 3
    assert (tmp_path / 'whole' / 'curves.png').exists()
    best = load_weights(tmp_path / 'whole' / 'weights_best.npz', 'how_sfd2')
    build_network(best, 100)
    with pytest.raises(DataError, match='holds a run with other margin'):
        HowRun(HowConfig(**{**vars(options), 'margin': 0.5}), tmp_path / 'whole')


def test_tuples_are_what_they_should_be(scene: Scene, room_map: SfmMap, tmp_path: Path) -> None:
    other = sees_other(room_map, tmp_path)
    options = config_of(
        scene, room_map, maps=[str(room_map.path), str(other)], images=[str(scene.folder)] * 2,
        tuples=50,
    )  # fmt: skip
    run = HowRun(options, tmp_path / 'run')
    database = run.describe_all()
    made = run.tuples(database)
    assert {anchor for anchor, _, _ in made} == set(run.anchors.tolist())
    assert not set(run.held_out.tolist()) & set(run.anchors.tolist())
    similarity = (database @ database.T).numpy()
    for anchor, positive, negatives in made:
        assert run.pool.shared[anchor, positive] >= 100 and anchor != positive
        others = np.flatnonzero(run.pool.shared[anchor] == 0)
        hardest = sorted(others, key=lambda i: -similarity[anchor, i])[:2]
        assert negatives == hardest


def test_what_cannot_be_trained_on(scene: Scene, room_map: SfmMap, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'1 maps and 0 folders of images: give one for each'):
        read_pool([str(room_map.path)], [], 96)
    with pytest.raises(DataError, match=r'none of 10 images shares 100 points .* add a map'):
        HowRun(config_of(scene, room_map), tmp_path / 'run')


def test_train_by_command(scene: Scene, room_map: SfmMap, tmp_path: Path) -> None:
    other = sees_other(room_map, tmp_path)
    words = [
        'train', 'how', '--out', tmp_path / 'run', '--set', 'size=96', '--set', 'epochs=1',
        '--set', 'tuples=2', '--set', 'negatives=1', '--set', 'min_shared_points=100',
    ]  # fmt: skip
    for path in (room_map.path, other):
        words += ['--map', path, '--images', scene.folder]
    assert main([str(word) for word in words]) == 0
    assert (tmp_path / 'run' / 'weights_last.npz').exists()


# ---------------------------------------------------------------- as an extractor


def test_features_for_retrieval(tmp_path: Path) -> None:
    from feat_ros.extractors import create_extractor, EXTRACTORS

    path = tmp_path / 'how.npz'
    save_weights(path, weights_of(small(HowSfd2), 'how_sfd2'))
    extract = create_extractor('how_sfd2', model=str(path), max_keypoints=50, runtime='torch')
    features = extract(picture(120, 160))
    assert len(features) == 50 and features.descriptors.shape == (50, 128)
    assert features.keypoints.max(0).tolist() <= [160, 120]
    assert 'how_sfd2' not in EXTRACTORS


def test_onnx_finds_what_torch_does(tmp_path: Path) -> None:
    pytest.importorskip('onnxscript', reason='onnxscript is not installed')
    from feat_ros.export import export_network
    from feat_ros.town.pictures import street_pictures

    weights = weights_of(small(HowSfd2), 'how_sfd2')
    pictures = dict([*street_pictures().items()][:1])
    manifest = export_network(tmp_path / 'how.onnx', weights, 100, pictures, (160, 128))
    assert all(parity['num'][0] > 50 for parity in manifest.parity.values())

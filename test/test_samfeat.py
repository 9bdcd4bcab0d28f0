# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SAMFeat against a literal reading of its paper."""

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

from feat_ros.errors import ConfigError, NetworkError
from feat_ros.models.samfeat import SamFeat
from feat_ros.models.weights import build_network, load_weights, save_weights, weights_of
from feat_ros.runtimes import open_network
from feat_ros.runtimes.contract import output_from_arrays
from feat_ros.runtimes.parity import compare_outputs
from feat_ros.training import samfeat_losses as of_paper
from feat_ros.training.configs import PairConfig, SamfeatConfig
from feat_ros.training.pairs import PairMaker
from feat_ros.training.run import Trainee
from feat_ros.training.samfeat import edges
from feat_ros.training.samfeat import losses as loss_of_batch
from feat_ros.training.teachers import create_teacher

Array = npt.NDArray[np.float64]


def random_network(**options: Any) -> SamFeat:
    torch.manual_seed(6)
    made: SamFeat = SamFeat(100, **options).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith('bias') or 'conv_edg' in name or 'egde' in name:
                value.normal_(0, 0.1)
    return made


# ---------------------------------------------------------------- section III, word for word


class Literal:
    """The network with loops, on arrays (C, H, W)."""

    def __init__(self, network: SamFeat) -> None:
        self.state = {n: each.numpy().astype(float) for n, each in network.state_dict().items()}

    def conv(self, x: Array, name: str) -> Array:
        weight, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        size = weight.shape[2]
        padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
        out = np.zeros((len(weight), *x.shape[1:]))
        for row in range(size):
            for column in range(size):
                part = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
                out += np.einsum('oi,ihw->ohw', weight[:, :, row, column], part)
        return np.asarray(out + bias[:, None, None])

    def stage(self, x: Array, number: int) -> Array:
        for part in 'ab':
            x = np.maximum(self.conv(x, f'conv{number}{part}'), 0)
        return x

    @staticmethod
    def resize(x: Array, size: tuple[int, ...]) -> Array:
        """Bilinear, pixel centres at halves."""
        rows, columns = (
            np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
            for new, old in zip(size, x.shape[1:], strict=True)
        )
        top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
        below, right = np.minimum(top + 1, x.shape[1] - 1), np.minimum(left + 1, x.shape[2] - 1)
        down, across = (rows - top)[:, None], columns - left
        upper = x[:, top][:, :, left] * (1 - across) + x[:, top][:, :, right] * across
        lower = x[:, below][:, :, left] * (1 - across) + x[:, below][:, :, right] * across
        return np.asarray(upper * (1 - down) + lower * down)

    def __call__(self, x: Array, guided: bool, attention: str) -> list[Array]:
        size, stages = x.shape[1:], []
        for number in range(1, 5):
            if number > 1:
                c, h, w = x.shape
                x = x.reshape(c, h // 2, 2, w // 2, 2).max((2, 4))
            x = self.stage(x, number)
            stages.append(x)
        distilled = self.conv(stages[3], 'dist_conv_feat')
        stages[3] = stages[3] + self.conv(distilled, 'dist_conv_fushion')
        features = np.concatenate([self.resize(each, stages[2].shape[1:]) for each in stages])
        edge_logits = self.conv(features, 'conv_edg')
        out = features
        if guided:
            edge = 1 / (1 + np.exp(-edge_logits))
            stages[2] = stages[2] * edge + stages[2]
            q, k, v = (
                self.conv(features * edge, f'egde_module.{n}_conv')
                for n in ('query', 'key', 'value')
            )
            attended = np.empty_like(v)
            for channel in range(len(q)):
                weight = np.exp(0.01 * q[channel] @ k[channel].T)
                attended[channel] = weight / weight.sum(1, keepdims=True) @ v[channel]
            out = attended + features
        heat = sum(
            self.state[f'fuse_weight_{n}'] * self.resize(self.conv(each, f'heatmap{n}'), size)
            for n, each in enumerate(stages, 1)
        )
        seen = out if attention == 'guided' else features
        worth = np.log1p(np.exp(self.conv(seen.mean(0, keepdims=True), 'scalemap')))
        return [np.asarray(heat), self.conv(out, 'conv_des'), worth, edge_logits, distilled]


@pytest.mark.parametrize(
    ('guided', 'attention'), [(True, 'features'), (True, 'guided'), (False, 'features')]
)
def test_maps_are_those_of_the_paper(guided: bool, attention: str) -> None:
    network = random_network(guided=guided, attention=attention, colors='plain')
    image = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    with torch.no_grad():
        planes = network.planes(torch.from_numpy(image)[None], torch.tensor([[48, 32]]))
        found = network.dense(planes)
    np.testing.assert_allclose(planes[0], image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    wanted = Literal(network)(planes[0].numpy().astype(float), guided, attention)
    for part, values in zip(found, wanted, strict=True):
        np.testing.assert_allclose(part[0], values, atol=2e-4 * np.abs(values).max())


def test_the_published_layout_loads_strictly(tmp_path: Path) -> None:
    network = random_network()
    state = network.state_dict()
    assert (len(state), sum(each.numel() for each in state.values())) == (46, 2_109_652)
    assert [state[f'fuse_weight_{n}'].shape for n in range(1, 5)] == [(1,)] * 4
    torch.save(state, tmp_path / 'model_29.pt')
    weights = load_weights(tmp_path / 'model_29.pt', 'samfeat')
    again = build_network(weights, 50)
    assert (again.attention, again.colors) == ('guided', 'plain')
    assert all(torch.equal(each, again.state_dict()[name]) for name, each in state.items())
    torch.save({n: each for n, each in state.items() if n != 'conv_edg.bias'}, tmp_path / 'x.pt')
    with pytest.raises(NetworkError, match='do not fit'):
        build_network(load_weights(tmp_path / 'x.pt', 'samfeat'), 50)


# ---------------------------------------------------------------- the losses


def tensor(*shape: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=shape), requires_grad=True)


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def test_distillation_is_equations_7_and_8() -> None:
    student, teacher = tensor(2, 5, 2, 3), tensor(2, 4, 2, 3, seed=1)
    attention = tensor(2, 1, 2, 3, seed=2)
    total = 0.0
    for s, t, a in zip(student.detach(), teacher.detach(), attention.detach(), strict=True):
        s, t, v = s.flatten(1).T.numpy(), t.flatten(1).T.numpy(), a.flatten().numpy()
        above = below = 0.0
        for i in range(6):
            for j in range(6):
                r, r_student = (
                    x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for x in (t, s)
                )
                above += abs(r - r_student) * math.exp(v[i] * v[j])
                below += math.exp(v[i] * v[j])
        total += above / below / 2
    found = of_paper.distillation_loss(student, teacher, attention)
    assert float(found.detach()) == pytest.approx(total, rel=1e-9)
    assert torch.autograd.gradcheck(of_paper.distillation_loss, (student, teacher, attention))


def test_attention_matters_to_the_distillation() -> None:
    """In the published program it cancels."""
    student, teacher = tensor(1, 5, 2, 3).detach(), tensor(1, 4, 2, 3, seed=1).detach()
    one, other = torch.ones(1, 1, 2, 3).double(), 3 * tensor(1, 1, 2, 3, seed=2).detach().abs()
    assert of_paper.distillation_loss(student, teacher, one) != pytest.approx(
        float(of_paper.distillation_loss(student, teacher, other)), rel=1e-3
    )


def test_attention_may_be_large() -> None:
    student, teacher = tensor(1, 5, 2, 3).detach(), tensor(1, 4, 2, 3, seed=1).detach()
    attention = 100 * tensor(1, 1, 2, 3, seed=2).detach().abs()
    loss = of_paper.distillation_loss(student.float(), teacher.float(), attention.float())
    assert 0 < float(loss) < 2


def test_grouping_is_equations_9_to_11() -> None:
    rows = tensor(7, 4)
    group = torch.tensor([0, 0, 1, -1, 1, 2, 0])
    units = unit(rows.detach()).numpy()
    within: list[float] = []
    across: list[float] = []
    for i in range(7):
        for j in range(7):
            if i != j and group[i] >= 0 and group[j] >= 0:
                distance = math.sqrt(2 * (1 - units[i] @ units[j]) + 1e-6)
                (within if group[i] == group[j] else across).append(distance)
    for margin in (0.07, 5.0):
        p = math.exp(-max(float(np.mean(within)), margin) / 5)
        n = math.exp(-np.mean(across) / 5)
        found = of_paper.grouping_loss(unit(rows), group, margin)
        assert float(found.detach()) == pytest.approx(-math.log(p / (p + n)), rel=1e-6)
    assert torch.autograd.gradcheck(lambda r: of_paper.grouping_loss(unit(r), group), (rows,))
    same = torch.zeros(7, dtype=torch.int64)
    assert float(of_paper.grouping_loss(unit(rows).detach(), same)) == 0


def test_edges_and_points_are_weighted() -> None:
    logits = tensor(1, 1, 3, 4)
    edge = (tensor(1, 1, 3, 4, seed=1).detach() > 0).double()
    known = torch.ones(1, 1, 3, 4, dtype=torch.bool)
    known[..., 0] = False
    value = 1 / (1 + np.exp(-logits.detach().numpy()))
    wanted = np.abs(value - edge.numpy())[..., 1:].mean()
    found = of_paper.edge_loss(logits, edge, known)
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: of_paper.edge_loss(x, edge, known), (logits,))
    wanted = np.mean(-200 * edge.numpy() * np.log(value) - (1 - edge.numpy()) * np.log(1 - value))
    found = of_paper.detection_loss(logits, edge)
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: of_paper.detection_loss(x, edge), (logits,))


def test_triplets_are_weighted_by_attention() -> None:
    first, second, attention = tensor(5, 4), tensor(5, 4, seed=1), tensor(5, 2, seed=2)
    is_apart = ~torch.eye(5, dtype=torch.bool)
    is_apart[1, 3] = False
    a, b, v = (each.detach().numpy() for each in (unit(first), unit(second), attention))
    y, z = a * v[:, :1], b * v[:, 1:]
    weight = np.exp(v.mean(1) / 15)
    total = 0.0
    for i in range(5):
        distance = [math.sqrt(((y[i] - z[j]) ** 2).sum() + 1e-6) for j in range(5)]
        hardest = min(distance[j] for j in range(5) if is_apart[i, j])
        total += max(0.0, 1 + distance[i] - hardest) * weight[i] / weight.sum()

    def loss(p: Tensor, q: Tensor, w: Tensor) -> Tensor:
        return of_paper.weighted_triplet_loss(unit(p), unit(q), w, is_apart)

    assert float(loss(first, second, attention).detach()) == pytest.approx(total, rel=1e-6)
    assert torch.autograd.gradcheck(loss, (first, second, attention))


def test_edges_lie_between_known_groups() -> None:
    groups = torch.zeros(1, 16, 16, dtype=torch.int64)
    groups[:, :, 8:] = 1
    groups[:, 12:] = -1
    edge, known = edges(groups)
    assert edge[0, 0, 0].tolist() == [0, 1, 1, 0]
    assert known[0, 0, :, 0].tolist() == [True, True, False, False]


# ---------------------------------------------------------------- training and extraction


def test_a_batch_trains_everything(tmp_path: Path) -> None:
    """All parts of the network get a slope, but the layer that nobody uses."""
    rng = np.random.default_rng(3)
    for number in range(2):
        noise = cv2.GaussianBlur(rng.uniform(0, 255, (200, 200, 3)), (0, 0), 3)
        picture = np.clip((noise - noise.mean()) * 6 + 128, 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f'{number}.png'), picture)
        label = np.full((200, 200), 4, np.uint8)
        label[:, 100:] = 2
        cv2.imwrite(str(tmp_path / f'{number}.group.png'), label)
    config = SamfeatConfig(pair=PairConfig(pairs=1, size=128, points=80))
    photos = sorted(p for p in tmp_path.glob('*.png') if 'group' not in p.name)
    batch = PairMaker(config.pair, photos, None, 0, torch.device('cpu'))[0]
    torch.manual_seed(0)
    trainee = Trainee(SamFeat())
    total, logged = loss_of_batch(trainee, batch, config)
    total.backward()
    for name in ('distillation_loss', 'grouping_loss', 'edge_loss', 'detection_loss'):
        assert torch.isfinite(logged[name]) and logged[name] > 0, name
    still = {
        n for n, p in trainee.network.named_parameters() if p.grad is None or not p.grad.any()
    }
    assert still <= {'conv_det.weight', 'conv_det.bias'}


def test_teachers_that_are_not_there(tmp_path: Path) -> None:
    cpu = torch.device('cpu')
    with pytest.raises(
        ConfigError, match="unknown teacher 'dino'; choose sfd2_lite, files or sam:"
    ):
        create_teacher('dino', cpu)
    with pytest.raises(ConfigError, match=r'needs the package of its authors|checkpoint a file'):
        create_teacher(f'sam:vit_b:{tmp_path / "none.pth"}', cpu)


def test_features_of_an_image(tmp_path: Path) -> None:
    from feat_ros.extractors import create_extractor

    save_weights(tmp_path / 's.npz', weights_of(random_network(), 'samfeat'))
    extract = create_extractor(
        'samfeat', model=str(tmp_path / 's.npz'), max_keypoints=60, runtime='torch'
    )
    image = np.random.default_rng(2).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    features = extract(image)
    assert 5 < len(features) <= 60
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)
    # The border of four pixels, and half a pixel of offset.
    assert (features.keypoints >= 4).all() and (features.keypoints <= [66, 86]).all()


def test_onnx_finds_what_torch_finds(tmp_path: Path) -> None:
    """In an image with padding, of a size that the export does not fix."""
    for library in ('onnx', 'onnxruntime'):
        pytest.importorskip(library, reason=f'{library} is not installed')
    from feat_ros.export import export_network

    weights = weights_of(random_network(), 'samfeat', seed=6)
    path = tmp_path / 'samfeat.onnx'
    rng = np.random.default_rng(4)
    noise, image = (
        rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(64, 96), (128, 96)]
    )
    manifest = export_network(path, weights, 60, {'noise': noise})
    assert manifest.descriptor_dim == 128
    with torch.inference_mode():
        arrays = build_network(weights, 60)(
            torch.from_numpy(image)[None], torch.tensor([71, 105]).int()
        )
    expected = output_from_arrays([each.numpy() for each in arrays])
    exported = open_network('samfeat', 60, 'onnx', str(path))
    parity = compare_outputs(expected, exported(image, (71, 105)))
    assert parity.num[0] == parity.num[1] > 5
    assert parity.near == 1
    assert parity.cosine > 1 - 1e-5

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The bench of extraction: what it counts; its times are nobody's to assert."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.testing import assert_allclose
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

from torch import nn, Tensor  # noqa: E402

from feat_ros import extraction_bench  # noqa: E402
from feat_ros.errors import DataError, NetworkError  # noqa: E402
from feat_ros.feature_bench.xfeat import XFeat  # noqa: E402
from feat_ros.frame_bench import bench_frame  # noqa: E402


class TwoConvolutions(nn.Module):  # type: ignore[misc]
    """3 channels to 8 at half the size, then 8 in 2 groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.second = nn.Conv2d(8, 8, 3, 1, 1, groups=2)

    def forward(self, image: Tensor, valid_wh: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.first(image.float().permute(0, 3, 1, 2))))


def test_the_cost_of_a_network_is_that_of_its_convolutions() -> None:
    image = torch.zeros(1, 20, 30, 3, dtype=torch.uint8)
    found = extraction_bench.network_cost(TwoConvolutions(), image, torch.tensor([30, 20]))
    places = 10 * 15
    assert found[0] == places * (8 * 3 * 9 + 8 * 4 * 9)
    read = 20 * 30 * 3 + places * 8
    assert found[1] == 2 * (read + 2 * places * 8 + 8 * 3 * 9 + 8 * 4 * 9)


def test_contenders_take_turns_on_warm_threads() -> None:
    seen: list[str] = []

    def contender(name: str) -> Any:
        return lambda image: seen.append(f'{name}{image[0, 0, 0]}')

    images = [np.full((1, 1, 3), value, np.uint8) for value in (1, 2)]
    rows = extraction_bench._rows({'feat_ros': contender('a'), 'other': contender('b')}, images)
    assert seen == ['a1', 'a1', 'b1', 'b1', *['a1', 'a1', 'b1', 'b1', 'a2', 'a2', 'b2', 'b2']]
    assert [row['name'] for row in rows] == ['feat_ros', 'other']


def test_xfeat_is_the_same_by_onnx_runtime() -> None:
    session = extraction_bench.xfeat_session(1)
    torch.manual_seed(0)
    network = XFeat().eval()
    planes = torch.rand(1, 3, 480, 640)
    with torch.inference_mode():
        expected = network(planes)
    for ours, theirs in zip(session.run(None, {'planes': planes.numpy()}), expected, strict=True):
        assert_allclose(ours, theirs.numpy(), atol=1e-3)


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(DataError, match='needs a GPU'):
        extraction_bench.bench_cuda()
    with pytest.raises(NetworkError, match='finds no GPU'):
        bench_frame(3, on_gpu=True)


def test_a_frame_is_measured_from_the_picture_to_the_pose() -> None:
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    report = bench_frame(3, 1, num_images=20, keypoints=500, num_points=700)
    rows, stream = report['tables'].values()
    ours, prior, xfeat = rows
    assert [row['name'] for row in stream] == ['feat_ros', 'feat_ros, one after the other']
    for row in stream:
        assert row['latency_ms'] > 0 and row['median_ms'] > 0
    assert (ours['name'], xfeat['name']) == ('feat_ros', extraction_bench.XFEAT)
    for row in (ours, prior):
        assert row['localized_%'] > 30
        assert min(row[stage] for stage in ('extract', 'retrieve', 'match')) > 0
    assert [each['value'] for each in report['checks']] == pytest.approx(
        [row['median_ms'] / xfeat['median_ms'] for row in (ours, prior)]
    )

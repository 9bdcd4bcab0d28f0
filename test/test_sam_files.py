# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What SAM sees in photographs: written, read, cut into views and learned from."""

from __future__ import annotations

from dataclasses import replace
import json
import math
from pathlib import Path
import sys
import types
from typing import Any
import zipfile

import cv2
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import numpy.typing as npt
import pytest

pytest.importorskip('torch', reason='torch is not installed')

import torch
from torch import nn, Tensor
from torch.nn import functional

from feat_ros.cli import main
from feat_ros.errors import ConfigError, DataError, NetworkError
from feat_ros.models.scale_space import Points
from feat_ros.training import samfeat_losses as of_paper
from feat_ros.training.configs import LiteConfig, PairConfig, SamfeatConfig, SamParts
from feat_ros.training.pairs import apply_homography, Batch, homographies, PairMaker
from feat_ros.training.pictures import find_photos, read_photo, sam_path
from feat_ros.training.run import Run
from feat_ros.training.sam_files import FILES, read_sam, SamBank, SamFile, write_sam
from feat_ros.training.sam_writer import numbered, write_sam_files
from feat_ros.training.samfeat import edges, pieces, point_groups
from feat_ros.training.systems import get_system
from feat_ros.training.teachers import checkpoint_sha256, create_teacher

Array = npt.NDArray[Any]
CPU = torch.device('cpu')
BOTH = SamParts(masks=True, features=True)
SMALL = PairConfig(pairs=2, size=96, points=50, town_share=0.0)


def write_photos(folder: Path, count: int = 2, wh: tuple[int, int] = (220, 150)) -> list[Path]:
    for number in range(count):
        rng = np.random.default_rng(number)
        noise = cv2.GaussianBlur(rng.normal(size=(wh[1], wh[0], 3)), (0, 0), 2.0)
        picture = np.clip(120 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f'{number}.png'), picture)
    return find_photos([str(folder)])


def sam_file(wh: tuple[int, int], cells_wh: tuple[int, int], channels: int = 5) -> SamFile:
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 60_000, (wh[1] // 10, wh[0] // 10)).astype(np.uint16)
    masks = cv2.resize(coarse, wh, interpolation=cv2.INTER_NEAREST)
    features = rng.normal(size=(channels, *cells_wh[::-1])).astype(np.float16)
    return SamFile(np.asarray(masks, np.uint16), features, 'a test')


# ---------------------------------------------------------------- the file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (photo,) = write_photos(tmp_path, 1)
    written = sam_file((220, 150), (64, 44))
    write_sam(photo, written)
    assert sam_path(photo) == tmp_path / '0.sam.npz'
    assert find_photos([str(tmp_path)]) == [photo]
    read = read_sam(photo, (220, 150))
    assert_array_equal(read.masks, written.masks)
    assert_array_equal(read.features, written.features)
    assert [each.dtype.name for each in read[:2]] == ['uint16', 'float16']
    assert read.model == FILES.model_of(photo) == 'a test'


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (photo,) = write_photos(tmp_path, 1)
    path, good = sam_path(photo), sam_file((220, 150), (64, 44))
    with pytest.raises(DataError, match=r'0\.sam\.npz does not exist: write it with'):
        read_sam(photo, (220, 150))
    write_sam(photo, good)
    with pytest.raises(
        DataError, match=r'0\.sam\.npz is of 220x150 pixels, 0\.png of 150x220: rem'
    ):
        read_sam(photo, (150, 220))
    for cells_wh in ((64, 42), (64, 46), (44, 64)):
        write_sam(photo, sam_file((220, 150), cells_wh))
        with pytest.raises(DataError, match=r'which is not the shape of 0\.png: remove it and'):
            read_sam(photo, (220, 150))
    bad_features = good.features.copy()
    bad_features[1, 2, 3] = np.nan
    for part, bad in (
        ('masks', good.masks.astype(np.int32)), ('masks', good.masks[0]),
        ('features', good.features.astype(np.float32)), ('features', good.features[0]),
        ('features', good.features[:, :0]), ('features', bad_features),
    ):  # fmt: skip
        np.savez(path, **good._asdict() | {part: bad})
        refuses(photo)
    np.savez(path, masks=good.masks, features=good.features)
    refuses(photo)
    np.savez(path, **good._asdict() | {'masks': np.array([{}])})
    refuses(photo)
    with path.open('wb') as file:
        np.save(file, good.masks)
    refuses(photo)
    for content in (b'', b'no arrays'):
        path.write_bytes(content)
        refuses(photo)


def test_features_beyond_half_precision_are_not_written(tmp_path: Path) -> None:
    (photo,) = write_photos(tmp_path, 1)
    good = sam_file((220, 150), (64, 44))
    features = good.features.astype(np.float32)
    features[0, 0, 0] = 65520
    with np.errstate(over='ignore'):
        half = features.astype(np.float16)
    with pytest.raises(DataError, match=r'0\.sam\.npz is not written: features of 0\.png are not'):
        write_sam(photo, good._replace(features=half))
    assert not sam_path(photo).exists()


def test_a_file_that_asks_for_all_memory(tmp_path: Path) -> None:
    (photo,) = write_photos(tmp_path, 1)
    header = str({'descr': '<u2', 'fortran_order': False, 'shape': (2**59, 3)})
    array = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header.encode()
    good = sam_file((220, 150), (64, 44))
    np.savez(sam_path(photo), features=good.features, model=np.array(good.model))
    with zipfile.ZipFile(sam_path(photo), 'a') as archive:
        archive.writestr('masks.npy', array)
    with pytest.raises(MemoryError), np.load(sam_path(photo)) as stored:
        stored['masks']
    refuses(photo)


def refuses(photo: Path) -> None:
    with pytest.raises(DataError, match=r'0\.sam\.npz is damaged, or no file of SAM: remove it'):
        read_sam(photo, (220, 150))


def test_a_damaged_file_is_no_traceback(tmp_path: Path) -> None:
    """Cut anywhere, or with bytes changed anywhere."""
    (photo,) = write_photos(tmp_path, 1, (40, 30))
    write_sam(photo, sam_file((40, 30), (4, 3)))
    content = sam_path(photo).read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for length in rng.integers(0, len(content), 60):
        sam_path(photo).write_bytes(content[:length])
        with pytest.raises(DataError, match='remove it'):
            read_sam(photo, (40, 30))
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            changed[place] = int(rng.integers(256))
        sam_path(photo).write_bytes(changed)
        try:
            read_sam(photo, (40, 30))
        except DataError as error:
            refused += str(sam_path(photo)) in str(error)
    assert refused > 200


def test_smaller_masks_lie_on_larger_ones() -> None:
    small, large, other = (np.zeros((3, 4), bool) for _ in range(3))
    large[:, :3] = True
    small[1, 1] = True
    other[:2, 2:] = True
    found = numbered([small, large, other], (4, 3))
    assert found.tolist() == [[1, 1, 2, 2], [1, 3, 2, 2], [1, 1, 1, 0]]
    assert_array_equal(numbered([small, large, other], (8, 6)), found.repeat(2, 0).repeat(2, 1))
    assert_array_equal(numbered([], (4, 3)), np.zeros((3, 4)))


# ---------------------------------------------------------------- views

QUADS = np.array(
    [
        [[20, 10], [130, 30], [120, 140], [10, 120]],
        [[-60, -20], [80, -30], [90, 90], [-40, 100]],
        [[0, 0], [220, 0], [220, 150], [0, 150]],
        [[20, 10], [130, 30], [120, 140], [10, 120]],
    ],
    float,
)
PICTURE = torch.tensor([1, 1, 1, 0])


def views_of(found: SamFile) -> Any:
    """Views of the second of two pictures, which has the file; the last of the first."""
    source_from_view = homographies(torch.from_numpy(QUADS), 96)
    return SamBank([None, found], 3, BOTH, CPU).views(PICTURE, source_from_view, 96)


def test_masks_go_with_the_pixels() -> None:
    found = sam_file((220, 150), (64, 44))
    assert found.masks.max() > 40_000
    masks = views_of(found).masks.numpy()
    corners = np.array([[0, 0], [96, 0], [96, 96], [0, 96]], np.float32)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    for quad, view in zip(QUADS[:3], masks[:3], strict=True):
        matrix = np.linalg.inv(half) @ cv2.getPerspectiveTransform(
            quad.astype(np.float32), corners
        )
        expected = cv2.warpPerspective(
            found.masks, matrix @ half, (96, 96), flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REFLECT,
        )  # fmt: skip
        assert (view == expected).mean() > 0.98
    assert (masks[3] == -1).all()


def test_features_are_those_of_a_slow_reference() -> None:
    """By torch's own sampling, cell by cell; beyond the photograph nothing is known."""
    found = sam_file((220, 150), (64, 44))
    _, taught, known = views_of(found)
    assert (taught.shape, known.shape) == ((4, 5, 12, 12), (4, 1, 12, 12))
    whole = torch.from_numpy(found.features)[None].double()
    source_from_view = homographies(torch.from_numpy(QUADS), 96)
    for view in range(3):
        for row in range(12):
            for column in range(12):
                center = torch.tensor([[[8 * column + 4.0, 8 * row + 4.0]]]).double()
                x, y = apply_homography(source_from_view[view][None], center)[0, 0].tolist()
                is_inside = 0 <= x < 220 and 0 <= y < 150
                assert bool(known[view, 0, row, column]) == is_inside
                if not is_inside:
                    assert not taught[view, :, row, column].any()
                    continue
                # 220 pixels are 64 cells.
                at = torch.tensor([[[[x * 64 / 220 / 64, y * 64 / 220 / 44]]]]).double() * 2 - 1
                expected = functional.grid_sample(
                    whole, at, padding_mode='border', align_corners=False
                )
                assert_allclose(taught[view, :, row, column], expected[0, :, 0, 0], atol=2e-3)
    assert known[0].all() and not known[1].all() and known[1].any() and known[2].all()
    assert not known[3].any() and not taught[3].any()


def test_matching_places_have_the_same_features(tmp_path: Path) -> None:
    """Features that say where they are: both views of a pair know the place in the photograph."""
    (photo,) = write_photos(tmp_path, 1)
    cell_px = 220 / 64
    center = (np.stack(np.meshgrid(np.arange(64), np.arange(44))) + 0.5) * cell_px
    write_sam(photo, SamFile(np.ones((150, 220), np.uint16), center.astype(np.float16), 'places'))
    maker = PairMaker(replace(SMALL, pairs=6), [photo], None, 1, sam_parts=BOTH)
    cuts = maker._photo_cuts(np.random.default_rng(1), 6)
    assert maker._sam_bank is not None
    grid = torch.stack(torch.meshgrid(*[torch.arange(12.0) * 8 + 4] * 2, indexing='xy'), -1)
    count = 0
    for cut in cuts:
        _, taught, known = maker._sam_bank.views(*cut, 96)
        assert taught is not None and known is not None
        places = apply_homography(cut.source_from_view, grid.reshape(1, -1, 2).expand(6, -1, -1))
        inside = ((places > 2) & (places < torch.tensor([218, 148]))).all(-1)
        found = taught.flatten(2).transpose(1, 2)
        assert known.flatten(1)[inside].all()
        # Half precision has steps of 0.125 there.
        assert_allclose(found[inside], places[inside], atol=0.1)
        count += int(inside.sum())
    assert count > 800


def test_files_change_nothing_else(tmp_path: Path) -> None:
    photos = write_photos(tmp_path)
    plain = PairMaker(SMALL, photos, None, 3)[4]
    without = PairMaker(SMALL, photos, None, 3, sam_parts=BOTH)[4]
    write_sam(photos[1], sam_file((220, 150), (64, 44)))
    unread = PairMaker(SMALL, photos, None, 3)[4]
    read = PairMaker(SMALL, photos, None, 3, sam_parts=BOTH)[4]
    masks_only = PairMaker(SMALL, photos, None, 3, sam_parts=SamParts(masks=True))[4]
    for batch in (without, unread, read, masks_only):
        assert_array_equal(batch.images, plain.images)
        for a, b in zip([*batch.points, *batch[2:6]], [*plain.points, *plain[2:6]], strict=True):
            assert_array_equal(a, b)
    assert plain[6:] == without[6:] == unread[6:] == (None, None, None, None)
    assert masks_only[7:] == (None, None, None)
    assert read.masks is not None and read.taught is not None and read.is_taught is not None
    assert (read.masks.shape, read.masks.dtype) == ((4, 96, 96), torch.int32)
    assert read.taught.shape == (4, 5, 12, 12)
    assert_array_equal(read.masks, masks_only.masks)


def test_one_model_teaches(tmp_path: Path) -> None:
    photos = write_photos(tmp_path)
    for photo, model in zip(photos, ('vit_b 12', 'vit_h 34'), strict=True):
        write_sam(photo, sam_file((220, 150), (64, 44))._replace(model=model))
    PairMaker(SMALL, photos, None, 0, sam_parts=SamParts(masks=True))
    with pytest.raises(DataError, match=r'2 models \(vit_b 12, 5 channels; vit_h 34, 5 ch.*same'):
        PairMaker(SMALL, photos, None, 0, sam_parts=BOTH)


# ---------------------------------------------------------------- what is learned


def test_groups_and_edges_of_masks_by_hand() -> None:
    """The first view has masks, the second labels."""
    masks = torch.full((2, 16, 16), -1, dtype=torch.int32)
    masks[0] = 0
    masks[0, :, 8:] = 40_000
    masks[0, 12:, 8:] = 7
    labels = torch.full((2, 16, 16), 2, dtype=torch.int64)
    labels[1, :, :4] = 1
    xy = torch.tensor([[2.5, 3.5], [12.5, 3.5], [9.5, 13.5], [12.5, 4.5]]).expand(2, -1, -1)
    response = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 1]])
    points = Points(xy, *[response] * (len(Points._fields) - 1))
    batch = Batch(
        torch.zeros(2, 16, 16, 3, dtype=torch.uint8), points, torch.zeros(1, 4), torch.zeros(2, 4),
        torch.tensor([[2, 2, 2, -1], [1, 2, -1, 2]]), labels, masks,
    )  # fmt: skip
    assert point_groups(batch).tolist() == [[-1, 40_000, 7, -1], [1, 2, -1, 2]]
    edge, known = edges(pieces(batch))
    assert known.all()
    assert edge[0, 0].tolist() == [[0, 1, 1, 0]] * 2 + [[0, 1, 1, 1]] * 2
    assert edge[1, 0].tolist() == [[1, 1, 0, 0]] * 4
    assert point_groups(batch._replace(masks=None)) is batch.group
    assert pieces(batch._replace(masks=None)) is labels


def test_what_is_not_known_is_not_distilled() -> None:
    rng = np.random.default_rng(0)
    student, teacher, attention = (
        torch.tensor(rng.normal(size=(3, channels, 2, 3))) for channels in (5, 4, 1)
    )
    known = torch.tensor(rng.random((3, 1, 2, 3)) < 0.6)
    known[1] = False
    attention[~known] = 6.0  # where nothing is known may be what is attended most
    assert known[0].sum() > 1 < known[2].sum() and not known[0].all()
    total = 0.0
    for b in (0, 2):
        s, t, v = student[b].flatten(1).T, teacher[b].flatten(1).T, attention[b].flatten()
        above = below = 0.0
        for i in range(6):
            for j in range(6):
                if known[b].flatten()[i] and known[b].flatten()[j]:
                    r, r_student = (float(x[i] @ x[j] / x[i].norm() / x[j].norm()) for x in (t, s))
                    weight = math.exp(v[i] * v[j])
                    above, below = above + abs(r - r_student) * weight, below + weight
        total += above / below / 2
    student.requires_grad_()
    found = of_paper.distillation_loss(student, teacher, attention, known)
    assert float(found.detach()) == pytest.approx(total, rel=1e-9)
    found.backward()
    assert student.grad is not None
    slopes = student.grad.abs().sum(1, keepdim=True) > 0
    assert not (slopes & ~known).any() and (slopes == known).all()
    assert torch.autograd.gradcheck(
        lambda s, t, a: of_paper.distillation_loss(s, t, a, known),
        (student, teacher.requires_grad_(), attention.requires_grad_()),
    )
    given = student.detach(), teacher.detach(), attention.detach()
    everywhere = torch.ones_like(known)
    all_known = float(of_paper.distillation_loss(*given, everywhere))
    assert all_known == pytest.approx(float(of_paper.distillation_loss(*given)), rel=1e-12)
    assert float(of_paper.distillation_loss(*given, ~everywhere)) == 0


def train(folder: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    config = {
        'photos': [str(folder)], 'holdout_every': 3, 'steps': 2, 'workers': 0, 'log_every': 1,
        'validate_every': 2, 'validation_batches': 1,
        'pair': {'pairs': 1, 'size': 64, 'points': 20},
    }  # fmt: skip
    path = folder / 'config.json'
    path.write_text(json.dumps(config))
    words = [word for option in options for word in ('--set', option)]
    assert main(['train', 'samfeat', '--config', str(path), '--out', str(out), *words]) == 0
    return [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]


def test_two_steps_with_files_as_the_teacher(tmp_path: Path) -> None:
    """One photograph has none, nor has the one for validation."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    photos = write_photos(folder, 3, (150, 120))
    write_sam(photos[0], sam_file((150, 120), (64, 52)))
    log = train(folder, tmp_path / 'run', 'teacher=files')
    assert [line['step'] for line in log] == [1, 2]
    assert max(line['distillation_loss'] for line in log) > 0
    assert all(math.isfinite(value) for line in log for value in line.values())
    data = json.loads((tmp_path / 'run' / 'data.json').read_text())
    assert [set(each) for each in data['training']] == [
        {'file', 'sha256', 'sam_sha256'}, {'file', 'sha256'},
    ]  # fmt: skip


def test_who_reads_them() -> None:
    off: dict[str, Any] = {'distillation': 0.0, 'grouping': 0.0, 'edge': 0.0}
    for config, parts in (
        (LiteConfig(), SamParts()),
        (SamfeatConfig(), SamParts(masks=True)),
        (SamfeatConfig(teacher='files'), BOTH),
        (SamfeatConfig(teacher='files', **{**off, 'distillation': 1.0}), SamParts(features=True)),
        (SamfeatConfig(teacher='files', **off), SamParts()),
    ):
        assert config.sam_parts == parts


def test_a_teacher_without_files(tmp_path: Path) -> None:
    write_photos(tmp_path)
    config = SamfeatConfig(photos=[str(tmp_path)], holdout_every=2, teacher='files', pair=SMALL)
    with pytest.raises(DataError, match=r'none of 1 photographs has .* \(0\.sam\.npz\): write'):
        Run(get_system('samfeat'), config, tmp_path / 'run')


# ---------------------------------------------------------------- SAM


# As much of SAM and its package as its files are made with.


def stand_in_sam() -> nn.Module:
    sam = nn.Module()
    sam.image_encoder = nn.Conv2d(3, 6, 16, 16)
    return sam


class StandInScaling:
    target_length = 64

    @staticmethod
    def get_preprocess_shape(height: int, width: int, longer: int) -> tuple[int, int]:
        scale = longer / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def apply_image(self, image: Array) -> Array:
        height, width = image.shape[:2]
        size = self.get_preprocess_shape(height, width, self.target_length)
        return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA))


class StandInGenerator:
    """Two masks: the bright half of the pixels, and the brightest of them."""

    def __init__(self, sam: nn.Module) -> None:
        self.predictor = types.SimpleNamespace(transform=StandInScaling(), model=sam)

    def generate(self, image: Array) -> list[dict[str, Any]]:
        assert image.dtype == np.uint8 and image.shape[2] == 3
        stand_in_features(self.predictor.model, image)
        grey = image.mean(2)
        masks = [grey > np.quantile(grey, share) for share in (0.9, 0.5)]
        return [{'segmentation': mask} for mask in masks if mask.any()]


def stand_in_features(sam: Any, image: Array) -> Tensor:
    scaled = StandInScaling().apply_image(image)
    plane = torch.from_numpy(scaled).permute(2, 0, 1).float()
    padded = functional.pad(plane, (0, 64 - plane.shape[2], 0, 64 - plane.shape[1]))
    with torch.no_grad():
        return torch.as_tensor(sam.image_encoder(padded[None])[0])


def real_sam() -> Any:
    """SAM of its authors, tiny and untrained, but sure of its masks."""
    from segment_anything import modeling

    sam = modeling.Sam(
        modeling.ImageEncoderViT(
            img_size=64, embed_dim=16, depth=2, num_heads=2, out_chans=16, use_rel_pos=True,
            window_size=2, global_attn_indexes=(1,),
        ),
        modeling.PromptEncoder(16, (4, 4), (64, 64), 4),
        modeling.MaskDecoder(
            transformer_dim=16, num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(2, 16, 2, 32), iou_head_hidden_dim=16,
        ),
    )  # fmt: skip
    with torch.no_grad():
        for part in sam.mask_decoder.output_hypernetworks_mlps:
            part.layers[-1].weight *= 1000
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 1
    return sam


class Package:
    """A package of SAM: how to make a model, and what it should see in an image."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = kind
        make: Any = stand_in_sam if kind == 'stand-in' else real_sam
        torch.manual_seed(2)
        self.sam = make()
        registry = {'tiny': make, 'wide': lambda: nn.Linear(3, 3)}
        if kind == 'stand-in':
            package: Any = types.ModuleType('segment_anything')
            package.sam_model_registry = registry
            package.SamAutomaticMaskGenerator = StandInGenerator
            monkeypatch.setitem(sys.modules, 'segment_anything', package)
        else:
            import segment_anything

            for name, each in registry.items():
                monkeypatch.setitem(segment_anything.sam_model_registry, name, each)

    def features(self, image: Array) -> Tensor:
        if self.kind == 'stand-in':
            return stand_in_features(self.sam, image)
        from segment_anything import SamPredictor

        predictor = SamPredictor(self.sam.eval())
        predictor.set_image(image)
        return torch.as_tensor(predictor.get_image_embedding()[0])

    def masks(self, image: Array) -> list[Array]:
        from segment_anything import SamAutomaticMaskGenerator

        found = SamAutomaticMaskGenerator(self.sam.eval()).generate(image)
        return [each['segmentation'] for each in found]


@pytest.fixture(params=['stand-in', 'package'])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Package:
    if request.param == 'package':
        pytest.importorskip('segment_anything', reason="SAM's package is not installed")
    return Package(request.param, monkeypatch)


def sam_command(folder: Path, checkpoint: Path, kind: str = 'tiny') -> list[str]:
    return ['train', 'sam-files', str(folder), '--checkpoint', str(checkpoint), '--type', kind]


@pytest.mark.parametrize('wh', [(60, 41), (90, 70), (40, 64)])
def test_files_hold_what_sam_sees(
    tmp_path: Path, package: Package, wh: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'photos'
    folder.mkdir()
    photos = write_photos(folder, 3, wh)
    torch.save(package.sam.state_dict(), tmp_path / 'sam.pth')
    figures = tmp_path / 'figures.json'
    assert main([*sam_command(folder, tmp_path / 'sam.pth'), '--json', str(figures)]) == 0
    assert json.loads(figures.read_text()) == {'written': 3, 'kept': 0}
    assert sorted(path.name for path in folder.glob('*.sam.npz*')) == [
        '0.sam.npz', '1.sam.npz', '2.sam.npz',
    ]  # fmt: skip
    scale = 4 / max(wh)
    cells = [math.ceil(int(length * 16 * scale + 0.5) / 16) for length in wh[::-1]]
    covered = 0
    for photo in photos:
        image = read_photo(photo).image
        found = read_sam(photo, wh)
        expected = package.features(image)[:, : cells[0], : cells[1]]
        assert_allclose(found.features, expected, rtol=2e-3, atol=2e-3)
        if max(wh) > 64:
            shape = StandInScaling.get_preprocess_shape(*wh[::-1], 64)
            image = np.asarray(scaled_by(package, image))
            assert image.shape[:2] == shape
        masks = package.masks(image)
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(int)
            for new, old in zip(wh[::-1], image.shape[:2], strict=True)
        )
        order = sorted(range(len(masks)), key=lambda k: -masks[k].sum())
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                inside = [rank for rank, k in enumerate(order, 1) if masks[k][row, column]]
                assert found.masks[y, x] == max(inside, default=0)
        covered += len(np.unique(found.masks)) > 1
    assert covered == 3


def scaled_by(package: Package, image: Array) -> Array:
    if package.kind == 'stand-in':
        return StandInScaling().apply_image(image)
    from segment_anything.utils.transforms import ResizeLongestSide

    return np.asarray(ResizeLongestSide(64).apply_image(image))


def test_the_teacher_that_runs_sam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of views of its own size it has the features that SAM's predictor has."""
    pytest.importorskip('segment_anything', reason="SAM's package is not installed")
    package = Package('package', monkeypatch)
    torch.save(package.sam.state_dict(), tmp_path / 'sam.pth')
    photos = write_photos(tmp_path, 2, (64, 64))
    images = [read_photo(photo).image for photo in photos]
    found = create_teacher(f'sam:tiny:{tmp_path / "sam.pth"}', CPU)(torch.tensor(np.array(images)))
    expected = torch.stack([package.features(image) for image in images])
    assert_allclose(found, expected, atol=1e-5)


def test_what_was_interrupted_goes_on(
    tmp_path: Path, package: Package, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / 'photos'
    folder.mkdir()
    photos = write_photos(folder, 3, (60, 41))
    torch.save(package.sam.state_dict(), tmp_path / 'sam.pth')

    def stopped(items: list[Any], what: str) -> Any:
        yield items[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sam_files(photos, 'tiny', tmp_path / 'sam.pth', CPU, stopped)
    assert [sam_path(photo).exists() for photo in photos] == [True, False, False]
    before = sam_path(photos[0]).stat()  # not its atime: reading changes that
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return checkpoint_sha256(path)

    monkeypatch.setattr('feat_ros.training.sam_writer.checkpoint_sha256', counted)
    assert main(sam_command(folder, tmp_path / 'sam.pth')) == 0
    assert read == [tmp_path / 'sam.pth']
    after = sam_path(photos[0]).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert '2 files written, 1 were there' in capsys.readouterr().out
    assert main(sam_command(folder, tmp_path / 'sam.pth')) == 0
    assert '0 files written, 3 were there' in capsys.readouterr().out
    with torch.no_grad():
        next(package.sam.parameters()).add_(1)
    torch.save(package.sam.state_dict(), tmp_path / 'other.pth')
    assert main(sam_command(folder, tmp_path / 'other.pth')) == 1
    assert '0.sam.npz was made by tiny ' in capsys.readouterr().err


def test_nothing_in_a_picture_is_nothing_in_its_file(tmp_path: Path, package: Package) -> None:
    """In a black picture the stand-in sees nothing; SAM nowhere when it is sure of no mask."""
    if package.kind == 'package':
        with torch.no_grad():
            package.sam.mask_decoder.iou_prediction_head.layers[-1].bias -= 9
    cv2.imwrite(str(tmp_path / '0.png'), np.zeros((41, 60, 3), np.uint8))
    torch.save(package.sam.state_dict(), tmp_path / 'sam.pth')
    assert main(sam_command(tmp_path, tmp_path / 'sam.pth')) == 0
    assert not read_sam(tmp_path / '0.png', (60, 41)).masks.any()


def test_checkpoints_that_cannot_be_used(tmp_path: Path, package: Package) -> None:
    photos = write_photos(tmp_path, 1, (60, 41))
    checkpoint = tmp_path / 'sam.pth'

    def write(kind: str) -> None:
        write_sam_files(photos, kind, checkpoint, CPU, lambda items, what: items)

    with pytest.raises(NetworkError, match=r'sam\.pth cannot be read: name a file'):
        write('tiny')
    checkpoint.write_bytes(b'')
    with pytest.raises(NetworkError, match=r'sam\.pth cannot be read: name a file'):
        write('tiny')
    checkpoint.write_bytes(b'no checkpoint')
    with pytest.raises(NetworkError, match=r'sam\.pth is damaged|not a checkpoint of torch'):
        write('tiny')
    torch.save(package.sam.state_dict(), checkpoint)
    with pytest.raises(ConfigError, match=r"'huge' from .*: the type must be one of .*tiny"):
        write('huge')
    with pytest.raises(ConfigError, match=r"sam\.pth is not of type 'wide': try another of"):
        write('wide')
    assert not sam_path(photos[0]).exists()


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'segment_anything', None)
    write_photos(tmp_path, 1)
    (tmp_path / 'sam.pth').write_bytes(b'anything')
    assert main(sam_command(tmp_path, tmp_path / 'sam.pth', 'vit_h')) == 1
    error = capsys.readouterr().err
    assert error.startswith('feat_ros: SAM needs the package of its authors, and torchvision')
    assert error.count('\n') == 1

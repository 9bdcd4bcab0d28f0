# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A whole frame, from the picture to the pose, among a thousand images of a map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
import time
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.bench import (
    check,
    histograms,
    OURS,
    Query,
    Scene,
    synthetic_scene,
    table_rows,
    take_turns,
    views,
)
from feat_ros.errors import DataError
from feat_ros.extraction_bench import XFEAT, xfeat_session
from feat_ros.extractors import create_extractor
from feat_ros.image import Image
from feat_ros.localizer import Localizer, LocalizerConfig
from feat_ros.retrieval.asmk import AsmkIndex, default_num_words, RETRIEVAL_FEATURES
from feat_ros.runtimes import open_matcher
from feat_ros.server import Frame, LocalizationServer, ServerConfig
from feat_ros.town.pictures import street_pictures
from feat_ros.types import (
    Features,
    FrameRecord,
    JsonDict,
    LocalizationResult,
    PoseEstimate,
    PosePrior,
)

Ids = npt.NDArray[np.int64]

PRIOR, ONE_BY_ONE = 'feat_ros, with a prior', 'feat_ros, one after the other'
_MOST_GLOBAL, _MOST_PRIOR = 6.0, 3.5
# A second, with a GPU.
_LEAST_POSES = 100
# Images of the map that see what the query sees.
_SAME_PLACE = 10
_STAGES = ('extract', 'retrieve', 'match', 'pnp')
# Between two images of a camera that never stops.
_EVERY_S = 0.005
_PATIENCE_S = 120.0


class _Camera:
    """Extracts from a picture of a street, and says that a made-up query was seen there.

    The network takes as long as on any picture; the features that go on fit the map.
    """

    name, weights_sha256 = 'sift', ''

    def __init__(self, keypoints: int, threads: int, *, on_gpu: bool) -> None:
        how = {'runtime': 'onnx', 'provider': 'cpu', 'threads': threads}
        if on_gpu:
            how = {'runtime': 'torch', 'provider': 'cuda', 'precision': 'fp16'}
        self._extractor = create_extractor(
            'sfd2' if on_gpu else 'sfd2_lite', max_keypoints=keypoints, **how
        )
        self.config = self._extractor.config
        self.descriptor_dim = self._extractor.descriptor_dim
        self.sees: Features | None = None

    def __call__(self, image_rgb: Image) -> Features:
        found = self._extractor(image_rgb)
        return found if self.sees is None else self.sees


def bench_frame(
    repeat: int = 20,
    threads: int = 2,
    num_images: int = 1000,
    keypoints: int = 1024,
    num_points: int = 3500,
    *,
    on_gpu: bool = False,
) -> JsonDict:
    """Localize pictures in a map of many images, globally and with a prior.

    Extraction is of sfd2_lite on a picture of a street; map and features are those of
    :func:`feat_ros.bench.synthetic_scene`, ten images of one corner. The other images, which have
    nothing in common with it, are in the index only. Then a camera that never stops: every pose
    with the one before as prior, the next image's features extracted meanwhile or not.

    :param repeat: how many queries.
    :param on_gpu: extract with sfd2 in half precision by torch on the GPU, and match there.
    :raises NetworkError: torch finds no GPU.
    """
    cv2.setNumThreads(threads)
    camera = _Camera(keypoints, threads, on_gpu=on_gpu)
    pictures = list(street_pictures().values())
    xfeat = xfeat_session(threads)
    planes = {'planes': pictures[0].transpose(2, 0, 1)[None].astype(np.float32)}
    with TemporaryDirectory() as folder:
        scene = synthetic_scene(
            Path(folder), num_images=_SAME_PLACE, num_queries=repeat, keypoints=keypoints,
            num_points=num_points,
        )  # fmt: skip
        index = _index(scene, num_images - _SAME_PLACE, keypoints)
        wanted = LocalizerConfig().retrieved_images

        def retrieve(features: Features) -> Ids:
            found, _ = index.search(features.descriptors[:RETRIEVAL_FEATURES], wanted)
            return found[found < _SAME_PLACE]

        matcher = open_matcher('auto' if on_gpu else 'cpu')
        localizer = Localizer(scene.map, camera, retrieve, matcher=matcher)

        def localize(query: Query, prior: PosePrior | None) -> LocalizationResult:
            camera.sees = query.features
            return localizer.localize(pictures[0], query.camera, prior)

        contenders: dict[str, Callable[[Query], Any]] = {
            OURS: lambda query: localize(query, None),
            PRIOR: lambda query: localize(query, PosePrior(query.cam_from_map)),
            XFEAT: lambda query: xfeat.run(None, planes),
        }
        runs = take_turns(contenders, scene.queries)
        is_found = [isinstance(result, PoseEstimate) for result in runs[OURS].results]
        if not any(is_found):
            raise DataError(f'none of {repeat} queries is localized: take more of them')
        query = scene.queries[is_found.index(True)]
        camera.sees = query.features
        frame = Frame(0, pictures[0], query.camera)
        streams = {
            name: _stream(localizer, frame, ahead, repeat)
            for name, ahead in ((OURS, True), (ONE_BY_ONE, False))
        }
    rows = table_rows({name: taken.ms for name, taken in runs.items()}, {}, {})
    by_name = {row['name']: row for row in rows}
    checks = []
    for name, most in ((OURS, _MOST_GLOBAL), (PRIOR, _MOST_PRIOR)):
        results = runs[name].results
        by_name[name] |= {
            stage: float(np.median([result.ms.get(stage, 0.0) for result in results]))
            for stage in _STAGES
        }
        found = np.mean([isinstance(result, PoseEstimate) for result in results])
        by_name[name]['localized_%'] = 100 * float(found)
        ratio = by_name[name]['median_ms'] / by_name[XFEAT]['median_ms']
        what = f'"{name}", times XFeat\'s network'
        checks.append(check(what, ratio, f'at most {most:g}', ratio <= most))
    title = f'a frame, {keypoints} keypoints, 640x480, {num_images} images, {threads} threads'
    stream_rows = table_rows(
        {name: periods for name, (periods, _) in streams.items()},
        {},
        {name: {'latency_ms': float(np.median(each))} for name, (_, each) in streams.items()},
    )
    if on_gpu:
        rate = 1e3 / stream_rows[0]['median_ms']
        checks.append(check('poses a second', rate, 'at least 100', rate >= _LEAST_POSES))
    return {
        'threads': {'network': threads},
        'tables': {title: rows, 'from pose to pose, of a camera that never stops': stream_rows},
        'checks': checks,
    }


def _stream(
    localizer: Localizer, frame: Frame, ahead: bool, count: int
) -> tuple[list[float], list[float]]:
    """Return the times between so many poses, and those from image to pose, in milliseconds."""
    poses: list[tuple[float, FrameRecord]] = []

    def take(record: FrameRecord) -> None:
        if record.status == 'localized':
            poses.append((time.perf_counter(), record))

    server = LocalizationServer(localizer, ServerConfig(extract_ahead=ahead))
    server.start(take)
    stamp_ns = 0
    # The first two start the rest.
    give_up_s = time.monotonic() + _PATIENCE_S
    while len(poses) < count + 2:
        if time.monotonic() > give_up_s:
            server.stop()
            raise DataError(f'{len(poses)} poses in {_PATIENCE_S:g} s: this machine is too slow')
        stamp_ns += round(_EVERY_S * 1e9)
        server.submit(replace(frame, stamp_ns=stamp_ns))
        time.sleep(_EVERY_S)
    server.stop()
    times, records = zip(*poses[1 : count + 2], strict=True)
    periods = np.diff(times) * 1e3
    return periods.tolist(), [sum(record.ms.values()) for record in records[1:]]


def _index(scene: Scene, num_others: int, keypoints: int) -> AsmkIndex:
    rng = np.random.default_rng(0)
    count = min(keypoints, RETRIEVAL_FEATURES)
    strongest = [image.descriptors[:count] for image in scene.images]
    strongest += [views(rng, histograms(rng, count)) for _ in range(num_others)]
    rows = np.concatenate(strongest)
    words = rows[rng.choice(len(rows), default_num_words(len(rows)), replace=False)]
    return AsmkIndex.build(words, strongest)

# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures for people; matplotlib, drawn to files without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from feat_ros.errors import DataError
from feat_ros.geometry import Rigid3d
from feat_ros.image import Image
from feat_ros.sfm_map import SfmMap
from feat_ros.types import Features

Float = npt.NDArray[np.float64]

_MAX_POINTS = 50_000
# Okabe and Ito's colours: told apart with every kind of colour blindness.
MAP_COLOUR, ESTIMATE_COLOUR, TRUTH_COLOUR = '#0072b2', '#d55e00', '#009e73'


class TopView(NamedTuple):
    """A map seen from above; a place p of the map is at ``basis @ p``: right, ahead, up.

    :ivar basis: (3, 3), rows of unit length.
    :ivar points: (n, 3) its points, thinned out to what a picture can show.
    :ivar centers: (I, 3) its cameras.
    :ivar ahead: (I, 3) where they look.
    """

    basis: Float
    points: Float
    centers: Float
    ahead: Float


def top_view(sfm_map: SfmMap) -> TopView:
    """Look at a map from above.

    Where gravity is unknown, up is taken to be opposite to the cameras' mean down direction.
    """
    rotations, translations = sfm_map.image_poses()
    basis = _horizontal(rotations, known=sfm_map.manifest.gravity == 'known')
    step = max(1, sfm_map.num_points // _MAX_POINTS)
    points = sfm_map.points(np.arange(0, sfm_map.num_points, step))[0] @ basis.T
    centers = -np.einsum('nji,nj->ni', rotations, translations) @ basis.T
    return TopView(basis, points, centers, (rotations @ basis.T)[:, 2])


def plot_top_view(
    path: str | Path,
    sfm_map: SfmMap,
    estimates: Mapping[str, Rigid3d] | None = None,
    ground_truth: Mapping[str, Rigid3d] | None = None,
) -> None:
    """Draw a :func:`top_view`: points, the map's cameras, and estimated poses if given.

    :raises DataError: the file cannot be written.
    """
    basis, points, centers, headings = top_view(sfm_map)
    low, high = np.quantile(np.concatenate([centers, points])[:, :2], [0.05, 0.95], axis=0)
    low, high = np.minimum(low, centers[:, :2].min(0)), np.maximum(high, centers[:, :2].max(0))
    span = high - low
    span = 1.1 * np.maximum(np.maximum(span, 0.3 * span.max()), 1e-9)
    figure, axes = _figure(*(8 * span / span.max()).tolist())
    height = points[:, 2] - np.median(points[:, 2])
    limit = max(float(np.quantile(np.abs(height), 0.95)), 1e-9)
    axes.scatter(
        points[:, 0], points[:, 1], s=1, c=height, cmap='viridis', vmin=-limit, vmax=limit,
        linewidths=0, alpha=0.6, rasterized=True,
    )  # fmt: skip
    _draw_cameras(axes, centers, headings, MAP_COLOUR, 'map images')
    for poses, colour, label in (
        (ground_truth, TRUTH_COLOUR, 'ground truth'),
        (estimates, ESTIMATE_COLOUR, 'localized'),
    ):
        if poses:
            inverse = [pose.inverse() for pose in poses.values()]
            at = np.array([pose.translation for pose in inverse]) @ basis.T
            ahead = np.array([pose.rotation[:, 2] for pose in inverse]) @ basis.T
            _draw_cameras(axes, at, ahead, colour, label, ring=poses is ground_truth)
    (left, bottom), (right, top) = (low + high - span) / 2, (low + high + span) / 2
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    unit = 'm' if sfm_map.manifest.scale == 'metric' else 'map units'
    axes.set_aspect('equal')
    axes.set_xlabel(unit)
    axes.set_ylabel(unit)
    axes.set_title(
        f'{sfm_map.path.name}: {sfm_map.num_points} points, {sfm_map.num_images} images'
    )
    axes.grid(alpha=0.3)
    axes.legend(loc='upper right')
    save_figure(figure, path)


def plot_coverage(
    path: str | Path,
    sfm_map: SfmMap,
    centers: Float,
    num_matches: Float,
    is_lost: npt.NDArray[np.bool_],
) -> None:
    """Draw from above how many matches a camera would find along a path, and where it is lost.

    :param centers: (N, 3) of the camera; with the matches (N,) that are expected there.
    :raises DataError: the file cannot be written.
    """
    basis, points, _, _ = top_view(sfm_map)
    at = centers @ basis.T
    low, high = at[:, :2].min(axis=0), at[:, :2].max(axis=0)
    span = 1.3 * np.maximum(high - low, 0.3 * (high - low).max() + 1e-9)
    figure, axes = _figure(*(9 * span / span.max() + [1.5, 1.0]).tolist())
    axes.scatter(points[:, 0], points[:, 1], s=1, c='0.8', linewidths=0, rasterized=True)
    drawn = axes.scatter(
        at[:, 0], at[:, 1], c=np.maximum(num_matches, 1.0), s=30,
        cmap='viridis', norm='log', zorder=3,
    )  # fmt: skip
    if is_lost.any():
        axes.scatter(
            at[is_lost, 0], at[is_lost, 1], s=110, facecolors='none', edgecolors=ESTIMATE_COLOUR,
            linewidths=1.5, zorder=4, label='lost',
        )  # fmt: skip
        axes.legend(loc='upper right')
    (left, bottom), (right, top) = (low + high - span) / 2, (low + high + span) / 2
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    unit = 'm' if sfm_map.manifest.scale == 'metric' else 'map units'
    axes.set_aspect('equal')
    axes.set_xlabel(unit)
    axes.set_ylabel(unit)
    axes.set_title(f'{sfm_map.path.name}: lost at {is_lost.sum()} of {len(is_lost)} poses')
    axes.grid(alpha=0.3)
    figure.colorbar(drawn, ax=axes, label='matches expected', shrink=0.8)
    save_figure(figure, path)


def _draw_cameras(
    axes: Any, centers: Float, ahead: Float, colour: str, label: str, *, ring: bool = False
) -> None:
    axes.scatter(
        centers[:, 0], centers[:, 1], s=90 if ring else 16, edgecolors=colour,
        facecolors='none' if ring else colour, label=label, zorder=3,
    )  # fmt: skip
    axes.quiver(
        centers[:, 0], centers[:, 1], ahead[:, 0], ahead[:, 1], color=colour, scale=25,
        width=0.003, zorder=3,
    )  # fmt: skip


def _horizontal(rotations: Float, *, known: bool) -> Float:
    """Rows: two horizontal axes and up, in map coordinates."""
    up = np.array([0.0, 0.0, 1.0]) if known else -rotations[:, 1].mean(axis=0)
    if np.linalg.norm(up) < 1e-6:
        up = np.array([0.0, 0.0, 1.0])
    up = up / np.linalg.norm(up)
    if known:
        return np.eye(3)
    helper = rotations[0, 0] - (rotations[0, 0] @ up) * up
    right = helper / max(float(np.linalg.norm(helper)), 1e-9)
    return np.stack([right, np.cross(up, right), up])


def plot_features(path: str | Path, images: Sequence[tuple[str, Image, Features]]) -> None:
    """Draw keypoints on their images, coloured by stability; the size is the score's rank.

    :raises DataError: the file cannot be written.
    """
    height = sum(6 * image.shape[0] / image.shape[1] + 0.4 for _, image, _ in images)
    figure, axes = _figure(8, height, rows=len(images))
    for axis, (name, image, features) in zip(np.atleast_1d(axes), images, strict=True):
        axis.imshow(image)
        rank = np.linspace(24, 2, len(features))
        drawn = axis.scatter(
            features.keypoints[:, 0] - 0.5, features.keypoints[:, 1] - 0.5, s=rank,
            c=features.stability, cmap='cividis', vmin=0, vmax=1, marker='o', linewidths=0.3,
            edgecolors='white',
        )  # fmt: skip
        axis.set_title(f'{name}: {len(features)} keypoints', fontsize=9)
        axis.axis('off')
        figure.colorbar(drawn, ax=axis, label='stability', shrink=0.7)
    save_figure(figure, path)


def plot_matches(
    path: str | Path, image: Image, pixels: Float, projected: Float, title: str
) -> None:
    """Draw on a query what it was localized by: keypoints, and where the map says they are.

    :param pixels: (n, 2) keypoints of the inliers.
    :param projected: (n, 2) their map points seen from the estimated pose.
    :raises DataError: the file cannot be written.
    """
    figure, axes = _figure(9, 9 * image.shape[0] / image.shape[1] + 0.6)
    axes.imshow(image)
    error = np.linalg.norm(pixels - projected, axis=1)
    drawn = axes.scatter(
        pixels[:, 0] - 0.5, pixels[:, 1] - 0.5, s=8, c=error, cmap='cividis_r', vmin=0, vmax=4,
        linewidths=0,
    )  # fmt: skip
    figure.colorbar(drawn, ax=axes, label='reprojection error [px]', shrink=0.8)
    axes.set_title(title, fontsize=10)
    axes.axis('off')
    save_figure(figure, path)


def _figure(width: float, height: float, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(rows, 1)


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a picture.

    :raises DataError: the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise DataError(f'picture {path} cannot be written: {error}') from None

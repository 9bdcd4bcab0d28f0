# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""``report.html``: how a recording was localized, on one page that needs nothing else.

The pictures are SVG written by hand: small, crisp on any screen, their colours follow the page
into dark mode, and a robot without matplotlib can write them too.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import html
from pathlib import Path
import re
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.errors import DataError, MapError
from feat_ros.evaluation import compare_poses, PoseErrors
from feat_ros.image import check_image, Image
from feat_ros.plots import ESTIMATE_COLOUR, MAP_COLOUR, top_view, TRUTH_COLOUR
from feat_ros.pose_error import normalised_error_squared, pose_error
from feat_ros.semantics import GROUP_COLOURS_RGB, StabilityGroup
from feat_ros.sfm_map import SfmMap, write_text
from feat_ros.types import (
    FailureReason,
    Features,
    FrameRecord,
    JsonDict,
    LocalizationResult,
    PoseEstimate,
)

Float = npt.NDArray[np.float64]
Range = tuple[float, float]

_PICTURE_PX = 800
_MAX_SERIES = 5000
_MAX_DOTS = 1200
_MAX_KEYPOINTS = 2000
_RESIDUAL_ZOOM = 10
# So narrow that the text of a plot is readable on a phone.
_PLOT_WIDTH = 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 24, 38
_NOT_XML = re.compile('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')

# Stability is shown as the group whose value is nearest: least value, group, words.
_GROUPS = (
    (0.75, StabilityGroup.LONG_TERM, 'lasting'),
    (0.3, StabilityGroup.SHORT_TERM, 'for a season'),
    (0.0, StabilityGroup.DYNAMIC, 'passing'),
)
_REASONS = {
    FailureReason.BAD_IMAGE: 'the image cannot be decoded or has another size',
    FailureReason.NO_FEATURES: 'the image shows too little',
    FailureReason.NO_CANDIDATES: 'no image of the map looks like it',
    FailureReason.MAP_DAMAGED: 'the map cannot be read',
    FailureReason.TOO_FEW_MATCHES: 'hardly any keypoint was found in the map',
    FailureReason.PNP_FAILED: 'no pose agrees with the matches',
    FailureReason.TOO_FEW_INLIERS: 'too few matches agree with the pose',
    FailureReason.DEGENERATE_SPREAD: 'the matches lie too close together',
    FailureReason.COVARIANCE_TOO_LARGE: 'the pose would be too uncertain',
    FailureReason.ODOMETRY_DISAGREES: 'the pose contradicts the odometry',
}


def _css() -> str:
    dynamic, short, long = (
        '#' + bytes(GROUP_COLOURS_RGB[group]).hex() for _, group, _ in reversed(_GROUPS)
    )
    return f"""
:root {{ color-scheme: light dark; --page: #fff; --card: #f5f6f7; --text: #1b1f23; --soft: #59626b;
  --line: #d4d8dc; --map: {MAP_COLOUR}; --estimate: {ESTIMATE_COLOUR}; --truth: {TRUTH_COLOUR}; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #101418; --card: #1a1f25; --text: #e8eaed;
  --soft: #a3adb7; --line: #3a424a; --map: #56b4e9; --estimate: #e69f00; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page);
  color: var(--text); font: 1rem/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.1rem; margin: 0; color: var(--soft); overflow-wrap: anywhere; }}
h2 {{ font-size: 1.05rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }}
.verdict {{ font-size: clamp(1.25rem, 3.5vw, 1.8rem); line-height: 1.25; margin: .3rem 0 .5rem;
  font-weight: 600; }}
.soft, figcaption, .empty, small {{ color: var(--soft); }}
.columns {{ display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }}
.columns > div {{ min-width: 0; }} .columns svg {{ max-width: 42rem; }}
figure {{ background: var(--card); border-radius: .6rem; padding: .9rem; margin: 1rem 0 0; }}
.pair {{ display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }}
figcaption {{ margin-top: .5rem; font-size: .9rem; }}
svg {{ display: block; width: 100%; height: auto; border-radius: .3rem; }}
svg path, svg polyline {{ fill: none; stroke-linecap: round; stroke-linejoin: round; }}
svg text {{ font-size: 13px; fill: var(--soft); }}
.grid {{ stroke: var(--line); stroke-width: 1; }}
.dot {{ stroke-width: 3.4; }} .big {{ stroke-width: 7; opacity: .65; }}
.small {{ stroke-width: 2.2; }} .curve {{ stroke-width: 2.2; }} .dash {{ stroke-dasharray: 5 6; }}
.map {{ stroke: var(--map); }} .estimate {{ stroke: var(--estimate); }}
.truth {{ stroke: var(--truth); }} .lost {{ stroke: var(--text); stroke-width: 1.6; }}
.halo {{ stroke: #fff; stroke-width: 7.4; }} .keypoint {{ stroke-width: 5.8; }}
.agree {{ stroke: {TRUTH_COLOUR}; }} .disagree {{ stroke: {ESTIMATE_COLOUR}; stroke-width: 2.4; }}
.tail {{ stroke-width: 2.4; }} .edge {{ stroke: #fff; stroke-width: 4; }}
.g{StabilityGroup.LONG_TERM:d} {{ stroke: {long}; }}
.g{StabilityGroup.SHORT_TERM:d} {{ stroke: {short}; }}
.g{StabilityGroup.DYNAMIC:d} {{ stroke: {dynamic}; }}
.key {{ display: inline-block; width: 1.4em; height: .7em; margin: 0 .35em 0 .2em; }}
.photo .key {{ background: #777; height: .9em; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; }}
td {{ padding: .2rem .5rem .2rem 0; vertical-align: top; }}
td:last-child {{ text-align: right; white-space: nowrap; padding-right: 0; }}
.bar {{ width: 40%; }}
.bar div {{ height: .55rem; min-width: 2px; margin-top: .45rem; border-radius: .3rem;
  background: var(--map); }}
.bar .tail95 {{ opacity: .35; margin-top: .12rem; }}
"""


@dataclass(frozen=True, eq=False)
class ExampleFrame:
    """A frame that the report shows.

    :ivar image_rgb: (H, W, 3) uint8.
    :ivar projected_px: (n, 2) the inliers' map points seen from the estimated pose, in the order
        of ``result.inliers``; empty for failures.
    """

    record: FrameRecord
    image_rgb: Image
    features: Features
    result: LocalizationResult
    projected_px: Float


def write_report(
    path: Path,
    title: str,
    sfm_map: SfmMap,
    records: Sequence[FrameRecord],
    summary: JsonDict,
    examples: Sequence[ExampleFrame],
) -> None:
    """Write the page; the same input gives the same bytes.

    Dropped frames were never looked at: they count in no curve.

    :param summary: what ``summary.json`` holds, see :mod:`feat_ros.evaluation`.
    :raises DataError: the file cannot be written.
    """
    run = _Run(sfm_map, records)
    left = _top_view(run), _recall(run, summary), _failures(run)
    right = _errors_over_time(run), _honesty(run), _latency(summary)
    frames = [_example(run, number, example) for number, example in enumerate(examples)]
    if not examples:
        frames.append(_card('Example frames', _empty('No frame was chosen to be shown.')))
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><title>{_text(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<style>{_css()}</style></head>
<body><header><h1>{_text(title)}</h1>
<p class="verdict">{_text(_verdict(run, summary))}</p>
<p class="soft">{_text(_about(run))}</p></header>
<main><div class="columns"><div>{''.join(left)}</div><div>{''.join(right)}</div></div>
{''.join(frames)}
</main></body></html>
"""
    try:
        write_text(path, page)
    except MapError as error:
        raise DataError(str(error)) from None


class _Run:
    """The records as arrays.

    :ivar seconds: (N,) since the first frame.
    :ivar errors: of the frames with ground truth, None where there is none.
    :ivar judged: their rows.
    """

    def __init__(self, sfm_map: SfmMap, records: Sequence[FrameRecord]) -> None:
        self.map, self.records = sfm_map, records
        self.metric = sfm_map.manifest.scale == 'metric'
        self.unit = 'm' if self.metric else 'map units'
        stamps = np.array([record.stamp_ns for record in records], np.int64)
        self.seconds = np.asarray((stamps - stamps[:1]) * 1e-9, np.float64)
        self.found = np.array([r.map_from_base is not None for r in records], bool)
        self.found &= np.array([r.status == 'localized' for r in records], bool)
        self.lost = np.array([r.status == 'refused' for r in records], bool)
        self.errors, self.judged = _pose_errors(records, self.found)

    def positions(self, of: str) -> Float:
        """Positions (N, 3) of ``truth`` or ``map_from_base``, NaN where there is none."""
        poses = [getattr(record, of) for record in self.records]
        places = [np.full(3, np.nan) if pose is None else pose.translation for pose in poses]
        return np.array(places, float).reshape(-1, 3)


def _pose_errors(
    records: Sequence[FrameRecord], found: npt.NDArray[np.bool_]
) -> tuple[PoseErrors | None, npt.NDArray[np.intp]]:
    truth, estimates = {}, {}
    for row, record in enumerate(records):
        if record.truth is not None and record.status != 'dropped':
            truth[str(row)] = record.truth.inverse()
            if found[row] and record.map_from_base is not None:
                estimates[str(row)] = record.map_from_base.inverse()
    errors = compare_poses(estimates, truth) if truth else None
    return errors, np.array([int(name) for name in truth], np.intp)


def _verdict(run: _Run, summary: JsonDict) -> str:
    """One sentence: how many, how well, how fast."""
    if not run.records:
        return 'The recording has no frame.'
    total, localized = summary['num_queries'], summary['num_localized']
    parts = [f'{localized} of {total} {"frame" if total == 1 else "frames"} localized']
    metres, degrees = (
        summary.get(f'median_{kind}') for kind in ('translation_error_m', 'rotation_error_deg')
    )
    if run.errors is None:
        parts.append('no ground truth to compare with')
    elif metres is not None and degrees is not None:
        parts.append(f'median error {_length(metres, run)}, {_number(degrees)} deg')
    share = summary.get('recall', {}).get('0.05m_5deg')
    if run.errors is not None and run.metric and share is not None:
        parts.append(f'{_percent(share)} within 5 cm and 5 deg')
    latency = summary.get('latency_ms', {}).get('total')
    if latency:
        parts.append(f'{_number(latency["p50"])} ms a frame')
    return '; '.join(parts) + '.'


def _about(run: _Run) -> str:
    dropped = sum(record.status == 'dropped' for record in run.records)
    parts = [
        f'Map {run.map.path.name}: {run.map.num_points} points seen by {run.map.num_images} '
        f'images, {run.map.manifest.extractor.name} features'
    ]
    if len(run.records):
        parts.append(f'recording of {_number(float(run.seconds.max()))} s')
    if dropped:
        parts.append(f'frames dropped because a newer one had come: {dropped}')
    return '; '.join(parts) + '.'


def _top_view(run: _Run) -> str:
    """Where it was, where it should have been, on the points of the map."""
    view = top_view(run.map)
    truth, estimate = (run.positions(of) @ view.basis.T for of in ('truth', 'map_from_base'))
    estimate[~run.found] = np.nan
    places = np.where(np.isfinite(truth), truth, estimate)
    ranges = _window(places if np.isfinite(places).any() else view.centers, view.points)
    x, y = ('x ', 'y ') if run.map.manifest.gravity == 'known' else ('', '')
    plot = _Plot(*ranges, (f'{x}[{run.unit}]', f'{y}[{run.unit}]'))
    rows = _evenly(np.arange(len(truth)), _MAX_SERIES)
    plot.density(view.points)
    plot.dots(_evenly(view.centers, _MAX_SERIES), 'map small')
    plot.dots(truth[rows], 'truth big')
    plot.segments(estimate[rows], truth[rows], 'estimate')
    plot.dots(estimate[rows], 'estimate dot')
    plot.crosses(_evenly(truth[run.lost], _MAX_SERIES), 'lost')
    outside = int((np.isfinite(estimate[:, 0]) & ~plot.inside(estimate)).sum())
    caption = (
        f'From above: points of the map in grey, {_key("map small")}its images, '
        f'{_key("estimate dot")}where frames were localized'
    )
    if run.errors is not None:
        caption += (
            f', {_key("truth big")}where they were. Orange inside green is right; a line leads '
            f'from a wrong pose to the true one; {_key("lost", "cross")}was refused'
        )
    if outside:
        caption += f'. Poses outside of the picture: {outside}'
    if not run.found.any():
        caption += '. Nothing was localized'
    return _card('Trajectory', plot.svg('trajectory from above'), caption + '.')


def _errors_over_time(run: _Run) -> str:
    """Errors, and what the covariances said they would be."""
    title = 'Error over time'
    if not run.found.any():
        return _card(title, _empty('Nothing was localized, so there is no error to show.'))
    rows = np.flatnonzero(run.found & [r.covariance is not None for r in run.records])
    if run.errors is None and len(rows) == 0:
        return _card(title, _empty('There is neither ground truth nor a covariance.'))
    covariances = np.array([run.records[int(row)].covariance for row in rows]).reshape(-1, 6, 6)
    factor, unit = _plot_unit(run)
    last = max(float(run.seconds.max()), 0.1)
    panels = []
    for axes, scale, label in (
        (slice(0, 3), factor, f'position error [{unit}]'),
        (slice(3, 6), float(np.degrees(1)), 'rotation error [deg]'),
    ):
        sigma = np.sqrt(np.trace(covariances[:, axes, axes], axis1=1, axis2=2)) * scale
        error = np.zeros(0)
        if run.errors is not None:
            error = np.linalg.norm(run.errors.errors[:, axes], axis=1) * scale
        y_range = _log_range(np.concatenate([error, sigma]))
        plot = _Plot(
            (-0.02 * last, 1.02 * last), y_range, ('time [s]', label), 150, log=(False, True)
        )
        plot.dots(_worst(run.seconds[run.judged[: len(error)]], error), 'estimate dot')
        plot.dots(_worst(run.seconds[rows], sigma), 'map small')
        plot.marks_below(_evenly(run.seconds[run.lost], _MAX_SERIES), 'lost')
        panels.append(plot.svg(f'{label} over time'))
    caption = (
        f'{_key("map small")}size that the covariance predicts; {_key("lost", "tick")}refused'
    )
    if run.errors is None:
        caption = f'There is no ground truth, so the error is unknown. {caption}'
    else:
        caption = f'{_key("estimate dot")}error, lower is better; {caption}'
    if len(run.records) > _MAX_DOTS:
        caption += '; of each short interval the worst frame is shown'
    return _card(title, ''.join(panels), caption + '.')


def _recall(run: _Run, summary: JsonDict) -> str:
    """Share of frames better than any threshold."""
    title = 'Recall'
    if run.errors is None:
        return _card(title, _empty('There is no ground truth, so recall is unknown.'))
    if not run.found[run.judged].any():
        return _card(title, _empty('No frame with ground truth was localized: recall is 0 %.'))
    factor, unit = _plot_unit(run)
    panels = []
    for error, label in (
        (run.errors.translation_m * factor, f'position error [{unit}]'),
        (run.errors.rotation_deg, 'rotation error [deg]'),
    ):
        x_range = _log_range(error)
        plot = _Plot(x_range, (0, 100), (label, 'frames within [%]'), 150, log=(True, False))
        plot.curve(_cumulative(error, x_range), 'estimate curve')
        panels.append(plot.svg(f'share of frames with a smaller {label}'))
    shares = summary.get('recall', {}) if run.metric else {}
    table = ''.join(
        f'<tr><td>within {_length(float(key[1]), run)} and {_text(key[2])} deg</td>'
        f'<td>{_percent(share)}</td></tr>'
        for name, share in shares.items()
        if (key := re.fullmatch(r'(.+)m_(.+)deg', name))
    )
    caption = (
        'How many of all frames have at most this error: the further up and left, the better; a '
        'frame that was not localized never counts.'
    )
    return _card(title, ''.join(panels) + (table and f'<table>{table}</table>'), caption)


def _honesty(run: _Run) -> str:
    """Normalised errors against the chi-squared distribution that honest covariances give."""
    title = 'Are the covariances honest?'
    if run.errors is None:
        return _card(title, _empty('Without ground truth nobody can tell.'))
    pairs = [
        (error, run.records[row].covariance)
        for error, row in zip(run.errors.errors, run.judged, strict=True)
        if np.isfinite(error).all() and run.records[row].covariance is not None
    ]
    if not pairs:
        return _card(title, _empty('No frame has a pose, a covariance and ground truth.'))
    squared = normalised_error_squared(*(np.array(column) for column in zip(*pairs, strict=True)))
    x_range = 0.3, max(100.0, 4 * float(np.median(squared)))
    labels = ('normalised error squared', 'frames within [%]')
    plot = _Plot(x_range, (0, 100), labels, 210, log=(True, False))
    x = np.geomspace(*x_range, 100)
    plot.curve(np.column_stack([x, 100 * _chi2_6(x)]), 'truth curve dash')
    shown = np.where(squared < x_range[1], squared, np.inf)
    plot.curve(_cumulative(shown, x_range), 'estimate curve')
    share = float(np.mean(_chi2_6(squared) <= 0.95))
    caption = (
        f'{_key("estimate curve", "line")}measured, {_key("truth curve dash", "line")}expected '
        '(chi-squared, 6 degrees of freedom): on its left covariances are too large, on its '
        f'right too small. {_percent(share)} of the errors lie inside their 95 % ellipsoid.'
    )
    return _card(title, plot.svg('distribution of normalised errors'), caption)


def _chi2_6(squared: Float) -> Float:
    """Cumulative distribution of chi-squared with six degrees of freedom: an Erlang one."""
    half = squared / 2
    return np.asarray(1 - np.exp(-half) * (1 + half + half**2 / 2))


def _latency(summary: JsonDict) -> str:
    """How long each stage takes."""
    title, latency = 'Latency per stage', summary.get('latency_ms', {})
    longest = max((stage['p95'] for stage in latency.values()), default=0.0)
    if not longest:
        return _card(title, _empty('No stage was timed.'))
    rows = [
        (
            _text(name),
            _bar(stage['p50'] / longest) + _bar(stage['p95'] / longest, 'tail95'),
            f'{_number(stage["p50"])} ms <small>({_number(stage["p95"])})</small>',
        )
        for name, stage in latency.items()
    ]
    caption = 'Half of the frames take less than the upper bar, 95 % less than the lower one.'
    return _card(title, _bars(rows), caption)


def _failures(run: _Run) -> str:
    """Why frames were refused."""
    title = 'Failures by reason'
    reasons = Counter(r.reason for r in run.records if r.reason and r.status == 'refused')
    if not reasons:
        return _card(title, _empty('No frame was refused.'))
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0].value))
    rows = [
        (
            f'{_words(reason)}<br/><small>{_REASONS[reason]}</small>',
            _bar(count / ordered[0][1]),
            f'{count} <small>({_percent(count / len(run.records))})</small>',
        )
        for reason, count in ordered
    ]
    return _card(title, _bars(rows), 'Frames without a pose, and their share of all frames.')


def _example(run: _Run, number: int, example: ExampleFrame) -> str:
    """Keypoints by stability; for a localized frame also what it was matched to."""
    features, result = example.features, example.result
    scale = _PICTURE_PX / max(example.image_rgb.shape[:2])
    seconds = (example.record.stamp_ns - run.records[0].stamp_ns) * 1e-9 if run.records else 0.0
    shown = slice(0, _MAX_KEYPOINTS)
    at, stability = features.keypoints[shown] * scale, features.stability[shown]
    drawn, words, above = [_dots(at, 'halo')], [], np.inf
    for least, group, word in _GROUPS:
        own = (stability >= least) & (stability < above)
        drawn.append(_dots(at[own], f'g{group:d} keypoint'))
        words.append(f'{_key(f"g{group:d} keypoint")}{word} ({own.sum()})')
        above = least
    pictures = [_photo(example.image_rgb, ''.join(drawn), f'keypoints of frame {number}', number)]
    caption = f'{len(features)} keypoints by stability: {", ".join(words)}.'
    if len(features) > _MAX_KEYPOINTS:
        caption += f' The strongest {_MAX_KEYPOINTS} are shown.'
    if isinstance(result, PoseEstimate):
        matches = _draw_matches(features, result, example.projected_px, scale)
        label = f'matches of frame {number}'
        pictures.append(_photo(example.image_rgb, matches, label, number, again=True))
        caption += (
            f' Right or below: {_key("agree keypoint")}matches that agree with the pose, the tail '
            f'points to where the map expects them ({_RESIDUAL_ZOOM} times too long); '
            f'{_key("disagree", "cross")}the others.'
        )
    if example.record.detail:
        caption = f'{_text(example.record.detail)}. {caption}'
    head = f'{seconds:.1f} s: {_outcome(run, example)}'
    return _card(head, f'<div class="pair">{"".join(pictures)}</div>', caption, 'photo')


def _outcome(run: _Run, example: ExampleFrame) -> str:
    """What became of a frame, in words."""
    record, result = example.record, example.result
    if record.status != 'localized' or record.map_from_base is None:
        return f'{record.status}: {_words(record.reason)}' if record.reason else record.status
    words = f'localized by {result.num_inliers} of {result.num_matches} matches'
    if record.truth is None:
        return words
    error = pose_error(record.map_from_base.inverse(), record.truth.inverse())
    metres, radians = np.linalg.norm(error.reshape(2, 3), axis=1).tolist()
    return f'{words}, {_length(metres, run)} and {_number(np.degrees(radians))} deg off'


def _draw_matches(
    features: Features, result: PoseEstimate, projected_px: Float, scale: float
) -> str:
    at = features.keypoints[result.matches[:, 0]].astype(float) * scale
    agree = at[result.inliers]
    tails = agree + _RESIDUAL_ZOOM * (projected_px * scale - agree)
    lines, crosses = _lines(agree, tails), _cross_marks(np.delete(at, result.inliers, axis=0))
    return (
        _path('edge', crosses)
        + _path('disagree', crosses)
        + _path('edge', lines)
        + _path('agree tail', lines)
        + _dots(agree, 'halo')
        + _dots(agree, 'agree keypoint')
    )


def _photo(image_rgb: Image, drawn: str, label: str, number: int, *, again: bool = False) -> str:
    """Draw on an image, scaled to 800 pixels; what is drawn again is not stored again."""
    height, width = check_image(image_rgb).shape[:2]
    scale = _PICTURE_PX / max(height, width)
    size = f'width="{width * scale:.1f}" height="{height * scale:.1f}"'
    picture = f'<use href="#photo{number}"/>'
    if not again:
        if scale < 1:
            image_rgb = cv2.resize(image_rgb, None, None, scale, scale, cv2.INTER_AREA)
        bgr = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR)
        uri = _data_uri('jpeg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])
        picture = f'<image id="photo{number}" {size} preserveAspectRatio="none" href="{uri}"/>'
    box = f'0 0 {width * scale:.1f} {height * scale:.1f}'
    return f'<svg viewBox="{box}" role="img" aria-label="{_text(label)}">{picture}{drawn}</svg>'


class _Plot:
    """Axes of a plot, and the SVG of what is drawn in them.

    :param height: of the plot in pixels; None for equal scales of x and y.
    :param log: whether x and y have a logarithmic scale.
    """

    def __init__(
        self,
        x_range: Range,
        y_range: Range,
        labels: tuple[str, str],
        height: float | None = None,
        log: tuple[bool, bool] = (False, False),
    ) -> None:
        self._log, self._labels = log, labels
        ranges = np.array([x_range, y_range], float)
        ranges[list(log)] = np.log10(ranges[list(log)])
        self._low, self._span = ranges[:, 0], np.diff(ranges, axis=1)[:, 0]
        width = _PLOT_WIDTH - _LEFT - _RIGHT
        if height is None:
            height = width * self._span[1] / self._span[0]
        self._size = np.array([width, height])
        self._drawn: list[str] = []

    def _place(self, at: Float) -> Float:
        """Pixels (n, 2) of places (n, 2 or more); those that are not finite are left out."""
        at = at[np.isfinite(at[:, :2]).all(axis=1), :2]
        for axis in np.flatnonzero(self._log):
            at[:, axis] = np.log10(np.maximum(at[:, axis], 10 ** self._low[axis]))
        pixels = (at - self._low) / self._span * self._size
        return np.column_stack([pixels[:, 0], self._size[1] - pixels[:, 1]])

    def inside(self, at: Float) -> npt.NDArray[np.bool_]:
        """Whether places (n, 2 or more) are in the picture; NaN is not."""
        along = (at[:, :2] - self._low) / self._span
        return np.asarray(((along >= 0) & (along <= 1)).all(axis=1))

    def dots(self, at: Float, css: str) -> None:
        self._drawn.append(_dots(self._place(at), css))

    def crosses(self, at: Float, css: str) -> None:
        self._drawn.append(_path(css, _cross_marks(self._place(at))))

    def curve(self, at: Float, css: str) -> None:
        points = ' '.join(f'{x:.1f},{y:.1f}' for x, y in self._place(at))
        self._drawn.append(f'<polyline class="{css}" points="{points}"/>')

    def segments(self, start: Float, end: Float, css: str) -> None:
        """Draw lines between places (n, 2 or more), where they can be told apart."""
        known = np.isfinite(start + end).all(axis=1)
        a, b = self._place(start[known]), self._place(end[known])
        far = np.linalg.norm(a - b, axis=1) > 2
        self._drawn.append(_path(css, _lines(a[far], b[far])))

    def marks_below(self, x: Float, css: str) -> None:
        """Mark places on the x axis."""
        at = (np.asarray(x) - self._low[0]) / self._span[0] * self._size[0]
        self._drawn.append(_path(css, ''.join(f'M{px:.1f} {self._size[1]:.1f}v-7' for px in at)))

    def density(self, points: Float) -> None:
        """Draw points (n, 2 or more) in a grey that darkens where they are many."""
        width, height = (max(1, round(side)) for side in self._size)
        ends = np.column_stack([self._low, self._low + self._span])
        counts, _, _ = np.histogram2d(
            points[:, 1], points[:, 0], bins=(height, width), range=ends[::-1]
        )
        many = max(float(np.quantile(counts[counts > 0], 0.95)), 1.0) if counts.any() else 1.0
        alpha = np.where(counts > 0, 70 + 185 * np.minimum(counts / many, 1), 0)
        picture = np.full((height, width, 4), 128, np.uint8)
        picture[..., 3] = alpha[::-1]
        self._drawn.append(
            f'<image width="{self._size[0]:.1f}" height="{self._size[1]:.1f}" '
            f'preserveAspectRatio="none" href="{_data_uri("png", picture, [])}"/>'
        )

    def svg(self, label: str) -> str:
        """Return the picture with its axes; what lies outside of them is cut off."""
        width, height = self._size
        grid, words = [], []
        for axis in (0, 1):
            for value, name in _ticks(self._low[axis], self._span[axis], log=self._log[axis]):
                at = (value - self._low[axis]) / self._span[axis] * self._size[axis]
                if axis == 0:
                    grid.append(f'M{at:.1f} 0v{height:.1f}')
                    words.append((_LEFT + at, _TOP + height + 15, 'middle', name))
                else:
                    grid.append(f'M0 {height - at:.1f}h{width:.1f}')
                    words.append((_LEFT - 5, _TOP + height - at + 4, 'end', name))
        words.append((_LEFT + width, _TOP + height + 32, 'end', self._labels[0]))
        words.append((2, 14, 'start', self._labels[1]))
        texts = ''.join(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(word)}</text>'
            for x, y, anchor, word in words
        )
        total = _TOP + height + _BOTTOM
        return (
            f'<svg viewBox="0 0 {_PLOT_WIDTH} {total:.1f}" role="img" '
            f'aria-label="{_text(label)}">{texts}'
            f'<svg x="{_LEFT}" y="{_TOP}" width="{width:.1f}" height="{height:.1f}">'
            f'{_path("grid", "".join(grid))}{"".join(self._drawn)}</svg></svg>'
        )


def _ticks(low: float, span: float, *, log: bool) -> list[tuple[float, str]]:
    """Round values of an axis with their names; on a logarithmic one the exponents of ten."""
    if log:
        factors = np.array([1.0] if span > 2.5 else [1.0, 2.0, 5.0])
        decades = np.arange(np.floor(low), np.ceil(low + span) + 1)
        values = np.log10((10.0 ** decades[:, None] * factors).ravel())
        values = values[(values >= low - 1e-9) & (values <= low + span + 1e-9)]
        return [(value, f'{10**value:.6g}') for value in values]
    base = 10 ** np.floor(np.log10(span / 6))
    step = base * next(factor for factor in (1, 2, 5, 10) if base * factor >= span / 6)
    values = np.arange(np.ceil(low / step - 1e-9), np.floor((low + span) / step + 1e-9) + 1) * step
    return [(value, f'{value + 0.0:.10g}') for value in values]


def _window(at: Float, around: Float) -> tuple[Range, Range]:
    """Ranges of x and y that show places (n, 3), but not a few far away, and what is around."""
    low, high = np.quantile(at[np.isfinite(at).all(axis=1), :2], [0.01, 0.99], axis=0)
    extent = np.ptp(np.quantile(around[:, :2], [0.05, 0.95], axis=0), axis=0)
    margin = max(0.2 * float((high - low).max()), 0.1 * float(extent.max())) or 1.0
    half = (high - low) / 2 + margin
    half = np.maximum(half, [half[1] / 1.1, 0.45 * half[0]])
    x, y = zip((low + high) / 2 - half, (low + high) / 2 + half, strict=True)
    return (float(x[0]), float(x[1])), (float(y[0]), float(y[1]))


def _log_range(values: Float) -> Range:
    """Range of a logarithmic axis, at least one decade and at most six."""
    values = values[np.isfinite(values) & (values > 0)]
    high = 1.3 * float(values.max(initial=1e-6))
    low = max(float(values.min(initial=high)) / 1.3, high / 1e6)
    return min(low, high / 10), high


def _cumulative(values: Float, x_range: Range) -> Float:
    """Steps of the share of values, in percent, up to each x; infinite ones count as missing."""
    found = np.sort(values[np.isfinite(values)])
    rank = np.arange(1, len(found) + 1)
    kept = _evenly(np.arange(len(found)), _MAX_DOTS)
    x, share = found[kept], 100 * rank[kept] / len(values)
    steps = np.repeat(np.concatenate([[0.0], share]), 2)
    return np.column_stack([np.concatenate([x_range[:1], np.repeat(x, 2), x_range[1:]]), steps])


def _worst(x: Float, y: Float) -> Float:
    """Of a long series the row with the largest y in each interval."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    parts = np.array_split(np.arange(len(y)), min(len(y), _MAX_DOTS) or 1)
    rows = [part[np.argmax(y[part])] for part in parts if len(part)]
    return np.column_stack([x[rows], y[rows]])


def _evenly(values: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """At most so many rows, evenly spread."""
    rows = np.linspace(0, len(values) - 1, min(len(values), count))
    return values[np.round(rows).astype(np.intp)]


def _plot_unit(run: _Run) -> tuple[float, str]:
    """Factor and name of the unit for errors of position."""
    found = run.errors.translation_m if run.errors is not None else np.zeros(0)
    found = found[np.isfinite(found)]
    small = run.metric and (len(found) == 0 or np.median(found) < 1)
    return (100.0, 'cm') if small else (1.0, run.unit)


def _path(css: str, path: str) -> str:
    return f'<path class="{css}" d="{path}"/>'


def _dots(at: npt.NDArray[Any], css: str) -> str:
    return _path(css, ''.join(f'M{x:.1f} {y:.1f}h0' for x, y in at))


def _lines(start: Float, end: Float) -> str:
    ends = np.hstack([start, end])
    return ''.join(f'M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}' for a, b, c, d in ends)


def _cross_marks(at: npt.NDArray[Any]) -> str:
    return ''.join(f'M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8' for x, y in at)


def _key(css: str, mark: str = 'dot') -> str:
    """A sample of a mark, for captions."""
    path = {'dot': 'M10 5h0', 'cross': 'M6 1l8 8m0-8l-8 8', 'tick': 'M10 1v8', 'line': 'M1 5h18'}
    wide = ' style="stroke-width:7"' if mark == 'dot' else ''
    return (
        f'<svg class="key" viewBox="0 0 20 10"><path class="{css}"{wide} d="{path[mark]}"/></svg>'
    )


def _card(title: str, body: str, caption: str = '', css: str = '') -> str:
    caption = caption and f'<figcaption>{caption}</figcaption>'
    return f'<figure class="{css}"><h2>{_text(title)}</h2>{body}{caption}</figure>'


def _empty(sentence: str) -> str:
    return f'<p class="empty">{_text(sentence)}</p>'


def _bars(rows: Iterable[tuple[str, str, str]]) -> str:
    cells = (f'<td>{a}</td><td class="bar">{b}</td><td>{c}</td>' for a, b, c in rows)
    return f'<table>{"".join(f"<tr>{row}</tr>" for row in cells)}</table>'


def _bar(share: float, css: str = '') -> str:
    return f'<div class="{css}" style="width:{100 * share:.1f}%"></div>'


def _data_uri(kind: str, picture: npt.NDArray[Any], options: list[int]) -> str:
    _, data = cv2.imencode(f'.{kind}', picture, options)
    return f'data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}'


def _text(text: object) -> str:
    """Escape text for HTML; characters that XML cannot hold become a question mark in a box."""
    return html.escape(_NOT_XML.sub('\ufffd', str(text)))


def _words(reason: FailureReason) -> str:
    return reason.value.replace('_', ' ').lower()


def _length(metres: float, run: _Run) -> str:
    if not run.metric:
        return f'{_number(metres)} map units'
    factor, unit = (1000, 'mm') if metres < 0.01 else (100, 'cm') if metres < 1 else (1, 'm')
    return f'{_number(metres * factor)} {unit}'


def _number(value: float) -> str:
    return f'{value:.2g}' if value < 9.95 else f'{value:.0f}'


def _percent(share: float) -> str:
    """Share in percent, rounded down: 100 % means all."""
    return f'{np.floor(1000 * share + 1e-6) / 10:g} %'

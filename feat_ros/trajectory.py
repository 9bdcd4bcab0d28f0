# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Poses over time: interpolation, and the TUM text format that evo and others read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feat_ros.errors import DataError
from feat_ros.geometry import Rigid3d, rotation_from_quat_xyzw

Float = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_MAX_STAMP_S = 2**63 // 10**9
# Four decimals, as the TUM data sets have them, leave the length of a quaternion this far off.
_QUAT_LENGTH_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Stamped poses ``target_from_body`` of one body in one frame.

    :ivar stamps_ns: (N,) int64, strictly increasing.
    :ivar quats_xyzw: (N, 4), made unit with w >= 0 here.
    :ivar translations: (N, 3), metres.
    :raises ValueError: shapes that do not agree.
    :raises DataError: stamps that do not increase, numbers that are not finite, a quaternion
        that is not nearly unit; names the row.
    """

    stamps_ns: Int64
    quats_xyzw: Float
    translations: Float

    def __post_init__(self) -> None:
        """Check every row and normalise the quaternions; see the class."""
        stamps = _as_stamps(self.stamps_ns)
        quats, translations = (
            np.array(values, float) for values in (self.quats_xyzw, self.translations)
        )
        shapes = stamps.shape, quats.shape, translations.shape
        n = len(stamps)
        if shapes != ((n,), (n, 4), (n, 3)):
            raise ValueError(f'a trajectory needs shapes (N,), (N, 4) and (N, 3), not {shapes}')
        _refuse_row(np.diff(stamps) <= 0, 'has a stamp that is not later than the one before', 1)
        _refuse_row(~np.isfinite(translations).all(axis=1), 'has a position that is not finite')
        with np.errstate(over='ignore'):
            lengths = np.linalg.norm(quats, axis=1)
        _refuse_row(
            ~(np.abs(lengths - 1) <= _QUAT_LENGTH_TOLERANCE), 'has a quaternion not of length one'
        )
        quats = quats / np.where(quats[:, 3] < 0, -lengths, lengths)[:, None]
        object.__setattr__(self, 'stamps_ns', stamps)
        object.__setattr__(self, 'quats_xyzw', quats)
        object.__setattr__(self, 'translations', translations)

    @staticmethod
    def from_poses(stamps_ns: npt.ArrayLike, poses: Sequence[Rigid3d]) -> Trajectory:
        """Make one from stamps (N,) and N transforms; raises as the class does."""
        quats = np.reshape([pose.quat_xyzw for pose in poses], (-1, 4))
        translations = np.reshape([pose.translation for pose in poses], (-1, 3))
        return Trajectory(_as_stamps(stamps_ns), quats, translations)

    def __len__(self) -> int:
        """Return the number of poses."""
        return len(self.stamps_ns)

    def __getitem__(self, index: int) -> Rigid3d:
        """Return one transform ``target_from_body``."""
        return Rigid3d.from_quat_xyzw(self.quats_xyzw[index], self.translations[index])

    @property
    def rotations(self) -> Float:
        """Rotation matrices (N, 3, 3)."""
        return rotation_from_quat_xyzw(self.quats_xyzw)

    def interpolate(self, query_ns: npt.ArrayLike, max_gap_ns: int) -> tuple[Float, Float]:
        """Return rotations (M, 3, 3) and translations (M, 3) at stamps (M,), in any order.

        Translations are interpolated linearly, rotations along the shortest arc (Shoemake,
        "Animating rotation with quaternion curves", SIGGRAPH 1985). A row is NaN before the
        first stamp, after the last, and between two that are more than ``max_gap_ns`` apart;
        at a stamp itself the pose is given whatever the gaps.
        """
        query = _as_stamps(query_ns)
        rotations = np.full((len(query), 3, 3), np.nan)
        translations = np.full((len(query), 3), np.nan)
        if not len(self) or not len(query):
            return rotations, translations
        last = len(self) - 1
        after = np.searchsorted(self.stamps_ns, query)
        before = np.clip(after - 1, 0, last)
        after = np.minimum(after, last)
        before = np.where(self.stamps_ns[after] == query, after, before)
        start, gap = self.stamps_ns[before], self.stamps_ns[after] - self.stamps_ns[before]
        known = (start <= query) & (query <= self.stamps_ns[after]) & (gap <= max_gap_ns)
        before, after = before[known], after[known]
        weight = ((query - start)[known] / np.maximum(gap[known], 1))[:, None]
        quats = _slerp(self.quats_xyzw[before], self.quats_xyzw[after], weight)
        rotations[known] = rotation_from_quat_xyzw(quats)
        first, second = self.translations[before], self.translations[after]
        translations[known] = (1 - weight) * first + weight * second
        return rotations, translations

    def pose_at(self, query_ns: int, max_gap_ns: int) -> Rigid3d | None:
        """Return the transform at one stamp, None where :meth:`interpolate` has NaN."""
        rotations, translations = self.interpolate([query_ns], max_gap_ns)
        return Rigid3d(rotations[0], translations[0]) if np.isfinite(rotations[0, 0, 0]) else None

    @staticmethod
    def from_tum(text: str, name: str) -> Trajectory:
        """Parse lines ``seconds tx ty tz qx qy qz qw``; ``#`` lines and empty ones are skipped.

        Seconds are read as decimals, so that nanoseconds survive; finer digits are rounded.

        :param name: what the error calls it.
        :raises DataError: a line with another number of words, a word that is not a number, or
            what the class refuses; names the line.
        """
        lines = [
            (number, line.split())
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.lstrip().startswith('#')
        ]
        rows = [_parse_line(words, f'{name} line {number}') for number, words in lines]
        values = np.reshape([row for _, row in rows], (-1, 7))
        try:
            return Trajectory(
                np.array([stamp for stamp, _ in rows], np.int64), values[:, 3:], values[:, :3]
            )
        except _RowError as error:
            number = lines[error.row][0]
            raise DataError(f'{name} line {number} {error.what}: mend or remove it') from None

    def to_tum(self) -> str:
        """Return the text that :meth:`from_tum` reads, nanoseconds and all digits kept."""
        rows = np.column_stack([self.translations, self.quats_xyzw]).tolist()
        return ''.join(
            f'{stamp // 10**9}.{stamp % 10**9:09d} {" ".join(map(repr, row))}\n'
            for stamp, row in zip(self.stamps_ns.tolist(), rows, strict=True)
        )


def read_tum(path: str | Path) -> Trajectory:
    """Read a TUM trajectory file; an empty file is an empty trajectory.

    :raises DataError: a missing or unreadable file, or what :meth:`Trajectory.from_tum` refuses.
    """
    try:
        text = Path(path).read_text(encoding='utf-8')
    except OSError as error:
        raise DataError(f'trajectory {path} cannot be read: {error.strerror or error}') from None
    except UnicodeDecodeError:
        raise DataError(f'trajectory {path} is not text: give a TUM file') from None
    return Trajectory.from_tum(text, f'trajectory {path}')


def interpolate_poses(
    stamps_ns: npt.ArrayLike, poses: Sequence[Rigid3d], query_ns: npt.ArrayLike, max_gap_ns: int
) -> list[Rigid3d | None]:
    """Interpolate N transforms at stamps (M,); None where :meth:`Trajectory.interpolate` has NaN.

    :raises DataError: stamps that do not increase.
    """
    trajectory = Trajectory.from_poses(stamps_ns, poses)
    rotations, translations = trajectory.interpolate(query_ns, max_gap_ns)
    known = np.isfinite(rotations[:, 0, 0])
    return [
        Rigid3d(rotations[i], translations[i]) if known[i] else None for i in range(len(known))
    ]


class _RowError(DataError):
    """A row that cannot be; ``row`` counts from zero."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(f'row {row} of the trajectory {what}')
        self.row = row
        self.what = what


def _refuse_row(bad: npt.NDArray[np.bool_], what: str, offset: int = 0) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        raise _RowError(int(rows[0]) + offset, what)


def _as_stamps(stamps_ns: npt.ArrayLike) -> Int64:
    stamps = np.atleast_1d(np.array(stamps_ns))
    if stamps.size and stamps.dtype.kind not in 'iu':
        raise ValueError(f'stamps have type {stamps.dtype}: they must be integer nanoseconds')
    return stamps.astype(np.int64)


def _parse_line(words: list[str], where: str) -> tuple[int, list[float]]:
    """Return the stamp in nanoseconds and the seven numbers after it."""
    if len(words) != 8:
        raise DataError(
            f'{where} has {len(words)} words: it needs 8, seconds tx ty tz qx qy qz qw'
        )
    try:
        seconds = Decimal(words[0])
        values = [float(word) for word in words[1:]]
    except InvalidOperation:
        raise DataError(f'{where} has stamp {words[0]!r}: it must be seconds') from None
    except ValueError as error:
        raise DataError(f'{where} has a bad number: {error}') from None
    if not (seconds.is_finite() and 0 <= seconds < _MAX_STAMP_S):
        raise DataError(f'{where} has stamp {words[0]}: it must be seconds from 0 on')
    return round(seconds.scaleb(9)), values


def _slerp(start: Float, end: Float, weight: Float) -> Float:
    """Interpolate unit quaternions (N, 4) with weights (N, 1) along the shorter arc."""
    cosine = np.sum(start * end, axis=1, keepdims=True)
    end = np.where(cosine < 0, -end, end)
    angle = np.arccos(np.minimum(np.abs(cosine), 1.0))
    sine = np.sin(angle)
    # Below this angle the arc and its chord agree to rounding.
    small = sine < 1e-6
    safe = np.where(small, 1.0, sine)
    first = np.where(small, 1 - weight, np.sin((1 - weight) * angle) / safe)
    second = np.where(small, weight, np.sin(weight * angle) / safe)
    return np.asarray(first * start + second * end)

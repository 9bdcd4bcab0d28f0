# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The inverted file of ASMK: for every visual word the images that have it, compressed.

The images of a word ascend, so that their numbers are a monotone sequence: it is kept as Elias
and Fano do (Vigna, "Quasi-succinct indices", WSDM 2013, section 3), the low byte as it is and the
rest as ones between zeros, a zero for every 256 images. An entry of a word that many images have
takes 10 bits beside its signature, and a whole list is decoded at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
import itertools
import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from feat_ros.errors import MapError
from feat_ros.types import Float64

Array = npt.NDArray[Any]
Int = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# Images that share their high part.
_BLOCK_BITS = 8
# Entries that are worked on at once: what they need stays in the processor's cache.
_ENTRIES_AT_ONCE = 1 << 16
# Images of a file at most: their sums stay in the processor's cache.
MOST_IMAGES = 1 << 17
# With fewer images loading the compiler takes longer than it ever saves.
_WORTH_COMPILING = 10_000
# Words that are encoded at once take about so many bits.
_BITS_AT_ONCE = 1 << 27
# Bits set in every 16-bit number, for a NumPy that cannot count them itself (before 2.0).
_BIT_COUNTS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16)
_BIT_COUNTS = _BIT_COUNTS.sum(axis=1, dtype=np.uint8)
_DAMAGED = 'the lists of an inverted file do not fit together: copy the map again, or rebuild it'


class CheckedRows(Protocol):
    """An array on disk whose content is checked when it is first read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def checked(self, starts: Int, stops: Int) -> Array:
        """Return the whole array, of which the rows of these runs are checked."""
        ...


Rows = Array | CheckedRows

ARRAYS: Mapping[str, Any] = {
    'word_starts': np.int64,
    'signatures': np.uint8,
    'id_lows': np.uint8,
    'id_highs': np.uint8,
    'high_starts': np.int64,
    'words_per_image': np.int32,
}


@dataclass(frozen=True, eq=False)
class InvertedFile:
    """For every visual word the images that have it.

    ===================  =========  =============================================================
    ``word_starts``      (W + 1,)   int64: entries ``word_starts[w]`` to ``word_starts[w + 1]``
                                    belong to word w, images ascending
    ``signatures``       (M, D/8)   uint8: signs of an entry's aggregated residual (first
                                    dimension in the highest bit, 1 for positive)
    ``id_lows``          (M,)       uint8: an entry's image modulo 256
    ``id_highs``         (B,)       uint8: bits, the lowest first; entry k of a word whose image
                                    is i has bit ``i // 256 + k`` of its word
    ``high_starts``      (W + 1,)   int64: the bytes of a word in ``id_highs``
    ``words_per_image``  (I,)       int32: the entries of an image; 0 also where it was removed
    ===================  =========  =============================================================

    Arrays with an entry a row may be on disk: a search reads the lists of its own words only.
    """

    word_starts: Int
    signatures: Rows
    id_lows: Rows
    id_highs: Rows
    high_starts: Int
    words_per_image: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        """Check types and shapes, and the offsets of the lists.

        :raises MapError: names the array that does not fit.
        """
        entries, width = self.id_lows.shape[0], self.signatures.shape[-1]
        shapes: dict[str, tuple[int, ...]] = {
            'word_starts': self.word_starts.shape[:1],
            'signatures': (entries, width),
            'id_lows': (entries,),
            'id_highs': self.id_highs.shape[:1],
            'high_starts': self.word_starts.shape[:1],
            'words_per_image': self.words_per_image.shape[:1],
        }
        for name, shape in shapes.items():
            check_array(name, getattr(self, name), shape, ARRAYS[name])
        check_starts('word_starts', self.word_starts, entries, 0)
        check_starts('high_starts', self.high_starts, self.id_highs.shape[0], 0)

    @classmethod
    def build(
        cls, num_words: int, width: int, images: Iterable[tuple[Int, Bytes]]
    ) -> InvertedFile:
        """Index images; an image's id is its place in the sequence.

        :param width: D/8.
        :param images: for each its words (n,), ascending, and their signatures (n, D/8).
        """
        pairs = list(images)
        words = np.concatenate([np.zeros(0, np.int64), *(words for words, _ in pairs)])
        bits = np.concatenate([np.zeros((0, width), np.uint8), *(bits for _, bits in pairs)])
        ids = np.repeat(np.arange(len(pairs)), [len(words) for words, _ in pairs])
        return cls.of_entries(num_words, len(pairs), words, ids, bits)

    @classmethod
    def of_entries(
        cls, num_words: int, num_images: int, words: Int, ids: Int, signatures: Bytes
    ) -> InvertedFile:
        """Index entries: words (M,), images (M,) and signatures (M, D/8), in any order."""
        order = np.lexsort((ids, words))
        words, ids, counts = words[order], ids[order], np.bincount(words, minlength=num_words)
        starts = offsets(counts)
        highs, sizes = [np.zeros(0, np.uint8)], [np.zeros(0, np.int64)]
        step = max(1, int(_BITS_AT_ONCE // (len(ids) / num_words + (num_images >> 8) + 8)))
        for first in range(0, num_words, step):
            last = min(first + step, num_words)
            encoded, size = encode_highs(counts[first:last], ids[starts[first] : starts[last]])
            highs.append(encoded)
            sizes.append(size)
        return cls(
            word_starts=starts,
            signatures=signatures[order],
            id_lows=(ids & 255).astype(np.uint8),
            id_highs=np.concatenate(highs),
            high_starts=offsets(np.concatenate(sizes)),
            words_per_image=np.bincount(ids, minlength=num_images).astype(np.int32),
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Rows]) -> InvertedFile:
        """Make an inverted file of the arrays that :data:`ARRAYS` names.

        :raises MapError: a missing or unknown array, or one of a wrong type or shape.
        """
        if set(arrays) != set(ARRAYS):
            raise MapError(
                f'an inverted file needs the arrays {", ".join(ARRAYS)} and got '
                f'{", ".join(sorted(arrays)) or "none"}: rebuild the map'
            )
        small = ('word_starts', 'high_starts', 'words_per_image')
        read: dict[str, Any] = {
            name: whole(rows) if name in small else rows for name, rows in arrays.items()
        }
        return cls(**read)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name; the inverse of :meth:`from_arrays`."""
        return {name: whole(getattr(self, name)) for name in ARRAYS}

    @property
    def num_images(self) -> int:
        """Number of images, with those that have no features and those that were removed."""
        return len(self.words_per_image)

    def entries(self) -> tuple[Int, Int, Bytes]:
        """Return words (M,), images (M,) and signatures (M, D/8) of the images that count."""
        none = np.zeros(0, np.int64)
        lists = _Lists(
            whole(self.signatures), whole(self.id_lows), whole(self.id_highs),
            self.word_starts[:-1], self.word_starts[1:], self.high_starts[:-1],
            self.high_starts[1:], np.zeros((0, 0), np.uint8), np.zeros(0), self.num_images,
        )  # fmt: skip
        ids = lists.images() if len(lists.id_lows) else none
        words = np.repeat(np.arange(len(lists.starts)), lists.stops - lists.starts)
        kept = self.words_per_image[ids] > 0
        return words[kept], ids[kept], lists.signatures[kept]

    def without(self, images: Int) -> InvertedFile:
        """Return the file without some images, whose entries stay and count for nothing."""
        words_per_image = self.words_per_image.copy()
        words_per_image[images] = 0
        return replace(self, words_per_image=words_per_image)

    def similarities(
        self, words: Int, signatures: Bytes, of_distance: Float64, threads: int = 1
    ) -> Float64:
        """Sum the similarities of each image's words to those of a query.

        Of many images a compiled loop does it, with the extra ``fast``.

        :param words: (n,) ascending; with their ``signatures`` (n, D/8).
        :param of_distance: (D + 1,) the similarity of two signatures by their Hamming distance.
        :returns: (I,) float64.
        :raises MapError: a list that is damaged.
        """
        starts, stops = self.word_starts[words], self.word_starts[words + 1]
        kept = np.flatnonzero(stops > starts)
        words, starts, stops = words[kept], starts[kept], stops[kept]
        high_starts, high_stops = self.high_starts[words], self.high_starts[words + 1]
        lists = _Lists(
            _checked(self.signatures, starts, stops), _checked(self.id_lows, starts, stops),
            _checked(self.id_highs, high_starts, high_stops),
            starts, stops, high_starts, high_stops, signatures[kept], of_distance,
            self.num_images,
        )  # fmt: skip
        add = _add_by_numpy
        is_large = self.num_images >= _WORTH_COMPILING
        if is_large and signatures.shape[1] % 8 == 0 and find_spec('numba') is not None:
            add = _add_compiled
        if threads == 1:
            return add(lists)
        with ThreadPoolExecutor(threads) as pool:
            share = -(-int((stops - starts).sum()) // threads)
            sums = list(pool.map(add, lists.split(max(share, 1))))
        return np.asarray(sum(sums, np.zeros(self.num_images)))


@dataclass(frozen=True, eq=False)
class _Lists:
    """The lists of some words and what they are compared with.

    :ivar starts: (n,) and ``stops``: where they are in ``signatures`` and ``id_lows``.
    :ivar high_starts: (n,) and ``high_stops``: where they are in ``id_highs``.
    :ivar queries: (n, D/8) the signature of each word in the query.
    """

    signatures: Array
    id_lows: Array
    id_highs: Array
    starts: Int
    stops: Int
    high_starts: Int
    high_stops: Int
    queries: Bytes
    of_distance: Float64
    num_images: int

    def split(self, num_entries: int) -> list[_Lists]:
        """Split the words into runs of about so many entries."""
        ends = np.cumsum(self.stops - self.starts)
        cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, num_entries))
        bounds = np.unique(np.r_[cuts, len(ends)]).tolist()
        by_word = ('starts', 'stops', 'high_starts', 'high_stops', 'queries')
        return [
            replace(self, **{name: getattr(self, name)[a:b] for name in by_word})
            for a, b in itertools.pairwise(bounds)
        ]

    def images(self) -> Int:
        """Return the image of each entry, list after list."""
        bits = np.unpackbits(
            _runs(self.id_highs, self.high_starts, self.high_stops), bitorder='little'
        )
        lows = _runs(self.id_lows, self.starts, self.stops)
        ids = np.flatnonzero(bits.view(bool))
        if len(ids) != len(lows):
            raise MapError(_DAMAGED)
        # Of a one, what is before its list, and the ones of its list before it.
        lengths = self.stops - self.starts
        bit_starts = 8 * offsets(self.high_stops - self.high_starts)[:-1]
        ids -= np.repeat(bit_starts - offsets(lengths)[:-1], lengths)
        ids -= np.arange(len(ids))
        ids <<= _BLOCK_BITS
        ids |= lows
        return np.asarray(ids, np.int64)

    def similarities(self) -> Float64:
        """Return the similarity of each entry to its word of the query."""
        rows = _runs(self.signatures, self.starts, self.stops)
        distance = hamming(rows, self.queries, self.stops - self.starts)
        return np.asarray(np.take(self.of_distance, distance, mode='clip'))


def _add_by_numpy(lists: _Lists) -> Float64:
    runs = lists.split(_ENTRIES_AT_ONCE)
    if not runs:
        return np.zeros(lists.num_images)
    ids = np.concatenate([run.images() for run in runs])
    similarities = np.concatenate([run.similarities() for run in runs])
    if ids.min() < 0 or ids.max() >= lists.num_images:
        raise MapError(_DAMAGED)
    return np.asarray(np.bincount(ids, weights=similarities, minlength=lists.num_images))


def _add_compiled(lists: _Lists) -> Float64:
    from feat_ros.retrieval.compiled import add_similarities

    sums = np.zeros(lists.num_images)
    is_sound = add_similarities(
        lists.signatures.view(np.uint64), lists.id_lows, lists.id_highs,
        lists.starts, lists.stops, lists.high_starts, lists.high_stops,
        np.ascontiguousarray(lists.queries).view(np.uint64), lists.of_distance, sums,
    )  # fmt: skip
    if not is_sound:
        raise MapError(_DAMAGED)
    return sums


def encode_highs(counts: Int, ids: Int) -> tuple[Bytes, Int]:
    """Return ``id_highs`` of some words and the bytes (W,) that each takes.

    :param counts: (W,) entries of each word.
    :param ids: (M,) images, word after word, ascending in each.
    """
    starts = offsets(counts)[:-1]
    places = (ids >> _BLOCK_BITS) + np.arange(len(ids)) - np.repeat(starts, counts)
    sizes = np.zeros(len(counts), np.int64)
    has = counts > 0
    sizes[has] = (places[(starts + counts)[has] - 1] >> 3) + 1
    bits = np.zeros(8 * int(sizes.sum()), bool)
    bits[places + np.repeat(8 * offsets(sizes)[:-1], counts)] = True
    return np.packbits(bits, bitorder='little'), sizes


def hamming(rows: Bytes, queries: Bytes, counts: Int) -> Array:
    """Return how many bits of rows (M, B) differ from those of their query.

    :param queries: (n, B), of which the first is that of the first ``counts[0]`` rows, and so on.
    """
    native = hasattr(np, 'bitwise_count')
    width = rows.shape[1]
    word = math.gcd(width, 8 if native else 2)
    different = rows.view(f'u{word}')
    different ^= np.repeat(queries.view(f'u{word}'), counts, axis=0)
    bits = np.bitwise_count(different) if native else _BIT_COUNTS[different]
    # Column by column: NumPy's sum over a short last axis takes ten times as long.
    total = bits[:, 0].astype(np.uint8 if 8 * width < 256 else np.int64)
    for column in range(1, bits.shape[1]):
        total += bits[:, column]
    return np.asarray(total)


def offsets(counts: Sequence[int] | Int) -> Int:
    """Return where runs of these lengths start, and where the last one ends."""
    out = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=out[1:])
    return out


def whole(rows: Rows) -> Array:
    """Return an array that may be on disk, all of it checked."""
    if isinstance(rows, np.ndarray):
        return rows
    return rows.checked(np.array([0]), np.array([rows.shape[0]]))


def _checked(rows: Rows, starts: Int, stops: Int) -> Array:
    # A memory map's own class makes every slice of it ten times as slow.
    return np.asarray(rows if isinstance(rows, np.ndarray) else rows.checked(starts, stops))


def _runs(rows: Array, starts: Int, stops: Int) -> Array:
    """Return a copy of some runs of rows behind each other."""
    return np.concatenate(
        [rows[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    )


def check_array(name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Check the type and shape of an array.

    :raises MapError: it is another one.
    """
    if array.shape != shape or array.dtype != dtype:
        raise MapError(
            f'retrieval array {name} is {array.dtype} {array.shape}, not '
            f'{np.dtype(dtype)} {shape}: rebuild the map'
        )


def check_starts(name: str, starts: Int, total: int, least: int) -> None:
    """Check offsets that divide a total into runs of at least so many.

    :raises MapError: they do not.
    """
    if not len(starts) or starts[0] != 0 or starts[-1] != total or np.any(np.diff(starts) < least):
        raise MapError(f'retrieval array {name} does not divide {total} entries: rebuild the map')

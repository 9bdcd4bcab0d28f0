# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Image retrieval on a map's own local descriptors: the aggregated selective match kernel (ASMK).

Tolias, Jenicek and Chum, "Learning and aggregating deep local descriptors for instance-level
recognition", ECCV 2020, section 3, equations 1 to 4: binarised, no weighting by word frequency.
Where the paper is silent the options follow the authors' program: the exponent, and that a
descriptor of a query counts for several near words while one of the database counts for one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.config import Config, option
from feat_ros.errors import MapError
from feat_ros.retrieval.words import kmeans, nearest_words, sample_rows, VisualWords
from feat_ros.types import Float32, Float64

Array = npt.NDArray[Any]
Int = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]

# Descriptors of an image that retrieval uses, the strongest; the HOW paper's number.
RETRIEVAL_FEATURES = 1000
# More lowers the quantisation error of RootSIFT by less than one percent.
_TRAINING_ROWS_PER_WORD = 64
# Bits set in every 16-bit number, for a NumPy that cannot count them itself (before 2.0).
_BIT_COUNTS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16)
_BIT_COUNTS = _BIT_COUNTS.sum(axis=1, dtype=np.uint8)


@dataclass(frozen=True)
class AsmkConfig(Config):
    """Options of retrieval."""

    num_words: int | None = option(
        None, 'visual words of the codebook; none: from the number of descriptors', minimum=1
    )
    seed: int = option(0, 'seed of the codebook training', minimum=0)
    query_assignments: int = option(
        5, 'nearest visual words that a descriptor of a query counts for', minimum=1
    )
    probed_parts: int = option(
        10,
        'parts of a codebook of more than 4096 words that are searched for the nearest',
        minimum=1,
    )
    alpha: float = option(3.0, 'exponent of the similarity of two words (equation 2)', minimum=0.0)
    tau: float = option(
        0.0, 'similarity below which words do not match (equation 2)', minimum=0.0, maximum=1.0
    )


DEFAULT_CONFIG = AsmkConfig()


def default_num_words(num_descriptors: int) -> int:
    """Return how many visual words suit a number of descriptors.

    16 times the square root, at most the paper's 65,536 words, which it trains from 20 million
    descriptors. A small set keeps eight descriptors a word.
    """
    return max(1, min(65_536, round(16 * math.sqrt(num_descriptors)), num_descriptors // 8))


def train_codebook(
    descriptors: npt.ArrayLike, num_words: int | None = None, seed: int = 0
) -> Float32:
    """Return the visual words of a set of descriptors, by k-means in two levels.

    The set is cut into about sqrt(W) parts, then every part into words in proportion to its
    size. Against one level that is a twentieth of the time for two percent more error (1024
    words of RootSIFT). The same input and seed give the same words.

    :param descriptors: (N, D) float, D a multiple of 8.
    :param num_words: W, none for :func:`default_num_words`.
    :return: (W, D) float32.
    :raises MapError: descriptors of another shape, not finite, or fewer than words.
    """
    rows = _checked_descriptors(descriptors)
    words = default_num_words(len(rows)) if num_words is None else num_words
    if not 1 <= words <= len(rows):
        raise MapError(
            f'a codebook of {words} words cannot be trained from {len(rows)} descriptors: '
            'give more images or ask for fewer words, at least one'
        )
    rng = np.random.default_rng(seed)
    rows = sample_rows(rows, words * _TRAINING_ROWS_PER_WORD, rng)
    num_parts = max(1, round(math.sqrt(words)))
    parts = kmeans(sample_rows(rows, num_parts * _TRAINING_ROWS_PER_WORD, rng), num_parts, rng)
    part = nearest_words(rows, parts, 1)[:, 0]
    share = _shares(np.bincount(part, minlength=num_parts), words)
    found = [kmeans(rows[part == i], k, rng) for i, k in enumerate(share.tolist()) if k]
    return np.concatenate(found)


def _shares(sizes: Int, total: int) -> Int:
    """Divide a total over parts in proportion to their sizes, none above its size."""
    share, remainder = np.divmod(sizes * total, sizes.sum())
    # Largest remainders are rounded up; with total <= sum of sizes none passes its size.
    share[np.argsort(-remainder, kind='stable')[: total - share.sum()]] += 1
    return np.asarray(share, np.int64)


@dataclass(frozen=True, eq=False)
class AsmkIndex:
    """An inverted file: for every visual word the images that have it.

    ===================  =========  =============================================================
    ``codebook``         (W, D)     float32 visual words, in parts
    ``part_starts``      (G + 1,)   int64, see :class:`feat_ros.retrieval.words.VisualWords`
    ``part_centers``     (G, D)     float32
    ``word_starts``      (W + 1,)   int64: entries ``word_starts[w]`` to ``word_starts[w + 1]``
                                    belong to word w, images ascending
    ``image_ids``        (M,)       int32: the image of an entry
    ``bits``             (M, D/8)   uint8: signs of its aggregated residual (first dimension in
                                    the highest bit, 1 for positive)
    ``words_per_image``  (I,)       int32: the entries of an image, its :math:`|C_X|`
    ===================  =========  =============================================================

    The arrays may be memory-mapped: a query reads the lists of its own words only.
    """

    codebook: Float32
    part_starts: Int
    part_centers: Float32
    word_starts: Int
    image_ids: npt.NDArray[np.int32]
    bits: Bits
    words_per_image: npt.NDArray[np.int32]
    config: AsmkConfig = DEFAULT_CONFIG

    def __post_init__(self) -> None:
        """Check types and shapes, and the offsets of the lists.

        :raises MapError: names the array that does not fit.
        """
        _check_codebook(self.codebook)
        words, dim = self.codebook.shape
        parts, entries = max(self.part_starts.size - 1, 0), self.image_ids.size
        wanted = {
            'part_starts': ((parts + 1,), np.int64),
            'part_centers': ((parts, dim), np.float32),
            'word_starts': ((words + 1,), np.int64),
            'image_ids': ((entries,), np.int32),
            'bits': ((entries, dim // 8), np.uint8),
            'words_per_image': ((self.words_per_image.size,), np.int32),
        }
        for name, (shape, dtype) in wanted.items():
            _check_array(name, getattr(self, name), shape, dtype)
        _check_starts('word_starts', self.word_starts, entries, 0)
        _check_starts('part_starts', self.part_starts, words, 1)

    @classmethod
    def build(
        cls,
        codebook: Float32,
        descriptors_per_image: Iterable[npt.ArrayLike],
        config: AsmkConfig = DEFAULT_CONFIG,
    ) -> AsmkIndex:
        """Index images; an image's id is its place in the sequence.

        :param codebook: (W, D) float32 of :func:`train_codebook`; many words are put in order.
        :param descriptors_per_image: for every image (N, D) float, N may be zero.
        :raises MapError: descriptors that are not finite or do not fit the codebook.
        """
        _check_codebook(codebook)
        dim, divided = codebook.shape[1], VisualWords.divide(codebook, config.seed)
        images = [
            _aggregate(_checked_descriptors(rows, dim), divided, 1, config.probed_parts)
            for rows in descriptors_per_image
        ]
        words_per_image = np.array([len(words) for words, _ in images], np.int32)
        words = np.concatenate([np.zeros(0, np.int64), *(words for words, _ in images)])
        bits = np.concatenate([np.zeros((0, dim // 8), np.uint8), *(bits for _, bits in images)])
        image_ids = np.repeat(np.arange(len(images), dtype=np.int32), words_per_image)
        order = np.argsort(words, kind='stable')
        counts = np.bincount(words, minlength=len(codebook))
        return cls(
            codebook=divided.words,
            part_starts=divided.part_starts,
            part_centers=divided.part_centers,
            word_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            image_ids=image_ids[order],
            bits=bits[order],
            words_per_image=words_per_image,
            config=config,
        )

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name, for a map folder; the inverse of :meth:`from_arrays`."""
        return {name: getattr(self, name) for name in _ARRAY_NAMES}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Array], config: AsmkConfig = DEFAULT_CONFIG
    ) -> AsmkIndex:
        """Make an index from the arrays of :meth:`arrays`, memory-mapped or not.

        :raises MapError: a missing or unknown array, or one of a wrong type or shape.
        """
        if set(arrays) != set(_ARRAY_NAMES):
            raise MapError(
                f'retrieval needs the arrays {", ".join(_ARRAY_NAMES)} and got '
                f'{", ".join(sorted(arrays)) or "none"}: rebuild the map'
            )
        return cls(**arrays, config=config)

    @property
    def num_images(self) -> int:
        """Number of images, with or without features."""
        return len(self.words_per_image)

    def search(self, descriptors: npt.ArrayLike, top_k: int) -> tuple[Int, Float64]:
        """Find the images most similar to a query by equation 4.

        :param descriptors: (N, D) float descriptors of the query, N may be zero.
        :param top_k: the most images to return.
        :return: image ids (K,) and scores (K,), best first, equal scores by id; K is less than
            ``top_k`` where fewer images match at all. An image scores 1 against itself when
            ``query_assignments`` is 1, and at most 1 always.
        :raises MapError: descriptors that are not finite or do not fit the codebook.
        """
        return self.score(*self.assign(descriptors), top_k)

    def assign(self, descriptors: npt.ArrayLike) -> tuple[Int, Bits]:
        """Return the words (n,) of a query, ascending, and its aggregated residuals (n, D/8).

        :raises MapError: see :meth:`search`.
        """
        query = _checked_descriptors(descriptors, self.codebook.shape[1])
        return _aggregate(
            query, self._words, self.config.query_assignments, self.config.probed_parts
        )

    def score(self, words: Int, bits: Bits, top_k: int) -> tuple[Int, Float64]:
        """Find the images most similar to what :meth:`assign` gave; see :meth:`search`."""
        entries, lengths = self._entries(words)
        distances = _hamming(_take_rows(self.bits, entries), _repeat_rows(bits, lengths))
        sums = np.bincount(
            self.image_ids[entries],
            weights=self._similarity_of_distance[distances],
            minlength=self.num_images,
        )
        # Gamma of both images: a word has similarity 1 with itself.
        norms = np.sqrt(np.maximum(self.words_per_image, 1) * float(max(len(words), 1)))
        return _best(sums / norms, top_k)

    def _entries(self, words: Int) -> tuple[Int, Int]:
        """Return the places of all entries of some words, and how many each word has."""
        starts = self.word_starts[words]
        lengths = self.word_starts[words + 1] - starts
        ends = np.cumsum(lengths)
        places = np.repeat(starts - ends + lengths, lengths)
        places += np.arange(len(places))
        return places, lengths

    @cached_property
    def _words(self) -> VisualWords:
        return VisualWords(self.codebook, self.part_starts, self.part_centers)

    @cached_property
    def _similarity_of_distance(self) -> Float64:
        """(D + 1,): equation 2 for every Hamming distance; b(x) . b(y) = D - 2 distance."""
        dim = self.codebook.shape[1]
        cosine = (dim - 2 * np.arange(dim + 1)) / dim
        similarity = np.maximum(cosine, 0) ** self.config.alpha
        return np.where(cosine >= self.config.tau, similarity, 0.0)


_ARRAY_NAMES = (
    'codebook', 'part_starts', 'part_centers', 'word_starts', 'image_ids', 'bits',
    'words_per_image',
)  # fmt: skip


def _aggregate(
    descriptors: Float32, codebook: VisualWords, assignments: int, probed_parts: int
) -> tuple[Int, Bits]:
    """Aggregate an image: its words, ascending, and B(X_c) of each as packed bits.

    The sum of the residuals of equation 4 is over all descriptors with the word among their
    ``assignments`` nearest; a sum of zero counts as negative.
    """
    nearest = codebook.nearest(descriptors, assignments, probed_parts)
    flat = nearest.ravel()
    order = np.argsort(flat, kind='stable')
    word = flat[order]
    starts = np.flatnonzero(np.diff(word, prepend=-1))
    if not len(starts):
        return word, np.zeros((0, codebook.words.shape[1] // 8), np.uint8)
    residuals = descriptors[order // nearest.shape[1]] - codebook.words[word]
    return word[starts], np.packbits(np.add.reduceat(residuals, starts, axis=0) > 0, axis=1)


def _take_rows(bits: Bits, places: Int) -> Bits:
    """Return ``bits[places]``, a row as one item: eight times as fast."""
    return _as_items(bits)[places].view(np.uint8).reshape(-1, bits.shape[1])


def _repeat_rows(bits: Bits, counts: Int) -> Bits:
    return np.repeat(_as_items(bits), counts).view(np.uint8).reshape(-1, bits.shape[1])


def _as_items(bits: Bits) -> npt.NDArray[np.void]:
    return bits.view(np.dtype((np.void, bits.shape[1])))[:, 0]


def _hamming(a: Bits, b: Bits) -> Int:
    """Return how many bits differ in each row of two (M, B) arrays."""
    native = hasattr(np, 'bitwise_count')
    width = math.gcd(a.shape[1], 8 if native else 2)
    different = a.view(f'u{width}') ^ b.view(f'u{width}')
    counts = np.bitwise_count(different) if native else _BIT_COUNTS[different]
    # Column by column: NumPy's sum over a short last axis takes ten times as long.
    total = np.zeros(len(a), np.int64)
    for column in range(counts.shape[1]):
        total += counts[:, column]
    return total


def _best(scores: Float64, top_k: int) -> tuple[Int, Float64]:
    """Return the largest scores above zero with their places, equal ones by place."""
    if top_k < 1:
        raise ValueError(f'top_k is {top_k}: it must be at least 1')
    places = np.flatnonzero(scores > 0)
    if top_k < len(places):
        threshold = np.partition(scores[places], -top_k)[-top_k]
        places = places[scores[places] >= threshold]
    order = np.argsort(-scores[places], kind='stable')[:top_k]
    return places[order], scores[places[order]]


def _checked_descriptors(descriptors: npt.ArrayLike, dim: int | None = None) -> Float32:
    rows = np.ascontiguousarray(descriptors, np.float32)
    if rows.ndim != 2 or (dim is not None and rows.shape[1] != dim):
        raise MapError(
            f'descriptors have shape {rows.shape}: retrieval needs (N, {dim or "D"}), '
            'made by the extractor that the map was built with'
        )
    _check_dim(rows.shape[1])
    if not np.all(np.isfinite(rows)):
        raise MapError('descriptors have values that are not finite: extract the image again')
    return rows


def _check_codebook(codebook: Array) -> None:
    if codebook.ndim != 2 or len(codebook) == 0 or codebook.dtype != np.float32:
        raise MapError(
            f'retrieval array codebook is {codebook.dtype} {codebook.shape}, not float32 (W, D) '
            'with at least one word: rebuild the map'
        )
    _check_dim(codebook.shape[1])


def _check_dim(dim: int) -> None:
    if dim == 0 or dim % 8:
        raise MapError(
            f'descriptors have {dim} dimensions: retrieval needs a multiple of 8, because it '
            'packs their signs into bytes'
        )


def _check_array(name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise MapError(
            f'retrieval array {name} is {array.dtype} {array.shape}, not '
            f'{np.dtype(dtype)} {shape}: rebuild the map'
        )


def _check_starts(name: str, starts: Int, total: int, least: int) -> None:
    """Refuse offsets that do not divide a total into runs of at least so many."""
    if starts[0] != 0 or starts[-1] != total or np.any(np.diff(starts) < least):
        raise MapError(f'retrieval array {name} does not divide {total} entries: rebuild the map')

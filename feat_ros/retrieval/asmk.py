# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Image retrieval on a map's own local descriptors: the aggregated selective match kernel (ASMK).

Tolias, Jenicek and Chum, "Learning and aggregating deep local descriptors for instance-level
recognition", ECCV 2020, section 3, equations 1 to 4: binarised, no weighting by word frequency.
Where the paper is silent the options follow the authors' program: the exponent, and that a
descriptor of a query counts for several near words while one of the database counts for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from feat_ros.config import Config, option
from feat_ros.errors import MapError
from feat_ros.retrieval.inverted_file import (
    check_array,
    check_starts,
    InvertedFile,
    MOST_IMAGES,
    offsets,
    Rows,
    whole,
)
from feat_ros.retrieval.words import kmeans, nearest_words, sample_rows, VisualWords
from feat_ros.types import Float32, Float64

Array = npt.NDArray[Any]
Int = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]

# Descriptors of an image that retrieval uses, the strongest; the HOW paper's number.
RETRIEVAL_FEATURES = 1000
# More lowers the quantisation error of RootSIFT by less than one percent.
_TRAINING_ROWS_PER_WORD = 64
# Of the scores of all images the largest are found by blocks of so many.
_SCORES_PER_BLOCK = 512


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
    """A codebook, and the images of one or several inverted files, numbered through.

    Files are never changed: what is added becomes a file of its own. A codebook on disk is read
    and checked by the first query.

    ===================  =========  =============================================================
    ``codebook``         (W, D)     float32 visual words, in parts
    ``part_starts``      (G + 1,)   int64, see :class:`feat_ros.retrieval.words.VisualWords`
    ``part_centers``     (G, D)     float32
    ``files``                       the inverted files
    ===================  =========  =============================================================
    """

    codebook: Rows
    part_starts: Int
    part_centers: Float32
    files: tuple[InvertedFile, ...] = ()
    config: AsmkConfig = DEFAULT_CONFIG

    def __post_init__(self) -> None:
        """Check types and shapes, and that the files are of this codebook.

        :raises MapError: names the array that does not fit.
        """
        _check_codebook(self.codebook)
        words, dim = self.codebook.shape
        parts = max(self.part_starts.size - 1, 0)
        check_array('part_starts', self.part_starts, (parts + 1,), np.int64)
        check_array('part_centers', self.part_centers, (parts, dim), np.float32)
        check_starts('part_starts', self.part_starts, words, 1)
        for file in self.files:
            check_array('word_starts', file.word_starts, (words + 1,), np.int64)
            check_array('signatures', file.signatures, (*file.id_lows.shape, dim // 8), np.uint8)

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
        divided = VisualWords.divide(codebook, config.seed)
        empty = cls(divided.words, divided.part_starts, divided.part_centers, (), config)
        return empty.with_images(descriptors_per_image)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Rows],
        files: Iterable[InvertedFile],
        config: AsmkConfig = DEFAULT_CONFIG,
    ) -> AsmkIndex:
        """Make an index of the arrays of :meth:`arrays` and of its files.

        :raises MapError: a missing or unknown array, or one of a wrong type or shape.
        """
        if set(arrays) != set(_ARRAY_NAMES):
            raise MapError(
                f'retrieval needs the arrays {", ".join(_ARRAY_NAMES)} and got '
                f'{", ".join(sorted(arrays)) or "none"}: rebuild the map'
            )
        small = {name: whole(rows) for name, rows in arrays.items() if name != 'codebook'}
        return cls(arrays['codebook'], **small, files=tuple(files), config=config)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays of the codebook by name; the inverse of :meth:`from_arrays`."""
        return {name: whole(getattr(self, name)) for name in _ARRAY_NAMES}

    def with_images(self, descriptors_per_image: Iterable[npt.ArrayLike]) -> AsmkIndex:
        """Return the index with more images, numbered on, in a file of their own.

        :raises MapError: see :meth:`build`.
        """
        images = [self._aggregate(rows, 1) for rows in descriptors_per_image]
        files = [
            InvertedFile.build(
                self.codebook.shape[0], self.codebook.shape[1] // 8, images[at : at + MOST_IMAGES]
            )
            for at in range(0, len(images), MOST_IMAGES)
        ]
        return replace(self, files=(*self.files, *files))

    def renumbered(self, numbers: npt.ArrayLike, num_images: int) -> AsmkIndex:
        """Return an index of the same images with other numbers, in as few files as possible.

        :param numbers: (I,) the new number of each image, or -1 to leave it out.
        :param num_images: of the new index, with those that no number names.
        """
        of = np.asarray(numbers, np.int64)
        entries = [
            (words, of[first : first + file.num_images][ids], signatures)
            for file, first in zip(self.files, self._image_starts.tolist(), strict=False)
            for words, ids, signatures in [file.entries()]
        ]
        words, ids, signatures = (np.concatenate(part) for part in zip(*entries, strict=True))
        files = []
        for first in range(0, num_images, MOST_IMAGES):
            size = min(MOST_IMAGES, num_images - first)
            rows = np.flatnonzero((ids >= first) & (ids < first + size))
            files.append(
                InvertedFile.of_entries(
                    self.codebook.shape[0], size, words[rows], ids[rows] - first, signatures[rows]
                )
            )
        return replace(self, files=tuple(files))

    def without_images(self, ids: npt.ArrayLike) -> AsmkIndex:
        """Return the index without some images; the others keep their numbers.

        :raises MapError: there is no such image.
        """
        gone, starts = np.asarray(ids, np.int64), self._image_starts
        if np.any((gone < 0) | (gone >= self.num_images)):
            raise MapError(f'images {gone.tolist()} are not all among the {self.num_images}')
        owner = np.searchsorted(starts, gone, side='right') - 1
        files = list(self.files)
        for number in np.unique(owner).tolist():
            files[number] = files[number].without(gone[owner == number] - starts[number])
        return replace(self, files=tuple(files))

    @property
    def num_images(self) -> int:
        """Number of images, with or without features, and of those that were removed."""
        return int(self._image_starts[-1])

    def search(
        self, descriptors: npt.ArrayLike, top_k: int, threads: int = 1
    ) -> tuple[Int, Float64]:
        """Find the images most similar to a query by equation 4.

        :param descriptors: (N, D) float descriptors of the query, N may be zero.
        :param top_k: the most images to return.
        :return: image ids (K,) and scores (K,), best first, equal scores by id; K is less than
            ``top_k`` where fewer images match at all. An image scores 1 against itself when
            ``query_assignments`` is 1, and at most 1 always.
        :raises MapError: descriptors that are not finite or do not fit the codebook; a list of
            the index that is damaged.
        """
        return self.score(*self.assign(descriptors), top_k, threads)

    def assign(self, descriptors: npt.ArrayLike) -> tuple[Int, Bits]:
        """Return the words (n,) of a query, ascending, and its aggregated residuals (n, D/8).

        :raises MapError: see :meth:`search`.
        """
        return self._aggregate(descriptors, self.config.query_assignments)

    def score(
        self, words: Int, bits: Bits, top_k: int, threads: int = 1
    ) -> tuple[Int, Float64]:  # fmt: skip
        """Find the images most similar to what :meth:`assign` gave; see :meth:`search`."""
        if top_k < 1:
            raise ValueError(f'top_k is {top_k}: it must be at least 1')
        scores = np.empty(self.num_images)
        for file, first in zip(self.files, self._image_starts.tolist(), strict=False):
            scores[first : first + file.num_images] = file.similarities(
                words, bits, self._similarity_of_distance, threads
            )
        # Gamma of both images: a word has similarity 1 with itself.
        scores *= self._inverse_norms
        ids, best = _best(scores, top_k)
        return ids, best / math.sqrt(max(len(words), 1))

    def _aggregate(self, descriptors: npt.ArrayLike, assignments: int) -> tuple[Int, Bits]:
        rows = _checked_descriptors(descriptors, self.codebook.shape[1])
        return _aggregate(rows, self._words, assignments, self.config.probed_parts)

    @cached_property
    def _words(self) -> VisualWords:
        return VisualWords(whole(self.codebook), self.part_starts, self.part_centers)

    @cached_property
    def _image_starts(self) -> Int:
        return offsets([file.num_images for file in self.files])

    @cached_property
    def _inverse_norms(self) -> Float64:
        """(I,), 0 where an image has no words or was removed."""
        counts = np.concatenate([np.zeros(0), *(file.words_per_image for file in self.files)])
        norms = np.sqrt(counts)
        return np.asarray(np.divide(1.0, norms, out=np.zeros(len(norms)), where=norms > 0))

    @cached_property
    def _similarity_of_distance(self) -> Float64:
        """(D + 1,): equation 2 for every Hamming distance; b(x) . b(y) = D - 2 distance."""
        dim = self.codebook.shape[1]
        cosine = (dim - 2 * np.arange(dim + 1)) / dim
        similarity = np.maximum(cosine, 0) ** self.config.alpha
        return np.where(cosine >= self.config.tau, similarity, 0.0)


_ARRAY_NAMES = ('codebook', 'part_starts', 'part_centers')


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


def _best(scores: Float64, top_k: int) -> tuple[Int, Float64]:
    """Return the largest scores above zero with their places, equal ones by place."""
    # The top_k-th largest of the maxima of blocks is no more than the top_k-th largest score:
    # what lies below it need not be sorted.
    num_blocks = len(scores) // _SCORES_PER_BLOCK
    least = 0.0
    if top_k < num_blocks:
        blocks = scores[: num_blocks * _SCORES_PER_BLOCK].reshape(num_blocks, -1).max(axis=1)
        least = float(np.partition(blocks, -top_k)[-top_k])
    places = np.flatnonzero(scores >= least) if least > 0 else np.flatnonzero(scores > 0)
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


def _check_codebook(codebook: Rows) -> None:
    if len(codebook.shape) != 2 or 0 in codebook.shape[:1] or codebook.dtype != np.float32:
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

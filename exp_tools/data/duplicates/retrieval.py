"""Candidate pairs: images with several similar key points.

Two key points look alike when their descriptors fall into the same word of a vocabulary and differ in few bits of a
64-bit signature (Hamming embedding, Jégou et al., ECCV 2008). Each such meeting is a vote for its two pictures. (One
vector a picture, VLAD, was tried: among ten thousand pictures of skin, which as a whole resemble one another, it missed
half of the pairs of one lesion that fit onto each other, this misses a sixth.)
"""

from typing import NamedTuple

import cv2
import numpy as np

POINTS_A_WORD = 200
"""The vocabulary grows with the number of key points, so that the time grows no faster than it."""
MAX_IN_WORD = 2000
"""A visual word with more key points (hair, a screen's grid) is ignored."""
DIFFERENT_BITS = 18
SAMPLE_A_WORD = 6
MAX_SIDE = 256
"""Words on each of the two levels of the vocabulary at most: enough for 13 million key points."""

_FAR = 1e4
"""A word that no descriptor is near to."""


class Vocabulary(NamedTuple):
    """Words `coarse` float32 [A, 128], the words around each of them `fine` float32 [A, B, 128], and the directions of
    the signature `bits` float32 [128, 64]."""

    coarse: np.ndarray
    fine: np.ndarray
    bits: np.ndarray

    @property
    def size(self) -> int:
        return self.fine.shape[0] * self.fine.shape[1]


class Meetings(NamedTuple):
    """Key points in the order of their words: word int32 [M], signature uint64 [M], picture int32 [M]."""

    word: np.ndarray
    signature: np.ndarray
    picture: np.ndarray


def fit_vocabulary(sample: np.ndarray, total: int, seed: int) -> Vocabulary:
    """Cluster sampled descriptors, uint8 [M, 128], M > 0, into two levels of words, as many as `total` ones need."""
    generator = np.random.default_rng(seed)
    side = int(np.clip((total / POINTS_A_WORD) ** 0.5, 1, min(MAX_SIDE, len(sample))))
    chosen = generator.permutation(len(sample))[: SAMPLE_A_WORD * side * side]
    values = sample[chosen].astype(np.float32)
    coarse = _cluster(values, side, generator)
    near = _nearest(values, coarse)
    fine = np.full((side, side, 128), _FAR, np.float32)
    for word in range(side):
        around = values[near == word]
        if len(around):
            found = _cluster(around, min(side, max(1, len(around) // 2)), generator)
            fine[word, : len(found)] = found
    bits = np.linalg.qr(generator.normal(size=(128, 128)))[0][:, :64].astype(np.float32)
    return Vocabulary(coarse, fine, bits)


def _cluster(values: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    cv2.setRNGSeed(int(generator.integers(2**31)))
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 8, 1.0)
    return cv2.kmeans(values, count, None, stop, 1, cv2.KMEANS_PP_CENTERS)[2]


def _nearest(values: np.ndarray, words: np.ndarray) -> np.ndarray:
    return (values @ words.T - (words * words).sum(axis=1) / 2).argmax(axis=1)


def quantise(descriptors: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Give each descriptor, uint8 [M, 128], its word, int32 [M], and its signature, uint64 [M]."""
    values = descriptors.astype(np.float32)
    coarse = _nearest(values, vocabulary.coarse)
    fine = np.empty(len(values), np.int64)
    for word in np.unique(coarse):
        here = np.flatnonzero(coarse == word)
        fine[here] = _nearest(values[here], vocabulary.fine[word])
    rest = values - vocabulary.fine[coarse, fine]
    signature = np.packbits(rest @ vocabulary.bits > 0, axis=1).view(np.uint64)[:, 0]
    return (coarse * vocabulary.fine.shape[1] + fine).astype(np.int32), signature


def passed_over(word: np.ndarray) -> float:
    """Share of the key points, words int32 [M] with M > 0, that fall into words with more than MAX_IN_WORD."""
    in_word = np.bincount(word)
    return float(in_word[in_word > MAX_IN_WORD].sum() / len(word))


def count_votes(one: Meetings, other: Meetings, words: range, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Let key points that meet in some of the words vote for their pictures.

    Parameters
    ----------
    one, other : the key points, or those of the mirrored pictures on one side
    words : which words to look at; the votes of several ranges add up
    pictures : number of pictures, N

    Returns
    -------
    pair : int64 [P], ascending: first * N + second with first < second
    votes : int64 [P]; a meeting of equal signatures counts more than one that differs in DIFFERENT_BITS
    """
    edges = np.arange(words.start, words.stop + 1)
    starts, other_starts = np.searchsorted(one.word, edges), np.searchsorted(other.word, edges)
    pairs, votes = [], []
    for at in range(len(words)):
        here, there = slice(*starts[at : at + 2]), slice(*other_starts[at : at + 2])
        if max(here.stop - here.start, there.stop - there.start) > MAX_IN_WORD:
            continue
        first, second = one.picture[here, None].astype(np.int64), other.picture[there]
        differ = np.bitwise_count(one.signature[here, None] ^ other.signature[there])
        alike = np.nonzero((differ <= DIFFERENT_BITS) & (first < second))
        pairs.append((first * pictures + second)[alike])
        votes.append(DIFFERENT_BITS + 2 - differ[alike].astype(np.int64))
    return add_votes(pairs, votes)


def add_votes(pairs: list[np.ndarray], votes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sum the votes of equal pairs; the result is sorted by pair."""
    if not pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    pair, place = np.unique(np.concatenate(pairs), return_inverse=True)
    return pair, np.bincount(place, np.concatenate(votes), minlength=len(pair)).astype(np.int64)


def most_voted(pair: np.ndarray, votes: np.ndarray, pictures: int, wanted: int) -> np.ndarray:
    """The pairs, int64 [P, 2], that are among the `wanted` most voted ones of either of their pictures."""
    ends = np.concatenate([pair // pictures, pair % pictures])
    twice = np.tile(np.arange(len(pair)), 2)
    order = np.lexsort((twice, -votes[twice], ends))
    rank = np.arange(len(order)) - np.searchsorted(ends[order], np.arange(pictures))[ends[order]]
    kept = pair[np.unique(twice[order[rank < wanted]])]
    return np.column_stack([kept // pictures, kept % pictures])

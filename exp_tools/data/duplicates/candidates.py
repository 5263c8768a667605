"""Which pairs of pictures are worth comparing: by key points in common, by colour and texture, by embedding."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from exp_tools.data.duplicates.keypoints import mirrored
from exp_tools.data.duplicates.neighbours import blocks_of, nearest_in_block, standardise, whiten
from exp_tools.data.duplicates.retrieval import (
    Meetings,
    Vocabulary,
    add_votes,
    count_votes,
    fit_vocabulary,
    most_voted,
    passed_over,
    quantise,
)
from exp_tools.data.duplicates.stored import VOTING_POINTS, Stored, load_arrays, save_arrays

MUCH_PASSED_OVER = 0.25
"""Share of key points in crowded words from which the search warns."""
VOTED, VOTED_IN_BLOCK, VOTED_MIRRORED, ALIKE, EMBEDDED = 8, 8, 3, 8, 12
"""Candidates of each picture: most voted of all, of its block, of the mirrored, alike in colour and texture within the
block, and by embedding within the block."""

_WORDS_A_JOB = 256
_FIT_IMAGES = 2000


def propose_pairs(
    folder: Path,
    spans: list[tuple[int, int]],
    run: Callable,
    facts: pd.DataFrame,
    vectors: np.ndarray | None,
    readable: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, dict[tuple[int, int], float]]:
    """Pairs worth comparing.

    Parameters
    ----------
    folder : where `stored.Stored` is
    spans : first picture of each job, and the one behind its last
    run : as `search` gives it: run(function, jobs, title) yields the results in order
    facts : result of `neighbours.as_facts` [N]
    vectors : embedding of each picture, float [N, D], if there are any
    readable : which pictures could be decoded, bool [N]
    seed : which pictures the vocabulary is fitted on

    Returns
    -------
    int [P, 3], first, second, 1 for a look at the first one's mirror image, sorted; and the similarity of those pairs
    that were proposed by their vectors
    """
    block = blocks_of(facts)
    found = [_voted(folder, spans, run, seed, block)]
    kinds = [(standardise, Stored(folder).looks, ALIKE)]
    kinds += [] if vectors is None else [(whiten, vectors, EMBEDDED)]
    likeness: dict[tuple[int, int], float] = {}
    usable = np.flatnonzero(readable)
    for prepared, values, wanted in kinds:
        if len(usable) < 2:
            break
        pairs, alike = nearest_in_block(prepared(values[usable]), block[usable], wanted)
        pairs = usable[pairs]
        found.append(np.column_stack([pairs, np.zeros(len(pairs), np.int64)]))
        likeness = dict(zip(map(tuple, pairs.tolist()), alike.tolist(), strict=True)) if values is vectors else {}
    return np.unique(np.concatenate(found), axis=0), likeness


def _voted(folder: Path, spans: list[tuple[int, int]], run: Callable, seed: int, block: np.ndarray) -> np.ndarray:
    """Pairs with key points that look alike, int [P, 3]."""
    stored = Stored(folder)
    described = np.flatnonzero(stored.counts)
    if len(described) < 2:
        return np.empty((0, 3), np.int64)
    total = len(stored.counts)
    voting = np.minimum(stored.counts, VOTING_POINTS)
    chosen = np.random.default_rng(seed).permutation(described)[:_FIT_IMAGES]
    sample = np.concatenate([stored.voting(picture).descriptors for picture in chosen])
    vocabulary = fit_vocabulary(sample, int(voting.sum()), seed)
    save_arrays(folder, vocabulary, "vocabulary")
    words = [range(at, min(at + _WORDS_A_JOB, vocabulary.size)) for at in range(0, vocabulary.size, _WORDS_A_JOB)]
    found = []
    for mirror in (False, True):
        parts = run(_quantise, [(folder, *span, mirror) for span in spans], "find words")
        word, signature = (np.concatenate(column) for column in zip(*parts, strict=True))
        if not mirror and (share := passed_over(word)) > MUCH_PASSED_OVER:
            print(
                f"warning: the near-duplicate search passes over {share:.0%} of the key points: too many others "
                "look like them. Pairs may be missed; search in parts that can have images in common (docs/scaling.md)",
                file=sys.stderr,
            )
        order = np.argsort(word, kind="stable")
        picture = np.repeat(np.arange(total, dtype=np.int32), voting)
        save_arrays(folder, Meetings(word[order], signature[order], picture[order]), f"mirror-{mirror}")
        parts = run(_vote, [(folder, part, mirror, total) for part in words], "find candidates")
        pair, votes = add_votes(*zip(*parts, strict=True))
        pairs = most_voted(pair, votes, total, VOTED_MIRRORED if mirror else VOTED)
        if not mirror:
            near = block[pair // total] == block[pair % total]
            pairs = np.concatenate([pairs, most_voted(pair[near], votes[near], total, VOTED_IN_BLOCK)])
        found.append(np.column_stack([pairs, np.full(len(pairs), mirror)]))
    return np.concatenate(found)


def _quantise(folder: Path, start: int, stop: int, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    stored = Stored(folder)
    points = [stored.voting(picture) for picture in range(start, stop)]
    descriptors = np.concatenate([(mirrored(each) if mirror else each).descriptors for each in points])
    return quantise(descriptors, load_arrays(folder, Vocabulary, "vocabulary"))


def _vote(folder: Path, words: range, mirror: bool, total: int) -> tuple[np.ndarray, np.ndarray]:
    one, other = (load_arrays(folder, Meetings, f"mirror-{view}") for view in (mirror, False))
    return count_votes(one, other, words, total)

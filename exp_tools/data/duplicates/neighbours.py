"""Candidate pairs without key points: pictures that look alike as a whole, among those with the same age, sex and site.

All pictures of dermoscopy look alike to such a measure, so it only proposes, within small blocks: HAM10000 has 335,000
pairs of the same age, sex and site, and 50 million in all.
"""

import cv2
import numpy as np
import pandas as pd

from exp_tools.data.labels.table import MISSING

FACTS = ("age", "sex", "localization")
NEEDED_FACTS = 2
"""Known facts that must be equal, with none that differs, for a pair to agree."""
LEVELS = 4
WIDTH = 160
LOOK = 57
DIRECTIONS = 128
MAX_BLOCK = 50_000
"""A larger block proposes nothing: the time would grow with the square of it."""

_ROWS = 1000


def as_facts(table: pd.DataFrame) -> pd.DataFrame:
    """The FACTS of each row as text, "" for unknown ones and for columns that are not there."""
    facts = {}
    for name in FACTS:
        column = table[name] if name in table else pd.Series("", index=table.index)
        if name == "age":
            years = pd.to_numeric(column, errors="coerce")
            facts[name] = years.map("{:g}".format).where(years.notna(), "")
        else:
            words = column.fillna("").astype(str).str.strip().str.lower()
            facts[name] = words.where(~words.isin(MISSING), "")
    return pd.DataFrame(facts, index=table.index).reset_index(drop=True)


def blocks_of(facts: pd.DataFrame) -> np.ndarray:
    """Block of each picture, int [N]: those whose facts are all the same, unknown being one value."""
    return pd.factorize(pd.MultiIndex.from_frame(facts))[0]


def facts_agree(facts: pd.DataFrame, pairs: np.ndarray) -> np.ndarray:
    """Which of the pairs, int [P, 2], have NEEDED_FACTS equal known facts and none that differs: bool [P]."""
    values = facts.to_numpy(dtype=str)
    one, other = values[pairs[:, 0]], values[pairs[:, 1]]
    known = (one != "") & (other != "")
    equal = known & (one == other)
    return (equal.sum(axis=1) >= NEEDED_FACTS) & ~(known & ~equal).any(axis=1)


def describe_look(picture: np.ndarray) -> np.ndarray:
    """Colours and texture of a picture, uint8 [H, W, 3], RGB, whichever way up: float32 [LOOK].

    Contrast of each Lab channel in LEVELS octaves, quantiles of the colours, mean colours of rings round the middle.
    """
    height = max(16, round(WIDTH * picture.shape[0] / picture.shape[1]))
    small = cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    parts, level = [], lab
    for _ in range(LEVELS):
        lower = cv2.pyrDown(level)
        detail = (level - cv2.pyrUp(lower, dstsize=level.shape[1::-1])).reshape(-1, 3)
        parts += [np.log(np.abs(detail).mean(axis=0) + 1e-3), np.log(detail.std(axis=0) + 1e-3)]
        level = lower
    pixels = np.sort(lab.reshape(-1, 3), axis=0)
    parts.append(pixels[(np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98]) * len(pixels)).astype(int)].ravel())
    y, x = np.mgrid[:height, :WIDTH]
    radius = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / WIDTH - 0.5)
    rings = np.digitize(radius, (0.15, 0.3, 0.45))
    parts += [lab[rings == ring].mean(axis=0) for ring in range(4)]
    return np.concatenate(parts).astype(np.float32)


def standardise(values: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and deviation 1, each row of length 1: float32 [N, D]."""
    values = values - values.mean(axis=0, dtype=np.float64)
    return _unit(values / np.maximum(values.std(axis=0), 1e-6))


def whiten(values: np.ndarray) -> np.ndarray:
    """The main DIRECTIONS of the values with deviation 1 each, each row of length 1: float32 [N, D].

    What all pictures of a set have in common counts no more than what few have, which finds far more pairs than the
    cosine of plain features.
    """
    centred = (values - values.mean(axis=0, dtype=np.float64)).astype(np.float64)
    variance, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    variance, axes = variance[::-1][:DIRECTIONS], axes[:, ::-1][:, :DIRECTIONS]
    deviation = np.sqrt(np.maximum(variance, 0))
    return _unit(centred @ axes / np.maximum(deviation, 1e-3 * max(deviation[0], 1e-12)))


def _unit(values: np.ndarray) -> np.ndarray:
    return (values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def nearest_in_block(vectors: np.ndarray, block: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of each picture with the `wanted` nearest of its block.

    Parameters
    ----------
    vectors : float32 [N, D], rows of length 1
    block : int [N]

    Returns
    -------
    int64 [P, 2], first < second, sorted; and their similarity, float32 [P], the cosine
    """
    order = np.argsort(block, kind="stable")
    pairs, likeness = [], []
    for members in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
        if not 1 < len(members) <= MAX_BLOCK:
            continue
        for start in range(0, len(members), _ROWS):
            here = members[start : start + _ROWS]
            alike = vectors[here] @ vectors[members].T
            alike[np.arange(len(here)), start + np.arange(len(here))] = -np.inf
            most = min(wanted, len(members) - 1)
            best = np.argpartition(-alike, most - 1, axis=1)[:, :most]
            pairs.append(np.column_stack([np.repeat(here, best.shape[1]), members[best].ravel()]))
            likeness.append(np.take_along_axis(alike, best, axis=1).ravel())
    if not pairs:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    found, place = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0, return_index=True)
    return found.astype(np.int64), np.concatenate(likeness)[place]

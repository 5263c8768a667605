"""Find pictures of the same spot of skin: the same bytes, the same pixels, or key points that fit onto each other.

Hashes and thumbnails are of no use here: they take centred dark blobs for the same picture. Candidates are pictures
with key points that look alike, and pictures of the same age, sex and site that look alike as a whole; a similarity
transform that many key points agree on decides.
"""

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from exp_tools.data.duplicates.candidates import propose_pairs
from exp_tools.data.duplicates.keypoints import MIN_SPREAD, Agreement, KeyPoints, compare, find_keypoints
from exp_tools.data.duplicates.neighbours import as_facts, describe_look, facts_agree
from exp_tools.data.duplicates.stored import Stored, create_store
from exp_tools.data.images.decode import ImageFault
from exp_tools.io import ProgressBar, scratch_folder
from exp_tools.system import keep_freed_memory

MIN_INLIERS, MIN_INLIERS_AGREEING = 12, 8
"""Inliers from which two pictures show the same spot, and from which they do where age, sex and site agree. Key points
are counted strictly: matched both ways, once a pixel. docs/data.md says how the numbers were found."""
REPORTED = 6
"""Inliers from which a pair is listed though it is not accepted. From there to MIN_INLIERS it gets a second look."""
SIDE, FINE_SIDE = 300, 600
"""Pixels of the long side that suffice for the first look, and for the second."""
ALIKE_LISTED = 200
"""Pairs with the most similar embeddings that are listed whatever their key points say, for a person to look at."""

_IMAGES_A_JOB, _PAIRS_A_JOB, _FINE_A_JOB = 64, 512, 32
_COLUMNS = ["first", "second", "inliers", "spread", "rotation", "scale", "mirrored", "size"]

Reader = Callable[[int, int], np.ndarray]
"""Gives picture `place` with a long side of at least some pixels, or as large as it is: uint8 [H, W, 3], RGB. With
several processes it must be picklable."""


class _Given(NamedTuple):
    """Reads pictures that are in memory."""

    pictures: dict[int, np.ndarray]

    def __call__(self, place: int, side: int) -> np.ndarray:
        return self.pictures[place]


def identical_files(paths: Sequence[Path | str]) -> list[tuple[int, int]]:
    """Find files with the same bytes: (first of its kind, other), as places in `paths`, in order of the other."""
    by_size = defaultdict(list)
    for place, path in enumerate(paths):
        by_size[Path(path).stat().st_size].append(place)
    pairs = []
    for places in by_size.values():
        known: dict[bytes, int] = {}
        for place in places if len(places) > 1 else ():
            with open(paths[place], "rb") as file:
                first = known.setdefault(hashlib.file_digest(file, "sha256").digest(), place)
            if first != place:
                pairs.append((first, place))
    return sorted(pairs, key=lambda pair: pair[1])


def find_duplicates(
    images: np.ndarray | Reader,
    count: int | None = None,
    *,
    facts: pd.DataFrame | None = None,
    vectors: np.ndarray | None = None,
    seed: int = 0,
    processes: int = 1,
    on_fault: Callable[[int, ImageFault], None] | None = None,
) -> pd.DataFrame:
    """Find pairs of pictures that show the same spot of skin, also when turned, mirrored, enlarged or lit differently.

    The key points of all pictures are kept in a temporary folder (about 55 kB a picture), not in memory.

    Parameters
    ----------
    images : uint8 array [N, H, W, 3], RGB, or a function that gives one picture. The sides should have the ratio of the
        photograph's: a picture squashed to a square does not fit onto its turned view.
    count : N, wanted when `images` is a function
    facts : result of `neighbours.as_facts` [N]; None: nothing is known, and any two pictures may be a pair
    vectors : embedding of each picture, float [N, D]; pairs with similar ones are candidates as well
    seed : which pictures the candidates' vocabulary is fitted on
    processes : how many work at once; the result does not depend on it
    on_fault : is told of each picture that cannot be decoded, which then has no pairs; None: the fault is raised

    Returns
    -------
    DataFrame, a row a pair that is accepted, has at least REPORTED inliers, or is among the ALIKE_LISTED with the most
    similar vectors, sorted by first and second: first < second (places), inliers, spread (pixels of a 300x225 picture),
    the transform from the first to the second: rotation (degrees clockwise), scale, mirrored (left to right, before it
    is turned); size (long side of the smaller picture as it was compared), similarity (cosine of the whitened vectors,
    NaN without), agrees (`neighbours.facts_agree`), exact (equal pixels), accepted.
    """
    total = len(images) if count is None else count
    facts = as_facts(pd.DataFrame(index=range(total))) if facts is None else facts
    if total < 2:
        return _table([], [], facts, {})

    def reader(places: Sequence[int]) -> Reader:
        return images if callable(images) else _Given({place: images[place] for place in places})

    spans = [(start, min(start + _IMAGES_A_JOB, total)) for start in range(0, total, _IMAGES_A_JOB)]
    with scratch_folder(name="duplicates") as folder, _workers(processes) as run:
        create_store(folder, total)
        jobs = [(folder, reader(range(*span)), *span) for span in spans]
        described = [each for part in run(_describe, jobs, "find key points") for each in part]
        digests = []
        for place, each in enumerate(described):
            digests.append(each if isinstance(each, bytes) else None)
            if not isinstance(each, bytes):
                fault = ImageFault(*each)
                if on_fault is None:
                    raise fault
                on_fault(place, fault)
        readable = np.array([digest is not None for digest in digests])
        pairs, likeness = propose_pairs(folder, spans, run, facts, vectors, readable, seed)
        jobs = [(folder, pairs[at : at + _PAIRS_A_JOB]) for at in range(0, len(pairs), _PAIRS_A_JOB)]
        rows = [row for part in run(_verify, jobs, "compare pairs") for row in part]
        again = [row for row in rows if row[2] < MIN_INLIERS]
        parts = [again[at : at + _FINE_A_JOB] for at in range(0, len(again), _FINE_A_JOB)]
        jobs = [(reader(sorted({place for row in part for place in row[:2]})), part) for part in parts]
        rows += [row for part in run(_look_again, jobs, "look again") for row in part]
    return _table(rows, digests, facts, likeness)


def _describe(folder: Path, source: Reader, start: int, stop: int) -> list[bytes | tuple[str, str]]:
    """Store what is seen in some pictures; the digest of each one's pixels, or kind and message of its fault."""
    stored = Stored(folder, "r+")
    digests: list[bytes | tuple[str, str]] = []
    for picture in range(start, stop):
        try:
            pixels = np.ascontiguousarray(source(picture, SIDE))
        except ImageFault as fault:
            digests.append((fault.kind, str(fault)))  # an ImageFault itself cannot be sent
            continue
        points = find_keypoints(pixels)
        stored.counts[picture] = found = len(points.places)
        stored.sizes[picture] = max(pixels.shape)
        stored.looks[picture] = describe_look(pixels)
        stored.places[picture, :found], stored.descriptors[picture, :found] = points
        digests.append(hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest())
    return digests


def _verify(folder: Path, pairs: np.ndarray) -> list[tuple]:
    stored = Stored(folder)
    rows = []
    for first, second, mirror in pairs.tolist():
        fit = compare(stored[first], stored[second], mirror=bool(mirror))
        if fit is not None and fit.inliers >= REPORTED:
            rows.append((first, second, *fit, int(min(stored.sizes[first], stored.sizes[second]))))
    return rows


def _look_again(source: Reader, rows: list[tuple]) -> list[tuple]:
    """Compare the pairs of these rows again, as large as the pictures are up to FINE_SIDE."""
    known: dict[int, tuple[KeyPoints, int]] = {}
    for place in sorted({place for row in rows for place in row[:2]}):
        pixels = np.ascontiguousarray(source(place, FINE_SIDE))
        known[place] = find_keypoints(pixels, fine=True), max(pixels.shape)
    found = []
    for row in rows:
        fit_of = Agreement(*row[2:7])
        (one, size), (other, other_size) = known[row[0]], known[row[1]]
        fit = compare(one, other, mirror=fit_of.mirrored)
        if fit is not None:
            found.append((*row[:2], *fit, min(size, other_size)))
    return found


def _table(
    rows: list[tuple],
    digests: Sequence[bytes | None],
    facts: pd.DataFrame,
    likeness: dict[tuple[int, int], float],
) -> pd.DataFrame:
    first_of: dict[bytes, int] = {}
    equal = [(first_of.setdefault(digest, place), place) for place, digest in enumerate(digests) if digest is not None]
    most_alike = sorted(likeness, key=lambda pair: (-likeness[pair], pair))[:ALIKE_LISTED]
    # Equal pictures without key points are duplicates too.
    others = [pair for pair in equal if pair[0] != pair[1]] + most_alike
    rows = rows + [(*pair, 0, 0.0, 0.0, 1.0, False, 0) for pair in others]
    table = pd.DataFrame(rows, columns=_COLUMNS).sort_values(
        ["first", "second", "inliers"], ascending=[True, True, False], kind="stable"
    )
    table = table.drop_duplicates(["first", "second"], ignore_index=True)
    table = table.astype({"first": int, "second": int, "inliers": int, "spread": float, "mirrored": bool, "size": int})
    pairs = table[["first", "second"]].to_numpy(int)
    table["similarity"] = [likeness.get(pair, np.nan) for pair in map(tuple, pairs.tolist())]
    table["similarity"] = table["similarity"].astype(float)
    table["agrees"] = facts_agree(facts, pairs)
    table["exact"] = np.array([digests[a] == digests[b] for a, b in pairs.tolist()], dtype=bool)
    needed = np.where(table["agrees"], MIN_INLIERS_AGREEING, MIN_INLIERS)
    table["accepted"] = table["exact"] | ((table["inliers"] >= needed) & (table["spread"] >= MIN_SPREAD))
    return table


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[Callable]:
    """Yield run(function, jobs, title): an iterator over the results in the order of the jobs."""
    with contextlib.ExitStack() as stack:
        pool = None
        if processes > 1:
            pool = stack.enter_context(
                ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread)
            )
        stack.enter_context(threadpool_limits(1))
        threads = cv2.getNumThreads()
        stack.callback(cv2.setNumThreads, threads)
        cv2.setNumThreads(1)

        def run(function: Callable, jobs: list[tuple], title: str) -> Iterator:
            if jobs:
                columns = zip(*jobs, strict=True)
                results = pool.map(function, *columns) if pool else map(function, *columns)
                yield from ProgressBar(results, total=len(jobs), desc=title, unit="chunk")

        yield run


def _one_thread() -> None:
    keep_freed_memory()
    cv2.setNumThreads(1)
    threadpool_limits(1)

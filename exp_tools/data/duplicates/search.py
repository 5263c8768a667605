"""Find pictures of the same spot of skin: the same bytes, the same pixels, or key points that fit onto each other.

Hashes and thumbnails are of no use here: they take centred dark blobs for the same picture. Candidates are
pictures with key points that look alike; a similarity transform that many key points agree on decides.
"""

import contextlib
import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from exp_tools.data.duplicates.keypoints import MAX_POINTS, MIN_SPREAD, KeyPoints, compare, find_keypoints, mirrored
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
from exp_tools.io import ProgressBar
from exp_tools.system import keep_freed_memory

MIN_INLIERS = 12
"""Inliers from which two pictures show the same spot. Key points are counted strictly here: matched both ways, once a
pixel. In HAM10000 all 57 pairs of different lesions with 10 inliers or more do show the same spot (looked at), and
pairs drawn at random have 4 at most."""
MUCH_PASSED_OVER = 0.25
"""Share of key points in crowded words from which the search warns."""
REPORTED = 8
"""Inliers from which a pair is listed though it is not accepted."""
NEIGHBOURS, MIRRORED_NEIGHBOURS = 8, 3

_IMAGES_A_JOB, _WORDS_A_JOB, _PAIRS_A_JOB = 64, 256, 512
_FIT_IMAGES = 2000
_COLUMNS = ["first", "second", "inliers", "spread", "rotation", "scale", "mirrored"]

Reader = Callable[[int], np.ndarray]
"""Gives picture `index` as uint8 [H, W, 3], RGB; with several processes it must be picklable."""


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
    seed: int = 0,
    processes: int = 1,
    min_inliers: int = MIN_INLIERS,
) -> pd.DataFrame:
    """Find pairs of pictures that show the same spot of skin, also when turned, mirrored, enlarged or lit differently.

    The key points of all pictures are kept in a temporary folder (about 30 kB a picture), not in memory.

    Parameters
    ----------
    images : uint8 array [N, H, W, 3], RGB, or a function that gives one picture. The sides should have the ratio of the
        photograph's: a picture squashed to a square does not fit onto its turned view.
    count : N, wanted when `images` is a function
    seed : which pictures the candidates' vocabulary is fitted on
    processes : how many work at once; the result does not depend on it
    min_inliers : key points that must agree on one transform; they must be spread as well (MIN_SPREAD)

    Returns
    -------
    DataFrame, a row a pair that is accepted or has at least REPORTED inliers, sorted by first and second:
    first < second (places), inliers, spread (pixels of a 224x168 picture), the transform from the first to the second:
    rotation (degrees clockwise), scale, mirrored (left to right, before it is turned); exact (equal pixels), accepted.
    """
    total = len(images) if count is None else count
    if total < 2:
        return _table([], {}, min_inliers)
    spans = [(start, min(start + _IMAGES_A_JOB, total)) for start in range(0, total, _IMAGES_A_JOB)]
    with TemporaryDirectory(prefix="duplicates-") as name, _workers(processes) as run:
        folder = Path(name)
        _create(folder, total)
        jobs = [(folder, images if callable(images) else images[start:stop], start, stop) for start, stop in spans]
        digests = [digest for part in run(_describe, jobs, "find key points") for digest in part]
        pairs = _candidates(folder, spans, run, seed)
        jobs = [
            (folder, pairs[at : at + _PAIRS_A_JOB], min(REPORTED, min_inliers))
            for at in range(0, len(pairs), _PAIRS_A_JOB)
        ]
        rows = [row for part in run(_verify, jobs, "compare pairs") for row in part]
    return _table(rows, dict(enumerate(digests)), min_inliers)


def _candidates(folder: Path, spans: list[tuple[int, int]], run: Callable, seed: int) -> np.ndarray:
    """Pairs worth comparing: int [P, 3], first, second, 1 for a look at the first one's mirror image; sorted."""
    stored = _Stored(folder)
    described = np.flatnonzero(stored.counts)
    if len(described) < 2:
        return np.empty((0, 3), np.int64)
    total = len(stored.counts)
    chosen = np.random.default_rng(seed).permutation(described)[:_FIT_IMAGES]
    sample = np.concatenate([stored[picture].descriptors for picture in chosen])
    vocabulary = fit_vocabulary(sample, int(stored.counts.sum()), seed)
    _save(folder, vocabulary, "vocabulary")
    words = [range(at, min(at + _WORDS_A_JOB, vocabulary.size)) for at in range(0, vocabulary.size, _WORDS_A_JOB)]
    found = []
    for mirror, wanted in ((False, NEIGHBOURS), (True, MIRRORED_NEIGHBOURS)):
        parts = run(_quantise, [(folder, *span, mirror) for span in spans], "find words")
        word, signature = (np.concatenate(column) for column in zip(*parts, strict=True))
        if not mirror and (share := passed_over(word)) > MUCH_PASSED_OVER:
            print(
                f"warning: the near-duplicate search passes over {share:.0%} of the key points: too many others "
                "look like them. Pairs may be missed; search in parts that can have images in common (docs/scaling.md)",
                file=sys.stderr,
            )
        order = np.argsort(word, kind="stable")
        picture = np.repeat(np.arange(total, dtype=np.int32), stored.counts)
        _save(folder, Meetings(word[order], signature[order], picture[order]), f"mirror-{mirror}")
        parts = run(_vote, [(folder, part, mirror, total) for part in words], "find candidates")
        pairs = most_voted(*add_votes(*zip(*parts, strict=True)), total, wanted)
        found.append(np.column_stack([pairs, np.full(len(pairs), mirror)]))
    return np.unique(np.concatenate(found), axis=0)


class _Stored:
    """The key points of all pictures, in files that every process maps."""

    def __init__(self, folder: Path, mode: str = "r") -> None:
        self.counts, self.places, self.descriptors = (
            np.load(folder / f"{name}.npy", mmap_mode=mode).view(np.ndarray)  # slices of a memmap take microseconds
            for name in ("counts", "places", "descriptors")
        )

    def __getitem__(self, picture: int) -> KeyPoints:
        found = self.counts[picture]
        return KeyPoints(self.places[picture, :found], self.descriptors[picture, :found])


def _create(folder: Path, total: int) -> None:
    for name, kind, shape in (
        ("counts", np.int32, (total,)),
        ("places", np.float32, (total, MAX_POINTS, 2)),
        ("descriptors", np.uint8, (total, MAX_POINTS, 128)),
    ):
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=kind, shape=shape)


def _describe(folder: Path, source: np.ndarray | Reader, start: int, stop: int) -> list[bytes]:
    stored = _Stored(folder, "r+")
    digests = []
    for picture in range(start, stop):
        pixels = np.ascontiguousarray(source(picture) if callable(source) else source[picture - start])
        points = find_keypoints(pixels)
        stored.counts[picture] = found = len(points.places)
        stored.places[picture, :found], stored.descriptors[picture, :found] = points
        digests.append(hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest())
    return digests


def _save(folder: Path, arrays: Vocabulary | Meetings, name: str) -> None:
    for field, values in arrays._asdict().items():
        np.save(folder / f"{name}-{field}.npy", values)


def _load(folder: Path, kind: type, name: str) -> Vocabulary | Meetings:
    return kind(*(np.load(folder / f"{name}-{field}.npy", mmap_mode="r") for field in kind._fields))


def _quantise(folder: Path, start: int, stop: int, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    stored = _Stored(folder)
    points = [stored[picture] for picture in range(start, stop)]
    descriptors = np.concatenate([(mirrored(each) if mirror else each).descriptors for each in points])
    return quantise(descriptors, _load(folder, Vocabulary, "vocabulary"))


def _vote(folder: Path, words: range, mirror: bool, total: int) -> tuple[np.ndarray, np.ndarray]:
    one, other = (_load(folder, Meetings, f"mirror-{view}") for view in (mirror, False))
    return count_votes(one, other, words, total)


def _verify(folder: Path, pairs: np.ndarray, floor: int) -> list[tuple]:
    stored = _Stored(folder)
    rows = []
    for first, second, mirror in pairs.tolist():
        fit = compare(stored[first], stored[second], mirror=bool(mirror))
        if fit is not None and fit.inliers >= floor:
            rows.append((first, second, *fit))
    return rows


def _table(rows: list[tuple], digests: dict[int, bytes], min_inliers: int) -> pd.DataFrame:
    first_of: dict[bytes, int] = {}
    equal = [(first_of.setdefault(digest, place), place) for place, digest in digests.items()]
    # Equal pictures without key points are duplicates too.
    rows = rows + [(first, second, 0, 0.0, 0.0, 1.0, False) for first, second in equal if first != second]
    table = pd.DataFrame(rows, columns=_COLUMNS).sort_values(
        ["first", "second", "inliers"], ascending=[True, True, False], kind="stable"
    )
    table = table.drop_duplicates(["first", "second"], ignore_index=True)
    table = table.astype({"first": int, "second": int, "inliers": int, "spread": float, "mirrored": bool})
    table["exact"] = [digests[a] == digests[b] for a, b in zip(table["first"], table["second"], strict=True)]
    table["exact"] = table["exact"].astype(bool)
    table["accepted"] = table["exact"] | ((table["inliers"] >= min_inliers) & (table["spread"] >= MIN_SPREAD))
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

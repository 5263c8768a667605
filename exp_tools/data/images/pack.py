"""Decode many images in parallel and pack them into one memory-mapped array."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from exp_tools.data.images.decode import ImageFault, decode_with_notes
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.io import ProgressBar, atomic_write, require_space

CHUNK = 32


class Finding(NamedTuple):
    """A finding about the image at `place`: a fault (not usable), or something that was fixed."""

    place: int
    kind: str
    value: str
    rule: str
    usable: bool


def pack_images(
    files: Sequence[Path | str],
    target: Path | None,
    preprocessing: Preprocessing,
    *,
    policy: Mapping[str, str] | None = None,
    processes: int = 1,
) -> list[Finding]:
    """Decode and resize all files into one .npy array, in parallel; memory does not grow with their number.

    Parameters
    ----------
    files : image files, in the order of the rows; "" is passed over
    target : the .npy file to make: uint8 [kept, image_size, image_size, 3], RGB; None only looks at the images
    policy : what to do about a finding, by its kind: "skip" leaves the image out (nothing is written when none is
        left), "stop" means that nothing is written, anything else keeps an image that is usable. A kind that is not
        named: stop for a fault, else keep.
    processes : how many decode at once; the result does not depend on it

    Returns
    -------
    list of Finding in the order of the files

    Raises
    ------
    UserError
        The disk has no room for the array.
    """
    policy = policy or {}
    size = preprocessing.image_size
    findings: list[Finding] = []
    jobs = [(start, [str(file) for file in files[start : start + CHUNK]]) for start in range(0, len(files), CHUNK)]
    if target is None:
        _decode_all(jobs, (None, preprocessing), processes, len(files), findings)
        return findings
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, array_bytes(len(files), size), f"{target} ({len(files):,} images of {size}x{size})")
    try:
        with atomic_write(target) as temporary:
            shape = (len(files), size, size, 3)
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape).flush()
            _decode_all(jobs, (str(temporary), preprocessing), processes, len(files), findings)
            done = {find: policy.get(find.kind, "keep" if find.usable else "stop") for find in findings}
            skipped = {find.place for find, action in done.items() if action == "skip"}
            if "stop" in done.values() or len(skipped) == len(files):
                raise _Unwritten
            if skipped:
                _leave_out(temporary, skipped, size)
    except _Unwritten:
        pass
    return findings


def join_arrays(parts: Sequence[Path], target: Path, size: int) -> None:
    """Write the images of several .npy files, one behind the other, into one: uint8 [N, size, size, 3], N may be 0."""
    arrays = [np.load(part, mmap_mode="r") for part in parts]
    total = sum(len(array) for array in arrays)
    require_space(target.parent, array_bytes(total, size), f"{target} ({total:,} images of {size}x{size})")
    with atomic_write(target) as temporary:
        if not total:  # which no memory map can be
            with temporary.open("wb") as file:
                np.save(file, np.empty((0, size, size, 3), np.uint8))
            return
        whole = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(total, size, size, 3))
        place = 0
        for array in arrays:
            for start in range(0, len(array), CHUNK):
                some = array[start : start + CHUNK]
                whole[place : place + len(some)] = some
                place += len(some)
        whole.flush()
        del whole  # Windows renames no file that is mapped


def array_bytes(count: int, size: int) -> int:
    """Bytes on disk of an array of `count` images of side `size`."""
    return count * size * size * 3 + 128


class _Unwritten(Exception):
    """Leaves atomic_write without a file."""


def _leave_out(path: Path, skipped: set[int], size: int) -> None:
    """Rewrite the array at `path` without some of its rows, a few at a time."""
    images = np.load(path, mmap_mode="r")
    keep = np.setdiff1d(np.arange(len(images)), list(skipped))
    with atomic_write(path) as temporary:
        shape = (len(keep), size, size, 3)
        smaller = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for start in range(0, len(keep), CHUNK):
            smaller[start : start + CHUNK] = images[keep[start : start + CHUNK]]
        smaller.flush()
        del smaller, images  # Windows renames no file that is mapped


def _decode_all(jobs: list, setting: tuple, processes: int, count: int, findings: list[Finding]) -> None:
    with ProgressBar(total=count, desc="decode", unit="image") as progress:
        for done, found in _run(jobs, setting, processes):
            findings += found
            progress.update(done)


def _run(jobs: list, setting: tuple, processes: int):
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield _pack_chunk(job, setting)
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(_pack_chunk, job, setting) for job in jobs]
        for future in pending:
            yield future.result()


def _pack_chunk(job: tuple[int, list[str]], setting: tuple) -> tuple[int, list[Finding]]:
    (start, files), (target, preprocessing) = job, setting
    packed = None if target is None else np.load(target, mmap_mode="r+")
    found: list[Finding] = []
    for place, file in enumerate(files, start):
        if not file:
            continue
        try:
            image, notes = decode_with_notes(file, preprocessing)
        except ImageFault as fault:
            found.append(Finding(place, fault.kind, Path(file).name, str(fault), usable=False))
            continue
        if packed is not None:
            packed[place] = image
        found += [Finding(place, *note, usable=True) for note in notes]
    return len(files), found

"""Decode many images in parallel and pack them into one memory-mapped array."""

import errno
import os
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
    try:
        with atomic_write(target) as temporary:
            _new_array(temporary, target, len(files), size).flush()
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
    with atomic_write(target) as temporary:
        if not total:  # which no memory map can be
            with temporary.open("wb") as file:
                np.save(file, np.empty((0, size, size, 3), np.uint8))
            return
        whole = _new_array(temporary, target, total, size)
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


def _new_array(path: Path, target: Path, count: int, size: int) -> np.memmap:
    """A .npy file at `path` for images that will be `target`, uint8 [count, size, size, 3], with its room on the disk.

    Without that room a memory map is written to until the disk is full, and then the process is killed (SIGBUS).
    """
    require_space(path.parent, array_bytes(count, size), f"{target} ({count:,} images of {size}x{size})")
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, array_bytes(count, size))
            except OSError as error:  # a file system that reserves nothing (ZFS, some network shares)
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOSYS):
                    raise
    return array


def _leave_out(path: Path, skipped: set[int], size: int) -> None:
    """Take some rows out of the array at `path`, in place: it is a temporary, and the disk may have no room for two."""
    images = np.load(path, mmap_mode="r+")
    keep = np.setdiff1d(np.arange(len(images)), list(skipped))
    for place, row in enumerate(keep):
        images[place] = images[row]
    start, shape = images.offset, (len(keep), size, size, 3)
    images.flush()
    del images  # Windows cuts no file that is mapped
    with path.open("r+b") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        assert file.tell() == start, "NumPy leaves room in the header for any number of rows"
        file.truncate(start + len(keep) * size * size * 3)


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

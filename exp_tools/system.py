"""Processor cores, and memory settings of Python and of the C library."""

import ctypes
import gc
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exp_tools.params import MachineParams

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of two settings in glibc's malloc.h."""

_USUAL = gc.get_threshold()


def collect_garbage(*, rarely: bool) -> None:
    """Look for garbage rarely, while imports of torch and timm make a million objects and none, or as usual."""
    gc.set_threshold(*(50_000, 10, 10) if rarely else _USUAL)


@cache
def cores() -> int:
    """Processor cores this process may use: no more than its affinity and its container's quota allow."""
    from joblib import cpu_count  # a tenth of a second, which few commands need

    return cpu_count()


def io_processes(machine: "MachineParams") -> int:
    """Processes for drawing and decoding images."""
    return cores() if machine.decoders == "auto" else machine.decoders


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for what comes next (glibc; elsewhere nothing happens).

    By default it maps every large block again and gives it back, so that each forward pass, or each search for key
    points, asks the kernel for its memory page by page: a tenth to a third of the time.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

"""Processor cores, work beside the main process, and memory settings of Python and of the C library."""

import atexit
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from exp_tools.errors import UserError

if TYPE_CHECKING:
    from exp_tools.params import MachineParams

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of two settings in glibc's malloc.h."""

_USUAL = gc.get_threshold()


def collect_garbage(*, rarely: bool) -> None:
    """Look for garbage rarely, while imports of torch and timm make a million objects and none, or as usual."""
    gc.set_threshold(*(50_000, 10, 10) if rarely else _USUAL)


def settle_memory() -> None:
    """What is loaded now stays: look for garbage among later objects alone.

    Python looks through old objects only when a quarter as many have become old since. With a million of them from
    imports, what requests leave behind would pile up for thousands of requests.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or libraries complain at the end that their objects leaked


@cache
def cores() -> int:
    """Processor cores this process may use: no more than its affinity and its container's quota allow."""
    from joblib import cpu_count  # a tenth of a second, which few commands need

    return cpu_count()


def own_python_first() -> dict[str, str]:
    """An environment in which `python` is this one, for DVC, whose stages call it by that name."""
    return os.environ | {"PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])}


def wait_passively() -> None:
    """Let threads of OpenMP sleep while they wait for work; call it before torch is loaded, which reads it then.

    By default they spin. Next to another busy process, a spinning thread keeps the one it waits for from running: one
    prediction then takes 10 to 50 times as long. A setting of the user's own stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def beside(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Start a call in a process of its own; gives what to call for its result, which may raise what the call raised.

    The process is a fork: it has everything that is loaded, and nothing is sent to it. It must leave torch alone, whose
    threads no fork has. Where there is one core, or no safe fork (macOS, Windows), the call is made when its result is
    asked for.
    """
    if not sys.platform.startswith("linux") or cores() == 1:
        return lambda: function(*arguments)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()

    def result() -> Any:
        try:
            fine, value = ours.recv()
        except EOFError:
            process.join()
            raise UserError(
                f"a process beside this one ended early (exit status {process.exitcode}); where memory is short, "
                "`taskset -c 0` before the command makes do with one"
            ) from None
        process.join()
        if not fine:
            raise value
        return value

    return result


def _answer(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, and that one this
    try:
        answer = True, function(*arguments)
    except Exception as error:  # for the process that asks
        answer = False, error
    with contextlib.suppress(BrokenPipeError):  # nobody is there to ask
        connection.send(answer)


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


def give_back_memory() -> None:
    """Collect garbage and give free memory back to the system (the latter with glibc alone): about 10 milliseconds.

    Where threads allocate and free large blocks side by side, what is free lies between what is used, and the process
    grows although it needs no more. To be called after `settle_memory`, without which collecting takes a second.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)

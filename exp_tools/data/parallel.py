"""How many processes to use for work that a processor does alone."""

import os

from exp_tools.params import MachineParams


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def io_processes(machine: MachineParams) -> int:
    """Processes for drawing and decoding images."""
    return cores() if machine.decoders == "auto" else machine.decoders

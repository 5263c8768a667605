"""What this machine offers and how a run uses it: decided by facts, never by a timed probe."""

import os

import torch

from exp_tools.data.parallel import cores, keep_freed_memory
from exp_tools.errors import UserError
from exp_tools.params import MachineParams


def prepare_machine(machine: MachineParams) -> torch.device:
    """Set the thread count and deterministic algorithms, and say which device to use.

    Under torchrun the processes of a host share its cores, and each takes the GPU of its own number.

    Raises UserError when a GPU is demanded and there is none.
    """
    keep_freed_memory()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, cores() // beside) if machine.threads == "auto" else machine.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    device = _gpu() if machine.device != "cpu" else None
    if device is None and machine.device == "gpu":
        raise UserError("machine.device is gpu, but torch sees none; run `exp-tools doctor`, or write auto or cpu")
    return device or torch.device("cpu")


def _gpu() -> torch.device | None:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return None


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turn `auto` into bf16 where the processor or GPU computes in it, else fp16 on a CUDA GPU and fp32 elsewhere.

    Raises UserError for fp16 without a CUDA GPU.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UserError("train.precision is fp16, which needs a CUDA GPU; write auto, bf16 or fp32")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX-512 BF16 or AMX)."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))


def loader_workers(machine: MachineParams, device: torch.device) -> int:
    """Loader processes of one training process: none beside a processor that computes anyway, else its share of the
    cores less one, at most eight."""
    if machine.workers != "auto":
        return machine.workers
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if device.type == "cpu" else max(1, min(8, share - 1))

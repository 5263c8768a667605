"""The device, precision, threads and loader processes of a run: decided by facts, never by a timed probe."""

import os
from collections.abc import Callable

import torch

from exp_tools.errors import UserError
from exp_tools.params import MachineParams
from exp_tools.system import cores, keep_freed_memory


def prepare_machine(machine: MachineParams, *, deterministic: bool = True) -> torch.device:
    """Set the thread count and deterministic algorithms (or a GPU's fastest ones), and say which device to use.

    Under torchrun the processes of a host share its cores, and each takes the GPU of its own number.

    Raises UserError when a GPU is demanded and there is none, or there are fewer than processes of this host.
    """
    keep_freed_memory()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, cores() // local_processes) if machine.threads == "auto" else machine.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads what was never written
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    device = _gpu() if machine.device != "cpu" else None
    if device is None and machine.device == "gpu":
        raise UserError("machine.device is gpu, but torch sees none; run `exp-tools doctor`, or write auto or cpu")
    return device or torch.device("cpu")


def _gpu() -> torch.device | None:
    if torch.cuda.is_available():
        processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if processes > gpus:
            raise UserError(
                f"{processes} training processes on this host, which has {gpus} GPU(s): each takes one. Lower "
                "machine.processes (--nproc-per-node), or set machine.device to cpu"
            )
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return None


MOST_DEPTHWISE = 0.04
"""Share of depthwise multiply-adds up to which a processor that is fast in bf16 trains faster in bf16 than in fp32.
Measured with 20 networks on a Xeon with AMX: up to 0.026 (ResNet, ResNeXt, DenseNet, RegNet, ViT, ConvNeXt,
EfficientNetV2) 1.05 to 1.9 times as fast; from 0.053 on (MobileNet, EfficientNet and its Lite, E-MAS) 0.55 to 0.96.
On an AMD Zen 4, with 15 networks at 96 and 224 pixels: 1.07 to 2.1 times below it (but EfficientNetV2-T 0.96 and
ResNet-10-T 0.79 at 224), 0.46 to 0.90 above it (but MobileNetV2 1.33 at 224)."""


def resolve_precision(precision: str, device: torch.device, depthwise: Callable[[], float]) -> str:
    """Resolve `auto` to the fastest precision, by facts about the machine and the network.

    A GPU: bf16 where it computes in it, else fp16 (CUDA) or fp32. A processor: fp32, but bf16 for a network with few
    depthwise convolutions where the processor is fast in it (see `cpu_is_fast_in_bf16`).

    Parameters
    ----------
    precision : train.precision
    device : where training runs
    depthwise : gives the share of the network's multiply-adds in depthwise convolutions; asked where it matters

    Raises
    ------
    UserError : fp16 without a CUDA GPU
    """
    if precision == "fp16" and device.type != "cuda":
        raise UserError("train.precision is fp16, which needs a CUDA GPU; write auto, bf16 or fp32")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_is_fast_in_bf16() and depthwise() <= MOST_DEPTHWISE else "fp32"


def augments_on_device(where: str, device: torch.device, size: int) -> bool:
    """Whether training images lie on the GPU and are augmented there (`machine.augment_on`).

    Parameters
    ----------
    where : auto, cpu or gpu; auto: on a CUDA GPU where the images take a third of its free memory at most
    size : bytes of all packed images

    Raises
    ------
    UserError : gpu, and training runs elsewhere
    """
    if where == "gpu" and device.type != "cuda":
        raise UserError(
            f"machine.augment_on is gpu, which needs a CUDA GPU, and training runs on {device.type}: write auto"
        )
    if where != "auto" or device.type != "cuda":
        return where == "gpu"
    free, _ = torch.cuda.mem_get_info(device)
    return 3 * size <= free


def cpu_is_fast_in_bf16() -> bool:
    """Whether the processor has AMX, or is AMD's with AVX-512 BF16 (Zen 4 and later); False where torch does not tell.

    AVX-512 BF16 alone does not decide: on a Xeon that has it without AMX, bf16 halved the speed of training.
    """
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    amx = flags.get("amx_bf16") and flags.get("amx_tile")
    return bool(amx or (flags.get("avx512_bf16") and str(flags.get("cpu_name", "")).startswith("AMD")))


def loader_workers(machine: MachineParams, device: torch.device) -> int:
    """Loader processes of one training process: none where the processor computes anyway, else its share of the
    cores less one, at most eight."""
    if machine.workers != "auto":
        return machine.workers
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if device.type == "cpu" else max(1, min(8, share - 1))

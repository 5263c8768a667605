"""Memory of one training step of an architecture as published, on the processor in fp32.

python -m benchmarks.training_memory emas [batch size, 32 if not given]

Prints by how much the process's resident memory grew, at its peak, during one forward and backward pass and one
step of AdamW: activations, gradients, and the optimizer's two moments; not the weights, nor Python and the libraries.
Linux only. Run it once a process.
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional

from exp_tools.models.registry import build_model, describe_models

GIB = 2**30


def main(name: str, batch: int = 32) -> None:
    size = next(row["image_size"] for row in describe_models() if row["name"] == name)
    network = build_model(name, {}, 7).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters())
    inputs = [torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)]
    if network.uses_metadata:
        inputs.append(torch.zeros(batch, 3))
    labels = torch.arange(batch) % 7
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
    before = memory("VmRSS")
    functional.cross_entropy(network(*inputs), labels).backward()
    optimizer.step()
    print(f"{name}: {(memory('VmHWM') - before) / GIB:.1f} GiB for {batch} images of {size} pixels")


def memory(field: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

"""The processes that train one model: a single one, or several that torchrun started."""

import copy
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from exp_tools.evaluation.predict import predict_logits


def start_processes(count: int, module: str) -> None:
    """Replace this process by torchrun with `count` processes of `python -m module`; do nothing for one, or inside it.

    The count is not part of the stage's command in dvc.yaml, since a changed command would train again.
    """
    if count == 1 or "RANK" in os.environ:
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    sys.stdout.flush()
    os.execv(sys.executable, [*launcher, "-m", module])


def world_of() -> tuple[int, int]:
    """Rank and world size, from torchrun's environment, before the process group exists."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class ProcessGroup:
    """Communication of the processes besides gradients: numbers and small objects, over gloo, so that asking never
    waits for a GPU. Make it after accelerate has joined the processes.

    Attributes
    ----------
    rank, world : number of this process, and how many there are
    """

    def __init__(self):
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self._group = dist.new_group(backend="gloo") if self.world > 1 and dist.get_backend() != "gloo" else None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def add(self, *numbers: float) -> list[float]:
        """Sum of each number over all processes."""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return total.tolist()

    def share(self, value: Any) -> Any:
        """The first process's value, everywhere."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Each process's value, by rank, everywhere."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's buffers: BatchNorm statistics are counted by each for itself."""
        if self.world > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


def wrap(network: nn.Module, team: ProcessGroup, device: torch.device, *, compiled: bool, size: int) -> nn.Module:
    """The network as training calls it: averaging gradients over several processes, compiled where asked.

    Parameters
    ----------
    network, device : the network, on its device
    compiled : whether by torch.compile
    size : side of the images, in pixels
    """
    runner = network
    if team.world > 1:
        on_gpu = device.type == "cuda"
        runner = DistributedDataParallel(
            runner,
            device_ids=[device] if on_gpu else None,
            find_unused_parameters=has_unused_parameters(network, size),
            broadcast_buffers=not on_gpu,  # where BatchNorm is synchronised, all have the same
        )
    return torch.compile(runner) if compiled else runner


def has_unused_parameters(network: nn.Module, size: int) -> bool:
    """Whether some parameters take no part in the logits; looking for them costs a pass over the graph in each step.

    Found with a copy that computes shapes alone; True where the network cannot do that.
    """
    trial = copy.deepcopy(network).to("meta").eval()
    for parameter in trial.parameters():
        parameter.requires_grad_(True)
    images = torch.empty(2, 3, size, size, device="meta")
    metadata = [torch.zeros(2, 3, device="meta")] if getattr(network, "uses_metadata", False) else []
    try:
        trial(images, *metadata).sum().backward()
    except (RuntimeError, NotImplementedError):
        return True
    return any(parameter.grad is None for parameter in trial.parameters())


def predict_together(
    team: ProcessGroup,
    network: nn.Module,
    images: Path,
    rows: np.ndarray,
    num_classes: int,
    *,
    metadata: np.ndarray,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> np.ndarray:
    """Logits [N, C] of the images in `rows`, in their order; each is predicted once, by one of the processes.

    batch_size : images of one forward pass, of all processes together
    """
    team.share_buffers(network)
    own = predict_logits(
        network,
        images,
        rows[team.rank :: team.world],
        batch_size=max(1, batch_size // team.world),
        device=device,
        precision=precision,
        metadata=metadata,
    )
    logits = np.empty((len(rows), num_classes), dtype=np.float32)
    for rank, part in enumerate(team.gather(own)):
        logits[rank :: team.world] = part
    return logits

"""Training on a GPU: our loop against a bare one, the images against the loop, peak memory."""

import statistics
from collections.abc import Callable

import torch

from benchmarks.case import Case, seconds
from benchmarks.training_cases import Bench, default_training, train_case, training_pass
from exp_tools.models.device_images import upload
from exp_tools.training.loader import make_loader

GIB = 2**30
NETWORKS = {
    "resnet50": "resnet50",
    "efficientnet_v2_s": "tf_efficientnetv2_s",
    "lite0": "tf_efficientnet_lite0",
    "mobilenet_v3": "mobilenetv3_large_100",
}
"""Each with deterministic algorithms and, as `_free`, without them: then the bare loop has its fastest kernels too."""
LARGE = {"resnet50_256_free": False, "resnet50_256_free_compiled": True}
"""ResNet-50 in batches of 256 without deterministic algorithms, and whether it is compiled."""


def gpu_cases(make: Callable[..., Bench], repeats: int) -> dict[str, Callable[[], list[Case]]]:
    """What is measured, by the name of its cases' beginning; `make` builds a Bench of a batch size."""

    def case(name: str, backbone: str, batch: int, *, deterministic: bool, compiled: bool = False) -> list[Case]:
        return _cases(make(batch, deterministic), f"train_{name}", backbone, compiled=compiled, repeats=repeats)

    work: dict[str, Callable[[], list[Case]]] = {}
    for name, backbone in NETWORKS.items():
        for ending, deterministic in (("", True), ("_free", False)):
            work[f"train_{name}{ending}"] = lambda name=name + ending, backbone=backbone, deterministic=deterministic: (
                case(name, backbone, 64, deterministic=deterministic)
            )
    for name, compiled in LARGE.items():
        work[f"train_{name}"] = lambda name=name, compiled=compiled: case(
            name, "resnet50", 256, deterministic=False, compiled=compiled
        )
    return work


def _cases(bench: Bench, name: str, backbone: str, *, compiled: bool, repeats: int) -> list[Case]:
    training = default_training(bench.batch, "timm", {"backbone": backbone}, compile=compiled)
    torch.cuda.reset_peak_memory_stats()
    training_pass(bench, training)()
    peak, total = torch.cuda.max_memory_allocated() / GIB, torch.cuda.mem_get_info()[1] / GIB
    loop = train_case(bench, training, repeats, name)
    sent = upload(bench.images, bench.device) if bench.setup.augment_on_device else None
    loader, order = make_loader(bench.data(), training.params, bench.setup, sent)

    def load() -> None:
        order.set_epoch(1)
        for _ in loader:
            pass
        bench.wait()

    load()
    rates = sorted(bench.count / seconds(load) for _ in range(repeats))
    middle, share = statistics.median(rates), [rate / loop.limit for rate in rates]
    where = "on the GPU" if bench.setup.augment_on_device else f"by {bench.setup.workers} loader processes"
    against = f"what the bare loop takes; augmented {where}"
    images = Case(
        f"{name}_images", middle, "images/s", loop.limit, against, middle / loop.limit, (share[0], share[-1]), 1
    )
    room = total / peak
    memory = Case(f"{name}_memory", peak, "GiB", total, "memory of the GPU", room, (room, room), 1)
    return [loop, images, memory]

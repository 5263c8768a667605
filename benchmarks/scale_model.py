"""What a million images on one to 64 GPUs would ask of network, disks, cores and clocks: worked out on paper.

    python -m benchmarks.scale_model                                the tables of docs/scaling.md
    python -m benchmarks.scale_model --images 400000 --rate 1200    other assumptions

No GPU is measured here: how fast GPUs, links and storage are is assumed, and each is an option. What a core does was
measured and stands below. A GB is 10^9 bytes. Two thirds of this file are the words of the tables.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from math import ceil
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from exp_tools.data.duplicates.keypoints import MAX_POINTS
from exp_tools.data.duplicates.retrieval import MAX_IN_WORD, MAX_SIDE, POINTS_A_WORD
from exp_tools.models.registry import build_model, count_parameters, list_models

GPUS = (1, 2, 4, 8, 16, 32, 64)
MOST = GPUS[-1]
GBITS = (10, 100, 400)
"""Speeds between hosts that are compared, in Gbit/s."""
TRAIN, VALIDATION, TEST = 0.70, 0.15, 0.15
"""split.fractions"""
WORDS = MAX_SIDE * MAX_SIDE
"""Words of the near-duplicate search at most."""
GB, US = 1e9, 1e-6


def fact(value: float | int | str, unit: str, what: str) -> Any:
    """A number with what the tables and the command's help say of it."""
    return field(default=value, metadata={"unit": unit, "what": what})


@dataclass(frozen=True)
class Assumptions:
    """What nobody measured here; each is an option of the command line."""

    images: int = fact(1_000_000, "", "images of the set, all splits")
    size: int = fact(224, "px", "side of the packed images")
    model: str = fact("timm", "", "architecture of the tables by number of GPUs, as published (timm: ResNet-50)")
    rate: float = fact(
        2_470.0,
        "images/s",
        "training on one GPU alone: NVIDIA's figure for ResNet-50 at 224 px in mixed precision on an A100 80 GB "
        "(DeepLearningExamples, 2021). Whatever is slower asks less of all else",
    )
    batch: int = fact(64, "images", "of a step on one GPU; `train.batch_size` is this times the GPUs")
    gpus_a_host: int = fact(8, "", "GPUs of a host")
    cores: int = fact(64, "", "cores of a host")
    memory: float = fact(256.0, "GB", "memory of a host that is free for its page cache")
    inside: float = fact(25.0, "GB/s", "between the GPUs of a host: PCIe 4.0 x16. NVLink has several times as much")
    between: float = fact(12.5, "GB/s", "between hosts, each way, all network cards of a host: 100 Gbit/s")
    latency_inside: float = fact(15.0, "µs", "the smallest collective on the GPUs of a host")
    latency_between: float = fact(50.0, "µs", "the smallest collective on several hosts")
    storage: float = fact(5.0, "GB/s", "reading from shared storage, all hosts together")
    write: float = fact(1.0, "GB/s", "writing to it from one process")

    @property
    def image_bytes(self) -> int:
        """Bytes of a packed image."""
        return 3 * self.size * self.size

    @property
    def packed_bytes(self) -> int:
        """Bytes of images.npy."""
        return self.images * self.image_bytes

    @property
    def raw_bytes(self) -> float:
        """Bytes of all photographs."""
        return self.images * MEASURED.photograph

    @property
    def area(self) -> float:
        """Pixels of an image over those of the size that was measured."""
        return (self.size / 224) ** 2

    @property
    def augmented(self) -> float:
        """Images a second and core of the loader."""
        return MEASURED.augmented / self.area

    @property
    def predicted(self) -> float:
        """Images a second of a process that copies and computes in turn; forward is a third of a training step."""
        return 1 / (self.area / MEASURED.fetched + 1 / (3 * self.rate))

    def hosts(self, gpus: int) -> int:
        """Hosts for so many GPUs."""
        return ceil(gpus / self.gpus_a_host)

    def link(self, gpus: int) -> tuple[float, float]:
        """Bytes a second of the slowest link between so many GPUs, and seconds of their smallest collective."""
        if self.hosts(gpus) == 1:
            return self.inside * GB, self.latency_inside * US
        return min(self.inside, self.between) * GB, self.latency_between * US


@dataclass(frozen=True)
class Measured:
    """What one core does."""

    augmented: float = fact(1_500, "images/s", "the loader with augmentation, at 224 px (docs/recipes.md)")
    decoded: float = fact(739, "photographs/s", "decode 600x450 and resize to 224 px")
    fetched: float = fact(20_000, "images/s", "copy packed images of 224 px out of the page cache")
    photograph: int = fact(276_594, "bytes", "a photograph of HAM10000: its archives, over 10,015")
    md5: float = fact(0.54, "GB/s", "MD5, as DVC and `train` hash files")
    sha256: float = fact(1.1, "GB/s", "SHA-256, as `prepare` looks for equal files")
    track: float = fact(470, "µs", "DVC's first look at a file of data/raw, besides reading it")
    status: float = fact(80, "µs", "each later look of `dvc status` or `dvc repro` at it")
    key_points: float = fact(13_000, "µs", "duplicate search: read an image, find its key points (docs/performance.md)")
    voted: float = fact(2_200, "µs", "duplicate search: votes of an image, in a set of ten thousand")
    compared: float = fact(4_400, "µs", "duplicate search: compare an image with its candidates")
    split: float = fact(56, "µs", "`split`, an image")
    tables: float = fact(3.6, "µs", "`train` reads a row of labels.csv and encodes its metadata")
    drawn: float = fact(
        0.4, "µs", "an epoch's order: draw a training image, in each process (`train.sampler: balanced`)"
    )
    key: float = fact(0.6, "µs", "an epoch's order: hand a training image to the loader, in the process it belongs to")
    scored: float = fact(1.5, "µs", "headline scores of a validation image after an epoch")
    reported: float = fact(2_300, "µs", "all scores of `evaluate` with 2,000 resamples, a test image")
    colours: float = fact(8_155, "images/s", "`evaluate`: the colour baseline reads images of 224 px")
    fitted: float = fact(100, "µs", "`evaluate`: the colour baseline learns from a training image")
    row: int = fact(260, "bytes", "a row of predictions.csv with seven classes")


MEASURED = Measured()


@dataclass(frozen=True)
class Network:
    """An architecture as published: numbers it learns, BatchNorm layers and the channels of all of them."""

    name: str
    parameters: int
    norm_layers: int
    norm_channels: int


@cache
def network(name: str) -> Network:
    """Count an architecture with seven classes; nothing is computed."""
    with torch.device("meta"):
        model = build_model(name, {}, 7)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return Network(name, count_parameters(model), len(norms), sum(norm.num_features for norm in norms))


def ring_bytes(numbers: float, gpus: int) -> float:
    """Bytes that each GPU sends, and gets, when `numbers` four-byte numbers are summed over GPUs in a ring."""
    return 4 * numbers * 2 * (gpus - 1) / gpus


def gathered_bytes(numbers: float, gpus: int) -> float:
    """Bytes that each GPU gets when each gives `numbers` four-byte numbers to all others."""
    return 4 * numbers * (gpus - 1)


@dataclass(frozen=True)
class Step:
    """Seconds of a training step: computing, summing gradients, exchanging BatchNorm statistics."""

    compute: float
    gradients: float
    norms: float

    @property
    def slowest(self) -> float:
        """Nothing is hidden."""
        return self.compute + self.gradients + self.norms

    @property
    def fastest(self) -> float:
        """Gradients travel while the backward pass, two thirds of computing, goes on; each statistic is waited for."""
        return self.compute + max(0.0, self.gradients - self.compute * 2 / 3) + self.norms


def step(net: Network, gpus: int, given: Assumptions) -> Step:
    """A step of so many GPUs, each with its own batch.

    On several GPUs a BatchNorm layer gathers mean, deviation and count forward, and sums two gradients a channel
    backward (torch.nn.SyncBatchNorm).
    """
    compute = given.batch / given.rate
    if gpus == 1:
        return Step(compute, 0.0, 0.0)
    speed, latency = given.link(gpus)
    forward = gathered_bytes(2 * net.norm_channels + net.norm_layers, gpus)
    backward = ring_bytes(2 * net.norm_channels, gpus)
    norms = 2 * net.norm_layers * latency + (forward + backward) / speed
    return Step(compute, ring_bytes(net.parameters, gpus) / speed, norms)


def steps_an_epoch(gpus: int, given: Assumptions) -> int:
    """Steps in which the training images are gone through."""
    return ceil(round(TRAIN * given.images) / (gpus * given.batch))


def state_bytes(net: Network) -> int:
    """Bytes that an epoch saves: network and the two moments of AdamW, and the best weights when it is the best."""
    return 4 * net.parameters * (1 + 2 + 1)


def epoch_parts(net: Network, gpus: int, given: Assumptions) -> dict[str, float]:
    """Seconds of an epoch by what they go to, at the fastest step."""
    train, validation = TRAIN * given.images, VALIDATION * given.images
    return {
        "training": train / (gpus * given.batch) * step(net, gpus, given).fastest,
        "order": (MEASURED.drawn + MEASURED.key / gpus) * US * train,
        "validation": validation / gpus / given.predicted,
        "scores": MEASURED.scored * US * validation,
        "state": state_bytes(net) / (given.write * GB),
    }


def search_seconds(images: float) -> float:
    """Core-seconds of the near-duplicate search. Votes grow with the square once the vocabulary is full."""
    full = POINTS_A_WORD * WORDS / MAX_POINTS
    votes = MEASURED.voted * max(1.0, images / full)
    return (MEASURED.key_points + MEASURED.compared + votes) * US * images


def search_limit() -> float:
    """Images from which the average word of the search has more key points than are looked at."""
    return MAX_IN_WORD * WORDS / MAX_POINTS


def evaluation_seconds(given: Assumptions) -> tuple[float, float, float]:
    """Predicting validation and test on one GPU, the colour baseline, and scores with intervals."""
    seen = (TRAIN + TEST) * given.images
    return (
        (VALIDATION + TEST) * given.images / given.predicted,
        seen * given.area / MEASURED.colours + MEASURED.fitted * US * TRAIN * given.images,
        MEASURED.reported * US * TEST * given.images,
    )


# --- the tables

Rows = Iterable[Iterable[str]]


def facts_rows(given: Assumptions | Measured, options: bool) -> Rows:
    for each in fields(given):
        value = getattr(given, each.name)
        shown = f"`{value}`" if isinstance(value, str) else f"{value:,.10g}"
        name = [f"`--{each.name.replace('_', '-')}`"] if options else []
        yield [*name, f"{shown} {each.metadata['unit']}".strip(), each.metadata["what"]]


def gradient_rows(given: Assumptions) -> Rows:
    for net in map(network, list_models()):
        inside, over = ring_bytes(net.parameters, given.gpus_a_host), ring_bytes(net.parameters, MOST)
        speeds = [given.inside * GB, *(gbit * GB / 8 for gbit in GBITS)]
        times = [count / speed for count, speed in zip([inside, over, over, over], speeds, strict=True)]
        sent = [f"{each / 1e6:.0f}" for each in (inside, over)]
        shown = [f"{1e3 * each:.1f}" for each in (*times, step(net, MOST, given).norms)]
        yield [net.name, f"{net.parameters:,}", str(net.norm_layers), *sent, *shown]


def step_rows(given: Assumptions) -> Rows:
    for gpus in GPUS:
        one = step(network(given.model), gpus, given)
        low, high = one.compute / one.slowest, one.compute / one.fastest
        sizes = [gpus, given.hosts(gpus), gpus * given.batch, steps_an_epoch(gpus, given)]
        times = [f"{1e3 * each:.1f}" for each in (one.compute, one.gradients, one.norms)]
        yield [*(f"{each:,}" for each in sizes), *times, f"{low:.2f}–{high:.2f}", f"{gpus * given.rate * high:,.0f}"]


def feeding_rows(given: Assumptions) -> Rows:
    for gpus in GPUS:
        host, every = (count * given.rate for count in (min(gpus, given.gpus_a_host), gpus))
        speeds = [f"{images * given.image_bytes / GB:.2f}" for images in (host, every)]
        once = in_time(given.hosts(gpus) * given.packed_bytes / (given.storage * GB))
        yield [str(gpus), str(given.hosts(gpus)), f"{host / given.augmented:.1f}", *speeds, f"{every:,.0f}", once]


def epoch_rows(given: Assumptions) -> Rows:
    for gpus in GPUS:
        parts = epoch_parts(network(given.model), gpus, given)
        total = sum(parts.values())
        yield [str(gpus), *(f"{each:.1f}" for each in (*parts.values(), total)), f"{parts['training'] / total:.0%}"]


def single_rows(given: Assumptions) -> Rows:
    count, raw, packed = given.images, given.raw_bytes, given.packed_bytes
    decode = max(count * given.area / MEASURED.decoded / given.cores, raw / (given.storage * GB))
    start = packed / (min(MEASURED.md5, given.storage) * GB)
    predict, baseline, scores = evaluation_seconds(given)
    points, table = in_bytes(count * MAX_POINTS * (128 + 8)), in_bytes(MEASURED.row * (VALIDATION + TEST) * count)
    first, later = MEASURED.track * US * count + raw / (MEASURED.md5 * GB), MEASURED.status * US * count
    return [
        ["`download`", "DVC looks at every photograph and hashes it", in_time(first), f"{in_bytes(raw)} read"],
        ["each `dvc repro`", "DVC looks whether a photograph has changed", in_time(later), ""],
        ["`prepare`", f"decode, resize, on {given.cores} cores", in_time(decode), f"{in_bytes(packed)} written"],
        ["", "equal files (`duplicates: known`)", in_time(raw / (MEASURED.sha256 * GB)), f"{in_bytes(raw)} read"],
        ["", f"`duplicates: search`, on {given.cores} cores", in_time(search_seconds(count) / given.cores), points],
        ["", "DVC hashes images.npy", in_time(packed / (MEASURED.md5 * GB)), "a copy, where it cannot be linked"],
        ["`split`", "", in_time(MEASURED.split * US * count), ""],
        ["`train`", "start: hash images.npy; the other processes wait", in_time(start), f"{in_bytes(packed)} read"],
        ["", "start: read the tables, each process", in_time(MEASURED.tables * US * count), ""],
        ["`evaluate`", "predict validation and test on one GPU", in_time(predict), f"predictions.csv {table}"],
        ["", "colour baseline", in_time(baseline), ""],
        ["", "scores with intervals", in_time(scores), ""],
    ]


def breaking_rows(given: Assumptions) -> Rows:
    """In the order in which they are met on the way from one GPU to many."""
    net, one_host, two_hosts = network(given.model), given.gpus_a_host, 2 * given.gpus_a_host
    slow = replace(given, between=GBITS[0] / 8)
    speeds = [f"{gpus * given.batch / step(net, gpus, slow).fastest:,.0f}" for gpus in (one_host, two_hosts)]
    parts, last = epoch_parts(net, MOST, given), step(net, MOST, given)
    epoch = sum(parts.values())
    heavy = max((step(each, MOST, given).norms, each.name) for each in map(network, list_models()))
    core = given.rate / given.augmented
    fits = given.memory * GB / given.image_bytes
    fed = given.storage * GB / (given.rate * given.image_bytes)
    waits = given.packed_bytes / (MEASURED.md5 * GB)
    evaluation = sum(evaluation_seconds(given))
    return [
        [
            "each queued run copies images.npy and hashes all photographs",
            f"from the first on: {in_bytes(given.packed_bytes)} of disk, {in_bytes(given.raw_bytes)} read",
            "`cache.type symlink`, `--single-item`: [a queue](#a-queue)",
        ],
        [
            "cores for loaders",
            f"fewer than {core:.1f} beside a GPU, {core * one_host:.0f} of {given.cores} beside {one_host}",
            "more cores a GPU; no perspective in `train.augment`",
        ],
        [
            "images.npy no longer fits in the page cache of a host",
            f"above {fits:,.0f} images; then storage feeds {fed:.0f} GPUs, however many there are",
            "memory; a copy of images.npy on a disk of each host; a smaller `prepare.image_size`",
        ],
        [
            "one process hashes images.npy at each start, the others wait",
            f"{in_time(waits)}; PyTorch's shortest patience, 10 min, ends above "
            f"{600 * MEASURED.md5 * GB / given.image_bytes:,.0f} images or below "
            f"{given.packed_bytes / 600 / GB:.2f} GB/s of storage",
            "fewer starts; read the file once on the first host before (`cat images.npy > /dev/null`)",
        ],
        [
            f"a network of {GBITS[0]} Gbit/s between hosts",
            f"the second host: {speeds[1]} images/s on {two_hosts} GPUs, {speeds[0]} on {one_host}",
            f"{GBITS[1]} Gbit/s; `train.accumulate`, which sums gradients less often; a run for each host",
        ],
        [
            "evaluation, on one GPU and mostly one core",
            f"{in_time(evaluation)}, the time of {evaluation / epoch:.0f} epochs on {MOST} GPUs",
            "a job of its own with one GPU; fewer `evaluate.resamples`",
        ],
        [
            "what an epoch does besides training",
            f"{1 - parts['training'] / epoch:.0%} of {epoch:.1f} s on {MOST} GPUs: "
            "drawing the order, validation, scores, saving the state",
            "fewer GPUs a run, more runs",
        ],
        [
            "BatchNorm statistics, exchanged layer by layer",
            f"{last.norms / last.fastest:.0%} of a step on {MOST} GPUs; {1e3 * heavy[0]:.1f} ms a step of {heavy[1]}",
            "a larger batch a GPU; a network without BatchNorm",
        ],
        [
            "the batch",
            f"{MOST * given.batch:,} images on {MOST} GPUs, {steps_an_epoch(MOST, given)} steps an epoch",
            "[another learning rate](#the-batch); fewer GPUs a run",
        ],
        [
            "the near-duplicate search misses pairs (a warning says so)",
            f"above {search_limit():,.0f} images: the average word has over {MAX_IN_WORD:,} key points and is left out",
            "search in parts that can have images in common; `lesion_id` and `duplicates: known`",
        ],
    ]


def in_time(seconds: float) -> str:
    """Seconds as a reader says them."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def in_bytes(count: float) -> str:
    """Bytes in GB, or in MB."""
    return f"{count / GB:.0f} GB" if count >= GB else f"{count / 1e6:.0f} MB"


def table(title: str, header: str, rows: Rows) -> str:
    """A table in Markdown, below a line that says what it is."""
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def report(given: Assumptions) -> dict[str, str]:
    """The tables by name, as docs/scaling.md shows them."""
    one, all_hosts = given.gpus_a_host, given.hosts(MOST)
    speeds = " | ".join(f"ms, {MOST} at {gbit} Gbit/s" for gbit in GBITS)
    return {
        "assumed": table("Assumed", "option | value | what", facts_rows(given, options=True)),
        "measured": table("Measured on one core", "value | what", facts_rows(MEASURED, options=False)),
        "gradients": table(
            f"A step's gradients: {one} GPUs of a host, and {MOST} GPUs on {all_hosts} hosts",
            f"architecture | parameters | BatchNorm layers | MB that each of {one} sends | each of {MOST} | "
            f"ms, {one} in a host | {speeds} | ms, BatchNorm of {MOST}",
            gradient_rows(given),
        ),
        "step": table(
            f"A step of `{given.model}`",
            "GPUs | hosts | batch | steps an epoch | ms computing | ms gradients | ms BatchNorm | "
            "efficiency: nothing hidden – gradients hidden | images/s at best",
            step_rows(given),
        ),
        "feeding": table(
            "What feeds the GPUs, with nothing in the page cache",
            "GPUs | hosts | cores of a host for loaders | GB/s of a host | GB/s of storage | images read a second | "
            "every host reads images.npy once",
            feeding_rows(given),
        ),
        "epoch": table(
            f"Seconds of an epoch of `{given.model}`, with everything in the page cache",
            "GPUs | training | order | validation | scores | state | sum | share of training",
            epoch_rows(given),
        ),
        "single": table("What one process or one host does", "when | what | time | size", single_rows(given)),
        "breaking": table("What breaks first", "what | where | what to do", breaking_rows(given)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for each in fields(Assumptions):
        name, about = each.name.replace("_", "-"), each.metadata
        choices = list_models() if each.name == "model" else None
        words = f"{about['what']} (default: {each.default} {about['unit']})".replace(" )", ")")
        parser.add_argument(f"--{name}", type=each.type, default=each.default, choices=choices, help=words)
    print("\n\n".join(report(Assumptions(**vars(parser.parse_args()))).values()))


if __name__ == "__main__":
    main()

"""Speed as ratios: each case against its limit or a rival, both measured in this run, alternating.

    make bench                                    on drawn images
    make bench BENCH_ARGS="--images FOLDER"       on the JPEGs below a folder

Prints a table with the median over repeats and the spread. Nothing here is a test: a busy machine changes seconds, and
ratios a little.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from exp_tools.data.augment import PRESETS, Magnitudes
from exp_tools.data.dataset import FixedOrder, PackedImages
from exp_tools.data.drawing.sample import write_sample
from exp_tools.data.images import find_images, pack_images
from exp_tools.data.parallel import cores
from exp_tools.data.splits import allocate_groups

SIZE = 224


@dataclass(frozen=True)
class Case:
    """One row: what was measured, its rate, the limit or rival it stands against, and the ratio that is wanted."""

    name: str
    value: float
    unit: str
    against: str
    limit: float
    ratio: float
    spread: tuple[float, float]
    target: float

    @property
    def meets_target(self) -> bool:
        return self.ratio >= self.target


def compare(
    name: str, unit: str, amount: float, ours: Callable, rival: Callable, *, against: str, target: float, repeats: int
) -> Case:
    """Time `ours` and `rival` in turn; rates are `amount` a second, the ratio is the median over pairs."""
    ours(), rival()
    pairs = [(_seconds(ours), _seconds(rival)) for _ in range(repeats)]
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    value = amount / statistics.median(mine for mine, _ in pairs)
    limit = amount / statistics.median(theirs for _, theirs in pairs)
    return Case(name, value, unit, against, limit, statistics.median(ratios), (ratios[0], ratios[-1]), target)


def _seconds(work: Callable) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def prepare_case(files: list[Path], scratch: Path, repeats: int) -> Case:
    """`prepare`'s decoding against Pillow alone, on as many processes."""
    chunks = [files[start : start + 32] for start in range(0, len(files), 32)]

    def rival() -> None:
        with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
            list(pool.map(decode_with_pillow, chunks))

    return compare(
        "prepare",
        "images/s",
        len(files),
        lambda: pack_images(files, scratch / "images.npy", size=SIZE, processes=cores()),
        rival,
        against="Pillow decode + resize, same cores",
        target=0.9,
        repeats=repeats,
    )


def decode_with_pillow(files: list[Path]) -> None:
    """What a plain user would write."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def loader_case(files: list[Path], scratch: Path, repeats: int) -> Case:
    """Augmented batches from packed images on one core, against torchvision from JPEG with the same transforms."""
    import torch
    from torchvision.io import decode_image
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    pack_images(files, scratch / "images.npy", size=SIZE, processes=cores())
    limits = Magnitudes(**PRESETS["medium"])
    packed = PackedImages(scratch / "images.npy", np.zeros(len(files)), limits)
    rivals = v2.Compose(
        [
            v2.Resize((SIZE, SIZE)),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomAffine(90, translate=(0.05, 0.05), scale=(0.9, 1.1), shear=5),
            v2.ColorJitter(0.15, 0.15, 0.15, 7 / 360),
        ]
    )
    some = files[: min(96, len(files))]

    def rival() -> None:
        for start in range(0, len(some), 32):
            torch.stack([rivals(decode_image(str(file))) for file in some[start : start + 32]])

    return compare(
        "loader",
        "images/s",
        len(some),
        lambda: [packed.__getitems__(keys) for keys in FixedOrder(np.arange(len(some)), 32)],
        rival,
        against="torchvision v2 from JPEG, one core",
        target=10,
        repeats=repeats,
    )


def train_case(files: list[Path], scratch: Path, repeats: int) -> Case:
    """The steps of our training loop, loader and augmentation included, against a bare loop on tensors in memory."""
    import torch
    from torch.nn.functional import cross_entropy

    from exp_tools.models.registry import build_model
    from exp_tools.params import load_params
    from exp_tools.training.batches import groups
    from exp_tools.training.data import Setup, TrainingData
    from exp_tools.training.loop import Trainer
    from exp_tools.training.stopping import StopRequest

    torch.set_num_threads(cores())
    size, batch, some = 128, 32, files[:160]
    pack_images(some, scratch / "train.npy", size=size, processes=cores())
    labels = np.arange(len(some)) % 7
    rows = np.arange(len(some))
    data = TrainingData(scratch / "train.npy", labels, rows, rows, list("abcdefg"), [file.stem for file in some])
    params = load_params().train.model_copy(update={"batch_size": batch, "epochs": 10**6, "schedule": "constant"})
    knobs = {"backbone": "resnet18"}
    trainer = Trainer(
        build_model("soft_attention", knobs, 7), data, params, Setup(torch.device("cpu")), None, StopRequest(), print
    )
    trainer.runner = trainer.network.train()

    def ours() -> None:
        trainer.order.set_epoch(1)
        trainer.progress.step = 0
        for group in groups(trainer.loader, 1):
            trainer.step(1, group)
            trainer.look(1)

    bare = build_model("soft_attention", knobs, 7).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=params.lr, fused=True)
    parts = [slice(start, start + batch) for start in range(0, len(some), batch)]
    pixels = torch.from_numpy(np.load(scratch / "train.npy")).permute(0, 3, 1, 2).float() / 255
    tensors = [
        (pixels[part].contiguous(memory_format=torch.channels_last), torch.from_numpy(labels[part])) for part in parts
    ]

    def rival() -> None:
        for images, targets in tensors:
            cross_entropy(bare(images), targets).backward()
            torch.nn.utils.clip_grad_norm_(bare.parameters(), params.clip_norm)
            optimizer.step()
            optimizer.zero_grad()

    return compare(
        "train",
        "images/s",
        len(some),
        ours,
        rival,
        against="bare loop on tensors in memory",
        target=0.95,
        repeats=repeats,
    )


def split_case(repeats: int) -> Case:
    """Splitting 10,015 rows against the two seconds it may take."""
    generator = np.random.default_rng(0)
    groups = np.sort(generator.integers(0, 7470, 10_015)).astype(str)
    dx = generator.choice(["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"], 7470)[groups.astype(int)]
    times = [_seconds(lambda: allocate_groups(dx, groups, [0.7, 0.15, 0.15], 0)) for _ in range(repeats)]
    return _against_seconds("split", times, 2.0, "10,015 rows in 2 s")


def import_case(repeats: int) -> Case:
    """`import exp_tools` in a new process, less the start of Python, against a tenth of a second."""
    bare = [_seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True)) for _ in range(repeats)]
    whole = [
        _seconds(lambda: subprocess.run([sys.executable, "-c", "import exp_tools"], check=True)) for _ in range(repeats)
    ]
    return _against_seconds("import", [max(w - min(bare), 1e-4) for w in whole], 0.1, "import exp_tools in 0.1 s")


def _against_seconds(name: str, times: list[float], limit: float, against: str) -> Case:
    median = statistics.median(times)
    return Case(name, median, "s", against, limit, limit / median, (limit / max(times), limit / min(times)), 1)


def print_cases(cases: list[Case]) -> None:
    """A row a case: what was measured, its limit or rival, their ratio and its spread, and what it should be."""
    print(f"{'case':8} {'measured':>16} {'limit':>10}  {'ratio':>6} {'spread':>13}  {'target':>6}  against")
    for case in cases:
        spread = f"{case.spread[0]:.2f}-{case.spread[1]:.2f}"
        print(
            f"{case.name:8} {case.value:>7,.3g} {case.unit:8} {case.limit:>10,.3g}  {case.ratio:>6.2f} {spread:>13}  "
            f"{case.target:>6g}  {case.against}{'' if case.meets_target else '  MISSED'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs to decode (default: 200 drawn ones)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements a case")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if arguments.images is None:
            write_sample(scratch / "sample", images=200, seed=0, processes=cores())
        files = list(find_images(arguments.images or scratch / "sample").values())
        cases = [
            prepare_case(files, scratch, arguments.repeats),
            loader_case(files, scratch, arguments.repeats),
            train_case(files, scratch, arguments.repeats),
            split_case(arguments.repeats),
            import_case(arguments.repeats),
        ]
    print(f"{len(files):,} images, {cores()} cores, Python {sys.version.split()[0]}, {arguments.repeats} repeats")
    print_cases(cases)


if __name__ == "__main__":
    main()
